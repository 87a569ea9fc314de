"""Compiled functions as Python calls them: linked from their object files, without the compiler where these are there.

numba reads back what it compiled by way of all that compiling again would need: two hundred modules and LLVM's own form
of the code, some 60 MB and half a second. The machine code itself is one object file that asks for little (memset,
erff), at addresses of 64 bits; so it is kept beside numba's files, and put into memory here. An object that asks for
more, or that is of another kind than ELF, is left to numba.
"""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import os
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numba
import numpy as np

from headway.engine.machine import CACHE

_MESSAGE = "compiling the CPU engine, once on this machine; some ten seconds"
_MAGIC = b"\x7fELF\x02\x01"  # 64 bits, the least byte first
_SYMBOLS, _RELOCATIONS, _EMPTY = 2, 4, 8  # types of sections
_WRITABLE, _LOADED = 1, 2  # flags of sections
_UNKNOWN, _ABSOLUTE, _COMMON = 0, 0xFFF1, 0xFFF2  # places of symbols beside numbers of sections
# By machine, kinds of relocations: the address of a symbol, and how far it is, in 64 bits.
_KINDS = {62: (1, 24), 183: (257, 260)}
_PREFIX = b"_ZN7headway"  # of names that numba makes of ours; its functions for callers in Python begin otherwise
# What only those callers ask for, or the last owner of an array: never reached from here.
_NEVER = (b"numba_", b"NRT_Free", b"NRT_MemInfo_call_dtor", b"NRT_adapt_ndarray")
_RETURNED = (0, -2)  # what numba's functions return: a value, or none
_PAGE = mmap.PAGESIZE


class _Section(NamedTuple):
    name: int
    kind: int
    flags: int
    address: int
    start: int
    size: int
    link: int
    info: int
    align: int
    each: int


class _Symbol(NamedTuple):
    name: int
    info: int
    other: int
    section: int
    value: int
    size: int


class CannotLinkError(Exception):
    """What an object file has that is not understood here."""


class Linked:
    """`function`, one that `compiled` made, for calls from Python with arrays and whole numbers."""

    def __init__(self, function: Any) -> None:
        self.function, self.py_func = function, function.py_func
        self._lock = threading.Lock()
        self._ready: Callable[..., None] | None = None

    @property
    def is_compiled(self) -> bool:
        """Whether a call finds machine code and compiles nothing."""
        if self._ready is not None or self._path is None:
            return self._ready is not None
        # numba's files of machine code are named for what they hold.
        return self._path.exists() or any(self._path.parent.rglob(f"*.{self.py_func.__name__}-*.nbi"))

    @property
    def _path(self) -> Path | None:
        return None if CACHE is None else CACHE / f"{self.py_func.__module__}.{self.py_func.__name__}.object"

    def __call__(self, *arguments: Any) -> None:
        if self._ready is None:
            with self._lock:
                self._ready = self._ready or self._found() or self._compiled(arguments)
        self._ready(*arguments)

    def _found(self) -> Callable[..., None] | None:
        try:
            data = b"" if self._path is None else self._path.read_bytes()
        except OSError:
            return None
        digest, data = data[:32], data[32:]
        if not data or hashlib.sha256(data).digest() != digest:
            return None
        try:
            found = _entry(data)
        except CannotLinkError:  # in this process; numba has the same code
            return None
        _leave_compiler()
        return found

    def _compiled(self, arguments: tuple[Any, ...]) -> Callable[..., None]:
        """By numba; its machine code is kept for the next process."""
        kinds = tuple(numba.typeof(argument) for argument in arguments)
        self.function.compile(kinds)
        if self._path is not None:
            part = self._path.with_name(f"{self._path.name}.{os.getpid()}")
            try:
                data = self.function.overloads[kinds].library.serialize_using_object_code()[2][0]
                _image(data)
                part.write_bytes(hashlib.sha256(data).digest() + data)
                part.replace(self._path)
            except (CannotLinkError, OSError, RuntimeError):  # numba's error where it read the code from its own files
                part.unlink(missing_ok=True)
        return self.function


def _leave_compiler() -> None:
    """Give back the pages of LLVM's own machine code, 25 MB: importing it has brought them in, and what is linked needs
    none of them. They are those of a file, and come again where something is compiled after all.
    """
    maps = Path("/proc/self/maps")
    for line in maps.read_text().splitlines() if maps.exists() else ():
        span, rights, *_, path = line.split(maxsplit=5)
        if rights == "r-xp" and Path(path).name.startswith("libllvmlite"):
            first, last = (int(edge, 16) for edge in span.split("-"))
            ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), mmap.MADV_DONTNEED)


@contextmanager
def announced(function: Linked) -> Iterator[None]:
    """Says so on stderr where the first call of a function, within, has to compile it, before that begins."""
    if not function.is_compiled:
        print(_MESSAGE, file=sys.stderr, flush=True)
    yield


