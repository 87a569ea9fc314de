"""Losses of pairs of endings, as functions of their log probabilities: DPO, IPO, ORPO and SimPO.

A loss has two steps. Each ending gets a reward; the loss of a pair depends on the margin, which is the reward of the
chosen ending minus that of the rejected one. Log probabilities are sums over an ending's tokens, in nats.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

PairLossName = Literal["dpo", "ipo", "orpo", "simpo"]


@dataclass(frozen=True)
class PairLoss:
    """The loss of pairs of endings. `beta`, `smoothing` and `target_margin` are the settings of the same names."""

    beta: float
    smoothing: float = 0.0
    target_margin: float = 0.0
    default_beta: ClassVar[float] = 0.1
    reads_reference: ClassVar[bool] = True  # whether it compares with the log probabilities of the start model
    reads_smoothing: ClassVar[bool] = True

    def rewards(
        self, log_probs: Float[Tensor, "2 B"], reference: Float[Tensor, "2 B"], lengths: Int[Tensor, "2 B"]
    ) -> Float[Tensor, "2 B"]:
        """The rewards of the chosen and rejected endings, which have `lengths` tokens."""
        raise NotImplementedError

    def losses(self, margins: Float[Tensor, "B"]) -> Float[Tensor, "B"]:
        """The loss of each pair."""
        raise NotImplementedError


class DirectPreference(PairLoss):
    """DPO, -log sigmoid of the margin (Rafailov et al. 2023, equation 7), mixed with that of the reversed choice by the
    weight `smoothing` (Mitchell 2023).

    A reward is beta log(p / reference p).
    """

    def rewards(self, log_probs: Tensor, reference: Tensor, lengths: Tensor) -> Tensor:
        return self.beta * (log_probs - reference)

    def losses(self, margins: Float[Tensor, "B"]) -> Float[Tensor, "B"]:
        return -(1 - self.smoothing) * F.logsigmoid(margins) - self.smoothing * F.logsigmoid(-margins)


class IdentityPreference(PairLoss):
    """IPO, (h - 1 / (2 beta))^2 (Azar et al. 2023, equation 17, where beta is tau), so that the margin stays finite
    even for choices that are always the same.

    h is the difference of log(p / reference p), each divided by the ending's tokens as in TRL, which confirmed with the
    authors that their results have this form. A reward is beta times that ratio: the margin approaches 1/2.
    """

    reads_smoothing = False

    def rewards(self, log_probs: Tensor, reference: Tensor, lengths: Tensor) -> Tensor:
        return self.beta * (log_probs - reference) / lengths

    def losses(self, margins: Float[Tensor, "B"]) -> Float[Tensor, "B"]:
        return ((margins - 0.5) / self.beta) ** 2


class OddsRatioPreference(PairLoss):
    """The odds-ratio term of ORPO, -beta log sigmoid of the margin (Hong et al. 2024, equation 7), without a reference
    model. Equation 6 adds it, weighted by lambda, here beta, to the cross-entropy of the chosen endings, here the
    anchor.

    A reward is the log odds of an ending, log(p / (1 - p)), with the geometric mean p of its tokens' probabilities.
    """

    reads_reference, reads_smoothing = False, False

    def rewards(self, log_probs: Tensor, reference: Tensor, lengths: Tensor) -> Tensor:
        mean = (log_probs / lengths).clamp(max=-torch.finfo(log_probs.dtype).eps)  # the odds of p = 1 are infinite
        return mean - torch.log(-torch.expm1(mean))

    def losses(self, margins: Float[Tensor, "B"]) -> Float[Tensor, "B"]:
        return -self.beta * F.logsigmoid(margins)


class SimplePreference(DirectPreference):
    """SimPO, -log sigmoid(margin - gamma) (Meng et al. 2024, equation 6), without a reference model; gamma is
    `target_margin`. `smoothing` is that of DPO.

    A reward is beta / |y| log p, with |y| tokens in the ending.
    """

    reads_reference = False
    default_beta = 2.0

    def rewards(self, log_probs: Tensor, reference: Tensor, lengths: Tensor) -> Tensor:
        return self.beta * log_probs / lengths

    def losses(self, margins: Float[Tensor, "B"]) -> Float[Tensor, "B"]:
        return super().losses(margins - self.target_margin)


PAIR_LOSSES: dict[PairLossName, type[PairLoss]] = {
    "dpo": DirectPreference,
    "ipo": IdentityPreference,
    "orpo": OddsRatioPreference,
    "simpo": SimplePreference,
}
