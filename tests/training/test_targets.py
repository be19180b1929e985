"""Which layers get an adapter, and every setting of the method that can't be meant."""

from __future__ import annotations

from functools import partial

import pytest
import transformers as t

from lorary.hub.errors import RecipeError, TrainingError
from runs import prepared
from samples import bpe_tokenizer, save_base


@pytest.fixture
def make_recipe(make_recipe):
    """Of a base with layers to choose from."""
    return partial(make_recipe, layers=2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"lora.init": "eva", "lora.rank": 20},
            "eva looks for 40 directions .* inputs of 32 numbers; choose a smaller",
        ),
        ({"lora.init": "eva", "rows": 12}, r"eva needs at least 16 training rows, found \d+; use another init"),
        ({"lora.init": "pissa", "lora.rank": 33}, "lora.rank 33 is more than .* has"),
        (
            {"lora.targets": ".*nothing.*"},
            r"lora.targets '.\*nothing.\*' matches no linear layer; there are dense \(7\), key",
        ),
        (
            {"lora.targets": ["querry"]},
            r"called 'querry'; did you mean 'query'\?; there are dense \(7\), key \(2\), query",
        ),
        ({"lora.exclude": ["kee"]}, r"lora.exclude: no linear layer is called 'kee'; did you mean 'key'"),
        ({"lora.exclude": ".*"}, "lora.exclude leaves none of the layers that lora.targets names"),
        ({"lora.layers": (0, 5)}, r"lora.layers: \(0, 5\) asks for layers that aren't there; the targets have 0 to 1"),
        ({"lora.layers": (-3,)}, "the targets have 0 to 1"),
        ({"lora.layers": "last 3"}, "the targets have 0 to 1"),
    ],
)
def test_what_the_base_or_the_rows_do_not_have_is_named(settings, message, make_recipe):
    with pytest.raises(TrainingError, match=message):
        prepared(make_recipe(**{"rows": 64, **settings}))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quantization": "int8", "double_quantization": True}, "double_quantization: only nf4 and fp4 have it"),
        ({"method": "qlora", "quantization": "int8"}, "means a base quantized to nf4 or fp4, found 'int8'"),
        ({"lora.init": "piss"}, "lora.init: expected one of default, gaussian, .*, found 'piss'; did you mean 'pissa'"),
        ({"lora.init": "pissa_niter_0"}, "lora.init: expected one of"),
        ({"lora.init": "loftq"}, "lora.init: 'loftq' makes up for what quantizing the base lost"),
        ({"lora.init": "pissa", "method": "dora"}, "lora.init: 'pissa' changes what DoRA's norm is taken of"),
        ({"lora.init": "orthogonal", "method": "qlora"}, "lora.init: PEFT gives 'orthogonal' factors the .* nf4"),
        ({"lora.init": "orthogonal", "quantization": "int8"}, "lora.init: PEFT gives 'orthogonal' factors the .* int8"),
        ({"lora.init": "orthogonal", "lora.rank": 5}, "lora.init: 'orthogonal' needs even ranks, found 5"),
        ({"lora.layers": "last few"}, r"lora.layers: expected numbers such as \[0, 1\], 'first 4' or 'last 4'"),
        ({"lora.layers": []}, "lora.layers: the list is empty"),
        ({"lora.exclude": []}, "lora.exclude: the list is empty"),
        ({"lora.exclude": "(q"}, r"lora.exclude: '\(q' isn't a regular expression"),
        ({"training.lora_plus_ratio": 0.5}, "training.lora_plus_ratio: expected a number of at least 1"),
        ({"lora.init": "eva", "from": "other@1"}, "lora.init: the run goes on with the weights of another adapter"),
        ({"peft.r": 4}, "peft.r: method 'lora' takes its settings under lora"),
    ],
)
def test_settings_that_contradict_each_other_are_named(settings, message, make_recipe):
    with pytest.raises(RecipeError, match=message):
        make_recipe(**settings)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"targets": "mlp"}, {"intermediate.dense", "output.dense"}),
        ({"targets": "attention", "exclude": (("key",))}, {"query", "value", "attention.output.dense"}),
        ({"targets": ["query"], "layers": (1,)}, {"layer.1.attention.self.query"}),
        ({"targets": ["query"], "layers": (-1,)}, {"layer.1.attention.self.query"}),
        ({"targets": ["query"], "layers": "first 1"}, {"layer.0.attention.self.query"}),
        ({"targets": ["query"], "layers": "last 1"}, {"layer.1.attention.self.query"}),
        ({"targets": ["query", "key"], "exclude": r".*\.0\..*key"}, {"query", "layer.1.attention.self.key"}),
    ],
)
def test_targets_are_narrowed(settings, expected, make_recipe):
    settings = {f"lora.{key}": [value] if value == "key" else value for key, value in settings.items()}
    model = prepared(make_recipe("token-classification", **settings)).model
    chosen = {name for name, module in model.get_base_model().named_modules() if hasattr(module, "lora_A")}
    assert all(any(name.endswith(end) for end in expected) for name in chosen)
    assert all(any(name.endswith(end) for name in chosen) for end in expected)
    assert settings["lora.targets"] != "mlp" or not any("attention" in name for name in chosen)


def test_a_loss_that_depends_on_no_target_is_told(make_recipe, tmp_path):
    """SqueezeBERT is made of convolutions but for its pooler, which tagging leaves out."""
    tokenizer = bpe_tokenizer()
    config = t.SqueezeBertConfig(
        vocab_size=len(tokenizer), hidden_size=32, embedding_size=32, num_hidden_layers=1, num_attention_heads=4,
        intermediate_size=32, q_groups=1, k_groups=1, v_groups=1, intermediate_groups=1, output_groups=1,
        pad_token_id=0,
    )  # fmt: skip
    base = str(save_base(t.SqueezeBertModel(config), tokenizer, tmp_path / "base"))
    with pytest.raises(TrainingError, match=r"none of the targets takes part in token-classification: .*pooler"):
        prepared(make_recipe("token-classification", base=base))


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_a_class_that_reads_what_a_backbone_is_served_without_is_refused(method, make_recipe, tmp_path):
    """It was trained, checked on the base of its training, and couldn't be loaded on any other."""
    tokenizer = bpe_tokenizer()
    config = t.NomicBertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        pad_token_id=0,
    )  # fmt: skip
    base = str(save_base(t.AutoModelForMaskedLM.from_config(config), tokenizer, tmp_path / "base"))
    with pytest.raises(TrainingError, match="NomicBertForSequenceClassification reads the pooler of its body"):
        prepared(make_recipe("text-classification", base=base, method=method))
    assert prepared(make_recipe("token-classification", base=base, method=method, output="other")).model


@pytest.mark.parametrize("table", ["rank_pattern", "alpha_pattern"])
def test_a_pattern_that_no_target_matches_is_told(table, make_recipe):
    settings = {"lora.targets": ["query", "key"], f"lora.{table}": {"query": 2, "kye": 3}}
    with pytest.raises(TrainingError, match=rf"lora.{table}: 'kye' matches none of .*they are key \(2\), query \(2\)"):
        prepared(make_recipe("token-classification", **settings))
    assert prepared(make_recipe("token-classification", **{**settings, f"lora.{table}": {r"layer\.1\..*key": 2}})).model
