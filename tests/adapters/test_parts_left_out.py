"""Task models that are made without a part of the backbone's body (BERT's pooler), through PEFT as in training."""

import pytest
import torch
from transformers import BertForPreTraining

from lorary.adapters import Backbone
from methods import make_method
from tiny import make_config, make_tokenizer, peft_reference

ROW = [7, 8, 9, 10, 11]


@pytest.fixture(scope="module")
def whole_bert(tmp_path_factory):
    """A BERT whose files have both the pooler and the masked-language-modelling head."""
    folder = tmp_path_factory.mktemp("whole") / "bert"
    torch.manual_seed(0)
    BertForPreTraining(make_config("bert")).save_pretrained(folder)
    make_tokenizer("bert").save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("family", "task", "method", "settings"),
    [
        ("bert", "token-classification", "LOHA", {"target_modules": ["dense"]}),
        ("bert", "question-answering", "VERA", {"target_modules": ["dense"]}),
        ("bert", "fill-mask", "LOKR", {"target_modules": ["query", "dense"]}),
        ("roberta", "text-classification", "PREFIX_TUNING", {}),
        ("roberta", "text-classification", "IA3", {}),
    ],
    ids=str,
)
def test_equals_peft(bases, whole_bert, tmp_path, family, task, method, settings):
    base = whole_bert if family == "bert" else bases(family)
    adapter = make_method(base, tmp_path / "own", method, task=task, **settings)
    backbone = Backbone.from_pretrained(str(base))
    assert backbone.model.pooler is not None
    backbone.load(adapter)
    with torch.no_grad():
        out = peft_reference(base, adapter, task=task)(input_ids=torch.tensor([ROW]))
    want = torch.stack([out.start_logits[0], out.end_logits[0]], -1) if "question" in task else out.logits[0]
    torch.testing.assert_close(backbone.logits([ROW], "own")[0], want, atol=1e-5, rtol=1e-5)
    assert backbone.model.pooler is not None
