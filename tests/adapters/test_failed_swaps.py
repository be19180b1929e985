"""A failure at any step of a load leaves what serves bit for bit, and all books, as they were."""

import gc
import shutil

import pytest
import torch

from lorary.adapters import Backbone
from lorary.adapters.backbone import intake
from lorary.adapters.layer.slots import Arena
from lorary.adapters.matching import fitting
from lorary.adapters.tiers import arrivals, placing
from lorary.adapters.tiers.weights import WeightsReader
from lorary.hub.checkpoint import Checkpoint
from lorary.hub.errors import CheckpointError, KeyMismatchError, LoraryError, NoEffectError
from tiny import make_adapter
from variants import WEIGHTS, change, make_variants

ROW = [[7, 8, 9]]


@pytest.fixture(scope="module")
def originals(bases, tmp_path_factory):
    """Three small adapters, and a larger one with a rank that the arena has to grow for."""
    base, folder = bases("bert"), tmp_path_factory.mktemp("originals")
    first = make_adapter(base, folder / "first", task="text-classification", r=2)
    make_adapter(base, folder / "large", task="text-classification", r=16, target_modules="all-linear")
    make_variants(first, ["old", "other", "new"])
    return folder


@pytest.fixture
def folders(originals, tmp_path):
    """Copies of them that a test may spoil."""
    copies = shutil.copytree(originals, tmp_path / "adapters")
    return {name: copies / name for name in ("old", "other", "new", "large")}


@pytest.fixture(params=["free slots", "all taken", "one, pinned"])
def backbone(request, bases, folders):
    slots = {"free slots": 4, "all taken": 2, "one, pinned": 1}[request.param]
    backbone = Backbone.from_pretrained(str(bases("bert")), slots=slots)
    backbone.load(folders["old"], "legal")
    if slots == 1:
        backbone.pin("legal")
    else:
        backbone.load(folders["other"], "other")
    return backbone


def books(backbone):
    """Everything that is kept of adapters, in words."""
    own = backbone._residency._books
    stats = backbone.stats()
    return {
        "names": {name: held.digest for name, held in own.named.items()},
        "pins": set(own.pins),
        "slots": {content.digest: slot for content, slot in own.slot_of.items()},
        "readers": dict(own.readers),
        "claims": dict(backbone._residency._arrivals._claims),
        "tiers": (stats.host_adapters, stats.host_bytes, stats.disk_adapters, stats.parts_bytes),
        "contents": set(own._contents),
    }


def answers(backbone):
    return {name: backbone.logits(ROW, name)[0] for name in (*backbone.adapters, None)}


def unharmed(backbone, swap, error):
    """Run ``swap``, which must raise, and compare everything before and after."""
    served = answers(backbone)
    before = books(backbone)
    with pytest.raises(error):
        swap()
    gc.collect()  # the error's traceback holds what failed
    assert books(backbone) == before
    after = answers(backbone)
    assert all(torch.equal(after[name], served[name]) for name in served)


def drop(tensors):
    del tensors[next(key for key in tensors if "lora_A" in key)]


def misshape(tensors):
    key = next(key for key in tensors if "lora_A" in key)
    tensors[key] = torch.zeros(2, 7)


def zero(tensors):
    for key in tensors:
        if "lora_B" in key:
            tensors[key].zero_()


def poison(tensors):
    tensors[next(key for key in tensors if "lora_B" in key)][0, 0] = float("nan")


def lose_the_head(tensors):
    del tensors[next(key for key in tensors if "classifier.weight" in key)]


SPOILS = (
    (drop, KeyMismatchError),
    (misshape, KeyMismatchError),
    (lose_the_head, KeyMismatchError),
    (zero, NoEffectError),
    (poison, NoEffectError),
)


def test_tensors_that_are_wrong(backbone, folders):
    for spoil, error in SPOILS:
        spoiled = shutil.copytree(folders["new"], folders["new"].with_name(spoil.__name__))
        change(spoiled, spoil)
        unharmed(backbone, lambda folder=spoiled: backbone.swap("legal", folder), error)


def test_a_truncated_file(backbone, folders):
    path = folders["new"] / WEIGHTS
    whole = path.read_bytes()
    for kept in (0, 4, 100, len(whole) - 1):
        path.write_bytes(whole[:kept])
        unharmed(backbone, lambda: backbone.swap("legal", folders["new"]), CheckpointError)


