"""Laws of the CPU engine: its programs give what the modules give."""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import FEED_FORWARDS, HEADS, MIXERS, NORMS, WIDTH, hybrid, ids, inputs, seq2seq, shake
from llvmlite import binding
from safetensors import safe_open
from torch import Tensor

from headway.engine import (
    CannotLowerError,
    Engine,
    OutOfBlocksError,
    PackedTensor,
    load_quantised,
    quantise,
    save_quantised,
)
from headway.engine.cache import Blocks
from headway.engine.operations import BLOCK
from headway.engine.packed_weights import pack, unpack
from headway.engine.sequence_rows import Row
from headway.errors import UserError
from headway.formats.native import QUANTISED
from headway.formats.tensorfile import write_tensors
from headway.generate import GREEDY, Limits, SearchConfig, Session, translate_ids
from headway.layout import Layout
from headway.nn.mixers import AttentionConfig
from headway.nn.models import (
    BlockConfig,
    EncoderDecoder,
    EncoderDecoderConfig,
    OneHotEmbedConfig,
    Prompt,
    StackConfig,
    Transformer,
    TransformerConfig,
    build,
)
from headway.nn.models.heads import TransformConfig, VocabularyHeadConfig
from headway.nn.parts.positions import SinusoidalConfig
from headway.nn.parts.projection import Projection
from processes import Program

close = torch.testing.assert_close
TOLERANCE = {"rtol": 2e-4, "atol": 2e-4}
ATTENTION = {name: config for name, config in MIXERS.items() if isinstance(config, AttentionConfig) and config.causal}
LOWERED = [name for name, config in ATTENTION.items() if not config.placed]
FEEDS = list(FEED_FORWARDS.values())


def lowered(config: TransformerConfig) -> TransformerConfig:
    """A model with all that the engine has instructions for, in each placement."""
    placements = ("pre", "post", "sandwich", "branch", "parallel", "none")
    norms = list(NORMS.values())
    blocks = tuple(
        BlockConfig(
            MIXERS[LOWERED[i % len(LOWERED)]],
            None,
            FEEDS[i % len(FEEDS)] if i % 7 != 6 else None,
            norms[i % len(norms)],
            placements[i % len(placements)],  # type: ignore[arg-type]
            layer_scale=0.9 if i % 2 else None,
            branch_scale=0.7 if i % 3 else 1.0,
            shared_norm=i % 12 == 4,
        )
        for i in range(18)
    )
    return replace(config, stack=replace(config.stack, blocks=blocks))


def ready(config: TransformerConfig | EncoderDecoderConfig) -> Transformer | EncoderDecoder:
    model = build(config).eval()
    shake(model)
    assert isinstance(model, (Transformer, EncoderDecoder))
    return model.float().requires_grad_(False)


def follow(model: Transformer | EncoderDecoder, engine: Engine, prompt: Prompt, tokens: Tensor, capacity: int) -> None:
    """Both step over the same tokens and must give the same logits."""
    with torch.inference_mode():
        _, theirs = model.start(prompt, capacity)
        _, ours = engine.start(prompt, capacity)
        for column in tokens.T:
            wanted, theirs = model.step(column, theirs)
            found, ours = engine.step(column, ours)
            close(found, wanted, **TOLERANCE)


@pytest.mark.compiling
@pytest.mark.parametrize("number", range(18))
def test_blocks_step_as_their_modules(number: int) -> None:
    """Two blocks at a time, as errors grow from one layer of such large weights to the next."""
    config = replace(lowered(hybrid("learned" if number % 2 else "sinusoidal")), context=96)
    blocks = config.stack.blocks[number : number + 2]
    model = ready(replace(config, stack=replace(config.stack, blocks=blocks)))
    engine = Engine(model, threads=1 + number % 3)
    prompt = Prompt(ids(5, 37), Layout.padded([37, 1, 4, 31, 33], 37))  # on both sides of a block's end
    follow(model, engine, prompt, ids(5, 40, seed=3), 90)


