"""A run of which one JSON file was composed anew is used or refused in one line, by every command that reads it.

benchmarks/fuzz.py gives thousands of them, of all domains, to the same commands.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from run_files import Trial, fuzz_runs

CASES = 15


@pytest.mark.parametrize("name", ["text", "classification", "trajectories"])
def test_a_run_with_another_file_is_used_or_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "trajectories":
        pytest.importorskip("gymnasium", reason="gymnasium is not installed: pip install 'headway[rl]'")
    monkeypatch.setattr("headway.app.api.available", lambda: False)  # pages have tests of their own, and take long
    outcome = fuzz_runs(Trial(name, tmp_path / name), seed=1, first=0, count=CASES)
    assert not outcome.failures
    assert outcome.done + outcome.refused + outcome.stopped == CASES
    assert outcome.refused > 1  # the damage reaches the commands
