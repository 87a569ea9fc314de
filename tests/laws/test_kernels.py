"""Each fast kernel equals its plain reference, forward and backward."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from cases import inputs

from headway.layout import Layout
from headway.nn.kernels import (
    ElmanWeights,
    GRUWeights,
    LSTMWeights,
    RunSteps,
    View,
    attend,
    attend_reference,
    bf16_attention,
    convolve,
    convolve_reference,
    deterministic,
    elman,
    elman_reference,
    gelu_tanh,
    gelu_tanh_reference,
    gru,
    gru_reference,
    linear,
    linear_cross_entropy,
    linear_cross_entropy_reference,
    lstm,
    lstm_reference,
    products,
    relu_squared,
    relu_squared_reference,
    rms_norm,
    rms_norm_reference,
    rotate,
)
from headway.nn.parts.dropout import Dropout
from headway.visibility import Causal, Full, Local, Pattern, Prefix

close = torch.testing.assert_close
LAYOUTS = {
    "dense": Layout.full(3, 7),
    "padded": Layout.padded([7, 3, 5], 7),
    "packed": Layout.packed([[3, 4], [2, 2, 2], [6]], 7),
    "grouped": Layout(
        torch.arange(7).expand(3, 7), group=torch.tensor([[0, 1, 1, 1, 0, 0, 0], [2, 2, 0, 0, 3, 3, 0], [0] * 7])
    ),
}
PATTERNS: dict[str, Pattern] = {
    "full": Full(),
    "causal": Causal(),
    "window": Causal(3),
    "local": Local(1),
    "prefix": Prefix(3),
}


def gradients(out: torch.Tensor, values: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    weights = inputs(*out.shape, seed=9) if out.dim() else torch.tensor(1.7, dtype=out.dtype)
    return torch.autograd.grad((out * weights).sum(), values)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("extra", ["plain", "grouped", "bias", "sinks", "scale"])
def test_attend(layout: str, pattern: str, extra: str) -> None:
    where = LAYOUTS[layout]
    groups = 2 if extra == "grouped" else 4
    q = inputs(3, 7, 4, 6, seed=1).requires_grad_()
    k, v = (inputs(3, 7, groups, 6, seed=s).requires_grad_() for s in (2, 3))
    options = {
        "plain": {},
        "grouped": {},
        "bias": {"bias": inputs(1, 4, 7, 7, seed=4)},
        "sinks": {"sinks": inputs(4, seed=5), "bias": inputs(3, 4, 7, 7, seed=4)},
        "scale": {"scale": 0.3},
    }[extra]
    view = View(PATTERNS[pattern], where, where)
    kept = where.mask[..., None, None]
    fast, plain = (f(q, k, v, view, **options) * kept for f in (attend, attend_reference))
    close(fast, plain)
    for got, wanted in zip(gradients(fast, [q, k, v]), gradients(plain, [q, k, v])):
        close(got, wanted)


def test_who_sees_whom_word_by_word() -> None:
    where = Layout.packed([[2, 3]], 6)
    weights = []
    from headway.nn.kernels import recording

    with recording(weights.append):
        attend(*(inputs(1, 6, 1, 2, seed=s) for s in range(3)), View(Causal(2), where, where))
    seen = (weights[0][0, 0] > 0).int().tolist()
    assert seen[:5] == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [0, 0, 1, 0, 0, 0],
        [0, 0, 1, 1, 0, 0],
        [0, 0, 0, 1, 1, 0],
    ]


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("bias", [False, True])
def test_cross_entropy(chunk: int, smoothing: float, bias: bool) -> None:
    x, weight = inputs(17, 5).requires_grad_(), inputs(11, 5, seed=1).requires_grad_()
    b = inputs(11, seed=2).requires_grad_() if bias else None
    labels = torch.arange(17) % 11
    values = [x, weight] + ([b] if b is not None else [])
    fast = linear_cross_entropy(x, weight, labels, b, smoothing=smoothing, chunk=chunk)
    plain = linear_cross_entropy_reference(x, weight, labels, b, smoothing=smoothing)
    close(fast, plain)
    for got, wanted in zip(gradients(fast, values), gradients(plain, values)):
        close(got, wanted)


def test_cross_entropy_of_nothing_is_zero() -> None:
    x, weight = inputs(0, 5).requires_grad_(), inputs(11, 5).requires_grad_()
    loss = linear_cross_entropy(x, weight, torch.zeros(0, dtype=torch.long))
    assert loss.item() == 0
    assert torch.autograd.grad(loss, weight)[0].abs().sum() == 0


@pytest.mark.parametrize("turned", [2, 4, 6])
def test_rotate(turned: int) -> None:
    x = inputs(2, 5, 3, 6).requires_grad_()
    angles = inputs(2, 5, 1, turned // 2, seed=1)
    first, second = x[..., :turned].chunk(2, dim=-1)
    cos, sin = angles.cos(), angles.sin()
    fast = rotate(x, cos, sin)
    plain = torch.cat([first * cos - second * sin, second * cos + first * sin, x[..., turned:]], dim=-1)
    close(fast, plain)
    close(gradients(fast, [x]), gradients(plain, [x]))


@pytest.mark.parametrize("size", [1, 1000, 200_001])
def test_gelu_tanh(size: int) -> None:
    x = (3 * inputs(size, seed=1)).requires_grad_()
    fast, plain = gelu_tanh(x), gelu_tanh_reference(x)
    close(fast, plain)
    close(gradients(fast, [x]), gradients(plain, [x]))
    with torch.no_grad():
        close(gelu_tanh(x), plain)


def test_relu_squared() -> None:
    x = inputs(4, 8).requires_grad_()
    fast, plain = relu_squared(x), relu_squared_reference(x)
    close(fast, plain)
    close(gradients(fast, [x]), gradients(plain, [x]))


def test_rms_norm() -> None:
    x = inputs(4, 3, 8).requires_grad_()
    fast, plain = (f(x, 1e-3) for f in (rms_norm, rms_norm_reference))
    close(fast, plain)
    close(gradients(fast, [x]), gradients(plain, [x]))
    assert torch.autograd.gradcheck(lambda x: rms_norm(x, 1e-3), x)


RUNS = {
    "even": RunSteps.equal(3, 5),
    "ragged": RunSteps((4, 4, 2, 1), torch.tensor([10, 9, 5, 7])),
    "one": RunSteps.equal(2, 1),
}
SCANS = {
    "lstm": (lstm, lstm_reference, 4, 2, {}),
    "peepholes": (lstm, lstm_reference, 4, 2, {}),
    "gru": (gru, gru_reference, 3, 1, {}),
    "gru-after": (gru, gru_reference, 3, 1, {}),
    "elman": (elman, elman_reference, 1, 1, {}),
    "elman-logistic": (elman, elman_reference, 1, 1, {"logistic": True}),
    "elman-truncated": (elman, elman_reference, 1, 1, {"truncate": True}),
}


@pytest.mark.parametrize("runs", RUNS)
@pytest.mark.parametrize("name", SCANS)
@pytest.mark.parametrize("use", ["outputs", "ends", "both"])
def test_scans(name: str, runs: str, use: str) -> None:
    fast, plain, gates, vectors, options = SCANS[name]
    steps, size = RUNS[runs], 6
    x = inputs(sum(steps.sizes), 4, seed=1).requires_grad_()
    start = [inputs(steps.sizes[0], size, seed=2 + i).requires_grad_() for i in range(vectors)]
    shapes = [(gates * size, 4), (gates * size,), (gates * size, size)]
    shapes += {"peepholes": [(3 * size,)], "gru-after": [(3 * size,)]}.get(name, [])
    weights = [inputs(*shape, seed=4 + i).requires_grad_() for i, shape in enumerate(shapes)]
    made = {"lstm": LSTMWeights, "peepholes": LSTMWeights, "gru": GRUWeights, "gru-after": GRUWeights}
    matrices = made.get(name, ElmanWeights)(*weights)

    def run(scan: Any) -> torch.Tensor:
        y, ends = scan(x, tuple(start), steps, matrices, **options)
        parts = [y] if use == "outputs" else list(ends) if use == "ends" else [y, *ends]
        return torch.cat(parts)

    got, wanted = run(fast), run(plain)
    close(got, wanted)
    values = [x, *start, *weights]
    options = {"allow_unused": True, "materialize_grads": True}
    weighted = [(z * inputs(*z.shape, seed=9)).sum() for z in (got, wanted)]
    for one, other in zip(*(torch.autograd.grad(total, values, **options) for total in weighted)):
        close(one, other)


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
@pytest.mark.parametrize("columns", [1, 16, 27, 36, 75, 101])
@pytest.mark.parametrize("rows", [2, 6, 33])
def test_deterministic_products_do_not_depend_on_where_a_row_begins(kind: torch.dtype, columns: int, rows: int) -> None:
    """Rows of an odd length begin at all places of a line of memory."""
    weight, offset = inputs(rows, columns, seed=1).to(kind), inputs(rows, seed=2).to(kind)
    same = inputs(columns, seed=3).to(kind).expand(37, columns).contiguous()
    with deterministic():
        for bias in (None, offset):
            found = linear(same, weight, bias)
            assert torch.equal(found, found[:1].expand_as(found))


@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_deterministic_attention_drops_the_weights_that_attention_drops(layout: Layout, sinks: bool) -> None:
    """From the same random numbers, which are those of a layer; a rate drops weights, too."""
    q, k, v = (inputs(3, 7, heads, 4, seed=heads).requires_grad_() for heads in (4, 2, 2))
    logits, layer, view = inputs(4, seed=5) if sinks else None, Dropout(0.5), View(Causal(), layout, layout)

    def attended(is_deterministic: bool, seed: int = 1) -> list[torch.Tensor]:
        layer.generator = torch.Generator().manual_seed(seed)
        with deterministic(is_deterministic):
            out = attend(q, k, v, view, sinks=logits, dropout=layer)[layout.mask]
        return [out, *torch.autograd.grad(out.square().sum(), (q, k, v))]

    close(attended(True), attended(False))
    assert not torch.equal(attended(True)[0], attended(True, 2)[0])
    with deterministic(), torch.random.fork_rng([]):
        torch.manual_seed(0)
        assert not torch.equal(attend(q, k, v, view, dropout=0.5), attend(q, k, v, view, dropout=0.5))
        assert torch.equal(attend(q, k, v, view), attend(q, k, v, view, dropout=layer.eval()))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("taps", "stride", "reach"), [(3, 1, 1), (3, 2, 1), (4, 2, 0), (5, 3, 2)])
def test_convolve(taps: int, stride: int, reach: int, bias: bool) -> None:
    x, weight, offset = inputs(2, 9, 11, 3, seed=1), inputs(6, taps * taps * 3, seed=2), inputs(6, seed=3)
    values = [value.requires_grad_() for value in (x, weight, offset)][: 3 if bias else 2]
    given = (x, weight, offset if bias else None, taps, stride, reach)
    fast, plain = (f(*given) for f in (convolve, convolve_reference))
    close(fast, plain)
    close(gradients(fast, values), gradients(plain, values))
    with deterministic():
        alone = torch.cat([convolve(x[i : i + 1], *given[1:]) for i in range(2)])
        assert torch.equal(convolve(*given), alone)


def test_rough_convolutions_round_their_factors_and_nothing_else() -> None:
    x, weight, offset = inputs(4, 8, 8, 16, seed=1), inputs(32, 9 * 16, seed=2), inputs(32, seed=3)
    values = [value.float().requires_grad_() for value in (x, weight, offset)]
    exact = convolve(*values, 3, 1, 1)  # type: ignore[arg-type]
    with products("bf16"):
        rough = convolve(*values, 3, 1, 1)  # type: ignore[arg-type]
    assert rough.dtype == exact.dtype
    for found, wanted in zip((rough, *gradients(rough.double(), values)), (exact, *gradients(exact.double(), values))):
        assert (found - wanted).abs().max() < 0.01 * wanted.abs().max()


@pytest.mark.parametrize(("rows", "many"), [(64, True), (63, False)])
def test_rough_products_round_what_has_rows_enough(rows: int, many: bool) -> None:
    x, weight, bias = inputs(rows, 48, seed=1), inputs(40, 48, seed=2), inputs(40, seed=3)
    values = [value.float().requires_grad_() for value in (x, weight, bias)]
    exact = linear(values[0], values[1], values[2])
    with products("bf16"):
        rough, kept = (linear(values[0], values[1], values[2], rounded) for rounded in (False, True))
    assert rough.dtype == exact.dtype
    assert kept.dtype == (torch.bfloat16 if many else exact.dtype)
    assert torch.equal(rough, kept.float())
    for found, wanted in zip((rough, *gradients(rough.double(), values)), (exact, *gradients(exact.double(), values))):
        assert found.dtype == wanted.dtype
        assert torch.equal(found, wanted) is not many
        assert (found - wanted).abs().max() < 0.01 * wanted.abs().max()


def test_rough_cross_entropy_is_close() -> None:
    x, weight = (value.float().requires_grad_() for value in (inputs(70, 32, seed=1), inputs(50, 32, seed=2)))
    labels = torch.arange(70) % 50
    exact = linear_cross_entropy(x, weight, labels, chunk=32)
    with products("bf16"):
        rough = linear_cross_entropy(x, weight, labels, chunk=32)
    close(rough, exact, rtol=0.01, atol=0)
    for found, wanted in zip(gradients(rough.double(), [x, weight]), gradients(exact.double(), [x, weight])):
        assert found.dtype == wanted.dtype
        assert (found - wanted).norm() < 0.01 * wanted.norm()


def test_gelu_of_bf16_is_computed_in_fp32() -> None:
    x = (4 * inputs(70_000, seed=1)).bfloat16().requires_grad_()
    wide = x.detach().float().requires_grad_()
    found, wanted = gelu_tanh(x), gelu_tanh(wide)
    assert torch.equal(found, wanted.bfloat16())
    found.sum().backward()
    wanted.sum().backward()
    assert x.grad is not None
    assert wide.grad is not None
    assert torch.equal(x.grad, wide.grad.bfloat16())


@pytest.mark.parametrize(
    ("length", "size", "groups", "rounded"),
    [(256, 64, 2, True), (255, 64, 2, False), (256, 32, 2, False), (256, 64, 1, False)],
)
@pytest.mark.parametrize("pattern", [Causal(), Full()])
def test_rough_products_round_attention_of_long_rows(
    length: int, size: int, groups: int, rounded: bool, pattern: Pattern
) -> None:
    shapes = ((2, length, 2, size), (2, length, groups, size), (2, length, groups, size))
    values = [inputs(*shape, seed=i).float().requires_grad_() for i, shape in enumerate(shapes)]
    layout = Layout.full(2, length)
    exact = attend(*values, View(pattern, layout, layout), scale=0.2)  # type: ignore[arg-type]
    with products("bf16"):
        rough = attend(*values, View(pattern, layout, layout), scale=0.2)  # type: ignore[arg-type]
    assert rough.dtype == exact.dtype
    assert torch.equal(rough, exact) is not rounded
    for found, wanted in zip((rough, *gradients(rough.double(), values)), (exact, *gradients(exact.double(), values))):
        assert (found - wanted).norm() < 0.01 * wanted.norm()


def test_rough_attention_rounds_what_has_no_mask_and_nothing_else() -> None:
    q, k, v = (torch.randn(2, 7, 3, 16, generator=torch.Generator().manual_seed(n)) for n in range(3))
    dense, ragged = Layout.full(2, 7), Layout.padded([7, 4])
    for layout, rounded in ((dense, True), (ragged, False)):
        view = View(Full(), layout, layout)
        exact = attend(q, k, v, view)
        with bf16_attention(True):
            rough = attend(q, k, v, view)
        assert rough.dtype == exact.dtype
        assert torch.equal(rough, exact) is not rounded
        assert (rough - exact)[layout.mask].abs().max() < 0.03
    with bf16_attention(False):
        assert torch.equal(attend(q, k, v, View(Full(), dense, dense)), attend(q, k, v, View(Full(), dense, dense)))


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("pattern", [Full(), Causal(), Causal(3), Local(2), Prefix(2)], ids=repr)
def test_flex_attention_sees_what_the_mask_shows(pattern: Pattern, monkeypatch: pytest.MonkeyPatch) -> None:
    """GPUs run it compiled; here its masks and its scores run eagerly, with grouped heads, documents and padding."""
    from headway.nn.kernels import flex

    def block_mask(mask: Any, *arguments: Any, **options: Any) -> Any:
        return create_block_mask(inspect.unwrap(mask), *arguments, **options)  # torch counts the mask's arguments

    create_block_mask = flex.create_block_mask
    monkeypatch.setattr(flex, "create_block_mask", block_mask)
    monkeypatch.setattr(flex, "_compiled", lambda function: function)
    packed, longer = Layout.packed([[3, 5], [6]], 9), Layout.packed([[7, 4], [2]], 12)
    group = torch.tensor([[0, 0, 0, 1, 1, 1, 0, 0, 0], [0, 2, 2, 0, 0, 0, 0, 0, 0]])
    grouped = Layout(packed.positions, group=group)
    padded, dense = Layout.padded([4, 9]), Layout.full(2, 9)
    for layout, key in ((padded, padded), (dense, dense), (packed, packed), (grouped, grouped), (packed, longer)):
        q, k, v = inputs(2, 9, 4, 16), inputs(2, key.length, 2, 16, seed=1), inputs(2, key.length, 2, 16, seed=2)
        found = flex.attend_flex(q, k, v, pattern, layout, key, 0.3)
        view = View(pattern, layout, key)
        expected = attend_reference(q, k, v, view, scale=0.3)
        has_keys = layout.mask & view.mask[:, 0].any(-1)  # a softmax over no keys is NaN in the reference
        torch.testing.assert_close(found[has_keys], expected[has_keys])
