"""Tokens that the base doesn't know: added, trained in rows of their own, saved with the adapter, served with it."""

from __future__ import annotations

import json
import random
import shutil
import warnings
from functools import cache, partial

import pytest
import torch
from safetensors.torch import load_file

from lorary.adapters import Backbone
from lorary.hub import Registry
from lorary.hub.checkpoint import WEIGHTS_NAME, read_checkpoint
from lorary.hub.errors import CheckpointError, InterruptedRunError, RecipeError, TrainingError
from lorary.training import train
from lorary.training.data import load_data
from lorary.training.estimate.plan import estimate
from lorary.training.experiments.session import Session
from lorary.training.prepare import prepare
from lorary.training.progress import Reporter
from lorary.training.recipe import Recipe
from lorary.training.strategies.parent import find_parent
from runs import SHORT, golden, prepared
from samples import WORDS, write_jsonl
from stops import Signal

ADD = ("<|ask|>", "<|say|>", "<|over|>")
CHAT = (
    "{% for m in messages %}{{ '<|ask|>' if m['role'] == 'user' else '<|say|>' }}"
    "{% generation %}{{ m['content'] }}<|over|>{% endgeneration %}{% endfor %}"
    "{% if add_generation_prompt %}<|say|>{% endif %}"
)
FIRST = {"tokens.add": ADD, "tokens.special": True}


def rows(count, seed=0):
    """Answers that are wrapped in new tokens: whoever learns them gains much."""
    source = random.Random(seed)
    words = [source.choice(WORDS) for _ in range(count)]
    return [{"prompt": f"say {word}", "completion": f"<|say|>{word}<|over|>"} for word in words]


def chats(count, seed=0):
    return [
        {"messages": [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["prompt"][4:]}]}
        for row in rows(count, seed)
    ]


@pytest.fixture(scope="session")
def with_tokens_in(recipe_in, bases):
    """``with_tokens_in(folder, family, **settings)``: a recipe whose rows hold new tokens."""

    def make(folder, family="llama", make_rows=rows, **settings):
        return recipe_in(
            folder,
            "text-generation",
            **{
                "base": bases(family),
                "data.train": write_jsonl(folder / "asked.jsonl", make_rows(48)),
                "data.test": write_jsonl(folder / "held.jsonl", make_rows(12, seed=9)),
                **FIRST,
                **settings,
            },
        )

    return make


@pytest.fixture
def with_tokens(with_tokens_in, tmp_path):
    return partial(with_tokens_in, tmp_path)


@pytest.fixture(scope="session")
def trained(with_tokens_in, tmp_path_factory):
    """``trained(family, method)``: the folder of a run that has learned new tokens, and its warnings; made once."""

    @cache
    def make(family, method):
        folder = tmp_path_factory.mktemp("trained")
        recipe = with_tokens_in(folder, family, method=method, **{"training.epochs": 4, "tokens.end": "<|over|>"})
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            train(recipe, Registry(folder / "registry.db"))
        return folder, warned

    return make


@pytest.fixture
def parent_of(trained, registry, tmp_path):
    """``parent_of(family, method)``: that run's version, its files and its catalogue being this test's own."""

    def copied(family="llama", method="lora"):
        shutil.copytree(trained(family, method)[0], tmp_path, dirs_exist_ok=True)
        return registry.versions()[0]

    return copied


RUNS = [("llama", "lora"), ("llama", "qlora"), ("gpt2", "dora")]
"""Untied and tied, a base in four bits, and the Conv1D of GPT-2."""


