"""The one call on a GPU that is lent for minutes: a part that fails, or comes too late, costs the others nothing."""

import importlib
import time
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def check(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("gpu_check")


def failing():
    yield "its first table"
    raise ValueError("expected a GPU " + "that answers " * 1000 + "to the end")


def test_a_part_that_fails_is_told_and_the_others_go_on(check, capsys):
    parts = {"bad": failing, "good": lambda: iter(["another table"])}
    check.run(parts, time.perf_counter(), 60)
    out = capsys.readouterr().out
    assert out.index("its first table") < out.index("bad: FAILED") < out.index("another table")
    assert "to the end" in out
    assert len(out) < 4000


def test_no_part_begins_after_the_time_is_up(check, capsys):
    check.run({"late": failing}, time.perf_counter() - 61, 60)
    assert capsys.readouterr().out == "late: left out, the time is up\n"


def test_a_gpu_that_no_longer_answers_ends_it(check, capsys, monkeypatch):
    def broken():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(check, "_tidy", broken)
    check.run({"bad": failing, "good": lambda: iter(["another table"])}, time.perf_counter(), 60)
    out = capsys.readouterr().out
    assert "an illegal memory access" in out
    assert "another table" not in out
