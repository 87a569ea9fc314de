"""Episode files: several .npz layouts, HDF5 in D4RL's layout, Minari folders; and robot demonstrations from
LeRobotDataset folders and from such files.
"""

from __future__ import annotations

import math
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from headway.data.array_store import output_errors
from headway.data.episodes import Episode, Episodes, collate_episodes, concatenate_episodes
from headway.data.input_files import File, find_files
from headway.data.lerobot import INFO_PATH, read_episode_entries, read_info_file, read_lerobot
from headway.data.splits import split_code, split_from_name
from headway.errors import UserError, nearest
from headway.io.durable import temporary_path
from headway.io.files import check_in_memory, damage_errors, open_file, user_path
from headway.io.json_files import parse_json

EPISODE_KINDS = (".npz", ".hdf5", ".h5")
# Column names: headway's, those of D4RL and Minari, of imitation, and of files with one array per episode.
STATE_NAMES, ACTION_NAMES = ("states", "observations", "obs", "observation"), ("actions", "acts", "action")
REWARD_NAMES = ("rewards", "rews", "reward")
_TERMINAL_NAMES, _TIMEOUT_NAMES = ("terminals", "terminations", "terminal", "dones"), ("timeouts", "truncations")
_NUMBERED_NAME = re.compile(r"(?:observation|obs)_(\d+)")
_EPISODE_NAME = re.compile(r"episode_(\d+)")
_DEFLATE = 1  # HDF5's filter id
_MAX_METADATA = 1 << 24  # bytes of metadata.json
_SMALL_CHUNK = 1 << 18  # size in bytes below which chunks are not checked
_FILTER_OVERHEAD = 1 << 16  # bytes that filters may add to a chunk
_NPZ_DAMAGE, _HDF5_DAMAGE = (".npz", "save it again with numpy.savez"), ("HDF5", "download it again")

_HEADERS: dict[tuple[int, int], Callable[[Any], Any]] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}

ArrayReaders = Mapping[str, Callable[[], np.ndarray]]


def read_episodes(paths: Sequence[Path | str]) -> Episodes:
    """Read episodes from files, folders of files or Minari data sets. A UserError names any that cannot be read."""
    if not paths:
        raise UserError("no episodes; pass at least one .npz or .hdf5 file (headway data collect records them)")
    files = [file for path in paths for file in find_files(user_path(path), EPISODE_KINDS)]
    return concatenate_episodes([read_recording(file) for file in files], [str(file) for file in files])


def read_recording(file: File) -> Episodes:
    """The episodes of one file. UserError, with the reason, if it cannot be read."""
    source, code = str(file), 0 if file.named_split is None else split_code(file.named_split)
    with _open_recording(file.path) as (flat, numbered):
        if file.path.suffix.lower() != ".npz":
            environment = _minari_environment(file.path)
        else:
            name = flat["environment"]() if "environment" in flat else np.array("")
            environment = str(name) if name.ndim == 0 and name.dtype.kind == "U" else ""
        episodes = [_single_episode(arrays, f"{source}, episode {index}") for index, arrays in numbered.items()]
        episodes = episodes or _concatenated_episodes(flat, source)
        return collate_episodes(episodes, source, code, environment, file.path.stem)


def episode_lengths(file: File) -> list[int]:
    """The number of steps per episode in a file, from its rewards and ends only."""
    source = str(file)
    with _open_recording(file.path) as (flat, numbered):
        if numbered:
            return [len(_column(arrays, REWARD_NAMES, source)) for arrays in numbered.values()]
        ends, _ = _episode_ends(flat, len(_column(flat, REWARD_NAMES, source)), source)
        return np.diff(ends, prepend=0).tolist()


def all_episode_lengths(paths: Sequence[Path | str]) -> list[int]:
    """The number of steps per episode that `read_episodes` reads from these paths, without reading states."""
    files = [file for path in paths for file in find_files(user_path(path), EPISODE_KINDS)]
    return [length for file in files for length in episode_lengths(file)]


