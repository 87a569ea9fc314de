"""Audio to text: the OpenAI API's /v1/audio/transcriptions and /v1/audio/translations."""

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
from headway.domains.audio import (
    Task,
    Transcription,
    TranscriptionOptions,
    TranscriptionStream,
    advance_together,
    format_transcript,
)
from headway.errors import nearest
from headway.serve.body_reader import Neutral
from headway.serve.http_errors import StatusError
from headway.serve.interfaces import Context, Endpoint
from headway.serve.media import client_sound, with_client_name

AnswerFormat = Literal["json", "text", "srt", "verbose_json", "vtt"]
_GRANULARITIES, _PLAIN_GRANULARITIES = "timestamp_granularities[]", "timestamp_granularities"
_FIELDS = ("file", "model", "language", "prompt", "response_format", "temperature", _GRANULARITIES)
_NEUTRAL = {
    "stream": Neutral(("false", "False"), "transcripts are not streamed; leave it out"),
    "chunking_strategy": Neutral(("auto",), "audio is always split as the model expects; leave it out"),
    "include[]": Neutral((), "log probabilities are per segment, in verbose_json; leave it out"),
    "top_p": Neutral(("1", "1.0"), "transcription uses beam search; leave it out"),
}
_MAX_TEMPERATURE = 1.0  # maximum temperature, as in OpenAI's service
_TOKENS_PER_CALL = 16  # tokens per recording and call, after which others may join
_MAX_NAME = 100  # characters of a file name in messages


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
    """The text of a recording of `duration` seconds; `language` is a code such as en. Words and segments are present if
    requested.
    """

    task: str
    language: str | None
    duration: float
    text: str
    segments: list[SpokenSegment] | None = None
    words: list[SpokenWord] | None = None


class _TranscriptionRequest(NamedTuple):
    """A parsed form."""

    file: UploadFile
    model: str
    options: TranscriptionOptions
    answer_format: AnswerFormat
    granularities: Sequence[str]


async def transcribe(form: FormData, context: Context) -> msgspec.Struct | Response:
    """The text of a recording, in its language."""
    return await _answer(form, "transcribe", context)


async def translate(form: FormData, context: Context) -> msgspec.Struct | Response:
    """The text of a recording, in English."""
    return await _answer(form, "translate", context)


async def _answer(form: FormData, task: Task, context: Context) -> msgspec.Struct | Response:
    try:
        request = _parse_form(form, task)
        transcription = await _transcribe(request, context)
    finally:
        await form.close()
    if request.answer_format in ("srt", "vtt"):
        kind = "text/vtt" if request.answer_format == "vtt" else "application/x-subrip"
        return PlainTextResponse(format_transcript(transcription, cast(Any, request.answer_format)), media_type=kind)
    if request.answer_format == "text":
        return PlainTextResponse(f"{transcription.text}\n")
    if request.answer_format == "json":
        return TranscriptBody(transcription.text)
    segments = [
        SpokenSegment(
            number, round(100 * s.start), s.start, s.end, s.text, s.tokens, s.temperature, s.avg_logprob,
            s.compression_ratio, s.no_speech_prob,
        )
        for number, s in enumerate(transcription.segments)
    ]  # fmt: skip
    words = [
        SpokenWord(word.word.strip(), word.start, word.end, word.probability, word.word)
        for segment in transcription.segments
        for word in segment.words
    ]
    return VerboseTranscript(
        request.options.task,
        transcription.language,
        transcription.duration,
        transcription.text,
        segments if "segment" in request.granularities else None,
        words if "word" in request.granularities else None,
    )


async def _transcribe(request: _TranscriptionRequest, context: Context) -> Transcription:
    name = (request.file.filename or "file")[:_MAX_NAME]
    async with context.served.using(request.model) as ready:
        predictor(ready.model, "transcribe")  # UserError for a model that does not transcribe
        with NamedTemporaryFile(prefix="headway-") as file:  # private to this user; decoders need a file
            await asyncio.to_thread(shutil.copyfileobj, request.file.file, file)
            file.flush()
            with with_client_name(Path(file.name), name):
                job = _TranscriptionJob(ready.model, Path(file.name), request.options)
                outcome = await ready.batcher.run_job(_advance, "sounds", job)
                if isinstance(outcome, Exception):
                    raise outcome
                return outcome


