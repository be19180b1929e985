"""Finding: conditions, orders, full text, and the best version for a base."""

import shutil
import sqlite3

import pytest

from checkpoints import BASE_FINGERPRINT, make_checkpoint, make_manifest
from lorary.hub import Registry
from lorary.hub.errors import InvalidReferenceError, UnknownReferenceError, UsageError
from lorary.hub.finding import choice, query
from lorary.hub.finding.search import Filter
from lorary.hub.manifest import BaseIdentity, Numerics

OTHER = BaseIdentity("org/TinyLlama-1.1B", fingerprint="0" * 64)


@pytest.fixture(params=["few", "many"])
def planned(request, monkeypatch):
    """Both ways in which a query is carried out: sorting what fits, and following the order's index."""
    if request.param == "many":
        monkeypatch.setattr(query, "_FEW", -1)


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory):
    """The folder of a registry that every test has a copy of."""
    folder = tmp_path_factory.mktemp("catalogue")
    registry = Registry(folder / "registry.db")

    def add(seed, manifest=True, **options):
        registry.add(make_checkpoint(folder / f"checkpoints/{seed}", seed=seed, manifest=manifest), **options)

    add(0, name="tone", tags=["news"], metrics={"test": {"f1": 0.7, "loss": 0.9}}, strategy="direct")
    add(1, name="tone", parents=["tone@1"], strategy="fine-tune", metrics={"test": {"f1": 0.9, "loss": 0.4}})
    add(2, name="tone", parents=["tone@2"], strategy="fine-tune", metrics={"untrained": {"f1": 0.99}})
    legal = make_manifest(domain="legal", task="token-classification", labels=("Société", "Gericht"))
    add(3, name="legal-ner", manifest=legal, tags=["News"], metrics={"test": {"f1": 0.8}})
    add(4, name="llama-tone", manifest=make_manifest(base=OTHER, numerics=Numerics("nf4")))
    registry.alias("tone", "prod", 2)
    return folder


@pytest.fixture
def filled(catalogue, registry):
    shutil.copytree(catalogue, registry.path.parent, dirs_exist_ok=True)
    return registry


def references(registry, **conditions):
    return [version.reference for version in registry.find(**conditions)]


@pytest.mark.usefixtures("planned")
@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        ({}, ["legal-ner@1", "llama-tone@1", "tone@1", "tone@2", "tone@3"]),
        ({"domain": "Legal"}, ["legal-ner@1"]),
        ({"task": "text-classification", "tag": "news"}, ["tone@1"]),
        ({"strategy": "Fine-Tune"}, ["tone@2", "tone@3"]),
        ({"alias": "prod"}, ["tone@2"]),
        ({"alias": "candidate"}, []),
        ({"method": "qlora"}, ["llama-tone@1"]),
        ({"base": "org/TinyLlama-1.1B"}, ["llama-tone@1"]),
        ({"base": OTHER.fingerprint}, ["llama-tone@1"]),
        ({"base": "org/tiny", "domain": "legal"}, ["legal-ner@1"]),
        ({"where": ["f1>=0.8"]}, ["legal-ner@1", "tone@2"]),
        ({"where": [" f1 > 0.8", "loss<.5"]}, ["tone@2"]),
        ({"where": ["f1=0.7"]}, ["tone@1"]),
        ({"where": ["f1!=0.7"], "domain": "finance"}, ["tone@2"]),
        ({"where": ["version>=2", "rank==2"]}, ["tone@2", "tone@3"]),
        ({"ancestor": "tone@1"}, ["tone@2", "tone@3"]),
        ({"ancestor": "tone"}, []),
        ({"ancestor": "tone@prod", "strategy": "fine-tune"}, ["tone@3"]),
        ({"sort": "f1"}, ["tone@2", "legal-ner@1", "tone@1", "llama-tone@1", "tone@3"]),
        ({"sort": "loss"}, ["tone@2", "tone@1", "legal-ner@1", "llama-tone@1", "tone@3"]),
        ({"sort": "loss", "limit": 1}, ["tone@2"]),
        ({"sort": "f1", "domain": "finance", "limit": 2}, ["tone@2", "tone@1"]),
        ({"sort": "f1", "domain": "finance", "task": "text-classification", "limit": 1}, ["tone@2"]),
        ({"sort": "created"}, ["llama-tone@1", "legal-ner@1", "tone@3", "tone@2", "tone@1"]),
        ({"sort": "created", "reverse": True, "limit": 2}, ["tone@1", "tone@2"]),
        ({"sort": "domain", "limit": 2}, ["llama-tone@1", "tone@1"]),
        ({"sort": "method", "limit": 4}, ["tone@1", "tone@2", "tone@3", "legal-ner@1"]),
        ({"reverse": True, "limit": 2}, ["tone@3", "tone@2"]),
    ],
)
def test_conditions_and_orders(filled, conditions, expected):
    for limit in {conditions.get("limit"), 4} if "limit" in conditions else {None, 4, 100}:
        found = references(filled, **{**conditions, "limit": limit})
        assert found[: len(expected)] == expected[:limit]


