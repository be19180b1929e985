"""``lorary run``: one adapter's answers to a few texts."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorary.hub.cli.opening import open_backbone
from lorary.hub.cli.options import JsonOption, RegistryOption, open_registry
from lorary.hub.cli.output import clean, print_json, print_line, print_table
from lorary.hub.errors import UsageError

if TYPE_CHECKING:
    from lorary.adapters import Backbone

EXAMPLES = (
    'lorary run finance-tone "Profit rose 12%."',
    "lorary run ./runs/tone/finance-tone --base org/base --quantization nf4 < headlines.txt",
    'lorary run story-teller@prod "Once upon a time" --max-new-tokens 80',
)

_GENERATING = ("text-generation", "summarization", "translation")
_BATCH = 16  # prompts generated for at once: stdin may bring thousands

Rows = list[dict[str, Any]]


def command(
    reference: Annotated[
        str, typer.Argument(metavar="REF", help="name, name@3, name@alias, user/repo[@revision], or a folder.")
    ],
    texts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TEXT...", help="Default: a text a line, on stdin. One that begins with a - goes after a --."
        ),
    ] = None,
    base: Annotated[str | None, typer.Option(help="The base model; default the one that the adapter names.")] = None,
    quantization: Annotated[str, typer.Option(help="Of the base: none, nf4 or int8.")] = "none",
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:0; default CUDA where there is one.")] = None,
    device_map: Annotated[str | None, typer.Option(help="auto: spread the base over all GPUs.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="For text generation.")] = 64,
    bare: Annotated[bool, typer.Option("--bare", help="Generate without the adapter too, to compare.")] = False,
    as_json: JsonOption = False,
    registry: RegistryOption = None,
) -> None:
    """Predict or generate with an adapter on its base."""
    inputs = _encodable(texts or _read_lines())
    catalogue = open_registry(registry)
    from lorary.adapters.adapter import task_of
    from lorary.adapters.sources import find_checkpoint
    from lorary.adapters.support import check_supported

    # All that can be said before the base is loaded, which may mean a long download.
    source = find_checkpoint(reference, catalogue)
    check_supported(source.checkpoint)
    task = task_of(source.checkpoint)
    if bare and task not in _GENERATING:
        raise UsageError(f"--bare compares generated texts; {source.reference} is for {task}")
    if task == "feature-extraction" and not as_json:
        raise UsageError(f"the answers of {source.reference} are vectors ({task}); ask for them with --json")
    backbone = open_backbone(source.checkpoint, base, quantization=quantization, device=device, device_map=device_map)
    for note in backbone.load(source.checkpoint, source.name).notes:
        print(f"note: {clean(note)}", file=sys.stderr)
    if task in _GENERATING:
        rows = _generate(backbone, inputs, source.name, max_new_tokens, bare)
    else:
        settings: dict[str, Any] = {"aggregation_strategy": "first"} if task == "token-classification" else {}
        answers = backbone.predict(inputs, source.name, **settings)
        rows = [{"input": text, "output": _plain(answer)} for text, answer in zip(inputs, answers, strict=True)]
    if as_json:
        print_json({"adapter": source.reference, "task": task, "rows": rows})
    else:
        _show(task, rows)


def _read_lines() -> list[str]:
    if sys.stdin.isatty():
        raise UsageError('expected a text, as in: lorary run REF "a text", or lines on stdin')
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


def _generate(backbone: Backbone, prompts: list[str], name: str, max_new_tokens: int, bare: bool) -> Rows:
    adapters = {"output": name, "bare": None} if bare else {"output": name}
    rows: Rows = []
    for start in range(0, len(prompts), _BATCH):
        batch = prompts[start : start + _BATCH]
        texts = {
            key: backbone.generate(batch, adapter, max_new_tokens=max_new_tokens, do_sample=False)
            for key, adapter in adapters.items()
        }
        rows += [{"input": prompt, **{key: texts[key][index] for key in texts}} for index, prompt in enumerate(batch)]
    return rows


def _show(task: str, rows: Rows) -> None:
    if task == "text-classification":
        print_table(
            [
                {"label": row["output"]["label"], "score": f"{row['output']['score']:.3f}", "text": row["input"]}
                for row in rows
            ]
        )
        return
    for row in rows:
        if task in _GENERATING:
            print_line(f"> {row['input']}")
            _show_text("with adapter", row["output"])
            if "bare" in row:
                _show_text("bare backbone", row["bare"])
        else:
            print_line(row["input"])
            _show_entities(row["input"], row["output"])


def _show_text(kind: str, text: str) -> None:
    first, *more = text.strip().splitlines() or [""]
    print_line(f"[{kind}] {first}".rstrip())
    for line in more:
        print_line(line)


def _show_entities(text: str, entities: list[dict[str, Any]]) -> None:
    for entity in entities:
        words = text[entity["start"] : entity["end"]]
        print_line(f"    {entity['entity_group']:<12} {entity['score']:.3f}  {words}")
    if not entities:
        print_line("    nothing found")


def _plain(value: Any) -> Any:
    """Numbers as JSON has them, out of whatever numpy kind they are."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value.item() if hasattr(value, "item") else value
