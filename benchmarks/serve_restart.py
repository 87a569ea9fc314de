"""How soon a server serves again whose serving process is killed under load, beside how long a start takes.

    python benchmarks/serve_restart.py [--repeats 5] [--clients 8]    # two minutes on two cores

The weights are drawn ones of a llama of 135M parameters in int8. `start` are the seconds from the command to its first
answer, the loading of the model included; `again` those from the kill to the next answer of a client. Until then each
client asks again every 50 ms. `supervisor` is the memory of the process that holds the port.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from headway.app.conversion import quantize
from headway.app.recipes import find_model_config
from headway.formats import native
from headway.nn.models import build
from measure import spread, write_of_machine
from serve import FORM, SHAPE, post, served, serving_process, write_pieces

BODY = {"model": "model", "prompt": [5, 6, 7, 8], "max_tokens": 32, "ignore_end": True}
ASKED_AGAIN = 0.05  # seconds


async def until_served(port: int, statuses: Counter[str]) -> None:
    """Ask until there is an answer."""
    while True:
        with suppress(OSError, IndexError):  # refused or reset; an empty answer
            answer = await post(port, BODY)
            statuses[str(answer["status"])] += 1
            if answer["status"] == 200 and answer["tokens"] == BODY["max_tokens"]:
                return
        await asyncio.sleep(ASKED_AGAIN)


async def killed(port: int, process: int, clients: int) -> dict[str, Any]:
    """Kill a process under load, and ask until all clients have an answer again."""
    statuses, ended = Counter[str](), asyncio.Event()

    async def client() -> None:
        while not ended.is_set():
            with suppress(OSError, IndexError):
                await post(port, BODY)

    asking = [asyncio.create_task(client()) for _ in range(clients)]
    await asyncio.sleep(1)
    os.kill(process, signal.SIGKILL)
    started = time.perf_counter()
    ended.set()
    await asyncio.gather(*asking)
    await asyncio.gather(*(until_served(port, statuses) for _ in range(clients)))
    return {"seconds": time.perf_counter() - started, "statuses": dict(sorted(statuses.items()))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--clients", type=int, default=8)
    args = parser.parse_args()
    config: Any = find_model_config(SHAPE)
    starts, again, statuses, memory = [], [], Counter[str](), []
    with TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as free:
        port, whole, place = free.getsockname()[1], Path(folder) / "whole", Path(folder) / "model"
        free.close()
        native.save_model(build(config, 0), config, whole)
        quantize(whole, place, FORM)
        write_pieces(place, config.vocab_size)
        for repeat in range(args.repeats + 1):  # the first compiles the engine
            started = time.perf_counter()
            with served(place, port) as program:
                asyncio.run(until_served(port, Counter()))
                seconds = time.perf_counter() - started
                found = asyncio.run(killed(port, serving_process(program), args.clients))
                lines = Path(f"/proc/{program.pid}/smaps_rollup").read_text().splitlines()
            if repeat:
                starts.append(seconds)
                again.append(found["seconds"])
                statuses.update(found["statuses"])
                memory.append({line.split(":")[0]: int(line.split()[1]) for line in lines[1:]})
            print(round(seconds, 2), found, flush=True)
    write_of_machine(
        "serve-restart",
        {
            "shape": SHAPE,
            "form": FORM,
            "clients": args.clients,
            "start_seconds": spread(starts),
            "again_seconds": spread(again),
            "statuses_until_served": dict(statuses),
            "supervisor_kb": {name: memory[-1][name] for name in ("Rss", "Pss", "Private_Dirty")},
            "threads": os.cpu_count(),
        },
    )


if __name__ == "__main__":
    main()
