"""Chat templates: render conversations as the text and token ids that a model was trained on.

A template writes special tokens around messages, and a message must not spell one. So guards are first inserted into
messages; after rendering, the template's own spellings become special tokens, guarded text stays text, and the guards
are removed.
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

from headway.codecs.files import object_or_empty, read_text
from headway.codecs.guard import GUARD, RESERVED, SHIELD, Guard
from headway.codecs.helper import Helper, HelperError
from headway.codecs.marks import CONFIG, RoleTokens
from headway.codecs.tokenizer import TokenizerCodec
from headway.codecs.turns import ASSISTANT, Message, Span, SpentError, assistant_spans, block_spans, until_said
from headway.errors import UserError


class Token(NamedTuple):
    """An id, and the start and stop of its characters."""

    id: int
    start: int
    stop: int

    def within(self, span: tuple[int, int]) -> bool:
        """Whether any of its characters is inside a span of the text."""
        return self.start < span[1] and self.stop > span[0]


class Locator:
    """Tokenises rendered text in which spellings of special tokens become tokens, as published pipelines do.

    A spelling that contains a GUARD or follows a SHIELD stays text; guards and shields are dropped.
    """

    def __init__(self, codec: TokenizerCodec) -> None:
        tokens = codec.tokenizer.get_added_tokens_decoder()
        self._special = {token.content: (i, token) for i, token in tokens.items() if token.special}
        self.guard = Guard(self._special)
        self._first = _beside(codec.tokenizer, continued=False)
        self._later = _beside(codec.tokenizer, continued=True)

    @cached_property
    def special(self) -> frozenset[int]:
        """The ids of special tokens."""
        return frozenset(i for i, _ in self._special.values())

    def tokens(self, text: str) -> list[Token]:
        """The tokens of a text, with offsets that count guards, too."""
        found: list[Token] = []
        done = 0
        for start, stop in self.guard.spellings.find(text):
            symbol, token = self._special[text[start:stop]]
            if start < done:  # white space that the previous token has consumed
                continue
            if token.lstrip:
                start = done + len(text[done:start].rstrip())
            found += self._plain(text, done, start)
            if token.rstrip:
                stop += len(text[stop:]) - len(text[stop:].lstrip())
            found.append(Token(symbol, start, stop))
            done = stop
        found += self._plain(text, done, len(text))
        return found

    def _plain(self, text: str, start: int, stop: int) -> Iterator[Token]:
        places = [i for i in range(start, stop) if text[i] not in (GUARD, SHIELD)]
        if not places:
            return
        section = "".join(text[i] for i in places)
        places.append(stop)
        tokenizer, ids = self._later if start else self._first
        encoding = tokenizer.encode(section, add_special_tokens=False)
        for symbol, (first, last) in zip(encoding.ids, encoding.offsets, strict=True):
            yield Token(ids.get(symbol, symbol), places[first], places[last])


def _beside(tokenizer: Tokenizer, continued: bool) -> tuple[Tokenizer, dict[int, int]]:
    """A tokenizer with the same model but without a post-processor, which would shift offsets; and a map of its ids
    that differ from the original's.

    With `continued`, it adds no prefix to text after the start, if the original adds one only at the start.
    """
    other = Tokenizer(tokenizer.model)
    if tokenizer.normalizer is not None:
        other.normalizer = tokenizer.normalizer
    if tokenizer.pre_tokenizer is not None:
        other.pre_tokenizer = _unprefixed(tokenizer.pre_tokenizer) if continued else tokenizer.pre_tokenizer
    added = sorted(tokenizer.get_added_tokens_decoder().items())
    for special, run in groupby(added, key=lambda item: item[1].special):
        (other.add_special_tokens if special else other.add_tokens)([token for _, token in run])
    other.encode_special_tokens = True
    pairs = [(other.token_to_id(token.content), i) for i, token in added]
    return other, {own: i for own, i in pairs if own is not None and own != i}


def _unprefixed(step: PreTokenizer) -> PreTokenizer:
    state = step.__getstate__().decode()
    if _AT_START not in state:
        return step
    model = '{"type": "BPE", "vocab": {}, "merges": []}'
    never = state.replace(_AT_START, _AT_START.replace("first", "never"))
    return Tokenizer.from_str(f'{{"added_tokens": [], "pre_tokenizer": {never}, "model": {model}}}').pre_tokenizer


_AT_START = '"prepend_scheme":"first"'


FILE, OLD_FILE = "chat_template.jinja", "chat_template.json"
LONGEST = 1 << 18  # characters of a template
SECONDS = 5.0  # CPU time limit of a template
_MEMORY = 512 << 20  # memory limit in bytes
_FREE, _FACTOR = 1 << 18, 4  # limit of written characters, and its increase per input character
_TIMED = re.compile("strftime_now")  # output that depends on the time is not cached
_BLOCK = re.compile(r"\{%[-+]?\s*generation\b")
_ANSWER = "Yes."
_OWN = ("messages", "tools", "add_generation_prompt", "documents")  # variables of every template
_WORDS = re.compile(r"[\w ,.:-]{0,64}")  # cannot spell a special token
Tools = Sequence[Any] | None


class Chat(NamedTuple):
    """Token ids of a conversation, and the (start, stop) spans of the assistant's messages with their end tokens."""

    ids: list[int]
    spans: list[Span]


