"""Adapters that start from adapters: continued or stacked, compared with what PEFT makes of the same files."""

from __future__ import annotations

import pytest
import torch
import yaml
from peft import PeftModel, get_peft_model_state_dict
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from lorary.hub.checkpoint import read_checkpoint
from lorary.hub.errors import BaseMismatchError, InterruptedRunError, RecipeError, UnknownReferenceError
from lorary.hub.registry import Registry
from lorary.training import Recipe, train
from lorary.training.data import load_data
from lorary.training.estimate.plan import estimate
from lorary.training.fitting.fit import fit
from lorary.training.interrupt import Stops
from lorary.training.prepare import prepare
from lorary.training.progress import Reporter
from lorary.training.resume import recipe_of
from lorary.training.strategies.going_on import trained_updates
from lorary.training.strategies.parent import find_parent
from runs import SHORT
from samples import tone_rows, write_jsonl
from stops import Signal
from tiny import make_adapter

IDS = torch.tensor([[2, 11, 12, 13, 14, 3]])


def ready(recipe, registry, reporter=None):
    return prepare(recipe, load_data(recipe), reporter or Reporter(), find_parent(recipe, registry))


def lora_of(model):
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {key: tensor for key, tensor in state.items() if ".lora_" in key}


@pytest.fixture
def corpus(make_recipe, registry, tmp_path):
    """A domain adapter of the tiny Llama, in the catalogue as ``headlines@1``; returns its folder."""
    rows = [{"text": row["text"]} for row in tone_rows(40)]
    recipe = make_recipe(
        "text-generation", **{
            "name": "headlines", "strategy": "continual", "data.train": write_jsonl(tmp_path / "corpus.jsonl", rows),
            "data.test": write_jsonl(tmp_path / "held-out.jsonl", rows[:8]), "output": str(tmp_path / "headlines"),
            "lora.rank": 6, "lora.alpha": 9, "lora.targets": ["q_proj", "down_proj"],
            "training.epochs": 2, "training.batch_size": 1,
        },
    )  # fmt: skip
    train(recipe, registry)
    return tmp_path / "headlines"


def inheriting(make_recipe, *arguments, **settings):
    """A recipe that leaves rank and alpha to its parent."""
    recipe = make_recipe(*arguments, **settings)
    return recipe.model_copy(update={"lora": type(recipe.lora).model_construct(_fields_set=set(), **dict(recipe.lora))})


def test_an_estimate_is_of_the_parents_rank_and_targets(corpus, make_recipe, registry):
    recipe = inheriting(
        make_recipe, "text-classification", family="llama", **{"strategy": "intermediate", "from": "headlines@1"}
    )
    assert recipe.lora.rank != 6
    trained = sum(p.numel() for p in ready(recipe, registry).model.parameters() if p.requires_grad)
    assert estimate(recipe, parent=find_parent(recipe, registry)).cost.step.adapter == 4 * 4 * trained
    assert estimate(recipe).cost.step.adapter != 4 * 4 * trained


def test_continuing_begins_with_the_parents_weights_as_peft_loads_them(corpus, make_recipe, registry):
    recipe = inheriting(make_recipe, "text-generation", **{"strategy": "intermediate", "from": "headlines@1"})
    begun = ready(recipe, registry)
    model = AutoModelForCausalLM.from_pretrained(recipe.base)
    theirs = PeftModel.from_pretrained(model, corpus, is_trainable=True)
    ours, expected = lora_of(begun.model), lora_of(theirs)
    assert ours.keys() == expected.keys()
    for key, tensor in expected.items():
        assert torch.equal(ours[key], tensor)
    with torch.no_grad():
        torch.testing.assert_close(begun.model.eval()(IDS).logits, theirs.eval()(IDS).logits)
    trained = {name for name, p in begun.model.named_parameters() if p.requires_grad}
    assert trained == {name for name, p in theirs.named_parameters() if p.requires_grad}
    assert (begun.recipe.lora.rank, begun.recipe.lora.alpha) == (6, 9.0)
    assert begun.recipe.lora.targets == ("down_proj", "q_proj")


