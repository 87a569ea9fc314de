"""A server in a process of its own, asked by its clients: the openai package, plain sockets, and people who leave."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import httpx
import openai
import pytest
from chat_models import echo_model
from serve_models import stories

import headway as hw
from headway.app.cli.main import main
from headway.generate import Limits, Sampling
from processes import Program

SERVE = """
import sys
import torch
import headway as hw
from headway.app.cli.main import main
from headway.generate import Limits, Sampling
from headway.serve import connection, supervisor

connection._ARRIVAL = 1.0  # a second for headers
supervisor.can_supervise = lambda: False  # test_serve_restart has servers with a supervisor
torch.set_num_threads(1)
sys.exit(main(sys.argv[1:]))
"""
KEY = "one-of-ours"
MESSAGES = [{"role": "user", "content": "Hi"}]
LONG = {"model": "stories260K", "prompt": "Once", "max_tokens": 500, "n": 4, "stream": True, "ignore_end": True}


class Server(NamedTuple):
    program: Program
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def start(place: Path, *words: str, backend: str = "torch") -> Server:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    program = Program(place, SERVE, "serve", *words, "--port", str(port), "--backend", backend, "--device", "cpu")
    for _ in range(600):
        try:
            if httpx.get(f"http://127.0.0.1:{port}/ready").status_code == 200:
                return Server(program, port)
        except httpx.TransportError:
            assert program.returncode is None, program.wait()
        time.sleep(0.1)
    raise TimeoutError(program.wait(1))


@pytest.fixture(scope="module")
def server(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    place = tmp_path_factory.mktemp("live")
    keys = place / "keys.txt"
    keys.write_text(f"# ours\n{KEY}\nanother 2  # at once\n")
    running = start(place, str(echo_model(place / "echo")), str(stories(data_dir)), "--api-key", f"@{keys}")
    yield running
    running.program.signal(signal.SIGTERM)
    out, err = running.program.wait(20)
    assert running.program.returncode == 0, err
    assert "Traceback" not in err
    assert all(json.loads(line)["status"] < 500 for line in out.splitlines())
    assert KEY not in out + err


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


def test_the_openai_package(client: openai.OpenAI) -> None:
    found = client.chat.completions.create(model="echo", messages=MESSAGES, temperature=0, n=2, logprobs=True)  # type: ignore[arg-type]
    assert [choice.message.content for choice in found.choices] == ["abc", "abc"]
    assert found.usage is not None
    assert found.usage.completion_tokens == 6
    once = client.completions.create(model="stories260K", prompt="Once upon a time", temperature=0, max_tokens=8)
    parts = client.completions.create(
        model="stories260K", prompt="Once upon a time", temperature=0, max_tokens=8, stream=True
    )
    assert "".join(part.choices[0].text for part in parts) == once.choices[0].text == ", there was a little girl"
    with client.chat.completions.stream(model="echo", messages=MESSAGES, temperature=0) as stream:  # type: ignore[arg-type]
        assert stream.get_final_completion().choices[0].message.content == "abc"


def test_its_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="there is no model 'gpt'"):
        client.completions.create(model="gpt", prompt="x")
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(model="stories260K", prompt="word " * 600)
    assert refused.value.code == "context_length_exceeded"
    assert refused.value.param == "prompt"
    with pytest.raises(openai.AuthenticationError, match="is unknown"):
        client.with_options(api_key="wrong").completions.create(model="stories260K", prompt="x")


def test_many_at_once_without_threads(server: Server) -> None:
    async def ask(client: openai.AsyncOpenAI, place: int) -> str:
        asked = {"model": "stories260K", "prompt": "She", "max_tokens": 8, "seed": place % 3}
        if place % 2:
            parts = await client.completions.create(**asked, stream=True)
            return "".join([part.choices[0].text async for part in parts])
        return (await client.completions.create(**asked)).choices[0].text

    async def all_of_them() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=KEY) as client:
            return await asyncio.gather(*(ask(client, place) for place in range(12)))

    texts = asyncio.run(all_of_them())
    assert [texts[place] for place in range(6)] == texts[6:]  # of the same seed, streamed or not
    assert len(set(texts[:3])) == 3


def working(server: Server) -> bool:
    return any(model["working"] for model in httpx.get(f"{server.url}/health").json()["models"].values())


def until_idle(server: Server) -> None:
    started = time.perf_counter()
    while working(server):
        assert time.perf_counter() - started < 60
        time.sleep(0.02)


def written(server: Server) -> float:
    """Tokens of all answers until now."""
    page = httpx.get(f"{server.url}/metrics", headers={"Authorization": f"Bearer {KEY}"}).text
    return sum(float(line.split()[-1]) for line in page.splitlines() if line.startswith("headway_written_tokens_total"))


def send(server: Server, raw: bytes) -> socket.socket:
    opened = socket.create_connection(("127.0.0.1", server.port), timeout=10)
    opened.sendall(raw)
    return opened


def request(body: bytes) -> bytes:
    lines = (
        "POST /v1/completions HTTP/1.1",
        "Host: localhost",
        f"Authorization: Bearer {KEY}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
    )
    return "\r\n".join((*lines, "", "")).encode() + body


def whole(opened: socket.socket) -> bytes:
    with opened:
        return b"".join(iter(lambda: opened.recv(1 << 16), b""))


@pytest.mark.parametrize("stream", [True, False])
def test_who_leaves_in_the_middle_frees_the_model(server: Server, stream: bool) -> None:
    before = written(server)
    opened = send(server, request(json.dumps({**LONG, "stream": stream}).encode()))
    if stream:
        assert opened.recv(64).startswith(b"HTTP/1.1 200")
    else:
        while not working(server):
            time.sleep(0.02)
    assert working(server)
    opened.close()
    until_idle(server)
    assert written(server) - before < LONG["max_tokens"] * LONG["n"]  # it was not written to its end


def test_bytes_that_are_no_request(server: Server) -> None:
    for raw in (
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nxxxxx",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 100_000,
    ):
        with send(server, raw) as opened:
            head, _, body = opened.recv(1 << 16).partition(b"\r\n\r\n")
        assert head.startswith((b"HTTP/1.1 400", b"HTTP/1.1 403")), head
        assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}


def test_a_body_of_two_lengths_smuggles_nothing(server: Server) -> None:
    inside = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    lengths = b"Content-Length: %d\r\nTransfer-Encoding: chunked\r\n\r\n" % (5 + len(inside))
    found = whole(send(server, b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\n" + lengths + b"0\r\n\r\n" + inside))
    assert found.startswith(b"HTTP/1.1 400")
    assert found.count(b"HTTP/1.1 ") == 1


def test_headers_that_never_end(server: Server) -> None:
    opened = send(server, b"GET /health HTTP/1.1\r\n")

    def go_on() -> None:
        for _ in range(600):
            opened.sendall(b"X-A: b\r\n")
            time.sleep(0.1)

    with opened, pytest.raises(OSError, match=r"[Pp]ipe|reset"):
        go_on()


def test_the_end_lets_go_on_what_has_begun_and_refuses_what_waits_or_comes(data_dir: Path, tmp_path: Path) -> None:
    server = start(tmp_path, str(stories(data_dir)), "--grace", "20")
    asked = {**LONG, "max_tokens": 100, "n": 1}
    with httpx.stream("POST", f"{server.url}/v1/completions", json=asked, timeout=30) as begun:
        lines = begun.iter_lines()
        first = next(lines)
        waits = send(server, request(json.dumps(LONG).encode()))
        server.program.signal(signal.SIGSTOP)  # a server that had no time to accept, when it is told to end
        comes = send(server, request(json.dumps(LONG).encode()))
        server.program.signal(signal.SIGTERM)
        time.sleep(0.3)
        server.program.signal(signal.SIGCONT)
        rest = [line for line in lines if line]
        refused = [whole(each) for each in (waits, comes)]
    assert first.startswith("data: {")
    assert rest[-1] == "data: [DONE]"
    assert json.loads(rest[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
    for answer in refused:
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503")
        assert json.loads(body)["error"]["code"] == "ending"
    server.program.wait(20)
    assert server.program.returncode == 0


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--host", "0.0.0.0"], "0.0.0.0 is reachable from other machines and needs an API key; add --api-key"),
        (["--host", "no.such.host.invalid"], "needs an API key"),
        (["--host", "no.such.host.invalid", "--insecure"], "unknown host 'no.such.host.invalid'"),
        (["--host", "192.0.2.1", "--api-key", "k"], "192.0.2.1 is not an address of this machine"),
        (["--api-key", "@/no/such/file"], "the key file /no/such/file cannot be read"),
        (["--api-key", "a b c"], "a key line is not KEY, KEY N"),
        (["--api-key", ""], "contains no key"),
    ],
)
def test_what_cannot_be_started(words: list[str], why: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "no/such/model", *words]) == 2
    err = capsys.readouterr().err
    assert why in err
    assert err.count("\n") == 1


def test_a_port_that_is_taken(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "no/such/model", "--port", str(server.port)]) == 2
    assert f"port {server.port} on 127.0.0.1 is in use" in capsys.readouterr().err


@pytest.fixture(scope="module")
def compiled(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server on the engine, with a small cache."""
    words = ("--weights", "int8", "--cache", "int8", "--slots", "5", "--cache-memory", "0.0006")
    running = start(tmp_path_factory.mktemp("compiled"), str(stories(data_dir)), *words, backend="cpu")
    yield running
    running.program.signal(signal.SIGTERM)
    running.program.wait(20)
    assert running.program.returncode == 0


