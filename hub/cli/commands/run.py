"""``lorary run``: one adapter's answers to a few texts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lorary.hub.cli.answers import Rows, show_answers
from lorary.hub.cli.asking import (
    ContextFileOption,
    ContextOption,
    PairOption,
    answer,
    read_pairs,
    read_passage,
    read_texts,
    task_of,
    write,
)
from lorary.hub.cli.open_base import open_backbone
from lorary.hub.cli.options import DeviceMapOption, DeviceOption, JsonOption, RegistryOption, given_path, open_registry
from lorary.hub.cli.output import print_json, print_note
from lorary.hub.cli.told import demand_known, read_schema, read_template, read_tools
from lorary.hub.errors import UsageError
from lorary.hub.manifest import GENERATING

EXAMPLES = (
    'lorary run finance-tone "Profit rose 12%."',
    "lorary run ./runs/tone/finance-tone --base org/base --quantization nf4 < headlines.txt",
    'lorary run story-teller@prod "Once upon a time" --max-new-tokens 80',
    'lorary run contracts-qa "Who is the tenant?" --context-file lease.txt',
    'lorary run my-agent "How warm is it in Oslo?" --tools functions.json',
    'lorary run my-agent "How warm is it in Oslo?" --template enable_thinking=false',
    'lorary run contract-facts "The rent is 900 euros." --schema facts.json --max-new-tokens 200',
    'lorary run legal-words "The [MASK] shall pay the rent."',
    'lorary run legal-t5 "The <extra_id_0> shall pay <extra_id_1>."',
)


def command(
    reference: Annotated[
        str, typer.Argument(metavar="REF", help="name, name@3, name@alias, user/repo[@revision], or a folder.")
    ],
    texts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TEXT", help="Default: a text a line, on stdin. One that begins with a - goes after a --."
        ),
    ] = None,
    base: Annotated[str | None, typer.Option(help="The base model; default the one that the adapter names.")] = None,
    quantization: Annotated[str, typer.Option(help="Of the base: none, nf4, fp4 or int8.")] = "none",
    device: DeviceOption = None,
    device_map: DeviceMapOption = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="For generated texts; default the adapter's own, else 64.")
    ] = None,
    context: ContextOption = None,
    pair: PairOption = None,
    context_file: ContextFileOption = None,
    tools: Annotated[
        Path | None,
        typer.Option(
            parser=given_path, metavar="FILE", help="For adapters of chats: a JSON list of what the model may call."
        ),
    ] = None,
    template: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="For adapters of chats: what their template is told, such as enable_thinking=false; repeatable.",
        ),
    ] = None,
    schema: Annotated[
        Path | None,
        typer.Option(parser=given_path, metavar="FILE", help="A JSON schema, which generated texts keep to."),
    ] = None,
    regex: Annotated[str | None, typer.Option(help="A regular expression that generated texts match.")] = None,
    bare: Annotated[bool, typer.Option("--bare", help="Generate without the adapter too, to compare.")] = False,
    as_json: JsonOption = False,
    registry: RegistryOption = None,
) -> None:
    """Predict or generate with an adapter on its base."""
    inputs = read_texts(texts, 'lorary run REF "a text"')
    catalogue = open_registry(registry)
    from lorary.adapters.backbone.sources import find_checkpoint

    # All that can be said before the base is loaded, which may mean a long download.
    source = find_checkpoint(reference, catalogue)
    task = task_of(source.checkpoint)
    if bare and task not in GENERATING:
        raise UsageError(f"--bare compares generated texts; {source.reference} is for {task}")
    for flag, given in (("--tools", tools), ("--template", template)):
        if bare and given:
            raise UsageError(
                f"--bare gives the base the text as it stands, without a template to tell; leave {flag} out"
            )
    for flag, wanted in (("--schema", schema), ("--regex", regex)):
        if wanted is not None and task not in GENERATING:
            raise UsageError(f"{flag} is for generated texts; {source.reference} is for {task}")
    if schema is not None and regex is not None:
        raise UsageError("--schema and --regex: a text has one structure; leave one of them out")
    if task == "feature-extraction" and not as_json:
        raise UsageError(f"the answers of {source.reference} are vectors ({task}); ask for them with --json")
    told = {
        "tools": read_tools(source.checkpoint, tools) if tools else None,
        "chat_template_kwargs": read_template(source.checkpoint, template) if template else None,
        "schema": None if schema is None else read_schema(schema),
        "regex": regex,
    }
    passage = read_passage(task, context, context_file)
    pairs = read_pairs(source.checkpoint, inputs, pair)
    if variables := told["chat_template_kwargs"]:
        demand_known(source.checkpoint, variables, base, catalogue)
    backbone = open_backbone(
        source.checkpoint, base, catalogue, quantization=quantization, device=device, device_map=device_map
    )
    for note in backbone.load(source.checkpoint, source.name).notes:
        print_note(f"note: {note}", aside=True)
    asked: dict[str, Any] = {"max_new_tokens": max_new_tokens, "told": told}
    answers = answer(backbone, source, source.name, inputs, passage=passage, pairs=pairs, **asked)
    rows: Rows = [{"input": text, "output": one} for text, one in zip(inputs, answers, strict=True)]
    if bare:
        for row, text in zip(rows, write(backbone, source, None, inputs, **asked), strict=True):
            row["bare"] = text
    if as_json:
        shared = {} if passage is None else {"context": passage}
        print_json({"adapter": source.reference, "task": task, **shared, "rows": rows})
    else:
        show_answers(task, rows)
