"""`connect`: a model on a server, with the methods of a local one."""

from __future__ import annotations

import base64
import json
import mimetypes
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from urllib.parse import quote, urlsplit

from headway.errors import UserError, nearest
from headway.io.files import format_path, open_file

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from headway.data.dialogues import Message
    from headway.domains.audio import Transcription
    from headway.domains.image_text import Matches
    from headway.domains.masked import Candidate
    from headway.domains.understanding import RankedDocument, TaggedWords

T = TypeVar("T")
Texts = Iterable[str]
Fields = Mapping[str, Any]

KEY_VARIABLE = "HEADWAY_API_KEY"  # the environment variable with the default key
_TIMEOUT = 600.0  # seconds without any data
_MAX_RESPONSE = 1 << 29  # bytes per response
_MAX_EVENT = 1 << 22  # bytes per streamed event
_MAX_ERROR = 1 << 16  # bytes per error
_MAX_FILE = 1 << 30  # bytes per image or audio file


def connect(url: str, api_key: str | None = None, model: str | None = None) -> RemoteModel:
    """Connect to a model on the server at `url`, such as http://127.0.0.1:8000; its methods run on the server.

    api_key: the server's API key; None uses the environment variable HEADWAY_API_KEY if it is set.
    model: the model's name on the server; None if the server has only one.

    Raises UserError if the server does not answer or refuses the key, and for an unknown model.
    """
    server = _ServerClient(url, api_key or os.environ.get(KEY_VARIABLE))
    models = server.request(
        "GET",
        "/v1/models",
        None,
        lambda response: {entry["id"]: _ModelInfo.from_json(entry) for entry in response["data"]},
    )
    if model is None and len(models) != 1:
        raise UserError(f"{url} has {len(models)} models; pass the name of one: {', '.join(sorted(models)[:100])}")
    name = next(iter(models)) if model is None else model
    if name not in models:
        raise UserError(f"{url} has no model {name[:100]!r}; {nearest(name, models)}")
    return RemoteModel(server, models[name])


