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
from headway.received import opened, shown

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

KEY = "HEADWAY_API_KEY"  # the environment variable with the default key
_SECONDS = 600.0  # timeout without any data
_ANSWER = 1 << 29  # most bytes of a response
_EVENT = 1 << 22  # most bytes of a streamed event
_REFUSAL = 1 << 16  # most bytes of an error
_FILE = 1 << 30  # most bytes of an image or a sound


def connect(url: str, api_key: str | None = None, model: str | None = None) -> RemoteModel:
    """Connect to a model on the server at `url`, such as http://127.0.0.1:8000; its methods run on the server.

    api_key: the server's API key; None uses the environment variable HEADWAY_API_KEY if it is set.
    model: the model's name on the server; None if the server has only one.

    Raises UserError if the server does not answer or refuses the key, and for an unknown model.
    """
    server = _Remote(url, api_key or os.environ.get(KEY))
    known = server.asked("GET", "/v1/models", None, lambda said: {each["id"]: _Known.of(each) for each in said["data"]})
    if model is None and len(known) != 1:
        raise UserError(f"{url} has {len(known)} models; pass the name of one: {', '.join(sorted(known)[:100])}")
    name = next(iter(known)) if model is None else model
    if name not in known:
        raise UserError(f"{url} has no model {name[:100]!r}; {nearest(name, known)}")
    return RemoteModel(server, known[name])


