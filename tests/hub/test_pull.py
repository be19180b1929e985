"""Pull from a Hub, through its real client: round trips, adapters of others, and what must not come in."""

import json

import pytest

from checkpoints import header_bytes, make_checkpoint, make_manifest
from hub_server import HubServer
from lorary.hub.checkpoint import KEPT_FILES, read_checkpoint
from lorary.hub.errors import (
    ChangedFilesError,
    CheckpointError,
    LoraryError,
    RegistryConflictError,
    RemoteError,
    UnknownReferenceError,
    UnsafeFileError,
    UsageError,
)
from lorary.hub.remote import list_remote, pull, push
from lorary.hub.tables.links import links

REPO = "ann/finance-tone"


def test_there_and_back(ann, registry, add, elsewhere):
    first = add(0)
    second = add(
        1, metrics={"test": {"f1": 0.9}}, tags=["news"], parents=["finance-tone@1"], strategy="fine-tune"
    )  # fmt: skip
    registry.alias("finance-tone", "prod", 2)
    push(registry, "finance-tone@1")
    pushed = push(registry, "finance-tone@2")
    pulled = pull(elsewhere, REPO)
    version = pulled.version
    assert (version.reference, version.digest, pulled.number, pulled.new) == ("finance-tone@1", second.digest, 2, True)
    assert (version.domain, version.task, version.strategy) == ("finance", "text-classification", "fine-tune")
    assert (version.metrics, version.tags, version.aliases) == ({"test": {"f1": 0.9}}, ("news",), ("prod",))
    assert version.parents == (f"{REPO}@{push(registry, 'finance-tone@1').commit}",)
    assert (pulled.aliases, pulled.kept) == (("prod",), ())
    same = {name: entry for name, entry in second.files.items() if name != "README.md"}
    assert {name: entry for name, entry in version.files.items() if name != "README.md"} == same
    assert elsewhere.verify() == []
    (link,) = links(elsewhere.path)
    assert (link.remote, link.commit) == (REPO, pushed.commit)
    older = pull(elsewhere, f"{REPO}@1").version
    assert (older.reference, older.digest) == ("finance-tone@2", first.digest)
    assert elsewhere.resolve("finance-tone@1").parents == ("finance-tone@2",)
    again = pull(elsewhere, f"hf://{REPO}@prod")
    assert (again.version.reference, again.new) == ("finance-tone@1", False)


def test_a_parent_that_is_here_is_known_by_its_reference_here(ann, registry, add, elsewhere, tmp_path):
    add(0)
    add(1, parents=["finance-tone@1"], strategy="fine-tune")
    push(registry, "finance-tone@1")
    push(registry, "finance-tone@2")
    elsewhere.add(make_checkpoint(tmp_path / "other", seed=5), name="tones")
    pull(elsewhere, f"{REPO}@v1", name="tones")
    child = pull(elsewhere, REPO, name="tones").version
    assert (child.reference, child.parents) == ("tones@3", ("tones@2",))
    with pytest.raises(RegistryConflictError, match="needed by tones@3"):
        elsewhere.remove("tones@2")


def test_a_name_that_is_here_gets_no_alias_from_elsewhere(ann, registry, add, elsewhere, tmp_path):
    add(0)
    registry.alias("finance-tone", "prod", 1)
    push(registry, "finance-tone")
    elsewhere.add(make_checkpoint(tmp_path / "other", seed=5), name="finance-tone")
    pulled = pull(elsewhere, REPO, name="finance-tone")
    assert (pulled.aliases, pulled.kept, pulled.version.aliases) == ((), ("prod",), ())
    elsewhere.alias("finance-tone", "prod", 1)
    assert pull(elsewhere, REPO).kept == ("prod",)
    assert elsewhere.resolve("finance-tone@prod").number == 1
    elsewhere.alias("finance-tone", "prod", 2)
    assert pull(elsewhere, REPO).kept == ()