class RemoteModel:
    """The model that `connect` returns, with methods of `headway.Model` that run on a server. The server's errors are
    raised as UserError, including for verbs that its model does not support. Files are read locally and uploaded; the
    server opens none.

    `name`, `kind`, `verbs`, `context` (tokens, None for no limit) and `parameters` describe the model; `reads` lists
    the kinds of its inputs: texts, images, sounds.
    """

    def __init__(self, server: _ServerClient, info: _ModelInfo) -> None:
        self._server = server
        self.name, self.kind, self.verbs, self.reads, self.context, self.parameters = info
        self.thresholds: dict[str, float] = {}  # set by `classify`; see `headway.Model.thresholds`
        self.unexpected: list[str] = []  # always empty; the server logs unexpected inputs

    def generate(
        self,
        prompt: str | Texts,
        max_new_tokens: int = 100,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        stop: str | Texts = (),
        seed: int | None = None,
    ) -> str | list[str]:
        """Continue a prompt, or each of several; see `headway.Model.generate`."""
        prompts = prompt if isinstance(prompt, str) else list(prompt)
        if not prompts and isinstance(prompts, list):
            return []
        sampling = _sampling_fields(max_new_tokens, temperature, top_k, top_p, min_p, repetition_penalty, stop, seed)
        completions = self._request("/v1/completions", {"prompt": prompts, **sampling}, _completion_texts)
        return completions[0] if isinstance(prompts, str) else completions

    def stream(
        self,
        prompt: str,
        max_new_tokens: int = 100,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        stop: str | Texts = (),
        seed: int | None = None,
    ) -> Iterator[str]:
        """Stream the continuation of a prompt in chunks. Takes the arguments of `generate`."""
        sampling = _sampling_fields(max_new_tokens, temperature, top_k, top_p, min_p, repetition_penalty, stop, seed)
        return self._stream("/v1/completions", {"prompt": prompt, **sampling}, lambda choice: choice["text"])

    def chat(
        self,
        messages: str | Sequence[Message],
        max_new_tokens: int = 200,
        temperature: float = 1.0,
        seed: int | None = None,
    ) -> str:
        """The reply to a conversation; see `headway.Model.chat`. The server rejects one longer than the context."""
        return "".join(self.chat_stream(messages, max_new_tokens, temperature, seed=seed)).strip()

    def chat_stream(
        self,
        messages: str | Sequence[Message],
        max_new_tokens: int = 200,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        stop: str | Texts = (),
        seed: int | None = None,
    ) -> Iterator[str]:
        """`chat`, streamed in chunks."""
        message_list = [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)
        sampling = _sampling_fields(max_new_tokens, temperature, top_k, top_p, min_p, repetition_penalty, stop, seed)
        parse = lambda choice: choice["delta"].get("content", "")  # noqa: E731
        return self._stream("/v1/chat/completions", {"messages": message_list, **sampling}, parse)

    def embed(
        self, items: str | Path | Iterable[str | Path], truncate: bool = False
    ) -> Float[Tensor, "D"] | Float[Tensor, "N D"]:
        """A unit-length vector for a text or an image file, Float[D], or for each of several, Float[N, D]."""
        import numpy as np
        import torch

        many, is_single = _as_list(items)
        encoded = [self._encode_image(item) if self._is_image(item) else str(item) for item in many]
        if not encoded:
            return torch.empty(0)

        def parse(response: Any) -> Tensor:
            vector_bytes = b"".join(base64.b64decode(entry["embedding"]) for entry in response["data"])
            return torch.from_numpy(np.frombuffer(vector_bytes, "<f4").reshape(len(encoded), -1).astype(np.float32))

        fields = {"input": encoded, "encoding_format": "base64", "truncate": truncate}
        vectors = self._request("/v1/embeddings", fields, parse)
        return vectors[0] if is_single else vectors

    def classify(
        self, items: str | Path | tuple[str, str] | Iterable[str | Path | tuple[str, str]], truncate: bool = False
    ) -> dict[str, float] | list[dict[str, float]]:
        """The probability of each label, most probable first, for a text, a text pair (a tuple), an image file or an
        audio file, or for each of several. A regression model returns its prediction as "value". For a multi-label
        model this sets `thresholds`, the minimum probability for predicting each label.
        """
        is_pair = isinstance(items, tuple) and len(items) == 2 and "texts" in self.reads
        many, is_single = ([items], True) if is_pair else _as_list(items)
        encoded = [self._encode_item(item) for item in many]
        if not encoded:
            return []
        response = self._request("/v1/classify", {"items": encoded, "truncate": truncate}, lambda response: response)
        self.thresholds = response.get("thresholds", {})
        return response["result"][0] if is_single else response["result"]

    def rerank(
        self, query: str, documents: Texts, top_n: int | None = None, truncate: bool = False
    ) -> list[RankedDocument]:
        """Rank documents by their relevance to a query, most relevant first; see `headway.Model.rerank`."""
        from headway.domains.understanding import RankedDocument

        many = _as_list(documents)[0]
        if not many:
            return []

        def parse(response: Fields) -> list[RankedDocument]:
            scores = [(entry["index"], entry["relevance_score"]) for entry in response["results"]]
            return [RankedDocument(index, score, many[index]) for index, score in scores]

        fields = {"query": query, "documents": many, "truncate": truncate}
        return self._request("/v1/rerank", fields if top_n is None else {**fields, "top_n": top_n}, parse)

    def tag(self, texts: str | Iterable[str | Texts], truncate: bool = False) -> TaggedWords | list[TaggedWords]:
        """The words, tags and entities of a text, or of each of several."""
        from headway.domains.understanding import TaggedWords
        from headway.metrics import EntitySpan

        def parse(response: Fields) -> TaggedWords:
            return TaggedWords(
                response["words"], response["tags"], [EntitySpan(**span) for span in response["entities"]]
            )

        many, is_single = _as_list(texts)
        encoded = [text if isinstance(text, str) else list(text) for text in many]
        return self._request_each("tag", "texts", encoded, is_single, parse, truncate=truncate)

    def fill(self, text: str | Texts, top: int = 5) -> list[list[Candidate]] | list[list[list[Candidate]]]:
        """The `top` most probable tokens for each mask of a text, or of each of several texts."""
        from headway.domains.masked import Candidate

        many, is_single = _as_list(text)
        parse = lambda masks: [[Candidate(**candidate) for candidate in mask] for mask in masks]  # noqa: E731
        return self._request_each("fill", "text", many, is_single, parse, top=top)

    def translate(
        self,
        lines: str | Texts,
        beam: int | None = None,
        length_penalty: float | None = None,
        n_best: int | None = None,
        temperature: float | None = None,
        seed: int | None = None,
        scores: bool = False,
    ) -> Any:
        """Translate a line, or each of several; with `n_best`, return a list of the best translations per line."""
        many, is_single = _as_list(lines)
        search = {"beam": beam, "length_penalty": length_penalty, "n_best": n_best}
        parse = lambda pairs: [(text, score) for text, score in pairs] if scores else pairs  # noqa: E731
        fields = {**search, "temperature": temperature, "seed": seed, "scores": scores or None}
        return self._request_each("translate", "lines", many, is_single, parse, **fields)

    def caption(
        self,
        images: str | Path | Iterable[str | Path],
        beam: int = 4,
        length_penalty: float = 0.6,
        n_best: int | None = None,
    ) -> str | list[str] | list[list[str]]:
        """Caption an image file, or each of several; with `n_best`, return a list of the best captions per image."""
        many, is_single = _as_list(images)
        encoded = [self._encode_image(image) for image in many]
        return self._request_each(
            "caption", "images", encoded, is_single, beam=beam, length_penalty=length_penalty, n_best=n_best
        )  # fmt: skip

    def match(
        self,
        images: str | Path | Iterable[str | Path],
        texts: str | Texts,
        templates: str | Texts = (),
        truncate: bool = False,
    ) -> Matches:
        """Match image files with texts; see `headway.Model.match`."""
        import torch

        from headway.domains.image_text import Matches

        (image_list, is_single), text_list = _as_list(images), texts if isinstance(texts, str) else list(texts)
        encoded = [self._encode_image(image) for image in image_list]
        template_list = templates if isinstance(templates, str) else list(templates)
        fields = {
            "images": encoded[0] if is_single else encoded,
            "texts": text_list,
            "templates": template_list,
            "truncate": truncate,
        }
        parse = lambda text_list: Matches(*(torch.tensor(text_list["result"][name]) for name in Matches._fields))  # noqa: E731
        return self._request("/v1/match", fields, parse)

    def score(self, texts: str | Texts, sources: str | Texts | None = None) -> list[float] | list[list[float]]:
        """The log probability of each token of a text, or of each of several, in nats."""
        fields = {"texts": texts if isinstance(texts, str) else list(texts)}
        if sources is not None:
            fields["sources"] = sources if isinstance(sources, str) else list(sources)
        return self._request("/v1/score", fields, lambda response: response["result"])

    def transcribe(
        self,
        sound: str | Path | Iterable[str | Path],
        language: str | None = None,
        task: str = "transcribe",
        prompt: str = "",
        words: bool = False,
    ) -> Transcription | list[Transcription]:
        """Transcribe an audio file, or each of several, with timestamps; see `headway.Model.transcribe`."""
        if task not in ("transcribe", "translate"):
            raise UserError(f"unknown task {task!r}; use transcribe or translate")
        form_fields = [("model", self.name), ("response_format", "verbose_json"), ("prompt", prompt)]
        form_fields += [("timestamp_granularities[]", "segment")] + [("timestamp_granularities[]", "word")] * words
        path = "/v1/audio/transcriptions" if task == "transcribe" else "/v1/audio/translations"
        if language is not None:
            form_fields.append(("language", language))
        many, is_single = _as_list(sound)
        transcriptions = [self._server.upload(path, form_fields, Path(file), _parse_transcription) for file in many]
        return transcriptions[0] if is_single else transcriptions

    def _request_each(
        self,
        verb: str,
        field: str,
        items: Sequence[Any],
        is_single: bool,
        parse: Callable[[Any], Any] = lambda said: said,
        **settings: object,
    ) -> Any:
        """The result of a verb for each item, parsed from JSON by `parse`."""
        if not items:
            return []
        fields = {name: value for name, value in settings.items() if value is not None}
        results = self._request(
            f"/v1/{verb}", {field: list(items), **fields}, lambda response: [parse(item) for item in response["result"]]
        )
        return results[0] if is_single else results

    def _request(self, path: str, body: Fields, parse: Callable[[Any], T]) -> T:
        return self._server.request("POST", path, {"model": self.name, **body}, parse)

    def _stream(self, path: str, body: Fields, parse: Callable[[Any], str]) -> Iterator[str]:
        """The chunks of text that `parse` extracts from the choices of each event."""
        return self._server.stream(path, {"model": self.name, **body, "stream": True}, parse)

    def _is_image(self, item: object) -> bool:
        """Whether an item is an image; for models of text and images, a string that is a path is that file."""
        return "images" in self.reads and ("texts" not in self.reads or Path(str(item)).is_file())

    def _encode_image(self, item: object) -> str:
        return _data_url(Path(str(item)), "image")

    def _encode_item(self, item: Any) -> Any:
        if "texts" in self.reads:
            return list(item) if isinstance(item, tuple) else item
        return self._encode_image(item) if "images" in self.reads else _data_url(Path(str(item)), "audio")


