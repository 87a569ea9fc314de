"""Instruction tuning over real questions: what is learnt, in which rows, and the runs."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from chat_data import chats, choices, opened, small, train, write
from tiny_models import overfit
from tiny_runs import cut_back, publish, weights

from headway.codecs import load_codec
from headway.data import IGNORE_INDEX
from headway.domains.chat.recipes import SCALES, instruct, preference
from headway.domains.chat.task import replies
from headway.formats.open import open_model
from headway.formats.usage import read_usage
from headway.learn import Recipe, Shard
from headway.learn.plan.scale import held_out_shares
from headway.nn.models import build

TEMPLATE = """\
{% for m in messages %}<|{{ m.role }}|>
{%- if m.role == "assistant" %}{% generation %}{{ m.content + eos_token }}{% endgeneration %}
{%- else %}{{ m.content }}{% endif %}
{%- endfor %}"""


@pytest.fixture(autouse=True)
def _no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages of runs have tests of their own, and take as long as these runs."""
    monkeypatch.setattr("headway.app.api.available", lambda: False)


@pytest.fixture
def told(data_dir: Path, tmp_path: Path) -> Path:
    return write(tmp_path / "chats.jsonl", chats(data_dir))


def test_only_what_the_assistant_says_is_learnt(told: Path, data_dir: Path) -> None:
    task = opened(small(instruct()), told)
    rows, examples = chats(data_dir), task.examples
    batch = next(task.batches("train"))
    inputs, layout = batch.inputs
    learnt = (batch.targets != IGNORE_INDEX).nonzero()
    assert batch.tokens == len(learnt) > 0
    for row, place in learnt[learnt[:, 1] < inputs.shape[1] - 1].tolist():
        ends = layout.positions[row, place + 1] < 1  # the last symbol of a conversation is no input
        assert ends or batch.targets[row, place] == inputs[row, place + 1]
    for number in examples.rows_of("train").tolist()[:20]:
        ids, marks = examples.cache.chat(number)
        text = examples.codec.decode(ids[marks == 1].tolist())
        answers = [m["content"] for m in rows[number]["messages"] if m["role"] == "assistant"]
        assert text == "".join(answers)
        ends = ids[np.flatnonzero(np.diff(marks.astype(int), append=0) == -1)]
        assert set(ends.tolist()) == {examples.codec.eos_id}


def test_rows_hold_whole_conversations_kept_apart(told: Path) -> None:
    """Each row is conversations one after the other; their losses are those of each alone."""
    recipe = small(instruct())
    task = opened(recipe, told)
    model = build(task.adapt(recipe.model), seed=3).eval()
    batch = next(task.batches("validation"))
    held_out = task.examples.rows_of("validation").tolist()
    assert int((batch.inputs[1].positions == 0).sum()) == len(held_out)
    together = task.loss(model, batch)["loss"]
    alone, count = 0.0, 0
    for number in held_out:
        ids, marks = (torch.from_numpy(part.astype(np.int64)) for part in task.examples.cache.chat(number))
        with torch.no_grad():
            logits = model.logits(ids[None, :-1])[0]
        nats = F.cross_entropy(logits, ids[1:], reduction="none")
        alone, count = alone + float(nats[marks[1:] == 1].sum()), count + int(marks[1:].sum())
    assert together.count == count
    assert float(together.total.detach()) == pytest.approx(alone, rel=1e-5)
    scores = task.evaluate(model)
    assert scores["loss"] == pytest.approx(alone / count, rel=1e-5)
    assert scores["perplexity"] == pytest.approx(math.exp(alone / count), rel=1e-5)
    assert scores["samples"] == len(held_out)


@pytest.mark.parametrize("recipe", [instruct(), preference()])
def test_batches_are_a_pure_function_of_seed_and_index(recipe: Recipe, data_dir: Path, tmp_path: Path) -> None:
    rows = chats(data_dir) if recipe.name == "instruct" else choices(data_dir)
    task = opened(small(recipe), write(tmp_path / "data.jsonl", rows))
    task.adapt(small(recipe).model)
    first = [batch.inputs[0].tolist() for batch in islice(task.batches("train"), 20)]
    assert [batch.inputs[0].tolist() for batch in islice(task.batches("train", start=12), 8)] == first[12:]
    sharded = [islice(task.batches("train", Shard(rank, 2)), 10) for rank in range(2)]
    assert [batch.inputs[0].tolist() for two in zip(*sharded) for batch in two] == first


