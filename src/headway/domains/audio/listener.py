"""Transcription of one window, under Whisper's rules for the next token."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, Literal, NamedTuple, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headway.codecs import TokenizerCodec
from headway.config import from_dict
from headway.errors import ConfigError, UserError, nearest
from headway.formats.usage import Usage
from headway.generate import Course, Hypothesis, Next, Sampling, SearchConfig, drawing, searching
from headway.generate.prompts import evaluating
from headway.given import check_fields
from headway.layout import Layout
from headway.nn.models import EncoderDecoder, FramesEmbedConfig, Generative, Heard, Prompt

Task = Literal["transcribe", "translate"]
ENGLISH_ONLY = 51864  # vocabulary size; the English-only model has one token less than the one of 99 languages
_START, _PLAIN, _PREVIOUS, _FIRST_LANGUAGE = "<|startoftranscript|>", "<|notimestamps|>", "<|startofprev|>", "<|en|>"
_TASKS: tuple[Task, ...] = ("transcribe", "translate")
_SILENCE = ("<|nospeech|>", "<|nocaptions|>")  # its newer name, and its older one
_NEVER = (_START, _PREVIOUS, "<|startoflm|>", "<|transcribe|>", "<|translate|>", *_SILENCE)


@dataclass(frozen=True)
class WhisperTokens:
    """Token ids. Text is below `eos`; timestamps start at `first_time`, `vocab_size - first_time` of them, 0.02 s
    apart.

    `languages` is empty for an English-only model, which gets neither language nor task. `suppressed` tokens are never
    generated, `suppressed_first` not as the first. `alignment_heads` are the (layer, head) of cross-attention that
    follow the sound in time, from the model's files.
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
        """Whether the model generates timestamps."""
        return self.symbols > self.first_time

    @property
    def language(self) -> str | None:
        """The language of a published English-only model."""
        return "en" if self.symbols == ENGLISH_ONLY else None

    @staticmethod
    def of(codec: TokenizerCodec, usage: Usage, symbols: int) -> WhisperTokens:
        """Read them from the tokenizer and files of a model. UserError if they are incomplete or invalid."""
        start, plain = codec.token(_START), codec.token(_PLAIN)
        if start is None or plain is None or not usage.ends:
            raise UserError(f"the tokenizer has no {_START}, {_PLAIN} or eos; use the one that came with the model")
        end, said = usage.ends[0], {**usage.settings, **{k: v for k, v in usage.generation.items() if v is not None}}
        never, not_first = (_listed(said, name, symbols) for name in ("suppress_tokens", "begin_suppress_tokens"))
        found = (codec.token(name) for name in _SILENCE)
        silence = next((symbol for symbol in found if symbol is not None), None)
        special = [symbol for symbol in map(codec.token, _NEVER) if symbol is not None]
        heads = from_dict(list[tuple[int, int]], said.get("alignment_heads") or [], "alignment_heads")
        tasks, languages = _tasks(codec), languages_of(codec, symbols)
        return WhisperTokens(
            symbols, end, start, plain, codec.token(_PREVIOUS), silence, tasks if languages else {}, languages,
            tuple(sorted({*never, *special, *languages.values(), plain})), tuple(not_first), tuple(heads),
        )  # fmt: skip

    def check(self, language: str | None, task: Task) -> None:
        """UserError for a language or a task that this model does not support."""
        if task not in _TASKS:
            raise UserError(f"task {task!r} is unknown; {nearest(task, _TASKS)}")
        if not self.languages and (language not in (None, self.language) or task != "transcribe"):
            asked = f"language {language!r}" if language not in (None, self.language) else f"task {task}"
            known = "English only" if self.language else "only the language of its training"
            raise UserError(f"this model supports {known}, not {asked}; leave it out, or use a multilingual one")
        if self.languages and language is not None and language not in self.languages:
            raise UserError(f"this model has no language {language!r}; {nearest(language, self.languages)}")

    def opening(self, language: str | None, task: Task) -> list[int]:
        """The first tokens of a transcript."""
        if not self.languages or language is None:
            return [self.start]
        return [self.start, self.languages[language], self.tasks[task]]