class Answers:
    """A cache of the newest replies by request, limited in characters."""

    def __init__(self, room: int = 1 << 23) -> None:
        self._room = room  # characters
        self._known: dict[bytes, dict[str, str]] = {}
        self._lock = Lock()

    def of(self, asked: str, answer: Callable[[], dict[str, str]]) -> dict[str, str]:
        key = hashlib.sha256(asked.encode()).digest()
        with self._lock:
            found = self._taken(key)
        if found is None:
            found = answer()
        with self._lock:
            self._taken(key)  # another thread may have made the same request
            self._known[key] = found
            self._room -= self._size(found)
            while self._room < 0:
                self._taken(next(iter(self._known)))
        return found

    def _taken(self, key: bytes) -> dict[str, str] | None:
        found = self._known.pop(key, None)
        self._room += 0 if found is None else self._size(found)
        return found

    @staticmethod
    def _size(answer: Mapping[str, str]) -> int:
        return 200 + sum(map(len, answer.values()))


class Ends(NamedTuple):
    """Token ids and strings that end an answer."""

    ids: tuple[int, ...]
    texts: tuple[str, ...]


_helper = Helper("headway.codecs.sandbox", _MEMORY)
_answers = Answers()


class ChatTemplate:
    """A jinja2 template. `special_tokens` are the values of bos_token, eos_token and similar variables.

    Raises UserError if jinja2 is not installed or the template is invalid.
    """

    def __init__(self, text: str, marks: RoleTokens | None = None, source: str = "the chat template") -> None:
        if len(text) > LONGEST or RESERVED.search(text):
            raise UserError(f"{source} is too long ({len(text):,} characters) or contains noncharacters; correct it")
        self.text = text
        self.source = source
        self._marks = (marks or RoleTokens()).settings()
        if find_spec("jinja2") is None:
            raise UserError("chat templates need jinja2; pip install 'headway[chat]'")
        self._asked(None)
        self._locators: WeakKeyDictionary[TokenizerCodec, Locator] = WeakKeyDictionary()
        self._values: Mapping[str, Any] = {}

    def given(self, values: Mapping[str, bool | int | float | str]) -> ChatTemplate:
        """The same template with values for extra variables, such as `enable_thinking`. UserError for a reserved name,
        and for strings with other characters than words have.
        """
        own = {*self._marks, *_OWN}
        for name, value in values.items():
            if name in own or not name.isidentifier():
                raise UserError(f"the template's variable {name!r:.80} is reserved or invalid; use another name")
            if isinstance(value, str) and not _WORDS.fullmatch(value):
                raise UserError(
                    f"the template's {name!r:.80} is {value!r:.80}; use up to 64 letters, digits and spaces"
                )
        found = copy(self)
        found._values = dict(values)
        return found

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
        template rejects the messages, fails, takes too long or writes too much, or if the last message cannot be
        continued.
        """
        text = self._guarded(Guard(()), messages, tools, add_generation_prompt, continue_final_message)
        return RESERVED.sub("", text)

    def encode(self, codec: TokenizerCodec, messages: Sequence[Message], tools: Tools = None) -> Chat:
        """The token ids of the conversation, and the assistant's spans by the template's {% generation %} blocks.

        Without such blocks, the template is also rendered on shortened conversations, and the outputs are compared.
        """
        locator = self._locator(codec)
        guarded, tools = locator.guard.messages(messages), locator.guard.value(tools)
        if self._has_blocks:
            text, spans = block_spans(self._write(guarded, False, tools), locator.guard.spellings)
        else:
            text = self._write(guarded, False, tools)
            spans = assistant_spans(
                lambda some, ask: self._write(some, ask, tools), guarded, text, locator.guard.spellings
            )
        tokens = locator.tokens(text)
        inside = [[i for i, token in enumerate(tokens) if token.within(span)] for span in spans]
        return Chat([token.id for token in tokens], [(places[0], places[-1] + 1) for places in inside if places])

    def prompt(
        self,
        codec: TokenizerCodec,
        messages: Sequence[Message],
        tools: Tools = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
    ) -> list[int]:
        """The token ids of `render`, which the assistant continues. Do not add a begin token."""
        locator = self._locator(codec)
        text = self._guarded(locator.guard, messages, tools, add_generation_prompt, continue_final_message)
        return [token.id for token in locator.tokens(text)]

    def _guarded(
        self, guard: Guard, messages: Sequence[Message], tools: Tools, add_generation_prompt: bool, continued: bool
    ) -> str:
        """The rendered conversation, with guards."""
        guarded, tools = guard.messages(messages), guard.value(tools)
        write = lambda some, ask: block_spans(self._write(some, ask, tools), guard.spellings)[0]  # noqa: E731
        text = write(guarded, add_generation_prompt and not continued)
        return until_said(write, guarded, text) if continued else text

    def fitting(self, codec: TokenizerCodec, messages: Sequence[Message], most: int | None) -> tuple[list[int], int]:
        """A prompt of at most `max_tokens` ids, and how many of the oldest turns were dropped.

        A leading system message and the last question are never dropped, so the prompt may still be too long.
        """
        if not messages:
            raise UserError("the conversation has no messages; add one")
        fixed = 1 if messages[0].get("role") == "system" else 0
        later = [i for i in range(fixed + 1, len(messages)) if messages[i].get("role") == "user"]
        ids: list[int] = []
        for dropped, start in enumerate([fixed, *later]):
            ids = self.prompt(codec, [*messages[:fixed], *messages[start:]])
            if most is None or len(ids) <= most:
                return ids, dropped
        return ids, len(later)

    def ends(self, codec: TokenizerCodec) -> Ends:
        """The ends of an answer: the token or string that the template writes after it, and the codec's end token."""
        own = () if codec.end is None else (codec.end,)
        try:
            chat = self.encode(codec, [{"role": "user", "content": "?"}, {"role": ASSISTANT, "content": _ANSWER}])
        except SpentError:
            raise
        except UserError:  # a template of other roles
            return Ends(own, ())
        spoken = [i for start, stop in chat.spans for i in chat.ids[start:stop]]
        if spoken and spoken[-1] in self._locator(codec).special:
            return Ends(tuple(dict.fromkeys((spoken[-1], *own))), ())
        text = codec.decode(spoken).partition(_ANSWER)[2].strip()
        return Ends(own, (text,) if text else ())

    @cached_property
    def _has_blocks(self) -> bool:
        return _BLOCK.search(self.text) is not None

    def _locator(self, codec: TokenizerCodec) -> Locator:
        if codec not in self._locators:
            self._locators[codec] = Locator(codec)
        return self._locators[codec]

    def _write(self, messages: Sequence[Message], add_generation_prompt: bool, tools: Any) -> str:
        asked = list(messages), tools, add_generation_prompt, None
        return self._asked({**self._values, **self._marks, **dict(zip(_OWN, asked))})

    def _asked(self, values: Mapping[str, Any] | None) -> str:
        """The output of the template with these variables; None only compiles it."""
        request = {"text": self.text, "values": values, "seconds": SECONDS}
        try:
            asked = json.dumps(request)
            if _TIMED.search(self.text):
                answer = _helper.ask(request, SECONDS)
            else:
                answer = _answers.of(asked, lambda: _helper.ask(request, SECONDS))
        except ValueError:
            raise UserError("a message contains a number that is too large; pass it as a string") from None
        except HelperError as error:
            reason = {
                "time": "it takes too long",
                "memory": f"it needs more than {_MEMORY >> 20} MB",
                "death": "it crashes its process",
            }[error.reason]
            raise SpentError(f"{self.source} fails: {reason}; use messages in the format that it expects") from None
        if "refused" in answer:
            raise (SpentError if answer.get("spent") else UserError)(f"{self.source} {answer['refused']}")
        most = _FREE + _FACTOR * len(asked)
        if len(answer["written"]) > most:  # all of it would be tokenised
            raise SpentError(
                f"{self.source} writes {len(answer['written']):,} characters, more than {most:,} for these messages; "
                "use messages in the format that it expects"
            )
        return answer["written"]


