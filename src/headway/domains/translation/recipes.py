"""Recipes for translation and pronunciation, and how the generic one scales with data and time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import cast

from headway.data import SplitConfig, iter_pairs
from headway.data.prepared.shard_reader import PreparedData, is_prepared
from headway.domains.translation.pronunciation import PronounceConfig
from headway.domains.translation.task import ParallelText
from headway.domains.translation.translation import TranslationConfig
from headway.learn import AdamWConfig, InverseSqrtConfig, MuonConfig, Recipe, Task, TrainConfig, WSDConfig, noam_peak
from headway.learn.plan.scale import DataSettings, Descent, Scale, ScalingLaw, prepared_settings, vocabulary_settings
from headway.learn.recipe import generic
from headway.nn.mixers import AttentionConfig, BidirectionalConfig, CrossAttentionConfig, LSTMConfig
from headway.nn.models import BlockConfig, EncoderDecoderConfig, StackConfig, TokenEmbedConfig, TransformerConfig, cycle
from headway.nn.models.presets import preset
from headway.nn.parts.feedforward import MLPConfig
from headway.nn.parts.init import InitConfig
from headway.nn.parts.positions import SinusoidalConfig
from headway.visibility import Full


def encoder_decoder(
    width: int, depth: int, heads: int, hidden: int | None, vocab_size: int, dropout: float, recurrent: bool = False
) -> EncoderDecoderConfig:
    """The 2017 transformer with pre-norm, which trains without a long warm-up; or one with LSTMs for self-attention."""
    feed_forward = MLPConfig(hidden=hidden, activation="relu")
    encoder_mixer, decoder_mixer = AttentionConfig(heads, pattern=Full()), AttentionConfig(heads)
    if recurrent:
        encoder_mixer, decoder_mixer = BidirectionalConfig(), LSTMConfig()
    embed = TokenEmbedConfig(positions=None if recurrent else SinusoidalConfig(), scaled=True, dropout=dropout)
    encoder_block = BlockConfig(encoder_mixer, None, feed_forward, dropout=dropout)
    decoder_block = BlockConfig(decoder_mixer, CrossAttentionConfig(heads), feed_forward, dropout=dropout)
    return EncoderDecoderConfig(
        encoder=TransformerConfig(
            width, vocab_size, None, StackConfig(cycle((encoder_block,), depth)), embed, heads={}
        ),
        decoder=TransformerConfig(width, vocab_size, None, StackConfig(cycle((decoder_block,), depth)), embed),
        init=InitConfig(matrices="xavier", residual="same", embedding=None),
    )


def pronounce() -> Recipe:
    """The model that `headway demo` trains. A few minutes are too short to overfit, so it has no regularisation."""
    return Recipe(
        name="pronounce",
        domain="translation",
        description="English words to phonemes, from the CMU dictionary",
        data=("cmudict",),
        model=encoder_decoder(width=128, depth=2, heads=4, hidden=512, vocab_size=69, dropout=0.0),
        task=PronounceConfig(smoothing=0.0, split=SplitConfig(validation=0.05, test=0.05)),
        optim=MuonConfig(lr=0.02, adam_lr=4e-3, adam_betas=(0.9, 0.98)),
        schedule=WSDConfig(warmup=100, decay=0.7),
        train=TrainConfig(steps=6000, batch_tokens=1024, evaluate_limit=500),
        expected="WER 34 %, PER 9 % in 5 minutes on 2 cores",
    )


def pronounce_lstm() -> Recipe:
    """For more than ten minutes. LSTMs learn to spell faster than attention: after the same 1,500 steps, the word error
    rate of `pronounce` on validation words is 30 % with them instead of 37 %.
    """
    return Recipe(
        name="pronounce-lstm",
        domain="translation",
        description="English words to phonemes by LSTMs, from the CMU dictionary",
        data=("cmudict",),
        model=encoder_decoder(width=192, depth=2, heads=4, hidden=512, vocab_size=69, dropout=0.15, recurrent=True),
        task=PronounceConfig(smoothing=0.1, split=SplitConfig(validation=0.05, test=0.05)),
        optim=MuonConfig(lr=0.01, adam_lr=2e-3, adam_betas=(0.9, 0.98)),
        schedule=WSDConfig(warmup=100, decay=0.9),
        train=TrainConfig(steps=12000, batch_tokens=2048, evaluate_limit=500),
        expected="WER 24.5 %, PER 5.6 % in 52 minutes on one core",
    )


def translation() -> Recipe:
    """Your own pairs."""
    return generic(
        "translation",
        "translation",
        "your own sentence pairs: two line-aligned files, .tsv or .jsonl",
        model=encoder_decoder(width=192, depth=4, heads=4, hidden=None, vocab_size=8000, dropout=0.1),
        task=TranslationConfig(size=8000, max_length=128),
        optim=MuonConfig(lr=0.006, adam_lr=3e-3, adam_betas=(0.9, 0.98)),
        train=TrainConfig(steps=10000, batch_tokens=2048, evaluate_limit=500),
        expected="--minutes chooses size and steps for your data; without it, an hour for 20 million tokens on 2 cores",
    )


def summarization() -> Recipe:
    """Your own texts with summaries, which are shorter than the texts. Texts are cut at 512 tokens."""
    return generic(
        "summarization",
        "translation",
        "your own texts with summaries: .jsonl, .csv or .tsv with text and summary",
        model=encoder_decoder(width=192, depth=4, heads=4, hidden=None, vocab_size=8000, dropout=0.1),
        task=TranslationConfig(size=8000, max_length=512, truncate=True, max_ratio=1.0, beam=4, goal="rougeL"),
        optim=MuonConfig(lr=0.006, adam_lr=3e-3, adam_betas=(0.9, 0.98)),
        train=TrainConfig(steps=10000, batch_tokens=4096, evaluate_limit=200),
        expected="better with --from BART, T5 or Pegasus; for T5 add --set task.prefix='summarize: '",
    )


def multi30k_en_de() -> Recipe:
    """Small and trained for long to score best: on 29,000 pairs, a wider model overfits before it gets better."""
    return Recipe(
        name="multi30k-en-de",
        domain="translation",
        description="image captions, English to German",
        data=("multi30k",),
        model=encoder_decoder(width=128, depth=4, heads=4, hidden=512, vocab_size=8000, dropout=0.25),
        task=TranslationConfig(size=8000, lowercase_bleu=True),
        optim=MuonConfig(lr=0.02, adam_lr=3e-3, adam_betas=(0.9, 0.98)),
        schedule=WSDConfig(warmup=300, decay=0.7),
        train=TrainConfig(steps=8000, batch_tokens=2048, evaluate_every=1000),
        expected="BLEU 39.5 on test_2016 in 51 minutes on one core",
    )


def multi30k_en_de_small() -> Recipe:
    """JoeyNMT's small size, for speed."""
    return Recipe(
        name="multi30k-en-de-small",
        domain="translation",
        description="image captions, English to German, with a small model",
        data=("multi30k",),
        model=encoder_decoder(width=128, depth=4, heads=4, hidden=256, vocab_size=8000, dropout=0.1),
        task=TranslationConfig(size=8000, lowercase_bleu=True),
        optim=AdamWConfig(lr=4e-3, betas=(0.9, 0.98), weight_decay=1e-4),
        schedule=InverseSqrtConfig(warmup=600),
        train=TrainConfig(steps=2000, batch_tokens=4096),
        expected="validation BLEU 10.7 (greedy) in 94 s on 2 cores with AMX",
    )


