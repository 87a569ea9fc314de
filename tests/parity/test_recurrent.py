"""torch's own recurrent layers: the same outputs, final states and gradients, with copied weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from headway.config import override
from headway.layout import Layout
from headway.nn.kernels import deterministic
from headway.nn.mixers import ElmanConfig, GRUConfig, LSTMConfig, MixerConfig, Recurrence

TOLERANCE = {"rtol": 1e-10, "atol": 1e-10}
LENGTHS = [6, 3, 1, 6]
close = torch.testing.assert_close

TWINS: dict[str, tuple[MixerConfig, Any]] = {
    "lstm": (LSTMConfig(out=False), nn.LSTM(5, 5, batch_first=True)),
    "gru": (GRUConfig(out=False, reset_after=True), nn.GRU(5, 5, batch_first=True)),
    "elman": (ElmanConfig(out=False), nn.RNN(5, 5, batch_first=True)),
}
every = pytest.mark.parametrize("name", TWINS)


def twins(name: str, dtype: torch.dtype = torch.float64) -> tuple[Recurrence, Any]:
    config, theirs = TWINS[name]
    torch.manual_seed(3)
    theirs = theirs.to(dtype)
    ours = config.build(5, nn.ModuleDict()).to(dtype)
    assert isinstance(ours, Recurrence)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(0, 0.6)
        if name == "gru":  # torch adds two biases up where one is enough
            theirs.bias_hh_l0[:10] = 0
            ours.hidden.bias.copy_(theirs.bias_hh_l0[10:])
        ours.input.weight.copy_(theirs.weight_ih_l0)
        ours.hidden.weight.copy_(theirs.weight_hh_l0)
        ours.input.bias.copy_(theirs.bias_ih_l0 + (0 if name == "gru" else theirs.bias_hh_l0))
    return ours, theirs


def gradients(y: Tensor, module: Any, x: Tensor) -> list[Tensor]:
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
    if isinstance(module, Recurrence):
        over = [module.input.weight, module.hidden.weight, module.input.bias]
    else:
        over = [module.weight_ih_l0, module.weight_hh_l0, module.bias_ih_l0]
    return list(torch.autograd.grad((y * weights).sum(), [x, *over]))


@every
@pytest.mark.parametrize("exact", [False, True])
def test_outputs_and_gradients(name: str, exact: bool) -> None:
    ours, theirs = twins(name)
    x = torch.randn(4, 6, 5, dtype=torch.float64, requires_grad=True)
    with deterministic(exact):
        y = ours.parallel(x, Layout.full(4, 6))
        found = gradients(y, ours, x)
    wanted = theirs(x)[0]
    close(y, wanted, **TOLERANCE)
    for one, other in zip(found, gradients(wanted, theirs, x)):
        close(one, other, **TOLERANCE)


@every
def test_rows_of_several_lengths(name: str) -> None:
    ours, theirs = twins(name)
    x = torch.randn(4, 6, 5, dtype=torch.float64, requires_grad=True)
    layout = Layout.padded(LENGTHS, 6)
    y, state = ours.recurrent(x, layout, ours.initial_state(4, 6, like=x))
    packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor(LENGTHS), batch_first=True, enforce_sorted=False)
    out, ends = theirs(packed)
    wanted, _ = nn.utils.rnn.pad_packed_sequence(out, batch_first=True)
    close(y, wanted, **TOLERANCE)
    close(ours.parallel(x, layout), wanted, **TOLERANCE)
    for one, other in zip(ours.final(state), ends if isinstance(ends, tuple) else (ends,)):
        close(one, other[0], **TOLERANCE)
    for one, other in zip(gradients(y, ours, x), gradients(wanted, theirs, x)):
        close(one, other, **TOLERANCE)


@every
def test_starts_that_are_handed_over(name: str) -> None:
    ours, theirs = twins(name)
    x = torch.randn(2, 4, 5, dtype=torch.float64)
    vectors = tuple(torch.randn(2, size, dtype=torch.float64) for size in ours.state_sizes)
    state = ours.state_from(vectors, 4, like=x)
    y, _ = ours.recurrent(x, Layout.full(2, 4), state)
    theirs_start = tuple(v[None] for v in vectors)
    close(y, theirs(x, theirs_start if name == "lstm" else theirs_start[0])[0], **TOLERANCE)


@every
def test_single_precision_takes_the_fastest_kernel(name: str) -> None:
    """On a CPU that is oneDNN's for LSTMs of full rows: close to the others' rounding."""
    ours, theirs = twins(name, torch.float32)
    x = torch.randn(4, 6, 5, requires_grad=True)
    y, wanted = ours.parallel(x, Layout.full(4, 6)), theirs(x)[0]
    close(y, wanted, rtol=1e-5, atol=1e-5)
    for one, other in zip(gradients(y, ours, x), gradients(wanted, theirs, x)):
        close(one, other, rtol=1e-4, atol=1e-4)


def test_a_forget_gate_starts_open() -> None:
    mixer = override(LSTMConfig(), {"forget_bias": 2.0}).build(4, nn.ModuleDict())
    assert mixer.input.bias.tolist() == [0.0] * 4 + [2.0] * 4 + [0.0] * 8  # type: ignore[union-attr]