class _ModelInfo(NamedTuple):
    """A server's description of a model."""

    name: str
    kind: str
    verbs: list[str]
    reads: list[str]
    context: int | None
    parameters: int

    @classmethod
    def from_json(cls, response: Fields) -> _ModelInfo:
        return cls(response["id"], *(response[name] for name in cls._fields[1:]))


class _ServerClient:
    """Requests to one server, each on its own connection, so threads can share it."""

    def __init__(self, url: str, key: str | None) -> None:
        try:
            parts = urlsplit(url)
            self._host, self._port = parts.hostname or "", parts.port
        except ValueError as error:
            raise UserError(
                f"{format_path(url)!r} is not a URL ({error}); use one such as http://127.0.0.1:8000"
            ) from None
        if parts.scheme not in ("http", "https") or not self._host or parts.query or parts.username:
            raise UserError(f"{format_path(url)!r} is not the URL of a server; use one such as http://127.0.0.1:8000")
        self._url, self._base = url, quote(parts.path.rstrip("/").removesuffix("/v1"), safe="/%")
        self._connection = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        if key is not None and not (key.isascii() and key.isprintable()):
            raise UserError("the API key contains characters that are not allowed in a header; check it")
        self._headers = {} if key is None else {"Authorization": f"Bearer {key}"}

    def request(self, method: str, path: str, body: Fields | None, parse: Callable[[Any], T]) -> T:
        """Send a request, and parse the JSON response."""
        encoded = None if body is None else json.dumps(body).encode()
        return self._read_json(self._send(method, path, encoded, "application/json"), parse)

    def upload(self, path: str, form_fields: Sequence[tuple[str, str]], file: Path, parse: Callable[[Any], T]) -> T:
        """Upload a form with a file, and parse the JSON response."""
        boundary = secrets.token_hex(16)
        parts = [f'--{boundary}\r\nContent-Disposition: form-data; name="{k}"\r\n\r\n{v}\r\n' for k, v in form_fields]
        name = "".join(character if character.isalnum() or character in "-_. " else "_" for character in file.name)
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n'
        raw = "".join((*parts, head, "Content-Type: application/octet-stream\r\n\r\n")).encode() + _read_file(file)
        raw += f"\r\n--{boundary}--\r\n".encode()
        return self._read_json(self._send("POST", path, raw, f"multipart/form-data; boundary={boundary}"), parse)

    def stream(self, path: str, body: Fields, parse: Callable[[Any], str]) -> Iterator[str]:
        """Stream what `parse` extracts from each choice of the response's events. A refused request raises here, before
        the first event.
        """
        return self._read_events(self._send("POST", path, json.dumps(body).encode(), "application/json"), parse)

    def _read_events(self, response: HTTPResponse, parse: Callable[[Any], str]) -> Iterator[str]:
        with response, self._user_errors():
            while line := response.readline(_MAX_EVENT):
                name, _, data = line.decode().strip().partition(": ")
                if name != "data":
                    continue
                if data == "[DONE]":
                    return
                event = json.loads(data)
                if "error" in event:
                    raise UserError(str(event["error"]["message"]))
                yield from filter(None, map(parse, event["choices"]))
        raise UserError(f"the response from {self._url} is incomplete; try again")

    def _read_json(self, response: HTTPResponse, parse: Callable[[Any], T]) -> T:
        with response, self._user_errors():
            raw = response.read(_MAX_RESPONSE + 1)
            if len(raw) > _MAX_RESPONSE:
                raise UserError(
                    f"the response from {self._url} has more than {_MAX_RESPONSE:,} bytes; request less at once"
                )
            return parse(json.loads(raw))

    def _send(self, method: str, path: str, body: bytes | None, content_type: str) -> HTTPResponse:
        """A successful response, which closes its connection when it is closed."""
        connection = self._connection(self._host, self._port, timeout=_TIMEOUT)
        headers = {**self._headers, "Connection": "close", **({} if body is None else {"Content-Type": content_type})}
        with self._user_errors():
            connection.request(method, self._base + path, body, headers)
            response = connection.getresponse()
        if response.status == 200:
            return response
        with response, self._user_errors():
            raw = response.read(_MAX_ERROR)
        try:
            message = str(json.loads(raw)["error"]["message"])
        except (ValueError, KeyError, TypeError):
            message = f"{self._url} answered with status {response.status}; pass the URL of a headway server"
        raise UserError(message)

    @contextmanager
    def _user_errors(self) -> Iterator[None]:
        """Turn errors of the connection or the response into UserErrors."""
        try:
            yield
        except (OSError, HTTPException) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise UserError(
                f"{self._url} does not answer ({reason}); check the URL, or start the server with headway serve"
            ) from None
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(
                f"{self._url} does not speak headway's API ({error}); pass the URL of a headway server"
            ) from None


