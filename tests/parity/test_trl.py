"""Preference losses are those of TRL's trainers."""

from __future__ import annotations

import json

import pytest
import torch
import trl_losses as trl
from torch import Tensor

from headway.domains.chat.preference import PreferenceConfig, PreferredEndings

WANTED = json.loads(trl.FILE.read_text())["losses"]


def losses(name: str, smoothing: float = 0.0) -> Tensor:
    """The losses of TRL's pairs, of the settings that a user writes."""
    tokens, mask = trl.token_log_probs(1)
    reference = trl.token_log_probs(2)[0]
    config = PreferenceConfig(loss=name, beta=trl.BETAS[name], target_margin=trl.GAMMA, smoothing=smoothing, anchor=1.0)
    loss = PreferredEndings(config.pair_loss).pair_loss
    sums = (values.sum(1).view(2, -1) for values in (tokens, reference, mask))
    chosen, rejected = loss.rewards(*sums)
    return loss.losses(chosen - rejected)


def test_every_loss_is_that_of_trl() -> None:
    for name in ("dpo", "ipo"):  # TRL returns their means
        assert float(losses(name).mean()) == pytest.approx(WANTED[name], rel=1e-9)
    assert losses("simpo").tolist() == pytest.approx(WANTED["simpo"], rel=1e-9)
    assert losses("simpo", trl.SMOOTHING).tolist() == pytest.approx(WANTED["simpo-smoothed"], rel=1e-9)
    assert losses("orpo").tolist() == pytest.approx(WANTED["orpo"], rel=1e-5)  # TRL's is in fp32


def test_certain_endings_have_a_finite_loss_and_gradient() -> None:
    """The odds of an ending of probability 1 are infinite."""
    loss = PreferenceConfig(loss="orpo", anchor=1.0).pair_loss
    certain = torch.zeros(2, 1, requires_grad=True)
    chosen, rejected = loss.rewards(certain, torch.zeros(2, 1), torch.ones(2, 1, dtype=torch.long))
    loss.losses(chosen - rejected).sum().backward()
    assert certain.grad is not None
    assert bool(certain.grad.isfinite().all())
