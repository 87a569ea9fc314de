"""Models that answer at work: replies to conversations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from headway import given
from headway.data.dialogues import Message
from headway.domains.chat.talk import Talk
from headway.errors import UserError
from headway.generate import Limits, Sampling
from headway.handle import Handle

Messages = Sequence[Message]


def chat(
    model: Handle,
    messages: str | Messages,
    max_new_tokens: int = 200,
    temperature: float = 1.0,
    seed: int | None = None,
) -> str:
    return "".join(chat_stream(model, messages, max_new_tokens, temperature, seed)).strip()


def chat_stream(
    model: Handle,
    messages: str | Messages,
    max_new_tokens: int = 200,
    temperature: float = 1.0,
    seed: int | None = None,
) -> Iterator[str]:
    told = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
    if not isinstance(told, Sequence) or not all(isinstance(message, Mapping) for message in told):
        remedy = 'give a text, or messages as [{"role": "user", "content": "..."}]'
        raise UserError(f"{given.shown(messages)} is not a conversation; {remedy}")
    return talk(model).stream(told, Sampling(temperature, seed=seed), Limits(max_new_tokens))


def talk(model: Handle) -> Talk:
    return Talk.of_model(model.open_session(), model.codec, model.usage, model.directory)
