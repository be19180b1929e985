"""Training end to end on tiny models: it learns, it repeats itself exactly, and PEFT gives the same numbers."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lorary.adapters import Backbone
from lorary.hub.checkpoint import read_checkpoint
from lorary.hub.errors import (
    DataError,
    RegistryConflictError,
    RegistryError,
    TrainingError,
)
from lorary.hub.registry import Registry
from lorary.training import Recipe, train
from lorary.training.data import load_data
from lorary.training.one_run import _note_no_gain, run
from lorary.training.prepare import prepare
from lorary.training.progress import Reporter
from runs import golden, peft_logits
from samples import WORDS, tone_rows, write_jsonl

TASKS = ("text-classification", "token-classification", "text-generation")


def check_golden(folder, base, task):
    """The folder's golden logits are what PEFT alone gives."""
    for found, want in zip(peft_logits(folder, base, task), golden(folder), strict=True):
        torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("task", TASKS)
def test_train_learns_and_peft_gives_the_same_logits(task, make_recipe, registry, tmp_path):
    recipe = make_recipe(task, rows=96, held=20, layers=2, **{"training.epochs": 4, "training.learning_rate": 0.02})
    version = train(recipe, registry)

    assert version.reference == "tiny@1"
    assert (version.domain, version.task, version.strategy) == ("finance", task, "fine-tune")
    if task == "text-generation":
        assert version.metrics["test"]["loss"] < 0.7 * version.metrics["untrained"]["loss"]
    else:
        assert version.metrics["test"]["f1"] >= version.metrics["majority"]["f1"] + 0.2
        assert version.metrics["test"]["f1"] > version.metrics["untrained"]["f1"]

    check_golden(tmp_path / "out", recipe.base, task)


@pytest.fixture(scope="module")
def kept(recipe_in, tmp_path_factory):
    """The recipe, the version, the registry and the folder of a run, which no test changes."""
    root = tmp_path_factory.mktemp("kept")
    settings = {"training.early_stopping": 2, "data.validation_size": 0.1, "alias": "prod", "tags": ("demo",)}
    recipe, registry = recipe_in(root, rows=100, **settings), Registry(root / "registry.db")
    write_jsonl(root / "test.jsonl", tone_rows(4))  # rows that are trained on too: a notice that names the file
    return SimpleNamespace(recipe=recipe, version=train(recipe, registry), registry=registry, out=root / "out")


def test_the_run_folder_holds_what_an_adapter_needs_and_no_pickles(kept):
    assert sorted(path.name for path in kept.out.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "golden.safetensors",
        "lorary.json",
        "recipe.yaml",
    ]
    assert [path.name for path in kept.out.parent.iterdir() if "partial" in path.name] == []
    manifest = read_checkpoint(kept.out).manifest
    assert manifest.labels == ("bad", "good")
    assert manifest.problem_type == "single_label_classification"
    assert manifest.preprocessing.columns == {"text": "text", "label": "label"}
    assert manifest.preprocessing.max_length == 64
    assert manifest.provenance["seed"] == 42
    assert manifest.provenance["data"]["rows"] == {"train": 90, "validation": 10, "test": 4}


def test_provenance_names_no_folder_of_the_machine(kept):
    manifest = json.loads((kept.out / "lorary.json").read_text())
    assert "(first: test.jsonl, row 1)" in manifest["provenance"]["notices"][0]
    for text in (json.dumps(manifest["provenance"]), (kept.out / "recipe.yaml").read_text()):
        assert str(kept.out.parent) not in text
        assert str(Path.home()) not in text


def test_alias_and_tags_are_registered(kept):
    assert kept.version.aliases == ("prod",)
    assert kept.version.tags == ("demo",)
    assert kept.registry.resolve("tiny@prod").number == 1


def test_the_recipe_saved_with_the_adapter_reads_back(kept, tmp_path):
    text, recipe = (kept.out / "recipe.yaml").read_text(), kept.recipe
    assert "rank: 4" in text
    (tmp_path / "again.yaml").write_text(text)
    again = Recipe.load(
        tmp_path / "again.yaml",
        [f"data.train={recipe.data.train}", f"data.test={recipe.data.test}", f"base={recipe.base}"],
    )
    assert again.training == recipe.training


