"""Do catalogued versions still answer as they did when they were trained? Each is loaded onto its base and asked."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator

import torch

from lorary.adapters.backbone import Backbone
from lorary.adapters.base.device import pick_device
from lorary.hub.errors import BaseMismatchError, LoraryError
from lorary.hub.registry import Registry
from lorary.hub.values import Finding, Version

_NAME = "verified"

_Arithmetic = tuple[str, str, str | None]  # the base, its quantization, and the dtype or None for the device's usual


def verify_by_loading(registry: Registry, versions: Iterable[Version], base: str | None = None) -> Iterator[Finding]:
    """Load versions through the loader and recompute their golden logits; each base is opened once.

    A base is opened as the adapters on it were trained, where this machine's kind of device is that of training.

    Args:
        versions: what to load.
        base: a folder or an id to load all of them onto, instead of the bases that they name.

    Yields:
        An error for a version that doesn't load, takes no effect or answers otherwise. A note where that can't be
        judged: its base isn't to be had or is another one by now, it carries no golden logits, or they were computed
        in other arithmetic; then with the cosine between the effect of then and now, where 1 is the same.
    """
    groups: dict[_Arithmetic, list[Version]] = {}
    for version in versions:
        chosen = base or version.base_id
        if chosen is None:
            yield Finding(version.reference, "not loaded: it doesn't name its base (--base says one)", "note")
        else:
            groups.setdefault(_arithmetic(version, chosen), []).append(version)
    for arithmetic, members in groups.items():
        yield from _verify_together(registry, members, arithmetic)
        gc.collect()  # before the next base is opened: a backbone's parts know each other


def _verify_together(registry: Registry, versions: Iterable[Version], arithmetic: _Arithmetic) -> Iterator[Finding]:
    base, quantization, dtype = arithmetic
    try:
        backbone = Backbone.from_pretrained(base, quantization=quantization, dtype=dtype, slots=1, registry=registry)
    except (LoraryError, torch.OutOfMemoryError) as error:
        for version in versions:
            yield Finding(version.reference, f"not loaded: {error}", "note")
        return
    for version in versions:
        yield from _verify(registry, version, backbone)


def _arithmetic(version: Version, base: str) -> _Arithmetic:
    trained = version.manifest.numerics if version.manifest else None
    if trained is None:
        return base, "none", None
    return base, trained.quantization, trained.dtype if trained.device == pick_device(None).type else None


def _verify(registry: Registry, version: Version, backbone: Backbone) -> Iterator[Finding]:
    try:
        backbone.load(registry.checkpoint(version), _NAME)
    except BaseMismatchError as error:
        yield Finding(version.reference, f"not loaded: {error}", "note")
        return
    except LoraryError as error:
        yield Finding(version.reference, f"doesn't load: {error}")
        return
    try:
        report = backbone.verify(_NAME)
        if report.matches is None:
            cosine = "" if report.cosine is None else f" (cosine of the effect {report.cosine:.4f})"
            yield Finding(version.reference, f"loads and takes effect; {report.note}{cosine}", "note")
    except LoraryError as error:
        yield Finding(version.reference, str(error))
    finally:
        backbone.unload(_NAME)
