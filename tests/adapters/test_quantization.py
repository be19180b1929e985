"""The two traps of bitsandbytes: quantized heads, and the CPU path that repacks weights."""

import json
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file

from lorary.adapters.base.loading import load_base
from lorary.adapters.base.quantization import QUANTIZATIONS, guard_cpu, quantization_config, quantization_of
from lorary.hub.errors import BaseNotFoundError, UsageError
from tiny import make_base, task_class


def quantized(base, task, quantization="nf4", **kwargs):
    labels = {"num_labels": 3} if "classification" in task else {}
    return load_base(
        str(base), auto_class=task_class(task), quantization=quantization, device="cpu", **labels, **kwargs
    ).model


def kinds(model):
    return {name: type(module).__name__ for name, module in model.named_modules()}


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
@pytest.mark.parametrize(
    ("family", "task", "heads"),
    [
        ("bert", "text-classification", ["classifier", "bert.pooler.dense"]),
        ("distilbert", "text-classification", ["pre_classifier", "classifier"]),
        ("roberta", "text-classification", ["classifier.dense", "classifier.out_proj"]),
        ("roberta", "token-classification", ["classifier"]),
        ("gpt2", "text-classification", ["score"]),
        ("llama", "text-generation", ["lm_head"]),
        ("t5", "seq2seq", ["lm_head"]),
    ],
)
def test_heads_stay_in_full_precision(bases, tmp_path, family, task, heads, quantization):
    base = make_base(family, tmp_path / "base") if family == "distilbert" else bases(family)
    found = kinds(quantized(base, task, quantization))
    assert {found[head] for head in heads} == {"Linear"}
    assert {"nf4": "Linear4bit", "int8": "Linear8bitLt"}[quantization] in found.values()


def test_without_the_list_the_heads_are_quantized(bases):
    """The trap itself: the day it is gone from transformers, the list can go too."""
    from transformers import AutoModelForSequenceClassification, BitsAndBytesConfig

    model = AutoModelForSequenceClassification.from_pretrained(
        bases("roberta"), num_labels=3, quantization_config=BitsAndBytesConfig(load_in_4bit=True), dtype=torch.float32
    )
    assert kinds(model)["classifier.dense"] == "Linear4bit"


def test_body_and_task_model_quantize_the_same_modules(bases):
    """Training loads a task model and serving a body; they must agree, or the adapter meets another base."""
    body = kinds(quantized(bases("bert"), "feature-extraction"))
    task = kinds(quantized(bases("bert"), "text-classification"))
    assert {name: kind for name, kind in body.items() if name} == {
        name.removeprefix("bert."): kind for name, kind in task.items() if name.startswith("bert.")
    }


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_weights_that_a_model_reads_by_itself_stay_in_full_precision(tmp_path, quantization):
    """Mamba's mixer multiplies with the weight of its ``dt_proj``, and never calls it."""
    config = transformers.MambaConfig(vocab_size=44, hidden_size=32, num_hidden_layers=1, state_size=4)
    transformers.MambaForCausalLM(config).save_pretrained(tmp_path)
    model = load_base(str(tmp_path), quantization=quantization, device="cpu").model
    assert type(model.backbone.layers[0].mixer.x_proj) is not torch.nn.Linear
    with torch.no_grad():
        assert torch.isfinite(model(input_ids=torch.tensor([[5, 6, 7]])).logits).all()


def test_every_4bit_layer_is_guarded(bases):
    model = quantized(bases("llama"), "text-generation")
    flags = [m.support_avx512bf16_for_cpu for m in model.modules() if type(m).__name__ == "Linear4bit"]
    assert len(flags) == 14
    assert not any(flags)
    for module in model.modules():
        if type(module).__name__ == "Linear4bit":
            module.support_avx512bf16_for_cpu = True
    assert guard_cpu(model) == 14
    assert not any(m.support_avx512bf16_for_cpu for m in model.modules() if type(m).__name__ == "Linear4bit")


def gradient_after_evaluating(model):
    """The gradient of the loss in the embedding's output, after a pass without gradients."""
    ids = torch.tensor([[7, 8, 9, 10]])
    with torch.no_grad():
        model(input_ids=ids)
    hidden = model.get_input_embeddings()(ids).detach().requires_grad_()
    model(inputs_embeds=hidden, labels=ids).loss.backward()
    return hidden.grad


@pytest.fixture
def wide(tmp_path):
    from lorary.adapters.base.loading import natural_class
    from tiny import make_config, make_tokenizer

    config = make_config("llama")
    config.hidden_size, config.intermediate_size, config.head_dim, config.num_key_value_heads = 128, 256, 32, 4
    torch.manual_seed(0)
    natural_class(config).from_config(config).save_pretrained(tmp_path / "wide")
    make_tokenizer("llama").save_pretrained(tmp_path / "wide")
    return tmp_path / "wide"


def test_evaluating_doesnt_spoil_the_next_training_step(wide):
    fresh = quantized(wide, "text-generation")
    ids = torch.tensor([[7, 8, 9, 10]])
    hidden = fresh.get_input_embeddings()(ids).detach().requires_grad_()
    fresh(inputs_embeds=hidden, labels=ids).loss.backward()
    torch.testing.assert_close(gradient_after_evaluating(fresh), hidden.grad, atol=1e-6, rtol=1e-4)


def test_without_the_guard_the_gradients_are_wrong(wide):
    from bitsandbytes.functional import has_avx512bf16

    if not has_avx512bf16():
        pytest.skip("this CPU has no AVX512-BF16, and only there does bitsandbytes repack")
    model = quantized(wide, "text-generation")
    right = gradient_after_evaluating(model)
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = True
    assert (gradient_after_evaluating(model) - right).norm() > 0.3 * right.norm()


def test_what_a_model_is_quantized_to(bases):
    for kind in QUANTIZATIONS:
        assert quantization_of(quantized(bases("bert"), "feature-extraction", kind)) == kind


def test_an_unknown_kind():
    with pytest.raises(UsageError, match="none, nf4, fp4, nf4-single, fp4-single, int8"):
        quantization_config("q4", torch.float32)


def test_a_folder_that_is_no_model(bases, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(BaseNotFoundError, match="can't be loaded as a model"):
        load_base(str(tmp_path))
    half = shutil.copytree(bases("bert"), tmp_path / "half")
    (half / "model.safetensors").write_bytes((half / "model.safetensors").read_bytes()[:3000])
    with pytest.raises(BaseNotFoundError, match=r"can't be loaded as a model: .*header"):
        load_base(str(half))


@pytest.mark.parametrize("labels", [{}, {"num_labels": 3}])
def test_weights_of_another_size_than_the_config_says(labels, bases, tmp_path):
    base = shutil.copytree(bases("bert"), tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "intermediate_size": 48}))
    auto_class = task_class("text-classification") if labels else None
    with pytest.raises(BaseNotFoundError, match=r"intermediate.dense.* as \[64.*\], its config.json says \[48"):
        load_base(str(base), auto_class=auto_class, **labels)


def test_pickled_weights_that_are_cut_off(bases, tmp_path):
    base = shutil.copytree(bases("bert"), tmp_path / "base")
    file = base / "pytorch_model.bin"
    torch.save(load_file(base / "model.safetensors"), file)
    (base / "model.safetensors").unlink()
    load_base(str(base))
    whole = file.read_bytes()
    for broken in (b"", whole[:10], whole[:-30], b"garbage" * 100):
        file.write_bytes(broken)
        with pytest.raises(BaseNotFoundError, match="are cut off or damaged"):
            load_base(str(base))
