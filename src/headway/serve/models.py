"""The models of a server: listed at startup, loaded on first use, and unloaded when unused."""

from __future__ import annotations

import asyncio
import gc
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from contextvars import copy_context
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast

from headway.app.loading import find_device, load
from headway.app.model import Model
from headway.app.predictors import verbs
from headway.app.recipes import find_model
from headway.engine import refusal
from headway.errors import UserError, logger, nearest
from headway.formats.gguf import SUFFIX, GgufFile
from headway.formats.hub import find_folder
from headway.formats.mapped import copied
from headway.formats.native import QUANTISED, Weights, quantised_config
from headway.formats.open import open_config, open_usage
from headway.formats.usage import read_usage
from headway.generate.scheduler import FullError
from headway.handle import Backend
from headway.learn.run import RunDirectory
from headway.memory import free_bytes
from headway.nn.models import Cache, ModelConfig, Transformer, describe, kinds, outline
from headway.received import HUB, FileStates, recorded, states_now
from headway.serve.batches import Batcher
from headway.serve.errors import StatusError
from headway.serve.fingerprint import fingerprint
from headway.serve.frame import Known, Ready
from headway.serve.loop import EngineLoop

R = TypeVar("R")
_LOG = logger(__name__)
_SERVED: dict[str, Weights] = {"Q8_0": "int8", "Q4_0": "int4", "Q4_1": "int4", "Q4_K": "int4"}  # by GGUF format
_FILES = (SUFFIX, ".bin")  # models in a single file
_BYTES = {None: 4, "fp32": 4, "int8": 2, "int4": 2}  # per weight while a model is loaded; stored ones have 16 bits
_RETRY = 10  # seconds after which memory may be available
_LOOK = 1.0  # seconds between two checks of a model's files
_POLL = 0.05  # seconds between checks for running requests during shutdown
_MOST = 1000  # maximum models of a folder


@dataclass(frozen=True)
class LoadOptions:
    """How models are loaded: arguments of `headway.load`. The draft is for models that generate text."""

    device: str = "auto"
    weights: Weights | None = None
    backend: Backend = "auto"
    cache: Cache | None = None
    draft: str | Path | None = None


@dataclass(eq=False)
class _Loaded:
    """A model in memory, its summary, and the states of its files when it was loaded."""

    ready: Ready
    known: Known
    files: FileStates
    users: int = 0


@dataclass(eq=False)
class _Entry:
    """A model by name: its summary, or its error, and its current state."""

    name: str
    place: Path
    known: Known | None = None
    error: UserError | None = None
    loading: asyncio.Task[_Loaded] | None = None
    loaded: _Loaded | None = None
    look: float = 0.0  # when to check its files again, by the monotonic clock
    tried: FileStates | None = None  # states of changed files of the last attempt to reload it
    users: int = 0  # including those that wait for it
    used: float = 0.0  # time of the last use, by the monotonic clock
    timer: asyncio.TimerHandle | None = None  # until it is unloaded


