"""A training step gives a GPU all its work without waiting for it, shown on a simulated device."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from headway.app.recipes import configure_recipe
from headway.bench import headway_runner
from headway.bench.benchmark import Contender, prepare_models
from headway.bench.measurement import BenchJob
from headway.generate import Limits, Sampling
from headway.generate.scheduler import Request, Scheduler
from headway.layout import Layout, to_device
from headway.learn import Recipe, Task
from headway.learn.fine_tuning import adapted_model
from headway.learn.learner import Learner, Update, attach_generator
from headway.learn.parallel.processes import Processes
from headway.learn.recipe import open_task
from headway.nn.kernels import View, attend, deterministic, true_indices
from headway.nn.mixers import AttentionConfig
from headway.nn.models import BlockConfig, StackConfig, Transformer, TransformerConfig, build
from headway.nn.models.presets import gpt, marian
from headway.nn.models.score_biases import AlibiConfig
from headway.nn.models.stack import BiasConfig
from headway.nn.parts.positions import RotaryConfig
from headway.visibility import Causal, Full
from simulated_gpu import Waits, device

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from same_cases import CARRIED, FEW, OFFLINE, ONLINE, SMALL, TEXT
from samples import drawn

# Each objective, and what differs inside a step: data, and settings.
STEPS: dict[str, tuple[str, str | None, Mapping[str, Any]]] = {
    "next token": ("text", "text", TEXT),
    "next token, accumulated": ("text", "text", {**TEXT, "train.accumulate": 2}),
    "next token, carried LSTM": ("text", "text", {**TEXT, **CARRIED, "model.mixer": "lstm"}),
    "next token, delta": ("text", "text", {**TEXT, "model.mixer": "delta"}),
    "masked": ("masked", "masked", TEXT),
    "masked, sentence pairs": ("masked", "masked", {**TEXT, "task.next": True, "task.context": 32}),
    "masked, contrast": ("masked", "masked", {**TEXT, "task.contrast": 0.3}),
    "chat": ("instruct", "instruct", TEXT),
    "preference": ("preference", "preference", TEXT),
    "preference, ORPO": ("preference", "preference", {**TEXT, "task.loss": "orpo"}),
    "translation": ("translation", "translation", TEXT),
    "translation, LSTM": ("translation", "translation", {**TEXT, "model.mixer": "lstm"}),
    "classes of texts": ("classification", "classification", TEXT),
    "classes of pairs": ("pairs", "pairs", TEXT),
    "tags": ("tagging", "tagging", TEXT),
    "vectors of texts": ("embedding", "embedding", TEXT),
    "classes of images": ("vision", "vision", SMALL),
    "hidden patches": ("masked-images", "vision", {**SMALL, "train.batch_size": 8}),
    "classes of sounds": ("audio", "audio", SMALL),
    "transcription": ("transcription", "transcription", {**SMALL, "task.beam": 1}),
    "images and texts": ("image-text", "image-text", {"train.batch_size": 8}),
    "captions": ("caption", "caption", {**FEW, **SMALL}),
    "trajectories": ("trajectories", "trajectories", OFFLINE),
    "robot policies": ("robotics", "robotics", {**OFFLINE, "task.split.validation": 0.2}),
    "forecasts": ("forecast", "forecast", {}),
    "chess, moves and outcomes": ("chess", "chess", SMALL),
    "chess, bins": ("chess-searchless", "chess", {**SMALL, "task.target": "behaviour"}),
    "clipped policy": ("ppo", None, {**ONLINE, "task.env": "CartPole-v1"}),
}
device()  # registered before any test computes gradients, because autograd starts its threads once per process
SAMPLES = {"trajectories": 3000, "robotics": 3000, "forecast": 600, "transcription": 40}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("waits")


def opened(folder: Path, name: str, settings: Mapping[str, Any] | None = None) -> tuple[Recipe, Task]:
    recipe_name, data, own = STEPS[name]
    count = SAMPLES.get(data or "", 120)
    paths = None if data is None else drawn(data, count, folder / f"{data}-{count}")
    recipe = configure_recipe(recipe_name, paths, {"train.precision": "fp32", **own, **(settings or {})}, None)
    (workspace := folder / name).mkdir(exist_ok=True)
    task = open_task(recipe, workspace)
    return replace(recipe, model=adapted_model(recipe, task), task=replace(recipe.task, **task.chosen_settings)), task


def two_steps(recipe: Recipe, task: Task, where: torch.device, waits: Counter[str] | None = None) -> Update:
    """The first of two steps of a new learner; `waits` counts operations of the second."""
    learner = Learner(build(recipe.model, 1), recipe, task, Processes(where))
    stream = task.batches("train")
    steps = [[next(stream) for _ in range(recipe.train.accumulate)] for _ in range(2)]
    update = learner.update(0, steps[0])
    if waits is not None:
        waits.clear()
    learner.update(1, steps[1])
    return update


@pytest.mark.parametrize("name", STEPS)
def test_a_training_step_does_not_wait_for_the_gpu(folder: Path, name: str) -> None:
    """Its losses are those of the CPU."""
    recipe, task = opened(folder, name)
    try:
        with Waits() as waits:
            update = two_steps(recipe, task, device(), waits.counts)
            assert not waits.counts
            losses = update.losses()
        if task.examples.data_splits is None:
            return  # an agent plays on, so another learner has other samples
        expected = two_steps(recipe, task, torch.device("cpu")).losses()
        for loss, (total, count) in expected.items():
            assert losses[loss] == (pytest.approx(total, rel=1e-5, abs=1e-6), count), loss
    finally:
        task.close()


def test_a_step_with_exact_sums_waits_once(folder: Path) -> None:
    """For the largest gradients, which decide whether the step is repeated. Its weights are those of the CPU."""
    recipe, task = opened(folder, "next token", {"parallel.exact": True, "optim": "adamw", "train.accumulate": 2})
    with Waits() as waits:
        update = two_steps(recipe, task, device(), waits.counts)
        assert waits.total == 1
        norm = float(update.norm)
    assert norm == pytest.approx(float(two_steps(recipe, task, torch.device("cpu")).norm), rel=1e-5)


class Shapes(Waits):
    """The shapes of the floating-point tensors that a program computes on the device."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_dispatch__(func, types, args, kwargs)
        tensors = [x for x in tree_leaves(result) if isinstance(x, Tensor) and x.is_floating_point()]
        self.shapes |= {tuple(x.shape) for x in tensors if x.device.type == "sim"}
        return result


