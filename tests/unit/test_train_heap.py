"""Memory that one step frees is what the next one takes."""

from __future__ import annotations

import resource
import sys

import pytest
import torch

from headway.learn import memory
from headway.learn.memory import retained_heap

BYTES, TIMES = 1 << 24, 10


def _faults() -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(TIMES):
        torch.empty(BYTES // 4).fill_(1.0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(memory.glibc() is None, reason="only glibc says how it keeps memory")
def test_pages_are_cleared_once() -> None:
    with retained_heap():
        once = BYTES // resource.getpagesize()
        assert _faults() < 2 * once
        assert _faults() < once // 10


def test_another_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with retained_heap():
        assert memory.glibc() is None
