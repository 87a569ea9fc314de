"""What stands between the tests of llama.cpp's server and ours: it starts `headway serve`, and says in the words of the
OpenAI API what the tests ask in llama.cpp's own.

The tests' own `utils` stays as it is, but for the start and the end of a server (`take_over`). Whatever is not named
here is handed on as it came, and refused by headway where it is strange.
"""

from __future__ import annotations

import json
import re
import select
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.client import HTTPConnection, HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar
from urllib.parse import urlsplit

import numpy as np

from live import TEMPLATES, Options, Servers, owner
from measure import data_folder

LEAST_CONTEXT = 512
_HEADS = ("authorization", "origin", "content-type", "access-control-request-method", "access-control-request-headers")
_RENAMED = {"n_predict": "max_tokens", "ignore_eos": "ignore_end", "repeat_penalty": "repetition_penalty"}
# What says how llama.cpp goes about it, and nothing of the answer.
_OF_LLAMA_CPP = {"cache_prompt", "id_slot", "model", "return_tokens", "response_fields", "n_probs", "verbose"}
_OF_LLAMA_CPP |= {"backend_sampling", "timings_per_token", "return_progress", "speculative.p_min"}
_ENDS = {"add_generation_prompt", "continue_final_message"}


def take_over(utils: ModuleType, servers: Servers) -> None:
    """Let the tests' servers be ours."""

    def start(process: Any, timeout_seconds: int = 60) -> None:
        shim = Shim(process, servers)
        process.process = shim
        utils.server_instances.add(process)

    def stop(process: Any) -> None:
        utils.server_instances.discard(process)
        if process.process is not None:
            process.process.close()
            process.process = None

    utils.ServerProcess.start, utils.ServerProcess.stop = start, stop
    utils.ServerPreset.load_all = staticmethod(lambda: None)
    utils.download_file = lambda url, output_file_path=None: "stories260K"  # a model guesses for itself as well


