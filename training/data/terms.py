"""Under which license, and in which languages, a recipe's rows are: what it says, else what their README says."""

from __future__ import annotations

from pathlib import Path

from lorary.hub.provenance.front_matter import Terms, read_terms
from lorary.training.recipe import Recipe


def data_terms(recipe: Recipe) -> Terms:
    """The recipe's ``data.license`` and ``data.language``; what they leave open, by the README beside the rows.

    That is the README of a dataset's folder, of a file's folder, or of a dataset from the Hub in the local cache.
    """
    data = recipe.data
    found = read_terms(readme) if (readme := _readme(data.train, data.revision)) else Terms()
    languages = (data.language,) if isinstance(data.language, str) else data.language
    return Terms(data.license or found.license, languages or found.languages)


def _readme(train: str, revision: str | None) -> Path | None:
    path = Path(train).expanduser()
    if path.exists():
        return (path if path.is_dir() else path.parent) / "README.md"
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(train, "README.md", revision=revision, repo_type="dataset")
    except HFValidationError:
        return None
    return Path(cached) if isinstance(cached, str) else None
