"""The same adapters on one model twice, on lorary's backbone and on PEFT's model, beside the model as it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from models import VOCABULARY, make_adapters


class Contenders:
    """A backbone and a PEFT model with ``adapters`` adapters each, and prompts of ``rows`` x ``tokens`` ids.

    ``bare``: transformers' own model, untouched; ``names``: the adapters' names; ``mixed``: one for each
    row, in turn. ``adapter_dtype`` is what lorary keeps them in.
    """

    def __init__(
        self,
        base: Path,
        work: Path,
        *,
        adapters: int,
        rows: int,
        tokens: int = 32,
        peft: bool = True,
        adapter_dtype: str | None = None,
    ) -> None:
        from lorary.adapters import Backbone

        self.folders = make_adapters(base, work / f"adapters-{adapters}", adapters)
        self.names = [folder.name for folder in self.folders]
        self.mixed = [self.names[row % adapters] for row in range(rows)]
        self.backbone = Backbone.from_pretrained(str(base), slots=adapters, adapter_dtype=adapter_dtype)
        for folder in self.folders:
            self.backbone.load(folder)
        self.device, self.dtype = self.backbone.device, self.backbone.dtype
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(4, VOCABULARY, (rows, tokens), generator=generator).to(self.device)
        self.inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        self.bare = self._load_bare(base)
        self.peft = self._load_peft(base) if peft else None

    def _load_bare(self, base: Path) -> Any:
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(base, dtype=self.dtype).to(self.device).eval()

    def _load_peft(self, base: Path) -> Any:
        from peft import PeftModel

        reference = PeftModel.from_pretrained(self._load_bare(base), self.folders[0], adapter_name=self.names[0]).eval()
        for folder in self.folders[1:]:
            reference.load_adapter(folder, adapter_name=folder.name)
        reference.set_adapter(self.names[0])
        return reference

    def ours(self, names: Sequence[str | None], **settings: Any) -> Any:
        """Generate with lorary."""
        with torch.no_grad(), self.backbone.using(list(names)) as model:
            return model.generate(**self.inputs, **settings)

    def plain(self, **settings: Any) -> Any:
        """Generate with the bare model."""
        with torch.no_grad():
            return self.bare.generate(**self.inputs, **settings)

    def theirs(self, **settings: Any) -> Any:
        """Generate with PEFT, with the active adapter or with ``adapter_names`` among the settings."""
        assert self.peft is not None
        with torch.no_grad():
            return self.peft.generate(**self.inputs, **settings)

    def difference(self) -> float:
        """The largest difference between the two's logits for the mixed batch: only equal work is worth timing."""
        assert self.peft is not None
        with torch.no_grad(), self.backbone.using(self.mixed) as model:
            mine = model(**self.inputs).logits.float()
        with torch.no_grad():
            other = self.peft(**self.inputs, adapter_names=self.mixed).logits.float()
        return float((mine - other).abs().max())