@pytest.mark.parametrize("tie", ["all", "none"])
def test_seq2seq_steps_as_its_modules(tie: str) -> None:
    config = seq2seq(tie)
    cross = config.decoder.stack.blocks[0].cross
    decoder = lowered(config.decoder)
    blocks = tuple(replace(b, cross=cross) for b in decoder.stack.blocks if b.placement != "parallel")
    model = ready(replace(config, decoder=replace(decoder, stack=replace(decoder.stack, blocks=blocks))))
    engine = Engine(model, threads=2)
    prompt = Prompt(ids(3, 2), Layout.full(3, 2), ids(3, 50, seed=1), Layout.padded([50, 3, 32], 50))
    follow(model, engine, prompt, ids(3, 9, seed=2), 20)


def test_heads_with_a_transform_and_a_cap() -> None:
    head = VocabularyHeadConfig(bias=True, soft_cap=3.0, transform=TransformConfig(), scale=0.7)
    stack = StackConfig((BlockConfig(AttentionConfig(HEADS)),))
    model = ready(TransformerConfig(WIDTH, 11, 64, stack, heads={"vocabulary": head}))
    follow(model, Engine(model), Prompt(ids(1, 3), Layout.full(1, 3)), ids(1, 5), 20)


def test_positions_in_queries_and_keys_are_refused() -> None:
    stack = StackConfig((BlockConfig(AttentionConfig(HEADS, placed=True)),), positions=SinusoidalConfig())
    with pytest.raises(CannotLowerError, match=r"positions in queries and keys \(stack.blocks.0.mixer\)"):
        Engine(ready(TransformerConfig(WIDTH, 11, 64, stack)))


def small(depth: int = 2, symbols: int = 23, seed: int = 5) -> Transformer:
    model = ready(TransformerConfig(WIDTH, symbols, 200, StackConfig((BlockConfig(AttentionConfig(HEADS)),) * depth)))
    assert isinstance(model, Transformer)
    return model


def test_sessions_write_the_same_tokens() -> None:
    model = small()
    prompts = [[3, 4, 5], [6], [7, 8, 9, 10, 11], [2] * 40]
    limits = Limits(60)
    wanted = [c.ids for c in Session(model).generate(prompts, GREEDY, limits)]
    found = [c.ids for c in Session(Engine(model, threads=2)).generate(prompts, GREEDY, limits)]
    assert found == wanted


def test_beam_search_finds_the_same_translations() -> None:
    config = seq2seq("all")
    cross = config.decoder.stack.blocks[0].cross
    block = BlockConfig(AttentionConfig(HEADS), cross)
    model = ready(replace(config, decoder=replace(config.decoder, stack=StackConfig((block, block)))))
    assert isinstance(model, EncoderDecoder)
    sources = [[3, 4, 5], [6, 2, 2, 7, 9], [8]]
    search = SearchConfig(beam=4, n_best=2)
    wanted = translate_ids(model, sources, bos=0, eos=1, config=search)
    found = translate_ids(Engine(model, threads=2), sources, bos=0, eos=1, config=search)
    assert [[h.ids for h in some] for some in found] == [[h.ids for h in some] for some in wanted]


def test_more_rows_than_the_program_takes_run_on_torch() -> None:
    model = small()
    prompts = [[i % 20, 3] for i in range(40)]
    wanted = [c.ids for c in Session(model).generate(prompts, GREEDY, Limits(5))]
    assert [c.ids for c in Session(Engine(model)).generate(prompts, GREEDY, Limits(5))] == wanted


@pytest.mark.parametrize("form", ["int8", "int4"])
@pytest.mark.parametrize("columns", [64, 70, 128, 200])
def test_packed_weights_are_near(form: str, columns: int) -> None:
    weight = inputs(24, columns).float()
    packed = pack(weight, form)  # type: ignore[arg-type]
    assert packed.scales is not None
    step = packed.scales.abs().permute(0, 2, 1).flatten(0, 1).repeat_interleave(64, 1)[:24, :columns]
    error = (unpack(packed) - weight).abs()
    assert bool((error <= step * (0.5001 if form == "int8" else 2.6)).all())
    assert error.square().mean().sqrt() < step.mean() * 0.35


