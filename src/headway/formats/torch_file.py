"""Files of torch.save (pytorch_model.bin, .pt), read without pickle: an interpreter of the opcodes that saved tensors
use, which calls nothing. Tensors are views of the mapped file.

Since torch 1.6: a zip archive, not compressed: data.pkl | data/0 | data/1 | ... with the numbers of each storage
Before: pickles of a magic number, a version, the system | the pickle | the keys | for each: int64 count, numbers

Functions and classes remain names, and storages remain keys. The interpreter knows a few names and opcodes and refuses
all others.
"""

from __future__ import annotations

import io
import pickletools
import struct
import zipfile
from collections.abc import Callable, Collection, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from headway.errors import UserError
from headway.formats.tensorfile import HEADER_LIMIT, MAX_TENSORS, MappedFile, tensor_bytes
from headway.io.files import open_file

_ZIP, _MAGIC, _PROTOCOL = b"PK\x03\x04", 0x1950A86A20F9469CFC6C, 1001
_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_CONSTANTS: dict[str, Callable[[Any], Any]] = {  # opcodes that push a value, from their argument
    "NONE": lambda _: None,
    "NEWTRUE": lambda _: True,
    "NEWFALSE": lambda _: False,
    "EMPTY_TUPLE": lambda _: (),
    "EMPTY_LIST": lambda _: [],
    "EMPTY_DICT": lambda _: {},
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"), lambda number: number),
    **dict.fromkeys(("BINUNICODE", "SHORT_BINUNICODE"), lambda text: text),
    "GLOBAL": lambda words: _Name(*words),
}
_OPCODES = {opcode.code: opcode for opcode in pickletools.opcodes}
_INSTRUCTIONS = {
    *_CONSTANTS,
    *("PROTO", "FRAME", "MARK", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "APPEND", "APPENDS", "SETITEM", "SETITEMS"),
    *("BINPUT", "LONG_BINPUT", "MEMOIZE", "BINGET", "LONG_BINGET", "STACK_GLOBAL", "BINPERSID", "REDUCE", "BUILD"),
    "STOP",
}
_WRAPPERS = ("state_dict", "model", "model_state_dict", "module")  # of a checkpoint that has more than the weights


