"""`connect`: a model of a server, with the methods of one that is here."""

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

KEY = "HEADWAY_API_KEY"  # of the environment, where none is given
_SECONDS = 600.0  # without a byte, after which an answer is given up
_ANSWER = 1 << 29  # bytes of an answer
_EVENT = 1 << 22  # bytes of a part of one
_REFUSAL = 1 << 16  # bytes of an error
_FILE = 1 << 30  # bytes of an image or a sound


def connect(url: str, api_key: str | None = None, model: str | None = None) -> RemoteModel:
    """A model of the server at `url`, such as http://127.0.0.1:8000, which computes all that its methods give.

    api_key: what the server asks for; None takes HEADWAY_API_KEY of the environment, where it is set.
    model: its name at the server; None is the only one there.

    Raises UserError where no server answers, where it refuses, and for a model that it does not have.
    """
    server = _Remote(url, api_key or os.environ.get(KEY))
    known = server.asked("GET", "/v1/models", None, lambda said: {each["id"]: _Known.of(each) for each in said["data"]})
    if model is None and len(known) != 1:
        raise UserError(f"{url} has {len(known)} models; name one of them: {', '.join(sorted(known)[:100])}")
    name = next(iter(known)) if model is None else model
    if name not in known:
        raise UserError(f"{url} has no model {name[:100]!r}; {nearest(name, known)}")
    return RemoteModel(server, known[name])


class RemoteModel:
    """What `connect` returns: methods of `headway.Model`, answered by a server. What its model cannot do raises the
    server's UserError; so do its other refusals. Files are read here and sent; the server opens none.

    `name`, `kind`, `verbs`, `context` (tokens, None for no limit) and `parameters` are the model's; `reads` says of
    what its inputs are: texts, images, sounds.
    """

    def __init__(self, server: _Remote, known: _Known) -> None:
        self._server = server
        self.name, self.kind, self.verbs, self.reads, self.context, self.parameters = known
        self.thresholds: dict[str, float] = {}  # by `classify`; see `headway.Model.thresholds`
        self.beyond: list[str] = []  # what was beyond training is in the server's log

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
        """The continuation of a prompt, or of each of many; see `headway.Model.generate`."""
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
        """The continuation of a prompt, in pieces as they are generated. The arguments are those of `generate`."""
        asked = _writing(max_new_tokens, temperature, top_k, top_p, min_p, repetition_penalty, stop, seed)
        return self._streamed("/v1/completions", {"prompt": prompt, **asked}, lambda choice: choice["text"])

    def chat(
        self,
        messages: str | Sequence[Message],
        max_new_tokens: int = 200,
        temperature: float = 1.0,
        seed: int | None = None,
    ) -> str:
        """The model's reply to a conversation; see `headway.Model.chat`. One that outgrows the context is refused."""
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
        """The same as `chat`, in pieces as they are generated."""
        told = [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)
        asked = _writing(max_new_tokens, temperature, top_k, top_p, min_p, repetition_penalty, stop, seed)
        read = lambda choice: choice["delta"].get("content", "")  # noqa: E731
        return self._streamed("/v1/chat/completions", {"messages": told, **asked}, read)

    def embed(
        self, items: str | Path | Iterable[str | Path], truncate: bool = False
    ) -> Float[Tensor, "D"] | Float[Tensor, "N D"]:
        """A vector of unit length for a text or an image file, Float[D], or for each of many, Float[N, D]."""
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
        sound file, or for each of many; a number that is predicted is called "value". `thresholds` are the
        probabilities from which on labels are predicted, where a model predicts several at once.
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
        """The documents by their relevance to a query, the most relevant first; see `headway.Model.rerank`."""
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
        """The words of a text, the tag of each and the entities they spell; or those of each of many texts."""
        from headway.domains.understanding import TaggedWords
        from headway.metrics import EntitySpan

        def read(said: Fields) -> TaggedWords:
            return TaggedWords(said["words"], said["tags"], [EntitySpan(**span) for span in said["entities"]])

        many, one = _listed(texts)
        given = [text if isinstance(text, str) else list(text) for text in many]
        return self._answers("tag", "texts", given, one, read, truncate=truncate)

    def fill(self, text: str | Texts, top: int = 5) -> list[list[Candidate]] | list[list[list[Candidate]]]:
        """The `top` most probable tokens for each mask of a text, or of each of many texts."""
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
        """The translation of a line, or of each of many; with `n_best`, a list of the best ones for each."""
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
        """The best caption of an image file, or of each of many; with `n_best`, a list of the best ones for each."""
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
        """How well image files and texts go together; see `headway.Model.match`."""
        import torch

        from headway.domains.image_text import Matches

        (seen, one), said = _listed(images), texts if isinstance(texts, str) else list(texts)
        sent = [self._image(image) for image in seen]
        forms = templates if isinstance(templates, str) else list(templates)
        asked = {"images": sent[0] if one else sent, "texts": said, "templates": forms, "truncate": truncate}
        read = lambda said: Matches(*(torch.tensor(said["result"][name]) for name in Matches._fields))  # noqa: E731
        return self._asked("/v1/match", asked, read)

    def score(self, texts: str | Texts, sources: str | Texts | None = None) -> list[float] | list[list[float]]:
        """The log probability of each token of a text, or of each of many, in nats."""
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
        """The transcript of a sound file, or of each of many, with times; see `headway.Model.transcribe`."""
        if task not in ("transcribe", "translate"):
            raise UserError(f"task {task!r} is unknown; use transcribe or translate")
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
        """What a verb says of each item, as `read` makes it of JSON."""
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
        """The texts that `read` finds in the choices of each part."""
        return self._server.streamed(path, {"model": self.name, **body, "stream": True}, read)

    def _is_image(self, item: object) -> bool:
        """As here: where both are read, a text that is the path of a file is the file."""
        return "images" in self.reads and ("texts" not in self.reads or Path(str(item)).is_file())

    def _image(self, item: object) -> str:
        return _data_url(Path(str(item)), "image")

    def _sent(self, item: Any) -> Any:
        if "texts" in self.reads:
            return list(item) if isinstance(item, tuple) else item
        return self._image(item) if "images" in self.reads else _data_url(Path(str(item)), "audio")


