"""Mixtures of experts with top-k routing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from headway.config_kinds import register
from headway.errors import ConfigError
from headway.layout import Layout
from headway.nn.parts.expert_copies import Copies, Sums
from headway.nn.parts.feedforward import FeedForwardConfig, GatedConfig, Terms
from headway.nn.parts.projection import Projection

_FEW = 64  # tokens up to which a GPU computes experts without sorting


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
    shared: FeedForwardConfig | None = None  # layer of all tokens, added to their experts; none: no such layer
    shared_gate: bool = False  # whether a sigmoid per token weights the shared layer (Qwen2-MoE)
    router_bias: bool = False  # whether the router's logits have a bias
    scores: Literal["softmax", "sigmoid"] = "softmax"  # of logits; sigmoid: with a bias for the choice (DeepSeek-V3)
    scale: float = 1.0  # factor on the weights of a token's experts

    def __post_init__(self) -> None:
        if not 1 <= self.active <= self.count:
            most = f"from 1 to {self.count}" if self.count > 0 else "to at least 1 and count to as many"
            raise ConfigError(f"active is {self.active} of {self.count} experts; set it {most}")
        if self.shared_gate and self.shared is None:
            raise ConfigError("shared_gate is true without a shared layer; set shared, or shared_gate=false")

    def build(self, width: int) -> nn.Module:
        return Experts(self, width)


class Experts(nn.Module):
    """Each token goes to its `active` most probable experts, whose outputs are added weighted by probability.

    Shazeer et al. 2017; balance loss of Fedus et al. 2021, equation 4: E sum_e f_e P_e, with f the share of assignments
    and P the mean probability, over tokens without padding. z-loss of Zoph et al. 2022, equation 5. Sigmoid scores and
    the bias for the choice, which no gradient changes: DeepSeek-AI 2024, equations 15 and 16.
    """

    correction: Tensor | None

    def __init__(self, config: ExpertsConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.router = Projection(width, config.count, config.router_bias)
        self.experts = nn.ModuleList(config.expert.build(width) for _ in range(config.count))
        self.shared = config.shared.build(width) if config.shared else None
        self.shared_gate = Projection(width, 1, bias=False) if config.shared_gate else None
        correction = torch.zeros(config.count) if config.scores == "sigmoid" else None
        self.register_buffer("correction", correction)

    def forward(self, x: Float[Tensor, "B T D"], layout: Layout) -> tuple[Float[Tensor, "B T D"], Terms]:
        tokens = x.reshape(-1, x.shape[-1])
        logits = self.router(tokens).float() if x.dtype.itemsize < 4 else self.router(tokens)
        probabilities, weights, expert_ids = self._route(logits)
        out = self._mix(tokens, weights, expert_ids, layout).view_as(x)
        if self.shared is not None:
            every, _ = self.shared(x, layout)
            out = out + (every if self.shared_gate is None else self.shared_gate(x).sigmoid() * every)
        return out, self._terms(logits, probabilities, expert_ids, layout)

    def _route(self, logits: Float[Tensor, "N E"]) -> tuple[Tensor, Float[Tensor, "N A"], Int[Tensor, "N A"]]:
        """The probabilities of all experts, and the weights and ids of each token's, by id."""
        if self.correction is None:
            probabilities = logits.softmax(-1)
            weights, expert_ids = probabilities.topk(self.config.active, dim=-1)
        else:
            probabilities = logits.sigmoid()
            expert_ids = (probabilities + self.correction).topk(self.config.active, dim=-1).indices
            weights = probabilities.gather(-1, expert_ids)
        if self.config.normalise:
            weights = weights / weights.sum(-1, keepdim=True)
        expert_ids, choice = expert_ids.sort(-1)
        weights = weights.gather(-1, choice)
        return probabilities, weights if self.config.scale == 1.0 else weights * self.config.scale, expert_ids

    def _mix(
        self,
        tokens: Float[Tensor, "N D"],
        weights: Float[Tensor, "N A"],
        expert_ids: Int[Tensor, "N A"],
        layout: Layout,
    ) -> Float[Tensor, "N D"]:
        """Tokens are sorted by expert, so that each expert's are consecutive and each is moved there and back once."""
        if tokens.device.type != "cpu" or torch.compiler.is_exporting():
            from headway.nn.parts.joint_experts import mix_few, mix_many  # for GPUs and exported programs

            if len(tokens) <= _FEW or torch.compiler.is_exporting():
                return mix_few(self.experts, tokens, weights, expert_ids, layout)
            if (mixed := mix_many(self.experts, tokens, weights, expert_ids, layout)) is not None:
                return mixed
        order = expert_ids.flatten().argsort(stable=True)
        counts = expert_ids.flatten().bincount(minlength=self.config.count).tolist()
        slots = order.argsort().view_as(expert_ids)
        rows = order // self.config.active
        parts = Copies.apply(tokens, rows, slots).split(counts)
        outputs = [
            expert(part[None], layout)[0][0] if len(part) or torch.is_grad_enabled() else part
            for expert, part in zip(self.experts, parts)
        ]
        mixed = torch.cat(outputs)
        return Sums.apply(mixed * weights.flatten()[order, None].to(mixed.dtype), rows, slots)

    def _terms(self, logits: Tensor, probabilities: Tensor, expert_ids: Tensor, layout: Layout) -> Terms:
        mask = layout.mask.reshape(-1).to(probabilities.dtype)[:, None]
        count = mask.sum().clamp(min=1)
        assigned = torch.zeros_like(probabilities).scatter(1, expert_ids, 1.0) * mask
        share = assigned.sum(0) / (count * self.config.active)
        mean = (probabilities * mask).sum(0) / count
        terms = {"balance": self.config.balance * self.config.count * (share * mean).sum()}
        if self.config.z_loss:
            terms["z_loss"] = self.config.z_loss * (logits.logsumexp(-1).square() * mask[:, 0]).sum() / count
        return terms
