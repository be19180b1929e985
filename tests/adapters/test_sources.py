"""References: what each kind leads to, and the Hub through its real client."""

import os
import shutil
from pathlib import Path

import pytest
import torch

from lorary.adapters import Backbone
from lorary.adapters.backbone.sources import find_checkpoint
from lorary.hub.checkpoint import KEPT_FILES, read_checkpoint
from lorary.hub.errors import (
    ChangedFilesError,
    CheckpointError,
    InvalidReferenceError,
    RemoteError,
    UnknownReferenceError,
    UnsafeFileError,
)
from lorary.hub.manifest import Manifest
from tiny import make_adapter

ROW = [7, 8, 9]
OTHER_FILES = {
    "config.json": b"{}",
    "training_args.bin": b"\x80\x04.",
    "images/loss.png": b"\x89PNG",
    ".gitattributes": b"",
    "checkpoint-5/adapter_model.safetensors": b"older",
}


@pytest.fixture(scope="session")
def folder(bases, tmp_path_factory):
    """A classifier's folder, with a manifest."""
    folder = make_adapter(bases("bert"), tmp_path_factory.mktemp("adapters") / "tone", task="text-classification")
    identity = Backbone.from_pretrained(str(bases("bert"))).identity
    Manifest(task="text-classification", base=identity, domain="finance", labels=("down", "flat", "up")).write(folder)
    return folder


@pytest.fixture(scope="session")
def other(bases, tmp_path_factory):
    return make_adapter(
        bases("bert"), tmp_path_factory.mktemp("adapters") / "other", task="text-classification", seed=5
    )


@pytest.fixture(scope="session")
def expected(bases, folder):
    backbone = Backbone.from_pretrained(str(bases("bert")))
    backbone.load(folder, "it")
    return backbone.logits([ROW], "it")[0]


@pytest.fixture
def backbone(bases, registry):
    return Backbone.from_pretrained(str(bases("bert")), registry=registry)


def assert_serves(backbone, loaded, expected):
    assert torch.equal(backbone.logits([ROW], loaded.name)[0], expected)


def refuse(backbone, reference, error, *words):
    with pytest.raises(error) as caught:
        backbone.load(reference)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    assert backbone.adapters == []


# The Hub


def test_a_repository_gives_what_its_folder_gives(hub, backbone, folder, other, expected):
    commit = hub.commit_folder("user/tone", folder)
    hub.repos["user/tone"].refs["v1"] = commit
    later = hub.commit_folder("user/tone", other)
    for reference in ("user/tone@v1", f"hf://user/tone@{commit}", f"user/tone@{commit}"):
        loaded = backbone.load(reference)
        assert (loaded.name, loaded.reference) == ("tone", reference.removeprefix("hf://"))
        assert loaded.digest == read_checkpoint(folder).digest
        assert_serves(backbone, loaded, expected)
    latest = backbone.load("user/tone", "latest")
    assert latest.digest == read_checkpoint(other).digest == backbone.load(f"hf://user/tone@{later}").digest
    assert not torch.allclose(backbone.logits([ROW], "latest")[0], expected)


def test_a_revision_with_a_slash(hub, backbone, folder, expected):
    hub.commit_folder("user/tone", folder, branch="refs/pr/1")
    assert_serves(backbone, backbone.load("user/tone@refs/pr/1"), expected)


def test_only_the_adapters_own_files_are_fetched(hub, backbone, folder):
    hub.commit_folder("user/tone", folder, **OTHER_FILES)
    backbone.load("user/tone")
    present = {path.name for path in folder.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "lorary.json", "README.md"} <= present
    assert hub.downloaded() == present & set(KEPT_FILES)


def test_a_token_goes_to_the_hub_and_not_to_its_file_host(hub, backbone, folder, monkeypatch, expected):
    hub.commit_folder("user/tone", folder)
    hub.repos["user/tone"].private = True
    hub.tokens["hf_good"] = {"user/tone"}
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    assert_serves(backbone, backbone.load("user/tone"), expected)
    tokens = {request.path.startswith("/lfs/"): request.token for request in hub.requests}
    assert tokens == {False: "hf_good", True: None}


