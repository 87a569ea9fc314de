"""Recurrent mixers by the equations of their papers, and how they fit into models."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from headway.config import override
from headway.errors import ConfigError
from headway.layout import Layout
from headway.learn.adapters import LoRAConfig, merged, with_adapter
from headway.nn.kernels import deterministic, products
from headway.nn.mixers import (
    AttentionConfig,
    Bidirectional,
    BidirectionalConfig,
    ElmanConfig,
    GRUConfig,
    LSTMConfig,
    MixerConfig,
    MLSTMConfig,
    MultiplicativeConfig,
    SigmaPiConfig,
)
from headway.nn.models import ModelConfig, Prompt, build, describe
from headway.nn.models.presets import preset

close = torch.testing.assert_close
WIDTH = 4


def made(config: MixerConfig, seed: int = 1, width: int = WIDTH) -> nn.Module:
    """With every weight drawn, in float64."""
    mixer = config.build(width, nn.ModuleDict()).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.7)
    return mixer


def drawn(*shape: int, seed: int = 5) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_hand(mixer: nn.Module, x: Tensor) -> tuple[list[Tensor], Tensor]:
    """What each gate gets from the input, and the matrices by which it sees h."""
    gates = [x @ w.T + b for w, b in zip(mixer.input.weight.split(WIDTH), mixer.input.bias.split(WIDTH))]  # type: ignore[operator, union-attr]
    return gates, mixer.hidden.weight.split(WIDTH)  # type: ignore[operator, union-attr]


def logistic(x: Tensor) -> Tensor:
    return 1 / (1 + (-x).exp())


def test_the_cell_of_1997() -> None:
    """Its squashing functions as the paper has them, equations of appendix A.1: g in [-2, 2], h in [-1, 1]."""
    mixer, x = made(LSTMConfig(out=False, forget_gate=False)), drawn(1, 5, WIDTH)
    (i, g, o), (ui, ug, uo) = by_hand(mixer, x[0])
    h = c = torch.zeros(WIDTH, dtype=torch.float64)
    for t in range(5):
        gate_in, gate_out = logistic(i[t] + ui @ h), logistic(o[t] + uo @ h)
        c = c + gate_in * (4 * logistic(g[t] + ug @ h) - 2)
        h = gate_out * (2 * logistic(c) - 1)
        close(mixer.parallel(x[:, : t + 1], Layout.full(1, t + 1))[0, t], h)  # type: ignore[operator]
    _, state = mixer.recurrent(x, Layout.full(1, 5), mixer.initial_state(1, 5, like=x))  # type: ignore[operator]
    close(state.now[1][0], c)


@pytest.mark.parametrize("squash", ["tanh", "logistic"])
def test_peepholes_see_the_old_cell_and_the_new_one(squash: str) -> None:
    config = override(LSTMConfig(out=False, peepholes=True), {"squash": squash})
    mixer, x = made(config), drawn(1, 4, WIDTH)
    (i, f, g, o), (ui, uf, ug, uo) = by_hand(mixer, x[0])
    pi, pf, po = mixer.peepholes.split(WIDTH)  # type: ignore[union-attr]
    stretched = squash == "logistic"
    h = c = torch.zeros(WIDTH, dtype=torch.float64)
    for t in range(4):
        a = g[t] + ug @ h
        new = logistic(f[t] + uf @ h + pf * c) * c
        new = new + logistic(i[t] + ui @ h + pi * c) * (4 * logistic(a) - 2 if stretched else a.tanh())
        h, c = logistic(o[t] + uo @ h + po * new) * (2 * logistic(new) - 1 if stretched else new.tanh()), new
    close(mixer.parallel(x, Layout.full(1, 4))[0, 3], h)  # type: ignore[operator]


@pytest.mark.parametrize("after", [False, True])
def test_where_the_reset_gate_acts(after: bool) -> None:
    mixer, x = made(GRUConfig(out=False, reset_after=after)), drawn(1, 4, WIDTH)
    (r, z, n), (ur, uz, un) = by_hand(mixer, x[0])
    h = torch.zeros(WIDTH, dtype=torch.float64)
    for t in range(4):
        reset, keep = logistic(r[t] + ur @ h), logistic(z[t] + uz @ h)
        inner = reset * (un @ h + mixer.hidden.bias) if after else un @ (reset * h)  # type: ignore[operator, union-attr]
        h = keep * h + (1 - keep) * (n[t] + inner).tanh()
    close(mixer.parallel(x, Layout.full(1, 4))[0, 3], h)  # type: ignore[operator]


def test_truncated_gradients_stop_at_the_context() -> None:
    """Elman 1990: the last output depends on its input and, through the context as a constant, on nothing before."""
    mixer, x = made(ElmanConfig(out=False, truncate=True)), drawn(1, 3, WIDTH).requires_grad_()
    whole = made(ElmanConfig(out=False))
    close(mixer.parallel(x, Layout.full(1, 3)), whole.parallel(x, Layout.full(1, 3)))  # type: ignore[operator]
    (dx,) = torch.autograd.grad(mixer.parallel(x, Layout.full(1, 3))[0, 2].sum(), x)  # type: ignore[operator]
    assert (dx[0, :2] == 0).all()
    assert (dx[0, 2] != 0).all()
    with pytest.raises(ConfigError, match="learned_start to false"):
        made(ElmanConfig(truncate=True, learned_start=True))


@pytest.mark.parametrize("activation", ["tanh", "logistic"])
def test_second_order_units_by_hand(activation: str) -> None:
    mixer, x = made(override(SigmaPiConfig(out=False), {"activation": activation})), drawn(1, 3, WIDTH)
    tensor = mixer.weigh.weight.view(WIDTH, WIDTH, WIDTH)  # type: ignore[operator, union-attr]
    (h,) = mixer.start  # type: ignore[misc]
    for t in range(3):
        a = torch.einsum("ijk,j,k->i", tensor, h, x[0, t]) + mixer.weigh.bias  # type: ignore[union-attr]
        h = a.tanh() if activation == "tanh" else logistic(a)
    close(mixer.parallel(x, Layout.full(1, 3))[0, 2], h)  # type: ignore[operator]


def test_factors_are_the_full_tensor() -> None:
    """Sutskever et al. 2011 without W_hx is the second-order network whose tensor has the factors' CP form."""
    config = MultiplicativeConfig(cells=3, factors=5, learned_start=True)
    factored, full = made(config), made(SigmaPiConfig(cells=3, activation="tanh"), 2)
    x = drawn(2, 6, WIDTH)
    with torch.no_grad():
        into, added = factored.input.weight.split((5, 3))  # type: ignore[operator, union-attr]
        added.zero_()
        tensor = torch.einsum("if,fj,fk->ijk", factored.hidden.weight, factored.factor.weight, into)  # type: ignore[union-attr]
        full.weigh.weight.copy_(tensor.reshape(3, -1))  # type: ignore[operator, union-attr]
        full.weigh.bias.copy_(factored.input.bias)  # type: ignore[operator, union-attr]
        full.start[0].copy_(factored.start[0])  # type: ignore[operator, index]
        full.out.load_state_dict(factored.out.state_dict())  # type: ignore[operator, union-attr]
    where = Layout.packed([[4, 2], [5]], 6)
    kept = where.mask
    close(factored.parallel(x, where)[kept], full.parallel(x, where)[kept], rtol=1e-12, atol=1e-12)  # type: ignore[operator]