def test_a_tag_that_leads_elsewhere(ann, registry, add, elsewhere):
    add(0)
    push(registry, "finance-tone")
    add(1)
    commit = push(registry, "finance-tone").commit
    ann.repos[REPO].tags["v1"] = commit
    with pytest.raises(RemoteError, match="the tag v1 leads to version 2 there"):
        pull(elsewhere, f"{REPO}@v1")
    push(registry, "finance-tone@1")
    assert pull(elsewhere, f"{REPO}@v1").number == 1


def test_only_what_is_wanted_is_fetched(ann, registry, add, elsewhere):
    add()
    push(registry, "finance-tone")
    more = {"training_args.bin": b"\x80\x04.", "../evil": b"", "sub/adapter_model.safetensors": b"", "run.py": b"1/0"}
    ann.commit(REPO, {**ann.files(REPO), **more})
    ann.requests.clear()
    pull(elsewhere, REPO)
    assert ann.downloaded() <= {*KEPT_FILES, "lorary-version.json"}


# Adapters of others


def foreign(tmp_path, **config):
    return make_checkpoint(tmp_path / "foreign", seed=9, manifest=False, **config)


def test_an_adapter_made_with_peft_alone(ann, elsewhere, tmp_path):
    commit = ann.commit_folder("bob/My_LoRA", foreign(tmp_path), **{"README.md": b"# Hello"})
    with pytest.raises(UsageError, match=r"doesn't say its domain.*--domain"):
        pull(elsewhere, "bob/My_LoRA")
    assert not elsewhere.path.exists() or elsewhere.versions() == []
    pulled = pull(elsewhere, "bob/My_LoRA", domain="Legal Cases")
    version = pulled.version
    assert (version.reference, version.domain, version.task) == ("my_lora@1", "legal-cases", "text-classification")
    assert (version.base_id, version.strategy, pulled.number, pulled.commit) == ("org/tiny", "import", None, commit)
    assert elsewhere.verify() == []
    assert pull(elsewhere, "bob/My_LoRA", domain="legal-cases").new is False


def test_a_task_that_peft_leaves_open_is_asked_for(ann, elsewhere, tmp_path):
    ann.commit_folder("bob/summer", foreign(tmp_path, task_type="SEQ_2_SEQ_LM"))
    with pytest.raises(UsageError, match="doesn't say its task"):
        pull(elsewhere, "bob/summer", domain="legal")
    assert pull(elsewhere, "bob/summer", domain="legal", task="summarization").version.task == "summarization"


@pytest.mark.parametrize("named", ["../models/llama-7b", "/mnt/nowhere/llama-7b", "C:\\models\\llama-7b", None])
def test_a_base_in_a_folder_of_whoever_made_it(ann, elsewhere, tmp_path, named):
    ann.commit_folder("bob/tone", foreign(tmp_path, base_model_name_or_path=named))
    pulled = pull(elsewhere, "bob/tone", domain="legal")
    assert "--base ORG/NAME" in pulled.note
    with pytest.raises(RegistryConflictError, match=r"`lorary rm tone@1 --registry \S+elsewhere/registry\.db` first"):
        pull(elsewhere, "bob/tone", domain="legal", base="org/tiny")
    elsewhere.remove("tone@1")
    again = pull(elsewhere, "bob/tone", domain="legal", base="org/tiny")
    assert (again.version.base_id, again.version.digest, again.note) == ("org/tiny", pulled.version.digest, None)
    assert (
        json.loads(elsewhere.checkpoint(again.version).files["adapter_config.json"].read_text())[
            "base_model_name_or_path"
        ]
        == "org/tiny"
    )
    assert elsewhere.verify() == []
    assert pull(elsewhere, "bob/tone", domain="legal", base="org/tiny").new is False


def test_what_is_refused_for_its_base_sets_no_alias(ann, registry, add, elsewhere):
    add(0, manifest=False, domain="finance")
    push(registry, "finance-tone@1")
    pull(elsewhere, REPO)
    registry.alias("finance-tone", "prod", 1)
    push(registry, "finance-tone@1")
    with pytest.raises(RegistryConflictError, match=r"`lorary rm finance-tone@1 --registry \S+` first"):
        pull(elsewhere, REPO, base="org/other")
    assert (elsewhere.resolve("finance-tone").aliases, elsewhere.alias_history("finance-tone")) == ((), [])
    assert pull(elsewhere, REPO, base="org/tiny").aliases == ("prod",)


