"""Preference tuning: of two answers, make the better one more probable than it was, against the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from headway.codecs import TokenizerCodec
from headway.codecs.chat import Chat, ChatTemplate
from headway.data.dialogues import read_choices
from headway.data.files import File
from headway.data.marked import Marked, Sample, open_marked
from headway.domains.chat.batches import ChoiceBatch, Choices
from headway.domains.chat.config import PreferenceConfig
from headway.domains.chat.reference import log_probabilities, open_reference, save_reference, saved_reference
from headway.domains.chat.task import ChatTask, read
from headway.metrics import wilson
from headway.models import Loss, ModelConfig
from headway.train import Recipe, Shard, sharding
from headway.train.task import WHOLE

_EVALUATED_AT_ONCE = 8192  # tokens


class Preference(ChatTask):
    """The task over choices."""

    what = "choices"
    goal: str = "loss"
    unit = "pair"
    goal_better: Literal["min", "max"] = "min"

    def __init__(
        self,
        config: PreferenceConfig,
        recipe: Recipe,
        sources: Sequence[File],
        codec: TokenizerCodec,
        template: ChatTemplate,
        workspace: Path,
    ) -> None:
        def samples(file: File) -> Iterator[Sample]:
            for line, prompt, *endings in read_choices(file):
                key = "\n".join(f"{message['role']}: {message['content']}" for message in prompt)
                place = f"{file}, line {line}"
                chats = (read(template, codec, [*prompt, *ending], place) for ending in endings)
                yield Sample(key, line, _differing(*chats))

        cache = open_marked(sources, 2, codec, samples, template.text)
        super().__init__(config, recipe, sources, codec, template, cache)
        self.settings = config
        self.batch_tokens = recipe.train.batch_tokens or 0
        self._recipe = recipe
        self._model = recipe.model
        self._workspace = workspace

    def adapt(self, model: ModelConfig) -> ModelConfig:
        self._model = super().adapt(model)
        return self._model

    @cached_property
    def reference(self) -> Float[Tensor, "N 2"]:
        """Log probabilities of all choices under the model that training starts from."""
        saved = saved_reference(self.cache, self._workspace)
        if saved is not None:
            return saved
        return open_reference(self.cache, self._recipe.start, self._model, self.seed, self.config.context)

    def save(self, directory: Path) -> None:
        super().save(directory)
        save_reference(self.cache, self.reference, directory)

    def batches(self, split: str, shard: Shard = WHOLE, start: int = 0) -> Iterator[ChoiceBatch]:
        choices = Choices(self.cache, self.split(split))
        return self._endless(choices, shard, start) if split == "train" else self._once(choices, shard)

    def _endless(self, choices: Choices, shard: Shard, start: int) -> Iterator[ChoiceBatch]:
        """Batches without end: batch k is the k-th of a row of shuffled epochs, whoever reads it."""
        plan = choices.plan(self.batch_tokens, self.seed)
        for places in sharding.planned(plan, shard, start):
            yield choices.batch(places, self.reference)

    def _once(self, choices: Choices, shard: Shard) -> Iterator[ChoiceBatch]:
        plan = choices.plan(max(_EVALUATED_AT_ONCE, 2 * self.config.context), 0)
        for places in plan.in_order()[shard.rank :: shard.world]:
            yield choices.batch(places, self.reference)

    def loss(self, model: nn.Module, batch: ChoiceBatch) -> dict[str, Loss]:
        encoded = model(batch.inputs, batch.layout)
        chosen, rejected = self._rewards(model, encoded.x, batch)
        total, count = self._losses(chosen - rejected).sum(), batch.tokens
        return {"loss": Loss(total, count), **{n: Loss(term * count, count) for n, term in encoded.auxiliary.items()}}

    def _losses(self, margins: Float[Tensor, "B"]) -> Float[Tensor, "B"]:
        """-log sigmoid of the margin; of a share `smoothing` of choices taken the other way round."""
        share = self.settings.smoothing
        return -(1 - share) * F.logsigmoid(margins) - share * F.logsigmoid(-margins)

    def _rewards(self, model: nn.Module, x: Float[Tensor, "R T D"], batch: ChoiceBatch) -> Float[Tensor, "2 B"]:
        """beta log(p / p of the reference) of the chosen and the rejected endings (section 4)."""
        return self.settings.beta * (log_probabilities(model, x, batch.labels) - batch.reference)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: str = "validation", limit: int | None = None) -> dict[str, Any]:
        """The loss; how often the chosen ending has the higher reward (`accuracy`, a tie counts half); by how much
        (`margin`), and the mean reward of either.
        """
        device = next(model.parameters()).device
        choices = Choices(self.cache, self.split(split)).first(limit)
        found = []
        for batch in self._once(choices, WHOLE):
            moved = batch.to(device)
            found.append(self._rewards(model, model(moved.inputs, moved.layout).x, moved).double().cpu())
        rewards = torch.cat(found, dim=1)
        margins = rewards[0] - rewards[1]
        right = float((margins > 0).double().sum() + (margins == 0).double().sum() / 2)
        return {
            "loss": float(self._losses(margins).mean()),
            "accuracy": right / len(choices),
            "accuracy_interval": wilson(round(right), len(choices)),
            "margin": float(margins.mean()),
            "chosen_reward": float(rewards[0].mean()),
            "rejected_reward": float(rewards[1].mean()),
            "samples": len(choices),
        }

    def samples(self, model: nn.Module, count: int) -> list[dict[str, str]]:
        """Prompts that were held out, the model's reply (greedy), and the two endings."""
        chosen = self.spread(count)
        outputs = self.replies(model, chosen)
        return [
            {
                "prompt": self.prompt_text(i),
                "output": output,
                "chosen": self.text(i, 0),
                "rejected": self.text(i, 1),
            }
            for i, output in zip(chosen, outputs)
        ]


def _differing(chosen: Chat, rejected: Chat) -> list[Marked]:
    """The two endings, without what the assistant says in the prompt: it is as probable in both."""
    pairs = enumerate(zip(chosen.ids, rejected.ids))
    shared = next((i for i, (a, b) in pairs if a != b), min(len(chosen.ids), len(rejected.ids)))
    return [
        Marked(chat.ids, [span for span in chat.spans if span[1] > shared or span is chat.spans[-1]])
        for chat in (chosen, rejected)
    ]