def test_mlstm_by_hand() -> None:
    mixer, x = made(MLSTMConfig(out=False)), drawn(1, 4, WIDTH)
    into, *gates = mixer.input.weight.split(WIDTH)  # type: ignore[operator, union-attr]
    h = c = torch.zeros(WIDTH, dtype=torch.float64)
    for t in range(4):
        m = (into @ x[0, t]) * (mixer.factor.weight @ h)  # type: ignore[operator, union-attr]
        parts = zip(gates, mixer.hidden.weight.split(WIDTH), mixer.input.bias.split(WIDTH))  # type: ignore[operator, union-attr]
        i, f, g, o = (w @ x[0, t] + u @ m + b for w, u, b in parts)
        c = logistic(f) * c + logistic(i) * g.tanh()
        h = logistic(o) * c.tanh()
    close(mixer.parallel(x, Layout.full(1, 4))[0, 3], h)  # type: ignore[operator]


def test_both_directions_are_those_of_torch() -> None:
    ours = made(BidirectionalConfig(LSTMConfig(out=False)))
    assert isinstance(ours, Bidirectional)
    theirs = nn.LSTM(WIDTH, WIDTH, batch_first=True, bidirectional=True).double()
    with torch.no_grad():
        for end, part in (("l0", ours.forwards), ("l0_reverse", ours.backwards)):
            getattr(theirs, f"weight_ih_{end}").copy_(part.input.weight)
            getattr(theirs, f"weight_hh_{end}").copy_(part.hidden.weight)
            getattr(theirs, f"bias_ih_{end}").copy_(part.input.bias)
            getattr(theirs, f"bias_hh_{end}").zero_()
    x, lengths = drawn(3, 5, WIDTH), [5, 2, 4]
    packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor(lengths), batch_first=True, enforce_sorted=False)
    out, (h, c) = theirs(packed)
    y = nn.utils.rnn.pad_packed_sequence(out, batch_first=True)[0]
    where = Layout.padded(lengths, 5)
    assert ours.out is not None
    with torch.no_grad():
        close(ours.parallel(x, where), ours.out(y))
        found, ends = ours.encode(x, where)
        close(found, ours.out(y))
        for (our_h, our_c), their_h, their_c in zip(ends, h, c):
            close(our_h, their_h)
            close(our_c, their_c)
        close(ours.encode(x, where)[1][1][0], h[1])
    with pytest.raises(ConfigError, match="is already bidirectional"):
        BidirectionalConfig(BidirectionalConfig()).build(WIDTH, nn.ModuleDict())


