"""Laws of what the CPU engine keeps of the past: in blocks, in fp32, fp16 or int8, and no longer than it is seen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from cases import BIASES, HEADS, MIXERS, WIDTH, ids, seq2seq
from test_engine import LOWERED, follow, lowered, ready
from torch import Tensor

from headway.engine import Engine, EngineDecoding, RowChunk, quantise
from headway.engine.means import mean_by_position
from headway.engine.operations import BLOCK
from headway.formats.llama2c import load_llama2c
from headway.generate import Limits, Sampling, Session
from headway.layout import Layout
from headway.nn.mixers import AttentionConfig, CrossAttentionConfig
from headway.nn.mixers.attention import KeyValues, SelfAttention
from headway.nn.mixers.cross import ProjectedMemory
from headway.nn.models import (
    BlockConfig,
    CacheDtype,
    EncoderDecoder,
    Prompt,
    StackConfig,
    Transformer,
    TransformerConfig,
)
from headway.nn.models.block import Block
from headway.nn.parts.positions import RotaryConfig
from headway.visibility import Causal

CACHES: list[CacheDtype] = ["fp32", "fp16", "int8"]
WHOLE_AND_ROUNDED: list[CacheDtype] = ["fp32", "int8"]
close = torch.testing.assert_close


def attending(*mixers: AttentionConfig) -> Transformer:
    stack = StackConfig(tuple(BlockConfig(mixer) for mixer in mixers), biases=BIASES)
    model = ready(TransformerConfig(WIDTH, 23, 400, stack))
    assert isinstance(model, Transformer)
    return model


def stepped(engine: Engine, kept: EngineDecoding, tokens: Tensor) -> tuple[Tensor, EngineDecoding]:
    """The logits after each of `tokens` [B, T]."""
    found = []
    for column in tokens.T:
        logits, kept = engine.step(column, kept)  # type: ignore[assignment]
        found.append(logits)
    return torch.stack(found, 1), kept


def kept_numbers(engine: Engine, kept: EngineDecoding, row: int, groups: int, size: int) -> tuple[Tensor, Tensor]:
    """The keys, less their mean, and values [T, G, K] of a row, of a model with one layer, from its blocks in int8."""
    keys, values = [], []
    for block in kept.rows[row].blocks:
        room = torch.from_numpy(engine._kv_blocks.view(block).copy()).view(groups, -1)
        fours = -(-size // 4)
        one, two, scales = (part.contiguous() for part in room.split([4 * fours * BLOCK, size * BLOCK, 8 * BLOCK], 1))
        scales = scales.view(torch.float32).view(groups, 2, BLOCK)
        one, two = one.view(torch.int8).float(), two.view(torch.int8).float()
        one = one.view(groups, fours, BLOCK, 4).permute(2, 0, 1, 3).flatten(2)[..., :size]
        two = two.view(groups, BLOCK // 4, size, 4).permute(1, 3, 0, 2).flatten(0, 1)
        keys.append(one * scales[:, 0].T[:, :, None])
        values.append(two * scales[:, 1].T[:, :, None])
    length = int(kept.positions[row])
    return torch.cat(keys)[:length], torch.cat(values)[:length]


def means(engine: Engine, length: int) -> Tensor:
    """What was taken from the keys [T, G, K] of a model with one layer."""
    [(mixer, mean)] = engine.means.items()
    assert isinstance(mixer, SelfAttention)
    return mean_by_position(mixer, mean, length)[:length]


@pytest.mark.parametrize("size", [6, 32, 80])
def test_int8_keys_and_values_are_within_half_a_step(size: int) -> None:
    """Those of the prompt, which torch computed, and those that the program writes."""
    model = attending(AttentionConfig(3, kv_heads=1, head_size=size))
    engine = Engine(model, threads=2, cache="int8")
    prompt, tokens = ids(1, 37), ids(1, 40, seed=3)
    with torch.inference_mode():
        _, theirs = model.start(Prompt(prompt, Layout.full(1, 37)), 90)
        _, ours = stepped(engine, engine.adopt(theirs), tokens)
        for column in tokens.T:
            _, theirs = model.step(column, theirs)
    found = kept_numbers(engine, ours, 0, 1, size)
    assert isinstance(theirs.states[0], KeyValues)
    for part, whole, taken in zip(found, theirs.states[0], (means(engine, 77), torch.zeros(77, 1, size))):
        wanted = whole[0, :77] - taken
        step = wanted.abs().amax(-1, keepdim=True) / 127
        assert bool(((part - wanted).abs() <= 0.501 * step + 1e-6).all())
        assert not torch.equal(part, wanted)


@pytest.mark.parametrize("heads", [1, 2, 3, 4, 5, 9])
@pytest.mark.parametrize("size", [6, 64])
def test_int8_attention_is_that_to_the_rounded_numbers(heads: int, size: int) -> None:
    """One step over keys and values as they were rounded, by a cache in fp32 and by torch; beside the new token's own
    key, which only int8 rounds, nothing differs. Heads are taken four at a time, and features 32.
    """
    model = attending(AttentionConfig(heads, kv_heads=1, head_size=size))
    engine, plain = Engine(model, threads=1, cache="int8"), Engine(model, threads=1)
    with torch.inference_mode():
        _, theirs = model.start(Prompt(ids(1, 200), Layout.full(1, 200)), 230)
        ours = engine.adopt(theirs)
        keys, values = kept_numbers(engine, ours, 0, 1, size)
        for whole, rounded in zip(theirs.states[0], (keys + means(engine, 200), values)):
            whole[0, :200] = rounded
        exact = plain.adopt(theirs)
        found, wanted = engine.step(torch.tensor([3]), ours)[0], model.step(torch.tensor([3]), theirs)[0]
        close(plain.step(torch.tensor([3]), exact)[0], wanted, rtol=2e-4, atol=2e-4)
        assert (found - wanted).norm() < 1e-3 * wanted.norm()


@pytest.mark.parametrize("name", LOWERED)
def test_an_int8_cache_is_near_with_every_kind_of_attention(name: str) -> None:
    mixer = MIXERS[name]
    assert isinstance(mixer, AttentionConfig)
    model = attending(mixer)
    prompt, tokens = Prompt(ids(3, 37), Layout.padded([37, 1, 33], 37)), ids(3, 40, seed=3)
    with torch.inference_mode():
        found, wanted = (
            stepped(engine, engine.start(prompt, 90)[1], tokens)[0]  # type: ignore[arg-type]
            for engine in (Engine(model, threads=2, cache=cache) for cache in WHOLE_AND_ROUNDED)
        )
        assert 0 < (found - wanted).norm() < 0.02 * wanted.norm()


@pytest.mark.parametrize("size", [6, 32, 80])
def test_fp16_keeps_the_nearest_numbers(size: int) -> None:
    """Of those that fp32 keeps, bit for bit as torch rounds them: of the prompt, which torch computed, and those that
    the program writes. What fp16 cannot hold becomes the largest that it can.
    """
    model = attending(AttentionConfig(2, head_size=size))
    qkv = model.stack.blocks[0].mixer.qkv  # type: ignore[union-attr]
    with torch.no_grad():
        qkv.weight[2 * size] *= 1e6  # a feature of the keys  # type: ignore[index]
        qkv.weight[4 * size] *= 1e-5  # of the values  # type: ignore[index]
        qkv.bias[4 * size] = 0  # type: ignore[index]
    with torch.inference_mode():
        _, read = model.start(Prompt(ids(1, 37), Layout.full(1, 37)), 90)
        contents = []
        for cache in ("fp32", "fp16"):
            engine = Engine(model, threads=2, cache=cache)  # type: ignore[arg-type]
            kept = engine.adopt(read)
            for column in ids(1, 40, seed=3).T:
                _, kept = engine.step(column, kept)
            contents.append(
                torch.from_numpy(np.stack([engine._kv_blocks.view(block) for block in kept.rows[0].blocks]))
            )
    whole, half = contents[0].view(torch.float32), contents[1].view(torch.float16)
    for group in range(2):
        each = slice(2 * group * size * BLOCK, 2 * (group + 1) * size * BLOCK)
        keys, values = whole[:, each].view(3, 2, -1).unbind(1)
        keys, values = keys.reshape(3, size, BLOCK).transpose(1, 2).flatten(0, 1)[:77], values.reshape(-1, size)[:77]
        found = half[:, each].view(3, 2, -1)
        assert torch.equal(found[:, 0].reshape(3, size, BLOCK).transpose(1, 2).flatten(0, 1)[:77], rounded(keys))
        assert torch.equal(found[:, 1].reshape(-1, size)[:77], rounded(values))
        if group == 0:
            assert bool((keys.abs() > 65504).any())
            assert bool((values.abs() < 2**-14).any())


def rounded(numbers: Tensor) -> Tensor:
    return numbers.clamp(-65504, 65504).half()


@pytest.mark.parametrize("heads", [1, 2, 3, 4, 5, 9])
@pytest.mark.parametrize("size", [6, 40, 64])
def test_fp16_attention_is_that_to_the_rounded_numbers(heads: int, size: int) -> None:
    """Bit for bit, over a memory, of which nothing is written by the program."""
    config = seq2seq("all")
    block = BlockConfig(MIXERS["lstm"], cross=CrossAttentionConfig(heads, kv_heads=1, head_size=size))
    model = ready(replace(config, decoder=replace(config.decoder, stack=StackConfig((block,), biases=BIASES))))
    prompt = Prompt(ids(3, 2), Layout.full(3, 2), ids(3, 150, seed=1), Layout.padded([150, 3, 32], 150))
    tokens, found = ids(3, 5, seed=2), []
    with torch.inference_mode():
        _, read = model.start(prompt, 20)
        for cache in ("fp16", "fp32"):
            engine = Engine(model, threads=2, cache=cache)  # type: ignore[arg-type]
            found.append(stepped(engine, engine.adopt(read), tokens)[0])
            for memory in read.memories or ():
                assert isinstance(memory, ProjectedMemory)
                memory.keys.copy_(memory.keys.half().float())
                memory.values.copy_(memory.values.half().float())
    assert torch.equal(*found)


def test_what_is_kept_follows_the_weights() -> None:
    model = attending(AttentionConfig(2))
    assert Engine(model, 1).cache == "fp32"
    sizes = {cache: Engine(model, 1, cache)._kv_blocks.size for cache in CACHES}
    assert sizes["fp16"] == sizes["fp32"] // 2
    quantise(model, "int4")
    assert Engine(model, 1).cache == "fp16"
    assert Engine(model, 1)._kv_blocks.size == sizes["fp16"]
    assert Engine(model, 1, "fp32")._kv_blocks.size == sizes["fp32"]


def test_models_without_keys_have_nothing_to_take_a_mean_of() -> None:
    stack = StackConfig((BlockConfig(MIXERS["lstm"]),), biases=BIASES)
    engine = Engine(ready(TransformerConfig(WIDTH, 23, 20, stack)), threads=1, cache="int8")  # type: ignore[arg-type]
    assert not engine.means
    with torch.inference_mode():
        assert engine.compute([RowChunk(engine.open(count=1).rows[0], 0, [1, 2])]).isfinite().all()


MOVED = {
    "no positions": AttentionConfig(3, kv_heads=1, head_size=16),
    "rotary": AttentionConfig(3, kv_heads=1, head_size=16, rotary=RotaryConfig()),
    "a part turned": AttentionConfig(3, head_size=16, rotary=RotaryConfig(fraction=0.5)),
    "two groups, capped": AttentionConfig(4, kv_heads=2, head_size=20, rotary=RotaryConfig(), soft_cap=30.0),
    "sinks": AttentionConfig(3, head_size=16, rotary=RotaryConfig(), sinks=True),
}


@pytest.mark.parametrize("name", MOVED)
def test_what_keys_have_in_common_costs_no_bits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys that are moved far, in a feature that turns slowly, are rounded as finely as they were: by the prompt, which
    torch read, and by the program.
    """
    model = attending(MOVED[name])
    mixer = model.stack.blocks[0].mixer
    assert isinstance(mixer, SelfAttention)
    assert mixer.qkv.bias is not None
    prompt, tokens = Prompt(ids(2, 130), Layout.padded([130, 3], 130)), ids(2, 30, seed=3)

    def cost() -> float:
        plain, rounded = (Engine(model, threads=2, cache=cache) for cache in WHOLE_AND_ROUNDED)
        _, theirs = model.start(prompt, 200)
        wanted, found = (stepped(engine, engine.adopt(theirs), tokens)[0] for engine in (plain, rounded))
        assert torch.equal(rounded.start(prompt, 200)[0], Engine(model, 1, cache="int8").start(prompt, 200)[0])
        return float((found - wanted).norm() / wanted.norm())

    with torch.inference_mode():
        before = cost()
        keys = mixer.qkv.bias[mixer.heads * mixer.size :][: mixer.groups * mixer.size].view(mixer.groups, -1)
        half = mixer.rotary.frequencies.shape[-1] if mixer.rotary else mixer.size
        keys[:, half - 1] += 60
        keys[:, -1] -= 40
        assert cost() < 3 * before
        monkeypatch.setattr("headway.engine.decoder.mean_keys", lambda engine, model: {})
        assert cost() > 5 * before


