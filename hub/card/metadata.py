"""A card's front matter, as the Hub reads it (https://huggingface.co/docs/hub/model-cards#model-card-metadata).

Its fields are made by ``huggingface_hub``'s own ``ModelCardData``. The Hub refuses a card with a license, a language or
a base that it can't read, so what can't be put in its form is left out here, and told in the card's text.
"""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING, Any

from lorary.hub.markup import short
from lorary.hub.provenance.origin import Origin
from lorary.hub.reference import normalise_domain
from lorary.hub.values import Version

if TYPE_CHECKING:
    import yaml
    from huggingface_hub import EvalResult

TAG = "lorary"
"""The tag of everything that lorary pushes."""
DOMAIN_TAG, TASK_TAG = "domain:", "task:"
"""What the tags of the domain and of the task begin with, so that a repository can be found by them."""

LICENSES = frozenset(
    """
    apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0
    bigcode-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0
    cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0
    cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0
    cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl
    gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl openrail++
    osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license fair-noncommercial-research-license
    llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 grok2-community gemma intel-research h-research unknown other
    """.split()
)
"""The licenses that the Hub knows by an identifier (https://huggingface.co/docs/hub/repositories-licenses)."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?", re.ASCII)
_NUMBER_IN_YAML_12 = re.compile(r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)[eE][-+]?[0-9]+|0o[0-7]+)$")
_LANGUAGE = re.compile(r"[a-z]{2,3}(?:-[A-Za-z0-9]{2,8})*|multilingual|code")


def card_tags(version: Version) -> tuple[str, ...]:
    """The tags by which a version is found on the Hub.

    ``lorary``, ``domain:legal``, ``task:summarization``, the domain alone, the method, and the version's own tags.
    """
    own = (version.domain, version.method, *version.tags)
    return tuple(
        dict.fromkeys((TAG, f"{DOMAIN_TAG}{version.domain}", f"{TASK_TAG}{version.task}", *map(_plain_tag, own)))
    )


def _plain_tag(text: str) -> str:
    return normalise_domain(text, "tag")


def hub_base(version: Version, origin: Origin) -> str | None:
    """The base's id on the Hub; None for a folder, and for a base that was pretrained in a registry."""
    base = version.base_id
    if base is None or not _HUB_ID.fullmatch(base) or ".." in base or "--" in base:
        return None
    # Ids without an owner are few and old; a name without a commit is more likely one of this registry's own bases.
    return base if "/" in base or origin.base_commit or version.manifest is None else None


def hub_license(text: str | None) -> str | None:
    """A license as the Hub spells it; None where it has no identifier."""
    spelled = re.sub(r"[\s_]+", "-", text.strip().lower()) if text else ""
    return spelled if spelled in LICENSES else None


def hub_languages(origin: Origin) -> list[str]:
    """The data's languages as the Hub spells them."""
    return [language for language in origin.languages if _LANGUAGE.fullmatch(language)]


def front_matter(version: Version, origin: Origin) -> str:
    """The YAML between the card's two lines of dashes, without them."""
    import yaml
    from huggingface_hub import ModelCardData

    results = _results(version, origin)
    extra: dict[str, Any] = _license(origin)
    base = hub_base(version, origin)
    if base:
        extra["base_model_relation"] = "adapter"
    data = ModelCardData(
        base_model=base,
        library_name="peft",
        pipeline_tag=version.task,
        language=hub_languages(origin) or None,
        datasets=sorted({part.hub_id for part in origin.data if part.hub_id}) or None,
        tags=list(card_tags(version)),
        metrics=sorted({result.metric_type for result in results}) or None,
        model_name=version.name,
        eval_results=results or None,
        **extra,
    )
    if not results:
        data.pop("model_name")
    return str(yaml.dump(data.to_dict(), Dumper=_dumper(), sort_keys=False, allow_unicode=True)).strip()


@cache
def _dumper() -> type[yaml.SafeDumper]:
    """PyYAML's, which quotes what YAML 1.1 has another meaning for than a text's; this one also what only 1.2 has.

    The Hub reads 1.2 (https://yaml.org/spec/1.2.2/#103-core-schema), where a tag 2e-4 would be a number, and refused.
    """
    import yaml

    class Dumper(yaml.SafeDumper):
        pass

    Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _NUMBER_IN_YAML_12, list("-+.0123456789"))
    return Dumper


def _license(origin: Origin) -> dict[str, Any]:
    """The adapter's license: its own if it came with one, else that of base and data if one is known or both agree."""
    told = [text for text in (origin.base_license, origin.data_license) if text]
    if own := origin.adapter_license:
        known_own = hub_license(own)
        return {"license": known_own} if known_own else {"license": "other", "license_name": _identifier(own)}
    known = {hub_license(text) for text in told}
    if not told:
        return {}
    if len(known) == 1 and (one := known.pop()) is not None:
        return {"license": one}
    parts = [f"{what}-{text}" for what, text in (("base", origin.base_license), ("data", origin.data_license)) if text]
    return {"license": "other", "license_name": _identifier("-".join(parts))}


def _identifier(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower())[:90].strip("-") or "unknown"


def _results(version: Version, origin: Origin) -> list[EvalResult]:
    """The held-out metrics, as the Hub's model index holds them."""
    from huggingface_hub import EvalResult

    held_out = next((part for part in origin.data if part.split == "test"), None)
    source = held_out or next((part for part in origin.data if part.split == "train"), None)
    name = short(source.name) if source else "held-out rows"
    kind = (source.hub_id if source else None) or re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-") or "unknown"
    return [
        EvalResult(
            task_type=version.task,
            task_name=task_name(version.task),
            dataset_type=kind,
            dataset_name=name if held_out else f"{name}, held-out rows",
            dataset_split="test",
            dataset_revision=source.revision if source and source.hub_id else None,
            metric_type=short(metric),
            metric_name=short(metric),
            metric_value=value,
        )
        for metric, value in version.metrics.get("test", {}).items()
    ]


def task_name(task: str) -> str:
    """A task for people: ``text-classification`` is "Text classification"."""
    return task.replace("-", " ").capitalize()
