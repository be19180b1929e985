"""Two processes on the CPU train what one does on the same steps; stopped together, they go on together."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from forks import Ended, Running
from safetensors.torch import load_file

from lorary.hub.errors import TrainingError
from lorary.hub.registry import Registry
from lorary.training import train
from lorary.training.checkpoints import latest
from lorary.training.distributed import ALONE, join
from lorary.training.recipe import Recipe
from samples import write_jsonl

CONFIGS = Path(__file__).parents[2] / "examples" / "accelerate"


def _port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


@pytest.fixture
def launch(forks):
    """``launch(folder, *words)``: two processes by accelerate's own launcher, with the shipped configuration."""

    def start(folder: Path, *words: str) -> Running:
        command = [
            "--config_file", str(CONFIGS / "cpu_gloo.yaml"), "--main_process_port", _port(), "-m", "lorary.training",
            "recipe.yaml", "--registry", "own.db", *words,
        ]  # fmt: skip
        return forks.start("stops:launch", command, cwd=folder, OMP_NUM_THREADS="1", TMPDIR=str(folder))

    return start


@pytest.fixture
def start_both(forks):
    """``start_both(folder, *words)`` starts the two processes that a launcher would.

    ``second`` is the function that the second one calls, where it isn't the command.
    """
    command = "lorary.training.__main__:main"

    def start(folder: Path, *words: str, sharded: bool = False, second: str = command) -> list[Running]:
        environment = {
            "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": _port(), "ACCELERATE_USE_CPU": "true",
            "ACCELERATE_USE_FSDP": str(sharded).lower(),
        }  # fmt: skip
        arguments = ["recipe.yaml", "--registry", "own.db", *words]
        return [
            forks.start(function, arguments, cwd=folder, RANK=rank, LOCAL_RANK=rank, **environment)
            for rank, function in (("0", command), ("1", second))
        ]

    return start


@pytest.fixture
def together(start_both):
    """``together(folder, *words)``: the same to their end, with their exit codes and what they wrote."""

    def run(folder: Path, *words: str, sharded: bool = False) -> list[Ended]:
        return [one.wait() for one in start_both(folder, *words, sharded=sharded)]

    return run


def small(base: str, folder: Path) -> str:
    """A copy of a base without dropout, whose masks would differ between the processes."""
    import transformers as t

    config = t.AutoConfig.from_pretrained(base)
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    model = t.AutoModel.from_pretrained(base, config=config)
    model.save_pretrained(folder)
    t.AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def written(make_recipe, tmp_path):
    """``written(task, rows=16, **settings)``: a recipe in a file, of rows of which few are only measured."""

    def write(task: str = "text-classification", **settings) -> Recipe:
        made = make_recipe(task, held=3, **{"training.batch_size": 4, "output": None, **settings})
        (tmp_path / "recipe.yaml").write_text(made.to_yaml())
        return made

    return write


@pytest.fixture
def recipe(written, bases, tmp_path):
    """Rows with words of differing number, that fill neither the last step nor both processes' share of it."""
    base = small(bases("bert"), tmp_path / "base")
    settings = {"base": base, "lora.dropout": 0.0, "training.learning_rate": 0.003}
    return partial(written, "token-classification", rows=18, **settings)


def two_make_what_one_does(two, halves, registry, folder: Path, **tolerances: float):
    """Of steps of the same rows, in one batch; the version that one process makes."""
    assert [process.code for process in two] == [0, 0], two[0].err
    training = halves.training.model_copy(update={"batch_size": 2 * halves.training.batch_size})
    one = train(halves.model_copy(update={"training": training, "output": str(folder / "one")}), registry)
    tensors = load_file(folder / "two" / "adapter_model.safetensors")
    for key, tensor in load_file(folder / "one" / "adapter_model.safetensors").items():
        torch.testing.assert_close(tensors[key], tensor, **tolerances)
    return one


@pytest.mark.parametrize("sharded", [False, True], ids=["whole", "sharded"])
def test_two_processes_make_the_adapter_of_one(sharded, recipe, together, tmp_path, registry):
    halves = recipe()
    first, second = together(tmp_path, "--set", "output=two", sharded=sharded)
    one = two_make_what_one_does((first, second), halves, registry, tmp_path, rtol=1e-3, atol=1e-4)
    assert first.out.startswith("tiny@1: ")
    assert "Traceback" not in first.err
    assert ("the base's layers are cut up among 2 processes, " in first.err) == sharded
    assert second.out == ""
    two = Registry(tmp_path / "own.db").resolve("tiny")
    assert two.manifest.provenance["steps"] == one.manifest.provenance["steps"] == 6
    for (_, mine), (_, theirs) in zip(two.manifest.provenance["curve"], one.manifest.provenance["curve"], strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4)
    assert len(Registry(tmp_path / "own.db").versions()) == 1


