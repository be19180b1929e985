"""Writing a run's folder: the adapter as PEFT saves it, the manifest, the golden logits, the recipe as run."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError

from lorary.adapters.base.device import dtype_name
from lorary.adapters.proving.golden import write_golden
from lorary.hub.checkpoint import RECIPE_NAME
from lorary.hub.errors import TrainingError, first_line
from lorary.hub.manifest import Manifest, Numerics
from lorary.hub.provenance.cleaning import clean_manifest
from lorary.hub.provenance.private import bare_name, public_base, redact_text
from lorary.hub.reference import normalise_domain
from lorary.training.model import Base
from lorary.training.precision import base_dtype
from lorary.training.pretraining.recipe import PretrainRecipe
from lorary.training.recipe import Recipe
from lorary.training.recipe.place import INCOMPLETE
from lorary.training.run_lock import make_folder
from lorary.training.tasks import Task

if TYPE_CHECKING:
    from lorary.training.prepare import Prepared

RUNS = Path("runs")
"""Where runs stand whose recipe names no ``output``."""


@dataclass(frozen=True)
class Trained:
    """What the trained model in memory says of itself, to be held against its saved files.

    ``tensors`` are the adapter's, float32 on the CPU, under the checkpoint's key names; ``golden`` the logits of
    ``golden_rows``.
    """

    tensors: Mapping[str, torch.Tensor]
    golden_rows: tuple[tuple[int, ...], ...]
    golden: tuple[torch.Tensor, ...]
    numerics: Numerics
    provenance: Mapping[str, Any] = field(default_factory=dict)


def adapter_tensors(model: Any) -> dict[str, torch.Tensor]:
    """The adapter's tensors under the names that ``save_pretrained`` gives them, copied to the CPU."""
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {key: tensor.detach().float().cpu().clone() for key, tensor in state.items()}


def numerics_of(model: Any, recipe: Recipe) -> Numerics:
    """The arithmetic that a model's logits are computed with."""
    device = next(model.parameters()).device.type
    return Numerics(recipe.base_quantization, dtype_name(base_dtype(model)), device)


def output_folder(recipe: Recipe | PretrainRecipe) -> Path:
    """Where the run's files will stand: the recipe's ``output``, else ``runs/<name>-<time>``, one that isn't there.

    The latter's unfinished folder is made here: of several runs that begin in one second each has its own.

    Raises:
        TrainingError: the folder is there already and isn't empty, a file is in its place, or it can't be made.
    """
    if recipe.output is not None:
        folder = Path(recipe.output).expanduser()
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise TrainingError(f"{folder} is there already; name another folder with output, or remove it")
        return folder
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    first = RUNS / f"{recipe.name}-{stamp}"
    candidates = [first, *(first.with_name(f"{first.name}-{count}") for count in range(2, 1000))]
    with writing(first):
        return next(folder for folder in candidates if _take(folder))


def _take(folder: Path) -> bool:
    """Take a folder for this process; False where a finished run or another process has it."""
    return not folder.exists() and make_folder(folder.with_name(folder.name + INCOMPLETE))


@contextmanager
def writing(final: Path) -> Iterator[None]:
    """Turns whatever goes wrong with writing a run's files into one error that names the run's folder.

    Raises:
        TrainingError: because of rights, a full disk, or a folder that was taken away.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        # torch.save has no error of its own for a disk that is full.
        if isinstance(error, RuntimeError) and not re.search("inline_container|PytorchStreamWriter", str(error)):
            raise
        reason = getattr(error, "strerror", None) or first_line(error)
        raise TrainingError(f"{final}: can't be written ({reason}); free the disk or name another output") from error


def save(prepared: Prepared, trained: Trained, folder: Path) -> None:
    """Write the adapter, ``lorary.json``, ``golden.safetensors`` and ``recipe.yaml`` into ``folder``."""
    model, base, recipe = prepared.model, prepared.base, prepared.recipe
    config = model.peft_config["default"]
    config.base_model_name_or_path = public_base(base.identity.id)
    config.revision = base.identity.commit
    model.save_pretrained(str(folder), save_embedding_layers=False)
    if base.before is not None:
        base.tokenizer.save_pretrained(str(folder))
    make_manifest(base, prepared.task, recipe, trained, prepared.max_length).write(folder)
    write_golden(folder, trained.golden)
    (folder / RECIPE_NAME).write_text(redact_text(public(recipe).to_yaml()), encoding="utf-8")


def make_manifest(base: Base, task: Task, recipe: Recipe, trained: Trained, max_length: int) -> Manifest:
    """The content of ``lorary.json``."""
    manifest = Manifest(
        task=task.name,
        base=base.identity,
        domain=normalise_domain(recipe.domain),
        added_tokens=base.before.added if base.before is not None else None,
        numerics=trained.numerics,
        golden_rows=trained.golden_rows,
        provenance={**trained.provenance, "recipe": public(recipe).settings("json")},
        **task.in_manifest(base.tokenizer, max_length),
    )
    return clean_manifest(manifest)


def public(recipe: Recipe) -> Recipe:
    """The recipe without the folders of the machine that ran it: absolute paths keep their last part."""

    def last(text: str | None) -> str | None:
        return bare_name(text) if text else text

    data = recipe.data.model_copy(
        update={key: last(getattr(recipe.data, key)) for key in ("train", "test", "validation")}
    )
    return recipe.model_copy(
        update={"data": data, "output": None, "base": public_base(recipe.base), "from_": last(recipe.from_)}
    )
