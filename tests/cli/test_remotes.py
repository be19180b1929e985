"""The commands that talk to remotes, as they are typed."""

import contextlib
import json
import os
import re
import shlex
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest

from checkpoints import make_checkpoint, make_manifest
from lorary.hub import Registry
from lorary.hub.cli.main import main


@pytest.fixture
def ann(hub, monkeypatch, tmp_path):
    """Ann is logged in and has a registry with one version."""
    hub.users["hf_ann"] = "ann"
    monkeypatch.setenv("HF_TOKEN", "hf_ann")
    monkeypatch.setenv("LORARY_REGISTRY", str(tmp_path / "registry.db"))
    registry = Registry()
    registry.add(make_checkpoint(tmp_path / "tone"), name="tone", metrics={"test": {"f1": 0.9}})
    registry.alias("tone", "prod", 1)
    return hub


@pytest.fixture
def lorary(capsys):
    """Run a command in this process; expects the exit code and gives back its output."""

    def run(*words, code=0):
        assert main([str(word) for word in words]) == code
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        if code:
            assert err.startswith("lorary: error: ")
        return err if code else out

    return run


def test_push_says_what_it_does(ann, lorary):
    text = lorary("push", "tone", "--dry-run")
    assert text.startswith("tone@1 would become ann/tone@v1 (new, private): 5 files, ")
    assert "adapter_model.safetensors" in text
    assert ann.repos == {}
    text = lorary("push", "tone")
    assert text.startswith("tone@1 is now ann/tone@v1 (new, private) at commit ")
    assert text.endswith("; tags v1, prod\n")
    assert lorary("push", "tone") == "tone@1 is ann/tone@v1 already; nothing to do\n"
    ann.repos["ann/tone"].tags.clear()
    assert lorary("push", "tone", "--dry-run") == "tone@1 is ann/tone@v1 already; would be set to it: v1, prod\n"
    assert lorary("push", "tone") == "tone@1 is ann/tone@v1 already; set to it: v1, prod\n"
    values = json.loads(lorary("push", "tone", "--json"))
    assert (values["reference"], values["remote"], values["number"], values["sent"]) == ("tone@1", "ann/tone", 1, [])


def test_pull_says_what_it_does(ann, lorary, tmp_path):
    lorary("push", "tone")
    there = ("--registry", tmp_path / "there.db")
    text = lorary("pull", "ann/tone", *there)
    assert text == (
        "ann/tone@v1 is now in the catalogue as tone@1 (finance, text-classification, lora)\naliases set: tone@prod\n"
    )
    assert "was in the catalogue already, as tone@1" in lorary("pull", "ann/tone@prod", *there)
    commit = ann.repos["ann/tone"].refs["main"]
    assert f"\nremotes       ann/tone@{commit[:12]}\n" in lorary("show", "tone", *there)
    assert json.loads(lorary("show", "tone", "--json", *there))["remotes"] == {"ann/tone": commit}
    Registry(there[1]).add(make_checkpoint(tmp_path / "next", seed=1), name="tone")
    Registry(there[1]).alias("tone", "prod", 2)
    text = lorary("pull", "ann/tone", *there)
    sets = f"lorary alias tone prod 1 --registry {there[1]}"
    assert f"there it is prod too; tone@prod stays as it is here (`{sets}` sets it)" in text
    values = json.loads(lorary("pull", "ann/tone", "--json", *there))
    assert (values["reference"], values["remote_number"], values["new"]) == ("tone@1", 1, False)
    assert values["aliases_kept"] == ["prod"]


def test_a_parent_on_a_remote_is_told_of(ann, lorary, tmp_path):
    Registry().add(make_checkpoint(tmp_path / "child", seed=1), name="tone", parents=["tone@1"], strategy="fine-tune")
    lorary("push", "tone@1")
    lorary("push", "tone@2")
    there = ("--registry", tmp_path / "there.db")
    lorary("pull", "ann/tone", *there)
    assert "(not in this catalogue)" in lorary("show", "tone", *there)
    lorary("pull", "ann/tone@1", *there)
    assert "(not in this catalogue)" not in lorary("show", "tone@1", *there)


def test_status_and_sync(ann, lorary, tmp_path):
    assert "No adapter has a remote yet" in lorary("status") + lorary("sync")
    lorary("push", "tone")
    Registry().add(make_checkpoint(tmp_path / "next", seed=1), name="tone")
    (header, row) = lorary("status").splitlines()
    assert header.split() == ["name", "state", "only", "here", "only", "there", "aliases", "remote"]
    assert row.split() == ["tone", "ahead", "2", "ann/tone"]
    assert json.loads(lorary("status", "tone", "--json"))[0]["state"] == "ahead"
    assert lorary("sync") == "tone and ann/tone: pushed tone@2\n"
    assert lorary("sync", "tone") == "tone and ann/tone: the same\n"
    assert json.loads(lorary("sync", "--json"))[0]["settled"] is True


def test_list_remote(ann, lorary, tmp_path):
    lorary("push", "tone")
    lorary("push", "tone", f"file://{tmp_path}")
    header, row = lorary("list", "--remote", "ann", "--domain", "Finance").splitlines()
    assert header.split() == ["adapter", "domain", "task", "base", "access", "updated"]
    assert row.split()[:5] == ["ann/tone", "finance", "text-classification", "org/tiny", "private"]
    assert lorary("list", "--remote", "bob") == "No adapter of bob fits.\n"
    assert lorary("list", "--all", "--domain", "legal") == "No adapter on the Hub fits.\n"
    assert lorary("list", "--remote", "--all") == lorary("list", "--all") != lorary("list")
    assert f"file://{tmp_path}/tone " in lorary("list", "--remote", f"file://{tmp_path}")
    assert json.loads(lorary("list", "--remote", "ann", "--json"))[0]["address"] == "ann/tone"
    assert "exclude each other" in lorary("list", "--remote", "ann", "--all", code=2)
    assert "--search isn't known of adapters elsewhere" in lorary("list", "--all", "--search", "x", code=2)


