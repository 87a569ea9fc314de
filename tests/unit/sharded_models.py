"""Small models of every kind, each trained for a few steps by one process or by several that share its weights.

Run as a program it trains cases and writes what they learned: `sharded_models.py FILE REPLICAS SHARDS CASE ...`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from tiny_task import CountingConfig, CountOn, Counts, counting_recipe
from torch import nn

from headway.config import override
from headway.layout import Layout
from headway.learn import Task
from headway.learn.adapters import LoRAConfig, with_adapter
from headway.learn.examples import Batch
from headway.learn.learner import Learner
from headway.learn.objective import Objective, StatefulObjective
from headway.learn.optim import Muon
from headway.learn.parallel.processes import Processes
from headway.nn.mixers import AttentionConfig, CrossAttentionConfig, LSTMConfig
from headway.nn.models import (
    BlockConfig,
    CaptionerConfig,
    EncoderDecoderConfig,
    Loss,
    ModelConfig,
    Observations,
    PatchEmbedConfig,
    PooledHeadConfig,
    RegressionConfig,
    StackConfig,
    TransformerConfig,
    TwoTowerConfig,
    build,
    cycle,
)
from headway.nn.models.act import act
from headway.nn.models.chunks import Chunks
from headway.nn.models.score_biases import RelativeConfig
from headway.nn.models.seq2seq_presets import rnnsearch
from headway.nn.models.two_tower import HEAD
from headway.nn.parts.experts import ExpertsConfig
from headway.visibility import Full

STEPS, ACCUMULATE = 3, 2
_SYMBOLS = 11


class Case(NamedTuple):
    """`batch` makes batch k; `loss` is that of a model on it."""

    model: ModelConfig
    batch: Callable[[int], Any]
    loss: Callable[[nn.Module, Any], Loss]
    settings: Any = MappingProxyType({})


class _Drawn(Counts):
    def __init__(self, case: Case) -> None:
        super().__init__(CountingConfig(), 1)
        self.case = case

    def batch(self, k: int) -> Batch:
        return Batch((self.case.batch(k),), torch.zeros(1), 1, 1)


class _CaseLoss(Objective[Any]):
    def __init__(self, case: Case) -> None:
        self.case = case

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Loss]:
        return {"loss": self.case.loss(model, *batch.inputs)}


class _CountOnCarried(CountOn, StatefulObjective[Counts]):
    def initial_state(self, model: Any, rows: int) -> Any:
        return model.stack.initial_states(rows, 1, like=next(model.parameters()))

    def stateful_loss(self, model: Any, batch: Batch, states: Any) -> tuple[dict[str, Loss], Any]:
        states = self.initial_state(model, 4) if states is None else model.stack.carry(states)
        out = model(*batch.inputs, None, states)
        return {"next": model.heads["vocabulary"].loss(out.x, batch.targets)}, out.states


def _random(k: int) -> torch.Generator:
    return torch.Generator().manual_seed(k)


def _ids(k: int, rows: int = 3, length: int = 7) -> torch.Tensor:
    return torch.randint(_SYMBOLS, (rows, length), generator=_random(k))


def _count_on(model: Any, ids: torch.Tensor) -> Loss:
    out = model(ids[:, :-1])
    loss = model.heads["vocabulary"].loss(out.x, ids[:, 1:])
    return Loss(loss.total + sum(out.auxiliary.values()) * loss.count, loss.count)


def _translate(model: Any, ids: torch.Tensor) -> Loss:
    source, target = Layout.full(*ids.shape), Layout.full(ids.shape[0], ids.shape[1] - 1)
    out = model(ids, source, ids[:, :-1], target)
    return model.heads["vocabulary"].loss(out.x, ids[:, 1:])


def _images(k: int) -> torch.Tensor:
    return torch.randn(3, 3, 8, 8, generator=_random(k))


def _pair(model: Any, inputs: Any) -> Loss:
    images, ids = inputs
    logits = model.logits(model.vectors("left", images.to(model.scale)), model.vectors("right", ids))
    return Loss(nn.functional.cross_entropy(logits, torch.arange(3), reduction="sum"), 3)


def _caption(model: Any, inputs: Any) -> Loss:
    images, ids = inputs
    out = model(images.to(next(model.parameters())), ids[:, :-1], Layout.full(3, 6))
    return model.heads["vocabulary"].loss(out.x, ids[:, 1:])


def _demonstrate(model: Any, inputs: Any) -> Loss:
    states, actions = (part.to(next(model.parameters())) for part in inputs)
    chunks = Chunks(actions, torch.ones(actions.shape[:2], dtype=torch.bool))
    losses = model.losses(Observations(states), chunks, model.sample_noise(np.random.default_rng(0), 3))
    return Loss(sum(loss.total for loss in losses.values()), 3)  # type: ignore[arg-type]


def _states(k: int) -> Any:
    random = _random(k)
    return torch.randn(3, 5, generator=random), torch.randn(3, 6, 3, generator=random)


def _text(**settings: Any) -> Any:
    stack = StackConfig(blocks=(BlockConfig(),))
    return override(TransformerConfig(16, _SYMBOLS, stack=stack), {"depth": 3, "heads": 2, **settings})


def _stack(config: Any, **settings: Any) -> Any:
    """The model with other settings of its stack."""
    return replace(config, stack=replace(config.stack, **settings))


_FULL = AttentionConfig(2, pattern=Full())
_PATCHES = replace(
    _stack(_text(), blocks=cycle((BlockConfig(_FULL),), 2)),
    vocab_size=0,
    embed=PatchEmbedConfig((4, 4), (8, 8)),
    heads={},
    tie="none",
)
_EMBEDDING: Any = {HEAD: PooledHeadConfig(8)}
_RELATIVE = {"distance": RelativeConfig(2, 8, 16)}
_T5 = EncoderDecoderConfig(
    _stack(_text(), blocks=cycle((BlockConfig(replace(_FULL, bias="distance")),), 2), biases=_RELATIVE),
    _stack(
        _text(),
        blocks=cycle((BlockConfig(AttentionConfig(2, bias="distance"), CrossAttentionConfig(2)),), 2),
        biases=_RELATIVE,
    ),
)
_ROBOT = act(width=16, depth=2, decoder=2, posterior=1, heads=2, chunk=6, dropout=0.0, head=RegressionConfig(latent=0))
_LSTM = LSTMConfig(learned_start=True)

CASES: dict[str, Case] = {
    "text": Case(_text(), _ids, _count_on, {"ema": 0.9, "optim": "adamw", "accumulate": 4}),
    "recomputed": Case(_text(dropout=0.2), _ids, _count_on, {"recompute": 2}),
    "muon": Case(_text(tie="none"), _ids, _count_on, {"optim": "muon", "clip": 0.5}),
    "experts": Case(
        _stack(_text(), blocks=cycle((BlockConfig(feed_forward=ExpertsConfig(4, 1)),), 2)),
        _ids,
        _count_on,
        {"optim": "muon"},
    ),
    "shared blocks": Case(_stack(_text(), shared=True), _ids, _count_on),
    "lora": Case(_text(), _ids, _count_on, {"adapter": LoRAConfig(2), "optim": "muon"}),
    "frozen": Case(_text(), _ids, _count_on, {"frozen": ("embed", "stack.blocks.0")}),
    "only the head": Case(_text(tie="none"), _ids, _count_on, {"frozen": ("embed", "stack")}),
    "lstm": Case(_stack(_text(), blocks=cycle((BlockConfig(_LSTM),), 2)), _ids, _count_on, {"optim": "sgd"}),
    "carried lstm": Case(_stack(_text(), blocks=cycle((BlockConfig(_LSTM),), 2)), _ids, _count_on),
    "translation": Case(_T5, _ids, _translate, {"optim": "muon"}),
    "rnnsearch": Case(rnnsearch(16, 16, _SYMBOLS, 8), _ids, _translate),
    "towers": Case(
        TwoTowerConfig(replace(_PATCHES, heads=_EMBEDDING), replace(_text(), heads=_EMBEDDING, tie="none"), bias=0.0),
        lambda k: (_images(k), _ids(k)),
        _pair,
    ),
    "captioner": Case(CaptionerConfig(_PATCHES, _text()), lambda k: (_images(k), _ids(k)), _caption),
    "robot": Case(replace(_ROBOT, actions=3, observation=replace(_ROBOT.observation, states=5)), _states, _demonstrate),
}


def learn(name: str, replicas: int = 1, shards: int = 1, exact: bool = False) -> dict[str, Any]:
    """Losses, norms and weights after a few steps: exact in fp32, otherwise in float64. Only the main process has the
    weights.
    """
    case = CASES[name]
    settings = {"accumulate": ACCUMULATE, "steps": STEPS, "parallel.exact": exact, **case.settings}
    settings |= {"parallel.shard": shards, "parallel.replicas": replicas} if replicas * shards > 1 else {}
    adapter = settings.pop("adapter", None)
    recipe = replace(counting_recipe(**settings), model=case.model, adapter=adapter)
    carried = name.startswith("carried")
    examples = Counts(CountingConfig(), 1) if carried else _Drawn(case)
    task = Task(examples, _CountOnCarried() if carried else _CaseLoss(case))
    processes = Processes(torch.device("cpu"))
    model = with_adapter(build(case.model, 5), recipe.adapter, (), 1).to(torch.float32 if exact else torch.float64)
    for key, parameter in model.named_parameters():
        if any(key.startswith(part) for part in recipe.train.frozen):
            parameter.requires_grad_(False)
    learner = Learner(model, recipe, task, processes)
    accumulate = recipe.train.accumulate
    stream = task.batches("train", processes.shard(accumulate))
    updates = []
    for step in range(STEPS):
        batches = [next(stream) for _ in range(processes.local_micro_batches(accumulate))]
        updates.append(learner.update(step, batches))
    losses = [total / count for update in updates for total, count in update.losses().values()]
    with learner.evaluating() as trained:
        weights = {key: tensor.clone() for key, tensor in trained.state_dict().items()} if processes.is_main else {}
    rule = learner.optimizer.rules[0]
    matrices = sorted(rule.names) if isinstance(rule, Muon) else []
    return {
        "losses": losses,
        "norms": [float(update.norm) for update in updates],
        "weights": weights,
        "matrices": matrices,
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    file, replicas, shards, *names = sys.argv[1:]
    with Processes(torch.device("cpu")) as group:  # which `learn` joins, too
        runs = [(name, exact) for name in names for exact in (False, True)]
        learned = {f"{name} {exact}": learn(name, int(replicas), int(shards), exact) for name, exact in runs}
        if group.is_main:
            torch.save(learned, Path(file))
