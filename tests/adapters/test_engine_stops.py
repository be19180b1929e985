"""What ends a request: stop strings of its own, its length, its caller; and what it has taken by then."""

from collections.abc import Sequence
from unittest.mock import MagicMock

import pytest
import torch

from characters import READABLE, SIGNS, make_character_base
from lorary.adapters import Backbone
from lorary.adapters.engine.decoding import plan_decoding
from lorary.hub.errors import RequestCancelledError, UsageError
from tiny import make_adapter, make_base

pytestmark = pytest.mark.usefixtures("frozen_imports")
SMALL = {"cache_tokens": 512, "batch_tokens": 16, "page_tokens": 4, "max_running": 16}
PROMPTS = ("profit rose", "the bank", "a dog")


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """A Llama of characters, with two adapters."""
    folder = tmp_path_factory.mktemp("characters")
    make_character_base(folder / "base")
    backbone = Backbone.from_pretrained(str(folder / "base"))
    for seed, name in enumerate(("one", "two"), start=1):
        backbone.load(make_adapter(folder / "base", folder / name, task="text-generation", seed=seed))
    return backbone


@pytest.fixture
def engine(backbone):
    with backbone.engine(**SMALL) as engine:
        yield engine


def test_each_request_has_its_own(backbone, engine):
    """As ``generate`` finds them, in one loop with requests that have others or none."""
    cases = []
    for prompt in PROMPTS:
        for name in ("one", "two", None):
            whole = backbone.generate(prompt, name, max_new_tokens=16, **READABLE)
            middle = [whole[5:7], whole[9:10]]
            cases += [
                (prompt, name, {}),
                (prompt, name, {"stop_strings": middle}),
                (prompt, name, {"stop_strings": "Ω"}),
            ]
    cases = [(prompt, name, {"max_new_tokens": 16, **READABLE, **stops}) for prompt, name, stops in cases]
    alone = [backbone.generate(prompt, name, **settings) for prompt, name, settings in cases]
    requests = [engine.submit(prompt, name, **settings) for prompt, name, settings in cases]
    done = [request.result(30) for request in requests]
    assert [completion.text for completion in done] == alone
    shorter = [completion for completion in done if completion.finish_reason == "stop"]
    assert len(shorter) == 9
    assert all(len(completion.tokens) < 16 for completion in shorter)
    for request, completion in zip(requests, done, strict=True):
        usage = request.usage
        assert (usage.prompt_tokens, usage.new_tokens) == (completion.prompt_tokens, len(completion.tokens))
        assert usage.finish_reason == completion.finish_reason
        assert "".join(request) == completion.text
    assert engine.stats().finished == len(cases)
    assert engine.stats().tokens == sum(len(completion.tokens) for completion in done)


def test_begun_by_the_prompt(backbone, engine):
    """A stop string that the prompt's end begins."""
    whole = backbone.generate("the bank", "one", max_new_tokens=24, **READABLE)
    settings = {"max_new_tokens": 24, "stop_strings": ["bank" + whole[:2]], **READABLE}
    made = engine.submit("the bank", "one", **settings).result(30)
    assert made.text == backbone.generate("the bank", "one", **settings) == whole[:2]
    assert made.finish_reason == "stop"


def test_texts_that_the_base_itself_stops_at(backbone, engine, monkeypatch):
    settings = {"max_new_tokens": 24, **READABLE}
    whole = backbone.generate("profit", "one", **settings)
    monkeypatch.setattr(backbone.model.generation_config, "stop_strings", [whole[6:8]])
    alone = backbone.generate("profit", "one", **settings)
    assert alone == whole[: whole.index(whole[6:8]) + 2]
    assert backbone.generate(["profit"] * 2, ["one", "two"], **settings)[0] == alone
    assert engine.submit("profit", "one", **settings).result(30).text == alone
    assert backbone.generate("profit", "one", **settings, stop_strings=None) == whole


def test_no_more_is_read_than_stop_strings_take(backbone):
    """Wherever the prompt ends, they are found as in the whole; without any, nothing is read."""
    tokenizer = backbone._inference.tokenizer
    found = plan_decoding(backbone.model, [5], None, {"stop_strings": ["bank", "rose b"]}, {}, tokenizer)
    for text in ("the bank", "rose b", "bank", "k", "profit rose b", "rose banks", "bank of"):
        ids = tuple(tokenizer(text).input_ids)
        whole = bool(found.stop_strings(torch.tensor([ids]), None))
        assert whole == text.endswith(("bank", "rose b"))
        for split in range(len(ids)):
            assert found.ends(ids[:split], ids[split:]) == whole
    unread = MagicMock(spec=Sequence)
    assert not plan_decoding(backbone.model, [5], None, {}, {}, tokenizer).ends(unread, unread)
    assert not unread.mock_calls


def test_what_it_held_is_free_again(backbone, engine):
    whole = backbone.generate("profit", "one", max_new_tokens=24, **READABLE)
    for _ in range(8):
        made = engine.submit("profit", "one", max_new_tokens=100, stop_strings=[whole[3:5]], **READABLE).result(30)
        assert made.text == whole[:5]
    engine.submit("profit", None, max_new_tokens=1).result(30)  # a step in which the loop lets go of the last one
    stats = engine.stats()
    assert (stats.waiting, stats.running, stats.running_adapters) == (0, 0, ())
    assert stats.cache_free == 1.0
    backbone.load(backbone._residency.get("one").checkpoint, "three")
    backbone.unload("three")


