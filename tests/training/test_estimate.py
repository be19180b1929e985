"""What a run will need: counted without weights, and held against the real thing."""

from __future__ import annotations

import copy
import json
import shutil
import signal
from dataclasses import replace

import pytest
import torch
from transformers import AutoTokenizer

from lorary.hub.cli.main import main
from lorary.hub.errors import EstimateError, TrainingError
from lorary.training import Recipe, train
from lorary.training.data import load_data
from lorary.training.estimate.live import LiveBytes
from lorary.training.estimate.past import PastRuns
from lorary.training.estimate.plan import estimate
from lorary.training.estimate.quantized import packed_bytes
from lorary.training.estimate.step import step_cost
from lorary.training.fitting.padding import padded_tokens
from lorary.training.precision import precision
from lorary.training.prepare import prepare
from lorary.training.progress import Reporter
from samples import ROWS, question_rows, write_jsonl


def test_live_bytes_rise_and_fall_with_the_tensors():
    held = torch.zeros(1000)
    live = LiveBytes([held])
    with live:
        a = torch.ones(500)
        view = a.view(20, 25)
        assert live.now == 4000 + 2000
        del a
        assert live.now == 4000 + 2000  # the view holds the storage
        del view
    assert live.now == 4000
    assert live.peak == 6000


def test_layers_that_a_die_may_leave_out_are_counted(make_small):
    recipe = make_small("translation", "bart", rows=8)
    prepared = prepare(recipe, load_data(recipe), Reporter())

    def cost(layerdrop):
        config = copy.deepcopy(prepared.base.model.config)
        config.encoder_layerdrop = config.decoder_layerdrop = layerdrop
        return step_cost(
            recipe, prepared.task, prepared.base.tokenizer, config, prepared.train.features,
            dtype=torch.float32, device=torch.device("cpu"),
        )  # fmt: skip

    assert cost(0.9) == cost(0.0)


def test_a_signal_waits_until_a_step_is_counted(make_small, monkeypatch):
    """torch calls Python while it counts, and where that raises between two of its functions the process aborts."""
    recipe = make_small(rows=8)
    prepared = prepare(recipe, load_data(recipe), Reporter())
    config, features = prepared.base.model.config, prepared.train.features
    counted, dispatch = [], LiveBytes.__torch_dispatch__

    def signalled(self, *args):
        counted.append(args)
        if len(counted) == 3:
            signal.raise_signal(signal.SIGINT)
        return dispatch(self, *args)

    monkeypatch.setattr(LiveBytes, "__torch_dispatch__", signalled)
    with pytest.raises(KeyboardInterrupt):
        step_cost(
            recipe, prepared.task, prepared.base.tokenizer, config, features, dtype=torch.float32,
            device=torch.device("cpu"),
        )  # fmt: skip
    assert len(counted) > 100


CHECKPOINTING = {"training.gradient_checkpointing": True}


@pytest.mark.parametrize(
    ("task", "family", "settings"),
    [
        ("text-classification", "bert", CHECKPOINTING),
        ("text-classification", "t5", {}),
        ("text-classification", "bart", {}),
        ("text-classification", "bert", {"method": "dora", "quantization": "nf4"}),
        ("text-classification", "bert", {"method": "vera", "quantization": "nf4"}),
        ("text-classification", "bert", {"quantization": "int8"}),
        ("text-classification", "bert", {"method": "boft"}),
        ("text-classification", "bert", {"method": "adamss"}),
        ("text-classification", "bert", {"method": "adamss", "peft.use_dynamic_rank": True}),
        ("text-classification", "bert", {"method": "unilora"}),
        ("token-classification", "roberta", {}),
        ("text-generation", "llama", {}),
        ("summarization", "t5", CHECKPOINTING),
        ("translation", "bart", {}),
    ],
    ids=str,
)
def test_the_step_without_weights_is_the_real_step(task, family, settings, make_small):
    recipe = make_small(task, family, rows=8, **settings, **{"training.batch_size": 4})
    prepared = prepare(recipe, load_data(recipe), Reporter())
    config = prepared.base.model.config
    cost = step_cost(
        recipe, prepared.task, prepared.base.tokenizer, config, prepared.train.features,
        dtype=torch.float32, device=torch.device("cpu"),
    )  # fmt: skip

    model = prepared.model.train()
    if settings == CHECKPOINTING:
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
    longest = sorted(prepared.train.features, key=lambda feature: -len(feature["input_ids"]))[:4]
    batch = prepared.task.collator(prepared.base.tokenizer)([dict(feature) for feature in longest])
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad])

    def step():
        with precision(model):
            loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    moments = [value for state in optimizer.state.values() for value in state.values()]
    live = LiveBytes([*model.parameters(), *model.buffers(), *moments])
    with live:
        step()
    assert cost.peak == pytest.approx(live.peak, rel=0.02)
    assert cost.tokens == batch["input_ids"].numel()
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert cost.adapter == 4 * 4 * trained


