"""Predictions over HTTP: any task, the rows of all callers in common passes, each with its own adapter."""

import asyncio
import base64
import json
import struct
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from http_service import eventually, running
from lorary.adapters import Backbone
from lorary.adapters.server import Service, ServiceSettings, predictions
from lorary.adapters.server.batching import Batcher
from lorary.hub import Registry
from lorary.hub.errors import EngineStoppedError
from lorary.hub.manifest import Manifest, Pooling
from tiny import make_adapter

pytestmark = pytest.mark.usefixtures("frozen_imports")
PREDICT, EMBED = "/v1/predict", "/v1/embeddings"
KINDS = {
    "tone": ("text-classification", {"labels": ("down", "flat", "up")}),
    "spam": ("text-classification", {"labels": ("ham", "spam")}),
    "entities": ("token-classification", {"labels": ("O", "B-Disease", "I-Disease")}),
    "answers": ("question-answering", {}),
    "vectors": ("feature-extraction", {"pooling": Pooling("mean", True)}),
    "states": ("feature-extraction", {}),
}


@pytest.fixture(scope="module")
def backbone(bases, tmp_path_factory):
    place, base = tmp_path_factory.mktemp("served"), bases("bert")
    registry = Registry(place / "registry.db")
    backbone = Backbone.from_pretrained(str(base), registry=registry)
    for seed, (name, (task, fields)) in enumerate(KINDS.items()):
        labels = {"labels": len(fields["labels"])} if "labels" in fields else {}
        make_adapter(base, place / name, task=task, seed=seed + 1, **labels)
        Manifest(task=task, base=backbone.identity, **fields).write(place / name)
        registry.add(place / name, name=name, domain="tests")
        backbone.load(name, f"{name}@1")
    return backbone


@pytest.fixture(scope="module")
def service(backbone):
    return Service(backbone, settings=ServiceSettings(batch_rows=8))


@pytest.fixture(scope="module")
def caller(service):
    with running(service) as caller:
        yield caller


def close(found, expected):
    """Are two answers alike, but for rounding? Scores of entities are NumPy's, as in transformers' pipeline."""
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(close(found[key], expected[key]) for key in expected)
    if isinstance(expected, (list, tuple)):
        return len(found) == len(expected) and all(map(close, found, expected))
    return (
        found == pytest.approx(expected, abs=1e-5) if isinstance(expected, (float, np.floating)) else found == expected
    )


def test_every_task_in_one_request(backbone, caller):
    rows = {
        "tone": "profit rose", "spam": {"text": "win cash"}, "entities": "acute asthma and cancer",
        "answers": {"question": "the bank", "context": "a dog and a cat ran"}, "vectors": "a dog", "states": "a dog",
    }  # fmt: skip
    names = [f"{name}@1" for name in rows]
    found = caller.call(PREDICT, {"model": [*rows, None], "inputs": [*rows.values(), "a dog"]})
    expected = backbone.predict([*rows.values(), "a dog"], [*names, None])
    assert len(expected) == 7
    assert close(found["predictions"], expected)
    assert found["model"] == [*rows, None]
    assert found["digests"][-1] is None
    assert len(set(found["digests"])) == 7


def test_one_row_and_parameters(backbone, caller):
    found = caller.call(PREDICT, {"model": "tone", "inputs": "profit rose", "parameters": {"top_k": 2}})
    assert close(found["predictions"], backbone.predict(["profit rose"], "tone@1", top_k=2))
    assert len(found["predictions"][0]) == 2
    told = caller.problem(PREDICT, {"model": "tone", "inputs": "profit rose", "parameters": {"top_q": 2}})
    assert told == "parameters.top_q: not for this request; known: function_to_apply, threshold, top_k"


def test_a_parameter_of_one_task_of_many_rows(backbone, caller):
    """Also where not every pass has that task."""
    names, rows = ["tone"] * 9 + ["entities"] * 9, ["acute asthma"] * 18
    found = caller.call(PREDICT, {"model": names, "inputs": rows, "parameters": {"top_k": 2}})
    assert close(found["predictions"], backbone.predict(rows, [f"{name}@1" for name in names], top_k=2))


