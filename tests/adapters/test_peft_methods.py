"""Every PEFT method against PEFT itself on the same checkpoint, on a backbone that serves slots beside it."""

import gc
import sys
import threading
import weakref

import pytest
import torch

from lorary.adapters import Backbone
from lorary.adapters.matching.methods import THROUGH_PEFT
from lorary.hub.errors import RoutingError, SlotsFullError, UsageError
from methods import make_method
from tiny import make_adapter, peft_reference

PROMPTS = ["profit rose the bank", "a dog", "free cash offer"]
DECODER_ONLY = {"ADAPTION_PROMPT", "CPT"}
GENERATING = ("text-generation", "seq2seq")
SOME = ["IA3", "LN_TUNING", "LOHA", "PREFIX_TUNING", "PROMPT_TUNING", "TRAINABLE_TOKENS"]
CASES = [
    *(("llama", "text-generation", method) for method in THROUGH_PEFT),
    # A tagger's or a classifier's head isn't saved with TRAINABLE_TOKENS, which is refused then.
    *(("bert", "text-classification", m) for m in THROUGH_PEFT if m not in {*DECODER_ONLY, "TRAINABLE_TOKENS"}),
    *(("t5", "seq2seq", method) for method in SOME),
    *(("gpt2", "text-generation", method) for method in ("IA3", "PREFIX_TUNING", "PROMPT_TUNING")),
    *(("bert", "token-classification", method) for method in ("IA3", "LILY", "PREFIX_TUNING", "PROMPT_TUNING")),
    *(("bert", "feature-extraction", method) for method in ("IA3", "LILY", "PREFIX_TUNING", "PROMPT_TUNING")),
    *(("llama", "text-classification", method) for method in ("IA3", "PREFIX_TUNING", "PROMPT_TUNING")),
]


def model_inputs(row, task):
    ids = torch.tensor([row])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return inputs | ({"decoder_input_ids": torch.tensor([[0, *row[:3]]])} if task == "seq2seq" else {})


def answer(model, row, task):
    with torch.no_grad():
        output = model(**model_inputs(row, task))
    return (output.logits if hasattr(output, "logits") else output.last_hidden_state)[0]


def own_tokens(want, row, task):
    """Without the virtual tokens, which come first."""
    return want[-len(row) :] if want.ndim == 2 and task != "seq2seq" else want


@pytest.fixture(scope="module")
def backbones(bases, tmp_path_factory):
    """A function: the backbone of a family with an adapter `slot` in its slots, made once for a family and task."""
    made = {}

    def backbone(family, task):
        if (family, task) not in made:
            slot = make_adapter(bases(family), tmp_path_factory.mktemp(family) / "slot", task=task)
            made[family, task] = Backbone.from_pretrained(str(bases(family)))
            made[family, task].load(slot)
        return made[family, task]

    return backbone


@pytest.fixture(scope="module")
def others(backbones):
    """A function: what the bare backbone and `slot` answer to the last prompts before anything else was loaded."""
    made = {}

    def answers(family, task):
        if (family, task) not in made:
            backbone = backbones(family, task)
            assert backbone.adapters == ["slot"]
            made[family, task] = [
                alone(backbone, task, prompt, name) for prompt, name in zip(PROMPTS[1:], [None, "slot"], strict=True)
            ]
        return made[family, task]

    return answers


def alone(backbone, task, prompt, name):
    if task in GENERATING:
        return backbone.generate(prompt, name, max_new_tokens=3)
    return backbone.predict([prompt], name)[0]


@pytest.mark.parametrize(("family", "task", "method"), CASES, ids=lambda value: str(value))
def test_every_method(backbones, others, bases, tmp_path, family, task, method):
    """Logits, a `using` block's model, and a batch of three, mixed and alone; the backbone's weights bit for bit."""
    backbone = backbones(family, task)
    wanted = others(family, task)
    before = {name: p.detach().clone() for name, p in backbone.model.named_parameters()}
    adapter = make_method(bases(family), tmp_path / "own", method, task=task)
    loaded = backbone.load(adapter)
    assert loaded.name == "own"
    reference = peft_reference(bases(family), adapter, task=task)
    row = [7, 8, 9, 10, 11]
    want = answer(reference, row, task)
    got = backbone.logits([row], "own")[0]
    torch.testing.assert_close(got, own_tokens(want, row, task), atol=1e-5, rtol=1e-5)
    with backbone.using("own") as model:
        torch.testing.assert_close(answer(model, row, task), want, atol=1e-5, rtol=1e-5)
    names = ["own", None, "slot"]
    solo = [alone(backbone, task, prompt, "own") for prompt in PROMPTS]
    if task in GENERATING:
        assert backbone.generate(PROMPTS, names, max_new_tokens=3) == [solo[0], *wanted]
        assert backbone.generate(PROMPTS, "own", max_new_tokens=3) == solo
        inputs = backbone.tokenizer(PROMPTS[:1], return_tensors="pt", return_token_type_ids=False)
        made = reference.generate(**inputs, max_new_tokens=3, pad_token_id=0)[0]
        start = 0 if task == "seq2seq" else inputs["input_ids"].shape[1]
        assert solo[0] == backbone.tokenizer.decode(made[start:], skip_special_tokens=True)
    else:
        assert_alike(backbone.predict(PROMPTS, names), [solo[0], *wanted])
        assert_alike(backbone.predict(PROMPTS, "own"), solo)
    backbone.unload("own")
    assert backbone.adapters == ["slot"]
    assert all(torch.equal(before[name], p) for name, p in backbone.model.named_parameters())