def _listed(said: Mapping[str, Any], name: str, symbols: int) -> list[int]:
    found = from_dict(list[int], said.get(name) or [], name)
    if not all(0 <= symbol < symbols for symbol in found):
        raise UserError(f"{name} has ids outside of the vocabulary; use 0 to {symbols - 1}")
    return found


def _tasks(codec: TokenizerCodec) -> dict[str, int]:
    named = {name: codec.token(f"<|{name}|>") for name in _TASKS}
    return {name: symbol for name, symbol in named.items() if symbol is not None}


def languages_of(codec: TokenizerCodec, symbols: int) -> dict[str, int]:
    """The tokens between the first language and the tasks; none for an English-only model, even if its tokenizer has
    them.
    """
    first, tasks = codec.token(_FIRST_LANGUAGE), _tasks(codec)
    if symbols == ENGLISH_ONLY or first is None or len(tasks) < len(_TASKS):
        return {}
    names = {codec.tokenizer.id_to_token(symbol): symbol for symbol in range(first, min(tasks.values()))}
    return {name.strip("<|>"): symbol for name, symbol in names.items() if name}


STEP = 0.02  # seconds between two timestamps
FRAMES = 2  # log-mel frames per step
_FIRST = 4096  # tokens


@dataclass(frozen=True)
class WhisperRule:
    """Whisper's constraints on the next token (Radford et al. 2022, section 4.5, and its reference implementation).

    Timestamps come in pairs, an end and the next start, except the first and the last. They never decrease, and a
    segment ends after its start. The first is at most `latest` seconds. If all timestamps together are more likely than
    any text token, the next token is a timestamp. Without `timed` there are none.
    """

    marks: WhisperTokens
    timed: bool = True
    latest: float = 1.0

    def __call__(self, logits: Float[Tensor, "R C"], history: Int[Tensor, "R T"]) -> None:
        marks = self.marks
        logits.index_fill_(1, _index(marks.never, logits.device), -torch.inf)
        times, text = logits[:, marks.first_time :], logits[:, : marks.first_time]
        if not history.shape[1]:
            logits.index_fill_(1, _index(marks.not_first, logits.device), -torch.inf)
        if not self.timed:
            times.fill_(-torch.inf)
        elif not history.shape[1]:
            text.fill_(-torch.inf)
            times[:, round(self.latest / STEP) + 1 :] = -torch.inf
        else:
            self._forbid(logits, history)
            together = times.float().logsumexp(1)
            # Usually one of the first, frequent tokens is more likely; then the others need not be checked.
            for row in (together > text[:, :_FIRST].amax(1)).nonzero()[:, 0].tolist():
                if together[row] > text[row].amax():
                    text[row] = -torch.inf

    def _forbid(self, logits: Tensor, history: Int[Tensor, "R T"]) -> None:
        """Row by row, because there is usually little to forbid. The start counts as a timestamp before the first
        token; the end of a segment may repeat as the start of the next.
        """
        first = self.marks.first_time
        ends = history[:, -2:].tolist()
        for row, latest in enumerate((history - first).amax(1).tolist()):
            last, before = ends[row][-1] >= first, len(ends[row]) == 1 or ends[row][0] >= first
            closed = last and not before
            logits[row, first : first + max(0, latest + (not closed))] = -torch.inf
            if last and before:
                logits[row, first:] = -torch.inf
            elif last:
                logits[row, : self.marks.end] = -torch.inf


@lru_cache(maxsize=16)
def _index(symbols: tuple[int, ...], device: torch.device) -> Int[Tensor, "N"]:
    return torch.tensor(symbols, dtype=torch.long, device=device)


class TimedPart(NamedTuple):
    """A segment within a window: seconds from its start, the tokens with timestamps, and words if they are timed."""

    start: float
    end: float
    ids: list[int]
    words: tuple[Any, ...] = ()


