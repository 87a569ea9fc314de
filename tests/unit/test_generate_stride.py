"""Perplexity in overlapping windows, held to the plain loop over them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from generate_models import language_model, random_rows

from headway.errors import UserError
from headway.generate import strided_nats
from headway.nn.models import Transformer


def by_hand(model: Transformer, ids: list[int], context: int, stride: int) -> tuple[float, int]:
    """The usual loop: windows of `context` tokens; of each, the tokens after the end of the one before."""
    total, count, before = 0.0, 0, 0
    for begin in range(0, len(ids), stride):
        end = min(begin + context, len(ids))
        window = torch.tensor([ids[begin:end]])
        with torch.no_grad():
            logits = model.logits(window)[0, :-1]
        nats = F.cross_entropy(logits, window[0, 1:], reduction="none")
        new = end - max(before, begin + 1)  # a window cannot foretell its own first token
        total, count, before = total + float(nats[len(nats) - new :].sum()), count + new, end
        if end == len(ids):
            break
    return total, count


@pytest.mark.parametrize("length", [2, 9, 32, 33, 40, 79])
@pytest.mark.parametrize("stride", [1, 7, 16, 31])
def test_windows_score_what_the_plain_loop_does(length: int, stride: int) -> None:
    model = language_model()
    [ids] = random_rows([length], 23)
    total, count = by_hand(model, ids, 32, stride)
    for batch_tokens in (1, 100, 8192):
        found = strided_nats(model, ids, stride=stride, batch_tokens=batch_tokens)
        assert found.tokens == count == length - 1
        assert found.total == pytest.approx(total, rel=1e-5)


def test_a_shorter_context_than_the_models() -> None:
    model = language_model()
    [ids] = random_rows([50], 23)
    assert strided_nats(model, ids, 10, 3).total == pytest.approx(by_hand(model, ids, 10, 3)[0], rel=1e-5)
    assert strided_nats(model, ids) == strided_nats(model, ids, 32, 16)


def test_a_stride_of_one_gives_each_token_all_the_context_there_is() -> None:
    model = language_model()
    [ids] = random_rows([60], 23)
    total = 0.0
    for place in range(1, 60):
        before = torch.tensor([ids[max(0, place - 31) : place]])
        with torch.no_grad():
            total -= float(model.logits(before)[0, -1].log_softmax(-1)[ids[place]])
    assert strided_nats(model, ids, stride=1).total == pytest.approx(total, rel=1e-5)


def test_the_model_is_as_it_was() -> None:
    model = language_model().train()
    strided_nats(model, [2, 3, 4])
    assert model.training


@pytest.mark.parametrize(
    ("ids", "settings", "message"),
    [
        ([5], {}, "cannot score a sequence of 1 tokens"),
        ([5, 99], {}, "sequence contains id 99"),
        ([5, 6], {"stride": 32}, "stride is 32; use 1 to 31"),
        ([5, 6], {"stride": 0}, "stride is 0; use 1 to 31"),
        ([5, 6], {"context": 33}, "context is 33; use at least 2 and at most the model's 32"),
        ([5, 6], {"context": 1}, "context is 1; use at least 2"),
    ],
)
def test_bad_input_is_refused(ids: list[int], settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        strided_nats(language_model(), ids, **settings)


def test_a_model_of_any_length_needs_a_context() -> None:
    model = language_model(context=None)
    with pytest.raises(UserError, match="no context limit"):
        strided_nats(model, [2, 3, 4])
    [ids] = random_rows([20], 23)
    assert strided_nats(model, ids, context=8).tokens == 19