def test_a_start_that_is_handed_over_holds_for_every_document() -> None:
    mixer, x = made(GRUConfig()), drawn(2, 5, WIDTH)
    vectors = (drawn(2, WIDTH, seed=8),)
    state = mixer.state_from(vectors, 5, like=x)  # type: ignore[operator]
    first, state = mixer.recurrent(x[:, :3], Layout.full(2, 3), state)  # type: ignore[operator]
    again, _ = mixer.recurrent(x[:, :3], Layout.full(2, 3), state)  # type: ignore[operator]
    close(first, again)
    one, state = mixer.recurrent(x[:, :1], Layout.full(2, 1), state)  # type: ignore[operator]
    close(one, first[:, :1])
    assert mixer.final(state)[0].shape == (2, WIDTH)  # type: ignore[operator]
    with pytest.raises(ConfigError, match=r"sizes \(4, 4\) cannot initialise GRU, whose state has sizes \(4,\)"):
        mixer.state_from((vectors[0], vectors[0]), 5, like=x)  # type: ignore[operator]
    with pytest.raises(ConfigError, match="the state of SelfAttention is not a set of vectors"):
        AttentionConfig(2).build(WIDTH, nn.ModuleDict()).final(None)


@pytest.mark.parametrize("kind", [LSTMConfig, GRUConfig, ElmanConfig, SigmaPiConfig, MLSTMConfig])
def test_a_state_takes_documents_one_after_the_other(kind: type[MixerConfig]) -> None:
    """Cut anywhere: the rest of a document goes on from the state, and the next one starts anew."""
    mixer, x = made(kind()), drawn(2, 9, WIDTH)
    where = Layout.packed([[4, 5], [2, 1, 4]], 9)
    state, parts = mixer.initial_state(2, 9, like=x), []  # type: ignore[operator]
    for columns in (slice(0, 3), slice(3, 4), slice(4, 9)):
        y, state = mixer.recurrent(x[:, columns], Layout(where.positions[:, columns]), state)  # type: ignore[operator]
        parts.append(y)
    kept = where.mask
    close(torch.cat(parts, 1)[kept], mixer.parallel(x, where)[kept])  # type: ignore[operator]


def test_gradients_reach_what_handed_the_start_over() -> None:
    mixer, x = made(LSTMConfig()), drawn(2, 3, WIDTH)
    vectors = tuple(drawn(2, WIDTH, seed=seed).requires_grad_() for seed in (1, 2))

    def features(*start: Tensor) -> Tensor:
        state = mixer.state_from(start, 3, like=x)  # type: ignore[operator]
        return mixer.recurrent(x, Layout.padded([3, 2], 3), state)[0]  # type: ignore[operator]

    assert torch.autograd.gradcheck(features, vectors)


def test_rows_of_nothing_change_nothing() -> None:
    mixer, x = made(LSTMConfig()), drawn(2, 3, WIDTH)
    state = mixer.state_from((drawn(2, WIDTH), drawn(2, WIDTH)), 5, like=x)  # type: ignore[operator]
    empty = Layout(torch.full((2, 3), -1))
    assert mixer.parallel(x, empty).shape == x.shape  # type: ignore[operator]
    _, after = mixer.recurrent(x, empty, state)  # type: ignore[operator]
    close(after.now, state.now)


def small(name: str, mixer: object) -> ModelConfig:
    return override(preset(name), {"width": 32, "depth": 2, "heads": 2, "symbols": 50, "context": 24, "mixer": mixer})


@pytest.mark.parametrize("mixer", ["elman", "lstm", "gru", "multiplicative", "mlstm", {"kind": "sigma_pi", "cells": 8}])
def test_every_mixer_can_be_named(mixer: object) -> None:
    decoder = build(small("gpt2", mixer))
    both = small("bert-base", mixer)
    assert isinstance(both.stack.blocks[1].mixer, BidirectionalConfig)  # type: ignore[attr-defined]
    for model in (decoder, build(both)):
        x = model(torch.randint(0, 50, (2, 9))).x
        assert x.shape == (2, 9, 32)
    pair = small("transformer-base", mixer)
    kinds = [part.stack.blocks[0].mixer.kind for part in (pair.encoder, pair.decoder)]  # type: ignore[attr-defined]
    assert kinds == ["bidirectional", mixer if isinstance(mixer, str) else "sigma_pi"]


