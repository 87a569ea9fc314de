"""A published checkpoint format as a table that reads both ways: which of its tensors make one of ours."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from torch import Tensor

from headway.errors import UserError
from headway.formats.settings import Settings
from headway.nn.models import ModelConfig

T = TypeVar("T")


def expect(part: Any, kind: type[T]) -> T:
    """A part of a configuration that must be of one kind for the family to say it; else a UserError."""
    if not isinstance(part, kind):
        raise UserError(
            f"a {type(part).__name__} stands where this family has a {kind.__name__}; choose another family"
        )
    return part


class Form(Protocol):
    """How tensors of a file become one of ours, and back without a change of a bit.

    `slices` are those of ours, to be laid one after the other: views where they can be, so that no number is moved
    twice. `sizes` are the rows of the slices that our tensor fuses (query, key, value; gate, up).
    """

    def slices(self, parts: Sequence[Tensor]) -> list[Tensor]: ...

    def split(self, whole: Tensor, sizes: Sequence[int]) -> list[Tensor]: ...


class StackedRows:
    """A tensor as it is, or several, each one slice, one after the other."""

    def slices(self, parts: Sequence[Tensor]) -> list[Tensor]:
        return list(parts)

    def split(self, whole: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        return list(whole.split(list(sizes)))


_ROWS = StackedRows()  # it has no state


class Whole:
    """One tensor that is in the file as it is here: fused (Phi-3's qkv), or a single number."""

    def slices(self, parts: Sequence[Tensor]) -> list[Tensor]:
        return list(parts)

    def split(self, whole: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        return [whole]


class Transposed:
    """One matrix whose rows are the inputs (GPT-2's Conv1D)."""

    def slices(self, parts: Sequence[Tensor]) -> list[Tensor]:
        return [parts[0].T]

    def split(self, whole: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        return [whole.T]


class OneRow:
    """A vector that the file holds as a matrix of one row (BART's bias of the logits), or a number as a vector of one
    (SigLIP's scale).
    """

    def slices(self, parts: Sequence[Tensor]) -> list[Tensor]:
        return [parts[0].squeeze(0)]

    def split(self, whole: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        return [whole[None]]


class Vector:
    """A matrix of one row that the file holds as a vector (CLIP's class token)."""

    def slices(self, parts: Sequence[Tensor]) -> list[Tensor]:
        return [parts[0][None]]

    def split(self, whole: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        return [whole.squeeze(0)]


@dataclass(frozen=True)
class Flat:
    """A matrix whose rows the file holds in another `shape` (a convolution)."""

    shape: tuple[int, ...]

    def slices(self, parts: Sequence[Tensor]) -> list[Tensor]:
        return [parts[0].flatten(1)]

    def split(self, whole: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        return [whole.unflatten(1, self.shape)]


class Tokens:
    """A matrix whose rows are tensors [1, 1, D] of their own in the file (class and distillation token)."""

    def slices(self, parts: Sequence[Tensor]) -> list[Tensor]:
        return [part.squeeze(0) for part in parts]

    def split(self, whole: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        return [row[None] for row in whole.split(1)]


@dataclass(frozen=True)
class PerHead:
    """One tensor of `parts` slices that alternate head by head (GPT-NeoX: query, key and value of each head)."""

    heads: int
    parts: int = 3

    def slices(self, parts: Sequence[Tensor]) -> list[Tensor]:
        return [self._swap(parts[0], self.heads, self.parts)]

    def split(self, whole: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        return [self._swap(whole, self.parts, self.heads)]

    def _swap(self, tensor: Tensor, outer: int, inner: int) -> Tensor:
        return tensor.unflatten(0, (outer, inner, -1)).transpose(0, 1).flatten(0, 2)


@dataclass(frozen=True)
class Interleaved:
    """Rows whose rotary pairs lie side by side in the file (llama2.c, GGUF), in halves here.

    `heads` are the heads of each part, 0 for a part that is not turned (values).
    """

    heads: tuple[int, ...]

    def slices(self, parts: Sequence[Tensor]) -> list[Tensor]:
        return [
            part.unflatten(0, (count, -1, 2)).transpose(1, 2).flatten(0, 2) if count else part
            for part, count in zip(parts, self.heads)
        ]

    def split(self, whole: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        return [
            part.unflatten(0, (count, 2, -1)).transpose(1, 2).flatten(0, 2) if count else part
            for part, count in zip(whole.split(list(sizes)), self.heads)
        ]


@dataclass(frozen=True)
class TensorRule:
    """`theirs` (names in the file) make `ours` (a name in the model's state).

    A `copy` is a tied tensor that some files hold once more: not read, and not written.
    """

    ours: str
    theirs: tuple[str, ...]
    form: Form = _ROWS
    copy: bool = False


def rule(ours: str, *theirs: str, form: Form = _ROWS) -> TensorRule:
    return TensorRule(ours, theirs, form)


def copy(ours: str, theirs: str) -> TensorRule:
    """`theirs` repeats `ours`, which another rule makes."""
    return TensorRule(ours, (theirs,), copy=True)


def linear(ours: str, *theirs: str, bias: bool = True, form: Form = _ROWS) -> list[TensorRule]:
    """The weight of a layer and, with `bias`, its bias under the same names."""
    ends = (".weight", ".bias") if bias else (".weight",)
    return [TensorRule(ours + end, tuple(name + end for name in theirs), form) for end in ends]


def vocabulary(config: Any, table: str, theirs: str, head: str = "heads.vocabulary") -> TensorRule:
    """The head's own weight or, where it is tied to `table`, a copy that some files hold."""
    own = config.tie in ("none", "embeddings")
    return rule(f"{head}.project.weight", theirs) if own else copy(table, theirs)


def layers(count: int, make: Callable[[int], Sequence[TensorRule]]) -> list[TensorRule]:
    """The rules of all layers."""
    return [found for i in range(count) for found in make(i)]


@dataclass(frozen=True)
class ChannelsLast:
    """A convolution's kernels [D, C, taps, taps], whose rows are [taps, taps, C] laid flat here."""

    taps: int
    channels: int

    def slices(self, parts: Sequence[Tensor]) -> list[Tensor]:
        return [parts[0].movedim(1, -1).flatten(1)]

    def split(self, whole: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        return [whole.unflatten(1, (self.taps, self.taps, self.channels)).movedim(-1, 1)]


@dataclass(frozen=True)
class Fused:
    """A tensor of the file that holds several of the rules', equal parts one after the other: `whole` in its name
    stands for each of `parts` in theirs. It is written so, too.
    """

    whole: str
    parts: tuple[str, ...]

    def names(self, name: str) -> list[str]:
        """Those of the rules' tensors that the tensor of this name holds."""
        return [name.replace(self.whole, part) for part in self.parts]


@dataclass(frozen=True)
class Beside:
    """Files beside the weights that say how inputs become numbers.

    `read(directory, settings, weights)` gives what they say, which `Usage.processor` keeps; `write(directory, settings,
    said)` writes them, and gives what config.json says then. Both raise UserError for what is missing.
    """

    read: Callable[[Path, Settings, Any], dict[str, Any]]
    write: Callable[[Path, dict[str, Any], Mapping[str, Any]], dict[str, Any]]


@dataclass(frozen=True)
class Stacked:
    """A tensor of the file that holds many of the rules': items along its first axis, and their parts along the second.

    `pattern` is a regular expression for its name; `names` are replacements that give the names of an item's parts,
    with `{}` where the number of the item stands (the experts of Mixtral, stacked by newer files).
    """

    pattern: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class Family:
    """A published family of models: its settings and tensors as tables, both ways.

    `read` turns its config.json, with the names in the file, into our configuration; `write` does the reverse, and
    gives "model_type" and "architectures" too. `read(write(config))` is `config`: that is checked before an export, so
    `write` may ignore what it cannot say. `rules` are the tensors of a configuration. `renames` are pairs of a regular
    expression and its replacement that bring older names, or those without a prefix, into the form of the rules;
    `stacked` are tensors of other files of the family that hold several of the rules' tensors each; `skipped` are
    expressions for tensors that are no weights (masks, position numbers). `older` are spellings of settings that
    `write` says in a newer way; an export leaves them out. `fused` are tensors of the file that hold several of the
    rules'; `beside` is how what lies beside the weights is read and written, where it is not transformers'.

    `fixed` are settings that the family's class in transformers computes with and that have to be null or one of these
    values here; `ignored` are those that change no output, even if they are fixed elsewhere (see `setting_keys`).
    `aliases` are common names that stand for settings of the family; `towers` are settings that hold those of a part.
    """

    name: str
    read: Callable[[Settings, Collection[str]], ModelConfig]
    write: Callable[[Any], dict[str, Any]]
    rules: Callable[[Any], list[TensorRule]]
    renames: tuple[tuple[str, str], ...] = ()
    skipped: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)  # what a config.json means by leaving a key out
    stacked: tuple[Stacked, ...] = ()
    older: tuple[str, ...] = ()
    fused: tuple[Fused, ...] = ()
    beside: Beside | None = None
    fixed: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    ignored: Collection[str] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)
    towers: tuple[str, ...] = ()