class _Name(NamedTuple):
    """A function or class that the pickle names; it is never looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"[:200]


class _Storage(NamedTuple):
    dtype: torch.dtype
    key: str
    count: int


class _SavedTensor(NamedTuple):
    """A tensor: `offset` and `stride` count numbers of its storage."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class TorchFile:
    """Tensors of a file of torch.save by name (Weights). UserError, with the remedy, for an invalid file, and for one
    with anything but tensors, numbers and strings.
    """

    def __init__(self, path: Path) -> None:
        self.source = str(path)
        self._file = MappedFile(path)
        self.size = self._file.size
        is_zip = self.size > len(_ZIP) and self._file.bytes(0, len(_ZIP)) == _ZIP
        tree, self._starts = self._read_zip(path) if is_zip else self._read_legacy()
        if not isinstance(tree, dict):
            raise self._error("does not contain a mapping of names to tensors")
        if not any(isinstance(value, _SavedTensor) for value in tree.values()):
            tree = next((tree[key] for key in _WRAPPERS if isinstance(tree.get(key), dict)), tree)
        self._entries = {name: entry for name, entry in tree.items() if isinstance(entry, _SavedTensor)}
        if not self._entries or len(self._entries) > MAX_TENSORS or not all(isinstance(n, str) for n in self._entries):
            raise self._error(f"contains {len(self._entries)} tensors with names, which should be 1 to {MAX_TENSORS:,}")
        for name, entry in self._entries.items():
            self._check(name, entry)

    def names(self) -> Collection[str]:
        return self._entries.keys()

    def get(self, name: str) -> Tensor:
        entry = self._entries[name]
        storage = self._file.tensor(self._starts[entry.storage.key], entry.storage.dtype, (entry.storage.count,))
        return storage.as_strided(entry.shape, entry.stride, storage.storage_offset() + entry.offset)

    def done(self, name: str) -> None:
        """Release the pages of a tensor's storage; tensors that share it are read again."""
        storage = self._entries[name].storage
        self._file.drop(self._starts[storage.key], storage.count * storage.dtype.itemsize)

    def _read_zip(self, path: Path) -> tuple[Any, dict[str, int]]:
        """The unpickled tree, and the first byte of each storage."""
        try:
            with open_file(path) as file, closing(zipfile.ZipFile(file)) as archive:
                entries = archive.infolist()
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise self._error(f"is not a readable zip archive ({error})") from error
        if len(entries) > 2 * MAX_TENSORS:
            raise self._error(f"contains {len(entries):,} files")
        places: dict[str, tuple[int, int]] = {}
        for entry in entries:
            if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
                raise self._error(
                    f"has compressed or encrypted {entry.filename[:200]!r}, which torch.save never writes"
                )
            if not 0 <= entry.header_offset <= self.size - 30:
                raise self._error(f"has {entry.filename[:200]!r} outside the file")
            signature, lengths = struct.unpack("<4s22x4s", self._file.bytes(entry.header_offset, 30))
            start = entry.header_offset + 30 + sum(struct.unpack("<HH", lengths))
            if signature != _ZIP or start + entry.file_size > self.size:
                raise self._error(f"has {entry.filename[:200]!r} outside the file")
            places[entry.filename.partition("/")[2]] = start, entry.file_size
        if self._file_bytes(places, "byteorder") not in (b"little", None):
            raise self._error("is big-endian; save it again on a little-endian machine")
        pickled = self._file_bytes(places, "data.pkl")
        if pickled is None:
            raise self._error("has no data.pkl")
        machine = _Interpreter(self._error)
        tree = machine.run(io.BytesIO(pickled))
        starts = {}
        for storage in machine.storages.values():
            start, size = places.get(f"data/{storage.key}", (0, -1))
            if size != storage.count * storage.dtype.itemsize:
                raise self._error(f"has no storage {storage.key[:50]!r} of {storage.count} numbers")
            starts[storage.key] = start
        return tree, starts

    def _file_bytes(self, places: dict[str, tuple[int, int]], name: str) -> bytes | None:
        if name not in places:
            return None
        start, size = places[name]
        if size > HEADER_LIMIT:
            raise self._error(f"has {name} of {size:,} bytes (limit {HEADER_LIMIT:,})")
        return self._file.bytes(start, size)

    def _read_legacy(self) -> tuple[Any, dict[str, int]]:
        stream = io.BytesIO(self._file.bytes(0, min(self.size, HEADER_LIMIT)))
        if self._file.bytes(0, 1) != b"\x80":  # the protocol, with which every pickle of torch begins
            raise self._error("was not written by torch.save")
        machine = _Interpreter(self._error)
        if machine.run(stream) != _MAGIC or machine.run(stream) != _PROTOCOL:
            raise self._error("was not written by torch.save")
        machine.run(stream)  # the sizes of the machine's integers
        tree, keys = machine.run(stream), machine.run(stream)
        known = isinstance(keys, list) and all(type(key) is str for key in keys)
        if not known or sorted(keys) != sorted(machine.storages):
            raise self._error("does not list its storages")
        starts, position = {}, stream.tell()
        for key in keys:
            storage = machine.storages[key]
            size = storage.count * storage.dtype.itemsize
            if position + 8 + size > self.size:
                raise self._error(f"ends within storage {key[:50]!r}")
            if int.from_bytes(self._file.bytes(position, 8), "little") != storage.count:
                raise self._error(f"has storage {key[:50]!r} in another size than its tensors")
            starts[key], position = position + 8, position + 8 + size
        return tree, starts

    def _check(self, name: str, entry: _SavedTensor) -> None:
        """A tensor must lie within its storage."""
        fits = len(entry.shape) == len(entry.stride) and all(size >= 0 for size in (entry.offset, *entry.stride))
        size = tensor_bytes(entry.shape, entry.storage.dtype.itemsize)
        if not fits or size is None or size > entry.storage.count * entry.storage.dtype.itemsize:
            raise self._error(
                f"has tensor {name[:200]!r} of shape {entry.shape[:8]}, for which its storage has no numbers"
            )
        last = entry.offset + sum((size - 1) * stride for size, stride in zip(entry.shape, entry.stride))
        if size and last >= entry.storage.count:
            raise self._error(f"has tensor {name[:200]!r} beyond the end of its storage")

    def _error(self, fact: str) -> UserError:
        return UserError(f"{self.source} {fact}; download it again, or get the model as safetensors")


