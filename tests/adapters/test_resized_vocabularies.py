"""Adapters with new tokens, whose vocabulary is larger than the backbone's (or was cut): each equals PEFT's."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from lorary.adapters import Backbone
from lorary.adapters.proving.golden import write_golden
from lorary.hub.errors import (
    CheckpointError,
    GoldenMismatchError,
    KeyMismatchError,
    UnsupportedAdapterError,
)
from lorary.hub.manifest import Manifest
from methods import make_method
from tiny import (
    PEFT_TASK,
    VOCABULARY,
    default_targets,
    load_base,
    make_adapter,
    make_base,
    make_tokenizer,
    peft_reference,
    task_class,
)

NEW = ("<sql>", "<end>", "<table>")
LARGER = VOCABULARY + len(NEW)
ROW = [7, VOCABULARY, 9, VOCABULARY + 2, 11]
PROMPT = "profit <sql> rose <table>"
FAMILIES = {
    "llama": "text-generation",
    "tied": "text-generation",
    "gpt2": "text-generation",
    "t5": "seq2seq",
    "bert": "text-classification",
}
KINDS = ("frozen", "saved", "rows", "targeted")


def resized(base, task, size=LARGER):
    """The task model with a vocabulary of another size, its new rows as they were drawn."""
    torch.manual_seed(5)
    model = load_base(base, task)
    model.resize_token_embeddings(size)
    with torch.no_grad():
        for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
            if layer is not None and size > VOCABULARY:
                layer.weight[VOCABULARY:] = torch.randn(size - VOCABULARY, layer.weight.shape[1]) * 0.3
    return model


def make_resized(base, folder, task, kind, *, tokenizer=True, **more):
    """An adapter that PEFT saved after the vocabulary was resized; returns PEFT's own model of it."""
    from peft import LoraConfig, get_peft_model

    model = resized(base, task)
    embedding, output = model.get_input_embeddings(), model.get_output_embeddings()
    names = [name.rpartition(".")[2] for name, m in model.named_modules() if m is embedding or m is output]
    new = list(range(VOCABULARY, VOCABULARY + len(NEW)))
    tied = output is None or output.weight is embedding.weight
    settings = {
        "frozen": {},
        "saved": {"modules_to_save": names},
        "rows": {"trainable_token_indices": dict.fromkeys(names[:1] if tied else names, new)},
        "targeted": {"target_modules": [*default_targets(model), *(names[:1] if tied else names)]},
    }[kind]
    lora = {"r": 4, "target_modules": default_targets(model), "init_lora_weights": False} | settings | more
    peft_model = get_peft_model(model, LoraConfig(task_type=PEFT_TASK[task], **lora))
    for name, parameter in peft_model.named_parameters():
        if parameter.requires_grad and "embed" not in name:
            torch.nn.init.normal_(parameter, std=0.2)
    peft_model.save_pretrained(folder)
    if tokenizer:
        own = make_tokenizer(peft_model.config.model_type)
        own.add_tokens(list(NEW), special_tokens=False)
        own.save_pretrained(folder)
    return peft_model.eval()


def peft_loads(base, folder, task, size=LARGER):
    """The checkpoint as PEFT loads it, onto a base that was resized by its user."""
    from peft import PeftModel

    return PeftModel.from_pretrained(resized(base, task, size), folder).eval()


