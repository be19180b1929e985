"""Added tokens, chat template and stop tokens are each row's own: an adapter's tokenizer is the one saved with it."""

import gc
import json

import pytest
import torch

from lorary.adapters import Backbone
from lorary.hub.errors import BaseNotFoundError, CheckpointError
from lorary.hub.manifest import Manifest
from tiny import VOCABULARY, make_adapter, make_base, make_tokenizer, peft_reference, task_class

PROMPT = "profit <sql> rose"
TEMPLATE = "{% for m in messages %}[MASK] {{ m['content'] }}{% endfor %}"


@pytest.fixture(scope="module")
def padded(tmp_path_factory):
    """A function: a base of a family whose embedding has rows to spare, as many published ones have."""
    made = {}

    def base(family):
        if family not in made:
            folder = tmp_path_factory.mktemp("padded") / family
            made[family] = make_base(family, folder, vocab_size=VOCABULARY + 20)
        return made[family]

    return base


def make_own(base, folder, *, task, family, tokens=("<sql>",), seed=1, **changes):
    """An adapter in whose folder lies a tokenizer with more tokens, or with other settings."""
    make_adapter(base, folder, task=task, seed=seed)
    own = make_tokenizer(family)
    own.add_tokens(list(tokens))
    for name, value in changes.items():
        setattr(own, name, value)
    own.save_pretrained(folder)
    return own