class Slow:
    """A backbone whose first pass waits until it is let go, and that notes the rows of all passes."""

    def __init__(self, backbone):
        self.backbone, self.passes = backbone, []
        self.begun, self.go = threading.Event(), threading.Event()

    def predict(self, rows, names, **params):
        self.passes.append(list(zip(rows, names, strict=True)))
        self.begun.set()
        assert self.go.wait(10)
        return self.backbone.predict(rows, names, **params)


@pytest.fixture
def held(service, monkeypatch):
    """The service's first pass waits, so that what comes meanwhile has to."""
    slow = Slow(service.backbone)
    monkeypatch.setattr(service._scoring, "_backbone", slow)
    yield slow
    slow.go.set()


def ask_while_held(caller, slow, bodies, codes=None):
    """The answers to requests that all wait behind a first one."""
    with ThreadPoolExecutor(len(bodies) + 1) as threads:
        first = threads.submit(caller.call, PREDICT, {"model": "tone", "inputs": "story"})
        assert slow.begun.wait(10)
        waiting = []
        for place, body in enumerate(bodies):
            waiting.append(threads.submit(caller.call, PREDICT, body, code=(codes or {}).get(place, 200)))
            eventually(lambda wanted=place + 1: slow.batcher.waiting >= wanted)
        slow.go.set()
        first.result()
        return [one.result() for one in waiting]


def test_rows_that_come_meanwhile_share_a_pass(backbone, caller, service, held):
    held.batcher = service._scoring
    bodies = [
        {"model": "tone", "inputs": "profit rose"}, {"model": "spam", "inputs": ["win cash", "story"]},
        {"model": "entities", "inputs": "acute asthma"}, {"model": "tone", "inputs": "sales fell"},
    ]  # fmt: skip
    found = ask_while_held(caller, held, bodies)
    assert [len(rows) for rows in held.passes] == [1, 5]
    for body, answer in zip(bodies, found, strict=True):
        rows = body["inputs"] if isinstance(body["inputs"], list) else [body["inputs"]]
        assert close(answer["predictions"], backbone.predict(rows, f"{body['model']}@1"))


def test_no_pass_is_larger_than_it_may_be(caller, service, held):
    held.batcher = service._scoring
    ask_while_held(caller, held, [{"model": "tone", "inputs": ["story"] * 3} for _ in range(5)])
    assert [len(rows) for rows in held.passes] == [1, 6, 6, 3]


def test_many_rows_of_one_caller_keep_nobody_waiting_for_all_of_them(backbone, caller, service, held):
    rows = [f"profit {word}" for word in "rose fell gain loss growth market price offer cash win free click".split()]
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(caller.call, PREDICT, {"model": "tone", "inputs": rows * 2})
        assert held.begun.wait(10)
        other = threads.submit(caller.call, PREDICT, {"model": "spam", "inputs": "win"})
        eventually(lambda: service._scoring.waiting)
        held.go.set()
        other.result()
        found = first.result()["predictions"]
    assert [len(part) for part in held.passes] == [8, 1, 8, 8]
    assert close(found, backbone.predict(rows * 2, "tone@1"))


def test_a_caller_who_goes_between_two_passes_has_no_further_one(caller, service, held):
    gone = caller.send_only(PREDICT, {"model": "tone", "inputs": ["story"] * 40})
    assert held.begun.wait(10)
    gone.close()
    with ThreadPoolExecutor(1) as threads:
        other = threads.submit(caller.call, PREDICT, {"model": "spam", "inputs": "win"})
        eventually(lambda: service._scoring.waiting)
        caller.call("/health")  # by now it is known that the first one has gone
        held.go.set()
        other.result()
    caller.call(PREDICT, {"model": "tone", "inputs": "profit"})
    assert [len(part) for part in held.passes] == [8, 1, 1]