def test_a_file_that_changes_between_its_header_and_its_tensors(backbone, folders, monkeypatch):
    path = folders["new"] / WEIGHTS
    read, whole = WeightsReader.read, path.read_bytes()
    for changed in (whole[:-8], whole + b"more", None):

        def meddle(reader, checkpoint, content=changed):
            path.unlink()
            if content is not None:
                path.write_bytes(content)
            return read(reader, checkpoint)

        path.write_bytes(whole)
        with monkeypatch.context() as patch:
            patch.setattr(WeightsReader, "read", meddle)
            unharmed(backbone, lambda: backbone.swap("legal", folders["new"]), CheckpointError)


STEPS = {
    "reading": (WeightsReader, "_take"),
    "hashing": (Checkpoint, "digest_of"),
    "staging": (arrivals, "pack"),
    "building the head": (fitting, "fill_head"),
    "growing the arena": (placing, "grow"),
    "laying out for the slot": (placing, "repack"),
    "copying into the slot": (Arena, "place"),
    "probing": (intake, "demand_effect"),
    "settling the head": (intake, "settle_head"),
    "settling the rows": (intake, "rows_come_first"),
}


@pytest.mark.parametrize("step", STEPS)
def test_a_failure_inside_a_step(backbone, folders, monkeypatch, step):
    owner, name = STEPS[step]
    original = getattr(owner, name)
    for error in (torch.OutOfMemoryError, KeyboardInterrupt):
        calls = []

        def fail_once(*args, calls=calls, error=error, **kwargs):
            calls.append(step)
            if len(calls) == 1:
                raise error(step)
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, fail_once)
        backbone._intake._files._reads_body_output.clear()  # or the head's class would be known from the others
        unharmed(backbone, lambda: backbone.swap("legal", folders["large"]), error)
        assert calls, "the step isn't one of a load's"
    served = backbone.logits(ROW, "legal")[0]
    backbone.swap("legal", folders["large"])  # nothing is stuck: the same load goes through
    assert not torch.equal(backbone.logits(ROW, "legal")[0], served)


def test_an_interrupted_copy_leaves_the_slot_to_its_owner(bases, folders, monkeypatch):
    """Half of a new adapter lies in the slot of the old one, which must not serve from there."""
    backbone = Backbone.from_pretrained(str(bases("bert")), slots=1)
    backbone.load(folders["old"], "legal")
    served = answers(backbone)
    place, calls = Arena.place, []

    def half(arena, slot, block):
        calls.append(slot)
        if len(calls) > 1:
            return place(arena, slot, block)
        for buffer in arena.buffers.values():
            buffer[slot, : buffer.shape[1] // 2] = 7.0
        raise KeyboardInterrupt

    monkeypatch.setattr(Arena, "place", half)
    with pytest.raises(KeyboardInterrupt):
        backbone.load(folders["new"], "new")
    assert backbone.stats().slots_used == 1
    assert all(torch.equal(answers(backbone)[name], served[name]) for name in served)


def test_a_failed_load_of_a_new_name_leaves_no_name(bases, folders, monkeypatch):
    backbone = Backbone.from_pretrained(str(bases("bert")), slots=1)

    def fail(*args):
        raise NoEffectError("probe")

    monkeypatch.setattr(intake, "demand_effect", fail)
    with pytest.raises(LoraryError):
        backbone.load(folders["new"])
    assert backbone.adapters == []
    assert backbone.stats().slots_used == backbone.stats().host_adapters == 0


def test_a_call_in_flight_finishes_while_a_swap_fails(bases, folders):
    backbone = Backbone.from_pretrained(str(bases("bert")), slots=2)
    backbone.load(folders["old"], "legal")
    ids = torch.tensor([[2, 7, 8, 3]])
    change(folders["new"], zero)
    with backbone.using("legal") as model:
        before = model(input_ids=ids).logits
        with pytest.raises(NoEffectError):
            backbone.swap("legal", folders["new"])
        shutil.rmtree(folders["old"])
        assert torch.equal(model(input_ids=ids).logits, before)
    with backbone.using("legal") as model:
        assert torch.equal(model(input_ids=ids).logits, before)


def test_an_old_version_that_is_in_its_slot_alone_survives(bases, folders, monkeypatch):
    """The host keeps nothing, and its files are gone; a swap that fails its probe gives it back its slot."""
    backbone = Backbone.from_pretrained(str(bases("bert")), slots=1, host_adapters=0)
    backbone.load(folders["old"], "legal")
    shutil.rmtree(folders["old"])

    def fail(*args):
        raise NoEffectError("probe")

    monkeypatch.setattr(intake, "demand_effect", fail)
    unharmed(backbone, lambda: backbone.swap("legal", folders["new"]), NoEffectError)
