"""Training on shards reads every row once per epoch, in an order that depends on seed and position only."""

from __future__ import annotations

import numpy as np
import pytest

from headway.data.prepared.shard_order import ShardOrder

SIZES = [40, 41, 0, 40, 7, 40, 39, 40, 40, 1, 40]


def stream(order: ShardOrder, place: int, stop: int, start: int = 0) -> list[tuple[int, int]]:
    shards, rows, _ = order.rows(place, np.arange(start, stop))
    return list(zip(shards.tolist(), rows.tolist()))


@pytest.mark.parametrize("places", [1, 2, 3])
def test_an_epoch_has_every_row_once(places: int) -> None:
    total, epochs = sum(SIZES), 4
    order = ShardOrder(SIZES, places, seed=3)
    rows = [row for place in range(places) for row in stream(order, place, epochs * total // places)]
    counts = np.zeros((len(SIZES), max(SIZES)), int)
    np.add.at(counts, tuple(np.array(rows).T), 1)
    inside = np.arange(max(SIZES)) < np.array(SIZES)[:, None]
    assert not counts[~inside].any()
    # Places end in the middle of shards, so a few rows of the last shards are missing or early.
    assert abs(counts[inside] - epochs).sum() <= 2 * places * order.window * max(SIZES)
    if places == 1:
        first = stream(order, 0, total - 3 * max(SIZES))
        assert len(set(first)) == len(first)


def test_the_order_is_a_function_of_seed_and_position() -> None:
    order, again = ShardOrder(SIZES, 2, 3), ShardOrder(SIZES, 2, 3)
    expected = stream(order, 1, 700)
    assert stream(again, 1, 700, 600) == expected[600:]  # a resumed run
    assert [stream(again, 1, n + 7, n)[0] for n in range(0, 70, 7)] == expected[:70:7]
    assert stream(ShardOrder(SIZES, 2, 4), 1, 700) != expected
    assert stream(order, 0, 700) != expected


def test_a_shard_belongs_to_one_place_and_few_are_open() -> None:
    order = ShardOrder([50] * 40, 4, 0)
    owners = [{shard for shard, _ in stream(order, place, 400)} for place in range(4)]
    assert not set.intersection(*owners)
    assert sum(map(len, owners)) <= 40
    for place in range(4):
        shards = [shard for shard, _ in stream(order, place, 400)]
        spans = [max(i for i, s in enumerate(shards) if s == shard) - shards.index(shard) for shard in owners[place]]
        assert max(spans) <= 50 * order.window
        assert len(set(shards[60:90])) > 1  # shards are mixed


def test_the_next_shard_is_known_ahead() -> None:
    order = ShardOrder([50] * 40, 2, 0)
    seen: list[int] = []
    for position in range(0, 600, 10):
        announced = order.upcoming(0, position)
        shards = [shard for shard, _ in stream(order, 0, position + 10, position)]
        assert set(shards) <= {*seen, announced} or position < 50
        seen += [*shards, announced]


def test_little_data_reach_every_place() -> None:
    order = ShardOrder([5], 3, 0)
    for place in range(3):
        assert {row for _, row in stream(order, place, 10)} == set(range(5))
