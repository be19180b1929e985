"""Push to a Hub, through its real client."""

import json
from contextlib import suppress

import pytest

from lorary.hub.errors import (
    ChangedFilesError,
    RemoteConflictError,
    RemoteError,
    UnknownReferenceError,
    UsageError,
)
from lorary.hub.remote import pull, push
from lorary.hub.tables.links import links

REPO = "ann/finance-tone"


def stated(hub, revision="main"):
    return json.loads(hub.files(REPO, revision)["lorary-version.json"])


def test_a_first_push_makes_a_private_repository_with_one_commit(ann, registry, add):
    version = add(metrics={"test": {"f1": 0.9}}, tags=["news"])
    registry.alias("finance-tone", "prod", 1)
    pushed = push(registry, "finance-tone@prod")
    repo = ann.repos[REPO]
    assert (repo.private, len(repo.commits)) == (True, 2)  # the Hub's own first commit, and the version's
    assert repo.titles[pushed.commit] == "finance-tone v1"
    assert repo.tags == {"v1": pushed.commit, "prod": pushed.commit}
    assert (pushed.remote, pushed.number, pushed.created, pushed.moved) == (REPO, 1, True, ("v1", "prod"))
    files = ann.files(REPO)
    assert set(version.files) | {"README.md", "lorary-version.json", ".gitattributes"} == set(files)
    said = stated(ann)
    assert (said["number"], said["digest"], said["aliases"]) == (1, version.digest, ["prod"])
    assert (said["metrics"], said["tags"], said["versions"]) == ({"test": {"f1": 0.9}}, ["news"], {"1": version.digest})
    commit = next(request for request in ann.requests if "/commit/" in request.path)
    parent = next(made for made in repo.commits if made != pushed.commit)
    assert json.loads(commit.body.splitlines()[0])["value"]["parentCommit"] == parent
    (link,) = links(registry.path)
    assert (link.name, link.number, link.remote, link.commit) == ("finance-tone", 1, REPO, pushed.commit)


def test_the_next_version_goes_on_top(ann, registry, add):
    first = add(0)
    push(registry, "finance-tone")
    second = add(1, manifest=False, domain="finance", task="text-classification")
    pushed = push(registry, "finance-tone")
    assert (pushed.number, pushed.created) == (2, False)
    assert stated(ann)["versions"] == {"1": first.digest, "2": second.digest}
    assert "lorary.json" not in ann.files(REPO)  # it was the first version's
    assert "lorary.json" in ann.files(REPO, "v1")
    assert set(ann.repos[REPO].tags) == {"v1", "v2"}


def test_the_same_again_sends_nothing_and_mends_the_tags(ann, registry, add):
    add(0)
    first = push(registry, "finance-tone")
    add(1)
    second = push(registry, "finance-tone")
    commits = len(ann.repos[REPO].commits)
    registry.alias("finance-tone", "prod", 1)
    ann.repos[REPO].tags = {"v1": second.commit, "prod": second.commit, "release-2": first.commit}
    pushed = push(registry, "finance-tone@1")
    assert (pushed.parcel, pushed.commit, pushed.moved) == (None, first.commit, ("v1", "prod"))
    assert ann.repos[REPO].tags == {"v1": first.commit, "prod": first.commit, "release-2": first.commit}
    assert push(registry, "finance-tone@2").moved == ("v2",)
    assert push(registry, "finance-tone@2").moved == ()
    assert len(ann.repos[REPO].commits) == commits


def test_an_edited_card_on_the_hub_changes_no_version(ann, registry, add):
    add()
    pushed = push(registry, "finance-tone")
    ann.commit(REPO, {**ann.files(REPO), "README.md": b"# Better"})
    del ann.repos[REPO].tags["v1"]
    again = push(registry, "finance-tone")
    assert (again.commit, again.moved) == (pushed.commit, ("v1",))
    assert ann.files(REPO)["README.md"] == b"# Better"


def test_a_dry_run_changes_nothing(ann, registry, add):
    add()
    pushed = push(registry, "finance-tone", dry_run=True)
    assert (pushed.commit, pushed.created, pushed.moved) == (None, True, ("v1",))
    assert ann.repos == {}
    assert links(registry.path) == []
    push(registry, "finance-tone")
    ann.repos[REPO].tags.clear()
    assert push(registry, "finance-tone", dry_run=True).moved == ("v1",)
    assert ann.repos[REPO].tags == {}


