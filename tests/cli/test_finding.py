"""`lorary list`, `domains`, `tasks` and `best` as they are typed."""

import csv
import io
import json
import sqlite3

import pytest

from checkpoints import BASE_FINGERPRINT, make_checkpoint, make_manifest
from lorary.hub.cli.main import main
from lorary.hub.manifest import BaseIdentity


@pytest.fixture
def lorary(registry, monkeypatch, capsys):
    """Run a command; gives back stdout's and stderr's lines."""
    monkeypatch.setenv("LORARY_REGISTRY", str(registry.path))

    def run(*words, code=0):
        assert main([*map(str, words)]) == code
        captured = capsys.readouterr()
        return captured.out.splitlines(), captured.err.splitlines()

    return run


@pytest.fixture
def filled(registry, tmp_path):
    def add(seed, name, manifest, **options):
        registry.add(make_checkpoint(tmp_path / str(seed), seed=seed, manifest=manifest), name=name, **options)

    for seed, (f1, loss) in enumerate([(0.71, 0.9), (0.92, 0.4), (0.83, 0.5)]):
        parents = [f"tone@{seed}"] if seed else []
        add(seed, "tone", make_manifest(), metrics={"test": {"f1": f1, "loss": loss}}, parents=parents)
    mirror = BaseIdentity("mirror/tiny", fingerprint=BASE_FINGERPRINT)
    legal = make_manifest(domain="legal", task="summarization", labels=None, base=mirror)
    add(5, "briefs", legal, metrics={"test": {"rougeL": 0.4, "loss": 2.0}}, tags=["en"])
    add(6, "briefs-new", legal)
    registry.alias("tone", "prod", 2)
    return registry


def names(lines):
    return [" ".join(line.split()[:2]) for line in lines[1:]]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--sort", "f1", "--domain", "finance"), ["tone 2", "tone 3", "tone 1"]),
        (("--sort", "loss"), ["tone 2", "tone 3", "tone 1", "briefs 1", "briefs-new 1"]),
        (("--sort", "loss", "--reverse", "--where", "loss>0"), ["briefs 1", "tone 1", "tone 3", "tone 2"]),
        (("--where", "f1>=0.8", "--where", "loss<0.5"), ["tone 2"]),
        (("--from", "tone@1", "--sort", "created"), ["tone 3", "tone 2"]),
        (("--alias", "prod"), ["tone 2"]),
        (("--tag", "en", "--strategy", "import"), ["briefs 1"]),
        (("--search", "legal brie"), ["briefs 1", "briefs-new 1"]),
    ],
)
def test_list_finds_and_sorts(lorary, filled, words, expected):
    assert names(lorary("list", *words)[0]) == expected


def test_list_shows_what_it_was_asked_by(lorary, filled):
    header, row, *_ = lorary("list", "--sort", "loss", "--where", "f1>0", "--where", "rank>=1")[0]
    assert header.split()[6:10] == ["rank", "loss", "f1", "aliases"]
    assert row.split()[6:10] == ["2", "0.4", "0.92", "prod"]


def test_the_limit_says_how_many_more_there_are(lorary, filled):
    out, err = lorary("list", "--limit", 2)
    assert names(out[:3]) == ["briefs 1", "briefs-new 1"]
    assert (out[3:], err) == (["3 more fit; narrow it down, or --limit 0 shows all"], [])
    out, err = lorary("list", "--limit", 4, "--json")
    assert len(json.loads("\n".join(out))) == 4
    assert err == ["1 more fits; narrow it down, or --limit 0 shows all"]
    assert len(lorary("list", "--limit", 0)[0]) == 6
    assert "--limit" in lorary("list", "--limit", -1, code=2)[1][0]


def test_csv(lorary, filled):
    rows = list(csv.DictReader(io.StringIO("\n".join(lorary("list", "--csv")[0]))))
    assert [row["reference"] for row in rows] == ["briefs@1", "briefs-new@1", "tone@1", "tone@2", "tone@3"]
    assert (rows[3]["f1"], rows[3]["aliases"], rows[3]["parents"], rows[3]["rougeL"]) == ("0.92", "prod", "tone@1", "")
    assert lorary("list", "--csv", "--domain", "poetry")[0][0].startswith("reference,name,")


