"""What is easily got wrong in published decoders: each trap is shown to matter, and to be avoided."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from decoder_models import LONGROPE, SMALL, SYMBOLS, copied, greedy, logits, make, ours_of, their_greedy
from safetensors.torch import load_file
from torch import Tensor, nn
from twins import Twins, batch, difference, rows, twins

from headway.errors import UserError
from headway.formats.published import load_published, save_published
from headway.formats.tensor_rules import Interleaved, PerHead
from headway.layout import Layout
from headway.nn.mixers import AttentionConfig
from headway.nn.models import BlockConfig, TransformerConfig, VocabularyHeadConfig, build
from headway.nn.parts.experts import ExpertsConfig
from headway.nn.parts.feedforward import MLPConfig
from headway.nn.parts.norm import RMSNormConfig
from headway.nn.parts.positions import RotaryConfig
from headway.nn.parts.scaling import LongRopeScaling
from headway.visibility import Causal

T = pytest.importorskip("transformers")
GIVEN = batch([24, 5, 17], SYMBOLS)
Change = Callable[[TransformerConfig], TransformerConfig]


def every(change: Callable[[BlockConfig], BlockConfig]) -> Change:
    """A change of every layer."""

    def changed(config: TransformerConfig) -> TransformerConfig:
        blocks = tuple(change(block) for block in config.stack.blocks)
        return replace(config, stack=replace(config.stack, blocks=blocks))

    return changed


def mixers(change: Callable[[AttentionConfig], AttentionConfig]) -> Change:
    """A change of every layer's attention."""

    def changed(block: BlockConfig) -> BlockConfig:
        assert isinstance(block.mixer, AttentionConfig)
        return replace(block, mixer=change(block.mixer))

    return every(changed)


def activation(name: str) -> Change:
    return every(lambda block: replace(block, feed_forward=replace(block.feed_forward, activation=name)))


def no_offset(config: TransformerConfig) -> TransformerConfig:
    norm = RMSNormConfig()
    config = every(lambda block: replace(block, norm=norm))(config)
    return replace(config, stack=replace(config.stack, norm=norm))


def turned_over(mixer: AttentionConfig) -> AttentionConfig:
    return replace(mixer, pattern=Causal(None if mixer.pattern != Causal() else 6))


def first_rotary(config: TransformerConfig) -> TransformerConfig:
    """The rotary positions of the first layer in all."""
    mixer = config.stack.blocks[0].mixer
    assert isinstance(mixer, AttentionConfig)
    rotary = mixer.rotary
    return mixers(lambda mixer: replace(mixer, rotary=rotary))(config)


def routed(**changes: Any) -> Change:
    def changed(block: BlockConfig) -> BlockConfig:
        assert isinstance(block.feed_forward, ExpertsConfig)
        return replace(block, feed_forward=replace(block.feed_forward, **changes))

    return every(changed)