def read_template(directory: Path | str) -> str | None:
    """The text of a published model's chat template, without running it; None if there is none.

    It is chat_template.jinja, or else in chat_template.json or tokenizer_config.json; of several named ones, the one
    called default is used.
    """
    directory = Path(directory)
    if (directory / FILE).is_file():
        return read_text(directory / FILE)
    for file in (directory / OLD_FILE, directory / CONFIG):
        text = _default(object_or_empty(file).get("chat_template"), file)
        if text is not None:
            return text
    return None


def _default(found: Any, source: Path) -> str | None:
    if found is None or isinstance(found, str):
        return found
    entries = found if isinstance(found, list) else []
    named = {each.get("name"): each.get("template") for each in entries if isinstance(each, dict)}
    text = named.get("default", next(iter(named.values()), None))
    if not isinstance(text, str):
        raise UserError(f"chat_template in {source} is neither a string nor a list of named ones; download it again")
    return text


ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
_PLAIN = """\
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


def default_template(marks: RoleTokens | None = None) -> ChatTemplate:
    """A template for models without one: each role on its own line, the end token after answers.

    It works with any tokenizer. If the tokenizer has ROLES as special tokens, they mark roles; otherwise roles are
    plain text, which a message can spell.
    """
    return ChatTemplate(_PLAIN, marks, "the default chat template")
