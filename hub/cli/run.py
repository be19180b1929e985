"""``lorary run``: one adapter's answers to a few texts."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorary.hub.cli.options import JsonOption, RegistryOption, open_registry
from lorary.hub.cli.output import print_error, print_json, print_line, print_table
from lorary.hub.errors import UsageError

if TYPE_CHECKING:
    from lorary.hub.checkpoint import Checkpoint

EXAMPLES = (
    'lorary run finance-tone "Profit rose 12%."',
    "lorary run ./runs/tone/finance-tone --base org/base --quantization nf4 < headlines.txt",
    'lorary run story-teller@prod "Once upon a time" --max-new-tokens 80',
)


def command(
    reference: Annotated[
        str, typer.Argument(metavar="REF", help="name, name@3, name@alias, user/repo[@revision], or a folder.")
    ],
    texts: Annotated[
        list[str] | None, typer.Argument(metavar="TEXT...", help="Default: a text a line, on stdin.")
    ] = None,
    base: Annotated[str | None, typer.Option(help="The base model; default the one that the adapter names.")] = None,
    quantization: Annotated[str, typer.Option(help="Of the base: none, nf4 or int8.")] = "none",
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:0; default CUDA where there is one.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="For text generation.")] = 64,
    bare: Annotated[bool, typer.Option("--bare", help="Generate without the adapter too, to compare.")] = False,
    as_json: JsonOption = False,
    registry: RegistryOption = None,
) -> None:
    """Predict or generate with an adapter on its base."""
    rows = texts or _read_lines()
    catalogue = open_registry(registry)
    from lorary.adapters.sources import find_checkpoint

    source = find_checkpoint(reference, catalogue)  # before the base is loaded, which takes longer
    base_id = base or _base_of(source.checkpoint)
    from lorary.adapters import Backbone

    backbone = Backbone.from_pretrained(base_id, quantization=quantization, device=device, slots=1, registry=catalogue)
    loaded = backbone.load(source.checkpoint, source.name)
    for note in loaded.notes:
        print(f"note: {note}", file=sys.stderr)
    if loaded.task == "text-generation":
        answers = _generate(backbone, rows, source.name, max_new_tokens, bare)
    else:
        settings = {"aggregation_strategy": "first"} if loaded.task == "token-classification" else {}
        answers = backbone.predict(rows, source.name, **settings)
    if as_json:
        print_json(
            {"adapter": source.reference, "task": loaded.task, "rows": _plain(list(zip(rows, answers, strict=True)))}
        )
        return
    _show(loaded.task, rows, answers)


def _read_lines() -> list[str]:
    if sys.stdin.isatty():
        raise UsageError('expected a text, as in: lorary run REF "a text", or lines on stdin')
    rows = [line.strip() for line in sys.stdin if line.strip()]
    if not rows:
        raise UsageError("expected a text a line on stdin, found nothing")
    return rows


def _base_of(checkpoint: Checkpoint) -> str:
    if checkpoint.manifest is not None:
        return checkpoint.manifest.base.id
    named = checkpoint.config.get("base_model_name_or_path")
    if not isinstance(named, str) or not named:
        raise UsageError(f"{checkpoint.source}: doesn't name its base; pass it with --base")
    return named


def _generate(backbone: Any, rows: list[str], name: str, max_new_tokens: int, bare: bool) -> list[dict[str, str]]:
    settings = {"max_new_tokens": max_new_tokens, "do_sample": False}
    answers = [{"with adapter": text} for text in backbone.generate(rows, name, **settings)]
    if bare:
        for answer, text in zip(answers, backbone.generate(rows, None, **settings), strict=True):
            answer["bare backbone"] = text
    return answers


def _show(task: str, rows: list[str], answers: list[Any]) -> None:
    if task == "text-classification":
        print_table(
            [
                {"label": a["label"], "score": f"{a['score']:.3f}", "text": row}
                for row, a in zip(rows, answers, strict=True)
            ]
        )
    elif task == "token-classification":
        for row, entities in zip(rows, answers, strict=True):
            print_line(row)
            for entity in entities:
                print_line(
                    f"    {entity['entity_group']:<12} {entity['score']:.3f}  {row[entity['start'] : entity['end']]}"
                )
            if not entities:
                print_line("    nothing found")
    elif task == "text-generation":
        for row, answer in zip(rows, answers, strict=True):
            print_line(f"> {row}")
            for kind, text in answer.items():
                print_line(f"[{kind}] {text.strip()}")
    else:
        print_error(f"the answer to the task {task!r} is numbers; ask for them with --json")


def _plain(value: Any) -> Any:
    """Numbers as JSON has them, out of whatever numpy kind they are."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value.item() if hasattr(value, "item") else value
