"""Token ids kept on disk: a later run finds them, and nothing but what was made is ever found."""

import os
import time
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from lorary.hub.errors import DataError, UsageError
from lorary.training import train
from lorary.training.data import Example
from lorary.training.experiments.folds import final_recipe
from lorary.training.model import load_for
from lorary.training.tasks import make_task
from lorary.training.tasks.rows import token_cache
from lorary.training.tasks.rows.token_cache import TokenCache
from runs import SHORT, prepared
from samples import ROWS, bpe_tokenizer, pair_rows, question_rows, scored_rows, wordpiece_tokenizer

PAIRS = [{"prompt": "the bank", "chosen": f"said {word}", "rejected": "said no"} for word in ("sales", "no", "loss")]
CASES = {
    "text-classification": (ROWS["text-classification"](9), {}),
    "token-classification": (ROWS["token-classification"](9), {}),
    "question-answering": (question_rows(9, unanswerable=2, words=9), {"training.stride": 2}),
    "feature-extraction": (pair_rows(9, negative=True), {"data.columns.negative": "negative"}),
    "scored": (scored_rows(9), {"data.columns": {"text": "text", "text_pair": "text_pair", "score": "score"}}),
    "text-generation": (ROWS["text-generation"](9), {}),
    "answers": (ROWS["text-generation"](9), {"generation.rows": 2, "generation.max_new_tokens": 2}),
    "preferences": (PAIRS, {"data.columns": {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"}}),
    "summarization": (ROWS["summarization"](9), {"training.max_target_length": 4}),
    "translation": (ROWS["translation"](9), {}),
}
TASK_OF = {"scored": "feature-extraction", "answers": "text-generation", "preferences": "text-generation"}
LABELS = {"text-classification": ("bad", "good"), "token-classification": ("B-ORG", "I-ORG", "O")}


class Counted:
    """A tokenizer that counts its calls."""

    def __init__(self, inner):
        self._inner, self.calls = inner, 0

    def __getattr__(self, name):
        return getattr(self._inner, name)

    def __call__(self, *args, **kwargs):
        self.calls += 1
        return self._inner(*args, **kwargs)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(token_cache, "FEWEST", 1)
    return TokenCache(tmp_path / "tokens")


def numbered(rows):
    return [Example(row, f"t.jsonl, row {number}") for number, row in enumerate(rows, start=1)]


@pytest.mark.parametrize("case", CASES)
def test_a_second_run_tokenizes_nothing_and_finds_the_same(case, cache, make_recipe):
    rows, settings = CASES[case]
    task = TASK_OF.get(case, case)

    def encode(cache, **more):
        recipe = make_recipe(task, **{**settings, "training.max_length": 24, **more})
        made, notes = make_task(recipe, LABELS.get(case)), []
        base = load_for(made, recipe)
        length = made.meet(base.model, base.tokenizer, 14, notes.append)
        counted = Counted(base.tokenizer)
        return made.encode(numbered(rows), counted, length, notes.append, cache), notes, counted.calls

    plain = encode(None)
    first = encode(cache)
    found, notes, calls = encode(cache, **{"training.learning_rate": 0.02, "training.seed": 7})
    assert plain[2] > 0
    assert (calls, found, notes) == (0, plain[0], plain[1]) == (0, first[0], first[1])


def encode(rows, tokenizer, cache, make_recipe, length=12, task="text-classification", labels=("bad", "good"), **more):
    """What rows come to, and how often the tokenizer was called."""
    counted = Counted(tokenizer)
    return make_task(make_recipe(task, **more), labels).encode(
        numbered(rows), counted, length, print, cache
    ), counted.calls


def test_rows_are_found_in_any_order_and_beside_new_ones(cache, make_recipe):
    rows, tokenizer = ROWS["text-classification"](8), wordpiece_tokenizer()
    encode(rows[:6], tokenizer, cache, make_recipe)
    mixed = [rows[7], rows[3], rows[0], rows[6], rows[3]]
    found, calls = encode(mixed, tokenizer, cache, make_recipe)
    assert (found, calls) == (encode(mixed, tokenizer, None, make_recipe)[0], 2)
    # The two new rows are a table of their own, which serves with the first.
    assert encode(rows, tokenizer, cache, make_recipe)[1] == 0


@pytest.mark.parametrize("changed", ["length", "labels", "words", "special", "side", "split"])
def test_what_bears_on_token_ids_is_part_of_the_key(changed, cache, make_recipe):
    rows, other = ROWS["text-classification"](6), wordpiece_tokenizer(segments=changed != "words")
    rows[0]["text"] += " [SEP]"
    encode(rows, wordpiece_tokenizer(), cache, make_recipe)
    settings = {"length": {"length": 5}, "labels": {"labels": ("good", "bad")}}.get(changed, {})
    if changed == "special":
        other.add_special_tokens({"additional_special_tokens": ["profit"]})
    if changed == "side":
        other.truncation_side = "left"
    if changed == "split":
        other.split_special_tokens = True  # its backend is the same
    found, calls = encode(rows, other, cache, make_recipe, **settings)
    assert calls
    assert found == encode(rows, other, None, make_recipe, **settings)[0]


@pytest.mark.parametrize(
    "changed", [{"add_bos_token": True}, {"add_prefix_space": True}, {"legacy": True}, {"src_lang": "de"}, {"own": 1}]
)
def test_what_a_tokenizer_is_made_with_is_part_of_it(changed, tmp_path):
    plain = bpe_tokenizer()
    for folder in ("here", "there"):
        plain.save_pretrained(tmp_path / folder)
    here, there, other = (
        AutoTokenizer.from_pretrained(tmp_path / folder, **more)
        for folder, more in (("here", {}), ("there", {}), ("here", changed))
    )
    assert TokenCache.key({}, here) == TokenCache.key({}, there) != TokenCache.key({}, other)


@pytest.mark.parametrize("changed", ["training/data/shapes/answers.py", "hub/manifest.py", "adapters/text/generate.py"])
def test_the_code_that_makes_token_ids_is_part_of_it(changed, monkeypatch):
    before, read = token_cache._code.__wrapped__(), Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read(path) + b" " * str(path).endswith(changed))
    assert token_cache._code.__wrapped__() != before


@pytest.mark.parametrize("beside", ["epochs", "last fold", "domain arm", "direct", "generation", "embedding"])
def test_what_does_not_bear_on_token_ids_is_no_part_of_it(beside, cache, make_recipe):
    task = {"generation": "summarization", "embedding": "feature-extraction"}.get(beside, "text-classification")
    recipe = make_recipe(task)

    def key(recipe):
        made = make_task(recipe, ("bad", "good"))
        base = load_for(made, recipe)
        return cache.key(made.coding(base.tokenizer, made.meet(base.model, base.tokenizer, 14, print)), base.tokenizer)

    fewer = recipe.training.model_copy(update={"epochs": 3.0, "min_steps": 160})
    other = {
        "epochs": lambda: recipe.model_copy(update={"training": fewer}),
        "last fold": lambda: final_recipe(recipe, [2.0, 3.0], ("bad", "good"), [(0.2, 0.4), (0.3, 0.6)]),
        "domain arm": lambda: recipe.model_copy(update={"strategy": "intermediate", "from_": "a", "start": "continue"}),
        "direct": lambda: recipe.model_copy(update={"strategy": "direct"}),
        "generation": lambda: make_recipe(task, **{"generation.num_beams": 3, "generation.rows": 4}),
        "embedding": lambda: make_recipe(task, **{"embedding.pooling": "cls", "embedding.temperature": 0.1}),
    }[beside]()
    assert other != recipe
    assert key(other) == key(recipe)


@pytest.mark.parametrize("setting", ["prompt.template", "prompt.learn", "prompt.format"])
def test_the_prompt_is_part_of_the_key(setting, cache, make_recipe):
    values = {"prompt.template": "Do: {prompt}\n", "prompt.learn": "all", "prompt.format": "chat"}
    common = {"task": "text-generation", "labels": None, "length": 64}
    rows, tokenizer = ROWS["text-generation"](3), bpe_tokenizer()
    encode(rows, tokenizer, cache, make_recipe, **common)
    more = {**common, setting: values[setting]}
    found, calls = encode(rows, tokenizer, cache, make_recipe, **more)
    assert calls
    assert found == encode(rows, tokenizer, None, make_recipe, **more)[0]


@pytest.fixture
def reads(monkeypatch):
    """The tables that are read, one by one."""
    read, paths = token_cache._table, []
    monkeypatch.setattr(token_cache, "_table", lambda path: paths.append(path) or read(path))
    return paths


def test_rows_that_differ_in_the_order_of_their_keys_are_two(cache, make_recipe):
    """Templates write a call's arguments, and tools, in the order that a row has them in."""
    template = "{% for m in messages %}{{ m.content }}{{ m.tool_calls | tojson if m.tool_calls }}{% endfor %}"
    calls = [{"arguments": {"from": 1, "to": 2}}, {"arguments": {"to": 2, "from": 1}}]
    rows = [
        {"messages": [{"role": "user", "content": "go"}, {"role": "assistant", "content": "", "tool_calls": [call]}]}
        for call in calls
    ]
    columns = {"data.columns": {"messages": "messages"}, "prompt.chat_template": template}
    recipe = make_recipe("text-generation", **columns)

    def encode(cache):
        made = make_task(recipe, None).encode(numbered(rows), bpe_tokenizer(), 256, lambda line: None, cache)
        return [feature["input_ids"] for feature in made.features]

    first, second = encode(None)
    assert first != second
    assert encode(cache) == encode(cache) == [first, second]


def test_no_table_is_read_when_all_rows_are_found(cache, make_recipe, reads):
    tokenizer, rows = wordpiece_tokenizer(), ROWS["text-classification"](9)
    for part in (rows[:3], rows[3:6], rows[6:]):
        encode(part, tokenizer, cache, make_recipe)
    tables = sorted(cache.folder.rglob("*.arrow"))
    assert len(tables) == 3
    for number in range(3):
        reads.clear()
        part = rows[3 * number : 3 * number + 3]
        assert encode(part, tokenizer, cache, make_recipe)[1] == 0
        assert reads == tables[: len(reads)]
        assert reads[-1].stat().st_mtime == max(path.stat().st_mtime for path in tables)


def test_a_run_reads_a_table_once_for_all_of_its_parts(tmp_path, monkeypatch, make_recipe, reads):
    monkeypatch.setattr(token_cache, "FEWEST", 1)
    monkeypatch.setenv("LORARY_TOKEN_CACHE", str(tmp_path / "tokens"))
    settings = {**SHORT, "data.test": None, "data.validation_size": 0.5, "rows": 30}
    prepared(make_recipe(**settings, **{"training.early_stopping": 1}))
    tables = sorted(Path(tmp_path, "tokens").rglob("*.arrow"))
    assert len(tables) == 3
    reads.clear()
    again = make_recipe(**settings, **{"training.early_stopping": 1, "training.seed": 8})  # other splits
    found = prepared(again)
    assert sorted(reads) == tables
    monkeypatch.setenv("LORARY_TOKEN_CACHE", "off")
    alone = prepared(again)
    assert (found.train, found.validation, found.test) == (alone.train, alone.validation, alone.test)


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "longer"])
def test_a_damaged_table_is_made_anew(damage, cache, make_recipe):
    rows, tokenizer = ROWS["text-classification"](6), wordpiece_tokenizer()
    sound, _ = encode(rows, tokenizer, cache, make_recipe)
    (path,) = cache.folder.rglob("*.arrow")
    content = path.read_bytes()
    flipped = content[:400] + bytes([content[400] ^ 1]) + content[401:]
    wrong = {"cut": content[: len(content) // 2], "flipped": flipped, "empty": b"", "longer": content + b"x"}
    path.write_bytes(wrong[damage])
    found, calls = encode(rows, tokenizer, cache, make_recipe)
    assert calls
    assert found == sound
    assert path.read_bytes() == content


def test_what_was_unused_the_longest_goes_first(cache, make_recipe):
    rows, tokenizer = ROWS["text-classification"](6), wordpiece_tokenizer()

    def tables():
        return set(cache.folder.rglob("*.arrow"))

    for number, length in enumerate((12, 11, 10)):
        before = tables()
        encode(rows, tokenizer, cache, make_recipe, length)
        (newest,) = tables() - before
        os.utime(newest, (number, number))
    encode(rows, tokenizer, cache, make_recipe, 12)  # used again, so that the second one is now the one to go
    cache.limit = sum(path.stat().st_size for path in tables())
    encode(rows, tokenizer, cache, make_recipe, 9)
    assert [encode(rows, tokenizer, cache, make_recipe, length)[1] for length in (12, 10, 9)] == [0, 0, 0]
    assert len(tables()) == 3


def test_what_a_killed_process_left_goes_after_a_day(cache, make_recipe):
    rows, tokenizer = ROWS["text-classification"](6), wordpiece_tokenizer()
    draft = cache.folder / "k" / ".left"
    draft.parent.mkdir(parents=True)
    draft.touch()
    encode(rows, tokenizer, cache, make_recipe)
    assert draft.exists()  # somebody may be writing it
    before = time.time() - 2 * 86400
    os.utime(draft, (before, before))
    encode(rows, tokenizer, cache, make_recipe, 11)
    assert not draft.exists()


def test_a_folder_that_cannot_be_written_is_told_and_does_no_harm(tmp_path, monkeypatch, make_recipe):
    monkeypatch.setattr(token_cache, "FEWEST", 1)
    rows, tokenizer, notes = ROWS["text-classification"](6), wordpiece_tokenizer(), []
    (tmp_path / "file").touch()
    found, _ = encode(rows, tokenizer, TokenCache(tmp_path / "file" / "tokens", note=notes.append), make_recipe)
    assert found == encode(rows, tokenizer, None, make_recipe)[0]
    assert "can't be kept for the next run" in notes[0]


def test_rows_that_cannot_be_tokenized_are_named_whatever_is_kept(cache, make_recipe):
    common = {"task": "question-answering", "labels": None, "training.stride": 2}
    rows, tokenizer = question_rows(4), wordpiece_tokenizer()
    encode(rows, tokenizer, cache, make_recipe, **common)
    long = [{**rows[0], "question": "bank " * count} for count in (20, 30)]
    with pytest.raises(DataError, match=r"(?s)2 problems.*row 5: .*raise training\.max_length.*row 6: "):
        encode([*rows, *long], tokenizer, cache, make_recipe, **common)


def test_only_its_owner_reads_it_and_a_few_rows_are_not_worth_it(tmp_path, monkeypatch, make_recipe):
    home, rows = tmp_path / "home", ROWS["text-classification"](6)
    monkeypatch.setenv("LORARY_TOKEN_CACHE", str(home))
    encode(rows, wordpiece_tokenizer(), TokenCache.default(print), make_recipe)
    assert not home.exists()
    monkeypatch.setattr(token_cache, "FEWEST", 6)
    encode(rows, wordpiece_tokenizer(), TokenCache.default(print), make_recipe)
    (path,) = home.rglob("*.arrow")
    assert [folder.stat().st_mode & 0o077 for folder in (path.parent, home)] == [0, 0]


def test_the_environment_says_where_and_how_much(monkeypatch):
    assert TokenCache.default(print).folder == Path.home() / ".cache" / "lorary" / "tokens"
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    monkeypatch.setenv("LORARY_TOKEN_CACHE_GB", "0.5")
    found = TokenCache.default(print)
    assert (found.folder, found.limit) == (Path("/x/lorary/tokens"), 5 * 10**8)
    for name, value in (("LORARY_TOKEN_CACHE", "off"), ("LORARY_TOKEN_CACHE_GB", "0")):
        with monkeypatch.context() as one:
            one.setenv(name, value)
            assert TokenCache.default(print) is None
    monkeypatch.setenv("LORARY_TOKEN_CACHE_GB", "much")
    with pytest.raises(UsageError, match="LORARY_TOKEN_CACHE_GB='much': expected a number of gigabytes"):
        TokenCache.default(print)


def test_a_run_with_kept_token_ids_gives_the_same_adapter_and_another_split_finds_its_rows(
    tmp_path, monkeypatch, make_recipe, registry
):
    monkeypatch.setattr(token_cache, "FEWEST", 1)
    monkeypatch.setenv("LORARY_TOKEN_CACHE", str(tmp_path / "tokens"))
    recipe = make_recipe(**SHORT, **{"data.test": None, "rows": 30})
    prepared(recipe)
    tables = sorted(Path(tmp_path, "tokens").rglob("*.arrow"))
    assert tables
    other = prepared(make_recipe(**{**SHORT, "data.test": None, "rows": 30, "training.seed": 3}))
    kept = train(recipe, registry)
    assert sorted(Path(tmp_path, "tokens").rglob("*.arrow")) == tables  # no row was missing
    monkeypatch.setenv("LORARY_TOKEN_CACHE", "off")
    alone = train(make_recipe(**SHORT, **{"data.test": None, "rows": 30, "output": str(tmp_path / "alone")}), registry)
    assert kept.digest == alone.digest
    assert other.train != prepared(recipe).train