def parts(ids: Sequence[int], marks: WhisperTokens, frames: int) -> tuple[list[TimedPart], int]:
    """The segments of a window of `frames` log-mel frames, and how many of these are finished.

    If the text ends within a segment, the next window starts where the last complete one ended.
    """
    is_time = [symbol >= marks.first_time for symbol in ids]
    cuts = [place for place in range(1, len(ids)) if is_time[place] and is_time[place - 1]]
    closed = is_time[-2:] == [False, True]
    if not cuts:
        times = [_steps(symbol, marks) for symbol in ids if symbol >= marks.first_time]
        start = times[0] * STEP if is_time[:1] == [True] else 0.0
        end = times[-1] * STEP if times and times[-1] * STEP > start else frames * STEP / FRAMES
        return [TimedPart(start, end, list(ids))], frames
    places = [0, *cuts, *([len(ids)] if closed else [])]
    found = [
        TimedPart(_steps(ids[first], marks) * STEP, _steps(ids[last - 1], marks) * STEP, list(ids[first:last]))
        for first, last in pairwise(places)
    ]
    return found, frames if closed else min(FRAMES * _steps(ids[places[-1] - 1], marks) or frames, frames)


def _steps(symbol: int, marks: WhisperTokens) -> int:
    return symbol - marks.first_time


@dataclass(frozen=True)
class Transcribing:
    """Options of transcription. The defaults are those of Radford et al. 2022 (section 4.5) and their program.

    language: None means English, or for a multilingual model the language detected in the first window.
    beam: beam size at temperature 0.
    max_compression_ratio, min_logprob: a window whose text zlib compresses more than this, or whose mean log
    probability per token is lower, is decoded again at the next of the `temperatures`, as the best of `best_of`
    samples.
    max_silence: a window with uncertain text has no speech if the probability of <|nospeech|> is above this.
    initial: text assumed to precede the sound.
    previous: whether each window is conditioned on the text before it, unless that was sampled above a temperature of
    0.5.
    timestamps: without them each window is one segment.
    words: whether to return the time of each word.
    vad: voice activity detection: skip long pauses, and move times out of pauses.
    """

    language: str | None = None
    task: Task = "transcribe"
    beam: int = 5
    best_of: int = 5
    temperatures: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    most_compression: float = 2.4
    least_logprob: float = -1.0
    most_silence: float = 0.6
    initial: str = ""
    previous: bool = True
    timestamps: bool = True
    words: bool = False
    seed: int = 0
    vad: bool = True

    def __post_init__(self) -> None:
        check_fields(self)
        SearchConfig(self.beam)
        if self.best_of < 1:
            raise ConfigError(f"best_of is {self.best_of}; use an integer of at least 1")
        if not self.temperatures:
            raise ConfigError("temperatures is empty; pass at least one, such as 0")
        for temperature in self.temperatures:
            Sampling(temperature)
        if self.words and not self.timestamps:
            raise ConfigError("word times need segment times; turn timestamps on, or words off")


class HeardText(NamedTuple):
    """The generated text of a window, with timestamps but without eos; `logprob` is the mean per token."""

    ids: list[int]
    text: str
    logprob: float
    compression: float
    silence: float
    temperature: float


class Hearing(Generative, Protocol):
    """An EncoderDecoder, or the engine's version of one."""

    def hear(self, source: Any, layout: Layout) -> Heard: ...


