"""The models of the HTTP service: what the registry means at the moment of each request."""

import asyncio
import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import replace

import pytest

from http_service import running
from lorary.adapters import Backbone
from lorary.adapters.server import Service, models
from lorary.hub import Registry
from lorary.hub.errors import BaseMismatchError, UnknownReferenceError, UsageError
from lorary.hub.manifest import Manifest
from tiny import make_adapter

pytestmark = pytest.mark.usefixtures("frozen_imports")
LABELS = ("down", "flat", "up")


@pytest.fixture(scope="module")
def base(bases):
    return bases("bert")


@pytest.fixture
def registry(tmp_path):
    return Registry(tmp_path / "registry.db")


@pytest.fixture
def backbone(base, registry):
    return Backbone.from_pretrained(str(base), registry=registry)


@pytest.fixture
def add(base, backbone, registry, tmp_path):
    """Register the next version of a classifier."""

    def add(name, seed, **fields):
        folder = make_adapter(base, tmp_path / f"{name}-{seed}", task="text-classification", seed=seed, labels=3)
        identity = fields.pop("base", backbone.identity)
        Manifest(task="text-classification", base=identity, labels=LABELS, **fields).write(folder)
        return registry.add(folder, name=name, domain="finance")

    return add


def find(service, model):
    return asyncio.run(service.find(model))


def answer(caller, model):
    return caller.call("/v1/predict", {"model": model, "inputs": "profit rose", "parameters": {"top_k": None}})


def test_a_new_version_answers_the_next_request(backbone, registry, add):
    first = add("tone", 1)
    registry.alias("tone", "prod", 1)
    with running(Service(backbone)) as caller:
        assert answer(caller, "tone")["digests"] == [first.digest]
        second = add("tone", 2)
        assert answer(caller, "tone")["digests"] == [second.digest]
        assert answer(caller, "tone@prod")["digests"] == answer(caller, "tone@1")["digests"] == [first.digest]
        registry.alias("tone", "prod", 2)
        found = answer(caller, "tone@prod")
        assert found["digests"] == [second.digest]
        assert found["predictions"] == [backbone.predict("profit rose", "tone@2", top_k=None)]
        assert answer(caller, "tone@1")["predictions"] != found["predictions"]


def test_a_version_that_was_removed_answers_no_more(backbone, registry, add):
    add("tone", 1)
    add("tone", 2)
    with running(Service(backbone)) as caller:
        answer(caller, "tone@1")
        registry.remove("tone@1")
        told = caller.problem("/v1/predict", {"model": "tone@1", "inputs": "profit"}, code=404)
        assert told == "no model 'tone@1' here; did you mean tone?"
        answer(caller, "tone@2")


def test_the_list(backbone, base, registry, add, bases, tmp_path):
    version = add("tone", 1)
    add("tone", 2)
    registry.alias("tone", "prod", 1)
    other = make_adapter(bases("roberta"), tmp_path / "other", task="text-classification")
    foreign = Backbone.from_pretrained(str(bases("roberta"))).identity
    Manifest(task="text-classification", base=foreign).write(other)
    registry.add(other, name="other", domain="finance")
    with running(Service(backbone)) as caller:
        found = caller.call("/v1/models")
        assert [row["id"] for row in found["data"]] == ["bert", "tone", "tone@prod"]
        assert [row["version"] for row in found["data"]] == [None, "tone@2", "tone@1"]
        row = caller.call("/v1/models/tone@prod")
        assert row == found["data"][2]
        assert (row["object"], row["parent"], row["digest"]) == ("model", "bert", version.digest)
        assert (row["task"], row["domain"]) == ("text-classification", "finance")
        assert str(base.parent) not in str(found)
        assert caller.problem("/v1/models/tune", code=404).startswith("no model 'tune' here")
        told = caller.problem("/v1/predict", {"model": "other", "inputs": "profit"})
        assert told == "other was trained on another base than bert, which is served here"


