"""Inference with chat models: conversations with the model's chat template, and where its answers end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from headway.codecs import Codec, TokenizerCodec
from headway.codecs.chat_template import ChatTemplate
from headway.codecs.thinking_format import MESSAGE_ENDS, thinking_format
from headway.data.dialogues import Message
from headway.errors import UserError, logger
from headway.formats.usage import Usage
from headway.generate import Event, Limits, Sampling, Session
from headway.generate.prompts import context_of
from headway.generate.sequences import ANSWER
from headway.generate.thinking import answer_reader, check_budget, thinking_off, thinking_rule
from headway.io import arguments
from headway.predict.model_handle import ModelHandle

_LOG = logger(__name__)


class ChatPrompt(NamedTuple):
    """The prompt's ids, the number of oldest turns that were dropped from it, and the state of the answer after it."""

    ids: list[int]
    dropped: int
    state: str = ANSWER


class Conversation:
    """Generates answers with the model's chat template."""

    def __init__(
        self, session: Session, codec: TokenizerCodec, template: ChatTemplate, stop_ids: Sequence[int]
    ) -> None:
        """`stop_ids` end an answer, as do the ids that the template writes after one."""
        self.session = session
        self.codec = codec
        self.template = template
        self.thinking = thinking_format(codec, template.text)
        stop_sequences = template.stop_sequences(codec)
        if self.thinking is not None and self.thinking.channels:  # a call ends the answer, as the last message does
            ends = (token for token, name in self.thinking.spelled.items() if name in MESSAGE_ENDS[1:])
            stop_ids = (*stop_ids, *ends)
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

    def encode_prompt(
        self, messages: Sequence[Message], limits: Limits, thinking_token_budget: int | None = None
    ) -> ChatPrompt:
        """A conversation as ids; its oldest turns are dropped if they leave no room for an answer. A budget
        of 0 sets the template's variables that turn thinking off.

        An answer gets at most half of the context. Raises UserError for messages that the template rejects.
        """
        context = context_of(self.session.model)
        max_tokens = None if context is None else context - min(limits.max_new_tokens, context // 2)
        template = self.template.with_values(thinking_off(thinking_token_budget, self.template.text))
        state = self.answer_state(template, messages)
        return ChatPrompt(*template.truncated_prompt(self.codec, messages, max_tokens), state)

    def answer_state(self, template: ChatTemplate, messages: Sequence[Message], tools: Any = None) -> str:
        """Whether the template has already started or ended the thinking of the next answer."""
        if self.thinking is None:
            return ANSWER
        return self.thinking.state_after(template.answer_start(messages, tools))

    def stream_answer(
        self, prompt: ChatPrompt, sampling: Sampling, limits: Limits, thinking_token_budget: int | None = None
    ) -> Iterator[Event]:
        """The answer to a prompt, streamed; `text` of an event is part of the answer, `reasoning` of the thinking
        before it. Raises UserError immediately if the prompt does not fit into the context.
        """
        limits, thinking, state = self.with_turn_end(limits), self.thinking, prompt.state
        budget = check_budget(thinking_token_budget, thinking)
        if thinking is None:
            return self.session.events([prompt.ids], sampling, limits)
        vocab_size = self.session.model.config.vocab_size
        rule = thinking_rule(thinking, state, None, budget, limits.all_stop_ids(self.codec), vocab_size)
        reader = partial(answer_reader, thinking, state)
        return self.session.events([prompt.ids], sampling, limits, rule=rule, reader=reader)

    def with_turn_end(self, limits: Limits) -> Limits:
        """The same limits plus the end of the assistant's turn."""
        return replace(limits, stop=(*limits.stop, *self._stop_strings), stop_ids=(*limits.stop_ids, *self._stop_ids))

    def stream(
        self, messages: Sequence[Message], sampling: Sampling, limits: Limits, thinking_token_budget: int | None = None
    ) -> Iterator[str]:
        """The answer to a conversation without its thinking, streamed. Logs how many turns are dropped because they do
        not fit.
        """
        prompt = self.encode_prompt(messages, limits, thinking_token_budget)
        if prompt.dropped:
            _LOG.warning(dropped_turns_message(prompt.dropped, context_of(self.session.model)))
        events = self.stream_answer(prompt, sampling, limits, thinking_token_budget)
        return (event.text for event in events if event.text)


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
    thinking_token_budget: int | None = None,
) -> str:
    """The reply to a conversation: messages with a `role` and a `content`, or a string for one user message. The
    model's chat template formats the prompt. The thinking before a reply is not part of it.

    thinking_token_budget: maximum number of tokens that a model thinks before it answers; 0 turns thinking off.

    If the conversation is longer than the context, the oldest turns are dropped with a warning. Raises UserError
    for a model without a chat template, and for messages that the template rejects. `talk` takes all settings of
    Sampling and Limits.
    """
    return "".join(chat_stream(model, messages, max_new_tokens, temperature, seed, thinking_token_budget)).strip()


def chat_stream(
    model: ModelHandle,
    messages: str | Messages,
    max_new_tokens: int = 200,
    temperature: float = 1.0,
    seed: int | None = None,
    thinking_token_budget: int | None = None,
) -> Iterator[str]:
    """`chat`, streamed in chunks; a chunk never ends within a character."""
    conversation = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
    if not isinstance(conversation, Sequence) or not all(isinstance(message, Mapping) for message in conversation):
        remedy = 'pass a string, or messages as [{"role": "user", "content": "..."}]'
        raise UserError(f"{arguments.format_value(messages)} is not a conversation; {remedy}")
    sampling, limits = Sampling(temperature, seed=seed), Limits(max_new_tokens)
    return talk(model).stream(conversation, sampling, limits, thinking_token_budget)


def talk(model: ModelHandle) -> Conversation:
    return Conversation.of_model(model.open_session(), model.codec, model.usage, model.directory)
