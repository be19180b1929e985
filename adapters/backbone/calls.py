"""What a backbone's calls do: look adapters up, hold them for as long as the call lasts, and run its rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from lorary.adapters.adapter import Adapter
from lorary.adapters.arguments import adapter_name, adapter_names, read_rows, token_rows, whole_number
from lorary.adapters.base.modules import ModuleMap
from lorary.adapters.layer.packing import Packing
from lorary.adapters.layer.routing import RoutedModel, routed
from lorary.adapters.predict.base import Row
from lorary.adapters.predict.rows import predict_rows
from lorary.adapters.predict.table import answer_alone, share_parameters, task_of_row
from lorary.adapters.proving.proof import GoldenReport, check_golden, resident_tensors
from lorary.adapters.running.inference import Inference
from lorary.adapters.text.asked import ask_each
from lorary.adapters.text.generate import PromptRow, demand_prompt
from lorary.adapters.text.settings import settings_of_part
from lorary.adapters.through_peft.adapter import PeftAdapter
from lorary.adapters.through_peft.book import PeftBook, on_slots, only_one, share_out
from lorary.adapters.tiers.residency import Residency
from lorary.hub.manifest import Numerics

Names = str | Sequence[str | None] | None
"""One adapter's name for all rows, or one for each; None is the bare backbone."""

_ROWS = "a text, a mapping such as {'text': ...}, or a list of them"
_PROMPTS = "a prompt (a text, or a list of {role, content}), or a list of them"


class Calls:
    """The calls of one backbone, on the adapters in its slots and on those that run through PEFT.

    Each method looks its names up once, so that a swap in the meantime doesn't split a call between two versions.
    :class:`~lorary.adapters.Backbone` has methods of the same names, which say what they take, return and raise.
    """

    def __init__(self, inference: Inference, residency: Residency, peft: PeftBook, modules: ModuleMap) -> None:
        self._inference = inference
        self._residency = residency
        self._peft = peft
        self._modules = modules

    def resolve(self, names: Sequence[str | None]) -> list[Adapter | PeftAdapter | None]:
        """The adapters that these names stand for."""
        with self._residency.lock:  # a swap may take a name from the slots to PEFT, or back
            own = {name: found for name in set(names) if (found := self._peft.find(name)) is not None}
            others = [name for name in names if name not in own]
            slotted = dict(zip(others, self._residency.resolve(others), strict=True))
        return [own[name] if name in own else slotted[name] for name in names]

    def find(self, name: str) -> Adapter | PeftAdapter:
        """The adapter that this name stands for."""
        adapter_name(name)
        with self._residency.lock:
            return self._peft.find(name) or self._residency.get(name)

    @contextmanager
    def using(self, adapter: Names, lengths: Sequence[int] | None) -> Iterator[Any]:
        """See :meth:`lorary.adapters.Backbone.using`."""
        names = adapter_names(adapter)
        packing = None if lengths is None else Packing(lengths)
        if packing is not None:
            names = names * len(packing.lengths) if len(names) == 1 else names
            packing.demand(len(names))
        adapters = self.resolve(names)
        own = only_one(adapters)
        if own is not None:
            own.demand_unpacked(packing)
            with own.routing(len(names)).until_closed() as alone, routed(alone):
                yield RoutedModel(own.view, alone)
            return
        with self._residency.lease(on_slots(adapters), packing=packing) as routing, routed(routing):
            self._inference.demand_rows(routing)
            head = routing.adapters[0].head if routing.uniform and routing.adapters[0] else None
            yield RoutedModel(head.model if head else self._inference.model, routing)

    def predict(self, inputs: Row | Sequence[Row], adapter: Names, batch_size: int, params: dict[str, Any]) -> Any:
        """See :meth:`lorary.adapters.Backbone.predict`."""
        whole_number("batch_size", batch_size)
        rows, single = read_rows(inputs, _ROWS)
        if not rows:
            return []
        adapters = self.resolve(adapter_names(adapter, len(rows)))
        shares = share_parameters({task_of_row(found) for found in adapters}, params)
        predictions: list[Any] = []
        for start in range(0, len(rows), batch_size):
            part = rows[start : start + batch_size]

            def slotted(places: list[int], own: list[Adapter | None], part: list[Row] = part) -> list[Any]:
                with self._residency.lease(own) as routing:
                    return predict_rows(self._inference, [part[place] for place in places], routing, shares)

            def through_peft(places: list[int], own: PeftAdapter, part: list[Row] = part) -> list[Any]:
                return own.predict([part[place] for place in places], shares)

            predictions.extend(share_out(adapters[start : start + batch_size], slotted, through_peft))
        return answer_alone(task_of_row(adapters[0]), inputs, predictions[0]) if single else predictions

    def generate(
        self,
        prompts: PromptRow | Sequence[PromptRow],
        adapter: Names,
        tools: Any,
        template_kwargs: Any,
        kwargs: dict[str, Any],
    ) -> Any:
        """See :meth:`lorary.adapters.Backbone.generate`."""
        given, single = read_rows(prompts, _PROMPTS)
        if not given:
            return []
        if not single and isinstance(given[0], Mapping):
            given, single = [given], True  # one conversation
        rows = ask_each([demand_prompt(row) for row in given], tools, template_kwargs)

        def slotted(places: list[int], own: list[Adapter | None]) -> list[str]:
            with self._residency.lease(own) as routing:
                part = settings_of_part(kwargs, places, len(rows))
                return self._inference.generate([rows[place] for place in places], routing, part)

        def through_peft(places: list[int], own: PeftAdapter) -> list[str]:
            return own.generate([rows[place] for place in places], settings_of_part(kwargs, places, len(rows)))

        texts = share_out(self.resolve(adapter_names(adapter, len(rows))), slotted, through_peft)
        per_prompt = len(texts) // len(rows)
        grouped = texts if per_prompt == 1 else [texts[i : i + per_prompt] for i in range(0, len(texts), per_prompt)]
        return grouped[0] if single else grouped

    def logits(self, rows: Sequence[Sequence[int]], adapter: str | None) -> list[torch.Tensor]:
        """See :meth:`lorary.adapters.Backbone.logits`."""
        (found,) = self.resolve([None if adapter is None else adapter_name(adapter)])
        inference = found.inference if isinstance(found, PeftAdapter) else self._inference
        rows = token_rows(rows, inference.vocabulary)
        if isinstance(found, PeftAdapter):
            return [found.logits(row) for row in rows]
        with self._residency.lease([found]) as routing:
            return [self._inference.logits(row, routing) for row in rows]

    def verify(self, name: str, numerics: Numerics) -> GoldenReport:
        """See :meth:`lorary.adapters.Backbone.verify`."""
        adapter = self.find(name)
        if isinstance(adapter, PeftAdapter):
            return adapter.verify(numerics)
        with self._residency.lease([adapter]) as routing:
            return check_golden(self._inference, routing, adapter, numerics)

    def state(self, name: str) -> dict[str, torch.Tensor]:
        """See :meth:`lorary.adapters.Backbone.state`."""
        adapter = self.find(name)
        if isinstance(adapter, PeftAdapter):
            return adapter.state()
        with self._residency.lease([adapter]) as routing:
            return resident_tensors(self._inference.model, self._modules, routing, adapter)