def tatoeba() -> Recipe:
    """Sentences repeat with several translations, which all count as references."""
    return Recipe(
        name="tatoeba",
        domain="translation",
        description="everyday sentences, English to German",
        data=("tatoeba-deu-eng",),
        model=encoder_decoder(width=256, depth=4, heads=4, hidden=1024, vocab_size=8000, dropout=0.1),
        task=TranslationConfig(size=8000, max_length=64, grouped=True, split=SplitConfig(validation=0.01, test=0.01)),
        optim=AdamWConfig(lr=2e-3, betas=(0.9, 0.98), weight_decay=0.01),
        schedule=InverseSqrtConfig(warmup=1000),
        train=TrainConfig(steps=10000, batch_tokens=4096, evaluate_limit=500),
        expected="two hours on 2 cores",
    )


def transformer_base_wmt() -> Recipe:
    """The base model of Vaswani et al. 2017 (section 5, table 3) with its hyperparameters, for WMT 2014 En-De.

    The paper used 8 GPUs with an eighth of a batch each: train.accumulate=8 train.batch_tokens=3125.
    """
    warmup = 4000
    return Recipe(
        name="transformer-base-wmt",
        domain="translation",
        description="the 2017 base model as published, for a GPU; pass WMT 2014 English and German with --data",
        data=(),
        model=preset("transformer-base"),
        task=TranslationConfig(size=37000, smoothing=0.1, max_length=256, beam=4, length_penalty=0.6, goal="loss"),
        optim=AdamWConfig(lr=noam_peak(512, warmup), betas=(0.9, 0.98), eps=1e-9, weight_decay=0.0),
        schedule=InverseSqrtConfig(warmup=warmup),
        train=TrainConfig(
            steps=100_000,
            batch_tokens=25_000,
            clip=None,
            evaluate_every=5000,
            evaluate_limit=1000,
            checkpoint_every=1500,
            keep_checkpoints=5,
            average=5,
        ),
        expected="BLEU 27.3 on newstest2014 (Vaswani et al. 2017)",
    )