class RemoteModel:
    """The model that `connect` returns, with methods of `headway.Model` that run on a server. The server's errors are
    raised as UserError, also for verbs that its model does not support. Files are read locally and uploaded; the
    server opens none.

    `name`, `kind`, `verbs`, `context` (tokens, None for no limit) and `parameters` describe the model; `reads` lists
    the kinds of its inputs: texts, images, sounds.
    """

    def __init__(self, server: _Remote, known: _Known) -> None:
        self._server = server
        self.name, self.kind, self.verbs, self.reads, self.context, self.parameters = known
        self.thresholds: dict[str, float] = {}  # set by `classify`; see `headway.Model.thresholds`
        self.beyond: list[str] = []  # always empty; the server logs unexpected inputs

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
        asked = _writing(max_new_tokens, temperature, top_k, top_p, min_p, repetition_penalty, stop, seed)
        texts = self._asked("/v1/completions", {"prompt": prompts, **asked}, _texts)
        return texts[0] if isinstance(prompts, str) else texts

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
        """Stream the continuation of a prompt in chunks. The arguments are those of `generate`."""
        asked = _writing(max_new_tokens, temperature, top_k, top_p, min_p, repetition_penalty, stop, seed)
        return self._streamed("/v1/completions", {"prompt": prompt, **asked}, lambda choice: choice["text"])

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
        told = [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)
        asked = _writing(max_new_tokens, temperature, top_k, top_p, min_p, repetition_penalty, stop, seed)
        read = lambda choice: choice["delta"].get("content", "")  # noqa: E731
        return self._streamed("/v1/chat/completions", {"messages": told, **asked}, read)

    def embed(
        self, items: str | Path | Iterable[str | Path], truncate: bool = False
    ) -> Float[Tensor, "D"] | Float[Tensor, "N D"]:
        """A unit-length vector for a text or an image file, Float[D], or for each of several, Float[N, D]."""
        import numpy as np
        import torch

        many, one = _listed(items)
        given = [self._image(item) if self._is_image(item) else str(item) for item in many]
        if not given:
            return torch.empty(0)

        def read(said: Any) -> Tensor:
            raw = b"".join(base64.b64decode(each["embedding"]) for each in said["data"])
            return torch.from_numpy(np.frombuffer(raw, "<f4").reshape(len(given), -1).astype(np.float32))

        asked = {"input": given, "encoding_format": "base64", "truncate": truncate}
        vectors = self._asked("/v1/embeddings", asked, read)
        return vectors[0] if one else vectors

    def classify(
        self, items: str | Path | tuple[str, str] | Iterable[str | Path | tuple[str, str]], truncate: bool = False
    ) -> dict[str, float] | list[dict[str, float]]:
        """The probability of each label, most probable first, for a text, a pair of texts (a tuple), an image file or a
        sound file, or for each of several. A regression model returns its prediction as "value". For a multi-label
        model this sets `thresholds`, the minimum probability for predicting each label.
        """
        pair = isinstance(items, tuple) and len(items) == 2 and "texts" in self.reads
        many, one = ([items], True) if pair else _listed(items)
        given = [self._sent(item) for item in many]
        if not given:
            return []
        said = self._asked("/v1/classify", {"items": given, "truncate": truncate}, lambda said: said)
        self.thresholds = said.get("thresholds", {})
        return said["result"][0] if one else said["result"]

    def rerank(
        self, query: str, documents: Texts, top_n: int | None = None, truncate: bool = False
    ) -> list[RankedDocument]:
        """Rank documents by their relevance to a query, most relevant first; see `headway.Model.rerank`."""
        from headway.domains.understanding import RankedDocument

        many = _listed(documents)[0]
        if not many:
            return []

        def read(said: Fields) -> list[RankedDocument]:
            places = [(one["index"], one["relevance_score"]) for one in said["results"]]
            return [RankedDocument(index, score, many[index]) for index, score in places]

        asked = {"query": query, "documents": many, "truncate": truncate}
        return self._asked("/v1/rerank", asked if top_n is None else {**asked, "top_n": top_n}, read)

    def tag(self, texts: str | Iterable[str | Texts], truncate: bool = False) -> TaggedWords | list[TaggedWords]:
        """The words, tags and entities of a text, or of each of several."""
        from headway.domains.understanding import TaggedWords
        from headway.metrics import EntitySpan

        def read(said: Fields) -> TaggedWords:
            return TaggedWords(said["words"], said["tags"], [EntitySpan(**span) for span in said["entities"]])

        many, one = _listed(texts)
        given = [text if isinstance(text, str) else list(text) for text in many]
        return self._answers("tag", "texts", given, one, read, truncate=truncate)

    def fill(self, text: str | Texts, top: int = 5) -> list[list[Candidate]] | list[list[list[Candidate]]]:
        """The `top` most probable tokens for each mask of a text, or of each of several texts."""
        from headway.domains.masked import Candidate

        many, one = _listed(text)
        read = lambda masks: [[Candidate(**each) for each in mask] for mask in masks]  # noqa: E731
        return self._answers("fill", "text", many, one, read, top=top)

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
        many, one = _listed(lines)
        search = {"beam": beam, "length_penalty": length_penalty, "n_best": n_best}
        read = lambda found: [(text, score) for text, score in found] if scores else found  # noqa: E731
        how = {**search, "temperature": temperature, "seed": seed, "scores": scores or None}
        return self._answers("translate", "lines", many, one, read, **how)

    def caption(
        self,
        images: str | Path | Iterable[str | Path],
        beam: int = 4,
        length_penalty: float = 0.6,
        n_best: int | None = None,
    ) -> str | list[str] | list[list[str]]:
        """Caption an image file, or each of several; with `n_best`, return a list of the best captions per image."""
        many, one = _listed(images)
        given = [self._image(image) for image in many]
        return self._answers(
            "caption", "images", given, one, beam=beam, length_penalty=length_penalty, n_best=n_best
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

        (seen, one), said = _listed(images), texts if isinstance(texts, str) else list(texts)
        sent = [self._image(image) for image in seen]
        forms = templates if isinstance(templates, str) else list(templates)
        asked = {"images": sent[0] if one else sent, "texts": said, "templates": forms, "truncate": truncate}
        read = lambda said: Matches(*(torch.tensor(said["result"][name]) for name in Matches._fields))  # noqa: E731
        return self._asked("/v1/match", asked, read)

    def score(self, texts: str | Texts, sources: str | Texts | None = None) -> list[float] | list[list[float]]:
        """The log probability of each token of a text, or of each of several, in nats."""
        asked = {"texts": texts if isinstance(texts, str) else list(texts)}
        if sources is not None:
            asked["sources"] = sources if isinstance(sources, str) else list(sources)
        return self._asked("/v1/score", asked, lambda said: said["result"])

    def transcribe(
        self,
        sound: str | Path | Iterable[str | Path],
        language: str | None = None,
        task: str = "transcribe",
        prompt: str = "",
        words: bool = False,
    ) -> Transcription | list[Transcription]:
        """Transcribe a sound file, or each of several, with timestamps; see `headway.Model.transcribe`."""
        if task not in ("transcribe", "translate"):
            raise UserError(f"unknown task {task!r}; use transcribe or translate")
        form = [("model", self.name), ("response_format", "verbose_json"), ("prompt", prompt)]
        form += [("timestamp_granularities[]", "segment")] + [("timestamp_granularities[]", "word")] * words
        path = "/v1/audio/transcriptions" if task == "transcribe" else "/v1/audio/translations"
        if language is not None:
            form.append(("language", language))
        many, one = _listed(sound)
        found = [self._server.sent(path, form, Path(file), _transcription) for file in many]
        return found[0] if one else found

    def _answers(
        self,
        verb: str,
        field: str,
        given: Sequence[Any],
        one: bool,
        read: Callable[[Any], Any] = lambda said: said,
        **settings: object,
    ) -> Any:
        """The result of a verb for each item, parsed from JSON by `parse`."""
        if not given:
            return []
        asked = {name: value for name, value in settings.items() if value is not None}
        found = self._asked(
            f"/v1/{verb}", {field: list(given), **asked}, lambda said: [read(each) for each in said["result"]]
        )
        return found[0] if one else found

    def _asked(self, path: str, body: Fields, read: Callable[[Any], T]) -> T:
        return self._server.asked("POST", path, {"model": self.name, **body}, read)

    def _streamed(self, path: str, body: Fields, read: Callable[[Any], str]) -> Iterator[str]:
        """The chunks of text that `parse` extracts from the choices of each event."""
        return self._server.streamed(path, {"model": self.name, **body, "stream": True}, read)

    def _is_image(self, item: object) -> bool:
        """Whether an item is an image; for models of texts and images, a string that is a path is the file."""
        return "images" in self.reads and ("texts" not in self.reads or Path(str(item)).is_file())

    def _image(self, item: object) -> str:
        return _data_url(Path(str(item)), "image")

    def _sent(self, item: Any) -> Any:
        if "texts" in self.reads:
            return list(item) if isinstance(item, tuple) else item
        return self._image(item) if "images" in self.reads else _data_url(Path(str(item)), "audio")


class _Known(NamedTuple):
    """A server's description of a model."""

    name: str
    kind: str
    verbs: list[str]
    reads: list[str]
    context: int | None
    parameters: int

    @classmethod
    def of(cls, said: Fields) -> _Known:
        return cls(said["id"], *(said[name] for name in cls._fields[1:]))


class _Remote:
    """Requests to one server, each on its own connection, so threads can share it."""

    def __init__(self, url: str, key: str | None) -> None:
        try:
            parts = urlsplit(url)
            self._host, self._port = parts.hostname or "", parts.port
        except ValueError as error:
            raise UserError(f"{shown(url)!r} is not a URL ({error}); use one such as http://127.0.0.1:8000") from None
        if parts.scheme not in ("http", "https") or not self._host or parts.query or parts.username:
            raise UserError(f"{shown(url)!r} is not the URL of a server; use one such as http://127.0.0.1:8000")
        self._url, self._base = url, quote(parts.path.rstrip("/").removesuffix("/v1"), safe="/%")
        self._connection = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        if key is not None and not (key.isascii() and key.isprintable()):
            raise UserError("the API key contains characters that a header cannot have; check it")
        self._headers = {} if key is None else {"Authorization": f"Bearer {key}"}

    def asked(self, method: str, path: str, body: Fields | None, read: Callable[[Any], T]) -> T:
        """Send a request, and parse the JSON response."""
        raw = None if body is None else json.dumps(body).encode()
        return self._whole(self._answer(method, path, raw, "application/json"), read)

    def sent(self, path: str, form: Sequence[tuple[str, str]], file: Path, read: Callable[[Any], T]) -> T:
        """Upload a form with a file, and parse the JSON response."""
        mark = secrets.token_hex(16)
        parts = [f'--{mark}\r\nContent-Disposition: form-data; name="{k}"\r\n\r\n{v}\r\n' for k, v in form]
        name = "".join(each if each.isalnum() or each in "-_. " else "_" for each in file.name)
        head = f'--{mark}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n'
        raw = "".join((*parts, head, "Content-Type: application/octet-stream\r\n\r\n")).encode() + _read(file)
        raw += f"\r\n--{mark}--\r\n".encode()
        return self._whole(self._answer("POST", path, raw, f"multipart/form-data; boundary={mark}"), read)

    def streamed(self, path: str, body: Fields, read: Callable[[Any], str]) -> Iterator[str]:
        """Stream what `parse` extracts from each choice of the response's events. A refused request raises here, before
        the first event.
        """
        return self._parts(self._answer("POST", path, json.dumps(body).encode(), "application/json"), read)

    def _parts(self, answer: HTTPResponse, read: Callable[[Any], str]) -> Iterator[str]:
        with answer, self._telling():
            while line := answer.readline(_EVENT):
                name, _, data = line.decode().strip().partition(": ")
                if name != "data":
                    continue
                if data == "[DONE]":
                    return
                part = json.loads(data)
                if "error" in part:
                    raise UserError(str(part["error"]["message"]))
                yield from filter(None, map(read, part["choices"]))
        raise UserError(f"the response of {self._url} is incomplete; try again")

    def _whole(self, answer: HTTPResponse, read: Callable[[Any], T]) -> T:
        with answer, self._telling():
            raw = answer.read(_ANSWER + 1)
            if len(raw) > _ANSWER:
                raise UserError(f"the response of {self._url} has more than {_ANSWER:,} bytes; request less at once")
            return read(json.loads(raw))

    def _answer(self, method: str, path: str, body: bytes | None, kind: str) -> HTTPResponse:
        """A successful response, which closes its connection when it is closed."""
        connection = self._connection(self._host, self._port, timeout=_SECONDS)
        headers = {**self._headers, "Connection": "close", **({} if body is None else {"Content-Type": kind})}
        with self._telling():
            connection.request(method, self._base + path, body, headers)
            answer = connection.getresponse()
        if answer.status == 200:
            return answer
        with answer, self._telling():
            raw = answer.read(_REFUSAL)
        try:
            message = str(json.loads(raw)["error"]["message"])
        except (ValueError, KeyError, TypeError):
            message = f"{self._url} answers with status {answer.status}; pass the URL of a headway server"
        raise UserError(message)

    @contextmanager
    def _telling(self) -> Iterator[None]:
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
                f"{self._url} does not answer with headway's API ({error}); pass the URL of a headway server"
            ) from None


