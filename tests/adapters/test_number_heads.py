"""Heads that answer with numbers: their last layer is float32 on backbones of half precision; held against PEFT's."""

import pytest
import torch
from peft import IA3Config, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from lorary.adapters import Backbone
from lorary.adapters.heads.numbers import Float32Linear
from lorary.adapters.proving.golden import write_golden
from lorary.hub.manifest import BaseIdentity, Manifest, Numerics
from tiny import make_adapter, make_base, make_tokenizer, task_class

TASK = "text-classification"
MEAN = 290.0  # between 256 and 512 bfloat16 has every second number, and float16 every quarter
ROWS = [[2, 5 + place, 14 + place, 20, 11 + 2 * place, 3] for place in range(10)]
TEXTS = ["profit rose the bank", "shares fell and cash", "patient with asthma"]
WEIGHTS = "adapter_model.safetensors"
LAST = (".out_proj.weight", ".classifier.weight", ".score.weight")


def adapter(base, folder, family="bert", *, said=True, labels=1, dtype=torch.float32, **lora):
    """One whose head answers with numbers around ``MEAN``, where its last layer has a bias; saved in ``dtype``.

    ``said``: a manifest says so.
    """
    if family in ("t5", "bart"):
        lora["modules_to_save"] = ["classification_head"]
    make_adapter(base, folder, task=TASK, labels=labels, **lora)
    shift(folder, dtype)
    if said:
        say(folder, labels)
    return folder


def shift(folder, dtype=torch.float32):
    tensors = load_file(folder / WEIGHTS)
    for key in tensors:
        if key.endswith((".out_proj.bias", ".classifier.bias")):
            tensors[key] = tensors[key] + MEAN
        if "lora_" not in key:
            tensors[key] = tensors[key].to(dtype)
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})


def say(folder, labels=1, **fields):
    names = tuple(f"LABEL_{index}" for index in range(labels))
    Manifest(TASK, BaseIdentity("x"), labels=names, problem_type="regression", **fields).write(folder)


def in_float32(base, folder, dtype, rows, labels=1):
    """What PEFT's model in ``dtype`` gives its head's last layer, through that layer in float32: [rows, labels]."""
    model = task_class(TASK).from_pretrained(base, num_labels=labels, dtype=dtype)
    model.config.pad_token_id = 0
    model = PeftModel.from_pretrained(model, folder).eval()
    tensors = load_file(folder / WEIGHTS)
    (weight,) = (key for key in tensors if key.endswith(LAST))
    bias = tensors.get(weight.replace("weight", "bias"))
    plain = weight.removesuffix(".weight")
    (layer,) = (
        module for name, module in model.named_modules() if name.replace(".modules_to_save.default", "", 1) == plain
        and ".modules_to_save." in name
    )  # fmt: skip
    given = []
    layer.register_forward_pre_hook(lambda module, inputs: given.append(inputs[0]))
    found = []
    for row in rows:
        ids = torch.tensor([row])
        with torch.no_grad():
            model(input_ids=ids, attention_mask=torch.ones_like(ids))
        states = given.pop().float()
        made = torch.nn.functional.linear(states, tensors[weight].float(), None if bias is None else bias.float())
        found.append(made[0, -1] if made.ndim == 3 else made[0])
    return torch.stack(found)


def opened(base, dtype, *folders):
    backbone = Backbone.from_pretrained(str(base), dtype=dtype, device="cpu")
    for folder in folders:
        backbone.load(folder)
    return backbone


def logits(backbone, name, rows=ROWS):
    return torch.stack(backbone.logits(rows, name))


def scores(backbone, names, texts=TEXTS):
    return [answer["score"] for answer in backbone.predict(texts, names)]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "bart", "llama", "t5"])
def test_numbers_are_not_rounded_as_the_body_is(bases, tmp_path, family, dtype):
    base, rows = bases(family), ROWS[:3] if family in ("bart", "t5") else ROWS
    folder = adapter(base, tmp_path / "n", family)
    got = logits(opened(base, dtype, folder), "n", rows)
    want = in_float32(base, folder, getattr(torch, dtype), rows)
    # PEFT keeps the factors in float32 and the slots don't, so bodies differ by a rounding here and there.
    torch.testing.assert_close(got, want, rtol=0, atol=0.05 if dtype == "bfloat16" else 0.01)
    assert torch.unique(got).numel() > len(rows) // 2