def test_a_spreadsheet_gets_no_formulas(lorary, registry, tmp_path):
    hostile = BaseIdentity('=HYPERLINK("http://x")', fingerprint=None)
    registry.add(make_checkpoint(tmp_path / "a", manifest=make_manifest(base=hostile)), name="a")
    (row,) = csv.DictReader(io.StringIO("\n".join(lorary("list", "--csv")[0])))
    assert row["base"].startswith("'=HYPER")


def test_domains_and_tasks(lorary, filled):
    header, finance, legal = lorary("domains")[0]
    assert header.split() == ["domain", "adapters", "versions", "text-classification", "summarization"]
    assert finance.split() == ["finance", "1", "3", "3:", "f1", "0.92"]
    assert legal.split() == ["legal", "2", "2", "2:", "rougeL", "0.4"]
    header, summaries, classes = lorary("tasks", "--metric", "loss")[0]
    assert header.split() == ["task", "adapters", "versions", "finance", "legal"]
    assert summaries.split() == ["summarization", "2", "2", "2:", "loss", "2"]
    assert classes.split() == ["text-classification", "1", "3", "3:", "loss", "0.4"]
    cells = json.loads("\n".join(lorary("domains", "--json")[0]))
    assert cells[0] == {
        "domain": "finance", "task": "text-classification", "adapters": 1, "versions": 3,
        "metric": "f1", "value": 0.92, "best": "tone@2",
    }  # fmt: skip
    assert lorary("tasks", "--csv")[0][2] == "legal,summarization,2,2,rougeL,0.4,briefs@1"
    assert "did you mean rougeL" in lorary("domains", "--metric", "rouge", code=1)[1][0]


def test_a_cell_without_metrics(lorary, registry, tmp_path):
    registry.add(make_checkpoint(tmp_path / "a"), name="a")
    assert lorary("domains")[0][1].split() == ["finance", "1", "1", "1"]
    registry.remove("a")
    assert "is empty" in lorary("domains")[0][0]


@pytest.mark.parametrize("command", ["list", "domains", "tasks"])
def test_where_there_is_no_registry(lorary, registry, command):
    assert "no registry at" in lorary(command)[0][0]
    assert lorary(command, "--json")[0] == ["[]"]
    assert not registry.path.exists()


def test_best(lorary, filled):
    out, err = lorary("best", "--domain", "Finance", "--metric", "loss", "--base", "mirror/tiny")
    assert (out[0].split(), out[1].split()[:2], err) == (["best", "tone@2"], ["loss", "0.4"], [])
    told = json.loads("\n".join(lorary("best", "--metric", "rougeL", "--json")[0]))
    assert (told["version"]["reference"], told["among"], told["compatible"]) == ("briefs@1", 1, None)
    assert (
        "on other bases there are 3"
        in lorary("best", "--metric", "f1", "--base", "org/x", "--domain", "finance", code=1)[1][0]
    )
    assert "expected one task to choose in" in lorary("best", code=2)[1][0]


def test_best_says_when_it_cannot_be_known(lorary, filled, tmp_path):
    folder = make_checkpoint(tmp_path / "f", seed=9, manifest=False)
    filled.add(folder, name="foreign", domain="finance", metrics={"test": {"f1": 0.99}})
    out, err = lorary("best", "--metric", "f1", "--base", "org/tiny")
    assert out[0].split() == ["best", "tone@2"]
    assert "foreign@1 has f1 0.99" in err[0]
    out, err = lorary("best", "--metric", "f1", "--base", "org/tiny", "--where", "f1>0.95")
    assert out[0].split() == ["best", "foreign@1"]
    assert any(line.split() == ["compatible", "unverified"] for line in out)
    assert "base unverified" in err[0]


def test_a_damaged_version_without_files_is_shown(lorary, filled):
    db = sqlite3.connect(filled.path)
    db.execute("DELETE FROM files")
    db.commit()
    db.close()
    assert lorary("show", "tone")[0][0].split() == ["version", "tone@3", "of", "1,", "2,", "3"]