def _writing(
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
    found = {
        "max_tokens": max_new_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "stop": stop if isinstance(stop, str) else list(stop),
        "seed": seed,
    }
    return {name: value for name, value in found.items() if value is not None}


def _texts(said: Fields) -> list[str]:
    """The texts of a completion response, in order."""
    return [each["text"] for each in sorted(said["choices"], key=lambda each: each["index"])]


def _listed(given: Any) -> tuple[list[Any], bool]:
    """The items as a list, and whether the argument was a single item. Raises UserError for other types."""
    if isinstance(given, (str, Path)):
        return [given], True
    if not isinstance(given, Iterable):
        raise UserError(f"the input is a {type(given).__name__}; pass a text, a file, or a list of these")
    return list(given), False


def _data_url(file: Path, kind: str) -> str:
    guessed = mimetypes.guess_type(file.name)[0] or ""
    named = guessed if guessed.startswith(f"{kind}/") else f"{kind}/octet-stream"
    return f"data:{named};base64,{base64.b64encode(_read(file)).decode()}"


def _read(file: Path) -> bytes:
    """The content of a file. Raises UserError unless it is a regular file, and if it is too large for a server."""
    with opened(file) as stream:
        raw = stream.read(_FILE + 1)
    if len(raw) > _FILE:
        raise UserError(f"{shown(file)} has more than {_FILE:,} bytes; split it into parts")
    return raw


def _transcription(said: Fields) -> Transcription:
    """A transcript with its segments; each has the words that start before its end and after the previous segment."""
    from headway.domains.audio import Segment, Transcription, Word

    words = [Word(each["text"], each["start"], each["end"], each["probability"]) for each in said.get("words") or ()]
    segments, names = [], [field.name for field in fields(Segment) if field.name != "words"]
    for each in said.get("segments") or ():
        own = [word for word in words if word.start < each["end"]]
        words = words[len(own) :]
        segments.append(Segment(**{name: each[name] for name in names}, words=tuple(own)))
    return Transcription(said["text"], said.get("language"), said["duration"], segments)
