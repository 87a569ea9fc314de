"""Policies of several qualities for an environment of numbers, by augmented random search (Mania et al. 2018).

    python benchmarks/policy_search.py Hopper-v5 --minutes 18 --out policies/hopper

A linear policy is moved along random directions, each weighed by the difference of the returns that it brings to both
sides (the paper's V2: states are normalised). After each share of the time the policy is written, as OUT-1.npz,
OUT-2.npz, ..., which `headway data collect --policy` takes. Each process has a part of the directions.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from headway.environments.vector_env import VectorEnv

_COPIES: dict[str, VectorEnv] = {}  # of this process, made once


@dataclass
class Normaliser:
    """Mean and variance of all states so far, by sums."""

    count: float
    total: np.ndarray
    squares: np.ndarray

    def add(self, count: float, total: np.ndarray, squares: np.ndarray) -> None:
        self.count, self.total, self.squares = self.count + count, self.total + total, self.squares + squares

    @property
    def mean(self) -> np.ndarray:
        return self.total / max(1.0, self.count)

    @property
    def std(self) -> np.ndarray:
        variance = self.squares / max(1.0, self.count) - self.mean**2
        return np.where(variance > 1e-8, np.sqrt(np.maximum(variance, 1e-8)), 1.0)


def episode(name: str, weight: np.ndarray, mean: np.ndarray, std: np.ndarray, seed: int, bonus: float) -> tuple:
    """The return, the steps and the sums of states of one episode; `bonus` is what each step of being alive brings,
    which the search leaves out lest standing still pay.
    """
    if name not in _COPIES:
        _COPIES[name] = VectorEnv(name, 1)
    copies = _COPIES[name]
    state, total, steps = copies.reset(0, seed), 0.0, 0
    sums, squares = np.zeros(len(state)), np.zeros(len(state))
    while True:
        sums += state
        squares += state.astype(np.float64) ** 2
        step = copies.step(0, weight @ ((state - mean) / std))
        state, total, steps = step.state, total + step.reward - bonus, steps + 1
        if step.terminated or step.truncated:
            return total, steps, sums, squares


def sides(name: str, weight: np.ndarray, mean: np.ndarray, std: np.ndarray, scale: float, seeds: list, bonus: float):
    """Both sides of the directions that these seeds draw."""
    found = []
    for seed in seeds:
        direction = np.random.default_rng(seed).normal(size=weight.shape)
        pair = [episode(name, weight + sign * scale * direction, mean, std, seed, bonus) for sign in (1, -1)]
        found.append((direction, pair))
    return found


def search(args: argparse.Namespace) -> list[dict]:
    with VectorEnv(args.env, 1) as copies:
        shape, outputs = copies.spaces.shape, copies.spaces.action_size
    if outputs is None:
        raise SystemExit(f"{args.env} takes choices; this search is for actions that are numbers")
    weight = np.zeros((outputs, *shape))
    seen = Normaliser(0.0, np.zeros(shape), np.zeros(shape))
    start, steps, number, written = time.monotonic(), 0, 0, []
    with ProcessPoolExecutor(args.processes) as pool:
        while (gone := (time.monotonic() - start) / 60) < args.minutes:
            seeds = [args.seed + number * args.directions + i for i in range(args.directions)]
            parts = [seeds[i :: args.processes] for i in range(args.processes)]
            jobs = [
                pool.submit(sides, args.env, weight, seen.mean, seen.std, args.scale, part, args.bonus)
                for part in parts
            ]
            pairs = [pair for job in jobs for pair in job.result()]
            number += 1
            for _, both in pairs:
                for _, length, sums, squares in both:
                    seen.add(length, sums, squares)
                    steps += length
            pairs.sort(key=lambda pair: -max(side[0] for side in pair[1]))
            best = pairs[: args.best]
            spread = np.std([side[0] for _, both in best for side in both]) + 1e-6
            step = sum((both[0][0] - both[1][0]) * direction for direction, both in best)
            weight = weight + args.rate / (len(best) * spread) * step
            reached = np.mean([side[0] + args.bonus * side[1] for _, both in pairs for side in both])
            if gone >= args.minutes * (len(written) + 1) / args.stages:
                written.append(write(args.out, len(written) + 1, weight, seen, reached, steps, gone))
    return [*written, write(args.out, len(written) + 1, weight, seen, reached, steps, gone)]


def write(out: Path, stage: int, weight: np.ndarray, seen: Normaliser, reached: float, steps: int, gone: float) -> dict:
    out.parent.mkdir(parents=True, exist_ok=True)
    path = out.with_name(f"{out.name}-{stage}.npz")
    np.savez(path, weight_0=weight, bias_0=np.zeros(len(weight)), mean=seen.mean, std=seen.std)
    told = {"path": str(path), "return_mean": round(float(reached), 1), "steps": steps, "minutes": round(gone, 2)}
    print(json.dumps(told), flush=True)
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("env")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=18.0)
    parser.add_argument("--stages", type=int, default=4)
    parser.add_argument("--directions", type=int, default=16)
    parser.add_argument("--best", type=int, default=8)
    parser.add_argument("--rate", type=float, default=0.02)
    parser.add_argument("--scale", type=float, default=0.03)
    parser.add_argument("--bonus", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    search(parser.parse_args())


if __name__ == "__main__":
    main()