def test_it_overfits_one_batch_and_answers(told: Path, data_dir: Path) -> None:
    recipe = small(instruct(), **{"train.batch_tokens": 320})
    task = opened(recipe, told)
    model, batch, loss = overfit(task, recipe, 80)
    assert loss < 0.1
    examples, inputs = task.examples, batch.inputs[0]
    known = [n for n in examples.rows_of("train").tolist() if torch.isin(_row(examples, n), inputs).all()]
    seen = [n for n in known if any(_holds(row, _row(examples, n)) for row in inputs)]
    assert seen
    assert list(replies(model, examples, seen[:4])) == [examples.reply(n) for n in seen[:4]]


def _row(examples: Any, number: int) -> torch.Tensor:
    return torch.from_numpy(examples.cache.chat(number)[0][:-1].astype(np.int64))


def _holds(row: torch.Tensor, part: torch.Tensor) -> bool:
    return any(torch.equal(found, part) for found in row.unfold(0, len(part), 1)) if len(part) <= len(row) else False


def test_a_run_is_resumed_to_the_bit_and_keeps_its_template(told: Path, tmp_path: Path) -> None:
    run = train(tmp_path / "run", told, small(instruct()), samples=2)
    usage = read_usage(run.directory)
    codec = load_codec(run.directory)
    assert codec.eos_id in usage.ends
    assert "<|" in (usage.template or "")
    copy = cut_back(run.directory, tmp_path / "copy", 3)
    train(copy, told, small(instruct()), resume=True)
    first, second = weights(run.directory), weights(copy)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert run.summary["scores"]["split"] == "test"
    assert run.summary["samples"][0].keys() == {"prompt", "output", "reference"}


def test_roles_are_symbols_of_a_codec_that_is_trained_here(told: Path) -> None:
    task = opened(small(instruct()), told)
    ids, _ = task.examples.cache.chat(0)
    assert {task.examples.codec.token_id(f"<|{role}|>") for role in ("system", "user", "assistant")} <= set(
        ids.tolist()
    )


@pytest.mark.parametrize("lora", [None, 4])
def test_a_published_model_is_taught_its_own_template(
    lora: int | None, told: Path, data_dir: Path, tmp_path: Path
) -> None:
    start = publish(told, tmp_path / "start", "gpt2", context=256)
    (start / "chat_template.jinja").write_text(TEMPLATE)
    settings = {"task.context": 256, "optim.lr": 0.01}
    run = train(tmp_path / "run", told, small(instruct()), start=start, lora=lora, set=settings)
    assert read_usage(run.directory).template == TEMPLATE
    examples = opened(replace(small(instruct()), start=str(start)), told, run.directory).examples
    ids, marks = examples.cache.chat(1)
    row = chats(data_dir)[1]["messages"]
    assert examples.codec.decode(ids.tolist()) == "".join(f"<|{m['role']}|>{m['content']}" for m in row)
    assert ids[marks == 1][-1] == examples.codec.eos_id
    before, after = open_model(start).model.state_dict(), open_model(run.directory).model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert any(name.startswith("embed") for name in moved) == (lora is None)


@pytest.mark.parametrize("recipe", [instruct(), preference()])
def test_few_conversations_from_a_model_get_rows_that_hold_them_and_a_validation_part(
    recipe: Recipe, data_dir: Path, tmp_path: Path
) -> None:
    """50 with 5 % held out have no validation part in some draws; rows of 512 tokens hold four of them in a batch."""
    rows = chats(data_dir, 50) if recipe.name == "instruct" else choices(data_dir, 50)
    known = small(recipe, **{"task.context": 160})
    task = opened(known, write(tmp_path / "few.jsonl", rows))
    settings = SCALES[recipe.name].tuning_data_settings(known, task)
    longest = int(task.examples.cache.lengths.max()) - 1
    assert settings["task.context"] == next(size for size in (128, 256) if longest <= size)
    assert settings["task.split.validation"] == 0.15
    many = held_out_shares(10_000)
    assert many["task.split.validation"] == 0.05
