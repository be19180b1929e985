"""A row's result doesn't depend on its batch mates' length, also where transformers lets padding or length show."""

import pytest
import torch
import transformers as t

from lorary.adapters import Backbone
from lorary.adapters.base.loading import natural_class
from tiny import VOCABULARY, make_adapter, make_config, make_tokenizer

TOKENS = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
TEXTS = ["profit rose", "a dog ran with the cat and the mother of the child sat", "free cash"]
ROPES = {
    "longrope": {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "original_max_position_embeddings": 8},
    "dynamic": {"factor": 4.0},
}
CONFIGS = {
    "convbert": lambda: t.ConvBertConfig(
        **TOKENS, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, embedding_size=32,
        max_position_embeddings=64,
    ),
    "rwkv": lambda: t.RwkvConfig(**TOKENS, hidden_size=32, num_hidden_layers=2, context_length=64),
}  # fmt: skip


@pytest.fixture(params=[*CONFIGS, *ROPES])
def backbone(request):
    """A bare backbone of a model in which the length of a batch shows."""
    if request.param in ROPES:
        config = make_config(
            "llama", rope_parameters={"rope_type": request.param, "rope_theta": 1e4} | ROPES[request.param]
        )
        config.max_position_embeddings = 8
    else:
        config = CONFIGS[request.param]()
    torch.manual_seed(0)
    model = natural_class(config).from_config(config)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.4)
    return Backbone.from_model(model.eval(), make_tokenizer("llama"))


def test_predictions_are_those_of_each_row_alone(backbone):
    alone = [torch.tensor(backbone.predict([text])[0]) for text in TEXTS]
    mixed = [torch.tensor(one) for one in backbone.predict(TEXTS)]
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(alone, mixed, strict=True))
    assert not torch.allclose(alone[0][0, 0], alone[2][0, 0], atol=1e-2)


def test_texts_are_those_of_each_row_alone(backbone):
    if not backbone.model.can_generate():
        pytest.skip("an encoder")
    settings = {"max_new_tokens": 8, "do_sample": False}
    alone = [backbone.generate(text, **settings) for text in TEXTS]
    assert backbone.generate(TEXTS, **settings) == alone
    assert [backbone.generate(text, **settings) for text in TEXTS] == alone


def test_where_length_doesnt_show_rows_share_a_batch(bases):
    for family in ("bert", "gpt2", "llama", "t5", "bart"):
        probe = Backbone.from_pretrained(str(bases(family)))._inference.padding
        for generating in (False, True)[: 1 if family == "bert" else 2]:
            assert probe.groups([3, 9, 3], generating=generating) == [[0, 1, 2]]


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "t5", "bart"])
def test_where_a_classifier_leaves_padding_out_rows_share_a_batch(bases, tmp_path, family):
    backbone = Backbone.from_pretrained(str(bases(family)))
    head = {"modules_to_save": ["classification_head"]} if family in ("t5", "bart") else {}
    backbone.load(make_adapter(bases(family), tmp_path / "a", task="text-classification", **head))
    with backbone.using("a") as classifier:
        assert backbone._inference.padding.groups([3, 9], generating=False, classifiers=[classifier] * 2) == [[0, 1]]
