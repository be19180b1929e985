import dataclasses
import re

import pytest

from checkpoints import BASE_FINGERPRINT, make_checkpoint, make_manifest
from lorary.hub import Registry, read_checkpoint
from lorary.hub.errors import (
    CheckpointError,
    InvalidReferenceError,
    RegistryConflictError,
    UnknownReferenceError,
    UsageError,
)
from lorary.hub.manifest import BaseIdentity, Numerics


def objects(registry):
    return sorted(path.name for path in registry.path.with_name("registry.store").glob("objects/*/*"))


def test_a_version_has_what_the_checkpoint_says(add, tmp_path):
    metrics = {"test": {"f1": 0.9, "accuracy": 1}, "untrained": {"f1": 0.1}}
    version = add(metrics=metrics, tags=["News Text", "en", "en"])
    checkpoint = read_checkpoint(tmp_path / "checkpoints/0")
    assert (version.reference, version.digest) == ("finance-tone@1", checkpoint.digest)
    assert (version.domain, version.task, version.strategy) == ("finance", "text-classification", "import")
    assert (version.base_id, version.base_fingerprint) == ("org/tiny", BASE_FINGERPRINT)
    assert (version.method, version.quantization, version.rank, version.parameters) == ("lora", "none", 2, 16)
    assert version.metrics == {"test": {"f1": 0.9, "accuracy": 1.0}, "untrained": {"f1": 0.1}}
    assert version.tags == ("en", "news-text")
    assert version.manifest == make_manifest()
    assert sorted(version.files) == sorted(checkpoint.files)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", version.created_at)


def test_a_version_is_shown_without_its_manifest_and_files(add):
    version = add()
    assert "finance-tone" in repr(version)
    assert "manifest" not in repr(version)
    assert "adapter_config" not in repr(version)


def test_what_add_returns_is_what_resolve_finds(add, registry):
    added = add(metrics={"test": {"f1": 0.5}}, tags=["a"])
    assert registry.resolve("finance-tone") == added


def test_the_copy_is_independent_of_the_source(add, registry, tmp_path):
    version = add()
    (tmp_path / "checkpoints/0/adapter_model.safetensors").write_bytes(b"gone")
    assert registry.checkpoint(version).digest == version.digest
    assert registry.checkpoint("finance-tone").manifest == make_manifest()
    assert registry.verify() == []


def test_a_checkpoint_in_memory_can_be_added(registry, tmp_path):
    checkpoint = read_checkpoint(make_checkpoint(tmp_path / "a"))
    assert registry.add(checkpoint, name="a").digest == checkpoint.digest


def test_the_same_digest_is_the_same_version(add, tmp_path):
    first = add()
    (tmp_path / "checkpoints/0/README.md").write_text("a card, which is no part of the digest")
    assert add() == first
    assert add(name="other").reference == "other@1"


def test_versions_share_the_files_they_have_in_common(add, registry):
    add(0)
    before = objects(registry)
    add(1)
    assert len(objects(registry)) == len(before) + 1  # config and manifest are equal, the weights aren't


@pytest.mark.parametrize(
    ("config", "numerics", "method"),
    [
        ({}, Numerics(), "lora"),
        ({"use_rslora": True}, Numerics(), "rslora"),
        ({"use_dora": True}, Numerics(), "dora"),
        ({}, Numerics("nf4"), "qlora"),
        ({}, Numerics("int8"), "lora"),
        ({"peft_type": "IA3"}, Numerics("nf4"), "ia3"),
    ],
)
def test_methods(add, config, numerics, method):
    version = add(config=config, manifest=make_manifest(numerics=numerics))
    assert (version.method, version.quantization) == (method, numerics.quantization)


def test_a_foreign_checkpoint_needs_what_it_does_not_say(add):
    with pytest.raises(UsageError, match="doesn't say its domain"):
        add(manifest=False)
    with pytest.raises(UsageError, match=r"doesn't say its task.*summarization"):
        add(1, manifest=False, domain="news", config={"task_type": "SEQ_2_SEQ_LM"})
    version = add(2, manifest=False, domain="News Wires", config={"task_type": "SEQ_2_SEQ_LM"}, task="summarization")
    assert (version.domain, version.task, version.manifest) == ("news-wires", "summarization", None)
    assert (version.base_id, version.base_fingerprint) == ("org/tiny", None)