def test_memories_are_kept_in_int8_too() -> None:
    config = seq2seq("all")
    decoder = lowered(config.decoder)
    cross = config.decoder.stack.blocks[0].cross
    blocks = tuple(replace(b, cross=cross) for b in decoder.stack.blocks[:2])
    model = ready(replace(config, decoder=replace(decoder, stack=replace(decoder.stack, blocks=blocks))))
    prompt = Prompt(ids(3, 2), Layout.full(3, 2), ids(3, 50, seed=1), Layout.padded([50, 3, 32], 50))
    with torch.inference_mode():
        engines = [Engine(model, threads=2, cache=cache) for cache in WHOLE_AND_ROUNDED]
        wanted, found = (stepped(e, e.start(prompt, 20)[1], ids(3, 9, seed=2))[0] for e in engines)  # type: ignore[arg-type]
        assert 0 < (found - wanted).norm() < 0.05 * wanted.norm()
        first = (found - wanted).norm()
        assert isinstance(model, EncoderDecoder)
        block = model.decoder.stack.blocks[0]
        assert isinstance(block, Block)
        assert block.cross is not None
        assert block.cross.kv.bias is not None
        block.cross.kv.bias[: block.cross.groups * block.cross.size] += 50  # which moves all scores of a query alike
        wanted, found = (stepped(e, e.start(prompt, 20)[1], ids(3, 9, seed=2))[0] for e in engines)  # type: ignore[arg-type]
        assert (found - wanted).norm() < 2 * first
    assert (
        engines[1]._memory_blocks.size <= 0.5 * engines[0]._memory_blocks.size
    )  # tiny heads: as much again for scales


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("threads", [1, 2])
def test_rows_depend_on_neither_neighbours_nor_how_many_tokens_are_read(cache: CacheDtype, threads: int) -> None:
    """Bit for bit: six together, each alone, and each by four tokens at a time."""
    model = attending(*[AttentionConfig(6, kv_heads=2, head_size=40)] * 2)
    engine = Engine(model, threads=threads, cache=cache)
    tokens = ids(6, 28, seed=4)
    with torch.inference_mode():
        _, states = model.start(Prompt(ids(6, 90), Layout.padded([90, 3, 64, 31, 32, 5], 90)), 140)
        wanted, after = stepped(engine, engine.adopt(states), tokens)
        for row in range(6):
            kept = engine.adopt(states.select(torch.tensor([row])))
            assert torch.equal(stepped(engine, kept, tokens[row : row + 1])[0][0], wanted[row])
            kept = engine.adopt(states.select(torch.tensor([row])))
            for start in range(0, 28, 4):
                logits, kept = engine.extend(tokens[row : row + 1, start : start + 4], kept)
                assert torch.equal(logits[0], wanted[row, start : start + 4])
        beams = after.select(torch.tensor([2, 2, 0]))  # which share blocks, and write apart
        apart, beams = stepped(engine, beams, ids(3, 5, seed=9))
        for row, source in enumerate((2, 2, 0)):
            alone = after.select(torch.tensor([source]))
            assert torch.equal(stepped(engine, alone, ids(3, 5, seed=9)[row : row + 1])[0][0], apart[row])


