"""The code of a card runs as it stands, with lorary and with PEFT alone, for every task."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from lorary.hub.card import make_card
from lorary.hub.importing import import_folders
from lorary.hub.manifest import (
    MULTI_LABEL,
    REGRESSION,
    BaseIdentity,
    Filling,
    Generation,
    Manifest,
    Pooling,
    Preprocessing,
    Prompt,
)
from tiny import VOCABULARY, make_adapter, make_base, make_config, make_tokenizer

CHAT = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
BASE = BaseIdentity("tiny-base")


def manifest(task, **changes):
    return Manifest(task=task, base=BASE, domain="tests", **changes)


CASES = {
    "labels": ("bert", "text-classification", {"labels": ("a", "b", "c")}),
    "pairs": (
        "bert", "text-classification",
        {"labels": ("a", "b", "c"), "preprocessing": Preprocessing({"text": "q", "text_pair": "r"}, 16)},
    ),
    "several": ("bert", "text-classification", {"labels": ("a", "b", "c"), "problem_type": MULTI_LABEL}),
    "tuned": (
        "bert", "text-classification",
        {"labels": ("a", "b", "c"), "problem_type": MULTI_LABEL, "thresholds": (0.2, 0.3, 0.4)},
    ),
    "number": ("bert", "text-classification", {"labels": ("score",), "problem_type": REGRESSION}),
    "tags": ("bert", "token-classification", {"labels": ("O", "B-x", "I-x"), "preprocessing": Preprocessing({}, 8)}),
    "question": ("bert", "question-answering", {}),
    "mask": ("bert", "fill-mask", {}),
    "gaps": ("t5", "fill-mask", {"filling": Filling("sentinels", 4)}),
    "infilled": ("bart", "fill-mask", {"filling": Filling("mask", 4)}),
    "states": ("bert", "feature-extraction", {}),
    "vectors": ("bert", "feature-extraction", {"pooling": Pooling("mean", normalize=True)}),
    "plain": ("llama", "text-generation", {"generation": Generation(4)}),
    "instruction": (
        "llama", "text-generation",
        {"prompt": Prompt("instruction", "### It's \"here\":\n{prompt}\n"), "generation": Generation(4, num_beams=2)},
    ),
    "chat": ("llama", "text-generation", {"prompt": Prompt("chat", chat_template=CHAT), "generation": Generation(4)}),
    "told": (
        "llama", "text-generation",
        {
            "prompt": Prompt("chat", None, CHAT + "{{ day }}", {"day": "It's", "b": [None, False]}),
            "generation": Generation(4),
        },
    ),
    "summary": (
        "t5", "summarization", {"preprocessing": Preprocessing(prefix="summarize: "), "generation": Generation(4)},
    ),
}  # fmt: skip


# Only a manifest tells how gaps are filled.
KINDS = [
    (case, own) for case, (_, _, fields) in CASES.items() for own in (True, False) if own or "filling" not in fields
]


@pytest.fixture(scope="module")
def base_of(tmp_path_factory):
    """A function that gives the base of a case; most have that of their family."""
    made = {}

    def base(case):
        family = CASES[case][0]
        key = case if case in ("mask", "gaps") else family
        if key in made:
            return made[key]
        more = {"vocab_size": VOCABULARY + 4} if case == "gaps" else {}
        made[key] = make_base(family, tmp_path_factory.mktemp(key) / "tiny-base", **more)
        if case == "mask":
            transformers.AutoModelForMaskedLM.from_config(make_config(family)).save_pretrained(made[key])
        if case == "gaps":
            tokenizer = make_tokenizer(family)
            tokenizer.add_special_tokens({"extra_special_tokens": [f"<extra_id_{number}>" for number in range(4)]})
            tokenizer.save_pretrained(made[key])
        return made[key]

    return base


@pytest.mark.parametrize(("case", "own"), KINDS)
def test_samples_run(case, own, base_of, tmp_path, registry, monkeypatch, capsys):
    family, task, fields = CASES[case]
    base = base_of(case)
    monkeypatch.chdir(tmp_path)
    Path("tiny-base").symlink_to(base)
    made = "seq2seq" if family in ("t5", "bart") else task
    folder = make_adapter(base, tmp_path / "tone", task=made, labels=len(fields.get("labels", "123")))
    if own:
        replace(manifest(task), **fields).write(folder)
    version = registry.add(folder, name="tone", domain="tests", task=task)
    version = replace(version, base_id="tiny-base")  # a foreign adapter's config has the whole path
    card = make_card(version, registry.checkpoint(version))
    samples = re.findall(r"```python\n(.*?)\n```", card, re.DOTALL)
    assert len(samples) == 2
    for sample in samples:
        exec(compile(sample, case, "exec"), {})
        assert capsys.readouterr().out.strip(), sample


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(("family", "mode"), [("bert", "mean"), ("bert", "cls"), ("llama", "last")])
@pytest.mark.parametrize("own", [True, False], ids=["manifest", "sentence-transformers"])
def test_the_embedding_of_a_sample_is_that_of_predict(
    family, mode, normalize, own, base_of, tmp_path, registry, monkeypatch
):
    """Of a text that is too long; with a manifest and with what sentence-transformers leaves."""
    base = base_of("plain" if family == "llama" else "vectors")
    monkeypatch.chdir(tmp_path)
    Path("tiny-base").symlink_to(base)
    folder = make_adapter(base, tmp_path / "like", task="feature-extraction")
    if own:
        fields = {"pooling": Pooling(mode, normalize), "preprocessing": Preprocessing({}, 5)}
        manifest("feature-extraction", **fields).write(folder)
    else:
        kinds = [("Transformer", ""), ("Pooling", "1_Pooling"), *([("Normalize", "2")] if normalize else [])]
        config = {"pooling_mode": "lasttoken" if mode == "last" else mode}
        settings = {"prompts": {"query": "the bank "}, "default_prompt_name": "query"}
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling/config.json").write_text(json.dumps(config))
        (folder / "modules.json").write_text(json.dumps([{"type": kind, "path": path} for kind, path in kinds]))
        (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 5}')
        (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))
        list(import_folders(registry, folder, domain="tests"))
    version = registry.add(folder, name="like", domain="tests") if own else registry.resolve("like")
    version = replace(version, base_id="tiny-base")
    card = make_card(version, registry.checkpoint(version))
    ours, theirs = re.findall(r"```python\n(.*?)\n```", card, re.DOTALL)
    found = {}
    exec(compile(ours, "lorary", "exec"), found)
    exec(compile(theirs, "PEFT", "exec"), found)
    expected = found["backbone"].predict("The committee meets again in Geneva on Monday.", adapter="like")
    assert found["embedding"].tolist() == pytest.approx(expected, abs=1e-5)
    assert (sum(value**2 for value in expected) == pytest.approx(1)) is normalize


@pytest.mark.parametrize("case", ["labels", "tags"])
def test_samples_run_on_a_base_with_a_head_for_other_labels(case, tmp_path, registry, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    family, task, fields = CASES[case]
    base = make_base(family, tmp_path / "tiny-base")
    folder = make_adapter(base, tmp_path / "tone", task=task, labels=3)
    classes = {"text-classification": "SequenceClassification", "token-classification": "TokenClassification"}
    getattr(transformers, f"AutoModelFor{classes[task]}").from_pretrained(base, num_labels=5).save_pretrained(base)
    replace(manifest(task), **fields).write(folder)
    version = registry.add(folder, name="tone", domain="tests", task=task)
    for sample in re.findall(r"```python\n(.*?)\n```", make_card(version, registry.checkpoint(version)), re.DOTALL):
        exec(compile(sample, case, "exec"), {})
        assert capsys.readouterr().out.strip(), sample


def test_numbers_are_the_same_by_either_sample_on_a_base_that_was_saved_in_bfloat16(
    tmp_path, registry, monkeypatch, capsys
):
    """transformers loads it as it was saved, and would round a number around 290 to an even one."""
    monkeypatch.chdir(tmp_path)
    base = make_base("bert", tmp_path / "tiny-base")
    transformers.AutoModel.from_pretrained(base, dtype=torch.bfloat16).save_pretrained(base)
    folder = make_adapter(base, tmp_path / "price", task="text-classification", labels=1)
    tensors = load_file(folder / "adapter_model.safetensors")
    tensors["base_model.model.classifier.bias"] += 290
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    manifest("text-classification", labels=("price",), problem_type=REGRESSION).write(folder)
    version = registry.add(folder, name="price", domain="tests", task="text-classification")
    card = make_card(version, registry.checkpoint(version))
    for sample in re.findall(r"```python\n(.*?)\n```", card, re.DOTALL):
        exec(compile(sample, "sample", "exec"), {})
    ours, theirs = (float(re.search(r"\d+\.\d+", line)[0]) for line in capsys.readouterr().out.split("\n") if line)
    assert theirs == pytest.approx(ours, abs=1e-3)
    assert ours % 1


@pytest.mark.parametrize(
    ("family", "made", "task", "lora"),
    [
        ("bert", "text-classification", None, {"modules_to_save": ["classifier"]}),
        ("bert", "feature-extraction", None, {}),
        ("llama", "text-generation", None, {}),
        ("t5", "seq2seq", "summarization", {}),
        ("llama", "text-generation", "summarization", {}),
    ],
)
def test_samples_where_peft_noted_the_class(family, made, task, lora, tmp_path, registry, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    base = make_base(family, tmp_path / "tiny-base")
    folder = make_adapter(base, tmp_path / "it", task=made, task_type=None, **lora)
    version = replace(registry.add(folder, name="it", domain="tests", task=task), base_id="tiny-base")
    samples = re.findall(r"```python\n(.*?)\n```", make_card(version, registry.checkpoint(version)), re.DOTALL)
    assert len(samples) == 2
    for sample in samples:
        exec(compile(sample, family, "exec"), {})
    assert ("labels = " in samples[1]) is bool(lora)
    assert (" :]" in samples[1]) is (family == "llama")  # a decoder goes on with the prompt


def test_a_folder_that_would_be_taken_for_another_task_has_no_sample_with_lorary(tmp_path, registry):
    folder = make_adapter(make_base("llama", tmp_path / "base"), tmp_path / "vectors", task="text-generation")
    version = registry.add(folder, name="vectors", domain="tests", task="feature-extraction")
    card = make_card(version, registry.checkpoint(version))
    assert "from lorary.adapters" not in card
    assert "With PEFT alone" in card
