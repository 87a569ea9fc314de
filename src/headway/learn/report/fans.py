"""Forecasts as pictures: the past, the bands of quantiles and, where it is known, what came."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float

from headway.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BLUE = "#2563c9"


class Panel(NamedTuple):
    """What is drawn of a series."""

    title: str
    past: Float[np.ndarray, "C"]
    said: Float[np.ndarray, "S Q"]
    came: Float[np.ndarray, "S"] | None = None


def drawable() -> bool:
    """Whether pictures can be drawn here (the extra `report`)."""
    return find_spec("matplotlib") is not None


def fans(panels: Sequence[Panel]) -> Figure:
    """A panel for each, two in a row; steps count from the last value before the forecast."""
    if not drawable():
        raise UserError("pictures of forecasts need matplotlib; pip install 'headway[report]' and try again")
    from matplotlib.figure import Figure

    down, across = -(-len(panels) // 2), min(2, len(panels))
    figure = Figure(figsize=(5 * across, 2.4 * down), layout="constrained")
    for axes, panel in zip(figure.subplots(down, across, squeeze=False).flat, panels):
        ahead, before = np.arange(1, len(panel.said) + 1), np.arange(1 - len(panel.past), 1)
        for edge in (0, 2):
            axes.fill_between(ahead, panel.said[:, edge], panel.said[:, -1 - edge], color=_BLUE, alpha=0.2, linewidth=0)
        axes.plot(ahead, panel.said[:, panel.said.shape[1] // 2], color=_BLUE)
        came = panel.came if panel.came is not None else panel.past[:0]
        axes.plot(np.append(before, ahead[: len(came)]), np.append(panel.past, came), color="black", linewidth=1)
        axes.set_title(panel.title.replace("$", r"\$"), fontsize=9, loc="left")
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    return figure
