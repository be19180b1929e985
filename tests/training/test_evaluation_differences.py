"""How adapters differ on the same rows: each is scored by its own labels, and only what is the same is compared."""

import pytest

from lorary.hub.errors import BaseMismatchError
from lorary.training import evaluate, train
from lorary.training.progress import Reporter
from runs import SHORT
from samples import tag_rows, tone_rows, write_jsonl

ON_CPU = {"device": "cpu"}
LONGER = {"training.max_steps": 30, "training.batch_size": 8}


@pytest.fixture
def trained(make_small, registry):
    """``trained("one", task, ...)``: a recipe whose adapter is in the registry under that name."""

    def make(name, *words, **settings):
        recipe = make_small(*words, held=20, **{**SHORT, "name": name, **settings})
        recipe = recipe.model_copy(update={"output": f"{recipe.output}-{name}"})
        train(recipe, registry)
        return recipe

    return make


def differs(found):
    """The difference, held against that of the metrics."""
    first, second = (one.metrics[found.metric] for one in found.adapters)
    (difference,) = found.differences
    assert difference.value == pytest.approx(second - first)
    assert difference.low <= difference.value <= difference.high
    return difference.value


def test_labels_in_another_order(trained, registry, tmp_path):
    # Of one label there are more, so that taking one for the other shows in the scores.
    more = [row for row in tone_rows(40) if row["label"] == "bad"]
    rows = write_jsonl(tmp_path / "rows.jsonl", [*more, *tone_rows(8)])
    trained("one", **{"data.labels": ["bad", "good"]})
    trained("other", **{"data.labels": ["good", "bad", "any"]})
    differs(evaluate(["one", "other"], rows, registry, settings=ON_CPU))


def test_several_labels_a_row_in_another_order(trained, registry, tmp_path):
    rows = [{**row, "label": [row["label"], "any"]} for row in tone_rows(40)]
    files = {"data.train": write_jsonl(tmp_path / "sets.jsonl", rows)}
    files["data.test"] = write_jsonl(tmp_path / "held.jsonl", rows[:20])
    trained("one", **files, **{"data.labels": ["any", "bad", "good"]})
    trained("other", **files, **{"data.labels": ["good", "any", "bad"]})
    differs(evaluate(["one", "other"], files["data.test"], registry, settings=ON_CPU))


def test_words_that_only_one_of_them_sees(trained, registry, tmp_path):
    rows = write_jsonl(tmp_path / "rows.jsonl", tag_rows(20, seed=9))
    trained("one", "token-classification", **{"training.max_length": 8, **LONGER})
    trained("other", "token-classification", **LONGER)
    assert differs(evaluate(["one", "other"], rows, registry, settings=ON_CPU)) > 0


def test_texts_that_were_generated_for_fewer_rows(trained, registry):
    short = {"training.max_target_length": 12}
    recipe = trained("one", "summarization", **short, **{"generation.rows": 4})
    trained("other", "summarization", **short, **{"generation.rows": 2})
    found = evaluate(["one", "other"], recipe.data.test, registry, settings=ON_CPU)
    assert found.differences[0] is not None


@pytest.mark.parametrize(
    ("task", "other"),
    [
        ("text-generation", {"training.max_length": 16}),
        ("fill-mask", {"training.mlm_probability": 0.3}),
    ],
    ids=["cut", "hidden"],
)
def test_losses_on_other_tokens_are_not_compared(task, other, trained, registry):
    recipe = trained("one", task)
    trained("other", task, **other)
    trained("same", task, **{"training.seed": 7})
    found = evaluate(["one", "other", "same"], recipe.data.test, registry, settings=ON_CPU)
    assert [difference is None for difference in found.differences] == [True, False]


def test_the_score_that_is_drawn_again_is_the_metric(make_small):
    import random

    from lorary.training.tasks import make_task
    from lorary.training.tasks.token_classification import Gold

    tags = ("B-LOC", "B-ORG", "I-LOC", "I-ORG", "O")
    tagger, draw = make_task(make_small("token-classification"), tags), random.Random(0)
    golds = [Gold(tuple(draw.choices(tags, k=6)), (0, 1, 2, 4, 5)) for _ in range(40)]
    found = [draw.choices(tags, k=5) for _ in golds]
    assert tagger.main_score(found, golds) == pytest.approx(tagger.metrics(found, golds)["f1"])
    outside = [["O"] * 5]
    assert tagger.main_score(outside, [Gold(("O",) * 6, (0, 1, 2, 4, 5))]) == 0


class Steps(Reporter):
    def __init__(self):
        super().__init__()
        self.steps = []

    def step(self, done, total, loss):
        self.steps.append((done, total))


def test_it_tells_how_far_it_is_and_that_rows_are_few(trained, registry, tmp_path):
    trained("one")
    trained("other")
    told = Steps()
    rows = write_jsonl(tmp_path / "rows.jsonl", tone_rows(40))
    found = evaluate(["one", "other"], rows, registry, settings=ON_CPU, progress=told)
    assert told.steps == [(32, 40), (40, 40)] * 2
    assert [len(one.answers) for one in found.adapters] == [40, 40]
    assert told.notices == []
    rows = write_jsonl(tmp_path / "few.jsonl", tone_rows(20))
    evaluate(["one", "other"], rows, registry, settings=ON_CPU, progress=told)
    assert told.notices == ["20 rows are few to tell adapters apart by: others may well say otherwise"]


def longer_rows(count):
    return [{**row, "text": f"{row['text']} today"} for row in tone_rows(count)]


def test_notices_say_of_whom_they_speak(trained, registry, tmp_path):
    for name, length in (("one", 8), ("other", 64), ("third", 8)):
        trained(name, **{"training.max_length": length})
    rows = write_jsonl(tmp_path / "rows.jsonl", [row for row in longer_rows(80) if row["label"] == "bad"])
    told, undefined = Steps(), "no auc: none of the held-out rows has the label 'good'"
    evaluate(["one", "other", "third"], rows, registry, settings=ON_CPU, progress=told)
    (cut,) = [line for line in told.notices if "were cut" in line]
    assert cut.startswith("one@1, third@1: ")
    assert sorted(told.notices) == sorted([cut, undefined])
    alone = Steps()
    evaluate(["one"], rows, registry, settings=ON_CPU, progress=alone)
    assert sorted(alone.notices) == sorted([cut.removeprefix("one@1, third@1: "), undefined])


def test_notices_are_told_where_the_rest_fails(trained, registry, tmp_path):
    base = trained("one", **{"training.max_length": 8}).base
    trained("other", "text-classification", "distilbert")
    rows = write_jsonl(tmp_path / "rows.jsonl", longer_rows(40))
    told = Steps()
    with pytest.raises(BaseMismatchError):
        evaluate(["one", "other"], rows, registry, settings={**ON_CPU, "base": base}, progress=told)
    (line,) = told.notices
    assert line.startswith("one@1: 40 of 40 held-out rows are longer than 8 tokens")