def test_two_processes_take_away_the_ranks_that_one_does(written, bases, together, tmp_path, registry):
    base = small(bases("bert", layers=2), tmp_path / "base")
    halves = written(rows=32, method="adalora", base=base, **{"peft.init_r": 4, "peft.target_r": 2})
    two = together(tmp_path, "--set", "output=two")
    two_make_what_one_does(two, halves, registry, tmp_path, rtol=1e-3, atol=1e-4)


def test_a_quantized_base_in_shards(written, together, tmp_path, registry):
    settings = {
        "lora.init": "pissa", "method": "qlora", "quantization": "nf4", "training.gradient_checkpointing": True,
        "lora.dropout": 0.0,
    }  # fmt: skip
    halves = written("text-generation", rows=16, **settings)
    two = together(tmp_path, "--set", "output=two", sharded=True)
    two_make_what_one_does(two, halves, registry, tmp_path, rtol=1e-4, atol=1e-5)


def test_new_tokens_on_a_base_in_shards(written, bases, together, tmp_path, registry):
    """The saved adapter runs through PEFT, which puts its layers into a copy of the model."""
    settings = {"base": bases("llama"), "tokens.add": ("zzqx", "qqzx"), "lora.dropout": 0.0}
    halves = written("text-generation", rows=16, **settings)
    two = together(tmp_path, "--set", "output=two", sharded=True)
    two_make_what_one_does(two, halves, registry, tmp_path, rtol=1e-4, atol=1e-5)


def test_numbers_on_a_base_in_shards_whose_head_has_no_bias(written, bases, together, tmp_path, registry):
    """Where its head begins takes a pass over the rows, in which all processes lend their parts."""
    texts = [{"text": "profit " * (n % 5 + 1), "label": n % 5 + 2.5} for n in range(16)]
    files = {"data.train": write_jsonl(tmp_path / "numbers.jsonl", texts), "data.test": None}
    halves = written(base=bases("llama"), **files, **{"lora.dropout": 0.0})
    two = together(tmp_path, "--set", "output=two", sharded=True)
    # The fit that the head begins with magnifies rounding, which differs between processors.
    two_make_what_one_does(two, halves, registry, tmp_path, rtol=1e-3, atol=1e-3)


# Three steps an epoch, of which the last is short, with dropout: each process needs the state of its own generators.
BROKEN_OFF = {"training.epochs": 6, "training.checkpoint_steps": 2, "lora.dropout": 0.3}


@pytest.fixture(scope="module")
def digests():
    return {}


@pytest.fixture
def whole(digests, recipe, together, tmp_path):
    """The digest of an unbroken run of two processes; it is made once."""
    recipe(**BROKEN_OFF)
    if not digests:
        both = together(tmp_path, "--set", "output=whole", "--registry", "whole.db")
        assert [one.code for one in both] == [0, 0], both[0].err
        digests["whole"] = digest(tmp_path / "whole.db")
    return digests["whole"]


def digest(path: Path) -> str:
    """Of what was trained, and registered there."""
    return Registry(path).resolve("tiny").digest


def test_two_processes_stop_and_go_on_together(whole, launch, together, tmp_path):
    launcher = launch(tmp_path, "--set", "output=two")
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("two.incomplete/checkpoints/*/complete.json")):
        assert time.monotonic() < deadline, (launcher.folder / "err").read_text()
        time.sleep(0.01)
    os.killpg(launcher.pid, signal.SIGINT)  # as a terminal does: to the launcher and all that it started
    ended = launcher.wait()
    assert ended.code != 0
    stopped = re.search(r"tiny: stopped, nothing was registered; step (\d+) of 18 is kept", ended.err)
    assert stopped, ended.err
    assert "go on with: the same launch of 2 processes, and --resume" in ended.err
    kept = latest(tmp_path / "two.incomplete" / "checkpoints")
    assert 0 < kept.step == int(stopped[1]) < 18
    assert {path.name for path in kept.folder.glob("rng_state*")} == {"rng_state_0.pth", "rng_state_1.pth"}
    both = together(tmp_path, "--set", "output=two", "--resume")
    assert [one.code for one in both] == [0, 0], both[0].err
    assert f"going on after step {kept.step} of 18" in both[0].err
    assert digest(tmp_path / "own.db") == whole