def test_named_mixers_keep_what_they_share() -> None:
    config = override(small("bert-base", {"kind": "lstm", "cells": 48}), {"mixer": "lstm"})
    assert config.stack.blocks[0].mixer == BidirectionalConfig(LSTMConfig(out=False))  # type: ignore[attr-defined]
    config = override(small("gpt2", {"kind": "lstm", "cells": 48}), {"mixer": {"kind": "gru", "reset_after": True}})
    assert config.stack.blocks[0].mixer == GRUConfig(cells=48, reset_after=True)  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="sees later tokens"):
        small("gpt2", "bidirectional")
    with pytest.raises(ConfigError, match="sees only earlier tokens"):
        small("bert-base", {"kind": "attention", "pattern": {"kind": "causal"}})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (LSTMConfig(cells=0), "cells is 0; set 1 or more"),
        (MLSTMConfig(factors=0), "factors is 0; set 1 or more"),
    ],
)
def test_misfits_are_refused(config: MixerConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        made(config)


def test_the_state_does_not_grow() -> None:
    facts = describe(small("gpt2", {"kind": "lstm", "cells": 48}))
    assert (facts["state_bytes"], facts["state_bytes_per_token"]) == (
        2 * 4 * 48 * 4,
        0,
    )  # h, c and what they start from
    assert any("lstm, 48 cells" in line for line in facts["tree"])
    facts = describe(small("gpt2", "attention"))
    assert (facts["state_bytes"], facts["state_bytes_per_token"]) == (0, 2 * 2 * 32 * 4)
    facts = describe(small("bert-base", "gru"))
    assert (facts["state_bytes"], facts["state_bytes_per_token"]) == (0, 0)
    assert any("gru, bidirectional" in line for line in facts["tree"])


@pytest.mark.parametrize("mixer", ["elman", "lstm", "gru", "mlstm"])
def test_deterministic_rows_do_not_depend_on_the_batch(mixer: str) -> None:
    model = build(small("gpt2", mixer)).eval()
    tokens = torch.randint(0, 50, (3, 8), generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), deterministic():
        whole = model.logits(tokens)  # type: ignore[operator]
        for row in range(3):
            assert torch.equal(model.logits(tokens[row : row + 1]), whole[row : row + 1])  # type: ignore[operator]
        lengths = torch.tensor([5, 1, 3])
        logits, decoding = model.start(Prompt(tokens[:, :5], Layout.padded(lengths, 5)), 8)  # type: ignore[operator]
        for step in range(3):
            assert torch.equal(logits, whole[torch.arange(3), lengths - 1 + step])
            logits, decoding = model.step(tokens[torch.arange(3), lengths + step], decoding)  # type: ignore[operator]


@pytest.mark.parametrize("mixer", ["elman", "lstm", "gru", "mlstm"])
@pytest.mark.parametrize("how", ["products", "autocast"])
def test_low_precision_stays_close(mixer: str, how: str) -> None:
    model = build(small("gpt2", mixer)).eval()
    tokens, where = torch.randint(0, 50, (4, 16)), Layout.padded([16, 9, 16, 2], 16)

    def features_and_gradient(layout: Layout) -> tuple[Tensor, Tensor]:
        model.zero_grad()
        x = model(tokens, layout).x
        (x * torch.linspace(-1, 1, 32)).sum().backward()
        return x.detach().float(), model.stack.blocks[0].mixer.input.weight.grad.clone()  # type: ignore[union-attr]

    for layout in (Layout.full(4, 16), where):
        exact, gradient = features_and_gradient(layout)
        with products("bf16") if how == "products" else torch.autocast("cpu", dtype=torch.bfloat16):
            rough, rough_gradient = features_and_gradient(layout)
        assert (rough - exact).abs().mean() < 0.02
        assert (rough_gradient - gradient).norm() < 0.05 * gradient.norm()


@pytest.mark.parametrize("mixer", ["lstm", "gru", {"kind": "lstm", "forget_gate": False}])
def test_adapters_reach_recurrent_weights(mixer: object) -> None:
    config = small("gpt2", mixer)
    model = with_adapter(build(config).eval(), LoRAConfig(rank=2), (), 1)
    plain = build(config).eval()
    tokens = torch.randint(0, 50, (2, 7))
    close(model(tokens).x, plain(tokens).x, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("lora.b"):
                parameter.normal_(0, 0.5)
    model(tokens).x.square().sum().backward()
    hidden = model.stack.blocks[0].mixer.hidden  # type: ignore[union-attr]
    assert hidden.lora.b.grad.norm() > 0
    plain.load_state_dict(merged(model), strict=False)  # the head's table is the embedding's
    close(plain(tokens).x, model(tokens).x, rtol=1e-4, atol=1e-4)
