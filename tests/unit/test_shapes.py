"""What is wrong in shapes is seen at run time: `shapes` finds all that jaxtyping would."""

from __future__ import annotations

import sys
from importlib import import_module
from random import Random
from typing import Any

import pytest
import torch
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import Bool, Float, Float32, Int, Num, install_import_hook
from torch import Tensor

import shapes
from headway.nn.kernels import rotate

Wrong = (BeartypeCallHintViolation, TypeError)  # the second is jaxtyping's own
ones = torch.ones
AXES = ("", "B", "B D", "B B", "B 3", "3 B", "B D D", "B T D", "#B D", "B _", "... D", "*B D", "1")
AXES += ("B ... D", "...", "*B", "3 *B", "B *B D", "*#B D", "*_ D", "#B #D", "B #3", "#1 B", "*B #D")

MODULE = """
from __future__ import annotations
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from jaxtyping import Float
from torch import Tensor

def product(a: Float[Tensor, "B D"], b: Float[Tensor, "D C"] | None = None) -> Float[Tensor, "B C"]:
    return a if b is None else a @ b

def turned(a: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
    return a.T

def inner(a: Float[Tensor, "B D"]) -> tuple[Float[Tensor, "B D"], int]:
    def halved(b: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        return b / 2
    return halved(a.T).T, 1

def scaled(factor: int) -> Any:
    def of(a: Float[Tensor, "B D"], b: Float[Tensor, "D"]) -> Float[Tensor, "B D"]:
        return (a * b if factor < 9 else a.T) * factor
    def plain(a: int) -> int:
        return a * factor if factor < 9 else "many"
    return of, plain

def pieces(a: Float[Tensor, "B D"]) -> Iterator[Tensor]:
    yield from a

def late(value: Later) -> int:
    return 1

class Later:
    @property
    def count(self) -> int:
        return "one"

    @classmethod
    def made(cls, *names: str, **sizes: int) -> Later:
        return cls()

@dataclass(frozen=True)
class Pair:
    left: Float[Tensor, "N"]
    right: Float[Tensor, "N"]

    def both(self, other: Float[Tensor, "N"]) -> Any:
        return self.left + other
"""


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A module as those of headway are imported here."""
    folder = tmp_path_factory.mktemp("drawn")
    (folder / "annotated_functions.py").write_text(MODULE)
    sys.path.insert(0, str(folder))
    hook = install_import_hook(["annotated_functions"], "beartype.beartype")
    try:
        return import_module("annotated_functions")
    finally:
        hook.uninstall()
        sys.path.remove(str(folder))


def test_names_mean_the_same_in_arguments_and_result(drawn: Any) -> None:
    assert drawn.product(ones(2, 3), ones(3, 4)).shape == (2, 4)
    for wrong in ((ones(2, 3), ones(4, 3)), (ones(2), ones(2, 3)), (ones(2, 3).int(), ones(3, 4)), ([1.0], ones(1, 1))):
        with pytest.raises(Wrong):
            drawn.product(*wrong)
    assert drawn.turned(ones(2, 2)).shape == (2, 2)
    with pytest.raises(Wrong):
        drawn.turned(ones(2, 3))


def test_names_mean_nothing_outside(drawn: Any) -> None:
    assert drawn.inner(ones(2, 3))[0].shape == (2, 3)
    assert [drawn.product(ones(n, n)).shape[0] for n in (1, 2, 3)] == [1, 2, 3]


def test_an_inner_function_is_checked_at_each_call_of_the_outer_one(drawn: Any) -> None:
    """Its checks are made once, and it has its own values."""
    for factor in (2, 3, 9):
        of, plain = drawn.scaled(factor)
        for wrong in (lambda: of(ones(2, 3), ones(2)), lambda: plain("a")):  # noqa: B023
            with pytest.raises(Wrong):
                wrong()
        assert of.__annotations__["b"] == "Float[Tensor, 'D']"
        if factor < 9:
            assert of(ones(2, 3), ones(3)).tolist() == [[factor] * 3] * 2
            assert plain(5) == 5 * factor
        else:
            for wrong in (lambda: of(ones(2, 3), ones(3)), lambda: plain(5)):  # noqa: B023
                with pytest.raises(Wrong):
                    wrong()


def test_classes_generators_and_plain_types(drawn: Any) -> None:
    pair, later = drawn.Pair(ones(2), ones(2)), drawn.Later.made("a", size=1)
    assert len(list(drawn.pieces(ones(2, 3)))) == 2
    assert pair.both(ones(2)).tolist() == [2, 2]
    for wrong in (
        lambda: drawn.Pair(ones(2), ones(3)),
        lambda: pair.both(3),
        lambda: drawn.pieces(ones(2)),
        lambda: later.count,
        lambda: drawn.Later.made(1),
        lambda: drawn.Later.made(size="one"),
    ):
        with pytest.raises(Wrong):
            wrong()


def test_a_name_that_comes_later_is_any(drawn: Any) -> None:
    """As with jaxtyping; annotations stay what they were."""
    assert drawn.late(3) == 1
    assert drawn.late.__annotations__ == {"value": "Later", "return": "int"}
    assert drawn.turned.__annotations__["return"] == "Float[Tensor, 'B D']"


def test_plain_axes_are_compared_as_jaxtyping_compares_them() -> None:
    """Checks one after the other within one scope, of which each binds names for the next."""
    draw = Random(0)
    kinds = [each[Tensor, axes] for each in (Float, Int, Bool, Num, Float32) for axes in AXES]
    dtypes = (torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.int32, torch.bool)
    found = []
    for _ in range(600):
        pairs = [
            (draw.choice(kinds), ones([draw.choice((1, 2, 3)) for _ in range(draw.randrange(4))], dtype=dtype))
            for dtype in draw.choices(dtypes, (9, 1, 1, 3, 1, 1), k=12)
        ]
        told = []
        for check in (shapes.is_by_axes, shapes.is_by_jaxtyping):
            with shapes.jaxtyped("context"):
                told.append([check(kind, value) for kind, value in pairs])
        assert told[0] == told[1]
        found += told[0]
    assert 100 < sum(found) < len(found) - 100
    assert not any(shapes.is_by_axes(kind, value) for kind in kinds for value in (None, 1.0, [1.0]))


def test_headway_is_imported_so() -> None:
    given = ones(2, 3, 1, 4), ones(3, 1, 2), ones(3, 1, 2)  # torch would broadcast them
    assert rotate.__wrapped__(*given).shape == (2, 3, 1, 4)  # type: ignore[attr-defined]
    with pytest.raises(Wrong):
        rotate(*given)
