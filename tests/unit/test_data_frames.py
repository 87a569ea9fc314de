"""Frames of several parts read as one, and demonstrations that cannot be joined."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from lerobot_data import SIZE, made, pictures

from headway.data.array_store import ColumnWriter
from headway.data.episodes import concatenate_episodes
from headway.data.video import JoinedFrames, MappedFrames
from headway.errors import UserError


def test_frames_are_read_in_any_order_across_parts(tmp_path: Path) -> None:
    parts = [pictures(4, 0), pictures(2, 90), pictures(3, 140)]
    with ColumnWriter(tmp_path, dict.fromkeys("abc", np.uint8)) as columns:
        for name, part in zip("abc", parts):
            columns.append(name, part)
    joined = JoinedFrames([MappedFrames(tmp_path, name, len(part), SIZE) for name, part in zip("abc", parts)])
    whole, places = np.concatenate(parts), np.array([8, 0, 4, 3, 5, 4])
    assert (len(joined), joined.size) == (9, SIZE)
    np.testing.assert_array_equal(joined.read(places), whole[places])


def test_joining_names_both_sources() -> None:
    with pytest.raises(UserError, match="two has states of 3 numbers, but one has states of 6 numbers"):
        concatenate_episodes([made(cameras=()), made(cameras=(), states=3)], ["one", "two"])