def test_diverged(ann, lorary, tmp_path):
    lorary("push", "tone")
    there = tmp_path / "there.db"
    lorary("pull", "ann/tone", "--registry", there)
    Registry(there).add(make_checkpoint(tmp_path / "theirs", seed=1), name="tone")
    lorary("sync", "--registry", there)
    Registry().add(make_checkpoint(tmp_path / "ours", seed=2), name="tone")
    assert main(["sync"]) == 1
    assert "holds v2, which this registry lacks" in lorary("push", "tone", code=1)


def test_a_remote_that_cannot_be_asked_shows_in_the_exit_code(ann, lorary):
    lorary("push", "tone")
    ann.stop()
    error = lorary("status", code=1)
    assert error.count("\n") == 1
    assert "1 of 1 remotes couldn't be asked" in error
    assert "can't be reached" in error


@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        (("push", "tone", "nowhere"), 2, "names no remote"),
        (("push", "tone@9"), 1, "has no version 9"),
        (("push", "./folder"), 2, "expected a name in the registry"),
        (("pull", "ann/none"), 1, "the Hub knows no such repository"),
        (("pull", "none"), 2, "names no remote"),
        (("pull", "ann/a/b"), 2, "isn't a reference"),
        (("status", "none"), 1, "no adapter named"),
        (("status", "tone"), 1, "has no remote yet"),
        (("sync", "Tone"), 2, "can't be a name"),
    ],
)
def test_wrong_input_is_one_clear_line(ann, lorary, words, code, expected):
    error = lorary(*words, code=code)
    assert error.count("\n") == 1
    assert expected in error


def test_what_strangers_wrote_cannot_act_on_the_terminal(ann, lorary, tmp_path, capsys):
    manifest = make_manifest(domain="legal", labels=("\x1b[31mred", "b"))
    files = make_checkpoint(tmp_path / "evil", manifest=manifest, base_model_name_or_path="org/\x1b]0;owned\x07")
    card = b"---\nlibrary_name: peft\ntags: ['domain:\\x1b[31m']\n---\n\x1b[2J<script>alert(1)</script>"
    ann.commit_folder("bob/evil", files, **{"README.md": card})
    text = lorary("pull", "bob/evil") + lorary("show", "evil") + lorary("show", "evil", "--json")
    assert "\x1b" not in text
    assert "\x07" not in text


def test_no_progress_bars_in_a_pipe(ann, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_DISABLE_PROGRESS_BARS"}
    environment |= {"HF_ENDPOINT": ann.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    for words in (("push", "tone"), ("pull", "ann/tone", "--registry", "there.db")):
        command = [sys.executable, "-m", "lorary.hub.cli", *words]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, "")


def test_progress_bars_in_a_terminal_are_gone_when_it_is_done(ann, tmp_path):
    import fcntl
    import pty
    import struct
    import termios

    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_DISABLE_PROGRESS_BARS"}
    environment |= {"HF_ENDPOINT": ann.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    environment["HF_HOME"] = str(tmp_path / "hf")  # nothing is in the cache
    assert main(["push", "tone"]) == 0
    command = [sys.executable, "-m", "lorary.hub.cli", "pull", "ann/tone", "--registry", "b.db"]
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(tmp_path)
        os.execve(sys.executable, command, environment)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    text = ""
    with contextlib.suppress(OSError):  # the terminal is gone when the child is
        while piece := os.read(terminal, 4096):
            text += piece.decode()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert "Fetching 5 files" in text
    # Cleared, and the cursor back at the line's beginning.
    assert re.search(r" {20,}\rann/tone@v1 is now in the catalogue as tone@1", text)


def test_hf_runs_lorary_as_its_extension(ann, tmp_path):
    """`hf NAME` runs what `~/.local/share/hf/extensions/hf-NAME/manifest.json` names: docs/hub.md registers it."""
    root = Path(__file__).parents[2]
    scripts = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    assert scripts["hf-lorary"] == scripts["lorary"]
    module, _, function = scripts["hf-lorary"].partition(":")
    script = tmp_path / "bin" / "hf-lorary"  # as pip writes it, also where the environment is older than this script
    script.parent.mkdir()
    begin = f"#!/bin/sh\n'''exec' {shlex.quote(sys.executable)} \"$0\" \"$@\"\n' '''\n"  # the path may hold a space
    script.write_text(f"{begin}import sys\nfrom {module} import {function}\nsys.exit({function}())\n")
    script.chmod(0o755)
    page = (root / "docs" / "hub.md").read_text(encoding="utf-8")
    snippet = page.partition("<!-- hf extension -->\n```python\n")[2].partition("```")[0]
    assert snippet
    environment = {**os.environ, "HOME": str(tmp_path), "HF_HUB_DISABLE_UPDATE_CHECK": "1"}
    environment["PATH"] = f"{script.parent}{os.pathsep}{environment['PATH']}"
    subprocess.run([sys.executable, "-c", snippet], env=environment, check=True, timeout=60)
    hf = Path(sysconfig.get_path("scripts")) / "hf"
    done = subprocess.run([str(hf), "lorary", "list"], env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.split()[:2]) == (0, ["name", "version"]), done.stderr
