"""CTranslate2's model folders: a model.bin, which is no pickle but plain variables, with a tokenizer beside it.

version | name and revision of the specification | variables: name, shape, dtype, bytes | aliases: name, variable
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple, NoReturn

import torch
from torch import Tensor

from headway.checkpoints.cursor import Cursor
from headway.checkpoints.mapped import Mapped, tensor_bytes
from headway.errors import UserError

FILE = "model.bin"
VERSION = 6
WHISPER = "WhisperSpec"
_DTYPES = (torch.float32, torch.int8, torch.int16, torch.int32, torch.float16, torch.bfloat16)
_SCALE, _ZERO = "_scale", "_zero"  # beside quantised weights
_LEAST = 2 + 1 + 1 + 4  # bytes that a variable takes at least
# What a folder's specification is, and what headway has for it.
_KNOWN = {
    "TransformerSpec": "a translation model; load it from where it was converted from",
    "TransformerDecoderModelSpec": "a language model; load it from where it was converted from",
    "TransformerEncoderModelSpec": "an encoder; load it from where it was converted from",
}


class Variable(NamedTuple):
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    size: int


class ModelBin:
    """The variables of a model.bin by name (Weights), all of it checked.

    `aliases` are second names of variables (a head that is tied to the embedding). Raises UserError for a file that is
    not whole, or of another version.
    """

    def __init__(self, path: Path) -> None:
        self.source = str(path)
        self._file = Mapped(Path(path))
        cursor = Cursor(self._file)
        version = cursor.number("I", "the version")
        if version != VERSION:
            raise UserError(
                f"{path} is version {version} of CTranslate2's format (or another kind of file); headway reads version "
                f"{VERSION}: convert the model again with a newer ctranslate2"
            )
        self.specification = _name(cursor)
        self.revision = cursor.number("I", "the revision")
        self._variables = _variables(cursor)
        self.aliases: Mapping[str, str] = _aliases(cursor, self._variables)
        if cursor.left:
            cursor.fail(f"{cursor.left} bytes are left behind the last alias")
        self._scales = {name + _SCALE for name in self._variables} & self._variables.keys()

    @property
    def size(self) -> int:
        return self._file.size

    def names(self) -> Collection[str]:
        """Names of all variables but the scales, which belong to their weights. Aliases are not among them."""
        return self._variables.keys() - self._scales

    def get(self, name: str) -> Tensor:
        """A variable by its name or an alias, as it is stored; a quantised one as the 32-bit numbers it stands for."""
        name = self.aliases.get(name, name)
        if name + _ZERO in self._variables:
            raise UserError(f"{self.source}: {name} is packed in 4 bits, which is not read; convert to int8 or float16")
        stored = self._stored(name)
        if name + _SCALE not in self._scales:
            return stored
        scale = self._stored(name + _SCALE).float()
        if scale.dim() and (scale.dim() > 1 or scale.shape[0] != stored.shape[0]):
            shapes = f"{tuple(scale.shape)} for {tuple(stored.shape)}"
            raise UserError(f"{self.source}: {name} has scales of shape {shapes}; convert the model again")
        rows = (-1, *(1 for _ in stored.shape[1:]))
        return stored.float() / (scale.view(rows) if scale.dim() else scale)

    def _stored(self, name: str) -> Tensor:
        found = self._variables[name]
        return self._file.tensor(found.start, found.dtype, found.shape)

    def done(self, name: str) -> None:
        found = self._variables[self.aliases.get(name, name)]
        self._file.drop(found.start, found.size)

    def parameters(self) -> int:
        """How many numbers the weights have; what tells the layout (heads, activation) is no weight."""
        held = (self._variables[name] for name in self.names())
        return sum(torch.Size(found.shape).numel() for found in held if found.shape)


def _name(cursor: Cursor) -> str:
    return cursor.text("H", "a name").removesuffix("\0")


def _variables(cursor: Cursor) -> dict[str, Variable]:
    found: dict[str, Variable] = {}
    for _ in range(cursor.count("I", _LEAST, "variables")):
        name = _name(cursor)
        if name in found:
            cursor.fail(f"variable {name!r} comes twice")
        rank = cursor.number("B", "a rank")
        shape = cursor.numbers(f"{rank}I", "a shape")
        kind = cursor.number("B", "a dtype")
        if kind >= len(_DTYPES):
            cursor.fail(f"variable {name!r} has dtype {kind}, which is not known")
        size = cursor.number("I", "a size")
        if tensor_bytes(shape, _DTYPES[kind].itemsize) != size:
            cursor.fail(f"variable {name!r} of shape {shape} has {size} bytes, which do not fit")
        found[name] = Variable(_DTYPES[kind], shape, cursor.skip(size, f"variable {name!r}"), size)
    return found


def _aliases(cursor: Cursor, variables: Mapping[str, Variable]) -> dict[str, str]:
    found: dict[str, str] = {}
    for _ in range(cursor.count("I", 4, "aliases")):
        alias, name = _name(cursor), _name(cursor)
        if name not in variables or alias in variables or alias in found:
            cursor.fail(f"alias {alias!r} of variable {name!r} fits no variable, or comes twice")
        found[alias] = name
    return found


def is_ctranslate2(directory: Path) -> bool:
    """Whether a folder holds a model.bin that starts as CTranslate2's do; a pickle's does not."""
    path = directory / FILE
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return 0 < int.from_bytes(file.read(4).ljust(4, b"\0"), "little") < 256


def refuse_ctranslate2(directory: Path) -> NoReturn:
    """UserError that says which model of CTranslate2's a folder holds, and what can be done."""
    name = ModelBin(directory / FILE).specification
    known = _KNOWN.get(name, "of a kind that headway does not know; load it from where it was converted from")
    raise UserError(f"{directory} is a model in CTranslate2's format ({name}): {known}")
