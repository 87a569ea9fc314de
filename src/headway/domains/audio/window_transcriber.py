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
from headway.generate import DecodingCoroutine, NextTokens, Sampling, SearchConfig, sample_steps, search_steps
from headway.io.arguments import check_fields
from headway.layout import Layout
from headway.nn.models import EncodedSource, EncoderDecoder, FramesEmbedConfig, Generative, Prompt, evaluation_mode

Task = Literal["transcribe", "translate"]
ENGLISH_ONLY = 51864  # vocabulary size; the English-only model has one token less than the one of 99 languages
_START = "<|startoftranscript|>"
_NO_TIMESTAMPS = "<|notimestamps|>"
_PREVIOUS = "<|startofprev|>"
_FIRST_LANGUAGE = "<|en|>"
_TASKS: tuple[Task, ...] = ("transcribe", "translate")
_NO_SPEECH = ("<|nospeech|>", "<|nocaptions|>")  # the newer and the older name
_SUPPRESSED = (_START, _PREVIOUS, "<|startoflm|>", "<|transcribe|>", "<|translate|>", *_NO_SPEECH)


@dataclass(frozen=True)
class WhisperTokens:
    """Token ids. Text tokens are below `eos`; the `vocab_size - first_time` timestamps start at `first_time` and are
    0.02 s apart.

    `languages` is empty for an English-only model, whose prompt has neither language nor task. `suppressed` tokens are
    never generated, and `suppressed_first` tokens never come first. `alignment_heads`, from the model's files, are the
    (layer, head) pairs of cross-attention that follow the audio in time.
    """

    vocab_size: int
    eos: int
    start: int
    no_timestamps: int
    previous: int | None
    no_speech: int | None
    tasks: Mapping[str, int]
    languages: Mapping[str, int]
    suppressed: tuple[int, ...]
    suppressed_first: tuple[int, ...]
    alignment_heads: tuple[tuple[int, int], ...] = ()

    @property
    def first_time(self) -> int:
        return self.no_timestamps + 1

    @property
    def has_timestamps(self) -> bool:
        """Whether the model generates timestamps."""
        return self.vocab_size > self.first_time

    @property
    def language(self) -> str | None:
        """The language of a published English-only model."""
        return "en" if self.vocab_size == ENGLISH_ONLY else None

    @staticmethod
    def of(codec: TokenizerCodec, usage: Usage, vocab_size: int) -> WhisperTokens:
        """Read them from the tokenizer and files of a model. UserError if they are incomplete or invalid."""
        start, no_timestamps = codec.token_id(_START), codec.token_id(_NO_TIMESTAMPS)
        if start is None or no_timestamps is None or not usage.ends:
            raise UserError(
                f"the tokenizer has no {_START}, {_NO_TIMESTAMPS} or eos; use the one that came with the model"
            )
        eos = usage.ends[0]
        settings = {**usage.settings, **{k: v for k, v in usage.generation.items() if v is not None}}
        ids: dict[str, list[int]] = {}
        for name in ("suppress_tokens", "begin_suppress_tokens"):
            ids[name] = from_dict(list[int], settings.get(name) or [], name)
            if not all(0 <= token < vocab_size for token in ids[name]):
                raise UserError(f"{name} has ids outside the vocabulary; use 0 to {vocab_size - 1}")
        candidates = (codec.token_id(name) for name in _NO_SPEECH)
        no_speech = next((token for token in candidates if token is not None), None)
        special = [token for token in map(codec.token_id, _SUPPRESSED) if token is not None]
        alignment_heads = from_dict(list[tuple[int, int]], settings.get("alignment_heads") or [], "alignment_heads")
        tasks, languages = _tasks(codec), languages_of(codec, vocab_size)
        return WhisperTokens(
            vocab_size, eos, start, no_timestamps, codec.token_id(_PREVIOUS), no_speech,
            tasks if languages else {}, languages,
            tuple(sorted({*ids["suppress_tokens"], *special, *languages.values(), no_timestamps})),
            tuple(ids["begin_suppress_tokens"]), tuple(alignment_heads),
        )  # fmt: skip

    def check(self, language: str | None, task: Task) -> None:
        """UserError for a language or a task that this model does not support."""
        if task not in _TASKS:
            raise UserError(f"task {task!r} is unknown; {nearest(task, _TASKS)}")
        if not self.languages and (language not in (None, self.language) or task != "transcribe"):
            request = f"language {language!r}" if language not in (None, self.language) else f"task {task}"
            supported = "English only" if self.language else "only the language it was trained on"
            raise UserError(f"this model supports {supported}, not {request}; omit it, or use a multilingual model")
        if self.languages and language is not None and language not in self.languages:
            raise UserError(f"this model has no language {language!r}; {nearest(language, self.languages)}")

    def initial_ids(self, language: str | None, task: Task) -> list[int]:
        """The first tokens of a transcript."""
        if not self.languages or language is None:
            return [self.start]
        return [self.start, self.languages[language], self.tasks[task]]


