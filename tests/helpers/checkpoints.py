"""Small, valid PEFT-like checkpoints, written without torch."""

import json
import math
import random
import struct
from pathlib import Path

from lorary.hub.base import fingerprint
from lorary.hub.manifest import BaseIdentity, Manifest, Preprocessing

BASE_FINGERPRINT = fingerprint({"model_type": "tiny"}, [])


def header_bytes(header) -> bytes:
    """The start of a safetensors file with this header (an object, or the bytes themselves)."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text


def write_safetensors(path: Path, tensors: dict[str, tuple[str, list[int], bytes]]) -> Path:
    """Write tensors given as dtype, shape and bytes."""
    header, position = {}, 0
    for name, (dtype, shape, content) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [position, position + len(content)]}
        position += len(content)
    path.write_bytes(header_bytes(header) + b"".join(content for _, _, content in tensors.values()))
    return path


def lora_tensors(seed: int = 0, rank: int = 2, width: int = 4) -> dict[str, tuple[str, list[int], bytes]]:
    """The tensors of a LoRA on one linear layer, under PEFT's names."""
    source = random.Random(seed)
    shapes = {"lora_A": [rank, width], "lora_B": [width, rank]}
    return {
        f"base_model.model.layer.query.{name}.weight": ("F32", shape, source.randbytes(4 * math.prod(shape)))
        for name, shape in shapes.items()
    }


def make_manifest(**changes) -> Manifest:
    """A manifest for :func:`make_checkpoint`, with fields changed."""
    fields = {
        "task": "text-classification",
        "base": BaseIdentity("org/tiny", commit="c" * 40, fingerprint=BASE_FINGERPRINT),
        "domain": "finance",
        "labels": ("negative", "positive"),
        "preprocessing": Preprocessing({"text": "text", "label": "label"}, max_length=64),
    }
    return Manifest(**{**fields, **changes})


def make_checkpoint(folder: Path, *, seed: int = 0, manifest: Manifest | bool = True, **config) -> Path:
    """Write a checkpoint; another ``seed`` is another adapter, ``config`` changes fields of adapter_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    fields = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS",
        "base_model_name_or_path": "org/tiny",
        "r": 2,
        "lora_alpha": 4,
        "lora_dropout": 0.0,
        "target_modules": ["query", "value"],
        **config,
    }
    (folder / "adapter_config.json").write_text(json.dumps(fields), encoding="utf-8")
    write_safetensors(folder / "adapter_model.safetensors", lora_tensors(seed))
    if manifest:
        (make_manifest() if manifest is True else manifest).write(folder)
    return folder


def rot(path: Path) -> None:
    """Change the last byte of a registry's object; of a text's final newline it makes a blank."""
    content = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 0x2A]))
