"""Models whose layers don't put the rows first, or whose heads ask more of the body: each row keeps its own result."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorary.adapters import Backbone
from lorary.hub.errors import UsageError
from tiny import make_adapter, make_base, peft_reference

ROWS = ([7, 8, 9, 10], [11, 12, 13, 14], [15, 16, 17, 18], [20, 21, 22, 23])
TEXTS = ["profit rose the bank", "a dog ran with", "free cash offer now", "story mother house dog"]


@pytest.mark.parametrize("family", ["xlnet", "deberta", "longformer", "gpt2"])
def test_mixed_rows_equal_solo_rows_and_peft(tmp_path, family):
    base = make_base(family, tmp_path / "base")
    backbone = Backbone.from_pretrained(str(base))
    saved = {
        "deberta": {"modules_to_save": ["pooler", "classifier"]},
        "xlnet": {"modules_to_save": ["logits_proj", "sequence_summary"]},
    }
    adapters = [
        make_adapter(base, tmp_path / f"a{seed}", task="text-classification", seed=seed, **saved.get(family, {}))
        for seed in (1, 2)
    ]
    for adapter in adapters:
        backbone.load(adapter)
    names = ["a1", "a2", "a2", "a1"]
    mixed = backbone.predict(TEXTS, names, top_k=None)
    solo = [backbone.predict([text], name, top_k=None)[0] for text, name in zip(TEXTS, names, strict=True)]
    for got, want in zip(mixed, solo, strict=True):
        assert [one["label"] for one in got] == [one["label"] for one in want]
        assert [one["score"] for one in got] == pytest.approx([one["score"] for one in want], abs=1e-5)
    for adapter in adapters:
        reference = peft_reference(base, adapter, task="text-classification")
        for row in ROWS:
            ids = torch.tensor([row])
            with torch.no_grad():
                want = reference(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
            torch.testing.assert_close(backbone.logits([row], adapter.name)[0], want, atol=1e-5, rtol=1e-5)


def test_where_rows_dont_come_first_adapters_take_turns(tmp_path):
    base = make_base("deberta", tmp_path / "base")
    backbone = Backbone.from_pretrained(str(base))
    backbone.load(make_adapter(base, tmp_path / "f", task="feature-extraction"))
    assert not backbone._inference.rows_first


@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2", "llama", "t5"])
def test_the_families_that_put_rows_first_share_one_pass(bases, tmp_path, family):
    backbone = Backbone.from_pretrained(str(bases(family)))
    task = {"gpt2": "text-generation", "llama": "text-generation", "t5": "seq2seq"}.get(family, "feature-extraction")
    backbone.load(make_adapter(bases(family), tmp_path / "a", task=task))
    assert backbone._inference.rows_first


def test_decoder_classifiers_read_the_last_token_whatever_the_padding(tmp_path):
    base = make_base("llama", tmp_path / "base")
    backbone = Backbone.from_pretrained(str(base))
    backbone.model.config.pad_token_id = None
    backbone.tokenizer.pad_token = None
    backbone.load(make_adapter(base, tmp_path / "a", task="text-classification"))
    texts = ["profit", "story mother house dog cat", "a dog"]
    together = backbone.predict(texts, "a")
    assert [one["score"] for one in together] == pytest.approx(
        [backbone.predict([text], "a")[0]["score"] for text in texts], abs=1e-5
    )


def test_parameters_that_nobody_takes(bases, tmp_path):
    backbone = Backbone.from_pretrained(str(bases("bert")))
    backbone.load(make_adapter(bases("bert"), tmp_path / "a", task="text-classification"))
    with pytest.raises(UsageError, match="doesn't take topk here; known: function_to_apply, threshold, top_k"):
        backbone.predict(TEXTS, "a", topk=3)
    with pytest.raises(UsageError, match="batch_size=0"):
        backbone.predict(TEXTS, "a", batch_size=0)
    assert backbone.predict([], "a") == []


@pytest.mark.parametrize("family", ["xlnet", "deberta"])
def test_a_weak_adapter_is_no_excuse_for_mixing_up_rows(tmp_path, family):
    """The layout is the model's; an adapter whose effect is slight must not hide it."""
    base = make_base(family, tmp_path / "base")
    adapter = make_adapter(base, tmp_path / "weak", task="feature-extraction")
    path = adapter / "adapter_model.safetensors"
    save_file({key: value * 0.03 for key, value in load_file(path).items()}, path)
    backbone = Backbone.from_pretrained(str(base))
    backbone.load(adapter)
    assert not backbone._inference.rows_first
