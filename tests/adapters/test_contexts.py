"""The choice of adapters belongs to a call: it doesn't leak out of its block, or into another thread."""

import contextvars
import copy
import sys
import threading

import pytest
import torch

from lorary.adapters import Backbone
from lorary.adapters.layer.routing import active
from lorary.hub.errors import RoutingError
from lorary.hub.manifest import BaseIdentity, Manifest, Preprocessing, Prompt
from tiny import make_adapter

IDS = torch.tensor([[2, 7, 8, 9]])


@pytest.fixture
def backbone(bases, tmp_path):
    """A tiny Llama with the adapters a and b, and one slot for both."""
    backbone = Backbone.from_pretrained(str(bases("llama")), slots=1)
    for seed, name in enumerate(("a", "b"), start=1):
        backbone.load(make_adapter(bases("llama"), tmp_path / name, task="text-generation", seed=seed))
    return backbone


def answers(backbone, name):
    with backbone.using(name) as model:
        return model(input_ids=IDS).logits


def test_a_context_that_outlives_its_block_is_refused(backbone):
    with backbone.using("a"):
        copied = contextvars.copy_context()
    answers(backbone, "b")  # takes the slot
    with pytest.raises(RoutingError, match="has ended since"):
        copied.run(lambda: backbone.model(input_ids=IDS))


def break_off(call, after, monkeypatch):
    """Ctrl-C at the ``after``-th of the places in a call where the interpreter may hear it; False with fewer places."""
    left = after

    def heard(frame, event, argument):
        nonlocal left
        # From Python 3.14 on taking a lock for a block is a call too; between the two it would be lost to any program.
        left -= event == "call" or (event == "c_return" and argument.__name__ != "__enter__")
        if not left:
            raise KeyboardInterrupt

    lost = []  # heard as the interpreter puts a generator away, where nothing can be raised
    monkeypatch.setattr(sys, "unraisablehook", lambda found: lost.append(found.exc_type))
    sys.setprofile(heard)
    try:
        call()
    except KeyboardInterrupt:
        return True
    finally:
        sys.setprofile(None)
    assert left > 0 or lost == [KeyboardInterrupt], "nobody was told of the Ctrl-C"
    return left <= 0


def test_a_block_broken_off_anywhere_leaves_nothing_behind(backbone, monkeypatch):
    """Each block takes the one slot from the adapter of the one before."""
    expected = {name: answers(backbone, name) for name in ("a", "b")}
    residency = backbone._residency

    def block():
        with backbone.using("ab"[after % 2]):
            pass

    after = 1
    while break_off(block, after, monkeypatch):
        residency.demand_idle()
        assert active() is None
        assert not residency._arrivals._claims
        after += 1
    assert after > 100
    for name, logits in expected.items():
        assert torch.equal(answers(backbone, name), logits)


def test_a_model_that_outlives_its_block_is_refused(backbone):
    with backbone.using("a") as model:
        pass
    with pytest.raises(RoutingError, match="block that gave this model has ended; enter another"):
        model(input_ids=IDS)


def test_interleaved_blocks_leave_the_bare_backbone_behind(bases, backbone, tmp_path):
    two = Backbone.from_pretrained(str(bases("llama")), slots=2)
    for name in ("a", "b"):
        two.load(tmp_path / name)
    expected = {name: answers(two, name) for name in ("a", "b", None)}

    def steps(name):
        with two.using(name) as model:
            for _ in range(3):
                yield model(input_ids=IDS).logits

    for one, other in zip(steps("a"), steps("b"), strict=True):
        torch.testing.assert_close(one, expected["a"])
        torch.testing.assert_close(other, expected["b"])
    assert torch.equal(two.model(input_ids=IDS).logits, expected[None])