@pytest.mark.parametrize(
    ("task", "settings"),
    [
        ("question-answering", {"training.max_length": 24}),
        ("text-classification", {"problem_type": "regression"}),
        ("translation", {}),
        ("feature-extraction", {}),
        ("fill-mask", {}),
        ("fill-mask", {"family": "t5-spans"}),
    ],
)
def test_the_estimate_is_of_the_run_that_follows(task, settings, make_small, tmp_path):
    """The rows are cut, and the task told of them, as the run does it."""
    if settings.get("problem_type") == "regression":
        rows = [{**row, "label": index / 7} for index, row in enumerate(ROWS["text-classification"](18))]
        settings = {**settings, "data.train": write_jsonl(tmp_path / "a.jsonl", rows), "data.test": None}
    if task == "question-answering":
        rows = question_rows(16, unanswerable=4, words=40)
        settings = {**settings, "data.train": write_jsonl(tmp_path / "a.jsonl", rows)}
    layers = 2 if task == "feature-extraction" else 1  # of one layer, the unreached is a larger part
    recipe = make_small(task, rows=18, layers=layers, **{**settings, "training.batch_size": 4})
    planned = estimate(recipe)
    ready = prepare(recipe, load_data(recipe), Reporter())
    cost = step_cost(
        recipe, ready.task, ready.base.tokenizer, ready.base.model.config, ready.train.features,
        dtype=torch.float32, device=torch.device("cpu"),
    )  # fmt: skip
    assert planned.cost.step == cost
    trained = sum(parameter.numel() for parameter in ready.model.parameters() if parameter.requires_grad)
    assert cost.adapter == pytest.approx(4 * 4 * trained, rel=0.1)  # a target that nothing reaches is counted too
    per_epoch = -(-len(ready.train.features) // 4)
    assert planned.cost.steps == int(recipe.training.epochs) * per_epoch


@pytest.mark.parametrize(("quantization", "double"), [("nf4", True), ("nf4", False), ("int8", True)])
def test_packed_bytes_are_bitsandbytes_own(quantization, double):
    import bitsandbytes as bnb

    weight = torch.randn(256, 512)
    if quantization == "int8":
        codes, scales, _ = bnb.functional.int8_vectorwise_quant(weight.half())
        held = codes.numel() + scales.numel() * scales.element_size()
    else:
        codes, state = bnb.functional.quantize_4bit(weight, blocksize=64, compress_statistics=double, quant_type="nf4")
        held = codes.numel() + state.absmax.numel() * state.absmax.element_size()
        if double:
            held += state.state2.absmax.numel() * 4
    assert packed_bytes(weight.numel(), 256, quantization, double) == held


def test_a_quantized_base_weighs_less_and_counts_its_unpacking(make_small):
    plain, quantized = (estimate(make_small(rows=8, **settings)) for settings in ({}, {"method": "qlora"}))
    assert quantized.cost.step.weights < plain.cost.step.weights
    assert quantized.cost.step.flops == plain.cost.step.flops


def test_padded_tokens_are_those_of_random_batches():
    assert padded_tokens([5] * 10, 4, seed=0) == 50
    assert 4 * 10 <= padded_tokens([1, 10, 10, 1] * 5, 2, seed=0) <= 20 * 10


def test_a_runs_provenance_predicts_the_next_and_a_strangers_does_not(make_small, registry):
    settings = {
        "training.epochs": 2,
        "training.batch_size": 4,
        "training.gradient_accumulation": 3,
        "report.write": True,
    }
    recipe = make_small(rows=26, **settings)
    version = train(recipe, registry)
    provenance = version.manifest.provenance
    assert provenance["estimate"]["steps"] == provenance["steps"] == 6
    past = PastRuns(registry.versions())
    assert len(past.errors()) == 1
    assert past.rate(recipe, torch.device("cpu")) == pytest.approx(
        provenance["estimate"]["flops"] / provenance["seconds"], rel=0.01
    )
    found = estimate(recipe, past)
    assert found.cost.basis == "from 1 past run on this device"
    assert found.cost.seconds > 0
    unreadable = ({"estimate": 3}, {"estimate": {"flops": "x"}}, {"estimate": {"steps": 0, "flops": 1}})
    # A run takes time and memory; of one that says otherwise a speed or an error would be infinite, or negative.
    measured = [{key: value} for key in ("peak_memory_bytes", "seconds", "steps") for value in (0, -1)]
    told = provenance["estimate"]
    predicted = [{"estimate": {**told, key: value}} for key in ("peak_memory_bytes", "flops") for value in (0, -1)]
    for other in (*unreadable, *measured, *predicted):
        manifest = replace(version.manifest, provenance={**provenance, **other})
        assert PastRuns([replace(version, manifest=manifest)]).runs == [], other
    for nothing in ({}, {"estimate": told}):
        manifest = replace(version.manifest, provenance=nothing)
        assert PastRuns([replace(version, manifest=manifest)]).runs == []
    assert PastRuns([replace(version, manifest=None)]).runs == []


def test_what_does_not_fit_is_told_with_what_would(make_small, tmp_path, capsys):
    recipe = make_small(rows=16, method="rslora", **{"training.batch_size": 2, "training.seeds": 3})
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe.to_yaml())
    assert main(["estimate", str(file), "--registry", str(tmp_path / "r.db"), "--memory", "1MB", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["fits"], told["runs"]) == (False, 3)
    assert told["alternatives"]
    assert all(other["peak"] < told["peak_bytes"] for other in told["alternatives"])
    assert not (tmp_path / "r.db").exists()
    assert main(["estimate", str(file), "--memory", "lots"]) == 2


@pytest.mark.parametrize(
    ("task", "settings"),
    [
        ("text-classification", {"method": "prefix-tuning"}),  # not with gradient checkpointing
        ("feature-extraction", {}),  # not with one pair a batch, which has nothing to be told from
        ("text-classification", {"quantization": "none"}),  # which QLoRA isn't
    ],
    ids=str,
)
def test_what_would_fit_is_a_recipe(task, settings, make_small, tmp_path):
    recipe = make_small(task, rows=16, **{"training.batch_size": 4, **settings})
    found = estimate(recipe, memory=1)
    assert found.alternatives
    (tmp_path / "recipe.yaml").write_text(recipe.given())
    for other in found.alternatives:
        Recipe.load(tmp_path / "recipe.yaml", other.settings)
    told = {setting for other in found.alternatives for setting in other.settings}
    assert ("method=qlora" in told) == (recipe.method == "lora")


@pytest.mark.parametrize(
    ("task", "size", "batches"),
    [
        ("feature-extraction", 3, [(2, 2)]),  # a pair alone has nothing to be told from
        ("feature-extraction", 8, [(4, 2), (2, 4)]),
        ("text-classification", 2, [(1, 2)]),
        ("text-classification", 15, [(5, 3), (1, 15)]),
    ],
)
def test_smaller_batches_that_would_fit_are_those_of_a_run_whose_memory_runs_out(task, size, batches, make_small):
    found = estimate(make_small(task, rows=32, **{"training.batch_size": size}), memory=1)
    told = [f"training.batch_size={size} training.gradient_accumulation={count}" for size, count in batches]
    settings = [" ".join(other.settings) for other in found.alternatives]
    assert [one for one in settings if one.startswith("training.batch_size")] == told
    assert f"method=qlora training.gradient_checkpointing=true {told[-1]}" in settings


def test_what_is_as_small_as_it_gets_is_told(make_small, tmp_path, capsys):
    small = {"training.batch_size": 1, "training.gradient_checkpointing": True, "training.max_length": 32}
    (tmp_path / "recipe.yaml").write_text(make_small(rows=8, method="qlora", **small).to_yaml())
    assert main(["estimate", str(tmp_path / "recipe.yaml"), "--memory", "1MB"]) == 1
    assert "It doesn't fit, and no setting of the run makes it smaller" in capsys.readouterr().out


def test_a_run_is_estimated_again_where_it_has_been_made(make_small, registry, tmp_path, capsys):
    recipe = make_small(rows=8, method="rslora", **{"training.max_steps": 1, "training.batch_size": 2})
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    train(recipe, registry)
    assert main(["estimate", str(tmp_path / "recipe.yaml"), "--registry", str(registry.path)]) == 0
    assert "It fits." in capsys.readouterr().out
    assert estimate(recipe, memory=1).alternatives


def test_the_runs_of_folds_are_told(make_small, tmp_path, capsys):
    (tmp_path / "recipe.yaml").write_text(make_small(rows=16, **{"training.folds": 3}).to_yaml())
    assert main(["estimate", str(tmp_path / "recipe.yaml")]) == 0  # it fits
    assert "Runs:  4, each of about these steps" in capsys.readouterr().out


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "rslora", "lora.init": "pissa", "lora.targets": "attention", "lora.layers": "last 1"},
        {"method": "adalora", "quantization": "fp4", "double_quantization": False},
        {"method": "loha"},
        {"method": "prefix-tuning"},
    ],
    ids=str,
)
def test_every_method_can_be_estimated(settings, make_small):
    found = estimate(make_small(rows=8, **settings))
    assert found.cost.step.peak > found.cost.step.weights > 0
    assert found.cost.step.adapter > 0