@pytest.mark.parametrize("offered", [[], ["tone@1", "legal@1"]])
@pytest.mark.parametrize("damage", ["parameters = 'many'", "created_at = 'long ago'"])
def test_a_damaged_row_hides_no_other_model(backbone, registry, add, offered, damage):
    add("legal", 1)
    sound = add("tone", 2)
    with running(Service(backbone, offered)) as caller:
        with closing(sqlite3.connect(registry.path)) as db, db:
            db.execute(f"UPDATE versions SET {damage} WHERE id = 1")
        assert sound.digest in [row["digest"] for row in caller.call("/v1/models")["data"]]
        assert answer(caller, "tone@1")["digests"] == [sound.digest]


def test_an_adapter_of_the_base_s_own_name_is_listed_as_what_it_is_asked_for_by(backbone, registry, add):
    add("bert", 1)
    version = add("bert", 2)
    registry.alias("bert", "prod", 1)
    with running(Service(backbone)) as caller:
        rows = {row["id"]: row["version"] for row in caller.call("/v1/models")["data"]}
        assert rows == {"bert": None, "bert@2": "bert@2", "bert@prod": "bert@1"}
        assert answer(caller, "bert@2")["digests"] == [version.digest]
        found = caller.call("/v1/predict", {"model": "bert", "inputs": "profit rose"})
        assert found["digests"] == [None]
        assert caller.call("/v1/models/bert")["version"] is None


def test_everything_that_is_listed_answers(backbone, registry, add, bases, tmp_path):
    """Also where a name means a version of another base by now, one was trained before the base changed, or the name
    is the base's own."""
    other = Backbone.from_pretrained(str(bases("roberta"))).identity
    add("tone", 1)
    registry.alias("tone", "prod", 1)
    add("tone", 2, base=other)
    add("old", 3, base=replace(other, id=backbone.identity.id))
    add("bert", 4)
    with running(Service(backbone)) as caller:
        listed = [row["id"] for row in caller.call("/v1/models")["data"]]
        assert listed == ["bert", "bert@1", "tone@1", "tone@prod"]
        for model in listed[1:]:
            assert answer(caller, model)["digests"] == [registry.resolve(model).digest]


def test_the_list_is_read_again_only_once_the_catalogue_has_changed(backbone, registry, add, monkeypatch):
    add("tone", 1)
    service, looks, offers = Service(backbone), [], registry.offers
    monkeypatch.setattr(registry, "offers", lambda *base: looks.append(base) or offers(*base))
    first = service.models.listing()
    assert service.models.listing() == first
    with pytest.raises(UnknownReferenceError, match="did you mean tone"):
        find(service, "tune")
    assert len(looks) == 1
    add("new", 2)
    assert [row["id"] for row in service.models.listing()] == ["bert", "new", "tone"]
    assert len(looks) == 2
    service.close()


@pytest.mark.parametrize(
    "model", ["./tone", "/etc", "~", "org/repo", "hf://org/repo", "tone@", "tone@9", "", "a" * 500]
)
def test_no_request_names_a_folder_or_a_repository(backbone, add, model, tmp_path, monkeypatch):
    """What stands in a folder here isn't a model of the service."""
    add("tone", 1)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tone-1").rename(tmp_path / "tone")
    with pytest.raises(UnknownReferenceError, match="no model"):
        find(Service(backbone), model)


def test_only_what_is_offered(backbone, registry, add, base, tmp_path):
    add("tone", 1)
    add("other", 2)
    registry.alias("tone", "prod", 1)
    folder = make_adapter(base, tmp_path / "mine", task="text-classification", seed=7, labels=3)
    with running(Service(backbone, ["tone@prod", str(folder)])) as caller:
        assert [row["id"] for row in caller.call("/v1/models")["data"]] == ["bert", "tone@prod", "mine"]
        answer(caller, "tone@prod")
        assert answer(caller, "mine")["predictions"] == [backbone.predict("profit rose", "mine", top_k=None)]
        for model in ("tone", "tone@1", "other", str(folder)):
            assert caller.call("/v1/predict", {"model": model, "inputs": "profit"}, code=404)
        newer = add("tone", 3)
        registry.alias("tone", "prod", newer.number)
        assert answer(caller, "tone@prod")["digests"] == [newer.digest]


