import errno
from pathlib import Path

import pytest

from lorary.hub.errors import RegistryConflictError, UnknownReferenceError, UsageError


def objects(registry):
    return sorted(path.name for path in registry.path.with_name("registry.store").glob("objects/*/*"))


def test_removing_deletes_what_nobody_else_has(add, registry):
    add(0)
    kept = objects(registry)
    add(1)
    assert registry.remove("finance-tone@2").number == 2
    assert objects(registry) == kept
    assert registry.verify() == []
    registry.remove("finance-tone")
    assert objects(registry) == []
    assert registry.versions() == []


def test_a_version_is_gone_though_a_file_of_it_can_t_be_deleted(add, registry, monkeypatch):
    add(0)
    kept = objects(registry)

    def refuse(path, *arguments, **options):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "unlink", refuse)
    assert registry.remove("finance-tone@1").number == 1
    assert (registry.versions(), objects(registry)) == ([], kept)
    (note,) = registry.verify()
    assert (note.level, note.message.split(" in ")[0]) == ("note", f"{len(kept)} file(s)")


def test_numbers_are_not_given_out_again(add, registry):
    add(0)
    add(1)
    registry.remove("finance-tone@2")
    assert add(1).number == 3
    for number in (1, 3):
        registry.remove(f"finance-tone@{number}")
    with pytest.raises(UnknownReferenceError):
        registry.resolve("finance-tone")
    moved = add(2, domain="legal")  # a name without versions is free to stand for something else
    assert (moved.number, moved.domain) == (4, "legal")


def test_a_bare_name_with_several_versions_is_not_removed(add, registry):
    add(0)
    add(1)
    add(2, name="other")
    with pytest.raises(UsageError, match=r"has 2 versions; say which, such as finance-tone@2"):
        registry.remove("finance-tone")
    assert registry.remove("other").reference == "other@1"  # it has one, however many others have


def test_what_is_needed_is_kept_unless_forced(add, registry):
    add(0)
    add(1, parents=["finance-tone@1"])
    registry.alias("finance-tone", "prod", 1)
    with pytest.raises(RegistryConflictError, match=r"finance-tone@prod, finance-tone@2"):
        registry.remove("finance-tone@1")
    assert len(registry.versions()) == 2
    registry.remove("finance-tone@1", force=True)
    (child,) = registry.versions()
    assert (child.parents, child.aliases) == (("finance-tone@1",), ())
    assert registry.verify() == []


def test_one_alias_or_one_child_is_enough_to_keep_a_version(add, registry):
    add(0, aliases=["prod"])
    with pytest.raises(RegistryConflictError, match="finance-tone@1 is needed by finance-tone@prod; "):
        registry.remove("finance-tone@1")
    add(1)
    add(2, name="child", parents=["finance-tone@2"])
    with pytest.raises(RegistryConflictError, match="finance-tone@2 is needed by child@1; "):
        registry.remove("finance-tone@2")


@pytest.mark.parametrize(("count", "more"), [(8, ""), (9, " and 1 more")])
def test_what_needs_a_version_is_told_up_to_eight(add, registry, count, more):
    aliases = [f"alias-{number}" for number in range(count)]
    add(0, aliases=aliases)
    told = ", ".join(f"finance-tone@{alias}" for alias in aliases[:8])
    with pytest.raises(RegistryConflictError, match=f"is needed by {told}{more}; move or remove"):
        registry.remove("finance-tone@1")


def test_what_was_trained_from_a_version_is_told_in_order(add, registry):
    add(0)
    for seed, name in ((1, "zeta"), (3, "alpha"), (2, "zeta")):
        add(seed, name=name, parents=["finance-tone@1"])
    with pytest.raises(RegistryConflictError, match="is needed by alpha@1, zeta@1, zeta@2; "):
        registry.remove("finance-tone@1")
