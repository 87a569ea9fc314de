"""`headway serve` at work: texts of many clients at once, beside what the engine gives without a server, and beside
llama.cpp's own server.

    python benchmarks/serve.py                      # 1, 8 and 32 clients: some five minutes on two cores
    python benchmarks/serve.py --beside BIN         # and llama-server, at Q8_0, which is in that folder
    python benchmarks/serve.py --vllm BIN           # vLLM alone, in bf16, of the environment with that folder
    python benchmarks/serve.py --soak 30            # so many minutes of mixed load: leavers, wrong bodies, long prompts

Server and clients share the processor. The client is a plain one of its own: a connection for each request, server-sent
events read as they come. All servers have the same weights and tokenizer, and work in turn. Prompts are drawn ids, 128
of them and 128 new ones, which nobody shares; those of `known` are the ones of `drawn` again, whose beginnings a server
may know by then, so that it does little but decode. The soak draws what it sends. `alone` is what `headway bench
decode` measures with as many rows; `in_loop` the scheduler without a server on the very prompts of `alone`, which are
read in one step, and timed as these are once they are known.
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
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.request import urlopen

from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from headway.app.conversion import export_model, quantize
from headway.app.loading import load as load_model
from headway.app.recipes import find_model_config
from headway.bench.benchmark import BenchRequest, run
from headway.bench.measurement import WARMUP_TOKENS, BenchJob
from headway.engine import Engine
from headway.formats import native
from headway.formats.open import open_model
from headway.generate import Limits, Sampling
from headway.generate.scheduler import Request, Scheduler
from headway.nn.models import CacheDtype, build
from measure import child, report, write, write_of_machine

SHAPE, FORM, PROMPT, NEW = "llama-135m", "int8", 128, 128
ROUNDED = "Q8_0"  # what llama.cpp calls the same form
MODEL = "model"  # what each server calls it
WAITED = 6000  # tenths of a second that a server may take until it is ready
CLIENTS = (1, 8, 32)
SOAKED = "1"  # GB of known beginnings, which are full before five minutes are over
READ = ("prompt_tokens", "prefix_tokens")  # of the scheduler: read, and known
# Where texts are drawn, hardly a guess of what comes next is right; greedy drawn weights soon repeat themselves.
DRAWN, GREEDY = {"temperature": 1.0, "top_k": 40, "seed": 1}, {"temperature": 0}
TEXT = {
    "type": "object",
    "properties": {"text": {"type": "string"}},
    "required": ["text"],
}  # which drawn weights never end
SCHEMA = {"type": "json_schema", "json_schema": {"name": "text", "schema": TEXT | {"additionalProperties": False}}}
# What is asked, and whose prompts it takes.
ASKED = {"drawn": (DRAWN, "drawn"), "known": (DRAWN, "drawn"), "greedy": (GREEDY, "greedy")}
OURS = ASKED | {"schema": (DRAWN | {"response_format": SCHEMA}, "schema")}


def write_pieces(place: Path, symbols: int) -> None:
    """A tokenizer of bytes and of made-up pieces of plain letters, in the form that both servers read."""
    letters = [chr(code) for code in range(33, 127)]
    pairs = [(first, second) for first in letters for second in letters]
    merges = [*pairs, *((first + second, third) for first, second in pairs for third in letters)]
    bytes_ = sorted(ByteLevel.alphabet())
    merges = merges[: symbols - len(bytes_) - 1]
    pieces = [*bytes_, *(first + second for first, second in merges), "<|endoftext|>"]
    codec = Tokenizer(BPE({piece: number for number, piece in enumerate(pieces)}, merges))
    codec.pre_tokenizer, codec.decoder = ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    codec.add_special_tokens(["<|endoftext|>"])
    codec.save(str(place / "tokenizer.json"))


@contextmanager
def served(folder: Path, port: int, *words: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "headway", "serve", str(folder), "--port", str(port), *words, "--no-access-log"]
    program = subprocess.Popen(command, text=True, stderr=subprocess.PIPE)
    assert program.stderr is not None
    program.stderr.readline()  # it says where it listens
    try:
        yield program
    finally:
        program.send_signal(signal.SIGTERM)
        program.wait(60)


def serving_process(program: subprocess.Popen[str]) -> int:
    """The process that serves, a child of the one that was started."""
    return int(Path(f"/proc/{program.pid}/task/{program.pid}/children").read_text().split()[0])


def llama_server(programs: Path, model: Path, port: int, clients: int) -> AbstractContextManager[int]:
    """llama.cpp's, with as many slots as clients."""
    threads, room = str(os.cpu_count()), str(clients * (PROMPT + NEW + 8))
    words = ["-m", str(model), "--port", str(port), "-c", room, "-np", str(clients), "-t", threads, "--no-webui"]
    return peer([str(programs / "llama-server"), *words], port)


