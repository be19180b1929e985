"""Generating with a mixed batch, side by side: the bare backbone, lorary, and PEFT on the same adapters."""

from __future__ import annotations

from pathlib import Path

import torch
from models import make_adapters
from timing import compare

PROMPT_TOKENS = 32
NEW_TOKENS = 64


def decode(base: Path, work: Path, adapters: int, rows: int, repetitions: int = 5) -> list[dict[str, object]]:
    """Whole generations of ``rows`` prompts with ``adapters`` resident: one table row for each contender.

    The logits of the mixed batch are held against PEFT's first, so that only equal work is timed.
    """
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from lorary.adapters import Backbone

    folders = make_adapters(base, work / "adapters", adapters)
    backbone = Backbone.from_pretrained(str(base), slots=adapters)
    for folder in folders:
        backbone.load(folder)
    device, dtype = backbone.device, backbone.dtype
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype).to(device)
    reference = PeftModel.from_pretrained(model, folders[0], adapter_name=folders[0].name).eval()
    for folder in folders[1:]:
        reference.load_adapter(folder, adapter_name=folder.name)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(4, 4096, (rows, PROMPT_TOKENS), generator=generator).to(device)
    names = [folders[row % adapters].name for row in range(rows)]
    settings = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False, "pad_token_id": 0}
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def ours(chosen):
        with torch.no_grad(), backbone.using(chosen) as routed:
            return routed.generate(**inputs, **settings)

    def theirs(**choice):
        with torch.no_grad():
            return reference.generate(**inputs, **settings, **choice)

    with torch.no_grad(), backbone.using(names) as routed:
        mine = routed(**inputs).logits.float()
    with torch.no_grad():
        other = reference(**inputs, adapter_names=names).logits.float()
    difference = float((mine - other).abs().max())
    reference.set_adapter(folders[0].name)
    timings = compare({
        "bare backbone": lambda: ours([None]),
        "lorary, one adapter": lambda: ours([names[0]]),
        "PEFT, one adapter": theirs,
        f"lorary, {adapters} adapters mixed": lambda: ours(names),
        f"PEFT, {adapters} adapters mixed": lambda: theirs(adapter_names=names),
    }, repetitions=repetitions)  # fmt: skip
    return [
        {
            f"generation, {rows} rows x {NEW_TOKENS} tokens": name,
            "seconds": f"{timing.median:.3f}",
            "over bare (min to max)": timing.ratio,
            "largest logit difference from PEFT": f"{difference:.2g} ({dtype})"
            if "lorary" in name and "mixed" in name
            else "",
        }
        for name, timing in timings.items()
    ]
