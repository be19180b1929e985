"""What the program around a backbone sets for all of torch, or does with the backbone as a Python object."""

import copy
import os
import pickle
import threading
import time

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

from lorary.adapters import Backbone
from lorary.hub.errors import UsageError
from lorary.hub.manifest import BaseIdentity, Manifest
from methods import make_method
from tiny import make_adapter, make_config, make_tokenizer

LM = "text-generation"
ROW = [[7, 8, 9]]


@pytest.fixture(scope="module")
def folders(bases, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    return {name: make_adapter(bases("llama"), folder / name, task=LM, seed=len(name)) for name in ("one", "three")}


@pytest.fixture
def backbone(bases, folders):
    backbone = Backbone.from_pretrained(str(bases("llama")), slots=1)
    backbone.load(folders["one"])
    return backbone


def test_a_default_device_is_for_the_programs_own_tensors(backbone, folders):
    """Most often it is a GPU, which would hold what waits on the host; on `meta` nothing at all could be read."""
    settings = {"max_new_tokens": 3, "do_sample": False}
    want = backbone.generate(["profit rose", "dog"], "one", **settings)
    with torch.device("meta"):
        backbone.load(folders["three"])
        assert backbone.generate(["profit rose", "dog"], "one", **settings) == want  # back into its slot
        backbone.blend({"one": 0.5, "three": 0.5}, "both")


def test_the_default_dtype_stays_the_programs_own(bases, tmp_path, default_dtypes):
    """It is one for all threads: while it is another, what they compute comes to other numbers."""
    masked = tmp_path / "masked"
    AutoModelForMaskedLM.from_config(make_config("bert")).save_pretrained(masked)
    make_tokenizer("bert").save_pretrained(masked)
    filling = make_adapter(masked, tmp_path / "filling", task="fill-mask")
    Manifest("fill-mask", BaseIdentity("x")).write(filling)
    tagger = make_adapter(masked, tmp_path / "tagger", task="token-classification")
    backbone = Backbone.from_pretrained(str(masked), dtype="bfloat16")
    default_dtypes.clear()
    for folder in (tagger, filling):
        backbone.load(folder, "it")
        with backbone.using("it") as model:
            assert model.config.dtype is torch.bfloat16
            assert model(input_ids=torch.tensor(ROW)).logits.dtype is torch.bfloat16
        assert default_dtypes <= {torch.float32}


def test_a_default_device_and_questions(bases, tmp_path):
    backbone = Backbone.from_pretrained(str(bases("bert")))
    backbone.load(make_adapter(bases("bert"), tmp_path / "qa", task="question-answering"))
    row = {"question": "profit rose", "context": "the bank a cat rose"}
    want = backbone.predict(row, "qa")
    with torch.device("meta"):
        assert backbone.predict(row, "qa") == want


def test_opened_in_inference_mode_and_used_outside_of_it(bases, backbone, folders):
    with torch.inference_mode():
        other = Backbone.from_pretrained(str(bases("llama")), slots=1)
        other.load(folders["one"])
    other.load(folders["three"])
    with torch.inference_mode():
        other.load(folders["one"], "again")
    other.load(folders["three"], "again")
    torch.testing.assert_close(other.logits(ROW, "one"), backbone.logits(ROW, "one"))


def test_no_answer_with_dropout(bases, tmp_path, backbone):
    encoder = Backbone.from_pretrained(str(bases("bert")))
    encoder.load(make_adapter(bases("bert"), tmp_path / "a", task="text-classification"))
    calls = [lambda: encoder.predict("profit", "a"), lambda: encoder.logits(ROW, "a")]
    calls += [lambda: backbone.generate("profit", "one"), lambda: backbone.predict("profit", "one")]
    for one in (encoder, backbone):
        one.model.train()
    for call in calls:
        with pytest.raises(UsageError, match=r"training mode.*model\.eval\(\)"):
            call()
    for one in (encoder, backbone):
        one.model.eval()
    with backbone.engine(cache_tokens=64, page_tokens=8) as engine:
        backbone.model.train()
        with pytest.raises(UsageError, match="training mode"):
            engine.submit("profit", "one")
        backbone.model.eval()
    assert all(call() for call in calls)


def test_no_copies(backbone):
    for copied in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(UsageError, match="can't be copied or pickled"):
            copied(backbone)


def test_nothing_is_loaded_after_a_release(backbone, folders):
    backbone.release()
    backbone.release()
    with pytest.raises(UsageError, match="was released"):
        backbone.load(folders["one"])


def test_a_release_leaves_the_model_as_it_was(bases, tmp_path):
    """With a forward of its own, as accelerate gives to one whose inputs have to be brought to its device."""
    own = make_method(bases("llama"), tmp_path / "own", "IA3", task=LM)
    for compiled in (False, True):
        model = AutoModelForCausalLM.from_pretrained(bases("llama"))
        add_hook_to_module(model.model, ModelHook())
        forward = model.model.forward
        backbone = Backbone.from_model(model, make_tokenizer("llama"))
        backbone.load(own)
        if compiled:
            backbone.compile()
        backbone.release()
        assert model.model.forward is forward
        assert not model.model._forward_pre_hooks
        again = Backbone.from_model(model, make_tokenizer("llama"))
        again.load(own)
        assert len(model.model._forward_pre_hooks) == 1
    plain = AutoModelForCausalLM.from_pretrained(bases("llama"))
    backbone = Backbone.from_model(plain, make_tokenizer("llama"))
    backbone.compile()
    backbone.release()
    assert "forward" not in vars(plain.model)


def test_no_release_below_a_running_call(backbone):
    """It would go on as the bare backbone."""
    with backbone.using("one") as model:
        before = model(input_ids=torch.tensor(ROW)).logits
        with pytest.raises(UsageError, match="calls are still running"):
            backbone.release()
        assert torch.equal(model(input_ids=torch.tensor(ROW)).logits, before)
    backbone.release()


def test_a_backbones_model_is_saved_as_the_bare_model(backbone, tmp_path):
    backbone.model.save_pretrained(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    torch.testing.assert_close(again(input_ids=torch.tensor(ROW)).logits[0], backbone.logits(ROW, None)[0])
    state = backbone.model.state_dict()
    assert state.keys() == again.state_dict().keys()
    backbone.model.load_state_dict({name: tensor + 1 for name, tensor in state.items()})
    backbone.model.load_state_dict(again.state_dict())
    torch.testing.assert_close(backbone.logits(ROW, None)[0], again(input_ids=torch.tensor(ROW)).logits[0])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_goes_on_following_and_reading_ahead(bases, folders, registry):
    """As a server's workers do, that are forked from a process which has opened the backbone."""
    registry.add(folders["one"], name="sql", domain="code")
    registry.alias("sql", "prod", 1)
    registry.add(folders["three"], name="sql", domain="code")
    backbone = Backbone.from_pretrained(str(bases("llama")), registry=registry)
    first = backbone.follow("sql@prod", interval=0.02).digest
    backbone.prefetch(["sql"])["sql"].result(20)

    def child():
        names = {thread.name for thread in threading.enumerate()}
        backbone.prefetch(["sql"])["sql"].result(20)
        registry.alias("sql", "prod", 2)
        deadline = time.monotonic() + 20
        while backbone.stats().followed[0].digest == first:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return "lorary-follow" in names

    forked = os.fork()
    if not forked:
        code = 1
        try:
            code = 0 if child() else 2
        finally:
            os._exit(code)
    assert os.waitpid(forked, 0)[1] == 0
