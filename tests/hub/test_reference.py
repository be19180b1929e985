from pathlib import Path

import pytest

from lorary.hub.errors import InvalidReferenceError
from lorary.hub.reference import (
    FolderReference,
    HubReference,
    RegistryReference,
    check_name,
    normalise_domain,
    parse_reference,
)


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("finance-tone", RegistryReference("finance-tone")),
        ("finance-tone@3", RegistryReference("finance-tone", number=3)),
        ("finance-tone@prod", RegistryReference("finance-tone", alias="prod")),
        ("user/repo", HubReference("user/repo")),
        ("user/repo@refs-pr-1", HubReference("user/repo", "refs-pr-1")),
        ("hf://user/repo@main", HubReference("user/repo", "main")),
        ("./a/b", FolderReference(Path("a/b"))),
        ("../a", FolderReference(Path("../a"))),
        ("/a@b", FolderReference(Path("/a@b"))),
        (".", FolderReference(Path())),
    ],
)
def test_forms(text, reference):
    assert parse_reference(text) == reference


def test_home_is_expanded():
    assert parse_reference("~/a") == FolderReference(Path("~/a").expanduser())


@pytest.mark.parametrize("text", ["a@3", "a@prod", "a", "user/repo@x", "user/repo"])
def test_str_is_the_way_back(text):
    assert str(parse_reference(text)) == text


@pytest.mark.parametrize(
    "text",
    ["", "@", "a@", "A", "a b", "-a", "a-", "a@b@c", "a@-1", "a@٣", "a@" + "9" * 30, "a" * 97, "a/b/c", "hf://a",
     "user/repo@../../x", "a\n", "a\x1b[31m", "ä", "~no-such-user/a"],
)  # fmt: skip
def test_what_is_none(text):
    with pytest.raises(InvalidReferenceError):
        parse_reference(text)


def test_an_alias_is_not_a_number():
    assert check_name("3") == "3"
    with pytest.raises(InvalidReferenceError, match="not a number alone"):
        check_name("3", "alias")


@pytest.mark.parametrize(
    ("text", "domain"),
    [
        ("Legal Cases", "legal-cases"),
        (" bio_med ", "bio-med"),
        ("Médecine", "m\u00e9decine"),
        ("Me\u0301decine", "m\u00e9decine"),
        ("हिन्दी विधि", "हिन्दी-विधि"),
        ("தமிழ்", "தமிழ்"),
        ("\u2764\ufe0f legal", "legal"),
        ("\u0301", None),
    ],
)
def test_domains_have_one_spelling(text, domain):
    if domain is None:
        with pytest.raises(InvalidReferenceError, match="expected a word"):
            normalise_domain(text)
        return
    assert normalise_domain(text) == normalise_domain(domain) == domain


def test_a_domain_of_nothing():
    with pytest.raises(InvalidReferenceError, match="tag"):
        normalise_domain("--", "tag")


@pytest.mark.parametrize("text", ["./a/b", "../a", "/a@b", "name@3", "name@prod", "user/repo@v1"])
def test_a_reference_reads_back_as_itself(text):
    assert str(parse_reference(text)) == text


@pytest.mark.parametrize("check", [parse_reference, check_name, normalise_domain])
def test_an_error_shows_the_beginning_of_what_is_too_long(check):
    with pytest.raises(InvalidReferenceError) as caught:
        check("x" * 100_000)
    assert len(str(caught.value)) < 400
    assert "(100,000 characters)" in str(caught.value)
