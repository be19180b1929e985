"""Importing what other trainers leave behind: which of a run's checkpoints, what is read, what is refused."""

import json
import os
import pickle
import sys

import pytest
from privileges import unprivileged

from checkpoints import make_checkpoint
from lorary.hub import Registry
from lorary.hub.card import make_card
from lorary.hub.checkpoint import ORIGIN_NAME
from lorary.hub.cli.main import main
from lorary.hub.errors import UsageError
from lorary.hub.importing import import_folders, import_registry
from lorary.hub.importing.discover import find_runs
from lorary.hub.importing.plain_yaml import load_plain_yaml

LOG = [
    {"step": 10, "epoch": 0.5, "loss": 1.9, "learning_rate": 1e-4},
    {
        "step": 10,
        "epoch": 0.5,
        "eval_loss": 1.8,
        "eval_accuracy": 0.6,
        "eval_runtime": 3.0,
        "eval_samples_per_second": 9,
    },
    {"step": 20, "epoch": 1.0, "loss": 1.2, "learning_rate": 0.0},
    {"step": 20, "epoch": 1.0, "eval_loss": 1.1, "eval_accuracy": 0.8, "eval_runtime": 3.0, "eval_bad": float("nan")},
]
AXOLOTL = """---
library_name: peft
license: apache-2.0
base_model: org/tiny
tags:
- axolotl
- generated_from_trainer
datasets:
- /home/alice/data/rows.jsonl
language: en
model-index:
- name: outputs/out
  results: []
---

[<img src="https://example.com/badge.png" alt="Built with Axolotl"/>](https://example.com)
<details><summary>See axolotl config</summary>

axolotl version: `0.9.1`
```yaml
base_model: /home/alice/models/tiny
load_in_4bit: true
adapter: qlora
datasets:
  - path: /home/alice/data/rows.jsonl
    type: alpaca
micro_batch_size: 2
gradient_accumulation_steps: 4
num_epochs: 3
learning_rate: 2e-4
lr_scheduler: cosine
sequence_len: 2048
wandb_api_key: 0123456789abcdef
```

</details><br>

### Framework versions

- PEFT 0.15.2
- Transformers 4.51.3
- Pytorch 2.6.0+cu124
"""
LLAMA_FACTORY = """bf16: true
cutoff_len: 1024
dataset: alpaca_en_demo,identity
finetuning_type: lora
learning_rate: 0.0001
lora_rank: 8
lr_scheduler_type: cosine
model_name_or_path: /root/models/tiny
num_train_epochs: 2.0
output_dir: saves/tiny/lora/sft
per_device_train_batch_size: 1
quantization_bit: 8
"""


def trainer_leftovers(folder, step, log=True):
    """What transformers' Trainer writes beside a checkpoint's weights."""
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"):
        (folder / name).write_bytes(pickle.dumps({"os": "nothing of this is read"}))
    state = {
        "global_step": step, "epoch": 1.0, "num_train_epochs": 3, "train_batch_size": 2, "best_metric": None,
        "log_history": LOG if log else [],
    }  # fmt: skip
    (folder / "trainer_state.json").write_text(json.dumps(state))


def make_run(folder, *, steps=(10, 20), final=True, **config):
    """A run's folder as a trainer leaves it, with a foreign adapter in each checkpoint."""
    config = {"task_type": "CAUSAL_LM", "peft_version": "0.15.2", **config}
    folder.mkdir(parents=True)
    for step in steps:
        trainer_leftovers(make_checkpoint(folder / f"checkpoint-{step}", seed=step, manifest=False, **config), step)
    if final:
        make_checkpoint(folder, seed=max(steps, default=0), manifest=False, **config)
    return folder


def run_command(registry, *words):
    return main(["import", *map(str, words), "--registry", str(registry.path)])


def test_a_run_is_its_finished_adapter(registry, tmp_path, capsys):
    run = make_run(tmp_path / "Tone_Run")
    assert run_command(registry, run, "--domain", "finance") == 0
    [version] = registry.versions()
    assert version.reference == "tone_run@1"
    told = capsys.readouterr().out
    assert "checkpoint-20" in told
    assert "passed over" in told
    assert "--all takes every one" in told


