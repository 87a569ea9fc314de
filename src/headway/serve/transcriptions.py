"""Audio to text: /v1/audio/transcriptions and /v1/audio/translations of the OpenAI API."""

from __future__ import annotations

import asyncio
import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, Literal, NamedTuple, cast, get_args

import msgspec
from starlette.datastructures import FormData, UploadFile
from starlette.responses import PlainTextResponse, Response

from headway.app.model import Model
from headway.app.predictors import predictor
from headway.domains.audio import FileSound, Task, Telling, Transcribing, Transcription, tell_on, written
from headway.errors import nearest
from headway.serve.errors import StatusError
from headway.serve.frame import Context, Endpoint
from headway.serve.media import named
from headway.serve.neutral import Neutral

AnswerFormat = Literal["json", "text", "srt", "verbose_json", "vtt"]
_GRANULARITIES, _PLAIN_GRANULARITIES = "timestamp_granularities[]", "timestamp_granularities"
_FIELDS = ("file", "model", "language", "prompt", "response_format", "temperature", _GRANULARITIES)
_NEUTRAL = {
    "stream": Neutral(("false", "False"), "transcripts are not streamed; leave it out"),
    "chunking_strategy": Neutral(("auto",), "audio is always cut as the model was trained for; leave it out"),
    "include[]": Neutral((), "log probabilities are per segment, in verbose_json; leave it out"),
    "top_p": Neutral(("1", "1.0"), "transcription uses beam search; leave it out"),
}
_HOTTEST = 1.0  # maximum temperature, as in OpenAI's service
_SYMBOLS = 16  # tokens per recording and call, after which others may join
_LONGEST = 100  # characters of a file's name in messages


class TranscriptBody(msgspec.Struct):
    text: str


class SpokenWord(msgspec.Struct):
    """A word, its start and end in seconds, its probability, and its text with the space before it."""

    word: str
    start: float
    end: float
    probability: float
    text: str


class SpokenSegment(msgspec.Struct):
    """A segment of a transcript; see headway.Segment. `seek` is its start in hundredths of a second."""

    id: int
    seek: int
    start: float
    end: float
    text: str
    tokens: list[int]
    temperature: float
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float


class VerboseTranscript(msgspec.Struct, omit_defaults=True):
    """The text of a recording of `duration` seconds; `language` is a code such as en. Words and segments are there if
    requested.
    """

    task: str
    language: str | None
    duration: float
    text: str
    segments: list[SpokenSegment] | None = None
    words: list[SpokenWord] | None = None


class _Form(NamedTuple):
    """A parsed form."""

    file: UploadFile
    model: str
    how: Transcribing
    form: AnswerFormat
    granularities: Sequence[str]


async def transcribe(form: FormData, context: Context) -> msgspec.Struct | Response:
    """The text of a recording, in its language."""
    return await _answer(form, "transcribe", context)


async def translate(form: FormData, context: Context) -> msgspec.Struct | Response:
    """The text of a recording, in English."""
    return await _answer(form, "translate", context)


async def _answer(form: FormData, task: Task, context: Context) -> msgspec.Struct | Response:
    try:
        asked = _asked(form, task)
        found = await _transcript(asked, context)
    finally:
        await form.close()
    if asked.form in ("srt", "vtt"):
        kind = "text/vtt" if asked.form == "vtt" else "application/x-subrip"
        return PlainTextResponse(written(found, cast(Any, asked.form)), media_type=kind)
    if asked.form == "text":
        return PlainTextResponse(f"{found.text}\n")
    return TranscriptBody(found.text) if asked.form == "json" else _verbose(found, asked)


async def _transcript(asked: _Form, context: Context) -> Transcription:
    name = (asked.file.filename or "file")[:_LONGEST]
    async with context.served.using(asked.model) as ready:
        predictor(ready.model, "transcribe")  # UserError for a model that does not transcribe
        with NamedTemporaryFile(prefix="headway-") as file:  # private to this user; decoders need a file
            await asyncio.to_thread(shutil.copyfileobj, asked.file.file, file)
            file.flush()
            with named(Path(file.name), name):
                sound = _Heard(ready.model, Path(file.name), asked.how)
                found = await ready.batcher.follow(_go_on, "sounds", sound)
                if isinstance(found, Exception):
                    raise found
                return found


class _Heard:
    """A recording whose transcription starts when its turn comes. Used in the model's thread."""

    def __init__(self, model: Model, path: Path, how: Transcribing) -> None:
        self.telling: Telling | None = None
        self._model, self._path, self._how = model, path, how

    def begin(self) -> None:
        self.telling = Telling(self._model.transcriber(self._how), FileSound(self._path))

    def found(self) -> Transcription | Exception | None:
        """The transcription or an error; None while it is unfinished."""
        if self.telling is None or not self.telling.ended:
            return None
        return self.telling.error or self.telling.transcription()