def test_many_rows_keep_int8_as_each_alone() -> None:
    """Of a quantised model, 40 rows at once."""
    model = attending(AttentionConfig(4, kv_heads=2))
    quantise(model, "int8")
    engine = Engine(model, threads=2, cache="int8")
    tokens = ids(40, 6, seed=4)
    with torch.inference_mode():
        _, states = model.start(Prompt(ids(40, 33), Layout.full(40, 33)), 60)
        wanted = stepped(engine, engine.adopt(states), tokens)[0]
        for row in (0, 17, 39):
            kept = engine.adopt(states.select(torch.tensor([row])))
            assert torch.equal(stepped(engine, kept, tokens[row : row + 1])[0][0], wanted[row])


@pytest.mark.parametrize("cache", CACHES)
def test_blocks_that_no_window_sees_are_given_back(cache: CacheDtype) -> None:
    near, far = (replace(MIXERS["attention-window"], pattern=Causal(window=window)) for window in (3, 40))
    assert isinstance(near, AttentionConfig)
    assert isinstance(far, AttentionConfig)
    model = attending(near, far)
    engine = Engine(model, threads=1, cache=cache)
    prompt = Prompt(ids(2, 150), Layout.padded([150, 2], 150))
    with torch.inference_mode():
        _, kept = engine.start(prompt, 400)
        assert isinstance(kept, EngineDecoding)
        assert engine._kv_blocks.used <= 3 + 1  # the positions from 111 to 149, and two
        for column in ids(2, 200, seed=2).T:
            _, kept = stepped(engine, kept, column[:, None])
            assert engine._kv_blocks.used <= 2 * 3, "40 positions lie in three blocks at most"
        assert [len(row.blocks) for row in kept.rows] == [11, 7]
        again = kept.select(torch.tensor([0, 0, 1]))
        again.assign(torch.tensor([2]), torch.tensor([0]))
        del kept
        for row in again.rows:
            row.reserve(350, 351)
        assert engine._kv_blocks.used <= 5
        del again, row
    assert engine._kv_blocks.used == 0
    assert len(engine._kv_blocks._slabs) == 1


