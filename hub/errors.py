"""Every error that lorary raises on purpose, by name, and how another library's is quoted in one.

One base class, so that a caller can catch all of them; the command line prints the message on one line and exits with
``exit_code``. A message says what was expected, what was found and how to mend it.
"""

from __future__ import annotations

from collections.abc import Sequence


class LoraryError(Exception):
    """Base class of all of the project's errors; ``exit_code`` is what the command line exits with."""

    exit_code = 1


def first_line(error: BaseException) -> str:
    """The first line of an error's text, for a message that names it as its reason; its class where it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


class UsageError(LoraryError):
    """The call itself is wrong: a flag, a recipe or an argument that can't be meant that way."""

    exit_code = 2


class ProblemsError(UsageError):
    """Several mistakes found in one pass, reported together so that they can be mended together.

    ``hints`` say what would mend several of them at once.
    """

    def __init__(self, subject: str, problems: Sequence[str], hints: Sequence[str] = ()) -> None:
        self.subject = subject
        self.problems = tuple(problems)
        self.hints = tuple(hints)
        count = len(self.problems)
        head = f"{subject}: {count} problem{'s' if count != 1 else ''}"
        super().__init__("\n".join([head, *(f"  - {problem}" for problem in self.problems), *self.hints]))


class RecipeError(ProblemsError):
    """A recipe with unknown keys, wrong values or settings that contradict each other."""


class DataError(ProblemsError):
    """Training or evaluation rows that can't be used as they are; each problem names its file and row."""

    exit_code = 1


class InvalidReferenceError(UsageError):
    """A reference that isn't of the form name, name@3, name@alias, user/repo[@revision] or a path."""


class UnknownReferenceError(LoraryError):
    """A well-formed reference that names nothing in the catalogue; the message offers near names."""


class CheckpointError(LoraryError):
    """An adapter checkpoint that can't be read as one: a missing, truncated or contradictory file."""


class UnsafeFileError(CheckpointError):
    """A file that could run code or reach outside its folder: pickles, links, paths with '..'."""


class ChangedFilesError(CheckpointError):
    """Files that aren't what they were when their adapter was loaded, or what the catalogue says they are."""


class UnsupportedAdapterError(CheckpointError):
    """An adapter that uses a PEFT method or a configuration field the loader doesn't know."""


class KeyMismatchError(CheckpointError):
    """Tensors that are missing, unexpected or of another shape than the backbone needs."""


class NoEffectError(CheckpointError):
    """An adapter that leaves the backbone's outputs as they are."""


class BaseMismatchError(LoraryError):
    """An adapter trained on another base model than the one that's loaded."""


class BlendError(LoraryError):
    """Adapters that can't be combined as asked."""


class MergeError(LoraryError):
    """An adapter that can't be written into its base's weights, or a merged model that doesn't answer like it."""


class OutputError(LoraryError):
    """A folder that can't be written, or that holds something already."""


class GoldenMismatchError(LoraryError):
    """Recomputed golden logits differ from the stored ones by more than the tolerance."""


class SlotsFullError(LoraryError):
    """Every slot is pinned or in use by a running call."""


class SlotsBusyError(SlotsFullError):
    """Every slot is pinned or in use, for longer than the backbone waits for other threads' calls to end."""


class RoutingError(LoraryError):
    """A batch whose rows can't be told apart where adapters have to be applied row by row."""


class EngineUnsupportedError(LoraryError):
    """A model, an attention or a version of transformers that continuous batching can't be run on."""


class EngineStoppedError(LoraryError):
    """A request to an engine that was closed, or whose thread has failed."""


class EngineFailedError(EngineStoppedError):
    """A request to an engine whose thread has failed."""


class EngineFullError(LoraryError):
    """A request to an engine in which as many wait as may."""


class RequestTooLongError(UsageError):
    """A request that an engine could never carry out, whatever else runs: more tokens than it has room for."""


class RequestCancelledError(LoraryError):
    """The result of a request that was cancelled."""


class RequestFailedError(LoraryError):
    """A request that went wrong on its way; the others of its engine go on."""


class MissingDependencyError(LoraryError):
    """A package that this call needs isn't installed."""


class BaseNotFoundError(LoraryError):
    """A base model that is neither a folder, nor in the local cache, nor reachable on the Hub."""


class RegistryError(LoraryError):
    """A registry that can't be read or written."""


class RegistryVersionError(RegistryError):
    """A registry written by a newer lorary than this one."""


class RegistryConflictError(RegistryError):
    """A request that contradicts what the catalogue already holds."""


class PromotionRefusedError(ProblemsError):
    """A version that doesn't meet what is required of it; each problem is one requirement and what was found."""

    exit_code = 1


class RemoteError(LoraryError):
    """A repository on the Hub or a shared folder that can't be had, refuses, or isn't what it says it is."""


class RemoteConflictError(RemoteError):
    """A remote that holds what this registry doesn't know: nothing there is overwritten."""


class TrainingError(LoraryError):
    """A training run that can't go on."""


class EstimateError(LoraryError):
    """What a run will need can't be predicted: the model's own code needs real values, or its layers aren't known."""


class GateError(LoraryError):
    """A trained adapter whose saved files don't give back what was trained."""


class InterruptedRunError(LoraryError):
    """A run that was stopped by the user before it was finished."""

    exit_code = 130


class ThrashingWarning(RuntimeWarning):
    """More adapters take turns than there are slots, so that moving them costs a good part of the time."""


class FollowWarning(RuntimeWarning):
    """A followed alias has moved to a version that can't be loaded; the one before goes on serving."""


class UntestedVersionWarning(UserWarning):
    """The installed transformers is another than the engine was tested with."""


class NetworkFileSystemWarning(RuntimeWarning):
    """A registry on a network file system, whose locks may not hold between machines."""
