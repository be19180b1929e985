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


def encoder_decoder(family: str, layers: int = 1) -> tuple[Any, Any]:
    """A tiny ``t5``, ``bart``, ``mbart`` (a target ends with its language) or ``nllb`` (it begins with it).

    ``t5-spans`` has a tokenizer with sentinels, as T5's own.
    """
    import transformers as t

    if family in ("mbart", "nllb"):
        marks = ["<s>", "<pad>", "</s>", "<unk>"]
        if family == "mbart":
            pieces = [(piece, -float(place)) for place, piece in enumerate([*marks, "\u2581", *pieces_of(WORDS)])]
            tokenizer = t.MBartTokenizer(vocab=pieces, src_lang="en_XX")
        else:
            # Byte-pair encoding gets to a word by way of all its beginnings.
            merges = [(word[:end], word[end]) for word in pieces_of(WORDS) for end in range(1, len(word))]
            merges = list(dict.fromkeys(merges))
            pieces = [*marks, "\u2581", *pieces_of(WORDS), *(first + second for first, second in merges)]
            vocabulary = {piece: place for place, piece in enumerate(dict.fromkeys(pieces))}
            tokenizer = t.NllbTokenizer(vocab=vocabulary, merges=merges)
        tokenizer.model_max_length = 64
    else:
        tokenizer = wordpiece_tokenizer(segments=False)
        tokenizer.eos_token = "[SEP]"
    if family == "t5-spans":
        sentinels = [f"<extra_id_{number}>" for number in reversed(range(32))]
        tokenizer.add_special_tokens({"extra_special_tokens": sentinels})
    common = {
        "vocab_size": len(tokenizer), "d_model": 32, "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }  # fmt: skip
    if family.startswith("t5"):
        config = t.T5Config(
            **common,
            d_ff=64,
            d_kv=16,
            num_layers=layers,
            num_heads=2,
            decoder_start_token_id=0,
            tie_word_embeddings=False,
        )
        return t.T5ForConditionalGeneration(config), tokenizer
    kinds = {
        "bart": (t.BartConfig, t.BartForConditionalGeneration),
        "mbart": (t.MBartConfig, t.MBartForConditionalGeneration),
        "nllb": (t.M2M100Config, t.M2M100ForConditionalGeneration),
    }
    make_config, make_model = kinds[family]
    config = make_config(
        **common, bos_token_id=tokenizer.bos_token_id, encoder_layers=layers, decoder_layers=layers,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64,
        max_position_embeddings=64, decoder_start_token_id=tokenizer.eos_token_id, forced_eos_token_id=None,
        forced_bos_token_id=None,
    )  # fmt: skip
    return make_model(config), tokenizer


def pieces_of(words: Iterable[str]) -> list[str]:
    """Words as SentencePiece has them, behind the mark for a space, and letters."""
    return [*(f"\u2581{word}" for word in words if len(word) > 1), *"abcdefghijklmnopqrstuvwxyz"]


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


ENDINGS = {"good": "the firm said sales grew", "bad": "the bank report said loss"}


def summary_rows(count: int, seed: int = 0) -> list[dict[str, str]]:
    """The headlines of :func:`tone_rows`, each with a sentence that tells its tone."""
    return [{"text": row["text"], "summary": ENDINGS[row["label"]]} for row in tone_rows(count, seed)]


def translation_rows(count: int, seed: int = 0) -> list[dict[str, str]]:
    """The same, as a language of two sentences."""
    return [{"source": row["text"], "target": row["summary"]} for row in summary_rows(count, seed)]


def question_rows(count: int, seed: int = 0, unanswerable: int = 0, words: int = 6) -> list[dict[str, Any]]:
    """The answer is the one verb in the context; each row of ``unanswerable`` (every third at most) has none."""
    random_ = random.Random(seed)
    rows = []
    for index in range(count):
        context = random_.choices(["profit", "sales", "the", "a", "in", "report", "of", "today"], k=words)
        verb, place = random_.choice(["rose", "fell", "grew"]), random_.randrange(words)
        start = len(" ".join([*context[:place], ""]))
        answers: dict[str, list[Any]] = {"text": [verb], "answer_start": [start]}
        if index % 3 == 2 and index // 3 < unanswerable:
            answers = {"text": [], "answer_start": []}
        else:
            context.insert(place, verb)
        question = random_.choice(["bank said", "the firm said"])
        rows.append({"id": str(index), "question": question, "context": " ".join(context), "answers": answers})
    return rows


def pair_rows(count: int, seed: int = 0, negative: bool = False) -> list[dict[str, Any]]:
    """The positive says the same in other words, each word having one; a negative has one word wrong."""
    random_ = random.Random(seed)
    half = len(WORDS) // 2
    others = dict(zip(WORDS[:half], WORDS[half:], strict=True))
    rows = []
    for _ in range(count):
        words = random_.sample(WORDS[:half], k=3)
        row = {"text": " ".join(words), "positive": " ".join(others[word] for word in words)}
        if negative:
            wrong = random_.choice([word for word in WORDS[half:] if word not in row["positive"]])
            row["negative"] = " ".join([*row["positive"].split()[:2], wrong])
        rows.append(row)
    return rows


def scored_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Two words; those of one kind are alike (1), others aren't (0)."""
    random_ = random.Random(seed)
    kinds = (["rose", "grew", "strong", "record"], ["fell", "loss", "weak", "cut"])
    rows = []
    for index in range(count):
        first, same = random_.randrange(2), index % 2
        words = [random_.choice(kinds[kind]) for kind in (first, first if same else 1 - first)]
        rows.append({"text": words[0], "text_pair": words[1], "score": same})
    return rows


ROWS = {
    "text-classification": tone_rows,
    "token-classification": tag_rows,
    "question-answering": question_rows,
    "feature-extraction": pair_rows,
    "text-generation": prompt_rows,
    "fill-mask": text_rows,
    "summarization": summary_rows,
    "translation": translation_rows,
}


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)