@pytest.mark.parametrize("how", ["commit", "offline", "unreachable"])
def test_what_was_fetched_once_needs_no_network(hub, backbone, folder, expected, monkeypatch, how):
    from huggingface_hub import constants

    commit = hub.commit_folder("user/tone", folder)
    backbone.load("user/tone")
    backbone.unload("tone")
    hub.requests.clear()
    if how == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    elif how == "unreachable":
        hub.stop()
    reference = f"user/tone@{commit}" if how == "commit" else "user/tone"
    assert_serves(backbone, backbone.load(reference), expected)
    assert hub.requests == []


def test_a_branch_that_moved_is_fetched_anew(hub, backbone, folder, other):
    hub.commit_folder("user/tone", folder)
    first = backbone.load("user/tone").digest
    hub.commit_folder("user/tone", other)
    assert backbone.load("user/tone").digest == read_checkpoint(other).digest != first


def test_pickled_weights_only(hub, backbone, folder):
    config = (folder / "adapter_config.json").read_bytes()
    hub.commit("user/old", {"adapter_config.json": config, "adapter_model.bin": b"\x80\x04."})
    refuse(backbone, "user/old", UnsafeFileError, "user/old", "adapter_model.bin", "never loaded")
    assert "adapter_model.bin" not in hub.downloaded()


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"config.json": b"{}", "model.safetensors": b""}, ["no adapter_config.json", "a whole model"]),
        ({"adapter_config.json": b"{}"}, ["no adapter_model.safetensors"]),
        ({"README.md": b"# nothing yet"}, ["no adapter_config.json"]),
        ({}, ["no adapter_config.json"]),
    ],
)
def test_no_adapter_in_the_repository(hub, backbone, files, words):
    hub.commit("user/base", files)
    refuse(backbone, "user/base", CheckpointError, "user/base", *words)


def test_an_absurd_size_is_seen_before_anything_is_fetched(hub, backbone, folder):
    hub.commit_folder("user/huge", folder)
    hub.overrides["user/huge"] = {"siblings": [{"rfilename": name, "size": 10**12} for name in hub.files("user/huge")]}
    refuse(backbone, "user/huge", UnsafeFileError, "user/huge", "1,000,000,000,000 bytes", "nothing was fetched")
    assert hub.downloaded() == set()


def test_a_damaged_adapter_is_named_as_the_user_named_it(hub, backbone, folder):
    hub.commit_folder("user/tone", folder, **{"adapter_config.json": b"{"})
    refuse(backbone, "user/tone@main", CheckpointError, "user/tone@main/adapter_config.json: not valid JSON")


def test_missing_repository(hub, backbone):
    words = ("user/none", "knows no such repository", "hf auth login", "./user/none")
    refuse(backbone, "user/none", UnknownReferenceError, *words)


def test_missing_revision(hub, backbone, folder):
    hub.commit_folder("user/tone", folder)
    for revision in ("v9", "f" * 40):
        refuse(backbone, f"user/tone@{revision}", UnknownReferenceError, f"no revision '{revision}'", "./user/tone")


def test_a_name_that_the_hub_does_not_allow(hub, backbone):
    refuse(backbone, "user/to--ne", InvalidReferenceError, "user/to--ne")
    assert hub.requests == []


def test_private_gated_and_forbidden(hub, backbone, folder, monkeypatch):
    hub.commit_folder("user/tone", folder)
    hub.repos["user/tone"].private = True
    refuse(backbone, "user/tone", UnknownReferenceError, "user/tone: ", "hf auth login")
    monkeypatch.setenv("HF_TOKEN", "hf_expired")
    refuse(backbone, "user/tone", RemoteError, "user/tone: ", "refuses access (401)", "hf auth login")
    hub.tokens["hf_other"] = set()
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    hub.repos["user/tone"].private, hub.repos["user/tone"].gated = False, True
    words = ("user/tone@", "agreement", f"{hub.url}/user/tone", "hf auth login")
    refuse(backbone, "user/tone", UnknownReferenceError, *words)
    hub.fail("GET", "/api/models/", status=403)
    refuse(backbone, "user/tone@main", RemoteError, "user/tone@main: ", "access (403)", "hf auth login")


