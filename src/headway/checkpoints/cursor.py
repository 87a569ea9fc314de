"""Reading the header of a binary file from front to back, where no number in it is believed before it is checked."""

from __future__ import annotations

import struct
from typing import NoReturn

from headway.checkpoints.mapped import Mapped
from headway.errors import UserError

TEXT_LIMIT = 1 << 24  # bytes of one text in a header: a chat template has some thousand


class Cursor:
    """A place in a mapped file. Every read past its end, or of more than a limit, is a UserError that says where."""

    def __init__(self, file: Mapped, place: int = 0) -> None:
        self.file = file
        self.place = place

    @property
    def left(self) -> int:
        return self.file.size - self.place

    def take(self, size: int, what: str) -> bytes:
        """The next `size` bytes."""
        self.skip(size, what)
        return self.file.bytes(self.place - size, size)

    def skip(self, size: int, what: str) -> int:
        """Go on by `size` bytes; gives the place they start at."""
        if size > self.left:
            self.fail(f"{what} needs {size} bytes, but {self.left} are left")
        self.place += size
        return self.place - size

    def numbers(self, form: str, what: str) -> tuple:
        """Numbers in the notation of `struct`, little-endian."""
        size = struct.calcsize("<" + form)
        return struct.unpack("<" + form, self.take(size, what))

    def number(self, form: str, what: str) -> int:
        return self.numbers(form, what)[0]

    def count(self, form: str, least: int, what: str) -> int:
        """How many items follow; each takes at least `least` bytes, so that a count beyond the file is seen at once."""
        found = self.number(form, what)
        if found < 0 or found * least > self.left:
            self.fail(f"{found} {what} cannot follow in {self.left} bytes")
        return found

    def text(self, form: str, what: str) -> str:
        """A text after its length."""
        raw = self.raw(form, what)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            self.fail(f"{what} is not UTF-8 text")

    def raw(self, form: str, what: str) -> bytes:
        """Bytes after their length."""
        size = self.count(form, 1, f"bytes of {what}")
        if size > TEXT_LIMIT:
            self.fail(f"{what} of {size} bytes exceeds the limit of {TEXT_LIMIT}")
        return self.take(size, what)

    def fail(self, fact: str) -> NoReturn:
        raise UserError(f"{self.file.source}: {fact} (at byte {self.place}); the file is damaged: get it again")