def test_windows_step_as_their_modules_far_beyond_them() -> None:
    mixers = [replace(MIXERS[name], pattern=Causal(window=37)) for name in ("attention-relative", "attention-window")]
    model = attending(*mixers)  # type: ignore[arg-type]
    follow(model, Engine(model), Prompt(ids(2, 120), Layout.padded([120, 20], 120)), ids(2, 150, seed=5), 300)


def test_one_layer_that_sees_everything_keeps_everything() -> None:
    window, all_of_it = MIXERS["attention-window"], AttentionConfig(HEADS)
    assert isinstance(window, AttentionConfig)
    engine = Engine(attending(window, all_of_it))
    with torch.inference_mode():
        _, kept = engine.start(Prompt(ids(1, 150), Layout.full(1, 150)), 400)
        stepped(engine, kept, ids(1, 50))  # type: ignore[arg-type]
    assert engine._kv_blocks.used == 7


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_what_is_no_number_is_seen(cache: CacheDtype, broken: float) -> None:
    """NaN or infinity among keys or values gives NaN, whoever wrote it."""
    mixer = AttentionConfig(HEADS)
    for row in (WIDTH, 2 * WIDTH):  # where keys and values begin
        model = attending(mixer)
        engine = Engine(model, cache=cache)
        with torch.inference_mode():
            _, kept = engine.start(Prompt(ids(1, 40), Layout.full(1, 40)), 80)
            model.stack.blocks[0].mixer.qkv.weight[row] = broken  # type: ignore[union-attr,index]
            logits, _ = engine.step(torch.tensor([1]), kept)
        assert bool(logits.isnan().any())


