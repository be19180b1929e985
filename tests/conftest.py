"""Isolation: no test reads or writes the user's home, caches or registry, or asks the network."""

import functools
import gc
import os
import shutil
import signal
import ssl
import sys
import tempfile
from pathlib import Path

import jinja2
import pytest

# Thousands of small files that are forced to a disk and deleted soon after: they stay in memory where there's room.
_MEMORY = Path("/dev/shm")
if _MEMORY.is_dir() and os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free > 4 * 2**30:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(_MEMORY))

# The Hugging Face libraries read these when they are imported, so before any test module.
_home = tempfile.TemporaryDirectory(
    prefix="lorary-tests-", dir=os.environ.get("PYTEST_DEBUG_TEMPROOT"), ignore_cleanup_errors=True
)
_ELSEWHERE = ("HF_", "HUGGING_FACE_", "TRANSFORMERS_", "LORARY_", "XDG_")  # they name places beside the home
_TERMINAL = ("COLUMNS", "LINES", "FORCE_COLOR", "NO_COLOR")
for _name in list(os.environ):
    if _name.startswith(_ELSEWHERE) or _name in _TERMINAL or _name.lower().endswith("_proxy"):
        del os.environ[_name]
os.environ.update(
    HOME=_home.name,  # of the fixtures that outlive a test
    USERPROFILE=_home.name,
    XDG_CACHE_HOME=f"{_home.name}/.cache",
    HF_HOME=_home.name,
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    TOKENIZERS_PARALLELISM="false",
    OMP_NUM_THREADS="1",  # many small models on few cores: threads cost more than they bring
)
gc.disable()  # until the tests are collected: nothing of what they import is garbage


@pytest.hookimpl(tryfirst=True)
def pytest_warning_recorded(warning_message):
    """A library's own class of warnings gives way to the built-in one below it.

    xdist's first process shows the warnings, and would import PEFT, with all that it imports, for the class of one.
    """
    kind = next(base for base in warning_message.category.__mro__ if base.__module__ == "builtins")
    warning_message.message, warning_message.category = kind(str(warning_message.message)), kind


@pytest.fixture(autouse=True)
def _isolated(monkeypatch: pytest.MonkeyPatch) -> None:
    home = Path(tempfile.mkdtemp(dir=_home.name))  # pytest's own would look through all that are there for a number
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / ".cache"))
    monkeypatch.setenv("LORARY_REGISTRY", str(home / "registry.db"))
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


_frozen = [0]


@pytest.fixture(scope="module", autouse=True)
def _what_other_files_left_is_no_garbage() -> None:
    """What is still there of the tests of other files isn't looked through again in this file's.

    transformers collects garbage twice whenever a loop ends, a run's end does and a loader's release: among all that a
    session has gathered by then each would take as long as a small test.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _libraries_are_no_garbage() -> None:
    """What was imported before a test is never looked through for garbage again.

    A run's end and a loader's release collect it, and a third of a tiny run's time went over torch's own objects.
    """
    if len(sys.modules) > _frozen[0] + 20:
        gc.collect()
        gc.freeze()
        gc.enable()
        _frozen[0] = len(sys.modules)


@pytest.fixture(scope="session", autouse=True)
def one_template_of_cards():
    """PEFT writes a model card beside each adapter, and its template would be compiled for each."""
    jinja2.Template = functools.cache(jinja2.Template)


@pytest.fixture
def registry(tmp_path: Path):
    """A registry that isn't there yet."""
    from lorary.hub import Registry

    return Registry(tmp_path / "registry.db")


@pytest.fixture(scope="session", autouse=True)
def interruptible():
    """A shell starts what it runs in the background deaf to Ctrl-C, and the tests of Ctrl-C with it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def commands(tmp_path_factory):
    """Processes that have imported the command line, and nothing heavy."""
    from forks import Forks

    from lorary.hub.cli.help import COMMANDS, module_of

    late = ["lorary.hub.cli.main", "pydantic.fields", "pydantic.type_adapter", "sqlite_utils"]  # each call would
    modules = ["lorary.hub.registry", *late, *map(module_of, COMMANDS)]
    forks = Forks(tmp_path_factory.mktemp("commands"), modules)
    yield forks
    forks.close()


@pytest.fixture(scope="session")
def forks(tmp_path_factory):
    """Processes that have imported all that a training needs."""
    from forks import Forks

    forks = Forks(tmp_path_factory.mktemp("forks"), ["imported"])
    yield forks
    forks.close()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub that the client asks in this process, with an empty cache."""
    from huggingface_hub import close_session, constants

    from hub_server import HubServer

    with HubServer() as server:
        # The certificates of all authorities would be read for every client, and the server has none.
        monkeypatch.setattr(ssl, "create_default_context", lambda **_: ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield server
        close_session()


@pytest.fixture
def no_wait(monkeypatch):
    """The client waits seconds between its attempts, and has no setting for it."""
    from types import SimpleNamespace

    import huggingface_hub.file_download
    import huggingface_hub.utils._http

    for module in (huggingface_hub.file_download, huggingface_hub.utils._http):
        monkeypatch.setattr(module, "time", SimpleNamespace(sleep=lambda seconds: None, time=lambda: 0.0))
    monkeypatch.setattr("lorary.hub.remote.calls.sleep", lambda seconds: None)
