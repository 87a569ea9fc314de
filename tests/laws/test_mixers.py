"""The laws of design over every registered mixer, in float64."""

from __future__ import annotations

import cases
import pytest
import torch
from cases import CAUSAL, MIX_NOTHING, MIXERS, WIDTH, inputs, make_mixer

from headway.layout import Layout
from headway.nn.mixers import select

TOLERANCE = {"rtol": 1e-9, "atol": 1e-10}
close = torch.testing.assert_close
every = pytest.mark.parametrize("name", sorted(MIXERS))
causal = pytest.mark.parametrize("name", CAUSAL)

test_registered = cases.test_every_registered_kind_has_a_case


@causal
@pytest.mark.parametrize("chunks", [[9], [1] * 9, [4, 5], [1, 7, 1], [3, 3, 3]])
def test_any_chunking_of_recurrent_is_parallel(name: str, chunks: list[int]) -> None:
    mixer, x = make_mixer(name), inputs(2, 9, WIDTH)
    whole = mixer.parallel(x, Layout.full(2, 9))
    state, start, parts = mixer.initial_state(2, 9, like=x), 0, []
    for size in chunks:
        y, state = mixer.recurrent(x[:, start : start + size], Layout.full(2, size, start), state)
        parts.append(y)
        start += size
    close(torch.cat(parts, 1), whole, **TOLERANCE)


@causal
def test_long_chunks_pass_the_ring_of_a_window(name: str) -> None:
    mixer, x = make_mixer(name), inputs(1, 200, WIDTH)
    whole = mixer.parallel(x, Layout.full(1, 200))
    with torch.no_grad():
        state = mixer.initial_state(1, 200, like=x)
        first, state = mixer.recurrent(x[:, :150], Layout.full(1, 150), state)
        rest = []
        for t in range(150, 200):
            y, state = mixer.recurrent(x[:, t : t + 1], Layout.full(1, 1, t), state)
            rest.append(y)
    close(torch.cat([first, *rest], 1), whole, **TOLERANCE)


@causal
def test_later_inputs_change_nothing_earlier(name: str) -> None:
    mixer, x = make_mixer(name), inputs(2, 8, WIDTH)
    changed = x.clone()
    changed[:, 5:] += 1.0
    before, after = (mixer.parallel(value, Layout.full(2, 8)) for value in (x, changed))
    close(after[:, :5], before[:, :5], rtol=0, atol=0)
    assert (after[:, 5:] != before[:, 5:]).all(-1).all()


@pytest.mark.parametrize("name", sorted(set(MIXERS) - MIX_NOTHING))
def test_outputs_depend_on_other_tokens(name: str) -> None:
    """A mixer mixes: a causal one carries every token to the next output, any other one reaches both neighbours."""
    mixer, x = make_mixer(name), inputs(2, 6, WIDTH)
    changed = x.clone()
    changed[:, 1] += 1.0
    moved = (mixer.parallel(x, Layout.full(2, 6)) != mixer.parallel(changed, Layout.full(2, 6))).any(-1)
    reached = [2] if name in CAUSAL else [0, 2]
    assert moved[:, reached].all(), f"a change of token 1 does not reach the outputs {reached}: {moved.tolist()}"


def test_a_mixer_that_ignores_other_tokens_breaks_the_law(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MIXERS, "pretender", MIXERS["pointwise"])
    with pytest.raises(AssertionError, match="token 1 does not reach"):
        test_outputs_depend_on_other_tokens("pretender")


@causal
def test_a_stream_of_documents_in_pieces_is_the_stream(name: str) -> None:
    """States that do not grow go on through any number of documents, as training by streams needs."""
    mixer, x = make_mixer(name), inputs(2, 11, WIDTH)
    if mixer.rewindable:
        return
    layout = Layout.packed([[3, 5, 3], [1, 8]], 11)
    whole = mixer.parallel(x, layout)
    state, parts = mixer.initial_state(2, 1, like=x), []
    for columns in (slice(0, 4), slice(4, 5), slice(5, 11)):
        y, state = mixer.recurrent(x[:, columns], Layout(layout.positions[:, columns]), mixer.carry(state))
        parts.append(y)
    close((torch.cat(parts, 1) - whole)[layout.mask], torch.zeros_like(whole[layout.mask]), **TOLERANCE)


@causal
def test_what_is_carried_has_no_gradient_but_that_of_learned_starts(name: str) -> None:
    mixer, x = make_mixer(name), inputs(2, 3, WIDTH).requires_grad_()
    if mixer.rewindable:
        return
    _, state = mixer.recurrent(x, Layout.full(2, 3), mixer.initial_state(2, 1, like=x))
    y, _ = mixer.recurrent(x.detach(), Layout(torch.tensor([[3, 4, 5], [3, 0, 1]])), mixer.carry(state))
    starts = [p for key, p in mixer.named_parameters() if key.startswith("start.")]
    found = torch.autograd.grad(y.square().sum(), [x, *starts], allow_unused=True)
    assert found[0] is None
    assert all(gradient is not None and gradient.any() for gradient in found[1:])