@pytest.mark.parametrize(("family", "method"), RUNS)
def test_they_are_learned_saved_and_served(trained, parent_of, registry, tmp_path, bases, family, method):
    """The gate has compared tensors, golden logits and the metric."""
    version = parent_of(family, method)
    _, warned = trained(family, method)
    assert not [warning for warning in warned if "save_embedding_layers" in str(warning.message)]
    assert version.metrics["test"]["loss"] < 0.7 * version.metrics["untrained"]["loss"]
    checkpoint = read_checkpoint(tmp_path / "out")
    assert checkpoint.manifest.added_tokens == ADD
    layers = {"llama": ("model.embed_tokens", "lm_head"), "gpt2": ("transformer.wte",)}[family]
    kept = [key for key in checkpoint.tensors if "lora_" not in key]
    assert sorted(kept) == sorted(f"base_model.model.{layer}.token_adapter.trainable_tokens_delta" for layer in layers)
    backbone = Backbone.from_pretrained(
        bases(family), quantization="nf4" if method == "qlora" else "none", registry=registry
    )
    backbone.load(version.reference, "own")
    assert backbone.verify("own").matches
    prompts = [row["prompt"] for row in rows(12, seed=9)]
    answers = backbone.generate(prompts, "own", max_new_tokens=4, min_new_tokens=2)
    assert not any("<|" in answer for answer in answers)  # special: left out of what is read
    assert answers != backbone.generate(prompts, None, max_new_tokens=4)


def test_peft_gives_the_same(parent_of, tmp_path, bases):
    """As docs/methods.md says it for a user of PEFT alone: the tokenizer beside it, a resized base."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    parent_of()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(bases("llama"))
    model.resize_token_embeddings(len(tokenizer))
    model = PeftModel.from_pretrained(model, tmp_path / "out").eval()
    want = golden(tmp_path / "out")
    for row, logits in zip(read_checkpoint(tmp_path / "out").manifest.golden_rows, want, strict=True):
        with torch.no_grad():
            torch.testing.assert_close(model(torch.tensor([row])).logits[0, -1], logits, atol=1e-4, rtol=1e-4)


def test_its_card(with_tokens, registry, tmp_path, bases, monkeypatch, capsys):
    """Says which tokens it adds, and its scripts run as they stand, with PEFT alone too."""
    import re
    from dataclasses import replace

    from lorary.hub.card import make_card
    from lorary.hub.markup import markdown

    version = train(with_tokens(**SHORT), registry)
    checkpoint = registry.checkpoint(version)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").rename(tmp_path / "tiny")
    shutil.copytree(bases("llama"), tmp_path / "tiny-base")
    card = make_card(replace(version, base_id="tiny-base"), checkpoint)
    assert f"Tokens that it adds to the base's: {', '.join(map(markdown, ADD))}." in card
    samples = re.findall(r"```python\n(.*?)\n```", card, re.DOTALL)
    assert len(samples) == 2
    for sample in samples:
        exec(compile(sample, "card", "exec"), {})
        assert capsys.readouterr().out.strip()


def test_a_chat_with_markers_of_its_own(with_tokens, registry, bases, tmp_path):
    """The token that ends a turn ends what is generated, too, though the base's files say otherwise."""
    columns = {"data.columns": {"messages": "messages"}, "prompt.chat_template": CHAT, "tokens.end": "<|over|>"}
    version = train(with_tokens(make_rows=chats, **columns, **{"training.epochs": 8}), registry)
    backbone = Backbone.from_pretrained(bases("llama"), registry=registry)
    backbone.load(version.reference, "own")
    asked = [chat["messages"][:1] for chat in chats(12, seed=9)]
    answers = backbone.generate(asked, "own", max_new_tokens=20)
    lengths = [len(backbone.tokenizer(answer)["input_ids"]) for answer in answers]
    assert sum(length < 12 for length in lengths) > 8, answers
    peft = backbone._peft.find("own")
    assert peft.own_tokenizer.stop_tokens == (peft.own_tokenizer.tokenizer.convert_tokens_to_ids("<|over|>"),)