FAULTS = {
    "info": ("GET", r"^/api/models/user/tone", {"status": 503}, "503"),
    "tree": ("GET", r"/tree/", {"status": 500}, "500"),
    "head": ("HEAD", r"adapter_model", {"status": 502}, "502"),
    "body": ("GET", r"^/lfs/", {"status": 500}, "500"),
    "short": ("GET", r"^/lfs/", {"keep": 100}, "Consistency check failed"),
    "short config": ("GET", r"/adapter_config.json", {"keep": 10}, "Consistency check failed"),
    "broken off": ("GET", r"^/lfs/", {"keep": 0, "broken": True}, "without sending complete message body"),
    "no json": ("GET", r"^/api/models/user/tone", {"keep": 5}, "user/tone: "),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_failed_download_spoils_nothing(hub, backbone, folder, expected, no_wait, fault):
    hub.commit_folder("user/tone", folder)
    method, path, how, word = FAULTS[fault]
    hub.fail(method, path, **how)
    refuse(backbone, "user/tone", RemoteError, "user/tone", word)
    hub.faults.clear()
    assert_serves(backbone, backbone.load("user/tone"), expected)


def test_a_transfer_that_breaks_off_is_resumed(hub, backbone, folder, expected, no_wait):
    hub.commit_folder("user/tone", folder)
    hub.fail("GET", r"^/lfs/", keep=1000, broken=True, times=2)
    assert_serves(backbone, backbone.load("user/tone"), expected)


def test_no_hub_at_all(hub, backbone, monkeypatch):
    from huggingface_hub import constants

    hub.stop()
    for reference in ("user/tone", f"user/tone@{'a' * 40}"):
        refuse(backbone, reference, RemoteError, f"{reference}: ", "refused", "./user/tone")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refuse(backbone, "user/tone", RemoteError, "HF_HUB_OFFLINE is set")


@pytest.fixture
def snapshot(hub, backbone, folder):
    """The cache's folder of a fetched commit and the reference that reads it without the network."""
    commit = hub.commit_folder("user/tone", folder)
    backbone.load("user/tone")
    backbone.unload("tone")
    from huggingface_hub import constants

    place = Path(constants.HF_HUB_CACHE) / "models--user--tone" / "snapshots" / commit
    assert (place / "adapter_model.safetensors").is_symlink()
    return place, f"user/tone@{commit}"


# What arrived, against what the Hub says of it


@pytest.mark.parametrize("path", [r"^/lfs/", "/adapter_config.json"])
def test_bytes_that_were_changed_on_the_way(hub, backbone, folder, expected, path):
    hub.commit_folder("user/tone", folder)
    hub.fail("GET", path, corrupt=True, times=1)
    refuse(backbone, "user/tone", ChangedFilesError, "user/tone@", "isn't what the Hub says it is", "try again")
    assert_serves(backbone, backbone.load("user/tone"), expected)


@pytest.mark.parametrize("how", ["commit", "branch"])
def test_a_copy_that_was_damaged_on_the_disk(hub, backbone, folder, expected, snapshot, how):
    place, pinned = snapshot
    blob = (place / "adapter_model.safetensors").resolve()
    blob.write_bytes(blob.read_bytes()[:-1] + b"?")
    if how == "branch":
        refuse(backbone, "user/tone", ChangedFilesError, "on the disk; try again")
    assert_serves(backbone, backbone.load(pinned if how == "commit" else "user/tone"), expected)
    backbone.unload("tone")
    hub.stop()
    blob.write_bytes(blob.read_bytes()[:-1] + b"!")
    if how == "commit":
        refuse(backbone, pinned, RemoteError, "can't be reached")
    else:
        refuse(backbone, "user/tone", ChangedFilesError, "on the disk; try again")


def test_a_warm_load_reads_no_file_a_second_time(hub, backbone, folder, expected, snapshot, monkeypatch):
    from lorary.hub.remote import download

    def again(path):
        raise AssertionError(f"{path} was hashed again")

    monkeypatch.setattr(download, "hash_file", again)
    monkeypatch.setattr(download, "_git_hash", again)
    for reference in (snapshot[1], "user/tone"):
        assert_serves(backbone, backbone.load(reference), expected)


# Links


@pytest.mark.parametrize("target", ["elsewhere", "sibling", "own snapshot"])
def test_a_link_out_of_the_repositorys_blobs(hub, backbone, folder, expected, snapshot, target):
    place, reference = snapshot
    link = place / "adapter_model.safetensors"
    blob = link.resolve()
    targets = {
        "elsewhere": folder / "adapter_model.safetensors",
        "sibling": place.parents[2] / "models--user--sibling" / "blobs" / blob.name,
        "own snapshot": place / "weights",
    }
    targets[target].parent.mkdir(parents=True, exist_ok=True)
    if target != "elsewhere":
        shutil.copy(blob, targets[target])
    link.unlink()
    link.symlink_to(os.path.relpath(targets[target], place))
    refuse(backbone, reference, UnsafeFileError, "adapter_model.safetensors: is a link")
    refuse(backbone, place, UnsafeFileError, "adapter_model.safetensors: is a link")
    link.unlink()
    link.symlink_to(os.path.relpath(blob, place))
    assert_serves(backbone, backbone.load(reference), expected)


def test_a_cache_that_lies_behind_a_link(hub, backbone, expected, snapshot, tmp_path, monkeypatch):
    from huggingface_hub import constants

    (tmp_path / "behind").symlink_to(tmp_path / "cache")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "behind"))
    assert_serves(backbone, backbone.load(snapshot[1]), expected)


