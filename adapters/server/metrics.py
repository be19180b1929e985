"""``/metrics``: the service's figures in Prometheus's format."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from lorary.adapters.backbone import Backbone
from lorary.adapters.engine import Completion, Engine

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100)


class Metrics:
    """Counts what callers got; what the backbone and its engine count themselves is read when somebody asks.

    The label ``model`` holds models that have answered, never what a caller made up.
    """

    def __init__(self, backbone: Backbone, engine: Callable[[], Engine | None]) -> None:
        own = self._registry = CollectorRegistry()
        self._rows = Counter("lorary_predicted_rows", "Rows that were predicted.", ["model"], registry=own)
        self._texts = Counter(
            "lorary_generated_texts", "Texts that were generated.", ["model", "finish_reason"], registry=own
        )
        self._asked = Counter("lorary_prompt_tokens", "Tokens of the prompts of these texts.", ["model"], registry=own)
        self._made = Counter("lorary_generated_tokens", "Tokens of these texts.", ["model"], registry=own)
        self._first = Histogram(
            "lorary_first_token_seconds", "From a request to its first token.", buckets=_SECONDS, registry=own
        )
        self._whole = Histogram(
            "lorary_text_seconds", "From a request to its last token.", buckets=_SECONDS, registry=own
        )
        self._registry.register(_Figures(backbone, engine))

    def predicted(self, models: Iterable[str | None]) -> None:
        """Rows were predicted, each with one of these models."""
        for model in models:
            self._rows.labels(model or "").inc()

    def completed(self, model: str, completion: Completion) -> None:
        """A text was generated."""
        self._texts.labels(model, completion.finish_reason).inc()
        self._asked.labels(model).inc(completion.prompt_tokens)
        self._made.labels(model).inc(len(completion.tokens))
        self._first.observe(completion.first_token_seconds)
        self._whole.observe(completion.seconds)

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self._registry)


class _Figures:
    """What the backbone and its engine count."""

    def __init__(self, backbone: Backbone, engine: Callable[[], Engine | None]) -> None:
        self._backbone = backbone
        self._engine = engine

    def describe(self) -> Iterable[Metric]:
        """Nothing: a registry would otherwise ask for all figures to learn their names."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """The figures at this moment."""
        stats = self._backbone.stats()
        yield GaugeMetricFamily("lorary_adapters", "Adapters that are loaded.", len(stats.adapters))
        yield GaugeMetricFamily("lorary_slots", "Slots on the device.", stats.slots)
        yield GaugeMetricFamily("lorary_slots_used", "Slots that hold an adapter.", stats.slots_used)
        yield GaugeMetricFamily("lorary_backbone_bytes", "Bytes of the backbone.", stats.backbone_bytes)
        yield GaugeMetricFamily("lorary_arena_bytes", "Bytes of the slots.", stats.arena_bytes)
        yield GaugeMetricFamily("lorary_host_bytes", "Bytes of adapters that wait on the host.", stats.host_bytes)
        yield CounterMetricFamily("lorary_slot_hits", "Calls that found their adapter in its slot.", stats.hits)
        yield CounterMetricFamily("lorary_slot_misses", "Calls that didn't.", stats.misses)
        yield CounterMetricFamily("lorary_swaps", "Copies of adapters into slots.", stats.swaps)
        yield CounterMetricFamily("lorary_swapped_bytes", "Bytes of these copies.", stats.swapped_bytes)
        if (opened := self._engine()) is None:
            return
        engine = opened.stats()
        yield GaugeMetricFamily("lorary_requests_waiting", "Generations that wait.", engine.waiting)
        yield GaugeMetricFamily("lorary_requests_running", "Generations that run.", engine.running)
        yield GaugeMetricFamily("lorary_cache_free", "Free part of the engine's cache, 0 to 1.", engine.cache_free)
        yield CounterMetricFamily("lorary_steps", "Passes of the engine's loop.", engine.steps)
        yield CounterMetricFamily("lorary_requests_cancelled", "Generations that were given up.", engine.cancelled)
        yield CounterMetricFamily("lorary_requests_failed", "Generations that went wrong.", engine.failed)
        yield CounterMetricFamily("lorary_reused_tokens", "Tokens of prompts found in the cache.", engine.reused_tokens)
