"""A pretrained model's files: written, read back as anybody will read them, and told of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lorary.adapters.base.loading import is_encoder, natural_class
from lorary.hub.errors import GateError
from lorary.hub.provenance.curve import thinned
from lorary.hub.provenance.private import bare_name, redact, redact_text
from lorary.training.data import Example
from lorary.training.fitting.loop import Fitted
from lorary.training.pretraining.corpus import Corpus, Objective, ids_of
from lorary.training.pretraining.recipe import PretrainRecipe
from lorary.training.progress import Reporter
from lorary.training.provenance import environment, peak_memory, without_folders
from lorary.training.tasks.rows.encoded import Encoded

_GOLDEN = 4  # rows whose logits the saved files have to give back
_TEXTS = 16  # of which the saved tokenizer has to make the same tokens
_TOLERANCE = 1e-4  # relative to 1 + the largest logit


def save_base(model: Any, tokenizer: Any, recipe: PretrainRecipe, folder: Path) -> None:
    """Write the model, its tokenizer and the recipe into ``folder``."""
    model.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    (folder / "pretrain.yaml").write_text(redact_text(_public(recipe).to_yaml()), encoding="utf-8")


def reload_base(
    folder: Path, model: Any, tokenizer: Any, objective: Objective, documents: Sequence[Example], rows: Encoded
) -> Any:
    """The model as anybody will load it; it has to be the one that was trained.

    Raises:
        GateError: a tensor, the tokenizer or the logits of held-out rows differ.
    """
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    auto = AutoModelForMaskedLM if is_encoder(model.config) else natural_class(model.config)
    loaded, info = auto.from_pretrained(str(folder), dtype=torch.float32, output_loading_info=True)
    if info["missing_keys"] or info["unexpected_keys"]:
        raise GateError(f"the saved model lacks or adds tensors: {sorted(info['missing_keys'])[:3]}")
    trained = model.to("cpu").state_dict()
    for name, tensor in loaded.state_dict().items():
        if not torch.equal(tensor, trained[name]):
            raise GateError(f"{name!r}: the saved tensor differs from the trained one")
    loaded.eval()
    probes = [feature["input_ids"] for feature in rows.features[:_GOLDEN]]
    for row, want, got in zip(probes, objective.golden(model, probes), objective.golden(loaded, probes), strict=True):
        difference = float((want - got).abs().max() / (1 + want.abs().max()))
        if not difference <= _TOLERANCE:
            raise GateError(
                f"a row of {len(row)} tokens: the saved model's logits differ by {difference:.2g} (relative)"
            )
    texts = [example.values["text"] for example in documents[:_TEXTS]]
    if AutoTokenizer.from_pretrained(str(folder))(texts)["input_ids"] != tokenizer(texts)["input_ids"]:
        raise GateError("the saved tokenizer makes other tokens of held-out texts than the trained one")
    return loaded


def base_provenance(
    recipe: PretrainRecipe, corpus: Corpus, rows: Mapping[str, Encoded], fitted: Fitted, vocabulary: int,
    device: torch.device, reporter: Reporter,
) -> dict[str, Any]:  # fmt: skip
    """How the base came to be; nothing names a user, a host or a folder."""
    return {
        "data": corpus.provenance,
        "tokens": {part: len(ids_of(made)) for part, made in rows.items()},
        "vocabulary": vocabulary,
        "recipe": redact(_public(recipe).model_dump(mode="json", exclude_none=True)),
        "environment": environment(device),
        "steps": fitted.steps,
        "best_epoch": fitted.best_epoch,
        "loss": fitted.loss,
        "curve": [list(point) for point in thinned(fitted.curve)],
        "seconds": round(fitted.seconds, 3),
        "peak_memory_bytes": peak_memory(device),
        "notices": [
            redact_text(without_folders(line, recipe.data.train, recipe.data.test)) for line in reporter.notices
        ],
    }


def _public(recipe: PretrainRecipe) -> PretrainRecipe:
    """The recipe without the folders of the machine that ran it."""

    def last(text: str | None) -> str | None:
        return bare_name(text) if text else text

    data = recipe.data.model_copy(update={key: last(getattr(recipe.data, key)) for key in ("train", "test")})
    return recipe.model_copy(update={"data": data, "output": None})
