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
from types import UnionType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, get_args, get_origin, get_type_hints
from urllib.parse import quote, urlsplit

from headway.app.verb_table import declaration
from headway.app.verbs import RemoteVerbs
from headway.errors import UserError, nearest
from headway.io.files import format_path, open_file, user_path
from headway.io.remote import UnavailableError

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float
    from torch import Tensor

    from headway.data.dialogues import Message
    from headway.domains.audio import Transcription
    from headway.domains.chess.games import ChessMove
    from headway.domains.forecast import Forecast
    from headway.domains.understanding import Answer, RankedDocument

T = TypeVar("T")
Texts = Iterable[str]
Fields = Mapping[str, Any]

KEY_VARIABLE = "HEADWAY_API_KEY"  # the environment variable with the default key
_TIMEOUT = 600.0  # seconds without any data
_MAX_RESPONSE = 1 << 29  # bytes per response
_MAX_EVENT = 1 << 22  # bytes per streamed event
_MAX_ERROR = 1 << 16  # bytes per error
_MAX_FILE = 1 << 30  # bytes per image or audio file
_UNAVAILABLE = (429, 502, 503, 504)  # statuses of a busy server, or of a proxy without one


def connect(url: str, api_key: str | None = None, model: str | None = None) -> RemoteModel:
    """Connect to a model on the server at `url`, such as http://127.0.0.1:8000; its methods run on the server.

    api_key: the server's API key; None uses the environment variable HEADWAY_API_KEY if it is set.
    model: the model's name on the server; None if the server has only one.

    Raises UserError if the server does not answer or refuses the key, and for an unknown model.
    """
    server = _ServerClient(url, api_key or os.environ.get(KEY_VARIABLE))
    fields = ("id", *_ModelInfo._fields[1:])
    models = server.request(
        "GET",
        "/v1/models",
        None,
        lambda response: {entry["id"]: _ModelInfo(*map(entry.__getitem__, fields)) for entry in response["data"]},
    )
    if model is None and len(models) != 1:
        raise UserError(f"{url} has {len(models)} models; pass the name of one: {', '.join(sorted(models)[:100])}")
    name = next(iter(models)) if model is None else model
    if name not in models:
        raise UserError(f"{url} has no model {name[:100]!r}; {nearest(name, models)}")
    return RemoteModel(server, models[name])


