"""What a trained version tells of how it came to be, and that none of it names the machine, its user or a secret."""

import hashlib
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from lorary.hub.cli.main import main
from lorary.training import train
from lorary.training.data.terms import data_terms
from lorary.training.working_folder import git_state
from runs import SHORT

COMMIT, LATER = "a1" * 20, "b2" * 20
TOKEN = "hf_" + "aBcDeFgHiJkLmNoPqRsTuVwXyZ01234567"


def git(folder, *arguments):
    identity = ["-c", "user.name=n", "-c", "user.email=e@example.com"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A working folder with one commit."""
    if shutil.which("git") is None:
        pytest.skip("needs git")
    folder = tmp_path / "work"
    folder.mkdir()
    git(folder, "init", "-q")
    (folder / "train.py").write_text("1")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "first")
    monkeypatch.chdir(folder)
    return folder


def test_a_run_s_version_tells_how_it_came_to_be(make_recipe, registry, tmp_path, repository, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))  # so that data, base and output lie in a home folder
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef0123456789abcdef01234567")
    recipe = make_recipe(**SHORT, tags=[TOKEN], **{"report.write": True, "data.language": "en", "domain": "finance"})
    base = Path(recipe.base)
    before = (base / "README.md").exists()
    assert not before
    (base / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A base\n")
    (tmp_path / "README.md").write_text("---\nlicense: cc-by-4.0\nlanguage: [de]\n---\n")
    (repository / "train.py").write_text("2")
    try:
        version = train(recipe, registry)
    finally:
        (base / "README.md").unlink()
    told = version.manifest.provenance
    assert told["licenses"] == {"base": "apache-2.0", "data": "cc-by-4.0"}
    assert told["languages"] == ["en"]
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    assert told["git"] == {"commit": head, "dirty": True}
    weights = hashlib.sha256((base / "model.safetensors").read_bytes()).hexdigest()
    assert told["base"]["files"]["model.safetensors"] == weights
    assert {"loading the base", "training", "measuring"} <= set(told["durations"])
    assert told["data"]["train"]["sha256"] == hashlib.sha256((tmp_path / "train.jsonl").read_bytes()).hexdigest()
    assert version.base_id == base.name

    checkpoint = registry.checkpoint(version)
    assert {"report.json", "report.html", "recipe.yaml", "lorary.json", "adapter_config.json"} <= set(checkpoint.files)
    for name, path in checkpoint.files.items():
        content = path.read_bytes()
        for secret in (str(tmp_path), str(base.parent), TOKEN, "0123456789abcdef0123456789abcdef01234567"):
            assert secret.encode() not in content, (name, secret)
    for path in (tmp_path / "out").iterdir():
        assert str(base.parent).encode() not in path.read_bytes(), path.name

    assert main(["show", "tiny", "--registry", str(registry.path)]) == 0
    shown = capsys.readouterr().out
    for part in (head, weights[:12], "train.jsonl, 40 rows", "seed", "3 steps", "peft ", "base apache-2.0, data cc-by"):
        assert part in shown, part
    # The folder is known to the catalogue alone, so the base is found again by the name that the files have.
    assert main(["run", "tiny", "profit rose", "--registry", str(registry.path)]) == 0


def test_git_state(repository, tmp_path):
    assert git_state()["dirty"] is False
    (repository / "runs").mkdir()
    (repository / "runs" / "x").write_text("a run's own folder isn't a change of the code")
    assert git_state()["dirty"] is False
    (repository / "train.py").write_text("3")
    assert git_state()["dirty"] is True
    commit = git_state()["commit"]
    assert len(commit) == 40
    git(repository, "clone", "-q", "--bare", ".", str(tmp_path / "bare"))
    assert git_state(tmp_path / "bare") == {"commit": commit, "dirty": None}  # there are no files
    (tmp_path / "elsewhere").mkdir()
    assert git_state(tmp_path / "elsewhere") is None
    git(tmp_path / "elsewhere", "init", "-q")
    assert git_state(tmp_path / "elsewhere") is None  # there is no commit


def test_without_git_there_is_no_state(repository, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert git_state() is None


def test_the_recipe_s_terms_win_over_the_readme_s(make_recipe, tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: other\nlicense_name: ours\nlanguage: no\n---\n")
    assert data_terms(make_recipe()).license == "ours"
    assert data_terms(make_recipe()).languages == ("no",)
    given = make_recipe(**{"data.license": "mit", "data.language": ["en", "de"]})
    assert (data_terms(given).license, data_terms(given).languages) == ("mit", ("en", "de"))


@pytest.mark.parametrize("text", ["", "none", "---\n[\n---\n", "---\n- a\n---\n", "---\nlicense: [1]\n---\n"])
def test_a_readme_that_says_nothing(make_recipe, tmp_path, text):
    (tmp_path / "README.md").write_text(text)
    assert data_terms(make_recipe()).license is None


def test_a_dataset_s_folder_is_told_by_its_files(make_recipe, tmp_path):
    from lorary.training.data.files.source import read_source

    folder = tmp_path / "rows"
    folder.mkdir()
    content = json.dumps({"text": "a", "label": "b"}).encode()
    (folder / "train.jsonl").write_bytes(content)
    (folder / "test.jsonl").write_bytes(content)
    told = read_source(str(folder)).provenance()
    sha256 = hashlib.sha256(content).hexdigest()
    assert told["files"] == {"test.jsonl": sha256, "train.jsonl": sha256}
    assert told["name"] == "rows"


@pytest.fixture
def cached_dataset(tmp_path, monkeypatch):
    """The caches of `datasets` and of the Hub's client with one dataset, as an earlier download leaves them."""
    import datasets

    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(json.dumps({"text": f"row {number}", "label": number % 2}) for number in range(4)))
    builder = datasets.load_dataset_builder("json", data_files={"train": str(rows)}, cache_dir=str(tmp_path / "made"))
    builder.download_and_prepare()
    table = tmp_path / "datasets" / "org___rows" / "default" / "0.0.0" / COMMIT
    shutil.copytree(builder.cache_dir, table)
    (table / "json-train.arrow").rename(table / "rows-train.arrow")
    told = json.loads((table / "dataset_info.json").read_text())
    (table / "dataset_info.json").write_text(json.dumps({**told, "dataset_name": "rows"}))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    repository = tmp_path / "hub" / "datasets--org--rows"
    for commit in (COMMIT, LATER):
        (repository / "snapshots" / commit).mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(LATER)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return repository / "snapshots"


