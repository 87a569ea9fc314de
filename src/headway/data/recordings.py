"""Episode files: several .npz layouts, HDF5 in D4RL's layout, Minari folders."""

from __future__ import annotations

import math
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from headway.data.episodes import Episode, Episodes, joined, together
from headway.data.files import File, find_files, honoured
from headway.data.splits import side_number
from headway.data.store import taking
from headway.drafts import draft_of
from headway.errors import UserError, nearest
from headway.parsing import parse_json
from headway.received import check_whole, opened, place_of

KINDS = (".npz", ".hdf5", ".h5")
# Column names: headway's, those of D4RL and Minari, of imitation, and of files with one array per episode.
STATES, ACTIONS = ("states", "observations", "obs", "observation"), ("actions", "acts", "action")
REWARDS = ("rewards", "rews", "reward")
_ENDED, _CUT = ("terminals", "terminations", "terminal", "dones"), ("timeouts", "truncations")
_NUMBERED = re.compile(r"(?:observation|obs)_(\d+)")
_EPISODE = re.compile(r"episode_(\d+)")
_DEFLATE = 1  # HDF5's filter id
_NOTES = 1 << 24  # maximum bytes of metadata.json
_SMALL, _SPARE = 1 << 18, 1 << 16  # bytes of a chunk that is not checked, and bytes that filters may add to a chunk
_FLAT = ("ends", "indices", *_ENDED, *_CUT)

_HEADERS: dict[tuple[int, int], Callable[[Any], Any]] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}

Columns = Mapping[str, Callable[[], np.ndarray]]


def read_episodes(paths: Sequence[Path | str]) -> Episodes:
    """Read the episodes of files, folders of files or Minari data sets. A UserError names any that cannot be read."""
    if not paths:
        raise UserError(
            "no episodes; pass at least one .npz or .hdf5 file (headway data collect records them)"
        )
    files = honoured([file for path in paths for file in find_files(place_of(path), KINDS)])
    return joined([read_recording(file) for file in files], [str(file) for file in files])


def episode_lengths(file: File) -> list[int]:
    """The number of steps of each episode in a file, from its rewards and ends alone."""
    source = str(file)
    if file.path.suffix.lower() == ".npz":
        with open_arrays(file.path) as columns:
            numbers = sorted(int(found[1]) for found in map(_NUMBERED.fullmatch, columns) if found)
            own = [{name: read for name, read in columns.items() if name.endswith(f"_{number}")} for number in numbers]
            each = [{name.rpartition("_")[0]: read for name, read in some.items()} for some in own]
            return [len(_column(some, REWARDS, source)) for some in each] or _flat_lengths(columns, source)
    with _hdf5(file.path) as group:
        numbers = sorted(int(found[1]) for found in map(_EPISODE.fullmatch, _names(group, source)) if found)
        inner = [_arrays(_inside(group, f"episode_{number}", source), source) for number in numbers]
        found = [len(_column(some, REWARDS, source)) for some in inner]
        return found or _flat_lengths(_arrays(group, source), source)


def _flat_lengths(columns: Columns, source: str) -> list[int]:
    ends, _ = _ends(columns, len(_column(columns, REWARDS, source)), source)
    return np.diff(ends, prepend=0).tolist()


def outline(paths: Sequence[Path | str]) -> list[int]:
    """The number of steps of each episode that `read_episodes` reads from these paths, without reading states."""
    files = honoured([file for path in paths for file in find_files(place_of(path), KINDS)])
    return [length for file in files for length in episode_lengths(file)]