class RemoteModel(RemoteVerbs):
    """The model that `connect` returns, with methods of `headway.Model` that run on a server: `generate`, `stream`,
    `chat`, `classify`, `embed`, `rerank`, `answer`, `tag`, `fill`, `translate`, `caption`, `match`, `look`, `forecast`,
    `score`, `attention`, `lens`, `move` and `act` take the same arguments there. The server's errors are raised as
    UserError, also for verbs that its model does not support. Images, audio and tables are files, which are read
    locally and uploaded; the server opens none. The server rejects conversations that are longer than the context.

    `name`, `kind`, `verbs`, `context` (tokens, None for no limit) and `parameters` describe the model; `reads` lists
    the kinds of its inputs: texts, images, sounds.
    """

    def __init__(self, server: _ServerClient, info: _ModelInfo) -> None:
        self._server = server
        self.name, self.kind, self.verbs, self.reads, self.context, self.parameters = info
        self.thresholds: dict[str, float] = {}  # set by `classify`; see `headway.Model.thresholds`
        self.unexpected: list[str] = []  # always empty; the server logs unexpected inputs

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
        thinking_token_budget: int | None = None,
    ) -> Iterator[str]:
        """`chat`, streamed in chunks."""
        message_list = [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)
        settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
        settings |= {"repetition_penalty": repetition_penalty, "stop": stop, "seed": seed}
        settings["thinking_token_budget"] = thinking_token_budget
        fields = {"messages": message_list, **_sampling_fields(max_new_tokens, **settings), "stream": True}
        parse = lambda choice: choice["delta"].get("content", "")  # noqa: E731
        return self._server.stream("/v1/chat/completions", {"model": self.name, **fields}, parse)

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

    def _run_verb(self, verb: str, *args: Any, **kwargs: Any) -> Any:
        """The result of a verb. A method with an underscore before its name runs a verb with an endpoint of another
        API; all others have headway's own, which takes the arguments by name.
        """
        bound = declaration(verb).signature.bind(self, *args, **kwargs)
        bound.apply_defaults()
        arguments = dict(list(bound.arguments.items())[1:])
        if (method := getattr(self, f"_{verb}", None)) is not None:
            return method(**arguments)
        from headway.app.predictors import predictors

        name, inputs = next(iter(arguments.items()))
        is_pair = verb == "classify" and isinstance(inputs, tuple) and len(inputs) == 2 and "texts" in self.reads
        many, is_single = ([inputs], True) if is_pair else _as_list(inputs)
        items = []  # texts as they are, words and pairs as lists, and files as data: URLs
        for item in many:
            if name != "images" and "texts" in self.reads:
                items.append(item if isinstance(item, str) or not isinstance(item, Iterable) else list(item))
            elif isinstance(item, (str, Path)):
                is_image = name == "images" or "images" in self.reads
                items.append(_data_url(Path(item), "image" if is_image else "audio"))
            else:
                raise UserError(f"the input is a {type(item).__name__}; pass the path of an image or audio file")
        result_type = get_type_hints(next(predictors(verb)))["return"]
        alternatives = get_args(result_type)  # the results for one item and for several; last those with scores
        if alternatives and not items:
            return []
        others = {
            other: value if isinstance(value, str) or not isinstance(value, Iterable) else list(value)
            for other, value in arguments.items()
            if other != name and value is not None
        }
        item_type = alternatives[-2 if arguments.get("scores") else 0] if alternatives else None

        def parse(response: Fields) -> Any:
            if verb == "classify":
                self.thresholds = response.get("thresholds", {})
            result = response["result"]
            return [_decode(item, item_type) for item in result] if alternatives else _decode(result, result_type)

        fields = {name: items if alternatives or not is_single else items[0], **others}
        results = self._request(f"/v1/{verb}", fields, parse)
        return results[0] if alternatives and is_single else results

    def _generate(self, prompt: str | Texts, **sampling: Any) -> str | list[str]:
        prompts = prompt if isinstance(prompt, str) else list(prompt)
        if not prompts and isinstance(prompts, list):
            return []
        parse = lambda response: sorted(response["choices"], key=lambda choice: choice["index"])  # noqa: E731
        choices = self._request("/v1/completions", {"prompt": prompts, **_sampling_fields(**sampling)}, parse)
        texts = [choice["text"] for choice in choices]
        return texts[0] if isinstance(prompts, str) else texts

    def _stream(self, prompt: str, **sampling: Any) -> Iterator[str]:
        fields = {"model": self.name, "prompt": prompt, **_sampling_fields(**sampling), "stream": True}
        return self._server.stream("/v1/completions", fields, lambda choice: choice["text"])

    def _chat(self, messages: str | Sequence[Message], **settings: Any) -> str:
        return "".join(self.chat_stream(messages, **settings)).strip()

    def _embed(self, items: Any, truncate: bool, prompt: str | None) -> Float[Tensor, "D"] | Float[Tensor, "N D"]:
        many, is_single = _as_list(items)
        # For a model of texts and images, a string that is the path of a file is that image.
        is_image = lambda item: "images" in self.reads and ("texts" not in self.reads or Path(item).is_file())  # noqa: E731
        encoded = [_data_url(Path(item), "image") if is_image(str(item)) else str(item) for item in many]
        import numpy as np
        import torch

        if not encoded:
            return torch.empty(0)

        def parse(response: Any) -> Tensor:
            vector_bytes = b"".join(base64.b64decode(entry["embedding"]) for entry in response["data"])
            return torch.from_numpy(np.frombuffer(vector_bytes, "<f4").reshape(len(encoded), -1).astype(np.float32))

        fields = {"input": encoded, "encoding_format": "base64", "truncate": truncate, "prompt": prompt}
        vectors = self._request("/v1/embeddings", fields, parse)
        return vectors[0] if is_single else vectors

    def _rerank(
        self, query: str, documents: Texts, top_n: int | None, truncate: bool, instruction: str | None
    ) -> list[RankedDocument]:
        from headway.domains.understanding import RankedDocument

        many = _as_list(documents)[0]
        if not many:
            return []

        def parse(response: Fields) -> list[RankedDocument]:
            scores = [(entry["index"], entry["relevance_score"]) for entry in response["results"]]
            return [RankedDocument(index, score, many[index]) for index, score in scores]

        fields = {"query": query, "documents": many, "truncate": truncate, "top_n": top_n, "instruction": instruction}
        return self._request("/v1/rerank", fields, parse)

    def _answer(self, question: str, context: str | Texts, **settings: Any) -> Answer | list[Answer]:
        from headway.domains.understanding import Answer

        many, is_single = _as_list(context)
        if not many:
            return []
        parse = lambda response: [Answer(**entry) for entry in response["result"]]  # noqa: E731
        answers = self._request("/v1/answer", {"question": question, "context": many, **settings}, parse)
        return answers[0] if is_single else answers

    def _forecast(self, data: Any, steps: int | None) -> list[Forecast]:
        from headway.data.input_files import find_files, read_blocks
        from headway.data.table_files import TABLE_TYPES
        from headway.domains.forecast import Forecast
        from headway.predict.in_memory_data import data_paths

        tables: list[str] | None = None
        with data_paths(data, "forecast") as paths:
            if paths is not None:
                names = [paths] if isinstance(paths, (str, Path)) else paths
                files = [file for name in names for file in find_files(user_path(name), tuple(TABLE_TYPES))]
                tables = [_encode_url(b"".join(read_blocks(file)), TABLE_TYPES[file.kind]) for file in files]
        parse = lambda response: [Forecast(**entry) for entry in response["result"]]  # noqa: E731
        return self._request("/v1/forecast", {"data": tables, "steps": steps}, parse)

    def _move(self, **arguments: Any) -> ChessMove:
        from headway.domains.chess.games import ChessMove

        parse = lambda response: _decode({**response["move"], "game": response["game"]}, ChessMove)  # noqa: E731
        moves = [arguments["moves"]] if isinstance(arguments["moves"], str) else list(arguments["moves"])
        return self._request("/v1/chess/move", {**arguments, "moves": moves}, parse)

    def _act(self, **arguments: Any) -> int | np.ndarray:
        import numpy as np

        parse = lambda response: response["action"]  # noqa: E731
        action = self._request("/v1/act", _to_json(arguments), parse)
        return action if isinstance(action, int) else np.array(action, np.float32)

    def _request(self, path: str, body: Fields, parse: Callable[[Any], T]) -> T:
        return self._server.request("POST", path, {"model": self.name, **body}, parse)


