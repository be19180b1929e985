"""``lorary run``: one adapter's answers to a few texts."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorary.hub.checkpoint import Checkpoint
from lorary.hub.cli.answers import GENERATING, Rows, show_answers
from lorary.hub.cli.open_base import open_backbone
from lorary.hub.cli.options import DeviceMapOption, DeviceOption, JsonOption, RegistryOption, given_path, open_registry
from lorary.hub.cli.output import print_json, print_note
from lorary.hub.cli.told import demand_known, read_template, read_tools
from lorary.hub.errors import UsageError
from lorary.hub.manifest import MULTI_LABEL

if TYPE_CHECKING:
    from lorary.adapters import Backbone

EXAMPLES = (
    'lorary run finance-tone "Profit rose 12%."',
    "lorary run ./runs/tone/finance-tone --base org/base --quantization nf4 < headlines.txt",
    'lorary run story-teller@prod "Once upon a time" --max-new-tokens 80',
    'lorary run contracts-qa "Who is the tenant?" --context-file lease.txt',
    'lorary run my-agent "How warm is it in Oslo?" --tools functions.json',
    'lorary run my-agent "How warm is it in Oslo?" --template enable_thinking=false',
    'lorary run legal-words "The [MASK] shall pay the rent."',
    'lorary run legal-t5 "The <extra_id_0> shall pay <extra_id_1>."',
)

_BATCH = 16  # prompts generated for at once: stdin may bring thousands


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
    context: Annotated[str | None, typer.Option(help="For question answering: the text that answers TEXT.")] = None,
    pair: Annotated[
        str | None, typer.Option(help="For adapters of sentence pairs: the second text; or a tab and it in each TEXT.")
    ] = None,
    context_file: Annotated[
        Path | None, typer.Option(parser=given_path, metavar="FILE", help="The text of --context, from a file.")
    ] = None,
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
    bare: Annotated[bool, typer.Option("--bare", help="Generate without the adapter too, to compare.")] = False,
    as_json: JsonOption = False,
    registry: RegistryOption = None,
) -> None:
    """Predict or generate with an adapter on its base."""
    inputs = _encodable(texts or _read_lines())
    catalogue = open_registry(registry)
    from lorary.adapters.adapter import task_of
    from lorary.adapters.backbone.sources import find_checkpoint
    from lorary.adapters.matching.support import check_supported

    # All that can be said before the base is loaded, which may mean a long download.
    source = find_checkpoint(reference, catalogue)
    check_supported(source.checkpoint)
    task = task_of(source.checkpoint)
    if bare and task not in GENERATING:
        raise UsageError(f"--bare compares generated texts; {source.reference} is for {task}")
    for flag, given in (("--tools", tools), ("--template", template)):
        if bare and given:
            raise UsageError(
                f"--bare gives the base the text as it stands, without a template to tell; leave {flag} out"
            )
    if task == "feature-extraction" and not as_json:
        raise UsageError(f"the answers of {source.reference} are vectors ({task}); ask for them with --json")
    told = {
        "tools": read_tools(source.checkpoint, tools) if tools else None,
        "chat_template_kwargs": read_template(source.checkpoint, template) if template else None,
    }
    passage = _passage(task, context, context_file)
    pairs = _pairs(source.checkpoint, inputs, pair)
    if variables := told["chat_template_kwargs"]:
        demand_known(source.checkpoint, variables, base, catalogue)
    backbone = open_backbone(
        source.checkpoint, base, catalogue, quantization=quantization, device=device, device_map=device_map
    )
    for note in backbone.load(source.checkpoint, source.name).notes:
        print_note(f"note: {note}", aside=True)
    if task in GENERATING:
        manifest = source.checkpoint.manifest
        own = manifest.generation.max_new_tokens if manifest and manifest.generation else 64
        rows = _generate(backbone, inputs, source.name, max_new_tokens or own, bare, told)
    else:
        settings = _settings(task, source.checkpoint)
        asked = pairs or (inputs if passage is None else [{"question": text, "context": passage} for text in inputs])
        answers = backbone.predict(asked, source.name, **settings)
        rows = [{"input": text, "output": _plain(answer)} for text, answer in zip(inputs, answers, strict=True)]
    if as_json:
        shared = {} if passage is None else {"context": passage}
        print_json({"adapter": source.reference, "task": task, **shared, "rows": rows})
    else:
        show_answers(task, rows)


def _pairs(checkpoint: Checkpoint, inputs: list[str], second: str | None) -> list[dict[str, str]] | None:
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


def _settings(task: str, checkpoint: Checkpoint) -> dict[str, Any]:
    """The parameters of ``predict`` that give what people want to read: whole entities, every label of a text."""
    from lorary.adapters.predict.text_classification import OWN

    if task == "token-classification":
        return {"aggregation_strategy": "first"}
    several = checkpoint.manifest is not None and checkpoint.manifest.problem_type == MULTI_LABEL
    return {"threshold": OWN} if task == "text-classification" and several else {}


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


def _passage(task: str, text: str | None, file: Path | None) -> str | None:
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


def _generate(
    backbone: Backbone, prompts: list[str], name: str, max_new_tokens: int, bare: bool, told: Mapping[str, Any]
) -> Rows:
    adapters = {"output": name, "bare": None} if bare else {"output": name}
    rows: Rows = []
    for start in range(0, len(prompts), _BATCH):
        batch = prompts[start : start + _BATCH]
        texts = {
            key: backbone.generate(batch, adapter, **told, max_new_tokens=max_new_tokens, do_sample=False)
            for key, adapter in adapters.items()
        }
        rows += [{"input": prompt, **{key: texts[key][index] for key in texts}} for index, prompt in enumerate(batch)]
    return rows


def _plain(value: Any) -> Any:
    """Numbers as JSON has them, out of whatever numpy kind they are."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value.item() if hasattr(value, "item") else value
