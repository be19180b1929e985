"""Preference pairs: TRL's own losses and adapter, rows in every shape, and the gate."""

from __future__ import annotations

import math

import pytest
import torch
from safetensors.torch import load_file

from lorary.hub.errors import DataError, RecipeError
from lorary.training import train
from lorary.training.data import Example, load_data
from lorary.training.prepare import prepare
from lorary.training.progress import Reporter
from lorary.training.tasks import make_task
from lorary.training.tasks.preference import PairScore, PreferencePairs
from lorary.training.tasks.rows.encoded import Encoded
from lorary.training.tasks.text_generation import DEFAULT_TEMPLATE, TokenScore
from samples import WORDS, bpe_tokenizer, write_jsonl

PAIRS = {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"}


def pair_rows(count):
    """The better reply is the one that rises."""
    return [
        {"prompt": f"say {WORDS[index % 20]}", "chosen": "sales rose", "rejected": "sales fell today"}
        for index in range(count)
    ]


@pytest.fixture
def make_pairs(make_recipe, tmp_path):
    def make(rows=None, columns=None, **settings):
        data = {
            "data.train": write_jsonl(tmp_path / "pairs.jsonl", rows or pair_rows(32)),
            "data.test": None, "data.columns": columns or PAIRS, "training.learning_rate": 2e-3, "training.epochs": 3,
        }  # fmt: skip
        return make_recipe("text-generation", **{**data, **settings})

    return make


def encode(recipe, *rows, max_length=64):
    tokenizer = bpe_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    notes: list[str] = []
    examples = [Example(row, f"rows, row {number}") for number, row in enumerate(rows, start=1)]
    task = make_task(recipe, None)
    assert isinstance(task, PreferencePairs)
    return task.encode(examples, tokenizer, max_length, notes.append), tokenizer, notes


def texts(encoded, tokenizer):
    (feature,) = encoded.features
    return [tokenizer.decode(feature[name]) for name in ("prompt_ids", "chosen_ids", "rejected_ids")]


def test_pairs_share_their_prompt_and_each_reply_ends(make_pairs):
    encoded, tokenizer, _ = encode(make_pairs(), {"prompt": "say a", "chosen": "sales rose", "rejected": "cut"})
    assert texts(encoded, tokenizer) == [
        "<s>" + DEFAULT_TEMPLATE.replace("{prompt}", "say a"), "sales rose</s>", "cut</s>",
    ]  # fmt: skip


USER, GOOD, BAD = (
    {"role": role, "content": text} for role, text in (("user", "a?"), ("assistant", "rose"), ("assistant", "fell"))
)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": "a?", "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": "a?", "chosen": [USER, GOOD], "rejected": [USER, BAD]},  # UltraFeedback's
        {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
    ],
    ids=["messages", "text-prompt", "whole-chats", "no-prompt"],
)
def test_chats_of_every_shape_are_the_same_pair(row, make_pairs):
    recipe = make_pairs(columns=PAIRS if "prompt" in row else {"chosen": "chosen", "rejected": "rejected"})
    encoded, tokenizer, notes = encode(recipe, row)
    assert texts(encoded, tokenizer) == ["<s><user>a?<assistant>", "rose</s>", "fell</s>"]
    assert notes == []


def test_earlier_turns_of_the_assistant_belong_to_the_prompt(make_pairs):
    before = [{"role": "user", "content": "profit?"}, {"role": "assistant", "content": "rose"}]
    asked = {"role": "user", "content": "sales?"}
    replies = [[*before, asked, {"role": "assistant", "content": word}] for word in ("rose", "fell")]
    columns = {"chosen": "chosen", "rejected": "rejected"}
    encoded, tokenizer, _ = encode(make_pairs(columns=columns), {"chosen": replies[0], "rejected": replies[1]})
    assert texts(encoded, tokenizer) == [
        "<s><user>profit?<assistant>rose</s><user>sales?<assistant>",
        "rose</s>",
        "fell</s>",
    ]


def test_texts_without_a_prompt_begin_alike(make_pairs):
    recipe = make_pairs(columns={"chosen": "chosen", "rejected": "rejected"})
    row = {"chosen": "Human: how?\nAssistant: the report rose", "rejected": "Human: how?\nAssistant: the record fell"}
    encoded, tokenizer, _ = encode(recipe, row)
    assert texts(encoded, tokenizer) == ["<s>Human: how?\nAssistant: the", " report rose</s>", " record fell</s>"]
    with pytest.raises(DataError, match="row 1: chosen and rejected begin differently; name a prompt column"):
        encode(recipe, {"chosen": "yes", "rejected": "no"})


