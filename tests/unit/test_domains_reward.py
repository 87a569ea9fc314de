"""Learning from rewards: the objectives against their formulas, sampling and learning with the same probabilities,
exact resuming, and functions of the user.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import numpy as np
import pytest
import torch
from tiny_runs import cut_back, weights

import headway as hw
from headway.app.cli.main import USER_ERROR, main
from headway.app.cli.options import Parser, add_recipe
from headway.codecs import train_codec
from headway.codecs.chat_template import ROLES, default_template
from headway.codecs.tokenizer import END_OF_TEXT
from headway.config import override, parse_settings
from headway.domains import recipe as find_recipe
from headway.domains.reward.answer_rollouts import RewardedPrompts
from headway.domains.reward.prompt_files import PromptEncoder
from headway.domains.reward.sampled_answers import AnswerSampler, Rollout, SampledAnswer
from headway.domains.reward.task import RewardConfig
from headway.domains.text.recipes import modern_decoder
from headway.engine import CannotLowerError, Engine
from headway.errors import ConfigError, UserError
from headway.formats.native import save_model
from headway.formats.usage import Usage
from headway.generate import Limits
from headway.generate.prompts import pad
from headway.learn.objectives.policy_gradient import Method, PolicyGradient, group_advantages
from headway.learn.parallel.processes import Processes
from headway.learn.plan.budget import measure_speed
from headway.learn.recipe import open_task
from headway.learn.run import read_metrics
from headway.nn.models import build
from headway.rewards import CONFIRMED

SETTINGS = {
    "task.max_new_tokens": 2,
    "task.prompts": 4,
    "task.group": 4,
    "task.answers": 2,
    "train.batch_size": 16,
    "train.steps": 4,
    "train.evaluate_every": 2,
    "train.keep_checkpoints": 20,
    "optim.lr": 0.02,
}


@pytest.fixture(autouse=True)
def _no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages of runs have tests of their own, and take as long as these runs."""
    monkeypatch.setattr("headway.app.api.available", lambda: False)


@pytest.fixture
def torch_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch samples, because compiling the engine takes longer than these runs."""

    def refuse(*_: Any) -> None:
        raise CannotLowerError("a test")

    monkeypatch.setattr("headway.domains.reward.sampled_answers.Engine", refuse)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained(tmp_path_factory.mktemp("start") / "model")


def untrained(
    folder: Path, padding: int = 0, settings: Mapping[str, Any] = MappingProxyType({}), noise: float = 0.0
) -> Path:
    """An untrained model of the characters a to f and the end of a line, with `padding` ids that are not tokens. With
    `noise` in its weights, it does not find all tokens equally probable.
    """
    codec = train_codec("char", iter(["abcdef\n"]))
    model = modern_decoder(width=16, depth=1, heads=2, window=16, vocab_size=codec.vocab_size + padding)
    model = override(model, settings)
    module, generator = build(model, 3), torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * noise)
    save_model(module, model, folder)
    codec.save(folder)
    return folder


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    words = [a + b for a in "abcdef" for b in "abcdef"]
    rows = [json.dumps({"prompt": word, "pattern": "a"}) + "\n" for word in words]
    (tmp_path / "prompts.jsonl").write_text("".join(rows))
    return tmp_path / "prompts.jsonl"


def train(start: Path, prompts: Path, run: Path, reward: str | None = "regex", **given: Any) -> hw.Run:
    settings = {**SETTINGS, **({} if reward is None else {"task.reward": reward}), **given.pop("set", {})}
    return hw.train("reward", data=prompts, set=settings, run=run, start=start, progress=False, samples=0, **given)


def test_advantages_are_those_of_the_papers() -> None:
    rewards = np.array([[1.0, 0.0, 0.0, 1.0], [0.1, 0.1, 0.1, 0.1], [3.0, 0.0, 0.0, 0.0]])
    plain = rewards - rewards.mean(1, keepdims=True)
    assert group_advantages(rewards, "dr-grpo") == pytest.approx(plain)
    assert group_advantages(rewards, "grpo")[0] == pytest.approx([1, -1, -1, 1], abs=1e-5)
    others = [[r[i] - np.delete(r, i).mean() for i in range(4)] for r in rewards]  # leaving one out
    assert group_advantages(rewards, "reinforce") == pytest.approx(np.array(others))
    assert not group_advantages(rewards, "grpo")[1].any()  # exactly 0, although a mean is rounded


def rollout_of(model: Any, rows: list[tuple[list[int], list[int]]], advantages: list[float]) -> Rollout:
    """Answers, for which the model's own log probabilities are computed token by token."""
    answers = []
    for prompt, ids in rows:
        text = [*prompt, *ids]
        scores = model.logits(torch.tensor([text])).log_softmax(-1)[0].detach()
        at = range(len(prompt) - 1, len(text) - 1)
        answers.append(SampledAnswer(ids, [float(scores[i, text[i + 1]]) for i in at], "", "stop"))
    rewards = torch.arange(len(rows), dtype=torch.float32)
    return Rollout.of([prompt for prompt, _ in rows], answers, torch.tensor(advantages), rewards)


