"""Recipes for encoders: from scratch by themselves, or fine-tuned with --from."""

from __future__ import annotations

from dataclasses import replace

from headway.data import SplitConfig
from headway.domains.understanding.classification import ClassificationConfig, TextPairsConfig
from headway.domains.understanding.embedding import EmbeddingConfig
from headway.domains.understanding.tagging import TaggingConfig
from headway.learn import AdamWConfig, CosineConfig, MuonConfig, Recipe, TrainConfig, WSDConfig
from headway.nn.mixers import AttentionConfig
from headway.nn.models import BlockConfig, StackConfig, TokenEmbedConfig, TransformerConfig, cycle
from headway.nn.parts.feedforward import MLPConfig
from headway.nn.parts.init import InitConfig
from headway.nn.parts.norm import LayerNormConfig
from headway.nn.parts.positions import RotaryConfig
from headway.visibility import Full

MUON = MuonConfig(lr=0.02, weight_decay=0.1, adam_lr=3e-3, adam_betas=(0.9, 0.98), adam_weight_decay=0.05)
SCHEDULE = WSDConfig(warmup=0.02, decay=0.6)


def encoder(width: int, depth: int, heads: int, dropout: float = 0.1) -> TransformerConfig:
    """A small encoder for those who start from scratch: norms first, rotary positions, two types of tokens."""
    block = BlockConfig(
        AttentionConfig(heads, pattern=Full(), rotary=RotaryConfig()),
        None,
        MLPConfig(activation="gelu"),
        dropout=dropout,
    )
    embed = TokenEmbedConfig(types=2, dropout=dropout)
    return TransformerConfig(width, 1, None, StackConfig(cycle((block,), depth), LayerNormConfig()), embed, {})


def fresh(width: int, depth: int, heads: int, dropout: float = 0.1) -> TransformerConfig:
    """`encoder` for the recipes that start from scratch: symbols have a norm, and branches and head start at zero."""
    model = encoder(width, depth, heads, dropout)
    embed = TokenEmbedConfig(norm=LayerNormConfig(), types=2, dropout=dropout)
    return replace(model, embed=embed, init=InitConfig("fan_in", residual="zero", embedding=0.05, head="zero"))


def classification() -> Recipe:
    """Any texts with labels."""
    return Recipe(
        name="classification",
        domain="understanding",
        description="any texts with labels: .csv, .tsv or .jsonl with text and label",
        data=(),
        model=fresh(width=128, depth=2, heads=4),
        task=ClassificationConfig(),
        optim=MUON,
        schedule=SCHEDULE,
        train=TrainConfig(steps=2000, batch_tokens=1024),
        expected="--minutes chooses size and steps for your data; better with --from a pre-trained encoder",
    )


def pairs() -> Recipe:
    """Any pairs of texts with labels or numbers."""
    return Recipe(
        name="pairs",
        domain="understanding",
        description="any pairs of texts with labels or numbers: .csv, .tsv or .jsonl with text, text2 and label",
        data=(),
        model=fresh(width=128, depth=2, heads=4),
        task=TextPairsConfig(),
        optim=MUON,
        schedule=SCHEDULE,
        train=TrainConfig(steps=2000, batch_tokens=1024),
        expected="--minutes chooses size and steps for your data; better with --from a pre-trained encoder",
    )


def tagging() -> Recipe:
    """Any words with tags."""
    return Recipe(
        name="tagging",
        domain="understanding",
        description="any tagged words: CoNLL columns, a word a line, its tag in the last",
        data=(),
        model=fresh(width=128, depth=2, heads=4),
        task=TaggingConfig(lowercase=False),
        optim=MUON,
        schedule=SCHEDULE,
        train=TrainConfig(steps=2000, batch_tokens=1024),
        expected="--minutes chooses size and steps for your data; better with --from a pre-trained encoder",
    )


def embedding() -> Recipe:
    """Any texts that belong together."""
    return Recipe(
        name="embedding",
        domain="understanding",
        description="any texts that belong together: .csv, .tsv or .jsonl with text and text2, or text and label",
        data=(),
        model=fresh(width=128, depth=2, heads=4),
        task=EmbeddingConfig(),
        optim=MUON,
        schedule=SCHEDULE,
        train=TrainConfig(steps=1000, batch_size=64),
        expected="--minutes chooses size and steps for your data; better with --from a pre-trained encoder",
    )


def banking77() -> Recipe:
    """Casanueva et al. 2020: which of 77 things a bank's customer wants. Its own test split; a tenth of the training
    part picks the best model.

    The mean of the tokens is judged, as that is what sentence encoders are trained for; BERT's pooler, which its
    published format of classifiers has, takes --set task.pool=none.
    """
    return Recipe(
        name="banking77",
        domain="understanding",
        description="questions to a bank, 77 intents",
        data=("banking77",),
        model=encoder(width=128, depth=2, heads=4),
        task=ClassificationConfig(label="category", pool="mean", split=SplitConfig(validation=0.1, test=0.0)),
        optim=AdamWConfig(lr=4e-4, betas=(0.9, 0.98), weight_decay=0.01),
        schedule=CosineConfig(warmup=0.1, floor=0.0),
        train=TrainConfig(steps=720, batch_tokens=1024, evaluate_every=120),
        expected="with --from all-MiniLM-L6-v2, minutes on 2 cores",
    )


RECIPES = (classification, pairs, tagging, embedding, banking77)