class Shim:
    """One server as a test sees it: llama.cpp's port and words before a `headway serve`."""

    def __init__(self, process: Any, servers: Servers) -> None:
        self.process = process
        slots = process.n_slots or 1
        shared = slots if process.kv_unified else 1
        self.context = (process.n_ctx or LEAST_CONTEXT) // slots * shared
        encoder = process.server_embeddings or process.server_reranking
        template = TEMPLATES.get(process.chat_template or "chatml", process.chat_template)
        if process.chat_template_file:
            template = Path(process.chat_template_file).read_text(encoding="utf-8")
        words = ("--slots", str(slots))
        if process.model_draft:
            words += ("--draft", str(data_folder() / "weights/stories260K.bin"))
        kind = "minilm" if encoder else "stories"
        options = Options(kind, "" if encoder else template, self.context, words, process.api_key)
        self.running = servers.of(options, process.model_alias or "model")
        self.key = process.api_key
        if self.key is None:
            self.owns = owner(self.running.owners)
            self.running.owners += 1
        today = time.strftime("%d %b %Y")
        self.values = {"enable_thinking": process.reasoning != "off", "date_string": today}  # which llama.cpp gives
        self.ids: dict[str, int] = {}
        if not encoder:
            vocabulary = json.loads((self.running.model / "tokenizer.json").read_text())["model"]["vocab"]
            for piece, id in vocabulary.items():
                spelt = re.sub("<0x(..)>", lambda found: chr(int(found[1], 16)), piece).replace("\u2581", " ")
                self.ids.setdefault(spelt, id)
        handler = type("Handler", (Translator,), {"shim": self})
        self.listening = ThreadingHTTPServer((process.server_host, process.server_port), handler)
        self.listening.daemon_threads = True
        threading.Thread(target=self.listening.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self.listening.shutdown()
        self.listening.server_close()

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """What headway says to a question of the shim's own."""
        connection = HTTPConnection("127.0.0.1", self.running.port, timeout=120)
        heads = {"Authorization": f"Bearer {self.key or self.owns}", "Content-Type": "application/json"}
        connection.request(method, path, None if body is None else json.dumps(body), heads)
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        return answer.status, json.loads(text) if answer.headers["content-type"] == "application/json" else text

    def counted(self, name: str) -> int:
        page = self.ask("GET", "/metrics")[1]
        found = re.search(rf"^headway_scheduler_{name}(?:_total)?{{.*}} (\S+)$", page, re.MULTILINE)
        return int(float(found[1])) if found else 0

    def tokens(self, text: str) -> list[int]:
        return self.ask("POST", "/tokenize", {"content": text})[1]["tokens"]

    def writing(self, body: dict[str, Any]) -> dict[str, Any]:
        """What is asked of a text, in the words of the OpenAI API, with llama.cpp's defaults."""
        process, found = self.process, {"top_k": 40, "top_p": 0.95, "min_p": 0.05}
        found |= {"temperature": process.temperature, "seed": process.seed}
        found |= {_RENAMED.get(name, name): value for name, value in body.items() if name not in _OF_LLAMA_CPP}
        most = found.get("max_tokens", process.n_predict)
        found["max_tokens"] = self.context if most is None or most < 0 else most or 1
        if found.get("logit_bias"):
            found["logit_bias"] = self._biases(found["logit_bias"])
        if (grammar := found.pop("grammar", None)) is not None:
            found["response_format"] = {"type": "lark", "lark": grammar.replace("root ::=", "start:")}
        form = found.get("response_format")
        schema = found.pop("json_schema", form.get("schema") if isinstance(form, dict) else None)
        if schema is not None:
            found["response_format"] = {"type": "json_schema", "json_schema": {"name": "asked", "schema": schema}}
        return found

    def _biases(self, given: Any) -> dict[str, float]:
        pairs = given.items() if isinstance(given, dict) else given
        found = {}
        for name, bias in pairs:
            whole = isinstance(name, int) or name.isdecimal()
            for id in [int(name)] if whole else self.tokens(name):
                found[str(id)] = bias
        return found

    def refused(self, status: int, body: Any) -> Any:
        """An error in llama.cpp's words, where it has its own."""
        error = body.get("error") if isinstance(body, dict) else None
        if error and error.get("code") == "context_length_exceeded":
            read, context = (int(each.replace(",", "")) for each in re.findall(r"\d[\d,]*\d", error["message"])[:2])
            error |= {"type": "exceed_context_size_error", "n_prompt_tokens": read, "n_ctx": context, "code": status}
        return body


class Translator(BaseHTTPRequestHandler):
    """Each request of a test, in our words to headway, and the answer in llama.cpp's."""

    shim: ClassVar[Shim]
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        process, path = self.shim.process, urlsplit(self.path).path
        if path == "/props":
            settings = {"n_ctx": self.shim.context, "params": {"seed": process.seed}}
            told = {"model_path": str(self.shim.running.model), "total_slots": process.n_slots}
            self.whole(200, {**told, "default_generation_settings": settings})
        elif path == "/slots" and not process.server_slots:
            self.whole(501, {"error": {"message": "slots were not asked for", "type": "not_supported_error"}})
        elif path == "/slots":
            busy = self.shim.counted("running")
            slots = range(process.n_slots)
            self.whole(200, [{"id": n, "n_ctx": self.shim.context, "is_processing": n < busy} for n in slots])
        else:
            self.relay("/v1/models" if path == "/models" else self.path, None)

    def do_OPTIONS(self) -> None:
        self.relay(self.path, None)

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers.get("content-length", 0)))
        path = urlsplit(self.path).path
        if path in ("/completion", "/completions"):
            self.completion(json.loads(raw))
        elif path == "/v1/completions":
            self.relay(path, self.shim.writing(json.loads(raw)), _told)
        elif path in ("/chat/completions", "/v1/chat/completions"):
            self.chat(json.loads(raw))
        elif path == "/chat/completions/input_tokens":
            status, body = self.shim.ask("POST", "/apply-template", json.loads(raw))
            self.whole(status, {"input_tokens": len(body["tokens"])} if status == 200 else body)
        elif path == "/rerank":
            self.rerank(json.loads(raw))
        elif path.startswith("/slots/") and self.path.endswith("action=erase"):
            self.shim.owns = owner(self.shim.running.owners)  # who knows nothing yet
            self.shim.running.owners += 1
            self.whole(200, {"id_slot": 0, "n_erased": 0})
        else:
            body = json.loads(raw) if raw else None
            if isinstance(body, dict):
                body.pop("model", None)
            if path == "/apply-template":
                body["chat_template_kwargs"] = self.shim.values
            self.relay(path, body)

    def completion(self, body: dict[str, Any]) -> None:
        """llama.cpp's own /completion: one answer a prompt, and what was done for it."""
        prompt = body.get("prompt")
        several = isinstance(prompt, list) and not any(isinstance(each, int) for each in prompt)
        prompts = [self.plain(each) for each in (prompt if several else [prompt])]
        asked = {**self.shim.writing(body), "logprobs": body.get("n_probs", 0)}
        if not body.get("stream"):
            answers = []
            for each in prompts:
                status, found = self.upstream("/v1/completions", {**asked, "prompt": each})
                if status != 200:
                    self.whole(status, self.shim.refused(status, found))
                    return
                answers.append(self.told(found["choices"][0], found["usage"], body, asked, each))
            self.whole(200, answers if several else answers[0])
            return
        asked |= {"prompt": prompts[0], "stream": True, "stream_options": {"include_usage": True}}
        last, written = {}, []
        for event in self.streamed("/v1/completions", asked):
            for choice in event["choices"]:
                written.append(choice)
                ids = (
                    [self.shim.ids.get(each, 0) for each in choice["logprobs"]["tokens"]] if choice["logprobs"] else []
                )
                if ids:
                    part = {"content": choice["text"], "tokens": ids, "stop": False, "index": 0}
                    if "n_probs" in body:
                        part["completion_probabilities"] = self.likely(choice["logprobs"])
                    self.event(part)
                last = choice
            if event.get("usage"):
                told = self.told({**last, "text": ""}, event["usage"], body, asked, prompts[0])
                self.event({**told, "tokens": []})

    def plain(self, prompt: Any) -> Any:
        """A prompt as the OpenAI API has it: text and ids that are mixed become ids."""
        if isinstance(prompt, dict) and set(prompt) == {"prompt_string"}:
            return prompt["prompt_string"]
        if isinstance(prompt, list) and any(isinstance(each, str) for each in prompt):
            return [id for each in prompt for id in (self.shim.tokens(each) if isinstance(each, str) else [each])]
        return prompt

    def told(
        self, choice: dict[str, Any], usage: dict[str, Any], body: dict[str, Any], asked: dict[str, Any], prompt: Any
    ) -> dict[str, Any]:  # fmt: skip
        """An answer in llama.cpp's form."""
        written, most = usage["completion_tokens"], asked["max_tokens"]
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        spelt = choice["logprobs"]["tokens"] if choice["logprobs"] else []
        found = {
            "content": choice["text"],
            "tokens": [self.shim.ids.get(each, 0) for each in spelt] if body.get("return_tokens") else [],
            "stop": True,
            "stop_type": "limit" if choice["finish_reason"] == "length" else "eos",
            "truncated": choice["finish_reason"] == "length" and written < max(most, body.get("n_predict", 0)),
            "has_new_line": "\n" in choice["text"],
            "prompt": prompt,
            "tokens_predicted": written,
            "generation_settings": {**asked, "n_predict": most, "adaptive_target": None, "adaptive_decay": None},
            "timings": {"prompt_n": usage["prompt_tokens"] - cached, "cache_n": cached, "predicted_n": written},
        }
        found["generation_settings"]["logit_bias"] = [{"bias": None}] if body.get("ignore_eos") else []
        if "n_probs" in body and choice["logprobs"]:
            found["completion_probabilities"] = self.likely(choice["logprobs"])
        return found

    def likely(self, told: dict[str, Any]) -> list[dict[str, Any]]:
        def one(token: str, logprob: float) -> dict[str, Any]:
            return {
                "id": self.shim.ids.get(token, 0), "token": token, "logprob": logprob, "bytes": list(token.encode())
            }  # fmt: skip

        rows = zip(told["tokens"], told["token_logprobs"], told["top_logprobs"])
        return [
            {**one(token, value), "top_logprobs": [one(*each) for each in top.items()]} for token, value, top in rows
        ]

    def chat(self, body: dict[str, Any]) -> None:
        asked, more = {**self.shim.writing(body), "chat_template_kwargs": self.shim.values}, {}
        last = body["messages"][-1] if isinstance(body.get("messages"), list) and body["messages"] else None
        if isinstance(last, dict) and last.get("role") == "assistant" and not _ENDS & asked.keys():
            asked["continue_final_message"] = True  # which llama.cpp does unasked
        if asked.get("stream"):
            asked.setdefault("stream_options", {"include_usage": True})
        if body.get("verbose", self.shim.process.debug):
            asked_with = {name: asked[name] for name in ("messages", "chat_template_kwargs", *_ENDS) if name in asked}
            status, found = self.shim.ask("POST", "/apply-template", asked_with)
            more = {"__verbose": {"prompt": found["prompt"]}} if status == 200 else {}

        def told(event: dict[str, Any]) -> dict[str, Any]:
            if usage := event.get("usage"):
                cached = usage["prompt_tokens_details"]["cached_tokens"]
                event["timings"] = {"prompt_n": usage["prompt_tokens"] - cached, "cache_n": cached}
                event["timings"] |= {"predicted_n": usage["completion_tokens"]}
            for choice in event.get("choices", ()):
                if choice.get("delta", {}).get("role") == "assistant":
                    choice["delta"]["content"] = None
            return _told({**event, **more} if "choices" in event else event)

        self.relay("/v1/chat/completions", asked, told)

    def rerank(self, body: dict[str, Any]) -> None:
        """By the angle between the vectors of the query and of each document."""
        documents = body.get("texts", body.get("documents"))
        if not isinstance(documents, list) or not all(isinstance(each, str) for each in documents):
            documents = None
        status, found = self.upstream("/v1/embeddings", {"input": documents and [body["query"], *documents]})
        if status != 200:
            self.whole(status, found)
            return
        query, *others = (np.array(each["embedding"]) for each in found["data"])
        scored = sorted(((float(query @ other), n) for n, other in enumerate(others)), reverse=True)
        scored = scored[: body.get("top_n", len(scored))]
        if "texts" in body:
            self.whole(200, [{"index": n, "score": score} for score, n in scored])
        else:
            told = [{"index": n, "relevance_score": score} for score, n in scored]
            self.whole(200, {"results": told, "usage": found["usage"]})

    def relay(self, path: str, body: Any, told: Any = None) -> None:
        """A request handed on, and its answer, each part of which `told` may say anew."""
        if isinstance(body, dict) and body.get("stream"):
            for event in self.streamed(path, body):
                self.event(told(event) if told else event)
            return
        answer = self.sent(path, body)
        text = answer.read()
        if told and answer.status == 200:
            text = json.dumps(told(json.loads(text))).encode()
        elif answer.status == 400:
            text = json.dumps(self.shim.refused(400, json.loads(text))).encode()
        self.heads(answer.status, answer.headers["content-type"], len(text), answer)
        self.wfile.write(text)

    def sent(self, path: str, body: Any) -> HTTPResponse:
        """What headway answers; the question is taken back where the test leaves meanwhile."""
        connection = HTTPConnection("127.0.0.1", self.shim.running.port, timeout=120)
        heads = {name: self.headers[name] for name in _HEADS if name in self.headers}
        if self.shim.key is None:
            heads["authorization"] = f"Bearer {self.shim.owns}"
        connection.request(self.command, path, None if body is None else json.dumps(body), heads)
        assert connection.sock is not None
        ready, _, _ = select.select([connection.sock, self.connection], [], [])
        if connection.sock not in ready:
            connection.close()
            raise ConnectionAbortedError
        return connection.getresponse()

    def upstream(self, path: str, body: Any) -> tuple[int, Any]:
        answer = self.sent(path, body)
        return answer.status, json.loads(answer.read())

    def streamed(self, path: str, body: Any) -> Iterator[dict[str, Any]]:
        answer = self.sent(path, body)
        if answer.status != 200:
            self.whole(answer.status, self.shim.refused(answer.status, json.loads(answer.read())))
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        for line in answer:
            if line.startswith(b"data: {"):
                yield json.loads(line[6:])
        self.wfile.write(b"data: [DONE]\n\n")

    def event(self, told: Any) -> None:
        self.wfile.write(b"data: " + json.dumps(told).encode() + b"\n\n")

    def whole(self, status: int, body: Any) -> None:
        text = json.dumps(body).encode()
        self.heads(status, "application/json", len(text))
        self.wfile.write(text)

    def heads(self, status: int, kind: str | None, size: int, answer: HTTPResponse | None = None) -> None:
        self.send_response(status)
        for name, value in answer.headers.items() if answer else ():
            if name.lower().startswith("access-control"):
                self.send_header(name, value)
        if kind:
            self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(size))
        self.send_header("Connection", "close")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None: ...

    def handle(self) -> None:
        with suppress(OSError):  # the test has left
            super().handle()


def _told(event: dict[str, Any]) -> dict[str, Any]:
    """The name that llama.cpp gives its build in each answer, where ours names what decides on the bits."""
    return {**event, "system_fingerprint": "b-headway"} if "choices" in event else event
