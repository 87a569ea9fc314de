"""Run claims, saving each trial so that interrupted runs can continue, and present the results in a folder as figures,
a page and lists.
"""

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
from headway.claims.experiments import claims
from headway.claims.page import render_svg, write_page
from headway.config import from_dict, to_dict
from headway.errors import ConfigError, UserError
from headway.io.durable import read_json, write_json, write_text
from headway.learn.run import environment

Note = Callable[[str], None]

_PACKAGE = "headway.claims"
_EXCLUDED_MODULES = {f"{_PACKAGE}.{name}" for name in ("claim", "page")}  # modules that do not affect measurements


def run_claim(claim: Claim, directory: Path, note: Note, *, full: bool = False, seed: int = 0) -> Evidence:
    """Run every variant with every seed, apply the rule, and write the evidence to `directory`/NAME.json.

    Saved trials with the same settings, seed, code and torch version are reused.
    """
    settings = _settings(claim, full)
    seeds = claim.full_seeds or claim.seeds if full and claim.full is not None else claim.seeds
    jobs = [(variant, seed + i) for i in range(seeds) for variant in claim.variants(settings)]
    stamp = {
        "claim": claim.name,
        "settings": to_dict(settings),
        "code": _code_digest(claim),
        "torch": torch.__version__,
    }
    note(f"{claim.number}. {claim.statement}")
    note(f"   {len(jobs)} trials, about {_format_seconds(60 * _minutes(claim, full))} on one core")
    trials, new_seconds, num_new = [], 0.0, 0
    for index, (variant, number) in enumerate(jobs, 1):
        file_name = "".join(c if c.isalnum() or c in "-_." else "_" for c in variant)
        path = directory / "trials" / claim.name / f"{file_name}-{number}.json"
        key = {**stamp, "variant": variant, "seed": number}
        saved = read_json(path) if path.exists() else {}
        if all(saved.get(name) == _finite(value) for name, value in key.items()):
            trial = Trial(variant, number, saved["values"], saved["seconds"])
        else:
            started = time.perf_counter()
            values = _finite(claim.measure(settings, variant, number))
            trial = Trial(variant, number, values, time.perf_counter() - started)
            write_json(path, {**key, "seconds": round(trial.seconds, 3), "values": values})
            new_seconds, num_new = new_seconds + trial.seconds, num_new + 1
        trials.append(trial)
        remaining = f", about {_format_seconds(new_seconds / num_new * (len(jobs) - index))} left" if num_new else ""
        note(f"   {index}/{len(jobs)} {variant}, seed {number}: {trial.seconds:.1f} s{remaining}")
    all_trials = Trials(trials)
    facts = environment(torch.device("cpu"), 1)
    evidence = Evidence(claim, settings, all_trials, claim.apply_rule(settings, all_trials), full, seed, facts)
    write_json(directory / f"{claim.name}.json", record(evidence))
    return evidence


def budget(claims: Sequence[Claim], full: bool) -> str:
    """The total time of these claims, as text."""
    return _format_seconds(60 * sum(_minutes(claim, full) for claim in claims))


def record(evidence: Evidence) -> dict[str, Any]:
    """The evidence as plain data, for NAME.json."""
    claim, finding = evidence.claim, evidence.finding
    numbers = [
        {"name": number.name, **number.interval._asdict(), "of": number.of}  # flat, so that each row is self-contained
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


def load_evidence(claim: Claim, directory: Path) -> Evidence | None:
    """The evidence in `directory`, evaluated by the current rule; None if there is no evidence with the current
    settings. Settings that did not exist when it was saved count as their defaults.
    """
    path = directory / f"{claim.name}.json"
    if not path.exists():
        return None
    saved = read_json(path)
    settings = _settings(claim, saved["full"])
    try:
        if from_dict(type(settings), saved["settings"]) != settings:
            return None
    except ConfigError:
        return None
    trials = Trials([Trial(**trial) for trial in saved["trials"]])
    finding = claim.apply_rule(settings, trials)
    return Evidence(claim, settings, trials, finding, saved["full"], saved["seed"], saved["environment"])


def present_results(directory: Path, note: Note) -> Path | None:
    """Draw the figures and write a page with all evidence in `directory`. Without the extra, return None and print a
    note.
    """
    collected = [evidence for claim in claims().values() if (evidence := load_evidence(claim, directory)) is not None]
    try:
        pictures = {evidence.claim.name: render_svg(evidence) for evidence in collected}
        for name, drawing in pictures.items():
            write_text(directory / f"{name}.svg", drawing)
        return write_page(directory, collected, pictures)
    except UserError as error:
        note(str(error))
        return None


def claim_rows(chosen: Sequence[Claim]) -> list[dict[str, Any]]:
    """One row per claim."""
    return [
        {
            "number": claim.number,
            "name": claim.name,
            "title": claim.title,
            "statement": claim.statement,
            "source": claim.source,
            "measured": claim.measured,
            "rule": claim.rule,
            "control": claim.control,
            "minutes": claim.minutes,
            "full_minutes": claim.full_minutes,
            "seeds": claim.seeds,
        }
        for claim in chosen
    ]


def summary(evidence: Evidence, directory: Path) -> dict[str, Any]:
    """The --json output for a claim: the record without the trials, and the paths of its files."""
    name = evidence.claim.name
    short = {key: value for key, value in record(evidence).items() if key != "trials"}
    picture = directory / f"{name}.svg"
    return {**short, "result": directory / f"{name}.json", "picture": picture if picture.exists() else None}


def _settings(claim: Claim, full: bool) -> Any:
    return claim.full if full and claim.full is not None else claim.settings


def _minutes(claim: Claim, full: bool) -> float:
    return claim.full_minutes or claim.minutes if full and claim.full is not None else claim.minutes


def _code_digest(claim: Claim) -> str:
    """A digest of the code that the experiment runs: its module, and those of this package that it imports."""
    names: list[str] = [claim.measure.__module__]
    visited: set[str] = set()
    while names:
        name = names.pop()
        if name in visited:
            continue
        visited.add(name)
        origins = {getattr(value, "__module__", None) for value in vars(sys.modules[name]).values()}
        names += [origin for origin in origins if origin and origin.startswith(f"{_PACKAGE}.")]
    digest = hashlib.sha256()
    for name in sorted(visited - _EXCLUDED_MODULES):
        path = inspect.getsourcefile(sys.modules[name])
        digest.update(Path(path).read_bytes() if path else b"")
    return digest.hexdigest()[:16]


def _finite(value: Any) -> Any:
    """Plain data as read back from JSON: tuples become lists, NaN and infinities null."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _format_seconds(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