@pytest.mark.parametrize("form", ["int8", "int4"])
@pytest.mark.parametrize("threads", [1, 2])
def test_quantised_programs_follow_the_unpacked_weights(form: str, threads: int) -> None:
    """What differs from a model with the unpacked weights is the rounding of activations to 8 bits."""
    model, whole = small(), small()
    with torch.no_grad():
        for parameter in whole.parameters():
            if parameter.dim() == 2:
                parameter.copy_(unpack(pack(parameter, form)))  # type: ignore[arg-type]
    engine = Engine(quantise(model, form), threads)  # type: ignore[arg-type]
    prompt = Prompt(ids(2, 4), Layout.full(2, 4))
    with torch.inference_mode():
        _, theirs = whole.start(prompt, 40)
        ours = engine.adopt(theirs)
        for column in ids(2, 20, seed=4).T:
            wanted, theirs = whole.step(column, theirs)
            found, ours = engine.step(column, ours)
            assert (found - wanted).norm() < 0.05 * wanted.norm()


def test_a_copy_of_a_model_is_lowered_as_the_model_is() -> None:
    model = ready(lowered(hybrid()))
    assert isinstance(model, Transformer)
    Engine(copy.deepcopy(model))


def test_what_has_no_instruction_is_named() -> None:
    stack = StackConfig((BlockConfig(MIXERS["gru"]),))
    model = ready(TransformerConfig(WIDTH, 11, 64, stack, OneHotEmbedConfig(), tie="none"))
    with pytest.raises(CannotLowerError, match="OneHotEmbed"):
        Engine(model)


@pytest.mark.parametrize("owner", ["embed", "stack.blocks.1.mixer", "stack.blocks.0.feed_forward.down", "stack.norm"])
def test_a_parameter_that_the_program_does_not_read_is_named(owner: str) -> None:
    """Every module here has instructions, but they know nothing of the projection."""
    model = small()
    model.get_submodule(owner).register_module("extra", Projection(WIDTH, WIDTH))
    shake(model)
    with pytest.raises(CannotLowerError, match=rf"the parameter {re.escape(owner)}\.extra\.weight"):
        Engine(model)


def test_rows_share_blocks_until_they_write() -> None:
    store = Blocks(8)
    row = Row(store, [], None, np.zeros(0, np.float32))
    assert row.reserve(0, 1) == []
    store.view(row.blocks[0])[:] = 7
    both = [row.fork(), row.fork()]
    assert both[0].blocks == both[1].blocks == row.blocks
    for other in both:
        store.copy(other.reserve(1, 2))
    assert len({both[0].blocks[0], both[1].blocks[0], row.blocks[0]}) == 3
    assert all(store.view(other.blocks[0])[0] == 7 for other in both)
    assert both[0].reserve(BLOCK, BLOCK + 1) == []
    assert [len(other.blocks) for other in both] == [2, 1]
    used = set(store._users)
    del both, other
    assert store.used == 1
    assert set(store._users) == set(row.blocks) < used


def test_a_block_that_is_written_as_a_whole_is_not_copied() -> None:
    store = Blocks(8)
    row = Row(store, [], None, np.zeros(0, np.float32))
    row.reserve(0, 2 * BLOCK)
    other = row.fork()
    assert len(other.reserve(BLOCK - 1, 2 * BLOCK)) == 1
    assert not set(other.blocks) & set(row.blocks)


def test_no_more_blocks_are_taken_than_there_may_be() -> None:
    store = Blocks(8)
    store.max_blocks = 2
    row = Row(store, [], None, np.zeros(0, np.float32))
    assert row.blocks_needed(0, 3 * BLOCK) == 3
    with pytest.raises(OutOfBlocksError, match="all 2 blocks"):
        row.reserve(0, 3 * BLOCK)
    row.close()
    assert store.available == 2


