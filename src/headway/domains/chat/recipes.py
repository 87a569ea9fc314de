"""Recipes for models that answer."""

from __future__ import annotations

from dataclasses import replace

from headway.domains.chat.instruct import InstructConfig
from headway.domains.chat.preference import PreferenceConfig
from headway.learn import AdamWConfig, MuonConfig, Recipe, TrainConfig, WSDConfig
from headway.nn.models import TransformerConfig
from headway.nn.models.presets import decoder
from headway.nn.parts.init import InitConfig


def small() -> TransformerConfig:
    """A small Llama, for those who begin without a model: it can be published as one. Branches start at zero."""
    model = decoder(width=256, depth=4, heads=4, kv_heads=4, hidden=None, symbols=4096, context=512)
    return replace(model, init=InitConfig(matrices="fan_in", residual="zero"))


def instruct() -> Recipe:
    """Conversations of the user's, from a model of the user's."""
    return Recipe(
        name="instruct",
        domain="chat",
        description="conversations (.jsonl with messages): learn what the assistant says; best with --from",
        data=(),
        model=small(),
        task=InstructConfig(),
        optim=MuonConfig(lr=0.02, adam_lr=3e-3),
        schedule=WSDConfig(warmup=0.02, decay=0.6),
        train=TrainConfig(steps=1000, batch_tokens=4096),
        expected="--minutes chooses size and steps for your data; better with --from a published model",
    )


def preference() -> Recipe:
    """Choices between two answers, from a model that answers."""
    return Recipe(
        name="preference",
        domain="chat",
        description="choices (.jsonl with prompt, chosen, rejected): prefer the better answer; best with --from",
        data=(),
        model=small(),
        task=PreferenceConfig(),
        optim=AdamWConfig(lr=5e-5, betas=(0.9, 0.95), weight_decay=0.0),
        schedule=WSDConfig(warmup=0.02, decay=0.6),
        train=TrainConfig(steps=300, batch_tokens=4096),
        expected="ten minutes on 2 cores; from a published model lower optim.lr to 1e-6",
    )


RECIPES = (instruct, preference)
