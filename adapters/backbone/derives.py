"""What is made of loaded adapters: blends, which are adapters again, and merged models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from lorary.adapters.adapter import Adapter
from lorary.adapters.arguments import adapter_name, folder_path, shown
from lorary.adapters.backbone.assembly import Assembly
from lorary.adapters.blending.blend import kept_blend, settle_blend
from lorary.adapters.blending.combination import Combination
from lorary.adapters.blending.parts import read_loaded
from lorary.adapters.layer.compiled import eagerly
from lorary.adapters.layer.routing import Routing
from lorary.adapters.merging.merge import Target, write_merged
from lorary.adapters.merging.through_peft import write_merged_by_peft
from lorary.adapters.through_peft.adapter import PeftAdapter
from lorary.adapters.values import LoadedAdapter, MergedModel
from lorary.hub.errors import UsageError


class Derives(Assembly):
    """Adapters and models that are made of loaded adapters."""

    def blend(
        self,
        weights: Mapping[str, float],
        name: str,
        *,
        combination: str = "cat",
        density: float | None = None,
        rank: int | None = None,
        majority_sign: str | None = None,
        seed: int | None = None,
        head: str | None = None,
        domain: str | None = None,
        output: str | Path | None = None,
        register: bool = False,
    ) -> LoadedAdapter:
        """Combine loaded adapters into a new one and load it under ``name``, as :meth:`load` would.

        Args:
            weights: the names of loaded adapters, and how much of each; negative takes its effect away.
            name: what the blend is called.
            combination: ``cat``, the exact weighted sum, or another of PEFT's kinds (:class:`Combination`).
            density: for the pruning kinds, the share of values they keep.
            rank: for the kinds that end in svd, the rank of the result; the largest of the adapters' unless given.
            majority_sign: for the TIES kinds, ``total`` (the default) or ``frequency``.
            seed: for the DARE kinds; 0 unless given.
            head: whose head, labels, prompt and preprocessing it takes over, where they differ; or ``average``.
            domain: its subject matter; by default that of the adapter that ``head`` names, else of all of them.
            output: a new folder to keep its checkpoint in.
            register: put it into the registry as a version of ``name``, with the adapters as its parents.

        Raises:
            UnknownReferenceError: an adapter that isn't loaded.
            UsageError: a weight or a setting that can't be.
            BlendError: the adapters can't be combined so.
            BaseMismatchError: they belong to different bases.
            OutputError: ``output`` is there already, or can't be written.
        """
        if not isinstance(weights, Mapping):
            raise UsageError(
                f"expected the adapters' weights by name, such as {{'legal': 0.7}}, found {shown(weights)}"
            )
        how = Combination(combination, density, rank, majority_sign, seed)
        registry = self._intake.registry
        with self._residency.lock:
            for of in weights:
                self._peft.refuse(adapter_name(of), "blend")
            loaded = {of: self._residency.get(of) for of in weights}
        parts = read_loaded(loaded, weights, registry)
        with kept_blend(parts, how, name, output, head=head, domain=domain) as blend:
            into = registry if register else None

            def settle(adapter: Adapter, routing: Routing) -> str:
                with self._intake.unrounded(adapter, routing) as exact:
                    return settle_blend(blend, parts, into, self._inference, self.numerics, adapter, exact)

            return self._intake.take(blend.source, name, settle=settle)

    def merge(self, name: str, folder: str | Path, *, dtype: str | torch.dtype | None = None) -> MergedModel:
        """Write the model that an adapter makes of this backbone, for transformers alone; nothing changes here.

        The update goes into the weights as they are served, dequantized; the files are loaded again and their logits
        held against the adapter's before the folder gets its name. Merged on a copy in host memory, tensor by tensor.

        Args:
            name: a loaded adapter.
            folder: a new or empty folder.
            dtype: of the merged weights; the backbone's unless given.

        Raises:
            UnknownReferenceError: nothing is loaded under ``name``.
            MergeError: the adapter has no place in the model's class, or the merged model doesn't answer like it.
            OutputError: the folder holds something, or can't be written.
        """
        into = Target(folder_path(folder), self.identity, self.numerics, dtype)
        adapter = self._calls.find(name)
        if isinstance(adapter, PeftAdapter):
            with eagerly():
                return write_merged_by_peft(adapter, self._modules, into)
        with (
            self._residency.lease([adapter]) as routing,
            self._intake.factors(adapter) as factors,
            eagerly(),
            self._intake.unrounded(adapter, routing) as exact,
        ):
            return write_merged(self._inference, exact, factors, self._modules, into)