def test_of_a_run_that_was_stopped_the_newest_checkpoint_is_taken_with_its_metrics(registry, tmp_path, capsys):
    run = make_run(tmp_path / "tone", steps=(9, 10, 20), final=False)
    assert run_command(registry, run, "--domain", "finance") == 0
    [version] = registry.versions()
    assert version.metrics == {"validation": {"loss": 1.1, "accuracy": 0.8}}
    told = registry.checkpoint(version).told
    assert told["imported"] == {"tool": None, "run": "tone", "checkpoint": 20}
    assert told["steps"] == 20
    assert told["curve"] == [[10, 1.9], [20, 1.2]]
    assert told["recipe"]["training"] == {"epochs": 3, "batch_size": 2}
    assert "left: optimizer.pt, rng_state.pth, scheduler.pt, training_args.bin" in capsys.readouterr().out
    assert registry.verify() == []


def test_a_checkpoint_has_the_metrics_of_its_own_step(registry, tmp_path):
    run = make_run(tmp_path / "tone", final=False)
    assert run_command(registry, run / "checkpoint-10", "--domain", "finance") == 0
    [version] = registry.versions()
    assert version.name == "tone"
    assert version.metrics["validation"] == {"loss": 1.8, "accuracy": 0.6}


def test_of_a_long_run_s_losses_two_hundred_are_kept_with_the_last(registry, tmp_path):
    run = make_run(tmp_path / "tone", steps=(500,), final=False)
    state = json.loads((run / "checkpoint-500" / "trainer_state.json").read_text())
    state["log_history"] = [{"step": step, "loss": 1 / step} for step in range(1, 501)]
    (run / "checkpoint-500" / "trainer_state.json").write_text(json.dumps(state))
    assert run_command(registry, run, "--domain", "finance") == 0
    [version] = registry.versions()
    curve = registry.checkpoint(version).told["curve"]
    assert len(curve) <= 200
    assert curve[-1] == [500, 1 / 500]


def test_all_takes_every_checkpoint_oldest_first(registry, tmp_path):
    run = make_run(tmp_path / "tone", steps=(10, 20, 30))
    (run / "adapter_model.safetensors").write_bytes((run / "checkpoint-20" / "adapter_model.safetensors").read_bytes())
    outcomes = list(import_folders(registry, run, every=True, domain="finance", alias="prod"))
    assert [(outcome.source, outcome.reference) for outcome in outcomes] == [
        ("checkpoint-10", "tone@1"), ("checkpoint-20", "tone@2"), ("checkpoint-30", "tone@3"), (str(run), "tone@2"),
    ]  # fmt: skip
    assert outcomes[-1].state == "there already"
    assert registry.resolve("tone@prod").number == 2


def test_a_checkpoint_that_was_half_written_is_refused_and_the_one_before_taken(registry, tmp_path, capsys):
    run = make_run(tmp_path / "tone", final=False)
    (run / "checkpoint-20" / "adapter_model.safetensors").unlink()
    assert run_command(registry, run, "--domain", "finance") == 1
    assert registry.checkpoint("tone@1").told["imported"]["checkpoint"] == 10
    assert "no adapter_model.safetensors" in capsys.readouterr().out


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_axolotl(registry, tmp_path, capsys, line_end):
    run = make_run(tmp_path / "out", base_model_name_or_path="/home/alice/models/tiny")
    (run / "README.md").write_text(AXOLOTL, newline=line_end)
    assert run_command(registry, run, "--domain", "finance", "--name", "tone") == 0
    [version] = registry.versions()
    checkpoint = registry.checkpoint(version)
    told = checkpoint.told
    assert (version.quantization, version.method, version.base_id) == ("nf4", "qlora", "tiny")
    assert told["imported"]["tool"] == "axolotl"
    assert told["data"]["train"]["name"] == "rows.jsonl"
    assert (told["licenses"], told["languages"]) == ({"adapter": "apache-2.0"}, ["en"])
    assert told["environment"]["packages"] == {"peft": "0.15.2", "transformers": "4.51.3", "torch": "2.6.0+cu124"}
    assert told["recipe"]["training"] == {
        "epochs": 3, "batch_size": 2, "gradient_accumulation": 4, "learning_rate": 2e-4, "scheduler": "cosine",
        "max_length": 2048,
    }  # fmt: skip
    for name, path in checkpoint.files.items():
        assert b"alice" not in path.read_bytes(), name
        assert b"0123456789abcdef" not in path.read_bytes(), name
    capsys.readouterr()
    assert main(["show", "tone", "--registry", str(registry.path)]) == 0
    shown = capsys.readouterr().out
    for part in ("made with", "axolotl", "rows.jsonl", "learning rate 0.0002", "torch 2.6.0+cu124"):
        assert part in shown, part
    assert main(["show", "tone", "--json", "--registry", str(registry.path)]) == 0
    assert json.loads(capsys.readouterr().out)["told"] == told
    assert "It was made outside lorary, with axolotl" in make_card(version, checkpoint)


