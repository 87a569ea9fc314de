"""The page of all claims: one self-contained HTML file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from headway.checkpoints.durable import write_text
from headway.claims.claim import Evidence, Number
from headway.config import to_dict
from headway.report.charts import short
from headway.report.page import environment


def write_page(directory: Path, found: Sequence[Evidence], pictures: Mapping[str, str]) -> Path:
    """Write `claims.html` of all evidence, with the pictures by claim; UserError without the extra `report`."""
    path = directory / "claims.html"
    template = environment(Path(__file__).parent).get_template("claims.html")
    write_text(path, template.render(headline=_headline(found), claims=[_section(e, pictures) for e in found]))
    return path


def _headline(found: Sequence[Evidence]) -> dict[str, Any]:
    return {
        "statements": len(found),
        "hold": sum(e.finding.holds for e in found),
        "do not hold here": sum(not e.finding.holds for e in found),
        "controls that fail, as they must": f"{sum(e.finding.control for e in found)} of {len(found)}",
        "minutes": f"{sum(e.seconds for e in found) / 60:.1f}",
    }


def _section(evidence: Evidence, pictures: Mapping[str, str]) -> dict[str, Any]:
    claim, finding = evidence.claim, evidence.finding
    return {
        "number": claim.number,
        "name": claim.name,
        "title": claim.title,
        "statement": claim.statement,
        "source": claim.source,
        "verdict": finding.verdict,
        "holds": finding.holds,
        "control_verdict": finding.control_verdict,
        "control_failed": finding.control,
        "words": {"Measured": claim.measured, "Rule, fixed beforehand": claim.rule, "Control": claim.control},
        "numbers": [_row(number) for number in finding.numbers],
        "remarks": finding.remarks,
        "picture": pictures.get(claim.name),
        "settings": to_dict(evidence.settings),
        "facts": _facts(evidence),
        "command": f"headway claims {claim.name}{' --full' if evidence.full else ''} --seed {evidence.seed}",
    }


def _row(number: Number) -> dict[str, Any]:
    value, low, high = number.interval
    known = math.isfinite(low) and math.isfinite(high)
    return {
        "number": number.name,
        "value": figure(value),
        "95 % interval": f"{figure(low)} to {figure(high)}" if known else "",
        "over": number.of,
    }


def figure(value: float) -> str:
    """A number for people: at most three digits that count."""
    if not math.isfinite(value):
        return "none"
    return short(float(f"{value:.3g}"))


def _facts(evidence: Evidence) -> str:
    facts = evidence.environment
    packages = facts.get("packages", {})
    parts = [
        f"{evidence.trials.seeds} seeds from {evidence.seed}",
        f"{evidence.seconds:.0f} s",
        f"{facts.get('threads')} {'thread' if facts.get('threads') == 1 else 'threads'} of "
        f"{facts.get('machine', {}).get('processor')}",
        f"torch {packages.get('torch')}",
    ]
    return ", ".join(parts)
