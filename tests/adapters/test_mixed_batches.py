"""One batch, one adapter per row: each row's result is that of its solo run."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lorary.adapters import Backbone
from lorary.hub.errors import RoutingError, UnknownReferenceError, UsageError
from tiny import make_adapter

PROMPTS = ["profit rose the bank", "a dog", "story mother house dog cat", "free cash offer"]
TEXTS = ["profit rose", "patient with asthma and cancer", "free cash", "the dog ran with the cat"]


@pytest.fixture
def backbone_with(bases, tmp_path):
    """A function: a backbone of a family with one adapter of each given (name, task, lora settings)."""

    def make(family, *adapters, **kwargs):
        backbone = Backbone.from_pretrained(str(bases(family)), **kwargs)
        for seed, (name, task, lora) in enumerate(adapters, start=1):
            backbone.load(make_adapter(bases(family), tmp_path / name, task=task, seed=seed, **lora))
        return backbone

    return make


@pytest.mark.parametrize(
    "kwargs", [{"do_sample": False}, {"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 2}]
)
@pytest.mark.parametrize(
    ("family", "task"), [("llama", "text-generation"), ("gpt2", "text-generation"), ("t5", "seq2seq")]
)
def test_generation(backbone_with, family, task, kwargs):
    backbone = backbone_with(family, ("a", task, {"r": 1}), ("b", task, {"r": 64, "use_rslora": True}), ("c", task, {}))
    names = ["a", "b", None, "c"]
    mixed = backbone.generate(PROMPTS, names, max_new_tokens=6, **kwargs)
    solo = [backbone.generate([p], name, max_new_tokens=6, **kwargs)[0] for p, name in zip(PROMPTS, names, strict=True)]
    assert mixed == solo
    assert len({str(text) for text in solo}) > 1


@pytest.mark.parametrize("quantization", ["none", "nf4", "int8"])
def test_heads_of_different_tasks_in_one_batch(backbone_with, quantization):
    tasks = [
        ("c", "text-classification", {}),
        ("t", "token-classification", {"labels": 5}),
        ("f", "feature-extraction", {}),
    ]
    backbone = backbone_with("bert", *tasks, quantization=quantization)
    names = ["c", "t", "f", None]
    mixed = backbone.predict(TEXTS, names)
    for text, name, got in zip(TEXTS, names, mixed, strict=True):
        want = backbone.predict([text], name)[0]
        if name in ("f", None):
            torch.testing.assert_close(torch.tensor(got), torch.tensor(want), atol=1e-5, rtol=1e-4)
        elif name == "c":
            assert got["label"] == want["label"]
            assert got["score"] == pytest.approx(want["score"], abs=1e-5)
        else:
            assert [entity["entity"] for entity in got] == [entity["entity"] for entity in want]
            assert [entity["score"] for entity in got] == pytest.approx([e["score"] for e in want], abs=1e-5)


def test_rows_of_the_bare_backbone_are_untouched(backbone_with):
    backbone = backbone_with("bert", ("f", "feature-extraction", {}))
    ids = torch.tensor([[2, 7, 8, 3], [2, 7, 8, 3]])
    bare = backbone.body(input_ids=ids).last_hidden_state
    with backbone.using(["f", None]):
        mixed = backbone.body(input_ids=ids).last_hidden_state
    assert torch.equal(mixed[1], bare[1])
    assert not torch.allclose(mixed[0], bare[0], atol=1e-3)


def test_modules_trained_whole_serve_their_own_rows_only(backbone_with):
    lora = {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}
    backbone = backbone_with("llama", ("own-head", "text-generation", lora), ("plain", "text-generation", {}))
    names = ["own-head", "plain", None, "own-head"]
    mixed = backbone.generate(PROMPTS, names, max_new_tokens=6)
    assert mixed == [backbone.generate([p], name, max_new_tokens=6)[0] for p, name in zip(PROMPTS, names, strict=True)]


def test_using_routes_raw_calls(backbone_with):
    backbone = backbone_with("bert", ("c", "text-classification", {}))
    ids = torch.tensor([[2, 7, 8, 3]])
    with backbone.using("c") as model:
        logits = model(input_ids=ids).logits[0]
    torch.testing.assert_close(logits, backbone.logits([[2, 7, 8, 3]], "c")[0])


def test_rows_that_cant_be_told_apart_are_refused(backbone_with):
    backbone = backbone_with("bert", ("a", "feature-extraction", {}), ("b", "feature-extraction", {}))
    with backbone.using(["a", "b"]), pytest.raises(RoutingError, match="3 rows in a call of 2"):
        backbone.body(input_ids=torch.tensor([[2, 7], [2, 8], [2, 9]]))


def test_wrong_names_and_counts(backbone_with):
    backbone = backbone_with("bert", ("headlines", "text-classification", {}))
    with pytest.raises(UnknownReferenceError, match="did you mean headlines"):
        backbone.predict(["profit"], "headline")
    with pytest.raises(UsageError, match="2 adapters for 1 rows"):
        backbone.predict(["profit"], ["headlines", None])
    with pytest.raises(UsageError, match="no language-modelling head"):
        backbone.generate(["profit"], None)


class Waits(TorchDispatchMode):
    """Notes what a GPU would be waited for: numbers that the host asks for, and masks, whose hits are counted."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        indices = args[1] if name in ("index", "index_put", "index_put_") else ()
        masks = [part for part in indices if part is not None and part.dtype is torch.bool]
        if masks or name in ("nonzero", "masked_select", "_local_scalar_dense", "equal"):
            self.found.append(name)
        return function(*args, **kwargs or {})


def test_adapted_layers_wait_for_no_device(bases, kinds):
    backbone = Backbone.from_pretrained(str(bases("llama")))
    names = ["large", "dora", "embedding", "biased", "whole", None]
    for name in filter(None, names):
        backbone.load(kinds(name), name)
    ids, waited = torch.tensor([[7, 8, 9, 10]] * len(names)), []
    for choice in ([None] * len(names), names):
        with torch.no_grad(), backbone.using(choice) as model:
            model(input_ids=ids)  # lays out what the passes after it read
            with Waits() as waits:
                model(input_ids=ids)
        waited.append(waits.found)
    bare, adapted = waited
    assert adapted == bare