def test_a_run_that_inherits_goes_on_by_its_folder(corpus, make_recipe, registry, tmp_path):
    """The recipe that it was started with says nothing of rank and alpha, and nor does the one in its folder."""
    settings = make_recipe("text-generation", **{"strategy": "intermediate", "from": "headlines"}).settings()
    path = tmp_path / "child.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in settings.items() if key != "lora"}))
    with pytest.raises(InterruptedRunError):
        train(Recipe.load(path, ["output=" + str(tmp_path / "child")]), registry, Signal("step 1"))
    begun = recipe_of(tmp_path / "child", Recipe, registry)
    assert train(begun, registry, resume=tmp_path / "child").manifest.provenance["recipe"]["lora"]["rank"] == 6


@pytest.mark.parametrize("start", ["continue", "stack"])
def test_a_domain_adapter_then_a_task_adapter(start, corpus, make_recipe, registry, tmp_path, monkeypatch):
    recipe = inheriting(
        make_recipe, "text-classification", "llama",
        **{"strategy": "intermediate", "from": "headlines", "start": start, "training.epochs": 1},
    )  # fmt: skip
    version = train(recipe, registry)
    assert version.strategy == "intermediate"
    assert version.parents == ("headlines@1",)
    told = version.manifest.provenance["from"]
    assert told == {"reference": "headlines@1", "digest": registry.resolve("headlines@1").digest, "start": start}
    checkpoint = read_checkpoint(tmp_path / "out")
    if start == "continue":
        assert checkpoint.config["r"] == 6
    else:  # the rank of the task's own weights and the parent's, where both have a module
        ranks = {info.shape[0] for key, info in checkpoint.tensors.items() if key.endswith("lora_A.weight")}
        assert ranks == {4, 10}
    monkeypatch.chdir(tmp_path)  # the recipe as run names its files without their folders
    again = Recipe.load(tmp_path / "out" / "recipe.yaml", [f"output={tmp_path / 'again'}", f"base={recipe.base}"])
    repeated = train(again, registry)
    assert repeated.digest == version.digest


