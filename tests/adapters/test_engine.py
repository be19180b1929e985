"""Continuous batching: whatever shares its steps, a request's answer is what ``generate`` gives it alone."""

import threading

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from lorary.adapters import Backbone
from lorary.hub.errors import EngineFullError, UsageError
from lorary.hub.manifest import BaseIdentity, Manifest, Preprocessing, Prompt
from tiny import make_adapter, make_base

pytestmark = pytest.mark.usefixtures("frozen_imports")
SMALL = {"cache_tokens": 512, "batch_tokens": 16, "page_tokens": 4, "max_running": 16}
PROMPTS = ("profit rose", "the bank cash offer win free click", "story", "a dog and a cat ran with big small")
LONG = "profit sales rose fell bank the a report shares loss gain growth market price offer cash win free click patient"


@pytest.fixture(scope="module")
def backbone(bases, kinds):
    return loaded(bases, kinds, "small", "large", "dora", "embedding", "output", "whole")


def loaded(bases, kinds, *names, **settings):
    """A tiny Llama with these adapters."""
    backbone = Backbone.from_pretrained(str(bases("llama")), **settings)
    for name in names:
        backbone.load(kinds(name), name)
    return backbone


@pytest.fixture(scope="module")
def engine(backbone):
    with backbone.engine(**SMALL) as engine:
        yield engine


def test_a_mixture_equals_generate_alone(backbone, engine):
    rows = [(prompt, name) for name in [*backbone.adapters, None] for prompt in PROMPTS]
    alone = [backbone.generate(prompt, name, max_new_tokens=9) for prompt, name in rows]
    assert all(len(set(alone[place::4])) > 3 for place in range(4))
    requests = [engine.submit(prompt, name, max_new_tokens=9) for prompt, name in rows]
    done = [request.result(20) for request in requests]
    assert [completion.text for completion in done] == alone
    assert [completion.adapter for completion in done] == [name for _, name in rows]
    assert [completion.prompt_tokens for completion in done] == [len(prompt.split()) for prompt, _ in rows]


def test_a_prompt_in_token_ids(backbone, engine):
    ids = backbone.tokenizer(LONG)["input_ids"]
    alone = backbone.generate(LONG, "large", max_new_tokens=5)
    assert engine.submit(tuple(ids), "large", max_new_tokens=5).result(20).text == alone
    for wrong in ([0, 10**9], [1, -1], [1, True], [1, "a"], []):
        with pytest.raises(UsageError):
            engine.submit(wrong, max_new_tokens=5)
    with pytest.raises(UsageError, match="only a chat template is told of them"):
        engine.submit(ids, tools=[{"function": {"name": "a"}}])


def test_no_more_requests_wait_than_may(backbone):
    """Whoever comes beside them is refused, and is none of those that were given up."""
    with backbone.engine(**SMALL | {"max_running": 1}, max_waiting=2) as engine:
        endless = {"max_new_tokens": 60, "eos_token_id": None}
        taken = [engine.submit("story", **endless) for _ in range(3)]
        with pytest.raises(EngineFullError, match="2 requests wait already"):
            engine.submit("story", **endless)
        assert engine.stats().waiting == 2
        taken[1].cancel()
        assert engine.submit("story", max_new_tokens=2).result(20).finish_reason == "length"
        assert (engine.stats().cancelled, engine.stats().failed) == (1, 0)


def test_requests_join_and_leave_between_steps(backbone, engine):
    """A long request goes on while short ones come and go, many in a step of the long one's."""
    expected = {name: backbone.generate("story", name, max_new_tokens=3) for name in ("small", "dora", None)}
    alone = backbone.generate(LONG, "large", max_new_tokens=40, eos_token_id=None)
    before = engine.stats()
    long = engine.submit(LONG, "large", max_new_tokens=40, eos_token_id=None)
    for name, text in list(expected.items()) * 3:
        assert engine.submit("story", name, max_new_tokens=3).result(20).text == text
    assert long.result(20).text == alone
    after = engine.stats()
    steps, tokens = after.steps - before.steps, after.tokens - before.tokens
    assert tokens >= 40 + 9
    assert steps < tokens  # so some were shared


