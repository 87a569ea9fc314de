"""/tokenize and /detokenize: text to token ids, and back. /apply-template: a conversation as the model reads it."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from headway.errors import UserError
from headway.serve.bodies import ChatMessage
from headway.serve.chat import conversation_of, messages_of, starts_answer
from headway.serve.generation import TokenFormatter, text_codec
from headway.serve.http_errors import StatusError
from headway.serve.interfaces import Context, Endpoint
from headway.serve.tools import Toolbox, arranged_messages

_MAX_IDS = 1 << 20  # ids per request


class TokenizeBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """`add_special` adds the special tokens of a prompt; `with_pieces` also returns the text of each id."""

    content: str
    model: str = ""
    add_special: bool = False
    with_pieces: bool = False


class TokenPiece(msgspec.Struct):
    """An id, and its text, or its bytes as integers if they are not valid UTF-8."""

    id: int
    piece: str | list[int]


class TokenizeAnswer(msgspec.Struct):
    """Token ids, or ids with their pieces."""

    tokens: list[int | TokenPiece]


class DetokenizeBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Token ids."""

    tokens: list[int]
    model: str = ""


class DetokenizeAnswer(msgspec.Struct):
    """The text of the ids, without special tokens."""

    content: str


class ApplyTemplateBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A conversation as in /v1/chat/completions."""

    messages: list[ChatMessage]
    model: str = ""
    tools: list[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, bool | int | float | str] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False


class ApplyTemplateAnswer(msgspec.Struct):
    """The model's input as text, where special tokens that a user typed look like the template's own, and as ids."""

    prompt: str
    tokens: list[int]


async def tokenize(body: TokenizeBody, context: Context) -> TokenizeAnswer:
    async with context.served.using(body.model) as ready:
        encode = ready.model.prompt_ids if body.add_special else text_codec(ready.model).encode
        ids = await asyncio.to_thread(encode, body.content)
        if not body.with_pieces:
            return TokenizeAnswer(list(ids))
        token_bytes = TokenFormatter.of(ready.model).token_bytes
        return TokenizeAnswer(
            await asyncio.to_thread(lambda: [TokenPiece(id, _decode_piece(token_bytes(id))) for id in ids])
        )


def _decode_piece(token_bytes: bytes) -> str | list[int]:
    try:
        return token_bytes.decode()
    except UnicodeDecodeError:
        return list(token_bytes)


async def detokenize(body: DetokenizeBody, context: Context) -> DetokenizeAnswer:
    async with context.served.using(body.model) as ready:
        codec = text_codec(ready.model)
        unknown_id = next((id for id in body.tokens if not 0 <= id < codec.vocab_size), None)
        if unknown_id is not None or len(body.tokens) > _MAX_IDS:
            problem = (
                f"unknown token id {unknown_id}" if unknown_id is not None else f"{len(body.tokens):,} ids are too many"
            )
            raise StatusError(400, f"{problem}; send at most {_MAX_IDS:,} from 0 to {codec.vocab_size - 1}", "tokens")
        return DetokenizeAnswer(await asyncio.to_thread(codec.decode, body.tokens))


async def apply_template(body: ApplyTemplateBody, context: Context) -> ApplyTemplateAnswer:
    messages = messages_of(body.messages)
    starts = starts_answer(body.add_generation_prompt, body.continue_final_message)
    async with context.served.using(body.model) as ready:
        conversation = conversation_of(ready)
        messages = arranged_messages(messages, conversation.template.text)
        tools = (
            Toolbox(conversation.codec, conversation.template.text, body.tools).template_tools if body.tools else None
        )

        def render() -> ApplyTemplateAnswer:
            template = conversation.template.with_values(body.chat_template_kwargs or {})
            text = template.render(messages, starts, tools, body.continue_final_message)
            ids = template.prompt(conversation.codec, messages, tools, starts, body.continue_final_message)
            return ApplyTemplateAnswer(text, ids)

        try:
            return await asyncio.to_thread(render)
        except UserError as error:  # clients do not need to know the model's path
            raise StatusError(400, str(error).replace(str(ready.model.directory), ready.name), "messages") from None


ENDPOINTS = (
    Endpoint("POST", "/tokenize", tokenize, "the tokens of a text", TokenizeBody, TokenizeAnswer),
    Endpoint("POST", "/detokenize", detokenize, "the text of tokens", DetokenizeBody, DetokenizeAnswer),
    Endpoint(
        "POST",
        "/apply-template",
        apply_template,
        "a conversation as the model reads it",
        ApplyTemplateBody,
        ApplyTemplateAnswer,
    ),
)
