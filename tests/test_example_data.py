"""The example data sets keep their promises: size, balance, tags, no repeats."""

import json
import re
from collections import Counter
from itertools import combinations, pairwise
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"

LABELS = {
    "finance-tone": {"negative", "neutral", "positive"},
    "email-spam": {"ham", "spam"},
}
TAGS = {"O", "B-Disease", "I-Disease"}
# (fewest train rows, fewest test rows, fewest rows in all)
MINIMUM = {
    "finance-tone": (230, 72, 300),
    "email-spam": (230, 72, 300),
    "biomedical-diseases": (170, 50, 220),
}
SETS = sorted(MINIMUM)
SPLITS = ("train", "test")


def load(name, split):
    raw = (EXAMPLES / name / f"{split}.jsonl").read_bytes()
    assert b"\r" not in raw
    assert raw.endswith(b"}\n")
    return [json.loads(line) for line in raw.decode("utf-8")[:-1].split("\n")]


def text_of(row):
    return row["text"] if "text" in row else " ".join(row["tokens"])


def all_texts(name):
    return [text_of(row) for split in SPLITS for row in load(name, split)]


def words(text):
    return re.findall(r"[^\W_]+(?:['\u2019-][^\W_]+)*", text.lower())


def skeleton(text):
    """The text with its numbers and its capitalised words blanked out."""
    return " ".join("#" if any(c.isdigit() for c in w) or w[0].isupper() else w for w in re.findall(r"\w+", text))


def jaccard(a, b):
    return len(a & b) / len(a | b)


def bio_errors(tags):
    """Positions at which a tag may not stand: an I- without its mention before it."""
    previous = ["O", *tags]
    return [i for i, tag in enumerate(tags) if tag not in TAGS or (tag == "I-Disease" and previous[i] == "O")]


def mentions(row):
    found = []
    for token, tag in zip(row["tokens"], row["tags"], strict=True):
        if tag == "B-Disease":
            found.append([token])
        elif tag == "I-Disease":
            found[-1].append(token)
    return found


@pytest.mark.parametrize("name", SETS)
def test_row_counts(name):
    train, test = len(load(name, "train")), len(load(name, "test"))
    least_train, least_test, least = MINIMUM[name]
    assert train >= least_train
    assert test >= least_test
    assert train + test >= least


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", sorted(LABELS))
def test_classification_columns_and_balance(name, split):
    rows = load(name, split)
    for row in rows:
        assert list(row) == ["text", "label"]
        assert isinstance(row["text"], str)
        assert row["text"] == row["text"].strip()
        assert len(words(row["text"])) >= 4, row
    counts = Counter(row["label"] for row in rows)
    assert set(counts) == LABELS[name]
    assert min(counts.values()) >= 0.9 * max(counts.values())


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", sorted(LABELS))
def test_rows_are_shuffled(name, split):
    labels = [row["label"] for row in load(name, split)]
    changes = sum(a != b for a, b in pairwise(labels))
    assert changes > len(labels) / 4


@pytest.mark.parametrize("split", SPLITS)
def test_tagged_sentences(split):
    for row in load("biomedical-diseases", split):
        assert list(row) == ["tokens", "tags"]
        assert len(row["tokens"]) == len(row["tags"]) >= 4
        assert bio_errors(row["tags"]) == [], row
        for token, tag in zip(row["tokens"], row["tags"], strict=True):
            assert token
            assert not re.search(r"\s|[\[\]]", token), row
            if re.search(r"\w", token):
                assert re.fullmatch(r"\w(?:.*\w)?'?", token), (token, row)
            else:
                assert len(token) == 1, (token, row)
                assert tag == "O", row
        assert row["tokens"][-1] == "."


@pytest.mark.parametrize("split", SPLITS)
def test_mentions_are_varied(split):
    per_sentence = [mentions(row) for row in load("biomedical-diseases", split)]
    number = Counter(len(found) for found in per_sentence)
    assert set(number) == {0, 1, 2, 3}
    assert min(number[0], number[2]) >= 0.1 * len(per_sentence)
    lengths = Counter(len(mention) for found in per_sentence for mention in found)
    assert {1, 2, 3} <= set(lengths) <= {1, 2, 3, 4, 5}


