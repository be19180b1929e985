"""A base that is spread over several devices: its last layers are on another one than its first."""

import pytest
import torch
from peft import IA3Config, get_peft_model

from lorary.adapters import Backbone
from lorary.adapters.base.loading import load_base
from lorary.adapters.heads.task_heads import empty_head, fill_head
from tiny import make_adapter, task_class

HEADS = ("text-classification", "token-classification", "question-answering")
ROW = [5, 6, 7, 8]
SPREAD = {"model.embed_tokens": 0, "model.rotary_emb": 0, "model.layers.0": 0, "model.layers.1": 1, "model.norm": 1}


def test_the_body_answers_where_the_head_is(bases):
    """The meta device stands for another GPU: what a head there is given from elsewhere, it refuses."""
    body = load_base(str(bases("llama")), device="cpu").model.model
    body.elsewhere = torch.nn.Parameter(torch.empty(1, device="meta"))
    asked = {"source": "made here", "labels": ["yes", "no"], "problem_type": None, "pad_token": 0}
    empty = empty_head(body, "text-classification", **asked)
    there = {"device": torch.device("meta"), "dtype": torch.float32, "of_base": None}
    head = fill_head(empty, body, {"score.weight": torch.zeros(2, 32)}, source="made here", **there)
    with torch.no_grad():
        logits = head.model(input_ids=torch.tensor([ROW])).logits
    assert (logits.device.type, logits.shape) == ("meta", (1, 2))


def through_peft(base, folder):
    model = task_class("text-classification").from_pretrained(base, num_labels=2)
    config = IA3Config(task_type="SEQ_CLS", target_modules=["k_proj", "v_proj"], feedforward_modules=[])
    tuned = get_peft_model(model, config)
    for name, parameter in tuned.named_parameters():
        if "ia3" in name:
            torch.nn.init.normal_(parameter, mean=1.0, std=0.3)
    tuned.save_pretrained(folder)
    return folder


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_two_gpus_give_the_cpus_answers(bases, tmp_path):
    base = str(bases("llama"))
    folders = {task: make_adapter(base, tmp_path / task, task=task) for task in (*HEADS, "text-generation")}
    folders["ia3"] = through_peft(base, tmp_path / "ia3")
    alone = Backbone.from_pretrained(base, device="cpu")
    spread = Backbone.from_pretrained(base, dtype="float32", device_map=SPREAD | {"lm_head": 1})
    assert {parameter.device.index for parameter in spread.body.parameters()} == {0, 1}
    for name, folder in folders.items():
        want, got = (backbone.logits([ROW], backbone.load(folder, name).name) for backbone in (alone, spread))
        torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
    texts, names = ["profit rose", "the dog ran"], ["text-classification", "ia3"]
    labels = [[answer["label"] for answer in backbone.predict(texts, names)] for backbone in (alone, spread)]
    assert labels[0] == labels[1]