def test_pairs_without_a_difference_teach_nothing_and_are_told(make_pairs):
    same = {"prompt": "a", "chosen": "rose", "rejected": "rose"}
    cut = {"prompt": "a", "chosen": "rose " * 80 + "a", "rejected": "rose " * 80 + "the"}
    encoded, _, notes = encode(make_pairs(), same, cut, {"prompt": "a " * 70, "chosen": "rose", "rejected": "fell"})
    assert [length.learned for length in encoded.lengths] == [False, False, False]
    assert [length.full > length.kept for length in encoded.lengths] == [False, True, True]
    assert notes == ["1 of 3 pairs hold the same reply twice (first: rows, row 1)"]


@pytest.mark.parametrize("loss", ["sigmoid", "hinge", "ipo"])
def test_losses_and_adapter_are_those_of_a_plain_trl_script(loss, make_pairs, tmp_path, registry):
    from datasets import Dataset
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
    from trl import DPOConfig, DPOTrainer

    rows = [*pair_rows(12), {"prompt": "a", "chosen": "the firm said profit rose", "rejected": "cut"}] * 2
    settings = {
        "preference.loss": loss,
        "preference.beta": 0.3,
        "layers": 2,
        "training.epochs": 1,
        "training.batch_size": 4,
        "training.warmup": 0.2,
    }
    recipe = make_pairs(rows, **{**settings, "data.test": write_jsonl(tmp_path / "other.jsonl", pair_rows(8))})
    version = train(recipe, registry)
    ours = [value for _, value in version.manifest.provenance["curve"]]

    prepared = prepare(recipe, load_data(recipe), Reporter())
    config = prepared.model.peft_config["default"]
    set_seed(42)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(recipe.base), config)
    tokenizer = AutoTokenizer.from_pretrained(recipe.base)
    table = [{**row, "prompt": DEFAULT_TEMPLATE.replace("{prompt}", row["prompt"])} for row in rows]
    arguments = DPOConfig(
        str(tmp_path / "trl"), beta=0.3, loss_type=[loss], max_length=64, num_train_epochs=1, logging_steps=1,
        per_device_train_batch_size=4, learning_rate=2e-3, warmup_steps=recipe.training.warmup, data_seed=42,
        max_grad_norm=1.0, use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none", disable_tqdm=True,
    )  # fmt: skip
    trainer = DPOTrainer(model, args=arguments, train_dataset=Dataset.from_list(table), processing_class=tokenizer)
    trainer.train()
    theirs = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert ours == pytest.approx(theirs, rel=1e-3)
    saved = load_file(tmp_path / "out" / "adapter_model.safetensors")
    for name, parameter in model.named_parameters():
        if ".default." in name:
            torch.testing.assert_close(saved[name.replace(".default", "")], parameter.data, rtol=1e-2, atol=1e-4)

    # And the figures on rows are the trainer's own.
    evaluated = trainer.evaluate(Dataset.from_list(table))
    task = prepared.task
    trained = task.metrics(task.outcomes(model, prepared.train, tokenizer, 4), prepared.train.golds)
    assert trained["loss"] == pytest.approx(evaluated["eval_loss"], rel=1e-2)
    assert trained["reward_margin"] == pytest.approx(evaluated["eval_rewards/margins"], rel=1e-2)
    assert trained["reward_accuracy"] == pytest.approx(evaluated["eval_rewards/accuracies"], abs=0.01)


def test_a_run_learns_the_preference_and_passes_the_gate(make_pairs, registry, tmp_path):
    version = train(make_pairs(**{"training.early_stopping": 2, "data.validation_size": 0.3}), registry)
    before, after = version.metrics["untrained"], version.metrics["test"]
    assert before["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert (before["reward_accuracy"], before["reward_margin"]) == (0.5, pytest.approx(0.0, abs=1e-4))
    assert after["reward_accuracy"] > 0.9
    assert after["reward_margin"] > 0.1
    assert after["chosen_logps"] - before["chosen_logps"] > after["rejected_logps"] - before["rejected_logps"]
    assert version.manifest.provenance["preference"] == {"method": "dpo", "beta": 0.1, "loss": "sigmoid"}
    assert not any("ref" in key for key in load_file(tmp_path / "out" / "adapter_model.safetensors"))
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_dir()) == []