@pytest.mark.parametrize("method", ["grpo", "dr-grpo", "reinforce"])
def test_the_loss_is_that_of_the_papers(start: Path, method: Method) -> None:
    """The gradient is that of the objective, written per answer and token; the value is that of the rewards."""
    model: Any = hw.load(start).module
    rows, advantages = [([1, 2, 3], [4]), ([2], [1, 5, 6]), ([3, 3], [2, 2])], [1.5, -1.0, 0.5]
    rollout = rollout_of(model, rows, advantages)
    assert rollout.scored_by(model, 2) == pytest.approx(rollout.log_probabilities, abs=1e-6)
    moved = torch.linspace(-0.6, 0.6, rollout.log_probabilities.numel()).view(rollout.log_probabilities.shape)
    is_answer = rollout.log_probabilities != 0
    before, reference = ((rollout.log_probabilities + change) * is_answer for change in (moved, -0.5 * moved))
    batch = rollout._replace(log_probabilities=before, reference=reference).batch(torch.arange(3))
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    losses = PolicyGradient(method, clip=0.2, kl=0.3, max_tokens=7).loss(model, batch)
    gradient = torch.autograd.grad(losses["policy"].total + losses["kl"].total, model.parameters(), allow_unused=True)

    ids, layout = pad([[*prompt, *answer] for prompt, answer in rows], torch.device("cpu"))
    scores = model.heads["vocabulary"](model(ids, layout).x).log_softmax(-1)
    policy, penalty = torch.zeros(()), torch.zeros(())
    for n, ((prompt, answer), advantage) in enumerate(zip(rows, advantages)):
        weight = {"grpo": 1 / len(answer), "dr-grpo": 1 / 7, "reinforce": 1.0}[method]
        for t, token in enumerate(answer, len(prompt) - 1):
            log_p = scores[n, t, token]
            ratio = (log_p - before[n, t]).exp()
            gain = torch.min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
            policy = policy - weight * (advantage * log_p if method == "reinforce" else gain)
            k3 = (reference[n, t] - log_p).exp() - (reference[n, t] - log_p) - 1
            penalty = penalty + 0.3 * weight * k3
    expected = torch.autograd.grad(policy + penalty, model.parameters(), allow_unused=True)
    assert float(losses["policy"].total.detach()) == pytest.approx(-3)  # the rewards
    assert float(losses["kl"].total.detach()) == pytest.approx(float(penalty.detach()), abs=1e-6)
    assert losses["policy"].count == 3
    for ours, theirs in zip(gradient, expected):
        assert ours is None or torch.allclose(ours, theirs, atol=1e-6)


@pytest.mark.compiling
def test_the_engine_follows_weights_that_change_in_place(start: Path) -> None:
    """Also norms and biases, which a program has as constants; a stop token is part of an answer."""
    handle = hw.load(start)
    model, end = handle.module, handle.codec.encode("\n")
    sampler = AnswerSampler(handle.codec, Limits(6, stop_ids=tuple(end)))  # type: ignore[arg-type]
    asked = [handle.codec.encode(word) for word in ("ab", "c", "def", "ab") for _ in range(8)]
    generator, seen = torch.Generator().manual_seed(0), set()
    for number in range(3):
        answers = sampler.sample(model, asked, number)
        assert isinstance(sampler.engine, Engine)
        rollout = Rollout.of(asked, answers, *torch.zeros(2, len(asked)))
        assert float((rollout.scored_by(model, 7) - rollout.log_probabilities).abs().max()) < 1e-5
        assert answers == sampler.sample(model, asked, number)
        ends = {*end, handle.codec.eos_id}
        assert all((answer.ids[-1] in ends) == (answer.finish_reason == "stop") for answer in answers)
        seen |= {answer.text for answer in answers}
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    assert len(seen) > 20


