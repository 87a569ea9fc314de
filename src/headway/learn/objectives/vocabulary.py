"""The symbols that a model says: of a text that goes on, or of what is said of a source."""

from __future__ import annotations

from typing import TypeVar, cast

from torch import nn

from headway.learn.examples import Batch, Examples, Samples
from headway.learn.objective import Objective, judged
from headway.nn.mixers import State
from headway.nn.models import Encoded, Loss, VocabularyHead

E = TypeVar("E", bound=Examples)


class Likelihood(Objective[E]):
    """Cross-entropy of the targets, int64 [B, T], where -100 is nothing to be said, with the model's auxiliary terms.

    `smoothing` spreads that share of each symbol over all (Szegedy et al. 2016); `head` is the name of the module that
    says symbols.
    """

    def __init__(self, smoothing: float = 0.0, head: str = "heads.vocabulary") -> None:
        self.smoothing, self.head = smoothing, head

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Loss]:
        return self.losses(model, self.encode(model, batch), batch, self.smoothing)

    def encode(self, model: nn.Module, batch: Batch, states: State | None = None) -> Encoded:
        """What the model makes of a batch; `states` are those in which the one before ended, where batches go on."""
        return model(*batch.inputs)

    def losses(self, model: nn.Module, encoded: Encoded, batch: Batch, smoothing: float) -> dict[str, Loss]:
        """The loss of what the model has read, and its auxiliary terms."""
        head = cast(VocabularyHead, model.get_submodule(self.head))
        loss = head.loss(encoded.x, batch.targets, smoothing)
        return {"loss": loss, **{name: Loss(term * loss.count, loss.count) for name, term in encoded.auxiliary.items()}}

    def nats(self, model: nn.Module, samples: Samples) -> tuple[float, int]:
        """Nats of all targets of samples, without smoothing, and how many there are."""
        nats, count, states = 0.0, 0, None
        for _, batch in judged(model, samples):
            encoded = self.encode(model, batch, states)
            loss, states = self.losses(model, encoded, batch, 0.0)["loss"], encoded.states
            nats, count = nats + float(loss.total), count + loss.count
        return nats, count
