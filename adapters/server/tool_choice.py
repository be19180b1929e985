"""Tools that a caller wants called, OpenAI's ``tool_choice``: the answer is calls then, written by a schema of them.

As in vLLM the model writes them as JSON, whatever form its own chat template has for calls.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from lorary.adapters.arguments import shown

_NO_ARGUMENTS = {"type": "object", "properties": {}, "additionalProperties": False}
_OF_A_FILE = ("$schema", "$id")  # of a schema that stands alone; inside another they would say what that one is
_MORE_PROPERTIES = ("$ref", "allOf", "anyOf", "oneOf", "if")  # that may name properties besides
_MOST_CALLS = 16  # of an answer; without a bound a small model writes calls up to its last token


class Function(BaseModel):
    """The name of a function."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: Annotated[str, Field(min_length=1)]


class NamedTool(BaseModel):
    """One of the tools."""

    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["function"]
    function: Function


ToolChoice = Literal["none", "auto", "required"] | NamedTool


@dataclass(frozen=True)
class WantedCalls:
    """Calls that an answer has to be: JSON by ``schema``, the arguments of ``name``, or a list of calls (None)."""

    schema: Mapping[str, Any]
    name: str | None


def wanted_calls(
    choice: ToolChoice | None, tools: Sequence[Mapping[str, Any]] | None, *, one: bool
) -> WantedCalls | None:
    """What ``tool_choice`` wants of an answer, None where it may be any text; ``one``: a single call.

    Raises:
        ValueError: there is no such tool, or one isn't a function with a name and a schema of its parameters.
    """
    if choice in (None, "none", "auto"):
        return None
    try:
        functions = dict(_function(tool) for tool in tools or ())
        if isinstance(choice, NamedTool):
            name = choice.function.name
            if name not in functions:
                raise ValueError(f"tool_choice: no function {shown(name)} among the tools ({shown([*functions])})")
            return WantedCalls(functions[name], name)
        if not functions:
            raise ValueError('tool_choice: "required", and there are no tools')
        return WantedCalls(_schema_of_calls(functions, 1 if one else _MOST_CALLS), None)
    except RecursionError as error:
        raise ValueError("tools: nested too deeply") from error


def _function(tool: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """A tool's name, and the schema of its arguments."""
    function = tool.get("function")
    name = function.get("name") if isinstance(function, dict) else None
    if tool.get("type") != "function" or not isinstance(function, dict) or not isinstance(name, str) or not name:
        expected = '{"type": "function", "function": {"name": ..., "parameters": ...}}'
        raise ValueError(f"tools: expected {expected}, found {shown(tool)}")
    parameters = function.get("parameters")
    if parameters is None:
        return name, _NO_ARGUMENTS
    if not isinstance(parameters, dict):
        raise ValueError(f"tools: parameters of {shown(name)}: expected a JSON schema, found {shown(parameters)}")
    schema = {"type": "object", **{key: part for key, part in parameters.items() if key not in _OF_A_FILE}}
    if "properties" in schema and schema.keys().isdisjoint(_MORE_PROPERTIES):
        schema.setdefault("additionalProperties", False)  # a function takes no arguments but those that it has
    return name, schema


def _schema_of_calls(functions: Mapping[str, Mapping[str, Any]], most: int) -> dict[str, Any]:
    """The schema of a list of calls; schemas with references, which mean their own root, lie among the definitions."""
    definitions: dict[str, Any] = {}
    calls = []
    for number, (name, arguments) in enumerate(functions.items()):
        place = f"#/$defs/{number}"
        moved = _moved(arguments, place)
        if moved != arguments:
            definitions[str(number)], moved = moved, {"$ref": place}
        properties = {"name": {"const": name}, "arguments": moved}
        calls.append(
            {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}
        )
    return {"type": "array", "items": {"anyOf": calls}, "minItems": 1, "maxItems": most, "$defs": definitions}


def _moved(part: Any, place: str) -> Any:
    """A schema, or a part of one, whose references to its own root point to ``place``."""
    if isinstance(part, list):
        return [_moved(one, place) for one in part]
    if not isinstance(part, Mapping):
        return part
    return {
        key: place + value.removeprefix("#")
        if key == "$ref" and isinstance(value, str) and value.startswith("#")
        else _moved(value, place)
        for key, value in part.items()
    }
