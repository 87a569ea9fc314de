"""What the server counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

REGISTRY = CollectorRegistry()
_WAITS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

ANSWERED = Counter("headway_requests", "Requests by path and status.", ("path", "status"), registry=REGISTRY)
SECONDS = Histogram(
    "headway_request_seconds", "From the arrival of a request to its end.", ("path",), buckets=_WAITS, registry=REGISTRY
)
READ = Counter("headway_prompt_tokens", "Tokens of prompts that were asked with.", ("model",), registry=REGISTRY)
WRITTEN = Counter("headway_written_tokens", "Tokens that were written.", ("model",), registry=REGISTRY)
FIRST = Histogram(
    "headway_first_token_seconds", "From a request to its first token.", ("model",), buckets=_WAITS, registry=REGISTRY
)
BETWEEN = Histogram(
    "headway_between_tokens_seconds",
    "From one token of a request to its next.",
    ("model",),
    buckets=_WAITS,
    registry=REGISTRY,
)


ProcessCollector(registry=REGISTRY)  # processor time, memory, descriptors, start: where the system tells them
_NOW = {  # what is so now; all other numbers of a scheduler count from its start
    "waiting": "Sequences that wait, those that gave way to older ones too.",
    "running": "Sequences under way.",
    "blocks": "Blocks of keys and values in use, those of known prefixes too.",
    "most_blocks": "Blocks of keys and values at most.",
}
_COUNTED = {
    "prefix_tokens": "Tokens of prompts that were in the cache.",
    "prompt_tokens": "Tokens of prompts that were computed.",
    "written_tokens": "Tokens that were generated.",
    "preemptions": "Sequences that gave way to older ones, to be computed again.",
    "guessed": "Tokens that were guessed ahead.",
    "accepted": "Guessed tokens that were right.",
}


class Counts:
    """The numbers of the schedulers, read at each request, by model."""

    def __init__(self, counts: Callable[[], Mapping[str, Mapping[str, Any]]]) -> None:
        """`counts` gives the numbers of each model by their names."""
        self._counts = counts

    def collect(self) -> Iterator[Metric]:
        """One family of numbers after the other."""
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
    """All numbers as Prometheus reads them."""
    own = CollectorRegistry()
    own.register(Counts(counts))
    return generate_latest(REGISTRY) + generate_latest(own)
