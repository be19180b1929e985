"""Advice before training: starts are told apart by what a probe reads off them, and nothing by luck or by a leak."""

from __future__ import annotations

import json
import resource
import tempfile
from pathlib import Path

import pytest
import torch
from privileges import unprivileged

from lorary.hub import Registry
from lorary.hub.cli.commands import advise as advise_command
from lorary.hub.cli.main import main
from lorary.hub.errors import RecipeError
from lorary.training import advise
from lorary.training.evaluation.evaluate import evaluate
from lorary.training.progress import Reporter
from lorary.training.recipe import Recipe
from lorary.training.run import train
from samples import ROWS, save_base, tone_rows, wordpiece_tokenizer, write_jsonl

TONE = ("rose", "grew", "strong", "record", "fell", "loss", "weak", "cut")


@pytest.fixture(scope="module")
def blind(tmp_path_factory) -> str:
    """A tiny BERT that drops what tells the words of a headline's tone apart: two places of the embedding.

    Its layer adds nothing, and its last norm has zeros there. What an adapter puts into the feed-forward part brings it
    back; what it puts behind the attention, which doesn't look at these places, can't.
    """
    import transformers as t

    torch.manual_seed(0)
    tokenizer = wordpiece_tokenizer()
    model = t.BertModel(
        t.BertConfig(
            vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
            max_position_embeddings=64, pad_token_id=0,
        )
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("blind")
    save_base(model, tokenizer, folder)
    ids = tokenizer.convert_tokens_to_ids(list(TONE))
    assert tokenizer.unk_token_id not in ids
    model = t.BertModel.from_pretrained(folder)
    with torch.no_grad():
        for name, parameter in model.encoder.named_parameters():
            if name.endswith("weight") and parameter.ndim > 1:
                parameter.zero_()
        torch.nn.init.normal_(model.encoder.layer[0].attention.self.value.weight, std=0.3)
        model.encoder.layer[0].attention.self.value.weight[:, :2] = 0
        for table in (model.embeddings.position_embeddings, model.embeddings.token_type_embeddings):
            table.weight.zero_()
        words = model.embeddings.word_embeddings.weight
        words[ids] = words[ids[0]].clone()
        # Opposite signs in two places: mean and deviation, by which the norms would tell them apart, are the same.
        words[ids[:4], :2], words[ids[4:], :2] = torch.tensor([2.0, -2.0]), torch.tensor([-2.0, 2.0])
        model.encoder.layer[0].output.LayerNorm.weight[:2] = 0
    model.save_pretrained(folder)
    return str(folder)


def peft_adapter(
    base: str, folder: Path, weights: dict[str, tuple[list[float], list[float]]], kind: str = "SEQ_CLS"
) -> Path:
    """PEFT's own checkpoint of rank 1: the beginnings of each module's A and B, the rest of them zero."""
    import transformers as t
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    auto = t.AutoModelForTokenClassification if kind == "TOKEN_CLS" else t.AutoModelForSequenceClassification
    model = auto.from_pretrained(base, num_labels=2)
    config = LoraConfig(task_type=kind, r=1, lora_alpha=1, target_modules=[*weights])
    peft_model = get_peft_model(model, config)
    for name, parameter in peft_model.named_parameters():
        for module, (a, b) in weights.items():
            if f"{module}.lora_" in name:
                values = torch.tensor(a if "lora_A" in name else b)
                with torch.no_grad():
                    parameter.zero_().view(-1)[: len(values)] = values
    peft_model.save_pretrained(folder)
    return folder


SEEING = {"intermediate.dense": ([1.0, -1.0], [4.0]), "layer.0.output.dense": ([1.0], [0.0] * 5 + [1.0])}
BLURRY = {"attention.output.dense": ([0.3] * 32, [0.0] * 5 + [1.0])}


@pytest.fixture
def catalogue(blind, tmp_path) -> Registry:
    """Two foreign adapters on the blind base: one tells the words apart, the other has an effect, and doesn't."""
    registry = Registry(tmp_path / "adapters.db")
    for name, weights in (("seeing", SEEING), ("blurry", BLURRY)):
        folder = peft_adapter(blind, tmp_path / name, weights)
        registry.add(folder, name=name, domain="markets", task="text-classification")
    return registry


def recipe_on(base: str, folder: Path, rows, **settings) -> Recipe:
    flags = {
        "name": "tone", "domain": "finance", "task": "text-classification", "base": base, "device": "cpu",
        "data.train": write_jsonl(folder / "rows.jsonl", rows), "report.write": False, "output": str(folder / "out"),
    }  # fmt: skip
    return Recipe.from_flags({**flags, **settings})


def test_an_adapter_from_whose_states_the_labels_can_be_read_is_what_to_start_from(blind, catalogue, tmp_path):
    recipe = recipe_on(blind, tmp_path, tone_rows(150))
    found = advise(recipe, catalogue)
    scores = {start.reference: start.score for start in found.starts}
    assert set(scores) == {None, "seeing@1", "blurry@1"}
    assert scores[None] < 0.65
    assert scores["blurry@1"] < 0.65
    assert scores["seeing@1"] > 0.95
    assert values(found) == {"from": "seeing@1"}
    assert "linear probe" in found.settings[0].why
    assert found.recipe.from_ == "seeing@1"
    assert recipe.from_ is None

    training = found.recipe.training.model_copy(update={"max_steps": 2})
    version = train(found.recipe.model_copy(update={"training": training}), catalogue)
    assert version.parents == ("seeing@1",)


def test_an_adapter_of_another_task_is_a_stage_before_the_recipes_own(blind, tmp_path):
    registry = Registry(tmp_path / "adapters.db")
    folder = peft_adapter(blind, tmp_path / "seeing", SEEING, "TOKEN_CLS")
    registry.add(folder, name="seeing", domain="markets", task="token-classification")
    found = advise(recipe_on(blind, tmp_path, tone_rows(150)), registry)
    assert values(found) == {"strategy": "intermediate", "from": "seeing@1"}
    assert (found.recipe.strategy, found.recipe.from_) == ("intermediate", "seeing@1")
    assert found.estimate is not None
    assert not found.hints or not any("would help" in hint for hint in found.hints)


def test_what_contradicts_the_recipe_is_told_and_left_out(blind, catalogue, tmp_path):
    recipe = recipe_on(blind, tmp_path, tone_rows(150), **{"lora.rank": 8})
    reporter = Reporter()
    found = advise(recipe, catalogue, progress=reporter)
    assert [start.reference for start in found.starts] == [None]
    assert any("seeing@1 isn't tried" in line and "lora.rank" in line for line in reporter.notices)
    # Nothing can be read off the base, so that the 30 held-out rows may be lucky or not.
    assert values(found) == {"training.folds": 5}
    assert found.recipe.training.folds == 5
    assert found.recipe.data.test_size is None
    reporter = Reporter()
    found = advise(recipe_on(blind, tmp_path, tone_rows(60), method="ia3"), catalogue, progress=reporter)
    assert [start.reference for start in found.starts] == [None]
    assert len([line for line in reporter.notices if "no adapter is tried as a start: method: 'ia3'" in line]) == 1
    for settings, key in (({"from": "seeing@1"}, "from:"), ({"strategy": "direct"}, "strategy:")):
        with pytest.raises(RecipeError, match=key):
            advise(recipe_on(blind, tmp_path, tone_rows(40), **settings), catalogue)


def test_adapters_that_have_seen_the_answers_are_no_starts(bases, tmp_path):
    registry = Registry(tmp_path / "adapters.db")
    base, rows = bases("bert"), tone_rows(60)
    steps = {"training.max_steps": 2, "data.test": write_jsonl(tmp_path / "test.jsonl", tone_rows(20, seed=5))}
    (tmp_path / "other").mkdir()

    def trained(name: str, folder: Path, rows, **settings) -> None:
        train(
            recipe_on(base, folder, rows, **{**steps, "name": name, "output": str(tmp_path / name), **settings}),
            registry,
        )

    trained("same-rows", tmp_path, rows)
    trained("other-rows", tmp_path / "other", tone_rows(60, seed=1))
    trained("its-child", tmp_path / "other", tone_rows(60, seed=1), **{"from": "same-rows"})
    trained("tone", tmp_path / "other", tone_rows(60, seed=1))
    reporter = Reporter()
    found = advise(recipe_on(base, tmp_path, rows, **steps), registry, progress=reporter)
    assert [start.reference for start in found.starts] == [None, "other-rows@1"]
    for name in ("same-rows@1", "its-child@1", "tone@1"):
        assert any(line.startswith(f"{name} isn't tried") for line in reporter.notices)


def test_an_adapter_with_these_labels_is_measured_as_it_is(bases, tmp_path):
    registry = Registry(tmp_path / "adapters.db")
    (tmp_path / "theirs").mkdir()
    unlike = list({row["text"]: row for row in tone_rows(80, seed=1)}.values())
    test = write_jsonl(tmp_path / "test.jsonl", tone_rows(20, seed=5))
    settings = {"data.test": test, "training.early_stopping": 0}
    theirs = recipe_on(
        bases("bert"), tmp_path / "theirs", tone_rows(60), **{**settings, "name": "theirs", "training.max_steps": 4}
    )
    train(theirs, registry)
    recipe = recipe_on(bases("bert"), tmp_path, unlike, **settings)
    start = advise(recipe, registry).starts[1]
    measured = evaluate([start.reference], recipe.data.train, registry)
    assert start.ready == pytest.approx(measured.adapters[0].metrics["f1"], abs=1e-6)


@pytest.mark.parametrize("task", [task for task in ROWS if task != "text-classification"])
def test_every_task_has_its_measure(task, make_small):
    recipe = make_small(task, rows=150 if task == "fill-mask" else 40)
    found = advise(recipe)
    expected = {"token-classification": "f1", "question-answering": "f1", "feature-extraction": "mrr@10"}
    assert found.metric == expected.get(task, "loss")
    assert found.probed == (task == "token-classification")
    assert len(found.starts) == 1
    assert found.estimate is not None
    assert found.estimate.fits


def test_another_language_models_adapter_is_measured_by_its_loss(make_recipe, recipe_in, tmp_path):
    registry = Registry(tmp_path / "adapters.db")
    (tmp_path / "theirs").mkdir()
    theirs = recipe_in(tmp_path / "theirs", "text-generation", rows=60, **{"name": "theirs", "training.max_steps": 20})
    train(theirs, registry)
    recipe = make_recipe("text-generation", rows=50)
    recipe = recipe.model_copy(update={"lora": recipe.lora.model_construct(_fields_set=set(), **dict(recipe.lora))})
    write_jsonl(tmp_path / "train.jsonl", ROWS["text-generation"](50, seed=3))
    found = advise(recipe, registry)
    base, theirs_start = found.starts
    assert theirs_start.score < base.score
    assert values(found)["from"] == "theirs@1"


def test_labels_of_every_kind_are_probed(bases, tmp_path):
    kinds = {
        "regression": [{**row, "label": 2.5 if row["label"] == "good" else -1.0} for row in tone_rows(60)],
        "multi_label_classification": [{**row, "label": [row["label"], "all"]} for row in tone_rows(60)],
    }
    for kind, rows in kinds.items():
        found = advise(recipe_on(bases("bert"), tmp_path, rows, problem_type=kind))
        assert found.probed
        score = found.starts[0].score
        assert score < 1.6 if kind == "regression" else score > 0.6


def test_rows_and_base_are_told_what_is_wrong_with_them(bases, tmp_path):
    rows = [*tone_rows(60), {"text": "profit rose", "label": "good"}, {"text": "profit rose", "label": "bad"}]
    rows += [{"text": "Qué día tan bonito hace hoy en Jaén", "label": "good"}] * 3
    long = [{"text": " ".join(["profit rose the bank"] * 9), "label": "good"}] * 2
    recipe = recipe_on(bases("bert"), tmp_path, [*rows, *long], **{"training.max_length": 16, "data.test_size": 0.01})
    found = advise(recipe)
    told = " ".join(found.hints)
    assert "1 training rows ask the same as another one and want another answer" in told
    assert "training rows are the same as another one" in told
    assert values(found)["training.max_length"] > 16
    assert found.facts.lengths is not None
    assert found.facts.lengths.longest == 38


def test_tokens_that_the_recipe_adds_are_not_missing(bases, tmp_path):
    rows = [{**row, "text": f"{row['text']} é é"} for row in tone_rows(60)]
    without = advise(recipe_on(bases("bert"), tmp_path, rows))
    assert without.facts.unknown > 0.1
    assert any("add tokens" in hint for hint in without.hints)
    found = advise(recipe_on(bases("bert"), tmp_path, rows, **{"tokens.add": ["é"]}))
    assert found.facts.unknown == 0
    assert not any("add tokens" in hint for hint in found.hints)


def values(found) -> dict[str, object]:
    return {one.key: one.value for one in found.settings}


def test_the_command_writes_a_recipe_that_trains_and_nothing_else(blind, catalogue, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    recipe_on(blind, tmp_path, tone_rows(150))
    words = ["advise", "--base", blind, "--data", "rows.jsonl", "--device", "cpu", "--registry", str(catalogue.path)]
    before = catalogue.stamp()
    assert main([*words, "--write", "tone.yaml", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["recipe"]["from"] == "seeing@1"
    assert told["recipe"]["name"] == Path(tmp_path).name.replace("_", "-").lower()
    assert told["estimate"]["fits"]
    written = Recipe.load(tmp_path / "tone.yaml")
    assert written.from_ == "seeing@1"
    assert "linear probe" in (tmp_path / "tone.yaml").read_text()
    assert catalogue.stamp() == before
    assert main([*words, "--write", "tone.yaml"]) == 2
    assert "is there already" in capsys.readouterr().err
    (tmp_path / "link.yaml").symlink_to("nowhere.yaml")
    assert main([*words, "--write", "link.yaml"]) == 2
    assert "is there already" in capsys.readouterr().err
    assert main([*words, "--set", "data.header=[text, label]"]) == 2
    assert "data.header is set; pass --task" in " ".join(capsys.readouterr().err.split())
    assert main(["advise", "--base", blind]) == 2
    assert "expected a recipe, or --base and --data" in capsys.readouterr().err


def test_a_folder_that_takes_no_file_is_told_of_before_anything_is_measured(tmp_path):
    folder = Path(tempfile.mkdtemp(prefix="lorary-tests-"))  # pytest's own can't be entered by others
    folder.chmod(0o555)
    words = ["advise", "--base", "b", "--data", "d", "--write", str(folder / "tone.yaml")]
    try:
        told = unprivileged(lambda: main(words))
    finally:
        folder.rmdir()
    assert told == "2"


def test_the_command_says_what_to_call_next(blind, catalogue, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    recipe = recipe_on(blind, tmp_path, tone_rows(150))
    (tmp_path / "tone recipe.yaml").write_text(recipe.given())
    assert main(["advise", "tone recipe.yaml", "--registry", str(catalogue.path)]) == 0
    out = capsys.readouterr().out
    assert "seeing@1" in out
    assert "spelling alone" in out
    assert "lorary train 'tone recipe.yaml' --from seeing@1" in out

    # What was measured is what is trained: with the flags that it was measured with.
    write_jsonl(tmp_path / "other.jsonl", tone_rows(150, seed=1))
    words = ["--data", "other.jsonl", "--domain", "news", "--set", "training.batch_size=4", "--set", "start=null"]
    assert main(["advise", "tone recipe.yaml", *words, "--registry", str(catalogue.path)]) == 0
    assert f"lorary train 'tone recipe.yaml' {' '.join(words)} --from seeing@1" in capsys.readouterr().out


@pytest.mark.parametrize(("family", "others"), [
    ("bert-mlm", ("fill-mask", "question-answering")),
    ("t5-spans", ("fill-mask",)),
    ("llama", ("text-generation", "token-classification")),
])  # fmt: skip
def test_adapters_of_every_task_are_tried_for_a_classifier(family, others, recipe_in, tmp_path):
    registry = Registry(tmp_path / "adapters.db")
    steps = {"training.max_steps": 12, "training.learning_rate": 0.03}  # so that its answers are others at all
    for task in others:
        (tmp_path / task).mkdir()
        train(recipe_in(tmp_path / task, task, family, rows=30, name=task, **steps), registry)
    reporter = Reporter()
    found = advise(
        recipe_on(recipe_in(tmp_path, family=family).base, tmp_path, tone_rows(30)), registry, progress=reporter
    )
    assert {start.reference for start in found.starts} == {None, *(f"{task}@1" for task in others)}, reporter.notices
    assert any(start.against_base.low < start.against_base.high for start in found.starts[1:])  # other answers


def test_what_has_learned_texts_is_no_start_for_writing_them(recipe_in, tmp_path):
    registry = Registry(tmp_path / "adapters.db")
    theirs = {
        "data.columns": {"text": "prompt"}, "strategy": "continual", "training.max_steps": 2, "name": "theirs",
        "output": str(tmp_path / "theirs" / "out"),
    }  # fmt: skip
    train(recipe_in(tmp_path, "text-generation", rows=30, **theirs), registry)
    reporter = Reporter()
    found = advise(recipe_in(tmp_path, "text-generation", rows=30), registry, progress=reporter)
    assert [start.reference for start in found.starts] == [None]
    assert any(line.startswith("theirs@1 isn't tried") and "has learned" in line for line in reporter.notices)


def test_settings_that_nothing_is_trained_with_are_told_before_anything_is_read(make_small):
    recipe = make_small(rows=40, dtype="float16")
    reporter = Reporter()
    phases: list[str] = []
    reporter.phase = phases.append
    with pytest.raises(RecipeError, match="float16 isn't trained in on a CPU"):
        advise(recipe, progress=reporter)
    assert phases == []


def test_rows_that_are_dropped_speak_for_more_room(bases, tmp_path):
    long = [{**row, "text": f"{row['text']} " + "the bank said " * 6} for row in tone_rows(60, seed=1)]
    settings = {"training.max_length": 16, "data.too_long": "drop", "data.test_size": 0.1}
    found = advise(recipe_on(bases("bert"), tmp_path, [*tone_rows(60), *long], **settings))
    assert values(found)["training.max_length"] > 20
    assert found.facts.lengths is not None
    assert 0.3 < found.facts.lengths.cut < 0.7


def test_the_command_says_how_many_runs_there_are_and_what_does_not_fit(
    blind, catalogue, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    few = {"method": "rslora", "training.batch_size": 2}  # few ways to make it smaller, each of which is tried
    recipe = recipe_on(blind, tmp_path, tone_rows(60), **{"training.folds": 3, "lora.rank": 8, **few})
    (tmp_path / "tone.yaml").write_text(recipe.given())
    words = ["advise", "tone.yaml", "--registry", str(catalogue.path)]
    assert main(words) == 0
    assert "- each of 4 runs takes " in capsys.readouterr().out
    assert main([*words, "--memory", "1MB"]) == 0
    out = capsys.readouterr().out
    assert "it fits with no settings: the run would take" in out
    assert " of 1 MB" not in out


def test_half_a_recipe_is_not_left_where_the_disk_is_full(blind, catalogue, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    recipe_on(blind, tmp_path, tone_rows(60))
    words = ["--base", blind, "--data", "rows.jsonl", "--device", "cpu", "--starts", "0"]
    before = catalogue.stamp()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    real = advise_command._write

    def on_a_full_disk(*words: object) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
        try:
            real(*words)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    monkeypatch.setattr(advise_command, "_write", on_a_full_disk)
    assert main(["advise", *words, "--write", "tone.yaml", "--registry", str(catalogue.path)]) == 1
    assert "--write tone.yaml: can't be written (File too large)" in capsys.readouterr().err
    assert not (tmp_path / "tone.yaml").exists()
    assert catalogue.stamp() == before
