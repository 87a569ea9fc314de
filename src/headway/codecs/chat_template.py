"""Chat templates: render conversations as the text and token ids that a model expects.

A template writes special tokens around messages, and a message must not be able to inject one. So guards are first
inserted into messages. After rendering, special tokens written by the template become tokens, guarded text stays text,
and the guards are removed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from functools import cached_property
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import PreTokenizer

from headway.codecs.chat_spans import (
    ASSISTANT,
    GUARD,
    RESERVED,
    SHIELD,
    Guard,
    Message,
    Span,
    TemplateBudgetError,
    assistant_spans,
    block_spans,
    text_up_to_content_end,
)
from headway.codecs.special_tokens import CONFIG_FILE, SpecialTokens
from headway.codecs.tokenizer import TokenizerCodec
from headway.codecs.tokenizer_files import object_or_empty, read_text
from headway.errors import UserError
from headway.io.helper import Helper, HelperError


class Token(NamedTuple):
    """A token id, and the start and stop of its characters."""

    id: int
    start: int
    stop: int


class Locator:
    """Tokenises rendered text and turns the names of special tokens into tokens, as published pipelines do.

    A name that contains a GUARD or follows a SHIELD stays text; guards and shields are dropped.
    """

    def __init__(self, codec: TokenizerCodec) -> None:
        tokens = codec.tokenizer.get_added_tokens_decoder()
        self._special = {token.content: (i, token) for i, token in tokens.items() if token.special}
        self.guard = Guard(self._special)
        self._start_tokenizer = _offset_tokenizer(codec.tokenizer, continued=False)
        self._inner_tokenizer = _offset_tokenizer(codec.tokenizer, continued=True)

    @cached_property
    def special(self) -> frozenset[int]:
        """The special token ids."""
        return frozenset(i for i, _ in self._special.values())

    def tokens(self, text: str) -> list[Token]:
        """The tokens in a text, with offsets that include guards."""
        tokens: list[Token] = []
        done = 0
        for start, stop in self.guard.spellings.find_names(text):
            token_id, token = self._special[text[start:stop]]
            if start < done:  # white space that the previous token has consumed
                continue
            if token.lstrip:
                start = done + len(text[done:start].rstrip())
            tokens += self._plain_tokens(text, done, start)
            if token.rstrip:
                stop += len(text[stop:]) - len(text[stop:].lstrip())
            tokens.append(Token(token_id, start, stop))
            done = stop
        tokens += self._plain_tokens(text, done, len(text))
        return tokens

    def _plain_tokens(self, text: str, start: int, stop: int) -> Iterator[Token]:
        positions = [i for i in range(start, stop) if text[i] not in (GUARD, SHIELD)]
        if not positions:
            return
        section = "".join(text[i] for i in positions)
        positions.append(stop)
        tokenizer, ids = self._inner_tokenizer if start else self._start_tokenizer
        encoding = tokenizer.encode(section, add_special_tokens=False)
        for token_id, (first, last) in zip(encoding.ids, encoding.offsets, strict=True):
            yield Token(ids.get(token_id, token_id), positions[first], positions[last])


def _offset_tokenizer(tokenizer: Tokenizer, continued: bool) -> tuple[Tokenizer, dict[int, int]]:
    """A tokenizer with the same model but without a post-processor, which would shift offsets, and a map for the ids
    that differ from the original's.

    With `continued`, it adds no prefix, if the original adds one only at the start of a text.
    """
    other = Tokenizer(tokenizer.model)
    if tokenizer.normalizer is not None:
        other.normalizer = tokenizer.normalizer
    if tokenizer.pre_tokenizer is not None:
        other.pre_tokenizer = _without_prefix(tokenizer.pre_tokenizer) if continued else tokenizer.pre_tokenizer
    added = sorted(tokenizer.get_added_tokens_decoder().items())
    for special, run in groupby(added, key=lambda item: item[1].special):
        (other.add_special_tokens if special else other.add_tokens)([token for _, token in run])
    other.encode_special_tokens = True
    pairs = [(other.token_to_id(token.content), i) for i, token in added]
    return other, {other_id: i for other_id, i in pairs if other_id is not None and other_id != i}


def _without_prefix(step: PreTokenizer) -> PreTokenizer:
    state = step.__getstate__().decode()
    if _AT_START not in state:
        return step
    model = '{"type": "BPE", "vocab": {}, "merges": []}'
    never = state.replace(_AT_START, _AT_START.replace("first", "never"))
    return Tokenizer.from_str(f'{{"added_tokens": [], "pre_tokenizer": {never}, "model": {model}}}').pre_tokenizer


_AT_START = '"prepend_scheme":"first"'


FILE, OLD_FILE = "chat_template.jinja", "chat_template.json"
MAX_LENGTH = 1 << 18  # maximum characters in a template
CPU_SECONDS = 5.0  # CPU time limit for a template
_MEMORY = 512 << 20  # memory limit in bytes
_FREE_OUTPUT, _OUTPUT_FACTOR = 1 << 18, 4  # limit on written characters, and its increase per input character
_TIME_DEPENDENT = re.compile("strftime_now")  # output that depends on the time is not cached
_GENERATION_BLOCK = re.compile(r"\{%[-+]?\s*generation\b")
_PROBE_ANSWER = "Yes."
_RESERVED_NAMES = ("messages", "tools", "add_generation_prompt", "documents")  # variables in every template
_WORDS = re.compile(r"[\w ,.:-]{0,64}")  # cannot form a special token
Tools = Sequence[Any] | None


class Chat(NamedTuple):
    """Token ids for a conversation, and the (start, stop) spans of the assistant's messages, including their end
    tokens.
    """

    ids: list[int]
    spans: list[Span]


class ReplyCache:
    """A cache for the newest replies, by request, with a limit on characters."""

    def __init__(self, capacity: int = 1 << 23) -> None:
        self._free_characters = capacity  # characters
        self._replies: dict[bytes, dict[str, str]] = {}
        self._lock = Lock()

    def get_or_compute(self, request: str, compute: Callable[[], dict[str, str]]) -> dict[str, str]:
        key = hashlib.sha256(request.encode()).digest()
        with self._lock:
            reply = self._pop(key)
        if reply is None:
            reply = compute()
        with self._lock:
            self._pop(key)  # another thread may have made the same request
            self._replies[key] = reply
            self._free_characters -= self._size(reply)
            while self._free_characters < 0:
                self._pop(next(iter(self._replies)))
        return reply

    def _pop(self, key: bytes) -> dict[str, str] | None:
        reply = self._replies.pop(key, None)
        self._free_characters += 0 if reply is None else self._size(reply)
        return reply

    @staticmethod
    def _size(reply: Mapping[str, str]) -> int:
        return 200 + sum(map(len, reply.values()))


class StopSequences(NamedTuple):
    """Token ids and strings that end an answer."""

    ids: tuple[int, ...]
    strings: tuple[str, ...]


_helper = Helper("headway.codecs.sandbox", _MEMORY)
_reply_cache = ReplyCache()


class ChatTemplate:
    """A jinja2 template. `special_tokens` provides the values of bos_token, eos_token and similar variables.

    Raises UserError if jinja2 is not installed or the template is invalid.
    """

    def __init__(
        self, text: str, special_tokens: SpecialTokens | None = None, source: str = "the chat template"
    ) -> None:
        if len(text) > MAX_LENGTH or RESERVED.search(text):
            raise UserError(
                f"{source} is too long ({len(text):,} characters) or contains noncharacters; shorten it or remove them"
            )
        self.text = text
        self.source = source
        self._special_tokens = (special_tokens or SpecialTokens()).settings()
        if find_spec("jinja2") is None:
            raise UserError("chat templates need jinja2; run pip install 'headway[chat]'")
        self._request(None)
        self._locators: WeakKeyDictionary[TokenizerCodec, Locator] = WeakKeyDictionary()
        self._values: Mapping[str, Any] = {}

    def with_values(self, values: Mapping[str, bool | int | float | str]) -> ChatTemplate:
        """The same template with values for extra variables, such as `enable_thinking`. Raises UserError for a reserved
        name, and for strings with characters that are unusual in words.
        """
        reserved = {*self._special_tokens, *_RESERVED_NAMES}
        for name, value in values.items():
            if name in reserved or not name.isidentifier():
                raise UserError(f"template variable {name!r:.80} is reserved or invalid; use another name")
            if isinstance(value, str) and not _WORDS.fullmatch(value):
                raise UserError(
                    f"template variable {name!r:.80} is {value!r:.80}; use up to 64 letters, digits and spaces"
                )
        template = copy(self)
        template._values = dict(values)
        return template

    def render(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = False,
        tools: Tools = None,
        continue_final_message: bool = False,
    ) -> str:
        """Render the conversation as text. `add_generation_prompt` adds the start of the assistant's next answer;
        `continue_final_message` instead ends after the content of the assistant's last message.

        A message is a mapping with role, content, and any other keys that the template uses. Raises UserError if the
        template rejects the messages, fails, takes too long or writes too much, and if the last message cannot be
        continued.
        """
        text = self._render_guarded(Guard(()), messages, tools, add_generation_prompt, continue_final_message)
        return RESERVED.sub("", text)

    def encode(self, codec: TokenizerCodec, messages: Sequence[Message], tools: Tools = None) -> Chat:
        """The conversation's token ids, and the assistant's spans according to the template's {% generation %} blocks.

        If there are no such blocks, the template is also rendered on shortened conversations to compare the outputs.
        """
        locator = self._locator(codec)
        guarded, tools = locator.guard.messages(messages), locator.guard.value(tools)
        if _GENERATION_BLOCK.search(self.text):
            text, spans = block_spans(self._run(guarded, False, tools), locator.guard.spellings)
        else:
            text = self._run(guarded, False, tools)
            spans = assistant_spans(
                lambda shortened, prompt: self._run(shortened, prompt, tools), guarded, text, locator.guard.spellings
            )
        tokens = locator.tokens(text)
        token_spans = [
            [i for i, token in enumerate(tokens) if token.start < stop and token.stop > start] for start, stop in spans
        ]
        return Chat(
            [token.id for token in tokens], [(indices[0], indices[-1] + 1) for indices in token_spans if indices]
        )

    def prompt(
        self,
        codec: TokenizerCodec,
        messages: Sequence[Message],
        tools: Tools = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
    ) -> list[int]:
        """The token ids for `render`, which the assistant continues. Do not add a begin token."""
        locator = self._locator(codec)
        text = self._render_guarded(locator.guard, messages, tools, add_generation_prompt, continue_final_message)
        return [token.id for token in locator.tokens(text)]

    def answer_start(self, messages: Sequence[Message], tools: Tools = None) -> str:
        """What the template writes after the conversation to start an answer; "" if it also changes the
        conversation.
        """
        before, after = (self.render(messages, prompt, tools) for prompt in (False, True))
        return after[len(before) :] if after.startswith(before) else ""

    def _render_guarded(
        self, guard: Guard, messages: Sequence[Message], tools: Tools, add_generation_prompt: bool, continued: bool
    ) -> str:
        """The rendered conversation, with guards."""
        guarded, tools = guard.messages(messages), guard.value(tools)
        render = lambda shortened, prompt: block_spans(self._run(shortened, prompt, tools), guard.spellings)[0]  # noqa: E731
        text = render(guarded, add_generation_prompt and not continued)
        return text_up_to_content_end(render, guarded, text) if continued else text

    def truncated_prompt(
        self, codec: TokenizerCodec, messages: Sequence[Message], max_tokens: int | None
    ) -> tuple[list[int], int]:
        """A prompt with at most `max_tokens` ids, and how many of the oldest turns were dropped.

        A leading system message and the last question are never dropped, so the prompt may still be too long.
        """
        if not messages:
            raise UserError("the conversation has no messages; add one")
        system_count = 1 if messages[0].get("role") == "system" else 0
        question_indices = [i for i in range(system_count + 1, len(messages)) if messages[i].get("role") == "user"]
        ids: list[int] = []
        for dropped, start in enumerate([system_count, *question_indices]):
            ids = self.prompt(codec, [*messages[:system_count], *messages[start:]])
            if max_tokens is None or len(ids) <= max_tokens:
                return ids, dropped
        return ids, len(question_indices)

    def stop_sequences(self, codec: TokenizerCodec) -> StopSequences:
        """What ends an answer: the token or string that the template writes after it, and the codec's end token."""
        codec_end = () if codec.eos_id is None else (codec.eos_id,)
        try:
            chat = self.encode(codec, [{"role": "user", "content": "?"}, {"role": ASSISTANT, "content": _PROBE_ANSWER}])
        except TemplateBudgetError:
            raise
        except UserError:  # a template with other roles
            return StopSequences(codec_end, ())
        answer_ids = [i for start, stop in chat.spans for i in chat.ids[start:stop]]
        if answer_ids and answer_ids[-1] in self._locator(codec).special:
            return StopSequences(tuple(dict.fromkeys((answer_ids[-1], *codec_end))), ())
        text = codec.decode(answer_ids).partition(_PROBE_ANSWER)[2].strip()
        return StopSequences(codec_end, (text,) if text else ())

    def _locator(self, codec: TokenizerCodec) -> Locator:
        if codec not in self._locators:
            self._locators[codec] = Locator(codec)
        return self._locators[codec]

    def _run(self, messages: Sequence[Message], add_generation_prompt: bool, tools: Any) -> str:
        arguments = list(messages), tools, add_generation_prompt, None
        return self._request({**self._values, **self._special_tokens, **dict(zip(_RESERVED_NAMES, arguments))})

    def _request(self, values: Mapping[str, Any] | None) -> str:
        """The template's output for these variables; None only compiles it."""
        request = {"text": self.text, "values": values, "seconds": CPU_SECONDS}
        try:
            request_text = json.dumps(request)
            if _TIME_DEPENDENT.search(self.text):
                reply = _helper.ask(request, CPU_SECONDS)
            else:
                reply = _reply_cache.get_or_compute(request_text, lambda: _helper.ask(request, CPU_SECONDS))
        except ValueError:
            raise UserError("a number in a message is too large; pass it as a string") from None
        except HelperError as error:
            reason = {
                "time": "it takes too long",
                "memory": f"it needs more than {_MEMORY >> 20} MB",
                "death": "it crashes its process",
            }[error.reason]
            raise TemplateBudgetError(
                f"{self.source} fails: {reason}; use messages in the format that it expects"
            ) from None
        if "refused" in reply:
            raise (TemplateBudgetError if reply.get("spent") else UserError)(f"{self.source} {reply['refused']}")
        max_characters = _FREE_OUTPUT + _OUTPUT_FACTOR * len(request_text)
        if len(reply["written"]) > max_characters:  # all of it would be tokenised
            raise TemplateBudgetError(
                f"{self.source} writes {len(reply['written']):,} characters, more than {max_characters:,} for these "
                "messages; use messages in the format that it expects"
            )
        return reply["written"]