def test_a_prompt_in_chunks_keeps_its_adapter(backbone):
    """Chunks of 4 tokens, with neighbours that have other adapters in every one of the steps."""
    names = ("large", None, "output", "whole", "small")
    with backbone.engine(**SMALL | {"batch_tokens": 4}) as engine:
        requests = [engine.submit(LONG, name, max_new_tokens=6) for name in names]
        for name, request in zip(names, requests, strict=True):
            assert request.result(20).text == backbone.generate(LONG, name, max_new_tokens=6)


@pytest.mark.parametrize("settings", [
    {"temperature": 1.7}, {"top_k": 5}, {"top_p": 0.6, "temperature": 2.0}, {"repetition_penalty": 1.8, "min_p": 0.01},
], ids=str)  # fmt: skip
def test_a_seed_gives_what_it_gives_generate(backbone, engine, settings):
    """Among greedy requests and others with seeds of their own."""
    sampled = {"do_sample": True, "max_new_tokens": 10} | settings
    expected = {}
    for seed in range(4):
        torch.manual_seed(seed)
        expected[seed] = backbone.generate("the bank", "small", **sampled)
    assert len(set(expected.values())) > 1
    greedy = [engine.submit("story", "large", max_new_tokens=12) for _ in range(3)]
    requests = {seed: engine.submit("the bank", "small", seed=seed, **sampled) for seed in expected}
    assert {seed: request.result(20).text for seed, request in requests.items()} == expected
    assert {request.result(20).text for request in greedy} == {backbone.generate("story", "large", max_new_tokens=12)}


def test_processors_of_greedy_requests(backbone, engine):
    for settings in (
        {"repetition_penalty": 1.5},
        {"no_repeat_ngram_size": 2},
        {"min_new_tokens": 9, "eos_token_id": 5},
        {"bad_words_ids": [[6], [7, 8]], "eos_token_id": None},
    ):
        wanted = {"max_new_tokens": 10} | settings
        assert engine.submit("profit", "small", **wanted).result(20).text == backbone.generate(
            "profit", "small", **wanted
        )


@pytest.mark.parametrize("own", [
    {"forced_eos_token_id": 3}, {"encoder_repetition_penalty": 2.0},
], ids=str)  # fmt: skip
def test_what_the_bases_own_config_says(backbone, engine, monkeypatch, own):
    wanted = {"max_new_tokens": 4, "eos_token_id": 5}
    plain = backbone.generate("profit", "small", **wanted)
    for name, value in own.items():
        monkeypatch.setattr(backbone.model.generation_config, name, value)
    made = engine.submit("profit", "small", **wanted).result(20)
    assert made.text == backbone.generate("profit", "small", **wanted) != plain


def test_what_the_bases_own_config_says_and_a_request_cant_have(backbone, engine, monkeypatch):
    monkeypatch.setattr(backbone.model.generation_config, "max_time", 5.0)
    with pytest.raises(UsageError, match=r"asks for max_time=5\.0; .* change backbone\.model\.generation_config"):
        engine.submit("profit", "small")


def test_without_a_seed_answers_differ_and_nobody_elses_random_numbers_change(backbone):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with backbone.engine(**SMALL) as engine:
        requests = [engine.submit("profit", do_sample=True, temperature=5.0, max_new_tokens=10) for _ in range(4)]
        assert len({request.result(20).text for request in requests}) > 1  # two may be alike by chance
    assert torch.equal(torch.rand(3), expected)


def test_stop_tokens_and_lengths_are_each_requests_own(backbone, engine):
    tokens = engine.submit("profit rose", "large", max_new_tokens=12, eos_token_id=None).result(20).tokens
    stop = next(token for token in tokens[3:] if tokens.index(token) >= 3)
    stopped = engine.submit("profit rose", "large", max_new_tokens=12, eos_token_id=[stop, 2])
    short = engine.submit("profit rose", "large", max_new_tokens=2, eos_token_id=None).result(20)
    assert stopped.result(20).tokens == tokens[: tokens.index(stop) + 1]
    assert stopped.result(20).finish_reason == "stop"
    assert (short.tokens, short.finish_reason) == (tokens[:2], "length")