def _tasks(codec: TokenizerCodec) -> dict[str, int]:
    ids = {name: codec.token_id(f"<|{name}|>") for name in _TASKS}
    return {name: token for name, token in ids.items() if token is not None}


def languages_of(codec: TokenizerCodec, vocab_size: int) -> dict[str, int]:
    """The tokens between the first language and the tasks; empty for an English-only model, even if its tokenizer has
    them.
    """
    first, tasks = codec.token_id(_FIRST_LANGUAGE), _tasks(codec)
    if vocab_size == ENGLISH_ONLY or first is None or len(tasks) < len(_TASKS):
        return {}
    names = {codec.tokenizer.id_to_token(token): token for token in range(first, min(tasks.values()))}
    return {name.strip("<|>"): token for name, token in names.items() if name}


STEP = 0.02  # seconds between two timestamps
FRAMES = 2  # log-mel frames per step
_FREQUENT_TOKENS = 4096  # tokens


@dataclass(frozen=True)
class WhisperRule:
    """Whisper's constraints on the next token (Radford et al. 2022, section 4.5, and its reference implementation).

    Timestamps come in pairs (an end and the next start), except the first and the last. They never decrease, and a
    segment ends after its start. The first timestamp is at most `latest` seconds. If all timestamps together are more
    likely than any text token, the next token is a timestamp. Without `timed` there are no timestamps.
    """

    special_tokens: WhisperTokens
    timed: bool = True
    latest: float = 1.0

    def __call__(self, logits: Float[Tensor, "R C"], history: Int[Tensor, "R T"]) -> None:
        special_tokens = self.special_tokens
        logits.index_fill_(1, _index_tensor(special_tokens.suppressed, logits.device), -torch.inf)
        times, text = logits[:, special_tokens.first_time :], logits[:, : special_tokens.first_time]
        if not history.shape[1]:
            logits.index_fill_(1, _index_tensor(special_tokens.suppressed_first, logits.device), -torch.inf)
        if not self.timed:
            times.fill_(-torch.inf)
        elif not history.shape[1]:
            text.fill_(-torch.inf)
            times[:, round(self.latest / STEP) + 1 :] = -torch.inf
        else:
            # Row by row, because there is usually little to forbid. The start counts as a timestamp before the first
            # token; a segment's end may repeat as the start of the next.
            first = special_tokens.first_time
            last_two = history[:, -2:].tolist()
            for row, latest in enumerate((history - first).amax(1).tolist()):
                is_time = last_two[row][-1] >= first
                was_time = len(last_two[row]) == 1 or last_two[row][0] >= first
                is_closed = is_time and not was_time
                logits[row, first : first + max(0, latest + (not is_closed))] = -torch.inf
                if is_time and was_time:
                    logits[row, first:] = -torch.inf
                elif is_time:
                    logits[row, : special_tokens.eos] = -torch.inf
            time_log_prob = times.float().logsumexp(1)
            # Usually one of the first, frequent tokens is more likely; then the others need not be checked.
            for row in (time_log_prob > text[:, :_FREQUENT_TOKENS].amax(1)).nonzero()[:, 0].tolist():
                if time_log_prob[row] > text[row].amax():
                    text[row] = -torch.inf


@lru_cache(maxsize=16)
def _index_tensor(tokens: tuple[int, ...], device: torch.device) -> Int[Tensor, "N"]:
    return torch.tensor(tokens, dtype=torch.long, device=device)


class TimedPart(NamedTuple):
    """A segment within a window: seconds from the window's start, tokens with timestamps, and words if they are
    timed.
    """

    start: float
    end: float
    ids: list[int]
    words: tuple[Any, ...] = ()