def test_a_base_in_a_folder_here(ann, elsewhere, tmp_path):
    ann.commit_folder("bob/tone", foreign(tmp_path))
    base = tmp_path / "bases" / "tiny-base"
    with pytest.raises(UsageError, match="no such folder"):
        pull(elsewhere, "bob/tone", domain="legal", base=str(base))
    base.mkdir(parents=True)
    with pytest.raises(UsageError, match=r"no config\.json in that folder"):
        pull(elsewhere, "bob/tone", domain="legal", base=str(base))
    (base / "config.json").write_text("{}")
    pulled = pull(elsewhere, "bob/tone", domain="legal", base=str(base))
    assert (pulled.version.base_id, "give --base where it is opened" in pulled.note) == ("tiny-base", True)


def test_what_says_its_base_itself_gets_no_other(ann, registry, add, elsewhere):
    add()
    push(registry, "finance-tone")
    with pytest.raises(UsageError, match="says itself that its base is org/tiny"):
        pull(elsewhere, REPO, base="org/other")


# What must not come in


def refused(registry, source, error, *words, **options):
    with pytest.raises(error) as caught:
        pull(registry, source, domain="legal", **options)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    assert not registry.path.exists() or registry.versions() == []
    return message


def test_pickles_only(ann, elsewhere, tmp_path):
    config = (foreign(tmp_path) / "adapter_config.json").read_bytes()
    ann.commit("bob/old", {"adapter_config.json": config, "adapter_model.bin": b"\x80\x04."})
    refused(elsewhere, "bob/old", UnsafeFileError, "bob/old", "adapter_model.bin", "never loaded")
    assert ann.downloaded() == set()


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"config.json": b"{}", "model.safetensors": b""}, ["no adapter_config.json", "a whole model"]),
        ({"adapter_config.json": b"{}"}, ["no adapter_model.safetensors"]),
        ({}, ["no adapter_config.json"]),
        (
            {f"{name}/adapter_config.json": b"{}" for name in ("b/one", "a")},
            ["no adapter_config.json", "in the folders a, b/one", "hf download", "lorary import"],
        ),
    ],
)
def test_no_adapter_there(ann, elsewhere, files, words):
    ann.commit("bob/none", files)
    refused(elsewhere, "bob/none", CheckpointError, *words)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("adapter_model.safetensors", 10**12),
        ("adapter_config.json", 5 * 10**8),
        ("README.md", 10**9),
        ("tokenizer.json", None),
    ],
)
def test_absurd_sizes_are_seen_before_anything_is_fetched(ann, elsewhere, tmp_path, name, size):
    ann.commit_folder("bob/huge", foreign(tmp_path), **{"tokenizer.json": b"{}", "README.md": b""})
    listed = [{"rfilename": there, "size": size if there == name else 10} for there in ann.files("bob/huge")]
    ann.overrides["bob/huge"] = {"siblings": listed}
    refused(elsewhere, "bob/huge", UnsafeFileError, name, "nothing was fetched")
    assert ann.downloaded() == set()


def test_more_than_the_disk_holds(ann, elsewhere, tmp_path, monkeypatch):
    import shutil

    ann.commit_folder("bob/big", foreign(tmp_path))
    real = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: real(path)._replace(free=10))
    refused(elsewhere, "bob/big", RemoteError, "has room for 10")


def test_weights_whose_header_lies(ann, elsewhere, tmp_path):
    folder = foreign(tmp_path)
    weights = header_bytes({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}) + b"1234"
    ann.commit_folder("bob/lie", folder, **{"adapter_model.safetensors": weights})
    refused(elsewhere, "bob/lie", CheckpointError, "adapter_model.safetensors")


def test_a_config_that_is_none(ann, elsewhere, tmp_path):
    ann.commit_folder("bob/bad", foreign(tmp_path), **{"adapter_config.json": b"[1]"})
    refused(elsewhere, "bob/bad", CheckpointError, "bob/bad/adapter_config.json")


