"""Log probabilities of given texts."""

from __future__ import annotations

import pytest
import torch
from generate_models import BEGIN, END, language_model, random_rows, translator

from headway.errors import UserError
from headway.generate import score_ids, score_targets
from headway.layout import Layout

TEXTS = random_rows([5, 1, 30, 2, 12, 33], 23)


def by_hand(text: list[int], first: int, start: int, stop: int) -> list[float]:
    """log p of the symbols from `first` on, read from `start` to before `stop`."""
    with torch.inference_mode():
        logp = language_model().logits(torch.tensor([text[start:stop]])).log_softmax(-1)[0]
    return [float(logp[t - 1 - start, text[t]]) for t in range(first, stop + 1) if t < len(text)]


def test_texts_are_scored_symbol_by_symbol() -> None:
    for budget in (1, 8192):
        found = score_ids(language_model(), TEXTS, batch_tokens=budget)
        for text, row in zip(TEXTS, found):
            assert row == pytest.approx(by_hand(text, 1, 0, len(text) - 1), abs=1e-4) if len(text) > 1 else row == []


def test_long_texts_are_scored_in_windows() -> None:
    text = random_rows([80], 23, seed=2)[0]
    [found] = score_ids(language_model(), [text], stride=24)
    wanted = by_hand(text, 1, 0, 32)
    for start in (24, 48):
        wanted += by_hand(text, len(wanted) + 1, start, min(start + 32, 79))
    assert found == pytest.approx(wanted, abs=1e-4)
    assert len(found) == 79
    for stride in (1, 32, None):
        [other] = score_ids(language_model(), [text], stride=stride)
        assert len(other) == 79
        assert other[:32] == pytest.approx(found[:32], abs=1e-4)


def test_targets_are_scored_with_their_end() -> None:
    model, sources, targets = translator(), random_rows([4, 2, 7], 23), random_rows([3, 0, 6], 23, seed=1)
    found = score_targets(model, sources, targets, bos=BEGIN, eos=END)
    for source, target, row in zip(sources, targets, found):
        with torch.inference_mode():
            layouts = Layout.full(1, len(source)), Layout.full(1, len(target) + 1)
            x = model(torch.tensor([source]), layouts[0], torch.tensor([[BEGIN, *target]]), layouts[1]).x
            logp = model.heads["vocabulary"](x)[0].log_softmax(-1)
        assert row == pytest.approx([float(logp[t, s]) for t, s in enumerate([*target, END])], abs=1e-4)


def test_bad_input_is_refused() -> None:
    with pytest.raises(UserError, match="stride is 33; use 1 to 32, the context"):
        score_ids(language_model(), TEXTS, stride=33)
    with pytest.raises(UserError, match="sequence contains id 99"):
        score_ids(language_model(), [[2, 99]])
    with pytest.raises(UserError, match="1 sources do not match 2 targets"):
        score_targets(translator(), [[2]], [[2], [3]], bos=BEGIN, eos=END)
    with pytest.raises(UserError, match="target of 41 tokens, including eos, exceeds the context of 40"):
        score_targets(translator(), [[2]], [[2] * 40], bos=BEGIN, eos=END)
    with pytest.raises(UserError, match="source has 0 tokens"):
        score_targets(translator(), [[]], [[2]], bos=BEGIN, eos=END)


def test_nothing_to_score() -> None:
    assert score_ids(language_model(), []) == []
    assert score_targets(translator(), [], [], bos=BEGIN, eos=END) == []
