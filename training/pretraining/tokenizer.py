"""A tokenizer learned from a corpus, by the ``tokenizers`` library."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lorary.hub.errors import TrainingError
from lorary.training.pretraining.recipe import PretrainRecipe

_ENCODER = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_CAUSAL = ("<pad>", "<s>", "</s>")
_T5 = ("<pad>", "</s>", "<unk>")
_SPECIAL: Mapping[str, tuple[str, ...]] = {"bert": _ENCODER, "llama": _CAUSAL, "t5": _T5}
_SENTINELS = 100
_LETTERS = 1000  # the most that have pieces of their own; the others become [UNK]
_CHARACTERS = 10_000  # of a document that are handed over at once


def train_tokenizer(recipe: PretrainRecipe, texts: Sequence[str]) -> Any:
    """A fast tokenizer with the special tokens of the recipe's architecture.

    A causal model's texts begin with ``<s>``, and ``</s>`` ends a document; an encoder's stand in ``[CLS]`` and
    ``[SEP]``; T5's end with ``</s>``, and a hundred sentinels end its vocabulary, the first one last, as
    T5's own do. ``unigram``'s training adds floats in varying order, so its pieces may differ from run to run; the
    others' don't. Letters that no document holds still have tokens with ``bpe``, and are unknown with the others.

    Raises:
        TrainingError: the corpus has next to no words.
    """
    from tokenizers import Tokenizer, processors
    from transformers import PreTrainedTokenizerFast

    special = _SPECIAL[recipe.architecture]
    backend: Any = Tokenizer(_model(recipe))
    _set_up(backend, recipe)
    if recipe.tokenizer.kind == "wordpiece":
        backend = Tokenizer(_word_pieces(backend, texts, recipe, special))
        _set_up(backend, recipe)
        backend.add_special_tokens(list(special))
    else:
        backend.train_from_iterator(_pieces(texts), _trainer(recipe, special))
    ids = {token: backend.token_to_id(token) for token in special}
    if backend.get_vocab_size() <= len(special) + 1:
        raise TrainingError("the corpus has next to no words, so there is no vocabulary; give it more text")
    more: dict[str, Any] = {}
    if recipe.architecture == "t5":
        backend.post_processor = processors.TemplateProcessing(
            single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", ids["</s>"])]
        )
        names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
        inputs = ["input_ids", "attention_mask"]
        more["extra_special_tokens"] = [f"<extra_id_{number}>" for number in reversed(range(_SENTINELS))]
    elif recipe.architecture == "llama":
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", ids["<s>"])])
        names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
        inputs = ["input_ids", "attention_mask"]
    else:
        backend.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])],
        )
        names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), _ENCODER, strict=True))
        inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, model_max_length=recipe.model.context, model_input_names=inputs, **names, **more
    )


def _model(recipe: PretrainRecipe) -> Any:
    from tokenizers import models

    kind = recipe.tokenizer.kind
    if kind == "wordpiece":
        return models.WordPiece(unk_token="[UNK]")
    return models.Unigram() if kind == "unigram" else models.BPE()


def _set_up(backend: Any, recipe: PretrainRecipe) -> None:
    """How a text is cleaned, cut into words, and put together again."""
    from tokenizers import decoders, normalizers, pre_tokenizers

    kind, lowercase = recipe.tokenizer.kind, recipe.tokenizer.lowercase
    if kind == "wordpiece":
        backend.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        backend.decoder = decoders.WordPiece()
        return
    steps: list[Any] = [normalizers.NFKC()] if kind == "unigram" else []
    steps += [normalizers.Lowercase()] if lowercase else []
    if steps:
        backend.normalizer = normalizers.Sequence(steps)
    if kind == "unigram":
        backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    else:
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()


def _trainer(recipe: PretrainRecipe, special: tuple[str, ...]) -> Any:
    from tokenizers import pre_tokenizers, trainers

    sentinels = _SENTINELS if recipe.architecture == "t5" else 0
    settings: dict[str, Any] = {
        "vocab_size": recipe.tokenizer.vocab_size - sentinels,
        "special_tokens": list(special),
        "show_progress": False,
    }
    kind = recipe.tokenizer.kind
    if kind == "unigram":
        return trainers.UnigramTrainer(unk_token="<unk>" if "<unk>" in special else "[UNK]", **settings)
    return trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), **settings)


def _word_pieces(backend: Any, texts: Sequence[str], recipe: PretrainRecipe, special: tuple[str, ...]) -> Any:
    """A WordPiece model that is the same for the same corpus.

    The library's trainer numbers the inner letters (``##e``) in the order in which its hash table holds the words,
    another one in each run, and breaks ties between merges by these numbers. So they are numbered for it beforehand.
    """
    from tokenizers import models, trainers

    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(backend.normalizer.normalize_str(text))
    letters = [letter for letter in counts if not letter.isspace()]
    most = min(_LETTERS, recipe.tokenizer.vocab_size // 3)
    kept = sorted(letters, key=lambda letter: (-counts[letter], letter))[:most]
    inner = [f"##{letter}" for letter in sorted(kept)]
    trainer = trainers.WordPieceTrainer(
        vocab_size=recipe.tokenizer.vocab_size,
        special_tokens=[*special, *inner],
        limit_alphabet=len(kept),
        initial_alphabet=sorted(kept),
        show_progress=False,
    )
    backend.train_from_iterator(_pieces(texts), trainer)
    # In the trained tokenizer the letters are special tokens; in a new one they are pieces like the others.
    return models.WordPiece(backend.get_vocab(), unk_token="[UNK]")


def _pieces(texts: Iterable[str]) -> Iterable[str]:
    """Long documents by lines: the library counts words in each text that it is given, as a whole."""
    for text in texts:
        if len(text) <= _CHARACTERS:
            yield text
        else:
            yield from text.splitlines(keepends=True)