def test_public_and_message(ann, registry, add):
    add()
    pushed = push(registry, "finance-tone", "ann/other", public=True, message="For the fair\n\nWith more rows.")
    assert not ann.repos["ann/other"].private
    assert ann.repos["ann/other"].titles[pushed.commit] == "For the fair"


def test_where_it_was_pushed_last_is_the_default(ann, registry, add):
    add()
    push(registry, "finance-tone", "ann/tones")
    add(1)
    assert push(registry, "finance-tone").remote == "ann/tones"
    push(registry, "finance-tone", "ann/more")
    with pytest.raises(UsageError, match="several remotes, say which: ann/more, ann/tones"):
        push(registry, "finance-tone")


def test_a_foreign_file_in_the_repository_stays(ann, registry, add):
    ann.commit(REPO, {"plot.png": b"\x89PNG", "adapter_model.bin": b"\x80\x04."})
    add()
    push(registry, "finance-tone")
    assert "plot.png" in ann.files(REPO)
    assert "adapter_model.bin" not in ann.files(REPO)  # others' weights beside these


def test_what_this_registry_lacks_is_not_pushed_over(ann, registry, add, tmp_path):
    from checkpoints import make_checkpoint
    from lorary.hub import Registry

    add()
    push(registry, "finance-tone")
    other = Registry(tmp_path / "other.db")
    pull(other, REPO)
    other.add(make_checkpoint(tmp_path / "theirs", seed=7), name="finance-tone")
    push(other, "finance-tone")
    head = ann.repos[REPO].refs["main"]
    add(1)
    command = rf"`lorary pull {REPO} --name finance-tone --registry \S+registry\.db` first"
    with pytest.raises(RemoteConflictError, match=f"holds v2, which this registry lacks.*{command}"):
        push(registry, "finance-tone")
    assert ann.repos[REPO].refs["main"] == head
    assert pull(registry, REPO).version.reference == "finance-tone@3"
    pushed = push(registry, "finance-tone@2")
    assert (pushed.number, pushed.version.number) == (3, 2)


def test_an_adapter_of_somebody_else_is_not_pushed_over(ann, registry, add, tmp_path):
    from checkpoints import make_checkpoint

    ann.commit_folder(REPO, make_checkpoint(tmp_path / "foreign", seed=9, manifest=False))
    add()
    with pytest.raises(RemoteConflictError, match="holds an adapter, which this registry lacks"):
        push(registry, "finance-tone")
    pull(registry, REPO, name="finance-tone", domain="finance")
    assert push(registry, "finance-tone@1").number == 1


def test_two_pushes_at_once_one_is_refused(ann, registry, add, no_wait):
    """Between the look and the commit somebody else commits: the parent isn't the head any more."""
    add(0)
    push(registry, "finance-tone")
    add(1)
    fault = ann.fail("POST", "/preupload/", status=500, times=1)
    take = fault.takes

    def takes(request):
        if "/preupload/" in request.path and fault.times:
            ann.repos[REPO].add(REPO, {**ann.files(REPO), "README.md": b"quicker"})
        return take(request)

    fault.takes = takes
    with pytest.raises(RemoteConflictError, match="somebody else changed the repository at the same time"):
        push(registry, "finance-tone")
    assert stated(ann)["number"] == 1
    assert ann.files(REPO)["README.md"] == b"quicker"
    ann.faults.clear()
    assert push(registry, "finance-tone").number == 2


def test_secrets_and_folders_of_this_machine_stay_here(ann, registry, add, monkeypatch, tmp_path):
    from contextlib import nullcontext

    from checkpoints import BASE_FINGERPRINT, make_manifest
    from lorary.hub.manifest import BaseIdentity

    home, token = tmp_path / "home" / "ann" / "models" / "tiny-base", "hf_" + "A1" * 17
    base = BaseIdentity(str(home), fingerprint=BASE_FINGERPRINT)
    manifest = make_manifest(base=base, provenance={"notices": [f"read {home} with {token}"]})
    # A version from before registering took such things out.
    monkeypatch.setattr("lorary.hub.registry.cleaned", nullcontext)
    version = add(manifest=manifest, config={"base_model_name_or_path": str(home)})
    assert token in registry.checkpoint(version).files["lorary.json"].read_text()
    monkeypatch.setenv("HOME", str(tmp_path / "home" / "ann"))
    push(registry, "finance-tone")
    for content in ann.files(REPO).values():
        assert str(home.parent).encode() not in content
        assert token.encode() not in content
    assert json.loads(ann.files(REPO)["adapter_config.json"])["base_model_name_or_path"] == "tiny-base"
    other = type(registry)(tmp_path / "other.db")
    assert pull(other, REPO).version.digest == version.digest