def test_how_much_of_a_prompt_was_known(compiled: Server) -> None:
    ids = [1, *(100 + place for place in range(80))]
    asked = {"prompt": [ids, [7, *ids]], "max_tokens": 3, "n": 2, "stream": False}
    with httpx.Client(base_url=compiled.url, timeout=60) as client:
        first, again = (client.post("/v1/completions", json=asked).json()["usage"] for _ in range(2))
        streamed = {**asked, "prompt": ids[:40], "stream": True, "stream_options": {"include_usage": True}}
        *_, last, _, _ = client.post("/v1/completions", json=streamed).text.split("\n\n")
    assert first["prompt_tokens"] == again["prompt_tokens"] == 81 + 82
    assert first["prompt_tokens_details"] == {"cached_tokens": 0}
    assert again["prompt_tokens_details"] == {"cached_tokens": 2 * 64}  # whole blocks of 32
    assert json.loads(last.removeprefix("data: "))["usage"]["prompt_tokens_details"] == {"cached_tokens": 32}
    text = hw.connect(compiled.url).generate("Once upon a time", 4, temperature=0)
    assert text == ", there was a"


def test_whoever_else_is_asking_changes_no_answer(compiled: Server, data_dir: Path) -> None:
    """On the engine, in a cache too small for all: each is told what the model says alone, bit for bit, whatever joins,
    leaves, gives way or begins alike.
    """
    model = hw.load(stories(data_dir), backend="cpu", weights="int8", cache="int8")
    draw = random.Random(3)
    beginnings = ["Once upon a time", "Once upon a time there was a big red ball", "The dog", "Lily and Tom saw"]
    asked = [(draw.choice(beginnings), draw.randrange(9), draw.choice([5, 30, 90])) for _ in range(24)]

    def ask(one: tuple[str, int, int]) -> tuple[str, list[float]]:
        prompt, seed, count = one
        with openai.OpenAI(base_url=f"{compiled.url}/v1", api_key="none", max_retries=0, timeout=100) as client:
            if seed == 0:  # leaves at once
                client.completions.create(model="stories260K", prompt=prompt, max_tokens=count, stream=True).close()
                return "", []
            found = client.completions.create(
                model="stories260K", prompt=prompt, seed=seed, max_tokens=count, temperature=0.9, logprobs=0
            ).choices[0]
            assert found.logprobs is not None
            return found.text, found.logprobs.token_logprobs or []

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(ask, asked))
    for (prompt, seed, count), answer in zip(asked, answers):
        alone = model.complete(prompt, Sampling(temperature=0.9, seed=seed), Limits(count))
        assert seed == 0 or answer == (alone.text, alone.logprobs)
    told = httpx.get(f"{compiled.url}/metrics").text
    assert 'headway_scheduler_running{model="stories260K"} 0.0' in told