def test_ranks_that_depend_on_values_are_counted_with_the_most_that_they_can_be(make_small):
    settings = {"method": "adamss", "peft.subspace_rank": 4}
    fixed, dynamic = (
        make_small(rows=8, **settings, **more)
        for more in ({}, {"peft.use_dynamic_rank": True, "peft.svd_threshold": 0.9})
    )
    assert (found := estimate(dynamic).cost.step) == estimate(fixed).cost.step
    ready = prepare(dynamic, load_data(dynamic), Reporter())
    trained = sum(parameter.numel() for parameter in ready.model.parameters() if parameter.requires_grad)
    assert found.adapter > 4 * 4 * trained


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "frod"}, "can't be estimated without its weights: "),
        ({"method": "vblora"}, "can't be estimated: `in_features` 32 must be divisible by `vector_length` 256"),
    ],
)
def test_a_method_that_reads_weights_or_does_not_fit_says_so(settings, message, make_recipe):
    with pytest.raises(EstimateError, match=message):
        estimate(make_recipe(**settings))


@pytest.mark.parametrize(
    ("task", "family", "message"),
    [
        ("token-classification", "bart", "transformers has no such class for 'bart' models"),
        ("text-generation", "bert", "is an encoder, which can't generate"),
    ],
)
def test_a_base_that_cannot_be_trained_for_the_task_is_no_estimate(task, family, message, make_recipe):
    with pytest.raises(TrainingError, match=message):
        estimate(make_recipe(task, family))


def test_a_decoder_whose_tokenizer_alone_knows_its_padding_can_be_estimated(make_recipe, bases, tmp_path):
    """Its classifier looks for the last token that isn't padding, and asks the config which that is."""
    folder = shutil.copytree(bases("llama"), tmp_path / "padded")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = "</s>"
    tokenizer.save_pretrained(folder)
    assert estimate(make_recipe("text-classification", base=str(folder))).cost.step.peak > 0


def test_a_pair_counts_both_replies(make_small, tmp_path):
    rows = [{"prompt": f"bank {i}", "chosen": "rose today", "rejected": "fell today"} for i in range(8)]
    columns = {role: role for role in ("prompt", "chosen", "rejected")}
    data = {"data.train": write_jsonl(tmp_path / "pairs.jsonl", rows), "data.test": None, "data.columns": columns}
    pairs = estimate(make_small("text-generation", **data, **{"training.batch_size": 4}))
    replies = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in rows]
    data = {"data.train": write_jsonl(tmp_path / "replies.jsonl", replies), "data.test": None}
    alone = estimate(make_small("text-generation", **data, **{"training.batch_size": 4, "training.packing": False}))
    assert pairs.cost.step.tokens > 1.5 * alone.cost.step.tokens
