"""Nothing secret in any file of a version: tokens, keys, logins in addresses, and home folders are taken out."""

import json
import pwd
import time

import pytest

from checkpoints import BASE_FINGERPRINT, make_checkpoint, make_manifest
from lorary.hub.base_files import resolve_base
from lorary.hub.checkpoint import read_checkpoint
from lorary.hub.errors import CheckpointError
from lorary.hub.manifest import BaseIdentity, Prompt
from lorary.hub.pretrained_bases import bases_of
from lorary.hub.provenance.private import own_folder, public_base, redact, redact_text

TOKEN = "hf_" + "aBcDeFgHiJkLmNoPqRsTuVwXyZ0123456789"[:34]
KEY = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/alice/models/llama", "llama"),
        ("/home/alice", "~"),
        ("/root/x", "x"),
        ("/Users/bob/a/b.csv, row 3", "b.csv, row 3"),
        ("C:\\Users\\bob\\models\\q", "q"),
        ("see '/home/alice/my data/x.csv'", "see 'x.csv'"),
        ("~/models/llama", "llama"),
        ("file:///home/alice/x", "file://x"),
        (f"token {TOKEN}", "token [removed]"),
        ("https://user:pass@host.org/x", "https://host.org/x"),
        ("https://host.org/x?token=abc&page=2", "https://host.org/x?token=[removed]&page=2"),
        (f"WANDB_API_KEY={KEY}", "WANDB_API_KEY=[removed]"),
        ("password: 'hunter2'", "password: '[removed]'"),
        ("Authorization: Bearer abcdefghijklmnop", "Authorization: Bearer [removed]"),
        ("AKIAABCDEFGHIJKLMNOP", "[removed]"),
        ("key=sk-proj-0abcdefghijklmnopqrstuvwxyz,", "key=[removed],"),
    ],
)
def test_secrets_and_home_folders_are_taken_out(text, expected):
    assert redact_text(text) == expected
    assert redact_text(redact_text(text)) == expected


@pytest.mark.parametrize(
    "text",
    [
        "/data/models/llama", "https://example.com/home/alice/x", "about ~5 minutes", "a / b", "eos_token: </s>",
        "[INST] {prompt} [/INST]", "tokens_per_second: 3.1", "f1_macro", KEY, "rooted/x", "/rooted", "hf_hub",
        "me@example.com", "12:30", "org/task-classification-of-2024-filings", "risk-assessment-model-7b-instruct",
        "sk-learn-and-other-such-libraries", "key=value",
    ],
)  # fmt: skip
def test_other_texts_stay(text):
    assert redact_text(text) == text


@pytest.mark.parametrize(
    "unit", ["sk-", "a-", "_-", "a.", "-eyJaaaaaaaa", "&a-", "/home/", "'/home/a ", "~/", "api_key="]
)
def test_a_text_of_nothing_but_beginnings_takes_no_time(unit):
    """Cards come from strangers; without limits in the patterns the first of these takes minutes."""
    started = time.monotonic()
    redact_text(unit * (30_000 // len(unit)))
    assert time.monotonic() - started < 3


def test_values_are_walked():
    told = {"api_key": "x", "eos_token": "</s>", "n": 3, "list": [{"hf_token": "y"}, "/home/a/b"], "on": True}
    clean = {"api_key": "[removed]", "eos_token": "</s>", "n": 3, "list": [{"hf_token": "[removed]"}, "b"], "on": True}
    assert redact(told) == clean


def test_bases():
    assert public_base("org/name") == "org/name"
    assert public_base("./models/x") == "./models/x"
    assert public_base("/data/models/llama") == "llama"
    assert public_base("/home/a/.cache/huggingface/hub/models--org--na.me/snapshots/abc") == "org/na.me"


PLANTED = (TOKEN, KEY, "hunter2", "alice", "/home", "/root", "secret-client")


def plant(folder, base):
    """A checkpoint with something private in each of its texts."""
    provenance = {
        "recipe": {"wandb": {"api_key": KEY}, "data": {"train": f"https://alice:hunter2@host/x?token={KEY}"}},
        "notices": [f"read /home/alice/secret-client/train.jsonl with {TOKEN}"],
        TOKEN: "as a name",
    }
    manifest = make_manifest(
        base=BaseIdentity(base, fingerprint=BASE_FINGERPRINT), provenance=provenance,
        prompt=Prompt("plain", "/home is where {prompt}"),
    )  # fmt: skip
    make_checkpoint(folder, manifest=manifest, base_model_name_or_path=base, eva_config={"cache": "/root/alice/c"})
    for name in ("README.md", "recipe.yaml", "report.html"):
        (folder / name).write_text(f"base: {base}\napi_key: {KEY}\nhub_token: {TOKEN}\n")
    (folder / "report.json").write_text(json.dumps({"notices": [f"{base} {TOKEN}"], "password": "hunter2"}))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"name_or_path": base, "eos_token": "</s>", "tokenizer_file": "/root/alice/t.json", "token": TOKEN})
    )
    return folder