class _TranscriptionJob:
    """A recording whose transcription starts when its turn comes. Used in the model's thread."""

    def __init__(self, model: Model, path: Path, options: TranscriptionOptions) -> None:
        self.stream: TranscriptionStream | None = None
        self._model, self._path, self._options = model, path, options

    def start(self) -> None:
        self.stream = TranscriptionStream(self._model.transcriber(self._options), client_sound(self._path))

    def outcome(self) -> Transcription | Exception | None:
        """The transcription or an error; None while it is unfinished."""
        if self.stream is None or not self.stream.is_finished:
            return None
        return self.stream.error or self.stream.transcription()


def _advance(jobs: list[_TranscriptionJob]) -> list[Transcription | Exception | None]:
    """In the model's thread: generate more tokens for each, in shared steps, until one recording is finished."""
    failed: dict[_TranscriptionJob, Exception] = {}
    for job in jobs:
        if job.stream is None:
            try:
                job.start()
            except Exception as error:  # only this recording fails; the others continue
                failed[job] = error
    streams = [job.stream for job in jobs if job.stream is not None]
    for _ in range(_TOKENS_PER_CALL if streams else 0):
        advance_together(streams)
        if any(stream.is_finished for stream in streams):
            break
    return [failed.get(job) or job.outcome() for job in jobs]


def _parse_form(form: FormData, task: Task) -> _TranscriptionRequest:
    """The parsed form. StatusError for unknown fields and invalid values."""
    for field, value in form.multi_items():
        neutral = _NEUTRAL.get(field)
        if not value or (neutral is not None and neutral.accepts(value, {})):
            continue
        if neutral is not None:
            message = f"{field} is {str(value)[:_MAX_NAME]!r}, but {neutral.reason}"
            raise StatusError(400, message, field, "unsupported")
        if field not in (*_FIELDS, _PLAIN_GRANULARITIES):
            message = f"unknown field {field[:_MAX_NAME]!r}; {nearest(field, _FIELDS)}"
            raise StatusError(400, message, field[:_MAX_NAME], "unknown_field")
    file = form.get("file")
    if not isinstance(file, UploadFile):
        raise StatusError(400, "the form has no file; send the audio in the field file", "file")
    fields: dict[str, str | None] = {}
    for name in _FIELDS:
        values = form.getlist(name)
        if name not in ("file", _GRANULARITIES):
            if len(values) > 1 or not all(isinstance(value, str) for value in values):
                raise StatusError(400, f"the field {name} must be one string; send it once", name)
            fields[name] = cast(str, values[0]) if values else None
    answer_format = fields["response_format"] or "json"
    if answer_format not in get_args(AnswerFormat):
        remedy = nearest(answer_format, get_args(AnswerFormat))
        raise StatusError(400, f"unknown response_format {answer_format[:_MAX_NAME]!r}; {remedy}", "response_format")
    granularities = form.getlist(_GRANULARITIES) + form.getlist(_PLAIN_GRANULARITIES) or ["segment"]
    if not all(granularity in ("word", "segment") for granularity in granularities):
        raise StatusError(400, "unknown timestamp_granularities; use word or segment", _GRANULARITIES)
    if "word" in granularities and answer_format != "verbose_json":
        raise StatusError(
            400, f"{answer_format} has no word timestamps; use response_format verbose_json", _GRANULARITIES
        )
    options = TranscriptionOptions(
        fields["language"] or None, task, initial=fields["prompt"] or "", words="word" in granularities
    )
    try:
        temperature = float(fields["temperature"] or 0)
    except ValueError:
        temperature = math.nan
    if not 0 <= temperature <= _MAX_TEMPERATURE:
        given = (fields["temperature"] or "")[:_MAX_NAME]
        message = f"temperature is {given!r}; use a number from 0 to {_MAX_TEMPERATURE:g}"
        raise StatusError(400, message, "temperature")
    if temperature:  # 0: start at 0, and raise it for uncertain text
        options = replace(options, temperatures=(temperature,))
    return _TranscriptionRequest(
        file, fields["model"] or "", options, cast(AnswerFormat, answer_format), cast(list[str], granularities)
    )


ENDPOINTS = (
    Endpoint("POST", "/v1/audio/transcriptions", transcribe, "the text of a recording", FormData, VerboseTranscript),
    Endpoint("POST", "/v1/audio/translations", translate, "a recording as English text", FormData, VerboseTranscript),
)
