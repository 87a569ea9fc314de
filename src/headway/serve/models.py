"""A server's models: found in its folders, loaded on first use, and unloaded when unused."""

from __future__ import annotations

import asyncio
import gc
import os
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from contextvars import copy_context
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import TypeVar, cast

from headway.app.loading import find_device, load
from headway.app.model import Model
from headway.app.predictors import verbs
from headway.app.recipes import find_model_config
from headway.engine import refusal
from headway.errors import UserError, logger, nearest
from headway.formats.gguf import SUFFIX, GgufFile
from headway.formats.native import QUANTISED, LoadedWeights, Weights, quantised_config
from headway.formats.open import open_config, open_usage
from headway.formats.tensorfile import private_copies
from headway.formats.usage import read_usage
from headway.generate.scheduler import FullError
from headway.io.files import FileStates, current_states, record_file_states
from headway.io.hub import find_folder
from headway.io.machine_memory import free_bytes
from headway.learn.run import RunDirectory
from headway.nn.models import CacheDtype, ModelConfig, Transformer, describe, kinds, outline
from headway.predict.model_handle import Backend
from headway.serve.batcher import Batcher
from headway.serve.engine_loop import EngineLoop
from headway.serve.engine_preparation import EnginePreparation
from headway.serve.fingerprint import fingerprint
from headway.serve.http_errors import StatusError
from headway.serve.interfaces import ModelSummary, ReadyModel
from headway.serve.model_folders import find_all, public_name

R = TypeVar("R")
_LOG = logger(__name__)
_GGUF_WEIGHTS: dict[str, Weights] = {"Q8_0": "int8", "Q4_0": "int4", "Q4_1": "int4", "Q4_K": "int4"}  # by GGUF format
_LOADING_BYTES = {
    None: 4,
    "fp32": 4,
    "bf16": 2,
    "int8": 2,
    "int4": 2,
}  # per weight while a model is loaded; stored ones have 16 bits
_RETRY_SECONDS = 10  # seconds after which memory may be available
_CHECK_SECONDS = 1.0  # seconds between two checks of a model's files, and of the folders
_MAX_WAIT = 1.0  # seconds that a list of models waits for new ones to be read
_POLL_SECONDS = 0.05  # seconds between checks for running requests during shutdown
_MAX_EXAMPLES, _MAX_EXAMPLE_LENGTH = 5, 1000  # per model; characters
_PARTIAL_END = re.compile(r"\s+\S*\w$")  # of a prompt, which starts and ends anywhere in a text
_SENTENCE_STARTS = re.compile(r"""(?:\A|\n|[.!?。！？]["'”’)]*\s*)(?=["'“‘]?([^\W\d_]))""")  # and the first letter


@dataclass(frozen=True)
class LoadOptions:
    """How models are loaded: arguments for `headway.load`. The draft is for models that generate text."""

    device: str = "auto"
    weights: LoadedWeights | None = None
    backend: Backend = "auto"
    cache: CacheDtype | None = None
    draft: str | Path | None = None


@dataclass(eq=False)
class _LoadedModel:
    """A model in memory, its summary, and the states of its files when it was loaded."""

    ready: ReadyModel
    summary: ModelSummary
    files: FileStates
    users: int = 0


@dataclass(eq=False)
class _Entry:
    """A model by name: its summary, or its error, and its current state."""

    name: str
    path: Path
    found: FileStates | None = None  # states of its files when it was found in a folder; None if it was passed
    is_removed: bool = False  # from its folder, but still in use
    summary: ModelSummary | None = None
    error: UserError | None = None
    loading: asyncio.Task[_LoadedModel] | None = None
    loaded: _LoadedModel | None = None
    next_check: float = 0.0  # when to check its files again, by the monotonic clock
    tried_files: FileStates | None = None  # states of the changed files at the last attempt to reload it
    users: int = 0  # including those waiting for it
    last_used: float = 0.0  # time of the last use, by the monotonic clock
    timer: asyncio.TimerHandle | None = None  # until it is unloaded