def _sampling_fields(
    max_new_tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float,
    min_p: float,
    repetition_penalty: float,
    stop: str | Texts,
    seed: int | None,
) -> dict[str, Any]:
    """The sampling settings as request fields, without those left to the server."""
    fields = {
        "max_tokens": max_new_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "stop": stop if isinstance(stop, str) else list(stop),
        "seed": seed,
    }
    return {name: value for name, value in fields.items() if value is not None}


def _completion_texts(response: Fields) -> list[str]:
    """The texts of a completion response, in order."""
    return [choice["text"] for choice in sorted(response["choices"], key=lambda choice: choice["index"])]


def _as_list(items: Any) -> tuple[list[Any], bool]:
    """The items as a list, and whether the argument was a single item. Raises UserError for other types."""
    if isinstance(items, (str, Path)):
        return [items], True
    if not isinstance(items, Iterable):
        raise UserError(f"the input is a {type(items).__name__}; pass a string, a file, or a list of these")
    return list(items), False


def _data_url(file: Path, kind: str) -> str:
    guessed_type = mimetypes.guess_type(file.name)[0] or ""
    mime_type = guessed_type if guessed_type.startswith(f"{kind}/") else f"{kind}/octet-stream"
    return f"data:{mime_type};base64,{base64.b64encode(_read_file(file)).decode()}"


def _read_file(file: Path) -> bytes:
    """The content of a file. Raises UserError if it is not a regular file, or too large for a server."""
    with open_file(file) as stream:
        raw = stream.read(_MAX_FILE + 1)
    if len(raw) > _MAX_FILE:
        raise UserError(f"{format_path(file)} has more than {_MAX_FILE:,} bytes; split it into parts")
    return raw


def _parse_transcription(response: Fields) -> Transcription:
    """A transcript with its segments; each has the words that start before its end and after the previous segment."""
    from headway.domains.audio import Segment, Transcription, Word

    words = [
        Word(entry["text"], entry["start"], entry["end"], entry["probability"]) for entry in response.get("words") or ()
    ]
    segments, names = [], [field.name for field in fields(Segment) if field.name != "words"]
    for entry in response.get("segments") or ():
        segment_words = [word for word in words if word.start < entry["end"]]
        words = words[len(segment_words) :]
        segments.append(Segment(**{name: entry[name] for name in names}, words=tuple(segment_words)))
    return Transcription(response["text"], response.get("language"), response["duration"], segments)
