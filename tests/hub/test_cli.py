import importlib
import json
import os
import pty
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import pytest

from checkpoints import make_checkpoint, make_manifest
from lorary.hub import Registry
from lorary.hub.cli import commands as command_files
from lorary.hub.cli.help import COMMANDS, module_of
from lorary.hub.cli.options import given_path
from lorary.hub.cli.output import print_json_list, print_table
from lorary.hub.values import FileEntry

HEAVY = ("torch", "transformers", "peft", "datasets", "pandas", "numpy", "huggingface_hub")


@pytest.fixture
def lorary(commands, tmp_path):
    """Run the command in a process of its own, in ``tmp_path``; expects the exit code and gives back its output."""

    def run(*words, code=0):
        environment = {"LORARY_REGISTRY": str(tmp_path / "registry.db")}
        finished = commands.run("lorary.hub.cli.main:main", list(map(str, words)), cwd=tmp_path, **environment)
        assert finished.code == code, finished
        if code and "--debug" not in words:
            assert "Traceback" not in finished.err
        return finished.out if code == 0 else finished.err

    return run


@pytest.fixture
def filled(registry, tmp_path):
    metrics = {"test": {"f1": 0.91234, "accuracy": 0.9}, "untrained": {"f1": 0.25}, "majority": {"f1": 0.4}}
    registry.add(make_checkpoint(tmp_path / "a"), name="finance-tone", metrics=metrics, tags=["news"])
    child = make_checkpoint(tmp_path / "b", seed=1)
    registry.add(child, name="finance-tone", parents=["finance-tone@1"], strategy="fine-tune")
    registry.alias("finance-tone", "prod", 1)
    legal = make_manifest(domain="legal", task="token-classification")
    registry.add(make_checkpoint(tmp_path / "c", seed=2, manifest=legal), name="legal-ner")
    return registry


def one_error_line(stderr):
    (line,) = stderr.splitlines()
    assert line.startswith("lorary: error: ")
    return line


def test_without_words_it_shows_its_help(lorary):
    assert lorary() == lorary("--help") == lorary("-h")


def test_the_help_names_each_command_once_with_a_whole_sentence(lorary):
    told = re.findall(r"^  ([a-z]+) +(.*)$", lorary("--help").partition("\nTrain:\n")[2], re.MULTILINE)
    assert [name for name, _ in told] == list(COMMANDS)
    assert all(re.fullmatch(r"[A-Z].*[^.][.?]", sentence) for _, sentence in told)
    files = Path(command_files.__path__[0]).glob("[a-z]*.py")
    assert sorted(COMMANDS) == sorted(path.stem.rstrip("_") for path in files)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help_with_an_example(lorary, command):
    text = lorary(command, "--help")
    lines = text.partition("\nOptions:")[2].splitlines()  # examples are as long as a command is
    assert max(map(len, lines)) <= 80
    assert not re.search(r"<(str|int|float|list|Path)|\[\[|[{}]", text)  # a shell's manual, not Python's types
    assert re.search(rf"Examples:\n    lorary {command}\b", text)
    # The demonstration makes a registry of its own.
    assert ("--registry PATH" in text) is (command != "quickstart")


def test_the_readers_print_json(lorary):
    for command in ("list", "show", "import", "verify", "alias", "promote", "rollback", "gc"):
        assert "--json" in lorary(command, "--help")


def test_nothing_heavy_is_imported(filled):
    code = (
        "import sys\nfrom lorary.hub.cli.main import main\n"
        "assert main(['--help']) == 0 and 'sqlite_utils' not in sys.modules\n"
        "assert main(['list']) == main(['show', 'legal-ner']) == 0\n"
        f"loaded = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "sys.exit(f'imported: {loaded}' if loaded else 0)"
    )
    environment = {**os.environ, "LORARY_REGISTRY": str(filled.path)}
    finished = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert finished.returncode == 0, finished.stderr


def test_packages_hidden_from_one_import_can_be_imported_afterwards(tmp_path):
    code = "import sys\nfrom lorary.hub.cli.main import main\nmain(['list'])\nimport numpy; numpy.zeros(1)"
    finished = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert finished.returncode == 0, finished.stderr


def test_list(lorary, filled):
    header, *rows = [line.split() for line in lorary("list").splitlines()]
    assert header == ["name", "version", "domain", "task", "method", "base", "metric", "aliases", "created"]
    created = filled.resolve("legal-ner").created_at[:10]
    assert rows[0] == [
        "finance-tone",
        "1",
        "finance",
        "text-classification",
        "lora",
        "tiny",
        "f1",
        "0.9123",
        "prod",
        created,
    ]
    assert [row[:2] for row in rows] == [["finance-tone", "1"], ["finance-tone", "2"], ["legal-ner", "1"]]


