"""Preference tuning over real questions: the loss by hand, the model it starts from, and the runs."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from chat_data import SYSTEM, chats, choices, opened, questions, say, small, train, write
from safetensors.torch import load_file
from tiny_models import overfit
from tiny_runs import cut_back, publish, weights

import headway as hw
from headway.app.recipes import configure_recipe
from headway.config import override
from headway.data import IGNORE_INDEX
from headway.domains.chat import preference as choosing
from headway.domains.chat.preference import answer_scores, failure_reason
from headway.domains.chat.recipes import instruct, preference
from headway.errors import ConfigError
from headway.formats.native import save_model
from headway.formats.usage import read_usage
from headway.generate import Completion
from headway.learn.examples import spread_evenly
from headway.nn.models import build

# Without a mark of the turn's end.
TEMPLATE = """\
{% for m in messages %}<|{{ m.role }}|>
{%- if m.role == "assistant" %}{% generation %}{{ m.content }}{% endgeneration %}
{%- else %}{{ m.content }}{% endif %}
{%- endfor %}"""
USER = {"role": "user", "content": "And now?"}


@pytest.fixture(autouse=True)
def _no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages of runs have tests of their own, and take as long as these runs; so do answers that find no end."""
    monkeypatch.setattr("headway.app.api.available", lambda: False)
    monkeypatch.setattr("headway.domains.chat.task._MAX_REPLY_TOKENS", 30)


@pytest.fixture
def told(data_dir: Path, tmp_path: Path) -> Path:
    return write(tmp_path / "chats.jsonl", chats(data_dir))


@pytest.fixture
def chosen(data_dir: Path, tmp_path: Path) -> Path:
    return write(tmp_path / "choices.jsonl", choices(data_dir))


def moved(model: torch.nn.Module) -> torch.nn.Module:
    """With every number moved: a new model finds all symbols equally probable."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model.eval()


def test_the_loss_of_choices_is_that_of_the_paper(chosen: Path) -> None:
    """By hand: log p of each ending under the model and the reference, token by token, row by row."""
    recipe = small(preference(), **{"task.beta": 0.3, "task.smoothing": 0.1})
    task = opened(recipe, chosen)
    start = build(task.adapt(recipe.model), recipe.train.seed).eval()
    model = moved(build(task.adapt(recipe.model)))
    numbers = task.examples.rows_of("validation").tolist()
    found = task.evaluate(model)
    margins, rewards = [], []
    for number in numbers:
        pair = []
        for ending in (0, 1):
            ids, marks = (torch.from_numpy(part.astype(np.int64)) for part in task.examples.cache.chat(number, ending))
            both = []
            for one in (model, start):
                with torch.no_grad():
                    logs = one.logits(ids[None, :-1])[0].log_softmax(-1)
                picked = logs.gather(1, ids[1:, None])[:, 0]
                both.append(float(picked[marks[1:] == 1].sum()))
            pair.append(0.3 * (both[0] - both[1]))
        rewards.append(pair)
        margins.append(pair[0] - pair[1])
    h = torch.tensor(margins, dtype=torch.float64)
    # As TRL writes it: -logsigmoid(beta h)(1 - eps) - logsigmoid(-beta h) eps, with beta in the margins here.
    loss = -F.logsigmoid(h) * 0.9 - F.logsigmoid(-h) * 0.1
    assert found["loss"] == pytest.approx(float(loss.mean()), rel=1e-4)
    assert found["accuracy"] == pytest.approx(float((h > 0).double().mean()))
    assert found["margin"] == pytest.approx(float(h.mean()), rel=1e-3)
    assert found["chosen_reward"] == pytest.approx(sum(one for one, _ in rewards) / len(numbers), rel=1e-3)
    assert found["rejected_reward"] == pytest.approx(sum(other for _, other in rewards) / len(numbers), rel=1e-3)
    assert found["samples"] == len(numbers)


@pytest.mark.parametrize("name", ["beta", "target_margin", "smoothing", "anchor", "enough"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_setting_that_is_not_finite_is_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"task.{name} is {value}; choose"):
        choosing.PreferenceConfig(**{name: value})  # type: ignore[arg-type]


def test_at_the_start_nothing_is_preferred(chosen: Path) -> None:
    recipe = small(preference())
    task = opened(recipe, chosen)
    start = build(task.adapt(recipe.model), recipe.train.seed).eval()
    scores = task.evaluate(start)
    assert scores["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert scores["margin"] == pytest.approx(0.0, abs=1e-4)


def test_the_gradient_is_that_of_the_paper(chosen: Path) -> None:
    """Equation 7's: beta sigmoid(-margin) times the gradient of the log ratio, summed over choices."""
    recipe = small(preference(), **{"task.anchor": 0.0})
    task = opened(recipe, chosen)
    model = moved(build(task.adapt(recipe.model)))
    batch = next(task.batches("train"))
    loss = task.loss(model, batch)["loss"]
    (inputs, layout), (labels, reference) = batch.inputs, batch.targets
    assert loss.count == batch.tokens == inputs.shape[0] // 2
    loss.total.backward()
    found = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    logs = model.heads["vocabulary"](model(inputs, layout).x).log_softmax(-1)
    picked = logs.gather(2, labels.clamp(min=0)[..., None])[..., 0]
    totals = (picked * (labels != IGNORE_INDEX)).sum(1).view(2, -1)
    ratio = (totals - reference).detach()
    weight = 0.1 * torch.sigmoid(-0.1 * (ratio[0] - ratio[1]))
    (-(weight * (totals[0] - totals[1])).sum()).backward()
    for parameter, grad in zip(model.parameters(), found):
        assert torch.allclose(parameter.grad, grad, atol=1e-5, rtol=1e-3)


