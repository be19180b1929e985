"""How answers are shown: one adapter's in tables or below each text, several adapters' below one another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lorary.hub.cli.output import print_line, print_table
from lorary.hub.manifest import GENERATING

Rows = list[dict[str, Any]]


def show_answers(task: str, rows: Rows) -> None:
    """Print each row's ``input`` and ``output``, in the form that suits the task."""
    if task == "text-classification":
        print_table([{**_labels(row["output"]), "text": row["input"]} for row in rows])
        return
    if task == "question-answering":
        print_table(
            [
                {"answer": row["output"]["answer"], "score": f"{row['output']['score']:.3f}", "question": row["input"]}
                for row in rows
            ]
        )
        return
    for row in rows:
        if task in GENERATING:
            print_line(f"> {row['input']}")
            _show_text("with adapter", row["output"])
            if "bare" in row:
                _show_text("bare backbone", row["bare"])
        elif task == "fill-mask":
            print_line(row["input"])
            _show_fillings(row["output"])
        else:
            print_line(row["input"])
            _show_entities(row["input"], row["output"])


def show_compared(task: str, texts: Sequence[str], answers: Mapping[str, Sequence[Any]]) -> None:
    """Print each text with what each of several adapters (by its reference) makes of it, and how often they agree."""
    width = max(map(len, answers))
    alike = 0
    for place, text in enumerate(texts):
        told = {name: _brief(task, text, found[place]) for name, found in answers.items()}
        alike += len({gist for gist, _ in told.values()}) == 1
        print_line(f"> {text}")
        for name, (gist, more) in told.items():
            first, *lines = (f"{gist} {more}".strip() or "(nothing)").splitlines()
            print_line(f"  {name:<{width}}  {first}")
            for line in lines:
                print_line(f"  {'':<{width}}  {line}")
        print_line("")
    print_line(f"The same answer to {alike} of {len(texts)} {'texts' if len(texts) > 1 else 'text'}.")


def _brief(task: str, text: str, answer: Any) -> tuple[str, str]:
    """What an answer says, by which answers are alike, and how sure it is of that."""
    if task in GENERATING:
        return answer.strip(), ""
    if task == "text-classification":
        labels = _labels(answer)
        return labels["label"], f"({labels['score']})" if labels["score"] else ""
    if task == "question-answering":
        return answer["answer"] or "(no answer)", f"({answer['score']:.3f})"
    if task == "fill-mask":
        masks = answer if isinstance(answer[0], list) else [answer]
        return ", ".join(words[0]["token_str"].strip() for words in masks), f"({masks[0][0]['score']:.3f})"
    spans = [f"{text[entity['start'] : entity['end']]} [{entity['entity_group']}]" for entity in answer]
    return ", ".join(spans), ""


def _labels(answer: Any) -> dict[str, str]:
    """The label of a text with its score; of a text that may have several, all of them or a dash."""
    several = answer if isinstance(answer, list) else [answer]
    return {
        "label": ", ".join(one["label"] for one in several) or "-",
        "score": ", ".join(f"{one['score']:.3f}" for one in several),
    }


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


def _show_fillings(fillings: list[Any]) -> None:
    masks = fillings if isinstance(fillings[0], list) else [fillings]
    for number, words in enumerate(masks, start=1):
        mask = f"mask {number}  " if len(masks) > 1 else ""
        for word in words:
            print_line(f"    {mask}{word['token_str'].strip():<16} {word['score']:.3f}  {word['sequence']}")