class ServedModels:
    """Models by name: those passed individually and those in folders. Methods are called on the event loop. Models are
    loaded in a thread, one at a time, because two at once would both rely on the same free memory.
    """

    def __init__(
        self,
        named: Sequence[str | Path],
        folders: Sequence[Path],
        options: LoadOptions,
        start_loop: Callable[[Model, str], EngineLoop | None],
        keep_alive: float | None = None,
        may_be_empty: bool = False,
        preparation: EnginePreparation | None = None,
    ) -> None:
        """`start_loop` makes the engine loop for a model and its name, or None if it does not generate text. A model is
        unloaded after `keep_alive` idle seconds (None: only if memory is short). With `may_be_empty`, folders are first
        searched by `refresh`, and may be missing until then. `preparation` compiles the engine as soon as a model that
        needs it is listed.

        UserError for a named model that cannot be served, for two models with one name, and for folders without any.
        A broken model in a folder is not listed; a request for it reports the error.
        """
        self._options, self._start_loop, self._keep_alive = options, start_loop, keep_alive
        self._device, self._preparation = find_device(options.device), preparation
        self._folders = folders
        self._entries: dict[str, _Entry] = {}
        for path in named:
            name, folder = public_name(path), find_folder(path)
            if existing := self._entries.get(name):
                raise UserError(f"{existing.path} and {folder} are both named {name}; rename one, or use a link")
            self._entries[name] = _Entry(name, Path(os.path.abspath(folder)))
        for entry in self._entries.values():
            entry.summary = summarize_model(entry.path, options)
        if not may_be_empty:
            if missing := next((folder for folder in folders if not folder.is_dir()), None):
                raise UserError(f"{missing} is not a folder; pass a folder of models")
            for path, states in self._new(find_all(folders)).items():
                self._update(path, states, self._summary_or_error(path))
            if not self.listed():
                raise UserError("there is no model to serve; pass models, or a folder of models with --models")
        self._refreshing: asyncio.Task[None] | None = None
        self._next_refresh = 0.0  # by the monotonic clock
        self._folder_error = ""  # of the last refresh
        self._replaced: set[_LoadedModel] = set()  # replaced by newer versions, and still in use
        self._retiring: set[asyncio.Task[None]] = set()
        self._thread = ThreadPoolExecutor(1, "headway-load")
        self._load_lock, self._unload_lock = asyncio.Lock(), asyncio.Lock()  # locks for loading, and for unloading
        self._shutdown: asyncio.Future[None] | None = None
        self._closing = False

    async def refresh(self) -> None:
        """Look for new, changed and removed models in the folders, at most once a second."""
        if self._refreshing is None and time.monotonic() >= self._next_refresh and not self._closing:
            self._refreshing = asyncio.create_task(self._refresh())
        if self._refreshing is not None:
            await asyncio.wait([self._refreshing], timeout=_MAX_WAIT)

    async def _refresh(self) -> None:
        try:
            found = await asyncio.to_thread(find_all, tuple(self._folders))
            for path, states in self._new(found).items():
                self._update(path, states, await asyncio.to_thread(self._summary_or_error, path))
            for entry in list(self._entries.values()):
                if entry.found is not None and entry.path not in found:
                    entry.summary, entry.error = None, UserError("its files were removed")
                    entry.is_removed = True
                    self._release(entry)
                elif entry.loaded is not None:  # so that the first request after a training has its model
                    self._reload_if_changed(entry, entry.loaded)
            if self._preparation is not None and not self._closing:
                self._preparation.start(self.listed())
            self._folder_error = ""
        except UserError as error:
            if str(error) != self._folder_error:
                self._folder_error = str(error)
                _LOG.warning("new models are not listed: %s", error)
        finally:
            self._refreshing, self._next_refresh = None, time.monotonic() + _CHECK_SECONDS

    def _new(self, found: Mapping[Path, FileStates]) -> dict[Path, FileStates]:
        """Those that are not known in these states. Models that were passed individually are known."""
        known = {entry.path: entry.found for entry in self._entries.values()}
        return {
            path: states for path, states in found.items() if path not in known or known[path] not in (None, states)
        }

    def _update(self, path: Path, states: FileStates, summary: ModelSummary | UserError) -> None:
        """List a model of a folder, which is new or has changed. A new one gets a name of its own."""
        entry = next((entry for entry in self._entries.values() if entry.path == path), None)
        if entry is None:
            name = public_name(path)
            candidates = chain((name, f"{path.parent.name}/{name}"), (f"{name}-{n}" for n in count(2)))
            name = next(candidate for candidate in candidates if candidate not in self._entries)
            entry = self._entries[name] = _Entry(name, path)
        previous, entry.found, entry.is_removed = entry.error, states, False
        if isinstance(summary, ModelSummary):
            entry.summary, entry.error = summary, None
        elif entry.loaded is None:  # a loaded version stays in use
            entry.summary, entry.error = None, summary
            if str(summary) != str(previous):
                _LOG.warning("%s is not served: %s", entry.name, summary)

    def _summary_or_error(self, path: Path) -> ModelSummary | UserError:
        try:
            return summarize_model(path, self._options)
        except UserError as error:
            return error
        except OSError as error:  # it was removed while it was read
            return UserError(f"{path} cannot be read ({error.strerror}); check the path")

    def listed(self) -> dict[str, ModelSummary]:
        return {name: entry.summary for name, entry in self._entries.items() if entry.summary is not None}

    def notes(self) -> list[str]:
        """Messages at startup: the formats in which quantised models are served, and why."""
        return [f"{name}: {summary.note}" for name, summary in self.listed().items() if summary.note is not None]

    def summary(self, name: str) -> ModelSummary:
        entry = self._entry(name)
        if entry.summary is None:
            raise _broken_error(entry, str(entry.error))
        return entry.summary

    @asynccontextmanager
    async def using(self, name: str) -> AsyncIterator[ReadyModel]:
        entry = self._entry(name)
        if self._closing:
            raise StatusError(
                503, "the server is shutting down; try again later", code="ending", retry_after=_RETRY_SECONDS
            )
        self.summary(entry.name)
        entry.users += 1
        if entry.timer is not None:
            entry.timer.cancel()
        loaded = None
        try:
            loaded = await self._load_once(entry)
            loaded.users += 1
            yield loaded.ready
        except UserError as error:
            if isinstance(error, (StatusError, FullError)):
                raise
            raise UserError(_hide_path(entry, str(error))) from error
        finally:
            entry.users -= 1
            if loaded is not None:
                loaded.users -= 1
                if loaded in self._replaced and not loaded.users:
                    self._replaced.remove(loaded)
                    self._retire(loaded, entry.name)
            self._release(entry)

    def loops(self) -> Mapping[str, EngineLoop]:
        loops = {name: entry.loaded.ready.loop for name, entry in self._entries.items() if entry.loaded is not None}
        return {name: loop for name, loop in loops.items() if loop is not None}

    def batchers(self) -> Mapping[str, Batcher]:
        """The batchers of the loaded models, by name."""
        return {name: entry.loaded.ready.batcher for name, entry in self._entries.items() if entry.loaded is not None}

    def ready(self) -> bool:
        return not self._closing

    def preparing(self) -> float | None:
        return None if self._preparation is None else self._preparation.seconds

    async def start(self) -> None:
        if self._preparation is not None:
            await self.refresh()  # so that it begins before somebody opens the page
        for name, summary in self.listed().items():
            if summary.sequential_reason is not None:
                _LOG.warning("%s serves requests in separate batches: %s", name, summary.sequential_reason)

    async def close(self, seconds: float) -> None:
        """Both the server and the application call this; the first call sets the deadline."""
        if self._shutdown is None:
            self._shutdown = asyncio.ensure_future(self._close(seconds))
        await asyncio.shield(self._shutdown)

    async def _close(self, seconds: float) -> None:
        self._closing, deadline = True, time.monotonic() + seconds
        if self._preparation is not None:
            await self._preparation.close()
        if self._refreshing is not None:
            self._refreshing.cancel()
        replaced_loops = [loaded.ready.loop for loaded in self._replaced if loaded.ready.loop is not None]
        loops = [
            loop.close(seconds) for loop in (*self.loops().values(), *replaced_loops)
        ]  # stops its running requests
        await asyncio.gather(*loops)
        while any(entry.users for entry in self._entries.values()) and time.monotonic() < deadline:
            await asyncio.sleep(_POLL_SECONDS)
        for entry in self._entries.values():
            await self._unload(entry)
        await asyncio.gather(*(self._free(loaded, "an older one") for loaded in self._replaced), *self._retiring)
        self._thread.shutdown(wait=False)

    def _entry(self, name: str) -> _Entry:
        if not name and len(self._entries) == 1:
            return next(iter(self._entries.values()))
        if name not in self._entries:
            remedy = nearest(name, self.listed())
            raise StatusError(404, f"there is no model {name[:100]!r}; {remedy}", "model", "model_not_found")
        return self._entries[name]

    async def _load_once(self, entry: _Entry) -> _LoadedModel:
        """The model, which the first request loads; loading continues if its client disconnects, as others may wait. If
        its files have changed, it is reloaded, and the old version answers until then.
        """
        if entry.loaded is not None:
            self._reload_if_changed(entry, entry.loaded)
            return entry.loaded
        if entry.loading is None:
            self._start_loading(entry)
        assert entry.loading is not None
        return await asyncio.shield(entry.loading)

    def _reload_if_changed(self, entry: _Entry, loaded: _LoadedModel) -> None:
        now = time.monotonic()
        if entry.loading is None and now >= entry.next_check:
            entry.next_check = now + _CHECK_SECONDS
            states = current_states(loaded.files)
            if states not in (loaded.files, entry.tried_files):  # they changed since the last attempt
                entry.tried_files = states
                self._start_loading(entry)

    def _start_loading(self, entry: _Entry) -> None:
        entry.loading = asyncio.create_task(self._load(entry))
        entry.loading.add_done_callback(lambda task: task.cancelled() or task.exception())  # mark as retrieved

    async def _load(self, entry: _Entry) -> _LoadedModel:
        try:
            if self._preparation is not None:
                await self._preparation.wait_for(self.summary(entry.name))
            async with self._load_lock:
                await self._free_memory(entry)
                started = time.monotonic()
                loaded = await self._in_thread(lambda: self._open(entry))
            previous, entry.loaded, entry.tried_files = entry.loaded, loaded, None
            entry.summary = None if entry.is_removed else loaded.summary
            verb, reason = ("loaded", "") if previous is None else ("reloaded", ", because its files changed")
            _LOG.info("%s %s in %.1f s%s", verb, entry.name, time.monotonic() - started, reason)
            if previous is not None and previous.users:
                self._replaced.add(previous)
            elif previous is not None:
                self._retire(previous, entry.name)
            return loaded
        except StatusError as error:
            if entry.loaded is not None:
                entry.tried_files = None  # memory may be available at the next check
                _LOG.warning("%s has changed, but the old version stays in use: %s", entry.name, error)
            raise
        except Exception as error:  # broken files, or not enough memory: other models continue
            problem = (
                "has changed and cannot be loaded; the old version stays in use" if entry.loaded else "cannot load"
            )
            reason = error if isinstance(error, UserError) else type(error).__name__
            trace = None if isinstance(error, UserError) else error
            _LOG.warning("%s %s: %s", entry.name, problem, reason, exc_info=trace)
            raise _broken_error(entry, str(error) or type(error).__name__) from error
        finally:
            entry.loading = None
            self._release(entry)

    def _open(self, entry: _Entry) -> _LoadedModel:
        """Called in the thread, because loading and compiling take seconds. UserError if a file changes during loading:
        parts from different versions would be mixed.
        """
        options, path = self._options, entry.path
        with record_file_states() as files, private_copies():
            summary = summarize_model(path, options)
            generates = "generate" in summary.verbs
            model = load(
                path,
                options.device,
                summary.weights,
                options.backend,
                options.cache,
                options.draft if generates else None,
            )
        changed = next((path for path, state in current_states(files).items() if state != files[path]), None)
        if changed is not None:
            raise UserError(f"{Path(changed).name} changed while it was read; try again when it is complete")
        loop = self._start_loop(model, entry.name)
        ready = ReadyModel(entry.name, model, loop, Batcher(entry.name), fingerprint(model) if generates else "")
        return _LoadedModel(ready, summary, files)

    async def _free_memory(self, entry: _Entry) -> None:
        """Unload idle models, least recently used first, until there is memory for a model. StatusError 503 if all
        loaded models are in use.
        """
        summary = self.summary(entry.name)
        needed = summary.parameters * _LOADING_BYTES[summary.weights]
        while (free := free_bytes(self._device)) is not None and free < needed:
            loaded = [other for other in self._entries.values() if other.loaded is not None]
            idle = [other for other in loaded if not other.users]
            if not loaded:
                return  # loading will report the missing memory
            if not idle:
                using = ", ".join(other.name for other in loaded)
                message = f"{entry.name} needs {needed:,} bytes of memory, but {free:,} are free, and {using} is in use"
                raise StatusError(503, f"{message}; try again later", code="no_memory", retry_after=_RETRY_SECONDS)
            await self._unload(min(idle, key=lambda other: other.last_used))

    def _release(self, entry: _Entry) -> None:
        entry.last_used = time.monotonic()
        if entry.timer is not None:
            entry.timer.cancel()
        if entry.is_removed and not entry.users and entry.loading is None:
            self._entries.pop(entry.name, None)
            loaded, entry.loaded = entry.loaded, None
            if loaded is not None:
                self._retire(loaded, entry.name)
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
            await self._free(loaded, entry.name)

    def _retire(self, loaded: _LoadedModel, name: str) -> None:
        """Unload it after the caller has dropped its references."""
        task = asyncio.create_task(self._free(loaded, name))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    async def _free(self, loaded: _LoadedModel, name: str) -> None:
        async with self._unload_lock:
            loaded.ready.batcher.close()
            if loaded.ready.loop is not None:
                await loaded.ready.loop.close(0)
            del loaded.ready, loaded
            await self._in_thread(gc.collect)  # modules refer to each other
            _LOG.info("unloaded %s", name)

    async def _in_thread(self, job: Callable[[], R]) -> R:
        context = copy_context()  # has, for example, the choice of kernels
        return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: context.run(job))