class Listener:
    """A model that transcribes windows of sound."""

    def __init__(self, model: EncoderDecoder, generator: Hearing, codec: TokenizerCodec, marks: WhisperTokens) -> None:
        """`generator` generates what `model` would. UserError for a model that does not take sounds."""
        config = model.config
        embed = config.encoder.embed
        positions, context = config.encoder.context, config.context
        if not isinstance(embed, FramesEmbedConfig) or positions is None or context is None:
            raise UserError("this model does not take windows of sound; use a speech model, such as a Whisper")
        self.model, self.generator, self.codec, self.marks = model, generator, codec, marks
        self.bands, self.frames = embed.bands, 2 * positions
        self.context = context  # tokens, of the previous text and the text

    @torch.inference_mode()
    def encode(self, frames: Float[Tensor, "1 T M"]) -> Heard:
        device = next(self.model.parameters()).device
        with evaluating(self.generator):
            return self.generator.hear(frames.to(device), Layout.full(1, frames.shape[1], device=device))

    @torch.inference_mode()
    def languages(self, heard: Heard) -> dict[str, float]:
        """The probability of each language, the most likely first. UserError for an English-only model."""
        if not self.marks.languages:
            raise UserError("this model is English-only, so it cannot detect languages; use a multilingual one")
        logits, _ = self._start(heard, [self.marks.start], 1)
        found = logits[0, list(self.marks.languages.values())].float().softmax(0).tolist()
        return dict(sorted(zip(self.marks.languages, found), key=lambda pair: -pair[1]))

    @torch.inference_mode()
    def writing(self, heard: Heard, before: Sequence[int], config: Transcribing) -> Course[HeardText]:
        """The text of a window after the tokens `previous_ids`; `config.language` is known here.

        Half of the context is reserved for the previous text, if the model uses any.
        """
        marks = self.marks
        room = self.context if marks.previous is None else self.context // 2
        prompt = [] if marks.previous is None or not before else [marks.previous, *before[-(room - 1) :]]
        opening = [*marks.opening(config.language, config.task), *([] if config.timestamps else [marks.plain])]
        limit = min(room, self.context - len(prompt) - len(opening))
        logits, decoding = self._start(heard, [*prompt, opening[0]], len(opening) - 1 + limit)
        silence = 0.0 if marks.silence is None else float(logits[0].float().softmax(0)[marks.silence])
        for symbol in opening[1:]:
            logits, decoding = yield Next(torch.tensor([symbol], device=logits.device), decoding)
        tried: list[HeardText] = []
        for temperature in config.temperatures:
            found = yield from self._attempt(logits.clone(), decoding, limit, temperature, config)
            text, mean = self.text(found.ids), found.log_probability / (len(found.ids) + found.finished)
            tried.append(HeardText(found.ids, text, mean, compression_ratio(text), silence, temperature))
            doubtful = tried[-1].logprob < config.least_logprob
            silent = doubtful and tried[-1].silence > config.most_silence  # a higher temperature does not help
            if silent or (not doubtful and tried[-1].compression <= config.most_compression):
                return tried[-1]
        plausible = [said for said in tried if said.compression <= config.most_compression]
        best = max(plausible or tried, key=lambda said: said.logprob)
        return best._replace(temperature=tried[-1].temperature)

    def _start(self, heard: Heard, ids: Sequence[int], more: int) -> tuple[Tensor, Any]:
        """The logits after `ids`, and a decoding state with capacity for `more` tokens."""
        prompt = torch.tensor([list(ids)], device=next(self.model.parameters()).device)
        layout = Layout.full(*prompt.shape, device=prompt.device)
        with evaluating(self.generator):
            return self.generator.start(Prompt(prompt, layout, heard, layout), len(ids) + more)

    def _attempt(
        self, logits: Tensor, decoding: Any, limit: int, temperature: float, config: Transcribing
    ) -> Course[Hypothesis]:
        rule, end = WhisperRule(self.marks, config.timestamps), self.marks.end
        if temperature == 0:
            search = SearchConfig(config.beam, length_penalty=1.0, length_offset=0.0)
            pool = getattr(self.generator, "pool", None)  # an engine's threads
            [[best]] = yield from searching(logits, decoding, [limit], end, search, rule=rule, pool=pool)
            return best
        sampling = Sampling(temperature, seed=config.seed)
        return (yield from drawing(logits, decoding, config.best_of, limit, (end,), sampling, rule))[0]

    def text(self, ids: Sequence[int]) -> str:
        """The text of ids, without special tokens."""
        return self.codec.decode([symbol for symbol in ids if symbol < self.marks.end])


def compression_ratio(text: str) -> float:
    """How many times smaller zlib makes it; above 2.4 a text repeats itself."""
    raw = text.strip().encode()
    return len(raw) / len(zlib.compress(raw))


_FEWEST = 2.0  # characters per second of speech; people speak 4 of Chinese and 8 to 20 of an alphabet


def is_silent(said: HeardText, config: Transcribing, voiced: float) -> bool:
    """Whether a window with `voiced` seconds of detected speech is silent, whatever its text: the model is uncertain
    and expects silence, or does either and generates too little text, as it does with music.
    """
    silent, doubtful = said.silence > config.most_silence, said.logprob <= config.least_logprob
    sparse = len(said.text.strip()) < _FEWEST * voiced
    return (silent and doubtful) or (sparse and (silent or doubtful))
