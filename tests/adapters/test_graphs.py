"""Compiled with CUDA graphs: what a step returned stays what it was, and a cache that grows is none of theirs.

Without a GPU a backend stands for them that treats its outputs as they do: each step writes where the last one wrote.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lorary.adapters import Backbone
from lorary.adapters.layer.compiled import records_graphs, without_graphs
from tiny import make_adapter, make_base


class Graphs:
    """A backend of ``torch.compile`` that reuses the memory of its outputs, where the mode asks for graphs."""

    def __init__(self) -> None:
        self.steps = 0
        self._given: list[torch.Tensor] = []

    def __call__(self, module: Any, inputs: Any, mode: str | None = None, **_: Any) -> Any:
        if mode != "reduce-overhead":
            return module.forward

        def replay(*given: Any) -> Any:
            for tensor in given:
                if any(tensor is one for one in self._given):
                    raise RuntimeError("accessing tensor output of CUDAGraphs that has been overwritten")
            made = [one.clone() if isinstance(one, torch.Tensor) else one for one in module.forward(*given)]
            for old in self._given:
                old.fill_(float("nan"))  # whatever the new step left there
            self._given = [one for one in made if isinstance(one, torch.Tensor) and one.is_floating_point()]
            self.steps += 1
            return made

        return replay


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    root = tmp_path_factory.mktemp("encoder")
    base = make_base("bert", root / "base", num_hidden_layers=1)
    return base, make_adapter(base, root / "embeds", task="feature-extraction")


def test_what_a_step_returned_outlives_the_next_one(encoder):
    base, folder = encoder
    backbone = Backbone.from_pretrained(str(base))
    backbone.load(folder, "embeds")
    texts = ["profit rose", "the bank", "sales fell the bank"]
    want = backbone.predict(texts, "embeds", batch_size=1)
    graphs = Graphs()
    backbone.compile(mode="reduce-overhead", backend=graphs)
    ids = [torch.tensor([[2, 7, 8, 3]]), torch.tensor([[2, 9, 6, 3]])]
    with torch.no_grad(), backbone.using("embeds") as model:
        first = model(input_ids=ids[0]).last_hidden_state
        model(input_ids=ids[1])
    assert graphs.steps == 2
    assert not first.isnan().any()
    torch.testing.assert_close(first[0], backbone.logits(ids[0].tolist(), "embeds")[0], atol=1e-5, rtol=1e-5)
    got = backbone.predict(texts, "embeds", batch_size=1)
    assert graphs.steps > 2
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(torch.tensor(one), torch.tensor(other), atol=1e-5, rtol=1e-5)


@pytest.fixture
def writing(tmp_path_factory):
    """A backbone that writes, with one adapter."""
    root = tmp_path_factory.mktemp("writing")
    base = make_base("llama", root / "base", num_hidden_layers=1)
    backbone = Backbone.from_pretrained(str(base))
    targets = ["q_proj", "down_proj"]
    backbone.load(make_adapter(base, root / "writes", task="text-generation", target_modules=targets))
    return backbone


@pytest.mark.parametrize("cache", [{}, {"cache_implementation": "static"}])
def test_generation_whatever_the_cache(cache, writing):
    settings = {"max_new_tokens": 3, "min_new_tokens": 3, **cache}
    want = writing.generate(["profit rose", "the"], ["writes", None], **settings)
    graphs = Graphs()
    writing.compile(mode="reduce-overhead", backend=graphs)
    assert writing.generate(["profit rose", "the"], ["writes", None], **settings) == want
    assert (graphs.steps > 0) == bool(cache), "a growing cache is another shape, so another graph, in each step"


def test_a_cache_that_a_call_brings_itself(writing):
    ids = [torch.tensor([[7, 8, 9]]), torch.tensor([[7]])]

    def answers():
        with torch.no_grad(), writing.using("writes") as model:
            made = model(input_ids=ids[0])
            return made.logits, model(input_ids=ids[1], past_key_values=made.past_key_values).logits

    want = answers()
    writing.compile(mode="reduce-overhead", backend=Graphs())
    torch.testing.assert_close(answers(), want, atol=1e-5, rtol=1e-5)


def test_which_settings_record_graphs():
    for options in ({"mode": "reduce-overhead"}, {"mode": "max-autotune"}, {"options": {"triton.cudagraphs": True}}):
        assert records_graphs(options)
        assert not records_graphs(without_graphs(options))
    assert without_graphs({"mode": "max-autotune"}) == {"mode": "max-autotune-no-cudagraphs"}
    assert not records_graphs({})
    assert without_graphs({"mode": "reduce-overhead", "fullgraph": True}) == {"fullgraph": True}
