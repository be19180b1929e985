"""Adapters on rows whose labels are written otherwise than in training, and adapters that have no names for them."""

import shutil

import pytest
import torch

from lorary.hub.checkpoint import MANIFEST_NAME, RECIPE_NAME
from lorary.hub.errors import UsageError
from lorary.training import evaluate, train
from runs import SHORT
from samples import question_rows, tone_rows, write_jsonl

NAMES = ("any", "bad", "good")
ON_CPU = {"device": "cpu"}


def sets(count, seed=0):
    """Rows with one or two labels."""
    rows = tone_rows(count, seed)
    for row in rows:
        row["label"] = [row["label"]] + (["any"] if len(row["text"]) % 2 else [])
    return rows


def in_columns(rows):
    return [{"text": row["text"], **{name: int(name in row["label"]) for name in NAMES}} for row in rows]


def numbers(count, seed=0):
    return [{"text": row["text"], "label": len(row["text"]) / 7} for row in tone_rows(count, seed)]


def foreign(folder, place):
    """What PEFT alone would have left of an adapter."""
    place = shutil.copytree(folder, place)
    for name in (MANIFEST_NAME, RECIPE_NAME, "golden.safetensors"):
        (place / name).unlink()
    return place


def logits_of(folder, base, texts, labels):
    """As PEFT alone gives them, [rows, labels]."""
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=labels)
    model, tokenizer = PeftModel.from_pretrained(model, folder).eval(), AutoTokenizer.from_pretrained(base)
    with torch.no_grad():
        return torch.cat([model(**tokenizer(text, return_tensors="pt")).logits for text in texts])


def test_columns_of_labels(make_small, registry, tmp_path):
    rows = write_jsonl(tmp_path / "columns.jsonl", in_columns(sets(24, 9)))
    settings = {"data.columns": {"text": "text"}, "data.label_columns": list(NAMES)}
    files = {"data.train": write_jsonl(tmp_path / "own.jsonl", in_columns(sets(40))), "data.test": rows}
    version = train(make_small(**SHORT, **files, **settings), registry)
    expected = pytest.approx(version.metrics["test"], abs=1e-4)
    assert evaluate(["tiny"], rows, registry, settings=ON_CPU).adapters[0].metrics == expected
    lists = write_jsonl(tmp_path / "lists.jsonl", sets(24, 9))
    other = ["data.columns.label=label"]
    assert evaluate(["tiny"], lists, registry, settings=ON_CPU, overrides=other).adapters[0].metrics == expected


def test_labels_in_a_text_are_read_as_in_training(make_small, registry, tmp_path):
    def in_texts(rows):
        return [{**row, "label": "|".join(row["label"])} for row in rows]

    rows = write_jsonl(tmp_path / "texts.jsonl", in_texts(sets(24, 9)))
    files = {"data.train": write_jsonl(tmp_path / "own.jsonl", in_texts(sets(40))), "data.test": rows}
    version = train(make_small(**SHORT, **files, **{"data.label_separator": "|"}), registry)
    expected = pytest.approx(version.metrics["test"], abs=1e-4)
    assert evaluate(["tiny"], rows, registry, settings=ON_CPU).adapters[0].metrics == expected
    lists, columns = sets(24, 9), in_columns(sets(24, 9))
    for others, settings in ((lists, []), (columns, ["data.label_columns=[any, bad, good]"])):
        place = write_jsonl(tmp_path / "others.jsonl", others)
        found = evaluate(["tiny"], place, registry, settings=ON_CPU, overrides=settings)
        assert found.adapters[0].metrics == expected


def test_lists_of_labels_as_columns_in_any_order(make_small, registry, tmp_path):
    lists = write_jsonl(tmp_path / "lists.jsonl", sets(24, 9))
    files = {"data.train": write_jsonl(tmp_path / "own.jsonl", sets(40)), "data.test": lists}
    version = train(make_small(**SHORT, **files), registry)
    rows = write_jsonl(tmp_path / "columns.jsonl", in_columns(sets(24, 9)))
    found = evaluate(["tiny"], rows, registry, settings=ON_CPU, overrides=["data.label_columns=[good, any, bad]"])
    assert found.adapters[0].metrics == pytest.approx(version.metrics["test"], abs=1e-4)
    with pytest.raises(UsageError, match=r"data.label_columns: tiny@1 answers with any, bad, good; .* found good, bad"):
        evaluate(["tiny"], rows, registry, overrides=["data.label_columns=[good, bad]"])


def test_thresholds_are_the_adapters_own_unless_others_are_set(make_small, registry, tmp_path):
    rows = write_jsonl(tmp_path / "lists.jsonl", sets(24, 9))
    files = {"data.train": write_jsonl(tmp_path / "own.jsonl", sets(40)), "data.test": rows}
    files["data.validation"] = write_jsonl(tmp_path / "watched.jsonl", sets(20, 5))
    version = train(make_small(**{**SHORT, **files, "training.early_stopping": 1}), registry)
    own = version.manifest.thresholds
    found = evaluate(["tiny"], rows, registry, settings=ON_CPU).adapters[0]
    assert found.metrics == pytest.approx(version.metrics["test"], abs=1e-4)
    half, none = (
        evaluate(["tiny"], rows, registry, settings={**ON_CPU, "training.threshold": least}).adapters[0]
        for least in (0.5, 0.999)
    )
    assert own is not None
    assert [answer.found for answer in half.answers] != [answer.found for answer in found.answers]
    assert {answer.found for answer in none.answers} == {"-"}