def test_what_the_prompt_holds_of_the_assistants_does_not_count(data_dir: Path, tmp_path: Path) -> None:
    asked = questions(data_dir, 61)
    rows = [
        {"prompt": [SYSTEM, *say(*asked[i]), USER], "chosen": asked[i + 1][1], "rejected": asked[i][1] + "!"}
        for i in range(60)
    ]
    task = opened(small(preference()), write(tmp_path / "choices.jsonl", rows))
    for number in range(60):
        for ending, key in ((0, "chosen"), (1, "rejected")):
            ids, marks = task.examples.cache.chat(number, ending)
            assert task.examples.codec.decode(ids[marks == 1].tolist()) == rows[number][key]
            assert ids[marks == 1][-1] == task.examples.codec.eos_id


def test_an_ending_that_begins_like_the_other_counts_whole(data_dir: Path, tmp_path: Path) -> None:
    """And without a mark of the turn's end, one is the beginning of the other."""
    asked = questions(data_dir, 60)
    rows = [{"prompt": q, "chosen": a, "rejected": f"{a}, or not"} for q, a in asked]
    start = publish(write(tmp_path / "text.txt", rows), tmp_path / "start", "gpt2", context=256)
    (start / "chat_template.jinja").write_text(TEMPLATE)
    path = write(tmp_path / "choices.jsonl", rows)
    run = train(tmp_path / "run", path, small(preference()), start=start, set={"train.steps": 1, "task.context": 250})
    assert read_usage(run.directory).template == TEMPLATE
    task = opened(replace(small(preference()), start=str(start)), path, run.directory)
    for number in range(60):
        for ending, key in ((0, "chosen"), (1, "rejected")):
            ids, marks = task.examples.cache.chat(number, ending)
            assert task.examples.codec.decode(ids[marks == 1].tolist()) == rows[number][key]


def test_it_learns_to_prefer(chosen: Path) -> None:
    recipe = small(preference())
    task = opened(recipe, chosen)
    model, batch, loss = overfit(task, recipe, 40)
    assert loss < 0.1  # log 2 where nothing is preferred
    labels, reference = batch.targets
    with torch.no_grad():
        log_probs = choosing.log_probabilities(model, model(*batch.inputs).x, labels, choosing._lengths(labels))
    chosen_rewards, rejected_rewards = task.objective.pair_loss.rewards(log_probs, reference, log_probs)
    assert (chosen_rewards > rejected_rewards).all()
    assert task.evaluate(model, "train", limit=3)["samples"] == 3


