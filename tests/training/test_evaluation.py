"""Adapters that are there, on rows with known answers: the metrics that training itself takes, side by side."""

import csv
import json

import pytest
import torch

from lorary.adapters.backbone.sources import find_checkpoint
from lorary.hub.checkpoint import MANIFEST_NAME, RECIPE_NAME
from lorary.hub.cli.main import main
from lorary.hub.errors import BaseMismatchError, DataError, RecipeError, UnknownReferenceError, UsageError
from lorary.training import evaluate, train
from lorary.training.evaluation.recipe import recipe_for
from lorary.training.tasks import TASKS
from runs import SHORT
from samples import summary_rows, text_rows, tone_rows, write_jsonl
from tiny import make_adapter

MORE = {
    "text-generation": {"generation.rows": 2, "generation.max_new_tokens": 8},
    "summarization": {"generation.rows": 4, "training.max_target_length": 12, "prompt.prefix": "sum: "},
    "translation": {"generation.rows": 4, "training.max_target_length": 12},
    "question-answering": {"training.max_length": 32, "training.stride": 8},
    "feature-extraction": {"embedding.pooling": "cls"},
}


def close(found, expected):
    assert found.keys() == expected.keys()
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-4)


@pytest.fixture(scope="module")
def tone(tmp_path_factory, recipe_in):
    """Two versions of a classifier, and a registry with them."""
    from lorary.hub import Registry

    folder = tmp_path_factory.mktemp("tone")
    registry = Registry(folder / "registry.db")
    train(recipe_in(folder, held=20, **SHORT), registry)
    train(recipe_in(folder, held=20, **{"training.max_steps": 12, "output": str(folder / "more")}), registry)
    return registry, folder


@pytest.mark.parametrize("task", list(TASKS))
def test_the_rows_it_was_measured_on_give_the_metrics_of_training(task, make_small, registry):
    recipe = make_small(task, **SHORT, **MORE.get(task, {}))
    version = train(recipe, registry)
    found = evaluate([version.reference], recipe.data.test, registry, settings={"device": "cpu"})
    close(found.adapters[0].metrics, version.metrics["test"])
    assert found.task == task
    assert found.rows == len(found.adapters[0].answers)
    assert found.metric in found.adapters[0].metrics


@pytest.mark.parametrize(
    "settings",
    [
        {"tokens.add": ["zyx", "wvu"]},
        {"method": "qlora"},
        {"strategy": "continual", "data.columns": {"text": "prompt"}},
        {"method": "ia3", "task": "text-classification"},
        {"strategy": "fine-tune", "training.mlm_probability": 0.3, "task": "fill-mask"},
    ],
    ids=["new tokens", "qlora", "continual", "ia3", "masked rows"],
)
def test_so_they_do_whatever_the_adapter_is(settings, make_small, registry):
    settings = dict(settings)
    recipe = make_small(settings.pop("task", "text-generation"), **SHORT, **settings)
    version = train(recipe, registry)
    found = evaluate([version.reference], recipe.data.test, registry, settings={"device": "cpu"})
    close(found.adapters[0].metrics, version.metrics["test"])


def labelled(kind):
    rows = tone_rows(24)
    for row in rows:
        row["label"] = [row["label"], "any"] if kind == "several" and "r" in row["text"] else [row["label"]]
        if kind == "number":
            row["label"] = len(row["text"]) / 7
    return rows


@pytest.mark.parametrize("kind", ["several", "number"])
def test_labels_of_other_kinds(kind, make_small, registry, tmp_path):
    rows = write_jsonl(tmp_path / f"{kind}.jsonl", labelled(kind))
    train_rows = write_jsonl(tmp_path / "other.jsonl", labelled(kind)[1:])
    version = train(make_small(**SHORT, **{"data.train": train_rows, "data.test": rows}), registry)
    found = evaluate([version.reference], rows, registry, settings={"device": "cpu"})
    close(found.adapters[0].metrics, version.metrics["test"])
    assert list(found.baselines) == (["majority"] if kind == "several" else ["mean"])


