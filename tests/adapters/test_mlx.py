"""An adapter of mlx-lm's answers as mlx-lm's own formulas say."""

import json

import pytest
import torch
import transformers
from safetensors.torch import save_file

from lorary.adapters import Backbone
from lorary.hub.importing import import_folders

ROWS = [[7, 8, 9, 10], [20, 21, 22]]
SCALE, RANK = 7.0, 3
PATHS = ["model.layers.1.self_attn.q_proj", "model.layers.1.mlp.down_proj"]


def adapted(weight, a, b, magnitude):
    """mlx_lm.tuner's LoRALinear.fuse and DoRALinear.fuse, on a weight [out, in]."""
    whole = weight + (SCALE * b.T) @ a.T
    return whole if magnitude is None else (magnitude / whole.norm(dim=1))[:, None] * whole


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_logits_are_those_of_the_fused_weights(kind, bases, tmp_path, registry):
    model = transformers.AutoModelForCausalLM.from_pretrained(bases("llama"), dtype=torch.float32).eval()
    random = torch.Generator().manual_seed(1)
    tensors = {}
    for path in PATHS:
        weight = model.get_submodule(path).weight
        made = {"lora_a": (weight.shape[1], RANK), "lora_b": (RANK, weight.shape[0])}
        parts = {name: torch.randn(shape, generator=random) / 10 for name, shape in made.items()}
        if kind == "dora":
            parts["m"] = weight.detach().norm(dim=1) * (1 + torch.rand(weight.shape[0], generator=random))
        tensors |= {f"{path}.{name}": part.contiguous() for name, part in parts.items()}
        with torch.no_grad():
            weight.copy_(adapted(weight, parts["lora_a"], parts["lora_b"], parts.get("m")))
    folder = tmp_path / "stories"
    folder.mkdir()
    save_file(tensors, folder / "adapters.safetensors", {"format": "mlx"})
    parameters = {"rank": RANK, "scale": SCALE, "dropout": 0.0}
    settings = {"fine_tune_type": kind, "lora_parameters": parameters, "model": "org/tiny", "num_layers": 1}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    (outcome,) = import_folders(registry, folder, domain="fiction")
    backbone = Backbone.from_pretrained(str(bases("llama")), registry=registry)
    backbone.load(outcome.reference, "stories")
    for row, found in zip(ROWS, backbone.logits(ROWS, "stories"), strict=True):
        with torch.no_grad():
            expected = model(torch.tensor([row])).logits[0]
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