def test_where_our_shared_folders_are_is_not_for_the_hub(ann, registry, add, tmp_path):
    (tmp_path / "team").mkdir()
    add(0)
    push(registry, "finance-tone", f"file://{tmp_path}/team")
    add(1, parents=["finance-tone@1"], strategy="fine-tune")
    push(registry, "finance-tone", f"file://{tmp_path}/team")
    push(registry, "finance-tone", REPO)
    assert not any(str(tmp_path).encode() in content for content in ann.files(REPO).values())
    assert stated(ann)["parents"][0]["digest"] == registry.resolve("finance-tone@1").digest
    beside = (tmp_path / "team/finance-tone/versions/2/lorary-version.json").read_text()
    assert json.loads(beside)["parents"][0]["remote"] == f"file://{tmp_path}/team/finance-tone@v1"
    assert str(tmp_path) not in (tmp_path / "team/finance-tone/versions/2/README.md").read_text()


def test_a_parent_that_was_never_here_goes_on_under_where_it_is(ann, registry, add, tmp_path):
    add(0)
    push(registry, "finance-tone")
    add(1, parents=["finance-tone@1"], strategy="fine-tune")
    push(registry, "finance-tone")
    other = type(registry)(tmp_path / "other.db")
    pull(other, REPO)
    push(other, "finance-tone", "ann/copy")
    (parent,) = json.loads(ann.files("ann/copy")["lorary-version.json"])["parents"]
    place = f"{REPO}@{ann.repos[REPO].tags['v1']}"
    assert parent == {"reference": place, "digest": None, "remote": place}
    third = type(registry)(tmp_path / "third.db")
    assert pull(third, "ann/copy").version.parents == (place,)
    pull(third, f"{REPO}@v1", name="finance-tone")
    assert third.resolve("finance-tone@1").parents == ("finance-tone@2",)


def test_rotten_files_are_not_published(ann, registry, add):
    version = add()
    path = registry._store.path(version.files["adapter_model.safetensors"].sha256)
    path.chmod(0o644)
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ChangedFilesError, match="aren't what was registered; nothing was sent"):
        push(registry, "finance-tone")
    assert ann.repos == {}


def test_aliases_that_cannot_be_tags(ann, registry, add):
    add()
    for alias in ("main", "v7", "a..b", "x.lock", "ok"):
        registry.alias("finance-tone", alias, 1)
    pushed = push(registry, "finance-tone")
    assert (pushed.moved, pushed.withheld) == (("v1", "ok"), ("a..b", "main", "v7", "x.lock"))
    assert set(ann.repos[REPO].tags) == {"v1", "ok"}


def test_a_repository_that_appears_at_the_same_moment(ann, registry, add, tmp_path):
    from checkpoints import make_checkpoint

    add()
    theirs = make_checkpoint(tmp_path / "theirs", seed=7)
    ann.fail("POST", "/repos/create", skip=0, times=1, cut="after", call=lambda: ann.commit_folder(REPO, theirs))
    with pytest.raises(RemoteError):
        push(registry, "finance-tone")
    with pytest.raises(RemoteConflictError, match="holds an adapter"):
        push(registry, "finance-tone")


# What goes wrong


def test_not_logged_in(hub, registry, add):
    add()
    for target in (None, REPO):
        with pytest.raises(RemoteError, match="hf auth login"):
            push(registry, "finance-tone", target)
    assert hub.repos == {}


def test_somebody_elses_namespace(ann, registry, add):
    add()
    with pytest.raises(RemoteError, match=r"bob/tone: the Hub refuses access \(403\).*may write to it"):
        push(registry, "finance-tone", "bob/tone")


