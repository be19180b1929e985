"""``--base`` of the commands that find: an id, a fingerprint, or a base model's folder."""

from __future__ import annotations

from lorary.hub.cli.output import print_note
from lorary.hub.cli.transfers import tell
from lorary.hub.errors import BaseNotFoundError, UsageError
from lorary.hub.provenance.private import local_folder
from lorary.hub.registry import Registry


def base_to_find(catalogue: Registry, base: str | None) -> str | None:
    """What to look for: the fingerprint of a folder that the catalogue doesn't know yet, else what was given.

    Raises:
        UsageError: an empty text.
        BaseNotFoundError: the folder isn't there, or holds no model.
    """
    if base == "":
        raise UsageError("--base '': expected a base's id, its fingerprint or its folder")
    if base is None or catalogue.fingerprints(base):
        return base
    folder = local_folder(base)
    if folder is None and not base.startswith(("./", "../", "/", "~")):
        return base
    if folder is None or not (folder / "config.json").is_file():
        raise BaseNotFoundError(f"--base {base}: expected a base model's folder, found no config.json there")
    if not catalogue.path.exists():
        return base
    from lorary.adapters.base.loading import load_base

    tell(f"reading {base} for its fingerprint")
    # bfloat16 is what a fingerprint is made from, whatever the files have.
    fingerprint = load_base(base, dtype="bfloat16", device="cpu").identity.fingerprint
    print_note(f"{base} has the fingerprint {fingerprint}", aside=True)
    return fingerprint
