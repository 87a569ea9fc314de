"""Runs claims: each trial is kept as it comes, so that what was interrupted goes on."""

from __future__ import annotations

import hashlib
import inspect
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from headway.claims.claim import Claim, Evidence, Trial, Trials
from headway.config import to_dict
from headway.formats.durable import read_json, write_json
from headway.learn.run import environment

Note = Callable[[str], None]

_PACKAGE = "headway.claims"
_AFTERWARDS = {f"{_PACKAGE}.{name}" for name in ("claim", "page")}  # these measure nothing


def run_claim(claim: Claim, directory: Path, note: Note, *, full: bool = False, seed: int = 0) -> Evidence:
    """Every variant with every seed, then the rule; the evidence is written to `directory`/NAME.json.

    Trials that lie there already, of the same settings, seed, code and torch, are used as they are.
    """
    settings = _settings(claim, full)
    jobs = [(variant, seed + i) for i in range(_seeds(claim, full)) for variant in claim.variants(settings)]
    stamp = {"claim": claim.name, "settings": to_dict(settings), "code": _code(claim), "torch": torch.__version__}
    note(f"{claim.number}. {claim.statement}")
    note(f"   {len(jobs)} trials, about {_span(60 * _minutes(claim, full))} on one core")
    trials, spent, fresh = [], 0.0, 0
    for index, (variant, number) in enumerate(jobs, 1):
        path = directory / "trials" / claim.name / f"{_plain(variant)}-{number}.json"
        key = {**stamp, "variant": variant, "seed": number}
        trial = _kept(path, key)
        if trial is None:
            started = time.perf_counter()
            values = _finite(claim.measure(settings, variant, number))
            trial = Trial(variant, number, values, time.perf_counter() - started)
            write_json(path, {**key, "seconds": round(trial.seconds, 3), "values": values})
            spent, fresh = spent + trial.seconds, fresh + 1
        trials.append(trial)
        left = f", about {_span(spent / fresh * (len(jobs) - index))} left" if fresh else ""
        note(f"   {index}/{len(jobs)} {variant}, seed {number}: {trial.seconds:.1f} s{left}")
    kept = Trials(trials)
    facts = environment(torch.device("cpu"), 1)
    evidence = Evidence(claim, settings, kept, claim.judge(settings, kept), full, seed, facts)
    write_json(directory / f"{claim.name}.json", record(evidence))
    return evidence


def budget(claims: Sequence[Claim], full: bool) -> str:
    """How long these claims take in all, in words."""
    return _span(60 * sum(_minutes(claim, full) for claim in claims))


def record(evidence: Evidence) -> dict[str, Any]:
    """The evidence as plain data, for NAME.json."""
    claim, finding = evidence.claim, evidence.finding
    numbers = [
        {"name": number.name, **number.interval._asdict(), "of": number.of}  # with a name, a number speaks for itself
        for number in finding.numbers
    ]
    return _finite(
        {
            "format": 1,
            "number": claim.number,
            "name": claim.name,
            "statement": claim.statement,
            "source": claim.source,
            "measured": claim.measured,
            "rule": claim.rule,
            "control": claim.control,
            "verdict": finding.verdict,
            "effect": finding.effect,
            "control_failed": finding.control,
            "numbers": numbers,
            "remarks": list(finding.remarks),
            "full": evidence.full,
            "seed": evidence.seed,
            "settings": to_dict(evidence.settings),
            "seconds": round(evidence.seconds, 1),
            "environment": evidence.environment,
            "trials": [trial._asdict() for trial in evidence.trials.all],
        }
    )


def reread(claim: Claim, directory: Path) -> Evidence | None:
    """The evidence that lies in `directory`, judged by today's rule; None where there is none of today's settings."""
    path = directory / f"{claim.name}.json"
    if not path.exists():
        return None
    saved = read_json(path)
    settings = _settings(claim, saved["full"])
    if saved["settings"] != _through_json(to_dict(settings)):
        return None
    trials = Trials([Trial(**trial) for trial in saved["trials"]])
    finding = claim.judge(settings, trials)
    return Evidence(claim, settings, trials, finding, saved["full"], saved["seed"], saved["environment"])


def _settings(claim: Claim, full: bool) -> Any:
    return claim.full if full and claim.full is not None else claim.settings


def _seeds(claim: Claim, full: bool) -> int:
    return claim.full_seeds or claim.seeds if full and claim.full is not None else claim.seeds


def _minutes(claim: Claim, full: bool) -> float:
    return claim.full_minutes or claim.minutes if full and claim.full is not None else claim.minutes


def _kept(path: Path, key: Mapping[str, Any]) -> Trial | None:
    if not path.exists():
        return None
    saved = read_json(path)
    if any(saved.get(name) != _through_json(value) for name, value in key.items()):
        return None
    return Trial(saved["variant"], saved["seed"], saved["values"], saved["seconds"])


def _code(claim: Claim) -> str:
    """A digest of the files that the experiment measures by: its own, and those of this package that it imports."""
    names: list[str] = [claim.measure.__module__]
    seen: set[str] = set()
    while names:
        name = names.pop()
        if name in seen:
            continue
        seen.add(name)
        origins = {getattr(value, "__module__", None) for value in vars(sys.modules[name]).values()}
        names += [origin for origin in origins if origin and origin.startswith(f"{_PACKAGE}.")]
    digest = hashlib.sha256()
    for name in sorted(seen - _AFTERWARDS):
        path = inspect.getsourcefile(sys.modules[name])
        digest.update(Path(path).read_bytes() if path else b"")
    return digest.hexdigest()[:16]


def _finite(value: Any) -> Any:
    """Plain data in which numbers that are none are null, as JSON knows no others."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _through_json(value: Any) -> Any:
    """As it comes back from a file: tuples as lists."""
    return _finite(value)


def _plain(name: str) -> str:
    """A variant as a file's name."""
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in name)


def _span(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
