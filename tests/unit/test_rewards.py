"""Rewards: what each one gives, what it refuses before any work, and functions that raise, hang, print or end."""

from __future__ import annotations

import json
import time
from itertools import count
from pathlib import Path
from queue import Empty, Queue
from typing import Any

import pytest

from headway.domains.reward.prompt_files import read_prompts
from headway.errors import UserError
from headway.rewards import REWARDS, reward_function
from headway.rewards.arithmetic import target
from headway.rewards.scoring import Scorer

MATE = "6k1/5ppp/8/8/8/8/8/R3K3 w Q - 0 1"
POINT = {
    "type": "object",
    "properties": {"x": {"type": "integer", "minimum": 0}, "tags": {"items": {"enum": ["a", "b"]}, "maxItems": 2}},
    "required": ["x"],
    "additionalProperties": False,
}
CASES: list[tuple[str, dict[str, Any], dict[str, float]]] = [
    ("exact", {"prompt": "capital?", "answer": "Rome"}, {" Rome\n": 1, "rome": 0, "Rome.": 0}),
    ("regex", {"prompt": "date?", "pattern": r"^\d{4}$"}, {"1999": 1, "19990": 0}),
    ("regex", {"prompt": "slow", "pattern": r"(a+)+$"}, {"aaa": 1, "b": 0}),
    ("arithmetic", {"prompt": "12+345="}, {"357": 1, "It is 357.": 1, "357 or 358": 0, "": 0, "-357": 0}),
    ("arithmetic", {"prompt": "What is (3 - 5) * 1.5?"}, {"-3": 1, "-3.0": 1, "3": 0}),
    ("arithmetic", {"prompt": "007+010="}, {"17": 1, "017": 1, "15": 0}),
    ("arithmetic", {"prompt": "1,000 \u00d7 3 \u2212 5"}, {"2995": 1, "10": 0}),
    ("arithmetic", {"prompt": "4-7"}, {"-3": 1, "\u22123": 1, "4-3": 0, "3": 0}),
    ("arithmetic", {"prompt": "", "answer": 20}, {"The range is 10-20": 1, "from 10 to -20": 0}),
    ("arithmetic", {"prompt": "", "answer": 0.5}, {".5": 1, "1/2": 1, "5e-1": 1, "5": 0, "1/0": 0, "1e999999999": 0}),
    ("arithmetic", {"prompt": "", "answer": 2}, {"H2": 0, "1/2": 0, "5^2": 1}),
    ("arithmetic", {"prompt": "0.1234567890123456789 + 1"}, {"1.1234567890123456789": 1, "1.1234567890123457": 0}),
    ("arithmetic", {"prompt": "Two apples and two more?", "answer": 1000}, {"#### 1,000": 1, "1,001": 0}),
    ("json-schema", {"prompt": "", "schema": POINT}, {'{"x": 1}': 1, '{"x": true}': 0, "{}": 0, "{": 0}),
    ("json-schema", {"prompt": "", "schema": True}, {"1e3": 1, "NaN": 0, '{"x": -Infinity}': 0}),
    ("json-schema", {"prompt": "", "schema": {"enum": [[1], {"a": 0}]}}, {"[1.0]": 1, "[true]": 0, '{"a": false}': 0}),
    (
        "json-schema",
        {"prompt": "", "schema": json.dumps(POINT)},
        {'{"x": 1.0, "tags": ["a"]}': 1, '{"x": 1, "y": 2}': 0},
    ),
    ("legal-move", {"prompt": MATE}, {"a1a8": 1, "a1 a8": 1, "Ra8# wins": 1, "Ra2": 1, "a1b2": 0, "": 0, "0000": 0}),
    ("checkmate", {"prompt": "mate!", "fen": MATE}, {"a1a8": 1, "Ra8": 1, "a1 a2": 0, "Ra2": 0, "Rb2": 0}),
]


