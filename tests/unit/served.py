"""A server's models, where all are loaded before it starts and stay."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

from headway.app.predictors import verbs
from headway.errors import nearest
from headway.nn.models import describe, kinds
from headway.serve.engine_loop import EngineLoop
from headway.serve.http_errors import StatusError
from headway.serve.interfaces import ModelSummary, ReadyModel


class Resident:
    """Models that stay loaded, by their names."""

    def __init__(self, models: Sequence[ReadyModel]) -> None:
        self._models: Mapping[str, ReadyModel] = {model.name: model for model in models}
        self._closed = False

    @asynccontextmanager
    async def using(self, name: str) -> AsyncIterator[ReadyModel]:
        """As `Served.using`."""
        if not name and len(self._models) == 1:
            name = next(iter(self._models))
        if name not in self._models:
            given = f"there is no model {name[:200]!r}" if name else "no model is named"
            remedy = nearest(name, self._models) if name else f"choose from: {', '.join(self._models)}"
            raise StatusError(404, f"{given}; {remedy}", "model", "model_not_found")
        yield self._models[name]

    async def refresh(self) -> None:
        """As `Served.refresh`."""

    def listed(self) -> Mapping[str, ModelSummary]:
        """As `Served.listed`."""
        return {name: _known(ready) for name, ready in self._models.items()}

    def summary(self, name: str) -> ModelSummary:
        """As `Served.known`."""
        if name not in self._models:
            raise StatusError(404, f"there is no model {name[:200]!r}", "model", "model_not_found")
        return _known(self._models[name])

    def loops(self) -> Mapping[str, EngineLoop]:
        """As `Served.loops`."""
        return {name: model.loop for name, model in self._models.items() if model.loop is not None}

    def ready(self) -> bool:
        """As `Served.ready`."""
        return not self._closed

    def preparing(self) -> None:
        """As `Served.preparing`."""

    async def start(self) -> None:
        """As `Served.start`."""

    async def close(self, seconds: float) -> None:
        """As `Served.close`."""
        self._closed = True
        await asyncio.gather(*(loop.close(seconds) for loop in self.loops().values()))


def _known(ready: ReadyModel) -> ModelSummary:
    model, config = ready.model, ready.model.module.config
    can = verbs(config, model.usage, model.recipe is not None)
    count = describe(config)["parameters"]
    return ModelSummary(
        kinds.kind_of(config), can, kinds.input_kinds(config), config.context, count, 1_700_000_000, None
    )