@pytest.mark.usefixtures("planned")
def test_the_worst_first_leaves_what_has_no_value_last(filled):
    worst = references(filled, sort="f1", reverse=True, limit=4)
    assert worst[:3] == ["tone@1", "legal-ner@1", "tone@2"]


@pytest.mark.usefixtures("planned")
def test_the_total_is_told_without_the_limit(filled):
    found = filled.search(Filter(domain="finance", base="org/tiny"), limit=2)
    assert ([version.reference for version in found], found.total) == (["tone@1", "tone@2"], 3)


def test_a_search_locks_nothing_while_one_goes_through_it(filled, monkeypatch):
    monkeypatch.setattr(query, "_AT_ONCE", 2)
    found = filled.search(Filter(), sort="name", limit=4)
    assert (len(found), found.total, found.metrics()) == (4, 5, {"f1", "loss"})
    through = iter(found)
    assert [next(through).reference, next(through).reference] == ["legal-ner@1", "llama-tone@1"]
    filled.remove("tone@1", force=True)  # and nobody waits
    assert [version.reference for version in through] == ["tone@2"]


@pytest.mark.usefixtures("planned")
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tone", ["llama-tone@1", "tone@1", "tone@2", "tone@3"]),
        ("TON", ["llama-tone@1", "tone@1", "tone@2", "tone@3"]),
        ("llama-ton", ["llama-tone@1"]),
        ("societe", ["legal-ner@1"]),
        ("GERICHT token", ["legal-ner@1"]),
        ("gericht finance", []),
        ("prod", ["tone@2"]),
        ("news", ["legal-ner@1", "tone@1"]),
        ("fine-tune", ["tone@2", "tone@3"]),
        ("lama", ["llama-tone@1"]),  # inside the base's id
        ("tinyl 1.1", ["llama-tone@1"]),
        ("one", []),
        ("", ["legal-ner@1", "llama-tone@1", "tone@1", "tone@2", "tone@3"]),
    ],
)
def test_full_text(filled, text, expected):
    assert references(filled, text=text) == expected
    assert references(filled, text=text, limit=9) == expected


@pytest.mark.parametrize(
    "text",
    ["%", '"', "'", "tone OR legal", "NOT tone", "NEAR(a b)", "name:tone", "tone*", "^tone", "(", "a AND", "-", '""',
     "{name}: x", "\0", "tone\0legal", "\udcff", "🦙", "a" * 10_000, "x'; DROP TABLE search", "+ +", "_"],
)  # fmt: skip
def test_no_text_is_syntax(filled, text):
    found = references(filled, text=text)
    assert found in ([], [reference for reference in references(filled) if "tone" in reference])


def test_too_many_words(filled):
    with pytest.raises(UsageError, match="33 words"):
        filled.find(text="a " * 33)


