"""Tokenizers with pieces of words, rows that a tiny model can learn, and files of them."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

WORDS = [
    "profit", "sales", "rose", "fell", "grew", "loss", "debt", "weak", "strong", "record",
    "cut", "the", "a", "in", "report", "of", "bank", "firm", "today", "said",
]  # fmt: skip
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def wordpiece_tokenizer(segments: bool = True) -> Any:
    """Knows a few words whole and every other one by its letters; ``segments``: tells a pair's texts apart."""
    from transformers import PreTrainedTokenizerFast

    letters = "abcdefghijklmnopqrstuvwxyz-.0123456789"
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *letters, *(f"##{letter}" for letter in letters)]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", model_max_length=64,
        model_input_names=["input_ids", *(["token_type_ids"] if segments else []), "attention_mask"],
    )  # fmt: skip


def bpe_tokenizer() -> Any:
    """Byte-level BPE that puts ``<s>`` first, with a chat template that writes ``<s>`` itself; no padding token."""
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    corpus = [" ".join(WORDS)] * 4 + ["### Instruction:\n\n### Response:\n"] * 4
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    backend.train_from_iterator(corpus, trainer)
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", model_max_length=256, chat_template=CHAT_TEMPLATE
    )


def save_base(model: Any, tokenizer: Any, folder: Path) -> Path:
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.15)  # larger than usual, so that rows differ visibly
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tone_rows(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Short headlines; the label is told by one word."""
    random_ = random.Random(seed)
    good, bad = ["rose", "grew", "strong", "record"], ["fell", "loss", "weak", "cut"]
    rows = []
    for index in range(count):
        label = ("bad", "good")[index % 2]
        words = random_.choices(["profit", "sales", "the", "a", "in", "report", "of", "bank", "firm", "today"], k=5)
        words.insert(random_.randrange(6), random_.choice(good if label == "good" else bad))
        rows.append({"text": " ".join(words), "label": label})
    return rows


def tag_rows(count: int, seed: int = 0) -> list[dict[str, list[str]]]:
    """Sentences in which each ``bank`` or ``firm`` is an organisation, with the word after it."""
    random_ = random.Random(seed)
    rows = []
    for _ in range(count):
        words, tags = [], []
        for _ in range(random_.randrange(2, 5)):
            words.append(random_.choice(["profit", "sales", "rose", "unheard-of"]))
            tags.append("O")
            if random_.random() < 0.6:
                words += [random_.choice(["bank", "firm"]), random_.choice(["report", "today"])]
                tags += ["B-ORG", "I-ORG"]
        rows.append({"tokens": words, "tags": tags})
    rows[0] = {"tokens": ["the", "bank", "report"], "tags": ["O", "B-ORG", "I-ORG"]}
    return rows


def prompt_rows(count: int, seed: int = 0) -> list[dict[str, str]]:
    """The completion repeats the prompt's last word."""
    random_ = random.Random(seed)
    prompts = [random_.choices(WORDS, k=3) for _ in range(count)]
    return [{"prompt": " ".join(words), "completion": words[-1]} for words in prompts]


def text_rows(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Documents of sentences in which each word is told by the one before it."""
    random_ = random.Random(seed)
    rows = []
    for _ in range(count):
        at = random_.randrange(len(WORDS))
        rows.append({"text": " ".join(WORDS[(at + 3 * step) % len(WORDS)] for step in range(random_.randrange(8, 24)))})
    return rows


ROWS = {
    "text-classification": tone_rows,
    "token-classification": tag_rows,
    "text-generation": prompt_rows,
    "fill-mask": text_rows,
}


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)
