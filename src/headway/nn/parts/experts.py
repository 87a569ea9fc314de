"""Mixtures of experts with top-k routing."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from headway.config_kinds import register
from headway.errors import ConfigError
from headway.layout import Layout
from headway.nn.parts.feedforward import FeedForwardConfig, GatedConfig, Terms
from headway.nn.parts.projection import Projection


@register("experts")
@dataclass(frozen=True)
class ExpertsConfig(FeedForwardConfig):
    """A mixture of experts with top-k routing and auxiliary losses."""

    count: int = 8  # number of experts
    active: int = 2  # experts per token
    expert: FeedForwardConfig = GatedConfig()  # layer of each expert
    normalise: bool = True  # whether the weights of a token's experts sum to 1
    balance: float = 0.01  # weight of the loss that spreads tokens evenly over experts
    z_loss: float = 0.0  # weight of the loss that keeps the router's logits small

    def __post_init__(self) -> None:
        if not 1 <= self.active <= self.count:
            raise ConfigError(f"active is {self.active} of {self.count} experts; set it from 1 to {self.count}")

    def build(self, width: int) -> nn.Module:
        return Experts(self, width)


class Experts(nn.Module):
    """Each token goes to its `active` most probable experts, whose outputs are added weighted by probability.

    Shazeer et al. 2017; balance loss of Fedus et al. 2021, equation 4: E sum_e f_e P_e, with f the share of assignments
    and P the mean probability, over tokens without padding. z-loss of Zoph et al. 2022, equation 5.
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
        weights, expert_ids = probabilities.topk(self.config.active, dim=-1)
        if self.config.normalise:
            weights = weights / weights.sum(-1, keepdim=True)
        out = torch.zeros_like(tokens)
        for index, expert in enumerate(self.experts):
            rows, slots = (expert_ids == index).nonzero(as_tuple=True)
            part, _ = expert(tokens[rows][None], layout)
            out = out.index_add(0, rows, part[0] * weights[rows, slots, None].to(part.dtype))
        mask = layout.mask.reshape(-1).to(probabilities.dtype)[:, None]
        count = mask.sum().clamp(min=1)
        assigned = torch.zeros_like(probabilities).scatter(1, expert_ids, 1.0) * mask
        share = assigned.sum(0) / (count * self.config.active)
        mean = (probabilities * mask).sum(0) / count
        terms = {"balance": self.config.balance * self.config.count * (share * mean).sum()}
        if self.config.z_loss:
            terms["z_loss"] = self.config.z_loss * (logits.logsumexp(-1).square() * mask[:, 0]).sum() / count
        return out.view_as(x), terms
