"""Cached prefixes: reused within one version of an adapter, never across adapters or versions."""

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from lorary.adapters import Backbone
from lorary.hub.errors import EngineUnsupportedError, RequestFailedError, UsageError
from tiny import VOCABULARY, make_tokenizer

pytestmark = pytest.mark.usefixtures("frozen_imports")
SMALL = {"cache_tokens": 512, "batch_tokens": 16, "page_tokens": 4, "max_running": 16, "prefix_cache": True}
START = "profit sales rose fell bank the a report shares loss"  # ten tokens: two whole pages
ENDS = ("gain", "growth market", "price offer cash win free", "story")


def ask(engine, prompt, name, **settings):
    """The text, and how many of the prompt's tokens were found in the cache."""
    before = engine.stats().reused_tokens
    text = engine.submit(prompt, name, **{"max_new_tokens": 6, **settings}).result(20).text
    return text, engine.stats().reused_tokens - before


def test_reuse_within_an_adapter(backbone):
    """Bare or adapted: what was computed once isn't computed again, and the answers are those of `generate`."""
    prompts = [f"{START} {end}" for end in ENDS]
    alone = {name: [backbone.generate(p, name, max_new_tokens=6) for p in prompts] for name in ("one", "two", None)}
    with backbone.engine(**SMALL) as engine:
        for name, texts in alone.items():
            made = [ask(engine, prompt, name) for prompt in prompts]
            assert [text for text, _ in made] == texts
            # The first of each adapter finds nothing of the others'; the next ones two pages of its own.
            assert [reused for _, reused in made] == [0, 8, 8, 8]


def test_at_once(backbone):
    """Blocks that are completed in one step by several requests, of the same and of other adapters."""
    rows = [(f"{START} {end}", name) for end in ENDS for name in ("one", None, "two", "one")]
    alone = [backbone.generate(prompt, name, max_new_tokens=6) for prompt, name in rows]
    with backbone.engine(**SMALL) as engine:
        for _ in range(3):
            requests = [engine.submit(prompt, name, max_new_tokens=6) for prompt, name in rows]
            assert [request.result(20).text for request in requests] == alone
        assert engine.stats().reused_tokens > 8 * len(rows)


def test_what_was_generated_is_a_prefix_too(backbone):
    """The next turn of a chat begins with the one before and its answer."""
    with backbone.engine(**SMALL) as engine:
        first, _ = ask(engine, START, "one", max_new_tokens=8, eos_token_id=None)
        turn = f"{START} {first} gain"
        text, reused = ask(engine, turn, "one")
        assert reused >= 16
        assert text == backbone.generate(turn, "one", max_new_tokens=6)


def test_none_after_a_swap(backbone, kinds):
    prompt = f"{START} gain"
    with backbone.engine(**SMALL) as engine:
        ask(engine, prompt, "one")
        backbone.swap("one", kinds("large"))
        text, reused = ask(engine, prompt, "one")
        assert reused == 0
        assert text == backbone.generate(prompt, "one", max_new_tokens=6)
        backbone.load(kinds("small"), "again")  # the same version under another name
        text, reused = ask(engine, prompt, "again")
        assert reused == 8
        assert text == backbone.generate(prompt, "again", max_new_tokens=6)


def test_they_give_way(backbone):
    """A cache that is full of prefixes still takes every request that fits into it."""
    with backbone.engine(**SMALL | {"cache_tokens": 64}) as engine:
        words = START.split()
        for place in range(6):
            prompt = " ".join([*words[place:], *words[:place], *words])
            text, _ = ask(engine, prompt, "two", max_new_tokens=30, eos_token_id=None)
            assert text == backbone.generate(prompt, "two", max_new_tokens=30, eos_token_id=None)


def test_off_unless_asked_for(backbone):
    with backbone.engine(**SMALL | {"prefix_cache": False}) as engine:
        assert [ask(engine, f"{START} gain", "one")[1] for _ in range(2)] == [0, 0]


def test_the_tests_above_see_a_key_that_is_left_out(backbone, monkeypatch):
    """With transformers' own keys one adapter's prefix answers for another's."""
    monkeypatch.setattr("lorary.adapters.engine.prefixes.key_of", lambda request: ())
    prompt = f"{START} gain"
    alone = backbone.generate(prompt, "two", max_new_tokens=6)
    with backbone.engine(**SMALL) as engine:
        ask(engine, prompt, "one")
        text, reused = ask(engine, prompt, "two")
    assert reused == 8
    assert text != alone


def test_a_setting_that_is_none(backbone):
    with pytest.raises(UsageError, match="prefix_cache=1: expected True or False"):
        backbone.engine(**SMALL | {"prefix_cache": 1})


def test_a_sliding_window():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    window = {"sliding_window": 8, "max_position_embeddings": 64, "num_key_value_heads": 2}
    model = MistralForCausalLM(MistralConfig(vocab_size=VOCABULARY, **window, **sizes))
    backbone = Backbone.from_model(model, make_tokenizer("llama"))
    with pytest.raises(EngineUnsupportedError, match=r"\(a sliding window\).*leave it out"):
        backbone.engine(**SMALL)
    with backbone.engine(**SMALL | {"prefix_cache": False}) as engine:
        assert ask(engine, START, None)[0] == backbone.generate(START, max_new_tokens=6)


def test_none_of_a_request_that_answered_nan(backbone):
    """What a neighbour has broken in a step of a long prompt is seen in a later one; by then it is in the cache."""
    prompt = " ".join([*START.split(), *START.split()])  # two steps, of which the first alone is broken
    passes = []

    def broken(module, args, output):
        passes.append(module)
        return output * torch.nan if len(passes) == 1 else output

    with backbone.engine(**SMALL) as engine:
        handle = backbone.model.model.embed_tokens.register_forward_hook(broken)
        with pytest.raises(RequestFailedError, match="answered NaN"):
            ask(engine, prompt, None)
        handle.remove()
        assert ask(engine, prompt, None) == (backbone.generate(prompt, max_new_tokens=6), 0)
