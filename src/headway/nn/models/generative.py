"""What generation needs of a model, whoever computes it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, Protocol

from jaxtyping import Float, Int
from torch import Tensor, nn

from headway.nn.models.transformer import Prompt

Cache = Literal["fp32", "int8"]  # the numbers that keys and values are kept in


class GenerationProgress(Protocol):
    """A generation under way: what B rows have of the past, and the next position of each."""

    @property
    def positions(self) -> Int[Tensor, "B"]: ...

    def select(self, rows: Int[Tensor, "R"], memory_rows: Int[Tensor, "N"] | None = None) -> Any:
        """Chosen rows, as a copy; the memories stay as they are where `memory_rows` is None."""
        ...

    def assign(self, target: Int[Tensor, "N"], source: Int[Tensor, "N"]) -> None:
        """Make rows `target` what rows `source` are, in place."""
        ...

    def at(self, positions: Int[Tensor, "B"]) -> Any:
        """With other next positions; a row at -1 is padding, which is not written."""
        ...


class Generative(Protocol):
    """A Transformer, an EncoderDecoder, or the engine's form of one."""

    config: Any

    def start(self, prompt: Prompt, capacity: int) -> tuple[Float[Tensor, "B C"], Any]:
        """Read the prompts; the logits after them, and a Progress with room for `capacity` positions a row."""
        ...

    def step(self, ids: Int[Tensor, "B"], decoding: Any) -> tuple[Float[Tensor, "B C"], Any]:
        """One more symbol of each row: the logits after it, and the Progress then."""
        ...

    @property
    def training(self) -> bool: ...

    def train(self, mode: bool = True) -> Any: ...

    def eval(self) -> Any: ...

    def parameters(self) -> Iterator[nn.Parameter]: ...