def test_a_foreign_checkpoint_out_of_one_registry_is_for_the_same_task_in_another(add, registry, tmp_path):
    version = add(manifest=False, domain="news", config={"task_type": "SEQ_2_SEQ_LM"}, task="summarization")
    other = Registry(tmp_path / "other.db")
    assert other.add(registry.checkpoint(version), name="it", domain="news").task == "summarization"


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"name": "Bad Name"}, InvalidReferenceError),
        ({"task": "sorting"}, RegistryConflictError),
        ({"domain": "--"}, InvalidReferenceError),
        ({"tags": ["--"]}, InvalidReferenceError),
        ({"tags": "abc"}, UsageError),
        ({"parents": ["nobody@1"]}, UnknownReferenceError),
        ({"parents": ["./folder"]}, InvalidReferenceError),
        ({"metrics": {"f1": 0.9}}, UsageError),
        ({"metrics": {"test": {"f1": float("nan")}}}, UsageError),
        ({"metrics": {"test": {"f1": float("inf")}}}, UsageError),
        ({"metrics": {"test": {"f1": "high"}}}, UsageError),
    ],
)
def test_what_cannot_be_registered_leaves_nothing(add, registry, options, error):
    with pytest.raises(error):
        add(**options)
    assert registry.versions() == []
    assert objects(registry) == []


def test_a_name_stands_for_one_domain_and_task(add):
    add()
    with pytest.raises(RegistryConflictError, match="finance/text-classification"):
        add(1, domain="legal")


def test_a_task_other_than_the_manifests_is_a_conflict(add):
    with pytest.raises(RegistryConflictError, match="was trained for text-classification"):
        add(task="token-classification")


def test_a_source_that_changes_while_it_is_read_is_refused(registry, tmp_path):
    checkpoint = read_checkpoint(make_checkpoint(tmp_path / "a"))
    assert checkpoint.digest  # computed from what is there now
    make_checkpoint(tmp_path / "a", seed=1)
    with pytest.raises(CheckpointError, match="changed while"):
        registry.add(checkpoint, name="a")
    assert registry.versions() == []
    assert objects(registry) == []


def test_changing_what_is_unknown_makes_no_registry(registry):
    for refused in (
        lambda: registry.alias("nobody", "prod", 1),
        lambda: registry.unalias("nobody", "prod"),
        lambda: registry.rollback("nobody", "prod"),
        lambda: registry.promote("nobody", "prod"),
        lambda: registry.alias_history("nobody"),
        lambda: registry.tag("nobody", "news"),
        lambda: registry.untag("nobody", "news"),
        lambda: registry.remove("nobody"),
    ):
        with pytest.raises(UnknownReferenceError, match="there is no registry"):
            refused()
        assert not registry.path.exists()


def test_resolving(add, registry):
    for seed in range(3):
        add(seed)
    registry.alias("finance-tone", "prod", 2)
    numbers = [registry.resolve(f"finance-tone{suffix}").number for suffix in ("", "@1", "@prod")]
    assert numbers == [3, 1, 2]
    assert registry.resolve("finance-tone@2").aliases == ("prod",)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("finance-tune", "did you mean finance-tone"),
        ("zzz", "`lorary list --registry "),
        ("finance-tone@7", "no version 7; it has versions 1, 2, alias prod"),
        ("finance-tone@999999999999999999", "no version 9"),
        ("finance-tone@candidate", "no alias 'candidate'; it has versions 1, 2, alias prod"),
    ],
)
def test_unknown_references_are_told_what_there_is(add, registry, reference, message):
    add(0)
    add(1)
    registry.alias("finance-tone", "prod", 1)
    with pytest.raises(UnknownReferenceError, match=re.escape(message)):
        registry.resolve(reference)


@pytest.mark.parametrize("reference", ["./folder", "user/repo", "hf://user/repo", "A B"])
def test_only_registry_references_resolve(registry, reference):
    with pytest.raises(InvalidReferenceError):
        registry.resolve(reference)