def answer(model, task):
    ids = torch.tensor([ROW])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    inputs |= {"decoder_input_ids": torch.tensor([[0, *ROW[:3]]])} if task == "seq2seq" else {}
    with torch.no_grad():
        return model(**inputs).logits[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_equals_peft(bases, tmp_path, family, kind):
    task = FAMILIES[family]
    adapter = tmp_path / "own"
    reference = make_resized(bases(family), adapter, task, kind)
    backbone = Backbone.from_pretrained(str(bases(family)))
    before = {name: p.detach().clone() for name, p in backbone.model.named_parameters()}
    bare = backbone.logits([ROW[:1]], None)[0]
    backbone.load(adapter)
    want = answer(peft_loads(bases(family), adapter, task), task)
    torch.testing.assert_close(want, answer(reference, task), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(backbone.logits([ROW], "own")[0], want, atol=1e-5, rtol=1e-5)
    if task == "text-classification":
        inputs = adapter_tokenizer(adapter)(PROMPT, return_tensors="pt")
        with torch.no_grad():
            scores = reference(**inputs).logits[0].softmax(-1)
        mixed = backbone.predict([PROMPT, PROMPT], ["own", None], top_k=None)
        assert {one["label"]: pytest.approx(one["score"], abs=1e-5) for one in mixed[0]} == {
            f"LABEL_{index}": float(score) for index, score in enumerate(scores)
        }
    else:
        tokenizer = adapter_tokenizer(adapter)
        inputs = tokenizer(PROMPT, return_tensors="pt", return_token_type_ids=False)
        assert VOCABULARY in inputs["input_ids"]
        for settings in ({}, {"num_beams": 3}):
            made = reference.generate(**inputs, max_new_tokens=3, pad_token_id=0, **settings)[0]
            start = 0 if task == "seq2seq" else inputs["input_ids"].shape[1]
            text = tokenizer.decode(made[start:], skip_special_tokens=True)
            got = backbone.generate([PROMPT, "profit"], ["own", None], max_new_tokens=3, **settings)
            assert got == [text, backbone.generate("profit", max_new_tokens=3, **settings)]
    backbone.unload("own")
    torch.testing.assert_close(backbone.logits([ROW[:1]], None)[0], bare, atol=0, rtol=0)
    assert all(torch.equal(before[name], p) for name, p in backbone.model.named_parameters())


def adapter_tokenizer(folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        ("llama", "saved"),
        ("tied", "frozen"),
        ("tied", "rows"),
        ("tied", "targeted"),
        ("gpt2", "saved"),
        ("t5", "saved"),
        ("bert", "rows"),
    ],
)
def test_merged(bases, tmp_path, family, kind):
    """A model with the larger vocabulary, its embedding and output layer tied or not, and its own tokenizer beside."""
    task = FAMILIES[family]
    reference = make_resized(bases(family), tmp_path / "own", task, kind)
    backbone = Backbone.from_pretrained(str(bases(family)))
    backbone.load(tmp_path / "own")
    before = {name: p.detach().clone() for name, p in backbone.model.named_parameters()}
    made = backbone.merge("own", tmp_path / "merged")
    assert all(torch.equal(before[name], p) for name, p in backbone.model.named_parameters())
    assert made.difference < 1e-4
    model = task_class(task).from_pretrained(tmp_path / "merged")
    assert model.config.vocab_size == LARGER
    torch.testing.assert_close(answer(model, task), answer(reference, task), atol=1e-4, rtol=1e-4)
    assert adapter_tokenizer(tmp_path / "merged").convert_tokens_to_ids("<sql>") == VOCABULARY


def verifiable(backbone, folder, rows):
    """Give the adapter in ``folder`` a manifest and the golden logits that the backbone computes."""
    backbone.load(folder)
    answers = [logits[-1] for logits in backbone.logits(rows, folder.name)]
    Manifest(
        "text-generation", backbone.identity, golden_rows=tuple(map(tuple, rows)), numerics=backbone.numerics
    ).write(folder)
    write_golden(folder, answers)
    return answers


def test_another_methods_weights_at_the_embedding(bases, tmp_path):
    """They aren't rows of tokens, whatever their size."""
    make_method(bases("llama"), tmp_path / "own", "OFT", task="text-generation", target_modules=["embed_tokens"])
    reference = peft_reference(bases("llama"), tmp_path / "own", task="text-generation")
    backbone = Backbone.from_pretrained(str(bases("llama")))
    backbone.load(tmp_path / "own")
    with torch.no_grad():
        want = reference(torch.tensor([[7, 8, 9]])).logits[0]
    torch.testing.assert_close(backbone.logits([[7, 8, 9]], "own")[0], want, atol=1e-5, rtol=1e-5)


def test_golden_logits_of_new_tokens(bases, tmp_path):
    make_resized(bases("llama"), tmp_path / "own", "text-generation", "rows")
    backbone = Backbone.from_pretrained(str(bases("llama")))
    answers = verifiable(backbone, tmp_path / "own", [ROW, [8, VOCABULARY + 1]])
    backbone.load(tmp_path / "own")
    assert backbone.verify("own").matches
    half = Backbone.from_pretrained(str(bases("llama")), dtype="bfloat16")
    half.load(tmp_path / "own")
    assert half.verify("own").cosine == pytest.approx(1, abs=0.02)
    write_golden(tmp_path / "own", [row + 1 for row in answers])
    backbone.load(tmp_path / "own")
    with pytest.raises(GoldenMismatchError, match="golden row 0"):
        backbone.verify("own")


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_quantized(bases, tmp_path, quantization):
    """The embedding and the output layer aren't quantized; merged into the dequantized weights."""
    make_resized(bases("llama"), tmp_path / "own", "text-generation", "saved")
    backbone = Backbone.from_pretrained(str(bases("llama")), quantization=quantization)
    backbone.load(tmp_path / "own")
    rows = backbone.logits([ROW], "own")[0]
    assert rows.shape == (len(ROW), LARGER)
    backbone.merge("own", tmp_path / "merged")
    merged = task_class("text-generation").from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(answer(merged, "text-generation"), rows, atol=0.1, rtol=0.1)


@pytest.mark.parametrize("left", [VOCABULARY, VOCABULARY - 4])
def test_a_vocabulary_that_was_cut(tmp_path, left):
    """`resize_token_embeddings(len(tokenizer))` cuts the rows that a base has spare."""
    from peft import LoraConfig, PeftModel, get_peft_model

    base = make_base("tied", tmp_path / "base", vocab_size=VOCABULARY + 20)

    def cut():
        model = task_class("text-generation").from_pretrained(base)
        model.resize_token_embeddings(left)
        return model

    torch.manual_seed(1)
    lora = LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(cut(), lora).save_pretrained(tmp_path / "own")
    backbone = Backbone.from_pretrained(str(base))
    if left < VOCABULARY:
        with pytest.raises(
            CheckpointError, match="the backbone's tokenizer has 44 tokens and the embedding 40: its vocabulary was cut"
        ):
            backbone.load(tmp_path / "own")
        make_tokenizer("llama").save_pretrained(tmp_path / "own")
        with pytest.raises(
            CheckpointError, match="tokenizer has 44 tokens and the embedding 40: its vocabulary was cut"
        ):
            backbone.load(tmp_path / "own")
        smaller_tokenizer(left).save_pretrained(tmp_path / "own")
    backbone.load(tmp_path / "own")
    assert backbone.generate(PROMPT, "own", max_new_tokens=3)
    row = [7, 8, 9]
    reference = PeftModel.from_pretrained(cut(), tmp_path / "own").eval()
    with torch.no_grad():
        want = reference(torch.tensor([row])).logits[0]
    assert want.shape[1] == left
    torch.testing.assert_close(backbone.logits([row], "own")[0], want, atol=1e-5, rtol=1e-5)


def smaller_tokenizer(size):
    from transformers import PreTrainedTokenizerFast

    whole = make_tokenizer("llama")
    state = json.loads(whole.backend_tokenizer.to_str())
    vocabulary = state["model"]["vocab"]
    state["model"]["vocab"] = {word: token for word, token in vocabulary.items() if token < size}
    backend = Tokenizer.from_str(json.dumps(state))
    return PreTrainedTokenizerFast(tokenizer_object=backend, **whole.special_tokens_map)


def test_only_the_new_rows_were_saved(bases, tmp_path):
    """Trained rows say themselves how large the vocabulary is: no need for a copy of the whole embedding."""
    peft_model = make_resized(bases("llama"), tmp_path / "own", "text-generation", "rows")
    peft_model.save_pretrained(tmp_path / "own", save_embedding_layers=False)
    names = load_file(tmp_path / "own/adapter_model.safetensors")
    assert not [name for name in names if "base_layer" in name]
    backbone = Backbone.from_pretrained(str(bases("llama")))
    backbone.load(tmp_path / "own")
    want = answer(peft_model, "text-generation")
    torch.testing.assert_close(backbone.logits([ROW], "own")[0], want, atol=1e-5, rtol=1e-5)


def damaged(folder, change):
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


EMBEDDING, OUTPUT = "base_model.model.model.embed_tokens.weight", "base_model.model.lm_head.weight"


def shorten(tensors):
    tensors[OUTPUT] = tensors[OUTPUT][:-1]


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (lambda tensors: tensors[EMBEDDING][3].add_(1), UnsupportedAdapterError, "other values than the backbone's"),
        (lambda tensors: tensors.pop(OUTPUT), KeyMismatchError, r"lacks the new rows of 'lm_head\.weight'"),
        (shorten, KeyMismatchError, r"its vocabulary of 47 tokens needs \[47, 32\]"),
        (lambda tensors: tensors.pop(EMBEDDING), CheckpointError, "tokenizer has 47 tokens and the embedding 44"),
        (lambda tensors: [tensors.pop(EMBEDDING), tensors.pop(OUTPUT)], CheckpointError, "tokenizer has 47 tokens"),
    ],
    ids=["an old row was changed", "no output layer", "a row too few", "no embedding", "neither"],
)
def test_refused(bases, tmp_path, change, error, match):
    make_resized(bases("llama"), tmp_path / "own", "text-generation", "frozen")
    damaged(tmp_path / "own", change)
    backbone = Backbone.from_pretrained(str(bases("llama")))
    with pytest.raises(error, match=match):
        backbone.load(tmp_path / "own")
    assert backbone.adapters == []