def test_the_index_follows_every_change(filled):
    filled.tag("tone@3", "Rare Word")
    assert references(filled, text="rare") == references(filled, text="rare-word") == ["tone@3"]
    filled.untag("tone@3", "Rare Word")
    assert references(filled, text="rare") == []
    filled.alias("tone", "prod", 3)
    assert references(filled, text="prod") == references(filled, alias="prod") == ["tone@3"]
    filled.unalias("tone", "prod")
    assert references(filled, text="prod") == []
    filled.remove("legal-ner@1")
    assert references(filled, text="gericht") == []
    filled.remove("tone@2", force=True)
    assert references(filled, text="fine") == ["tone@3"]
    db = sqlite3.connect(filled.path)
    assert (
        db.execute("SELECT count(*) FROM search").fetchone() == db.execute("SELECT count(*) FROM versions").fetchone()
    )
    db.execute("INSERT INTO search (search) VALUES ('integrity-check')")
    db.close()


def test_what_another_program_changes_is_found(filled):
    db = sqlite3.connect(filled.path)
    db.execute("PRAGMA foreign_keys = ON")
    db.execute("INSERT INTO tags SELECT id, 'foreign' FROM versions WHERE number = 3")
    db.execute("UPDATE adapters SET domain = 'poetry' WHERE name = 'tone'")
    db.execute("DELETE FROM aliases")
    db.execute("DELETE FROM versions WHERE digest = ?", [filled.resolve("legal-ner").digest])
    db.commit()
    db.close()
    assert references(filled, text="foreign") == ["tone@3"]
    assert references(filled, text="poetry") == ["tone@1", "tone@2", "tone@3"]
    assert references(filled, text="gericht") == []
    assert filled.best(metric="f1", domain="poetry", task="text-classification").reference == "tone@2"


@pytest.mark.parametrize(
    ("conditions", "error", "message"),
    [
        ({"where": ["f1"]}, UsageError, "isn't a comparison"),
        ({"where": ["f1>=high"]}, UsageError, "isn't a comparison"),
        ({"where": ["f1>=nan"]}, UsageError, "isn't a comparison"),
        ({"where": ["f1=>1"]}, UsageError, "isn't a comparison"),
        ({"where": ["f1>=0; DROP TABLE tags"]}, UsageError, "isn't a comparison"),
        ({"where": ["f11>=1"]}, UnknownReferenceError, "did you mean f1"),
        ({"where": ["bleu>=1"]}, UnknownReferenceError, "there are f1, loss"),
        ({"sort": "bleu"}, UsageError, "there are f1, loss; the columns are name, "),
        ({"sort": "name; DROP TABLE tags"}, UsageError, "the columns are"),
        ({"task": "sorting"}, UsageError, "isn't a task"),
        ({"method": ""}, UsageError, "method '': expected a word such as 'lora'"),
        ({"strategy": " "}, UsageError, "strategy ' ': expected a word such as 'fine-tune'"),
        ({"alias": "A B"}, InvalidReferenceError, "can't be an alias"),
        ({"ancestor": "nobody@1"}, UnknownReferenceError, "no adapter named"),
        ({"limit": 0}, UsageError, "at least 1"),
    ],
)
def test_wrong_conditions(filled, conditions, error, message):
    with pytest.raises(error, match=message):
        filled.find(**conditions)
    assert len(filled.find()) == 5


def test_without_a_metric_the_most_telling_one_of_the_one_task_decides(filled):
    choice = filled.choose(Filter(task="text-classification"))
    assert (choice.version.reference, choice.metric) == ("tone@2", "f1")
    assert filled.best(domain="legal").reference == "legal-ner@1"
    with pytest.raises(UsageError, match=r"found text-classification, token-classification.*give --task"):
        filled.best()
    with pytest.raises(UnknownReferenceError, match="none of 1 fitting versions has metrics"):
        filled.choose(Filter(base="org/TinyLlama-1.1B"))
    with pytest.raises(UnknownReferenceError, match="no version fits"):
        filled.best(domain="poetry")


