"""/tokenize and /detokenize: texts to the ids of a model's tokens, and back."""

from __future__ import annotations

import asyncio

import msgspec

from headway.serve.errors import StatusError
from headway.serve.frame import Context, Endpoint
from headway.serve.generating import text_codec

_MOST = 1 << 20  # ids of one request


class TokenizeBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """`add_special` puts the marks around a text that a prompt begins with."""

    content: str
    model: str = ""
    add_special: bool = False


class TokenizeAnswer(msgspec.Struct):
    """Ids."""

    tokens: list[int]


class DetokenizeBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Ids."""

    tokens: list[int]
    model: str = ""


class DetokenizeAnswer(msgspec.Struct):
    """Their text; special symbols are left out."""

    content: str


async def tokenized(body: TokenizeBody, context: Context) -> TokenizeAnswer:
    async with context.served.using(body.model) as ready:
        read = ready.model.prompt_ids if body.add_special else text_codec(ready.model).encode
        return TokenizeAnswer(await asyncio.to_thread(read, body.content))


async def detokenized(body: DetokenizeBody, context: Context) -> DetokenizeAnswer:
    async with context.served.using(body.model) as ready:
        codec = text_codec(ready.model)
        wrong = next((each for each in body.tokens if not 0 <= each < codec.size), None)
        if wrong is not None or len(body.tokens) > _MOST:
            told = f"the id {wrong} has no token" if wrong is not None else f"{len(body.tokens):,} ids are too many"
            raise StatusError(400, f"{told}; give at most {_MOST:,} from 0 to {codec.size - 1}", "tokens")
        return DetokenizeAnswer(await asyncio.to_thread(codec.decode, body.tokens))


ENDPOINTS = (
    Endpoint("POST", "/tokenize", tokenized, "the tokens of a text", TokenizeBody, TokenizeAnswer),
    Endpoint("POST", "/detokenize", detokenized, "the text of tokens", DetokenizeBody, DetokenizeAnswer),
)