class _Interpreter:
    """Interprets pickles without calling anything: values are numbers, strings, tuples, lists, dicts, names of
    functions, and descriptions of tensors.
    """

    def __init__(self, error: Callable[[str], UserError]) -> None:
        self._error = error
        self.storages: dict[str, _Storage] = {}

    def run(self, stream: io.BytesIO) -> Any:
        """The value of the pickle that begins here; the stream is then behind it."""
        stack: list[Any] = []
        marks: list[int] = []
        memo: dict[int, Any] = {}

        def since_mark() -> list[Any]:
            start = marks.pop()
            values = stack[start:]
            del stack[start:]
            return values

        try:
            for name, argument in self._instructions(stream):
                match name:
                    case "PROTO" | "FRAME":
                        pass
                    case _ if name in _CONSTANTS:
                        stack.append(_CONSTANTS[name](argument))
                    case "MARK":
                        marks.append(len(stack))
                    case "TUPLE":
                        stack.append(tuple(since_mark()))
                    case "TUPLE1" | "TUPLE2" | "TUPLE3":
                        count = int(name[-1])
                        stack[-count:] = [tuple(stack[-count:])]
                    case "APPEND" | "APPENDS":
                        values = [stack.pop()] if name == "APPEND" else since_mark()
                        self._of(stack[-1], list).extend(values)
                    case "SETITEM" | "SETITEMS":
                        values = [stack.pop(-2), stack.pop()] if name == "SETITEM" else since_mark()
                        self._of(stack[-1], dict).update(self._pairs(values))
                    case "BINPUT" | "LONG_BINPUT":
                        memo[argument] = stack[-1]
                    case "MEMOIZE":
                        memo[len(memo)] = stack[-1]
                    case "BINGET" | "LONG_BINGET":
                        stack.append(memo[argument])
                    case "STACK_GLOBAL":
                        function = self._of(stack.pop(), str)
                        stack.append(_Name(self._of(stack.pop(), str), function))
                    case "BINPERSID":
                        stack.append(self._storage(stack.pop()))
                    case "REDUCE":
                        arguments = self._of(stack.pop(), tuple)
                        stack.append(self._made(stack.pop(), arguments))
                    case "BUILD":  # versions of modules, and other attributes of the mapping
                        self._of(stack.pop(), dict)
                        self._of(stack[-1], dict)
                    case "STOP":
                        return stack.pop()
        except (ValueError, IndexError, KeyError, TypeError, struct.error, OverflowError) as error:
            raise self._error(f"contains a damaged pickle ({str(error)[:100]})") from error
        raise self._error("contains a pickle without an end")

    def _instructions(self, stream: io.BytesIO) -> Iterator[tuple[str, Any]]:
        """Each instruction with its argument, which is read only if the instruction is known."""
        while code := stream.read(1):
            opcode = _OPCODES.get(code.decode("latin-1"))
            if opcode is None or opcode.name not in _INSTRUCTIONS:
                name = repr(code) if opcode is None else opcode.name
                raise self._error(f"uses the pickle instruction {name}, which no saved tensor needs")
            if opcode.name == "GLOBAL":  # pickletools would interpret escapes in the names
                yield opcode.name, [stream.readline().decode("utf-8").rstrip("\n") for _ in range(2)]
            else:
                yield opcode.name, None if opcode.arg is None else opcode.arg.reader(stream)

    def _of(self, value: Any, kind: type) -> Any:
        if type(value) is not kind:
            raise self._error(f"has a {type(value).__name__} in its pickle where a {kind.__name__} belongs")
        return value

    def _pairs(self, values: list[Any]) -> dict[Any, Any]:
        keys = values[::2]
        if len(values) % 2 or not all(type(key) in (str, int) for key in keys):
            raise self._error("has keys in its pickle that are not texts or numbers")
        return dict(zip(keys, values[1::2]))

    def _storage(self, reference: Any) -> _Storage:
        kind, name, key, _, count = self._of(reference, tuple)[:5]
        view = reference[5:]
        known = isinstance(name, _Name) and name.module == "torch" and name.name in _STORAGES
        if kind != "storage" or not known or view not in ((), (None,)):
            raise self._error(
                f"refers to {name if isinstance(name, _Name) else 'a value'}, which is not a storage of numbers"
            )
        if self._of(count, int) < 0:
            raise self._error(f"has a storage of {count} numbers")
        storage = _Storage(_STORAGES[name.name], self._of(key, str), count)
        if self.storages.setdefault(storage.key, storage) != storage:
            raise self._error(f"describes storage {storage.key[:50]!r} in two ways")
        return storage

    def _made(self, function: Any, arguments: tuple[Any, ...]) -> Any:
        """What a call would return, for the functions by which tensors are saved."""
        match str(function) if isinstance(function, _Name) else None:
            case "collections.OrderedDict" if not arguments:
                return {}
            case "torch._utils._rebuild_tensor_v2":
                storage, offset, shape, stride = arguments[:4]
                sizes = (self._of(offset, int), *self._of(shape, tuple), *self._of(stride, tuple))
                if type(storage) is not _Storage or not all(type(size) is int for size in sizes):
                    raise self._error("describes a tensor by something else than a storage and numbers")
                return _SavedTensor(storage, offset, shape, stride)
            case "torch._utils._rebuild_parameter":
                return self._of(arguments[0], _SavedTensor)
            case _:
                raise self._error(f"calls {function if isinstance(function, _Name) else 'a value'}, which is never run")