def vllm_server(programs: Path, model: Path, port: int) -> AbstractContextManager[int]:
    """vLLM's, in an environment of its own. It takes two minutes to start, and so is one for all."""
    program = [str(programs / "python"), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    words = ["--served-model-name", MODEL, "--port", str(port), "--dtype", "bfloat16"]
    words += ["--max-model-len", str(2 * (PROMPT + NEW)), "--max-num-seqs", str(max(CLIENTS))]
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"  # where it looks for what builds its kernels
    return peer([*program, *words], port, PATH=path, PYTHONPATH="", VLLM_CPU_KVCACHE_SPACE="2")  # gigabytes


@contextmanager
def peer(command: list[str], port: int, **environment: str) -> Iterator[int]:
    """Another's server, once it says that it is well."""
    none = subprocess.DEVNULL
    program = subprocess.Popen(command, stderr=none, stdout=none, env={**os.environ, **environment})
    try:
        for _ in range(WAITED):
            time.sleep(0.1)
            assert program.poll() is None, f"{command[0]} ended with {program.returncode}"
            with suppress(OSError), urlopen(f"http://127.0.0.1:{port}/health", timeout=1):
                break
        yield port
    finally:
        program.terminate()
        program.wait(60)


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


async def load(
    port: int, model: str, clients: int, rounds: int, symbols: int, more: Any, prompts: str = "first"
) -> dict[str, float]:
    draw = random.Random(f"{prompts} {clients}")

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
    counts = await metrics(port)
    at = min(len(sizes) - 1, 30)  # after five minutes
    return {
        "minutes": minutes,
        "statuses": {str(status): count for status, count in sorted(statuses.items())},
        "resident_kb_after_five_minutes_and_at_the_end": [sizes[at], sizes[-1]],
        "scheduler_at_the_end": {name: number for name, number in counts.items() if number},
    }


async def metrics(port: int) -> dict[str, float]:
    """What /metrics says of the scheduler."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    told = (await reader.read()).decode()
    writer.close()
    lines = [line for line in told.splitlines() if line.startswith("headway_scheduler_")]
    names = [line.split("{")[0].removeprefix("headway_scheduler_").removesuffix("_total") for line in lines]
    return dict(zip(names, (float(line.split()[-1]) for line in lines)))


async def shared(port: int, model: str, symbols: int) -> dict[str, int]:
    """Tokens that are read of eight prompts of 1,024 whose first 900 are the same, the other seven after the first."""
    draw = random.Random(900)
    start = [draw.randrange(symbols) for _ in range(900)]
    prompts = [[*start, *(draw.randrange(symbols) for _ in range(124))] for _ in range(8)]
    bodies = [{"model": model, "prompt": prompt, "max_tokens": 1} for prompt in prompts]
    before = await metrics(port)
    await post(port, bodies[0])
    await asyncio.gather(*(post(port, body) for body in bodies[1:]))
    after = await metrics(port)
    read, known = (int(sum(after[each] - before[each] for each in after if each.startswith(name))) for name in READ)
    return {"read": read, "known": known, "new": 1024 + 7 * 124}


def measured(
    server: Callable[[int], AbstractContextManager[int]],
    model: str,
    symbols: int,
    ending: str,
    asked: Any,
    numbers: Sequence[int] = CLIENTS,
) -> dict[str, Any]:
    """Each kind of texts for each number of clients, whose server listens at the port that it gives."""
    found: dict[str, dict[str, Any]] = {how: {} for how in asked}
    for clients in numbers:
        with server(clients) as port:
            for more, _ in asked.values():  # loads, compiles a schema, which is then known, and warms up
                asyncio.run(load(port, model, 2, 1, symbols, {ending: True, **more}))
            for how, (more, prompts) in asked.items():
                rounds = 2 if clients > 1 else 3
                said = asyncio.run(load(port, model, clients, rounds, symbols, {ending: True, **more}, prompts))
                found[how][str(clients)] = said
                print(model, how, clients, said, file=sys.stderr)
    return found


def in_loop(place: str, rows: int, cache: CacheDtype) -> float:
    """Tokens a second of the scheduler after the prompts, without guesses worth their while."""
    session = load_model(place, "cpu", cache=cache).open_session()
    assert isinstance(session.model, Engine)
    job = BenchJob("decode", FORM, place, rows, session.model.pool.threads, 0, session.model.config.vocab_size, None)
    scheduler = Scheduler(session.model, session.codec, step_tokens=rows * PROMPT)  # all begin, and end, together
    for prompt in job.prompts():
        sampling = Sampling(temperature=1.0, top_k=40, seed=1)
        scheduler.submit(Request(prompt, sampling, Limits(NEW, ignore_end=True)))
    for _ in range(WARMUP_TOKENS):
        scheduler.step()
    started, tokens = time.perf_counter(), 0
    while said := scheduler.step():
        tokens += len(said)
    return tokens / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--soak", type=float, metavar="MINUTES")
    parser.add_argument("--cache", default="fp16", help="what headway takes for these weights: fp16")
    parser.add_argument("--beside", type=Path, metavar="BIN", help="the folder of llama-server")
    parser.add_argument("--vllm", type=Path, metavar="BIN", help="the folder of vllm")
    parser.add_argument("--in-loop", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.in_loop:
        report({"tokens_per_second": in_loop(args.in_loop[0], int(args.in_loop[1]), args.cache)})
        return
    config: Any = find_model_config(SHAPE)
    with TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
        whole, place, file, published = (Path(folder) / name for name in ("whole", MODEL, f"{ROUNDED}.gguf", "hf"))
        native.save_model(build(config, 0), config, whole)
        quantize(whole, place, FORM)
        for each in (whole, place):
            write_pieces(each, config.vocab_size)
        free.close()
        result = {"shape": SHAPE, "form": FORM, "cache": args.cache, "prompt": PROMPT, "new": NEW}
        if args.vllm is not None:
            export_model(open_model(whole), published)
            with vllm_server(args.vllm, published, port):
                # vllm-cpu 0.32.0 ends while it serves 32 clients.
                found = measured(
                    lambda _: nullcontext(port), MODEL, config.vocab_size, "ignore_eos", ASKED, CLIENTS[:2]
                )
            write_of_machine("serve-vllm", {**result, "form": "bf16", "clients": found, "threads": os.cpu_count()})
            return
        if args.soak:
            with served(place, port, "--cache", args.cache, "--cache-memory", SOAKED) as program:
                asyncio.run(load(port, place.name, 2, 1, config.vocab_size, {}))
                found = asyncio.run(soak(port, place.name, args.soak, config.vocab_size, serving_process(program)))
            write(f"serve-soak-{args.soak:g}-minutes", {**result, "cache_memory_gb": float(SOAKED), **found})
            return
        with served(place, port, "--cache", args.cache):
            ours = measured(lambda _: nullcontext(port), place.name, config.vocab_size, "ignore_end", OURS)
            result["prompts_that_share_900_of_1024"] = asyncio.run(shared(port, place.name, config.vocab_size))
        result["clients"] = ours
        if args.beside is not None:
            export_model(open_model(whole), file, "gguf", ROUNDED.lower())
            beside = measured(
                partial(llama_server, args.beside, file, port), MODEL, config.vocab_size, "ignore_eos", ASKED
            )
            result |= {"llama.cpp": beside, "times_llama.cpp": over(ours, beside)}
        alone, loop = {}, {}
        for rows in map(str, CLIENTS):
            words = ("--in-loop", str(place), rows, "--cache", args.cache)
            loop[rows] = {"tokens_per_second": round(child("serve.py", *words)["tokens_per_second"], 1)}
            request = BenchRequest("decode", SHAPE, (FORM,), rows=int(rows), repeats=1, cache=args.cache)
            rate = run(request)["programs"][f"headway {FORM}"]["tokens_per_second"]["median"]
            alone[rows] = {"tokens_per_second": round(rate, 1)}
    shares = over({**ours, "in_loop": loop}, dict.fromkeys([*ours, "in_loop"], alone))
    schema = over({"schema": ours["schema"]}, {"schema": ours["drawn"]})["schema"]
    found = {"in_loop": loop, "alone": alone, "share_of_alone": shares, "schema_of_drawn": schema}
    write_of_machine("serve", {**result, **found, "threads": os.cpu_count()})


def over(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """How many times as many tokens a second."""
    return {
        how: {n: round(ours[how][n]["tokens_per_second"] / each["tokens_per_second"], 3) for n, each in found.items()}
        for how, found in theirs.items()
    }


if __name__ == "__main__":
    main()