class _Known(NamedTuple):
    """What a server says of a model."""

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
    """Requests to one server, each on a connection of its own, so that threads may share it."""

    def __init__(self, url: str, key: str | None) -> None:
        try:
            parts = urlsplit(url)
            self._host, self._port = parts.hostname or "", parts.port
        except ValueError as error:
            raise UserError(f"{shown(url)!r} is no URL ({error}); write it as http://127.0.0.1:8000") from None
        if parts.scheme not in ("http", "https") or not self._host or parts.query or parts.username:
            raise UserError(f"{shown(url)!r} is no URL of a server; write it as http://127.0.0.1:8000")
        self._url, self._base = url, quote(parts.path.rstrip("/").removesuffix("/v1"), safe="/%")
        self._connection = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        if key is not None and not (key.isascii() and key.isprintable()):
            raise UserError("the API key holds characters that no header can have; check it")
        self._headers = {} if key is None else {"Authorization": f"Bearer {key}"}

    def asked(self, method: str, path: str, body: Fields | None, read: Callable[[Any], T]) -> T:
        """What `read` makes of the answer to a request."""
        raw = None if body is None else json.dumps(body).encode()
        return self._whole(self._answer(method, path, raw, "application/json"), read)

    def sent(self, path: str, form: Sequence[tuple[str, str]], file: Path, read: Callable[[Any], T]) -> T:
        """What `read` makes of the answer to a form with a file."""
        mark = secrets.token_hex(16)
        parts = [f'--{mark}\r\nContent-Disposition: form-data; name="{k}"\r\n\r\n{v}\r\n' for k, v in form]
        name = "".join(each if each.isalnum() or each in "-_. " else "_" for each in file.name)
        head = f'--{mark}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n'
        raw = "".join((*parts, head, "Content-Type: application/octet-stream\r\n\r\n")).encode() + _read(file)
        raw += f"\r\n--{mark}--\r\n".encode()
        return self._whole(self._answer("POST", path, raw, f"multipart/form-data; boundary={mark}"), read)

    def streamed(self, path: str, body: Fields, read: Callable[[Any], str]) -> Iterator[str]:
        """What `read` finds in each choice of the parts of an answer, as they come. Refusals are raised here, before
        the first.
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
        raise UserError(f"the answer of {self._url} ends in its middle; ask again")

    def _whole(self, answer: HTTPResponse, read: Callable[[Any], T]) -> T:
        with answer, self._telling():
            raw = answer.read(_ANSWER + 1)
            if len(raw) > _ANSWER:
                raise UserError(f"the answer of {self._url} has more than {_ANSWER:,} bytes; ask for less at once")
            return read(json.loads(raw))

    def _answer(self, method: str, path: str, body: bytes | None, kind: str) -> HTTPResponse:
        """An answer that is no refusal, which closes its connection when it is closed."""
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
            message = f"{self._url} answers with status {answer.status}; give the URL of a server of headway"
        raise UserError(message)

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """Within, what goes wrong on the way is a UserError."""
        try:
            yield
        except (OSError, HTTPException) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise UserError(
                f"{self._url} does not answer ({reason}); start it with headway serve, or check it"
            ) from None
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(
                f"{self._url} answers what is not of this API ({error}); give the URL of a server of headway"
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
    """The settings of a text as a request has them; those that are not given are left to the server."""
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
    """The texts of an answer, in their order."""
    return [each["text"] for each in sorted(said["choices"], key=lambda each: each["index"])]


def _listed(given: Any) -> tuple[list[Any], bool]:
    """The items, and whether it was one thing. UserError for what is neither."""
    if isinstance(given, (str, Path)):
        return [given], True
    if not isinstance(given, Iterable):
        raise UserError(f"a {type(given).__name__} was given; give a text or a file, or a list of these")
    return list(given), False


def _data_url(file: Path, kind: str) -> str:
    guessed = mimetypes.guess_type(file.name)[0] or ""
    named = guessed if guessed.startswith(f"{kind}/") else f"{kind}/octet-stream"
    return f"data:{named};base64,{base64.b64encode(_read(file)).decode()}"


def _read(file: Path) -> bytes:
    """UserError for what is no plain file, and for one that no server would take."""
    with opened(file) as stream:
        raw = stream.read(_FILE + 1)
    if len(raw) > _FILE:
        raise UserError(f"{shown(file)} has more than {_FILE:,} bytes; cut it into parts")
    return raw


def _transcription(said: Fields) -> Transcription:
    """A transcript with its segments, each with those of the words that begin before it ends."""
    from headway.domains.audio import Segment, Transcription, Word

    words = [Word(each["text"], each["start"], each["end"], each["probability"]) for each in said.get("words") or ()]
    segments, names = [], [field.name for field in fields(Segment) if field.name != "words"]
    for each in said.get("segments") or ():
        own = [word for word in words if word.start < each["end"]]
        words = words[len(own) :]
        segments.append(Segment(**{name: each[name] for name in names}, words=tuple(own)))
    return Transcription(said["text"], said.get("language"), said["duration"], segments)
