"""Fair queueing: owners with requests get equal shares of the compute, and each owner's oldest requests come first."""

from __future__ import annotations

from bisect import insort
from collections.abc import Collection, Iterable

from headway.generate.sequences import Sample


class FairQueue:
    """The waiting samples, and the tokens computed for each owner with active samples (Sheng et al. 2024, virtual token
    counter).
    """

    def __init__(self) -> None:
        self._waiting: dict[str, list[Sample]] = {}
        self._served: dict[str, int] = {}

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def add(self, sample: Sample) -> None:
        """Queue a sample. A new owner starts with the count of the least-served owner."""
        self._served.setdefault(sample.owner, min(self._served.values(), default=0))
        insort(self._waiting.setdefault(sample.owner, []), sample, key=lambda entry: entry.age)

    def next(self) -> Sample | None:
        """The sample to start next."""
        return min((samples[0] for samples in self._waiting.values()), key=self._priority, default=None)

    def start(self, sample: Sample) -> None:
        """Remove a sample because it starts."""
        self._waiting[sample.owner].remove(sample)
        self._tidy()

    def drop(self, tickets: Collection[int]) -> None:
        """Remove requests."""
        for samples in self._waiting.values():
            samples[:] = [sample for sample in samples if sample.ticket not in tickets]
        self._tidy()

    def charge(self, owner: str, tokens: int) -> None:
        """Count tokens computed for an owner."""
        self._served[owner] += tokens

    def ordered(self, samples: Iterable[Sample]) -> list[Sample]:
        """Samples, those of the least-served owners first."""
        return sorted(samples, key=self._priority)

    def forget(self, present: Collection[str]) -> None:
        """Drop the counts for owners that have nothing waiting and are not in `present`."""
        self._served = {o: n for o, n in self._served.items() if o in present or o in self._waiting}

    def _priority(self, sample: Sample) -> tuple[int, tuple[int, int]]:
        return self._served[sample.owner], sample.age

    def _tidy(self) -> None:
        self._waiting = {owner: samples for owner, samples in self._waiting.items() if samples}