def test_a_name_of_another_task_is_refused_before_the_run(kept, make_recipe):
    phases: list[str] = []

    class Listener(Reporter):
        def phase(self, text: str) -> None:
            phases.append(text)

    with pytest.raises(RegistryConflictError, match="'text-classification', the recipe says 'token-classification'"):
        train(make_recipe("token-classification"), kept.registry, Listener())
    assert phases == []


def test_the_same_recipe_gives_the_same_digest_in_one_process_and_in_another(forks, make_recipe, registry, tmp_path):
    recipe = make_recipe(held=4, **{"training.gradient_accumulation": 2, "training.epochs": 1, "lora.dropout": 0.2})
    first = train(recipe, registry)
    torch.rand(7)  # the state of the generator before a run must not matter
    second = train(recipe.model_copy(update={"output": str(tmp_path / "second")}), registry)
    assert second.digest == first.digest
    assert second.number == first.number  # the catalogue holds it once

    third = recipe.model_copy(update={"output": str(tmp_path / "third")})
    (tmp_path / "recipe.yaml").write_text(third.to_yaml())
    ended = forks.run("lives:live", "train", str(tmp_path / "recipe.yaml"), str(tmp_path / "other.db"), "", False)
    assert (ended.code, ended.out) == (0, first.digest)
    assert ended.err == forks.said() == ""  # no library says anything either


@pytest.mark.parametrize(
    ("task", "settings"),
    [
        ("token-classification", {}),
        ("text-generation", {}),
        ("text-classification", {"method": "qlora"}),
        ("text-classification", {"training.early_stopping": 2}),
    ],
)
def test_every_kind_of_run_repeats_itself(task, settings, make_recipe, registry, tmp_path):
    recipe = make_recipe(task, rows=32, held=4, **{"training.epochs": 1, **settings})
    first = train(recipe, registry)
    second = train(recipe.model_copy(update={"output": str(tmp_path / "second")}), registry)
    assert second.digest == first.digest


def test_another_seed_gives_another_digest(make_recipe, registry, tmp_path):
    few = {"rows": 16, "held": 4, "training.epochs": 1}
    first = train(make_recipe(**few), registry)
    second = train(make_recipe(**few, **{"training.seed": 7, "output": str(tmp_path / "b")}), registry)
    assert first.digest != second.digest
    assert second.number == 2


