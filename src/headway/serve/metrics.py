"""Metrics for Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

REGISTRY = CollectorRegistry()
_WAITS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

ANSWERED = Counter("headway_requests", "Requests by path and status.", ("path", "status"), registry=REGISTRY)
SECONDS = Histogram(
    "headway_request_seconds", "Seconds from arrival to end of a request.", ("path",), buckets=_WAITS, registry=REGISTRY
)
READ = Counter("headway_prompt_tokens", "Prompt tokens of all requests.", ("model",), registry=REGISTRY)
WRITTEN = Counter("headway_written_tokens", "Generated tokens.", ("model",), registry=REGISTRY)
FIRST = Histogram(
    "headway_first_token_seconds", "Seconds to the first token.", ("model",), buckets=_WAITS, registry=REGISTRY
)
BETWEEN = Histogram(
    "headway_between_tokens_seconds",
    "Seconds from one token of a request to the next.",
    ("model",),
    buckets=_WAITS,
    registry=REGISTRY,
)


ProcessCollector(registry=REGISTRY)  # CPU time, memory, descriptors, start: where the system reports them
_NOW = {  # gauges; all other values of a scheduler are counters since its start
    "waiting": "Waiting sequences, preempted ones included.",
    "running": "Running sequences.",
    "blocks": "KV cache blocks in use, cached prefixes included.",
    "most_blocks": "Maximum number of KV cache blocks.",
}
_COUNTED = {
    "prefix_tokens": "Prompt tokens found in the prefix cache.",
    "prompt_tokens": "Prompt tokens that were computed.",
    "written_tokens": "Tokens that were generated.",
    "preemptions": "Sequences preempted by older ones, to be recomputed.",
    "guessed": "Draft tokens that were proposed.",
    "accepted": "Draft tokens that were accepted.",
}


class Counts:
    """Collects the values of the schedulers, by model, when the metrics are requested."""

    def __init__(self, counts: Callable[[], Mapping[str, Mapping[str, Any]]]) -> None:
        """`counts` returns the values of each model, by name."""
        self._counts = counts

    def collect(self) -> Iterator[Metric]:
        """The metric families."""
        found: dict[str, GaugeMetricFamily | CounterMetricFamily] = {}
        for model, numbers in self._counts().items():
            for name, number in numbers.items():
                if number is None:  # blocks, where there is no cache
                    continue
                if name not in found:
                    kind, help_ = (GaugeMetricFamily, _NOW) if name in _NOW else (CounterMetricFamily, _COUNTED)
                    found[name] = kind(f"headway_scheduler_{name}", help_[name], labels=["model"])
                found[name].add_metric([model], float(number))
        return iter(found.values())


def page(counts: Callable[[], Mapping[str, Mapping[str, Any]]]) -> bytes:
    """All metrics in Prometheus' text format."""
    own = CollectorRegistry()
    own.register(Counts(counts))
    return generate_latest(REGISTRY) + generate_latest(own)