HOSTILE = {
    "not json": b"{",
    "a list": b"[]",
    "a newer format": b'{"format": 99}',
    "no fields": b'{"format": 1}',
    "deep": b'{"format": 1, "metrics": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_description_that_is_none(ann, elsewhere, tmp_path, kind):
    ann.commit_folder("bob/odd", foreign(tmp_path), **{"lorary-version.json": HOSTILE[kind]})
    refused(elsewhere, "bob/odd", CheckpointError, "lorary-version.json")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "../../etc"),
        ("name", "\x1b[31mred"),
        ("domain", "\x1b]0;title\x07"),
        ("task", "rm -rf"),
        ("number", -1),
        ("number", 10**30),
        ("digest", "0" * 63),
        ("metrics", {"test": {"f1": "high"}}),
        ("metrics", {"test": {"f1": 1e999}}),
        ("tags", ["a", 1]),
        ("parents", [{"reference": "\u202egnp.exe"}]),
        ("parents", [{"reference": "a@1", "remote": "finance-tone@1"}]),
        ("files", {"../x": {"sha256": "0" * 64, "size": 1}}),
        ("versions", {"1": "0" * 64}),
    ],
)
def test_a_description_that_lies(ann, registry, add, elsewhere, field, value):
    add()
    push(registry, "finance-tone")
    said = json.loads(ann.files(REPO)["lorary-version.json"])
    ann.commit(REPO, {**ann.files(REPO), "lorary-version.json": json.dumps({**said, field: value}).encode()})
    with pytest.raises(LoraryError) as caught:
        pull(elsewhere, REPO)
    assert "\n" not in str(caught.value)
    assert not elsewhere.path.exists() or elsewhere.versions() == []


def test_markup_in_names_reaches_no_catalogue(ann, registry, add, elsewhere):
    add()
    push(registry, "finance-tone")
    said = json.loads(ann.files(REPO)["lorary-version.json"])
    said["tags"], said["domain"] = ["<script>alert(1)</script>"], "<b>Finance</b>"
    ann.commit(REPO, {**ann.files(REPO), "lorary-version.json": json.dumps(said).encode()})
    version = pull(elsewhere, REPO).version
    assert (version.domain, version.tags) == ("b-finance-b", ("script-alert-1-script",))


def test_aliases_that_are_none_are_left_out(ann, registry, add, elsewhere):
    add()
    commit = push(registry, "finance-tone").commit
    ann.repos[REPO].tags |= {"Release 1": commit, "\x1b[31m": commit, "ok": commit}
    assert pull(elsewhere, REPO).aliases == ("ok",)


def test_a_name_of_ours_is_not_taken_over(ann, registry, add, elsewhere, tmp_path):
    """Whoever pulls somebody's adapter doesn't mean to serve it in place of their own from then on."""
    add(0)
    push(registry, "finance-tone", "ann/harmless")
    ann.commit_folder("ann/finance-tone", foreign(tmp_path))
    mine = elsewhere.add(make_checkpoint(tmp_path / "mine", seed=5), name="finance-tone")
    for source in ("ann/harmless", "ann/finance-tone"):
        with pytest.raises(
            RegistryConflictError, match=f"^{source}: calls itself finance-tone, .*--name finance-tone-2"
        ):
            pull(elsewhere, source, domain="finance")
    assert elsewhere.resolve("finance-tone").digest == mine.digest
    assert pull(elsewhere, "ann/harmless", name="theirs").version.reference == "theirs@1"
    assert pull(elsewhere, "ann/harmless", name="finance-tone").version.reference == "finance-tone@2"
    add(1)
    push(registry, "finance-tone", "ann/harmless")
    assert pull(elsewhere, "ann/harmless").version.reference == "finance-tone@3"  # known from now on


# A Hub that lies, and what others put between


