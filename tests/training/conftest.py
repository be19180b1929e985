"""Tiny bases with tokenizers of their own, and recipes for them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from lorary.training.recipe import Recipe
from lorary.training.recipe.methods import PEFT_METHODS
from samples import ROWS, bpe_tokenizer, encoder_decoder, save_base, wordpiece_tokenizer, write_jsonl


@pytest.fixture(scope="session")
def bases(tmp_path_factory) -> Callable[..., str]:
    """``bases("bert")`` is the folder of a tiny base of that family; made once.

    Of one layer, since each takes its time in every step; ``bases("bert", layers=2)`` where their number matters.
    """
    import transformers as t

    root = tmp_path_factory.mktemp("bases")
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}

    def make(family: str, layers: int = 1) -> str:
        folder = root / str(layers) / family
        if folder.exists():
            return str(folder)
        torch.manual_seed(0)
        usual = {**sizes, "num_hidden_layers": layers}
        if family == "llama":
            tokenizer = bpe_tokenizer()
            config = t.LlamaConfig(
                vocab_size=len(tokenizer), max_position_embeddings=256, bos_token_id=0, eos_token_id=1, **usual
            )
            model = t.LlamaForCausalLM(config)
        elif family == "gpt2":
            tokenizer = bpe_tokenizer()
            model = t.GPT2LMHeadModel(
                t.GPT2Config(
                    vocab_size=len(tokenizer), n_embd=32, n_layer=layers, n_head=2, n_positions=256,
                    bos_token_id=0, eos_token_id=1,
                )
            )  # fmt: skip
        elif family in ("t5", "t5-spans", "bart", "mbart", "nllb"):
            model, tokenizer = encoder_decoder(family, layers)
        else:
            tokenizer = wordpiece_tokenizer(segments=family.startswith("bert"))
            common = {"vocab_size": len(tokenizer), "pad_token_id": 0}
            model = {
                "bert": lambda: t.BertModel(t.BertConfig(**common, max_position_embeddings=64, **usual)),
                "modernbert": lambda: t.ModernBertForMaskedLM(
                    t.ModernBertConfig(
                        **common, **usual, bos_token_id=2, cls_token_id=2, eos_token_id=3, sep_token_id=3
                    )
                ),
                "bert-mlm": lambda: t.BertForMaskedLM(t.BertConfig(**common, max_position_embeddings=64, **usual)),
                "roberta": lambda: t.RobertaModel(t.RobertaConfig(**common, max_position_embeddings=66, **usual)),
                "distilbert": lambda: t.DistilBertModel(
                    t.DistilBertConfig(
                        **common, max_position_embeddings=64, dim=32, n_layers=layers, n_heads=2, hidden_dim=64
                    )
                ),
            }[family]()
        return str(save_base(model, tokenizer, folder))

    return make


@pytest.fixture
def make_recipe(tmp_path, recipe_in) -> Callable[..., Recipe]:
    """``make_recipe(task, family, **{"training.epochs": 1})``: a recipe with files of learnable rows."""
    return partial(recipe_in, tmp_path)


@pytest.fixture
def load_file(make_recipe, tmp_path):
    """``load_file(name, content, **settings)``: the data that a file of this content holds, and the notes on it."""
    from lorary.training.data import load_data

    def load(name, content, *task, **settings):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        notes: list[str] = []
        recipe = make_recipe(*task, **{"data.train": str(path), "data.test": None, **settings})
        return load_data(recipe, notes.append), notes

    return load


@pytest.fixture
def make_small(make_recipe) -> Callable[..., Recipe]:
    """As ``make_recipe``, with 8 held-out rows, whatever a module's own ``make_recipe`` has."""
    return partial(make_recipe, held=8)


@pytest.fixture(scope="session")
def recipe_in(bases) -> Callable[..., Recipe]:
    """``recipe_in(folder, ...)``: as ``make_recipe``, for what outlives a test.

    A held-out row is asked five times by a run and its gate, one by one in part, so there are few. A test of what was
    learned asks for 20, of which one or two may fall otherwise on another processor.
    """

    def make(
        folder: Path, task: str = "text-classification", family: str | None = None, *, rows: int = 40, held: int = 8,
        layers: int = 1, **settings: Any,
    ) -> Recipe:  # fmt: skip
        usual = {
            "text-generation": "llama", "fill-mask": "bert-mlm", "summarization": "t5", "translation": "bart",
        }  # fmt: skip
        family = family or usual.get(task, "bert")
        flags = {
            "name": "tiny", "domain": "Finance", "task": task, "base": bases(family, layers),
            "data.train": write_jsonl(folder / "train.jsonl", ROWS[task](rows)),
            "data.test": write_jsonl(folder / "test.jsonl", ROWS[task](held, seed=9)),
            "output": str(folder / "out"), "training.epochs": 2, "training.learning_rate": 0.01,
            "training.max_length": 64, "training.early_stopping": 0, "device": "cpu",
            "report.write": False,
        }  # fmt: skip
        if settings.get("method") not in PEFT_METHODS:
            flags["lora.rank"] = 4
        return Recipe.from_flags({**flags, **settings})

    return make


@pytest.fixture
def live(forks):
    """``live(recipe=..., registry=..., at=..., resume=...)``: a run's life in a process; its exit code and digest."""

    def send(recipe: str, registry: str, what: str = "train", at: str = "", resume: str | bool = False):
        ended = forks.run("lives:live", what, recipe, registry, at, resume)
        return [ended.code, ended.out or ended.err]

    return send
