"""Reading a recipe's YAML into plain values, with the line that each key stands on.

Safe YAML only: tags that build Python objects are refused. A key given twice is an error, where YAML itself would keep
the last one without a word.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lorary.hub.errors import RecipeError

_MAX_BYTES = 1_000_000


class _Loader(yaml.SafeLoader):
    """YAML 1.1's safe loader, but ``2e-4`` is a number as in YAML 1.2 (1.1 asks for ``2.0e-4``)."""

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        """A node's value. What has the form of a date, say, and is none is an error of YAML's with its line."""
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError) as error:  # whatever the value's own reader raises
            kind = node.tag.rpartition(":")[2]
            problem = f"{node.value!r:.60} can't be read as {kind} ({error}); a text stands in quotes"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from error


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(?:\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


@dataclass(frozen=True)
class RawRecipe:
    """A recipe's values as written, and where each dotted key was given (``line 7``, ``--set``, ``--base``)."""

    source: str
    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)

    def origin(self, dotted: str) -> str | None:
        """Where ``dotted`` was given, else the nearest key above it; None where neither was."""
        while dotted:
            if dotted in self.origins:
                return self.origins[dotted]
            dotted = dotted.rpartition(".")[0]
        return None

    def with_overrides(self, overrides: Iterable[str]) -> RawRecipe:
        """A copy with ``key=value`` settings put in; values are read as YAML.

        Raises:
            RecipeError: a setting has no ``=``, isn't YAML, or reaches into something that has no keys.
        """
        changed = RawRecipe(self.source, _copy(self.values), dict(self.origins))
        problems = []
        for override in overrides:
            dotted, equals, text = override.partition("=")
            dotted = dotted.strip()
            if not equals or not all(dotted.split(".")):
                problems.append(f"--set {override!r}: expected key=value, such as training.epochs=3")
                continue
            try:
                value = read_value(text)
            except ValueError as error:
                problems.append(f"--set {override!r}: {error}")
                continue
            problem = changed.put(dotted, value, "--set")
            if problem:
                problems.append(problem)
        if problems:
            raise RecipeError(self.source, problems)
        return changed

    def put(self, dotted: str, value: Any, origin: str) -> str | None:
        """Set one value; returns the problem if ``dotted`` reaches into something that has no keys."""
        *parents, last = dotted.split(".")
        here = self.values
        for depth, parent in enumerate(parents):
            below = here.get(parent)
            if below is None:
                below = here[parent] = {}
            if not isinstance(below, dict):
                return f"{origin} {dotted}: {'.'.join(parents[: depth + 1])} is {shown(below)}, which has no keys"
            here = below
        here[last] = value
        self.origins[dotted] = origin
        return None


def read_value(text: str) -> Any:
    """The value of a ``key=value`` setting, read as YAML.

    Raises:
        ValueError: it isn't YAML; the message says why.
    """
    try:
        return _copy(yaml.load(text, _Loader))
    except yaml.YAMLError as error:
        raise ValueError(f"the value isn't YAML ({_reason(error)}); quote it") from error
    except RecursionError as error:
        raise ValueError("the value isn't YAML (nested too deeply)") from error


def read_recipe(path: str | Path) -> RawRecipe:
    """Read a recipe file.

    Raises:
        RecipeError: the file is missing, isn't text, isn't safe YAML, gives a key twice or isn't a mapping.
    """
    file = Path(path).expanduser()
    try:
        if file.stat().st_size > _MAX_BYTES:
            raise RecipeError(str(file), [f"{file.stat().st_size} bytes is too large for a recipe; is this the data?"])
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise RecipeError(str(file), [f"no such file{near_file(file)}"]) from error
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it isn't UTF-8 text"
        raise RecipeError(str(file), [f"can't be read: {reason}"]) from error
    return parse_recipe(text, str(file))