def continued(reference, tokenizer, text, **settings):
    inputs = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
    made = reference.generate(**inputs, max_new_tokens=6, pad_token_id=0, **settings)[0]
    return tokenizer.decode(made[inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def test_generation_in_one_batch(padded, tmp_path):
    own = make_own(padded("llama"), tmp_path / "own", task="text-generation", family="llama")
    make_adapter(padded("llama"), tmp_path / "plain", task="text-generation", seed=2)
    backbone = Backbone.from_pretrained(str(padded("llama")))
    for name in ("own", "plain"):
        backbone.load(tmp_path / name)
    assert backbone.stats().slots_used == 2
    assert VOCABULARY in own(PROMPT)["input_ids"]
    want = {
        "own": continued(peft_reference(padded("llama"), tmp_path / "own", task="text-generation"), own, PROMPT),
        "plain": continued(
            peft_reference(padded("llama"), tmp_path / "plain", task="text-generation"), backbone.tokenizer, PROMPT
        ),
    }
    names = ["plain", "own", None, "own"]
    got = backbone.generate([PROMPT] * 4, names, max_new_tokens=6)
    assert got[:2] == [want["plain"], want["own"]]
    assert got[3] == want["own"]
    assert backbone.generate(PROMPT, "own", max_new_tokens=6) == want["own"]
    per_row = backbone.generate([PROMPT] * 2, ["own", "plain"], max_new_tokens=6, num_beams=2, num_return_sequences=2)
    assert [len(texts) for texts in per_row] == [2, 2]
    with backbone.engine(cache_tokens=512) as engine:
        assert engine.submit(PROMPT, "own", max_new_tokens=6).result(30).text == want["own"]


def test_a_new_token_that_is_generated_reads_as_itself(padded, tmp_path):
    """The backbone's tokenizer knows no such token, and would leave it out."""
    make_own(padded("llama"), tmp_path / "own", task="text-generation", family="llama")
    backbone = Backbone.from_pretrained(str(padded("llama")))
    backbone.load(tmp_path / "own")
    only = {"suppress_tokens": [token for token in range(VOCABULARY + 20) if token != VOCABULARY]}
    assert backbone.generate("profit", "own", max_new_tokens=2, **only) == "<sql> <sql>"


def test_classification(padded, tmp_path):
    own = make_own(padded("bert"), tmp_path / "own", task="text-classification", family="bert")
    make_adapter(padded("bert"), tmp_path / "plain", task="text-classification", seed=2)
    backbone = Backbone.from_pretrained(str(padded("bert")))
    for name in ("own", "plain"):
        backbone.load(tmp_path / name, lazy=name == "own")
    got = backbone.predict([PROMPT] * 2, ["own", "plain"], top_k=None)
    for name, tokenizer, scores in zip(("own", "plain"), (own, backbone.tokenizer), got, strict=True):
        reference = peft_reference(padded("bert"), tmp_path / name, task="text-classification")
        with torch.no_grad():
            want = reference(**tokenizer(PROMPT, return_tensors="pt")).logits[0].softmax(-1)
        assert {one["label"]: one["score"] for one in scores} == {
            f"LABEL_{index}": pytest.approx(float(score), abs=1e-5) for index, score in enumerate(want)
        }


def test_chat_templates(padded, tmp_path):
    """One from the tokenizer's own files, one that stands alone beside the adapter, and none."""
    make_own(padded("llama"), tmp_path / "own", task="text-generation", family="llama", chat_template=TEMPLATE)
    make_adapter(padded("llama"), tmp_path / "alone", task="text-generation", seed=2)
    (tmp_path / "alone/chat_template.jinja").write_text(TEMPLATE.replace("[MASK]", "[CLS]"))
    backbone = Backbone.from_pretrained(str(padded("llama")))
    for name in ("own", "alone"):
        backbone.load(tmp_path / name)
    chat = [{"role": "user", "content": "profit rose"}]
    assert backbone.generate([chat, chat], ["own", "alone"], max_new_tokens=4) == [
        backbone.generate("[MASK] profit rose", "own", max_new_tokens=4),
        backbone.generate("[CLS] profit rose", "alone", max_new_tokens=4),
    ]


def test_the_end_of_text(padded, tmp_path):
    make_own(padded("llama"), tmp_path / "own", task="text-generation", family="llama", tokens=(), eos_token="[CLS]")
    make_adapter(padded("llama"), tmp_path / "plain", task="text-generation")
    backbone = Backbone.from_pretrained(str(padded("llama")))
    for name in ("own", "plain"):
        backbone.load(tmp_path / name)
    always = {"sequence_bias": {(2,): 100.0}, "max_new_tokens": 6}  # [CLS]
    assert backbone.generate(["profit rose"] * 2, ["own", "plain"], **always) == ["", ""]  # special, so not in a text
    with backbone.engine(cache_tokens=512) as engine:
        made = {name: engine.submit("profit rose", name, **always).result(30) for name in ("own", "plain")}
    assert made["own"].tokens == (2,)
    assert made["own"].finish_reason == "stop"
    assert made["plain"].tokens == (2,) * 6


def test_the_same_tokenizer_is_the_backbones(padded, tmp_path):
    """As training scripts save it, with the padding of their last batch in it."""
    own = make_own(padded("llama"), tmp_path / "own", task="text-generation", family="llama", tokens=())
    own(["profit", "profit rose"], padding=True, truncation=True, max_length=4)
    own.save_pretrained(tmp_path / "own")
    backbone = Backbone.from_pretrained(str(padded("llama")))
    backbone.load(tmp_path / "own")
    (adapter,) = backbone._residency.resolve(["own"])
    assert adapter.own_tokenizer is None


def test_more_tokens_than_the_embedding_has(padded, tmp_path):
    tokens = [f"<{number}>" for number in range(21)]
    make_own(padded("llama"), tmp_path / "own", task="text-generation", family="llama", tokens=tokens)
    backbone = Backbone.from_pretrained(str(padded("llama")))
    with pytest.raises(CheckpointError, match=f"tokenizer has {VOCABULARY + 21} tokens and the embedding"):
        backbone.load(tmp_path / "own")
    assert backbone.adapters == []


def test_one_of_many_lasts_as_long_as_its_adapters(padded, tmp_path):
    """Whoever follows a name loads many in a backbone's life."""
    backbone = Backbone.from_pretrained(str(padded("llama")))
    read = backbone._intake._files.tokenizers._read
    for name in ("one", "two"):
        make_own(padded("llama"), tmp_path / name, task="text-generation", family="llama")
        backbone.load(tmp_path / name)
    assert len(read) == 1
    for name in ("one", "two"):
        backbone.unload(name)
    gc.collect()
    assert len(read) == 0
    backbone.load(tmp_path / "one")
    assert len(read) == 1


def test_a_backbone_that_has_the_new_tokens_itself(padded, tmp_path):
    """Its user extended it as the adapter's maker did, so the two tokenizers are the same."""
    own = make_own(padded("llama"), tmp_path / "own", task="text-generation", family="llama")
    model = task_class("text-generation").from_pretrained(padded("llama"))
    backbone = Backbone.from_model(model, own)
    Manifest("text-generation", backbone.identity, added_tokens=("<sql>",)).write(tmp_path / "own")
    backbone.load(tmp_path / "own")
    assert backbone._residency.get("own").own_tokenizer is None
    Manifest("text-generation", backbone.identity, added_tokens=("<law>",)).write(tmp_path / "own")
    with pytest.raises(CheckpointError, match="doesn't have the 1 new tokens"):
        backbone.load(tmp_path / "own")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", "{"),
        ("tokenizer.json", "[]"),
        ("tokenizer.json", None),
        ("tokenizer_config.json", json.dumps({"auto_map": {"AutoTokenizer": ["run.Tokenizer", None]}})),
    ],
)
def test_files_that_arent_a_tokenizer(padded, tmp_path, name, content):
    make_own(padded("llama"), tmp_path / "own", task="text-generation", family="llama")
    if content is None:  # alone, it is read by another way
        content = '{"version": "1.0"}'
        (tmp_path / "own/tokenizer_config.json").unlink()
    (tmp_path / "own" / name).write_text(content)
    (tmp_path / "own/run.py").write_text("raise SystemExit('code from an adapter was run')")
    backbone = Backbone.from_pretrained(str(padded("llama")))
    with pytest.raises(CheckpointError, match="its tokenizer's files can't be read as one"):
        backbone.load(tmp_path / "own")
    assert backbone.adapters == []


@pytest.mark.parametrize("content", ["[]", '{"version": "1.0"}'])
def test_a_bases_files_that_arent_a_tokenizer(tmp_path, content):
    base = make_base("llama", tmp_path / "base")
    (base / "tokenizer.json").write_text(content)
    with pytest.raises(BaseNotFoundError, match=r"base .*its tokenizer's files can't be read as one"):
        Backbone.from_pretrained(str(base))
