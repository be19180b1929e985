"""Settings of the tasks that make one text of another, and that other tasks don't have."""

from __future__ import annotations

import string
from collections.abc import Iterator, Mapping
from typing import Any

from lorary.hub.template_kwargs import template_kwargs_problem
from lorary.training.recipe.raw import section, shown
from lorary.training.recipe.tasks import TASK_FACTS

Problems = Iterator[tuple[str, str]]

_BEAM_SETTINGS = {"length_penalty": 1.0}


def rewriting(values: Mapping[str, Any]) -> Problems:
    """What summarization and translation can't have, and what only they have."""
    task = values.get("task")
    facts = TASK_FACTS.get(str(task))
    if facts is None:
        return
    data, training = section(values, "data"), section(values, "training")
    if not facts.rewrites:
        able = " and ".join(able for able, other in TASK_FACTS.items() if other.rewrites)
        for name, given, keys in (
            ("data", data, ("target_lang",) if facts.masks else ("source_lang", "target_lang")),
            ("training", training, ("max_target_length",)),
        ):
            for key in keys:
                if given.get(key) is not None:
                    yield f"{name}.{key}", f"only {able} have it; the task is {task}"
    else:
        yield from _languages(data)
        yield from _prompt(section(values, "prompt"))
    yield from _generation(values, facts.rewrites)


def _languages(data: Mapping[str, Any]) -> Problems:
    for one, other in (("source_lang", "target_lang"), ("target_lang", "source_lang")):
        if data.get(one) is not None and data.get(other) is None:
            yield f"data.{other}", f"missing, since data.{one} is given; name both languages or neither"


def _prompt(prompt: Mapping[str, Any]) -> Problems:
    if prompt.get("learn") is not None:
        yield "prompt.learn", "only the target is learned; leave it out"
    form = prompt.get("format") or "instruction"
    if isinstance(prompt.get("template"), str):
        if form != "instruction":
            yield "prompt.template", f"only format 'instruction' has one, the format is {form!r}"
        yield from template_problems(prompt["template"])
    yield from chat_problems(prompt, form)


def chat_problems(prompt: Mapping[str, Any], form: str) -> Problems:
    """Only chats have a chat template, and it is told what it can be told."""
    if prompt.get("chat_template") is not None and form != "chat":
        yield "prompt.chat_template", f"only format 'chat' has one, the format is {form!r}"
    kwargs = prompt.get("chat_template_kwargs")
    if kwargs is not None and form != "chat":
        yield "prompt.chat_template_kwargs", f"only format 'chat' has a template to tell, the format is {form!r}"
    elif isinstance(kwargs, Mapping) and (problem := template_kwargs_problem(kwargs)):
        yield "prompt.chat_template_kwargs", problem


def template_problems(template: str) -> Problems:
    """A template holds ``{prompt}`` once and no other field."""
    try:
        fields = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    except ValueError:
        fields = []
    if template.count("{prompt}") != 1 or fields != ["prompt"]:
        yield "prompt.template", f"expected a text with {{prompt}} in it once, found {shown(template)}"


def _generation(values: Mapping[str, Any], rewrites: bool) -> Problems:
    generation, task = section(values, "generation"), values.get("task")
    given = {key: value for key, value in generation.items() if value is not None}
    if rewrites:
        if given.get("rows") == 0:
            yield "generation.rows", f"{task} is measured on generated texts; expected at least 1 row"
    elif task != "text-generation":
        for key in given:
            yield f"generation.{key}", f"{task} generates nothing"
        return
    elif not given.get("rows"):
        for key in given.keys() - {"rows"}:
            yield f"generation.{key}", "nothing is generated for generation.rows: 0; give the rows to generate for"
        return
    elif section(section(values, "data"), "columns").get("completion") is None:
        yield "generation.rows", "only rows of prompt and completion have a text to compare generated ones with"
    elif given.get("max_new_tokens") is None:
        yield "generation.max_new_tokens", "missing; expected the longest answer in tokens, such as 128"
    if given.get("num_beams", 1) == 1:
        for key, off in _BEAM_SETTINGS.items():
            if given.get(key, off) != off:
                yield f"generation.{key}", "only beams have it; set generation.num_beams above 1 or leave it out"
