"""Conversations and preferences as token ids, with the tokens to train on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, NamedTuple

from headway.codecs import Kind, TokenizerCodec, train_codec
from headway.codecs.chat_template import ROLES, Chat, ChatTemplate, default_template
from headway.codecs.tokenizer import END_OF_TEXT
from headway.data.dialogues import ASSISTANT, Dialogue, Message, Preference, read_chats, read_preferences
from headway.data.input_files import File
from headway.data.token_store import ChatCache, TokenizedChat
from headway.errors import UserError

if TYPE_CHECKING:
    from headway.data.prepared.prepared_samples import PreparedSamples


class EncodedChats(NamedTuple):
    """The token ids of a sample, and the text that determines its split."""

    key: str
    chats: Sequence[TokenizedChat]


class ChatKind(NamedTuple):
    """A kind of samples: its name; how many conversations a sample has; how it is read; and how its messages are
    tokenised with a template, a tokenizer and a location for messages.
    """

    name: str
    parts: int
    read: Callable[[File], Iterator[Dialogue | Preference]]
    encode: Callable[..., EncodedChats]


def encode_conversation(
    template: ChatTemplate, codec: TokenizerCodec, location: str, *messages: Sequence[Message]
) -> EncodedChats:
    """A conversation. Equal messages before the first reply are in the same split."""
    (chat,) = messages
    prompt = takewhile(lambda message: message["role"] != ASSISTANT, chat)
    return EncodedChats(_split_key(prompt), [TokenizedChat(*_encode(template, codec, chat, location))])


def encode_preference(
    template: ChatTemplate, codec: TokenizerCodec, location: str, *messages: Sequence[Message]
) -> EncodedChats:
    """A prompt with its chosen and its rejected ending. Equal prompts are in the same split."""
    prompt, *endings = messages
    chosen, rejected = (_encode(template, codec, [*prompt, *ending], location) for ending in endings)
    # Excludes the prompt's assistant turns, which both endings share.
    id_pairs = enumerate(zip(chosen.ids, rejected.ids))
    shared = next((i for i, (a, b) in id_pairs if a != b), min(len(chosen.ids), len(rejected.ids)))
    tokenized = [
        TokenizedChat(chat.ids, [span for span in chat.spans if span[1] > shared or span is chat.spans[-1]])
        for chat in (chosen, rejected)
    ]
    return EncodedChats(_split_key(prompt), tokenized)


def _encode(template: ChatTemplate, codec: TokenizerCodec, messages: Sequence[Message], location: str) -> Chat:
    """A conversation as ids. UserError with its location if the template rejects it or does not mark any assistant
    tokens.
    """
    try:
        chat = template.encode(codec, messages)
    except UserError as error:
        raise UserError(f"{location}: {error}") from None
    if not any(stop > 1 for _, stop in chat.spans):  # a first token is only an input
        raise UserError(
            f"{location}: {template.source} does not mark any of it as the assistant's; correct the template's "
            "{% generation %} blocks, or the roles of the messages"
        )
    return chat


def _split_key(messages: Iterable[Message]) -> str:
    """The key that determines the split: the messages as text."""
    return "\n".join(f"{message['role']}: {message['content']}" for message in messages)


CONVERSATIONS = ChatKind("conversations", 1, read_chats, encode_conversation)
PREFERENCES = ChatKind("preferences", 2, read_preferences, encode_preference)


def train_chat_codec(kind: Kind, texts: Iterable[str], size: int | None) -> TokenizerCodec:
    """A tokenizer of at most `size` tokens, among them the roles of the default template."""
    return train_codec(kind, texts, size, special=(*ROLES, END_OF_TEXT), fewer=True)


def chat_template(text: str | None, codec: TokenizerCodec) -> ChatTemplate:
    """A model's chat template, or the default one."""
    if text is None:
        return default_template(codec.special_tokens)
    return ChatTemplate(text, codec.special_tokens, "the model's chat template")


class ChatData(NamedTuple):
    """All samples of a task, with their tokenizer and chat template; `windowed` are prepared samples that are too large
    for one shuffle.
    """

    codec: TokenizerCodec
    template: ChatTemplate
    cache: ChatCache
    windowed: PreparedSamples | None = None
