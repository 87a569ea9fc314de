"""Recipes for chat models, and how training from scratch scales with data and time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

from headway.data.dialogues import find_chat_files, read_chats
from headway.data.prepared.prepared_samples import PreparedSamples
from headway.data.prepared.shard_reader import is_prepared
from headway.domains.chat.chat_samples import CONVERSATIONS
from headway.domains.chat.preference import PreferenceConfig
from headway.domains.chat.task import Chats, Conversations, InstructConfig
from headway.errors import UserError
from headway.learn import AdamWConfig, MuonConfig, Recipe, Task, TrainConfig
from headway.learn.plan.scale import DataSettings, Scale, Settings, held_out_shares, lookup, prepared_settings
from headway.learn.recipe import generic
from headway.nn.models import TransformerConfig
from headway.nn.models.presets import decoder
from headway.nn.parts.init import InitConfig


def small_llama() -> TransformerConfig:
    """A small Llama to train from scratch, which can be exported as one. Residual branches are initialised to zero."""
    model = decoder(width=256, depth=4, heads=4, kv_heads=4, hidden=None, vocab_size=4096, context=512)
    return replace(model, init=InitConfig(matrices="fan_in", residual="zero"))


def instruct() -> Recipe:
    """Your own conversations and your own model."""
    return generic(
        "instruct",
        "chat",
        "conversations (.jsonl with messages): learn the assistant's replies; best with --from",
        model=small_llama(),
        task=InstructConfig(),
        optim=MuonConfig(lr=0.02, adam_lr=3e-3),
        train=TrainConfig(steps=1000, batch_tokens=4096),
        expected="--minutes chooses size and steps for your data; better with --from a published model",
    )


def preference() -> Recipe:
    """Choices between two answers, for a model that can already answer."""
    return generic(
        "preference",
        "chat",
        "preferences (.jsonl with prompt, chosen, rejected): learn which answer is better; use --from",
        model=small_llama(),
        task=PreferenceConfig(anchor=1.0, enough=2.0),
        optim=AdamWConfig(lr=5e-5, betas=(0.9, 0.95), weight_decay=0.0),
        train=TrainConfig(steps=300, batch_tokens=4096),
        expected="a minute for 30 pairs and a small model; best with --from a run of the instruct recipe",
    )


RECIPES = (instruct, preference)


_SHAPES = ((64, 2, 2), (96, 3, 3), (128, 4, 4), (192, 5, 6), (256, 6, 8), (384, 6, 6), (512, 8, 8), (768, 12, 12))
_VOCABULARIES = ((3e5, 512), (1.5e6, 1024), (8e6, 2048), (4e7, 4096), (math.inf, 8192))  # (characters, tokens)
_MIN_CHARACTERS = 2  # minimum characters per token, averaged over a conversation
_MESSAGE_TOKENS = 8  # special tokens per message
_CONTEXTS = (128, 256, 512, 1024, 2048)
_SMALL_DATASET = 200  # conversations below which training needs most of them


def _row_settings(recipe: Recipe, task: Task) -> Settings:
    """Rows that are long enough for the longest conversation, up to the model's context, and held-out shares."""
    cache = cast(Conversations, task.examples).cache
    max_tokens = int(cache.lengths.max()) - 1  # the last token is only predicted
    context = next((size for size in _CONTEXTS if max_tokens <= size), _CONTEXTS[-1])
    shares = held_out_shares(len(cache))
    if len(cache) < _SMALL_DATASET:
        shares = {"task.split.validation": 0.15, "task.split.test": 0.1}
    return {"task.context": min(context, recipe.model.context or context), **shares}


def _instruct_settings(recipe: Recipe, paths: Sequence[Path], minutes: float) -> DataSettings:
    """Rows that are long enough for the longest conversation, and vocabularies that grow with the text."""
    if is_prepared(paths[0]):
        samples = PreparedSamples.open(paths, CONVERSATIONS.name, CONVERSATIONS.parts)
        chosen = prepared_settings(samples.data.index)
        context = next((size for size in _CONTEXTS if samples.lengths.max() <= size + 1), _CONTEXTS[-1])
        contexts = {"task.context": context, "model.context": context}
        return DataSettings({**chosen.settings, **contexts}, f"{chosen.reason}, and rows of {context:,} tokens")
    count = num_characters = max_tokens = 0
    for file in find_chat_files(paths):
        for chat in read_chats(file):
            length = sum(len(message["content"]) for message in chat.messages)
            count, num_characters = count + 1, num_characters + length
            max_tokens = max(max_tokens, length // _MIN_CHARACTERS + _MESSAGE_TOKENS * len(chat.messages))
    vocab_size = lookup(_VOCABULARIES, num_characters)
    context = next((size for size in _CONTEXTS if max_tokens <= size), _CONTEXTS[-1])
    reason = f"a vocabulary of {vocab_size:,} and rows of {context:,} tokens for {count:,} conversations"
    contexts = {"task.context": context, "model.context": context}
    return DataSettings(
        {"task.size": vocab_size, "model.vocab_size": vocab_size, **contexts, **held_out_shares(count)}, reason
    )


def _reply_tokens(task: Task) -> int:
    chats = cast(Chats, task.examples)
    return int(chats.cache.reply_lengths[chats.rows_of("train")].sum())


def _refuse_scratch(recipe: Recipe, paths: Sequence[Path], minutes: float) -> DataSettings:
    """Choices show which of two answers is better, not how to answer, so they cannot train a model from scratch."""
    raise UserError(
        "an untrained model cannot answer yet; use --from with a model that can: a run of the instruct recipe, or "
        "a published model"
    )


SCALES = {
    "instruct": Scale(
        min_batch=_CONTEXTS[-1],  # a batch has at least one row
        shapes=_SHAPES,
        dropout=((4, 0.0), (12, 0.1), (40, 0.2), (math.inf, 0.3)),
        unique_targets=_reply_tokens,
        data_settings=_instruct_settings,
        tuning_data_settings=_row_settings,
    ),
    "preference": Scale(
        tuning_lr_factor=0.05,  # 5e-7 at a width of 4,096, as Zephyr was trained (Tunstall et al. 2023)
        start_settings={"model.dropout": 0.0},  # the start model, with which it is compared, computes without dropout
        data_settings=_refuse_scratch,
        tuning_data_settings=_row_settings,
    ),
}