def test_finding(add, registry):
    add(0, name="finance-tone", tags=["news"])
    add(1, name="legal-ner", manifest=make_manifest(domain="legal", task="token-classification", labels=("Court",)))
    mirror = BaseIdentity("mirror/tiny", fingerprint=BASE_FINGERPRINT)
    add(2, name="mirrored", manifest=make_manifest(base=mirror, numerics=Numerics("nf4")))
    add(3, name="elsewhere", manifest=make_manifest(base=BaseIdentity("org/other", fingerprint="0" * 64)))

    def names(**conditions):
        return [version.name for version in registry.find(**conditions)]

    assert names() == ["elsewhere", "finance-tone", "legal-ner", "mirrored"]
    assert names(domain="Legal") == ["legal-ner"]
    assert names(task="token-classification") == ["legal-ner"]
    assert names(domain="legal", task="text-classification") == []
    assert names(tag="News") == ["finance-tone"]
    assert names(method="QLoRA") == ["mirrored"]
    assert names(base="org/tiny") == names(base=BASE_FINGERPRINT) == ["finance-tone", "legal-ner", "mirrored"]
    assert names(base="org/other", domain="finance") == ["elsewhere"]
    assert names(text="COURT legal") == ["legal-ner"]
    assert names(text="court finance") == []
    assert names(text="%") == []
    with pytest.raises(UsageError, match="isn't a task"):
        names(task="sorting")


def test_the_best_version(add, registry):
    add(0, name="a", metrics={"test": {"f1": 0.7, "loss": 0.2}})
    add(1, name="a", metrics={"test": {"f1": 0.9, "loss": 0.4}, "untrained": {"only_there": 1.0}})
    add(2, name="b", metrics={"test": {"f1": 0.8}}, domain="legal")
    add(3, name="c")
    assert registry.best(metric="f1").reference == "a@2"
    assert registry.best(metric="loss").reference == "a@1"
    assert registry.best(metric="f1", domain="legal", task="text-classification").reference == "b@1"
    assert registry.best(metric="f1", base=BASE_FINGERPRINT).reference == "a@2"
    with pytest.raises(UnknownReferenceError, match="they have f1"):
        registry.best(metric="only_there", domain="legal")
    with pytest.raises(UnknownReferenceError, match="no version fits"):
        registry.best(metric="f1", base="org/unknown")


def test_the_newer_one_of_equals_is_best(add, registry):
    for seed in range(2):
        add(seed, metrics={"test": {"f1": 0.5}})
    assert registry.best(metric="f1").number == 2


def test_aliases_move_and_go(add, registry):
    add(0)
    add(1)
    registry.alias("finance-tone", "prod", 1)
    registry.alias("finance-tone", "prod", 2)
    assert [version.aliases for version in registry.versions("finance-tone")] == [(), ("prod",)]
    registry.unalias("finance-tone", "prod")
    with pytest.raises(UnknownReferenceError):
        registry.unalias("finance-tone", "prod")
    with pytest.raises(UnknownReferenceError):
        registry.alias("finance-tone", "prod", 9)
    with pytest.raises(InvalidReferenceError):
        registry.alias("finance-tone", "3", 1)
    assert registry.versions("finance-tone")[1].aliases == ()


def test_tags_come_and_go(add, registry):
    add(tags=["b"])
    registry.tag("finance-tone", "a", "b")
    assert registry.resolve("finance-tone").tags == ("a", "b")
    registry.untag("finance-tone@1", "B", "never-there")
    assert registry.resolve("finance-tone").tags == ("a",)


def test_lineage(add, registry):
    add(0)
    registry.alias("finance-tone", "start", 1)
    child = add(1, parents=["finance-tone@start"], strategy="fine-tune")
    assert (child.parents, child.strategy) == (("finance-tone@1",), "fine-tune")


def test_a_version_is_a_frozen_value(add):
    with pytest.raises(dataclasses.FrozenInstanceError):
        add().number = 5


def test_the_default_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LORARY_REGISTRY", "")
    assert Registry().path == tmp_path / "registry.db"
    monkeypatch.setenv("LORARY_REGISTRY", "other/catalogue.sqlite")
    registry = Registry()
    assert registry.path == tmp_path / "other/catalogue.sqlite"
    assert list(tmp_path.iterdir()) == []
    registry.add(make_checkpoint(tmp_path / "a"), name="a")
    assert sorted(path.name for path in (tmp_path / "other").iterdir()) == [
        "catalogue.sqlite",
        "catalogue.sqlite.store",
    ]


def test_a_link_to_the_database_finds_the_databases_store(add, registry, tmp_path):
    add()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/link.db").symlink_to(registry.path)
    linked = Registry(tmp_path / "elsewhere/link.db")
    assert linked.verify() == []
    assert linked.checkpoint("finance-tone").rank == 2
