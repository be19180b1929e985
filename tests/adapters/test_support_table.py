"""The tables of methods and `LoraConfig` fields, and the targeting rules, held against the PEFT that is installed."""

import dataclasses
import re
from pathlib import Path

import pytest
from peft import LoraConfig, PeftType
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key

from lorary.adapters.matching.methods import REFUSED, ROWS_ALONE, THROUGH_PEFT
from lorary.adapters.matching.support import APPLIED, BY_PEFT, CONDITIONS, TRAINING_ONLY, is_off
from lorary.adapters.matching.targets import is_target
from lorary.hub.comparing.scaling import rank_and_scale

FIELDS = {field.name for field in dataclasses.fields(LoraConfig)}
NAMES = [f"model.layers.{i}.{m}" for i in range(12) for m in ("self_attn.q_proj", "mlp.up_proj", "mlp.experts.0.w1")]
NAMES += ["lm_head", "classifier", "classifier.dense", "encoder.layer.1.output.dense", "q_proj", "xq_proj"]


def test_every_field_of_peft_is_in_the_table_once():
    table = [*APPLIED, *TRAINING_ONLY, *CONDITIONS, *BY_PEFT]
    assert len(table) == len(set(table))
    assert set(table) >= FIELDS, f"PEFT has new fields; say what they do: {FIELDS - set(table)}"


def test_the_defaults_of_peft_load():
    for field in dataclasses.fields(LoraConfig):
        default = field.default if field.default is not dataclasses.MISSING else field.default_factory()
        if field.name in CONDITIONS:
            assert CONDITIONS[field.name].allowed(default), field.name
        if field.name in BY_PEFT:
            assert is_off(default), field.name


def test_the_docs_show_the_same_table():
    text = (Path(__file__).parents[2] / "docs" / "compatibility.md").read_text(encoding="utf-8")
    shown = re.findall(r"^\| `(\w+)` \| ([^|]+) \|", text, re.MULTILINE)
    ways = dict(shown)
    assert len(ways) == len(shown)
    assert {name for name in ways if name.islower()} == {*APPLIED, *TRAINING_ONLY, *CONDITIONS, *BY_PEFT}
    assert {name for name in ways if name.isupper()} == {"LORA", *THROUGH_PEFT, *REFUSED}
    assert all((way == "through PEFT") == (name in {*BY_PEFT, *THROUGH_PEFT}) for name, way in ways.items())
    assert all(ways[name] == "refused by name" for name in REFUSED)


def test_every_method_of_peft_is_in_the_table_once():
    table = ["LORA", *THROUGH_PEFT, *REFUSED]
    assert len(table) == len(set(table))
    assert set(table) >= {kind.value for kind in PeftType}, "PEFT has new methods; say how they load"
    assert THROUGH_PEFT.keys() >= ROWS_ALONE


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["q_proj"]}, {"target_modules": ["self_attn.q_proj", "w1"]},
        {"target_modules": r".*\.(q|up)_proj"}, {"target_modules": ["dense"], "modules_to_save": ["classifier"]},
        {"target_modules": ["q_proj", "up_proj"], "exclude_modules": ["up_proj"]},
        {"target_modules": ["q_proj"], "exclude_modules": r"model\.layers\.1.*"},
        {"target_modules": ["q_proj", "w1"], "layers_to_transform": [1, 10]},
        {"target_modules": ["q_proj"], "layers_to_transform": 1},
        {"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": ["layers"]},
        {"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": "blocks"},
    ],
    ids=str,
)  # fmt: skip
def test_targets_are_those_of_peft(settings):
    config = LoraConfig(**settings)
    chosen = {name for name in NAMES if is_target(config.to_dict(), name)}
    assert chosen == {
        name
        for name in NAMES
        if check_target_module_exists(config, name) is True
        or isinstance(check_target_module_exists(config, name), re.Match)
    }
    assert len(chosen) < len(NAMES)


@pytest.mark.parametrize("pattern", [{"q_proj": 2}, {r"layers\.1\.": 3}, {r".*\.1\..*up_proj": 5, "up_proj": 7}])
def test_patterns_are_those_of_peft(pattern):
    config = LoraConfig(r=8, lora_alpha=16, rank_pattern=pattern).to_dict()
    for name in NAMES:
        rank = pattern.get(get_pattern_key(list(pattern), name), 8)
        assert rank_and_scale(config, name) == (rank, 16 / rank)
