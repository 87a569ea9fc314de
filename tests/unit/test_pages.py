"""Memory in large pages."""

import mmap

import numpy as np
import pytest

from headway.io.machine_memory import large_pages


@pytest.mark.parametrize("size", [1, 100, (1 << 21) + 1])
def test_they_are_zeros_that_can_be_written_and_begin_where_vectors_do(size: int) -> None:
    room = large_pages(size)
    assert room.shape == (size,)
    assert not room.any()
    assert room.ctypes.data % 64 == 0
    room[:] = np.arange(size) % 251
    assert (room == np.arange(size) % 251).all()


def test_a_system_without_them_gives_small_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    room = large_pages(1000)
    assert room.shape == (1000,)
    assert not room.any()
    assert room.ctypes.data % 64 == 0


def test_a_view_keeps_them() -> None:
    views = [large_pages(1 << 16)[-8:] for _ in range(64)]
    for n, view in enumerate(views):
        view[:] = n
    assert [int(view[0]) for view in views] == list(range(64))


def test_more_than_there_is_is_said_so() -> None:
    with pytest.raises(MemoryError, match="1152921504606846976 bytes"):
        large_pages(1 << 60)