class ServedModels:
    """Models by name: those passed one by one, and those in a folder. Methods are called on the event loop. Models are
    loaded in a thread, one at a time, because two at once would both count on the same free memory.
    """

    def __init__(
        self,
        named: Sequence[str | Path],
        folder: Path | None,
        options: LoadOptions,
        start_loop: Callable[[Model, str], EngineLoop | None],
        keep_alive: float | None = None,
    ) -> None:
        """`start_loop` makes the engine loop for a model and its name, or None if it does not generate text. A model is
        unloaded after `keep_alive` idle seconds (None: only if memory is short).

        UserError for a named model that cannot be served, for two models with one name, and for a folder without any.
        A broken model in the folder is not listed; a request for it reports the error.
        """
        self._options, self._start_loop, self._keep_alive = options, start_loop, keep_alive
        self._device = find_device(options.device)
        self._entries: dict[str, _Entry] = {}
        for path in named:
            self._add(_name_of(path), find_folder(path))
        for entry in self._entries.values():
            entry.known = known(entry.place, options)
        for place in [] if folder is None else _in_folder(folder):
            self._add(_name_of(place), place)
            entry = self._entries[_name_of(place)]
            try:
                entry.known = known(place, options)
            except UserError as error:
                entry.error = error
                _LOG.warning("%s is not served: %s", entry.name, error)
        if not any(entry.known for entry in self._entries.values()):
            raise UserError("there is no model to serve; pass models, or a folder of models with --models")
        self._replaced: set[_Loaded] = set()  # replaced by newer versions, and still in use
        self._retiring: set[asyncio.Task[None]] = set()
        self._thread = ThreadPoolExecutor(1, "headway-load")
        self._turn, self._letting_go = asyncio.Lock(), asyncio.Lock()  # locks for loading, and for unloading
        self._end: asyncio.Future[None] | None = None
        self._closing = False

    def listed(self) -> dict[str, Known]:
        return {name: entry.known for name, entry in self._entries.items() if entry.known is not None}

    def notes(self) -> list[str]:
        """Messages at startup: the formats in which quantised models are served, and why."""
        return [f"{name}: {each.note}" for name, each in self.listed().items() if each.note is not None]

    def known(self, name: str) -> Known:
        entry = self._entry(name)
        if entry.known is None:
            raise _broken(entry, str(entry.error))
        return entry.known

    @asynccontextmanager
    async def using(self, name: str) -> AsyncIterator[Ready]:
        entry = self._entry(name)
        if self._closing:
            raise StatusError(503, "the server is shutting down; try again later", code="ending", retry_after=_RETRY)
        self.known(entry.name)
        entry.users += 1
        if entry.timer is not None:
            entry.timer.cancel()
        loaded = None
        try:
            loaded = await self._loaded(entry)
            loaded.users += 1
            yield loaded.ready
        except UserError as error:
            if isinstance(error, (StatusError, FullError)):
                raise
            raise UserError(_unplaced(entry, str(error))) from error
        finally:
            entry.users -= 1
            if loaded is not None:
                loaded.users -= 1
                if loaded in self._replaced and not loaded.users:
                    self._replaced.remove(loaded)
                    self._retire(loaded, entry.name)
            self._released(entry)

    def loops(self) -> Mapping[str, EngineLoop]:
        found = {name: entry.loaded.ready.loop for name, entry in self._entries.items() if entry.loaded is not None}
        return {name: loop for name, loop in found.items() if loop is not None}

    def batchers(self) -> Mapping[str, Batcher]:
        """The batchers of the loaded models, by name."""
        return {name: entry.loaded.ready.batcher for name, entry in self._entries.items() if entry.loaded is not None}

    def ready(self) -> bool:
        return not self._closing

    async def start(self) -> None:
        for name, each in self.listed().items():
            if each.alone is not None:
                _LOG.warning("%s is served one request at a time: %s", name, each.alone)

    async def close(self, seconds: float) -> None:
        """Both the server and the application call this; the first call sets the deadline."""
        if self._end is None:
            self._end = asyncio.ensure_future(self._close(seconds))
        await asyncio.shield(self._end)

    async def _close(self, seconds: float) -> None:
        self._closing, end = True, time.monotonic() + seconds
        older = [each.ready.loop for each in self._replaced if each.ready.loop is not None]
        loops = [loop.close(seconds) for loop in (*self.loops().values(), *older)]  # stops its running requests
        await asyncio.gather(*loops)
        while any(entry.users for entry in self._entries.values()) and time.monotonic() < end:
            await asyncio.sleep(_POLL)
        for entry in self._entries.values():
            await self._unload(entry)
        await asyncio.gather(*(self._let_go(each, "an older one") for each in self._replaced), *self._retiring)
        self._thread.shutdown(wait=False)

    def _add(self, name: str, place: Path) -> None:
        other = self._entries.get(name)
        if other is not None:
            raise UserError(f"{other.place} and {place} are both named {name}; rename one, or link to one")
        self._entries[name] = _Entry(name, place)

    def _entry(self, name: str) -> _Entry:
        if not name and len(self._entries) == 1:
            return next(iter(self._entries.values()))
        if name not in self._entries:
            remedy = nearest(name, self.listed())
            raise StatusError(404, f"there is no model {name[:100]!r}; {remedy}", "model", "model_not_found")
        return self._entries[name]

    async def _loaded(self, entry: _Entry) -> _Loaded:
        """The model, which the first request loads; loading continues if its client disconnects, as others may wait. If
        its files have changed, it is loaded again, and the old version answers until then.
        """
        if entry.loaded is not None:
            if entry.loading is None and self._has_changed(entry, entry.loaded):
                self._begin(entry)
            return entry.loaded
        if entry.loading is None:
            self._begin(entry)
        assert entry.loading is not None
        return await asyncio.shield(entry.loading)

    def _begin(self, entry: _Entry) -> None:
        entry.loading = asyncio.create_task(self._load(entry))
        entry.loading.add_done_callback(lambda task: task.cancelled() or task.exception())  # mark as retrieved

    def _has_changed(self, entry: _Entry, loaded: _Loaded) -> bool:
        """Whether files of a model have changed since it was loaded and since the last attempt to reload it."""
        now = time.monotonic()
        if now < entry.look:
            return False
        entry.look = now + _LOOK
        found = states_now(loaded.files)
        if found in (loaded.files, entry.tried):
            return False
        entry.tried = found
        return True

    async def _load(self, entry: _Entry) -> _Loaded:
        try:
            async with self._turn:
                await self._make_room(entry)
                started = time.monotonic()
                made = await self._in_thread(lambda: self._open(entry))
            older, entry.loaded, entry.known, entry.tried = entry.loaded, made, made.known, None
            again = " again, as its files have changed" if older is not None else ""
            _LOG.info("loaded %s%s in %.1f s", entry.name, again, time.monotonic() - started)
            if older is not None and older.users:
                self._replaced.add(older)
            elif older is not None:
                self._retire(older, entry.name)
            return made
        except StatusError as error:
            if entry.loaded is not None:
                entry.tried = None  # memory may be available at the next check
                _LOG.warning("%s has changed, but the old version stays in use: %s", entry.name, error)
            raise
        except Exception as error:  # of broken files, or without memory: other models continue
            told = "has changed and cannot be loaded; the old version stays in use" if entry.loaded else "cannot load"
            reason = error if isinstance(error, UserError) else type(error).__name__
            trace = None if isinstance(error, UserError) else error
            _LOG.warning("%s %s: %s", entry.name, told, reason, exc_info=trace)
            raise _broken(entry, str(error) or type(error).__name__) from error
        finally:
            entry.loading = None
            self._released(entry)

    def _open(self, entry: _Entry) -> _Loaded:
        """Called in the thread, because loading and compiling take seconds. UserError if a file changes meanwhile:
        parts of different versions would be mixed.
        """
        o, place = self._options, entry.place
        with recorded() as files, copied():
            found = known(place, o)
            writes = "generate" in found.verbs
            model = load(place, o.device, found.weights, o.backend, o.cache, o.draft if writes else None)
        changed = next((path for path, state in states_now(files).items() if state != files[path]), None)
        if changed is not None:
            raise UserError(f"{Path(changed).name} changed while it was read; try again when it is complete")
        loop = self._start_loop(model, entry.name)
        ready = Ready(entry.name, model, loop, Batcher(entry.name), fingerprint(model) if writes else "")
        return _Loaded(ready, found, files)

    async def _make_room(self, entry: _Entry) -> None:
        """Unload idle models, least recently used first, until there is memory for a model. StatusError 503 if all
        loaded models are in use.
        """
        found = self.known(entry.name)
        needed = found.parameters * _BYTES[found.weights]
        while (free := free_bytes(self._device)) is not None and free < needed:
            held = [each for each in self._entries.values() if each.loaded is not None]
            idle = [each for each in held if not each.users]
            if not held:
                return  # loading will report the missing memory
            if not idle:
                using = ", ".join(each.name for each in held)
                message = f"{entry.name} needs {needed:,} bytes of memory, {free:,} are free, and {using} is in use"
                raise StatusError(503, f"{message}; try again later", code="no_memory", retry_after=_RETRY)
            await self._unload(min(idle, key=lambda each: each.used))

    def _released(self, entry: _Entry) -> None:
        entry.used = time.monotonic()
        if entry.timer is not None:
            entry.timer.cancel()
        if self._keep_alive is None or entry.users or entry.loaded is None or self._closing:
            return
        loop = asyncio.get_running_loop()
        entry.timer = loop.call_later(self._keep_alive, lambda: loop.create_task(self._unload_idle(entry)))

    async def _unload_idle(self, entry: _Entry) -> None:
        if not entry.users:
            await self._unload(entry)

    async def _unload(self, entry: _Entry) -> None:
        loaded, entry.loaded = entry.loaded, None
        if loaded is not None:
            await self._let_go(loaded, entry.name)

    def _retire(self, loaded: _Loaded, name: str) -> None:
        """Unload it after the caller has dropped its references."""
        task = asyncio.create_task(self._let_go(loaded, name))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    async def _let_go(self, loaded: _Loaded, name: str) -> None:
        async with self._letting_go:
            loaded.ready.batcher.close()
            if loaded.ready.loop is not None:
                await loaded.ready.loop.close(0)
            del loaded.ready, loaded
            await self._in_thread(gc.collect)  # modules refer to each other
            _LOG.info("unloaded %s", name)

    async def _in_thread(self, job: Callable[[], R]) -> R:
        context = copy_context()  # has, for example, the choice of kernels
        return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: context.run(job))


