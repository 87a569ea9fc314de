"""The scans of fast weights: plain, quadratic and chunkwise forms are one, forward and backward."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from cases import CAUSAL, WIDTH, inputs, make_mixer

from headway.errors import ConfigError, UserError
from headway.layout import Layout
from headway.nn.kernels import (
    delta,
    delta_quadratic,
    delta_reference,
    deterministic,
    linear_scan,
    linear_scan_quadratic,
    linear_scan_reference,
    links,
    links_reference,
)
from headway.nn.mixers import (
    DeltaConfig,
    DynamicLinksConfig,
    FastWeightsConfig,
    LinearAttentionConfig,
    MixerConfig,
)

TOLERANCE = {"rtol": 1e-9, "atol": 1e-9}
close = torch.testing.assert_close
B, T, H, K, V = 3, 11, 2, 4, 5
LAYOUTS = {
    "dense": Layout.full(B, T),
    "later": Layout.full(B, T, 3),
    "padded": Layout.padded([11, 4, 1], T),
    "packed": Layout.packed([[3, 8], [2, 2, 5], [11]], T),
    "mixed": Layout(
        torch.tensor([[5, 6, 7, 0, 1, -1, -1, 0, 1, 2, 3], [-1] * 11, [-1, -1, 3, 4, -1, 5, 6, -1, 7, 8, 9]])
    ),
}
SIZES = [1, 3, 4, 11, 64]
Form = Callable[..., tuple[torch.Tensor, torch.Tensor]]


def results(form: Form, layout: str, decay: bool, carried: bool, beta: bool, **options: int) -> list[torch.Tensor]:
    """Outputs where there are tokens, the last state, and the gradients of both by everything."""
    q, k, v = (inputs(B, T, H, n, seed=s).requires_grad_() for s, n in enumerate((K, K, V)))
    gates = [inputs(B, T, H, seed=s).requires_grad_() for s in (3, 4)]
    state = inputs(B, H, K, V, seed=5).requires_grad_()
    where = LAYOUTS[layout]
    values = [q, F.normalize(k, dim=-1), v, *([torch.sigmoid(gates[0])] if beta else [])]
    out, last = form(
        *values,
        where,
        log_decay=F.logsigmoid(gates[1]) if decay else None,
        state=state if carried else None,
        **options,
    )
    out = out * where.mask[..., None, None]
    total = (out * inputs(*out.shape, seed=8)).sum() + (last * inputs(*last.shape, seed=9)).sum()
    leaves = [q, k, v, *gates, state]
    return [out, last, *(g for g in torch.autograd.grad(total, leaves, materialize_grads=True))]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("decay", [False, True])
@pytest.mark.parametrize("carried", [False, True])
@pytest.mark.parametrize("rule", ["add", "delta"])
def test_all_forms_are_one(layout: str, decay: bool, carried: bool, rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    forms = {"add": (linear_scan_reference, linear_scan_quadratic, linear_scan)}
    forms["delta"] = (delta_reference, delta_quadratic, delta)
    reference, quadratic, fast = forms[rule]
    wanted = results(reference, layout, decay, carried, rule == "delta")
    found = [results(quadratic, layout, decay, carried, rule == "delta")]
    for cached in (2**18, 200):  # all chunks at once, and few at a time
        monkeypatch.setattr(sys.modules["headway.nn.kernels.linear_scan"], "_CACHED", cached)
        found += [results(fast, layout, decay, carried, rule == "delta", chunk=size) for size in SIZES]
    for each in found:
        for got, want in zip(each, wanted):
            close(got, want, **TOLERANCE)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("carried", [False, True])
def test_links(layout: str, carried: bool) -> None:
    drive, x = inputs(B, T, 5).requires_grad_(), inputs(B, T, 4, seed=1).requires_grad_()
    state, where = inputs(B, 5, 4, seed=2).requires_grad_(), LAYOUTS[layout]

    def both(form: Form, **options: int) -> list[torch.Tensor]:
        y, last = form(drive, x, where, decay=0.8, rate=0.3, state=state if carried else None, **options)
        y = y * where.mask[..., None]
        total = (y * inputs(*y.shape, seed=8)).sum() + (last * inputs(*last.shape, seed=9)).sum()
        return [y, last, *torch.autograd.grad(total, [drive, x, state], materialize_grads=True)]

    wanted = both(links_reference)
    for size in SIZES:
        for got, want in zip(both(links, chunk=size), wanted):
            close(got, want, **TOLERANCE)


@pytest.mark.parametrize("rule", ["add", "delta"])
def test_long_documents_neither_overflow_nor_drift(rule: str) -> None:
    """fp32 over 5,000 tokens with decays from hardly any to e^-30, beside float64 token by token."""
    q, k, v = (inputs(1, 5000, 2, 8, seed=s) for s in range(3))
    k, beta = F.normalize(k, dim=-1), torch.sigmoid(inputs(1, 5000, 2, seed=3))
    log_decay = -torch.tensor([1e-4, 30.0], dtype=torch.float64) * torch.sigmoid(inputs(1, 5000, 2, seed=4))
    values = [q, k, v] + ([beta] if rule == "delta" else [])
    plain, fast = (delta_reference, delta) if rule == "delta" else (linear_scan_reference, linear_scan)
    where = Layout.full(1, 5000)
    with torch.no_grad():
        wanted, _ = plain(*values, where, log_decay=log_decay)
    single = [x.float().requires_grad_() for x in values]
    low = log_decay.float().requires_grad_()
    found, last = fast(*single, where, log_decay=low)
    assert (found - wanted).abs().max() < 1e-4 * wanted.abs().max()
    for gradient in torch.autograd.grad(found.square().mean() + last.sum(), [*single, low]):
        assert gradient.isfinite().all()


def test_same_key_again_is_replaced_by_delta_and_summed_by_adding() -> None:
    k = torch.tensor([1.0, 0.0]).expand(1, 4, 1, 2)
    v = torch.arange(1.0, 5.0).view(1, 4, 1, 1)
    where = Layout.full(1, 4)
    replaced, _ = delta(k, k, v, torch.ones(1, 4, 1), where)
    summed, _ = linear_scan(k, k, v, where)
    assert replaced.flatten().tolist() == [1, 2, 3, 4]
    assert summed.flatten().tolist() == [1, 3, 6, 10]


def test_fast_weights_of_1992_are_unnormalised_linear_attention() -> None:
    first = FastWeightsConfig(4, strength=False).build(WIDTH, torch.nn.ModuleDict())
    second = LinearAttentionConfig(4, features="identity", normalise=False).build(WIDTH, torch.nn.ModuleDict())
    torch.nn.init.normal_(first.qkv.weight)
    torch.nn.init.normal_(first.out.weight)
    second.load_state_dict(first.state_dict())
    x = inputs(2, 9, WIDTH).float()
    assert torch.equal(first.parallel(x, Layout.full(2, 9)), second.parallel(x, Layout.full(2, 9)))


@pytest.mark.parametrize("size", [0, -3])
def test_impossible_chunks_are_refused(size: int) -> None:
    q = inputs(1, 4, 1, 2)
    with pytest.raises(ConfigError, match="set at least 1 token"):
        linear_scan(q, q, q, Layout.full(1, 4), chunk=size)
    with pytest.raises(ConfigError, match="set at least 1 token"):
        DeltaConfig(chunk=size)


@pytest.mark.parametrize("form", [linear_scan, linear_scan_reference, linear_scan_quadratic])
def test_no_tokens_are_refused(form: Form) -> None:
    q = inputs(1, 0, 1, 2)
    with pytest.raises(UserError, match="0 tokens"):
        form(q, q, q, Layout(torch.zeros(1, 0, dtype=torch.long)))


@pytest.mark.parametrize(
    ("kind", "settings", "match"),
    [
        (LinearAttentionConfig, {"features": "silu"}, "set normalise to false"),
        (DeltaConfig, {"features": "identity"}, "key_norm l2"),
        (DeltaConfig, {"nu": 0}, "nu is 0"),
        (DynamicLinksConfig, {"decay": 0.0}, "decay is 0.0"),
    ],
)
def test_settings_that_cannot_be_are_refused(kind: type[MixerConfig], settings: dict, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        kind(**settings)


@pytest.mark.parametrize("name", [name for name in CAUSAL if not name.startswith("attention")])
def test_deterministic_rows_do_not_depend_on_the_batch(name: str) -> None:
    """In fp32: alone, in a batch, as a whole and step by step give the same bits."""
    mixer, x = make_mixer(name).float(), inputs(5, 7, WIDTH).float()
    with torch.no_grad(), deterministic():
        whole = mixer.parallel(x, Layout.full(5, 7))
        assert torch.equal(mixer.parallel(x[3:4], Layout.full(1, 7)), whole[3:4])
        state, steps = mixer.initial_state(5, 7, like=x), []
        for t in range(7):
            y, state = mixer.recurrent(x[:, t : t + 1], Layout.full(5, 1, t), state)
            steps.append(y)
    assert torch.equal(torch.cat(steps, 1), whole)