def test_stacking_is_pefts_concatenation_of_both_adapters(corpus, make_recipe, registry, tmp_path):
    recipe = make_recipe(
        "text-generation", **{"strategy": "intermediate", "from": "headlines", "start": "stack", "lora.alpha": 2}
    )
    begun = ready(recipe, registry)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(recipe.base), corpus, adapter_name="parent")
    with torch.no_grad():  # before any step the stack is the parent
        torch.testing.assert_close(begun.model.eval()(IDS).logits, model.eval()(IDS).logits)
    before = trained_updates(begun.model)
    fit(
        begun.model, begun.base.tokenizer, begun.task, begun.train, None, recipe,
        folder=tmp_path / "steps", reporter=Reporter(), stops=Stops(),
    )  # fmt: skip
    assert any(not torch.equal(before[path].b, update.b) for path, update in trained_updates(begun.model).items())
    begun.model.save_pretrained(tmp_path / "new")
    model.load_adapter(tmp_path / "new", adapter_name="new")
    model.add_weighted_adapter(["parent", "new"], [1.0, 1.0], "both", combination_type="cat")
    model.set_adapter("both")
    with torch.no_grad():
        hooked = begun.model.eval()(IDS).logits
        joined = begun.settled().model
        torch.testing.assert_close(joined(IDS).logits, model.eval()(IDS).logits, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(joined(IDS).logits, hooked, rtol=1e-4, atol=1e-5)
        with joined.disable_adapter():  # nothing of the parent stays in the base
            bare = AutoModelForCausalLM.from_pretrained(recipe.base).eval()
            torch.testing.assert_close(joined(IDS).logits, bare(IDS).logits)


def test_a_body_without_a_prefix_gives_to_a_classifier(make_recipe, bases, registry, tmp_path):
    folder = make_adapter(bases("bert"), tmp_path / "domain", task="feature-extraction", target_modules=["query"], r=3)
    recipe = inheriting(make_recipe, **{"strategy": "intermediate", "from": str(folder)})
    notes = Reporter()
    begun = ready(recipe, registry, notes)
    ours, theirs = lora_of(begun.model), read_checkpoint(folder)
    from safetensors.torch import load_file

    expected = load_file(theirs.files["adapter_model.safetensors"])
    assert {key.replace(".model.bert.", ".model.") for key in ours} == expected.keys()
    for key, tensor in ours.items():
        assert torch.equal(tensor, expected[key.replace(".model.bert.", ".model.")])
    assert any("base unverified" in line for line in notes.notices)
    version = train(recipe, registry)  # a folder that isn't in the catalogue has no lineage, but is told of
    assert version.parents == ()
    assert version.manifest.provenance["from"]["reference"] == "domain"


def test_a_part_that_the_task_leaves_out_stays_behind_with_a_note(make_recipe, bases, registry, tmp_path):
    targets = ["query", "pooler.dense"]
    folder = make_adapter(
        bases("bert"), tmp_path / "domain", task="text-classification", labels=2, target_modules=targets
    )
    recipe = inheriting(make_recipe, "token-classification", **{"strategy": "intermediate", "from": str(folder)})
    notes = Reporter()
    assert not any("pooler" in key for key in lora_of(ready(recipe, registry, notes).model))
    assert any("pooler.dense" in line and "no such part" in line for line in notes.notices)


def test_more_of_the_same_task_goes_on_with_the_head(make_recipe, registry, tmp_path):
    first = train(make_recipe(), registry)
    more = {"from": first.reference, "output": str(tmp_path / "more"), "training.seed": 7}
    begun = ready(make_recipe(**more), registry)
    model = AutoModelForSequenceClassification.from_pretrained(begun.recipe.base, num_labels=2)
    theirs = PeftModel.from_pretrained(model, tmp_path / "out").eval()
    with torch.no_grad():
        torch.testing.assert_close(begun.model.eval()(IDS).logits, theirs(IDS).logits)
    second = train(make_recipe(**more), registry)
    assert (second.reference, second.parents, second.strategy) == ("tiny@2", ("tiny@1",), "fine-tune")
    assert second.metrics["untrained"]["f1"] == pytest.approx(first.metrics["test"]["f1"])


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_a_head_that_answers_with_numbers_goes_on_from_where_it_was(family, make_recipe, registry, tmp_path):
    """With a bias and without one: steps that move nothing leave the parent's answers, in the data's own numbers."""
    rows = [{**row, "label": 1000.0 * len(row["text"]) + 0.5} for row in tone_rows(24)]
    settings = {"data.train": write_jsonl(tmp_path / "prices.jsonl", rows), "data.test": None, "lora.dropout": 0.0}
    first = train(make_recipe("text-classification", family, **settings), registry)
    more = {**settings, "from": first.reference, "training.learning_rate": 1e-12, "training.max_steps": 1}
    more["name"] = "more"  # what is the same to the last bit would be the first one's version, with its metrics
    second = train(make_recipe("text-classification", family, output=str(tmp_path / "more"), **more), registry)
    assert second.metrics["test"]["rmse"] == pytest.approx(first.metrics["test"]["rmse"], rel=1e-4)


def test_a_lineage_is_that_of_the_weights_whatever_became_of_the_parent(make_recipe, bases, registry, tmp_path):
    first = train(make_recipe(alias="stable", **SHORT), registry)
    more = make_recipe(**{"from": "tiny@stable", "output": str(tmp_path / "more"), "training.seed": 7, **SHORT})
    with pytest.raises(InterruptedRunError, match="the trained adapter is in"):
        train(more, registry, Signal("registering"))
    other = make_adapter(bases("bert"), tmp_path / "other", task="text-classification", labels=2)
    registry.add(other, name="tiny", domain="finance", aliases=["stable"])
    assert train(more, registry, resume=True).parents == ("tiny@1",)

    class Removes(Reporter):
        def phase(self, text):
            if text == "registering":
                registry.remove("tiny@1", force=True)

    last = make_recipe(**{"from": "tiny@1", "output": str(tmp_path / "last"), "training.seed": 8, **SHORT})
    version = train(last, registry, Removes())
    assert version.parents == ()
    assert version.manifest.provenance["from"]["digest"] == first.digest


def test_other_labels_get_a_new_head_and_a_note(make_recipe, registry, tmp_path):
    train(make_recipe(), registry)
    rows = [{**row, "label": row["label"].upper()} for row in tone_rows(40)]
    data = {
        "data.train": write_jsonl(tmp_path / "a.jsonl", rows),
        "data.test": write_jsonl(tmp_path / "b.jsonl", rows[:8]),
    }
    recipe = make_recipe(**{"name": "upper", "from": "tiny@1", "output": str(tmp_path / "upper"), **data})
    notes = Reporter()
    ready(recipe, registry, notes)
    assert any("the head is a new one" in line and "bad, good" in line for line in notes.notices)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"lora.rank": 4}, ["lora.rank: 4 in the recipe, 6 in headlines@1", "start: stack"]),
        ({"lora.rank": 6, "lora.alpha": 12}, ["lora.alpha: 12 in the recipe, 9 in headlines@1"]),
        ({"lora.rank": 6, "lora.alpha": 9, "method": "rslora"}, ["method: 'rslora'", "headlines@1 is plain lora"]),
        ({"strategy": "fine-tune", "task": "text-classification"}, ["trained for text-generation", "intermediate"]),
    ],
)
def test_a_recipe_that_contradicts_its_parent_is_refused_before_anything_is_read(
    settings, words, corpus, make_recipe, registry, tmp_path
):
    recipe = make_recipe(**{"task": "text-generation", "strategy": "intermediate", "from": "headlines", **settings})
    with pytest.raises(RecipeError) as error:
        train(recipe, registry)
    for word in words:
        assert word in str(error.value)
    assert not (tmp_path / "out").exists()