@pytest.mark.parametrize("form", ["int8", "int4"])
def test_packed_tensors_serve_in_place_of_weights(form: str) -> None:
    """Few rows from the packed weights, many by unpacking them: both are the product with the unpacked ones."""
    weight, x = inputs(30, 70).float(), inputs(40, 70, seed=1).float()
    packed = PackedTensor(pack(weight, form))  # type: ignore[arg-type]
    whole = unpack(packed.packed)
    for count in (1, 7, 40):
        found, wanted = F.linear(x[:count], packed), x[:count] @ whole.T
        assert (found - wanted).norm() < 0.01 * wanted.norm()
    chosen = torch.tensor([[3, 29], [0, 3]])
    assert torch.equal(F.embedding(chosen, packed), whole[chosen])
    assert torch.equal(packed + 0, whole)
    assert packed.shape == weight.shape


@pytest.mark.parametrize("form", ["int8", "int4"])
def test_a_quantised_model_generates_by_either_way(form: str) -> None:
    model = small()
    names = [name for name, _ in model.named_parameters()]
    plain = [p for p in model.parameters() if p.dim() == 1]
    quantise(model, form)  # type: ignore[arg-type]
    assert [name for name, _ in model.named_parameters()] == names
    assert all(a is b for a, b in zip(plain, (p for p in model.parameters() if p.dim() == 1)))
    assert isinstance(model.embed.table, PackedTensor)
    assert model.embed.table is model.heads["vocabulary"].table
    engine, prompt = Engine(model), Prompt(ids(2, 30), Layout.full(2, 30))
    with torch.inference_mode():
        _, theirs = model.start(prompt, 60)
        _, ours = engine.start(prompt, 60)
        for column in ids(2, 20, seed=4).T:
            wanted, theirs = model.step(column, theirs)
            found, ours = engine.step(column, ours)
            # Norms and activations differ in their last bits, by which a number here and there is rounded to the next
            # of its 255 values.
            assert (found - wanted).norm() < 0.02 * wanted.norm()


@pytest.mark.parametrize("form", ["int8", "int4"])
def test_quantised_files_come_back(form: str, tmp_path: Path) -> None:
    model = quantise(small(), form)  # type: ignore[arg-type]
    save_quantised(model, form, tmp_path)  # type: ignore[arg-type]
    again = load_quantised(tmp_path)
    assert isinstance(again, Transformer)
    assert again.embed.table is again.heads["vocabulary"].table
    with torch.inference_mode():
        assert torch.equal(model(ids(2, 20)).x, again(ids(2, 20)).x)
    save_quantised(again, form, tmp_path / "twice")  # type: ignore[arg-type]
    assert (tmp_path / QUANTISED).read_bytes() == (tmp_path / "twice" / QUANTISED).read_bytes()


@pytest.mark.parametrize("damage", ["cut", "version", "scale", "codes"])
def test_damaged_quantised_files_are_refused(damage: str, tmp_path: Path) -> None:
    save_quantised(quantise(small(), "int8"), "int8", tmp_path)
    path = tmp_path / QUANTISED
    whole = path.read_bytes()
    if damage == "cut":
        path.write_bytes(whole[:-100])
    elif damage == "version":
        path.write_bytes(whole.replace(b'"version":"2"', b'"version":"9"'))
    else:
        with safe_open(path, framework="pt") as file:
            header, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        name = "embed.table" + (".scales" if damage == "scale" else ".codes")
        tensors[name] = tensors[name] * torch.nan if damage == "scale" else tensors[name][..., :8].contiguous()
        write_tensors(path, tensors, header)
    with pytest.raises(UserError, match="quantize the model again"):
        load_quantised(tmp_path)


def test_weights_that_are_no_numbers_are_refused() -> None:
    model = small()
    with torch.no_grad():
        model.embed.table[3, 2] = torch.nan
    with pytest.raises(UserError, match="NaN"):
        Engine(model)
    with pytest.raises(UserError, match="NaN"):
        quantise(model, "int8")


def test_weights_that_are_packed_already_are_refused() -> None:
    model = quantise(small(), "int8")
    with pytest.raises(UserError, match="already in int8 or int4"):
        quantise(model, "int4")


