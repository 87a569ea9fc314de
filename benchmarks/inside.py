"""How soon a server shows a model from inside: lens and attention of 64 tokens in a model of 10M parameters.

    python benchmarks/inside.py [--repeats 50]    # half a minute on two cores

The model is gpt-10m with random weights in fp32 (6 layers of 6 heads, characters as tokens), behind `headway serve`
in a process of its own with as many threads as there are cores. `lens_ms` and `attention_ms` are the milliseconds from
a request on a new connection to the last byte of its answer, `page_ms` those until both are there, sent at the same
time as the page does; `*_core_ms` are the milliseconds of processor time that the server needs for it, which on a busy
machine tell more. The lens has 5 predictions per layer and 8 neighbours per token, as on the page.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from headway.codecs import train_codec
from headway.config import override
from headway.formats.native import save_model
from headway.nn.models import build, describe
from headway.nn.models.presets import preset
from measure import data_folder, spread, write
from serve import served, serving_process

TOKENS, WARM, TARGET_MS = 64, 5, 200


def post(port: int, path: str, body: dict[str, Any]) -> bytes:
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    content = response.read()
    connection.close()
    if response.status != 200:
        raise RuntimeError(content.decode())
    return content


def timed(name: str, call: Callable[[], Any], repeats: int, process: int) -> dict[str, Any]:
    """Milliseconds of a call, by the clock and of the server's process."""
    for _ in range(WARM):
        call()
    values, before = [], core_seconds(process)
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        values.append(round(1000 * (time.perf_counter() - start), 1))
    core_ms = round(1000 * (core_seconds(process) - before) / repeats, 1)
    return {f"{name}_ms": spread(values), f"{name}_core_ms": core_ms}


def core_seconds(process: int) -> float:
    user, system = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=50)
    repeats = parser.parse_args().repeats
    text = (data_folder() / "lm" / "tinyshakespeare.txt").read_text(encoding="utf-8")
    with TemporaryDirectory() as folder, socket.socket() as free:
        codec = train_codec("char", iter([text]), special=())
        config = override(preset("gpt-10m"), {"vocab_size": codec.vocab_size})
        save_model(build(config), config, Path(folder))
        codec.save(Path(folder))
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        threads = str(os.cpu_count())
        with (
            served(Path(folder), port, "--threads", threads, "--backend", "torch") as server,
            ThreadPoolExecutor(2) as clients,
        ):
            body = {"text": text[:TOKENS]}
            lens = lambda: post(port, "/v1/lens", {**body, "top": 5, "neighbours": 8})  # noqa: E731
            attention = lambda: post(port, "/v1/attention", body)  # noqa: E731
            both = lambda: [call.result() for call in (clients.submit(lens), clients.submit(attention))]  # noqa: E731
            sizes = {"lens_bytes": len(lens()), "attention_bytes": len(attention())}
            process, calls = serving_process(server), {"lens": lens, "attention": attention, "page": both}
            result = {}
            for name, call in calls.items():
                result |= timed(name, call, repeats, process)
    parameters = describe(config)["parameters"]
    sizes = {"tokens": TOKENS, "parameters": parameters, "threads": int(threads), "target_ms": TARGET_MS, **sizes}
    write("inside", {**sizes, **result})
    print({name: value["median"] if isinstance(value, dict) else value for name, value in result.items()})


if __name__ == "__main__":
    main()
