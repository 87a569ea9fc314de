"""Encoders whose weights are packed are read by programs: the real MiniLM, towers, Whisper's, boards."""

from __future__ import annotations

import csv
from pathlib import Path

import torch
import whisper_models
from torch import Tensor

import headway as hw
from headway.domains.chess.boards import chess
from headway.domains.chess.evaluator import BoardEvaluator, position_input
from headway.engine import quantise, use_programs
from headway.layout import Layout
from headway.nn.models import Transformer, TwoTower, build
from headway.nn.models.presets import clip, siglip, squares, vit
from headway.nn.models.stack import Stack


def stacks(model: torch.nn.Module) -> list[Stack]:
    return [module for module in model.modules() if isinstance(module, Stack)]


def near(found: Tensor, wanted: Tensor, least: float = 0.999) -> bool:
    """By the cosines of what stands in the last dimension."""
    return bool((torch.cosine_similarity(found, wanted, dim=-1) > least).all())


def test_minilm_in_int8_says_what_it_says_in_fp32(minilm: Path, data_dir: Path) -> None:
    with (data_dir / "textcls" / "banking77" / "test.csv").open(encoding="utf-8", newline="") as file:
        texts = [row[0] for row in csv.reader(file)][1:60]
    plain, rounded = hw.load(minilm, "cpu"), hw.load(minilm, "cpu", "int8")
    assert [stack.program for stack in stacks(plain.module)] == [None]
    [program] = [stack.program for stack in stacks(rounded.module)]
    assert program is not None
    wanted, found = plain.embed(texts), rounded.embed(texts)
    assert near(found, wanted, least=0.998)
    assert torch.cosine_similarity(found, wanted, dim=-1).mean() > 0.999
    x, layout = torch.randn(3, 8, 384, generator=torch.Generator().manual_seed(0)), Layout.padded([8, 2, 5])
    with torch.inference_mode():
        together = rounded.module.stack(x, layout).x
        alone = rounded.module.stack(x[1:2, :2], Layout.full(1, 2)).x
    assert torch.equal(together[1:2, :2], alone)


def test_the_backend_torch_leaves_programs_out(minilm: Path) -> None:
    model = hw.load(minilm, "cpu", "int8", backend="torch")
    assert [stack.program for stack in stacks(model.module)] == [None]


def test_towers_of_images_and_texts() -> None:
    """CLIP's texts see only what came before; SigLIP's are filled up, and its images pooled by a probe."""
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(3, 3, 32, 32, generator=draw)
    ids = torch.randint(1, 90, (4, 12), generator=draw)
    for config in (
        clip((64, 2, 4), (48, 2, 4), 24, 8, 32, 91, 12),
        siglip((64, 2, 4), 8, 32, 91, 12),
    ):
        model = build(config).eval().requires_grad_(False)
        assert isinstance(model, TwoTower)
        ids[:, 7] = 90
        with torch.inference_mode():
            wanted = model.vectors("left", images), model.vectors("right", ids)
            use_programs(quantise(model, "int8"))
            assert all(stack.program is not None for stack in stacks(model))
            found = model.vectors("left", images), model.vectors("right", ids)
        assert all(near(*pair, least=0.995) for pair in zip(found, wanted))


def test_classes_of_images() -> None:
    model = build(vit(64, 3, 4, 8, 10, 32)).eval().requires_grad_(False)
    assert isinstance(model, Transformer)
    images = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        wanted = model(images).x
        use_programs(quantise(model, "int8"))
        assert model.stack.program is not None
        assert near(model(images).x, wanted, least=0.995)


def test_what_whispers_encoder_hears() -> None:
    model = whisper_models.model().float().eval().requires_grad_(False)
    frames = whisper_models.noise(2 * whisper_models.POSITIONS * whisper_models.BANDS).view(1, -1, whisper_models.BANDS)
    layout = Layout.full(1, frames.shape[1])
    with torch.inference_mode():
        wanted = model.encoder(frames, layout).x
        use_programs(quantise(model, "int8"))
        assert model.encoder.stack.program is not None
        assert model.decoder.stack.program is None  # it reads an encoder
        assert near(model.encoder(frames, layout).x, wanted, least=0.995)


def test_boards_are_judged_as_in_fp32() -> None:
    config = squares(width=64, depth=2, heads=4)
    plain, rounded = (build(config).eval().requires_grad_(False) for _ in range(2))
    use_programs(quantise(rounded, "int8"))
    assert isinstance(plain, Transformer)
    assert isinstance(rounded, Transformer)
    assert rounded.stack.program is not None
    boards = [chess.Board(), chess.Board("r1bqkb1r/pppp1ppp/2n2n2/4p2Q/2B1P3/8/PPPP1PPP/RNB1K1NR w KQkq - 4 4")]
    places = [position_input(board, 1) for board in boards]
    for wanted, found in zip(BoardEvaluator(plain).evaluate(places), BoardEvaluator(rounded).evaluate(places)):
        assert wanted.policy is not None
        assert found.policy is not None
        assert abs(wanted.policy - found.policy).max() < 0.02
        assert wanted.outcome is not None
        assert found.outcome is not None
        assert abs(wanted.outcome - found.outcome).max() < 0.02