def read_template(directory: Path | str) -> str | None:
    """A published model's chat template as text; it is not run. None if there is no template.

    It is read from chat_template.jinja, or else from chat_template.json or tokenizer_config.json. If there are several
    named templates, the one called default is used.
    """
    directory = Path(directory)
    if (directory / FILE).is_file():
        return read_text(directory / FILE)
    for file in (directory / OLD_FILE, directory / CONFIG_FILE):
        text = object_or_empty(file).get("chat_template")
        if text is not None and not isinstance(text, str):
            templates = text if isinstance(text, list) else []
            named = {entry.get("name"): entry.get("template") for entry in templates if isinstance(entry, dict)}
            text = named.get("default", next(iter(named.values()), None))
            if not isinstance(text, str):
                raise UserError(
                    f"chat_template in {file} is neither a string nor a list of named ones; download it again"
                )
        if text is not None:
            return text
    return None


ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
_DEFAULT_TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
    {{- "<|" + message.role + "|>\\n" }}
    {%- if message.role == "assistant" %}
        {%- generation %}{{ message.content + (eos_token or "<|end|>") }}{% endgeneration %}
    {%- else %}
        {{- message.content }}
    {%- endif %}
    {{- "\\n" }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "<|assistant|>\\n" }}
{%- endif %}
"""


def default_template(special_tokens: SpecialTokens | None = None) -> ChatTemplate:
    """A template for models without one: each role is on its own line, and each answer ends with the end token.

    It works with any tokenizer. If the tokenizer has ROLES as special tokens, they mark roles. Otherwise roles are
    plain text, which a message can imitate.
    """
    return ChatTemplate(_DEFAULT_TEMPLATE, special_tokens, "the default chat template")
