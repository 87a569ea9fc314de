"""Chat templates: conversations as the text, and the symbols, that a model was trained to read.

A template writes special symbols around what people say; what they say must not become one. So guards go into it
first (see `guard`), and once the template has run, its own spellings become symbols, what is guarded stays text, and
the guards are gone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from headway.codecs.files import object_or_empty, read_text
from headway.codecs.guard import RESERVED, Guard
from headway.codecs.located import Locator
from headway.codecs.marks import CONFIG, Marks
from headway.codecs.spans import ASSISTANT, Message, Span, assistant_spans, block_spans
from headway.codecs.tokenizer import TokenizerCodec
from headway.errors import UserError

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

    def __init__(self, text: str, marks: Marks | None = None, source: str = "the chat template") -> None:
        if len(text) > LONGEST or RESERVED.search(text):
            raise UserError(f"{source} is too long ({len(text):,} characters) or holds noncharacters; correct it")
        self.text = text
        self.source = source
        self._marks = (marks or Marks()).settings()
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


def default_template(marks: Marks | None = None) -> ChatTemplate:
    """A template for models that have none: roles on lines of their own, the end symbol after answers.

    Any tokenizer can write it. Where one has ROLES as special symbols, roles are those; elsewhere they are plain text,
    which a message can spell.
    """
    return ChatTemplate(_PLAIN, marks, "the default chat template")
