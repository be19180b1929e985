"""``lorary list --remote``: the adapters on the Hub or in a shared folder as a table."""

from __future__ import annotations

from dataclasses import asdict

from lorary.hub.cli.output import print_json, print_line, print_table

# What a narrow terminal does without, in this order.
_EXPENDABLE = ("updated", "access", "base")


def print_remote(
    owner: str | None, *, domain: str | None, task: str | None, base: str | None, limit: int, as_json: bool
) -> None:
    """Print what an owner has, everybody (None), or a shared folder; ``limit`` adapters at most."""
    from lorary.hub.remote import list_remote

    found, more = list_remote(owner, domain=domain, task=task, base=base, limit=limit)
    if as_json:
        print_json([asdict(row) for row in found])
        return
    if not found:
        print_line(f"No adapter of {owner} fits." if owner else "No adapter on the Hub fits.")
        return
    rows = [
        {
            "adapter": row.address,
            "domain": row.domain or "",
            "task": row.task or "",
            "base": row.base or "",
            "access": {True: "private", False: "public", None: ""}[row.private],
            "updated": row.updated or "",
        }
        for row in found
    ]
    print_table(rows, expendable=_EXPENDABLE)
    if more:
        print_line(f"There are more than {limit}; narrow it down, or ask for more with --limit.")