@pytest.mark.usefixtures("torch_samples")
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {
            "task.epochs": 2,
            "train.batch_size": 8,
            "task.kl": 0.1,
            "task.method": "dr-grpo",
            "train.checkpoint_every": 3,
        },
    ],
)
def test_a_run_learns_and_continues_with_the_same_bits(
    start: Path, prompts: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    """Also between the steps of one rollout, and without the start model."""
    run = train(start, prompts, tmp_path / "run", set={"train.steps": 12, "train.evaluate_every": 4, **settings})
    lines = [line for line in run.metrics if line.get("split") == "validation"]
    assert lines[0]["step"] == 0
    assert lines[-1]["reward"] > lines[0]["reward"] + 0.1
    assert lines[-1]["pass_at_2"] >= lines[-1]["pass_at_1"] == lines[-1]["reward"]
    assert lines[-1]["sampler_difference"] < 1e-5
    assert run.summary["remark"].startswith("validation before training: ")
    gone = shutil.copytree(start, tmp_path / "start")
    copy = cut_back(run.directory, tmp_path / "copy", 3 if settings else 4)
    recipe = json.loads((copy / "recipe.json").read_text())
    (copy / "recipe.json").write_text(json.dumps({**recipe, "start": str(gone)}))
    shutil.rmtree(gone)
    again = hw.train("reward", run=copy, resume=True, progress=False, samples=0)
    assert again.summary["step"] == 12
    ours, theirs = weights(run.directory), weights(copy)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    for name in ("reward", "sampler_difference"):
        assert [m[name] for m in again.metrics if name in m] == [m[name] for m in run.metrics if name in m]


@pytest.mark.usefixtures("torch_samples")
@pytest.mark.parametrize("base", [None, "fp32", "int4"])
def test_the_penalty_is_0_at_the_start(prompts: Path, tmp_path: Path, base: str | None) -> None:
    """Also if the model has more ids than its tokenizer, and if the start is the quantised base of an adapter."""
    given: dict[str, Any] = {} if base is None else {"lora": 2, "set": {"adapter.base": base}}
    settings = {"task.kl": 0.1, "train.steps": 1, "train.evaluate_every": 1, **given.pop("set", {})}
    start = untrained(tmp_path / "start", padding=40, noise=0.3)
    run = train(start, prompts, tmp_path / "run", set=settings, **given)
    assert [line["loss_kl"] for line in run.metrics if "loss_kl" in line] == [pytest.approx(0.0, abs=1e-7)]
    assert run.task is not None
    examples = cast(RewardedPrompts, run.task.examples)
    assert examples.rollout is not None
    assert int(examples.rollout.ids.max()) >= examples.codec.vocab_size  # such an id has no text
    assert (run.directory / "reference.safetensors").is_file() == (base is None)
    assert examples.load_reference().config.vocab_size == examples.codec.vocab_size + 40  # type: ignore[union-attr]


@pytest.mark.usefixtures("torch_samples")
@pytest.mark.parametrize(
    "settings",
    [
        {"dropout": 0.5},
        {"depth": 2, "drop_path": 0.5},
        {"stack.blocks.0.mixer.dropout": 0.5},
    ],
)
def test_dropout_is_off(prompts: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    """Otherwise the divergence from the start would not be 0 before the first step."""
    start = untrained(tmp_path / "start", settings=settings, noise=0.3)
    run = train(start, prompts, tmp_path / "run", set={"task.kl": 0.1, "train.steps": 1, "train.evaluate_every": 1})
    assert [line["loss_kl"] for line in run.metrics if "loss_kl" in line] == [pytest.approx(0.0, abs=1e-7)]


@pytest.mark.usefixtures("torch_samples")
def test_products_in_bf16_leave_probabilities_as_they_were_sampled(
    start: Path, prompts: Path, tmp_path: Path, torch_samples: None
) -> None:
    settings = {"train.precision": "bf16", "task.kl": 0.1, "train.steps": 1, "task.split": {"test": 0.0}}
    with_noise = untrained(tmp_path / "start", noise=0.5)
    run = train(with_noise, prompts, tmp_path / "run", set=settings)
    first = next(line for line in read_metrics(run.directory / "metrics.jsonl") if "loss_kl" in line)
    assert first["loss_kl"] == 0


def test_a_report_keeps_the_rewards(start: Path, prompts: Path, tmp_path: Path, torch_samples: None) -> None:
    run = train(start, prompts, tmp_path / "run")
    curve = run.task.examples.complete_curve()
    assert len(curve) == len(run.task.examples.curve) > 1
    again = open_task(run.recipe, run.directory)  # as `headway evaluate` does
    assert again.examples.complete_curve() == pytest.approx(curve)
    assert [picture.title for picture in again.pictures(run.model)] == ["Training rewards", "Length of answers"]
    again.close()


def test_settings_of_a_start_are_compared(start: Path, prompts: Path, tmp_path: Path, torch_samples: None) -> None:
    settings = {name: [value] for name, value in SETTINGS.items()} | {"task.reward": ["regex"]}
    recipe = replace(find_recipe("reward"), start=str(start), model=hw.load(start).module.config, data=(str(prompts),))
    compared = hw.compare(recipe, {**settings, "task.method": ["grpo", "dr-grpo"]}, run=tmp_path / "c")
    assert [result.variant.name for result in compared.results] == ["grpo", "dr-grpo"]
    with pytest.raises(UserError, match="compare by minutes instead of tokens"):
        hw.compare(recipe, {**settings, "task.method": ["grpo", "dr-grpo"]}, run=tmp_path / "d", tokens=100)


def test_a_random_model_that_measures_the_speed_is_not_judged(
    start: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Also if the run exists, as when it continues for more minutes."""
    run = train(start, prompts, tmp_path / "run", set={"train.steps": 2})
    assert run.task is not None
    examples = cast(RewardedPrompts, run.task.examples)
    monkeypatch.setattr(examples.scorer, "score", lambda answers: ["ValueError: no"] * len(answers))
    caplog.clear()
    speed = measure_speed(run.recipe, (), run.task, Processes(torch.device("cpu")), "fp32", 0.1, evaluate_final=True)
    assert speed.step > 0
    assert not caplog.messages
    examples.start_exploring(run.model)
    with pytest.raises(UserError, match="fails for all 16 answers"):
        next(examples.batches("train"))


@pytest.mark.usefixtures("torch_samples")
def test_a_function_of_the_user_is_named_each_time(
    start: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    CONFIRMED.clear()
    failing = 'float("nan") if "b" in output else 1 / 0 if "c" in output else len(output)'
    (tmp_path / "mine.py").write_text(f"def reward(prompt, output, row):\n    return {failing}\n")
    run = train(start, prompts, tmp_path / "run", "mine:reward", set={"train.steps": 2, "train.evaluate_every": 1})
    assert json.loads((run.directory / "recipe.json").read_text())["task"]["reward"] == "mine:reward"
    assert "the reward 'mine:reward' fails (it returns nan) for the answer" in caplog.text
    assert "fails (ZeroDivisionError: division by zero) for the answer" in caplog.text
    CONFIRMED.clear()  # as in another process
    copy = cut_back(run.directory, tmp_path / "copy", 1)
    resume = ["train", "reward", "--run", str(copy), "--resume"]
    assert main(resume) == USER_ERROR
    assert main(["evaluate", str(copy)]) == USER_ERROR
    assert main([*resume, "--reward", "mine:other"]) == USER_ERROR  # not the run's
    CONFIRMED.clear()
    again = hw.train("reward", run=copy, resume=True, set={"task.reward": "mine:reward"}, progress=False, samples=0)
    assert torch.equal(weights(copy)["embed.table"], weights(run.directory)["embed.table"])
    assert again.summary["status"] == "finished"


@pytest.mark.usefixtures("torch_samples")
def test_rewards_that_teach_nothing_and_answers_without_end_are_logged(
    start: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"train.steps": 2, "task.reward": "exact", "task.max_new_tokens": 1}
    rows = [{**json.loads(line), "answer": "never"} for line in prompts.read_text().splitlines()]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = train(start, prompts, tmp_path / "run", set=settings)
    assert "all answers to each prompt of a rollout have the same reward (mean 0), so it teaches nothing" in caplog.text
    assert " % of the answers do not end within 1 tokens; set task.stop" in caplog.text
    assert run.summary["remark"].startswith("training did not improve the start model on the validation split: 0.0 %")
    assert run.task is not None
    # A few answers shown at the end may all fail without losing the run's report.
    examples = cast(RewardedPrompts, run.task.examples)
    monkeypatch.setattr(examples.scorer, "score", lambda answers: ["ValueError: no"] * len(answers))
    assert [sample["reward"] for sample in run.task.samples(run.model, 2)] == ["0", "0"]
    with pytest.raises(UserError, match="fails for all 4 answers"):
        examples.answer(run.model, [0, 1], 2, seed=0)
    examples.largest_difference = 0.5
    state = examples.exploration_state()
    examples.start_exploring(run.model)
    examples.load_exploration_state(state)
    assert examples.largest_difference == 0.5
    start_weights = dict(hw.load(start).module.named_parameters())
    assert all(torch.equal(weights(run.directory)[name], start_weights[name]) for name in start_weights)
    (tmp_path / "broken.py").write_text("def reward(*_):\n    raise KeyError('x')\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"fails for all \d+ answers \(KeyError: 'x'\); .* --resume"):
        train(start, prompts, tmp_path / "broken", "broken:reward")
    # The answers of the random model that measures the speed do not count.
    settings = {**SETTINGS, "task.reward": "broken:reward"}
    assert hw.plan("reward", prompts, 0.1, settings, start)[0].steps


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task.reward": None}, "no reward is set"),
        ({"train.batch_size": 3}, "steps of 3 answers do not divide the 16 answers of a rollout"),
        ({"task.method": "reinforce", "task.epochs": 2}, "takes one step per rollout of 16 answers, not 2"),
        (
            {"task.reward": "exact", "task.pattern": "a"},
            "task.pattern is set, but .*'exact' does not use it; remove it",
        ),
        ({"task.schema": True}, "task.schema is set, but the reward 'regex' does not .* or choose json-schema"),
        ({"task.method": "reinforce", "task.clip": 0.3}, r"task.clip is 0.3, but reinforce does not clip; remove it"),
        ({"task.group": 1}, "task.group is 1; choose 2 or more"),
        ({"task.kl": -1.0}, "task.kl is -1.0"),
        ({"adapter": "lora", "adapter.dropout": 0.1}, "adapter.dropout is 0.1, .*; set adapter.dropout=0"),
        ({"model.context": 2}, "a prompt of 3 tokens, but the model's context of 2"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    start: Path, prompts: Path, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        train(start, prompts, tmp_path / "run", set=settings)
    assert not (tmp_path / "run" / "recipe.json").exists()


def test_a_schema_is_json_or_its_text() -> None:
    schema = {"type": "object"}
    for value in (schema, json.dumps(schema), *parse_settings([f"task.schema={json.dumps(schema)}"]).values()):
        assert json.loads(override(RewardConfig(), {"schema": value}).schema or "") == schema
    assert override(RewardConfig(schema="true"), {"schema": None}).schema is None
    for value in (5, {"const": object()}):
        with pytest.raises(ConfigError, match=r"schema is (5; use a string|not JSON \(.*\); correct it)"):
            override(RewardConfig(), {"schema": value})


def test_an_option_that_is_a_string_is_the_text_of_the_command_line() -> None:
    """Also if it is JSON of another type; a schema is JSON."""
    for name, text, value in (
        ("pattern", "[0, 1]", "[0, 1]"),
        ("pattern", "42", "42"),
        ("pattern", "a, b", "a, b"),
        ("pattern", "none", None),
        ("stop", "0", "0"),
        ("schema", "true", True),
        ("prompts", "8", 8),
    ):
        parser = Parser("headway train", "train", "")
        parser.add_argument("recipe")
        add_recipe(parser)
        assert parse_settings(parser.parse_args(["reward", f"--{name}", text]).set) == {f"task.{name}": value}


def test_several_processes_are_refused_before_anything_is_written(
    start: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Processes, "__enter__", lambda self: setattr(self, "world", 2) or self)
    with pytest.raises(
        UserError, match=r"reward trains on samples .* cannot be split over 2 processes; train with one"
    ):
        train(start, prompts, tmp_path / "run", set={"train.accumulate": 2, "train.batch_size": 8})
    assert not (tmp_path / "run").exists()


def test_rewards_need_a_model_to_start_from(prompts: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="can already answer; choose one with --from"):
        hw.train("reward", data=prompts, set={"task.reward": "regex"}, run=tmp_path / "run")
    assert RewardConfig().method == "grpo"
    assert RewardedPrompts.rollout_batches is not None


def test_a_prompt_is_the_message_of_a_user_if_there_is_a_template() -> None:
    codec = train_codec("byte", iter(["Say yes."]), special=(*ROLES, END_OF_TEXT))
    template = default_template(codec.special_tokens)
    chat = PromptEncoder(codec, Usage(template=template.text, ends=(7,)))
    assert chat.encode("Say yes.") == template.prompt(codec, [{"role": "user", "content": "Say yes."}])
    assert set(chat.limits(9, "!").stop_ids) == {codec.eos_id, 7}
    assert chat.limits(9, "!").stop == ("!",)
    plain = PromptEncoder(codec, Usage())
    assert codec.decode(plain.encode("Say yes.")).endswith("Say yes.")
    assert plain.encode("Say yes.")[0] == codec.bos_id