@pytest.mark.parametrize(("task", "family"), [("text-classification", "bert"), ("summarization", "t5")])
def test_other_tasks(make_small, registry, tmp_path, task, family):
    quick = {"generation.rows": 1, "generation.max_new_tokens": 4} if task == "summarization" else {}
    recipe = make_small(task, family, **{"tokens.add": ("zzqx", "qqzx"), **quick, **SHORT})
    ready = prepared(recipe)
    delta = [p for name, p in ready.model.named_parameters() if "trainable_tokens_delta" in name]
    assert len(delta) == 1
    version = train(recipe, registry)
    assert version.digest
    assert read_checkpoint(tmp_path / "out").manifest.added_tokens == ("zzqx", "qqzx")


def test_new_rows_begin_at_the_mean(with_tokens):
    recipe = with_tokens()
    ready = prepared(recipe)
    base = ready.base
    rows = [p for name, p in ready.model.named_parameters() if "trainable_tokens_delta" in name]
    layers = base.model.get_input_embeddings(), base.model.get_output_embeddings()
    for own, layer in zip(rows, layers, strict=True):
        known = layer.token_adapter.base_layer.weight[: base.before.rows]
        torch.testing.assert_close(own, known.mean(dim=0).expand(3, -1))
    assert estimate(recipe).cost.step.adapter == 4 * 4 * trained_in(ready)


def trained_in(ready):
    return sum(parameter.numel() for parameter in ready.model.parameters() if parameter.requires_grad)