@pytest.mark.parametrize(
    ("words", "references"),
    [
        ((), ["finance-tone@1", "finance-tone@2", "legal-ner@1"]),
        (("--domain", "Legal"), ["legal-ner@1"]),
        (("--task", "text-classification", "--tag", "news"), ["finance-tone@1"]),
        (("--base", "org/tiny", "--method", "lora", "--search", "ner"), ["legal-ner@1"]),
        (("--search", "nothing like it"), []),
    ],
)
def test_list_conditions(lorary, filled, words, references):
    assert [version["reference"] for version in json.loads(lorary("list", "--json", *words))] == references


def test_list_without_a_registry(lorary, tmp_path):
    assert "no registry at" in lorary("list")
    assert lorary("list", "--json") == "[]\n"
    assert list(tmp_path.iterdir()) == []


def test_list_says_when_nothing_fits(lorary, filled):
    assert "fits" in lorary("list", "--domain", "poetry")


def in_terminal(width, *words, cwd, encoding="utf-8"):
    """What a command prints in a terminal of ``width`` columns."""
    ours, theirs = pty.openpty()
    environment = {
        **os.environ, "COLUMNS": str(width), "TERM": "xterm", "LORARY_REGISTRY": str(cwd / "registry.db"),
        "PYTHONIOENCODING": encoding,
    }  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "lorary.hub.cli", *words], stdout=theirs, env=environment, cwd=cwd
    )
    os.close(theirs)
    output = b""
    while True:
        try:
            block = os.read(ours, 10_000)
        except OSError:  # what Linux reports when the other side is closed
            break
        if not block:
            break
        output += block
    os.close(ours)
    assert process.wait(60) == 0
    return re.sub(r"\x1b\[[\d;]*m", "", output.decode()).splitlines()


@pytest.mark.parametrize(("width", "wide", "starts"), [(200, 10, 5), (40, 100, 5), (20, 40, 5)])
def test_a_narrow_first_column_stays_narrow(capsys, monkeypatch, width, wide, starts):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes this for a terminal
    monkeypatch.setenv("COLUMNS", str(width))
    print_table([{"n": "abc", "b": "x" * wide}])
    _, row = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out).splitlines()
    assert row.index("x") == starts
    assert len(row.rstrip()) == min(width, 5 + wide)


def test_a_long_name_leaves_room_for_the_version(add, tmp_path):
    add(0, name="long-" + "x" * 80)
    title, row = in_terminal(40, "list", cwd=tmp_path)
    assert [word[:5] for word in title.split()[:2]] == ["name", "versi"]
    assert row.split()[1] == "1"
    assert max(len(title), len(row)) <= 40


@pytest.mark.parametrize("width", [60, 80, 200])
def test_a_table_fits_the_terminal(filled, tmp_path, width):
    lines = in_terminal(width, "list", cwd=tmp_path)
    assert max(map(len, lines)) <= width
    assert len(lines) == 4
    assert lines[1].split()[:3] == ["finance-tone", "1", "finance"]
    assert ("text-classification" in lines[1]) is (width > 60)
    assert ("created" in lines[0]) is (width == 200)


def test_show(lorary, filled):
    text = lorary("show", "finance-tone@prod")
    for expected in (
        "finance-tone@1 of 1, 2",
        "negative, positive",
        "org/tiny",
        "finance-tone@2",
        "news",
        "adapter_model.safetensors",
    ):
        assert expected in text
    assert re.search(r"metric +trained +untrained +majority class\naccuracy +0\.9\nf1 +0\.9123 +0\.25 +0\.4\n", text)
    child = json.loads(lorary("show", "finance-tone", "--json"))
    assert (child["parents"], child["strategy"], child["children"]) == (["finance-tone@1"], "fine-tune", [])
    assert json.loads(lorary("show", "finance-tone@1", "--json"))["children"] == ["finance-tone@2"]