@pytest.mark.parametrize(("name", "row", "answers"), CASES)
def test_a_reward_is_a_number_of_prompt_and_answer(name: str, row: dict[str, Any], answers: dict[str, float]) -> None:
    if name in ("legal-move", "checkmate"):
        pytest.importorskip("chess", reason="chess is not installed: pip install 'headway[chess]'")
    from headway.io.user_callables import import_user_callable

    function: Any = import_user_callable(reward_function(name), "the reward")
    assert {output: function(row["prompt"], output, row) for output in answers} == answers


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("exact", '{"prompt": "a"}', "line 1 has no 'answer'"),
        ("exact", '{"question": "a"}', "line 1 has no key 'prompt'"),
        ("exact", '{"prompt": "", "answer": "a"}', "line 1 has an empty prompt"),
        ("regex", '{"prompt": "a", "pattern": "("}', "has the pattern '\\(', which is invalid"),
        ("regex", '{"prompt": "a", "pattern": "a{99999999999}"}', "which is invalid .the repetition number is too"),
        (
            "regex",
            json.dumps({"prompt": "a", "pattern": "(" * 5000 + ")" * 5000}),
            "which is invalid .maximum recursion",
        ),
        ("regex", '{"prompt": "a"}', "has no 'pattern'; .*task.pattern"),
        ("arithmetic", '{"prompt": "a"}', "neither an 'answer' nor an expression"),
        ("arithmetic", '{"prompt": "1/0="}', "has the expression '1/0', which has no value"),
        ("arithmetic", '{"prompt": "1/3="}', "has the expression '1/3', whose value no decimal number equals; add an"),
        ("arithmetic", '{"prompt": "2+3^2="}', "has the expression '2.3.2', which has no value"),
        ("arithmetic", '{"prompt": "12+30% ="}', "has the expression '12.30%', which has no value"),
        ("arithmetic", '{"prompt": "x+5+3="}', "neither an 'answer' nor an expression"),
        *(
            ("arithmetic", json.dumps({"prompt": prompt}), "has the expression '.*' within a larger one")
            for prompt in (
                "Solve x + 5 + 3 =",
                "2x - 3 + 1",
                "max(3, 4+5)=",
                "What is |3-5|?",
                "3\u00b2 + 4 * 2 =",
                "5! + 2 * 3 =",
                "\u221a(9+16)",
                "20% of 50 + 5",
                "12 x 3 + 1?",
                "1 + 12 x 3",
                "2\u00b73+4=",
                "10 mod 3 + 1",
                "1,5 + 2",
            )
        ),
        ("arithmetic", json.dumps({"prompt": "-" * 990 + "5+3"}), "has the expression '-----.*, which has no value"),
        ("arithmetic", '{"prompt": "a", "answer": "many"}', "has the answer 'many', which is not a number"),
        ("json-schema", '{"prompt": "a", "schema": {"not": {}}}', "has a schema with 'not', which is not checked"),
        ("json-schema", '{"prompt": "a", "schema": {"properties": 5}}', "has a schema with properties 5"),
        (
            "json-schema",
            '{"prompt": "a", "schema": {"items": {"pattern": "("}}}',
            "schema with the pattern '.', which is",
        ),
        (
            "json-schema",
            '{"prompt": "a", "schema": {"type": [["object"]]}}',
            "schema of type .'object'.; use",
        ),
        (
            "json-schema",
            '{"prompt": "a", "schema": {"required": [["x"]]}}',
            "schema that requires .'x'.; use",
        ),
        ("checkmate", '{"prompt": "a1"}', "has 'a1', which is not a position"),
    ],
)
def test_a_row_that_cannot_be_checked_is_refused(tmp_path: Path, name: str, line: str, message: str) -> None:
    (tmp_path / "a.jsonl").write_text(line + "\n")
    with pytest.raises(UserError, match=message):
        read_prompts([tmp_path / "a.jsonl"], name, {})


@pytest.mark.parametrize(
    "prompt",
    [
        "- 12+30=",
        "Sum: 45 - 3",
        "x = -3 + 45",
        "Q1 - 12+30=",
        "Compute 12 + 30 (no words)",
        "12+30 - give the number",
        "Solve:\n---\n12+30=",
        "Problem 1\n12+30=",
        "Add (12 + 30).",
        "What is the sum (12+30)? Use 2 digits.",
        "((12+30)",
        "1/3 is not it, but 12+30",
        "\u8ba1\u7b9712+30=",
    ],
)
def test_a_prompt_may_have_text_around_its_expression(prompt: str) -> None:
    assert target({"prompt": prompt}) == 42


def test_lines_of_text_are_prompts_with_the_settings_of_the_task(tmp_path: Path) -> None:
    (tmp_path / "test.txt").write_text("one\n\ntwo\n")
    (tmp_path / "train.jsonl").write_text('{"prompt": "three", "pattern": "b"}\n')
    table = read_prompts([tmp_path], "regex", {"pattern": "a"})
    assert [(row["prompt"], row["pattern"]) for row in table.rows] == [("one", "a"), ("two", "a"), ("three", "b")]
    assert table.named_splits.tolist() == [3, 3, 1]
    assert table.locations[1].endswith("test.txt, line 3")


FUNCTIONS = """
import os, sys, time
from decimal import Decimal

import numpy

def reward(prompt, output, row):
    print("noise")
    sys.stdout.flush()
    if output == "raise":
        raise ValueError("no")
    if output == "hang":
        time.sleep(60)
    if output == "end":
        os._exit(3)
    if output == "fork" and os.fork() == 0:
        time.sleep(60)
    if output == "fork":
        os._exit(3)
    if output == "decimal":
        return Decimal("0.5")
    if output == "numpy":
        return numpy.bool_(True)
    return {"nan": float("nan"), "text": "1", "huge": -1e308}.get(output, len(output) + row["more"])

number = 5
"""