def test_spare_rows_are_used_first(with_tokens, bases, tmp_path, registry):
    """A base with more rows than tokens keeps its size."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(bases("llama"))
    tokenizer = AutoTokenizer.from_pretrained(bases("llama"))
    model.resize_token_embeddings(len(tokenizer) + 8)
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "padded")
    reporter = Reporter()
    version = train(with_tokens(base=str(tmp_path / "padded"), **SHORT), registry, reporter)
    assert any(
        "3 new tokens, trained in rows of the embedding which it has to spare (8)" in n for n in reporter.notices
    )
    backbone = Backbone.from_pretrained(str(tmp_path / "padded"), registry=registry)
    backbone.load(version.reference, "own")
    with backbone.using("own") as served:
        assert served.get_input_embeddings().weight.shape[0] == len(tokenizer) + 8
    assert backbone.verify("own").matches


def test_several_runs_on_one_base(with_tokens, tmp_path):
    """Each seed begins with the bare base; the adapter is that of a run alone."""
    first, second = (with_tokens(**SHORT, **{"training.seed": seed}) for seed in (7, 8))
    data = load_data(first)
    session = Session(tmp_path / "both", Reporter())
    begun = session.run(first, data, "first")
    session.release(begun)
    bare = begun.prepared.base.bare.model.get_input_embeddings()
    assert bare.weight.shape[0] == begun.prepared.base.before.rows
    after, alone = session.run(second, data, "second"), Session(tmp_path / "alone", Reporter()).run(second, data, "it")
    assert after.metrics == alone.metrics
    assert after.trained.tensors.keys() == alone.trained.tensors.keys()
    assert all(torch.equal(after.trained.tensors[key], tensor) for key, tensor in alone.trained.tensors.items())
    assert len(after.prepared.base.tokenizer) == len(alone.prepared.base.tokenizer)


STOPPED = {"training.max_steps": 3, "training.checkpoint_steps": 1}


def test_a_run_that_was_stopped_goes_on(with_tokens, registry, tmp_path):
    whole = train(with_tokens(output=str(tmp_path / "whole"), name="whole", **STOPPED), registry)
    recipe = with_tokens(**STOPPED)
    with pytest.raises(InterruptedRunError):
        train(recipe, registry, Signal("step 2"))
    kept = [load_file(file) for file in tmp_path.rglob("checkpoint-*/adapter_model.safetensors")]
    assert kept
    assert not [key for tensors in kept for key in tensors if key.endswith("base_layer.weight")]  # new rows alone
    assert train(recipe, registry, resume=True).digest == whole.digest


def test_the_digest_knows_the_tokens(with_tokens, registry, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a run without an output makes its folder where it is started
    first = train(with_tokens(**SHORT, output=None, name="first"), registry)
    again = train(with_tokens(**SHORT, output=None, name="again"), registry)
    other = {"tokens.add": ("<|ask|>", "<|say|>", "<|end|>")}
    third = train(with_tokens(**SHORT, **other, output=None, name="third"), registry)
    assert first.digest == again.digest != third.digest


def test_less_is_kept_for_the_backward_pass(with_tokens, registry):
    """What the trainer puts into the base for that is gone when the saved files are loaded onto it."""
    assert train(with_tokens(**SHORT, **{"training.gradient_checkpointing": True}), registry).digest


def test_a_file_of_tokens(with_tokens, tmp_path):
    file = tmp_path / "tokens.txt"
    file.write_text("<|ask|>\n\n<|say|>\n", encoding="utf-8")
    recipe = with_tokens(**{"tokens.add": str(file)})
    assert recipe.tokens.add == ("<|ask|>", "<|say|>")
    assert "tokens.txt" not in recipe.to_yaml()  # what was trained is told, wherever the file goes


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"tokens.add": ()}, r"tokens\.add: holds no token"),
        ({"tokens.add": ("<a>", "<a>")}, r"'<a>' is there 2 times"),
        ({"tokens.add": (" a",)}, "blanks at the ends"),
        ({"tokens.add": "./nowhere.txt"}, r"no such file './nowhere\.txt'"),
        ({"tokens.end": "</x>"}, r"tokens\.end: '</x>' isn't among tokens\.add"),
        ({"tokens.add": None}, r"tokens\.special: says something of new tokens"),
        ({"method": "ia3"}, "new tokens are trained beside LoRA"),
        ({"lora.init": "eva"}, "PEFT's eva also looks at what an embedding with new tokens is given"),
        ({"strategy": "direct"}, "trains nothing"),
        ({"from": "other@1", "start": "stack"}, r"tokens\.add: what is stacked has low-rank weights alone"),
    ],
    ids=str,
)
def test_recipes_that_cant_be(with_tokens, settings, match):
    with pytest.raises(RecipeError, match=match):
        with_tokens(**settings)


def test_fill_mask_is_refused(make_recipe):
    with pytest.raises(RecipeError, match="fill-mask head is the base's own"):
        make_recipe("fill-mask", **{"tokens.add": ("<a>",)})


@pytest.fixture
def child_of(with_tokens, registry, tmp_path):
    """``child_of(reference)``: a recipe that goes on with an adapter, on rows with its tokens."""

    def make(reference, family="llama", **settings):
        own = {"from": reference, "name": "child", "output": str(tmp_path / "child"), "lora.rank": 4, **settings}
        return with_tokens(family, **{**own, "tokens.add": None, "tokens.special": False})

    return make


@pytest.mark.parametrize(("family", "method"), RUNS[1:])
def test_another_run_begins_where_it_ended(parent_of, child_of, registry, tmp_path, bases, family, method):
    """With its tokenizer and the rows of its tokens, which then train on."""
    settings = {"quantization": "nf4"} if method == "qlora" else {}
    parent = parent_of(family, method)
    recipe = child_of(parent.reference, family, **settings, **SHORT)
    ready = prepare(recipe, load_data(recipe), Reporter(), find_parent(recipe, registry))
    for row, logits in zip(parent.manifest.golden_rows, golden(tmp_path / "out"), strict=True):
        with torch.no_grad():
            found = ready.model.eval()(torch.tensor([list(row)])).logits[0, -1].float()
        torch.testing.assert_close(found, logits, atol=1e-4, rtol=1e-4)
    ids = ready.base.tokenizer.convert_tokens_to_ids(["<|say|>", "<|over|>"])
    assert all({*ids} <= {*feature["input_ids"]} for feature in ready.train.features)
    assert ready.base.tokenizer.eos_token == "<|over|>"
    planned = estimate(recipe, parent=find_parent(recipe, registry))
    assert planned.cost.step.adapter == 4 * 4 * trained_in(ready)
    child = train(recipe, registry)
    assert child.manifest.added_tokens == ADD
    assert child.parents == (parent.reference,)
    before, after = load_file(tmp_path / "out" / WEIGHTS_NAME), load_file(tmp_path / "child" / WEIGHTS_NAME)
    assert before.keys() == after.keys()
    assert all(not torch.equal(before[key], after[key]) for key in before if key.endswith("_delta"))
    backbone = Backbone.from_pretrained(bases(family), registry=registry, **(settings or {"quantization": "none"}))
    backbone.load(child.reference, "own")
    assert backbone.verify("own").matches


def test_a_task_adapter_begins_from_a_domain_adapter_with_tokens(parent_of, make_small, registry, tmp_path):
    """Another class of the same base has the embedding alone; the rows of the output layer stay behind."""
    parent = parent_of()
    settings = {"strategy": "intermediate", "from": parent.reference, "output": str(tmp_path / "child")}
    recipe = make_small("text-classification", "llama", rows=24, name="child", **settings, **SHORT)
    ready = prepare(recipe, load_data(recipe), Reporter(), find_parent(recipe, registry))
    (rows,) = (p for name, p in ready.model.named_parameters() if "trainable_tokens_delta" in name)
    key = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"
    assert torch.equal(rows, load_file(tmp_path / "out" / WEIGHTS_NAME)[key])
    version = train(recipe, registry)
    assert version.manifest.added_tokens == ADD
    assert [key for key in load_file(tmp_path / "child" / WEIGHTS_NAME) if key.endswith("_delta")] == [key]


@pytest.mark.parametrize(("family", "method"), RUNS[::2])
def test_a_child_adds_tokens_of_its_own(family, method, parent_of, with_tokens, registry, tmp_path, bases):
    """The parent's rows go on, and those of the child's own tokens begin at the mean of the base's."""
    parent = parent_of(family, method)
    settings = {"from": parent.reference, "name": "child", "output": str(tmp_path / "child"), "lora.rank": 4}
    recipe = with_tokens(
        family, **settings, **{"tokens.add": ("<|call|>", "<|back|>"), "tokens.end": "<|back|>"}, **SHORT
    )
    ready = prepare(recipe, load_data(recipe), Reporter(), find_parent(recipe, registry))
    known = load_file(tmp_path / "out" / WEIGHTS_NAME)
    for name, rows in ready.model.named_parameters():
        if "trainable_tokens_delta" in name:
            theirs = known[name.replace(".default", "").replace("base_model.model.base_model", "base_model")]
            assert rows.shape[0] == 5
            assert torch.equal(rows[:3], theirs)
            assert torch.equal(rows[3], rows[4])
    assert ready.base.tokenizer.eos_token == "<|back|>"
    child = train(recipe, registry)
    assert child.manifest.added_tokens == (*ADD, "<|call|>", "<|back|>")
    backbone = Backbone.from_pretrained(bases(family), registry=registry)
    backbone.load(child.reference, "own")
    assert backbone.verify("own").matches
    backbone.load(parent.reference, "first")
    assert backbone.verify("first").matches


