"""Bases that several threads open at once: transformers makes a dtype the whole process's while it builds a model."""

import threading

import torch
from transformers import BertModel, LlamaForCausalLM
from transformers.utils import logging

from lorary.adapters import Backbone

PATIENCE = 0.4  # seconds; each of the two waits for the other, which may rightly be kept from coming


def test_two_dtypes_at_once_leave_the_process_its_own(bases, monkeypatch):
    first_builds, second_builds, first_is_done = (threading.Event() for _ in range(3))
    llama, bert = str(bases("llama")), str(bases("bert"))
    opened, verbosity = {}, logging.get_verbosity()

    def at_building(kind, reached, awaited):
        build = kind.__init__

        def __init__(self, *words, **more):
            reached.set()
            awaited.wait(PATIENCE)
            build(self, *words, **more)

        monkeypatch.setattr(kind, "__init__", __init__)

    at_building(LlamaForCausalLM, first_builds, second_builds)
    at_building(BertModel, second_builds, first_is_done)

    def first():
        opened["bfloat16"] = Backbone.from_pretrained(llama, dtype="bfloat16", device="cpu")
        first_is_done.set()

    def second():
        first_builds.wait(PATIENCE)
        opened["float32"] = Backbone.from_pretrained(bert, dtype="float32", device="cpu")

    threads = [threading.Thread(target=run) for run in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    left = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)  # whatever it was left at, other tests need this one
    assert left == torch.float32
    assert logging.get_verbosity() == verbosity
    for name, backbone in opened.items():
        assert {str(parameter.dtype) for parameter in backbone.model.parameters()} == {f"torch.{name}"}