def test_a_request_that_gave_way_goes_on_after_one_that_ends_early(backbone):
    """The cache holds one of them whole and not both: the one that finds no room first starts anew later."""
    settings = {"max_new_tokens": 100, **READABLE}
    whole = {name: backbone.generate("profit", name, **settings) for name in ("one", "two")}
    last = max(set(whole["two"]), key=whole["two"].index)  # the sign that comes first as late as any
    early = whole["two"][: whole["two"].index(last) + 1]
    with backbone.engine(**SMALL | {"cache_tokens": 2 * len(early)}) as engine:
        waits = engine.submit("profit", "one", **settings)
        ends = engine.submit("profit", "two", stop_strings=[last], **settings)
        assert ends.result(30).text == early
        assert waits.result(30).text == whole["one"]


def test_sampled(backbone, engine):
    settings = {"max_new_tokens": 24, "do_sample": True, **READABLE}
    torch.manual_seed(5)
    whole = backbone.generate("profit", "one", **settings)
    settings["stop_strings"] = [whole[6:8]]
    torch.manual_seed(5)
    alone = backbone.generate("profit", "one", **settings)
    made = engine.submit("profit", "one", seed=5, **settings).result(30)
    assert made.text == alone
    assert made.finish_reason == "stop"


def test_penalized(backbone, engine):
    settings = {"max_new_tokens": 24, "frequency_penalty": 1.5, "logit_bias": {SIGNS.index("e"): 2.0}, **READABLE}
    whole = engine.submit("profit", "one", **settings).result(30).text
    assert len(whole) == 24
    assert whole != backbone.generate("profit", "one", max_new_tokens=24, **READABLE)
    stop = whole[6:9]
    made = engine.submit("profit", "one", stop_strings=[stop], **settings).result(30)
    assert made.text == whole[: whole.index(stop) + 3]
    assert made.finish_reason == "stop"


def test_usage_of_requests_that_end_otherwise(backbone, engine):
    long = engine.submit("profit rose", "two", max_new_tokens=100)
    waits = long.usage
    assert (waits.prompt_tokens, waits.finish_reason) == (11, None)
    next(iter(long))
    long.cancel()
    with pytest.raises(RequestCancelledError):
        long.result(30)
    assert long.usage.finish_reason == "cancelled"
    assert 0 < long.usage.new_tokens < 100
    whole = engine.submit("profit rose", "two", max_new_tokens=7)
    whole.result(30)
    assert (whole.usage.new_tokens, whole.usage.finish_reason) == (7, "length")
    first = whole.result().tokens[0]
    ended = engine.submit("profit rose", "two", max_new_tokens=7, eos_token_id=first)
    ended.result(30)
    assert (ended.usage.new_tokens, ended.usage.finish_reason) == (1, "stop")


def test_beams(backbone, engine):
    with pytest.raises(UsageError, match=r"beam_search, num_beams=3.*use Backbone\.generate, pass num_beams=1"):
        engine.submit("profit", "one", num_beams=3)
    made = engine.submit("profit", "one", num_beams=1, max_new_tokens=5).result(30)
    assert made.text == backbone.generate("profit", "one", num_beams=1, max_new_tokens=5)
    assert engine.stats().running == 0


@pytest.mark.parametrize("stops", [7, [7], [""], ["a", None]], ids=str)
def test_stop_strings_that_are_none(engine, stops):
    with pytest.raises(UsageError, match=r"stop_strings=.*expected a text, or a list of texts"):
        engine.submit("profit", "one", stop_strings=stops)


def test_a_tokenizer_that_transformers_cant_search(tmp_path):
    """Words without a mark of where they begin."""
    backbone = Backbone.from_pretrained(str(make_base("llama", tmp_path / "base")))
    with backbone.engine(**SMALL) as engine, pytest.raises(UsageError, match="can't find texts with"):
        engine.submit("profit", stop_strings="bank")


def test_a_request_that_is_finished_early_has_what_is_there(backbone, engine):
    """Its part of the cache is free for others, and who reads it gets what there is."""
    request = engine.submit("profit", None, max_new_tokens=100)
    pieces = iter(request)
    first = next(pieces)
    request.finish()
    completion = request.result(5)
    assert completion.finish_reason == request.usage.finish_reason == "stop"
    assert 1 <= len(completion.tokens) < 100
    assert completion.text == first + "".join(pieces)
    request.finish()
    assert request.result(5) == completion
    assert engine.submit("profit", None, max_new_tokens=3).result(20).finish_reason == "length"
    assert engine.stats().cache_free == 1.0
    assert engine.stats().running == 0


def test_a_request_without_a_token_is_not_finished(backbone):
    with backbone.engine(**SMALL | {"max_running": 1}) as engine:
        busy = engine.submit("profit", None, max_new_tokens=60)
        waiting = engine.submit("profit", None, max_new_tokens=2)
        waiting.finish()
        busy.finish()
        assert len(waiting.result(20).tokens) == 2
