"""The rows of the catalogue: reading them as :class:`Version` values, and what a checkpoint says for them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lorary.hub.checkpoint import Checkpoint
from lorary.hub.errors import CheckpointError, RegistryConflictError, RegistryError, UsageError
from lorary.hub.manifest import TASKS, Manifest
from lorary.hub.manifest_reading import parse_manifest
from lorary.hub.noted_task import noted_task, other_head
from lorary.hub.reference import normalise_domain
from lorary.hub.values import FileEntry, Version

if TYPE_CHECKING:
    from sqlite_utils import Database

# unsloth's and others' bases that are stored quantized by bitsandbytes: what their names end with.
_QUANTIZED_NAMES: Mapping[str, str] = {"-bnb-4bit": "nf4", "-bnb-8bit": "int8"}


@dataclass(frozen=True)
class Description:
    """What a checkpoint's own files say for its row; the columns of ``versions`` have the same names."""

    digest: str
    base_id: str | None
    base_fingerprint: str | None
    method: str
    quantization: str
    rank: int | None
    parameters: int
    size_bytes: int
    manifest: str | None


def describe(checkpoint: Checkpoint) -> Description:
    """Read a checkpoint's row off its files; this hashes the weights."""
    manifest = checkpoint.manifest
    quantization = manifest.numerics.quantization if manifest else _told_quantization(checkpoint)
    return Description(
        digest=checkpoint.digest,
        base_id=named_base(checkpoint),
        base_fingerprint=manifest.base.fingerprint if manifest else None,
        method=_method(checkpoint, quantization),
        quantization=quantization,
        rank=checkpoint.rank,
        parameters=checkpoint.parameters,
        size_bytes=checkpoint.size_bytes,
        manifest=manifest.to_json() if manifest else None,
    )


def named_base(checkpoint: Checkpoint) -> str | None:
    """The base that a checkpoint names: an id or a path."""
    if checkpoint.manifest:
        return checkpoint.manifest.base.id
    base = checkpoint.config.get("base_model_name_or_path")
    return base if isinstance(base, str) and base else None


def _told_quantization(checkpoint: Checkpoint) -> str:
    """Of a foreign adapter: what its trainer's settings say, else what the name of a pre-quantized base says."""
    recipe = checkpoint.told.get("recipe")
    told = recipe.get("quantization") if isinstance(recipe, dict) else None
    if isinstance(told, str) and told in ("nf4", "fp4", "int8"):
        return told
    return next(
        (kind for end, kind in _QUANTIZED_NAMES.items() if (named_base(checkpoint) or "").endswith(end)), "none"
    )


def _method(checkpoint: Checkpoint, quantization: str) -> str:
    if checkpoint.peft_type != "LORA":
        return checkpoint.peft_type.lower().replace("_", "-")
    for flag, method in (("use_dora", "dora"), ("use_rslora", "rslora")):
        if checkpoint.config.get(flag) is True:
            return method
    recipe = checkpoint.told.get("recipe")
    if isinstance(recipe, dict) and recipe.get("method") == "adalora":
        return "adalora"  # saved as the plain LoRA that its ranks came to
    # QLoRA is LoRA on a 4-bit base; on an 8-bit one it has no name of its own.
    return "qlora" if quantization.startswith(("nf4", "fp4")) else "lora"


def choose_domain(checkpoint: Checkpoint, domain: str | None) -> str:
    """The domain to catalogue under, in its one spelling: the caller's, else the manifest's.

    Raises:
        UsageError: neither names one.
    """
    if domain is None:
        domain = checkpoint.manifest.domain if checkpoint.manifest else None
    if domain is None:
        raise UsageError(f"{checkpoint.source}: doesn't say its domain; give one, such as 'legal'")
    return normalise_domain(domain)


def choose_task(checkpoint: Checkpoint, task: str | None) -> str:
    """The task to catalogue under: the caller's, the manifest's, another catalogue's, or the one that PEFT noted.

    Raises:
        UsageError: none of them names one, or it is unknown.
        RegistryConflictError: the caller's isn't the manifest's, or is another head's than the one that was trained.
    """
    trained = checkpoint.manifest.task if checkpoint.manifest else None
    if task is not None and trained and task != trained:
        raise RegistryConflictError(
            f"{checkpoint.source}: was trained for {trained}, not for {task!r}; leave the task out"
        )
    if task not in (None, trained, checkpoint.catalogued_task) and (other := other_head(checkpoint.config, task)):
        raise RegistryConflictError(
            f"{checkpoint.source}: was trained for {other}, not for {task!r}; leave the task out, or correct that "
            "file if it is wrong"
        )
    embeds = "feature-extraction" if checkpoint.embedding else None
    noted = checkpoint.catalogued_task or noted_task(checkpoint.config) or embeds
    chosen = task if task is not None else trained or noted
    if chosen is None:
        raise UsageError(f"{checkpoint.source}: doesn't say its task; give one of {', '.join(TASKS)}")
    return check_task(chosen)