def test_wrong_input(ann, registry, add):
    add()
    with pytest.raises(UnknownReferenceError, match="no adapter named"):
        push(registry, "other-name")
    with pytest.raises(UsageError, match="not to a revision"):
        push(registry, "finance-tone", "ann/tone@v1")
    with pytest.raises(UsageError, match="names no remote"):
        push(registry, "finance-tone", "tone")
    with pytest.raises(UsageError, match="a shared folder is written file://"):
        push(registry, "finance-tone", "./tone")
    with pytest.raises(UsageError, match="can't be a repository on the Hub"):
        push(registry, "finance-tone", "ann/to--ne")


def test_offline(ann, registry, add, monkeypatch):
    from huggingface_hub import constants

    add()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for target in (None, REPO):
        with pytest.raises(RemoteError, match="HF_HUB_OFFLINE is set"):
            push(registry, "finance-tone", target)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_what_passes_is_waited_for(ann, registry, add, no_wait, status):
    add()
    for method, path in (
        ("GET", "/whoami"), ("GET", "/api/models/"), ("GET", "/refs"), ("POST", "/repos/create"),
        ("POST", "/preupload/"), ("POST", "/lfs/objects/batch"), ("PUT", "/upload/"), ("POST", "/verify"),
        ("POST", "/commit/"), ("POST", "/tag/"),
    ):  # fmt: skip
        ann.fail(method, path, status=status, times=2, headers={"Retry-After": "1"} if status == 429 else {})
    assert push(registry, "finance-tone").moved == ("v1",)
    assert all(fault.times == 0 for fault in ann.faults)


def test_a_card_that_the_hub_refuses(ann, registry, add, monkeypatch):
    add()
    monkeypatch.setattr("lorary.hub.remote.parcel.make_card", lambda *_, **__: "---\nlicense: [\n---\n")
    with pytest.raises(RemoteError, match=r"while parsing a flow node.*license"):
        push(registry, "finance-tone")
    assert ann.asked("POST", "/commit/") == 0


def test_an_upload_that_arrives_damaged(ann, registry, add):
    add()
    ann.fail("PUT", "/upload/", corrupt=True, times=1)
    with pytest.raises(RemoteError, match="ann/finance-tone"):
        push(registry, "finance-tone")
    assert list(ann.files(REPO)) == [".gitattributes"]
    assert push(registry, "finance-tone").moved == ("v1",)


@pytest.mark.parametrize("status", [409, 412])
def test_a_hub_that_says_the_parent_is_not_the_head(ann, registry, add, status):
    add()
    ann.fail("POST", "/commit/", status=status)
    with pytest.raises(RemoteConflictError, match="nothing was overwritten, try again"):
        push(registry, "finance-tone")
    assert ann.asked("POST", "/commit/") == 1


def test_a_hub_that_keeps_failing_is_told_of(ann, registry, add, no_wait):
    add()
    ann.fail("POST", "/commit/", status=503)
    with pytest.raises(RemoteError, match=r"the Hub answers with an error \(503\)"):
        push(registry, "finance-tone")
    assert ann.asked("POST", "/commit/") == 4


@pytest.mark.parametrize("cut", ["before", "after"])
def test_cut_off_at_any_request_there_is_the_old_version_or_the_new(ann, registry, add, no_wait, monkeypatch, cut):
    add(0)
    push(registry, "finance-tone")
    add(1)
    registry.alias("finance-tone", "prod", 2)
    ann.requests.clear()
    old = dict(ann.repos[REPO].refs), dict(ann.repos[REPO].tags)
    push(registry, "finance-tone")
    count = sum(1 for request in ann.requests if request.method != "GET" and request.method != "HEAD")
    whole = ann.files(REPO)
    for number in range(count):
        repo = ann.repos[REPO]
        repo.refs, repo.tags = dict(old[0]), dict(old[1])
        ann.objects.clear()
        fault = ann.fail("POST|PUT|DELETE", "", cut=cut, skip=number)
        with suppress(RemoteError):
            push(registry, "finance-tone")
        ann.faults.remove(fault)
        assert ann.files(REPO) in (repo.commits[old[0]["main"]], whole)
        push(registry, "finance-tone")
        assert ann.files(REPO) == whole
        assert repo.tags["v2"] == repo.tags["prod"] == repo.refs["main"]
