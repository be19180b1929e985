"""Adapters that mlx-lm trained, as PEFT checkpoints: the same numbers under PEFT's names.

Format: mlx-lm's ``adapter_config.json`` and ``adapters.safetensors`` (``mlx_lm.lora``). A layer has ``lora_a``
[in, rank] and ``lora_b`` [rank, out], and adds ``scale * (x @ lora_a) @ lora_b``; PEFT's factors are the transposed
ones, and its scale is alpha by rank. DoRA's magnitude ``m`` [out] is the same in both.
"""

from __future__ import annotations

import json
import math
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorary.hub.checkpoint import CONFIG_NAME, MAX_TEXT_BYTES, WEIGHTS_NAME, Checkpoint, read_checkpoint
from lorary.hub.errors import CheckpointError, UnsafeFileError
from lorary.hub.jsontext import load_json
from lorary.hub.tensorfile import DTYPE_BYTES, TensorInfo, read_header, write_tensors

MLX_WEIGHTS_NAME = "adapters.safetensors"
_TYPES = ("lora", "dora")
_DTYPES = ("F32", "F16", "BF16")
_LAYER = re.compile(r"(.+\.layers)\.(\d{1,6})\.(.+)")
_PARTS = {"lora_a": "lora_A.weight", "lora_b": "lora_B.weight", "m": "lora_magnitude_vector"}


def is_mlx(folder: Path) -> bool:
    """Does a folder hold an adapter of mlx-lm's, and none of PEFT's?"""
    return (folder / MLX_WEIGHTS_NAME).is_file() and not (folder / WEIGHTS_NAME).exists()


@contextmanager
def read_mlx(folder: Path) -> Iterator[tuple[Checkpoint, Mapping[str, Any]]]:
    """An adapter of mlx-lm's as a PEFT checkpoint, whose files are there within the block, and its own config.

    Raises:
        CheckpointError: it can't be read, or is none that PEFT has the same of: a full fine-tuning, or LoRA on experts
            that are one tensor, or on embeddings.
        UnsafeFileError: one of its files is a link.
    """
    if link := next((name for name in (CONFIG_NAME, MLX_WEIGHTS_NAME) if (folder / name).is_symlink()), None):
        raise UnsafeFileError(f"{folder / link}: is a link; copy the file itself into the folder")
    told = _read_config(folder / CONFIG_NAME)
    settings = _settings(told, folder)
    weights = folder / MLX_WEIGHTS_NAME
    tensors = read_header(weights, str(weights))
    layers = _layers(tensors, settings, folder)
    with tempfile.TemporaryDirectory(prefix="lorary-") as name:
        made = {file: Path(name) / file for file in (CONFIG_NAME, WEIGHTS_NAME)}
        made[CONFIG_NAME].write_text(json.dumps(_peft_config(told, settings, layers), indent=2), encoding="utf-8")
        _convert(weights, tensors, made[WEIGHTS_NAME])
        yield read_checkpoint(made, shown=str(folder)), told


@dataclass(frozen=True)
class _Settings:
    rank: int
    scale: float
    dropout: float
    dora: bool


def _read_config(path: Path) -> Mapping[str, Any]:
    try:
        if path.stat().st_size > MAX_TEXT_BYTES:
            raise CheckpointError(f"{path}: is too large; expected some kilobytes")
        found = load_json(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path}: can't be read ({error.strerror or error})") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: expected an object, as mlx-lm writes it")
    return found


def _settings(told: Mapping[str, Any], folder: Path) -> _Settings:
    kind = told.get("fine_tune_type", "dora" if told.get("use_dora") is True else "lora")
    if kind not in _TYPES:
        what = "the base's own weights, trained whole" if kind == "full" else f"of the type {kind!r:.50}"
        raise CheckpointError(f"{folder}: mlx-lm's adapter is {what}; expected one of {', '.join(_TYPES)}")
    given = told.get("lora_parameters")
    given = given if isinstance(given, dict) else {}
    rank, (scale, dropout) = given.get("rank"), (_number(name, given, folder) for name in ("scale", "dropout"))
    if type(rank) is not int or rank < 1:
        raise CheckpointError(f"{folder}: lora_parameters has the rank {rank!r:.50}; expected a whole number from 1 on")
    if "alpha" in given and given["alpha"] != rank:
        raise CheckpointError(
            f"{folder}: lora_parameters has an alpha, which old versions of mlx-lm multiplied into the scale and "
            "today's pass over; take it out of a copy's adapter_config.json, with the scale that was meant there: "
            "scale, or scale * alpha / rank"
        )
    return _Settings(rank, scale, dropout, kind == "dora")


def _number(name: str, given: Mapping[str, Any], folder: Path) -> float:
    value = given.get(name, 0.0 if name == "dropout" else None)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
        raise CheckpointError(f"{folder}: lora_parameters has the {name} {value!r:.50}; expected a number")
    return float(value)


