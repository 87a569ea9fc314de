"""How a model marks its thinking, according to its chat template or its tokens."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from headway.codecs.chat_spans import GUARD
from headway.codecs.special_tokens import special_ids
from headway.codecs.tokenizer import TokenizerCodec

# Strings before and after the thinking, and the models that use them.
_MARKERS = (
    ("<think>", "</think>"),  # Qwen 3, DeepSeek R1, SmolLM 3, GLM 4.5, ...
    ("<seed:think>", "</seed:think>"),  # Seed-OSS
    ("<thought>", "</thought>"),  # EXAONE Deep
    ("[THINK]", "[/THINK]"),  # Magistral
    ("<|START_THINKING|>", "<|END_THINKING|>"),  # Command A Reasoning
    ("◁think▷", "◁/think▷"),  # Kimi-VL
    ("<|channel>", "<channel|>"),  # Gemma 4
)
_LABELS = {"<|channel>": "thought"}  # text after the opening marker
# Harmony (gpt-oss): an answer is a list of messages, each on a channel.
START, CHANNEL, CONSTRAIN, MESSAGE = "<|start|>", "<|channel|>", "<|constrain|>", "<|message|>"
MESSAGE_ENDS = ("<|end|>", "<|call|>", "<|return|>")
_ANALYSIS = re.compile(f"{re.escape(CHANNEL)}\\s*analysis.*{re.escape(MESSAGE)}", re.DOTALL)


@dataclass(frozen=True)
class ThinkingFormat:
    """The strings around a model's thinking.

    In `channels`, thinking is a message of its own, and so is an answer. `separator` is the white space that the chat
    template writes between thinking and an answer. `label` is text after the opening marker that is not part of the
    thinking, and `on_new_line` whether a line break may come before the marker. `special_ids` are the ids without text,
    `spelled` the names of the tokens that have a meaning here. A marker that is a token is recognised by its id, any
    other by its text.
    """

    codec: TokenizerCodec
    opening: str
    closing: str
    separator: str = ""
    channels: bool = False
    label: str = ""
    on_new_line: bool = False

    @cached_property
    def special_ids(self) -> frozenset[int]:
        return special_ids(self.codec.tokenizer)

    @cached_property
    def spelled(self) -> Mapping[int, str]:
        names = [self.opening, self.closing]
        if self.channels:
            names = [START, CHANNEL, CONSTRAIN, MESSAGE, *MESSAGE_ENDS]
        ids = {self.codec.token_id(name): name for name in names}
        return {token: name for token, name in ids.items() if token is not None}

    @property
    def text_markers(self) -> tuple[str, str]:
        """Opening and closing as `MarkerReader` finds them in text: those that are tokens have a guard there."""
        opening, closing = (
            f"{GUARD}{name}" if name in self.spelled.values() else name for name in (self.opening, self.closing)
        )
        return opening, closing

    def ids(self, text: str) -> tuple[int, ...]:
        """The ids of a text with markers, as a model generates it."""
        names = self.spelled.values() if self.channels else (self.opening, self.closing)
        parts = re.split(f"({'|'.join(map(re.escape, names))})", text)
        tokens: list[int] = []
        for part in filter(None, parts):
            token = self.codec.token_id(part) if part in names else None
            tokens += self.codec.encode(part) if token is None else [token]
        return tuple(tokens)

    def state_after(self, prompt: str) -> str:
        """The state of an answer that starts after this text: "before", "thinking" or "answer".

        `prompt` is only what the chat template writes to start an answer, or the answer's own beginning.
        """
        if self.channels:
            header = prompt.rpartition(START)[2]
            if MESSAGE not in header or header.endswith(MESSAGE_ENDS):
                return "before"
            return "thinking" if _ANALYSIS.search(header) else "answer"
        opened, closed = prompt.rfind(self.opening), prompt.rfind(self.closing)
        return "before" if opened == closed == -1 else "thinking" if opened > closed else "answer"


def thinking_format(codec: TokenizerCodec, template: str) -> ThinkingFormat | None:
    """A model's thinking format; None if neither its chat template nor its tokens have markers."""
    if CHANNEL in template and codec.token_id(CHANNEL) in special_ids(codec.tokenizer):
        return ThinkingFormat(codec, f"{CHANNEL}analysis{MESSAGE}", MESSAGE_ENDS[0], channels=True)
    for opening, closing in _MARKERS:
        is_token = None not in (codec.token_id(opening), codec.token_id(closing))
        if is_token or opening in template or closing in template:
            breaks = re.findall(rf"{re.escape(closing)}((?:\\n|\n){{0,4}})", template)
            separator = max(breaks, key=len, default="").replace("\\n", "\n")
            on_new_line = re.search(rf"(?:\\n|\n){re.escape(opening)}", template) is not None
            label = _LABELS.get(opening, "")
            return ThinkingFormat(codec, opening, closing, separator, label=label, on_new_line=on_new_line)
    return None
