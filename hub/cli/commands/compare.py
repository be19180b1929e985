"""``lorary compare``: several adapters' answers to the same texts."""

from __future__ import annotations

from typing import Annotated

import typer

from lorary.hub.cli.answers import show_compared
from lorary.hub.cli.asking import (
    ContextFileOption,
    ContextOption,
    PairOption,
    answer,
    read_pairs,
    read_passage,
    read_texts,
    task_of,
)
from lorary.hub.cli.open_base import open_backbone
from lorary.hub.cli.options import (
    DeviceMapOption,
    DeviceOption,
    JsonOption,
    RegistryOption,
    demand_distinct,
    open_registry,
)
from lorary.hub.cli.output import print_json, print_note
from lorary.hub.errors import BaseMismatchError, UsageError

EXAMPLES = (
    'lorary compare finance-tone@prod finance-tone@candidate --text "Profit rose 12%."',
    "lorary compare finance-tone@1 finance-tone@2 ./runs/tone/finance-tone < headlines.txt",
    'lorary compare story-teller@1 story-teller@2 --text "Once upon a time" --max-new-tokens 80',
    'lorary compare contracts-qa@1 contracts-qa@2 --text "Who is the tenant?" --context-file lease.txt',
)


def command(
    references: Annotated[
        list[str],
        typer.Argument(
            metavar="REF", help="name, name@3, name@alias, user/repo[@revision], or a folder; of one task and one base."
        ),
    ],
    texts: Annotated[
        list[str] | None, typer.Option("--text", help="What to ask; repeatable. Default: a text a line, on stdin.")
    ] = None,
    base: Annotated[str | None, typer.Option(help="The base model; default the one that the first names.")] = None,
    quantization: Annotated[str, typer.Option(help="Of the base: none, nf4, fp4 or int8.")] = "none",
    device: DeviceOption = None,
    device_map: DeviceMapOption = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="For generated texts; default each adapter's own, else 64.")
    ] = None,
    context: ContextOption = None,
    pair: PairOption = None,
    context_file: ContextFileOption = None,
    as_json: JsonOption = False,
    registry: RegistryOption = None,
) -> None:
    """Show what several adapters make of the same texts.

    They share one backbone. `lorary eval` measures adapters, also of several bases, on rows with known answers.
    """
    if len(references) < 2:
        raise UsageError(f"expected two adapters or more; `lorary run {references[0]}` shows one's answers")
    demand_distinct(references)
    inputs = read_texts(texts, 'lorary compare REF REF --text "a text"')
    catalogue = open_registry(registry)
    from lorary.adapters.backbone.sources import find_checkpoint

    # All that can be said before the base is loaded, which may mean a long download.
    sources = [find_checkpoint(reference, catalogue) for reference in references]
    tasks = {source.reference: task_of(source.checkpoint) for source in sources}
    if len(set(tasks.values())) > 1:
        told = ", ".join(f"{reference} is for {task}" for reference, task in tasks.items())
        raise UsageError(f"expected adapters of one task, whose answers can be compared; {told}")
    task = tasks[sources[0].reference]
    if task == "feature-extraction":
        raise UsageError("embeddings can't be read; `lorary eval` measures how well they find what belongs together")
    passage = read_passage(task, context, context_file)
    pairs = [read_pairs(source.checkpoint, inputs, pair) for source in sources]
    first = sources[0].checkpoint
    settings = {"quantization": quantization, "device": device, "device_map": device_map}
    backbone = open_backbone(first, base, catalogue, slots=len(sources), **settings)
    answers = {}
    for reference, source, own_pairs in zip(references, sources, pairs, strict=True):
        try:
            loaded = backbone.load(source.checkpoint, reference)
        except BaseMismatchError as error:
            raise BaseMismatchError(f"{error}; `lorary eval` measures adapters of several bases") from error
        for note in loaded.notes:
            print_note(f"note: {reference}: {note}", aside=True)
        answers[reference] = answer(
            backbone, source, reference, inputs, passage=passage, pairs=own_pairs, max_new_tokens=max_new_tokens
        )
    if as_json:
        rows = [
            {"input": text, "outputs": {name: found[place] for name, found in answers.items()}}
            for place, text in enumerate(inputs)
        ]
        print_json({"adapters": references, "task": task, **({"context": passage} if passage else {}), "rows": rows})
    else:
        show_compared(task, inputs, answers)