# Folders and the registry


def test_folders(backbone, folder, expected, monkeypatch):
    monkeypatch.chdir(folder.parent)
    monkeypatch.setenv("HOME", str(folder.parent))
    for reference in ("./tone", f"../{folder.parent.name}/tone", "~/tone", str(folder), folder, Path("tone")):
        loaded = backbone.load(reference)
        assert loaded.name == "tone"
        assert_serves(backbone, loaded, expected)
        assert backbone.load(loaded.reference).digest == loaded.digest  # what it is called leads back to it


def test_checkpoints(backbone, folder, expected, registry):
    registry.add(folder, name="finance-tone")
    for checkpoint, name in (
        (read_checkpoint(folder), "tone"),
        (registry.checkpoint("finance-tone@1"), "finance-tone"),
    ):
        loaded = backbone.load(checkpoint)
        assert loaded.name == name
        assert_serves(backbone, loaded, expected)


def test_the_registry(backbone, folder, other, expected, registry):
    registry.add(folder, name="finance-tone")
    registry.add(other, name="finance-tone", domain="finance")
    registry.alias("finance-tone", "prod", 1)
    for reference in ("finance-tone@1", "finance-tone@prod"):
        loaded = backbone.load(reference)
        assert (loaded.name, loaded.reference) == ("finance-tone", "finance-tone@1")
        assert_serves(backbone, loaded, expected)
    assert backbone.load("finance-tone").reference == "finance-tone@2"


def test_neither_folders_nor_names_shadow_each_other(
    backbone, folder, other, expected, registry, tmp_path, monkeypatch
):
    registry.add(folder, name="tone")
    monkeypatch.chdir(tmp_path)
    for place in ("tone", "tone@1", "user/tone"):
        shutil.copytree(other, tmp_path / place)
    for reference in ("tone", "tone@1"):
        assert_serves(backbone, backbone.load(reference), expected)
    assert backbone.load("./tone", "folder").digest == read_checkpoint(other).digest
    with pytest.raises(RemoteError, match=r"\./user/tone"):
        find_checkpoint("user/tone", registry)


def test_a_folder_written_without_its_dot(registry, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder.parent)
    with pytest.raises(UnknownReferenceError, match=r"the folder here is written \./tone"):
        find_checkpoint("tone", registry)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnknownReferenceError, match="there is no registry") as caught:
        find_checkpoint("tone", registry)
    assert "./" not in str(caught.value)