def unknown_copy(told: Mapping[str, Any], base: str | None) -> str | None:
    """What to tell of a base that PyTorch can't read, where no other was given."""
    named = told.get("model")
    if base is not None or not isinstance(named, str) or not named.lower().startswith("mlx-community/"):
        return None
    return f"its base {named} is mlx's copy of another; --base ORG/NAME says of which, here or where it is opened"


def _layers(tensors: Mapping[str, TensorInfo], settings: _Settings, folder: Path) -> list[str]:
    """The paths of the adapted layers, each of which has all of its tensors.

    Raises:
        CheckpointError: a tensor is missing, is no LoRA's, or doesn't have the shape that the config says.
    """
    parts = ("lora_a", "lora_b", *(("m",) if settings.dora else ()))
    found: dict[str, dict[str, TensorInfo]] = {}
    for name, info in tensors.items():
        path, _, part = name.rpartition(".")
        if part not in parts or not path:
            raise CheckpointError(f"{folder}: {MLX_WEIGHTS_NAME} holds {name}, which is none of {', '.join(parts)}")
        if info.dtype not in _DTYPES:
            raise CheckpointError(f"{folder}: {name} is {info.dtype}; expected {', '.join(_DTYPES)}")
        if len(info.shape) != (1 if part == "m" else 2):
            raise CheckpointError(
                f"{folder}: {name} has the shape {list(info.shape)}: LoRA on experts that mlx-lm keeps as one tensor, "
                "which PEFT has no same of"
            )
        if "embed" in path.rpartition(".")[2] or path.rpartition(".")[2] in ("wte", "wpe"):
            raise CheckpointError(
                f"{folder}: {name} is LoRA on an embedding, which unlike PEFT's acts on a tied output layer too"
            )
        found.setdefault(path, {})[part] = info
    if not found:
        raise CheckpointError(f"{folder}: {MLX_WEIGHTS_NAME} holds no tensors")
    for path, has in found.items():
        if missing := [part for part in parts if part not in has]:
            raise CheckpointError(f"{folder}: {MLX_WEIGHTS_NAME} has no {path}.{missing[0]}")
        a, b = has["lora_a"].shape, has["lora_b"].shape
        if settings.dora and has["m"].shape != b[1:]:
            raise CheckpointError(f"{folder}: {path}.m has the shape {list(has['m'].shape)}; expected {list(b[1:])}")
        if not a[1] == b[0] == settings.rank:
            raise CheckpointError(
                f"{folder}: {path} has factors of the shapes {list(a)} and {list(b)}; expected [in, {settings.rank}] "
                f"and [{settings.rank}, out]"
            )
    return list(found)


def _peft_config(told: Mapping[str, Any], settings: _Settings, paths: list[str]) -> dict[str, Any]:
    alpha = settings.scale * settings.rank
    base = told.get("model")
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base if isinstance(base, str) else None,
        "r": settings.rank,
        "lora_alpha": int(alpha) if alpha.is_integer() else alpha,
        "lora_dropout": settings.dropout,
        "use_dora": settings.dora,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        **_targets(paths),
    }


def _targets(paths: list[str]) -> dict[str, Any]:
    """Which modules have LoRA: by name and layer where every layer has the same ones, else each by its path."""
    places = [_LAYER.fullmatch(path) for path in paths]
    layers: dict[int, set[str]] = {}
    for place in places:
        if place is not None:
            layers.setdefault(int(place[2]), set()).add(place[3])
    stacks = {place[1] if place else None for place in places}
    if len(stacks) == 1 and None not in stacks and len({frozenset(names) for names in layers.values()}) == 1:
        names = sorted(next(iter(layers.values())))
        return {"target_modules": names, "layers_to_transform": sorted(layers), "layers_pattern": "layers"}
    return {"target_modules": sorted(paths)}


def _convert(source: Path, tensors: Mapping[str, TensorInfo], target: Path) -> None:
    """Write all tensors under PEFT's names, factors transposed, bit by bit; one at a time is in memory."""
    named = {
        f"base_model.model.{path}.{_PARTS[part]}": name for name in tensors for path, _, part in [name.rpartition(".")]
    }
    shapes = {new: (tensors[old].dtype, tensors[old].shape[::-1]) for new, old in named.items()}
    write_tensors(target, shapes, (_transposed(source, tensors[named[new]]) for new in shapes))


def _transposed(path: Path, info: TensorInfo) -> bytes:
    import numpy

    kind = numpy.dtype(f"<u{DTYPE_BYTES[info.dtype]}")  # whatever the numbers are, their bits stay
    values = numpy.fromfile(path, kind, info.elements, offset=info.start)
    return values.reshape(info.shape).T.tobytes()
