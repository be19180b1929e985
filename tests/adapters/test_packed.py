"""Packed rows: many sequences in one row, each with its own adapter, held against the same sequences one by one."""

import pytest
import torch

from lorary.adapters import Backbone
from lorary.adapters.layer.packing import Packing
from lorary.hub.errors import RoutingError, UsageError

SEQUENCES = [[7, 8, 9, 10, 11], [12], [13, 14, 15], [16, 17]]
LENGTHS = [len(sequence) for sequence in SEQUENCES]


@pytest.fixture(scope="module")
def backbone(bases, kinds):
    """A tiny Llama with adapters on all kinds of sites."""
    backbone = Backbone.from_pretrained(str(bases("llama")))
    for name in ("small", "large", "dora", "embedding", "output", "whole", "biased"):
        backbone.load(kinds(name), name)
    return backbone


def packed_inputs():
    ids = torch.tensor([[token for sequence in SEQUENCES for token in sequence]])
    positions = torch.tensor([[place for sequence in SEQUENCES for place in range(len(sequence))]])
    return {"input_ids": ids, "position_ids": positions, "use_cache": False}


@pytest.mark.parametrize(
    "names",
    [
        ["small", None, "large", "dora"],
        ["embedding", "output", None, "small"],
        ["whole", "small", "whole", "biased"],
        ["large"] * 4,
        [None] * 4,
    ],
    ids=lambda names: "-".join(map(str, names)),
)
def test_equals_the_sequences_one_by_one(backbone, names):
    alone = [backbone.logits([sequence], name)[0] for sequence, name in zip(SEQUENCES, names, strict=True)]
    with torch.no_grad(), backbone.using(names, lengths=LENGTHS) as model:
        for _ in range(2):  # the second pass reads what the first one copied together
            packed = model(**packed_inputs()).logits[0].split(LENGTHS)
            for got, expected in zip(packed, alone, strict=True):
                torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_gradients_reach_the_inputs(backbone):
    """A pass with autograd on must not write into what it needs later."""
    embedded = backbone.body.get_input_embeddings()(packed_inputs()["input_ids"]).requires_grad_()
    with backbone.using(["small", None, "large", "dora"], lengths=LENGTHS) as model:
        inputs = packed_inputs() | {"inputs_embeds": embedded}
        inputs.pop("input_ids")
        model(**inputs).logits.sum().backward()
    assert torch.isfinite(embedded.grad).all()


def test_one_adapter_for_all_sequences(backbone):
    with torch.no_grad(), backbone.using("large", lengths=LENGTHS) as model:
        one = model(**packed_inputs()).logits
    with torch.no_grad(), backbone.using(["large"] * 4, lengths=LENGTHS) as model:
        assert torch.equal(model(**packed_inputs()).logits, one)


def test_factors_are_copied_once_for_many_passes(backbone, without_c):
    with torch.no_grad(), backbone.using(["small", "large", None, "dora"], lengths=LENGTHS) as model:
        model(**packed_inputs())
        routing = object.__getattribute__(model, "_routing")
        (products,) = routing._packed.values()
        before = dict(products._sites)
        model(**packed_inputs())
    assert before
    assert all(products._sites[key] is site for key, site in before.items())


def test_layers_that_see_only_the_kept_tokens(backbone):
    """An output layer that an adapter acts on, and that transformers hands the last tokens alone."""
    names = ["output", None, "large", "output"]
    last = torch.tensor(LENGTHS).cumsum(0) - 1
    with torch.no_grad(), backbone.using(names, lengths=LENGTHS) as model:
        expected = model(**packed_inputs()).logits[:, last]
        with pytest.raises(RoutingError, match="sees 4 tokens of a packed row of 11"):
            model(**packed_inputs(), logits_to_keep=last)
    packing = Packing(LENGTHS, kept=range(4))
    with torch.no_grad(), backbone._residency.lease(backbone._residency.resolve(names), packing=packing) as routing:
        from lorary.adapters.layer.routing import routed

        with routed(routing):
            got = backbone.model(**packed_inputs(), logits_to_keep=last).logits
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_wrong_lengths_are_refused(backbone):
    with (
        pytest.raises(UsageError, match="3 lengths for 2 adapters"),
        backbone.using(["small", None], lengths=[1, 2, 3]),
    ):
        pass
    for lengths in ([3, 0], [3, 1.5]):
        with pytest.raises(UsageError, match="at least one token"), backbone.using(["small", None], lengths=lengths):
            pass
    with (
        torch.no_grad(),
        backbone.using(["small", "large"], lengths=[5, 5]) as model,
        pytest.raises(RoutingError, match="sees 11 tokens of a packed row of 10"),
    ):
        model(**packed_inputs())
