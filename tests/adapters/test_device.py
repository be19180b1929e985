"""Where a model goes when the caller doesn't say."""

import pytest
import torch

from lorary.adapters.base.device import pick_device
from lorary.hub.errors import UsageError


@pytest.mark.parametrize("chosen", [None, 1])
def test_cuda_is_the_gpu_that_the_process_has_chosen(monkeypatch, chosen):
    """Each process of several that train together has chosen its own; nobody asks CUDA before it is in use."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: chosen is not None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: chosen)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device() == pick_device("cuda") == torch.device("cuda", chosen or 0)
    assert pick_device("cuda:0") == pick_device(torch.device("cuda", 0)) == torch.device("cuda", 0)
    assert pick_device("cpu") == torch.device("cpu")


def test_a_gpu_beyond_those_there_are(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(UsageError, match="device 'cuda:2' was asked for, but torch finds 2; use 'cuda:0' to 'cuda:1'"):
        pick_device("cuda:2")
