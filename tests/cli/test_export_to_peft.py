"""An exported folder loads with PEFT alone, and answers as it does through lorary."""

import pytest
import torch

from lorary.hub.cli.main import main
from tiny import make_adapter, make_base, peft_reference


@pytest.mark.parametrize(("family", "task"), [("bert", "text-classification"), ("llama", "text-generation")])
def test_peft_loads_what_was_exported(tmp_path, registry, family, task):
    base = make_base(family, tmp_path / "base")
    folder = make_adapter(base, tmp_path / "made", task=task)
    registry.add(folder, name="tone", domain="x")
    assert main(["export", "tone", str(tmp_path / "out"), "--registry", str(registry.path)]) == 0
    ids = torch.tensor([[2, 5, 6, 7, 3]])
    with torch.no_grad():
        before, after = (peft_reference(base, one, task=task)(ids).logits for one in (folder, tmp_path / "out"))
    assert torch.equal(before, after)