def split_segments(ids: Sequence[int], special_tokens: WhisperTokens, frames: int) -> tuple[list[TimedPart], int]:
    """The segments in a window of `frames` log-mel frames, and how many of the frames are finished.

    If the text ends within a segment, the next window starts where the last complete segment ended.
    """
    first_time = special_tokens.first_time
    is_time = [token >= first_time for token in ids]
    cuts = [index for index in range(1, len(ids)) if is_time[index] and is_time[index - 1]]
    closed = is_time[-2:] == [False, True]
    if not cuts:
        times = [token - first_time for token in ids if token >= first_time]
        start = times[0] * STEP if is_time[:1] == [True] else 0.0
        end = times[-1] * STEP if times and times[-1] * STEP > start else frames * STEP / FRAMES
        return [TimedPart(start, end, list(ids))], frames
    edges = [0, *cuts, *([len(ids)] if closed else [])]
    segments = []
    for first, last in pairwise(edges):
        start, end = ids[first] - first_time, ids[last - 1] - first_time
        segments.append(TimedPart(start * STEP, end * STEP, list(ids[first:last])))
    return segments, frames if closed else min(FRAMES * (ids[edges[-1] - 1] - first_time) or frames, frames)


@dataclass(frozen=True)
class TranscriptionOptions:
    """Transcription options. The defaults are from Radford et al. 2022 (section 4.5) and their code.

    language: None means English or, for a multilingual model, the language detected in the first window.
    beam: beam size at temperature 0.
    max_compression_ratio, min_logprob: a window whose text zlib compresses more than this, or whose mean log
    probability per token is lower, is decoded again at the next of the `temperatures`, as the best of `best_of`
    samples.
    max_silence: a window with uncertain text has no speech if the probability of <|nospeech|> is above this.
    initial: text assumed to precede the sound.
    previous: whether each window is conditioned on the text before it, unless that was sampled at a temperature above
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
    max_compression_ratio: float = 2.4
    min_logprob: float = -1.0
    max_silence: float = 0.6
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
            raise ConfigError("word times need timestamps; turn timestamps on, or words off")


class WindowText(NamedTuple):
    """The text generated for a window, with timestamps but without eos; `logprob` is the mean per token."""

    ids: list[int]
    text: str
    logprob: float
    compression: float
    silence: float
    temperature: float


class SpeechGenerative(Generative, Protocol):
    """An EncoderDecoder, or the engine's version of one."""

    def encode(self, source: Any, layout: Layout) -> EncodedSource: ...


