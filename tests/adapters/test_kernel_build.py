"""How the C code comes to be, once, or doesn't: then nothing depends on it."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from lorary.adapters.kernel import build
from lorary.hub.files.user_cache import cache_folder

pytestmark = pytest.mark.usefixtures("with_c")


@pytest.fixture(autouse=True)
def in_a_third_of_the_time(monkeypatch):
    """What the compiler makes of the code as it is meant to be compiled is `test_kernel`'s."""
    monkeypatch.setattr(build, "_FLAGS", ("-O0", *(flag for flag in build._FLAGS if flag != "-O3")))


@pytest.fixture
def compile_anew(monkeypatch, tmp_path):
    """A function that looks for the library as a new process would, and the folder that it is kept in."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return build.library.__wrapped__, tmp_path / "lorary" / "kernels"


def test_it_is_compiled_once(compile_anew, monkeypatch):
    library, folder = compile_anew
    assert library() is not None
    (kept,) = folder.iterdir()
    assert kept.stat().st_mode & 0o077 == 0
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("compiled again"))
    assert library() is not None


def cut_off(kept):
    """As a copy onto a full disk is: loading it would end the process."""
    os.truncate(kept, kept.stat().st_size // 2)


def hole(kept):
    """As a file that was written just before the power went."""
    size = kept.stat().st_size
    os.truncate(kept, size // 2)
    os.truncate(kept, size)


@pytest.mark.parametrize(
    "harm", [lambda kept: kept.write_bytes(b"\x7fELF"), lambda kept: kept.chmod(0o777), cut_off, hole]
)
def test_what_is_damaged_or_others_may_have_written_is_not_run(compile_anew, harm):
    library, folder = compile_anew
    library()
    (kept,) = folder.iterdir()
    whole = kept.read_bytes()
    harm(kept)
    assert library() is not None
    assert kept.read_bytes() == whole
    assert kept.stat().st_mode & 0o077 == 0


def test_a_home_that_is_no_folder(compile_anew):
    library, folder = compile_anew
    folder.parent.mkdir()
    folder.write_text("a file where the folder should be")
    assert library() is not None
    assert folder.read_text() == "a file where the folder should be"


def test_a_folder_that_others_may_write_to(compile_anew):
    library, folder = compile_anew
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    assert library() is not None
    assert not list(folder.iterdir())


def test_what_lies_in_the_current_folder_is_not_run(compile_anew, monkeypatch, tmp_path):
    library, _ = compile_anew
    for tool in ("gcc", "as", "ld"):
        (tmp_path / tool).write_text("#!/bin/sh\ntouch run\nexit 1\n")
        (tmp_path / tool).chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f".::{os.environ['PATH']}")
    assert library() is not None
    assert not (tmp_path / "run").exists()
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    assert cache_folder("kernels").is_absolute()


@pytest.mark.parametrize("source", [build._SOURCE, Path("/nothing/mixed_rows.c")])
def test_no_place_to_write_and_no_source(source, monkeypatch, tmp_path):
    monkeypatch.setattr(build, "_SOURCE", source)
    for home in (tmp_path, "/proc/nothing"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(home))
        monkeypatch.setattr(tempfile, "tempdir", "/proc/nothing")
        assert (build.library.__wrapped__() is not None) is (home is tmp_path and source.exists())


def test_nothing_is_compiled_where_it_cannot_be_or_is_not_wanted(compile_anew, monkeypatch, tmp_path):
    library, folder = compile_anew
    with monkeypatch.context() as without:
        without.setenv("PATH", str(tmp_path))  # no compiler
        assert library() is None
    broken = tmp_path / "gcc"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    with monkeypatch.context() as without:
        without.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        assert library() is None
    with monkeypatch.context() as without:
        without.setattr(sys, "platform", "darwin")
        assert library() is None
    monkeypatch.setenv("LORARY_KERNEL", "off")
    assert library() is None
    assert not list(folder.glob("*"))


def test_the_source_is_installed():
    assert Path(build._SOURCE).is_file()