RECIPES = (
    pronounce,
    pronounce_lstm,
    translation,
    summarization,
    multi30k_en_de,
    multi30k_en_de_small,
    tatoeba,
    transformer_base_wmt,
)


_SHAPES = (
    (48, 2, 2),
    (64, 2, 2),
    (96, 2, 3),
    (128, 3, 4),
    (160, 3, 5),
    (192, 4, 6),
    (256, 4, 8),
    (384, 5, 6),
    (512, 6, 8),
)
_MAX_PAIRS = 2_000_000  # pairs
_VOCABULARIES = ((5e5, 1000), (2e6, 2000), (2e7, 4000), (2e8, 8000), (math.inf, 16000))  # (characters, tokens)


def _data_settings(recipe: Recipe, paths: Sequence[Path], minutes: float) -> DataSettings:
    if is_prepared(paths[0]):
        return prepared_settings(PreparedData(paths[0]).index)
    count = num_characters = 0
    for source, target in islice(iter_pairs(paths), _MAX_PAIRS):
        count, num_characters = count + 1, num_characters + len(source) + len(target)
    return vocabulary_settings(_VOCABULARIES, count, num_characters, "pairs")


def _unique_targets(task: Task) -> int:
    pairs = cast(ParallelText, task.examples).of("train")
    return int(pairs.target.lengths.sum()) + len(pairs)


# Encoders and decoders of equal size; vocabularies grow with the text. A translator's reducible loss falls twice as
# fast as in the scaling law for plain text: on Tatoeba's pairs, models with 0.49 and 1.9 million parameters reach
# 1.640 and 2.172 nats after two core-minutes, and 1.315 and 1.565 after four.
_TRANSLATION = Scale(
    law=ScalingLaw(floor=0.0, size=115.0, data=118.0),
    calibrated=True,
    descent=Descent(0.38, 0.97, 2.5),
    shapes=_SHAPES,
    dropout=((4, 0.0), (10, 0.1), (25, 0.2), (math.inf, 0.25)),
    forgets=True,
    unique_targets=_unique_targets,
    data_settings=_data_settings,
)
SCALES = {"translation": _TRANSLATION, "summarization": replace(_TRANSLATION, calibrated=False)}