def write_episodes(path: Path, episodes: Episodes) -> None:
    """Write one .npz of flat arrays: states, actions, rewards and the ends of episodes. Written under a temporary name,
    then renamed.
    """
    arrays: dict[str, Any] = {name: getattr(episodes, name) for name in ("states", "actions", "rewards", "ends", "cut")}
    part = draft_of(path)
    try:
        with taking(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(part, "wb") as file:
                np.savez_compressed(file, environment=np.array(episodes.environment), **arrays)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def read_recording(file: File) -> Episodes:
    """The episodes of one file. UserError, with the reason, if it cannot be read."""
    side = 0 if file.side is None else side_number(file.side)
    if file.path.suffix.lower() == ".npz":
        with open_arrays(file.path) as columns:
            return together(_npz(columns, str(file)), str(file), side, _environment(columns))
    with _hdf5(file.path) as group:
        return together(_of_hdf5(group, str(file)), str(file), side, _minari_environment(file.path))


@contextmanager
def open_arrays(path: Path) -> Iterator[Columns]:
    """The arrays of an .npz, each read on demand. Python objects, which could run code, are rejected."""
    with ExitStack() as stack:
        file = stack.enter_context(opened(path))
        with _sound(path, ".npz", "save it again with numpy.savez"):
            archive = np.load(file, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            raise UserError(f"{path} contains one unnamed array; save it again with numpy.savez")
        stack.enter_context(archive)
        for entry in archive.zip.infolist():
            if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise UserError(
                    f"{path}: {entry.filename} has a compression that numpy never uses; save it with numpy.savez"
                )
            check_whole(f"{path}: {entry.filename}", entry.compress_size, entry.file_size)
        yield {name: partial(_entry, archive, name, path) for name in archive.files}


def _entry(archive: Any, name: str, path: Path) -> np.ndarray:
    with _sound(path, ".npz", "save it again with numpy.savez"):
        try:
            _check_header(archive, name, path)
            found = archive[name]
        except ValueError as error:
            if "pickle" not in str(error):
                raise
            raise UserError(
                f"{path}: {name} contains Python objects, which can run code when loaded; save plain arrays"
            ) from error
    if not isinstance(found, np.ndarray):
        raise UserError(f"{path}: {name} is not an array; save it with numpy.savez")
    return found


def _check_header(archive: Any, name: str, path: Path) -> None:
    """Check that an array's header matches its bytes: numpy allocates memory by the header before it reads."""
    entry = archive.zip.getinfo(name if name in archive.zip.namelist() else f"{name}.npy")
    with archive.zip.open(entry) as file:
        read = _HEADERS.get(np.lib.format.read_magic(file))
        if read is not None:
            shape, _, kind = read(file)
            if not kind.hasobject and math.prod(shape) * kind.itemsize != entry.file_size - file.tell():
                raise UserError(f"{path}: {name} of shape {shape} is not {entry.file_size:,} bytes; save it again")


@contextmanager
def _sound(path: Path | str, kind: str, remedy: str) -> Iterator[None]:
    """Turn any exception that a library raises for a damaged file into a UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path} is damaged or not {kind} ({_first(error)}); {remedy}") from error


def _first(error: Exception) -> str:
    return (str(error) or type(error).__name__).split("\n")[0][:200].rstrip(".")


def _environment(columns: Columns) -> str:
    """The environment in which the file was recorded; "" if unknown."""
    found = columns["environment"]() if "environment" in columns else np.array("")
    return str(found) if found.ndim == 0 and found.dtype.kind == "U" else ""


def _npz(columns: Columns, source: str) -> list[Episode]:
    numbers = sorted(int(found[1]) for found in map(_NUMBERED.fullmatch, columns) if found)
    if not numbers:
        return _flat(columns, source)
    found = []
    for number in numbers:
        ending = f"_{number}"
        own = {name.removesuffix(ending): read for name, read in columns.items() if name.endswith(ending)}
        found.append(_alone(own, f"{source}, episode {number}"))
    return found


def _alone(columns: Columns, source: str) -> Episode:
    """An episode with its own arrays; a state after the last action is dropped."""
    states, actions, rewards = (_column(columns, names, source) for names in (STATES, ACTIONS, REWARDS))
    if len(states) == len(rewards) + 1:
        states = states[:-1]
    ended = next((columns[name]() for name in _ENDED if name in columns), np.ones(1, bool))
    return Episode(states, actions, rewards, not bool(np.ravel(ended)[-1:].any()))


def _flat(columns: Columns, source: str) -> list[Episode]:
    """Concatenated episodes."""
    states, actions, rewards = (_column(columns, names, source) for names in (STATES, ACTIONS, REWARDS))
    ends, cut = _ends(columns, len(rewards), source)
    first = np.concatenate([[0], ends[:-1]])
    extra = np.zeros_like(first)
    if len(states) == len(rewards) + len(ends):  # imitation stores the state after each episode's last action
        extra = np.arange(len(ends))
    elif len(states) != len(rewards) or len(actions) != len(rewards):
        raise UserError(
            f"{source} has {len(rewards):,} rewards, {len(states):,} states and {len(actions):,} actions; "
            "save one of each per step"
        )
    return [
        Episode(states[start + more : end + more], actions[start:end], rewards[start:end], bool(was_cut))
        for start, end, more, was_cut in zip(first, ends, extra, cut)
    ]


def _ends(columns: Columns, steps: int, source: str) -> tuple[np.ndarray, np.ndarray]:
    """The ends of episodes, and which of them were truncated."""
    if "ends" in columns or "indices" in columns:
        places = np.ravel(columns["ends" if "ends" in columns else "indices"]())
        ends = places if "ends" in columns else np.append(places, steps)
        if ends.dtype.kind not in "iu" or (np.diff(ends, prepend=0) < 0).any() or len(ends) == 0 or ends[-1] != steps:
            raise UserError(f"{source}: the ends of episodes do not increase to {steps:,} rewards; correct them")
        ends = ends.astype(np.int64)
        flags = next((np.ravel(columns[name]()) for name in ("cut",) if name in columns), None)
        if flags is None and "terminal" in columns:
            flags = ~np.ravel(columns["terminal"]()).astype(bool)
        return ends, np.zeros(len(ends), bool) if flags is None or len(flags) != len(ends) else flags
    ended, cut = (_flags(columns, names, steps, source) for names in (_ENDED, _CUT))
    if ended is None and cut is None:
        raise UserError(
            f"{source} does not mark the ends of episodes; add an array ends, or terminals and timeouts as in D4RL"
        )
    nothing = np.zeros(steps, bool)
    ended, cut = nothing if ended is None else ended, nothing if cut is None else cut
    ends = np.flatnonzero(ended | cut) + 1
    if not len(ends) or ends[-1] != steps:  # the recording stopped during an episode
        ends = np.append(ends, steps)
    return ends, ~ended[ends - 1]


def _flags(columns: Columns, names: Collection[str], steps: int, source: str) -> np.ndarray | None:
    name = next((name for name in names if name in columns), None)
    if name is None:
        return None
    found = np.ravel(columns[name]()).astype(bool)
    if len(found) != steps:
        raise UserError(f"{source} has {steps:,} rewards but {len(found):,} {name}; save one of each per step")
    return found


def _column(columns: Columns, names: Sequence[str], source: str) -> np.ndarray:
    name = next((name for name in names if name in columns), None)
    if name is None:
        known = nearest(names[0], columns) if columns else "it is empty"
        raise UserError(f"{source} has no {names[0]} ({known}); name them {' or '.join(names[:2])}")
    found = columns[name]()
    if found.ndim == 0:
        raise UserError(f"{source}: {name} is a single number; save one per step")
    return found


@contextmanager
def _hdf5(path: Path) -> Iterator[Any]:
    try:
        import h5py
    except ImportError as error:
        raise UserError(f"{path} needs the package h5py; pip install 'headway[rl]'") from error
    with ExitStack() as stack:
        opened(path).close()  # a pipe would block the library
        with _sound(path, "HDF5", "download it again"):
            file = stack.enter_context(h5py.File(path, "r"))
        yield file


def _of_hdf5(group: Any, source: str) -> list[Episode]:
    numbers = sorted(int(found[1]) for found in map(_EPISODE.fullmatch, _names(group, source)) if found)
    if not numbers:
        return _flat(_arrays(group, source), source)
    return [_of_minari(group, number, source) for number in numbers]


def _of_minari(group: Any, number: int, source: str) -> Episode:
    where = f"{source}, episode {number}"
    return _alone(_arrays(_inside(group, f"episode_{number}", source), where), where)


def _names(group: Any, source: str) -> list[str]:
    with _sound(source, "HDF5", "download it again"):
        return [name for name in group if isinstance(name, str)]  # a damaged name may be bytes


def _arrays(group: Any, source: str) -> Columns:
    """The arrays directly in a group, each read on demand."""
    import h5py

    if not isinstance(group, h5py.Group):
        raise UserError(f"{source} is a single array; save a group of states, actions and rewards")
    return {name: partial(_array, group, name, source) for name in _names(group, source)}


def _array(group: Any, name: str, source: str) -> np.ndarray:
    import h5py

    found = _inside(group, name, source)
    if not isinstance(found, h5py.Dataset):
        raise UserError(f"{source}: {name} is a group of several arrays; save states and actions as one array each")
    with _sound(source, "HDF5", "download it again"):
        if not (found.is_virtual or found.external) and found.dtype.kind in "fiub":
            _check_dataset(found, f"{source}: {name}")
            return np.asarray(found[()])
    raise UserError(f"{source}: {name} is virtual, external or not numeric; save it as a plain array of numbers")


def _inside(group: Any, name: str, source: str) -> Any:
    """An object in a group. Links to other files, which no data file should need, are rejected."""
    import h5py

    with _sound(source, "HDF5", "download it again"):
        link = group.get(name, getlink=True)
        if isinstance(link, h5py.SoftLink):
            group, name = (group.file if link.path.startswith("/") else group), link.path
            if all(_is_own(group, path) for path in accumulate(filter(None, name.split("/")), "{}/{}".format)):
                return group[name]
        elif not isinstance(link, h5py.ExternalLink):
            return group[name]
        else:
            raise UserError(f"{source}: {name} is a link to another file, which is not followed; copy the data into it")
    raise UserError(f"{source}: {name} is a link to another link, which is not followed; copy the data into it")


def _is_own(group: Any, path: str) -> bool:
    """Whether the last component of a path is not a link; callers check every component in order."""
    import h5py

    return isinstance(group.get(path, getlink=True), h5py.HardLink)


def _check_dataset(dataset: Any, what: str) -> None:
    """Check before reading that neither an array nor any of its chunks expands beyond the limits."""
    stored, each = dataset.id.get_storage_size(), math.prod(dataset.chunks or (1,)) * dataset.dtype.itemsize
    check_whole(what, stored, max(dataset.nbytes, each))
    filters = dataset.id.get_create_plist()
    numbers = [filters.get_filter(place)[0] for place in range(filters.get_nfilters())]
    if len(set(numbers)) < len(numbers):
        raise UserError(f"{what} is compressed twice; save it with one compression")
    large: list[tuple[int, ...]] = []
    if dataset.chunks and dataset.nbytes and _DEFLATE in numbers:
        dataset.id.chunk_iter(lambda chunk: large.append(chunk.chunk_offset) if chunk.size > _SMALL else None)
    for place in large:  # the library does not limit the expansion of a chunk
        data = dataset.id.read_direct_chunk(place)[1]
        if len(zlib.decompressobj().decompress(data, each + _SPARE)) > each + _SPARE - 1:
            raise UserError(f"{what} has a chunk that expands to over {each:,} bytes; save it again")


def _minari_environment(path: Path) -> str:
    """The environment in Minari's metadata.json next to a file; "" if there is none."""
    try:
        with opened(path.parent / "metadata.json") as file:
            said = parse_json(file.read(_NOTES))
        spec = said["env_spec"]
        return str((parse_json(spec) if isinstance(spec, str) else spec)["id"])
    except (UserError, ValueError, KeyError, TypeError, RecursionError):
        return ""