def test_what_cant_be_offered(backbone, add, base, bases, tmp_path):
    add("tone", 1)
    folder = make_adapter(bases("roberta"), tmp_path / "other", task="text-classification")
    Manifest(task="text-classification", base=Backbone.from_pretrained(str(bases("roberta"))).identity).write(folder)
    with pytest.raises(BaseMismatchError):
        Service(backbone, [str(folder)])
    with pytest.raises(UnknownReferenceError):
        Service(backbone, ["tune"])
    with pytest.raises(UsageError, match="two models of the name 'tone'"):
        Service(backbone, ["tone", "tone"])
    add("bert", 2)
    with pytest.raises(UsageError, match="'bert' is the base's own name"):
        Service(backbone, ["bert"])
    Service(backbone, ["bert@1"]).close()


def test_many_who_ask_at_once_load_it_once(backbone, add, monkeypatch):
    add("tone", 1)
    service, loads = Service(backbone), []
    load = backbone.load

    def counted(*given):
        loads.append(given)
        return load(*given)

    monkeypatch.setattr(backbone, "load", counted)
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda _: find(service, "tone"), range(16)))
    assert len(loads) == 1
    assert {one.name for one in found} == {"tone@1"}
    service.close()


def test_a_load_that_fails_is_tried_again(backbone, add, monkeypatch):
    add("tone", 1)
    service = Service(backbone)
    monkeypatch.setattr(backbone, "load", lambda *given: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        find(service, "tone")
    monkeypatch.undo()
    assert find(service, "tone").name == "tone@1"
    service.close()


def test_versions_that_nobody_asked_for_lately_are_forgotten(backbone, add, monkeypatch):
    monkeypatch.setattr(models, "_MOST_LOADED", 2)
    for seed in range(3):
        add("tone", seed + 1)
    with running(Service(backbone)) as caller:
        for model in ("tone@1", "tone@2", "tone@1", "tone@3"):
            answer(caller, model)
        assert sorted(backbone.adapters) == ["tone@1", "tone@3"]
        answer(caller, "tone@2")
        assert sorted(backbone.adapters) == ["tone@2", "tone@3"]


def test_the_catalogue_is_read_again_only_once_it_has_changed(backbone, registry, add, monkeypatch):
    add("tone", 1)
    service, looks = Service(backbone), []
    resolve = registry.resolve
    monkeypatch.setattr(registry, "resolve", lambda model: looks.append(model) or resolve(model))
    for _ in range(3):
        find(service, "tone")
    assert looks.count("tone") == 1
    registry.alias("tone", "prod", 1)
    find(service, "tone")
    assert looks.count("tone") == 2
    service.close()


def test_an_adapter_that_cant_be_loaded_is_the_services_own_fault(backbone, registry, add):
    version = add("tone", 1)
    object_ = registry.path.with_suffix(".store") / "objects"
    weights = version.files["adapter_model.safetensors"].sha256
    (file,) = [path for path in object_.rglob("*") if path.is_file() and weights in str(path).replace("/", "")]
    file.chmod(0o600)
    file.write_bytes(file.read_bytes()[:-8])
    with running(Service(backbone)) as caller:
        told = caller.problem("/v1/predict", {"model": "tone", "inputs": "profit"}, code=500)
        assert "the service's log says more" in told
        assert str(registry.path.parent) not in told


def test_versions_come_and_go_while_many_ask(backbone, registry, add):
    """Each answer is that of the version that it names."""
    digests = {add("tone", seed + 1).reference: seed for seed in range(3)}
    registry.alias("tone", "prod", 1)
    service, stop = Service(backbone), threading.Event()
    expected = dict.fromkeys(digests)
    with running(service) as caller:
        for name in digests:
            expected[name] = answer(caller, name)

        def move():
            number = 1
            while not stop.is_set():
                number = number % 3 + 1
                registry.alias("tone", "prod", number)

        mover = threading.Thread(target=move)
        mover.start()
        try:
            with ThreadPoolExecutor(6) as threads:
                found = list(threads.map(lambda _: answer(caller, "tone@prod"), range(60)))
        finally:
            stop.set()
            mover.join()
    by_digest = {one["digests"][0]: one["predictions"][0] for one in expected.values()}
    assert len(by_digest) == 3
    for one in found:
        scores = {row["label"]: row["score"] for row in one["predictions"][0]}
        alone = {row["label"]: row["score"] for row in by_digest[one["digests"][0]]}
        assert scores == pytest.approx(alone, abs=1e-5)
    assert len({one["digests"][0] for one in found}) > 1


def test_one_that_can_be_asked_for_can_be_shown(backbone, registry, add):
    """Also a version that isn't its name's latest, by its number."""
    first = add("tone", 1)
    second = add("tone", 2)
    with running(Service(backbone)) as caller:
        assert caller.call("/v1/models/tone@1")["digest"] == first.digest
        assert caller.call("/v1/models/tone%402")["digest"] == second.digest
        assert caller.call("/v1/models/bert")["parent"] is None
        assert "did you mean tone" in caller.problem("/v1/models/tone@3", code=404)
        assert "no model" in caller.problem("/v1/models/", code=404)
        assert backbone.adapters == []


def test_slow_loads_keep_nobody_else_waiting(backbone, add, monkeypatch):
    add("tone", 1)
    slow = [add(f"slow-{place}", place + 2).reference for place in range(6)]
    go, load = threading.Event(), backbone.load

    def slowly(reference, name):
        assert reference not in slow or go.wait(60)
        return load(reference, name)

    with running(Service(backbone)) as caller, ThreadPoolExecutor(48) as threads:
        answer(caller, "tone")
        monkeypatch.setattr(backbone, "load", slowly)
        begun = threading.Barrier(49)

        def ask(model):
            begun.wait()
            return answer(caller, model)

        waiting = [threads.submit(ask, model) for model in slow * 8]
        try:
            begun.wait()
            for _ in range(3):  # so that those who wait have come
                answer(caller, "tone")
                caller.call("/v1/models")
                caller.call("/metrics")
        finally:
            go.set()
        assert len({one.result()["digests"][0] for one in waiting}) == 6


def test_a_catalogue_that_somebody_holds_keeps_known_models_answering(backbone, registry, add):
    for place in range(3):
        add("tone", place + 1)
    with running(Service(backbone)) as caller, ThreadPoolExecutor(24) as threads:
        answer(caller, "tone@1")
        with closing(sqlite3.connect(registry.path, isolation_level=None)) as holder:
            holder.execute("BEGIN EXCLUSIVE")
            waiting = [threads.submit(answer, caller, f"tone@{2 + place % 2}") for place in range(24)]
            try:
                for _ in range(3):
                    answer(caller, "tone@1")
                    caller.call("/metrics")
                assert not any(one.done() for one in waiting)
            finally:
                holder.execute("ROLLBACK")
        assert len({one.result()["digests"][0] for one in waiting}) == 2


def test_a_version_that_is_replaced_while_it_loads(backbone, registry, add, monkeypatch):
    """What answers is what the catalogue has by then, under its own digest."""
    add("tone", 1)
    load, replaced = backbone.load, []

    def replace(reference, name):
        loaded = load(reference, name)
        if not replaced:
            registry.remove("tone@1")
            replaced.append(add("tone", 2))
        return loaded

    monkeypatch.setattr(backbone, "load", replace)
    service = Service(backbone)
    assert find(service, "tone").digest == replaced[0].digest
    service.close()


def test_a_version_that_is_forgotten_while_it_is_asked_for_anew(backbone, add, monkeypatch):
    monkeypatch.setattr(models, "_MOST_LOADED", 1)
    for seed in range(2):
        add("tone", seed + 1)
    service, unload, asking = Service(backbone), backbone.unload, []

    def slowly(name):
        if not asking:
            asking.append(threads.submit(find, service, name))
            wait(asking, 0.2)
        unload(name)

    monkeypatch.setattr(backbone, "unload", slowly)
    with ThreadPoolExecutor(1) as threads:
        for model in ("tone@1", "tone@2"):
            find(service, model)
    assert asking[0].result().name in backbone.adapters
    service.close()


def test_a_name_of_megabytes_is_unknown_at_once(backbone, add):
    add("tone", 1)
    service, begun = Service(backbone), time.process_time()
    with pytest.raises(UnknownReferenceError, match="no model 'tonea"):
        find(service, "tone" + "a" * 12_000_000)
    assert time.process_time() - begun < 0.5
    service.close()
