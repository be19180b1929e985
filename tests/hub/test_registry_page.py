"""docs/registry.md: every table, view and column is there, and its questions are answered by a filled registry."""

import re
import sqlite3
from pathlib import Path

import pytest

from checkpoints import make_manifest
from lorary.hub.metrics import lower_is_better

PAGE = (Path(__file__).parents[2] / "docs" / "registry.md").read_text(encoding="utf-8")
QUESTIONS = re.findall(r"```sql\n(.*?)```", PAGE, flags=re.DOTALL)
SECTIONS = dict(re.findall(r"^### `(\w+)`\n(.*?)(?=^##|\Z)", PAGE, flags=re.DOTALL | re.MULTILINE))


@pytest.fixture
def db(add, registry):
    """A filled registry, as any other program opens it."""
    add(0, tags=["news"], metrics={"test": {"f1": 0.7, "loss": 0.9}, "untrained": {"f1": 0.2}})
    add(1, parents=["finance-tone@1"], strategy="fine-tune", metrics={"test": {"f1": 0.9, "loss": 0.4}})
    add(2, parents=["finance-tone@2"], strategy="fine-tune", metrics={"test": {"f1": 0.9, "loss": 0.5}})
    add(3, name="legal-ner", manifest=make_manifest(domain="legal"), metrics={"test": {"f1": 0.8}})
    registry.alias("finance-tone", "prod", 2)
    registry.remove("legal-ner")
    add(4, name="legal-ner", manifest=make_manifest(domain="legal"), metrics={"test": {"f1": 0.8}})
    db = sqlite3.connect(f"file:{registry.path}?mode=ro", uri=True)
    yield db
    db.close()


@pytest.mark.parametrize("question", QUESTIONS)
def test_every_question_has_an_answer(db, question):
    assert db.execute(question).fetchall()


def test_the_page_has_questions():
    assert len(QUESTIONS) >= 10


def test_every_table_and_column_is_there(db):
    names = [str(name) for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type IN ('table', 'view')")]
    own = {name for name in names if not name.startswith("search_") or name in ("search_text", "search_pending")}
    assert set(SECTIONS) == own
    for name in own:
        columns = {row[1] for row in db.execute(f"PRAGMA table_info({name})")}
        rows = re.findall(r"^\| (`.*?) \|", SECTIONS[name], flags=re.MULTILINE)
        assert {word for row in rows for word in re.findall(r"`(\w+)`", row)} == columns, name


def test_the_latest_versions(db):
    rows = db.execute("SELECT reference, aliases, tags, metrics FROM latest ORDER BY 1").fetchall()
    assert rows == [("finance-tone@3", None, None, "f1 0.9, loss 0.5"), ("legal-ner@2", None, None, "f1 0.8")]


def test_the_leaderboard(db):
    def places(metric):
        query = (
            "SELECT place, reference FROM leaderboard WHERE metric = ? AND domain = 'finance' ORDER BY place, reference"
        )
        return db.execute(query, [metric]).fetchall()

    assert places("f1") == [(1, "finance-tone@2"), (1, "finance-tone@3"), (3, "finance-tone@1")]
    assert places("loss") == [(1, "finance-tone@2"), (2, "finance-tone@3"), (3, "finance-tone@1")]


@pytest.mark.parametrize(
    "metric",
    ["f1", "f1_error", "loss", "Loss", "eval_loss", "loss_ratio", "perplexity", "WER", "word_wer", "cer", "mse", "rmse",
     "a_mae", "error", "top_error", "errors", "bleu", "mrr@10", "glossy", "f1_loss", "_loss"],
)  # fmt: skip
def test_the_leaderboard_knows_what_is_better(add, registry, metric):
    add(0, metrics={"test": {metric: 1.0}})
    add(1, metrics={"test": {metric: 2.0}})
    db = sqlite3.connect(registry.path)
    ((best,),) = db.execute("SELECT value FROM leaderboard WHERE place = 1").fetchall()
    db.close()
    assert best == (1.0 if lower_is_better(metric) else 2.0)


def test_the_lineage(db, registry):
    query = "SELECT ancestor, generation, ancestor_removed FROM lineage WHERE reference = 'finance-tone@3' ORDER BY 2"
    assert db.execute(query).fetchall() == [("finance-tone@2", 1, 0), ("finance-tone@1", 2, 0)]
    registry.remove("finance-tone@1", force=True)
    assert db.execute(query).fetchall() == [("finance-tone@2", 1, 0), ("finance-tone@1", 2, 1)]


def test_what_came_of_a_version_is_told_alike_from_either_end(db):
    by_view, from_one = (
        db.execute(question).fetchall() for question in QUESTIONS if "generation, reference" in question
    )
    assert by_view == from_one == [("finance-tone@2", 1, "fine-tune"), ("finance-tone@3", 2, "fine-tune")]


def test_a_circle_in_the_lineage_ends(db, registry):
    other = sqlite3.connect(registry.path)
    first, third = (
        other.execute("SELECT id FROM versions WHERE number = ?", [number]).fetchone()[0] for number in (1, 3)
    )
    other.execute("INSERT INTO parents VALUES (?, 'finance-tone@3', ?)", [first, third])
    other.commit()
    other.close()
    assert len(db.execute("SELECT * FROM lineage").fetchall()) <= 300
    assert {v.reference for v in registry.find(ancestor="finance-tone@1")} == {"finance-tone@2", "finance-tone@3"}