def known(place: Path, options: LoadOptions) -> Known:
    """The summary of the model at a path, and how it is served. UserError if there is no model."""
    if not place.exists():
        raise UserError(f"{place} does not exist; pass a run, a model folder or a .gguf file")
    run = RunDirectory(place).exists()
    if (place / QUANTISED).is_file():
        config, usage = quantised_config(place), read_usage(place)
    elif run:
        config, usage = find_model(str(place.resolve())), read_usage(place)
    else:
        config, usage = open_config(place), open_usage(place)
    can = verbs(config, usage, run)
    alone = _alone(config, options) if "generate" in can else None
    return Known(
        kinds.kind_of(config),
        can,
        kinds.reads(config),
        config.context,
        describe(config)["parameters"],
        int(place.stat().st_mtime),
        alone,
        *_weights(place, options, alone),
    )


def _weights(place: Path, options: LoadOptions, alone: str | None) -> tuple[Weights | None, str | None]:
    """The format to load weights in: as requested, or that of a quantised GGUF file, with a message about it."""
    if options.weights is not None or place.suffix != SUFFIX:
        return options.weights, None
    kind = GgufFile(place).main_kind()
    if kind.dtype is not None:
        return None, None
    weights = _SERVED.get(kind.name)
    reason = f"{kind.name} has neither 8 nor 4 bits" if weights is None else alone
    if find_device(options.device).type != "cpu":
        reason = "int8 and int4 run only on the CPU"
    elif options.backend == "torch":
        reason = "torch is the backend"
    if reason is not None:
        return None, f"weights in {kind.name} are served in fp32, as {reason}"
    return weights, f"weights in {kind.name} are served in {weights}; --weights fp32 serves their exact values"