def test_a_repository_that_changes_in_between(ann, elsewhere, tmp_path):
    first = ann.commit_folder("bob/tone", foreign(tmp_path))
    other = make_checkpoint(tmp_path / "later", seed=12, manifest=False)
    ann.fail("GET", r"^/api/models/bob/tone\?", call=lambda: ann.commit_folder("bob/tone", other), times=1)
    pulled = pull(elsewhere, "bob/tone", domain="legal")
    assert ann.repos["bob/tone"].refs["main"] != first == pulled.commit
    assert pulled.version.digest == read_checkpoint(tmp_path / "foreign").digest


@pytest.mark.parametrize("path", ["/api/models/bob/tone", "/tree/", "/adapter_config.json", "^/lfs/"])
def test_redirects_lead_to_no_file_and_carry_no_token(ann, elsewhere, tmp_path, path):
    (tmp_path / "secret").write_text('{"peft_type": "LORA"}')
    ann.commit_folder("bob/tone", foreign(tmp_path))
    with HubServer() as stranger:
        for target in (
            (tmp_path / "secret").as_uri(),
            f"{stranger.url}/x",
            stranger.url.replace("127.0.0.1", "localhost"),
        ):
            ann.fail("HEAD|GET", path, status=302, headers={"Location": target})
            refused(elsewhere, "bob/tone", LoraryError, "bob/tone")
            ann.faults.clear()
        assert {request.token for request in stranger.requests} <= {None}


def test_a_list_that_goes_on_elsewhere_gets_no_token(ann):
    with HubServer() as stranger:
        stranger.users["hf_ann"] = "ann"
        ann.fail("GET", r"^/api/models\?", headers={"Link": f'<{stranger.url}/api/models?cursor=1>; rel="next"'})
        assert list_remote("ann") == ([], False)
        assert [request.token for request in stranger.requests] == [None]


@pytest.mark.parametrize("path", ["^/api/models/bob/tone", "/adapter_config.json"])
def test_a_packed_answer_that_swells(ann, elsewhere, tmp_path, path, no_wait):
    folder = foreign(tmp_path)
    ann.commit_folder("bob/tone", folder)
    ann.fail("GET", path, pack=b" " * 100_000_000)
    before = sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file())
    refused(elsewhere, "bob/tone", LoraryError, "bob/tone" if "api" in path else "bytes came, but")
    left = sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file())
    assert left - before < 30_000_000


@pytest.mark.parametrize(
    "told",
    [{"siblings": 5}, {"sha": 5}, {"siblings": [{"rfilename": "adapter_config.json", "size": "x"}]}, {"sha": "../.."}],
)
def test_a_hub_that_talks_nonsense(ann, elsewhere, tmp_path, told):
    ann.commit_folder("bob/tone", foreign(tmp_path))
    ann.overrides["bob/tone"] = told
    refused(elsewhere, "bob/tone", LoraryError, "bob/tone")


@pytest.mark.parametrize("told", [{"tags": 5}, {"lastModified": "\x1b[31m"}, {"siblings": 5}])
def test_a_list_that_is_nonsense(ann, tmp_path, told):
    ann.commit_folder("bob/tone", foreign(tmp_path), **{"README.md": b"---\nlibrary_name: peft\n---\n"})
    ann.overrides["bob/tone"] = told
    with pytest.raises(RemoteError, match=r"^bob: "):
        list_remote("bob")


# Changed since it was pushed


def test_other_weights_beside_the_description(ann, registry, add, elsewhere, tmp_path):
    add()
    push(registry, "finance-tone")
    other = make_checkpoint(tmp_path / "theirs", seed=8)
    ann.commit(
        REPO, {**ann.files(REPO), "adapter_model.safetensors": (other / "adapter_model.safetensors").read_bytes()}
    )
    refused(elsewhere, REPO, ChangedFilesError, "adapter_model.safetensors isn't the file that was pushed", "--changed")
    assert pull(elsewhere, f"{REPO}@v1").number == 1
    taken = pull(elsewhere, REPO, domain="finance", changed=True)
    assert (taken.number, taken.version.reference) == (None, "finance-tone@2")
    registry.add(make_checkpoint(tmp_path / "next", seed=11), name="finance-tone")
    with pytest.raises(RemoteError, match="holds an adapter, which this registry lacks"):
        push(registry, "finance-tone")


