"""Chat templates: conversations as the text, and the symbols, that a model was trained to read.

A guard is a noncharacter. It is put where a text spells a special symbol, and where its edge may become part of one
beside what a template writes; whatever a template then does with the text, the spelling is no symbol. A symbol of one
character cannot be split: it gets a shield before it.

A template writes special symbols around what people say; what they say must not become one. So guards go into it
first, and once the template has run, its own spellings become symbols, what is guarded stays text, and
the guards are gone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import PreTokenizer

from headway.codecs.files import object_or_empty, read_text
from headway.codecs.marks import CONFIG, RoleTokens
from headway.codecs.sandbox import ASSISTANT, Message, Span, assistant_spans, block_spans
from headway.codecs.tokenizer import TokenizerCodec
from headway.errors import UserError

GUARD, SHIELD = "\ufdd4", "\ufdd6"
RESERVED = re.compile("[\ufdd0-\ufdef]")  # noncharacters: Unicode keeps them for programs' own use
_ROLE = re.compile(r"[\w.-]{1,64}")
_WORD = re.compile(r"\w*")
_DEEPEST = 64  # levels of lists and mappings


class Guard:
    """Puts guards into messages, so that they spell none of `names`."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = sorted(names, key=len, reverse=True)
        self.pattern = spellings(self._names)
        self._starts = {name[:i] for name in self._names for i in range(1, len(name))}
        self._ends = {name[i:] for name in self._names for i in range(1, len(name))}
        self._longest = max(map(len, self._names), default=1) - 1

    def messages(self, messages: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The messages with guards. UserError for what is no message."""
        found = []
        for i, message in enumerate(messages):
            role = message.get("role") if isinstance(message, Mapping) else None
            if not isinstance(role, str) or not _ROLE.fullmatch(role):
                raise UserError(f"message {i} has the role {role!r:.80}; give a mapping with a role such as user")
            # Templates make marks of roles, as <|user|>, so that a role's edges are no concern.
            found.append({**self.value(dict(message)), "role": self._spelt(role)})
        return found

    def value(self, value: Any, depth: int = 0) -> Any:
        """The texts of a value with guards, those of lists and mappings too."""
        if depth > _DEEPEST:
            raise UserError(f"a message is nested deeper than {_DEEPEST} levels; give plain texts")
        if isinstance(value, str):
            return self._edges(self._spelt(value))
        if isinstance(value, Mapping):
            return {self._spelt(str(key)): self.value(each, depth + 1) for key, each in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.value(each, depth + 1) for each in value]
        if value is None or isinstance(value, (bool, int, float)):
            return value
        raise UserError(f"a message holds a {type(value).__name__}; give texts, numbers, lists and mappings of them")

    def _spelt(self, text: str) -> str:
        strange = RESERVED.search(text)
        if strange:
            raise UserError(f"a message holds the noncharacter U+{ord(strange[0]):X}, which is not text; remove it")
        while self.pattern.search(text):
            text = self.pattern.sub(_split, text)
        return text

    def _edges(self, text: str) -> str:
        """A single word is left as it is: templates compare types, and make marks of names."""
        inner = text.strip()
        if _WORD.fullmatch(inner):
            return text
        lead = text[: len(text) - len(text.lstrip())]
        tail = text[len(text.rstrip()) :]
        lengths = range(1, min(self._longest, len(inner)) + 1)
        first = GUARD if any(inner[:n] in self._ends for n in lengths) else ""
        last = GUARD if any(inner[-n:] in self._starts for n in lengths) else ""
        return f"{lead}{first}{inner}{last}{tail}"


def spellings(names: Iterable[str]) -> re.Pattern[str]:
    """Finds names in a text, the longest that starts at a place; a shield before one keeps it text."""
    ordered = sorted(names, key=len, reverse=True)
    return re.compile(f"(?<!{SHIELD})(?:{'|'.join(map(re.escape, ordered))})" if ordered else r"(?!)")


def _split(match: re.Match[str]) -> str:
    name = match[0]
    return f"{name[0]}{GUARD}{name[1:]}" if len(name) > 1 else f"{SHIELD}{name}"


class Token(NamedTuple):
    """An id, and where its characters start and stop."""

    id: int
    start: int
    stop: int

    def within(self, span: tuple[int, int]) -> bool:
        """Whether any of its characters lies in a span of the text."""
        return self.start < span[1] and self.stop > span[0]


class Locator:
    """Reads a text in which special symbols are symbols, as published pipelines read what a chat template writes.

    A spelling that holds a GUARD, or stands behind a SHIELD, stays text; these themselves are no part of the text.
    """

    def __init__(self, codec: TokenizerCodec) -> None:
        tokens = codec.tokenizer.get_added_tokens_decoder()
        self._special = {token.content: (i, token) for i, token in tokens.items() if token.special}
        self.guard = Guard(self._special)
        self._first = _beside(codec.tokenizer, continued=False)
        self._later = _beside(codec.tokenizer, continued=True)

    @cached_property
    def special(self) -> frozenset[int]:
        """The ids of special symbols."""
        return frozenset(i for i, _ in self._special.values())

    def tokens(self, text: str) -> list[Token]:
        """The symbols of a text, with places in it as it stands, guards included."""
        found: list[Token] = []
        done = 0
        for match in self.guard.pattern.finditer(text):
            symbol, token = self._special[match[0]]
            start, stop = match.span()
            if start < done:  # white space that the symbol before has taken
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
    """A tokenizer that shares the model, without what changes places afterwards; and its ids that are others there.

    A `continued` one puts no prefix before what stands amid a text, where the original does so at its start alone.
    """
    other = Tokenizer(tokenizer.model)
    if tokenizer.normalizer is not None:
        other.normalizer = tokenizer.normalizer
    if tokenizer.pre_tokenizer is not None:
        other.pre_tokenizer = _unprefixed(tokenizer.pre_tokenizer) if continued else tokenizer.pre_tokenizer
    added = sorted(tokenizer.get_added_tokens_decoder().items())
    for _, token in added:
        (other.add_special_tokens if token.special else other.add_tokens)([token])
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
_BLOCK = re.compile(r"\{%[-+]?\s*generation\b")
_ANSWER = "Yes."
Tools = Sequence[Any] | None


class Chat(NamedTuple):
    """Ids of a conversation, and the (start, stop) of what the assistant says, with the mark that ends its turn."""

    ids: list[int]
    spans: list[Span]


class Ends(NamedTuple):
    """What ends an answer: any of these ids, any of these texts."""

    ids: tuple[int, ...]
    texts: tuple[str, ...]


class ChatTemplate:
    """A jinja2 template. `marks` are the spellings that it may write as bos_token, eos_token and the like.

    Raises UserError where jinja2 is not installed, and for what is no template.
    """

    def __init__(self, text: str, marks: RoleTokens | None = None, source: str = "the chat template") -> None:
        if len(text) > LONGEST or RESERVED.search(text):
            raise UserError(f"{source} is too long ({len(text):,} characters) or holds noncharacters; correct it")
        self.text = text
        self.source = source
        self._marks = (marks or RoleTokens()).settings()
        self._template = _compiled(text, source)
        self._locators: WeakKeyDictionary[TokenizerCodec, Locator] = WeakKeyDictionary()

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = False, tools: Tools = None) -> str:
        """The conversation as text; with `add_generation_prompt` up to where the assistant's next answer begins.

        A message is a mapping with a role and a content, and whatever else the template reads. Raises UserError for
        messages that the template refuses, and for a template that fails, takes too long or writes too much.
        """
        nothing = Guard(())
        text = self._write(nothing.messages(messages), add_generation_prompt, nothing.value(tools))
        return RESERVED.sub("", text)

    def encode(self, codec: TokenizerCodec, messages: Sequence[Message], tools: Tools = None) -> Chat:
        """The conversation as ids, and what of them the assistant says, by the template's {% generation %} blocks.

        A template without them is run on the conversation cut short, and the texts are compared.
        """
        locator = self._locator(codec)
        guarded, tools = locator.guard.messages(messages), locator.guard.value(tools)
        if self._has_blocks:
            text, spans = block_spans(self._write(guarded, False, tools), locator.guard.pattern)
        else:
            text = self._write(guarded, False, tools)
            spans = assistant_spans(
                lambda some, ask: self._write(some, ask, tools), guarded, text, locator.guard.pattern
            )
        tokens = locator.tokens(text)
        inside = [[i for i, token in enumerate(tokens) if token.within(span)] for span in spans]
        return Chat([token.id for token in tokens], [(places[0], places[-1] + 1) for places in inside if places])

    def prompt(self, codec: TokenizerCodec, messages: Sequence[Message], tools: Tools = None) -> list[int]:
        """The ids after which the assistant's next answer follows. No begin symbol is to be put before them."""
        locator = self._locator(codec)
        guarded, tools = locator.guard.messages(messages), locator.guard.value(tools)
        text, _ = block_spans(self._write(guarded, True, tools), locator.guard.pattern)
        return [token.id for token in locator.tokens(text)]

    def fitting(self, codec: TokenizerCodec, messages: Sequence[Message], most: int | None) -> tuple[list[int], int]:
        """A prompt of at most `most` ids, and how many of the oldest turns had to be dropped for it.

        A first message of the system stays, and so does the last question: where that is too long, so is the prompt.
        """
        if not messages:
            raise UserError("a conversation without messages has no answer; say something first")
        fixed = 1 if messages[0].get("role") == "system" else 0
        later = [i for i in range(fixed + 1, len(messages)) if messages[i].get("role") == "user"]
        ids: list[int] = []
        for dropped, start in enumerate([fixed, *later]):
            ids = self.prompt(codec, [*messages[:fixed], *messages[start:]])
            if most is None or len(ids) <= most:
                return ids, dropped
        return ids, len(later)

    def ends(self, codec: TokenizerCodec) -> Ends:
        """What ends an answer: the symbol or the text that the template writes after it, and the codec's end."""
        own = () if codec.end is None else (codec.end,)
        try:
            chat = self.encode(codec, [{"role": "user", "content": "?"}, {"role": ASSISTANT, "content": _ANSWER}])
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
        asked = {"messages": list(messages), "tools": tools, "add_generation_prompt": add_generation_prompt}
        return self._template({**self._marks, **asked, "documents": None})


def _compiled(text: str, source: str) -> Callable[[Mapping[str, Any]], str]:
    try:
        from headway.codecs.sandbox import compiled
    except ModuleNotFoundError as error:
        raise UserError(f"chat templates need {error.name}; pip install 'headway[chat]'") from error
    return compiled(text, source)


def read_template(directory: Path | str) -> str | None:
    """The text of a published model's chat template, which nothing here runs; None where there is none.

    It is chat_template.jinja, or else in chat_template.json or tokenizer_config.json, where several have names and the
    one called default is taken.
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
        raise UserError(f"chat_template of {source} is neither a text nor a list of named ones; download it again")
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
    """A template for models that have none: roles on lines of their own, the end symbol after answers.

    Any tokenizer can write it. Where one has ROLES as special symbols, roles are those; elsewhere they are plain text,
    which a message can spell.
    """
    return ChatTemplate(_PLAIN, marks, "the default chat template")
