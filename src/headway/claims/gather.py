"""What lies in a folder of results, for people: pictures, the page, and lists."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from headway.claims.claim import Claim, Evidence
from headway.claims.experiments import claims
from headway.claims.page import svg, write_page
from headway.claims.runner import record, reread
from headway.errors import UserError
from headway.formats.durable import write_text


def gather(directory: Path, note: Callable[[str], None]) -> Path | None:
    """Draw the pictures and write the page of all evidence in `directory`; None, with a note, without the extra."""
    found = [evidence for claim in claims().values() if (evidence := reread(claim, directory)) is not None]
    try:
        pictures = {evidence.claim.name: svg(evidence) for evidence in found}
        for name, drawing in pictures.items():
            write_text(directory / f"{name}.svg", drawing)
        return write_page(directory, found, pictures)
    except UserError as error:
        note(str(error))
        return None


def listing(chosen: Sequence[Claim]) -> list[dict[str, Any]]:
    """A row a claim."""
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
    """What --json says of a claim: the record without the trials, and where the files lie."""
    name = evidence.claim.name
    short = {key: value for key, value in record(evidence).items() if key != "trials"}
    picture = directory / f"{name}.svg"
    return {**short, "result": directory / f"{name}.json", "picture": picture if picture.exists() else None}