def summarize_model(path: Path, options: LoadOptions) -> ModelSummary:
    """The summary of the model at a path, and how it is served. UserError if there is no model."""
    if not path.exists():
        raise UserError(f"{path} does not exist; pass a run, a model folder or a .gguf file")
    run = RunDirectory(path).exists()
    if (path / QUANTISED).is_file():
        config, usage = quantised_config(path), read_usage(path)
    elif run:
        config, usage = find_model_config(str(path.resolve())), read_usage(path)
    else:
        config, usage = open_config(path), open_usage(path)
    tasks, inputs = verbs(config, usage, run), kinds.input_kinds(config)
    sequential_reason = _sequential_reason(config, options) if "generate" in tasks else None
    languages = usage.generation.get("lang_to_id")  # of a multilingual Whisper
    return ModelSummary(
        kinds.kind_of(config),
        tasks,
        inputs,
        config.context,
        describe(config)["parameters"],
        int(path.stat().st_mtime),
        sequential_reason,
        *_loading_format(path, options, sequential_reason),
        run,
        _example_inputs(path, "chat" in tasks) if run and inputs == ["texts"] else (),
        sorted(name.strip("<|>") for name in languages) if isinstance(languages, dict) else (),
        path,
    )


def _example_inputs(path: Path, chats: bool) -> tuple[str, ...]:
    """Text inputs of a run's held-out samples, at most five; empty if it has none."""
    inputs = []
    try:
        samples = RunDirectory(path).read_status().get("samples") or []
    except UserError:  # the model can be served without
        samples = []
    for sample in samples:
        text = sample.get("source") or sample.get("masked") or sample.get("prompt") or ""
        if chats:
            text = text.removeprefix("user\n").removesuffix("\nassistant")
            text = "" if "\n" in text else text  # a conversation of several messages
        elif "prompt" in sample:
            starts = [match.end() for match in _SENTENCE_STARTS.finditer(text) if not match[1].islower()]
            in_lower_case = text.partition(" ")[2] if text == text.lower() else ""  # without the first, partial word
            text = _PARTIAL_END.sub("", text[starts[0] :] if starts else in_lower_case)
        inputs.append(text.strip())
    usable = [text for text in dict.fromkeys(inputs) if 0 < len(text) <= _MAX_EXAMPLE_LENGTH and "\ufffd" not in text]
    return tuple(usable[:_MAX_EXAMPLES])


