"""Log probabilities of generated tokens: the model's own, whatever shares a request's steps and however it samples."""

import pytest

from lorary.adapters import Backbone
from lorary.hub.errors import UsageError
from tiny import make_adapter

pytestmark = pytest.mark.usefixtures("frozen_imports")
SMALL = {"cache_tokens": 512, "batch_tokens": 16, "page_tokens": 4, "max_running": 16}
LONG = "profit sales rose fell bank the a report shares loss gain growth market price offer cash win free click patient"


@pytest.fixture(scope="module")
def backbone(bases, tmp_path_factory):
    backbone = Backbone.from_pretrained(str(bases("llama")))
    for seed, name in enumerate(("one", "two")):
        folder = tmp_path_factory.mktemp("logprobs") / name
        make_adapter(bases("llama"), folder, task="text-generation", seed=seed + 1)
        backbone.load(folder)
    return backbone


@pytest.fixture(scope="module")
def engine(backbone):
    with backbone.engine(**SMALL) as engine:
        yield engine


def demand_right(backbone, request, name, count):
    """Hold a finished request's figures against those of a pass over its whole text."""
    completion = request.result(30)
    sequence = [*request.prompt, *completion.tokens]
    (logits,) = backbone.logits([sequence], name)
    expected = logits[len(request.prompt) - 1 : -1].log_softmax(-1)
    assert len(completion.logprobs) == len(completion.tokens) == len(expected)
    for token, found, row in zip(completion.tokens, completion.logprobs, expected, strict=True):
        assert found.logprob == pytest.approx(float(row[token]), abs=1e-3)
        best = row.topk(count) if count else row[:0].topk(0)
        assert [value for _, value in found.likeliest] == pytest.approx(best.values.tolist(), abs=1e-3)
        assert [float(row[other]) for other, _ in found.likeliest] == pytest.approx(best.values.tolist(), abs=1e-3)


@pytest.mark.parametrize("settings", [
    {}, {"repetition_penalty": 1.8}, {"do_sample": True, "temperature": 3.0, "seed": 5},
    {"do_sample": True, "top_k": 3}, {"frequency_penalty": 2.0, "presence_penalty": 1.0, "logit_bias": {9: 8.0}},
], ids=str)  # fmt: skip
def test_they_are_the_models_own(backbone, engine, settings):
    """Before temperature and penalties, among requests that ask for none or for others."""
    wanted = {"max_new_tokens": 8, "eos_token_id": None}
    others = [engine.submit("story", name, **wanted) for name in ("one", None)]
    counts = {"one": 3, "two": 0, None: 20}
    requests = {
        name: engine.submit("the bank", name, logprobs=count, **wanted, **settings) for name, count in counts.items()
    }
    for name, request in requests.items():
        demand_right(backbone, request, name, counts[name])
    assert all(other.result(20).logprobs is None for other in others)


def test_asking_for_them_changes_no_answer(backbone, engine):
    for name in ("one", "two", None):
        told = engine.submit("profit", name, logprobs=2, max_new_tokens=9).result(20)
        assert told.text == backbone.generate("profit", name, max_new_tokens=9)


def test_as_many_as_tokens_so_far(backbone, engine):
    request = engine.submit("profit", "one", logprobs=1, max_new_tokens=30, eos_token_id=None)
    for _ in request:
        assert len(request.logprobs) >= 1
    assert request.logprobs == request.result(10).logprobs
    stopped = engine.submit("profit", "one", logprobs=1, max_new_tokens=30, eos_token_id=request.tokens[4])
    assert stopped.result(10).logprobs == request.logprobs[: len(stopped.tokens)]


def test_requests_that_give_way_to_others(backbone):
    """transformers takes them out of the cache, and begins them anew with what they have."""
    wanted = {"do_sample": True, "temperature": 2.0, "max_new_tokens": 30, "eos_token_id": None, "logprobs": 2}
    names = ["one", "two", None, "one", "two", None]
    with backbone.engine(**SMALL | {"cache_tokens": 100}) as engine:
        requests = [engine.submit(LONG, name, seed=seed, **wanted) for seed, name in enumerate(names)]
        for request, name in zip(requests, names, strict=True):
            demand_right(backbone, request, name, 2)


@pytest.mark.parametrize("count", [-1, 21, 1.5, True, "3"])
def test_what_cant_be_asked_for(engine, count):
    with pytest.raises(UsageError, match="logprobs="):
        engine.submit("profit", logprobs=count)
