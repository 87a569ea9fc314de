"""Who acts while episodes are recorded: chance, an expert, a network in a file, or a function of the user's."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from headway.data.recordings import open_arrays
from headway.environments.making import METAWORLD, own_function
from headway.environments.spaces import Spaces
from headway.errors import UserError

Policy = Callable[[np.ndarray], np.ndarray]
"""States [B, *shape] to actions: choices int [B], or numbers [B, A]."""

RANDOM, EXPERT = "random", "expert"
_LAYER = re.compile(r"weight_(\d+)")


@dataclass(frozen=True)
class Network:
    """A feed-forward network with tanh between its layers; states are first moved by `mean` and divided by `std`.

    In a file: an .npz of weight_0 [F, S], bias_0 [F], weight_1, ... and, where they are, mean [S] and std [S].
    """

    layers: tuple[tuple[np.ndarray, np.ndarray], ...]
    mean: np.ndarray
    std: np.ndarray
    choices: bool

    def __call__(self, states: np.ndarray) -> np.ndarray:
        x = (states - self.mean) / self.std
        for number, (weight, bias) in enumerate(self.layers):
            x = (np.tanh(x) if number else x) @ weight.T + bias
        return x.argmax(-1) if self.choices else x


def open_policy(name: str, spaces: Spaces, environment: str = "") -> Policy | None:
    """A policy for an environment by its name: an .npz file, module:function of the user's, or "expert" for the
    scripted one of Meta-World's `environment`; None for "random".

    Raises UserError for one that there is not, or that does not fit the environment.
    """
    if name == RANDOM:
        return None
    if name == EXPERT:
        return _expert(environment)
    path = Path(name).expanduser()
    if path.suffix.lower() == ".npz":
        if not path.is_file():
            raise UserError(f"there is no policy {path}; give the .npz of a network, module:function or random")
        return read_network(path, spaces)
    if ":" in name:
        found = own_function(name, "the policy")
        assert found is not None
        return _fitting(found, name, spaces)
    raise UserError(f"the policy {name!r} is not known; give random, expert, the .npz of a network, or module:function")


def default_policy(environment: str) -> str:
    """Who acts in an environment if nobody is named: its expert, where it has one, else chance."""
    return EXPERT if environment.startswith(METAWORLD) else RANDOM


def _expert(environment: str) -> Policy:
    if not environment.startswith(METAWORLD):
        raise UserError(
            f"there is no expert of {environment!r}, only of Meta-World's tasks ({METAWORLD}reach-v3); give random, "
            "the .npz of a network, or module:function"
        )
    from headway.environments.metaworld import Expert  # which imports gymnasium

    return Expert(environment.removeprefix(METAWORLD))


def read_network(path: Path, spaces: Spaces) -> Network:
    """A network whose first layer reads the states and whose last says the actions; else a UserError."""
    with open_arrays(path) as columns:
        numbers = sorted(int(found[1]) for found in map(_LAYER.fullmatch, columns) if found)
        if numbers != list(range(len(numbers))) or not numbers or any(f"bias_{n}" not in columns for n in numbers):
            raise UserError(f"{path} has no weight_0, bias_0, weight_1, ...; write the layers of a network so")
        layers = tuple((columns[f"weight_{n}"](), columns[f"bias_{n}"]()) for n in numbers)
        size = int(np.prod(spaces.shape))
        mean = columns["mean"]() if "mean" in columns else np.zeros(size)
        std = columns["std"]() if "std" in columns else np.ones(size)
    wanted = spaces.choices if spaces.choices is not None else spaces.numbers
    width = size
    for number, (weight, bias) in enumerate(layers):
        if weight.ndim != 2 or weight.shape[1] != width or bias.shape != weight.shape[:1]:
            raise UserError(
                f"{path}: layer {number} has a weight of shape {weight.shape} and a bias of {bias.shape}, and is given "
                f"{width} numbers; give a policy of this environment (states of {size} numbers)"
            )
        width = len(weight)
    if width != wanted or mean.shape != (size,) or std.shape != (size,):
        raise UserError(f"{path} says {width} numbers, and the environment takes {spaces.told}; give another policy")
    return Network(layers, mean, std, spaces.choices is not None)


def _fitting(function: Callable[..., object], name: str, spaces: Spaces) -> Policy:
    """A function of the user's whose answers are checked."""

    def act(states: np.ndarray) -> np.ndarray:
        found = np.asarray(function(states))
        shape = (len(states),) if spaces.numbers is None else (len(states), spaces.numbers)
        if spaces.choices is not None and (found.dtype.kind not in "iu" or found.shape != shape):
            raise UserError(
                f"the policy {name!r} gave {found.dtype} of shape {found.shape}; give whole numbers {shape}"
            )
        if found.size != np.prod(shape) or found.dtype.kind not in "fiu" or not np.isfinite(found).all():
            raise UserError(f"the policy {name!r} gave {found.dtype} of shape {found.shape}; give numbers {shape}")
        if spaces.choices is not None and not (found.min() >= 0 and found.max() < spaces.choices):
            raise UserError(f"the policy {name!r} chose {found.max()}; there are {spaces.choices} choices, from 0")
        return found.reshape(shape)

    return act