TRAPS: dict[str, tuple[tuple[str, str], Change]] = {
    "gpt2's gelu is the tanh form": (("GPT2LMHeadModel", "small"), activation("gelu")),
    "gpt2 may have the erf form": (("GPT2LMHeadModel", "large"), activation("gelu_tanh")),
    "openai's gelu is the tanh form": (("OpenAIGPTLMHeadModel", "small"), activation("gelu")),
    "neox's gelu is the erf form": (("GPTNeoXForCausalLM", "small"), activation("gelu_tanh")),
    "neox turns a part of a head": (
        ("GPTNeoXForCausalLM", "small"),
        mixers(lambda mixer: replace(mixer, rotary=replace(mixer.rotary, fraction=1.0))),
    ),
    "neox adds side by side": (("GPTNeoXForCausalLM", "small"), every(lambda b: replace(b, placement="pre"))),
    "or not": (("GPTNeoXForCausalLM", "large"), every(lambda block: replace(block, placement="parallel"))),
    "gemma's norms are 1 + w": (("GemmaForCausalLM", "small"), no_offset),
    "gemma's embedding is scaled": (
        ("GemmaForCausalLM", "small"),
        lambda config: replace(config, embed=replace(config.embed, scaled=False)),
    ),
    "gemma2's windows alternate": (("Gemma2ForCausalLM", "small"), mixers(turned_over)),
    "gemma2 caps scores": (("Gemma2ForCausalLM", "small"), mixers(lambda mixer: replace(mixer, soft_cap=None))),
    "gemma2 caps logits": (
        ("Gemma2ForCausalLM", "small"),
        lambda config: replace(config, heads={"vocabulary": VocabularyHeadConfig()}),
    ),
    "gemma2 scales scores its way": (("Gemma2ForCausalLM", "small"), mixers(lambda m: replace(m, scale=None))),
    "gemma3's windows have a base": (("Gemma3ForCausalLM", "small"), first_rotary),
    "gemma3 norms queries and keys": (("Gemma3ForCausalLM", "small"), mixers(lambda m: replace(m, qk_norm=None))),
    "qwen3 norms queries and keys": (("Qwen3ForCausalLM", "small"), mixers(lambda m: replace(m, qk_norm=None))),
    "qwen2's later layers slide": (("Qwen2ForCausalLM", "large"), mixers(turned_over)),
    "mistral slides": (("MistralForCausalLM", "small"), mixers(lambda m: replace(m, pattern=Causal()))),
    "olmo2 norms all heads": (("Olmo2ForCausalLM", "small"), mixers(lambda m: replace(m, qk_norm=None))),
    "smollm3 has layers without positions": (("SmolLM3ForCausalLM", "small"), first_rotary),
    "stablelm turns a part of a head": (
        ("StableLmForCausalLM", "small"),
        mixers(lambda mixer: replace(mixer, rotary=replace(mixer.rotary, fraction=1.0))),
    ),
    "stablelm adds side by side": (
        ("StableLmForCausalLM", "large"),
        every(lambda block: replace(block, placement="pre", shared_norm=False)),
    ),
    "mixtral's probabilities sum to 1": (("MixtralForCausalLM", "small"), routed(normalise=False)),
    "granite's branches are scaled": (("GraniteForCausalLM", "small"), every(lambda b: replace(b, branch_scale=1.0))),
    "granite's scores have their factor": (
        ("GraniteForCausalLM", "small"),
        mixers(lambda mixer: replace(mixer, scale=None)),
    ),
    "granite's embedding is scaled": (
        ("GraniteForCausalLM", "small"),
        lambda config: replace(config, embed=replace(config.embed, scale=1.0)),
    ),
    "qwen2's shared expert has a gate": (("Qwen2MoeForCausalLM", "small"), routed(shared_gate=False)),
    "qwen2's probabilities do not sum to 1": (("Qwen2MoeForCausalLM", "small"), routed(normalise=True)),
    "glm turns half of a head": (
        ("GlmForCausalLM", "small"),
        mixers(lambda mixer: replace(mixer, rotary=replace(mixer.rotary, fraction=1.0))),
    ),
    "cohere adds side by side": (
        ("CohereForCausalLM", "small"),
        every(lambda block: replace(block, placement="pre", shared_norm=False)),
    ),
    "cohere2 has layers without positions": (("Cohere2ForCausalLM", "large"), first_rotary),
    "gpt-oss has sinks": (("GptOssForCausalLM", "small"), mixers(lambda mixer: replace(mixer, sinks=False))),
    "gpt-oss clamps its gates": (
        ("GptOssForCausalLM", "small"),
        every(
            lambda b: replace(b, feed_forward=replace(b.feed_forward, expert=replace(b.feed_forward.expert, limit=7.0)))
        ),
    ),
    "mixtral's tokens take two experts": (("MixtralForCausalLM", "small"), routed(active=1)),
}


@pytest.mark.parametrize("trap", TRAPS)
def test_each_trap_matters(trap: str, tmp_path: Path) -> None:
    """The model as it was read gives their logits, and the same weights with the trap sprung do not."""
    key, spring = TRAPS[trap]
    torch.manual_seed(5)
    pair = twins(make(*key), tmp_path, noise=0.1)
    wanted = logits(pair.theirs, GIVEN)
    assert difference(ours_of(pair.ours, GIVEN), wanted, GIVEN.layout.mask) < 1e-5
    sprung = build(spring(pair.ours.config)).eval()
    lost = sprung.load_state_dict(pair.ours.state_dict(), strict=False)
    assert not lost.missing_keys
    assert difference(ours_of(sprung, GIVEN), wanted, GIVEN.layout.mask) > 5e-5