def _loading_format(
    path: Path, options: LoadOptions, sequential_reason: str | None
) -> tuple[LoadedWeights | None, str | None]:
    """The format to load weights in: as requested, or that of a quantised GGUF file, with a message about it."""
    if options.weights is not None or path.suffix != SUFFIX:
        return options.weights, None
    kind = GgufFile(path).main_kind()
    if kind.dtype is not None:
        return None, None
    weights = _GGUF_WEIGHTS.get(kind.name)
    reason = f"{kind.name} is neither an 8-bit nor a 4-bit format" if weights is None else sequential_reason
    if find_device(options.device).type != "cpu":
        return None, f"{kind.name} weights are served in bf16 or fp32; use --weights int8 or int4 for less memory"
    if options.backend == "torch":
        reason = "the backend is torch"
    if reason is not None:
        return None, f"{kind.name} weights are served in fp32 because {reason}"
    return weights, f"{kind.name} weights are served in {weights}; use --weights fp32 for their exact values"


def _sequential_reason(config: ModelConfig, options: LoadOptions) -> str | None:
    if options.draft is not None:
        return "a draft model works with only one sequence"
    if options.backend == "torch" or find_device(options.device).type != "cpu":
        return "it runs on torch"
    missing = refusal(cast(Transformer, outline(config)))
    return None if missing is None else f"the compiled engine has no instruction for {missing}"


def _broken_error(entry: _Entry, reason: str) -> StatusError:
    return StatusError(503, f"{entry.name} cannot be served: {_hide_path(entry, reason)}", "model", "model_broken")


def _hide_path(entry: _Entry, message: str) -> str:
    """The message without the model's path, which clients do not need to know."""
    return message.replace(str(entry.path), entry.name)