def test_an_adapter_without_tokens_is_gone_on_with_and_gets_some(with_tokens, registry, tmp_path, bases):
    parent = train(with_tokens(**{"tokens.add": None, "tokens.special": False}, **SHORT), registry)
    settings = {"from": parent.reference, "name": "child", "output": str(tmp_path / "child")}
    child = train(with_tokens(**settings, **SHORT), registry)
    assert (child.manifest.added_tokens, child.parents) == (ADD, (parent.reference,))
    backbone = Backbone.from_pretrained(bases("llama"), registry=registry)
    backbone.load(child.reference, "own")
    assert backbone.verify("own").matches


def test_a_child_does_not_add_its_parents_tokens_again(parent_of, with_tokens, registry, tmp_path):
    parent = parent_of()
    recipe = with_tokens(**{"from": parent.reference, "name": "child", "output": str(tmp_path / "child")})
    with pytest.raises(TrainingError, match=r"tokens\.add: the adapter that is continued has '<.ask.>'"):
        train(recipe, registry)


def test_a_run_that_goes_on_from_it_and_was_stopped(parent_of, child_of, registry, tmp_path):
    parent = parent_of()
    whole = train(child_of(parent.reference, output=str(tmp_path / "whole"), **STOPPED), registry)
    with pytest.raises(InterruptedRunError):
        train(child_of(parent.reference, **STOPPED), registry, Signal("step 2"))
    assert train(child_of(parent.reference, **STOPPED), registry, resume=True).digest == whole.digest


