"""Every mixer in training and decoding, by length: tokens a second and the bytes that decoding keeps.

Two blocks of width 192 on vectors, feed-forwards sized so that all have as many parameters; fp32, without a vocabulary.
Training is a forward and backward pass over 8,192 tokens; decoding is one token of one row after so many others.

python benchmarks/mixers.py                                          # every registered causal mixer, half an hour
python benchmarks/mixers.py --lengths 128 --mixers attention,delta   # a trial that writes nothing
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any

import torch

from headway.config import from_dict
from headway.config_kinds import kinds
from headway.errors import ConfigError
from headway.layout import Layout
from headway.nn.mixers import MixerConfig, tree_map
from headway.nn.models import BlockConfig, StackConfig
from headway.nn.models.stack import Stack, cycle
from headway.nn.parts.feedforward import MLPConfig
from headway.nn.parts.init import InitConfig, initialise
from measure import child, report, spread, write

WIDTH, HEADS, DEPTH = 192, 6, 2
LENGTHS = (128, 512, 2048, 8192)
TOKENS = 8192  # of a training step
STEPS, ENOUGH, LIMIT = 5, 8, 30  # measured steps, fewer after so many seconds; and the most that one may take
EXTRA: dict[str, dict[str, Any]] = {"delta-l2": {"kind": "delta", "features": "silu", "key_norm": "l2"}}
LINEAR = ("linear_attention", "delta", "delta-l2", "gated_delta")  # those said to overtake attention


class TooSlowError(Exception):
    """A step takes longer than LIMIT."""


def configs() -> dict[str, MixerConfig]:
    """A config of every registered kind that is causal, needs no memory and has defaults for all."""
    found: dict[str, MixerConfig] = {}
    for name, data in {**{kind: {"kind": kind} for kind in kinds(MixerConfig)}, **EXTRA}.items():
        try:
            config = from_dict(MixerConfig, data)
        except ConfigError:
            continue
        if config.causal and not getattr(config, "reads_memory", False):
            named = {field.name for field in fields(config)}
            found[name] = replace(config, heads=HEADS) if "heads" in named else config
    return found


def parameters(config: StackConfig) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in Stack(config, WIDTH).parameters())


def stack(name: str) -> StackConfig:
    """Two blocks with the mixer, and with feed-forwards that leave as many parameters as attention's have."""

    def blocks(mixer: MixerConfig, hidden: int) -> StackConfig:
        return StackConfig(cycle((BlockConfig(mixer, feed_forward=MLPConfig(hidden=hidden)),), DEPTH))

    known = configs()
    wanted = parameters(blocks(known["attention"], 4 * WIDTH))
    mixer = known[name]
    each = parameters(blocks(mixer, 2)) - parameters(blocks(mixer, 1))
    cells = WIDTH
    while parameters(blocks(mixer, 1)) + 31 * each > wanted:  # sigma-pi's weights grow with the cube
        cells //= 2
        mixer = replace(mixer, cells=cells)  # type: ignore[call-arg]
    return blocks(mixer, 1 + round((wanted - parameters(blocks(mixer, 1))) / each))


@contextmanager
def limited() -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise TooSlowError

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(LIMIT)
    try:
        yield
    finally:
        signal.alarm(0)


def timed(step: Callable[[], Any], count: int) -> list[float]:
    """Seconds of each step after a first one."""
    seconds = []
    for _ in range(1 + count):
        with limited():
            start = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - start)
        if len(seconds) > 1 and sum(seconds[1:]) > ENOUGH:
            break
    return seconds[1:]


def training(model: Stack, length: int) -> dict[str, Any]:
    rows = max(1, TOKENS // length)
    x = torch.randn(rows, length, WIDTH, generator=torch.Generator().manual_seed(1))

    def step() -> None:
        model.zero_grad(set_to_none=True)
        model(x, Layout.full(rows, length)).x.square().mean().backward()

    return {"tokens_a_second": spread([round(rows * length / s) for s in timed(step, STEPS)])}


@torch.no_grad()
def decoding(model: Stack, length: int) -> dict[str, Any]:
    steps = 32
    x = torch.randn(1, length + steps + 1, WIDTH, generator=torch.Generator().manual_seed(1))
    states = model.initial_states(1, x.shape[1], like=x)
    with limited():
        states = model(x[:, :length], Layout.full(1, length), states).states
    at = length

    def step() -> None:
        nonlocal states, at
        states = model(x[:, at : at + 1], Layout.full(1, 1, at), states).states
        at += 1

    sizes: list[int] = []
    tree_map(lambda tensor: sizes.append(tensor.numel() * tensor.element_size()), states)
    seconds = timed(step, steps)
    return {"tokens_a_second": round(1 / statistics.median(seconds)), "state_bytes": sum(sizes)}


def part(name: str, length: int) -> None:
    """In a process of its own: one mixer at one length."""
    config = stack(name)
    model = Stack(config, WIDTH)
    initialise(model, InitConfig(), DEPTH, 0)
    result: dict[str, Any] = {"parameters": parameters(config), "threads": torch.get_num_threads()}
    for what, measure in (("training", training), ("decoding", decoding)):
        try:
            result[what] = measure(model, length)
        except TooSlowError:
            result[what] = {"skipped": f"a step, or reading the first {length} tokens, takes over {LIMIT} s"}
    report(result)


def overtakes(found: dict[str, dict[int, dict[str, Any]]], name: str) -> int | None:
    """The length from which on a mixer trains faster than attention at every length measured."""

    def speed(kind: str, length: int) -> float:
        return found[kind][length]["training"].get("tokens_a_second", {}).get("median", 0.0)

    first = None
    for length in sorted(found[name], reverse=True):
        if speed(name, length) <= speed("attention", length):
            break
        first = length
    return first


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", help="such as 128,512; nothing is written")
    parser.add_argument("--mixers", help="such as attention,delta; nothing is written")
    given = parser.parse_args()
    lengths = [int(word) for word in given.lengths.split(",")] if given.lengths else list(LENGTHS)
    names = given.mixers.split(",") if given.mixers else list(configs())
    if unknown := set(names) - set(configs()):
        parser.error(f"no mixer {', '.join(unknown)}; choose from {', '.join(configs())}")
    found: dict[str, dict[int, dict[str, Any]]] = {name: {} for name in names}
    for length in lengths:  # by turns, so that a machine that slows down slows all
        for name in names:
            found[name][length] = told = child("mixers.py", "part", name, str(length))
            speeds = [told[what].get("tokens_a_second", "skipped") for what in ("training", "decoding")]
            trained = speeds[0]["median"] if isinstance(speeds[0], dict) else speeds[0]
            print(f"{name} at {length}: training {trained}, decoding {speeds[1]} tokens/s", file=sys.stderr, flush=True)
    crossings = {}
    if "attention" in found:
        crossings = {name: overtakes(found, name) for name in LINEAR if name in found}
    for name, length in crossings.items():
        text = f"from {length} tokens on" if length else "at none of these lengths"
        print(f"{name} trains faster than attention {text}", file=sys.stderr)
    whole = {
        "width": WIDTH,
        "blocks": DEPTH,
        "tokens": TOKENS,
        "faster_than_attention_from": crossings,
        "mixers": found,
    }
    if given.lengths or given.mixers:
        print(json.dumps(whole))
    else:
        write("mixers", whole)


if __name__ == "__main__":
    if sys.argv[1:2] == ["part"]:
        part(sys.argv[2], int(sys.argv[3]))
    else:
        main()