def test_early_stopping_keeps_the_epoch_with_the_lowest_validation_loss(make_recipe, tmp_path):
    from lorary.training.fitting.evaluate import row_logits

    # A step size that makes later epochs worse than earlier ones.
    settings = {
        "training.early_stopping": 1, "training.epochs": 12, "training.learning_rate": 0.2, "data.validation_size": 0.1,
    }  # fmt: skip
    recipe = make_recipe(rows=100, **settings)
    prepared = prepare(recipe, load_data(recipe), Reporter())
    finished = run(prepared, tmp_path / "checkpoints", Reporter())
    steps_per_epoch = -(-len(prepared.train.features) // recipe.training.batch_size)
    best = finished.trained.provenance["best_epoch"]
    assert finished.trained.provenance["steps"] < 12 * steps_per_epoch
    assert best * steps_per_epoch < finished.trained.provenance["steps"]
    states = list((tmp_path / "checkpoints").glob("checkpoint-*/trainer_state.json"))
    history = json.loads(max(states, key=lambda path: path.stat().st_mtime).read_text())["log_history"]
    lowest = min(entry["eval_loss"] for entry in history if "eval_loss" in entry)

    rows = prepared.validation
    logits = torch.stack(
        row_logits(prepared.model, prepared.task.collator(prepared.base.tokenizer), list(rows.features))
    )
    labels = torch.tensor([feature["labels"] for feature in rows.features])
    assert float(torch.nn.functional.cross_entropy(logits, labels)) == pytest.approx(lowest, abs=1e-5)


def test_held_out_rows_are_never_used_to_choose_an_epoch(make_recipe):
    recipe = make_recipe(rows=100, **{"training.early_stopping": 2, "data.validation_size": 0.1})
    data = load_data(recipe)
    test = {example.place for example in data.test}
    assert data.validation
    assert not test & {example.place for example in (*data.train, *data.validation)}


@pytest.mark.parametrize(
    ("family", "saved"),
    [("bert", ["classifier"]), ("roberta", ["classifier"]), ("distilbert", ["classifier", "pre_classifier"])],
)
@pytest.mark.parametrize("task", TASKS[:2])
def test_every_head_layer_is_trained_and_saved(task, family, saved, make_recipe, registry, tmp_path):
    train(make_recipe(task, family, rows=16, held=4, **{"training.max_steps": 1}), registry)
    tensors = read_checkpoint(tmp_path / "out").tensors
    names = saved if task == "text-classification" else ["classifier"]
    whole = {key.split(".")[2] for key in tensors if "lora_" not in key}
    assert whole == set(names)
    assert not any("lora_" in key and name in key for key in tensors for name in names)


def test_a_pooler_that_the_base_lacks_is_trained_and_saved(make_recipe, registry, tmp_path):
    recipe = make_recipe("text-classification", "bert-mlm", held=4, **{"training.epochs": 1})
    train(recipe, registry)
    checkpoint = read_checkpoint(tmp_path / "out")
    assert "base_model.model.bert.pooler.dense.weight" in checkpoint.tensors
    # Loaded by PEFT, the random pooler of a fresh base is replaced by the trained one: the golden logits come out.
    torch.manual_seed(123)
    check_golden(tmp_path / "out", recipe.base, "text-classification")


def test_a_target_that_nothing_reaches_is_left_out_with_a_notice(make_recipe, tmp_path):
    """A pooler that is there but that token classification doesn't read would stay an adapter that does nothing."""
    from lorary.training import model as building
    from lorary.training.tasks import make_task

    recipe = make_recipe("token-classification", layers=2)
    data = load_data(recipe)
    task = make_task(recipe, data.labels)
    base = building.load_for(task, recipe)
    base.model.bert.pooler = torch.nn.Sequential(torch.nn.Linear(32, 32))  # as in task classes that keep one
    notes: list[str] = []
    sample = task.encode(data.train[:1], base.tokenizer, 64, notes.append).features[0]
    with_adapter = building.add_adapter(base, task, recipe, sample, notes.append)
    assert notes == ["left out, since nothing of them reaches the loss: bert.pooler.0"]
    assert not any("pooler" in name and "lora_" in name for name, _ in with_adapter.named_parameters())
    assert sum("lora_A" in name for name, _ in with_adapter.named_parameters()) == 12


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ("all-linear", {"query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"}),
        ("attention", {"query", "key", "value", "attention.output.dense"}),
        (("query", "value"), {"query", "value"}),
        (r".*layer\.0\..*\.key", {"key"}),
    ],
)
def test_targets_choose_the_layers_that_they_name(targets, expected, make_recipe):
    from lorary.training import model as building
    from lorary.training.tasks import make_task

    recipe = make_recipe("token-classification")
    task = make_task(recipe, ("O", "B-ORG"))
    base = building.load_for(task, recipe)
    chosen = building.resolve_targets(base.model, targets, base.saved)
    assert {name for name in expected if any(path.endswith(name) for path in chosen)} == expected
    assert all(any(path.endswith(name) for name in expected) for path in chosen)
    assert not any("classifier" in path for path in chosen)


def test_a_target_that_matches_nothing_is_named_with_the_nearest(make_recipe, registry):
    with pytest.raises(TrainingError, match="no linear layer is called 'querry'; did you mean 'query'"):
        train(make_recipe(**{"lora.targets": ("querry",)}), registry)


def test_an_encoder_is_refused_for_generation(make_recipe, registry):
    with pytest.raises(TrainingError, match="is an encoder, which can't generate; choose a language model"):
        train(make_recipe("text-generation", "bert"), registry)


def test_a_folder_that_cannot_be_written_is_named(make_recipe, registry, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match=r"file/out: can't be written \(.+\); free the disk or name another output"):
        train(make_recipe(output=str(tmp_path / "file" / "out")), registry)
    assert not registry.path.exists()


