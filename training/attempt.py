"""Working on a run: no other process does meanwhile, it can be stopped, and what is kept of it is told."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lorary.hub.errors import InterruptedRunError, LoraryError
from lorary.hub.registry import Registry
from lorary.training.checkpoints import prune
from lorary.training.interrupt import Stops
from lorary.training.progress import Reporter
from lorary.training.unfinished import Unfinished


@contextmanager
def attempt(
    run: Unfinished, name: str, registry: Registry, reporter: Reporter, lacking: str = "nothing was registered"
) -> Iterator[Stops]:
    """Keep the run's folder for this process and listen for what asks it to stop until the work is done or has failed.

    Args:
        name: the recipe's.
        lacking: what a run that was stopped hasn't done.

    Raises:
        TrainingError: another process works on the run.
        InterruptedRunError: Ctrl-C, SIGTERM or SIGHUP; the message says how to go on.
    """
    try:
        with Stops() as stops, _claimed(run):
            yield stops
    except (KeyboardInterrupt, InterruptedRunError) as error:
        hint = run.hint(registry) or "no files are left"
        raise InterruptedRunError(f"{name}: stopped, {lacking}; {hint}") from error
    except LoraryError:
        if run.claimed and (kept := run.hint(registry)):
            reporter.note(kept)
        raise


@contextmanager
def _claimed(run: Unfinished) -> Iterator[None]:
    """The run's folder for this process; afterwards it is gone, unless a run that failed can be gone on with.

    A run that was there before stays, too: with no checkpoint as yet it may have been refused for what can be put back.
    """
    run.claim()
    found = set(run.checkpoints.glob("*"))
    try:
        yield
    except BaseException as error:
        checkpoint = run.checkpoint
        stopped = isinstance(error, (KeyboardInterrupt, InterruptedRunError))
        if checkpoint is not None:
            # What a full disk cut off only takes room.
            prune(run.checkpoints, {checkpoint.folder, checkpoint.best, *(() if run.begun else found)})
        elif run.result() is None and not run.parts.is_dir() and (run.begun or stopped or not run.resumable):
            run.discard()
        raise
    else:
        run.discard()
    finally:
        run.release()