def _alone(config: ModelConfig, options: LoadOptions) -> str | None:
    if options.draft is not None:
        return "a draft works for one sequence only"
    if options.backend == "torch" or find_device(options.device).type != "cpu":
        return "it runs on torch"
    missing = refusal(cast(Transformer, outline(config)))
    return None if missing is None else f"the compiled engine has no instruction for {missing}"


def _name_of(path: str | Path) -> str:
    """The public name of a model: the last part of its path, or its name on a hub."""
    if str(path).startswith(HUB):
        return str(path).removeprefix(HUB)
    place = Path(os.path.abspath(path))  # not resolved: a link keeps its own name
    return place.stem if place.suffix in _FILES else place.name


def _in_folder(folder: Path) -> list[Path]:
    """Paths of possible models: subfolders, and files with a model's suffix. UserError if it is not a folder."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; pass a folder of models")
    found = sorted(place for place in folder.iterdir() if place.name[0] != "." and _may_be(place))
    if len(found) > _MOST:
        raise UserError(f"{folder} has {len(found):,} folders and files, more than {_MOST:,}; pass models one by one")
    return found


def _may_be(place: Path) -> bool:
    return place.is_dir() or (place.is_file() and place.suffix in _FILES)


def _broken(entry: _Entry, reason: str) -> StatusError:
    return StatusError(503, f"{entry.name} cannot be served: {_unplaced(entry, reason)}", "model", "model_broken")


def _unplaced(entry: _Entry, message: str) -> str:
    """The message without the model's path, which clients need not know."""
    return message.replace(str(entry.place), entry.name)