def test_a_dataset_from_the_cache_is_told_by_the_commit_of_its_rows(cached_dataset):
    from lorary.training.data.files.source import read_source

    told = read_source("org/rows").provenance()
    assert told == {"name": "org/rows", "rows": 4, "sha256": None, "revision": COMMIT}


def test_a_dataset_whose_table_says_no_commit_is_told_by_its_readme(cached_dataset, tmp_path):
    from lorary.training.data.files.source import read_source

    (table,) = (tmp_path / "datasets").rglob(COMMIT)
    table.rename(table.with_name("0123456789abcdef"))
    assert read_source("org/rows").revision is None
    (cached_dataset / LATER / "README.md").write_text("# Rows\n")
    assert read_source("org/rows").revision == LATER


def test_a_dataset_s_terms_are_those_of_the_readme_in_the_cache(cached_dataset, make_recipe):
    recipe = make_recipe(**{"data.train": "org/rows"})
    assert (data_terms(recipe).license, data_terms(recipe).languages) == (None, ())
    (cached_dataset / LATER / "README.md").write_text("---\nlicense: cc-by-sa-4.0\nlanguage:\n- fr\n---\n# Rows\n")
    (cached_dataset / COMMIT / "README.md").write_text("---\nlicense: mit\n---\n")
    assert (data_terms(recipe).license, data_terms(recipe).languages) == ("cc-by-sa-4.0", ("fr",))
    earlier = make_recipe(**{"data.train": "org/rows", "data.revision": COMMIT})
    assert data_terms(earlier).license == "mit"
    assert data_terms(make_recipe(**{"data.train": "org/none"})).license is None