def test_where_it_cant_be_gone_on_from(parent_of, child_of, make_recipe, registry, tmp_path):
    parent = parent_of()
    with pytest.raises(RecipeError, match=r"start: tiny@1 has tokens of its own, whose rows can't be stacked"):
        train(child_of(parent.reference, start="stack"), registry)
    child = {"name": "masks", "strategy": "intermediate", "from": parent.reference, "output": None}
    with pytest.raises(RecipeError, match="from: tiny@1 has tokens of its own, for which the fill-mask head has no"):
        train(make_recipe("fill-mask", **child), registry)
    (tmp_path / "out/tokenizer.json").unlink()
    lacking = child_of(str(tmp_path / "out"))
    with pytest.raises(CheckpointError, match="the tokenizer that has them isn't beside it"):
        train(lacking, registry)


@pytest.mark.parametrize("more", [10**6, 2000], ids=["far", "many"])
def test_a_tokenizer_that_isnt_the_adapters(more, parent_of, child_of, registry, tmp_path):
    """Told before anything is trained: its new tokens are far from all others, or others follow them."""
    parent_of()
    files = {name: tmp_path / "out" / name for name in ("tokenizer.json", "adapter_config.json")}
    tokenizer, config = (json.loads(path.read_text(encoding="utf-8")) for path in files.values())
    if more == 2000:
        last = tokenizer["added_tokens"][-1]
        others = [{**last, "id": last["id"] + n, "content": f"<{n}>"} for n in range(1, more)]
        tokenizer["added_tokens"] += others
    else:
        tokenizer["added_tokens"] = [token for token in tokenizer["added_tokens"] if token["content"] not in ADD]
        ids = {token: more + n for n, token in enumerate(ADD)}
        tokenizer["model"]["vocab"] |= ids
        config["trainable_token_indices"] = {layer: [*ids.values()] for layer in ("embed_tokens", "lm_head")}
    for path, content in zip(files.values(), (tokenizer, config), strict=True):
        path.write_text(json.dumps(content), encoding="utf-8")
    recipe = child_of(str(tmp_path / "out"))
    with pytest.raises(CheckpointError, match=r"its tokenizer has \d+ tokens, of which the last new one has the id"):
        prepare(recipe, load_data(recipe), Reporter(), find_parent(recipe, registry))


def test_tokens_that_the_base_has(with_tokens, registry, tmp_path):
    with pytest.raises(TrainingError, match=r"the base has '</s>' already \(token 1\)"):
        train(with_tokens(**{"tokens.add": ("<new>", "</s>")}), registry)
    assert not (tmp_path / "out").exists()
    assert registry.versions() == []


def test_without_its_tokenizer_it_isnt_loaded(parent_of, tmp_path, bases):
    parent_of()
    backbone = Backbone.from_pretrained(bases("llama"))
    (tmp_path / "out/tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="trained with 3 new tokens, and the tokenizer that has them isn't"):
        backbone.load(tmp_path / "out")


def test_a_recipe_reads_itself_back(with_tokens, tmp_path):
    recipe = with_tokens(**{"tokens.end": "<|over|>"})
    (tmp_path / "again.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    assert Recipe.load(tmp_path / "again.yaml") == recipe