@pytest.mark.parametrize(("cache", "loss", "nats"), [("fp16", 0.0004, 1e-5), ("int8", 0.001, 0.0006)])
def test_a_rounded_cache_costs_a_real_model_little(cache: CacheDtype, loss: float, nats: float, data_dir: Path) -> None:
    """stories260K on a story of its own: the loss in nats, and the divergence of what it expects, which is 0.0017 where
    keys are rounded to int8 as they are; int8 weights make 0.0014.
    """
    path = data_dir / "weights" / "stories260K.bin"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    model, usage = load_llama2c(path)
    assert isinstance(model, Transformer)
    assert usage.begin is not None
    plain, rounded = Engine(model, threads=1), Engine(model, threads=1, cache=cache)
    sampling = Sampling(1.0, seed=5)
    [told] = Session(plain).generate([[usage.begin]], sampling, Limits(500, ignore_end=True))
    begin, tokens = Prompt(torch.tensor([[usage.begin]]), Layout.full(1, 1)), torch.tensor([told.ids])
    with torch.inference_mode():
        wanted, found = (
            stepped(engine, engine.start(begin, 512)[1], tokens)[0][0].log_softmax(-1)  # type: ignore[arg-type]
            for engine in (plain, rounded)
        )
    losses = [-logs[:-1].gather(1, tokens[0, 1:, None]).mean() for logs in (wanted, found)]
    divergence = (wanted.exp() * (wanted - found)).sum(-1).mean()
    assert abs(losses[1] - losses[0]) < loss
    assert 0 < divergence < nats