def change_indices(folder, change):
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    given = config["trainable_token_indices"]
    config["trainable_token_indices"] = {name: change(tokens) for name, tokens in given.items()}
    path.write_text(json.dumps(config))


@pytest.mark.parametrize(
    "indices",
    [
        lambda tokens: [*tokens[:-1], 10**13],
        lambda tokens: [*tokens, VOCABULARY + 3],  # a row more than the file has
        lambda tokens: [tokens[0], tokens[0], tokens[2]],
    ],
    ids=["far beyond the others", "not in the file", "a gap"],
)
@pytest.mark.parametrize("family", ["llama", "tied"])
def test_new_rows_that_the_file_lacks(bases, tmp_path, monkeypatch, family, indices):
    """Nothing is allocated for them: the numbers in a config are a stranger's."""
    peft_model = make_resized(bases(family), tmp_path / "own", "text-generation", "rows", tokenizer=False)
    peft_model.save_pretrained(tmp_path / "own", save_embedding_layers=False)
    change_indices(tmp_path / "own", indices)
    backbone = Backbone.from_pretrained(str(bases(family)))
    resized = []
    monkeypatch.setattr(type(backbone.model), "resize_token_embeddings", lambda *args, **kwargs: resized.append(args))
    with pytest.raises(KeyMismatchError, match=r"lacks the new rows of 'model\.embed_tokens\.weight'"):
        backbone.load(tmp_path / "own")
    assert resized == backbone.adapters == []


