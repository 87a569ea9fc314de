"""Laws of programs that read whole documents: they say what torch says, and what comes of a document depends on its
tokens alone.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from copy import deepcopy
from itertools import accumulate

import numpy as np
import pytest
import torch
from cases import FEED_FORWARDS, HEADS, MIXERS, NORMS, shake
from torch import Tensor

from headway.engine import CannotLowerError, Format, StackProgram, quantise
from headway.layout import Layout
from headway.nn.kernels import recording
from headway.nn.mixers import AttentionConfig, GRUConfig, MixerConfig
from headway.nn.models import BlockConfig, StackConfig
from headway.nn.models.block import ConvolutionConfig
from headway.nn.models.disentangled import DisentangledConfig
from headway.nn.models.score_biases import AlibiConfig, RelativeConfig, SmolgenConfig
from headway.nn.models.stack import BiasConfig, Stack
from headway.nn.parts.experts import ExpertsConfig
from headway.nn.parts.norm import LayerNormConfig
from headway.nn.parts.projection import Projection
from headway.visibility import Full, Prefix

WIDTH = 80  # a group of 64 columns, and another that is not full
BIASES: dict[str, BiasConfig] = {
    "alibi": AlibiConfig(HEADS),
    "relative": RelativeConfig(HEADS, 8, 16, both_ways=True),
    "disentangled": DisentangledConfig(HEADS, 20, 90, LayerNormConfig()),
    "disentangled-own": DisentangledConfig(HEADS, 3, None, content_to_position=False, shared=False),
    "smolgen": SmolgenConfig(HEADS, 20, 3, 12, 6),
}
ATTENTIONS: dict[str, MixerConfig] = {
    **{name: config for name, config in MIXERS.items() if name.startswith("attention")},
    "alibi-full": AttentionConfig(HEADS, pattern=Full(), bias="alibi"),
    "relative-full": AttentionConfig(HEADS, pattern=Full(), bias="relative", scale=1.0),
    "qk-norm-all": AttentionConfig(HEADS, pattern=Full(), qk_norm=LayerNormConfig(), qk_norm_over="all"),
}
REFUSED = ("attention-prefix", "attention-placed", "attention-placed-window")
LOWERED = [name for name in ATTENTIONS if name not in REFUSED]
FEEDS = [feed for name, feed in FEED_FORWARDS.items() if not name.startswith("experts")]
PLACEMENTS = ("pre", "post", "sandwich", "branch", "parallel", "none")


def stack_of(mixers: Sequence[MixerConfig], form: Format, start: int = 0) -> Stack:
    """Feed-forwards, norms and placements in turn."""
    norms, blocks = list(NORMS.values()), []
    for n, mixer in enumerate(mixers, start):
        around = {"placement": PLACEMENTS[n % len(PLACEMENTS)], "layer_scale": 0.7 if n % 4 == 1 else None}
        blocks.append(BlockConfig(mixer, None, FEEDS[n % len(FEEDS)], norms[n % len(norms)], **around))  # type: ignore[arg-type]
    used = {name: bias for name, bias in BIASES.items() if name in [getattr(mixer, "bias", None) for mixer in mixers]}
    stack = Stack(StackConfig(tuple(blocks), LayerNormConfig(), used), WIDTH)
    shake(stack)
    for parameter in stack.float().parameters():
        parameter.data *= (16 / WIDTH) ** 0.5 if parameter.dim() > 1 else 1
    quantise(stack.eval().requires_grad_(False), form)
    return stack


def documents(lengths: list[int], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(length, WIDTH, generator=generator) for length in lengths]


def padded(parts: list[Tensor]) -> tuple[Tensor, Layout]:
    layout = Layout.padded([len(part) for part in parts])
    x = torch.full((len(parts), layout.length, WIDTH), torch.nan)
    x[layout.mask] = torch.cat(parts)
    return x, layout


@pytest.mark.compiling
@pytest.mark.parametrize("number", range(len(LOWERED)))
def test_documents_are_read_as_torch_reads_them(number: int) -> None:
    """Padding is never looked at, though it be no number."""
    stack = stack_of([ATTENTIONS[LOWERED[number]]], "fp32", number)
    x, layout = padded(documents([1, 37, 6, 70, 12]))
    with torch.inference_mode():
        wanted = stack(x.nan_to_num(), layout).x
        stack.program = StackProgram(stack)
        found = stack(x, layout).x
    torch.testing.assert_close(found[layout.mask], wanted[layout.mask], rtol=1e-4, atol=3e-5)
    assert not found[~layout.mask].any()


def test_packed_documents_are_read_as_separate_ones() -> None:
    stack = stack_of([ATTENTIONS["attention-full"], ATTENTIONS["relative-full"]], "int8")
    stack.program = StackProgram(stack)
    parts = documents([5, 30, 2, 9, 40])
    layout = Layout.packed([[5, 30], [2, 9, 40]])
    x = torch.zeros(2, 51, WIDTH)
    x[layout.mask] = torch.cat(parts)
    with torch.inference_mode():
        found = stack(x, layout).x[layout.mask].split([5, 30, 2, 9, 40])
        for part, said in zip(parts, found):
            assert torch.equal(stack(part[None], Layout.full(1, len(part))).x[0], said)


def distance(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize(
    "name",
    ["attention", "attention-window", "attention-cap", "attention-sinks", "alibi-full", "attention-disentangled"],
)
def test_rounded_documents_are_as_near_to_fp32_as_torch_brings_them(name: str) -> None:
    """On a matrix unit attention is in bf16, and sees 256 keys at a time: that costs little beside rounding to int8."""
    x, layout = padded(documents([1, 37, 300, 600]))
    plain, rounded = (stack_of([ATTENTIONS[name]] * 2, form) for form in ("fp32", "int8"))
    with torch.inference_mode():
        wanted = plain(x.nan_to_num(), layout).x[layout.mask]
        by_torch = rounded(x.nan_to_num(), layout).x[layout.mask]
        rounded.program = StackProgram(rounded)
        found = rounded(x, layout).x[layout.mask]
    assert distance(found, wanted) < 1.1 * distance(by_torch, wanted)


@pytest.mark.parametrize("form", ["fp32", "int8"])
def test_boards_have_biases_of_their_own(form: Format) -> None:
    """Smolgen's, which all tokens of a board make together. In int8 the last bit of a number may decide which code it
    gets, so that results are compared with those of fp32.
    """
    plain, stack = (stack_of([AttentionConfig(HEADS, pattern=Full(), bias="smolgen")] * 2, f) for f in ("fp32", form))
    boards = torch.stack(documents([20] * 30))
    layout = Layout.full(30, 20)
    with torch.inference_mode():
        wanted = plain(boards, layout).x
        by_torch = stack(boards, layout).x
        stack.program = StackProgram(stack, threads=2)
        found = stack(boards, layout).x
        for n in (0, 7, 29):
            assert torch.equal(stack(boards[n : n + 1], Layout.full(1, 20)).x[0], found[n])
        assert not stack.program.fits(boards[:, :19], Layout.full(30, 19))
    assert distance(found, wanted) < max(1e-5, 1.1 * distance(by_torch, wanted))


@pytest.mark.parametrize("form", ["fp32", "int8", "int4"])
def test_a_document_says_what_it_says_alone(form: Format) -> None:
    """Bit for bit, in batches drawn at random, and with any number of threads."""
    stack = stack_of([ATTENTIONS[name] for name in LOWERED], form)
    draw = random.Random(0)
    lengths = [1, 2, 5, 6, 7, 16, 17, 31, 32, 33, 48, 49, 64, 65, 130, 300, 530]
    parts = documents(lengths)
    with torch.inference_mode():
        single = StackProgram(stack, threads=1)
        alone = [single.forward(part, np.array([len(part)])) for part in parts]
        for threads, most in ((1, 20), (2, 9), (2, 3), (3, 12), (64, 5)):
            program = StackProgram(stack, threads)
            some = [draw.randrange(len(parts)) for _ in range(draw.randint(2, most))]
            sizes = [lengths[n] for n in some]
            found = program.forward(torch.cat([parts[n] for n in some]), np.array(sizes))
            for n, end in zip(some, accumulate(sizes)):
                assert torch.equal(found[end - lengths[n] : end], alone[n])


def test_what_is_no_number_stays_in_its_document() -> None:
    stack = stack_of([ATTENTIONS["attention-full"]], "int8")
    program, parts = StackProgram(stack), documents([9, 14, 20])
    sizes = np.array([9, 14, 20])
    with torch.inference_mode():
        wanted = program.forward(torch.cat(parts), sizes)
        parts[1][3, 5] = torch.nan
        found = program.forward(torch.cat(parts), sizes)
    assert torch.equal(found[:9], wanted[:9])
    assert torch.equal(found[23:], wanted[23:])
    assert found[9:23].isnan().any(1).all()


def test_what_has_no_instruction_is_named() -> None:
    feed = ExpertsConfig(4, 2)
    with pytest.raises(CannotLowerError, match="experts"):
        StackProgram(Stack(StackConfig((BlockConfig(AttentionConfig(HEADS), None, feed),)), WIDTH))
    for mixer, name in ((GRUConfig(), "GRU"), (AttentionConfig(HEADS, pattern=Prefix(2)), "Prefix")):
        with pytest.raises(CannotLowerError, match=name):
            StackProgram(Stack(StackConfig((BlockConfig(mixer),)), WIDTH))
    block = BlockConfig(AttentionConfig(HEADS, pattern=Full()), convolution=ConvolutionConfig())
    with pytest.raises(CannotLowerError, match="ConvolvedBlock"):
        StackProgram(Stack(StackConfig((block,)), WIDTH))


def test_a_parameter_that_the_program_does_not_read_is_named() -> None:
    stack = stack_of([ATTENTIONS["attention"]], "int8")
    stack.blocks[0].mixer.register_module("extra", Projection(WIDTH, WIDTH))
    with pytest.raises(CannotLowerError, match=r"the parameter blocks\.0\.mixer\.extra\.weight"):
        StackProgram(stack)


def test_torch_reads_what_a_program_does_not() -> None:
    """What goes on from states, learns, sees groups, begins later, or is looked at while it attends."""
    stack = stack_of([ATTENTIONS["attention"]], "fp32")
    stack.program = program = StackProgram(stack)
    x, layout = torch.stack(documents([6, 6])), Layout.full(2, 6)
    assert program.fits(x, layout)
    assert not program.fits(x, Layout.full(2, 6, offset=3))
    assert not program.fits(x, Layout(layout.positions, group=torch.ones(2, 6, dtype=torch.long)))
    assert not program.fits(x.double(), layout)
    assert not program.fits(x.clone().requires_grad_(), layout)
    assert deepcopy(stack).program is None
    seen: list[Tensor] = []
    with recording(seen.append), torch.inference_mode():
        assert not program.fits(x, layout)
        wanted = stack(x, layout).x
    assert len(seen) == 1
    states = stack.initial_states(2, 6, like=x)
    with torch.inference_mode():
        torch.testing.assert_close(stack(x, layout, states).x, wanted)
        torch.testing.assert_close(stack(x, layout).x, wanted, rtol=1e-4, atol=3e-5)
    stack.train()
    assert not program.fits(x, layout)
