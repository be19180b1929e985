"""Calls on CUDA streams of their own: copies into slots are on the default ones, and both keep their order."""

from contextlib import contextmanager

import pytest
import torch

from lorary.adapters import Backbone
from lorary.adapters.layer import streams
from lorary.adapters.layer.slots import Arena
from tiny import make_adapter

IDS = torch.tensor([[7, 8, 9, 10]])


@pytest.fixture
def folders(bases, tmp_path):
    base = bases("llama")
    return {n: make_adapter(base, tmp_path / n, task="text-generation", seed=i) for i, n in enumerate("abc", start=1)}


class Told:
    """A stream that tells what it waits for."""

    def __init__(self, name, said):
        self.name, self.said = name, said

    def wait_stream(self, other):
        self.said.append(f"{self.name} waits for {other.name}")


def test_a_call_on_its_own_stream_and_copies_into_its_slot_wait_for_one_another(bases, folders, monkeypatch):
    backbone = Backbone.from_pretrained(str(bases("llama")), slots=1)
    for name, folder in folders.items():
        backbone.load(folder, name)
    said = []
    own, default = Told("own", said), Told("default", said)
    place = Arena.place

    @contextmanager
    def on(stream):
        said.append(f"on {stream.name}")
        yield
        said.append("as before")

    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(streams, "_own_streams", lambda devices: [(own, default)])
    monkeypatch.setattr(Arena, "place", lambda self, *words: (said.append("copy"), place(self, *words)))
    with torch.no_grad(), backbone.using("a") as model:
        said.append("call")
        model(input_ids=IDS)
    copied = ["on default", "copy", "as before", "own waits for default"]
    assert said == [*copied, "own waits for default", "call", "default waits for own"]
    said.clear()
    with backbone.using("a"):
        pass
    assert said == ["own waits for default", "default waits for own"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("busy", ["own", "default"])
def test_a_slot_is_neither_read_too_early_nor_written_over(bases, folders, busy):
    backbone = Backbone.from_pretrained(str(bases("llama")), slots=1, device="cuda", dtype="float32")
    for name, folder in folders.items():
        backbone.load(folder, name)
    ids, own = IDS.to("cuda"), torch.cuda.Stream()

    def call(name):
        with torch.no_grad(), backbone.using(name) as model:
            return model(input_ids=ids).logits

    want = {name: call(name) for name in folders}
    with torch.cuda.stream(own if busy == "own" else torch.cuda.default_stream()):
        torch.cuda._sleep(2 * 10**8)  # cycles: about a tenth of a second that the other stream is ahead
        first = call("a")
    with torch.cuda.stream(torch.cuda.default_stream() if busy == "own" else own):
        second = call("b")
    torch.cuda.synchronize()
    torch.testing.assert_close((first, second), (want["a"], want["b"]), atol=1e-4, rtol=1e-4)