def test_several_are_held_against_the_first(tone):
    registry, folder = tone
    found = evaluate(["tiny@1", "tiny@2"], str(folder / "test.jsonl"), registry, settings={"device": "cpu"})
    for one in found.adapters:
        close(one.metrics, registry.resolve(one.reference).metrics["test"])
        assert one.digest == registry.resolve(one.reference).digest
    (difference,) = found.differences
    first, second = (one.metrics["f1"] for one in found.adapters)
    assert difference.metric == found.metric == "f1"
    assert difference.value == pytest.approx(second - first)
    assert difference.low <= difference.value <= difference.high


def test_rows_of_one_label_can_be_measured(tone, tmp_path):
    registry, _ = tone
    rows = [row for row in tone_rows(40) if row["label"] == "bad"]
    found = evaluate(["tiny"], write_jsonl(tmp_path / "one.jsonl", rows), registry, settings={"device": "cpu"})
    right = sum(answer.right for answer in found.adapters[0].answers)
    assert found.adapters[0].metrics["accuracy"] == right / len(rows)
    assert found.baselines["majority"]["accuracy"] == 1


def test_a_foreign_adapter_without_a_manifest(tone, tmp_path, bases):
    import shutil

    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    registry, folder = tone
    foreign = shutil.copytree(folder / "more", tmp_path / "foreign")
    (foreign / MANIFEST_NAME).unlink()
    (foreign / RECIPE_NAME).unlink()
    labels = registry.resolve("tiny@2").manifest.labels
    rows = [{"text": row["text"], "label": labels.index(row["label"])} for row in tone_rows(20, seed=9)]
    found = evaluate(
        [foreign], write_jsonl(tmp_path / "rows.jsonl", rows), registry,
        settings={"base": bases("bert"), "device": "cpu"},
    )  # fmt: skip
    model = AutoModelForSequenceClassification.from_pretrained(bases("bert"), num_labels=len(labels))
    model, tokenizer = PeftModel.from_pretrained(model, foreign).eval(), AutoTokenizer.from_pretrained(bases("bert"))
    with torch.no_grad():
        guessed = [int(model(**tokenizer(row["text"], return_tensors="pt")).logits.argmax()) for row in rows]
    assert [answer.found for answer in found.adapters[0].answers] == [f"LABEL_{guess}" for guess in guessed]