def parse_recipe(text: str, source: str) -> RawRecipe:
    """Read a recipe's text; ``source`` names it in errors. Raises as :func:`read_recipe`."""
    try:
        node = yaml.compose(text, _Loader)
        if node is None:
            raise RecipeError(source, ["the file is empty; expected at least name, domain, task, base and data.train"])
        if not isinstance(node, yaml.MappingNode):
            raise RecipeError(source, ["expected keys and values (`name: ...`), found another kind of YAML"])
        origins: dict[str, str] = {}
        problems = list(_walk(node, "", origins))
        if problems:
            raise RecipeError(source, problems)
        values = _copy(yaml.load(text, _Loader))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark else ""
        raise RecipeError(source, [f"{line}{_reason(error)}"]) from error
    except RecursionError as error:
        raise RecipeError(source, ["nested too deeply for a recipe"]) from error
    return RawRecipe(source, values, origins)


def _walk(node: yaml.MappingNode, prefix: str, origins: dict[str, str]) -> Iterable[str]:
    """Note each key's line in ``origins``; yield a problem for each key that is given twice or isn't text."""
    for key, value in node.value:
        line = key.start_mark.line + 1
        if key.tag == "tag:yaml.org,2002:merge":
            continue
        if not isinstance(key, yaml.ScalarNode) or key.tag != "tag:yaml.org,2002:str":
            # Pattern tables may be keyed by layer names only, and a bare `on:` would silently become True.
            yield f"line {line}: expected a text as key, found {getattr(key, 'value', 'a collection')!r}; quote it"
            continue
        dotted = f"{prefix}{key.value}"
        if dotted in origins:
            yield f"line {line}: {dotted}: given twice, first on {origins[dotted]}; keep one of them"
            continue
        origins[dotted] = f"line {line}"
        if isinstance(value, yaml.MappingNode):
            yield from _walk(value, f"{dotted}.", origins)


def _reason(error: yaml.YAMLError) -> str:
    problem = str(getattr(error, "problem", None) or error)
    if "'\\t'" in problem:
        return "a tab; YAML is indented with spaces"
    if "could not determine a constructor" in problem:
        return f"{problem.removeprefix('could not determine a constructor for ')} is refused: recipes hold plain values"
    return f"not valid YAML: {problem}"


def in_order(problems: Iterable[str]) -> list[str]:
    """Problems by the line they stand on; those of overrides and flags last."""
    lines = [(re.match(r"line (\d+): ", problem), problem) for problem in problems]
    return [problem for _, problem in sorted(lines, key=lambda pair: int(pair[0][1]) if pair[0] else 1_000_000)]


def shown(value: Any, longest: int = 60) -> str:
    """A value as it would stand in a recipe, for messages."""
    if value is None:
        return "nothing"
    if isinstance(value, Mapping):
        return "a mapping" if value else "an empty mapping"
    if isinstance(value, (list, tuple)):
        text = f"[{', '.join(shown(item) for item in value)}]"
    elif isinstance(value, bool):
        text = str(value).lower()
    else:
        text = repr(value)
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def nearest(word: str, choices: Iterable[str]) -> str:
    """``; did you mean 'x'?`` where one of the choices is like ``word``, else nothing."""
    close = difflib.get_close_matches(str(word), list(choices), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def some(names: Sequence[str], most: int = 12) -> str:
    """The first names, and how many there are beside them."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def no_such_file(text: str) -> str:
    """What to say of a path that leads to no file; an address is none."""
    if "://" in text:
        return f"{text!r} is an address, expected a file or a dataset id; download it and name the file"
    return f"no such file {text!r}{near_file(Path(text).expanduser())}"


def near_file(path: Path) -> str:
    """A hint for a file that isn't there: the nearest name in its folder, or that the folder isn't there either."""
    if not path.parent.is_dir():
        return f"; there is no folder {str(path.parent)!r} (paths are relative to the working folder)"
    return nearest(path.name, (entry.name for entry in path.parent.iterdir()))


def section(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A section of a recipe's values; empty where there is none, or something else in its place."""
    found = values.get(key)
    return found if isinstance(found, Mapping) else {}


def _copy(value: Any) -> Any:
    """A copy of its own; a RecursionError where a YAML anchor makes a list or a table a part of itself."""
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list) else value
