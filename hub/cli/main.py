"""The command line's frame: finds the subcommand, and turns what goes wrong into one line and an exit code."""

from __future__ import annotations

import errno
import importlib
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from inspect import getdoc
from typing import Annotated, Any

import typer

from lorary.hub import errors
from lorary.hub.cli.help import COMMANDS, Command, Group, module_of
from lorary.hub.cli.output import print_error, print_warning
from lorary.hub.cli.requirements import unmet
from lorary.hub.cli.waits import tell_waits_once
from lorary.hub.errors import LoraryError, ProblemsError
from lorary.hub.streams import settle_streams

INTERRUPTED = 130  # as a shell reports a command that Ctrl-C stopped
_BROKEN_PIPE = 141

# typer has its own copy of click, of which it makes this class public by its subclasses alone.
_UsageError: type[Exception] = typer.BadParameter.__bases__[0]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line on ``arguments`` (by default the process's) and return its exit code."""
    settle_streams()
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal that lacks a sign isn't worth an error
    words, debug = _take_debug(list(sys.argv[1:] if arguments is None else arguments))
    if not debug:
        _hush()
    try:
        with _warnings_on_one_line():
            return _run(words)
    except Exception as error:
        if debug:
            traceback.print_exc()
        return _report(error)
    except KeyboardInterrupt:
        if debug:
            traceback.print_exc()
        print_error("interrupted")
        return INTERRUPTED


@contextmanager
def _warnings_on_one_line() -> Iterator[None]:
    """The project's own warnings are for the user, not for somebody who looks for them in the code."""
    with warnings.catch_warnings():
        usual = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
            if category.__module__ == errors.__name__:
                print_warning(str(message))
            else:
                usual(message, category, *where, **more)

        warnings.showwarning = show
        yield


def _hush() -> None:
    """Leave out what libraries print on import, and their notes to programmers: they ask nothing of the user."""
    for name in ("bitsandbytes.backends.cpu.ops", "huggingface_hub.repocard", "huggingface_hub.repocard_data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.simplefilter("ignore", FutureWarning)
    warnings.simplefilter("ignore", DeprecationWarning)
    tell_waits_once()
    if not sys.stderr.isatty():  # in a pipe or a log, progress bars are thousands of lines
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def _run(words: list[str]) -> int:
    command = typer.main.get_command(_app(words))
    try:
        with command.make_context("lorary", words) as context:
            command.invoke(context)
        sys.stdout.flush()
    except typer.Exit as error:
        return error.exit_code
    return 0


def _report(error: Exception) -> int:
    if isinstance(error, ProblemsError):
        print_error(*str(error).split("\n"))
        return error.exit_code
    if isinstance(error, LoraryError):
        print_error(str(error))
        return error.exit_code
    if isinstance(error, _UsageError):
        context = getattr(error, "ctx", None)
        where = f" (see `{context.command_path} --help`)" if context else ""
        print_error(f"{error.format_message()}{where}")  # type: ignore[attr-defined]
        return 2
    if isinstance(error, typer.Abort):
        print_error("aborted")
        return 1
    if isinstance(error, BrokenPipeError):
        _drop_output()  # the reader has gone, as in `lorary list | head -1`
        return _BROKEN_PIPE
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        try:
            sys.stdout.flush()
        except OSError:
            _drop_output()
        where = f" for {error.filename}" if error.filename else ""
        print_error(f"no space left{where} ({error.strerror}); free some, and run the command again")
        return 1
    if isinstance(error, MemoryError):
        asked = f" ({error})" if str(error) else ""
        print_error(f"out of memory{asked}; free some, and run the command again (--debug shows where)")
        return 1
    print_error(f"unexpected {type(error).__name__}: {error}{_cause()} (--debug shows where)")
    return 1


def _cause() -> str:
    """Packages that may be why. What goes wrong with looking for them, after a first error, isn't worth a second."""
    with suppress(Exception):
        if found := unmet():
            return f"; {'; '.join(found)}: pip install --upgrade lorary mends that"
    return ""


def _drop_output() -> None:
    """What is still buffered finds no place, and must not raise again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _take_debug(words: list[str]) -> tuple[list[str], bool]:
    """Take ``--debug`` out wherever it stands: one adds it to the end of a command that has just failed."""
    end = words.index("--") if "--" in words else len(words)
    kept = [word for word in words[:end] if word != "--debug"]
    return kept + words[end:], len(kept) < end


def _app(words: Sequence[str]) -> typer.Typer:
    # Plain help, which reads the same in a terminal, a pipe and a log, and costs no import of rich.
    settings = {"help_option_names": ["-h", "--help"]}
    app = typer.Typer(cls=Group, add_completion=False, rich_markup_mode=None, context_settings=settings)
    app.callback(invoke_without_command=True)(_lorary)
    # Where the first word is a command, the others aren't imported: they'd take longer than most answers.
    asked = [name for name in COMMANDS if words and name == words[0]]
    for name in asked or COMMANDS:
        module = importlib.import_module(module_of(name))
        examples = "\n".join(f"  {line}" for line in module.EXAMPLES)
        help_text = f"{getdoc(module.command)}\n\n\b\nExamples:\n{examples}"
        app.command(name, cls=Command, help=help_text)(module.command)
    return app


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import PackageNotFoundError, version

        try:
            typer.echo(f"lorary {version('lorary')}")
        except PackageNotFoundError:
            typer.echo("lorary, not installed (run from its source)")
        raise typer.Exit


def _lorary(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error comes from; works in any place.")] = False,
) -> None:
    """Train, catalogue, share and hot-swap LoRA adapters.

    A REF is name (its latest version), name@3 or name@alias. `lorary COMMAND --help` has examples; `lorary quickstart`
    shows the whole way in two or three minutes.
    """
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