def test_pieces_add_up_to_the_text_in_whatever_thread_they_are_read(engine):
    requests = [engine.submit(prompt, "large", max_new_tokens=12) for prompt in PROMPTS]
    read = {}

    def consume(request):
        read[request.id] = list(request)

    threads = [threading.Thread(target=consume, args=(request,)) for request in requests]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    for request in requests:
        text = request.result(20).text
        assert "".join(read[request.id]) == text
        assert "".join(request) == text  # again, from the beginning
    assert any(len(pieces) > 1 for pieces in read.values())  # a slow reader gets several at once


def test_a_piece_comes_before_the_next_step(backbone):
    """The first piece is there while the request still runs."""
    with backbone.engine(**SMALL) as engine:
        request = engine.submit("profit", "large", max_new_tokens=50, eos_token_id=None)
        reader = iter(request)
        assert next(reader)
        seen = len(request.tokens)
        list(reader)
        assert seen < 50


def test_prompts_are_put_as_the_adapter_was_trained(bases, kinds, tmp_path):
    backbone = loaded(bases, kinds, "small")
    templated = make_adapter(bases("llama"), tmp_path / "templated", task="text-generation", seed=1, r=2)
    Manifest(
        "text-generation", BaseIdentity("x"), preprocessing=Preprocessing({}, prefix="the report "),
        prompt=Prompt("instruction", "market {prompt} price"),
    ).write(templated)  # fmt: skip
    backbone.load(templated)
    with backbone.engine(**SMALL) as engine:
        rendered = engine.submit("the report market dog price", "small", max_new_tokens=5).result(20)
        assert engine.submit("dog", "templated", max_new_tokens=5).result(20).tokens == rendered.tokens


@pytest.mark.parametrize("family", ["gpt2", "tied", "gemma3"])
def test_other_architectures(bases, tmp_path, family):
    changes = (
        {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]} if family == "gemma3" else {}
    )
    base = make_base(family, tmp_path / "base", **changes)
    backbone = Backbone.from_pretrained(str(base))
    for seed in (1, 2):
        backbone.load(make_adapter(base, tmp_path / f"a{seed}", task="text-generation", seed=seed))
    names = ["a1", None, "a2"]
    expected = [backbone.generate(LONG, name, max_new_tokens=12) for name in names]
    assert len(set(expected)) > 1
    with backbone.engine(**SMALL) as engine:
        requests = [engine.submit(LONG, name, max_new_tokens=12) for name in names]
        assert [request.result(20).text for request in requests] == expected


def test_a_quantized_backbone(bases, kinds):
    backbone = loaded(bases, kinds, "small", "large", quantization="nf4")
    names = ["small", None, "large"]
    with backbone.engine(**SMALL) as engine:
        requests = [engine.submit(LONG, name, max_new_tokens=8) for name in names]
        assert [request.result(20).text for request in requests] == [
            backbone.generate(LONG, name, max_new_tokens=8) for name in names
        ]


def test_a_compiled_backbone_is_served_as_it_is(bases, kinds):
    backbone = loaded(bases, kinds, "small", "large")
    expected = [backbone.generate("story", name, max_new_tokens=8) for name in ("small", None, "large")]
    counter = CompileCounter()
    backbone.compile(backend=counter)
    with backbone.engine(**SMALL) as engine:
        requests = [engine.submit("story", name, max_new_tokens=8) for name in ("small", None, "large")]
        assert [request.result(20).text for request in requests] == expected
    assert counter.frame_count == 0, "steps of packed rows run uncompiled, and nobody waits for what they won't use"