@pytest.mark.parametrize("index", [10**19, 10**13, LARGER, -1])
def test_trained_rows_outside_of_the_embedding(bases, tmp_path, index):
    make_resized(bases("llama"), tmp_path / "own", "text-generation", "rows", tokenizer=False)
    change_indices(tmp_path / "own", lambda tokens: [*tokens[:-1], index])
    backbone = Backbone.from_pretrained(str(bases("llama")))
    with pytest.raises(UnsupportedAdapterError, match="PEFT can't put this LORA adapter into the backbone"):
        backbone.load(tmp_path / "own")
    assert backbone.adapters == []


def test_an_embedding_without_width(bases, tmp_path):
    """Its header tells of any number of rows, and the file holds none."""
    make_resized(bases("llama"), tmp_path / "own", "text-generation", "frozen", tokenizer=False)
    damaged(tmp_path / "own", lambda tensors: tensors.update({EMBEDDING: torch.zeros(10**12, 0)}))
    backbone = Backbone.from_pretrained(str(bases("llama")))
    with pytest.raises(CheckpointError, match=r"embed_tokens\.weight"):
        backbone.load(tmp_path / "own")


def test_a_tokenizer_of_more_tokens_than_rows(bases, tmp_path):
    make_resized(bases("llama"), tmp_path / "own", "text-generation", "frozen")
    own = adapter_tokenizer(tmp_path / "own")
    own.add_tokens(["<one>"])
    own.save_pretrained(tmp_path / "own")
    backbone = Backbone.from_pretrained(str(bases("llama")))
    with pytest.raises(CheckpointError, match="tokenizer has 48 tokens and the embedding 47"):
        backbone.load(tmp_path / "own")


def test_without_a_tokenizer_token_ids_serve(bases, tmp_path):
    reference = make_resized(bases("llama"), tmp_path / "own", "text-generation", "frozen", tokenizer=False)
    backbone = Backbone.from_pretrained(str(bases("llama")))
    backbone.load(tmp_path / "own")
    want = answer(reference, "text-generation")
    torch.testing.assert_close(backbone.logits([ROW], "own")[0], want, atol=1e-5, rtol=1e-5)


def test_beside_slots_and_each_other(bases, tmp_path):
    """Each row has its own vocabulary: the same text is other tokens to others."""
    make_resized(bases("llama"), tmp_path / "one", "text-generation", "saved")
    make_resized(bases("llama"), tmp_path / "two", "text-generation", "rows", r=8)
    make_adapter(bases("llama"), tmp_path / "slot", task="text-generation")
    backbone = Backbone.from_pretrained(str(bases("llama")))
    for name in ("one", "two", "slot"):
        backbone.load(tmp_path / name)
    names = ["two", "slot", "one", None, "two"]
    solo = [backbone.generate(PROMPT, name, max_new_tokens=4) for name in names]
    assert backbone.generate([PROMPT] * 5, names, max_new_tokens=4) == solo
    assert backbone.stats().slots_used == 1
    assert backbone.stats().peft_bytes > 2 * LARGER * 32 * 4


def test_the_folder_is_left_as_it_was(bases, tmp_path):
    make_resized(bases("llama"), tmp_path / "own", "text-generation", "frozen")
    shutil.copytree(tmp_path / "own", tmp_path / "before")
    Backbone.from_pretrained(str(bases("llama"))).load(tmp_path / "own")
    for path in (tmp_path / "before").iterdir():
        assert path.read_bytes() == (tmp_path / "own" / path.name).read_bytes()