def test_a_tokenizer_slipped_in(ann, registry, add, elsewhere):
    add()
    push(registry, "finance-tone")
    ann.commit(REPO, {**ann.files(REPO), "tokenizer.json": b"{}"})
    refused(elsewhere, REPO, ChangedFilesError, "tokenizer.json wasn't pushed with it")


def test_an_edited_card_is_fine(ann, registry, add, elsewhere):
    add()
    push(registry, "finance-tone")
    ann.commit(REPO, {**ann.files(REPO), "README.md": b"# Better"})
    assert pull(elsewhere, REPO).number == 1


def test_another_domain_under_that_name(ann, registry, add, elsewhere, tmp_path):
    add()
    push(registry, "finance-tone")
    legal = make_checkpoint(tmp_path / "legal", seed=3, manifest=make_manifest(domain="legal"))
    elsewhere.add(legal, name="finance-tone")
    with pytest.raises(RegistryConflictError, match="stands for legal/text-classification"):
        pull(elsewhere, REPO, name="finance-tone")
    assert pull(elsewhere, REPO, name="tone").version.reference == "tone@1"


# On the way


@pytest.mark.parametrize("path", [r"^/lfs/", "/adapter_config.json"])
def test_bytes_that_were_changed_on_the_way(ann, elsewhere, tmp_path, path):
    ann.commit_folder("bob/tone", foreign(tmp_path))
    ann.fail("GET", path, corrupt=True, times=1)
    refused(elsewhere, "bob/tone", ChangedFilesError, "damaged on its way or on the disk; try again")
    assert pull(elsewhere, "bob/tone", domain="legal").version.number == 1


FAULTS = {
    "info": ("GET", r"^/api/models/bob/tone", {"status": 503}, "503"),
    "forbidden": ("GET", r"^/api/models/bob/tone", {"status": 403}, "403"),
    "patience": ("GET", r"^/api/models/bob/tone", {"status": 429}, "429"),
    "far too much patience": ("GET", "/api/", {"status": 429, "headers": {"Retry-After": "9999"}}, "429"),
    "tree": ("GET", r"/tree/", {"status": 500}, "500"),
    "head": ("HEAD", r"adapter_model", {"status": 502}, "502"),
    "body": ("GET", r"^/lfs/", {"status": 500}, "500"),
    "short": ("GET", r"^/lfs/", {"keep": 100}, "Consistency check failed"),
    "broken off": ("GET", r"^/lfs/", {"keep": 0, "broken": True}, "without sending complete message body"),
    "no json": ("GET", r"^/api/models/bob/tone", {"keep": 5}, "bob/tone"),
    "cut": ("GET", r"^/api/models/bob/tone", {"cut": "before"}, "bob/tone"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_failed_pull_leaves_nothing(ann, elsewhere, tmp_path, no_wait, fault):
    ann.commit_folder("bob/tone", foreign(tmp_path))
    method, path, how, word = FAULTS[fault]
    ann.fail(method, path, **how)
    refused(elsewhere, "bob/tone", RemoteError, word)
    ann.faults.clear()
    assert pull(elsewhere, "bob/tone", domain="legal").new


def test_what_is_not_there(ann, elsewhere, tmp_path, monkeypatch):
    from huggingface_hub import constants

    ann.commit_folder("bob/tone", foreign(tmp_path))
    refused(elsewhere, "bob/none", UnknownReferenceError, "no such repository")
    refused(elsewhere, "bob/tone@v9", UnknownReferenceError, "no revision 'v9'")
    refused(elsewhere, "bob/to--ne", UsageError, "can't be a repository")
    for text, word in (("tone", "names no remote"), ("./tone", "file://"), ("bob/tone@", "nothing follows")):
        refused(elsewhere, text, UsageError, word)
    ann.stop()
    refused(elsewhere, "bob/tone", RemoteError, "can't be reached")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refused(elsewhere, "bob/tone", RemoteError, "HF_HUB_OFFLINE is set")