def test_a_foreign_adapter_is_for_what_the_catalogue_has_it_for(bases, registry, tmp_path):
    """Of encoder-decoders and masked models PEFT's task type says too little or nothing; who imports it does."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSeq2SeqLM

    config = LoraConfig(r=4, target_modules=["q", "v"], task_type="SEQ_2_SEQ_LM", init_lora_weights=False)
    get_peft_model(AutoModelForSeq2SeqLM.from_pretrained(bases("t5")), config).save_pretrained(tmp_path / "brief")
    registry.add(tmp_path / "brief", name="brief", domain="finance", task="summarization")
    rows = write_jsonl(tmp_path / "rows.jsonl", summary_rows(4))
    settings = {"device": "cpu", "base": bases("t5"), "training.max_length": 32, "generation.max_new_tokens": 4}
    found = evaluate(["brief"], rows, registry, settings=settings)
    assert found.task == "summarization"
    assert "rougeL" in found.adapters[0].metrics
    settings["task"] = "translation"
    columns = {"data.columns.source": "text", "data.columns.target": "summary"}
    assert evaluate(["brief"], rows, registry, settings=settings | columns).task == "translation"


def test_other_columns(tone, tmp_path):
    registry, _ = tone
    place = tmp_path / "rows.csv"
    with place.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["headline", "tone"])
        writer.writerows([row["text"], row["label"]] for row in tone_rows(20, seed=9))
    overrides = ["data.columns.text=headline", "data.columns.label=tone"]
    found = evaluate(["tiny@2"], str(place), registry, settings={"device": "cpu"}, overrides=overrides)
    close(found.adapters[0].metrics, registry.resolve("tiny@2").metrics["test"])


def test_other_settings_are_those_that_the_adapter_is_asked_by(tone, make_small, registry, tmp_path):
    from transformers import AutoTokenizer

    ours, _ = tone
    rows = [
        {**row, "text": f"{row['text']} {other['text']}"}
        for row, other in zip(tone_rows(20), tone_rows(20, 5), strict=True)
    ]
    long, short = write_jsonl(tmp_path / "long.jsonl", rows), write_jsonl(tmp_path / "short.jsonl", tone_rows(20))
    overrides = ["training.max_length=8"]  # as many tokens as the first half has
    (cut,) = evaluate(["tiny@2"], long, ours, settings={"device": "cpu"}, overrides=overrides).adapters
    (half,) = evaluate(["tiny@2"], short, ours, settings={"device": "cpu"}).adapters
    assert cut.metrics == pytest.approx(half.metrics)
    assert [answer.found for answer in cut.answers] == [answer.found for answer in half.answers]
    recipe = make_small("summarization", layers=2, **SHORT, **MORE["summarization"])
    train(recipe, registry)
    settings = {"device": "cpu", "generation.max_new_tokens": 2}
    (short,) = evaluate(["tiny"], recipe.data.test, registry, settings=settings).adapters
    tokenizer = AutoTokenizer.from_pretrained(recipe.base)
    written = [answer.found for answer in short.answers if "perplexity" not in answer.found]
    assert max(len(tokenizer.tokenize(text)) for text in written) <= 2


def test_what_cannot_be_measured(tone, tmp_path, make_small, registry):
    ours, folder = tone
    test = str(folder / "test.jsonl")
    with pytest.raises(UnknownReferenceError, match="did you mean tiny"):
        evaluate(["tinny"], test, ours)
    rows = write_jsonl(tmp_path / "rows.jsonl", [*tone_rows(1), {"text": "so so", "label": "glad"}])
    with pytest.raises(
        DataError, match=r"(?s)^tiny@2, .*rows.jsonl, row 2, label: unknown label 'glad'; data.labels has"
    ):
        evaluate(["tiny"], rows, ours)
    with pytest.raises(RecipeError, match="no such file"):
        evaluate(["tiny"], str(tmp_path / "none.jsonl"), ours)
    tags = make_small("token-classification", **SHORT)
    train(tags, registry)
    with pytest.raises(UsageError, match="out is for token-classification"):
        evaluate(["tiny", tags.output], test, ours)


def test_another_base_is_refused(tone, bases):
    registry, folder = tone
    with pytest.raises(BaseMismatchError):
        evaluate(["tiny"], str(folder / "test.jsonl"), registry, settings={"base": bases("bert-mlm"), "device": "cpu"})


def test_the_command_shows_a_table_and_writes_answers(tone, capsys, tmp_path):
    registry, folder = tone
    before = registry.path.read_bytes()
    words = ["eval", "tiny@1", "tiny@2", "--data", str(folder / "test.jsonl"), "--registry", str(registry.path)]
    assert main([*words, "--answers", str(tmp_path / "answers.jsonl"), "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0].split("  ")[0] == "metric"
    assert "tiny@1  tiny@2  majority class" in out.splitlines()[0]
    assert out.splitlines()[1].startswith("f1 ")
    assert "Measured on 20 rows" in out
    assert "tiny@2 against tiny@1: f1 " in out
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert len(answers) == 40
    assert answers[0].keys() == {"adapter", "row", "given", "expected", "found", "right"}
    assert answers[0]["row"] == f"{folder}/test.jsonl, row 1"
    assert main([*words, "--json", "--device", "cpu"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [one["reference"] for one in told["adapters"]] == ["tiny@1", "tiny@2"]
    assert told["adapters"][0]["against_first"] is None
    assert told["adapters"][1]["against_first"]["verdict"] in ("better", "worse", "no difference")
    assert told["rows"] == 20
    assert registry.path.read_bytes() == before


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["tiny"], 2, "Missing option '--data'"),
        (["tiny", "tiny", "--data", "x"], 2, "tiny is named twice"),
        (["tiny", "tiny@2", "--data", "TEST"], 2, "tiny and tiny@2 are both tiny@2"),
        (["tiny", "--data", "TEST", "--answers", "."], 2, "it is a folder"),
        (["tiny", "--data", "TEST", "--answers", "TEST"], 2, "these are the rows of --data"),
        (["tiny", "--data", "none.jsonl"], 2, "no such file"),
        (["tiny", "--data", "~nobody-here/rows.jsonl"], 2, "no such user's home folder is known"),
        (["tiny", "--data", "TEST", "--answers", "nowhere/answers.jsonl"], 2, "nowhere"),
        (["tiny", "--data", "TEST", "--quantization", "int3"], 2, "quantization"),
        (["tiny", "--data", "TEST", "--set", "data.columns.txt=a"], 2, "txt"),
        (["tiny", "--data", "TEST", "--set", "data.test=more.jsonl"], 2, "nothing is trained"),
        (["tiny", "--data", "TEST", "--set", "training.epochs=3"], 2, "nothing is trained"),
    ],
)
def test_wrong_calls_are_one_error_before_anything_is_loaded(tone, words, code, said, capsys, monkeypatch):
    import lorary.training.evaluation.evaluate as module

    registry, folder = tone
    monkeypatch.setattr(module, "load_for", lambda *args: pytest.fail("the base was loaded"))
    words = [str(folder / "test.jsonl") if word == "TEST" else word for word in words]
    assert main(["eval", *words, "--registry", str(registry.path)]) == code
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error


def test_texts_fall_into_rows_as_in_training(make_small, registry, tmp_path):
    lines = [row["text"] for row in text_rows(24)]
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join("\n".join(lines[first : first + 2]) for first in range(0, len(lines), 2)))
    (tmp_path / "learned.txt").write_text("\n".join(row["text"] for row in text_rows(24, seed=3)))
    files = {
        "data.train": str(tmp_path / "learned.txt"),
        "data.test": str(text),
        "data.sample_by": "line",
        "strategy": "fine-tune",
    }
    version = train(make_small("fill-mask", **SHORT, **files), registry)
    found = evaluate(["tiny"], str(text), registry, settings={"device": "cpu"})
    assert found.rows == len(lines)
    close(found.adapters[0].metrics, version.metrics["test"])
    rows = write_jsonl(tmp_path / "rows.jsonl", text_rows(4))
    assert evaluate(["tiny"], rows, registry, settings={"device": "cpu"}).rows == 4


@pytest.mark.parametrize("prompt", ["", "the bank "])
def test_embeddings_of_sentence_transformers_are_measured_as_its_files_say(prompt, bases, tmp_path, registry):
    folder = make_adapter(bases("bert"), tmp_path / "like", task="feature-extraction")
    kinds = {"Transformer": "", "Pooling": "1_Pooling"}
    write_json(folder / "modules.json", [{"type": kind, "path": path} for kind, path in kinds.items()])
    write_json(folder / "1_Pooling/config.json", {"pooling_mode": "cls"})
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 8})
    settings = {"prompts": {"query": prompt}, "default_prompt_name": "query"}
    write_json(folder / "config_sentence_transformers.json", settings)
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"text": "profit rose", "positive": "sales rose"}] * 2)
    source = find_checkpoint(folder, registry)
    if prompt:
        with pytest.raises(UsageError, match="like puts 'the bank ' before each text"):
            recipe_for(source, str(rows), {})
        return
    recipe = recipe_for(source, str(rows), {})
    assert (recipe.embedding.pooling, recipe.embedding.normalize, recipe.training.max_length) == ("cls", False, 8)


def write_json(path, value):
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value))
