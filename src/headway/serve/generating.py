"""What requests for texts have in common: settings out of fields, room in the context, and tokens as they are told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import aclosing
from itertools import accumulate
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from headway.app.model import Model
from headway.codecs import TokenizerCodec
from headway.codecs.base import BYTES, decoder_steps, special_ids
from headway.errors import UserError
from headway.generate import Limits, Sampling
from headway.generate.scheduler import Request
from headway.serve.bodies import Finish, LikelyToken, PromptTokens, TokensUsed, ToldToken, WritingBody
from headway.serve.calls import Arguments, CallReader, ToolCall
from headway.serve.errors import StatusError
from headway.serve.frame import Context, Ready
from headway.serve.loop import EngineLoop
from headway.serve.metrics import READ
from headway.serve.rules import FormMaker, rule_for

_BIASES = 1024  # symbols that logit_bias names
_STOP = 1000  # characters of a stop string
_NO_CALLS: Sequence[ToolCall | Arguments] = ()
_LEAST = -9999.0  # log probability of what cannot be: JSON has no infinity


def writer(ready: Ready) -> EngineLoop:
    """What writes the texts of a model. StatusError 400 where it writes none."""
    if ready.loop is None:
        told = f"{ready.name} writes no texts; it can {', '.join(ready.model.verbs) or 'do nothing that is served'}"
        raise StatusError(400, told, "model")
    return ready.loop


def sampling_of(body: WritingBody, symbols: int) -> Sampling:
    """How tokens are drawn. UserError for numbers out of range."""
    given: dict[str, Any] = {
        "temperature": body.temperature,
        "top_p": body.top_p,
        "top_k": body.top_k,
        "min_p": body.min_p,
        "repetition_penalty": body.repetition_penalty,
        "presence_penalty": body.presence_penalty or None,
        "frequency_penalty": body.frequency_penalty or None,
        "logit_bias": _biases(body.logit_bias, symbols) if body.logit_bias else None,
        "seed": body.seed,
    }
    return Sampling(**{name: value for name, value in given.items() if value is not None})


def _biases(given: Mapping[str, float], symbols: int) -> dict[int, float]:
    if len(given) > _BIASES:
        told = f"logit_bias names {len(given):,} tokens, {_BIASES:,} are the most; name fewer"
        raise StatusError(400, told, "logit_bias")
    found = {}
    for name, bias in given.items():
        if not (name.isascii() and name.isdecimal() and len(name) < 10 and int(name) < symbols):
            told = f"logit_bias names the token {name[:40]!r}; give ids from 0 to {symbols - 1} as texts"
            raise StatusError(400, told, "logit_bias")
        if not -100 <= bias <= 100:
            raise StatusError(400, f"logit_bias of {name} is {bias:g}; give a number from -100 to 100", "logit_bias")
        found[int(name)] = bias
    return found


def copies_of(body: WritingBody, prompts: int, context: Context) -> int:
    """How many continuations of each of so many prompts. StatusError 400 where there would be too many."""
    copies, settings = body.n or 1, context.settings
    if copies > settings.copies:
        raise StatusError(400, f"n is {copies}; give a whole number from 1 to {settings.copies}", "n")
    if copies * prompts > settings.sequences:
        told = f"{prompts} prompts with n={copies} are {copies * prompts} texts, {settings.sequences} are the most"
        raise StatusError(400, f"{told}; send several requests", "prompt")
    return copies


def limits_of(body: WritingBody, model: Model, context: Context) -> Limits:
    """When a text ends, but for its length. StatusError 400 for too many or too long stop strings."""
    given = body.stop or ()
    stop = (given,) if isinstance(given, str) else tuple(given)
    if len(stop) > context.settings.stops:
        told = f"stop has {len(stop)} texts, {context.settings.stops} are the most; give fewer"
        raise StatusError(400, told, "stop")
    if any(len(text) > _STOP for text in stop):
        raise StatusError(400, f"a text in stop has more than {_STOP:,} characters; give a shorter one", "stop")
    ends = () if body.ignore_end else model.usage.ends
    return Limits(1, stop, tuple(ends), body.ignore_end)


def room_for(ids: Sequence[int], model: Model, param: str) -> int | None:
    """Tokens that the context has room for behind a prompt; None where it has no end. StatusError 400 for none."""
    if model.context is None:
        return None
    if len(ids) >= model.context:
        told = f"the prompt has {len(ids):,} tokens, and the context of {model.context:,} must hold an answer too"
        raise StatusError(400, f"{told}; shorten it", param, "context_length_exceeded")
    return model.context - len(ids)


async def rule_of(body: WritingBody, model: Model, ends: Iterable[int]) -> FormMaker | None:
    """What holds a text to `response_format`, and lets `ends` end it; None for plain text. UserError for a form that
    cannot be held to.
    """
    form = body.response_format
    return None if form is None else await asyncio.to_thread(rule_for, text_codec(model), form, tuple(ends))


def text_codec(model: Model) -> TokenizerCodec:
    """The tokenizer of a model. UserError where it has none of the kind that can be served."""
    codec = model.codec
    if not isinstance(codec, TokenizerCodec):
        raise UserError(f"{model.directory.name} has no tokenizer.json, which this needs; put it there")
    return codec


class Prepared(NamedTuple):
    """What is asked of a model that is loaded, and who reads each of the sequences for calls of tools."""

    ready: Ready
    requests: Sequence[Request]
    told: bool  # whether log probabilities are wanted
    readers: Sequence[CallReader] = ()


class Passage(NamedTuple):
    """What one step adds to one of the sequences that were asked for."""

    place: int
    text: str
    calls: Sequence[ToolCall | Arguments]
    token: ToldToken | None  # where it is wanted
    reason: Finish | None


async def passages(asked: Prepared, context: Context) -> AsyncGenerator[Passage, None]:
    """All that is written, as it comes. The numbers of tokens are noted for the log, and for `used`."""
    read, written = sum(len(request.prompt) for request in asked.requests), 0
    firsts = accumulate((request.copies for request in asked.requests[:-1]), initial=0)
    known = dict.fromkeys(firsts, 0)  # of each request, by the place of its first copy, which reads the prompt for all
    context.noted.update(model=asked.ready.name, prompt_tokens=read, cached_tokens=0, completion_tokens=0)
    READ.labels(asked.ready.name).inc(read)
    spell = Spelling.of(asked.ready.model) if asked.told else None
    async with writer(asked.ready).write(asked.requests) as writing, aclosing(writing.turns()) as turns:
        async for place, said in turns:
            text, calls, reason = said.text, _NO_CALLS, said.reason
            if asked.readers:
                reader = asked.readers[place]
                parts = [*reader.push(said.text, said.id), *(reader.flush() if reason is not None else [])]
                text = "".join(part for part in parts if isinstance(part, str))
                calls = [part for part in parts if not isinstance(part, str)]
                reason = "tool_calls" if reason == "stop" and reader.calls and not reader.broken else reason
            token = None
            if spell is not None and said.id is not None:
                token = spell.told(said.id, said.logprob, said.top)
            written += said.id is not None
            context.noted["completion_tokens"] = written
            if place in known:
                known[place] = said.known
                context.noted["cached_tokens"] = sum(known.values())
            yield Passage(place, text, calls, token, reason)


class Spelling:
    """The tokens of a model as they are told."""

    def __init__(self, codec: TokenizerCodec) -> None:
        self._codec = codec
        self._special = special_ids(codec.tokenizer)
        self._kinds = {step["type"] for step in decoder_steps(codec.tokenizer)}

    @classmethod
    def of(cls, model: Model) -> Spelling:
        """Of a model's tokenizer, made once."""
        codec = text_codec(model)
        if codec not in _spellings:
            _spellings[codec] = cls(codec)
        return _spellings[codec]

    def told(self, id: int, logprob: float, top: Sequence[tuple[int, float]]) -> ToldToken:
        """A token and its log probability, beside the likeliest ones."""
        likeliest = [LikelyToken(*self._parts(other, value)) for other, value in top]
        return ToldToken(*self._parts(id, logprob), likeliest)

    def bytes(self, id: int) -> bytes:
        """What a token spells: for most the text that it adds, which may be a part of a character."""
        piece = self._codec.tokenizer.id_to_token(id)
        if piece is None:
            return b""
        if id in self._special:
            return piece.encode()
        if "ByteLevel" in self._kinds and all(character in BYTES for character in piece):
            return bytes(BYTES[character] for character in piece)
        if "ByteFallback" in self._kinds and len(piece) == 6 and piece.startswith("<0x"):
            return bytes.fromhex(piece[3:5])
        if "WordPiece" in self._kinds:
            return (piece.removeprefix("##") if piece.startswith("##") else f" {piece}").encode()
        return piece.replace("\u2581", " ").encode() if self._kinds & {"Metaspace", "Replace"} else piece.encode()

    def _parts(self, id: int, logprob: float) -> tuple[str, float, list[int]]:
        spelt = self.bytes(id)
        return spelt.decode("utf-8", "replace"), max(logprob, _LEAST), list(spelt)


_spellings: WeakKeyDictionary[TokenizerCodec, Spelling] = WeakKeyDictionary()


def used(context: Context) -> TokensUsed:
    """The numbers of tokens, as `passages` noted them."""
    read, known, written = (int(context.noted[f"{name}_tokens"]) for name in ("prompt", "cached", "completion"))
    return TokensUsed(read, written, read + written, PromptTokens(known))