def test_a_function_that_fails_costs_its_own_answer_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_rewards.py").write_text(FUNCTIONS)
    monkeypatch.chdir(tmp_path)
    scorer = Scorer("own_rewards:reward", "own_rewards:reward", 0.5)
    try:
        outputs = ("four", "raise", "nan", "huge", "text", "hang", "end", "fork", "decimal", "numpy", "a")
        assert scorer.score([("p", output, {"more": 2}) for output in outputs]) == [
            6.0,
            "ValueError: no",
            "it returns nan",
            "it returns -1e+308",
            "it returns a str, not a number",
            "it takes more than 0.5 s",
            "its process ended",
            "it takes more than 0.5 s",
            0.5,
            1.0,
            3.0,
        ]
        scorer.seconds = 0.1
        with pytest.raises(UserError, match=r"takes more than 0\.1 s for each of 4 answers in a row; make it faster"):
            scorer.score([("p", "hang", {"more": 0})] * 9)
    finally:
        scorer.close()
    for name, message in (("own_rewards:rewrad", "has no 'rewrad'"), ("own_rewards:number", "is not callable")):
        with pytest.raises(UserError, match=message):
            Scorer(name, name, 1.0).start()


def test_files_of_the_folder_replace_no_modules_but_the_one_that_the_user_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("fractions", "colorsys"):
        (tmp_path / f"{name}.py").write_text("def reward(*_):\n    return 3\n")
    (tmp_path / "helper.py").write_text("number = 5\n")
    (tmp_path / "mine.py").write_text(
        "import helper\nfrom fractions import Fraction\n\ndef reward(*_):\n    return Fraction(helper.number, 2)\n"
    )
    monkeypatch.chdir(tmp_path)
    for function, reward in ((REWARDS["arithmetic"].function, 1.0), ("mine:reward", 2.5), ("colorsys:reward", 3.0)):
        scorer = Scorer(function, function, 5.0)
        try:
            assert scorer.score([("", "42", {"answer": 42})]) == [reward]
        finally:
            scorer.close()


def test_a_reply_at_the_last_moment_costs_its_own_answer_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process may reply just after the end of the time limit."""
    number = count()

    class LateReplies(Queue):
        """The reply to the first answer, which follows that of the import, comes too late."""

        def get(self, block: bool = True, timeout: float | None = None) -> Any:
            line = super().get(block, timeout)
            if next(number) == 1:
                raise Empty
            return line

    monkeypatch.setattr("headway.rewards.scoring.SimpleQueue", LateReplies)
    scorer = Scorer("exact", REWARDS["exact"].function, 5.0)
    try:
        answers = [("p", output, {"answer": "a"}) for output in ("a", "a", "b")]
        assert scorer.score(answers) == ["it takes more than 5 s", 1.0, 0.0]
    finally:
        scorer.close()


def test_programs_that_an_answer_starts_harm_no_other_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They read no requests, and one that outlives its reward and its process group does not hold up the next."""
    (tmp_path / "starts.py").write_text(
        "import os, subprocess, sys, time\n\n"
        "def reward(prompt, output, row):\n"
        "    if output == 'daemon':\n"
        "        if os.fork() == 0:\n"
        "            os.setsid()\n"
        "            time.sleep(20)\n"
        "            os._exit(0)\n"
        "        time.sleep(20)\n"
        "    done = subprocess.run([sys.executable, '-c', output], capture_output=True, text=True)\n"
        "    return done.returncode\n"
    )
    monkeypatch.chdir(tmp_path)
    scorer, start = Scorer("starts:reward", "starts:reward", 5.0), time.monotonic()
    try:
        assert scorer.score([("", "input()", {}), ("", "pass", {})]) == [1.0, 0.0]
        scorer.seconds = 0.5
        assert scorer.score([("", "daemon", {})]) == ["it takes more than 0.5 s"]
        scorer.seconds = 5.0
        assert scorer.score([("", "pass", {})]) == [0.0]
    finally:
        scorer.close()
    assert time.monotonic() - start < 15


def test_a_function_runs_only_if_the_user_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headway.rewards.CONFIRMED", set())
    for name, message in (
        (None, "no reward is set; pass --reward"),
        ("exakt", "there is no reward 'exakt'; did you mean 'exact'"),
        ("os:abort", "would run its own code; allow it with --reward os:abort"),
    ):
        with pytest.raises(UserError, match=message):
            reward_function(name)
    monkeypatch.setenv("HEADWAY_REWARD", "os:abort")
    assert reward_function("os:abort") == "os:abort"
    assert reward_function("exact") == REWARDS["exact"].function
