"""A terminal or a connection that goes away: the run is stopped in order, or goes on where it was told to."""

from __future__ import annotations

import signal

import pytest

from lorary.hub.errors import InterruptedRunError
from lorary.hub.registry import Registry
from lorary.training import interrupt, train
from lorary.training.checkpoints import latest
from lorary.training.interrupt import Stops
from lorary.training.unfinished import Unfinished
from stops import Signal

SETTINGS = {"training.epochs": 2, "training.batch_size": 4, "training.checkpoint_steps": 100, "lora.dropout": 0.2}


@pytest.fixture(autouse=True)
def listening():
    """The tests themselves may be run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture
def recipe(make_small):
    return make_small(rows=16, held=4, **SETTINGS)


@pytest.fixture(scope="module")
def digests():
    return {}


@pytest.fixture
def whole(digests, recipe, tmp_path):
    """The digest of an unbroken run; it is made once."""
    if not digests:
        output = {"output": str(tmp_path / "whole")}
        digests["whole"] = train(recipe.model_copy(update=output), Registry(tmp_path / "whole.db")).digest
    return digests["whole"]


@pytest.fixture
def hang_up(forks, recipe, registry, tmp_path):
    """Trains in a place that goes away in the fifth step of eight; the exit code, and what was printed until then."""

    def hang_up(place, ignored=False):
        path = tmp_path / "recipe.yaml"
        path.write_text(recipe.to_yaml())
        words = ["train", str(path), "--registry", str(registry.path)]
        ended = forks.run("stops:hang_up", words, place, ignored, TERM="xterm")
        return ended.code, ended.out

    return hang_up


@pytest.mark.parametrize("place", ["terminal", "pipe"])
def test_a_run_whose_terminal_goes_away_can_be_gone_on_with(place, hang_up, whole, recipe, registry, tmp_path):
    code, out = hang_up(place)
    assert code == InterruptedRunError.exit_code, out
    assert latest(Unfinished(tmp_path / "out").checkpoints).step == 6
    assert train(recipe, registry, resume=True).digest == whole


def test_a_run_that_does_not_listen_goes_on_without_its_terminal(hang_up, whole, registry):
    code, out = hang_up("terminal", ignored=True)
    assert code == 0, out
    assert registry.resolve("tiny@1").digest == whole


def test_sighup_stops_like_ctrl_c_however_often_it_comes(recipe, registry, monkeypatch):
    """A shell passes it on to a run that has it from the terminal already, in its own time."""
    monkeypatch.setattr(interrupt, "SAME", 0.0)

    class Thrice(Signal):
        def step(self, done, total, loss):
            for _ in range(3 if done == 5 else 0):
                signal.raise_signal(signal.SIGHUP)

    with pytest.raises(InterruptedRunError, match="step 6 of 8 is kept"):
        train(recipe, registry, Thrice(""))
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL


def test_where_sighup_is_ignored_it_stays_so():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with Stops() as stops:
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        signal.raise_signal(signal.SIGHUP)
    assert not stops.requested
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_ctrl_c_after_sighup_stops_at_once(monkeypatch):
    monkeypatch.setattr(interrupt, "SAME", 0.0)
    with Stops() as stops, stops.after_the_step(lambda line: None):
        signal.raise_signal(signal.SIGHUP)
        assert stops.requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_note_that_can_not_be_written_does_not_end_the_step():
    def note(line):
        raise OSError(5, "Input/output error")

    with Stops() as stops, stops.after_the_step(note):
        signal.raise_signal(signal.SIGTERM)
        assert stops.requested


def test_a_system_without_sighup_has_the_other_two(monkeypatch):
    monkeypatch.setattr(interrupt, "_HANGUP", None)
    with Stops():
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL


def test_a_second_sighup_does_not_disturb_what_the_first_one_ends():
    with Stops():
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGHUP)


def test_a_postponed_signal_comes_when_the_block_ends_and_a_second_one_at_once(monkeypatch):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    reached = []

    def twice():
        with interrupt.postponed():
            signal.raise_signal(signal.SIGHUP)
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)
            reached.append(True)

    with Stops() as stops, pytest.raises(KeyboardInterrupt):
        twice()  # by a terminal and a script, say
    assert stops.requested
    assert reached == [True]
    monkeypatch.setattr(interrupt, "SAME", 0.0)
    with Stops(), pytest.raises(KeyboardInterrupt):
        twice()
    assert reached == [True]
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
