"""What a model that continues text does with prompts and conversations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import cast, overload

from headway import given
from headway.data.dialogues import Message
from headway.domains import chat, translation
from headway.domains.text import LanguageConfig
from headway.errors import UserError
from headway.generate import Completion, Limits, Sampling, Session
from headway.given import typed
from headway.loaded import Texts
from headway.models import Captioner, EncoderDecoder, Transformer
from headway.senses import Senses, matches

Messages = Sequence[Message]
_SAMPLING, _LIMITS = Sampling(), Limits()


class Writes(Senses):
    """Continuations of prompts, in pieces or whole, and answers in a conversation."""

    @overload
    def generate(
        self,
        prompt: str,
        max_new_tokens: int = ...,
        temperature: float = ...,
        top_k: int | None = ...,
        top_p: float = ...,
        min_p: float = ...,
        repetition_penalty: float = ...,
        stop: str | Texts = ...,
        seed: int | None = ...,
    ) -> str: ...

    @overload
    def generate(
        self,
        prompt: Texts,
        max_new_tokens: int = ...,
        temperature: float = ...,
        top_k: int | None = ...,
        top_p: float = ...,
        min_p: float = ...,
        repetition_penalty: float = ...,
        stop: str | Texts = ...,
        seed: int | None = ...,
    ) -> list[str]: ...

    def generate(
        self,
        prompt: str | Texts,
        max_new_tokens: int = 100,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        stop: str | Texts = (),
        seed: int | None = None,
    ) -> str | list[str]:
        """The continuation of a prompt, or of each of many.

        max_new_tokens, stop: when to end; see Limits.
        temperature, top_k, top_p, min_p, repetition_penalty, seed: how tokens are drawn; see Sampling.

        Raises UserError for a model that generates no text, and for a prompt that is too long.
        """
        sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty, seed)
        asked = given.texts(prompt, "prompt")
        found = self.complete(asked.items, sampling, Limits(max_new_tokens, _stops(stop)))
        return asked.answer([completion.text for completion in found])

    def stream(
        self,
        prompt: str,
        max_new_tokens: int = 100,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        stop: str | Texts = (),
        seed: int | None = None,
    ) -> Iterator[str]:
        """The continuation of a prompt, in pieces as they are generated; a piece never ends within a character. The
        arguments are those of `generate`.
        """
        sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty, seed)
        return self.continuations(prompt, sampling, Limits(max_new_tokens, _stops(stop)))

    @typed
    def continuations(self, prompt: str, sampling: Sampling, limits: Limits) -> Iterator[str]:
        """The same as `stream`, with the settings as objects."""
        ids = self.prompt_ids(prompt)
        self.meet([prompt], [ids])
        return self.session.stream(ids, sampling, self._limits(limits))

    @overload
    def complete(self, prompts: str, sampling: Sampling = ..., limits: Limits = ...) -> Completion: ...

    @overload
    def complete(self, prompts: Texts, sampling: Sampling = ..., limits: Limits = ...) -> list[Completion]: ...

    @typed
    def complete(
        self, prompts: str | Texts, sampling: Sampling = _SAMPLING, limits: Limits = _LIMITS
    ) -> Completion | list[Completion]:
        """The continuation of a prompt, or of each of many, as a Completion: text, ids, log probabilities and speed."""
        asked, session = given.texts(prompts, "prompt"), self.session
        rows = [self.prompt_ids(prompt) for prompt in asked.items]
        self.meet(asked.items, rows)
        return asked.answer(session.generate(rows, sampling, self._limits(limits)) if rows else [])

    def _limits(self, limits: Limits) -> Limits:
        """With the ends that a published model names beside its tokenizer's."""
        if limits.ignore_end or not self.usage.ends:
            return limits
        return replace(limits, stop_ids=(*limits.stop_ids, *self.usage.ends))

    @overload
    def generate_ids(
        self,
        ids: Iterable[int],
        max_new_tokens: int = ...,
        temperature: float = ...,
        ignore_end: bool = ...,
        seed: int | None = ...,
    ) -> list[int]: ...

    @overload
    def generate_ids(
        self,
        ids: Iterable[Iterable[int]],
        max_new_tokens: int = ...,
        temperature: float = ...,
        ignore_end: bool = ...,
        seed: int | None = ...,
    ) -> list[list[int]]: ...

    def generate_ids(
        self,
        ids: Iterable[int] | Iterable[Iterable[int]],
        max_new_tokens: int = 100,
        temperature: float = 1.0,
        ignore_end: bool = False,
        seed: int | None = None,
    ) -> list[int] | list[list[int]]:
        """The ids that follow the ids of a prompt, or of each of many, without the end symbol. With `ignore_end` there
        are always `max_new_tokens` of them.
        """
        limits = self._limits(Limits(max_new_tokens, ignore_end=ignore_end))
        asked, sampling, session = given.rows_of_ids(ids), Sampling(temperature, seed=seed), self.session
        found = session.generate(asked.items, sampling, limits) if asked.items else []
        return asked.answer([completion.ids for completion in found])

    def chat(
        self, messages: str | Messages, max_new_tokens: int = 200, temperature: float = 1.0, seed: int | None = None
    ) -> str:
        """The model's reply to a conversation: messages with a `role` and a `content`, or a text, which is one message
        of the user. The prompt is built by the model's chat template.

        If the conversation outgrows the context, the oldest turns are left out, and a warning is logged. Raises
        UserError for a model without a chat template, and for messages that the template refuses. `talk` takes all
        settings of Sampling and Limits.
        """
        return "".join(self.chat_stream(messages, max_new_tokens, temperature, seed)).strip()

    def chat_stream(
        self, messages: str | Messages, max_new_tokens: int = 200, temperature: float = 1.0, seed: int | None = None
    ) -> Iterator[str]:
        """The same as `chat`, in pieces as they are generated; a piece never ends within a character."""
        told = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
        if not isinstance(told, Sequence) or not all(isinstance(message, Mapping) for message in told):
            remedy = 'give a text, or messages as [{"role": "user", "content": "..."}]'
            raise UserError(f"{given.shown(messages)} is not a conversation; {remedy}")
        return self.talk.stream(told, Sampling(temperature, seed=seed), Limits(max_new_tokens))

    @cached_property
    def talk(self) -> chat.Talk:
        """Conversations by the model's chat template, with all settings. Raises UserError for a model without a
        template.
        """
        return chat.Talk.of_model(self.session, self.codec, self.usage, self.directory)

    @property
    def session(self) -> Session:
        """Generation for many sequences at once. Raises UserError for a model that generates no text."""
        if isinstance(self.module, EncoderDecoder):
            raise UserError(f"{self.directory} is an encoder-decoder, which cannot continue a prompt; use translate")
        self._check_one_stream()
        if not cast(Transformer, self.module).config.stack.causal:
            raise UserError(
                f"{self.directory} sees later tokens, so it cannot continue a prompt; use fill, embed or classify"
            )
        return Session(self.generator, self._codec, draft=None if self.draft is None else self.draft.generator)

    def _check_one_stream(self) -> None:
        if matches(self.module):
            raise UserError(f"{self.directory} compares images with texts and cannot write; use match or embed")
        if isinstance(self.module, Captioner):
            raise UserError(f"{self.directory} can only write captions of images; use caption")

    def prompt_ids(self, text: str) -> list[int]:
        """The ids of a prompt: its tokens, after the begin symbol if the model was trained or published with one."""
        if self.recipe is None:
            ids = translation.framed(self.codec, text)
            return ids[:-1] if len(ids) > 1 and ids[-1] == self.codec.end else ids
        ids = self.codec.encode(text)
        task = self.recipe.task
        crops = isinstance(task, LanguageConfig) and task.crops
        return ids if self.codec.begin is None or (crops and ids) else [self.codec.begin, *ids]


def _stops(stop: str | Texts) -> tuple[str, ...]:
    return tuple(given.texts(stop, "stop").items)