INTEGERS = """
from llvmlite import binding
import numba
import numpy as np
own = binding.get_host_cpu_features

class Found(dict):
    def flatten(self):
        return own().flatten()

binding.get_host_cpu_features = lambda: Found({features})
from headway.engine import processor, products, tiles
from headway.engine.packed_weights import pack, unpack
import torch
assert processor.INSTRUCTIONS == "{name}", processor.INSTRUCTIONS
assert processor.WIDE == {wide}
assert not processor.HAS_MATRIX_UNIT
at = lambda array: array.ctypes.data if isinstance(array, np.ndarray) else array.data_ptr()

for columns in (64, 200):
    weight, x = torch.randn(24, columns) * 3, np.random.default_rng(1).standard_normal((15, columns)).astype(np.float32)
    weight[:, :3] = torch.tensor([9.0, -9.0, 9.0])  # at the ends of the codes, where sums of 16 bits may overflow
    x[:, :3] = 9.0
    weight[5], weight[6], x[4], x[5] = 9.0, -9.0, 9.0, -9.0  # and those of as many as are added there
    for form in ("int8", "int4"):
        packed = pack(weight, form)
        groups = packed.scales.shape[1]
        q, xs = np.zeros((15, groups * 64), np.int8), np.zeros((15, groups), np.float32)
        corr = np.zeros((15, groups), np.int32)
        products.quantise(packed.kind, at(x), 4 * columns, columns, at(q), at(xs), at(corr), 0, 15)
        found = np.zeros((2, 15, 16), np.float32)
        for tile in range(2):
            tiles.tile_products(
                packed.kind, at(packed.weights[tile]), at(packed.scales[tile]), at(q), groups * 64, at(xs), at(corr),
                groups, at(found[tile]), 15,
            )
        found = found.transpose(1, 0, 2).reshape(15, 32)
        numbers = (q.reshape(15, groups, 64) * xs[:, :, None]).reshape(15, -1)[:, :columns].astype(np.float64)
        wanted = numbers @ unpack(packed).numpy().astype(np.float64).T
        assert (abs(found[:, :24] - wanted) < 1e-4 * np.maximum(1, abs(wanted))).all(), (form, columns)
        assert (found[:, 24:] == 0).all()

# Three heads over a chunk of keys and values in 8 bits, of a size that is no whole vector.
from headway.engine import int8_keys as rounded
from headway.engine import kv_kernels
from headway.engine.softmax import softmax_chunk_int8
size, heads, positions = 27, 3, 64
place = lambda array, byte=0: np.int64(array.ctypes.data + byte)

@numba.njit
def one_chunk(queries, each, bases, blocks, out, pieces, weights, apart, fades, size, made):
    for block in range(2):
        kv_kernels.scores(1, 3, queries, each, bases, blocks + 2016 * block, out + 128 * block, size, 32, blocks)
    for h in range(3):
        at, own = weights + h * apart, blocks + 1760 + 128
        fades[h] = softmax_chunk_int8(out + 256 * h, 0, 64, pieces + 8 * h, own, own + 2016, at, at + 16)
    near, far = blocks + 896, blocks + 2016 + 896
    kv_kernels.weigh(1, 3, weights, fades.ctypes.data, 0, 64, near, far, near, far, size, made, size)
    rounded.weigh_rest(3, weights, fades.ctypes.data, 0, 64, near, far, size, made, size)

def whole(numbers, most):
    largest = abs(numbers).max(-1, keepdims=True)
    return np.rint(numbers * (most / largest)) * (largest / most)

drawn = np.random.default_rng(2)
k, v, q = (drawn.standard_normal((n, 27)).astype(np.float32) for n in (64, 64, 3))
k[:, 0], q[:, 0] = -9, 9  # at the ends of the codes
v[:, 1] = 9 * np.sign(v[:, 1])
blocks = np.zeros((2, 2016), np.int8)  # keys, values, and their scales
assert blocks.shape[1] == kv_kernels.block_bytes(1, 1, size, size)
scales = blocks[:, 1760:].view(np.float32).reshape(2, 2, 32)
room = np.zeros(rounded.rounding_bytes(size), np.uint8)
numbers = room[:128].view(np.float32)
for t in range(positions):
    block, slot = t // 32, t % 32
    numbers[:size] = k[t]
    scales[block, 0, slot] = rounded.store_key(place(room), size, place(blocks, 2016 * block), slot)
    numbers[:size] = v[t]
    scales[block, 1, slot] = rounded.store_value(place(room), size, place(blocks, 2016 * block + 896), slot)
each, apart = rounded.split_query_bytes(size), rounded.split_bytes(positions)
queries, weights = np.zeros((heads, each), np.uint8), np.zeros((heads, apart), np.uint8)
for head in range(heads):
    numbers[:size] = q[head]
    rounded.split_query(place(room), size, 0, 13, place(queries, head * each))
bases, fades = np.array([0.5, -1.0, 2.0], np.float32), np.zeros(3, np.float32)
wanted = bases[:, None] + whole(q, 127 * 128) @ whole(k, 127).T
pieces = np.stack([wanted.max(1) - 1, [2, 2, 2]], 1).astype(np.float32)
found, made = np.zeros((heads, positions), np.float32), np.ones((heads, size), np.float32)
one_chunk(
    place(queries), each, place(bases), place(blocks), place(found), place(pieces), place(weights), apart, fades, size,
    place(made),
)
assert np.allclose(found, wanted, rtol=1e-5, atol=1e-4)
powers = np.exp(wanted - wanted.max(1, keepdims=True))
assert np.allclose(fades, np.exp(-1), rtol=1e-4)
assert np.allclose(pieces, np.stack([wanted.max(1), 2 * np.exp(-1) + powers.sum(1)], 1), rtol=1e-4, atol=1e-4)
codes = np.rint(v * (127 / abs(v).max(-1, keepdims=True)))
assert np.allclose(made, np.exp(-1) + powers * scales[:, 1].ravel() @ codes, rtol=2e-3, atol=2e-3)
"""


