"""Many adapters of one shape, made from a first one without PEFT, each with factors of its own."""

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

WEIGHTS = "adapter_model.safetensors"


def make_variants(first: Path, names: list[str]) -> dict[str, Path]:
    """Copies of a folder beside it, by name, whose tensors are random."""
    shapes = {key: tensor.shape for key, tensor in load_file(first / WEIGHTS).items()}
    folders = {}
    for seed, name in enumerate(names):
        generator = torch.Generator().manual_seed(seed)
        folder = shutil.copytree(first, first.parent / name)
        tensors = {key: torch.randn(shape, generator=generator) * 0.2 for key, shape in shapes.items()}
        save_file(tensors, folder / WEIGHTS)
        folders[name] = folder
    return folders


def change(folder: Path, update) -> None:
    """Apply ``update`` to the tensors of a folder, in place."""
    tensors = load_file(folder / WEIGHTS)
    update(tensors)
    save_file(tensors, folder / WEIGHTS)