def on_cuda(model: nn.Module, where: torch.device, exact: bool) -> torch.Generator:
    """As on a GPU of CUDA, where the simulated device has no generator of its own."""
    return attach_generator(model, "cpu" if exact else "cuda:0", exact)


@pytest.mark.parametrize("packing", ["windows", "documents"])
@pytest.mark.parametrize("is_exact", [False, True])
def test_attention_dropout_stores_no_scores_on_a_gpu(
    folder: Path, monkeypatch: pytest.MonkeyPatch, packing: str, is_exact: bool
) -> None:
    """Fused kernels sample it, from a generator that the learner seeds; with exact sums it is that of each device."""
    monkeypatch.setattr("headway.learn.learner.attach_generator", on_cuda)
    monkeypatch.setattr("torch.cuda.default_generators", (torch.default_generator,))
    settings = {
        "task.context": 24, "task.packing": packing, "model.width": 32, "model.heads": 4, "model.depth": 2,
        "train.batch_tokens": 96, "parallel.exact": is_exact, "optim": "adamw",
    }  # fmt: skip
    recipe, task = opened(folder, "next token", settings)
    blocks = tuple(
        replace(block, mixer=replace(block.mixer, dropout=0.3, kv_heads=2))
        for block in recipe.model.stack.blocks  # type: ignore[union-attr]
    )
    stack = replace(recipe.model.stack, blocks=blocks)  # type: ignore[union-attr]
    recipe = replace(recipe, model=replace(recipe.model, stack=stack))  # type: ignore[type-var]
    updates = []
    for seed in (1, 1, 2):
        with torch.random.fork_rng([]), Shapes() as log:
            torch.manual_seed(len(updates))  # the learner's own seed counts
            step = replace(recipe, train=replace(recipe.train, seed=seed))
            update = two_steps(step, task, device(), log.counts)
            assert log.total == int(is_exact)
            updates.append(float(update.norm))
        scores = {shape for shape in log.shapes if len(shape) == 4 and shape[1] in (2, 4) and shape[2:] == (24, 24)}
        assert bool(scores) == is_exact, scores
    assert updates[0] == updates[1] != updates[2]


