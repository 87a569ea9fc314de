"""What stands between vLLM's tests and ours: `headway serve` in place of `vllm serve`, a small model in place of those
of the hub, and empty modules in place of vLLM's own.

Tests of vLLM's classes, which ask no server anything, are left out where they make one. A client's model names lose
what is before the slash, as models here are named by the last part of their path.
"""

from __future__ import annotations

import base64
import importlib.abc
import importlib.machinery
import json
import re
import subprocess
import sys
import threading
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import httpx
import openai
import pytest
import torch
from tokenizers import Tokenizer

from headway.codecs import train_codec
from headway.config import override
from headway.domains.text.recipes import modern_decoder
from headway.formats import native
from headway.formats.usage import Usage
from headway.nn.models import build
from live import end

CONTEXT = 8192
TEMPLATE = """\
{% if tools %}<|im_start|>system
Tools:{% for tool in tools %} {{ tool | tojson }}{% endfor %}
Call one: <tool_call>{"name": "...", "arguments": {}}</tool_call><|im_end|>
{% endif %}{% for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}{% for call in message.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>\
{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
SPECIAL = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
# Of which the tokenizer makes one token each, as larger ones do.
WORDS = "Hello, my name is\nWhat is an LLM?\nassistant system user\nThe capital of France is\n" * 9
_TALL = {'"': 3.5, "}": 4.0, "]": 4.0, ",": 2.0, "<|im_end|>": 2.5, **{str(n): 1.5 for n in range(10)}}


def chat_model(folder: Path) -> Path:
    """A model of one random layer with a chat template, which tends to end strings, lists, objects, and its turn."""
    codec = train_codec("bpe", [WORDS], 330, special=SPECIAL, fewer=True)
    config = override(modern_decoder(width=32, depth=1, heads=2, window=CONTEXT, vocab_size=1), {
        "symbols": codec.vocab_size, "context": CONTEXT
    })  # fmt: skip
    model = build(config, seed=5)
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        table, project = model.get_parameter("embed.table"), model.get_parameter("heads.vocabulary.project.weight")
        table[:] = torch.randn(table.shape, generator=draw)
        project[:] = 0.25 * torch.randn(project.shape, generator=draw)
        table[:, 0], project[:, 0] = 3.0, 0.0  # the same in every token: what the weights of it add is a bias
        for name, bias in _TALL.items():
            [token] = [codec.token_id(name)] if name in SPECIAL else codec.encode(name)
            project[token, 0] = bias / 2.3
        for name in ("<|im_start|>", "<|endoftext|>"):
            project[codec.token_id(name), 0] = -9.0
    native.save_model(model, config, folder)
    codec.save(folder)
    Usage(template=TEMPLATE, ends=(codec.token_id("<|im_end|>"),)).save(folder)
    return folder


class RemoteOpenAIServer:
    """As the tests know it: a server of a model, whose options are vLLM's."""

    DUMMY_API_KEY = "token-abc123"
    folder: ClassVar[Path]
    running: ClassVar[dict[str, Any]] = {}

    def __init__(self, model: str, vllm_serve_args: list[str], **_: Any) -> None:
        if not self.running:
            self._start()

    def __enter__(self) -> RemoteOpenAIServer:
        return self

    def __exit__(self, *_: object) -> None: ...

    def url_for(self, *parts: str) -> str:
        return "/".join([f"http://127.0.0.1:{self.running['port']}", *(part.strip("/") for part in parts if part)])

    def get_async_client(self, **options: Any) -> openai.AsyncOpenAI:
        client = httpx.AsyncClient(transport=_Renaming())
        asked: dict[str, Any] = {"base_url": self.url_for("v1"), "api_key": self.DUMMY_API_KEY, "timeout": 100}
        return openai.AsyncOpenAI(**{**asked, **options}, max_retries=0, http_client=client)

    @classmethod
    def _start(cls) -> None:
        model = cls.folder / "model"
        chat_model(model)
        names = ("Qwen3-0.6B", "zephyr-7b-beta", "zephyr-lora", "Qwen2.5-1.5B-Instruct", "Qwen2-1.5B-Instruct", "gpt2")
        for name in names:
            (cls.folder / "served").mkdir(exist_ok=True)
            (cls.folder / "served" / name).symlink_to(model)
        words = ["--models", str(cls.folder / "served"), "--port", "0", "--no-access-log", "--slots", "128"]
        program = subprocess.Popen(
            [sys.executable, "-m", "headway", "serve", *words], stderr=subprocess.PIPE, text=True, stdout=sys.stderr
        )
        assert program.stderr is not None
        line = program.stderr.readline()
        found = re.search(r"http://[^ ]*:(\d+)", line)
        if found is None:
            raise RuntimeError(f"headway serve did not start: {line}{program.stderr.read()}")
        threading.Thread(target=lambda lines: list(lines), args=(program.stderr,), daemon=True).start()
        cls.running = {"program": program, "port": int(found[1])}

    @classmethod
    def close(cls) -> None:
        if cls.running:
            end(cls.running["program"])


class _Renaming(httpx.AsyncHTTPTransport):
    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if request.content:
            body = json.loads(request.content)
            if isinstance(body.get("model"), str):
                body["model"] = body["model"].rpartition("/")[2]
            heads = {name: value for name, value in request.headers.items() if name != "content-length"}
            request = httpx.Request(
                request.method, request.url, headers=heads, json=body, extensions=request.extensions
            )
        return await super().handle_async_request(request)


class _Tokens:
    """The tokenizer of the model, where a test loads one of the hub."""

    def __init__(self) -> None:
        self._own = Tokenizer.from_file(str(RemoteOpenAIServer.folder / "model" / "tokenizer.json"))

    def encode(self, text: str) -> list[int]:
        return self._own.encode(text).ids

    def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
        return self._own.decode(ids, skip_special_tokens=skip_special_tokens)


class _Config:
    """What tests ask of a model's configuration."""

    def __init__(self, **_: Any) -> None: ...

    def get_vocab_size(self) -> int:
        return Tokenizer.from_file(str(RemoteOpenAIServer.folder / "model" / "tokenizer.json")).get_vocab_size()


class _Hub:
    @staticmethod
    def snapshot_download(**_: Any) -> str:
        return "an adapter"


_NAMES = {"get_tokenizer": lambda **_: _Tokens(), "ModelConfig": _Config, "hf_api": _Hub}


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Empty modules of vLLM's names."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if name.split(".")[0] == "vllm" else None

    def exec_module(self, module: ModuleType) -> None:
        module.__getattr__ = _own  # type: ignore[method-assign]


@cache
def _own(name: str) -> Any:
    """What a test imports of vLLM: a class that leaves out the test that uses it."""
    if name.startswith("__"):
        raise AttributeError(name)
    if name in _NAMES:
        return _NAMES[name]

    def left_out(*_: Any, **__: Any) -> None:
        pytest.skip("is of vLLM's own classes, and asks no server anything")

    if name.endswith("Error"):
        return type(name, (Exception,), {})
    return type(name, (), {"__init__": left_out, "model_validate": staticmethod(left_out)})


def take_over(folder: Path) -> None:
    """Let what tests import be ours, and their servers' files be in `folder`."""
    RemoteOpenAIServer.folder = folder
    sys.modules.setdefault("pybase64", base64)
    sys.meta_path.insert(0, _Finder())
