"""Heads that an older PEFT saved without a word in the config."""

import pytest

from checkpoints import lora_tensors, make_checkpoint, write_safetensors
from lorary.hub.card import make_card
from lorary.hub.unnamed_head import naming_its_head

FACTORS = ["base_model.model.bert.pooler.dense.lora_A.weight", "base_model.model.classifier.lora_B.weight"]
HEAD = "base_model.model.classifier.weight"


@pytest.mark.parametrize(("task", "head"), [("SEQ_CLS", "score"), ("TOKEN_CLS", "classifier")])
@pytest.mark.parametrize(("saved", "others"), [(None, []), ([], []), (["lm_head"], ["lm_head"])])
def test_it_is_named_as_today(task, head, saved, others):
    config = {"task_type": task, "modules_to_save": saved, "r": 4}
    named = naming_its_head(config, [*FACTORS, f"base_model.model.{head}.dense.weight"])
    assert named == {**config, "modules_to_save": [*others, head]}
    assert config["modules_to_save"] is saved


@pytest.mark.parametrize(
    ("config", "keys"),
    [
        ({"task_type": "SEQ_CLS", "modules_to_save": None}, FACTORS),  # its head wasn't saved
        ({"task_type": "QUESTION_ANS", "modules_to_save": None}, [HEAD]),  # another task's
        ({"task_type": "SEQ_CLS", "modules_to_save": ["classifier"]}, [HEAD]),
        ({"task_type": "SEQ_CLS"}, [HEAD]),  # prompt tuning's has no such field
        ({"task_type": None, "modules_to_save": None}, [HEAD]),
        ({"task_type": ["SEQ_CLS"], "modules_to_save": None}, [HEAD]),
        ({"task_type": "SEQ_CLS", "modules_to_save": "score"}, [HEAD]),  # for the checks of a config's fields to refuse
        ({"task_type": "SEQ_CLS", "modules_to_save": 3}, [HEAD]),
    ],
    ids=str,
)
def test_all_else_is_left_as_it_is(config, keys):
    assert naming_its_head(config, keys) is config


def test_a_card_knows_how_many_labels_it_has(registry, tmp_path):
    folder = make_checkpoint(tmp_path / "older", manifest=False, modules_to_save=None)
    write_safetensors(folder / "adapter_model.safetensors", lora_tensors() | {HEAD: ("F32", [3, 4], bytes(48))})
    version = registry.add(folder, name="tone", domain="finance")
    assert "'LABEL_2'" in make_card(version, registry.checkpoint(version)).replace('"', "'")
