"""One shard: a safetensors file with the samples of a split, mapped into memory after its digest was checked."""

from __future__ import annotations

import hashlib
import math
import mmap
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from headway.data.prepared.shard_index import ShardFile
from headway.errors import UserError
from headway.io.files import open_file
from headway.io.json_files import parse_json

_DTYPES = {"U8": np.uint8, "U16": np.uint16, "U32": np.uint32, "U64": np.uint64, "I64": np.int64}
_CODES = {np.dtype(dtype): code for code, dtype in _DTYPES.items()}
REMEDY = "restore it from a copy, or prepare the data again"
_MIN_BYTES = 8
_MAX_HEADER = 1 << 16
_ALIGNMENT = 8  # bytes


def write_shard(path: Path, arrays: Mapping[str, np.ndarray]) -> str:
    """Write arrays as safetensors, widest type first so that each is aligned, and return the file's SHA-256."""
    header, offset = {}, 0
    ordered = sorted(arrays.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))
    for name, array in ordered:
        span = [offset, offset + array.nbytes]
        header[name] = f'{{"dtype":"{_CODES[array.dtype]}","shape":{list(array.shape)},"data_offsets":{span}}}'
        offset += array.nbytes
    text = ("{" + ",".join(f'"{name}":{entry}' for name, entry in header.items()) + "}").encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        views = (np.ascontiguousarray(array).reshape(-1).view(np.uint8).data for _, array in ordered)
        for block in (len(text).to_bytes(8, "little"), text, *views):
            digest.update(block)
            file.write(block)
    return digest.hexdigest()


def map_file(path: Path, shard: ShardFile, remedy: str = REMEDY) -> memoryview:
    """The bytes of a shard, mapped into memory. UserError, with the remedy, if it is missing or its size differs from
    the index.
    """
    if not path.exists():
        raise UserError(f"{path} is missing; {remedy}")
    with open_file(path) as file:
        size = path.stat().st_size
        if size != shard.bytes or size < _MIN_BYTES:
            raise UserError(f"{path} has {size:,} bytes, but the index states {shard.bytes:,}; {remedy}")
        return memoryview(mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ))


def map_shard(path: Path, shard: ShardFile, remedy: str = REMEDY) -> dict[str, np.ndarray]:
    """The arrays of a shard, mapped into memory. UserError, with the remedy, if its size or digest differs from the
    index. The file may be removed while it is mapped.
    """
    content = map_file(path, shard, remedy)
    if hashlib.sha256(content).hexdigest() != shard.digest:
        raise UserError(f"{path} has changed since it was prepared: its digest is not that in the index; {remedy}")
    return _arrays(content, path, remedy)


def _arrays(content: memoryview, path: Path, remedy: str) -> dict[str, np.ndarray]:
    try:
        length = int.from_bytes(content[:8], "little")
        if length > min(_MAX_HEADER, len(content) - 8):
            raise ValueError("its header is too long")
        arrays = {}
        for name, entry in parse_json(bytes(content[8 : 8 + length])).items():
            dtype, shape = np.dtype(_DTYPES[entry["dtype"]]), tuple(map(int, entry["shape"]))
            first, last = (8 + length + int(offset) for offset in entry["data_offsets"])
            if min(shape, default=0) < 0 or not 8 + length <= first <= last <= len(content):
                raise ValueError("an array exceeds the file")
            if last - first != math.prod(shape) * dtype.itemsize:
                raise ValueError("an array has another size than its shape")
            arrays[name] = np.frombuffer(content[first:last], dtype).reshape(shape)
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is not a shard ({error}); {remedy}") from None
    return arrays
