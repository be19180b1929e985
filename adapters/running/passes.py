"""One pass of the body for the rows of many adapters, and what each one's head reads of it.

Most bodies are one module and answer whole. Where transformers' task classes take an encoder-decoder apart (T5's keep
its encoder and its decoder, or the encoder alone), the pass is made part by part; the decoder then starts from the
input itself, shifted by one, as those classes let it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from lorary.adapters.heads.task_heads import DECODER, ENCODER, Parts, in_parts
from lorary.adapters.layer.routing import Routing, routed


class BodyPass(Protocol):
    """What a pass made for its rows."""

    def of(self, rows: Sequence[int], device: torch.device) -> Any:
        """What a head reads of these rows, on the device where heads are."""

    def hidden(self, rows: Sequence[int]) -> torch.Tensor:
        """The hidden states of these rows, [rows, tokens, hidden]; a body in parts gives its encoder's."""


@dataclass(frozen=True)
class WholePass:
    """The output of a body that answers whole."""

    output: Any

    def of(self, rows: Sequence[int], device: torch.device) -> Any:
        """The rows of the output; caches, which heads don't read, are left out."""
        return _take(self.output, rows, device)

    def hidden(self, rows: Sequence[int]) -> torch.Tensor:
        """The rows of the output's first tensor."""
        states: torch.Tensor = self.output[0][list(rows)]
        return states


@dataclass(frozen=True)
class PartedPass:
    """The outputs of an encoder and, for those rows whose heads read it, of its decoder.

    ``decoded``: where each such row stands in the decoder's output.
    """

    encoder: Any
    decoder: Any
    decoded: Mapping[int, int]

    def of(self, rows: Sequence[int], device: torch.device) -> Any:
        """The rows of each part's output."""
        made = {ENCODER: _take(self.encoder, rows, device)}
        if all(row in self.decoded for row in rows):
            made[DECODER] = _take(self.decoder, [self.decoded[row] for row in rows], device)
        return Parts(made)

    def hidden(self, rows: Sequence[int]) -> torch.Tensor:
        """The encoder's states of these rows."""
        states: torch.Tensor = self.encoder[0][list(rows)]
        return states


def run_body(
    body: Any, inputs: Mapping[str, torch.Tensor], routing: Routing, decoding: Sequence[int]
) -> WholePass | PartedPass:
    """Run the shared body once for these rows; of a body in parts, the decoder for the rows ``decoding`` alone."""
    if not in_parts(body):
        return WholePass(run(body, inputs, routing))
    plain = {name: inputs[name] for name in ("input_ids", "attention_mask") if name in inputs}
    encoded = run(body.get_encoder(), plain, routing)
    if not decoding:
        return PartedPass(encoded, None, {})
    chosen = take_rows(plain, decoding)
    arguments = {
        "input_ids": body._shift_right(chosen["input_ids"]),
        "encoder_hidden_states": encoded[0][list(decoding)],
        "encoder_attention_mask": chosen.get("attention_mask"),
    }
    decoded = run(body.get_decoder(), arguments, routing.subset(decoding))
    return PartedPass(encoded, decoded, {row: place for place, row in enumerate(decoding)})


def run(module: Any, inputs: Mapping[str, Any], routing: Routing) -> Any:
    """A module's own output for a batch, each row with its adapter."""
    with torch.no_grad(), routed(routing):
        return module(**inputs)


def take_rows(inputs: Mapping[str, torch.Tensor], rows: Sequence[int]) -> dict[str, torch.Tensor]:
    """These rows of a batch."""
    return {name: tensor[list(rows)] for name, tensor in inputs.items()}


def _take(output: Any, rows: Sequence[int], device: torch.device) -> Any:
    # The last layers of a model that is spread over devices answer on their own one.
    picked = {
        name: value[list(rows)].to(device)
        for name, value in output.items()
        if isinstance(value, torch.Tensor) and value.ndim > 1
    }
    return type(output)(**picked)