class _ModelInfo(NamedTuple):
    """A server's description of a model."""

    name: str
    kind: str
    verbs: list[str]
    reads: list[str]
    context: int | None
    parameters: int


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
        raise UnavailableError(message) if response.status in _UNAVAILABLE else UserError(message)

    @contextmanager
    def _user_errors(self) -> Iterator[None]:
        """Turn errors of the connection or the response into UserErrors."""
        try:
            yield
        except (OSError, HTTPException) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise UnavailableError(
                f"{self._url} does not answer ({reason}); check the URL, or start the server with headway serve"
            ) from None
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(
                f"{self._url} does not speak headway's API ({error}); pass the URL of a headway server"
            ) from None


def _sampling_fields(max_new_tokens: int, stop: str | Texts, **settings: float | None) -> dict[str, Any]:
    """The sampling settings as request fields, without those left to the server."""
    fields = {"max_tokens": max_new_tokens, "stop": stop if isinstance(stop, str) else list(stop), **settings}
    return {name: value for name, value in fields.items() if value is not None}


def _to_json(value: Any) -> Any:
    """Observations as JSON values: arrays and tensors as lists."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(name): _to_json(part) for name, part in value.items()}
    return [_to_json(part) for part in value] if isinstance(value, (list, tuple)) else value


def _decode(value: Any, kind: Any) -> Any:
    """A JSON value as a verb's result type: lists, tuples, named tuples, dataclasses, arrays and tensors."""
    if get_origin(kind) is list:
        return [_decode(item, get_args(kind)[0]) for item in value]
    if get_origin(kind) is UnionType:  # of None and a type
        return None if value is None else _decode(value, get_args(kind)[0])
    if get_origin(kind) is tuple:
        parts = get_args(kind)
        return tuple(
            _decode(item, part) for item, part in zip(value, parts[:1] * len(value) if ... in parts else parts)
        )
    if get_origin(kind) is dict:
        return {name: _decode(item, get_args(kind)[1]) for name, item in value.items()}
    if hasattr(kind, "_fields") or hasattr(kind, "__dataclass_fields__"):
        return kind(**{name: _decode(value[name], part) for name, part in get_type_hints(kind).items()})
    if hasattr(kind, "array_type"):
        import numpy as np
        import torch

        if kind.array_type is np.ndarray:
            return np.array(value, "float32" if "float32" in kind.dtypes else kind.dtypes[0])
        return torch.tensor(value)
    return value


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
    return _encode_url(_read_file(file), mime_type)


def _encode_url(raw: bytes, mime_type: str) -> str:
    return f"data:{mime_type};base64,{base64.b64encode(raw).decode()}"


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
