"""Where a model goes when the caller doesn't say."""

import pytest
import torch

from lorary.adapters.base.device import pick_device


@pytest.mark.parametrize("chosen", [None, 1])
def test_cuda_is_the_gpu_that_the_process_has_chosen(monkeypatch, chosen):
    """Each process of several that train together has chosen its own; nobody asks CUDA before it is in use."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: chosen is not None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: chosen)
    assert pick_device() == pick_device("cuda") == torch.device("cuda", chosen or 0)
    assert pick_device("cuda:0") == pick_device(torch.device("cuda", 0)) == torch.device("cuda", 0)
    assert pick_device("cpu") == torch.device("cpu")