def test_llama_factory(registry, tmp_path):
    run = make_run(tmp_path / "sft", base_model_name_or_path="/root/models/tiny")
    (run / "training_args.yaml").write_text(LLAMA_FACTORY)
    (run / "all_results.json").write_text(json.dumps({"eval_loss": 0.7, "epoch": 2.0, "train_loss": 1.0}))
    assert run_command(registry, run, "--domain", "finance") == 0
    version = registry.resolve("sft")
    told = registry.checkpoint(version).told
    assert told["imported"]["tool"] == "llama-factory"
    assert told["data"]["train"]["name"] == "alpaca_en_demo, identity"
    assert told["recipe"]["training"]["learning_rate"] == 1e-4
    assert version.quantization == "int8"
    assert version.metrics == {"validation": {"loss": 0.7}}


@pytest.mark.parametrize(
    ("base", "quantization", "method"),
    [
        ("unsloth/llama-3-8b-bnb-4bit", "nf4", "qlora"),
        ("unsloth/Llama-3.2-1B-Instruct-unsloth-bnb-4bit", "nf4", "qlora"),
        ("unsloth/Llama-3.2-1B-Instruct", "none", "lora"),
    ],
)
def test_the_name_of_a_pre_quantized_base_says_its_quantization(registry, tmp_path, base, quantization, method):
    run = make_run(tmp_path / "lora_model", steps=(), base_model_name_or_path=base)
    (run / "README.md").write_text(f"---\nbase_model: {base}\nlibrary_name: peft\ntags: [unsloth, trl]\n---\n")
    assert run_command(registry, run, "--domain", "x") == 0
    [version] = registry.versions()
    assert (version.base_id, version.quantization, version.method) == (base, quantization, method)
    assert registry.checkpoint(version).told["imported"]["tool"] == "unsloth"
    assert registry.verify() == []


def test_a_card_s_own_results_on_a_test_split_are_held_out_metrics(registry, tmp_path, add):
    version = add(name="tone", metrics={"test": {"f1": 0.9}})
    assert main(["export", "tone", str(tmp_path / "out" / "tone"), "--registry", str(registry.path)]) == 0
    other = type(registry)(tmp_path / "other.db")
    assert run_command(other, tmp_path / "out" / "tone") == 0
    taken = other.resolve("tone")
    assert (taken.digest, taken.metrics) == (version.digest, {"test": {"f1": 0.9}})