@pytest.mark.parametrize("method", [{"method": "qlora"}, {"training.gradient_checkpointing": True}])
def test_pairs_train_on_quantized_bases_and_with_checkpointing(method, make_pairs, registry):
    version = train(make_pairs(**method, **{"training.epochs": 2}), registry)
    assert version.metrics["test"]["loss"] < version.metrics["untrained"]["loss"]


def test_the_report_ranks_pairs_by_their_own_loss(make_pairs, registry):
    recipe = make_pairs(**{"training.epochs": 1})
    ready = prepare(recipe, load_data(recipe), Reporter())
    outcomes = ready.task.outcomes(ready.model, ready.test, ready.base.tokenizer, 4)
    losses = ready.task.losses(outcomes, ready.test.golds)
    assert losses == pytest.approx([math.log(2)] * len(outcomes), abs=1e-4)
    answer = ready.task.answer(ready.test.examples[0], None, outcomes[0])
    assert (answer.expected, answer.right) == ("sales rose", False)


def test_ties_count_half(make_pairs):
    task = make_task(make_pairs(), None)
    scores = [PairScore(TokenScore(1.0, 2, 0), TokenScore(loss, 2, 0), -2.0, -2.0) for loss in (1.0, 2.0, 0.5)]
    metrics = task.metrics(scores, [None] * 3)
    assert metrics["reward_accuracy"] == 0.5
    assert metrics["reward_margin"] == pytest.approx(0.1 * (0 + 1 - 0.5) / 3)


def test_the_reference_is_the_model_before_the_first_step(make_pairs):
    recipe = make_pairs()
    ready = prepare(recipe, load_data(recipe), Reporter())
    with ready.model.disable_adapter():
        bare = ready.task.refer(ready.model, ready.train, ready.base.tokenizer, 8)
    for ours, theirs in zip(ready.train.features, bare.features, strict=True):
        assert ours["ref_chosen_logps"] == pytest.approx(theirs["ref_chosen_logps"], abs=1e-4)
    assert isinstance(bare, Encoded)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"training.packing": True}, r"training\.packing: preference pairs aren't packed"),
        ({"lora.dropout": 0.1}, r"lora\.dropout: preference pairs are trained without dropout"),
        ({"preference.beta": 0.0}, r"preference\.beta: expected a number above 0"),
        ({"preference.loss": "sigmod"}, r"preference\.loss: expected one of sigmoid, hinge, ipo"),
        ({"prompt.learn": "all"}, r"prompt\.learn: of a pair the replies are learned"),
        ({"data.columns": {"prompt": "prompt", "chosen": "chosen"}}, r"data\.columns: text-generation takes"),
    ],
)
def test_settings_that_pairs_do_not_go_with_are_named(settings, message, make_pairs):
    with pytest.raises(RecipeError, match=message):
        make_pairs(**settings)


def test_preferences_need_pairs(make_recipe):
    with pytest.raises(RecipeError, match=r"preference\.beta: only rows with columns 'chosen' and 'rejected'"):
        make_recipe("text-generation", **{"preference.beta": 0.2})
    with pytest.raises(RecipeError, match=r"preference\.beta: only rows"):
        make_recipe("text-classification", **{"preference.beta": 0.2})


def test_a_pair_of_a_text_and_messages_is_named_by_its_row(make_pairs):
    rows = [*pair_rows(4), {"prompt": "a", "chosen": "rose", "rejected": [BAD]}]
    with pytest.raises(DataError, match=r"pairs\.jsonl, row 5: expected texts or messages throughout, found chosen as"):
        load_data(make_pairs(rows))


def test_pairs_go_on_from_a_trained_adapter_which_is_then_the_reference(make_recipe, make_pairs, registry, tmp_path):
    train(make_recipe("text-generation", name="taught", output=str(tmp_path / "taught")), registry)
    recipe = make_pairs(**{"from": "taught@1"})
    version = train(recipe, registry)
    before, after = version.metrics["untrained"], version.metrics["test"]
    assert (before["reward_accuracy"], before["reward_margin"]) == (0.5, pytest.approx(0.0, abs=1e-4))
    assert after["reward_margin"] > 0.05
    bare = train(make_pairs(output=str(tmp_path / "bare"), name="bare"), registry).metrics["untrained"]
    assert before["chosen_logps"] != pytest.approx(bare["chosen_logps"], abs=0.1)
