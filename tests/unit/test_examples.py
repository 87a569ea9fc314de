"""The examples do what they say, with real weights on real text."""

from __future__ import annotations

import gzip
import sys
from pathlib import Path
from runpy import run_path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_search_finds_what_is_meant(
    minilm: Path, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Captions about music, none of which has the word."""
    with gzip.open(data_dir / "translation/multi30k-val.en.gz", "rt", encoding="utf-8") as file:
        lines = [next(file) for _ in range(120)]
    captions = [line for line in lines if "music" not in line.lower()]
    (tmp_path / "captions.txt").write_text("".join(captions))
    given = [str(minilm), str(tmp_path / "captions.txt"), "somebody makes music", "--count", "6"]
    monkeypatch.setattr(sys, "argv", ["search.py", *given])
    run_path(str(EXAMPLES / "search.py"), run_name="__main__")
    found = capsys.readouterr().out.splitlines()
    assert len(found) == 6
    assert all(any(word in line for word in ("violin", "guitar", "band")) for line in found)


def test_the_policy_by_hand_balances() -> None:
    """Two episodes of CartPole, to their end at 500 steps."""
    pytest.importorskip("gymnasium", reason="gymnasium is not installed: pip install 'headway[rl]'")
    from headway.environments.recording import Mixture, Recorder
    from headway.environments.vector_env import VectorEnv

    act = run_path(str(EXAMPLES / "balance.py"))["act"]
    with VectorEnv("CartPole-v1", 2) as copies:
        recorder = Recorder(copies, [Mixture(act, 0.0)], seed=5, horizon=None)
        recorder.run(2, 2)
    assert recorder.episodes().returns.tolist() == [500.0, 500.0]