@pytest.mark.parametrize(("path", "body"), [
    (PREDICT, {"model": "states", "inputs": ["a dog"] * 2}), (EMBED, {"model": "vectors", "input": ["a dog"] * 2}),
])  # fmt: skip
def test_millions_of_numbers_are_written_down_while_others_are_answered(caller, monkeypatch, path, body):
    begun, go, plain = threading.Event(), threading.Event(), predictions.plain

    def slowly(value):
        begun.set()
        assert go.wait(10)
        return plain(value)

    monkeypatch.setattr(predictions, "plain", slowly)
    with ThreadPoolExecutor(1) as threads:
        large = threads.submit(caller.call, path, body)
        try:
            assert begun.wait(10)
            assert caller.call("/health") == {"status": "ok"}
        finally:
            go.set()
        assert len(large.result()["predictions" if path == PREDICT else "data"]) == 2


def test_parameters_stay_with_their_own_request(backbone, caller, service, held):
    """What one asked for changes nobody else's answer."""
    held.batcher = service._scoring
    bodies = [
        {"model": "tone", "inputs": "profit", "parameters": {"top_k": 3}},
        {"model": "spam", "inputs": "profit"},
        {"model": "spam", "inputs": "profit", "parameters": {"function_to_apply": "none"}},
    ]
    found = ask_while_held(caller, held, bodies)
    assert len(found[0]["predictions"][0]) == 3
    assert close(found[1]["predictions"], backbone.predict(["profit"], "spam@1"))
    assert close(found[2]["predictions"], backbone.predict(["profit"], "spam@1", function_to_apply="none"))


def test_a_row_that_cant_be_read_fails_its_own_request_alone(backbone, caller, service, held):
    held.batcher = service._scoring
    bodies = [
        {"model": "tone", "inputs": "profit"}, {"model": "answers", "inputs": {"question": "the bank"}},
        {"model": "spam", "inputs": "win"},
    ]  # fmt: skip
    found = ask_while_held(caller, held, bodies, codes={1: 400})
    assert close(found[0]["predictions"], backbone.predict(["profit"], "tone@1"))
    assert "context" in found[1]["error"]["message"]
    assert close(found[2]["predictions"], backbone.predict(["win"], "spam@1"))


def test_a_caller_who_has_gone_is_left_out(caller, service, held):
    held.batcher = service._scoring
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(caller.call, PREDICT, {"model": "tone", "inputs": "story"})
        assert held.begun.wait(10)
        gone = caller.send_only(PREDICT, {"model": "tone", "inputs": "nobody waits"})
        eventually(lambda: service._scoring.waiting)
        (job,) = service._scoring._jobs
        gone.close()
        eventually(lambda: job.done.cancelled())
        held.go.set()
        first.result()
    caller.call(PREDICT, {"model": "tone", "inputs": "profit"})
    assert "nobody waits" not in str(held.passes)


def test_who_waits_when_it_stops(backbone):
    slow = Slow(backbone)
    service = Service(backbone)
    service._scoring._backbone = slow
    with ThreadPoolExecutor(4) as threads, running(service) as caller:
        first = threads.submit(caller.call, PREDICT, {"model": "tone", "inputs": "story"})
        assert slow.begun.wait(10)
        waits = threads.submit(caller.problem, PREDICT, {"model": "tone", "inputs": "profit"}, code=503)
        eventually(lambda: service._scoring.waiting)
        closing = threads.submit(service.close)
        eventually(lambda: service._scoring._closed)
        slow.go.set()
        closing.result()
        assert len(first.result()["predictions"]) == 1
        assert "was stopped" in waits.result()
        for model in ("tone", "states", "made-up"):
            assert "was stopped" in caller.problem(PREDICT, {"model": model, "inputs": "late"}, code=503)


def test_too_many_who_wait(caller, service, monkeypatch):
    monkeypatch.setattr(Batcher, "waiting", property(lambda self: 256))
    assert "256 requests wait" in caller.problem(PREDICT, {"model": "tone", "inputs": "late"}, code=429)


def test_embeddings(backbone, caller):
    expected = backbone.predict(["a dog", "the bank"], "vectors@1")
    found = caller.call(EMBED, {"model": "vectors", "input": ["a dog", "the bank"]})
    assert [row["index"] for row in found["data"]] == [0, 1]
    assert close([row["embedding"] for row in found["data"]], expected)
    assert found["usage"] == {"prompt_tokens": 8, "total_tokens": 8}
    coded = caller.call(EMBED, {"model": "vectors", "input": "a dog", "encoding_format": "base64"})
    assert coded["usage"] == {"prompt_tokens": 4, "total_tokens": 4}
    raw = base64.b64decode(coded["data"][0]["embedding"])
    assert close(list(struct.unpack(f"<{len(raw) // 4}f", raw)), expected[0])


