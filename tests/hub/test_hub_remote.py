"""Status, sync and lists against a Hub, through its real client."""

import pytest

from checkpoints import make_checkpoint, make_manifest
from lorary.hub.cli.main import main
from lorary.hub.errors import RemoteError, UsageError
from lorary.hub.remote import list_remote, pull, push, status, sync

REPO = "ann/finance-tone"


def test_ahead_behind_same_and_diverged(ann, registry, add, elsewhere, tmp_path):
    assert status(registry) == []
    add(0)
    push(registry, "finance-tone")
    pull(elsewhere, REPO)
    add(1)
    (one,) = status(registry)
    assert (one.name, one.remote, one.relation, one.ahead, one.behind) == ("finance-tone", REPO, "ahead", (2,), ())
    (done,) = sync(registry)
    assert ([pushed.number for pushed in done.pushed], done.settled) == ([2], True)
    assert status(elsewhere)[0].behind == (2,)
    assert [pulled.version.reference for pulled in sync(elsewhere)[0].pulled] == ["finance-tone@2"]
    elsewhere.add(make_checkpoint(tmp_path / "theirs", seed=7), name="finance-tone")
    sync(elsewhere)
    add(2)
    assert status(registry)[0].relation == "diverged"
    head = ann.repos[REPO].refs["main"]
    assert not sync(registry)[0].settled
    assert ann.repos[REPO].refs["main"] == head
    assert len(registry.versions()) == 3


def test_a_version_whose_tag_a_killed_push_left_out_is_found_in_the_history(ann, registry, add, elsewhere, no_wait):
    add(0)
    push(registry, "finance-tone")
    pull(elsewhere, REPO)
    for seed in (1, 2):
        add(seed)
        ann.fail("POST", "/tag/", status=500, times=4)
        with pytest.raises(RemoteError, match="500"):
            push(registry, f"finance-tone@{seed + 1}")
    assert set(ann.repos[REPO].tags) == {"v1"}
    (synced,) = sync(elsewhere)
    assert (synced.settled, [pulled.number for pulled in synced.pulled]) == (True, [2, 3])
    assert [version.digest for version in elsewhere.versions()] == [version.digest for version in registry.versions()]


def test_a_version_that_was_never_pushed_is_no_news(ann, registry, add):
    for seed in (0, 1, 2):
        add(seed)
    push(registry, "finance-tone@3")
    assert status(registry)[0].relation == "same"
    assert push(registry, "finance-tone@1").number == 4  # a remote's numbers only go up
    assert status(registry)[0].relation == "same"


def test_an_alias_that_means_another_version_there(ann, registry, add):
    add(0)
    registry.alias("finance-tone", "prod", 1)
    push(registry, "finance-tone")
    add(1)
    push(registry, "finance-tone")
    registry.alias("finance-tone", "prod", 2)
    registry.alias("finance-tone", "next", 2)
    differences = [(one.alias, one.here, one.there) for one in status(registry)[0].aliases]
    assert differences == [("next", 2, None), ("prod", 2, 1)]
    push(registry, "finance-tone")
    assert status(registry)[0].aliases == ()


def test_a_repository_that_was_deleted(ann, registry, add, capsys):
    add()
    push(registry, "finance-tone")
    del ann.repos[REPO]
    assert status(registry)[0].relation == "missing"
    assert sync(registry)[0].settled is False
    where = f"--registry {registry.path}"
    assert main(["sync", *where.split()]) == 1
    hint = f"isn't there any more; `lorary push finance-tone ann/finance-tone {where}` makes it anew"
    assert hint in capsys.readouterr().out
    assert push(registry, "finance-tone").created


def test_a_foreign_adapter_that_changes(ann, registry, tmp_path):
    ann.commit_folder("bob/tone", make_checkpoint(tmp_path / "one", seed=5, manifest=False))
    pull(registry, "bob/tone", domain="legal")
    assert status(registry)[0].relation == "same"
    ann.commit_folder("bob/tone", make_checkpoint(tmp_path / "two", seed=6, manifest=False))
    (one,) = status(registry)
    assert (one.relation, one.behind) == ("behind", (0,))
    (done,) = sync(registry)
    assert [pulled.version.reference for pulled in done.pulled] == ["tone@2"]
    assert status(registry)[0].relation == "same"


def test_a_hub_out_of_reach(ann, registry, add):
    add()
    push(registry, "finance-tone")
    ann.stop()
    (one,) = status(registry)
    assert (one.relation, "can't be reached" in one.problem) == ("unknown", True)
    assert sync(registry)[0].problem == one.problem


def test_a_hub_that_never_answers(registry, add, monkeypatch, hub):
    import socket

    from huggingface_hub import constants

    from lorary.hub.remote import calls

    add()
    real = calls.within
    monkeypatch.setattr(calls, "within", lambda seconds, call: real(seconds / 300, call))
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(RemoteError, match="doesn't answer"):
            push(registry, "finance-tone", REPO)


@pytest.fixture
def filled(ann, registry, tmp_path):
    for seed, (name, domain) in enumerate((("finance-tone", "finance"), ("legal-tone", "legal"), ("tax", "finance"))):
        manifest = make_manifest(domain=domain)
        registry.add(make_checkpoint(tmp_path / name, seed=seed, manifest=manifest), name=name)
        push(registry, name, public=name != "tax")
    ann.commit_folder("ann/plain", make_checkpoint(tmp_path / "plain", seed=8, manifest=False))
    card = b"---\nlibrary_name: peft\nbase_model: org/tiny\n---\n"
    ann.commit("ann/plain", {**ann.files("ann/plain"), "README.md": card})
    ann.commit("ann/model", {"README.md": b"---\nlibrary_name: transformers\n---\n", "model.safetensors": b""})
    return ann


def addresses(owner, **options):
    return [row.address for row in list_remote(owner, **options)[0]]


def test_list_an_owner(filled):
    filled.requests.clear()
    assert addresses("ann") == ["ann/finance-tone", "ann/legal-tone", "ann/plain", "ann/tax"]
    assert addresses("ann", domain="Finance") == ["ann/finance-tone", "ann/tax"]
    assert addresses("ann", task="text-classification") == ["ann/finance-tone", "ann/legal-tone", "ann/tax"]
    assert addresses("ann", base="org/tiny", domain="legal") == ["ann/legal-tone"]
    assert addresses("ann", base="org/other") == []
    assert addresses("bob") == []
    first = list_remote("ann")[0][0]
    assert (first.domain, first.task, first.base, first.private) == (
        "finance", "text-classification", "org/tiny", False,
    )  # fmt: skip
    assert filled.downloaded() == set()
    assert {request.path.partition("?")[0] for request in filled.requests} == {"/api/models"}


def test_list_everybody(filled, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "")
    assert addresses(None) == ["ann/finance-tone", "ann/legal-tone"]


def test_pages(filled):
    filled.page_size = 1
    assert len(addresses("ann")) == len(addresses("ann", limit=None)) == 4
    found, more = list_remote("ann", limit=2)
    assert (len(found), more) == (2, True)


def test_a_list_that_cannot_be_had(filled, no_wait):
    for owner in ("ann/tone", ""):
        with pytest.raises(UsageError, match="isn't a user"):
            list_remote(owner)
    with pytest.raises(UsageError, match="isn't a task"):
        list_remote("ann", task="poetry")
    filled.fail("GET", "/api/models", status=500)
    with pytest.raises(RemoteError, match="500"):
        list_remote("ann")