def test_fused_dropout_has_the_expectation_and_the_gradient_of_attention() -> None:
    generator, view = torch.Generator().manual_seed(0), View(Full(), Layout.full(1, 5), Layout.full(1, 5))
    inputs = [torch.randn(1, 5, heads, 8, generator=generator) for heads in (4, 2, 2)]
    with torch.random.fork_rng([]), Waits():
        q, k, v = (to_device(x, device()).requires_grad_() for x in inputs)
        torch.manual_seed(0)
        found = torch.stack([attend(q, k, v, view, dropout=0.3) for _ in range(200)]).mean(0)
        found.sum().backward()
        results = [x.cpu() for x in (found.detach(), q.grad, k.grad, v.grad) if x is not None]
    q, k, v = (x.requires_grad_() for x in inputs)
    expected = attend(q, k, v, view)
    expected.sum().backward()
    for one, other in zip(results, (expected.detach(), q.grad, k.grad, v.grad)):
        torch.testing.assert_close(one, other, rtol=0, atol=0.15)


def test_the_simulated_gpu_counts_what_waits() -> None:
    x = torch.arange(4.0)
    lazy = {"a": lambda y: y.sum(), "b": lambda y: y[:2] * 2, "c": lambda y: y.index_fill(0, y.argsort()[:1], 0.0)}
    waiting = {
        "item": lambda y: y.sum().item(),
        "bool": lambda y: bool(y[0] > 1),
        "nonzero": lambda y: y.nonzero(),
        "masked_select": lambda y: y.masked_select(y > 1),
        "a mask": lambda y: y[y > 1],
        "unique": lambda y: y.unique(),
        "bincount": lambda y: y.long().bincount(),
        "repeats": lambda y: y.repeat_interleave(y.long()),
        "tolist": lambda y: y.tolist(),
        "a copy from the device": lambda y: y.cpu(),
        "a copy to the device": lambda y: x.to(y.device),
        "a copy from pageable memory": lambda y: x.to(y.device, non_blocking=True),
        "indices of the host": lambda y: y[torch.tensor([1, 2])],
        "a list": lambda y: torch.tensor([1.0, 2.0], device=y.device),
    }
    with Waits() as waits:
        y = to_device(x, device())
        assert not waits.counts
        for name, use in lazy.items():
            use(y)
            assert not waits.counts, name
        for name, use in waiting.items():
            waits.counts.clear()
            use(y)
            assert waits.total == 1, name
        with pytest.raises(RuntimeError, match="two devices"):
            _ = y + x


def test_layouts_compute_on_the_host_what_a_program_must_know() -> None:
    padded = Layout.padded([3, 1])
    with Waits() as waits:
        copied = padded.to(device())
        assert copied.host is padded
        assert copied.single
        assert not waits.counts
        assert isinstance(copied.positions, Tensor)
        assert copied.positions.tolist() == padded.positions.tolist()
        assert true_indices(copied.mask.flatten(), 4).tolist() == [0, 1, 2, 3]


DECODERS = {
    "grouped heads, rotary": {"heads": 4, "kv_heads": 2, "rotary": RotaryConfig()},
    "window": {"heads": 2, "pattern": Causal(3)},
    "bias": {"heads": 2, "bias": "alibi"},
}
SAMPLINGS = {
    "greedy": Sampling(0),
    "nucleus": Sampling(top_p=0.9, top_k=9, seed=1),
    "penalties": Sampling(repetition_penalty=1.2, logit_bias={3: 1.0}, seed=1),
}


