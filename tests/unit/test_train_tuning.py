"""Rates, batches and readings of models that have learnt before."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_runs
import understanding_data

import headway as hw
from headway.app.cli.main import main
from headway.app.recipes import configure_recipe
from headway.domains import recipe as find_recipe
from headway.learn import AdamWConfig, WSDConfig
from headway.learn.adapters import LoRAConfig
from headway.learn.plan.budget import Throughput
from headway.learn.plan.plans import plan_tuning, tuning_optimizer

LABELS = Throughput(targets=100.0, overhead=0.02, share=1 / 16)


def test_rates_fall_with_the_width_and_adapters_take_more() -> None:
    whole = [tuning_optimizer(width, None)["optim"]["lr"] for width in (64, 384, 768, 4096)]
    assert whole == [3e-3, 4e-4, 1e-4, 1e-5]
    assert tuning_optimizer(384, LoRAConfig())["optim"]["lr"] == pytest.approx(10 * whole[1])
    assert tuning_optimizer(64, LoRAConfig())["optim"]["lr"] == 1e-2


def test_fewer_samples_are_planned_for_more_epochs() -> None:
    pace = LABELS._replace(share=1.0)
    plans = [plan_tuning(count, count, pace, 1e9, "train.batch_size") for count in (50, 770, 9000, 100_000)]
    assert [round(plan.epochs) for plan in plans] == [40, 22, 6, 3]


def test_few_conversations_are_planned_for_as_many_epochs_as_labels() -> None:
    """37 conversations of 130 tokens, of which the assistant says 60, in rows of 128: not 8 epochs in 10 steps."""
    plan = plan_tuning(37, 37 * 60, Throughput(3000.0, 0.005, 0.45), 50.0, "train.batch_tokens", min_batch=128)
    assert plan.epochs == pytest.approx(40, rel=0.05)
    assert plan.steps > 150
    assert "more while validation improves" in plan.reason


def test_the_first_plan_is_limited_by_the_amount_of_data() -> None:
    long = plan_tuning(9000, 9000, LABELS, 3600.0, "train.batch_tokens")
    assert long.settings == {"train.batch_tokens": 1024}
    assert long.epochs == pytest.approx(6.3, abs=0.1)
    assert "more while validation improves" in long.reason
    short = plan_tuning(9000, 9000, LABELS, 30.0, "train.batch_tokens")
    assert "as fit in 0 s" in plan_tuning(9000, 9000, LABELS, -2.5, "train.batch_tokens").reason
    assert short.steps < long.steps
    assert short.epochs < 0.5
    assert short.reason == "as many epochs of 9,000 samples as fit in 30 s; 6.3 would be better"


def test_small_sets_have_small_batches_and_rows_whole_ones() -> None:
    few = plan_tuning(60, 60, LABELS._replace(share=1.0), 600.0, "train.batch_size")
    assert few.settings == {"train.batch_size": 8}
    assert few.steps == 300
    assert plan_tuning(60, 60, LABELS._replace(share=1.0), 600.0, "train.batch_size", own_batch=4).useful == 600
    rows = plan_tuning(60, 6000, Throughput(1000.0, 0.02, 0.5), 600.0, "train.batch_tokens", min_batch=2048)
    assert rows.settings == {"train.batch_tokens": 2048}


def test_a_generic_recipe_with_a_start_gets_the_rates_of_tuning(data_dir: Path, tmp_path: Path) -> None:
    play = tiny_runs.play_file(data_dir, tmp_path)
    start = tiny_runs.train(tmp_path / "first", play).directory
    generic = configure_recipe("text", play, {}, None, start)
    assert isinstance(generic.optim, AdamWConfig)
    assert isinstance(generic.schedule, WSDConfig)
    own = configure_recipe("text", play, {"optim.lr": 0.5}, None, start)
    assert own.optim.lr == 0.5
    assert isinstance(own.optim, AdamWConfig)
    adapter = configure_recipe("text", play, {}, None, start, lora=4)
    assert (generic.optim.lr, adapter.optim.lr) == (3e-3, 1e-2)  # the largest: the model is tiny
    assert configure_recipe("shakespeare", play, {}, None, start).optim.kind == "muon"  # type: ignore[attr-defined]


def test_fine_tuning_is_planned_as_it_is_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The model is the start's, batches and the most steps are those of fine-tuning, and nothing is written."""
    rows = [{"text": f"{('red', 'blue')[number % 2]} {number}", "label": "ab"[number % 2]} for number in range(60)]
    small = understanding_data.small(find_recipe("classification"), **{"train.steps": 1, "train.precision": "fp32"})
    start = tmp_path / "start"
    hw.train(small, rows, run=start, device="cpu", progress=False, samples=0)
    data = tmp_path / "more.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    asked = ["classification", "--data", str(data), "--from", str(start), "--device", "cpu", "--json"]
    assert main(["plan", *asked, "--minutes", "0.1,600"]) == 0
    short, long = json.loads(capsys.readouterr().out)["plans"]
    for plan in (short, long):
        assert (plan["width"], plan["layers"]) == (32, 1)
        assert plan["reasons"][0].startswith(f"the model size is fixed by {start}")
        assert plan["epochs"] == pytest.approx(plan["steps"] * plan["batch"] / 48, rel=0.01)  # 48 of 60 are trained on
    assert "more epochs do not improve the model" in long["reasons"][0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["more.jsonl", "start"]
    (adapter,) = hw.plan("classification", data, 0.2, start=start, lora=4, device="cpu")
    assert adapter.width == 32
    with pytest.raises(hw.UserError, match="has no key 'label'"):
        hw.plan("classification", [{"text": "a"}], 1, start=start, device="cpu")
    size = small.task.size  # type: ignore[attr-defined]
    for settings, named in (
        ({"task.codec": "byte"}, "task.codec"),
        ({"task.size": size + 1}, "task.size"),
        ({"task.lowercase": False}, "task.lowercase"),
        ({"task.codec": "byte", "task.size": size, "task.tokenizer": "x"}, "task.codec and task.tokenizer"),
    ):
        with pytest.raises(hw.UserError, match=f"is trained further with its own tokenizer; remove {named}$"):
            hw.train("classification", data, start=start, set=settings, run=tmp_path / "run")
    hw.plan("classification", data, 0.2, start=start, set={"task.size": size}, device="cpu")
    assert not (tmp_path / "run").exists()


def test_too_few_validation_samples_limit_the_epochs() -> None:
    """Sixteen samples cannot tell when two hundred have been read often enough."""
    long = plan_tuning(200, 200, LABELS, 3600.0, "train.batch_tokens")
    short = plan_tuning(200, 200, LABELS, 3600.0, "train.batch_tokens", max_epochs=15.0)
    assert long.epochs == pytest.approx(40, rel=0.1)
    assert short.epochs == pytest.approx(15, rel=0.1)