@pytest.mark.parametrize("task", ["text-classification", "token-classification"])
def test_transformers_pipelines_have_nothing_against_its_model(backbones, bases, tmp_path, task, monkeypatch):
    """They know transformers' classes by name alone, and complain of every other at each call."""
    said = []
    monkeypatch.setattr("transformers.pipelines.base.logger.error", said.append)
    backbone = backbones("bert", task)
    backbone.load(make_method(bases("bert"), tmp_path / "quiet", "IA3", task=task))
    backbone.predict(PROMPTS, "quiet")
    backbone.unload("quiet")
    assert said == []


def assert_alike(mixed, solo):
    for got, want in zip(mixed, solo, strict=True):
        if isinstance(got, dict):
            assert got["label"] == want["label"]
            assert got["score"] == pytest.approx(want["score"], abs=1e-5)
        elif isinstance(got[0], dict):
            assert [entity["entity"] for entity in got] == [entity["entity"] for entity in want]
            assert [float(e["score"]) for e in got] == pytest.approx([float(e["score"]) for e in want], abs=1e-5)
        else:
            torch.testing.assert_close(torch.tensor(got), torch.tensor(want), atol=1e-5, rtol=1e-4)


def own_and_shared(backbone, model):
    """The bytes of a model's parameters, in memory of its own and in the backbone's."""
    places = {p.data_ptr() for p in backbone.model.parameters()}
    parameters = list(model.parameters())
    shared = [p for p in parameters if p.data_ptr() in places]
    return sum(p.nbytes for p in parameters) - sum(p.nbytes for p in shared), sum(p.nbytes for p in shared)