def test_one_disease_is_tagged_alike_everywhere():
    """A name that is marked somewhere is never left unmarked elsewhere."""
    rows = [row for split in SPLITS for row in load("biomedical-diseases", split)]
    known = {tuple(t.lower() for t in mention) for row in rows for mention in mentions(row)}
    for row in rows:
        lower = [token.lower() for token in row["tokens"]]
        for name in known:
            for i in range(len(lower) - len(name) + 1):
                if tuple(lower[i : i + len(name)]) == name:
                    assert "O" not in row["tags"][i : i + len(name)], (name, row)


def test_some_held_out_diseases_are_new():
    seen, held_out = (
        {" ".join(m).lower() for row in load("biomedical-diseases", split) for m in mentions(row)} for split in SPLITS
    )
    assert held_out & seen
    assert len(held_out - seen) >= 10


@pytest.mark.parametrize("name", SETS)
def test_no_row_is_in_both_splits(name):
    train, test = ({" ".join(words(text_of(r))) for r in load(name, s)} for s in SPLITS)
    assert not train & test


@pytest.mark.parametrize("name", SETS)
def test_no_near_duplicates(name):
    texts = all_texts(name)
    bags = [frozenset(words(text)) for text in texts]
    close = [(texts[i], texts[j]) for i, j in combinations(range(len(texts)), 2) if jaccard(bags[i], bags[j]) >= 0.5]
    assert close == []
    assert [s for s, n in Counter(map(skeleton, texts)).items() if n > 1] == []


@pytest.mark.parametrize("name", SETS)
def test_no_template_is_repeated(name):
    texts = all_texts(name)
    for cut in (slice(0, 4), slice(-4, None)):
        often = Counter(tuple(words(text)[cut]) for text in texts)
        assert [phrase for phrase, n in often.items() if n > 2] == []


@pytest.mark.parametrize("name", SETS)
def test_readme_tells_the_row_counts_and_the_origin(name):
    top = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    (table_row,) = [line for line in top.splitlines() if line.startswith(f"| `{name}`")]
    train_cell, test_cell = table_row.strip("|").split("|")[-2:]
    folder = (EXAMPLES / name / "README.md").read_text(encoding="utf-8")
    for split, cell in (("train", train_cell), ("test", test_cell)):
        count = str(len(load(name, split)))
        assert cell.split()[0] == count
        assert re.search(rf"`{split}\.jsonl`: {count} ", folder)
    assert "no published corpus was used" in folder


def test_contract_questions_are_answered_where_they_say():
    contexts = []
    for split, count in (("train", 144), ("test", 48)):
        rows = load("contract-questions", split)
        assert len(rows) == len({row["id"] for row in rows}) == count
        assert sum(not row["answers"]["text"] for row in rows) == count // 4
        for row in rows:
            for text, start in zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True):
                assert row["context"][start : start + len(text)] == text
                before = row["context"][max(0, start - 1) : start]
                assert not re.match(r"[\w,.]", before), row  # never a part of another number or date
        contexts.append({row["context"] for row in rows})
    assert [len(found) for found in contexts] == [36, 12]
    assert not contexts[0] & contexts[1]


def test_help_desk_questions_are_new_and_their_pages_known():
    train, test = (load("help-desk", split) for split in SPLITS)
    assert Counter(row["positive"] for row in train) == dict.fromkeys((row["positive"] for row in test), 3)
    assert (len(train), len(test)) == (90, 30)
    texts = [row["text"] for row in (*train, *test)]
    assert len(set(texts)) == len(texts)


def test_the_checks_can_fail():
    assert bio_errors(["O", "I-Disease"]) == [1]
    assert bio_errors(["I-Disease"]) == [0]
    assert bio_errors(["B-Disease", "I-Disease", "O"]) == []
    assert bio_errors(["B-Gene"]) == [0]
    assert skeleton("Profit at Aaa rose 5%") == skeleton("Sales at Bbb rose 17%")
    a, b = (frozenset(words(f"Profit at {x} rose sharply in May")) for x in ("Aaa", "Bbb"))
    assert jaccard(a, b) >= 0.5