def _go_on(sounds: list[_Heard]) -> list[Transcription | Exception | None]:
    """In the model's thread: some more tokens of each, in shared steps, until one recording is finished."""
    failed: dict[_Heard, Exception] = {}
    for sound in sounds:
        if sound.telling is None:
            try:
                sound.begin()
            except Exception as error:  # of this recording; the others continue
                failed[sound] = error
    tellings = [sound.telling for sound in sounds if sound.telling is not None]
    for _ in range(_SYMBOLS if tellings else 0):
        tell_on(tellings)
        if any(telling.ended for telling in tellings):
            break
    return [failed.get(sound) or sound.found() for sound in sounds]


def _asked(form: FormData, task: Task) -> _Form:
    """The parsed form. StatusError for unknown fields and invalid values."""
    for field, value in form.multi_items():
        neutral = _NEUTRAL.get(field)
        if not value or (neutral is not None and neutral.accepts(value, {})):
            continue
        if neutral is not None:
            told = f"{field} is {str(value)[:_LONGEST]!r}, but {neutral.reason}"
            raise StatusError(400, told, field, "unsupported")
        if field not in (*_FIELDS, _PLAIN_GRANULARITIES):
            told = f"unknown field {field[:_LONGEST]!r}; {nearest(field, _FIELDS)}"
            raise StatusError(400, told, field[:_LONGEST], "unknown_field")
    file = form.get("file")
    if not isinstance(file, UploadFile):
        raise StatusError(400, "the form has no file; send the audio in the field file", "file")
    texts = {name: _text(form, name) for name in _FIELDS if name not in ("file", _GRANULARITIES)}
    answer = texts["response_format"] or "json"
    if answer not in get_args(AnswerFormat):
        remedy = nearest(answer, get_args(AnswerFormat))
        raise StatusError(400, f"unknown response_format {answer[:_LONGEST]!r}; {remedy}", "response_format")
    granularities = form.getlist(_GRANULARITIES) + form.getlist(_PLAIN_GRANULARITIES) or ["segment"]
    if not all(each in ("word", "segment") for each in granularities):
        raise StatusError(400, "unknown timestamp_granularities; use word or segment", _GRANULARITIES)
    if "word" in granularities and answer != "verbose_json":
        raise StatusError(400, f"{answer} has no word timestamps; use response_format verbose_json", _GRANULARITIES)
    how = Transcribing(texts["language"] or None, task, initial=texts["prompt"] or "", words="word" in granularities)
    if temperature := _temperature(texts["temperature"]):  # 0: start there, and raise it for uncertain text
        how = replace(how, temperatures=(temperature,))
    return _Form(file, texts["model"] or "", how, cast(AnswerFormat, answer), cast(list[str], granularities))


def _text(form: FormData, name: str) -> str | None:
    values = form.getlist(name)
    if len(values) > 1 or not all(isinstance(value, str) for value in values):
        raise StatusError(400, f"the field {name} must be one string; send it once", name)
    return cast(str, values[0]) if values else None


def _temperature(text: str | None) -> float:
    try:
        value = float(text or 0)
    except ValueError:
        value = math.nan
    if not 0 <= value <= _HOTTEST:
        raise StatusError(
            400, f"temperature is {(text or '')[:_LONGEST]!r}; use a number from 0 to {_HOTTEST:g}", "temperature"
        )
    return value


def _verbose(found: Transcription, asked: _Form) -> VerboseTranscript:
    segments = [
        SpokenSegment(
            number, round(100 * s.start), s.start, s.end, s.text, s.tokens, s.temperature, s.avg_logprob,
            s.compression_ratio, s.no_speech_prob,
        )
        for number, s in enumerate(found.segments)
    ]  # fmt: skip
    words = [
        SpokenWord(word.word.strip(), word.start, word.end, word.probability, word.word)
        for s in found.segments
        for word in s.words
    ]
    wanted = asked.granularities
    return VerboseTranscript(
        asked.how.task,
        found.language,
        found.duration,
        found.text,
        segments if "segment" in wanted else None,
        words if "word" in wanted else None,
    )


ENDPOINTS = (
    Endpoint("POST", "/v1/audio/transcriptions", transcribe, "the text of a recording", FormData, VerboseTranscript),
    Endpoint("POST", "/v1/audio/translations", translate, "a recording as English text", FormData, VerboseTranscript),
)
