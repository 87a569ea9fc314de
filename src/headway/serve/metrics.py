"""Metrics for Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

REGISTRY = CollectorRegistry()
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

REQUESTS = Counter("headway_requests", "Requests by path and status.", ("path", "status"), registry=REGISTRY)
REQUEST_SECONDS = Histogram(
    "headway_request_seconds",
    "Seconds from arrival to end of a request.",
    ("path",),
    buckets=_BUCKETS,
    registry=REGISTRY,
)
PROMPT_TOKENS = Counter("headway_prompt_tokens", "Prompt tokens of all requests.", ("model",), registry=REGISTRY)
GENERATED_TOKENS = Counter("headway_written_tokens", "Generated tokens.", ("model",), registry=REGISTRY)
FIRST_TOKEN_SECONDS = Histogram(
    "headway_first_token_seconds", "Seconds to the first token.", ("model",), buckets=_BUCKETS, registry=REGISTRY
)
BETWEEN_TOKENS_SECONDS = Histogram(
    "headway_between_tokens_seconds",
    "Seconds from one token of a request to the next.",
    ("model",),
    buckets=_BUCKETS,
    registry=REGISTRY,
)


ProcessCollector(registry=REGISTRY)  # CPU time, memory, descriptors, start: where the system reports them
_GAUGES = {  # gauges; all other scheduler values are counters since its start
    "waiting": "Waiting sequences, including preempted ones.",
    "running": "Running sequences.",
    "blocks": "KV cache blocks in use, including cached prefixes.",
    "most_blocks": "Maximum number of KV cache blocks.",
}
_COUNTERS = {
    "prefix_tokens": "Prompt tokens found in the prefix cache.",
    "prompt_tokens": "Prompt tokens that were computed.",
    "written_tokens": "Tokens that were generated.",
    "preemptions": "Sequences preempted by older ones, to be recomputed.",
    "guessed": "Draft tokens that were proposed.",
    "accepted": "Draft tokens that were accepted.",
}


class SchedulerCollector:
    """Collects the values of the schedulers, by model, when the metrics are requested."""

    def __init__(self, counts: Callable[[], Mapping[str, Mapping[str, Any]]]) -> None:
        """`counts` returns the values of each model, by name."""
        self._counts = counts

    def collect(self) -> Iterator[Metric]:
        """The metric families."""
        families: dict[str, GaugeMetricFamily | CounterMetricFamily] = {}
        for model, values in self._counts().items():
            for name, value in values.items():
                if value is None:  # blocks, where there is no cache
                    continue
                if name not in families:
                    kind, help_ = (GaugeMetricFamily, _GAUGES) if name in _GAUGES else (CounterMetricFamily, _COUNTERS)
                    families[name] = kind(f"headway_scheduler_{name}", help_[name], labels=["model"])
                families[name].add_metric([model], float(value))
        return iter(families.values())


def render(counts: Callable[[], Mapping[str, Mapping[str, Any]]]) -> bytes:
    """All metrics in Prometheus' text format."""
    registry = CollectorRegistry()
    registry.register(SchedulerCollector(counts))
    return generate_latest(REGISTRY) + generate_latest(registry)