def write_episodes(path: Path, episodes: Episodes) -> None:
    """Write one .npz of flat arrays: states, actions, rewards and episode ends. Written under a temporary name,
    then renamed.
    """
    arrays: dict[str, Any] = {name: getattr(episodes, name) for name in ("states", "actions", "rewards", "ends", "cut")}
    part = temporary_path(path)
    try:
        with output_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(part, "wb") as file:
                np.savez_compressed(file, environment=np.array(episodes.environment), **arrays)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def _open_recording(path: Path) -> Iterator[tuple[ArrayReaders, dict[int, ArrayReaders]]]:
    """The arrays of a file and, if it has one array or one group per episode, those of each episode by its number."""
    if path.suffix.lower() == ".npz":
        with open_arrays(path) as columns:
            indices = sorted(int(result[1]) for result in map(_NUMBERED_NAME.fullmatch, columns) if result)
            numbered = {}
            for index in indices:
                suffixed = {name: read for name, read in columns.items() if name.endswith(f"_{index}")}
                numbered[index] = {name.removesuffix(f"_{index}"): read for name, read in suffixed.items()}
            yield columns, numbered
        return
    try:
        import h5py
    except ImportError as error:
        raise UserError(f"{path} needs the package h5py; run pip install 'headway[rl]'") from error
    with ExitStack() as stack:
        open_file(path).close()  # a pipe would block the library
        with damage_errors(path, *_HDF5_DAMAGE):
            file = stack.enter_context(h5py.File(path, "r"))
        source, columns = str(path), _arrays(file, str(path))
        indices = sorted(int(result[1]) for result in map(_EPISODE_NAME.fullmatch, columns) if result)
        nodes = {index: _open_node(file, f"episode_{index}", source) for index in indices}
        yield columns, {index: _arrays(node, f"{source}, episode {index}") for index, node in nodes.items()}