def check_task(text: str) -> str:
    """Return ``text`` if it is a task.

    Raises:
        UsageError: it isn't; the message lists the tasks.
    """
    if text not in TASKS:
        raise UsageError(f"{text!r} isn't a task; expected one of {', '.join(TASKS)}")
    return text


def demand_task(reference: str, found: str) -> str:
    """The task that a version's row has, which anybody may have written.

    Raises:
        RegistryError: it isn't one.
    """
    if found not in TASKS:
        raise RegistryError(f"{reference}: the registry has {found!r} for its task; expected one of {', '.join(TASKS)}")
    return found


def damaged(error: Exception) -> str:
    """What to tell of a version whose rows don't hold what their tables say."""
    return f"the registry's rows are damaged ({error}); go back to a copy of it"


def select(db: Database, where: str = "1", parameters: Sequence[Any] = ()) -> dict[int, Version]:
    """Versions by row id, ordered by name and number; ``where`` may use ``a`` (adapters) and ``v`` (versions).

    Raises:
        RegistryError: a row doesn't hold what its table says.
    """
    source = f"FROM versions v JOIN adapters a ON a.id = v.adapter_id WHERE {where}"
    children = f"WHERE version_id IN (SELECT v.id {source})"
    files = _by_version(db.query(f"SELECT * FROM files {children} ORDER BY name", parameters))
    metrics = _by_version(db.query(f"SELECT * FROM metrics {children} ORDER BY split, name", parameters))
    texts = {
        table: _by_version(
            db.query(f"SELECT version_id, {column} AS text FROM {table} {children} ORDER BY 2", parameters)
        )
        for table, column in (("aliases", "name"), ("tags", "tag"), ("parents", "parent"))
    }
    versions: dict[int, Version] = {}
    for row in db.query(f"SELECT v.*, a.name, a.domain, a.task {source} ORDER BY a.name, v.number", parameters):
        named = (tuple(text_in(one["text"]) for one in texts[table][row["id"]]) for table in texts)
        try:
            versions[row["id"]] = _version(row, _files(files[row["id"]]), _metrics(metrics[row["id"]]), *named)
        except TypeError as error:
            raise RegistryError(f"{row['name']}@{row['number']}: {damaged(error)}") from error
    return versions


def _by_version(rows: Iterable[Mapping[str, Any]]) -> defaultdict[int, list[Mapping[str, Any]]]:
    found: defaultdict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        found[row["version_id"]].append(row)
    return found


def _files(rows: Iterable[Mapping[str, Any]]) -> dict[str, FileEntry]:
    return {text_in(row["name"]): FileEntry(text_in(row["sha256"]), whole_in(row["size"])) for row in rows}


def _metrics(rows: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        if not isinstance(row["value"], float):
            raise TypeError(f"expected a number, found {row['value']!r:.50}")
        found.setdefault(text_in(row["split"]), {})[text_in(row["name"])] = row["value"]
    return found


def _version(
    row: Mapping[str, Any],
    files: Mapping[str, FileEntry],
    metrics: Mapping[str, Mapping[str, float]],
    aliases: tuple[str, ...],
    tags: tuple[str, ...],
    parents: tuple[str, ...],
) -> Version:
    return Version(
        name=text_in(row["name"]),
        number=whole_in(row["number"]),
        digest=text_in(row["digest"]),
        domain=text_in(row["domain"] or None),  # an empty one is none
        task=text_in(row["task"]),
        base_id=_optional(row["base_id"]),
        base_fingerprint=_optional(row["base_fingerprint"]),
        method=text_in(row["method"]),
        quantization=text_in(row["quantization"]),
        rank=whole_in(row["rank"]) if row["rank"] is not None else None,
        parameters=whole_in(row["parameters"]),
        size_bytes=whole_in(row["size_bytes"]),
        created_at=text_in(row["created_at"]),
        strategy=text_in(row["strategy"]),
        metrics=metrics,
        aliases=aliases,
        tags=tags,
        parents=parents,
        files=files,
        manifest=_manifest(row["manifest"]),
    )


def _optional(value: Any) -> str | None:
    return None if value is None else text_in(value)


def text_in(value: Any) -> str:
    """A text of a row; a TypeError where it is none."""
    if not isinstance(value, str):
        raise TypeError(f"expected a text, found {value!r:.50}")
    return value


def whole_in(value: Any) -> int:
    """A count of a row; a TypeError where it is none."""
    if not isinstance(value, int) or value < 0:
        raise TypeError(f"expected a whole number, found {value!r:.50}")
    return value


def _manifest(text: Any) -> Manifest | None:
    # One row with a manifest that can't be read must not hide all the others; loading reads the file itself, and
    # `verify` compares the two.
    try:
        return parse_manifest(str(text), "manifest") if text is not None else None
    except CheckpointError:
        return None