def test_embeddings_of_an_adapter_that_doesnt_say_how(backbone, service, caller):
    """Which is found out once; after that nothing is computed in vain."""
    found = caller.call(EMBED, {"model": "states", "input": "a dog"})
    assert close(found["data"][0]["embedding"], backbone.predict(["a dog"], "states@1", pooling="mean")[0])
    before = service._scoring.passes
    assert caller.call(EMBED, {"model": "states", "input": "a dog"}) == found
    bare = caller.call(EMBED, {"model": "bert", "input": "a dog"})
    assert service._scoring.passes == before + 2
    assert close(bare["data"][0]["embedding"], backbone.predict(["a dog"], None, pooling="mean")[0])


def test_the_tokens_of_a_long_text_are_those_that_were_read(backbone, caller):
    """What was cut off it was never before the model."""
    answer = caller.call(EMBED, {"model": "states", "input": ["a dog " * 200, "the bank"]})
    assert answer["usage"]["prompt_tokens"] == backbone.model.config.max_position_embeddings + 4


@pytest.mark.parametrize(("path", "body", "code", "message"), [
    (PREDICT, {"model": "tone", "inputs": []}, 400, "inputs: expected a text"),
    (PREDICT, {"model": "tone", "inputs": ["a", ""]}, 400, "inputs: expected a text"),
    (PREDICT, {"model": "tone", "inputs": 3}, 400, "inputs: expected a text"),
    (PREDICT, {"model": "tone", "inputs": ["a"] * 257}, 400, "inputs: expected a text"),
    (PREDICT, {"model": ["tone"], "inputs": ["a", "b"]}, 400, "1 models for 2 inputs"),
    (PREDICT, {"model": ["tone", "tune"], "inputs": ["a", "b"]}, 404, "no model 'tune'"),
    (PREDICT, {"model": "tone", "inputs": "a", "top_k": 3}, 400, "top_k: no such field"),
    (PREDICT, {"model": "tone", "inputs": "a", "parameters": [3]}, 400, "parameters: "),
    (PREDICT, {"model": "tone", "inputs": "\\ud800"}, 400, "inputs: expected a text"),
    (PREDICT, {"model": "tone", "inputs": {"\\ud800": "a"}}, 400, "lone surrogate"),
    (PREDICT, {"model": "tone", "inputs": {"text": "a", "more": [{"b": "\\ud800"}]}}, 400, "lone surrogate"),
    (PREDICT, {"model": "tone", "inputs": "a", "parameters": {"\\ud800": 1}}, 400, "parameters."),
    (PREDICT, {"model": "tone", "inputs": "a", "parameters": {"batch_size": 3}}, 400, "batch_size"),
    (PREDICT, {"model": "tone", "inputs": "a", "parameters": {"adapter": "spam"}}, 400, "adapter"),
    (EMBED, {"model": "tone", "input": "a"}, 400, "tone is for text-classification"),
    (EMBED, {"model": "vectors", "input": [[1, 2]]}, 400, "input: expected a text"),
    (EMBED, {"model": "vectors", "input": "a", "dimensions": 8}, 400, "dimensions isn't served here; leave it out"),
    ("/v1/completions", {"model": "tone", "prompt": "a"}, 400, "this base doesn't generate"),
])  # fmt: skip
def test_what_is_refused(caller, path, body, code, message):
    text = json.dumps(body).replace("\\\\ud800", "\\ud800")
    assert message in caller.problem(path, text, code=code)


def test_a_closed_batcher_ends_for_good(backbone):
    batcher = Batcher(backbone, rows=4)
    batcher.close()
    batcher.close()
    with pytest.raises(EngineStoppedError):
        asyncio.run(batcher.predict(["a"], [None], ["feature-extraction"], {}))