def test_other_targets_are_refused_and_named(corpus, make_recipe, registry):
    recipe = make_recipe("text-generation", **{
        "strategy": "intermediate", "from": "headlines", "lora.rank": 6, "lora.alpha": 9, "lora.targets": ["v_proj"],
    })  # fmt: skip
    with pytest.raises(RecipeError, match=r"'v_proj'.*in the recipe, down_proj, q_proj in headlines@1"):
        train(recipe, registry)


def test_another_base_is_refused(corpus, make_recipe, registry, bases, tmp_path):
    from samples import bpe_tokenizer, save_base

    torch.manual_seed(5)
    other = save_base(AutoModelForCausalLM.from_pretrained(bases("llama")), bpe_tokenizer(), tmp_path / "other")
    recipe = inheriting(
        make_recipe, "text-generation", **{"strategy": "intermediate", "from": "headlines", "base": str(other)}
    )
    with pytest.raises(BaseMismatchError, match=r"headlines@1 was trained on .*the recipe's base is .*other"):
        train(recipe, registry)


def test_an_unknown_parent_is_refused_with_what_is_near(corpus, make_recipe, registry):
    with pytest.raises(UnknownReferenceError, match="headlines"):
        train(make_recipe("text-generation", **{"strategy": "intermediate", "from": "headline"}), registry)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"strategy": "intermediate"}, "from: missing; strategy 'intermediate' starts from a domain adapter"),
        ({"start": "stack"}, "start: says how to start from another adapter"),
        ({"from": "legal corpus"}, "from: "),
        ({"from": ""}, "from: expected a text, found an empty one"),
        ({"parent": "legal"}, "here it is called 'from'"),
        ({"from": "legal", "start": "stack", "method": "dora"}, "method: 'dora' can't be stacked"),
        ({"from": "legal", "lora.layers": [0]}, "lora.layers: the weights that are continued have it settled"),
        ({"from": "legal", "lora.init": "eva"}, "lora.init: the weights that are continued"),
        ({"from": "legal", "start": "merge"}, "start: expected one of continue, stack, found 'merge'"),
    ],
)
def test_a_recipes_own_contradictions(settings, words, make_recipe):
    with pytest.raises(RecipeError, match=words):
        make_recipe(**settings)


def test_a_stack_can_be_continued(corpus, make_recipe, registry, tmp_path):
    settings = {"strategy": "intermediate", "training.epochs": 1}
    stacked = train(
        make_recipe("text-generation", **{**settings, "name": "stacked", "from": "headlines", "start": "stack"}),
        registry,
    )
    recipe = inheriting(
        make_recipe, "text-generation", **{**settings, "from": "stacked", "output": str(tmp_path / "third")}
    )
    begun = ready(recipe, registry)
    expected = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(recipe.base), tmp_path / "out").eval()
    with torch.no_grad():
        torch.testing.assert_close(begun.model.eval()(IDS).logits, expected(IDS).logits)
    assert train(recipe, registry).parents == (stacked.reference,)
    assert Registry(registry.path).verify() == []
