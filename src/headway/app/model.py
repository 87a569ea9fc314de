"""A trained model, ready for inference."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from headway.app.predictors import predict, verbs
from headway.app.verbs import LocalVerbs
from headway.generate import Session
from headway.io.summary_card import SummaryCard, summary_repr
from headway.nn.models import describe
from headway.predict.model_handle import ModelHandle

if TYPE_CHECKING:
    from headway.domains.chat.predictors import Conversation


@summary_repr
class Model(LocalVerbs, ModelHandle):
    """The class of all models that `load` returns. `verbs` lists the methods that a model supports; the others raise a
    UserError that names alternatives. The predictor of the same name implements each method; see
    `headway.app.predictors`.

    `module` is the torch module; `directory` where it was loaded from; `recipe` how it was trained, None for a
    published model; `usage` holds a published model's stop tokens, labels and chat template. `backend`, `cache`
    and `draft` are the arguments of `load`. `unexpected` lists properties of previous inputs that were outside the
    training data.
    """

    def card(self) -> SummaryCard:
        """A summary: the kind of model, its size, recipe and verbs."""
        recipe = self.recipe
        return SummaryCard(
            f"Model {self.directory}",
            {
                "kind": type(self.module).__name__,
                "parameters": describe(self.module.config)["parameters"],
                "context": self.context,
                "on": str(self.device),
                "recipe": None if recipe is None else f"{recipe.name} ({recipe.domain})",
                "can": ", ".join(self.verbs),
            },
        )

    @property
    def verbs(self) -> list[str]:
        """The names of the methods that this model supports, without variants (`stream` is a variant of `generate`)."""
        return verbs(self.module.config, self.usage, self.recipe is not None)

    @property
    def thresholds(self) -> dict[str, float]:
        """The minimum probability for predicting each label of a multi-label model; empty for other models. Training
        chooses them on the validation split; the default is 1/2.
        """
        return self.usage.decisions

    @cached_property
    def talk(self) -> Conversation:
        """Conversations in the model's chat template. Raises UserError for a model without one."""
        return predict(self, "talk")

    @property
    def session(self) -> Session:
        """Batched generation. Raises UserError for a model that does not generate text."""
        return predict(self, "session")

    _run_verb = predict
