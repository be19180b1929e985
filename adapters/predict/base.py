"""What the predictors of all tasks share: rows, the setting they are read in, and the pipelines' parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch

from lorary.hub.errors import UsageError, first_line
from lorary.hub.manifest import Answering, Pooling, Preprocessing

Row = str | Mapping[str, Any] | Sequence[str]


@dataclass(frozen=True)
class Setting:
    """What an adapter's rows are read with: its task model (None for the bare body), tokenizer and preprocessing.

    ``longest`` is the most tokens that the backbone takes; ``limit`` is that, or the adapter's own where it is less.
    """

    model: Any
    tokenizer: Any
    preprocessing: Preprocessing
    pooling: Pooling | None
    longest: int | None
    answering: Answering | None = None
    thresholds: tuple[float, ...] | None = None

    @property
    def limit(self) -> int | None:
        """The most tokens of a row."""
        return min((limit for limit in (self.preprocessing.max_length, self.longest) if limit), default=None)


class RowPredictor(Protocol):
    """How the rows of one adapter are encoded, and what its logits mean."""

    parameters: ClassVar[frozenset[str]]
    """The parameters of ``predict`` that this task takes."""

    def __init__(self, setting: Setting, params: Mapping[str, Any]) -> None:
        """Raises UsageError for a parameter's value that the task doesn't take."""

    def encode(self, row: Row) -> list[dict[str, Any]]:
        """A row's pieces, one unless it is too long: tensors, each [1, tokens], and what decoding needs besides.

        ``asked`` in a piece, [tokens asked for]: the only ones whose logits matter.
        """

    def decode(self, pieces: list[dict[str, Any]], logits: list[torch.Tensor]) -> Any:
        """A row's prediction from its pieces' logits (padding removed)."""


def read_text(row: Row, columns: Mapping[str, str]) -> tuple[str, str | None]:
    """A row's text and its second text, from a string or from a mapping by role or by the adapter's own column names.

    Raises:
        UsageError: neither is there.
    """
    if isinstance(row, str):
        return row, None
    if not isinstance(row, Mapping):
        raise UsageError(f"expected a text or a mapping with 'text', found {type(row).__name__}")
    pair = row.get(columns.get("text_pair", "text_pair"), row.get("text_pair"))
    return read_column(row, columns, "text"), None if pair is None else read_column(row, columns, "text_pair")


def read_column(row: Mapping[str, Any], columns: Mapping[str, str], role: str) -> str:
    """The text that a row has under a role, or under the adapter's own name for it.

    Raises:
        UsageError: there is none.
    """
    column = columns.get(role, role)
    text = row.get(column, row.get(role))
    if text is None:
        raise UsageError(
            f"a row has no {role}: expected a column {column!r}, found {', '.join(map(str, row)) or 'nothing'}"
        )
    if not isinstance(text, str):
        raise UsageError(f"a row's {role} isn't a text: expected str, found {type(text).__name__}")
    return text


def post_parameters(pipeline: Any, params: Mapping[str, Any]) -> dict[str, Any]:
    """A pipeline's own reading of the parameters for its last step.

    Raises:
        UsageError: it doesn't take them.
    """
    try:
        post: dict[str, Any] = pipeline._sanitize_parameters(**params)[2]
    except (TypeError, KeyError, ValueError) as error:
        given = ", ".join(f"{name}={value!r}" for name, value in params.items())
        reason = f"{error} isn't known" if isinstance(error, KeyError) else first_line(error)
        raise UsageError(f"predict doesn't take {given}: {reason}") from error
    return post


def open_pipeline(kind: type[Any], setting: Setting) -> Any:
    """A transformers pipeline of this kind around the adapter's model.

    The model may be a view of the backbone's, which isn't in the pipeline's list of classes; that it answers for the
    task is known from its head.
    """
    own = type(kind.__name__, (kind,), {"check_model_type": lambda self, supported_models: None})
    return own(model=setting.model, tokenizer=setting.tokenizer, device=device_of(setting.model))


def device_of(model: Any) -> torch.device:
    """Where a task model's own parameters are."""
    return next(parameter.device for parameter in model.parameters())