@pytest.mark.parametrize("saved", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("labels", [1, 2])
def test_a_foreign_adapter_that_answers_with_numbers(bases, tmp_path, labels, saved):
    """One output is a number to transformers where nothing is said; of several only a manifest says so."""
    base = bases("roberta")
    folder = adapter(base, tmp_path / "n", "roberta", said=labels > 1, labels=labels, dtype=saved)
    got = logits(opened(base, "bfloat16", folder), "n")
    torch.testing.assert_close(got, in_float32(base, folder, torch.bfloat16, ROWS, labels), rtol=0, atol=0.05)


def test_other_heads_compute_as_the_body_does(bases, tmp_path):
    """Float32 for all would be other logits than PEFT's, and no better ones."""
    base = bases("bert")
    folder = make_adapter(base, tmp_path / "c", task=TASK)
    backbone = opened(base, "bfloat16", folder)
    with backbone.using("c") as model, torch.no_grad():
        assert model(input_ids=torch.tensor(ROWS[:1])).logits.dtype == torch.bfloat16
        assert not any(isinstance(module, Float32Linear) for module in model.modules())


@pytest.mark.parametrize("compiled", [False, True])
def test_rows_of_several_heads_in_one_batch(bases, tmp_path, compiled):
    base = bases("bert")
    folders = [adapter(base, tmp_path / "n"), adapter(base, tmp_path / "m", seed=2)]
    whole = opened(base, "float32", *folders)
    half = opened(base, "bfloat16", *folders, make_adapter(base, tmp_path / "c", task=TASK, seed=3))
    if compiled:
        half.compile(backend="eager")
    names = ["n", "c", "m", "n"]
    got = half.predict([*TEXTS[:3], TEXTS[0]], names)
    (first, second) = scores(whole, ["n", "m"], [TEXTS[0], TEXTS[2]])
    assert [got[0]["score"], got[2]["score"]] == pytest.approx([first, second], abs=0.1)
    assert got[3] == got[0]
    assert 0 < got[1]["score"] < 1


def test_what_is_told_of_such_a_head(bases, tmp_path):
    """Its tensors are those of the file, to the last bit, and its memory is counted as it is."""
    base = bases("roberta")
    folder = adapter(base, tmp_path / "n", "roberta")
    backbone = opened(base, "bfloat16", folder)
    state, saved = backbone.state("n"), load_file(folder / WEIGHTS)
    last = {key for key in saved if ".out_proj." in key}
    assert len(last) == 2
    assert all(torch.equal(state[key], saved[key]) for key in last)
    head = {key: tensor for key, tensor in saved.items() if "lora_" not in key}
    expected = sum(tensor.numel() * (4 if key in last else 2) for key, tensor in head.items())
    assert backbone.stats().parts_bytes == expected


def test_an_update_of_the_layer_itself(tmp_path):
    """PEFT's ``all-linear`` reaches BART's head; the weight is the base's own then, a published regressor's."""
    base = make_base("bart", tmp_path / "base")
    model = task_class(TASK).from_pretrained(base, num_labels=1)
    torch.nn.init.constant_(model.classification_head.out_proj.bias, MEAN)
    model.save_pretrained(tmp_path / "published")
    make_tokenizer("bart").save_pretrained(tmp_path / "published")
    targets = ["q_proj", "v_proj", "classification_head.out_proj"]
    folder = make_adapter(tmp_path / "published", tmp_path / "n", task=TASK, labels=1, target_modules=targets)
    say(folder)
    whole, half = (opened(tmp_path / "published", dtype, folder) for dtype in ("float32", "bfloat16"))
    torch.testing.assert_close(logits(half, "n", ROWS[:3]), logits(whole, "n", ROWS[:3]), rtol=0, atol=0.1)
    assert logits(half, "n", ROWS[:3]).frac().any()


def through_peft(base, folder):
    torch.manual_seed(0)
    model = task_class(TASK).from_pretrained(base, num_labels=1)
    tuned = get_peft_model(model, IA3Config(task_type="SEQ_CLS", target_modules=["query"], feedforward_modules=[]))
    for name, parameter in tuned.named_parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, mean=float("ia3" in name), std=0.3)
    tuned.save_pretrained(folder)
    shift(folder)
    say(folder)
    return folder


def test_methods_that_run_through_peft(bases, tmp_path):
    folder = through_peft(bases("bert"), tmp_path / "n")
    backbone = opened(bases("bert"), "bfloat16", folder)
    want = in_float32(bases("bert"), folder, torch.bfloat16, ROWS)
    torch.testing.assert_close(logits(backbone, "n"), want, rtol=0, atol=0.05)


@pytest.mark.parametrize("method", ["lora", "ia3"])
def test_merged_the_layer_stays_float32_in_the_file(bases, tmp_path, method):
    base = bases("bert")
    folder = adapter(base, tmp_path / "n") if method == "lora" else through_peft(base, tmp_path / "n")
    backbone = opened(base, "bfloat16", folder)
    merged = backbone.merge("n", tmp_path / "merged")
    tensors = load_file(tmp_path / "merged" / "model.safetensors")
    assert {key for key, tensor in tensors.items() if tensor.dtype == torch.float32} == {
        "classifier.weight",
        "classifier.bias",
    }
    assert merged.dtype == "bfloat16"
    (note,) = merged.notes
    assert "answers with numbers" in note
    assert "load the model with dtype=torch.float32" in note
    assert note in (tmp_path / "merged" / "README.md").read_text()
    model = task_class(TASK).from_pretrained(tmp_path / "merged", dtype=torch.float32)
    with torch.no_grad():
        alone = torch.stack([model(input_ids=torch.tensor([row])).logits[0] for row in ROWS])
    torch.testing.assert_close(alone, logits(backbone, "n"), rtol=0, atol=0.1)
    assert backbone.merge("n", tmp_path / "whole", dtype="float32").notes == ()


def test_golden_logits_from_before_still_match(bases, tmp_path):
    """They were rounded in bfloat16, with the mean in them."""
    base = bases("bert")
    folder = adapter(base, tmp_path / "n")
    exact = logits(opened(base, "bfloat16", folder), "n", ROWS[:3])
    say(folder, numerics=Numerics("none", "bfloat16", "cpu"), golden_rows=tuple(map(tuple, ROWS[:3])))
    write_golden(folder, list(exact.bfloat16()))
    assert not torch.equal(exact.bfloat16().float(), exact)
    assert opened(base, "bfloat16", folder).verify("n").matches