@pytest.mark.parametrize("quantization", ["none", "nf4", "int8"])
def test_the_memory_is_the_backbones(bases, tmp_path, quantization):
    backbone = Backbone.from_pretrained(str(bases("llama")), quantization=quantization)
    for method in ("IA3", "PROMPT_TUNING"):
        backbone.load(make_method(bases("llama"), tmp_path / method, method, task="text-generation"))
        with backbone.using(method) as model:
            own, shared = own_and_shared(backbone, model)
        assert own < 1000
        assert shared == sum(p.nbytes for p in backbone.model.parameters())
    assert 0 < backbone.stats().peft_bytes < 2000
    assert backbone.stats().slots_used == 0


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
@pytest.mark.parametrize("method", ["IA3", "OFT", "VERA", "PREFIX_TUNING"])
def test_quantized(bases, tmp_path, quantization, method):
    """Quantized weights are the same bits for both: 1e-4 in float32, as for the slots."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from lorary.adapters.base.quantization import guard_cpu, quantization_config

    adapter = make_method(bases("llama"), tmp_path / method, method, task="text-generation")
    backbone = Backbone.from_pretrained(str(bases("llama")), quantization=quantization)
    backbone.load(adapter)
    model = AutoModelForCausalLM.from_pretrained(
        bases("llama"), quantization_config=quantization_config(quantization, torch.float32), dtype=torch.float32
    )
    guard_cpu(model)
    with torch.no_grad():
        model(input_ids=torch.tensor([[7, 8]]))
    reference = PeftModel.from_pretrained(model, adapter).eval()
    row = [7, 8, 9, 10]
    want = answer(reference, row, "text-generation")
    torch.testing.assert_close(backbone.logits([row], method)[0], want, atol=1e-4, rtol=1e-4)


def test_threads_dont_disturb_one_another(bases, tmp_path):
    """Slots, adapters through PEFT and the bare backbone at once; PEFT's generate exchanges methods of its model."""
    backbone = Backbone.from_pretrained(str(bases("llama")))
    backbone.load(make_adapter(bases("llama"), tmp_path / "slot", task="text-generation"))
    for method in ("PROMPT_TUNING", "IA3"):
        backbone.load(make_method(bases("llama"), tmp_path / method, method, task="text-generation"))
    names = ["slot", "PROMPT_TUNING", "PROMPT_TUNING", "IA3", None]
    want = {name: backbone.generate(PROMPTS[0], name, max_new_tokens=6) for name in names}
    assert len(set(want.values())) == 4
    wrong = []

    def work(name):
        wrong.extend(1 for _ in range(8) if backbone.generate(PROMPTS[0], name, max_new_tokens=6) != want[name])

    threads = [threading.Thread(target=work, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    backbone.load(make_method(bases("llama"), tmp_path / "late", "LOHA", task="text-generation"))
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_name_stands_for_something_throughout_such_a_swap(bases, tmp_path):
    """Callers look it up as often as they can."""
    backbone = Backbone.from_pretrained(str(bases("llama")))
    slot = make_adapter(bases("llama"), tmp_path / "slot", task="text-generation")
    own = make_method(bases("llama"), tmp_path / "own", "IA3", task="text-generation")
    backbone.load(slot, "a")
    done, found = threading.Event(), []

    def look_up():
        try:
            while not done.is_set():
                with backbone.using("a"):
                    pass
        except BaseException as error:
            found.append(error)

    threads = [threading.Thread(target=look_up) for _ in range(3)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for _ in range(8):
            backbone.swap("a", own)
            backbone.swap("a", slot)
    finally:
        done.set()
        for thread in threads:
            thread.join()
        sys.setswitchinterval(before)
    assert not found
    assert backbone.adapters == ["a"]


def test_a_swap_between_methods_and_slots(bases, tmp_path):
    backbone = Backbone.from_pretrained(str(bases("llama")))
    slot = make_adapter(bases("llama"), tmp_path / "slot", task="text-generation")
    own = make_method(bases("llama"), tmp_path / "own", "IA3", task="text-generation")
    backbone.load(slot, "a")
    in_slots = backbone.logits([[7, 8]], "a")[0]
    with torch.no_grad(), backbone.using("a") as model:
        backbone.swap("a", own)
        assert torch.equal(model(input_ids=torch.tensor([[7, 8]])).logits[0], in_slots)
    through_peft = backbone.logits([[7, 8]], "a")[0]
    assert not torch.allclose(through_peft, in_slots)
    with backbone.using("a") as model:
        backbone.swap("a", slot)
        assert torch.equal(model(input_ids=torch.tensor([[7, 8]])).logits[0], through_peft)
    torch.testing.assert_close(backbone.logits([[7, 8]], "a")[0], in_slots)
    assert backbone.adapters == ["a"]


def test_a_pin_stays_with_a_name_that_runs_through_peft_for_a_while(bases, tmp_path):
    slot = make_adapter(bases("llama"), tmp_path / "slot", task="text-generation")
    other = make_adapter(bases("llama"), tmp_path / "other", task="text-generation", seed=2)
    own = make_method(bases("llama"), tmp_path / "own", "IA3", task="text-generation")
    for first, then in ((slot, (own, slot)), (own, (slot,)), (own, (own, slot))):
        backbone = Backbone.from_pretrained(str(bases("llama")), slots=1)
        backbone.load(first, "a")
        backbone.pin("a")
        for version in then:
            backbone.swap("a", version)
        with pytest.raises(SlotsFullError, match="1 are pinned"):
            backbone.load(other)
        backbone.unpin("a")
        backbone.load(other)
    for last in ("unpin", "unload"):
        backbone = Backbone.from_pretrained(str(bases("llama")), slots=1)
        backbone.load(own, "a")
        backbone.pin("a")
        getattr(backbone, last)("a")
        backbone.load(slot, "a")
        backbone.load(other)


def test_unloading_frees_its_memory(bases, tmp_path):
    backbone = Backbone.from_pretrained(str(bases("llama")))
    backbone.load(make_method(bases("llama"), tmp_path / "own", "LOHA", task="text-generation"))
    with backbone.using("own") as model:
        kept = weakref.ref(model.peft_model)
    del model
    backbone.unload("own")
    gc.collect()
    assert kept() is None
    assert backbone.stats().peft_bytes == 0


def test_the_backbones_own_model_refuses_to_answer_for_it(bases, tmp_path):
    backbone = Backbone.from_pretrained(str(bases("llama")))
    backbone.load(make_method(bases("llama"), tmp_path / "own", "IA3", task="text-generation"))
    ids = torch.tensor([[7, 8]])
    with backbone.using("own") as model:
        model(input_ids=ids)
        with pytest.raises(RoutingError, match="call the model that the `using` block gives"):
            backbone.model(input_ids=ids)
    backbone.model(input_ids=ids)
    with pytest.raises(RoutingError, match="has ended"):
        model(input_ids=ids)
    with pytest.raises(UsageError, match="can't share a batch"), backbone.using(["own", None]):
        pass


def test_compiled_backbones_run_it_eagerly(bases, tmp_path):
    backbone = Backbone.from_pretrained(str(bases("llama")))
    own = make_method(bases("llama"), tmp_path / "own", "IA3", task="text-generation")
    backbone.load(own)
    want = backbone.logits([[7, 8]], "own")[0]
    backbone.compile(backend="eager")
    backbone.load(own)
    torch.testing.assert_close(backbone.logits([[7, 8]], "own")[0], want)
