"""Advice as a recipe's text, with its reasons above the settings."""

from __future__ import annotations

import textwrap

import yaml

from lorary.training.advisor.advise import Advice

_WIDTH = 120


def recipe_text(advice: Advice) -> str:
    """The advised recipe as YAML: what was given and advised, and what followed from it; reasons are comments."""
    told = yaml.safe_load(advice.recipe.given())
    body = yaml.safe_dump(
        {key: value for key, value in told.items() if value not in ({}, [])}, sort_keys=False, allow_unicode=True
    )
    lines = [f"{setting.key}: {setting.value}: {setting.why}" for setting in advice.settings]
    head = [f"Advised on {advice.rows} training rows; nothing speaks for other settings than those given."]
    if lines:
        head = [f"Advised on {advice.rows} training rows:", *lines]
    return "".join(f"# {line}\n" for text in head for line in textwrap.wrap(text, _WIDTH - 2)) + body