def test_the_reference_is_computed_once_and_stays_with_the_run(
    chosen: Path, told: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taught = train(tmp_path / "taught", told, small(instruct()))
    computed = []
    original = choosing._write_reference
    monkeypatch.setattr(choosing, "_write_reference", lambda *given: (computed.append(1), original(*given))[1])
    recipe = small(preference())
    run = train(tmp_path / "run", chosen, recipe, start=taught.directory, samples=2)
    train(tmp_path / "again", chosen, recipe, start=taught.directory)  # from the cache
    assert computed == [1]
    kept = load_file(run.directory / "reference.safetensors")
    assert len(kept) == 1
    model = hw.load(taught.directory)
    task = opened(recipe, chosen, run.directory)
    number = int(task.examples.rows_of("train")[0])
    ids, marks = task.examples.cache.chat(number, 0)
    first = int(np.flatnonzero(marks)[0])
    with torch.inference_mode():
        logs = model.logits([ids[:-1].tolist()])[0].log_softmax(-1)
    wanted = sum(float(logs[i - 1, ids[i]]) for i in range(first, len(ids)) if marks[i])
    assert float(next(iter(kept.values()))[number, 0]) == pytest.approx(wanted, rel=1e-4)
    # The start may go: the run has what it needs.
    monkeypatch.setenv("HEADWAY_CACHE", str(tmp_path / "empty"))
    shutil.rmtree(taught.directory)
    copy = cut_back(run.directory, tmp_path / "copy", 3)
    train(copy, chosen, recipe, start=taught.directory, resume=True)
    one, other = weights(run.directory), weights(copy)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert computed == [1]
    assert run.summary["scores"].keys() >= {"loss", "accuracy", "accuracy_interval", "margin", "chosen_reward"}
    assert run.summary["samples"][0].keys() == {"prompt", "output", "chosen", "rejected"}


def test_the_anchor_is_the_cross_entropy_of_the_chosen_endings(chosen: Path) -> None:
    recipe = small(preference(), **{"task.anchor": 0.5})
    task = opened(recipe, chosen)
    model = moved(build(task.adapt(recipe.model)))
    batch = next(task.batches("train"))
    (inputs, layout), (labels, _) = batch.inputs, batch.targets
    rows = batch.tokens
    with torch.no_grad():
        found = task.loss(model, batch)
        logits = model.heads["vocabulary"](model(inputs, layout).x)[:rows]
    wanted = F.cross_entropy(logits.flatten(0, 1), labels[:rows].flatten(), ignore_index=IGNORE_INDEX)
    assert float(found["anchor"].total) / found["anchor"].count == pytest.approx(0.5 * float(wanted), rel=1e-4)
    assert set(task.loss(model, batch)) == {"loss", "anchor"}
    alone = opened(small(preference(), **{"task.anchor": 0.0}), chosen)
    alone.adapt(recipe.model)
    assert set(alone.loss(model, batch)) == {"loss"}


def test_long_answers_are_not_endless(chosen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An evaluation allows twice the tokens of the longest ending, however few replies display."""
    recipe, allowed = small(preference()), list[int]()
    task = opened(recipe, chosen)

    def generate(self: Any, prompts: list[list[int]], sampling: Any, limits: Any) -> list[Completion]:
        allowed.append(limits.max_new_tokens)
        return [Completion([], "fine", [], "stop", 1.0) for _ in prompts]

    monkeypatch.setattr("headway.domains.chat.task.Session.generate", generate)
    monkeypatch.setattr("headway.domains.chat.task._MAX_REPLY_TOKENS", 2)
    examples = cast(Any, task.examples)
    rows = examples.rows_of("validation")
    answer_scores(build(task.adapt(recipe.model)), examples, rows)
    endings = [examples.reply(row, part) for row in spread_evenly(rows, 8).tolist() for part in (0, 1)]
    lengths = [len(examples.codec.encode(text)) for text in endings]
    assert allowed == [2 * max(lengths) + 16]


def test_dropout_is_off_unless_it_is_set(chosen: Path, tmp_path: Path) -> None:
    """The start model, with which the model in training is compared, computes without."""
    task = opened(small(preference()), chosen)
    started = task.adapt(override(small(preference()).model, {"dropout": 0.3}))
    save_model(build(started), started, tmp_path / "start")
    task.save(tmp_path / "start")
    for settings, rate in (({}, 0.0), ({"model.dropout": 0.2}, 0.2)):
        recipe = configure_recipe("preference", chosen, settings, None, tmp_path / "start")
        assert {block.dropout for block in cast(Any, recipe.model).stack.blocks} == {rate}


@pytest.mark.parametrize("loss", ["orpo", "simpo"])
def test_losses_without_a_reference_compute_none(
    chosen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss: str
) -> None:
    """The loss by hand, from the means of the tokens' log probabilities; nothing of the start model is stored."""
    monkeypatch.setattr(choosing, "_write_reference", lambda *_: pytest.fail("a reference was computed"))
    recipe = small(preference(), **{"task.loss": loss})
    task = opened(recipe, chosen)
    model = moved(build(task.adapt(recipe.model)))
    batch = next(task.batches("train"))
    (inputs, layout), (labels, _) = batch.inputs, batch.targets
    with torch.no_grad():
        found = float(task.loss(model, batch)["loss"].total)
        logs = model.heads["vocabulary"](model(inputs, layout).x).log_softmax(-1).double()
    picked = logs.gather(2, labels.clamp(min=0)[..., None])[..., 0]
    mask = labels != IGNORE_INDEX
    mean = ((picked * mask).sum(1) / mask.sum(1)).view(2, -1)
    odds = mean - torch.log(1 - mean.exp())
    wanted = -0.1 * F.logsigmoid(odds[0] - odds[1]) if loss == "orpo" else -F.logsigmoid(2 * (mean[0] - mean[1]) - 1)
    assert found == pytest.approx(float(wanted.sum()), rel=1e-4)
    scores = task.evaluate(model)
    assert "perplexity" in scores
    assert "perplexity_change" not in scores
    task.save(tmp_path)
    assert not (tmp_path / "reference.safetensors").exists()


GOOD = {"empty_rate": 0.0, "endless_rate": 0.0, "equal_rate": 0.25, "perplexity_change": 1.02}


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("empty_rate", 0.75, "75% of its answers to held-out prompts are empty"),
        ("endless_rate", 1.0, "100% of its answers to held-out prompts are endless"),
        ("equal_rate", 0.6, "60% of its answers to held-out prompts are the same for different prompts"),
        ("perplexity_change", 1.2, "the perplexity of the chosen answers is 1.2 times what it was at the start"),
    ],
)
def test_answers_that_got_worse_are_a_fault(name: str, value: float, said: str) -> None:
    assert failure_reason(GOOD, GOOD) is None
    assert failure_reason({**GOOD, name: value}, GOOD) == said
    reference_free = {name: value for name, value in GOOD.items() if name != "perplexity_change"}
    assert failure_reason({**reference_free, "perplexity": 6.0}, {**GOOD, "perplexity": 5.0, "step": 20}) == (
        "the perplexity of the chosen answers is 1.2 times what it was at step 20"
    )
    known = name != "perplexity_change"  # what the start has already is not the training's fault
    assert (failure_reason({**GOOD, name: value}, {**GOOD, name: value}) is None) == known