def test_an_idle_engine_is_closed_at_once(backbone):
    """transformers' loop looks by itself every tenth of a second whether it is to end; here not for a long time."""
    idle = threading.Event()
    with backbone.engine(**SMALL) as engine:
        woken = engine._loop._manager._wake_up_loop
        wait = woken.wait

        def wait_long(timeout):
            idle.set()
            return wait(10)

        woken.wait = wait_long
        assert idle.wait(20)
        closing = threading.Thread(target=engine.close)
        closing.start()
        closing.join(5)
        assert not closing.is_alive()


def test_calls_outside_the_engine_go_on_beside_it(backbone, engine):
    """transformers' loop would switch off causal attention in everybody's forward while one of its own runs."""
    expected = backbone.generate(list(PROMPTS), ["small", None, "large", "dora"], max_new_tokens=8)
    requests = [engine.submit(LONG, "output", max_new_tokens=30, eos_token_id=None) for _ in range(3)]
    for _ in range(3):
        assert backbone.generate(list(PROMPTS), ["small", None, "large", "dora"], max_new_tokens=8) == expected
    assert len({request.result(20).text for request in requests}) == 1


def test_two_engines_on_one_backbone(backbone, engine):
    with backbone.engine(**SMALL) as other:
        requests = [each.submit("story", "large", max_new_tokens=9) for each in (engine, other) for _ in range(3)]
        assert {request.result(20).text for request in requests} == {
            backbone.generate("story", "large", max_new_tokens=9)
        }


def test_many_threads_submit_and_read(backbone, engine):
    names = [*backbone.adapters, None]
    expected = {
        (prompt, name): backbone.generate(prompt, name, max_new_tokens=6) for prompt in PROMPTS for name in names
    }
    wrong = []

    def call(start):
        for place in range(start, start + 12):
            key = PROMPTS[place % 4], names[place % len(names)]
            text = engine.submit(*key, max_new_tokens=6).result(30).text
            if text != expected[key]:
                wrong.append((key, text))

    threads = [threading.Thread(target=call, args=(start,)) for start in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong


@pytest.mark.parametrize(("settings", "message"), [
    ({"num_beams": 3}, "asks for beam_search, num_beams=3.*use Backbone.generate, pass num_beams=1"),
    ({"stop_strings": ["x"]}, "stop_strings: transformers can't find texts"),
    ({"temperature": 0.0, "do_sample": True}, "temperature.*strictly positive"),
    ({"max_new_tokens": 0}, "max_new_tokens=0: expected a whole number of at least 1"),
    ({"seed": 3}, "without do_sample"),
    ({"seed": -1, "do_sample": True}, "seed=-1: expected a whole number"),
    ({"seed": True, "do_sample": True}, "seed=True: expected a whole number"),
    ({"seed": "x", "do_sample": True}, "seed='x': expected a whole number"),
    ({"eos_token_id": "stop"}, "eos_token_id='stop': expected the id of a token"),
    ({"top_k": "many", "do_sample": True}, "top_k"),
], ids=str)  # fmt: skip
def test_settings_that_cant_be_meant_are_refused(engine, settings, message):
    with pytest.raises(UsageError, match=message):
        engine.submit("profit", **settings)


@pytest.mark.parametrize("prompt", [["profit"], b"profit", 5], ids=str)
def test_what_is_no_prompt(engine, prompt):
    with pytest.raises(UsageError, match=r"expected a prompt \(a text, or a list of .*found"):
        engine.submit(prompt)


def test_an_open_ended_request_goes_on_while_there_is_room(backbone, engine):
    """64 positions are less than the cache; the last token is never looked back at."""
    room = {"eos_token_id": None, "open_ended": True}
    assert len(engine.submit("story dog", None, **room).result(20).tokens) == 64 - 2 + 1
    assert len(engine.submit("story dog", None, **room, max_new_tokens=3).result(20).tokens) == 3
    assert len(engine.submit("story dog", None, eos_token_id=None).result(20).tokens) == 20


def test_an_open_ended_request_keeps_to_what_the_base_says(backbone, engine, monkeypatch):
    monkeypatch.setattr(backbone.model.generation_config, "max_new_tokens", 5)
    assert len(engine.submit("story", None, eos_token_id=None, open_ended=True).result(20).tokens) == 5
