"""What a promotion tells of two versions that it compares: other tasks, other bases, other rows."""

import pytest

from checkpoints import make_manifest
from lorary.hub.errors import PromotionRefusedError
from lorary.hub.manifest import BaseIdentity

METRICS = {"test": {"f1": 0.5}}
KNOWN = BaseIdentity("org/tiny", fingerprint="f" * 64)


def rows(sha256):
    """A manifest's provenance, as a training run writes it."""
    return {"data": {"test": {"sha256": sha256}}}


def notes(add, registry, *manifests):
    for seed, manifest in enumerate(manifests):
        add(seed=seed, metrics=METRICS, manifest=manifest, domain="finance", task="text-classification")
    return registry.promote("finance-tone@2", "prod", require=["f1>=finance-tone@1"]).notes


def test_other_tasks_are_refused_and_other_bases_and_rows_told(add, registry):
    base = BaseIdentity("org/other", fingerprint="f" * 64)
    add(seed=1, metrics=METRICS, manifest=make_manifest(provenance=rows("a")))
    add(seed=2, metrics=METRICS, manifest=make_manifest(provenance=rows("b"), base=base))
    tagger = make_manifest(task="token-classification")
    add(seed=3, name="tagger", metrics=METRICS, manifest=tagger)
    with pytest.raises(PromotionRefusedError) as error:
        registry.promote("finance-tone@2", "prod", require=["f1>=tagger@1"])
    assert error.value.problems == (
        "f1>=tagger@1: tagger@1 is for token-classification, finance-tone@2 for text-classification: their metrics "
        "can't be compared",
    )
    notes = registry.promote("finance-tone@2", "prod", require=["f1>=finance-tone@1", "f1>finance-tone@1-0.1"]).notes
    assert notes == (  # each once, though two requirements ask for that version
        "finance-tone@1 was trained on another base (org/tiny, not org/other); the comparison may not be fair",
        "finance-tone@1 was measured on other held-out rows; the comparison may not be fair",
    )


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(
    ("one", "other"),
    [
        (make_manifest(base=KNOWN), make_manifest(base=BaseIdentity("mirror/tiny", fingerprint="f" * 64))),
        (make_manifest(base=KNOWN), make_manifest(base=BaseIdentity("org/tiny"))),
        (make_manifest(base=KNOWN), False),  # a foreign checkpoint, which names org/tiny
        (make_manifest(provenance=rows("a")), make_manifest(provenance=rows("a"))),
        (make_manifest(provenance=rows("a")), make_manifest()),
        # What anybody may have written.
        (make_manifest(provenance=rows(1)), make_manifest(provenance=rows(2))),
        (make_manifest(provenance=rows("a")), make_manifest(provenance={"data": ["test"]})),
    ],
)
def test_what_is_alike_or_not_known_to_differ_is_not_told(add, registry, one, other, turned):
    assert notes(add, registry, *((other, one) if turned else (one, other))) == ()


@pytest.mark.parametrize("base", [BaseIdentity("org/other"), BaseIdentity("org/other", fingerprint="f" * 64)])
def test_bases_of_which_one_has_no_fingerprint_are_told_apart_by_their_names(add, registry, base):
    found = notes(add, registry, make_manifest(base=BaseIdentity("org/tiny")), make_manifest(base=base))
    assert found == (
        "finance-tone@1 was trained on another base (org/tiny, not org/other); the comparison may not be fair",
    )