@pytest.mark.usefixtures("planned")
def test_all_that_fits_is_looked_at_for_its_task_and_metric(filled, monkeypatch):
    monkeypatch.setattr(choice, "_LOOKED_AT", 1)
    with pytest.raises(UsageError, match="found text-classification, token-classification"):
        filled.best(base="org/tiny")
    with pytest.raises(UsageError, match="found text-classification, token-classification"):
        filled.choose(Filter(method="lora", tag="news"))
    # The first by name that fit have no metric, or another one.
    assert filled.choose(Filter(domain="finance")).metric == "f1"
    assert filled.choose(Filter(domain="finance", where=("loss<1",), tag="news")).version.reference == "tone@1"


def test_where_no_registry_is_there_is_nothing(registry):
    assert registry.find(text="a", where=["f1>=1"], sort="f1") == []
    with pytest.raises(UnknownReferenceError, match="no registry"):
        registry.best(metric="f1")
    assert not registry.path.exists()


def test_a_metric_is_not_asked_of_a_registry_without_any(add, registry):
    add()
    assert registry.find(where=["f1>=1"]) == []
    assert references(registry, sort="created") == ["finance-tone@1"]


@pytest.mark.usefixtures("planned")
class TestBest:
    @pytest.fixture
    def registry(self, registry, add):
        add(0, name="a", metrics={"test": {"f1": 0.7, "loss": 0.2}})
        add(1, name="b", metrics={"test": {"f1": 0.6, "loss": 0.1}}, manifest=make_manifest(
            base=BaseIdentity("mirror/tiny", fingerprint=BASE_FINGERPRINT)
        ))  # fmt: skip
        add(
            2,
            name="foreign",
            manifest=False,
            metrics={"test": {"f1": 0.9}},
            domain="finance",
            task="text-classification",
        )
        add(3, name="other", manifest=make_manifest(base=OTHER), metrics={"test": {"f1": 0.99}})
        return registry

    def test_only_the_fingerprint_makes_compatible(self, registry):
        for base in ("org/tiny", "mirror/tiny", BASE_FINGERPRINT):
            assert registry.best(metric="f1", base=base).reference == "a@1"
            assert registry.best(metric="loss", base=base, domain="finance").reference == "b@1"
        assert registry.best(metric="f1").reference == "other@1"

    def test_a_better_one_of_an_unknown_base_is_told(self, registry):
        choice = registry.choose(Filter(base="org/tiny"), metric="f1")
        assert (choice.version.reference, choice.value, choice.among, choice.compatible) == ("a@1", 0.7, 2, True)
        (note,) = choice.notes
        assert note.startswith("foreign@1 has f1 0.9, but doesn't carry its base's fingerprint")
        assert registry.choose(Filter(base="mirror/tiny"), metric="f1").notes == ()

    def test_an_unknown_base_is_taken_where_nothing_else_fits(self, registry):
        choice = registry.choose(Filter(base="org/tiny", text="foreign"), metric="f1")
        assert (choice.version.reference, choice.compatible) == ("foreign@1", None)
        assert "base unverified: foreign@1" in choice.notes[0]

    def test_an_id_of_two_bases(self, registry, add):
        add(5, name="later", manifest=make_manifest(base=BaseIdentity("org/tiny", fingerprint="1" * 64)))
        notes = registry.choose(Filter(base="org/tiny"), metric="loss").notes
        assert "stands for 2 different bases" in notes[0]

    def test_what_there_is_instead(self, registry):
        with pytest.raises(
            UnknownReferenceError, match="no version fits org/unknown; on other bases there are 4, such as"
        ):
            registry.best(metric="f1", base="org/unknown")
        with pytest.raises(UnknownReferenceError, match="none of 1 fitting versions has it; they have f1"):
            registry.best(metric="loss", base=OTHER.id)
        with pytest.raises(UnknownReferenceError, match="no version fits"):
            registry.best(metric="loss", domain="poetry")


