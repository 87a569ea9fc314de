"""Small demonstrations with films of even greys, as LeRobotDataset folders may hold them."""

from __future__ import annotations

import numpy as np

from headway.data.episodes import Episodes

LENGTHS = (5, 3, 7)
SIZE = (16, 24)
KEY = "observation.images.front"


def pictures(steps: int, seed: int = 0) -> np.ndarray:
    """Even areas, which a codec of videos keeps, of a grey that says the step: uint8 [steps, H, W, 3]."""
    greys = (40 + 12 * np.arange(steps) + seed).astype(np.uint8)
    return np.broadcast_to(greys[:, None, None, None], (steps, *SIZE, 3)).copy()


class Held:
    """Pictures in memory."""

    content = "grey"

    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels = pixels
        self.size = self.recorded_size = pixels.shape[1:3]

    def __len__(self) -> int:
        return len(self.pixels)

    def read(self, steps: np.ndarray) -> np.ndarray:
        return self.pixels[steps]


def made(seed: int = 0, cameras: tuple[str, ...] = ("front",), states: int = 6, rate: float = 10.0) -> Episodes:
    random = np.random.default_rng(seed)
    steps = sum(LENGTHS)
    return Episodes(
        states=random.normal(size=(steps, states)).astype(np.float32),
        actions=random.uniform(-1, 1, (steps, 2)).astype(np.float32),
        rewards=np.zeros(steps),
        ends=np.cumsum(LENGTHS),
        cut=np.zeros(3, bool),
        named_splits=np.zeros(3, np.uint8),
        tasks=np.array([0, 1, 0]),
        task_names=("reach", "open the door"),
        environments=("metaworld/reach-v3", ""),
        cameras={name: Held(pictures(steps, seed + place)) for place, name in enumerate(cameras)},
        rate=rate,
    )
