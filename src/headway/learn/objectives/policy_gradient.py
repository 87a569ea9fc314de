"""Policy gradients for sampled token sequences, whose rewards are compared within the group of one prompt: GRPO,
Dr. GRPO, and REINFORCE with a baseline.
"""

from __future__ import annotations

from typing import Generic, Literal, NamedTuple, TypeVar, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from headway.data import IGNORE_INDEX
from headway.learn.examples import Batch, Examples
from headway.learn.objective import Objective
from headway.nn.kernels import true_indices
from headway.nn.models import Loss, VocabularyHead

Method = Literal["grpo", "dr-grpo", "reinforce"]
_EPS = 1e-6  # added to the standard deviation of rewards
E = TypeVar("E", bound=Examples)


class PolicyTargets(NamedTuple):
    """B sampled answers: the labels are their tokens (-100 elsewhere); their log probabilities when they were sampled
    and under the start model (None: no KL penalty), 0 elsewhere; how much better than its group each answer is; and its
    reward.
    """

    labels: Int[Tensor, "B T"]
    log_probabilities: Float[Tensor, "B T"]
    reference: Float[Tensor, "B T"] | None
    advantages: Float[Tensor, "B"]
    rewards: Float[Tensor, "B"]


def group_advantages(rewards: Float[np.ndarray, "P G"], method: Method) -> Float[np.ndarray, "P G"]:
    """The advantages of the G answers to each of P prompts; 0 where all rewards of a prompt are equal.

    grpo: (r - mean) / std (Shao et al. 2024, section 4.1.2). dr-grpo: r - mean (Liu et al. 2025, section 3.2).
    reinforce: r - the mean of the other answers (Ahmadian et al. 2024, equation 8).
    """
    size = rewards.shape[1]
    centred = rewards - rewards.mean(1, keepdims=True)
    centred[np.ptp(rewards, axis=1) == 0] = 0.0  # a mean is rounded
    if method == "grpo":
        return centred / (rewards.std(1, keepdims=True) + _EPS)
    if method == "reinforce":
        return centred * size / (size - 1)
    return centred


def label_log_probabilities(model: nn.Module, x: Float[Tensor, "B T D"], batch: Batch) -> Float[Tensor, "B T"]:
    """log p of each label of the batch in nats, 0 at positions without a label; differentiable."""
    head, labels = cast(VocabularyHead, model.get_submodule("heads.vocabulary")), batch.targets.labels
    is_label, count = labels != IGNORE_INDEX, int((batch.host.targets.labels != IGNORE_INDEX).sum())
    indices = true_indices(is_label.flatten(), count)
    rows, targets = x.flatten(0, 1).index_select(0, indices), labels.flatten().index_select(0, indices)
    scores = head(rows).log_softmax(-1).gather(1, targets[:, None])[:, 0]
    return torch.zeros(labels.shape, dtype=scores.dtype, device=scores.device).masked_scatter(is_label, scores)


class PolicyGradient(Objective[E], Generic[E]):
    """Make sampled answers with a positive advantage more probable and the others less, and stay close to the start
    model; it does not depend on how answers are sampled and rewarded.

    grpo: Shao et al. 2024, equation 3: each answer's mean over its tokens. dr-grpo: Liu et al. 2025, section 3.2: its
    sum over its tokens, divided by the constant `max_tokens`. reinforce: Williams 1992, equation 11, with a baseline in
    the advantage: the sum, without clipping. `kl` weights the estimator k3 of the KL divergence (Schulman 2020).
    """

    unit = "answer"

    def __init__(self, method: Method, clip: float, kl: float, max_tokens: int) -> None:
        self.method, self.clip, self.kl, self.max_tokens = method, clip, kl, max_tokens

    @property
    def measure(self) -> str:
        return "negated mean reward, plus the KL penalty"

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Loss]:
        """The negated policy objective and the weighted KL penalty, each summed over the answers. The objective's value
        is near 0 whatever the model learns, because advantages add up to 0; the rewards replace it, with its gradient.
        """
        targets, count = cast(PolicyTargets, batch.targets), batch.tokens
        encoded = model(*batch.inputs)
        log_probs = label_log_probabilities(model, encoded.x, batch)
        advantages = targets.advantages[:, None]
        if self.method == "reinforce":
            gains = advantages * log_probs
        else:
            ratio = (log_probs - targets.log_probabilities).exp()
            gains = torch.minimum(ratio * advantages, ratio.clamp(1 - self.clip, 1 + self.clip) * advantages)
        is_label = targets.labels != IGNORE_INDEX
        weights = is_label.to(gains.dtype)
        if self.method == "grpo":
            weights = weights / weights.sum(1, keepdim=True).clamp(min=1)
        elif self.method == "dr-grpo":
            weights = weights / self.max_tokens
        objective = (gains * weights).sum()
        losses = {"policy": Loss(objective.detach() - objective - targets.rewards.sum(), count)}
        if targets.reference is not None:
            difference = targets.reference - log_probs
            losses["kl"] = Loss(self.kl * ((difference.exp() - difference - 1) * weights).sum(), count)
        return losses | {name: Loss(term * count, count) for name, term in encoded.auxiliary.items()}