class WindowTranscriber:
    """A model that transcribes audio windows."""

    def __init__(
        self, model: EncoderDecoder, generator: SpeechGenerative, codec: TokenizerCodec, special_tokens: WhisperTokens
    ) -> None:
        """`generator` generates the same as `model`. UserError for a model that does not take audio."""
        config = model.config
        embed = config.encoder.embed
        positions, context = config.encoder.context, config.context
        if not isinstance(embed, FramesEmbedConfig) or positions is None or context is None:
            raise UserError("this model does not take audio; use a speech model, such as Whisper")
        self.model, self.generator, self.codec, self.special_tokens = model, generator, codec, special_tokens
        self.bands, self.frames = embed.bands, 2 * positions
        self.context = context  # tokens of the previous text and the new text together

    @torch.inference_mode()
    def encode(self, frames: Float[Tensor, "1 T M"]) -> EncodedSource:
        device = next(self.model.parameters()).device
        with evaluation_mode(self.generator):
            return self.generator.encode(frames.to(device), Layout.full(1, frames.shape[1], device=device))

    @torch.inference_mode()
    def languages(self, heard: EncodedSource) -> dict[str, float]:
        """The probability of each language, the most likely first. UserError for an English-only model."""
        if not self.special_tokens.languages:
            raise UserError("this model is English-only, so it cannot detect languages; use a multilingual model")
        logits, _ = self._start(heard, [self.special_tokens.start], 1)
        probabilities = logits[0, list(self.special_tokens.languages.values())].float().softmax(0).tolist()
        return dict(sorted(zip(self.special_tokens.languages, probabilities), key=lambda pair: -pair[1]))

    @torch.inference_mode()
    def decode_steps(
        self, audio: EncodedSource, previous_ids: Sequence[int], config: TranscriptionOptions
    ) -> DecodingCoroutine[WindowText]:
        """The text of a window that follows the tokens `previous_ids`; `config.language` is known here.

        Half of the context is reserved for the previous text, if it is used.
        """
        special_tokens = self.special_tokens
        capacity = self.context if special_tokens.previous is None else self.context // 2
        prompt = (
            []
            if special_tokens.previous is None or not previous_ids
            else [special_tokens.previous, *previous_ids[-(capacity - 1) :]]
        )
        initial_ids = [
            *special_tokens.initial_ids(config.language, config.task),
            *([] if config.timestamps else [special_tokens.no_timestamps]),
        ]
        limit = min(capacity, self.context - len(prompt) - len(initial_ids))
        logits, decoding = self._start(audio, [*prompt, initial_ids[0]], len(initial_ids) - 1 + limit)
        silence = (
            0.0 if special_tokens.no_speech is None else float(logits[0].float().softmax(0)[special_tokens.no_speech])
        )
        for token in initial_ids[1:]:
            logits, decoding = yield NextTokens(torch.tensor([token], device=logits.device), decoding)
        rule = WhisperRule(special_tokens, config.timestamps)
        eos = special_tokens.eos
        attempts: list[WindowText] = []
        for temperature in config.temperatures:
            if temperature == 0:
                search = SearchConfig(config.beam, length_penalty=1.0, length_offset=0.0)
                pool = getattr(self.generator, "pool", None)  # an engine's threads
                steps = search_steps(logits.clone(), decoding, [limit], eos, search, rule=rule, pool=pool)
                [[hypothesis]] = yield from steps
            else:
                sampling = Sampling(temperature, seed=config.seed)
                steps = sample_steps(logits.clone(), decoding, config.best_of, limit, (eos,), sampling, rule)
                hypothesis = (yield from steps)[0]
            text = self.text(hypothesis.ids)
            mean = hypothesis.log_probability / (len(hypothesis.ids) + hypothesis.finished)
            attempts.append(WindowText(hypothesis.ids, text, mean, compression_ratio(text), silence, temperature))
            is_uncertain = attempts[-1].logprob < config.min_logprob
            is_silence = (
                is_uncertain and attempts[-1].silence > config.max_silence
            )  # a higher temperature does not help
            if is_silence or (not is_uncertain and attempts[-1].compression <= config.max_compression_ratio):
                return attempts[-1]
        plausible = [attempt for attempt in attempts if attempt.compression <= config.max_compression_ratio]
        best = max(plausible or attempts, key=lambda attempt: attempt.logprob)
        return best._replace(temperature=attempts[-1].temperature)

    def _start(self, audio: EncodedSource, ids: Sequence[int], capacity: int) -> tuple[Tensor, Any]:
        """The logits after `ids`, and a decoding state with capacity for `more` tokens."""
        prompt = torch.tensor([list(ids)], device=next(self.model.parameters()).device)
        layout = Layout.full(*prompt.shape, device=prompt.device)
        with evaluation_mode(self.generator):
            return self.generator.start(Prompt(prompt, layout, audio, layout), len(ids) + capacity)

    def text(self, ids: Sequence[int]) -> str:
        """The text of ids, without special tokens."""
        return self.codec.decode([token for token in ids if token < self.special_tokens.eos])


def compression_ratio(text: str) -> float:
    """How many times smaller zlib makes it; above 2.4, text repeats itself."""
    raw = text.strip().encode()
    return len(raw) / len(zlib.compress(raw))


_MIN_CHARACTERS = 2.0  # characters per second of speech; people speak 4 of Chinese and 8 to 20 of an alphabet


def is_silent(window_text: WindowText, config: TranscriptionOptions, voiced: float) -> bool:
    """Whether to treat a window with `voiced` seconds of detected speech as silent, whatever its text: either the model
    is uncertain and expects silence, or one of the two holds and it generates too little text, as with music.
    """
    expects_silence, is_uncertain = window_text.silence > config.max_silence, window_text.logprob <= config.min_logprob
    sparse = len(window_text.text.strip()) < _MIN_CHARACTERS * voiced
    return (expects_silence and is_uncertain) or (sparse and (expects_silence or is_uncertain))