def test_a_folder_of_folders(registry, tmp_path, capsys):
    root = tmp_path / "adapters"
    make_run(root / "legal" / "qa")
    make_run(root / "finance" / "qa", steps=(30,))
    make_checkpoint(root / "tone", seed=1)
    (root / "pickled").mkdir()
    (root / "pickled" / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (root / "pickled" / "adapter_model.bin").write_bytes(pickle.dumps({}))
    make_checkpoint(tmp_path / "elsewhere", seed=7)
    (root / "link").symlink_to(tmp_path / "elsewhere")
    (root / "notes").mkdir()
    assert run_command(registry, root, "--domain", "mixed", "--json") == 1
    rows = {row["source"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["legal/qa"]["reference"] == "legal-qa@1"
    assert rows["finance/qa"]["reference"] == "finance-qa@1"
    assert rows["tone"]["reference"] == "tone@1"
    assert rows["legal/qa/checkpoint-20"]["state"] == "passed over"
    assert (rows["pickled"]["state"], rows["link"]["state"]) == ("refused", "refused")
    assert "pickles can run code" in rows["pickled"]["note"]
    assert len(registry.versions()) == 3
    assert run_command(registry, root, "--domain", "mixed") == 1
    assert "3 there already" in capsys.readouterr().out
    assert len(registry.versions()) == 3


def test_several_adapters_cant_share_a_name_and_nothing_is_written(registry, tmp_path):
    make_checkpoint(tmp_path / "a" / "one", seed=1)
    make_checkpoint(tmp_path / "a" / "two", seed=2)
    for options in ({"name": "x"}, {"alias": "prod"}):
        with pytest.raises(UsageError, match="holds 2 adapters"):
            list(import_folders(registry, tmp_path / "a", **options))
    assert not registry.path.exists()


def test_wrong_sources(registry, tmp_path, capsys):
    assert run_command(registry, tmp_path / "nowhere") == 1
    assert "no such folder" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert run_command(registry, tmp_path / "empty") == 1
    assert "no adapter in it" in capsys.readouterr().err
    (tmp_path / "text.db").write_text("not a registry")
    assert run_command(registry, tmp_path / "text.db") == 1
    assert run_command(registry, tmp_path / "text.db", "--name", "x") == 2
    assert run_command(registry, make_run(tmp_path / "nodomain", steps=())) == 2  # one adapter: its own error
    assert not registry.path.exists()


def test_hostile_traces_tell_nothing(registry, tmp_path):
    run = make_run(tmp_path / "tone", steps=(), base_model_name_or_path="org/tiny")
    bomb = "a: &a [x, x]\n" + "\n".join(f"{b}: &{b} [*{a}, *{a}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True))
    (run / "training_args.yaml").write_text(bomb + "\nfinetuning_type: lora\n")
    (run / "trainer_state.json").write_text('{"global_step": -1, "log_history": [1, {"step": "x"}, {"eval_loss": 1}]}')
    (run / "secret.json").write_text('{"eval_loss": 0.1}')
    (run / "all_results.json").symlink_to(run / "secret.json")
    (run / "README.md").write_text("---\nmodel-index: [[{}], {results: [3, {metrics: [{type: 1}]}]}]\ntags: 3\n---\n")
    assert run_command(registry, run, "--domain", "x") == 0
    version = registry.resolve("tone")
    assert version.metrics == {}
    assert ORIGIN_NAME not in version.files


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("training_args.yaml", f"seed: {10**400}\ncutoff_len: 3\n"),
        (
            "README.md",
            f"---\nmodel-index: [{{results: [{{metrics: [{{type: f1, value: {10**400}}}]}}]}}]\n---\n",
        ),
    ],
)
def test_a_number_that_no_float_holds_tells_nothing(registry, tmp_path, name, text):
    run = make_run(tmp_path / "tone", steps=())
    (run / name).write_text(text)
    assert run_command(registry, run, "--domain", "x") == 0
    assert registry.resolve("tone").metrics == {}


def test_a_card_of_few_lines_that_stands_for_billions_of_results(registry, tmp_path):
    run = make_run(tmp_path / "tone", steps=())
    lines, below = ["---", "m: &m {type: f1, value: 0.5}"], "*m"
    for name, before in (("a", "{{metrics: [{}]}}"), ("b", "{{results: [{}]}}")):
        lines.append(f"{name}: &{name} " + before.format(", ".join([below] * 5000)))
        below = f"*{name}"
    (run / "README.md").write_text("\n".join([*lines, f"model-index: [{', '.join([below] * 5000)}]", "---", ""]))
    assert run_command(registry, run, "--domain", "x") == 0
    assert registry.resolve("tone").metrics == {"validation": {"f1": 0.5}}


def test_a_card_of_nothing_but_beginnings_is_read_once(registry, tmp_path):
    run = make_run(tmp_path / "tone", steps=())
    (run / "README.md").write_text("See axolotl config</summary>" * 100_000)  # an hour, if searched from each
    assert run_command(registry, run, "--domain", "x") == 0


def test_yaml_with_aliases_is_refused():
    assert load_plain_yaml("a: [1, 2]") == {"a": [1, 2]}
    for text in ("a: &x 1\nb: *x", "[", "!!python/object/apply:os.system [ls]"):
        with pytest.raises(ValueError, match="YAML"):
            load_plain_yaml(text)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks to drop its privileges")
@pytest.mark.parametrize("mode", [0o000, 0o444])
def test_folders_that_may_not_be_read_are_told_and_the_rest_is_taken(open_folder, mode):
    make_checkpoint(open_folder / "saves" / "private")
    make_checkpoint(open_folder / "saves" / "tone", seed=1)
    (open_folder / "home").mkdir()
    (open_folder / "home").chmod(0o777)
    registry = Registry(open_folder / "home" / "registry.db")
    (open_folder / "saves" / "private").chmod(mode)
    (open_folder / "saves" / "link").symlink_to(open_folder / "saves" / "private" / "below")
    told = unprivileged(lambda: [(one.source, one.state) for one in import_folders(registry, open_folder / "saves")])
    assert told == str([("tone", "taken"), ("private", "refused")])


def test_no_two_runs_get_one_name(registry, tmp_path):
    folders = ["legal-v1", "legal/v1", "finance/v1", "法律", "金融", "x" * 60 + "/" + "y" * 60 + "/a/run",
               "x" * 60 + "/" + "y" * 60 + "/b/run"]  # fmt: skip
    for seed, folder in enumerate(folders):
        make_checkpoint(tmp_path / "saves" / folder, seed=seed)
    outcomes = list(import_folders(registry, tmp_path / "saves"))
    references = {outcome.source: outcome.reference for outcome in outcomes}
    assert [reference.rpartition("@")[2] for reference in references.values()] == ["1"] * len(folders)
    assert references["finance/v1"] == "finance-v1@1"
    assert references["法律"] != references["金融"]
    # Nor does a folder that comes later change what those are called that were there before.
    make_checkpoint(tmp_path / "saves" / "医学", seed=99)
    again = {outcome.source: outcome for outcome in import_folders(registry, tmp_path / "saves")}
    assert {source: again[source].reference for source in references} == references
    assert again["医学"].state == "taken"
    assert again["医学"].reference.endswith("@1")


def test_names_are_made_valid(tmp_path):
    make_checkpoint(tmp_path / "Übung (v2) final")
    [run], _ = find_runs(tmp_path / "Übung (v2) final")
    assert run.name == "bung-v2-final"
    [first, second] = [find_runs(make_checkpoint(tmp_path / name))[0][0].name for name in ("法律", "金融")]
    assert first.startswith("adapter-")
    assert first != second


@pytest.mark.skipif(sys.platform != "linux", reason="other systems allow no such names")
def test_folders_whose_names_are_not_unicode(registry, tmp_path):
    odd = tmp_path / os.fsdecode(b"caf\xe9")
    make_run(odd / "tone", steps=(20,), final=False)
    (odd / "tone").rename(odd / os.fsdecode(b"t\xf6ne"))
    there = Registry(odd / "registry.db")
    base = make_checkpoint(odd / "base")
    (base / "config.json").write_text("{}")
    assert run_command(there, odd / os.fsdecode(b"t\xf6ne"), "--domain", "x", "--alias", "prod", "--name", "tone") == 0
    assert there.checkpoint("tone").told["imported"]["run"] == "t\\udcf6ne"
    there.add(base, name="on-base", base_folder=base)
    assert {outcome.state for outcome in import_registry(registry, there.path)} == {"taken"}
    assert registry.alias_history("tone")[0].origin.endswith("caf\\udce9/registry.db: - to 1")


def test_the_base_of_adapters_that_know_only_a_folder(registry, tmp_path):
    for seed, name in enumerate(("one", "two")):
        make_checkpoint(tmp_path / "runs" / name, seed=seed, manifest=False, base_model_name_or_path="../models/llama")
    notes = [outcome.note for outcome in import_folders(registry, tmp_path / "runs" / "one", domain="legal")]
    assert "../models/llama" in notes[0]
    assert "--base ORG/NAME says which it is, here or (there a folder too) where it is opened" in notes[0]
    outcomes = list(import_folders(registry, tmp_path / "runs", domain="legal", base="org/llama"))
    assert [outcome.state for outcome in outcomes] == ["refused", "taken"]
    assert f"`lorary rm one@1 --registry {registry.path}` first" in outcomes[0].note
    assert registry.resolve("two").base_id == "org/llama"


def test_what_is_refused_for_its_base_sets_no_alias(registry, tmp_path, capsys):
    folder = make_checkpoint(tmp_path / "x", manifest=False)
    told = ["import", str(folder), "--name", "one", "--domain", "legal", "--registry", str(registry.path)]
    assert main(told) == 0
    before = registry.stamp()
    assert main([*told, "--base", "org/other", "--alias", "prod"]) == 1
    assert f"`lorary rm one@1 --registry {registry.path}` first" in capsys.readouterr().err
    assert (registry.resolve("one").aliases, registry.alias_history("one"), registry.stamp()) == ((), [], before)


@pytest.mark.parametrize("option", ["--name", "--domain", "--task", "--alias", "--tag"])
def test_an_empty_option_is_not_the_default(registry, tmp_path, capsys, option):
    folder = make_checkpoint(tmp_path / "tone")
    assert main(["import", str(folder), option, "", "--registry", str(registry.path)]) in (1, 2)
    assert "''" in capsys.readouterr().err
    assert not registry.path.exists()