def test_import(lorary, tmp_path):
    make_checkpoint(tmp_path / "finance-tone")
    assert "finance-tone@1 is in the catalogue" in lorary("import", "finance-tone", "--alias", "prod", "--tag", "x")
    assert "finance-tone@1 was there already" in lorary("import", "finance-tone")
    version = Registry(tmp_path / "registry.db").resolve("finance-tone@prod")
    assert version.tags == ("x",)
    noted = {"base_model_class": "BertForMaskedLM", "parent_library": "transformers.models.bert.modeling_bert"}
    make_checkpoint(tmp_path / "words", seed=2, manifest=False, task_type=None, auto_mapping=noted)
    assert "words@1 is in the catalogue (legal, fill-mask" in lorary("import", "words", "--domain", "legal")
    bare = make_checkpoint(tmp_path / "bare", seed=1, manifest=False, task_type=None)
    assert "task" in one_error_line(lorary("import", bare, "--domain", "legal", code=2))
    words = ("--name", "legal-ner", "--domain", "legal", "--task", "token-classification", "--json")
    assert json.loads(lorary("import", bare, *words))["reference"] == "legal-ner@1"


def test_import_checks_the_alias_before_it_writes(lorary, tmp_path):
    make_checkpoint(tmp_path / "a")
    one_error_line(lorary("import", "a", "--alias", "3", code=2))
    assert not (tmp_path / "registry.db").exists()


@pytest.mark.parametrize(
    "words", [("finance-tone", "live", "2"), ("finance-tone", "live=2"), ("finance-tone@2", "live")]
)
def test_alias(lorary, filled, words):
    assert "finance-tone@live is version 2" in lorary("alias", *words)
    assert filled.resolve("finance-tone@live").number == 2
    lorary("alias", "finance-tone", "live", "prod")
    assert filled.resolve("finance-tone@live").number == 1
    lorary("alias", "finance-tone", "live", "--delete")
    assert filled.resolve("finance-tone@1").aliases == ("prod",)


def test_tag(lorary, filled):
    assert "the tags english, news" in lorary("tag", "finance-tone@1", "English")
    assert "no tags" in lorary("tag", "finance-tone@1", "english", "news", "--delete")


def test_rm(lorary, filled):
    assert "finance-tone@prod, finance-tone@2" in one_error_line(lorary("rm", "finance-tone@1", code=1))
    assert "say which" in one_error_line(lorary("rm", "finance-tone", code=2))
    lorary("rm", "finance-tone@1", "--force")
    assert [version.reference for version in filled.versions()] == ["finance-tone@2", "legal-ner@1"]


NO_ARGUMENT = "TypeError('no such argument')"


@pytest.mark.parametrize(
    ("peft", "raised", "told"),
    [
        ("Version: 0.1.0\n", NO_ARGUMENT,
         r"unexpected TypeError: no such argument; peft is 0\.1\.0, lorary needs >=\S+: .* \(--debug shows where\)"),
        ("Version: \xff\n", NO_ARGUMENT, r"unexpected TypeError: no such argument \(--debug shows where\)"),
        ("Version: 0.1.0\n", "MemoryError", r"out of memory; free some, and run the command again \(--debug .*\)"),
        ("Version: 0.1.0\n", "MemoryError('Unable to allocate 3 GiB')",
         r"out of memory \(Unable to allocate 3 GiB\); free some, .*"),
    ],
)  # fmt: skip
def test_an_unexpected_error_names_packages_that_may_be_why(tmp_path, peft, raised, told):
    (tmp_path / "peft-0.1.0.dist-info").mkdir()
    written = f"Metadata-Version: 2.1\nName: peft\n{peft}".encode("latin-1")  # no UTF-8, in one case
    (tmp_path / "peft-0.1.0.dist-info" / "METADATA").write_bytes(written)
    (tmp_path / "broken.py").write_text(
        "import sys\nfrom lorary.hub.cli import main as frame\n"
        f"def fail(words):\n    raise {raised}\n"
        "frame._run = fail\nsys.exit(frame.main(sys.argv[1:]))\n"
    )
    finished = subprocess.run(
        [sys.executable, tmp_path / "broken.py", "list"], capture_output=True, text=True, check=False
    )
    assert finished.returncode == 1
    assert re.fullmatch(rf"lorary: error: {told}\n", finished.stderr), finished.stderr


def test_verify(lorary, filled):
    assert "3 version(s) verified, 0 error(s)" in lorary("verify")
    filled.checkpoint("legal-ner").files["adapter_model.safetensors"].unlink()
    lorary("verify", "legal-ner", code=1)
    lorary("verify", code=1)
    assert "1 version(s) verified" in lorary("verify", "finance-tone")