def test_a_registry_that_cannot_be_made_is_named_before_the_run(make_recipe, tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(RegistryError, match=r"below/r.db: can't be written; name another registry"):
        train(make_recipe(), Registry(tmp_path / "file" / "below" / "r.db"))
    assert not (tmp_path / "out.incomplete").exists()


def test_rslora_and_patterns_reach_the_config(make_recipe, registry, tmp_path):
    version = train(
        make_recipe(
            method="rslora",
            **{"training.epochs": 1, "lora.rank_pattern": {"query": 2}, "lora.alpha_pattern": {"key": 3}},
        ),
        registry,
    )
    config = read_checkpoint(tmp_path / "out").config
    assert (config["use_rslora"], config["rank_pattern"], config["alpha_pattern"]) == (True, {"query": 2}, {"key": 3})
    assert version.method == "rslora"


def test_a_diverging_run_stops_at_its_step_and_leaves_nothing(make_recipe, registry, tmp_path):
    recipe = make_recipe(
        **{"training.learning_rate": 1.0, "training.epochs": 50, "training.max_grad_norm": 1e30, "lora.alpha": 1e12}
    )
    with pytest.raises(TrainingError, match=r"became (nan|inf) at step \d+ of \d+.*lower training.learning_rate"):
        train(recipe, registry)
    assert not registry.path.exists()
    assert not (tmp_path / "out").exists()


def test_a_run_of_one_step_learns_in_it(make_recipe, registry):
    version = train(make_recipe(held=4, **{"training.max_steps": 1}), registry)
    assert version.manifest.provenance["steps"] == 1


def test_bad_rows_stop_the_run_before_the_base_is_looked_for(make_recipe, registry, tmp_path):
    recipe = make_recipe(base="no/such-base")
    write_jsonl(tmp_path / "train.jsonl", [*tone_rows(10), {"text": "", "label": "good"}])
    with pytest.raises(DataError, match="row 11, text: is empty"):
        train(recipe, registry)


@pytest.mark.parametrize("task", TASKS)
def test_a_bfloat16_base_trains_in_float32_and_passes_the_gate(task, make_recipe, registry, tmp_path):
    """What a GPU does by default."""
    epochs = 4 if task == "text-classification" else 2  # others learn from each word
    settings = {"training.epochs": epochs, "training.learning_rate": 0.02}
    version = train(make_recipe(task, rows=96, held=20, dtype="bfloat16", **settings), registry)
    assert version.manifest.numerics.dtype == "bfloat16"
    assert {info.dtype for info in read_checkpoint(tmp_path / "out").tensors.values()} == {"F32"}
    metric = "loss" if task == "text-generation" else "f1"
    better = -1 if metric == "loss" else 1
    assert better * version.metrics["test"][metric] > better * version.metrics["untrained"][metric]


def test_a_run_that_did_not_help_says_so(make_recipe, registry):
    reporter = Reporter()
    version = train(make_recipe(**{"training.learning_rate": 1e-9, "training.epochs": 1}), registry, reporter)
    f1 = version.metrics["test"]["f1"]
    assert f"no better than untrained on the held-out rows: f1 {f1:.4g} against {f1:.4g}" in reporter.notices


def test_sentence_pairs_train_through_the_gate(make_recipe, registry, tmp_path):
    rows = [
        {"first": row["text"], "second": WORDS[index % 9], "label": index % 2}
        for index, row in enumerate(tone_rows(40))
    ]
    settings = {
        "data.train": write_jsonl(tmp_path / "pairs.jsonl", rows),
        "data.test": write_jsonl(tmp_path / "more.jsonl", rows[:10]),
        "data.columns": {"text": "first", "text_pair": "second", "label": "label"},
        "data.labels": ("no", "yes"),
        "training.epochs": 1,
    }
    recipe = make_recipe(**settings)
    version = train(recipe, registry)
    assert version.manifest.labels == ("no", "yes")


def test_a_llama_can_be_trained_to_classify(make_recipe, registry, tmp_path):
    epochs = {"training.epochs": 6}
    version = train(make_recipe("text-classification", "llama", rows=160, held=20, layers=2, **epochs), registry)
    assert version.metrics["test"]["f1"] > 0.7
    tensors = read_checkpoint(tmp_path / "out").tensors
    assert "base_model.model.score.weight" in tensors
    # The base has no padding token; served, it gets the one that was trained with.
    backbone = Backbone.from_pretrained(version.base_id, device="cpu", registry=registry)
    backbone.load("tiny")
    texts = [row["text"] for row in tone_rows(6, seed=3)]
    alone = [backbone.predict(text, "tiny")[0]["label"] for text in texts]
    assert [prediction["label"] for prediction in backbone.predict(texts, "tiny")] == alone


def test_of_losses_the_lower_is_no_worse():
    reporter = Reporter()
    metrics = {"test": {"loss": 1.0}, "untrained": {"loss": 2.0}, "unigram": {"loss": 0.5}, "majority": {"f1": 1.0}}
    _note_no_gain(SimpleNamespace(main_metric="loss"), metrics, reporter)
    assert reporter.notices == ["no better than unigram on the held-out rows: loss 1 against 0.5"]