def test_answers_are_compared_with_both_endings(chosen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = opened(small(preference()), chosen)
    task.adapt(small(preference()).model)
    rows = task.examples.rows_of("validation")
    model = build(small(preference()).model)

    def answering(part: int | None, reason: str = "end") -> dict[str, float]:
        def completions(_: object, chats: object, some: list[int], length: int) -> list[Completion]:
            texts = [f" {task.examples.reply(row, part)}\n" if part is not None else " " for row in some]
            return [Completion([], text, [], reason, 1.0) for text in texts]  # type: ignore[arg-type]

        monkeypatch.setattr("headway.domains.chat.preference.completions", completions)
        return answer_scores(model, task.examples, rows)

    assert answering(0)["win_rate"] == 1.0
    assert answering(1)["win_rate"] == 0.0
    assert answering(0)["equal_rate"] <= 0.5  # four intents in turn
    assert answering(0, "length")["endless_rate"] == 1.0
    empty = answering(None)
    assert (empty["empty_rate"], empty["equal_rate"], empty["win_rate"]) == (1.0, 1.0, 0.5)


def test_a_training_that_destroys_the_answers_ends_and_keeps_the_start(
    chosen: Path, told: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taught = train(tmp_path / "taught", told, small(instruct()), set={"train.steps": 60, "optim.lr": 0.02})
    settings = {"optim.lr": 3.0, "task.anchor": 0.0, "train.steps": 20, "train.evaluate_every": 5}
    given = {"data": chosen, "set": settings, "run": tmp_path / "run", "start": taught.directory, "samples": 0}
    run = hw.train(small(preference()), **given)  # type: ignore[arg-type]
    assert run.summary["status"] == "finished"
    assert (run.summary["best"]["step"], run.summary["step"]) == (0, 5)
    assert "stopping with the model from step 0" in capsys.readouterr().err
    first, second = weights(taught.directory), weights(run.directory)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_start_that_never_learned_to_answer_is_reported(
    chosen: Path, told: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    start = publish(told, tmp_path / "start", "gpt2", context=256)
    train(tmp_path / "run", chosen, small(preference()), start=start, set={"train.steps": 1, "task.context": 250})
    assert f"{start} has no chat template, so it cannot answer yet" in caplog.text


def test_training_ends_when_the_margin_is_enough_and_the_answers_win() -> None:
    objective = choosing.PreferredEndings(choosing.PreferenceConfig().pair_loss, enough=2.0)
    assert objective.stop_reason({"margin": 1.9, "win_rate": 1.0}) is None
    assert objective.stop_reason({"margin": 2.1, "win_rate": 0.5}) is None
    assert objective.stop_reason({"margin": 2.1, "win_rate": 1.0}) == (
        "the reward margin is 2.1 and 100% of its answers resemble the chosen ones"
    )
    assert objective.stop_reason({"margin": 8.1, "win_rate": 0.5}) is not None
    endless = choosing.PreferredEndings(objective.pair_loss)
    assert endless.stop_reason({"margin": 9.0, "win_rate": 1.0}) is None
