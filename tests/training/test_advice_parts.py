"""What advice is made of: the task that columns speak of, probes, and what is said of what they measured."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoTokenizer

from lorary.hub.errors import UsageError
from lorary.training.advisor.advise import Advice, with_more
from lorary.training.advisor.bench import Start
from lorary.training.advisor.beside import Beside
from lorary.training.advisor.guess import guess_task
from lorary.training.advisor.probe import probe
from lorary.training.advisor.rows import RowFacts
from lorary.training.advisor.setting import Setting
from lorary.training.advisor.settle import beside_hints, lead_hints
from lorary.training.advisor.spelling import spelling_alone
from lorary.training.data import Example, load_data
from lorary.training.experiments.bootstrap import Difference, paired_bootstrap
from lorary.training.experiments.curve import in_proportion
from lorary.training.tasks import Encoded, make_task
from samples import tone_rows, write_jsonl


@pytest.mark.parametrize(
    ("rows", "task"),
    [
        ({"text": "a", "label": "b"}, "text-classification"),
        ({"text": "a", "text_pair": "c", "label": "b"}, "text-classification"),
        ({"tokens": ["a"], "tags": ["O"], "source": "x"}, "token-classification"),
        ({"question": "a", "context": "b", "answers": {"text": [], "answer_start": []}}, "question-answering"),
        ({"prompt": "a", "completion": "b", "text": "c"}, "text-generation"),
        ({"messages": []}, "text-generation"),
        ({"source": "a", "target": "b"}, "translation"),
        ({"text": "a", "positive": "b"}, "feature-extraction"),
    ],
)
def test_the_task_is_what_the_columns_say(rows, task, tmp_path):
    found, columns = guess_task(write_jsonl(tmp_path / "rows.jsonl", [rows] * 2))
    assert found == task
    assert set(columns) <= set(rows)


def test_columns_that_say_nothing_are_told(tmp_path):
    for rows in ({"text": "a"}, {"headline": "a", "tone": "b"}):
        with pytest.raises(UsageError, match="pass --task"):
            guess_task(write_jsonl(tmp_path / "rows.jsonl", [rows] * 2))


def test_an_interval_is_the_wider_the_more_are_compared(make_small):
    task = make_task(make_small(), ("bad", "good"))
    golds = ["good", "bad"] * 30
    good, poor = [(0.1, 0.9), (0.9, 0.1)] * 30, [(0.1, 0.9)] * 40 + [(0.1, 0.9), (0.9, 0.1)] * 10
    one = paired_bootstrap(task, golds, [good], [poor])
    eight = paired_bootstrap(task, golds, [good], [poor], level=1 - 0.05 / 8, resamples=2000)
    assert eight.low < one.low
    assert eight.high > one.high


def test_no_row_is_answered_by_a_probe_that_was_fitted_on_it(make_small):
    recipe = make_small(rows=60)
    data = load_data(recipe)
    task = make_task(recipe, data.labels, data.problem_type)
    tokenizer = AutoTokenizer.from_pretrained(recipe.base)
    rows = task.encode(in_proportion(data.train, 0), tokenizer, 64, lambda line: None)
    count = len(rows.examples)
    folds = [place * 5 // count for place in range(count)]
    own = [torch.eye(count)[place : place + 1] for place in range(count)]  # tells a row from others, and nothing else
    assert probe(task, rows, own, folds).score < 0.7
    told = [torch.tensor([[float(row.values["label"] == "good")]]) for row in rows.examples]
    assert probe(task, rows, told, folds).score == 1.0


def test_many_labels_draw_no_warnings(make_small, recwarn):
    labels = tuple(f"label {place}" for place in range(30))
    rows = Encoded((Example({}, ""),) * 60, [{"labels": place} for place in range(30)] * 2, labels * 2)
    own = [torch.eye(60)[place : place + 1] for place in range(60)]
    probe(make_task(make_small(), labels), rows, own, [0] * 30 + [1] * 30)
    assert not [str(one.message) for one in recwarn if "classes" in str(one.message)]


def test_what_is_advised_last_takes_the_place_of_what_was_advised_before(make_small, tmp_path):
    recipe = make_small(rows=40)
    facts = RowFacts(40, 0, 8, {}, None, None, 0.0, 0, 0)
    first = with_more(Advice(recipe, recipe, facts, 40), [[Setting("training.max_length", 64, "rows are long")]])
    last = with_more(first, [[Setting("training.max_length", 32, "memory is short")]])
    assert [one.why for one in last.settings] == ["memory is short"]
    assert last.recipe.training.max_length == 32


@pytest.mark.parametrize(
    ("score", "low", "high", "words"),
    [
        (0.9, 0.01, 0.05, "more rows than 80 will help"),
        (0.9, -0.01, 0.02, "more rows than 80 hardly help"),
        (0.9, -0.2, 0.2, "whether more rows than 80 help, these are too few to tell"),
        (0.4, -0.01, 0.02, None),  # the commonest label does as well: there is nothing that could grow
    ],
)
def test_more_rows_hardly_help_only_where_that_was_seen(score, low, high, words):
    growing = Difference("f1", (low + high) / 2, low, high, 0.5)
    beside = Beside(growth=((20, 0.3), (40, 0.3), (80, score)), growing=growing)
    told = list(beside_hints(beside, "f1", score, {"majority": 0.4}))
    assert [line.partition(":")[0] for line in told] == ([words] if words else [])


@pytest.mark.parametrize(
    ("low", "better", "task", "flags"),
    [
        (-0.03, 0.7, "text-classification", "--set from=new@2"),
        (-0.03, 0.7, "fill-mask", "--set strategy=intermediate --set from=new@2"),
        (-0.03, 0.6, "text-classification", None),  # as often behind, nearly
        (0.01, 0.99, "text-classification", None),  # surely better: it is advised
    ],
)
def test_a_lead_that_may_be_luck_is_told_beside_the_base(low, better, task, flags, make_small):
    def start(name, better, low):
        return Start(name, "news", task, 0.8, Difference("f1", 0.02, low, 0.07, better))

    base = Start(None, None, None, 0.78)
    tried = [base, start("old@1", better - 0.1, -0.05), start("new@2", better, low)]
    best = tried[-1] if low > 0 else base
    told = list(lead_hints(tried, best, make_small(), "f1"))
    assert told == (
        []
        if flags is None
        else [
            "new@2 is ahead of the base, f1 +0.020 (-0.030 to +0.070), which these rows can't tell from luck: another "
            f"training from there would ({flags})"
        ]
    )


def test_spelling_is_read_as_far_as_the_base_reads(make_small, tmp_path):
    rows = [{**row, "text": f"{'the bank said today ' * 10}{(row['label'] * 4)[:12]}"} for row in tone_rows(60)]
    recipe = make_small()
    write_jsonl(tmp_path / "train.jsonl", rows)
    data = load_data(recipe)
    task = make_task(recipe, data.labels, data.problem_type)
    tokenizer = AutoTokenizer.from_pretrained(recipe.base)
    folds = [place * 5 // len(data.train) for place in range(len(data.train))]
    examples = in_proportion(data.train, 0)
    assert spelling_alone(task, task.encode(examples, tokenizer, 64, lambda line: None), folds).score == 1.0
    assert spelling_alone(task, task.encode(examples, tokenizer, 16, lambda line: None), folds).score < 0.7
