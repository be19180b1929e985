"""What TRL's own trainers are given, for rows that are compared with theirs."""

from importlib.util import find_spec
from pathlib import Path


def trl_template(name):
    return (Path(find_spec("trl").origin).parent / "chat_templates" / f"{name}.jinja").read_text()


def table(rows):
    """A dataset of rows whose nested values stay what they are."""
    from datasets import Dataset, Features, Json, List

    kinds = {role: List(Json()) for role in rows[0]} | {"tools": Json()}
    return Dataset.from_list(rows, features=Features(kinds))


OFF = {
    "max_length": None, "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "report_to": "none",
    "disable_tqdm": True,
}  # fmt: skip
