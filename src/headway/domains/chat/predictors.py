"""Inference with chat models: conversations with the model's chat template, and where its answers end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from headway.codecs import Codec, TokenizerCodec
from headway.codecs.chat_template import ChatTemplate
from headway.data.dialogues import Message
from headway.errors import UserError, logger
from headway.formats.usage import Usage
from headway.generate import Limits, Sampling, Session
from headway.generate.prompts import context_of
from headway.io import arguments
from headway.predict.model_handle import ModelHandle

_LOG = logger(__name__)


class ChatPrompt(NamedTuple):
    """The prompt's ids, and the number of oldest turns that were dropped from it."""

    ids: list[int]
    dropped: int


class Conversation:
    """Generates answers with the model's chat template."""

    def __init__(
        self, session: Session, codec: TokenizerCodec, template: ChatTemplate, stop_ids: Sequence[int]
    ) -> None:
        """`stop_ids` end an answer, as do the ids that the template writes after one."""
        self.session = session
        self.codec = codec
        self.template = template
        stop_sequences = template.stop_sequences(codec)
        self._stop_strings, self._stop_ids = stop_sequences.strings, (*stop_sequences.ids, *stop_ids)

    @classmethod
    def of_model(cls, session: Session, codec: Codec, usage: Usage, directory: Path) -> Conversation:
        """Raises UserError for a model without a template."""
        if usage.template is None or not isinstance(codec, TokenizerCodec):
            raise UserError(
                f"{directory} has no chat template, so it cannot chat; use generate, or add the chat_template.jinja "
                "that it was trained with"
            )
        template = ChatTemplate(usage.template, codec.special_tokens, f"the chat template of {directory}")
        return cls(session, codec, template, usage.ends)

    def encode_prompt(self, messages: Sequence[Message], limits: Limits) -> ChatPrompt:
        """A conversation as ids; its oldest turns are dropped if they leave no room for an answer.

        An answer gets at most half of the context. Raises UserError for messages that the template rejects.
        """
        context = context_of(self.session.model)
        max_tokens = None if context is None else context - min(limits.max_new_tokens, context // 2)
        return ChatPrompt(*self.template.truncated_prompt(self.codec, messages, max_tokens))

    def stream_answer(self, ids: Sequence[int], sampling: Sampling, limits: Limits) -> Iterator[str]:
        """The answer to a prompt, streamed. Raises UserError immediately if the prompt does not fit into the
        context.
        """
        return self.session.stream(ids, sampling, self.with_turn_end(limits))

    def with_turn_end(self, limits: Limits) -> Limits:
        """The same limits plus the end of the assistant's turn."""
        return replace(limits, stop=(*limits.stop, *self._stop_strings), stop_ids=(*limits.stop_ids, *self._stop_ids))

    def stream(self, messages: Sequence[Message], sampling: Sampling, limits: Limits) -> Iterator[str]:
        """The answer to a conversation, streamed. Logs how many turns are dropped because they do not fit."""
        ids, dropped = self.encode_prompt(messages, limits)
        if dropped:
            _LOG.warning(dropped_turns_message(dropped, context_of(self.session.model)))
        return self.stream_answer(ids, sampling, limits)


def dropped_turns_message(count: int, context: int | None) -> str:
    """The message for turns that do not fit into the context."""
    subject = "turn does not fit" if count == 1 else f"{count} turns do not fit"
    return f"the first {subject} into the context of {context} tokens"


Messages = Sequence[Message]


def chat(
    model: ModelHandle,
    messages: str | Messages,
    max_new_tokens: int = 200,
    temperature: float = 1.0,
    seed: int | None = None,
) -> str:
    """The reply to a conversation: messages with a `role` and a `content`, or a string for one user message. The
    model's chat template formats the prompt.

    If the conversation is longer than the context, the oldest turns are dropped with a warning. Raises UserError
    for a model without a chat template, and for messages that the template rejects. `talk` takes all settings of
    Sampling and Limits.
    """
    return "".join(chat_stream(model, messages, max_new_tokens, temperature, seed)).strip()


def chat_stream(
    model: ModelHandle,
    messages: str | Messages,
    max_new_tokens: int = 200,
    temperature: float = 1.0,
    seed: int | None = None,
) -> Iterator[str]:
    """`chat`, streamed in chunks; a chunk never ends within a character."""
    conversation = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
    if not isinstance(conversation, Sequence) or not all(isinstance(message, Mapping) for message in conversation):
        remedy = 'pass a string, or messages as [{"role": "user", "content": "..."}]'
        raise UserError(f"{arguments.format_value(messages)} is not a conversation; {remedy}")
    return talk(model).stream(conversation, Sampling(temperature, seed=seed), Limits(max_new_tokens))


def talk(model: ModelHandle) -> Conversation:
    return Conversation.of_model(model.open_session(), model.codec, model.usage, model.directory)