def test_a_folder_of_a_base_finds_what_fits_it(registry, tmp_path, lorary, monkeypatch):
    from lorary.adapters.base.loading import load_base
    from tiny import make_base

    folder = make_base("bert", tmp_path / "models" / "copy")
    fingerprint = load_base(str(folder), device="cpu").identity.fingerprint
    manifest = make_manifest(base=BaseIdentity("org/original", fingerprint=fingerprint))
    registry.add(make_checkpoint(tmp_path / "fits", manifest=manifest), name="fits", metrics={"test": {"f1": 0.5}})
    registry.add(make_checkpoint(tmp_path / "other", seed=1), name="other", metrics={"test": {"f1": 0.9}})
    for command in (["list"], ["best", "--metric", "f1"]):
        out, err = lorary(*command, "--base", folder)
        assert any("fits" in line for line in out)
        assert not any("other" in line for line in out)
        assert err == [f"{folder} has the fingerprint {fingerprint}"]
    monkeypatch.chdir(folder.parent)
    assert json.loads("\n".join(lorary("best", "--metric", "f1", "--base", "copy", "--json")[0]))["compatible"]


def test_a_folder_that_is_no_base_is_told(filled, tmp_path, lorary):
    (tmp_path / "empty").mkdir()
    for folder in ("./nowhere", tmp_path / "empty", "~/nowhere-at-all", "~nobody-here/x", f"./{'x' * 300}"):
        for command in (["list"], ["best", "--metric", "f1"]):
            out, err = lorary(*command, "--base", folder, code=1)
            assert out == []
            assert f"{folder}: expected a base model's folder, found no config.json" in err[0]


@pytest.mark.parametrize("made", [True, False])
@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--task", "nonsense"], "'nonsense' isn't a task"),
        (["--where", "f1>>0.9"], "'f1>>0.9' isn't a comparison"),
        (["--where", "f1>=nan"], "isn't a comparison"),
        (["--domain", "!!"], "'!!' can't be a domain"),
        (["--tag", "!!"], "'!!' can't be a tag"),
        (["--alias", "Not One"], "'Not One'"),
        (["--search", "a " * 33], "33 words"),
        (["--from", "a b"], "'a b'"),
    ],
)
def test_a_wrong_condition_is_told_alike_before_there_is_a_registry(registry, lorary, made, words, told):
    if made:
        registry.path.touch()
    commands = [["list"], ["best", "--metric", "f1"]] if words[0] not in ("--search", "--from") else [["list"]]
    for command in commands:
        out, (error,) = lorary(*command, *words, code=2)
        assert (out, told in error) == ([], True), error
        assert registry.path.exists() == made


def test_metrics_called_like_columns_and_markup_are_shown_as_they_are(registry, tmp_path, lorary):
    odd = {"version": 3.0, "[red]x[/]": 0.5, "\x1b[2J": 0.1, "a b": 1e308}
    registry.add(make_checkpoint(tmp_path / "odd"), name="odd", metrics={"test": odd})
    (row,) = csv.DictReader(io.StringIO("\n".join(lorary("list", "--csv")[0])))
    assert (row["version"], float(row["test/version"]), float(row["[red]x[/]"])) == ("1", 3.0, 0.5)
    assert "[red]x[/]" in lorary("list", "--sort", "[red]x[/]")[0][0]
    assert "\\x1b[2J" in lorary("list", "--sort", "\x1b[2J")[0][0]


def test_what_json_has_no_number_for_is_null(registry, tmp_path, lorary):
    registry.add(make_checkpoint(tmp_path / "one"), name="one", metrics={"test": {"f1": 0.5, "loss": 0.1}})
    with sqlite3.connect(registry.path) as db:
        db.execute("UPDATE metrics SET value = 9e999 WHERE name = 'f1'")
    (version,) = json.loads("\n".join(lorary("list", "--json")[0]), parse_constant=pytest.fail)
    assert version["metrics"]["test"] == {"f1": None, "loss": 0.1}


@pytest.mark.parametrize("command", ["list", "domains", "tasks"])
def test_json_and_csv_at_once_is_refused(filled, lorary, command):
    out, (error,) = lorary(command, "--json", "--csv", code=2)
    assert (out, "--json and --csv exclude each other" in error) == ([], True)
