"""Transcription of audio of any length, window by window, each conditioned on the text before it; and transcripts as
plain text, JSON, SubRip and WebVTT.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch

from headway.codecs import Codec, TokenizerCodec
from headway.domains.audio.framing import FramedWindows, Padding, padding_of
from headway.domains.audio.mel import HOP, RATE
from headway.domains.audio.sound_files import Sound, SoundInput, open_sound
from headway.domains.audio.voice_activity import PAUSE, Timeline, detect_speech
from headway.domains.audio.window_transcriber import (
    SpeechGenerative,
    TimedPart,
    TranscriptionOptions,
    WhisperTokens,
    WindowText,
    WindowTranscriber,
    is_silent,
    split_segments,
)
from headway.domains.audio.word_times import Word, WordAligner, between_pauses, split_ids
from headway.errors import ConfigError, UserError
from headway.formats.usage import Usage
from headway.generate import DecodingCoroutine, NextTokens, StepOutput, step_together
from headway.io.arguments import Failures
from headway.io.summary_card import SummaryCard, summary_repr
from headway.nn.models import EncoderDecoder, evaluation_mode

FRAME = HOP / RATE  # seconds
_MAX_CONTEXT_TEMPERATURE = 0.5  # temperature above which text does not condition the next window
MAX_PARALLEL_SOUNDS = 8  # maximum recordings at a time: each keeps its encoder output in memory
Progress = Callable[[float, float], None]  # seconds done, and total seconds


@dataclass(frozen=True)
class Segment:
    """A part of a transcript: its text from `start` to `end` in seconds, and its tokens, with the model's timestamps.

    The other fields are of the complete window: the mean log probability of a token, the compression ratio of the text,
    the probability of no speech, and the sampling temperature. `words` is empty unless word times were requested.
    """

    start: float
    end: float
    text: str
    tokens: list[int]
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float
    temperature: float
    words: tuple[Word, ...] = ()


@summary_repr
@dataclass(frozen=True)
class Transcription:
    """The text of `duration` seconds of audio, its segments, and the requested or detected `language`."""

    text: str
    language: str | None
    duration: float
    segments: list[Segment]

    def card(self) -> SummaryCard:
        """The text, and the times of its segments."""
        rows = [{"from": segment.start, "to": segment.end, "text": segment.text.strip()} for segment in self.segments]
        facts = {"text": repr(self.text), "language": self.language, "seconds": self.duration, "segments": len(rows)}
        return SummaryCard("Transcription", facts, rows)


class Transcriber:
    """A speech model such as Whisper, ready to transcribe. UserError for any other."""

    def __init__(
        self,
        model: EncoderDecoder,
        generator: SpeechGenerative,
        codec: Codec,
        usage: Usage,
        config: TranscriptionOptions,
    ) -> None:
        """`generator` generates what `model` would."""
        if not isinstance(codec, TokenizerCodec):
            raise UserError("this tokenizer does not belong to a speech model; use the one that came with the model")
        special_tokens = WhisperTokens.of(codec, usage, model.config.vocab_size)
        special_tokens.check(config.language, config.task)
        if config.words and not special_tokens.has_timestamps:
            raise UserError("this model does not generate timestamps, so it has no word times; omit them")
        config = replace(config, timestamps=config.timestamps and special_tokens.has_timestamps)
        self.window_transcriber = WindowTranscriber(model, generator, codec, special_tokens)
        self.config, self.codec, self.special_tokens = config, codec, special_tokens
        self.padding: Padding = padding_of(usage)
        self.words = WordAligner(model, codec, special_tokens) if config.timestamps else None

    def transcribe(self, sound: SoundInput, progress: Progress | None = None) -> Transcription:
        """Transcribe a complete recording: a file, or samples at 16 kHz."""
        stream = TranscriptionStream(self, open_sound(sound), progress)
        for _ in stream:
            pass
        return stream.transcription()


class TranscriptionStream:
    """A transcription in progress: iterate over its segments as they come, or advance several with `advance_together`.
    Its `duration` is known at the start, its `language` later.
    """

    def __init__(self, transcriber: Transcriber, sound: Sound, progress: Progress | None = None) -> None:
        """Reads the audio once, and its audible part again. UserError for truncated audio."""
        self._transcriber, self._progress = transcriber, progress or (lambda done, total: None)
        window_transcriber = transcriber.window_transcriber
        self._windows = None  # without speech
        if not transcriber.config.vad:
            self._windows = FramedWindows(
                sound, window_transcriber.bands, window_transcriber.frames, transcriber.padding
            )
            self._timeline = Timeline.of_complete(self._windows.samples)
        else:
            self._timeline = Timeline(detect_speech(sound))
            if not self._timeline.is_silent:
                audible = self._timeline.audible(sound)
                self._windows = FramedWindows(
                    audible, window_transcriber.bands, window_transcriber.frames, transcriber.padding
                )
        self.duration = self._timeline.duration
        self.language = transcriber.config.language
        self._last_word_end = 0.0  # end of the last word
        self.segments: list[Segment] = []  # finished so far
        self.is_finished = False
        self.error: Exception | None = None  # the reason if it failed
        self._coroutine, self._next_tokens = self._decode_windows(), None

    def __iter__(self) -> Iterator[Segment]:
        num_yielded = 0
        while not self.is_finished:
            advance_together([self])
            yield from self.segments[num_yielded:]
            num_yielded = len(self.segments)
        if self.error is not None:
            raise self.error

    def transcription(self) -> Transcription:
        """The transcript so far."""
        text = "".join(segment.text for segment in self.segments).strip()
        return Transcription(text, self.language, self.duration, list(self.segments))

    @property
    def generator(self) -> SpeechGenerative:
        """The generator of this transcription."""
        return self._transcriber.window_transcriber.generator

    @property
    def next_tokens(self) -> NextTokens | None:
        """The tokens whose logits it needs next, if started."""
        return self._next_tokens

    def receive(self, step_output: StepOutput | None) -> None:
        """Continue with the logits of `next_tokens`, or start."""
        try:
            self._next_tokens = next(self._coroutine) if step_output is None else self._coroutine.send(step_output)
        except StopIteration:
            self._next_tokens, self.is_finished = None, True
        except Exception as error:  # affects only this recording
            self._next_tokens, self.is_finished, self.error = None, True, error

    def _decode_windows(self) -> DecodingCoroutine[None]:
        if self._windows is None:
            self._progress(self.duration, self.duration)
            return
        transcriber, seek, frames = self._transcriber, 0, self._windows.frames
        config, window_transcriber = transcriber.config, transcriber.window_transcriber
        previous_ids = transcriber.codec.encode(" " + config.initial.strip()) if config.initial.strip() else []
        while seek < frames:
            count = min(window_transcriber.frames, frames - seek)
            if not transcriber.special_tokens.has_timestamps:  # without timestamps a window is one segment
                pause = self._timeline.next_pause(seek * FRAME)
                count = min(count, max(1, round(min(pause / FRAME, frames)) - seek))
            audio = window_transcriber.encode(self._windows.window(seek, count))
            if self.language is None:
                self.language = (
                    next(iter(window_transcriber.languages(audio)))
                    if transcriber.special_tokens.languages
                    else transcriber.special_tokens.language
                )
            window_text = yield from window_transcriber.decode_steps(
                audio, previous_ids, replace(config, language=self.language)
            )
            if is_silent(window_text, config, self._timeline.speech_seconds(seek * FRAME, (seek + count) * FRAME)):
                seek += count
            else:
                window_segments, num_done = split_segments(window_text.ids, transcriber.special_tokens, count)
                # Word times, if these are requested or a pause splits segments.
                offset, aligner = seek * FRAME, transcriber.words
                next_pause = self._timeline.next_pause(offset + window_segments[0].start)
                has_pause = next_pause < offset + window_segments[-1].end
                if aligner is not None and (config.words or has_pause):
                    initial_ids = transcriber.special_tokens.initial_ids(self.language, config.task)
                    last_word_end = self._last_word_end - offset
                    window_segments = aligner.add_words(audio, initial_ids, window_segments, count, last_word_end)
                    word_ends = [part.words[-1].end for part in window_segments if part.words]
                    if word_ends:
                        self._last_word_end = offset + word_ends[-1]
                    if word_ends and config.words and num_done < count:  # the last segment is open
                        num_done = max(1, min(count, round(word_ends[-1] / FRAME)))
                for segment in self._segments(window_text, window_segments, seek):
                    previous_ids = [*previous_ids, *segment.tokens][-window_transcriber.context :]
                    self.segments.append(segment)
                if not config.previous or window_text.temperature > _MAX_CONTEXT_TEMPERATURE:
                    previous_ids = []
                seek += num_done
            self._progress(self._timeline.original_times(0.0, min(seek, frames) * FRAME)[1], self.duration)

    def _segments(self, window_text: WindowText, window_segments: list[TimedPart], seek: int) -> Iterator[Segment]:
        offset = seek * FRAME
        for part in window_segments:
            words = []
            for word in part.words:
                start, end = self._timeline.within_speech(
                    *self._timeline.original_times(offset + word.start, offset + word.end)
                )
                words.append(replace(word, start=round(start, 3), end=round(end, 3)))
            groups = between_pauses(words, PAUSE) or [[]]
            group_texts = ["".join(word.word for word in group) for group in groups]
            for ids, group in zip(
                split_ids(self._transcriber.codec, part.ids, self._transcriber.special_tokens.eos, group_texts), groups
            ):
                start, end = self._timeline.original_times(offset + part.start, offset + part.end)
                start, end = (group[0].start, group[-1].end) if group else (start, end)
                start = max(start, self.segments[-1].end if self.segments else 0.0)
                text = self._transcriber.window_transcriber.text(ids)
                if start < end and text.strip():
                    yield Segment(
                        round(start, 3), round(end, 3), text, ids, window_text.logprob,
                        window_text.compression, window_text.silence,
                        window_text.temperature, tuple(group if self._transcriber.config.words else ()),
                    )  # fmt: skip


@torch.inference_mode()
def advance_together(streams: Sequence[TranscriptionStream]) -> None:
    """Advance each by one token, or to the first token of its next window; finished ones do nothing. All share one
    model, and each result is bit for bit the same as on its own.
    """
    active = [stream for stream in streams if not stream.is_finished]
    generator = streams[0].generator
    with evaluation_mode(generator):
        for stream in active:
            if stream.next_tokens is None:
                stream.receive(None)
        pending = [(stream, stream.next_tokens) for stream in active if stream.next_tokens is not None]
        outputs = step_together(generator, [tokens for _, tokens in pending]) if pending else []
        for (stream, _), output in zip(pending, outputs):
            stream.receive(output)


def transcribe_all(transcriber: Transcriber, sounds: Sequence[SoundInput], failures: Failures) -> list[Transcription]:
    """The transcripts of all recordings in order, transcribing several at a time; errors go into `failures`, by
    index.
    """
    pending = deque(enumerate(sounds))
    active = dict[int, TranscriptionStream]()
    transcripts = dict[int, Transcription]()
    while pending or active:
        while pending and len(active) < MAX_PARALLEL_SOUNDS:
            index, sound = pending.popleft()
            try:
                active[index] = TranscriptionStream(transcriber, open_sound(sound))
            except UserError as error:
                failures[index] = error
        if active:
            advance_together(list(active.values()))
        for index, stream in [(index, stream) for index, stream in active.items() if stream.is_finished]:
            del active[index]
            if isinstance(stream.error, UserError):
                failures[index] = stream.error
            elif stream.error is not None:
                raise stream.error
            else:
                transcripts[index] = stream.transcription()
    return [transcripts[index] for index in sorted(transcripts)]


Format = Literal["txt", "json", "srt", "vtt"]


@dataclass(frozen=True)
class SubtitleLines:
    """Subtitle layout across segments: maximum characters and words per line, and lines per subtitle (None: no limit).
    A longer word gets its own line.
    """

    max_line_width: int | None = None
    max_line_count: int | None = None
    max_words_per_line: int | None = None

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}; use an integer of at least 1")
        if self.max_line_width is None and self.max_words_per_line is None:
            raise ConfigError("subtitle lines have no limit; set max_line_width or max_words_per_line")


def format_transcript(transcript: Transcription, format: Format, lines: SubtitleLines | None = None) -> str:
    """A transcript as file content. `lines` lays out subtitles by word times (`words`); UserError without them, or for
    other formats.
    """
    if lines is not None and format not in ("srt", "vtt"):
        raise UserError(f"line options need srt or vtt, not {format}; choose one of these, or omit the options")
    if format == "txt":
        return _join_lines(segment.text.strip() for segment in transcript.segments)
    if format == "json":
        return json.dumps(as_dict(transcript), ensure_ascii=False, indent=2) + "\n"
    cues = [(segment.start, segment.end, segment.text.strip()) for segment in transcript.segments]
    if lines is not None:
        if not all(segment.words for segment in transcript.segments):
            raise UserError("line options need word times, which this transcript does not have; request words")
        cues = []
        for cue_lines in _subtitles([word for segment in transcript.segments for word in segment.words], lines):
            text = "\n".join(_join_words(line) for line in cue_lines)
            cues.append((cue_lines[0][0].start, cue_lines[-1][-1].end, text))
    blocks = [] if format == "srt" else ["WEBVTT\n"]
    separator = "," if format == "srt" else "."
    for number, (start, end, text) in enumerate(cues, 1):
        times = f"{format_time(start, separator)} --> {format_time(end, separator)}"
        heading = f"{number}\n" if format == "srt" else ""
        # An arrow in the text would look like another time.
        blocks.append(f"{heading}{times}\n{text.replace('-->', '->')}\n")
    return _join_lines(blocks)


def as_dict(transcript: Transcription) -> dict[str, Any]:
    """A transcript as a JSON object; segments have words only if requested."""
    segments = [{k: v for k, v in asdict(segment).items() if k != "words" or v} for segment in transcript.segments]
    return {
        "text": transcript.text,
        "language": transcript.language,
        "duration": transcript.duration,
        "segments": segments,
    }


def _subtitles(words: Sequence[Word], limits: SubtitleLines) -> list[list[list[Word]]]:
    """The words of each line of each subtitle. A pause ends a line and a subtitle."""
    subtitles: list[list[list[Word]]] = []
    for word in words:
        lines = subtitles[-1] if subtitles else []
        line = lines[-1] if lines else []
        is_pause = bool(line) and word.start - line[-1].end >= PAUSE
        is_too_wide = limits.max_line_width is not None and len(_join_words([*line, word])) > limits.max_line_width
        if line and not (is_pause or is_too_wide or len(line) == limits.max_words_per_line):
            line.append(word)
        elif line and not is_pause and len(lines) != limits.max_line_count:
            lines.append([word])
        else:
            subtitles.append([[word]])
    return subtitles


def _join_words(words: Sequence[Word]) -> str:
    return "".join(word.word for word in words).strip()


def format_time(seconds: float, separator: str = ".") -> str:
    """hh:mm:ss.mmm"""
    milliseconds = round(1000 * seconds)
    minutes, remainder = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{remainder // 1000:02}{separator}{remainder % 1000:03}"


def _join_lines(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)
