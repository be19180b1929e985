"""Running a backbone for the rows of one call: text and logits, each row with its own adapter."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from lorary.adapters.adapter import Adapter
from lorary.adapters.arguments import demand_known
from lorary.adapters.layer.routing import Routing, routed
from lorary.adapters.running.forward import forward_rows, group_rows
from lorary.adapters.running.padding import PaddingProbe
from lorary.adapters.running.structures import with_structures
from lorary.adapters.text.generate import (
    PromptRow,
    decode_new,
    encode_prompts,
    generation_settings,
    manner_of,
    prompt_tokens,
    room_for,
)
from lorary.adapters.text.settings import (
    check_settings,
    counts_padding,
    end_tokens,
    has_stop_strings,
    settings_of_part,
    takes_one_row,
)
from lorary.hub.errors import RoutingError, UsageError, first_line

if TYPE_CHECKING:
    from lorary.adapters.through_peft.adapter import PeftAdapter

_MODEL_INPUTS = frozenset({"input_ids", "attention_mask", "token_type_ids"})
_OF_LANGUAGES = frozenset({"forced_bos_token_id", "decoder_start_token_id"})
_NO_LIMIT = 1_000_000  # tokenizers without a limit state an astronomic one
_OF_A_GPU = ("CUDA", "Stream")  # what a torch with CUDA says on a machine without a GPU names one of these


def can_generate(model: Any) -> bool:
    """Has the model a language-modelling head?"""
    return hasattr(model, "can_generate") and bool(model.can_generate())


@dataclass
class Inference:
    """A backbone's model (with its language-modelling head, if any), body and tokenizer (None: token ids only).

    ``virtual_tokens``: so many positions are taken by what an adapter of the model's own puts before each row.
    """

    model: Any
    body: Any
    tokenizer: Any
    device: torch.device
    padding: PaddingProbe
    virtual_tokens: int = 0
    rows_first: bool = True  # False: the model's layers don't keep a batch's rows apart, so adapters take turns
    _bare: tuple[tuple[int, ...], dict[str, torch.Tensor]] | None = field(default=None, repr=False)
    # A fast tokenizer keeps truncation and padding as state, so threads that share one would cut each other's rows.
    tokenizing: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def generate(self, prompts: Sequence[PromptRow], routing: Routing, kwargs: dict[str, Any]) -> list[str]:
        """The new text of each prompt (``num_return_sequences`` of them in a row, where that is given)."""
        self.demand_evaluation()
        if not can_generate(self.model):
            raise UsageError(
                f"{type(self.model).__name__} has no language-modelling head; "
                "open a causal or sequence-to-sequence base to generate"
            )
        if self.tokenizer is None:
            raise UsageError("this backbone was loaded without a tokenizer; pass one to Backbone.from_model")
        check_settings(kwargs)
        if kwargs.get("return_dict_in_generate"):
            raise UsageError(
                "generate returns texts; for transformers' own output call generate on a `using` block's model"
            )
        groups = self._groups(routing, kwargs)
        if len(groups) > 1:
            return self._generate_in_turn(prompts, routing, kwargs, groups)
        encoder_decoder = bool(self.model.config.is_encoder_decoder)
        tokenizers = [self.tokenizer_of(adapter) for adapter in routing.adapters]
        with self.tokenizing:
            batch = encode_prompts(
                prompts, routing.adapters, tokenizers, encoder_decoder=encoder_decoder, pad=self.pad_id
            )
        demand_known(int(batch["input_ids"].max()), self.vocabulary)
        inputs = {name: tensor.to(self.device) for name, tensor in batch.items()}
        settings = {"pad_token_id": self.pad_id} | self.own_settings(routing.adapters[0], kwargs)
        ends = end_tokens(settings | kwargs, self.model.generation_config)
        if ends:  # what follows in a row that ended before others; the token to pad with may be one of a text
            settings["pad_token_id"] = ends[0]
        if has_stop_strings(kwargs, self.model.generation_config):
            settings["tokenizer"] = tokenizers[0]
        longest = inputs["input_ids"].shape[1]
        with self._refusals(kwargs):
            room = room_for(self.model, 1 if encoder_decoder else longest, settings | kwargs)
        growing, needed = (0, max(longest, 1 + room)) if encoder_decoder else (room, longest + room)
        alike = self.padding.groups(
            batch["attention_mask"].sum(dim=1).tolist(),
            generating=True,
            growing=growing,
            counted=not encoder_decoder and counts_padding(settings | kwargs, self.model.generation_config),
        )
        if len(alike) > 1:
            return self._generate_in_turn(prompts, routing, kwargs, alike)
        base = self.model.generation_config
        with self._refusals(kwargs, needed), torch.no_grad(), routed(routing):
            called, lengths = with_structures(kwargs, settings, base, tokenizers, self.tokenizing)
            sequences = self.model.generate(**inputs, **settings | called | {"return_dict_in_generate": False})
        return decode_new(sequences, 0 if encoder_decoder else longest, tokenizers, ends, lengths)

    @contextmanager
    def _refusals(self, kwargs: Mapping[str, Any], tokens: int = 0) -> Iterator[None]:
        """What transformers says of arguments that it can't take, and of a text that outgrows a table of positions.

        ``tokens``: as many as a row may come to.

        Raises:
            UsageError: one of these.
        """
        try:
            yield
        except IndexError as error:
            positions, tokens = longest_input(self.model), tokens + self.virtual_tokens
            if positions is None or tokens <= positions:
                raise
            raise UsageError(
                f"{type(self.model).__name__} has {positions} positions, and the prompt with what may follow it has "
                f"{tokens}; shorten the prompt, or lower max_new_tokens"
            ) from error
        except (TypeError, ValueError, ImportError, AssertionError) as error:  # the last of a torch without CUDA
            raise UsageError(f"can't generate with {', '.join(kwargs) or 'these settings'}: {error}") from error
        except RuntimeError as error:
            if torch.cuda.is_available() or not any(word in str(error) for word in _OF_A_GPU):
                raise
            raise UsageError(f"can't generate with {', '.join(kwargs)}: {first_line(error)}") from error

    def demand_evaluation(self) -> None:
        """Refuse to answer with dropout.

        Raises:
            UsageError: somebody has put the model into training mode.
        """
        if self.model.training:
            raise UsageError("the backbone's model is in training mode, whose dropout is random; call model.eval()")

    def tokenizer_of(self, adapter: Adapter | PeftAdapter | None) -> Any:
        """The tokenizer of an adapter's rows: its own where it brought one."""
        own = adapter.own_tokenizer if adapter is not None else None
        return self.tokenizer if own is None else own.tokenizer

    def prompt_ids(
        self, prompt: PromptRow, adapter: Adapter | None, demand: Callable[[str], None] | None = None
    ) -> list[int]:
        """The tokens of a prompt for a decoder, put the way its adapter was trained; ``demand`` may refuse its text."""
        manner, tokenizer = manner_of(adapter), self.tokenizer_of(adapter)
        with self.tokenizing:
            return prompt_tokens(prompt, manner, tokenizer, encoder_decoder=False, demand=demand)[0]

    def _groups(self, routing: Routing, kwargs: Mapping[str, Any]) -> list[list[int]]:
        """The rows that one call of the model can generate for: those whose adapters ask for the same."""
        if takes_one_row(kwargs, self.model.generation_config):
            return [[row] for row in range(len(routing.adapters))]
        if not routing.uniform and not self.rows_first:
            return list(group_rows(routing.adapters).values())
        settings = {adapter: self.own_settings(adapter, kwargs) for adapter in set(routing.adapters)}
        if has_stop_strings(kwargs, self.model.generation_config):  # transformers looks for them with one tokenizer
            settings = {found: own | {"tokenizer": self.tokenizer_of(found)} for found, own in settings.items()}
        groups: list[tuple[dict[str, Any], list[int]]] = []
        for row, adapter in enumerate(routing.adapters):
            rows = next((rows for other, rows in groups if other == settings[adapter]), None)
            if rows is None:
                groups.append((settings[adapter], [row]))
            else:
                rows.append(row)
        return [rows for _, rows in groups]

    def own_settings(self, adapter: Adapter | None, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """What an adapter's manifest asks for, less what the call says in other words."""
        with self.tokenizing:
            settings = generation_settings(manner_of(adapter), self.model, self.tokenizer_of(adapter))
        if "max_length" in kwargs:
            settings.pop("max_new_tokens", None)
        if "generation_config" in kwargs:
            return {name: value for name, value in settings.items() if name in _OF_LANGUAGES}
        return settings

    def _generate_in_turn(
        self, prompts: Sequence[PromptRow], routing: Routing, kwargs: dict[str, Any], groups: Sequence[list[int]]
    ) -> list[str]:
        texts: dict[int, list[str]] = {}
        for rows in groups:
            part = settings_of_part(kwargs, rows, len(prompts))
            made = self.generate([prompts[row] for row in rows], routing.subset(rows), part)
            each = len(made) // len(rows)
            texts |= {row: made[place * each : (place + 1) * each] for place, row in enumerate(rows)}
        return [text for row in range(len(prompts)) for text in texts[row]]

    def demand_rows(self, routing: Routing) -> None:
        """Refuse a call with several adapters of a model that doesn't keep its rows apart: its layers would mix them.

        Raises:
            RoutingError: it is such a call.
        """
        if not routing.uniform and not self.rows_first:
            raise RoutingError(
                f"the layers of {type(self.body).__name__} don't keep a batch's rows apart, so one pass can't serve "
                "several adapters; use one adapter at a time here, or predict and generate, which take turns"
            )

    def logits(self, row: Sequence[int], routing: Routing) -> torch.Tensor:
        """The logits of one token row (:meth:`lorary.adapters.Backbone.logits` says of what shape)."""
        self.demand_evaluation()
        adapter = routing.adapters[0]
        has_head = adapter is not None and adapter.head is not None
        # An embedding adapter on a language model is about the states before the vocabulary, as `predict` reads them.
        states = adapter is not None and adapter.task == "feature-extraction"
        if has_head or states or not can_generate(self.model):
            ids = self._token_ids(row)
            # A head's own model starts its decoder, where it has one, by itself.
            inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)} if has_head else self.batch(ids)
            return forward_rows(self.body, inputs, routing)[0].float().cpu()
        logits: torch.Tensor = self.run(row, routing).logits[0]
        return logits.float().cpu()

    def bare_outputs(self, row: Sequence[int]) -> dict[str, torch.Tensor]:
        """What the bare backbone makes of a token row; that of the row asked for last is kept."""
        kept = self._bare  # read once: threads that load at the same time may each put theirs here
        if kept is None or kept[0] != tuple(row):
            kept = self._bare = tuple(row), tensors_of(self.run(row, None))
        return kept[1]

    def run(self, row: Sequence[int], routing: Routing | None) -> Any:
        """The model's own output for one token row; no routing means the bare backbone."""
        with torch.no_grad(), routed(routing):
            return self.model(**self.probe_inputs(row))

    def probe_inputs(self, row: Sequence[int]) -> dict[str, torch.Tensor]:
        """The model's inputs for one token row."""
        return self.batch(self._token_ids(row))

    def _token_ids(self, row: Sequence[int]) -> torch.Tensor:
        return torch.tensor([list(row)], device=self.device)

    def batch(self, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """The model's inputs for token ids [rows, tokens] without padding."""
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)} | decoder_start(self.model.config, ids)

    def pad(self, encoded: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Pad on the right, so that a token's position doesn't depend on its batch mates.

        Raises:
            UsageError: a token that the model lacks.
        """
        rows = [{name: row[name][0] for name in row if name in _MODEL_INPUTS} for row in encoded]
        demand_known(max(int(row["input_ids"].max()) for row in rows), self.vocabulary)
        fill = {"input_ids": self.pad_id, "attention_mask": 0, "token_type_ids": 0}
        return {
            name: torch.nn.utils.rnn.pad_sequence(
                [row[name] for row in rows], batch_first=True, padding_value=fill[name]
            ).to(self.device)
            for name in rows[0]
        }

    @property
    def vocabulary(self) -> int:
        """How many tokens the embedding has."""
        return int(self.body.get_input_embeddings().weight.shape[0])

    @property
    def pad_id(self) -> int:
        """The padding token: a classifier on a decoder looks for the last token that isn't it."""
        return padding_token(self.model.config, self.tokenizer)

    @property
    def max_length(self) -> int | None:
        """The most tokens that the model and the tokenizer take besides virtual ones, None where neither says."""
        limits = (longest_input(self.model), getattr(self.tokenizer, "model_max_length", None))
        longest = min((limit for limit in limits if limit and limit < _NO_LIMIT), default=None)
        return None if longest is None else longest - self.virtual_tokens


def decoder_start(config: Any, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """A few tokens for a decoder that is probed with ``ids`` [rows, tokens]; nothing where there is no encoder.

    One token alone attends only to itself, and hides what queries and keys do.
    """
    if not config.is_encoder_decoder:
        return {}
    first = getattr(config, "decoder_start_token_id", None) or 0  # T5Gemma's config has none
    start = torch.full((ids.shape[0], 1), first, device=ids.device)
    return {"decoder_input_ids": torch.cat([start, ids[:, :3]], dim=1)}


def tensors_of(output: Any) -> dict[str, torch.Tensor]:
    """The tensors of a model's output, without caches and the like."""
    return {name: value for name, value in output.items() if isinstance(value, torch.Tensor)}


def padding_token(config: Any, tokenizer: Any) -> int:
    """The id to pad with: the model's own, else the tokenizer's, else one that rarely ends a text."""
    own = (getattr(part, "pad_token_id", None) for part in (config, config.get_text_config()))
    tokens = (*own, *(getattr(tokenizer, f"{kind}_token_id", None) for kind in ("pad", "unk", "eos")))
    return next((int(token) for token in tokens if token is not None), 0)


def longest_input(model: Any) -> int | None:
    """The most tokens that a model has positions for, None where it has no limit."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if not positions or positions < 0:
        return None
    # RoBERTa and its kin begin counting positions after the padding's index.
    table = next((module for name, module in model.named_modules() if name.endswith("position_embeddings")), None)
    offset = getattr(table, "padding_idx", None)
    return int(positions - (offset + 1 if offset is not None else 0))