def test_rows_that_all_have_the_same_labels_can_be_measured(make_small, registry, tmp_path):
    files = {"data.train": write_jsonl(tmp_path / "own.jsonl", sets(40))}
    files["data.test"] = write_jsonl(tmp_path / "lists.jsonl", sets(8, 9))
    train(make_small(**SHORT, **files), registry)
    alike = write_jsonl(tmp_path / "alike.jsonl", [{**row, "label": ["any", "bad"]} for row in tone_rows(6)])
    found = evaluate(["tiny"], alike, registry, settings=ON_CPU)
    assert found.rows == 6
    assert found.baselines["majority"]["accuracy"] == 1


def test_a_foreign_adapter_with_several_labels_a_row(make_small, registry, tmp_path):
    from sklearn.metrics import f1_score

    rows = sets(24, 9)
    recipe = make_small(**SHORT, **{"data.train": write_jsonl(tmp_path / "own.jsonl", sets(40))}, **{
        "data.test": write_jsonl(tmp_path / "lists.jsonl", rows)})  # fmt: skip
    train(recipe, registry)
    place = foreign(recipe.output, tmp_path / "foreign")
    ids = [{"text": row["text"], "label": [NAMES.index(name) for name in row["label"]]} for row in rows]
    data = write_jsonl(tmp_path / "ids.jsonl", ids)
    found = evaluate([place], data, registry, settings={"base": recipe.base, **ON_CPU}).adapters[0]
    given = logits_of(place, recipe.base, [row["text"] for row in rows], 3).sigmoid() >= 0.5
    truth = [[name in row["label"] for name in NAMES] for row in rows]
    assert given.any()
    assert found.metrics["f1"] == pytest.approx(f1_score(truth, given.numpy(), average="macro", zero_division=0))


def test_numbers_in_another_column_and_from_a_foreign_adapter(make_small, registry, tmp_path):
    rows = numbers(24, 9)
    files = {"data.train": write_jsonl(tmp_path / "own.jsonl", numbers(40))}
    files["data.test"] = write_jsonl(tmp_path / "rows.jsonl", rows)
    recipe = make_small(**SHORT, **files)
    version = train(recipe, registry)
    renamed = [{"text": row["text"], "stars": row["label"]} for row in rows]
    data = write_jsonl(tmp_path / "stars.jsonl", renamed)
    found = evaluate(["tiny"], data, registry, settings=ON_CPU, overrides=["data.columns.label=stars"])
    assert found.adapters[0].metrics == pytest.approx(version.metrics["test"], rel=1e-4)
    place = foreign(recipe.output, tmp_path / "foreign")
    found = evaluate([place], recipe.data.test, registry, settings={"base": recipe.base, **ON_CPU})
    given = logits_of(place, recipe.base, [row["text"] for row in rows], 1)[:, 0]
    error = (given - torch.tensor([row["label"] for row in rows])).abs().mean()
    assert found.adapters[0].metrics["mae"] == pytest.approx(float(error), rel=1e-4)


def test_labels_under_other_names(make_small, registry, tmp_path):
    recipe = make_small(**SHORT)
    version = train(recipe, registry)
    rows = [{**row, "label": {"good": "up", "bad": "down"}[row["label"]]} for row in tone_rows(8, seed=9)]
    data = write_jsonl(tmp_path / "other.jsonl", rows)
    place = foreign(recipe.output, tmp_path / "foreign")
    settings = {"base": recipe.base, **ON_CPU}
    found = evaluate(["tiny", place], data, registry, settings=settings, overrides=["data.labels=[down, up]"])
    for one in found.adapters:
        assert one.metrics == pytest.approx(version.metrics["test"], abs=1e-4)
        assert {answer.found for answer in one.answers} <= {"down", "up"}
    with pytest.raises(UsageError, match=r"data.labels: tiny@1 answers with bad, good; .* found down, good"):
        evaluate(["tiny"], data, registry, overrides=["data.labels=[down, good]"])


def test_an_adapter_that_may_give_no_answer_may_on_rows_that_all_have_one(make_small, registry, tmp_path):
    none = {"text": [], "answer_start": []}
    rows = [{**row, "answers": none} if index % 8 else row for index, row in enumerate(question_rows(40))]
    files = {"data.train": write_jsonl(tmp_path / "mostly-none.jsonl", rows)}
    train(make_small("question-answering", **files, **{"training.max_steps": 16}), registry)
    data = write_jsonl(tmp_path / "answered.jsonl", question_rows(8, seed=9))
    found = evaluate(["tiny"], data, registry, settings=ON_CPU).adapters[0]
    assert any(answer.found not in answer.given for answer in found.answers)