@pytest.mark.parametrize("command", ["list", "domains", "verify"])
def test_a_registry_that_is_not_there_is_told(lorary, command):
    assert lorary(command).startswith("There is no registry at ")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("show",), 2, "Missing argument 'REF'"),
        (("shw",), 2, "No such command 'shw'"),
        (("list", "--nope"), 2, "No such option: --nope"),
        (("list", "--task", "sorting"), 2, "isn't a task"),
        (("show", "A B"), 2, "isn't a reference"),
        (("show", "./folder"), 2, "means a folder"),
        (("show", "finance-tune"), 1, "did you mean finance-tone?"),
        (("show", "finance-tone@9"), 1, "has no version 9"),
        (("alias", "finance-tone", "prod"), 2, "expected one version, found 0"),
        (("alias", "finance-tone@1", "prod", "2"), 2, "expected one version, found 2"),
        (("alias", "finance-tone", "prod", "2", "--delete"), 2, "no version"),
        (("alias", "finance-tone", "7", "2"), 2, "not a number alone"),
        (("tag", "finance-tone"), 2, "Missing argument"),
        (("tag", "finance-tone", "--", "--"), 2, "can't be a tag"),
        (("rm", "nobody"), 1, "no adapter named"),
        (("verify", "nobody"), 1, "no adapter named"),
        (("import", "nowhere"), 1, "no such folder"),
        (("import", ".", "--name", "x"), 2, "holds 3 adapters"),
        (("import", ""), 2, "'SOURCE': expected a path, found an empty text"),
        (("export", "finance-tone", ""), 2, "'DIR': expected a path, found an empty text"),
        (("train", ""), 2, "expected a path, found an empty text"),
        (("list", "--registry", ""), 2, "'--registry': expected a path, found an empty text"),
        (("import", "~no-such-user/a"), 2, "~no-such-user/a: no such user's home folder is known"),
        (("show", "~no-such-user/a"), 2, "no such user's home folder is known"),
        (("list", "--base", "\udcff"), 2, "'\\udcff' isn't text in UTF-8"),
        (("best", "--metric", "\udcff"), 2, "'\\udcff' isn't text in UTF-8"),
        (("bases", "\udcff"), 2, "'\\udcff' isn't text in UTF-8"),
        (("list", "--registry", "/"), 1, "/: is a folder, and so no registry"),
        (("import", "x" * 5000), 2, "File name too long"),
        (("export", "finance-tone", "x" * 5000), 2, "File name too long"),
        (("list", "--base", ""), 2, "--base '': expected a base's id, its fingerprint or its folder"),
        (("list", "--sort", ""), 2, "no version has a metric ''"),
        (("best", "--metric", ""), 1, "none of 3 fitting versions has it; they have accuracy, f1"),
        (("list", "--registry", "."), 1, "is a folder"),
        (("list", "--registry", "a/adapter_config.json"), 1, "isn't a SQLite file"),
    ],
)
def test_wrong_input_is_one_line(lorary, filled, words, code, message):
    assert message in one_error_line(lorary(*words, code=code))


@pytest.mark.parametrize("name", COMMANDS)
def test_no_empty_text_is_taken_for_the_current_folder(name):
    command = importlib.import_module(module_of(name)).command
    hints = get_type_hints(command, include_extras=True)
    paths = {
        name: hint.__metadata__[0] for name, hint in hints.items() if "Path" in str(getattr(hint, "__origin__", ""))
    }
    assert [name for name, option in paths.items() if option.parser is not given_path] == []


@pytest.mark.parametrize("words", [("--debug", "show", "nobody"), ("show", "nobody", "--debug")])
def test_debug_shows_where(lorary, filled, words):
    stderr = lorary(*words, code=1)
    assert "Traceback" in stderr
    assert stderr.splitlines()[-1].startswith("lorary: error: ")


def test_strangers_texts_are_escaped(lorary, registry, tmp_path):
    manifest = make_manifest(labels=("[red]markup[/red]", "\x1b]0;title\x07", "right\u202eleft", "two\nlines"))
    registry.add(make_checkpoint(tmp_path / "a", manifest=manifest), name="a")
    text = lorary("show", "a")
    assert r"[red]markup[/red], \x1b]0;title\x07, right\u202eleft, two\nlines" in text
    assert "\x1b" not in lorary("show", "a", "--json")
    make_checkpoint(tmp_path / "\x1b[31mred\nline", peft_type=3)
    assert r"\x1b[31mred" in one_error_line(lorary("import", "\x1b[31mred\nline", "--name", "b", code=1))


