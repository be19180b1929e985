"""AdaLoRA: PEFT's own steps, whole checkpoints, and what is left of its ranks as a plain LoRA."""

from __future__ import annotations

import copy
import re
import signal
from functools import partial

import pytest
import torch

from lorary.adapters import Backbone
from lorary.adapters.matching.support import asks_for_peft
from lorary.hub.checkpoint import read_checkpoint
from lorary.hub.errors import InterruptedRunError, RecipeError, TrainingError
from lorary.hub.registry import Registry
from lorary.training import train
from lorary.training.estimate.plan import estimate
from lorary.training.fitting.fit import fit
from lorary.training.interrupt import Stops
from lorary.training.progress import Reporter
from lorary.training.unfinished import Unfinished
from runs import answers, batch_of, golden, peft_logits, prepared
from samples import tone_rows, write_jsonl
from stops import Signal

RANKS = {"peft.init_r": 4, "peft.target_r": 2, "peft.lora_alpha": 16}
# 32 rows to learn and 8 to judge by, four steps an epoch: twelve steps, of which the last is step 11.
SETTINGS = {
    "method": "adalora", "training.epochs": 3, "training.gradient_accumulation": 2, "training.batch_size": 4,
    "data.validation_size": 0.2, "training.early_stopping": 2, **RANKS,
}  # fmt: skip
STEADY = {"training.scheduler": "constant", "training.warmup": 0.0, "training.batch_size": 8}


def ranks_of(config):
    """The ranks of a plain LoRA's modules, by their paths."""
    patterns = config["rank_pattern"]
    return {
        path: next((rank for key, rank in patterns.items() if re.match(rf"(.*\.)?({key})$", path)), config["r"])
        for path in config["target_modules"]
    }


@pytest.fixture
def make_recipe(make_recipe):
    """Of a base with two layers, between which ranks are given out."""
    return partial(make_recipe, layers=2)


@pytest.mark.parametrize(("task", "family"), [("text-classification", "bert"), ("text-generation", "gpt2")])
def test_it_is_pefts_own_loop(task, family, make_recipe, tmp_path):
    """Twelve steps of all sixteen rows, here in two batches each: then the order doesn't matter."""
    recipe = make_recipe(
        task, family, rows=16, method="adalora", **RANKS, **STEADY,
        **{"training.gradient_accumulation": 2, "training.epochs": 12, "data.validation_size": 0.0},
    )  # fmt: skip
    ready = prepared(recipe)
    for module in ready.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    assert len(ready.train.features) == 16
    theirs, batch = copy.deepcopy(ready.model), batch_of(ready, 16)
    reporter = Reporter()
    fit(
        ready.model, ready.base.tokenizer, ready.task, ready.train, None, ready.recipe,
        folder=tmp_path / "checkpoints", reporter=reporter, stops=Stops(),
    )  # fmt: skip

    config = theirs.peft_config["default"]
    config.orth_reg_weight, config.total_step, config.tinit, config.tfinal = 0.5, 12, 1, 4
    trained = [parameter for parameter in theirs.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=recipe.training.learning_rate, weight_decay=0.0)
    theirs.train()
    for step in range(12):
        theirs(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        theirs.base_model.update_and_allocate(step)
        optimizer.zero_grad()

    torch.testing.assert_close(answers(ready.model, batch), answers(theirs, batch), atol=1e-3, rtol=1e-3)
    kept = {name.removesuffix(".lora_E.default"): sum(row) for name, row in config.rank_pattern.items()}
    assert sum(kept.values()) == 2 * len(kept)
    assert len(set(kept.values())) > 1
    (note,) = [line for line in reporter.notices if line.startswith("adalora's ranks are final after step 9 of 12")]
    assert f"{sum(kept.values())} in {len(kept)} modules, {[*kept.values()].count(0)} of them without any" in note

    before = answers(ready.model, batch)
    plain = ready.settled()
    torch.testing.assert_close(answers(plain.model, batch), before, atol=1e-5, rtol=1e-5)
    config = plain.model.peft_config["default"].to_dict()
    assert ranks_of(config) == {path: rank for path, rank in kept.items() if rank}


@pytest.mark.parametrize(
    ("task", "family", "quantization"),
    [
        ("text-classification", "bert", "none"),
        ("text-generation", "gpt2", "none"),
        ("text-generation", "llama", "nf4"),
        ("token-classification", "bert", "int8"),
    ],
)
def test_what_is_saved_is_plain_lora(task, family, quantization, make_recipe, registry, tmp_path):
    recipe = make_recipe(task, family, rows=40, held=4, quantization=quantization, **SETTINGS)
    version = train(recipe, registry)
    assert (version.method, version.quantization) == ("adalora", quantization)
    assert version.manifest.provenance["recipe"]["peft"]["target_r"] == 2
    config = read_checkpoint(tmp_path / "out").config
    assert config["peft_type"] == "LORA"
    ranks = ranks_of(config)
    assert set(ranks.values()) <= {1, 2, 3, 4}
    if quantization == "none":
        for found, want in zip(peft_logits(tmp_path / "out", recipe.base, task), golden(tmp_path / "out"), strict=True):
            torch.testing.assert_close(found, want, atol=1e-5, rtol=1e-4)


def test_it_is_served_from_a_slot_and_gone_on_with(make_recipe, registry, tmp_path):
    recipe = make_recipe(rows=40, held=4, **SETTINGS)
    train(recipe, registry)
    checkpoint = read_checkpoint(tmp_path / "out")
    assert not asks_for_peft(checkpoint)
    backbone = Backbone.from_pretrained(recipe.base, device="cpu", slots=1, registry=registry)
    assert backbone.load("tiny@1").digest == checkpoint.digest
    child = make_recipe(
        rows=40,
        held=4,
        **{"from": "tiny@1", "name": "child", "lora.rank": 2, "training.epochs": 1, "output": str(tmp_path / "child")},
    )
    assert train(child, registry).method == "lora"
    assert ranks_of(read_checkpoint(tmp_path / "child").config) == ranks_of(checkpoint.config)


@pytest.fixture(scope="module")
def whole():
    """The digest of an unbroken run; made once."""
    return {}


EXACT = {**SETTINGS, "training.checkpoint_steps": 1, "peft.lora_dropout": 0.1}


@pytest.fixture
def unbroken(whole, make_recipe, tmp_path):
    if not whole:
        run = train(
            make_recipe(rows=40, held=4, output=str(tmp_path / "whole"), **EXACT), Registry(tmp_path / "whole.db")
        )
        whole["digest"] = run.digest
        assert run.manifest.provenance["best_epoch"] == 3
    return whole["digest"]


def test_a_stopped_run_goes_on_exactly(unbroken, make_recipe, registry, tmp_path):
    """Before the first rank goes, between, after the last one, and when the best epoch has been read back."""
    recipe = make_recipe(rows=40, held=4, **EXACT)
    for moment in ("step 1", "step 5", "step 10", "measuring"):
        with pytest.raises(InterruptedRunError):
            train(recipe, registry, Signal(moment), resume=Unfinished(tmp_path / "out").resumable)
    assert train(recipe, registry, resume=True).digest == unbroken


def test_killed_while_it_writes_a_checkpoint_it_goes_on_exactly(unbroken, live, make_recipe, tmp_path):
    recipe = make_recipe(rows=40, held=4, **EXACT)
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.to_yaml())
    order = {"recipe": str(path), "registry": str(tmp_path / "broken.db")}
    assert live(**order, at="commit") == [-signal.SIGKILL, ""]
    assert live(**order, resume=str(tmp_path / "out")) == [0, unbroken]


