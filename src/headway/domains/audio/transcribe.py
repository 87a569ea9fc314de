"""Transcription of sounds of any length, window by window, each conditioned on the text before it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from headway.card import Card, shows
from headway.codecs import Codec, TokenizerCodec
from headway.domains.audio.activity import PAUSE, Timeline, speech_of
from headway.domains.audio.framing import FramedWindows, Padding, padding_of
from headway.domains.audio.listener import (
    HeardText,
    Hearing,
    Listener,
    TimedPart,
    Transcribing,
    WhisperTokens,
    is_silent,
    parts,
)
from headway.domains.audio.mel import HOP, RATE
from headway.domains.audio.sound import Given, Sound, open_sound
from headway.domains.audio.words import Word, Words, between_pauses, split_ids
from headway.errors import UserError
from headway.formats.usage import Usage
from headway.generate import Course, Next, Told, step_together
from headway.generate.prompts import evaluating
from headway.given import Failed
from headway.nn.models import EncoderDecoder, Heard

FRAME = HOP / RATE  # seconds
_CERTAIN = 0.5  # the temperature above which a text does not condition the next
TOGETHER = 8  # maximum sounds at a time: each holds its encoder output in memory
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


@shows
@dataclass(frozen=True)
class Transcription:
    """The text of a sound of `duration` seconds, its segments, and the requested or detected `language`."""

    text: str
    language: str | None
    duration: float
    segments: list[Segment]

    def card(self) -> Card:
        """The text, and the times of its segments."""
        rows = [{"from": each.start, "to": each.end, "text": each.text.strip()} for each in self.segments]
        facts = {"text": repr(self.text), "language": self.language, "seconds": self.duration, "segments": len(rows)}
        return Card("Transcription", facts, rows)


class Transcriber:
    """A speech model such as Whisper, ready to transcribe. UserError for any other."""

    def __init__(
        self, model: EncoderDecoder, generator: Hearing, codec: Codec, usage: Usage, config: Transcribing
    ) -> None:
        """`generator` generates what `model` would."""
        if not isinstance(codec, TokenizerCodec):
            raise UserError("this tokenizer does not belong to a speech model; use the one that came with the model")
        marks = WhisperTokens.of(codec, usage, model.config.symbols)
        marks.check(config.language, config.task)
        if config.words and not marks.timed:
            raise UserError("this model does not generate timestamps, so it has no word times; leave them out")
        config = replace(config, timestamps=config.timestamps and marks.timed)
        self.listener = Listener(model, generator, codec, marks)
        self.config, self.codec, self.marks = config, codec, marks
        self.padding: Padding = padding_of(usage)
        self.words = Words(model, codec, marks) if config.timestamps else None

    def transcribe(self, sound: Given, progress: Progress | None = None) -> Transcription:
        """Transcribe a complete sound: a file, or samples at 16 kHz."""
        told = Telling(self, open_sound(sound), progress)
        for _ in told:
            pass
        return told.transcription()


class Telling:
    """A transcription in progress: iterate over its segments as they come, or advance several with `advance_together`.
    Its `duration` is known at the start, its `language` later.
    """

    def __init__(self, transcriber: Transcriber, sound: Sound, progress: Progress | None = None) -> None:
        """Reads the sound once, and its audible part again. UserError for a truncated sound."""
        self._by, self._progress = transcriber, progress or (lambda done, whole: None)
        listener = transcriber.listener
        self._windows = None  # without speech
        if not transcriber.config.vad:
            self._windows = FramedWindows(sound, listener.bands, listener.frames, transcriber.padding)
            self._timeline = Timeline.whole(self._windows.samples)
        else:
            self._timeline = Timeline(speech_of(sound))
            if not self._timeline.is_silent:
                heard = self._timeline.heard(sound)
                self._windows = FramedWindows(heard, listener.bands, listener.frames, transcriber.padding)
        self.duration = self._timeline.duration
        self.language = transcriber.config.language
        self._spoken = 0.0  # end of the last word
        self.segments: list[Segment] = []  # finished so far
        self.ended = False
        self.error: Exception | None = None  # the reason if it failed
        self._course, self._wanted = self._told(), None

    def __iter__(self) -> Iterator[Segment]:
        shown = 0
        while not self.ended:
            tell_on([self])
            yield from self.segments[shown:]
            shown = len(self.segments)
        if self.error is not None:
            raise self.error

    def transcription(self) -> Transcription:
        """The transcript so far."""
        text = "".join(segment.text for segment in self.segments).strip()
        return Transcription(text, self.language, self.duration, list(self.segments))

    @property
    def generator(self) -> Hearing:
        """The generator of this transcription."""
        return self._by.listener.generator

    @property
    def wanted(self) -> Next | None:
        """The tokens whose logits it needs next, once started."""
        return self._wanted

    def hear(self, told: Told | None) -> None:
        """Continue with the logits of `next_tokens`, or start."""
        try:
            self._wanted = next(self._course) if told is None else self._course.send(told)
        except StopIteration:
            self._wanted, self.ended = None, True
        except Exception as error:  # affects this sound only, not the others
            self._wanted, self.ended, self.error = None, True, error

    def _told(self) -> Course[None]:
        if self._windows is None:
            self._progress(self.duration, self.duration)
            return
        by, seek, frames = self._by, 0, self._windows.frames
        config, listener = by.config, by.listener
        before = by.codec.encode(" " + config.initial.strip()) if config.initial.strip() else []
        while seek < frames:
            count = min(listener.frames, frames - seek)
            if not by.marks.timed:  # without timestamps a window is one segment
                pause = self._timeline.next_pause(seek * FRAME)
                count = min(count, max(1, round(min(pause / FRAME, frames)) - seek))
            heard = listener.encode(self._windows.window(seek, count))
            if self.language is None:
                self.language = next(iter(listener.languages(heard))) if by.marks.languages else by.marks.language
            said = yield from listener.writing(heard, before, replace(config, language=self.language))
            if is_silent(said, config, self._timeline.voiced(seek * FRAME, (seek + count) * FRAME)):
                seek += count
            else:
                found, done = parts(said.ids, by.marks, count)
                found, done = self._timed(heard, found, seek, count, done)
                for segment in self._segments(said, found, seek):
                    before = [*before, *segment.tokens][-listener.context :]
                    self.segments.append(segment)
                if not config.previous or said.temperature > _CERTAIN:
                    before = []
                seek += done
            self._progress(self._timeline.placed(0.0, min(seek, frames) * FRAME)[1], self.duration)

    def _timed(
        self, heard: Heard, found: list[TimedPart], seek: int, count: int, done: int
    ) -> tuple[list[TimedPart], int]:
        """The segments of a window with word times, if these are requested or a pause splits segments; and the number
        of finished frames: with words and an open last segment, those up to the last word.
        """
        offset, wanted = seek * FRAME, self._by.config.words
        paused = self._timeline.next_pause(offset + found[0].start) < offset + found[-1].end
        if self._by.words is None or not (wanted or paused):
            return found, done
        opening = self._by.marks.opening(self.language, self._by.config.task)
        found = self._by.words.timed(heard, opening, found, count, self._spoken - offset)
        ends = [part.words[-1].end for part in found if part.words]
        if ends:
            self._spoken = offset + ends[-1]
            done = done if done == count or not wanted else max(1, min(count, round(ends[-1] / FRAME)))
        return found, done

    def _segments(self, said: HeardText, found: list[TimedPart], seek: int) -> Iterator[Segment]:
        offset = seek * FRAME
        for part in found:
            words = []
            for word in part.words:
                start, end = self._timeline.in_one(*self._timeline.placed(offset + word.start, offset + word.end))
                words.append(replace(word, start=round(start, 3), end=round(end, 3)))
            groups = between_pauses(words, PAUSE) or [[]]
            texts = ["".join(word.word for word in group) for group in groups]
            for ids, group in zip(split_ids(self._by.codec, part.ids, self._by.marks.end, texts), groups):
                start, end = self._timeline.placed(offset + part.start, offset + part.end)
                start, end = (group[0].start, group[-1].end) if group else (start, end)
                start = max(start, self.segments[-1].end if self.segments else 0.0)
                text = self._by.listener.text(ids)
                if start < end and text.strip():
                    yield Segment(
                        round(start, 3), round(end, 3), text, ids, said.logprob, said.compression, said.silence,
                        said.temperature, tuple(group if self._by.config.words else ()),
                    )  # fmt: skip


@torch.inference_mode()
def tell_on(tellings: Sequence[Telling]) -> None:
    """Advance each by one token, or to the first token of its next window; finished ones do nothing. All share one
    model, and each result is bit for bit what it would be alone.
    """
    going = [telling for telling in tellings if not telling.ended]
    generator = tellings[0].generator
    with evaluating(generator):
        for telling in going:
            if telling.wanted is None:
                telling.hear(None)
        waiting = [(telling, telling.wanted) for telling in going if telling.wanted is not None]
        told = step_together(generator, [wanted for _, wanted in waiting]) if waiting else []
        for (telling, _), each in zip(waiting, told):
            telling.hear(each)


def tell_all(by: Transcriber, sounds: Sequence[Given], failed: Failed) -> list[Transcription]:
    """The transcripts of all sounds, in order, several at a time; errors go into `failures`, by index."""
    waiting, going, found = deque(enumerate(sounds)), dict[int, Telling](), dict[int, Transcription]()
    while waiting or going:
        while waiting and len(going) < TOGETHER:
            place, sound = waiting.popleft()
            try:
                going[place] = Telling(by, open_sound(sound))
            except UserError as error:
                failed[place] = error
        if going:
            tell_on(list(going.values()))
        for place, telling in [(place, telling) for place, telling in going.items() if telling.ended]:
            del going[place]
            if isinstance(telling.error, UserError):
                failed[place] = telling.error
            elif telling.error is not None:
                raise telling.error
            else:
                found[place] = telling.transcription()
    return [found[place] for place in sorted(found)]
