"""torch.compile: the same answers as without, and nothing compiled again when adapters come and go."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter, EagerAndRecordGraphs

from lorary.adapters import Backbone
from lorary.adapters.layer import lora
from tiny import make_adapter, make_base

IDS = torch.tensor([[7, 8, 9, 10], [9, 8, 7, 6], [12, 13, 14, 15]])
CHOICES = [["a"], ["b"], [None], ["a", "b", None], ["c", "a", "c"], ["dora", "a", "embedding"]]
SITES = {"target_modules": ["q_proj", "down_proj"]}  # one of each part of a layer: every other is traced alike
LORA = {"dora": {"use_dora": True}, "embedding": {"target_modules": ["embed_tokens", "q_proj"]}}


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Bases of one layer: Dynamo's seconds are for tracing, and every layer is traced alike."""
    root = tmp_path_factory.mktemp("bases")
    made = {family: make_base(family, root / family, num_hidden_layers=1) for family in ("llama", "bert")}
    return made.__getitem__


@pytest.fixture
def folders(bases, tmp_path):
    return {
        name: make_adapter(
            bases("llama"), tmp_path / name, task="text-generation", seed=seed, **SITES | LORA.get(name, {})
        )
        for seed, name in enumerate(["dora", "embedding", "a", "b", "c", "d"])
    }


def answer(backbone, names, ids=IDS):
    with torch.no_grad(), backbone.using(names) as model:
        return model(input_ids=ids).logits


def test_no_recompilation_however_adapters_come_and_go(bases, folders):
    backbone = Backbone.from_pretrained(str(bases("llama")), slots=4)
    for name in ("dora", "embedding", "a", "b", "c"):
        backbone.load(folders[name])
    want = [answer(backbone, names) for names in CHOICES]
    counter = CompileCounter()
    backbone.compile(backend=counter, fullgraph=True)
    got = [answer(backbone, names) for names in CHOICES]  # five adapters in four slots: they evict each other
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    assert counter.frame_count == 2, "one for calls with one adapter, one for calls with several"
    backbone.swap("a", folders["d"])
    assert not torch.allclose(answer(backbone, ["a"]), want[0], atol=1e-3)
    backbone.swap("a", folders["a"])
    backbone.unload("b")
    torch.testing.assert_close(answer(backbone, ["a"]), want[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(answer(backbone, ["c", "a", "c"]), want[4], atol=1e-5, rtol=1e-5)
    assert counter.frame_count == 2


def test_one_token_steps_for_cuda_read_the_adapters_where_they_are(bases, folders, monkeypatch):
    backbone = Backbone.from_pretrained(str(bases("llama")))
    for name in ("dora", "embedding", "a", "b", "c"):
        backbone.load(folders[name])
    token = IDS[:, -1:]
    want = [answer(backbone, names, token) for names in CHOICES]
    monkeypatch.setattr(lora, "_SUMS_ON", ("cpu",))
    graphs = EagerAndRecordGraphs()
    backbone.compile(backend=graphs)
    got = [answer(backbone, names, token) for names in CHOICES]
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    assert [graph.code.count("torch.bmm") > 0 for graph in graphs.graphs] == [True, False], "of one adapter, of several"


@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
def test_a_module_that_another_adapter_trained_whole_breaks_no_graph(bases, folders, tmp_path, late):
    """That adapter's calls run uncompiled; the others' have nothing to do there."""
    backbone = Backbone.from_pretrained(str(bases("llama")), slots=4)
    kinds = {"first": {}, "whole": {"modules_to_save": ["o_proj"]}}
    for name, kind in kinds.items():
        targets = {"target_modules": ["q_proj", "up_proj"], **kind}
        kinds[name] = make_adapter(bases("llama"), tmp_path / name, task="text-generation", **targets)
    backbone.load(kinds["first"])
    if not late:
        backbone.load(kinds["whole"])
    want = answer(backbone, ["first"])
    backbone.compile(backend=CompileCounter(), fullgraph=True)
    torch.testing.assert_close(answer(backbone, ["first"]), want, atol=1e-5, rtol=1e-5)
    if late:
        backbone.load(kinds["whole"])
    torch.testing.assert_close(answer(backbone, ["first"]), want, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(answer(backbone, ["whole"]), want, atol=1e-3)


def test_a_larger_rank_compiles_once_more(bases, folders, tmp_path):
    backbone = Backbone.from_pretrained(str(bases("llama")), slots=4)
    backbone.load(folders["a"])
    counter = CompileCounter()
    backbone.compile(backend=counter)
    before = answer(backbone, ["a"])
    for name in ("large", "larger-no-more"):
        backbone.load(make_adapter(bases("llama"), tmp_path / name, task="text-generation", r=16, **SITES))
        answer(backbone, [name])
        torch.testing.assert_close(answer(backbone, ["a"]), before, atol=1e-5, rtol=1e-5)
    assert counter.frame_count == 2


def test_generation(bases, folders):
    backbone = Backbone.from_pretrained(str(bases("llama")))
    for name in "abc":
        backbone.load(folders[name])
    prompts, names = ["profit rose the bank", "a dog", "story mother house dog cat"], ["a", None, "c"]
    settings = [{"num_beams": 2}, {"cache_implementation": "static"}]
    want = [backbone.generate(prompts, names, max_new_tokens=3, **kwargs) for kwargs in settings]
    backbone.compile(backend="eager")
    assert [backbone.generate(prompts, names, max_new_tokens=3, **kwargs) for kwargs in settings] == want


def test_heads_and_whole_modules(bases, tmp_path):
    backbone = Backbone.from_pretrained(str(bases("bert")))
    tasks = {
        "c": "text-classification",
        "t": "token-classification",
        "f": "feature-extraction",
        "w": "feature-extraction",
    }
    for name, task in tasks.items():
        whole = {"modules_to_save": ["intermediate.dense"]} if name == "w" else {}
        backbone.load(make_adapter(bases("bert"), tmp_path / name, task=task, target_modules=["query"], **whole))
    texts = ["profit rose", "free cash", "the dog", "a cat"]
    want = [backbone.logits([[2, 7, 8, 3]], name)[0] for name in tasks]
    predictions = backbone.predict(texts[:3], ["c", "t", None])
    counter = CompileCounter()
    backbone.compile(backend=counter)
    torch.testing.assert_close([backbone.logits([[2, 7, 8, 3]], name)[0] for name in tasks], want, atol=1e-5, rtol=1e-5)
    label, *_ = backbone.predict(texts[:3], ["c", "t", None])
    assert label == {"label": predictions[0]["label"], "score": pytest.approx(predictions[0]["score"])}
    assert counter.frame_count


def test_a_model_that_somebody_else_compiles_steps_out_for_its_adapters(bases, tmp_path):
    """Without Backbone.compile the choice of adapters can't be traced: slower, never another's answer."""
    backbone = Backbone.from_pretrained(str(bases("llama")))
    for seed, name in enumerate("ab"):  # what follows each adapted module is traced anew
        lora = {"seed": seed, "target_modules": ["q_proj"]}
        backbone.load(make_adapter(bases("llama"), tmp_path / name, task="text-generation", **lora))
    compiled = torch.compile(backbone.model, backend="eager")
    for names in (["a"], ["b"], [None], ["a", "b", None]):
        want = answer(backbone, names)
        with torch.no_grad(), backbone.using(names):
            torch.testing.assert_close(compiled(input_ids=IDS).logits, want, atol=1e-5, rtol=1e-5)