def decoder(name: str) -> Transformer:
    attention = AttentionConfig(**DECODERS[name])
    biases: dict[str, BiasConfig] = {"alibi": AlibiConfig(2)} if attention.bias else {}
    config = TransformerConfig(16, 23, None, StackConfig((BlockConfig(attention),) * 2, biases=biases))
    model = config.build(1)
    for parameter in model.parameters():
        parameter.data.mul_(3)
    return model.eval()


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_a_decoding_step_waits_once(name: str, sampling: str) -> None:
    """Rows of different lengths, of which some end early, write what the CPU writes."""
    prompts, settings = [[3, 4, 5, 6, 7, 8, 2], [9, 8], [1]], SAMPLINGS[sampling]

    def written(model: Transformer, waits: Waits | None) -> list[list[int]]:
        scheduler, counts = Scheduler(model), []
        for number, prompt in enumerate(prompts):
            scheduler.submit(Request(prompt, settings, Limits(9 - 3 * number), top=2), keys=[number])
        ids: list[list[int]] = [[] for _ in prompts]
        while events := scheduler.step():
            counts.append(0 if waits is None else waits.total)
            if waits is not None:
                assert waits.total == 1 or len(counts) == 1, waits.counts  # the first step reads the prompts
                waits.clear()
            for event in events:
                ids[event.ticket - 1] += [] if event.id is None else [event.id]
        return ids

    expected = written(decoder(name), None)
    with Waits() as waits:
        model = decoder(name).to(device())
        waits.clear()
        assert written(model, waits) == expected
    assert [len(ids) for ids in expected] == [9, 6, 3]


def test_torch_writes_the_same_bits_for_requests_that_share_a_batch() -> None:
    prompts, owners = [[3, 4, 5, 6, 7, 8, 2], [9, 8], [1], [5, 5, 5, 5]], ["a", "b", "a", "c"]
    samplings = [*SAMPLINGS.values(), Sampling(0.7, seed=5)]

    def written(together: bool) -> dict[int, list[tuple[int | None, float]]]:
        model, found = decoder("grouped heads, rotary"), dict[int, list[tuple[int | None, float]]]()
        scheduler = Scheduler(model)
        for number, (prompt, owner, sampling) in enumerate(zip(prompts, owners, samplings)):
            ticket = scheduler.submit(Request(prompt, sampling, Limits(5 + number), n=2, owner=owner))
            if number == 1:
                scheduler.cancel(scheduler.submit(Request(prompt, sampling)))
            found[ticket] = []
            if not together or number == 3:
                while events := scheduler.step():
                    for event in events:
                        found[event.ticket].append((event.id, event.logprob))
        return {number: sorted(tokens, key=str) for number, tokens in enumerate(found.values())}

    with deterministic():
        assert written(True) == written(False)


@pytest.mark.parametrize(
    ("kind", "form"),
    [("decode", "bf16"), ("prefill", "int4"), ("translate", "fp32"), ("train", "fp32"), ("load", "int8")],
)
def test_each_benchmark_runs_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Any, form: str) -> None:
    """Its clock starts and stops when the GPU has done its work."""
    config = marian(32, 1, 2, 64, 60) if kind == "translate" else gpt(64, 1, 2, vocab_size=40, context=520)
    prepare_models(kind, config, 0, [Contender("headway", form)], tmp_path)
    synchronised: list[str] = []
    monkeypatch.setattr("headway.bench.measurement._MIN_SECONDS", 0.0)
    monkeypatch.setattr("torch.accelerator.synchronize", synchronised.append)
    context = 16 if kind == "train" else config.context
    job = BenchJob(kind, form, str(tmp_path), 2, torch.get_num_threads(), 0, config.vocab_size, context, device="sim:0")
    with Waits():
        measured = headway_runner.measure(job)
    assert all(value > 0 for value in measured.values())
    assert synchronised == ["sim:0", "sim:0"]
