"""Mixture of experts with top-k routing."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from headway.config import register
from headway.errors import ConfigError
from headway.layout import Layout
from headway.parts.feedforward import FeedForwardConfig, GatedConfig, Terms
from headway.parts.projection import Projection


@register("experts")
@dataclass(frozen=True)
class ExpertsConfig(FeedForwardConfig):
    """`count` experts of which each token uses `active`; `balance` and `z_loss` weigh the auxiliary losses."""

    count: int = 8  # experts
    active: int = 2  # experts that each token uses
    expert: FeedForwardConfig = GatedConfig()  # what each expert is
    normalise: bool = True  # whether the weights of a token's experts sum to 1
    balance: float = 0.01  # weight of the loss that spreads tokens evenly over experts
    z_loss: float = 0.0  # weight of the loss that keeps the router's logits small

    def __post_init__(self) -> None:
        if not 1 <= self.active <= self.count:
            raise ConfigError(f"active {self.active} of {self.count} experts; choose from 1 to {self.count}")

    def build(self, width: int) -> nn.Module:
        return Experts(self, width)


class Experts(nn.Module):
    """Each token goes to its `active` most probable experts and adds their outputs by probability.

    Shazeer et al. 2017; balance loss of Fedus et al. 2021, equation 4: E sum_e f_e P_e, with f the share of assignments
    and P the mean probability, over tokens that are no padding. z-loss of Zoph et al. 2022, equation 5.
    """

    def __init__(self, config: ExpertsConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.router = Projection(width, config.count, bias=False)
        self.experts = nn.ModuleList(config.expert.build(width) for _ in range(config.count))

    def forward(self, x: Float[Tensor, "B T D"], layout: Layout) -> tuple[Float[Tensor, "B T D"], Terms]:
        tokens = x.reshape(-1, x.shape[-1])
        logits = self.router(tokens).float() if x.dtype.itemsize < 4 else self.router(tokens)
        probabilities = logits.softmax(-1)
        weights, chosen = probabilities.topk(self.config.active, dim=-1)
        if self.config.normalise:
            weights = weights / weights.sum(-1, keepdim=True)
        out = torch.zeros_like(tokens)
        for index, expert in enumerate(self.experts):
            rows, slots = (chosen == index).nonzero(as_tuple=True)
            part, _ = expert(tokens[rows][None], layout)
            out = out.index_add(0, rows, part[0] * weights[rows, slots, None].to(part.dtype))
        return out.view_as(x), self._terms(logits, probabilities, chosen, layout.keep.reshape(-1))

    def _terms(self, logits: Tensor, probabilities: Tensor, chosen: Tensor, keep: Tensor) -> Terms:
        kept = keep.to(probabilities.dtype)[:, None]
        tokens = kept.sum().clamp(min=1)
        assigned = torch.zeros_like(probabilities).scatter(1, chosen, 1.0) * kept
        share = assigned.sum(0) / (tokens * self.config.active)
        mean = (probabilities * kept).sum(0) / tokens
        balance = self.config.balance * self.config.count * (share * mean).sum()
        z = self.config.z_loss * (logits.logsumexp(-1).square() * kept[:, 0]).sum() / tokens
        return {"balance": balance, "z_loss": z} if self.config.z_loss else {"balance": balance}
