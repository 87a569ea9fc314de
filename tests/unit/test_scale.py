"""How a generic recipe is fitted to data, minutes and machine."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import headway as hw
from headway.app.cli import main as cli
from headway.config import override, parse_settings
from headway.config_kinds import kinds
from headway.domains import recipe as named
from headway.domains import recipe_domains, scale_of
from headway.errors import ConfigError, UserError
from headway.learn import AdamWConfig, MuonConfig, Recipe
from headway.learn.formatting import format_count, format_number, format_seconds
from headway.learn.plan import choose
from headway.learn.plan.budget import Clock, Throughput
from headway.learn.plan.choose import (
    ScaledRecipe,
    SizePlan,
    active_parameters,
    choose_size,
    scale_recipe,
    size_settings,
)
from headway.learn.plan.scale import ScalingLaw, held_out_shares, shape_of, with_user_settings, without_user_settings
from headway.nn.mixers import MixerConfig

pytestmark = pytest.mark.usefixtures("brief_samples")
TEXT = scale_of("text")
assert TEXT is not None


def paced(rate: float = 1e10) -> Callable[[Recipe], Throughput]:
    """A machine that does so many multiplications a second, and three optimiser steps of a million weights in 10 ms."""
    return lambda recipe: Throughput(
        rate / (3 * active_parameters(recipe.model)), active_parameters(recipe.model) * 1e-8
    )


def chosen(minutes: float, unique: float, user: dict[str, object] | None = None) -> tuple[SizePlan, list[SizePlan]]:
    return choose_size(named("text"), TEXT, user or {}, int(unique), 60 * minutes, paced())  # type: ignore[arg-type]


def test_more_time_takes_a_larger_model_and_more_of_the_same_text_does_too() -> None:
    sizes = [chosen(minutes, 1e8)[0].parameters for minutes in (1, 5, 30, 240, 2000)]
    assert sizes == sorted(sizes)
    assert len(set(sizes)) >= 4
    by_text = [chosen(2000, unique)[0].parameters for unique in (3e4, 3e5, 3e6, 3e8)]
    assert by_text == sorted(by_text)
    assert by_text[0] < by_text[-1]


def test_the_chosen_size_is_the_best_of_all_and_only_a_few_are_timed() -> None:
    timed = []
    pace = paced()

    def noted(recipe: Recipe) -> Throughput:
        timed.append(recipe)
        return pace(recipe)

    best, fits = choose_size(named("text"), TEXT, {}, 10**8, 300.0, noted)  # type: ignore[arg-type]
    assert best.loss == min(fit.loss for fit in fits)
    assert len(timed) == len(fits) < len(TEXT.sizes())  # type: ignore[union-attr]


def test_what_the_user_sets_is_not_chosen() -> None:
    user = {"model.width": 96, "model.heads": 3, "optim.lr": 0.5}
    fit, fits = chosen(5, 1e7, user)
    recipe = with_user_settings(named("text"), size_settings(named("text"), fit, TEXT, 10**7, user), user)  # type: ignore[arg-type]
    assert {one.model.width for one in fits} == {96}  # type: ignore[attr-defined]
    assert len({len(one.model.stack.blocks) for one in fits}) > 1  # type: ignore[attr-defined]
    assert recipe.optim.lr == 0.5
    assert recipe.optim.head_lr == pytest.approx(0.003 * 128 / 96)  # type: ignore[attr-defined]
    assert without_user_settings({"optim.lr": 1, "optim.head_lr": 2, "model.width": 3}, {"optim": "adamw"}) == {
        "model.width": 3
    }
    assert without_user_settings({"model.width": 3}, {"model.width.x": 1}) == {}
    kept = with_user_settings(named("text"), {"model.width": 64, "optim.head_lr": 1e-3}, {"optim": "adamw"})
    assert isinstance(kept.optim, AdamWConfig)


def test_too_little_time_says_how_much_would_do() -> None:
    with pytest.raises(UserError, match=r"the smallest model can take only \d+ steps; increase --minutes by "):
        chosen(0.001, 1e6)
    with pytest.raises(UserError, match=r"only \d+ s are left for training, and a model of this size"):
        choose_size(
            named("text"),
            TEXT,  # type: ignore[arg-type]
            {"model.width": 4096, "model.depth": 24, "model.heads": 32},
            10**6,
            60.0,
            paced(),
        )


def test_numbers_are_told_without_exponents() -> None:
    told = [format_number(number) for number in (430.4, 1234567, 9.94, 9.96, 0.3, 0.0000231, 0.0)]
    assert told == ["430", "1,234,567", "9.9", "10", "0.3", "0.000023", "0"]
    assert [format_seconds(seconds) for seconds in (0.41, 41.3, 108.0)] == ["0.41 s", "41 s", "1.8 minutes"]


def test_repeats_are_worth_less_and_less() -> None:
    law = ScalingLaw()
    once = [law.loss(1e6, 1e6, unique) for unique in (1e6, 1e5, 1e4)]
    assert once == sorted(once)
    assert law.loss(1e6, 1e9, 1e5) == pytest.approx(law.loss(1e6, 1e10, 1e5), rel=1e-3)
    assert law.loss(1e6, 4e6, 1e6) == pytest.approx(law.loss(1e6, 4e6, 1e9), rel=0.03)  # four epochs: nearly as new
    assert law.loss(1e6, 0, 10) == math.inf


@pytest.mark.parametrize(("samples", "share"), [(100, 0.2), (1000, 0.1), (10_000, 0.05), (1_000_000, 0.001)])
def test_enough_is_held_out_and_no_more(samples: int, share: float) -> None:
    assert held_out_shares(samples) == {"task.split.validation": share, "task.split.test": share}


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("book") / "book.txt"
    path.write_text("".join(f"{i} birds sang in the {i % 7} trees of the {i % 13} gardens.\n" for i in range(4000)))
    return path


@pytest.fixture(scope="module")
def leaflet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """So little text that its plan ends after seconds, however many minutes there are, on a busy machine, too."""
    path = tmp_path_factory.mktemp("leaflet") / "leaflet.txt"
    path.write_text("".join(f"{number} birds sang in the garden.\n" for number in range(60)))
    return path


def test_minutes_choose_and_the_recipe_repeats_the_bits(
    leaflet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choose, "_MIN_STEPS_FACTOR", 1)
    user = {"model.width": 32, "model.heads": 2, "model.depth": 1}
    quiet = {"threads": 1, "samples": 0, "progress": False}
    run = hw.train("text", data=leaflet, set=user, minutes=0.5, run=tmp_path / "a", **quiet)  # type: ignore[arg-type]
    recipe = run.recipe
    assert len(recipe.reasons) >= 2
    assert recipe.reasons[1].startswith(f"{format_count(run.summary['parameters'])} parameters (width")
    assert recipe.schedule.factor(recipe.train.steps - 1, recipe.train.steps) < 0.1
    assert any("trains longer while validation improves" in reason for reason in recipe.reasons)
    assert run.summary["elapsed"] < 35
    again = hw.train(tmp_path / "a/recipe.json", run=tmp_path / "b", **quiet)  # type: ignore[arg-type]
    model = "model.safetensors"
    assert (tmp_path / "a" / model).read_bytes() == (tmp_path / "b" / model).read_bytes()
    assert again.recipe.reasons == recipe.reasons
    if (tmp_path / "a/report.html").is_file():
        assert "parameters (width" in (tmp_path / "a/report.html").read_text(encoding="utf-8")


def test_with_the_settings_of_a_plan_a_slower_machine_trains_as_planned(
    book: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, rate = replace(named("text"), data=(str(book),)), 1e10

    def planned(user: dict[str, Any]) -> ScaledRecipe:
        return scale_recipe(recipe, TEXT, user, 5, Clock(), torch.device("cpu"))  # type: ignore[arg-type]

    def pace(sized: Recipe, *_: object) -> Throughput:
        return paced(rate)(sized)._replace(step=float(sized.train.batch_tokens or 0))

    monkeypatch.setattr(choose, "measure_throughput", pace)
    plan = planned({})
    settings = parse_settings(f"{key}={json.dumps(value)}" for key, value in plan.settings.items())
    rate = 6e7
    with pytest.raises(UserError, match="the smallest model can take only"):
        planned({})
    slow = planned(settings)
    assert slow.plan.steps < TEXT.min_steps < plan.plan.steps  # type: ignore[union-attr]
    assert replace(slow.recipe, reasons=()) == replace(plan.recipe, reasons=())


def test_bad_minutes_and_sizes_are_one_line(book: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    begin = ["train", "text", "--data", str(book), "--run", str(tmp_path / "r"), "--threads", "1"]
    few = tmp_path / "few.txt"
    few.write_text("word")
    cases: Sequence[tuple[list[str], str]] = (
        ([*begin, "--minutes", "0.001"], "steps; increase --minutes by "),
        ([*begin, "--minutes", "0.05", "--set", "model.width=101"], "width 101 is not divisible by heads"),
        (["train", "text", "--data", str(few), "--minutes", "1", "--run", str(tmp_path / "r")], "validation split"),
        ([*begin, "--finish"], "--finish ends an interrupted run; use it with --resume"),
        ([*begin, "--finish", "--resume"], "has no interrupted run to finish; remove --finish"),
        ([*begin, "--minutes", "1", "--set", "train.steps=9"], "train.steps=9 both determine how long the run trains"),
    )
    for arguments, message in cases:
        assert cli.main(arguments) == cli.USER_ERROR
        told = capsys.readouterr().err.strip().splitlines()[-1]
        assert told.startswith("headway: ")
        assert message in told
        assert not (tmp_path / "r").exists()


def test_generic_recipes_are_flat_and_end_at_zero() -> None:
    from headway.domains import recipes

    for name, recipe in recipes().items():
        if scale_of(name) is not None:
            planned = recipe.schedule.planned(500)
            assert planned.factor(499, 500) < 0.02, name
            assert planned.decay_start(500) is not None, name
            assert planned.warmup <= 50, name
            assert isinstance(recipe.optim, MuonConfig) or name == "preference", name  # its start has learnt before


def test_a_finished_run_goes_on(
    leaflet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choose, "_MAX_REPEATS", 0.1)  # the first run is soon over
    monkeypatch.setattr(choose, "_MIN_STEPS_FACTOR", 1)
    begin = ["train", "text", "--data", str(leaflet), "--run", str(tmp_path / "r"), "--threads", "1", "--json"]
    begin += ["--set", "model.width=32", "model.heads=2", "model.depth=1"]
    assert cli.main([*begin, "--minutes", "0.5"]) == cli.DONE
    first = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert cli.main([*begin, "--resume"]) == cli.DONE  # it is finished: nothing is done
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["steps"] == first["steps"]
    assert cli.main([*begin, "--resume", "--minutes", "0.11"]) == cli.DONE
    captured = capsys.readouterr()
    second = json.loads(captured.out.splitlines()[-1])
    assert second["steps"] > 0.4 * first["steps"]  # from where the rate began to fall
    assert second["minutes"] == pytest.approx(0.61)
    # Which of the two it is depends on how many steps this machine took in the time.
    suits, too_small = "the model size still suits the total time", "the model is now too small: in 0.61 minutes"
    assert (suits in captured.err) != (too_small in captured.err)
    assert second["best"]["loss"] <= first["best"]["loss"]


def test_little_data_end_before_the_time_does() -> None:
    fit, _ = chosen(60, 5000)
    assert fit.exhausted
    assert fit.targets / 5000 == pytest.approx(6 * TEXT.law.repeats)  # type: ignore[union-attr]
    tiny, _ = chosen(60, 40)
    assert tiny.steps >= TEXT.min_steps  # type: ignore[union-attr]
    assert not chosen(60, 1e8)[0].exhausted


def test_batches_of_the_user_are_told_as_they_are() -> None:
    def pace(recipe: Recipe) -> Throughput:
        return paced()(recipe)._replace(step=384.0)

    fit, _ = choose_size(named("text"), TEXT, {"train.batch_size": 3}, 10**7, 300.0, pace)  # type: ignore[arg-type]
    assert fit.batch == 384
    assert fit.steps == pytest.approx(fit.targets / 384, abs=1)


SIZED = sorted(name for name in recipe_domains() if (scale := scale_of(name)) and scale.sizes())


@pytest.mark.parametrize("name", SIZED)
def test_every_mixer_that_fits_a_recipe_has_sizes_to_choose_from(name: str) -> None:
    """A recurrence has no heads, and a plan that chooses a number of heads still trains one. Attention takes all sizes,
    others the smallest and the largest.
    """
    scale, fitting = scale_of(name), dict[str, Recipe]()
    assert scale is not None
    for kind in kinds(MixerConfig):
        with suppress(ConfigError):  # of another direction, or without the encoder that it reads
            fitting[kind] = override(named(name), {"model.mixer": kind})
    for kind, recipe in fitting.items():
        sizes = scale.sizes() if kind == "attention" else [scale.sizes()[0], scale.sizes()[-1]]
        models = [with_user_settings(recipe, size, {"model.mixer": kind}).model for size in sizes]
        assert len({shape_of(model)[0] for model in models}) > 1
    assert fitting.keys() >= set(kinds(MixerConfig)) - {"bidirectional", "conditional_gru"}


def test_a_plan_for_an_lstm_leaves_out_the_heads_that_it_chooses_for_attention() -> None:
    assert TEXT is not None
    user = {"model.mixer": "lstm"}
    best, fits = choose_size(override(named("text"), user), TEXT, user, 10**6, 600.0, paced())
    assert len(fits) > 1
    recipe = with_user_settings(named("text"), size_settings(named("text"), best, TEXT, 10**6, user), user)
    assert {block.mixer.kind for block in recipe.model.stack.blocks} == {"lstm"}  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match="no attention heads"):  # the user's own are still refused
        choose_size(named("text"), TEXT, {**user, "model.heads": 2}, 10**6, 600.0, paced())
