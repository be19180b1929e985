"""What ``lorary run`` and ``lorary compare`` ask: texts, and what a task needs beside them."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorary.hub.checkpoint import Checkpoint
from lorary.hub.cli.options import given_path
from lorary.hub.errors import UsageError
from lorary.hub.manifest import GENERATING, MULTI_LABEL

if TYPE_CHECKING:
    from lorary.adapters import Backbone
    from lorary.adapters.backbone.sources import Source

ContextOption = Annotated[str | None, typer.Option(help="For question answering: the text that answers TEXT.")]
ContextFileOption = Annotated[
    Path | None, typer.Option(parser=given_path, metavar="FILE", help="The text of --context, from a file.")
]
PairOption = Annotated[
    str | None, typer.Option(help="For adapters of sentence pairs: the second text; or a tab and it in each TEXT.")
]

_BATCH = 16  # prompts generated for at once: stdin may bring thousands


def read_texts(given: Sequence[str] | None, example: str) -> list[str]:
    """The texts of the command line, else a text a line on stdin; ``example`` is a call that has one.

    Raises:
        UsageError: there is none, or one isn't text.
    """
    return _encodable(list(given) if given else _read_lines(example))


def read_pairs(checkpoint: Checkpoint, inputs: list[str], second: str | None) -> list[dict[str, str]] | None:
    """The rows of an adapter of sentence pairs; None for every other adapter."""
    manifest = checkpoint.manifest
    # Embeddings may be learned from scored pairs, and are of single texts all the same.
    if manifest is None or manifest.task != "text-classification" or "text_pair" not in manifest.preprocessing.columns:
        if second is not None:
            raise UsageError("--pair is for adapters that were trained on sentence pairs; this one takes single texts")
        return None
    if second is not None:
        return [{"text": text, "text_pair": _encodable([second])[0]} for text in inputs]
    parts = [text.split("\t") for text in inputs]
    for number, part in enumerate(parts, start=1):
        if len(part) != 2 or not all(text.strip() for text in part):
            raise UsageError(
                f"text {number}: expected a pair, which this adapter was trained on; pass the second text with --pair, "
                "or put a tab between the two"
            )
    return [{"text": first, "text_pair": other} for first, other in parts]


def answer(
    backbone: Backbone,
    source: Source,
    name: str,
    texts: Sequence[str],
    *,
    passage: str | None = None,
    pairs: Sequence[dict[str, str]] | None = None,
    max_new_tokens: int | None = None,
    told: Mapping[str, Any] | None = None,
) -> list[Any]:
    """A loaded adapter's answer to each text, in its task's shape: what it writes, or what ``predict`` gives.

    Args:
        backbone: what it is loaded on.
        source: the adapter.
        name: the name that it is loaded under.
        texts: what is asked.
        passage: where answers are looked for, in question answering.
        pairs: the texts with their second ones, where the adapter reads pairs.
        max_new_tokens: of generated texts; its own where None.
        told: what its chat template is told, and ``schema`` or ``regex``, which what it writes has to match.
    """
    from lorary.adapters.predict.plain import plain

    task = task_of(source.checkpoint)
    if task in GENERATING:
        return write(backbone, source, name, texts, max_new_tokens, told)
    asked = pairs or (texts if passage is None else [{"question": text, "context": passage} for text in texts])
    answers = backbone.predict(asked, name, **_settings(task, source.checkpoint))
    return [plain(one) for one in answers]


def write(
    backbone: Backbone,
    source: Source,
    name: str | None,
    prompts: Sequence[str],
    max_new_tokens: int | None = None,
    told: Mapping[str, Any] | None = None,
) -> list[str]:
    """What the adapter of this name (None: the bare backbone) writes, greedily; as long as ``source`` says or told."""
    manifest = source.checkpoint.manifest
    most = max_new_tokens or (manifest.generation.max_new_tokens if manifest and manifest.generation else 64)
    batches = [list(prompts[start : start + _BATCH]) for start in range(0, len(prompts), _BATCH)]
    settings = {**(told or {}), "max_new_tokens": most, "do_sample": False}
    if any(settings.get(name) is not None for name in ("schema", "regex")):
        settings["num_beams"] = 1  # whatever the adapter was measured with: beams don't keep to a structure
    return [text for batch in batches for text in backbone.generate(batch, name, **settings)]


def task_of(checkpoint: Checkpoint) -> str:
    """The task of a checkpoint that the loader can serve.

    Raises:
        UnsupportedAdapterError: it can't.
    """
    from lorary.adapters import adapter
    from lorary.adapters.matching.support import check_supported

    check_supported(checkpoint)
    return adapter.task_of(checkpoint)


def _settings(task: str, checkpoint: Checkpoint) -> dict[str, Any]:
    """The parameters of ``predict`` that give what people want to read: whole entities, every label of a text."""
    from lorary.adapters.predict.text_classification import OWN

    if task == "token-classification":
        return {"aggregation_strategy": "first"}
    several = checkpoint.manifest is not None and checkpoint.manifest.problem_type == MULTI_LABEL
    return {"threshold": OWN} if task == "text-classification" and several else {}


def _read_lines(example: str) -> list[str]:
    if sys.stdin.isatty():
        raise UsageError(f"expected a text, as in: {example}, or lines on stdin")
    try:
        lines = [line.removeprefix("\ufeff").strip() for line in sys.stdin]
    except UnicodeDecodeError as error:
        raise UsageError(f"stdin: expected text in {error.encoding}, found other bytes ({error.reason})") from error
    texts = [line for line in lines if line]
    if not texts:
        raise UsageError("expected a text a line on stdin, found nothing")
    return texts


def _encodable(texts: list[str]) -> list[str]:
    # Bytes that the locale's encoding can't read arrive as lone surrogates, which no tokenizer takes.
    for number, text in enumerate(texts, start=1):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UsageError(f"text {number}: not valid {sys.getfilesystemencoding()}, convert it first") from error
    return texts


def read_passage(task: str, text: str | None, file: Path | None) -> str | None:
    """The text to find answers in: there for question answering, and for nothing else."""
    if task != "question-answering":
        if text is not None or file is not None:
            raise UsageError(f"--context and --context-file are for question answering; this adapter is for {task}")
        return None
    if (text is None) == (file is None):
        raise UsageError("question answering needs the text to look in: pass --context or --context-file, one of them")
    if file is None:
        return _encodable([str(text)])[0]
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--context-file {file}: expected a readable UTF-8 text ({error})") from error