@pytest.fixture
def each(forks, tmp_path):
    """``each(function)`` runs a function in two processes that find each other, and gives their exit codes."""

    def run(function: str) -> list[int]:
        environment = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": _port()}
        both = [forks.start(function, str(tmp_path), RANK=rank, **environment) for rank in ("0", "1")]
        return [one.wait().code for one in both]

    return run


def test_the_first_process_has_the_last_words(each):
    """A launcher ends it as soon as another one has ended."""
    assert each("stops:last_words") == [0, 0]


def test_a_signal_that_only_one_has_seen_stops_both(each):
    """While both save: else the one would go on to a step that the other never takes."""
    assert each("stops:asked_while_saving") == [0, 0]


def test_processes_take_turns(each, tmp_path):
    """Of a machine whose memory has room for one whole base."""
    assert each("stops:take_turns") == [0, 0]
    assert (tmp_path / "turns").read_text().splitlines() == ["0 begins", "0 ends", "1 begins", "1 ends"]


def test_a_process_that_is_lost_is_told_and_the_run_goes_on(whole, start_both, together, tmp_path):
    """From the middle of an epoch, whose last rows accelerate doesn't count then."""
    first, second = start_both(tmp_path, "--set", "output=two", second="lives:lost")
    assert second.wait().code == -signal.SIGKILL
    ended = first.wait()
    assert ended.code == 1
    assert "error: another of the 2 processes has ended, and a step needs them all" in ended.err
    assert "go on with: the same launch of 2 processes, and --resume" in ended.err
    both = together(tmp_path, "--set", "output=two", "--resume")
    assert [one.code for one in both] == [0, 0], both[0].err
    assert "going on after step 4 of 18" in both[0].err
    assert digest(tmp_path / "own.db") == whole


def test_an_error_of_the_first_process_ends_all(recipe, together, tmp_path):
    recipe()
    rows = tmp_path / "train.jsonl"
    rows.write_text('{"tokens": ["a"], "tags": []}\n' + rows.read_text())
    both = together(tmp_path)
    assert [one.code for one in both] == [1, 1]  # the other one, which would wait for it, sees that it is gone
    assert "train.jsonl, row 1" in both[0].err
    assert "process 1: another process has ended; its own words" in both[1].err
    assert not (tmp_path / "runs").exists()
    assert not (tmp_path / "own.db").exists()


def test_a_launcher_starts_it_in_an_interpreter_of_its_own():
    command = [sys.executable, "-u", "-m", "lorary.training", "--help"]
    assert "--resume" in subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_shipped_configurations_are_accelerates(path):
    config = load_config_from_file(str(path))
    assert config.num_processes == 2
    assert yaml.safe_load(path.read_text())["distributed_type"] == config.distributed_type.value


def test_what_a_launcher_may_ask_for_and_this_cannot_do(monkeypatch, make_recipe):
    recipe: Recipe = make_recipe()
    assert join(recipe) is ALONE
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(TrainingError, match="device_map 'auto' spreads one base over all GPUs, and each of 2"):
        join(recipe.model_copy(update={"device": None, "device_map": "auto"}))
    with pytest.raises(TrainingError, match="device 'cuda:1' names one device for 2 processes"):
        join(recipe.model_copy(update={"device": "cuda:1"}))
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(TrainingError, match=r"DeepSpeed isn't supported; .*fsdp.yaml cuts up the base"):
        join(recipe)
    monkeypatch.delenv("ACCELERATE_USE_DEEPSPEED")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "dora"}, "'dora' isn't for a base that FSDP cuts up: lora, qlora and rslora alone"),
        ({"method": "adalora"}, "'adalora' isn't for a base that FSDP cuts up"),
        ({"method": "ia3"}, "'ia3' isn't for a base that FSDP cuts up"),
        ({"quantization": "int8"}, "an 8-bit base can't be cut up by FSDP; use method: qlora"),
    ],
)
def test_what_cannot_be_trained_on_shards(settings, message, monkeypatch, make_recipe):
    recipe: Recipe = make_recipe(**settings)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert join(recipe) is ALONE  # one process has all of the base
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(TrainingError, match=message):
        join(recipe)