def test_no_epoch_counts_before_the_ranks_are_final(make_recipe, registry, tmp_path):
    """Nearly all rows to learn have one label, and those to judge by the other: each epoch makes it worse."""
    rows = tone_rows(80)
    good, bad = ([row for row in rows if row["label"] == label] for label in ("good", "bad"))
    settings = {
        "training.epochs": 6, "training.early_stopping": 1, "peft.tfinal": 7, "training.batch_size": 4,
        "training.learning_rate": 0.01, "data.train": write_jsonl(tmp_path / "good.jsonl", good[:30] + bad[:2]),
        "data.validation_size": None, "data.validation": write_jsonl(tmp_path / "bad.jsonl", bad[10:]),
    }  # fmt: skip
    ready = prepared(make_recipe(**{**SETTINGS, **settings}))
    fitted = fit(
        ready.model, ready.base.tokenizer, ready.task, ready.train, ready.validation, ready.recipe,
        folder=tmp_path / "checkpoints", reporter=Reporter(), stops=Stops(),
    )  # fmt: skip
    losses = [(entry["epoch"], entry["eval_loss"]) for entry in fitted.history if "eval_loss" in entry]
    assert losses == sorted(losses, key=lambda look: look[1])
    # The last ranks go at step 18 of 24, in the fifth epoch, and the sixth is worse.
    assert (fitted.best_epoch, fitted.steps) == (5, 24)


def test_memory_that_ran_out_begins_anew(make_recipe, tmp_path, monkeypatch):
    """The allocator forgets what it saw of the steps that are taken again."""
    recipe = make_recipe(rows=40, held=4, **SETTINGS)
    ready, models = prepared(recipe), []
    inner = type(ready.model).forward

    def forward(self, *arguments, **settings):
        models.append(len(settings["input_ids"]))
        if len(models) == 7 and self.training:
            raise MemoryError
        return inner(self, *arguments, **settings)

    monkeypatch.setattr(type(ready.model), "forward", forward)
    reporter = Reporter()
    fit(
        ready.model, ready.base.tokenizer, ready.task, ready.train, ready.validation, ready.recipe,
        folder=tmp_path / "checkpoints", reporter=reporter, stops=Stops(),
    )  # fmt: skip
    assert any(line.startswith("memory ran out with 4 rows at a time") for line in reporter.notices)
    config = ready.settled().model.peft_config["default"].to_dict()
    assert sum(ranks_of(config).values()) == 2 * 13