@contextmanager
def open_arrays(path: Path) -> Iterator[ArrayReaders]:
    """The arrays of an .npz, each read on demand. Python objects, which could run code, are rejected."""
    with ExitStack() as stack:
        file = stack.enter_context(open_file(path))
        with damage_errors(path, *_NPZ_DAMAGE):
            archive = np.load(file, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            raise UserError(f"{path} contains one unnamed array; save it again with numpy.savez")
        stack.enter_context(archive)
        for entry in archive.zip.infolist():
            if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise UserError(
                    f"{path}: {entry.filename} has a compression that numpy never uses; save it with numpy.savez"
                )
            check_in_memory(f"{path}: {entry.filename}", entry.compress_size, entry.file_size)
        yield {name: partial(_entry, archive, name, path) for name in archive.files}


def _entry(archive: Any, name: str, path: Path) -> np.ndarray:
    with damage_errors(path, *_NPZ_DAMAGE):
        try:
            # The header must match the bytes: numpy allocates memory based on the header before reading.
            entry = archive.zip.getinfo(name if name in archive.zip.namelist() else f"{name}.npy")
            with archive.zip.open(entry) as file:
                read_header = _HEADERS.get(np.lib.format.read_magic(file))
                if read_header is not None:
                    shape, _, dtype = read_header(file)
                    if not dtype.hasobject and math.prod(shape) * dtype.itemsize != entry.file_size - file.tell():
                        raise UserError(
                            f"{path}: {name} of shape {shape} is not {entry.file_size:,} bytes; save it again"
                        )
            array = archive[name]
        except ValueError as error:
            if "pickle" not in str(error):
                raise
            raise UserError(
                f"{path}: {name} contains Python objects, which can run code when loaded; save plain arrays"
            ) from error
    if not isinstance(array, np.ndarray):
        raise UserError(f"{path}: {name} is not an array; save it with numpy.savez")
    return array


def _single_episode(columns: ArrayReaders, source: str) -> Episode:
    """An episode with its own arrays; a state after the last action is dropped."""
    states, actions, rewards = (_column(columns, names, source) for names in (STATE_NAMES, ACTION_NAMES, REWARD_NAMES))
    if len(states) == len(rewards) + 1:
        states = states[:-1]
    terminated = next((columns[name]() for name in _TERMINAL_NAMES if name in columns), np.ones(1, bool))
    return Episode(states, actions, rewards, not bool(np.ravel(terminated)[-1:].any()))


def _concatenated_episodes(columns: ArrayReaders, source: str) -> list[Episode]:
    """Concatenated episodes."""
    states, actions, rewards = (_column(columns, names, source) for names in (STATE_NAMES, ACTION_NAMES, REWARD_NAMES))
    ends, truncated = _episode_ends(columns, len(rewards), source)
    first = np.concatenate([[0], ends[:-1]])
    offsets = np.zeros_like(first)
    if len(states) == len(rewards) + len(ends):  # imitation stores the state after each episode's last action
        offsets = np.arange(len(ends))
    elif len(states) != len(rewards) or len(actions) != len(rewards):
        raise UserError(
            f"{source} has {len(rewards):,} rewards, {len(states):,} states and {len(actions):,} actions; "
            "save one of each per step"
        )
    return [
        Episode(states[start + offset : end + offset], actions[start:end], rewards[start:end], bool(is_truncated))
        for start, end, offset, is_truncated in zip(first, ends, offsets, truncated)
    ]


def _episode_ends(columns: ArrayReaders, steps: int, source: str) -> tuple[np.ndarray, np.ndarray]:
    """The episode ends, and which episodes were truncated."""
    if "ends" in columns or "indices" in columns:
        indices = np.ravel(columns["ends" if "ends" in columns else "indices"]())
        ends = indices if "ends" in columns else np.append(indices, steps)
        if ends.dtype.kind not in "iu" or (np.diff(ends, prepend=0) < 0).any() or len(ends) == 0 or ends[-1] != steps:
            raise UserError(f"{source}: episode ends do not increase to the number of rewards ({steps:,}); fix them")
        ends = ends.astype(np.int64)
        flags = np.ravel(columns["cut"]()) if "cut" in columns else None
        if flags is None and "terminal" in columns:
            flags = ~np.ravel(columns["terminal"]()).astype(bool)
        return ends, np.zeros(len(ends), bool) if flags is None or len(flags) != len(ends) else flags
    terminated, truncated = (_flags(columns, names, steps, source) for names in (_TERMINAL_NAMES, _TIMEOUT_NAMES))
    if terminated is None and truncated is None:
        raise UserError(
            f"{source} does not mark where episodes end; add an array ends, or terminals and timeouts as in D4RL"
        )
    terminated = np.zeros(steps, bool) if terminated is None else terminated
    ends = np.flatnonzero(terminated if truncated is None else terminated | truncated) + 1
    if not len(ends) or ends[-1] != steps:  # the recording stopped during an episode
        ends = np.append(ends, steps)
    return ends, ~terminated[ends - 1]


def _flags(columns: ArrayReaders, names: Collection[str], steps: int, source: str) -> np.ndarray | None:
    name = next((name for name in names if name in columns), None)
    if name is None:
        return None
    flags = np.ravel(columns[name]()).astype(bool)
    if len(flags) != steps:
        raise UserError(f"{source} has {steps:,} rewards but {len(flags):,} {name}; save one of each per step")
    return flags


def _column(columns: ArrayReaders, names: Sequence[str], source: str) -> np.ndarray:
    name = next((name for name in names if name in columns), None)
    if name is None:
        hint = nearest(names[0], columns) if columns else "it is empty"
        raise UserError(f"{source} has no {names[0]} ({hint}); name them {' or '.join(names[:2])}")
    values = columns[name]()
    if values.ndim == 0:
        raise UserError(f"{source}: {name} is a single number; save one per step")
    return values


def _arrays(group: Any, source: str) -> ArrayReaders:
    """The arrays directly in a group, each read on demand."""
    import h5py

    if not isinstance(group, h5py.Group):
        raise UserError(f"{source} is a single array; save a group of states, actions and rewards")
    with damage_errors(source, *_HDF5_DAMAGE):
        names = [name for name in group if isinstance(name, str)]  # a damaged name may be bytes
    return {name: partial(_array, group, name, source) for name in names}


def _array(group: Any, name: str, source: str) -> np.ndarray:
    import h5py

    node = _open_node(group, name, source)
    if not isinstance(node, h5py.Dataset):
        raise UserError(f"{source}: {name} is a group of several arrays; save states and actions as one array each")
    with damage_errors(source, *_HDF5_DAMAGE):
        if not (node.is_virtual or node.external) and node.dtype.kind in "fiub":
            # Neither the array nor any of its chunks may expand beyond the limits.
            location = f"{source}: {name}"
            chunk_bytes = math.prod(node.chunks or (1,)) * node.dtype.itemsize
            check_in_memory(location, node.id.get_storage_size(), max(node.nbytes, chunk_bytes))
            filters = node.id.get_create_plist()
            filter_ids = [filters.get_filter(position)[0] for position in range(filters.get_nfilters())]
            if len(set(filter_ids)) < len(filter_ids):
                raise UserError(f"{location} is compressed twice; save it with one compression")
            large_chunks: list[tuple[int, ...]] = []
            if node.chunks and node.nbytes and _DEFLATE in filter_ids:
                node.id.chunk_iter(
                    lambda chunk: large_chunks.append(chunk.chunk_offset) if chunk.size > _SMALL_CHUNK else None
                )
            for position in large_chunks:  # the library does not limit the expansion of a chunk
                compressed, limit = node.id.read_direct_chunk(position)[1], chunk_bytes + _FILTER_OVERHEAD
                if len(zlib.decompressobj().decompress(compressed, limit)) == limit:
                    raise UserError(f"{location} has a chunk that expands to over {chunk_bytes:,} bytes; save it again")
            return np.asarray(node[()])
    raise UserError(f"{source}: {name} is virtual, external or not numeric; save it as a plain array of numbers")


def _open_node(group: Any, name: str, source: str) -> Any:
    """An object in a group. Links to other files, which no data file should need, are rejected."""
    import h5py

    with damage_errors(source, *_HDF5_DAMAGE):
        link = group.get(name, getlink=True)
        if isinstance(link, h5py.SoftLink):
            group, name = (group.file if link.path.startswith("/") else group), link.path
            paths = accumulate(filter(None, name.split("/")), "{}/{}".format)
            if all(isinstance(group.get(path, getlink=True), h5py.HardLink) for path in paths):
                return group[name]
        elif not isinstance(link, h5py.ExternalLink):
            return group[name]
        else:
            raise UserError(f"{source}: {name} is a link to another file, which is not followed; copy the data into it")
    raise UserError(f"{source}: {name} is a link to another link, which is not followed; copy the data into it")


def _minari_environment(path: Path) -> str:
    """The environment in Minari's metadata.json next to a file; "" if there is none."""
    try:
        with open_file(path.parent / "metadata.json") as file:
            metadata = parse_json(file.read(_MAX_METADATA))
        spec = metadata["env_spec"]
        return str((parse_json(spec) if isinstance(spec, str) else spec)["id"])
    except (UserError, ValueError, KeyError, TypeError, RecursionError):
        return ""


def read_demonstrations(
    paths: Sequence[Path | str], cache: Path, size: tuple[int, int] | None = None, cameras: Sequence[str] | None = None
) -> Episodes:
    """Read demonstrations from LeRobotDataset folders, from the output of `headway data collect`, and from episode
    files. Any other folder is searched recursively, without hidden entries.

    Images of `cameras` (None: all) are decoded once, into memory maps under `cache`, scaled to `size` (height, width)
    if set. An episode file is a task of its own, named after its environment or its file. A UserError names any source
    that cannot be read or does not match the others.
    """
    if not paths:
        raise UserError("no demonstrations; pass a LeRobotDataset folder (headway data collect records them)")
    parts: list[Episodes] = []
    sources = list(_find_sources(paths))
    for source, root in sources:
        if isinstance(source, File):
            part = read_recording(source)
            if part.discrete:
                raise UserError(
                    f"{source} has discrete actions, but robots need real-valued ones; use the trajectories recipe"
                )
            if part.states.ndim != 2:
                raise UserError(f"{source} has images as states; pass images in a LeRobotDataset folder")
        else:
            part = read_lerobot(source, cache, size, cameras)
            names = (root.name, *source.relative_to(root).parts)
            split = next(filter(None, map(split_from_name, reversed(names))), None)  # of the nearest folder
            if split is not None and not part.named_splits.any():
                part = replace(part, named_splits=np.full(len(part), split_code(split), np.uint8))
        parts.append(part)
    return concatenate_episodes(parts, [str(source) for source, _ in sources], one_environment=False)


class DemonstrationSummary(NamedTuple):
    """A summary of demonstrations from metadata only: the steps of each episode, int64 [E], and the height and width of
    each camera's images.
    """

    lengths: np.ndarray
    cameras: dict[str, tuple[int, int]]


def summarize_demonstrations(paths: Sequence[Path | str]) -> DemonstrationSummary:
    """Summarize what `read_demonstrations` reads from these paths, without reading states or images."""
    lengths: list[int] = []
    cameras: dict[str, tuple[int, int]] = {}
    for source, _ in _find_sources(paths):
        if isinstance(source, File):
            lengths += episode_lengths(source)
        else:
            info = read_info_file(source)
            lengths += [entry.length for entry in read_episode_entries(info)]
            cameras |= {camera.name: camera.size for camera in info.cameras}
    return DemonstrationSummary(np.array(lengths, np.int64), cameras)


def _find_sources(paths: Sequence[Path | str]) -> Iterator[tuple[Path | File, Path]]:
    """The LeRobotDataset folders and the episode files at each path, sorted, with that path. Skips hidden folders,
    folders inside another, and duplicates through links.
    """
    for raw_path in paths:
        path = user_path(raw_path)
        folders, visited = list[Path](), set[str]()
        for parent, names, _ in os.walk(path, followlinks=True):
            folder, real_path = Path(parent), os.path.realpath(parent)
            is_repeated = real_path in visited  # links can form a cycle
            visited.add(real_path)
            if not is_repeated and (folder / INFO_PATH).is_file():
                folders.append(folder)
            is_leaf = is_repeated or folder in folders
            names[:] = [] if is_leaf else sorted(name for name in names if not name.startswith("."))
        yield from ((folder, path) for folder in folders)
        yield from ((file, path) for file in find_files(path, EPISODE_KINDS, excluded=folders))
