"""Encoder-decoders repeat rows for beams and for several answers: each repeated row keeps its adapter."""

import pytest
import torch

from lorary.adapters import Backbone
from tiny import make_adapter, peft_reference

PROMPTS = ["profit rose the bank", "a dog", "story mother house dog cat", "free cash offer"]
NAMES = ["a", "b", None, "b"]
SETTINGS = [
    {"num_beams": 3},
    {"num_beams": 4, "num_return_sequences": 3, "length_penalty": 0.5},
    {"do_sample": False, "repetition_penalty": 1.5, "use_cache": False},
]


@pytest.fixture(scope="module", params=["t5", "bart"])
def served(request, bases, tmp_path_factory):
    """A backbone with adapters a and b, and PEFT's model of each."""
    base, folder = bases(request.param), tmp_path_factory.mktemp("adapters")
    backbone = Backbone.from_pretrained(str(base))
    references = {}
    targets = {"t5": ["q", "k", "v", "o", "wi", "wo"], "bart": ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]}
    for seed, name in enumerate("ab", start=1):
        make_adapter(base, folder / name, task="seq2seq", seed=seed, target_modules=targets[request.param])
        references[name] = peft_reference(base, folder / name, task="seq2seq")
        backbone.load(folder / name)
    return backbone, references


def inputs_of(backbone, prompts):
    return backbone.tokenizer(prompts, return_tensors="pt", return_token_type_ids=False, padding=True)


def alone(backbone, references, prompt, name, **kwargs):
    """What transformers generates for one prompt with PEFT's model, or with the bare one."""
    kwargs |= {"max_new_tokens": 6, "pad_token_id": 0}
    with torch.no_grad():
        inputs = inputs_of(backbone, [prompt])
        if name is not None:
            return references[name].generate(**inputs, **kwargs)
        with references["a"].disable_adapter():
            return references["a"].generate(**inputs, **kwargs)


@pytest.mark.parametrize("kwargs", SETTINGS, ids=str)
def test_generation_of_mixed_rows_equals_peft_one_by_one(served, kwargs):
    backbone, references = served
    mixed = backbone.generate(PROMPTS, NAMES, max_new_tokens=6, **kwargs)
    for prompt, name, got in zip(PROMPTS, NAMES, mixed, strict=True):
        made = alone(backbone, references, prompt, name, **kwargs)
        want = backbone.tokenizer.batch_decode(made, skip_special_tokens=True)
        assert (got if isinstance(got, list) else [got]) == want


def test_sampled_rows_are_as_likely_as_peft_says(served):
    """Each of several sampled answers has the probability, token by token, that PEFT's model gives it."""
    backbone, references = served
    inputs = inputs_of(backbone, PROMPTS[:2])
    torch.manual_seed(3)
    with torch.no_grad(), backbone.using(["a", "b"]) as model:
        made = model.generate(
            **inputs, do_sample=True, num_return_sequences=3, max_new_tokens=5, pad_token_id=0, top_k=0,
            return_dict_in_generate=True, output_logits=True,
        )  # fmt: skip
    for row, sequence in enumerate(made.sequences):
        name = "ab"[row // 3]
        with torch.no_grad():
            want = references[name](
                input_ids=inputs["input_ids"][row // 3][None], attention_mask=inputs["attention_mask"][row // 3][None],
                decoder_input_ids=sequence[None, :-1],
            ).logits[0]  # fmt: skip
        steps = int((sequence[1:] != 0).sum())  # padding follows a row that ended early
        for step in range(steps):
            torch.testing.assert_close(made.logits[step][row], want[step], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kwargs", [{"do_sample": False}, {"num_beams": 3, "num_return_sequences": 2}], ids=str)
def test_encoder_outputs_of_the_caller(served, kwargs):
    """The encoder run beforehand, with the same adapters, gives what one call gives."""
    backbone, _ = served
    inputs = inputs_of(backbone, PROMPTS)
    kwargs = kwargs | {"max_new_tokens": 6, "pad_token_id": 0}
    with torch.no_grad(), backbone.using(NAMES) as model:
        want = model.generate(**inputs, **kwargs)
    with torch.no_grad(), backbone.using(NAMES):
        encoded = backbone.model.get_encoder()(**inputs)
    with torch.no_grad(), backbone.using(NAMES) as model:
        got = model.generate(encoder_outputs=encoded, attention_mask=inputs["attention_mask"], **kwargs)
    assert torch.equal(got, want)


def test_cross_attention_is_each_rows_own(served):
    """One encoder output for all rows: what differs is what each row's adapter does in the decoder."""
    backbone, references = served
    inputs = inputs_of(backbone, [PROMPTS[0]] * 4)
    ids = torch.tensor([[0, 7, 8, 9]] * 4)
    with torch.no_grad():
        encoded = backbone.model.get_encoder()(**inputs)
        arguments = {"encoder_outputs": encoded, "attention_mask": inputs["attention_mask"], "decoder_input_ids": ids}
        with backbone.using(NAMES) as model:
            mixed = model(**arguments).logits
        for row, name in enumerate(NAMES):
            if name is not None:
                torch.testing.assert_close(mixed[row], references[name](**arguments).logits[row], atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(mixed[2], backbone.model(**arguments).logits[2], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(mixed[0], mixed[1], atol=1e-2)