def test_preference_pairs_are_trained_on_too(make_recipe, registry, tmp_path):
    rows = [{"prompt": f"say {n}", "chosen": "sales rose", "rejected": "sales fell today"} for n in range(24)]
    columns = {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"}
    data = {"data.train": write_jsonl(tmp_path / "pairs.jsonl", rows), "data.test": None, "data.columns": columns}
    train(make_recipe("text-generation", **{**SETTINGS, **data, "data.validation_size": 0.0}), registry)
    ranks = ranks_of(read_checkpoint(tmp_path / "out").config)
    assert sum(ranks.values()) == 2 * 14


def test_an_estimate_counts_what_the_allocator_keeps(make_recipe, tmp_path):
    recipe = make_recipe(rows=16, method="adalora", **RANKS)
    ready = prepared(recipe)
    own = sum(p.nbytes for p in ready.model.parameters() if p.requires_grad)
    allocator = ready.model.base_model.rankallocator
    (ready.model(**batch_of(ready)).loss + 0).backward()
    allocator.update_ipt(ready.model.get_base_model())
    kept = [
        tensor for part in (allocator.ipt, allocator.exp_avg_ipt, allocator.exp_avg_unc) for tensor in part.values()
    ]
    assert estimate(recipe).cost.step.adapter == 4 * own + sum(tensor.nbytes for tensor in kept)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"peft.total_step": 9}, "peft.total_step: the run sets it, to the number of its steps"),
        (
            {"peft.target_r": 12},
            "peft.target_r: the mean rank at the end, 12, has to be below the one .* peft.init_r 12",
        ),
        ({"peft.init_r": 0}, "peft.init_r: expected a rank, 1 or more, found 0"),
        ({"peft.tinit": 1.5}, "peft.tinit: expected a number of steps, 0 or more, found 1.5"),
        ({"peft.tfinal": 0}, "peft.tfinal: expected a number of steps, 1 or more, found 0"),
        ({"peft.deltaT": 0}, "peft.deltaT: expected a number of steps, 1 or more, found 0"),
        ({"peft.beta1": 1.0}, "peft.beta1: expected a number between 0 and 1, found 1.0"),
        ({"peft.orth_reg_weight": -0.1}, "peft.orth_reg_weight: expected a number, 0 or more, found -0.1"),
        ({"peft.lora_alpha": 0}, "peft.lora_alpha: expected a number above 0, found 0"),
        (
            {"training.max_steps": 10, "peft.tinit": 7},
            "training.max_steps: adalora keeps all ranks for the first 7 steps",
        ),
        ({"lora.rank": 4}, "lora: method 'adalora' isn't LoRA; its settings stand under peft"),
        ({"from": "other@1"}, "'adalora' can't start from another adapter"),
        ({"training.lora_plus_ratio": 4.0}, r"LoRA\+ needs a B matrix that begins at zero, and adalora has none"),
    ],
)
def test_settings_that_cannot_be_are_named(settings, message, make_recipe):
    with pytest.raises(RecipeError, match=message):
        make_recipe(method="adalora", **settings)


def test_settings_without_a_meaning_here_are_refused(make_recipe, registry):
    with pytest.raises(RecipeError, match=r"peft.r: adalora has no such setting.*; allowed here: beta1, beta2, deltaT"):
        train(make_recipe(method="adalora", **{"peft.r": 8}), registry)


def test_too_few_steps_are_told_before_the_first_one(make_recipe, registry):
    reporter = Reporter()
    recipe = make_recipe(rows=40, held=4, **{**SETTINGS, "peft.tinit": 9})
    with pytest.raises(TrainingError, match=r"first 9 steps .* the last 4 .* of the run's 12 none remains"):
        train(recipe, registry, reporter)


def test_the_scale_goes_with_the_rank(make_recipe):
    assert dict(make_recipe(method="adalora").peft) == {"init_r": 12, "target_r": 8, "lora_alpha": 24}
    assert dict(make_recipe(method="adalora", **{"peft.init_r": 10}).peft)["lora_alpha"] == 20


def test_in_half_precision_the_ranks_are_counted_and_not_trained(make_recipe, registry, tmp_path):
    """PEFT's cast made the count a trained number, which no checkpoint has: a run that went on had another scale."""
    recipe = make_recipe(rows=40, held=4, **EXACT, dtype="bfloat16")
    trained = {name for name, p in prepared(recipe).model.named_parameters() if p.requires_grad}
    assert {name.split(".")[-2] for name in trained} <= {"lora_A", "lora_B", "lora_E", "default"}  # and the head
    whole = train(recipe.model_copy(update={"output": str(tmp_path / "whole")}), Registry(tmp_path / "whole.db"))
    with pytest.raises(InterruptedRunError):
        train(recipe, registry, Signal("step 5"))
    assert train(recipe, registry, resume=True).digest == whole.digest