def test_no_file_of_a_version_holds_what_was_planted(registry, tmp_path):
    folder = plant(tmp_path / "planted", "/home/alice/secret-client/llama")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    version = registry.add(folder, name="tone")
    checkpoint = registry.checkpoint(version)
    assert set(checkpoint.files) == set(before)
    for name, path in checkpoint.files.items():
        text = path.read_bytes().decode("utf-8", "replace").replace("/home is where", "")
        for secret in PLANTED:
            assert secret not in text, (name, secret)
    assert registry.path.read_bytes().find(b"alice") == -1
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert (version.base_id, checkpoint.config["base_model_name_or_path"]) == ("llama", "llama")
    assert json.loads(checkpoint.files["tokenizer_config.json"].read_text())["eos_token"] == "</s>"
    assert checkpoint.manifest.prompt.template == "/home is where {prompt}"
    assert registry.verify() == []
    assert registry.add(folder, name="tone") == version


def test_what_holds_nothing_private_is_copied_byte_for_byte(registry, tmp_path):
    folder = make_checkpoint(tmp_path / "plain")
    (folder / "README.md").write_bytes(b"caf\xe9\r\n")  # not UTF-8
    checkpoint = registry.checkpoint(registry.add(folder, name="tone"))
    assert {name: path.read_bytes() for name, path in checkpoint.files.items()} == {
        path.name: path.read_bytes() for path in folder.iterdir()
    }
    assert checkpoint.digest == read_checkpoint(folder).digest


def test_a_base_in_a_folder_is_found_again_by_its_name(registry, tmp_path):
    base = tmp_path / "models" / "llama-mine"
    base.mkdir(parents=True)
    (base / "config.json").write_text("{}")
    identity = BaseIdentity(str(base), fingerprint=BASE_FINGERPRINT)
    version = registry.add(make_checkpoint(tmp_path / "a", manifest=make_manifest(base=identity)), name="tone")
    assert version.base_id == "llama-mine"
    with bases_of(registry):
        assert resolve_base("llama-mine").path == str(base)
    assert registry.find(base=str(base)) == [version]
    assert registry.find(base="llama-mine") == [version]


def test_a_text_too_large_to_be_searched_is_refused(registry, tmp_path):
    folder = make_checkpoint(tmp_path / "tone")
    with (folder / "README.md").open("wb") as readme:
        readme.truncate(10**10)  # of nothing: it takes no room
    with pytest.raises(CheckpointError, match=r"README\.md: 10,000,000,000 bytes is too large.*at most 100,000,000"):
        registry.add(folder, name="tone")
    assert not registry.path.exists()


def test_in_the_catalogue_a_folder_below_home_stands_without_its_owner(registry, tmp_path, monkeypatch):
    home = tmp_path / "alice"
    base = home / "llama-mine"
    base.mkdir(parents=True)
    (base / "config.json").write_text("{}")
    monkeypatch.setenv("HOME", str(home))
    registry.add(make_checkpoint(tmp_path / "a"), name="tone", base_folder=base)
    assert b"alice" not in registry.path.read_bytes()
    assert b"~/llama-mine" in registry.path.read_bytes()


def test_a_folder_of_the_home_folder_is_kept_with_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "alice"))
    (tmp_path / "alice" / "models").mkdir(parents=True)
    assert own_folder(tmp_path / "alice" / "models") == "~/models"
    assert own_folder(tmp_path / "alice") == "~"
    assert own_folder(tmp_path) == str(tmp_path)
    assert own_folder(tmp_path / "nowhere") is None


@pytest.mark.parametrize("home", [None, "/"])
def test_a_user_without_a_home(registry, tmp_path, monkeypatch, home):
    """In a container that runs as a number that its system has no name for, HOME is unset, or the root."""

    def nobody(_):
        raise KeyError

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    monkeypatch.delenv("HOME") if home is None else monkeypatch.setenv("HOME", home)
    base = tmp_path / "base"
    version = registry.add(make_checkpoint(tmp_path / "tone"), name="tone", base_folder=make_checkpoint(base))
    assert registry.bases.folders_of("nothing") == []
    assert own_folder(base) == str(base)
    assert redact_text("in /home/ann/x") == "in x"
    assert registry.alias("tone", "prod", version.number)