def test_references_are_looked_up_among_many_versions(add, registry):
    for seed in range(10):
        add(seed, name="many")
    add(11, name="finance-tone")
    assert registry.resolve("many").number == 10
    with pytest.raises(UnknownReferenceError, match="it has versions 10 from 1 to 10, aliases none"):
        registry.resolve("many@11")
    with pytest.raises(UnknownReferenceError, match="did you mean finance-tone"):
        registry.resolve("finance-tune")
    with pytest.raises(UnknownReferenceError, match="did you mean many"):
        registry.resolve("meny")


def test_verify_sees_an_index_that_is_wrong_and_says_how_to_mend_it(filled):
    assert filled.verify() == []
    db = sqlite3.connect(filled.path, isolation_level=None)
    db.execute("DELETE FROM search WHERE rowid = 1")
    db.execute("INSERT INTO search (rowid, name) VALUES (99, 'ghost')")
    db.execute("UPDATE metrics SET domain = 'elsewhere' WHERE rowid = 1")
    db.execute("UPDATE metrics SET task = 'sorting' WHERE rowid = 2")
    index, misplaced = filled.verify()
    assert "wrong for 2 version(s)" in index.message
    assert "2 metric(s) have another domain or task" in misplaced.message
    db.execute(index.message.split("`")[1])
    db.execute("UPDATE adapters SET domain = domain")
    db.close()
    assert references(filled, text="ghost") == []
    assert "tone@1" in references(filled, text="tone")
    assert filled.verify() == []


def test_how_many_versions_name_each_base(filled, registry, tmp_path):
    named = {version.base_id for version in filled.versions()}
    assert filled.count_by_base() == {base: sum(v.base_id == base for v in filled.versions()) for base in named}
    assert sum(filled.count_by_base().values()) == 5
    assert Registry(tmp_path / "none.db").count_by_base() == {}


def test_what_a_base_is_offered(filled, tmp_path):
    """Each name with its latest version and each alias; a name that means a version of another base by its number."""
    fitting = {offer.model: offer for offer in filled.offers("org/TinyLlama-1.1B", BASE_FINGERPRINT)}
    assert list(fitting) == ["legal-ner", "tone", "tone@prod"]
    assert {model: offer.reference for model, offer in fitting.items()} == {
        "legal-ner": "legal-ner@1", "tone": "tone@3", "tone@prod": "tone@2",
    }  # fmt: skip
    for offer in fitting.values():
        version = filled.resolve(offer.model)
        for name in ("reference", "digest", "domain", "task", "created_at"):
            assert getattr(offer, name) == getattr(version, name)
    filled.add(make_checkpoint(tmp_path / "moved", seed=9, manifest=make_manifest(base=OTHER)), name="tone")
    assert [offer.model for offer in filled.offers("any", BASE_FINGERPRINT)] == ["legal-ner", "tone@3", "tone@prod"]
    assert [offer.model for offer in filled.offers("any", OTHER.fingerprint)] == ["llama-tone", "tone"]


def test_what_is_offered_without_a_fingerprint(registry, tmp_path):
    """What carries none is known by its base's id, and a base without one is offered what its id stands for."""
    bases = {"unknown": ("org/a", None), "known": ("org/a", "1" * 64), "renamed": ("org/b", "1" * 64)}
    for seed, (name, (base, fingerprint)) in enumerate(bases.items()):
        manifest = make_manifest(base=BaseIdentity(base, fingerprint=fingerprint))
        registry.add(make_checkpoint(tmp_path / name, seed=seed, manifest=manifest), name=name)
    assert [offer.model for offer in registry.offers("org/a", "1" * 64)] == ["known", "renamed", "unknown"]
    assert [offer.model for offer in registry.offers("org/a", "2" * 64)] == ["unknown"]
    assert [offer.model for offer in registry.offers("org/a", None)] == ["known", "renamed", "unknown"]
    assert [offer.model for offer in registry.offers("org/b", None)] == ["known", "renamed"]
    assert registry.offers("org/c", None) == Registry(tmp_path / "none.db").offers("org/a", None) == []