def test_conv1d_is_transposed_and_masks_are_skipped(tmp_path: Path) -> None:
    """Old files hold the causal mask among the weights, and no prefix. Square matrices cannot tell by their shape."""
    pair = twins(make("GPT2LMHeadModel", "small"), tmp_path / "a")
    square = pair.theirs.transformer.h[0].attn.c_proj.weight
    assert torch.equal(pair.ours.stack.blocks[0].mixer.out.weight, square.T)
    tensors = load_file(pair.folder / "model.safetensors")
    old = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    for i in range(2):
        old[f"h.{i}.attn.bias"] = torch.ones(1, 1, 64, 64).tril()
        old[f"h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
    folder = copied(pair.folder, tmp_path / "b", old)
    assert torch.equal(ours_of(load_published(folder).model, GIVEN), ours_of(pair.ours, GIVEN))


def test_heads_are_fused_one_by_one_in_neox(tmp_path: Path) -> None:
    """Query, key and value of a head lie together there, weights and biases; here all queries stand first."""
    pair = twins(make("GPTNeoXForCausalLM", "small"), tmp_path)
    fused = pair.theirs.gpt_neox.layers[1].attention.query_key_value
    for name in ("weight", "bias"):
        theirs, ours = getattr(fused, name), getattr(pair.ours.stack.blocks[1].mixer.qkv, name)
        by_head = theirs.view(4, 3, 8, -1)
        assert torch.equal(ours, torch.cat([by_head[:, part].flatten(0, 1) for part in range(3)]).view(ours.shape))
        assert torch.equal(PerHead(4).split(ours, (32, 32, 32))[0], theirs)


def test_interleaved_pairs_become_halves() -> None:
    """Rows whose rotary pairs lie side by side attend as they should once permuted, weights and biases."""
    heads, kv, size, width = 4, 2, 6, 10
    generator = torch.Generator().manual_seed(0)
    sizes, form = (heads * size, kv * size, kv * size), Interleaved((heads, kv, 0))
    mixer = AttentionConfig(heads, kv, size, rotary=RotaryConfig(50.0), out_bias=False).build(width, nn.ModuleDict())
    projections = []
    for name, shape in (("weight", (width,)), ("bias", ())):
        parts = [torch.randn(rows, *shape, generator=generator, dtype=torch.float64) for rows in sizes]
        joined = torch.cat(form.slices(parts))
        assert all(torch.equal(one, other) for one, other in zip(form.split(joined, sizes), parts))
        getattr(mixer.qkv, name).data = joined
        projections.append(parts)
    mixer.out.weight.data = torch.randn(width, heads * size, generator=generator, dtype=torch.float64)
    x = torch.randn(1, 7, width, generator=generator, dtype=torch.float64)
    q, k, v = ((x @ weight.T + bias).view(1, 7, -1, size) for weight, bias in zip(*projections))
    q, k = side_by_side(q, 50.0), side_by_side(k, 50.0)
    k, v = (part.repeat_interleave(heads // kv, dim=2) for part in (k, v))
    scores = torch.einsum("bthk,bshk->bhts", q, k) / size**0.5
    weights = scores.masked_fill(torch.ones(7, 7).triu(1).bool(), float("-inf")).softmax(-1)
    wanted = torch.einsum("bhts,bshk->bthk", weights, v).flatten(2) @ mixer.out.weight.T
    torch.testing.assert_close(mixer.parallel(x, Layout.full(1, 7)), wanted)


def side_by_side(x: Tensor, theta: float) -> Tensor:
    """Rotary positions as complex numbers: features 2i and 2i + 1 are a pair (Su et al. 2021, equation 34)."""
    steps = torch.arange(0, x.shape[-1], 2, dtype=torch.float64) / x.shape[-1]
    turns = torch.arange(x.shape[1], dtype=torch.float64)[:, None] * theta**-steps
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(turns), turns)[:, None]).flatten(-2)


@pytest.fixture
def long(tmp_path: Path) -> Twins:
    """A Phi-3 whose first training went to 40 positions, and a second to 80."""
    torch.manual_seed(5)
    return twins(make("Phi3ForCausalLM", "large"), tmp_path / "long", noise=0.1)


def test_short_factors_serve_the_original_length(long: Twins) -> None:
    scaling = long.ours.config.stack.blocks[0].mixer.rotary.scaling
    assert (scaling.length, long.ours.config.context) == (40, 40)
    given = batch([40, 12], SYMBOLS)
    assert difference(ours_of(long.ours, given), logits(long.theirs, given), given.layout.mask) < 1e-5
    with pytest.raises(UserError, match=r"70 tokens exceeds the limit of 40"):
        greedy(long.ours, batch([70], SYMBOLS))


def test_long_factors_serve_a_longer_context(long: Twins, tmp_path: Path) -> None:
    """`context` chooses them; then short texts are turned by them too, so that each position is turned in one way."""
    ours, usage = load_published(long.folder, context=80)
    assert ours.config.context == 80
    given = batch([60, 41], SYMBOLS)
    wanted = logits(long.theirs, given)
    assert difference(ours_of(ours, given), wanted, given.layout.mask) < 1e-5
    assert difference(ours_of(long.ours, given), wanted, given.layout.mask) > 1e-3
    for prompt, tokens in zip(rows(given), greedy(ours, given)):
        assert their_greedy(long.theirs, prompt) == tokens.tolist()
    save_published(ours, ours.config, tmp_path / "back", usage)
    assert json.loads((tmp_path / "back" / "config.json").read_text())["max_position_embeddings"] == 80
    back = T.Phi3ForCausalLM.from_pretrained(tmp_path / "back").eval()
    for lengths in ([60, 41], [30, 7]):
        both = batch(lengths, SYMBOLS)
        assert difference(logits(back, both), logits(long.theirs, both), both.layout.mask) < 1e-5


def test_a_context_beyond_the_model_is_refused(long: Twins, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a context of 81 exceeds the model's 80 positions"):
        load_published(long.folder, context=81)
    pair = twins(make("GPT2LMHeadModel", "small"), tmp_path / "gpt2")
    with pytest.raises(UserError, match=r"a context of 65 exceeds the model's 64 positions"):
        load_published(pair.folder, context=65)


def test_longrope_in_its_first_spelling(long: Twins, tmp_path: Path) -> None:
    """Called "su", or "yarn", in a rope_scaling, with the original length beside it."""
    scaling = {"type": "su", **{name: LONGROPE[name] for name in ("short_factor", "long_factor")}}
    old = copied(
        long.folder,
        tmp_path / "old",
        rope_parameters=None,
        rope_scaling=scaling,
        rope_theta=5000.0,
        original_max_position_embeddings=40,
    )
    assert load_published(old).model.config == long.ours.config
    scaling = long.ours.config.stack.blocks[0].mixer.rotary.scaling
    assert isinstance(scaling, LongRopeScaling)
    assert scaling.short == tuple(LONGROPE["short_factor"])


def test_dynamic_scaling_is_made_for_the_context(tmp_path: Path) -> None:
    torch.manual_seed(5)
    config = T.LlamaConfig(**{**SMALL, "max_position_embeddings": 20}, rope_parameters={
        "rope_type": "dynamic", "rope_theta": 100.0, "factor": 2.0
    })  # fmt: skip
    pair = twins(T.LlamaForCausalLM(config), tmp_path / "a", noise=0.1)
    for length, context in ((20, None), (33, 33)):
        ours, usage = load_published(pair.folder, context=context)
        given = batch([length, 4], SYMBOLS)
        assert difference(ours_of(ours, given), logits(pair.theirs, given), given.layout.mask) < 1e-5
        save_published(ours, ours.config, tmp_path / str(length), usage)
        assert load_published(tmp_path / str(length), context=context).model.config == ours.config


def test_experts_are_read_one_by_one_or_stacked(tmp_path: Path) -> None:
    pair = twins(make("MixtralForCausalLM", "small"), tmp_path / "a", noise=0.1)
    one_by_one = load_file(pair.folder / "model.safetensors")
    assert "model.layers.0.block_sparse_moe.experts.3.w2.weight" in one_by_one
    stacked = copied(pair.folder, tmp_path / "b", dict(pair.theirs.state_dict()))
    assert "model.layers.0.mlp.experts.gate_up_proj" in load_file(stacked / "model.safetensors")
    again = load_published(stacked)
    state = pair.ours.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.model.state_dict().items())
    save_published(again.model, again.model.config, tmp_path / "c", again.usage)
    assert load_file(tmp_path / "c" / "model.safetensors").keys() == one_by_one.keys()


def test_feed_forward_of_gpt2_is_not_always_four_times_wide(tmp_path: Path) -> None:
    feed = twins(make("GPT2LMHeadModel", "large"), tmp_path).ours.config.stack.blocks[0].feed_forward
    assert isinstance(feed, MLPConfig)
    assert feed.hidden == 72