def _entry(data: bytes) -> Callable[..., None]:
    """What calls the function of ours that an object file, which was linked before, holds."""
    image, address = _image(data)
    link = ctypes.CFUNCTYPE(ctypes.c_int)(address)
    results = (ctypes.c_int64 * 8)()  # what numba's functions return, and what they raise, which ours do not
    into = ctypes.addressof(results)

    def call(*arguments: Any) -> None:
        fields: list[ctypes.c_int64] = [ctypes.c_int64(into), ctypes.c_int64(into + 32)]
        for argument in arguments:
            if isinstance(argument, np.ndarray):  # no owner, no parent, and then what it is
                assert argument.flags.c_contiguous
                numbers = (0, 0, argument.size, argument.itemsize, argument.ctypes.data)
                fields += map(ctypes.c_int64, (*numbers, *argument.shape, *argument.strides))
            else:
                fields.append(ctypes.c_int64(argument))
        if link(*fields) not in _RETURNED:
            raise RuntimeError(f"compiled code of {len(data):,} bytes has failed")

    call.image = image  # type: ignore[attr-defined]  # the memory lives as long as what calls it
    return call


def _image(data: bytes) -> tuple[mmap.mmap, int]:
    """An object file in memory that may be run, and the address of our function in it. CannotLinkError."""
    if data[:6] != _MAGIC:
        raise CannotLinkError("no ELF file of 64 bits")
    kinds = _KINDS.get(struct.unpack_from("<H", data, 18)[0])
    if kinds is None:
        raise CannotLinkError("another processor")
    start, count = struct.unpack_from("<Q", data, 40)[0], struct.unpack_from("<H", data, 60)[0]
    sections = [_Section(*struct.unpack_from("<IIQQQQIIQQ", data, start + 64 * n)) for n in range(count)]
    table = next(section for section in sections if section.kind == _SYMBOLS)
    names = sections[table.link].start
    symbols = [_Symbol(*found) for found in struct.iter_unpack("<IBBHQQ", _content(data, table))]
    places, commons, size, fixed = _laid_out(sections, symbols)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for number, place in places.items():
        if sections[number].kind != _EMPTY:
            memory[place : place + sections[number].size] = _content(data, sections[number])
    addresses, entry = [], 0
    for number, symbol in enumerate(symbols):
        name = data[names + symbol.name : data.index(b"\0", names + symbol.name)]
        if symbol.section == _UNKNOWN:
            address = _outside(name)
        elif symbol.section in (_ABSOLUTE, _COMMON):
            address = symbol.value if symbol.section == _ABSOLUTE else base + commons[number]
        else:
            address = base + places.get(symbol.section, 0) + symbol.value
        if name.startswith(_PREFIX) and symbol.info >> 4 == 1 and symbol.section not in (_UNKNOWN, _COMMON):
            entry = address
        addresses.append(address)
    for section in sections:
        if section.kind == _RELOCATIONS and section.info in places:
            _relocate(memory, base, places[section.info], _content(data, section), addresses, kinds)
    if entry == 0 or ctypes.CDLL(None).mprotect(ctypes.c_void_p(base), fixed, mmap.PROT_READ | mmap.PROT_EXEC):
        raise CannotLinkError("no function of ours, or a system that runs no code of a file")
    return memory, entry


def _content(data: bytes, section: _Section) -> bytes:
    return data[section.start : section.start + section.size]


def _laid_out(sections: list[_Section], symbols: list[_Symbol]) -> tuple[dict[int, int], dict[int, int], int, int]:
    """Where in memory sections and common symbols lie, by their numbers; the size of all, and of what comes first and
    is not written to.
    """
    places, end, fixed = {}, 0, 0
    for writable in (0, _WRITABLE):
        for number, section in enumerate(sections):
            if section.flags & _LOADED and section.flags & _WRITABLE == writable:
                end = -(-end // max(1, section.align)) * max(1, section.align)
                places[number], end = end, end + section.size
        end = -(-end // _PAGE) * _PAGE
        fixed = fixed or end
    commons = {}
    for number, symbol in enumerate(symbols):
        if symbol.section == _COMMON:
            commons[number], end = end, end + -(-symbol.size // 16) * 16
    return places, commons, end + _PAGE, fixed


def _outside(name: bytes) -> int:
    """The address of what an object asks the process for; 0 where that is never called."""
    if not name or name.startswith(_NEVER):
        return 0
    for library in (None, "libm.so.6"):
        try:
            found = getattr(ctypes.CDLL(library), name.decode("ascii", "replace"))
        except (OSError, AttributeError):
            continue
        return ctypes.cast(found, ctypes.c_void_p).value or 0
    raise CannotLinkError(f"{name!r} is not in this process")


def _relocate(
    memory: mmap.mmap, base: int, place: int, table: bytes, addresses: list[int], kinds: tuple[int, int]
) -> None:
    """Write the addresses that the code of one section, at `place`, asks for."""
    whole, relative = kinds
    for offset, info, addend in struct.iter_unpack("<QQq", table):
        kind, value = info & 0xFFFFFFFF, addresses[info >> 32] + addend
        if kind not in (whole, relative):
            raise CannotLinkError(f"a relocation of kind {kind}")
        if kind == relative:
            value -= base + place + offset
        struct.pack_into("<Q", memory, place + offset, value % (1 << 64))