@pytest.mark.parametrize(
    ("name", "features", "wide"),
    [
        ("avx2", {"avx2": True}, False),
        ("portable", {}, False),
        ("vnni", {"avx512vnni": True, "avx512vl": True}, True),
        ("vnni", {"avxvnni": True}, False),
    ],
)
def test_each_form_of_integer_products_is_right(
    name: str, features: dict[str, bool], wide: bool, tmp_path: Path
) -> None:
    """In a process of its own, whose compiled code no other finds."""
    own = binding.get_host_cpu_features()
    if not all(own.get(feature) for feature in features):
        pytest.skip(f"this processor has no {name}")
    script = INTEGERS.replace("{features}", repr(features)).replace("{name}", name).replace("{wide}", str(wide))
    program = Program(tmp_path, script, NUMBA_CACHE_DIR=str(tmp_path))
    _, err = program.wait()
    assert program.returncode == 0, err


@pytest.mark.parametrize("form", ["fp32", "int8", "int4"])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_row_does_not_depend_on_its_neighbours(form: str, threads: int) -> None:
    """Bit for bit, alone and among six."""
    model = quantise(small(), form)  # type: ignore[arg-type]
    engine = Engine(model, threads=threads)  # type: ignore[arg-type]
    prompts, tokens = ids(6, 40), ids(6, 30, seed=4)
    with torch.inference_mode():
        _, states = model.start(Prompt(prompts, Layout.full(6, 40)), 80)  # type: ignore[operator]
        together, alone = engine.adopt(states), [engine.adopt(states.select(torch.tensor([row]))) for row in range(6)]
        for column in tokens.T:
            logits, together = engine.step(column, together)
            for row in range(6):
                single, alone[row] = engine.step(column[row : row + 1], alone[row])
                assert torch.equal(single[0], logits[row])


def test_quantised_models_are_made_and_loaded_in_inference_mode(tmp_path: Path) -> None:
    with torch.inference_mode():
        save_quantised(quantise(small(), "int8"), "int8", tmp_path)
        model = load_quantised(tmp_path)
        logits, states = Engine(model).start(Prompt(ids(1, 3), Layout.full(1, 3)), 8)  # type: ignore[arg-type]
        Engine(model).step(logits.argmax(-1), states)  # type: ignore[arg-type]
