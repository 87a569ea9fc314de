"""`headway serve` at work: texts of many clients at once, beside what the engine gives without a server.

    python benchmarks/serve.py                      # 1, 8 and 32 clients: some five minutes on two cores
    python benchmarks/serve.py --soak 30            # so many minutes of mixed load: leavers, wrong bodies, long prompts

Server and clients share the processor. The client is a plain one of its own: a connection for each request, server-sent
events read as they come. Prompts are drawn ids, 128 of them and 128 new ones, which nobody shares; the soak draws what
it sends. `alone` is what `headway bench decode` measures with as many rows, whose prompts are as long.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from headway.app.exchange import quantize
from headway.app.recipes import find_model
from headway.bench.run import Request, run
from headway.formats import native
from headway.nn.models import build
from measure import write

SHAPE, FORM, PROMPT, NEW = "llama-135m", "int8", 128, 128
CLIENTS = (1, 8, 32)
# Where texts are drawn, hardly a guess of what comes next is right; greedy drawn weights soon repeat themselves.
ASKED = {"drawn": {"temperature": 1.0, "top_k": 40, "seed": 1}, "greedy": {"temperature": 0}}


def write_words(place: Path, symbols: int) -> None:
    """A tokenizer for whom every symbol is a word, so that each of them is told at once."""
    words = Tokenizer(WordLevel({f"w{symbol}": symbol for symbol in range(symbols)}, unk_token="w0"))
    words.pre_tokenizer = WhitespaceSplit()
    words.save(str(place / "tokenizer.json"))


def served(folder: Path, port: int, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "headway", "serve", str(folder), "--port", str(port), *words, "--no-access-log"]
    program = subprocess.Popen(command, text=True, stderr=subprocess.PIPE)
    assert program.stderr is not None
    program.stderr.readline()  # it says where it listens
    return program


async def post(port: int, body: dict[str, Any], leave_after: int | None = None) -> dict[str, Any]:
    """What came of a request that is streamed: the status, tokens, and seconds to the first of them and to the end."""
    started, first, tokens = time.perf_counter(), None, 0
    text = json.dumps({**body, "stream": True}).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(text)}\r\n"
    writer.write(f"{head}Content-Type: application/json\r\nConnection: close\r\n\r\n".encode() + text)
    gaps: list[float] = []
    before = started
    try:
        status = int((await reader.readline()).split()[1])
        async for line in reader:
            if not line.startswith(b"data: {"):
                continue
            now = time.perf_counter()
            if first is None:
                first = now - started
            else:
                gaps.append(now - before)
            before, tokens = now, tokens + 1
            if leave_after is not None and tokens >= leave_after:
                break
    finally:
        writer.close()
    return {"status": status, "tokens": tokens, "first": first, "gaps": gaps, "seconds": time.perf_counter() - started}


def drawn(draw: random.Random, symbols: int) -> list[int]:
    return [draw.randrange(symbols) for _ in range(PROMPT)]


async def load(port: int, model: str, clients: int, rounds: int, symbols: int, more: Any) -> dict[str, float]:
    draw = random.Random(clients)

    async def one(prompts: list[list[int]]) -> list[dict[str, Any]]:
        body = {"model": model, "max_tokens": NEW, "ignore_end": True, **more}
        return [await post(port, {**body, "prompt": prompt}) for prompt in prompts]

    work = [one([drawn(draw, symbols) for _ in range(rounds)]) for _ in range(clients)]
    started = time.perf_counter()
    found = [answer for answers in await asyncio.gather(*work) for answer in answers]
    seconds = time.perf_counter() - started
    assert all(answer["status"] == 200 for answer in found), Counter(answer["status"] for answer in found)
    firsts = sorted(answer["first"] for answer in found)
    gaps = sorted(gap for answer in found for gap in answer["gaps"])
    return {
        "tokens_per_second": round(clients * rounds * NEW / seconds, 1),
        "first_token_median_seconds": round(firsts[len(firsts) // 2], 3),
        "first_token_p99_seconds": round(firsts[min(len(firsts) - 1, int(0.99 * len(firsts)))], 3),
        "between_tokens_p99_seconds": round(gaps[int(0.99 * len(gaps))], 4),
    }


async def soak(port: int, model: str, minutes: float, symbols: int, program: int) -> dict[str, Any]:
    """64 clients, of whom a third leave early and a tenth send what is wrong."""
    draw, statuses, sizes = random.Random(0), Counter(), []
    end = time.monotonic() + 60 * minutes

    async def client() -> None:
        while time.monotonic() < end:
            prompt = drawn(draw, symbols)[: draw.choice([3, 40, 128])] * draw.choice([1, 1, 3])
            body: dict[str, Any] = {"model": model, "prompt": prompt, "max_tokens": draw.choice([4, 30, 120])}
            if draw.random() < 0.1:
                body |= draw.choice([{"n": 10**6}, {"best_of": 3}, {"temperature": "hot"}, {"prompt": [symbols]}])
            leave = draw.choice([None, None, 3])
            statuses[(await post(port, body, leave))["status"]] += 1

    async def watch() -> None:
        while time.monotonic() < end:
            lines = Path(f"/proc/{program}/status").read_text().splitlines()
            sizes.append(next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")))
            await asyncio.sleep(10)

    await asyncio.gather(watch(), *(client() for _ in range(64)))
    await asyncio.sleep(2)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    metrics = (await reader.read()).decode()
    writer.close()
    told = [line for line in metrics.splitlines() if line.startswith("headway_scheduler_")]
    counts = {line.split("{")[0]: float(line.split()[-1]) for line in told}
    at = min(len(sizes) - 1, 30)  # after five minutes
    return {
        "minutes": minutes,
        "statuses": {str(status): count for status, count in sorted(statuses.items())},
        "resident_kb_after_five_minutes_and_at_the_end": [sizes[at], sizes[-1]],
        "scheduler_at_the_end": {name.removeprefix("headway_scheduler_"): n for name, n in counts.items() if n},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--soak", type=float, metavar="MINUTES")
    parser.add_argument("--cache", default="fp32")
    args = parser.parse_args()
    config: Any = find_model(SHAPE)
    with TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
        whole, place = Path(folder) / "whole", Path(folder) / "model"
        native.save_model(build(config, 0), config, whole)
        quantize(whole, place, FORM)
        write_words(place, config.symbols)
        free.close()
        program = served(place, port, "--cache", args.cache)
        try:
            model = place.name
            asyncio.run(load(port, model, 2, 1, config.symbols, {}))  # loads, and warms up
            if args.soak:
                found = asyncio.run(soak(port, model, args.soak, config.symbols, program.pid))
                write("serve-soak", {"shape": SHAPE, "form": FORM, "cache": args.cache, **found})
                return
            counts = {
                how: {
                    str(n): asyncio.run(load(port, model, n, 2 if n > 1 else 3, config.symbols, more)) for n in CLIENTS
                }
                for how, more in ASKED.items()
            }
        finally:
            program.send_signal(signal.SIGTERM)
            program.wait(60)
    alone = {}
    for rows in CLIENTS:
        request = Request("decode", SHAPE, (FORM,), rows=rows, repeats=1, cache=args.cache)
        alone[str(rows)] = run(request)["programs"][f"headway {FORM}"]["tokens_per_second"]["median"]
    shares = {
        how: {n: round(each["tokens_per_second"] / alone[n], 3) for n, each in found.items()}
        for how, found in counts.items()
    }
    result = {"shape": SHAPE, "form": FORM, "cache": args.cache, "prompt": PROMPT, "new": NEW}
    write("serve", {**result, "clients": counts, "alone": alone, "share_of_alone": shares, "threads": os.cpu_count()})


if __name__ == "__main__":
    main()