def test_a_block_is_about_its_own_backbone_alone(bases, backbone, tmp_path):
    """Both have modules of the same names; what one's block says of them is nothing to the other's."""
    other = Backbone.from_pretrained(str(bases("llama")))
    other.load(tmp_path / "b")
    expected = {name: answers(other, name) for name in ("b", None)}
    with backbone.using("a"):
        assert torch.equal(other.model(input_ids=IDS).logits, expected[None])
        with other.using("b"):
            assert torch.equal(other.model(input_ids=IDS).logits, expected["b"])
            torch.testing.assert_close(backbone.model(input_ids=IDS).logits, answers(backbone, "a"))
        assert torch.equal(other.model(input_ids=IDS).logits, expected[None])


def test_a_copy_of_a_backbones_model_is_a_model_of_its_own(bases, backbone, tmp_path):
    two = Backbone.from_model(copy.deepcopy(backbone.model), backbone.tokenizer)
    two.load(tmp_path / "b")
    torch.testing.assert_close(answers(two, "b"), answers(backbone, "b"))
    with backbone.using("a"):
        assert torch.equal(two.model(input_ids=IDS).logits, answers(two, None))


def test_two_backbones_around_one_model_each_have_their_adapters(backbone, tmp_path):
    two = Backbone.from_model(backbone.model, backbone.tokenizer)
    two.load(tmp_path / "b", "a")
    torch.testing.assert_close(answers(two, "a"), answers(backbone, "b"))
    assert not torch.allclose(answers(two, "a"), answers(backbone, "a"), atol=1e-3)


def test_a_thread_started_in_a_block_uses_its_model(backbone):
    expected = answers(backbone, "a")
    found = []
    with backbone.using("a") as model:
        thread = threading.Thread(target=lambda: found.append(model(input_ids=IDS).logits))
        thread.start()
        thread.join()
    assert torch.equal(found[0], expected)


def test_an_exception_ends_the_block(backbone):
    with pytest.raises(ZeroDivisionError), backbone.using("a"):
        raise ZeroDivisionError
    answers(backbone, "b")  # the slot is free again
    assert torch.equal(backbone.model(input_ids=IDS).logits, answers(backbone, None))


def test_threads_share_one_tokenizer(bases, tmp_path):
    """A fast tokenizer keeps its last truncation as state."""
    backbone = Backbone.from_pretrained(str(bases("bert")))
    for seed, limit in enumerate((6, 40), start=1):
        adapter = make_adapter(bases("bert"), tmp_path / f"limit-{limit}", task="text-classification", seed=seed)
        Manifest(
            "text-classification", BaseIdentity("x"), labels=("a", "b", "c"), preprocessing=Preprocessing({}, limit)
        ).write(adapter)
        backbone.load(adapter)
    text = " ".join(["profit rose the bank"] * 8)
    expected = {name: backbone.predict([text], name) for name in backbone.adapters}
    wrong = []

    def work(name):
        wrong.extend(1 for _ in range(60) if backbone.predict([text], name) != expected[name])

    threads = [threading.Thread(target=work, args=(name,)) for name in backbone.adapters * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_prompts_are_put_as_the_adapter_was_trained(bases, tmp_path):
    backbone = Backbone.from_pretrained(str(bases("llama")))
    plain = make_adapter(bases("llama"), tmp_path / "plain", task="text-generation")
    backbone.load(plain)
    Manifest(
        "text-generation",
        BaseIdentity("x"),
        preprocessing=Preprocessing({"prompt": "question"}, prefix="the report "),
        prompt=Prompt("instruction", "market {prompt} price"),
    ).write(plain)
    backbone.load(plain, "templated")
    want = backbone.generate("the report market dog price", "plain", max_new_tokens=4)
    assert backbone.generate("dog", "templated", max_new_tokens=4) == want
    (shown,) = backbone.predict([{"question": "dog"}], "templated", max_new_tokens=4)
    assert shown == [{"generated_text": f"dog{want}"}]
    assert backbone.generate(["dog", "the report market dog price"], ["templated", "plain"], max_new_tokens=4) == [
        want,
        want,
    ]