def test_a_terminal_without_the_signs(registry, tmp_path):
    registry.add(make_checkpoint(tmp_path / "a", manifest=make_manifest(labels=("größer",))), name="a")
    command = [sys.executable, "-m", "lorary.hub.cli", "show", "a", "--registry", str(registry.path)]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    shown = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60)
    assert r"gr\xf6\xdfer" in shown.stdout


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("list",), ["g\\xf6\\xdf-0-...  token-classif...  f1 0.5"]),
        (("show", "measure"), ["g\\xf6\\xdfer"]),
        (("tasks",), ["g\\xf6\\xdf-1-und-weite", "g\\xf6\\xdf-3-und-weite"]),
    ],
)  # fmt: skip
def test_a_table_fits_a_terminal_without_the_signs(registry, tmp_path, words, told):
    for seed in range(4):
        manifest = make_manifest(domain=f"göß-{seed}-und-weite", task="token-classification", labels=("gößer",) * 20)
        folder = make_checkpoint(tmp_path / f"{seed}", seed=seed, manifest=manifest)
        registry.add(folder, name=f"measure{seed or ''}", metrics={"test": {"f1": 0.5}})
    lines = in_terminal(60, *words, cwd=tmp_path, encoding="ascii")
    assert max(map(len, lines)) <= 60
    assert [text for text in told if text not in "\n".join(lines)] == []


def test_a_reader_that_goes_away_is_no_error(filled, tmp_path):
    environment = {**os.environ, "LORARY_REGISTRY": str(filled.path), "PYTHONUNBUFFERED": "1"}
    read, write = os.pipe()
    os.close(read)
    words = [sys.executable, "-m", "lorary.hub.cli", "list", "--json"]
    finished = subprocess.run(words, stdout=write, stderr=subprocess.PIPE, env=environment, timeout=60)
    os.close(write)
    assert (finished.returncode, finished.stderr) == (141, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full, which takes nothing")
def test_output_that_finds_no_space_is_one_line(filled):
    environment = {**os.environ, "LORARY_REGISTRY": str(filled.path)}
    with Path("/dev/full").open("w") as full:
        words = [sys.executable, "-m", "lorary.hub.cli", "list"]
        finished = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, env=environment, timeout=60)
    said = "lorary: error: no space left (No space left on device); free some, and run the command again\n"
    assert (finished.returncode, finished.stderr) == (1, said)


def test_ctrl_c_is_one_line(filled):
    """The interrupt comes while the command looks up the versions."""
    code = (
        "import signal, sys\n"
        "from lorary.hub import Registry\n"
        "from lorary.hub.cli.main import main\n"
        "Registry.search = lambda self, *conditions, **order: signal.raise_signal(signal.SIGINT)\n"
        "sys.exit(main(['list']))"
    )
    environment = {**os.environ, "LORARY_REGISTRY": str(filled.path)}
    finished = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert (finished.returncode, finished.stderr) == (130, "lorary: error: interrupted\n")


def test_a_list_is_printed_as_json_writes_it(capsys):
    values = [
        {"text": 'a "quoted" \n line, größer', "numbers": [1, -2.5, 1e-9, 1e300, True, False, None], "none": {}},
        [[], (), {"deep": [{"er": (1, ["x"])}]}, ""],
        FileEntry("ab", 3),
        "alone",
        0,
    ]
    print_json_list(iter(values))
    plain = [*values[:2], {"sha256": "ab", "size": 3}, *values[3:]]
    assert capsys.readouterr().out == json.dumps(plain, indent=2) + "\n"
    print_json_list([{"f1": float("nan")}, float("inf")])
    assert json.loads(capsys.readouterr().out) == [{"f1": None}, None]
    print_json_list([])
    assert capsys.readouterr().out == "[]\n"


@pytest.mark.parametrize("width", [50, 200])
def test_a_matrix_goes_on_below(registry, tmp_path, width):
    for number, domain in enumerate(("astronomy", "biomedical", "cardiology", "farming")):
        manifest = make_manifest(domain=domain)
        metrics = {"test": {"f1": 0.5 + number / 10}}
        folder = make_checkpoint(tmp_path / domain, seed=number, manifest=manifest)
        registry.add(folder, name=domain, metrics=metrics)
    lines = in_terminal(width, "tasks", cwd=tmp_path)
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    assert all(f"1: f1 0.{digit}" in text for digit in (5, 6, 7, 8))
    assert text.count("text-classification") == (1 if width == 200 else len(text.split("\n\n")))


@pytest.mark.parametrize(
    ("closed", "expected"), [("<&-", True), (">&-", False), ("2>&-", True), ("<&- >&- 2>&-", False)]
)
def test_closed_streams_are_no_error(filled, tmp_path, closed, expected):
    command = f"{shlex.quote(sys.executable)} -m lorary.hub.cli list --registry {tmp_path}/registry.db {closed}"
    run = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert (run.returncode, "finance-tone" in run.stdout, run.stderr) == (0, expected, "")