@every
def test_packed_is_separate(name: str) -> None:
    mixer, x = make_mixer(name), inputs(2, 10, WIDTH)
    sizes = [[3, 5, 2], [1, 6]]
    packed = mixer.parallel(x, Layout.packed(sizes, 10))
    for row, lengths in enumerate(sizes):
        start = 0
        for size in lengths:
            alone = mixer.parallel(x[row : row + 1, start : start + size], Layout.full(1, size))
            close(packed[row, start : start + size], alone[0], **TOLERANCE)
            start += size


@every
def test_padding_changes_nothing(name: str) -> None:
    mixer, x = make_mixer(name), inputs(3, 7, WIDTH)
    lengths = [7, 4, 1]
    out = mixer.parallel(x, Layout.padded(lengths, 7))
    assert out.isfinite().all()
    for row, size in enumerate(lengths):
        alone = mixer.parallel(x[row : row + 1, :size], Layout.full(1, size))
        close(out[row, :size], alone[0], **TOLERANCE)


@causal
def test_ragged_prefill_then_decode_is_whole(name: str) -> None:
    mixer, x = make_mixer(name), inputs(3, 9, WIDTH)
    whole = mixer.parallel(x, Layout.full(3, 9))
    lengths = torch.tensor([5, 2, 4])
    with torch.no_grad():
        state = mixer.initial_state(3, 9, like=x)
        prefix, state = mixer.recurrent(x[:, :5], Layout.padded(lengths, 5), state)
        for row, size in enumerate(lengths):
            close(prefix[row, :size], whole[row, :size], **TOLERANCE)
        for step in range(4):
            at = lengths + step
            y, state = mixer.recurrent(x[torch.arange(3), at][:, None], Layout(at[:, None]), state)
            close(y[:, 0], whole[torch.arange(3), at], **TOLERANCE)


@causal
def test_rows_hold_still_while_others_go_on(name: str) -> None:
    mixer, x = make_mixer(name), inputs(2, 6, WIDTH)
    whole = mixer.parallel(x, Layout.full(2, 6))
    with torch.no_grad():
        state = mixer.initial_state(2, 6, like=x)
        _, state = mixer.recurrent(x[:, :3], Layout.full(2, 3), state)
        _, state = mixer.recurrent(x[:, 3:5], Layout(torch.tensor([[3, 4], [-1, -1]])), state)
        y, _ = mixer.recurrent(torch.stack([x[0, 5:6], x[1, 3:4]]), Layout(torch.tensor([[5], [3]])), state)
    close(y[0, 0], whole[0, 5], **TOLERANCE)
    close(y[1, 0], whole[1, 3], **TOLERANCE)


@causal
def test_select_commutes(name: str) -> None:
    mixer, x = make_mixer(name), inputs(3, 6, WIDTH)
    rows = torch.tensor([2, 0, 0, 1])
    with torch.no_grad():
        state = mixer.initial_state(3, 6, like=x)
        _, state = mixer.recurrent(x[:, :5], Layout.full(3, 5), state)
        chosen, _ = mixer.recurrent(x[rows, 5:], Layout.full(4, 1, 5), select(state, rows))
        straight, _ = mixer.recurrent(x[:, 5:], Layout.full(3, 1, 5), state)
    close(chosen, straight[rows], **TOLERANCE)


@pytest.mark.parametrize("name", sorted(set(MIXERS) - cases.TRUNCATED))
def test_gradients(name: str) -> None:
    mixer, x = make_mixer(name), inputs(2, 5, WIDTH).requires_grad_()
    layout = Layout.packed([[2, 3], [4]], 5)
    weights = [p for p in mixer.parameters() if p.requires_grad]
    kept = layout.mask[..., None]
    assert torch.autograd.gradcheck(lambda x, *_: mixer.parallel(x, layout) * kept, (x, *weights[:2]), fast_mode=True)


@causal
def test_gradients_of_recurrent_are_those_of_parallel(name: str) -> None:
    mixer, x = make_mixer(name), inputs(2, 6, WIDTH).requires_grad_()
    (whole,) = torch.autograd.grad(mixer.parallel(x, Layout.full(2, 6)).square().sum(), x)
    state = mixer.initial_state(2, 6, like=x)
    a, state = mixer.recurrent(x[:, :4], Layout.full(2, 4), state)
    b, _ = mixer.recurrent(x[:, 4:], Layout.full(2, 2, 4), state)
    (parts,) = torch.autograd.grad(torch.cat([a, b], 1).square().sum(), x)
    close(parts, whole, **TOLERANCE)


@causal
def test_unused_buffers_never_leak(name: str) -> None:
    """torch.empty is poisoned with NaN, and so is what a state holds beyond the positions that were written."""
    mixer, x = make_mixer(name), inputs(2, 6, WIDTH)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        with torch.no_grad():
            state = mixer.initial_state(2, 12, like=x)
            if mixer.rewindable:
                for buffer in state:
                    buffer[:, 6:] = torch.nan
            out, _ = mixer.recurrent(x, Layout.padded([6, 3], 6), state)
    finally:
        torch.use_deterministic_algorithms(before)
    assert out[0].isfinite().all()
    assert out[1, :3].isfinite().all()


@pytest.mark.parametrize("name", sorted(set(MIXERS) - set(CAUSAL)))
def test_what_sees_later_tokens_does_not_generate(name: str) -> None:
    mixer, x = make_mixer(name), inputs(1, 2, WIDTH)
    with pytest.raises(Exception, match="cannot generate"):
        mixer(x, Layout.full(1, 2), mixer.initial_state(1, 2, like=x))
