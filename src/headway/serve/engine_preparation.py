"""Compiling the engine for a server's models in a process of its own, before somebody waits for it."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Mapping
from contextlib import suppress

from headway.engine.code_cache import CACHE
from headway.engine.preparation import FUNCTIONS
from headway.errors import logger
from headway.serve.child_process import run_command
from headway.serve.interfaces import ModelSummary

_LOG = logger(__name__)
_COMMAND = (sys.executable, "-m", "headway.engine.preparation")
_MAX_SECONDS = 3600.0  # of the process, after which models compile what they need themselves
_VERBS = frozenset(("generate", "translate", "transcribe", "caption"))  # tasks that the engine computes


class EnginePreparation:
    """At most one such process per server. Methods are called on the event loop."""

    def __init__(self) -> None:
        self._running: asyncio.Task[None] | None = None
        self._started = 0.0  # by the monotonic clock

    @property
    def seconds(self) -> float | None:
        """The seconds since it has begun; None if it does not run."""
        is_running = self._running is not None and not self._running.done()
        return time.monotonic() - self._started if is_running else None

    def start(self, models: Mapping[str, ModelSummary]) -> None:
        """Compile in the background if one of these models needs the engine, and something is not compiled yet."""
        if self._running is not None or CACHE is None or all(function.is_compiled for function in FUNCTIONS):
            return
        if any(map(_uses_engine, models.values())):
            self._started = time.monotonic()
            self._running = asyncio.create_task(self._compile())

    async def wait_for(self, model: ModelSummary) -> None:
        """Wait until a model finds everything compiled, or the process has failed. If it compiled the same itself, that
        would take longer, and other models would wait for its loading.
        """
        if self._running is not None and _uses_engine(model):
            await asyncio.wait([self._running])

    async def close(self) -> None:
        """End the process."""
        if self._running is not None:
            self._running.cancel()
            with suppress(asyncio.CancelledError):
                await self._running

    async def _compile(self) -> None:
        try:
            result = await run_command(_COMMAND, _MAX_SECONDS)
        except (OSError, TimeoutError) as error:
            _LOG.warning("the engine is not compiled in advance (%s); the first use of a model compiles it", error)
            return
        if result.code:
            _LOG.warning("the engine is not compiled in advance; the first use of a model compiles it")
        else:
            _LOG.info("compiled the engine in %.1f s", time.monotonic() - self._started)


def _uses_engine(model: ModelSummary) -> bool:
    return model.sequential_reason is None and not _VERBS.isdisjoint(model.verbs)
