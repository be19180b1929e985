"""The tests' Hub and the real client understand each other, also where lorary has no use for it."""

import hashlib

import pytest


@pytest.fixture
def api(hub, monkeypatch):
    from huggingface_hub import HfApi

    hub.users["hf_ann"] = "ann"
    monkeypatch.setenv("HF_TOKEN", "hf_ann")
    return HfApi()


def test_a_repository_from_beginning_to_end(hub, api):
    assert api.whoami()["name"] == "ann"
    assert api.create_repo("ann/model", private=True) == f"{hub.url}/ann/model"
    weights = bytes(range(256)) * 100
    api.upload_file(path_or_fileobj=weights, path_in_repo="model.safetensors", repo_id="ann/model")
    api.upload_file(path_or_fileobj=b"# Hello", path_in_repo="README.md", repo_id="ann/model")
    (info,) = api.get_paths_info("ann/model", "model.safetensors")
    assert (info.size, info.lfs.sha256) == (len(weights), hashlib.sha256(weights).hexdigest())
    assert [made.title for made in api.list_repo_commits("ann/model")][-1] == "initial commit"
    api.create_tag("ann/model", tag="v1")
    assert [tag.name for tag in api.list_repo_refs("ann/model").tags] == ["v1"]
    api.delete_file("README.md", "ann/model")
    assert api.list_repo_files("ann/model") == [".gitattributes", "model.safetensors"]
    assert "README.md" in api.list_repo_files("ann/model", revision="v1")
    api.delete_repo("ann/model")
    assert not api.repo_exists("ann/model")
