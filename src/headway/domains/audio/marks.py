"""The symbols of a Whisper that are no text: what it starts with, languages, tasks, times, and what it never writes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from headway.checkpoints.usage import Usage
from headway.codecs import TokenizerCodec
from headway.config import from_dict
from headway.errors import UserError, nearest

Task = Literal["transcribe", "translate"]
ENGLISH_ONLY = 51864  # symbols; those of English alone are one fewer than those of 99 languages
_START, _PLAIN, _PREVIOUS, _FIRST_LANGUAGE = "<|startoftranscript|>", "<|notimestamps|>", "<|startofprev|>", "<|en|>"
_TASKS: tuple[Task, ...] = ("transcribe", "translate")
_SILENCE = ("<|nospeech|>", "<|nocaptions|>")  # its newer name, and its older one
_NEVER = (_START, _PREVIOUS, "<|startoflm|>", "<|transcribe|>", "<|translate|>", *_SILENCE)


@dataclass(frozen=True)
class Marks:
    """Ids. Below `end` lies text; from `first_time` on times, `symbols - first_time` of them, 0.02 s apart.

    `languages` is empty for a model of English alone, which is told neither language nor task. `never` is not written,
    and `not_first` not at first. `heads` are the (layer, head) of cross-attention that follow the sound in time, as the
    model's files name them.
    """

    symbols: int
    end: int
    start: int
    plain: int
    previous: int | None
    silence: int | None
    tasks: Mapping[str, int]
    languages: Mapping[str, int]
    never: tuple[int, ...]
    not_first: tuple[int, ...]
    heads: tuple[tuple[int, int], ...] = ()

    @property
    def first_time(self) -> int:
        return self.plain + 1

    @property
    def timed(self) -> bool:
        """Whether the model writes times."""
        return self.symbols > self.first_time

    @property
    def language(self) -> str | None:
        """The one language of a published model that hears no other."""
        return "en" if self.symbols == ENGLISH_ONLY else None

    @staticmethod
    def of(codec: TokenizerCodec, usage: Usage, symbols: int) -> Marks:
        """As tokenizer and files of a model say. UserError where they do not say enough, or nonsense."""
        start, plain = codec.token(_START), codec.token(_PLAIN)
        if start is None or plain is None or not usage.ends:
            raise UserError(f"the tokenizer has no {_START}, {_PLAIN} or end; use the one that came with the model")
        end, said = usage.ends[0], {**usage.settings, **{k: v for k, v in usage.generation.items() if v is not None}}
        never, not_first = (_listed(said, name, symbols) for name in ("suppress_tokens", "begin_suppress_tokens"))
        found = (codec.token(name) for name in _SILENCE)
        silence = next((symbol for symbol in found if symbol is not None), None)
        special = [symbol for symbol in map(codec.token, _NEVER) if symbol is not None]
        heads = from_dict(list[tuple[int, int]], said.get("alignment_heads") or [], "alignment_heads")
        tasks, languages = _tasks(codec), languages_of(codec, symbols)
        return Marks(
            symbols, end, start, plain, codec.token(_PREVIOUS), silence, tasks if languages else {}, languages,
            tuple(sorted({*never, *special, *languages.values(), plain})), tuple(not_first), tuple(heads),
        )  # fmt: skip

    def check(self, language: str | None, task: Task) -> None:
        """UserError for a language or a task that this model does not have."""
        if task not in _TASKS:
            raise UserError(f"task {task!r} is unknown; {nearest(task, _TASKS)}")
        if not self.languages and (language not in (None, self.language) or task != "transcribe"):
            asked = f"language {language!r}" if language not in (None, self.language) else f"task {task}"
            known = "English only" if self.language else "only the language that it was trained on"
            raise UserError(f"this model hears {known}, not {asked}; leave it out, or use a multilingual one")
        if self.languages and language is not None and language not in self.languages:
            raise UserError(f"the language {language!r} is not among this model's; {nearest(language, self.languages)}")

    def opening(self, language: str | None, task: Task) -> list[int]:
        """What a transcript begins with."""
        if not self.languages or language is None:
            return [self.start]
        return [self.start, self.languages[language], self.tasks[task]]


def _listed(said: Mapping[str, Any], name: str, symbols: int) -> list[int]:
    found = from_dict(list[int], said.get(name) or [], name)
    if not all(0 <= symbol < symbols for symbol in found):
        raise UserError(f"{name} holds ids that this model does not have; its symbols are 0 to {symbols - 1}")
    return found


def _tasks(codec: TokenizerCodec) -> dict[str, int]:
    named = {name: codec.token(f"<|{name}|>") for name in _TASKS}
    return {name: symbol for name, symbol in named.items() if symbol is not None}


def languages_of(codec: TokenizerCodec, symbols: int) -> dict[str, int]:
    """Those between the first and the tasks; none in a model of English alone, whose tokenizer may have them still."""
    first, tasks = codec.token(_FIRST_LANGUAGE), _tasks(codec)
    if symbols == ENGLISH_ONLY or first is None or len(tasks) < len(_TASKS):
        return {}
    names = {codec.tokenizer.id_to_token(symbol): symbol for symbol in range(first, min(tasks.values()))}
    return {name.strip("<|>"): symbol for name, symbol in names.items() if name}
