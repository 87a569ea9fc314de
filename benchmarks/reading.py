"""What the limits on strangers' files cost: good files read by this checkout and by another one, in turn.

    python benchmarks/reading.py --beside ../before/src     # a checkout from before the limits; five minutes

Each reading has a process of its own, which reads once to warm up and then several times; what counts is the least
processor time, as a busy machine adds to it and never takes away. The files are drawn, of the kinds that people have.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import json
import os
import struct
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from measure import child, report, write

ROUNDS, REPEATS = 3, 4
SAID = "the a cat dog bird sat ran flew on over mat road hill big small red blue green man woman saw took gave"


def lines(count: int) -> list[str]:
    words = SAID.split()
    return [" ".join(words[(n * n + 7 * k) % len(words)] for k in range(5 + n % 40)) for n in range(count)]


def make(folder: Path) -> None:
    """The files of all readings, with the house's tokenizer and a small model among them."""
    import numpy as np
    import soundfile

    import headway as hw
    from headway.codecs import train_codec
    from headway.formats import native
    from headway.nn.models import build
    from headway.nn.models.presets import preset

    texts = lines(100_000)
    (folder / "a.txt").write_text("\n".join(texts))
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    table = io.StringIO()
    csv.writer(table).writerows([("text", "label"), *((text, "abc"[n % 3]) for n, text in enumerate(texts))])
    (folder / "a.csv").write_text(table.getvalue())
    (folder / "a.csv.gz").write_bytes(gzip.compress(table.getvalue().encode(), 6))
    pixels = np.random.default_rng(0).integers(0, 256, (20_000, 28, 28), np.uint8) // 64
    (folder / "pixels-idx3-ubyte.gz").write_bytes(
        gzip.compress(struct.pack(">4i", 0x803, *pixels.shape) + pixels.tobytes(), 6)
    )
    waves = np.sin(np.arange(16_000 * 120) / 30).astype(np.float32) / 2
    soundfile.write(folder / "a.flac", waves, 16_000)
    train_codec("bpe", texts[:2000], 300).save(folder / "codec")
    config: Any = preset("gpt2")
    native.save_model(build(config, 0), config, folder / "model")
    assert hw.load(folder / "model")


def used(items: Iterable[Any]) -> None:
    deque(items, maxlen=0)


def readings(folder: Path) -> dict[str, Callable[[], object]]:
    import headway as hw
    from headway.codecs.published_tokenizers import published_codec
    from headway.data.corpus import iter_documents
    from headway.data.labelled_files import read_idx
    from headway.data.table_files import read_table
    from headway.domains.audio.sound_files import FileSound

    columns = {"text": "text", "label": "label"}
    return {
        "text": lambda: used(iter_documents([folder / "a.txt"])),
        "JSON lines": lambda: used(iter_documents([folder / "a.jsonl"])),
        "CSV": lambda: read_table([folder / "a.csv"], columns),
        "CSV in gzip": lambda: read_table([folder / "a.csv.gz"], columns),
        "IDX in gzip": lambda: read_idx(folder / "pixels-idx3-ubyte.gz", 3),
        "FLAC": lambda: used(FileSound(folder / "a.flac").blocks()),
        "tokenizer.json": lambda: [published_codec(folder / "codec") for _ in range(20)],
        "model of 124M": lambda: hw.load(folder / "model"),
    }


def part(name: str, folder: Path) -> dict[str, Any]:
    reading = readings(folder)[name]
    reading()
    spent = []
    for _ in range(REPEATS):
        started = time.process_time()
        reading()
        spent.append(time.process_time() - started)
    return {"seconds": min(spent)}


def call_of_a_template() -> dict[str, float]:
    """Milliseconds of the clock of one call in the process that is kept for templates: the least and the median."""
    from headway.codecs.chat_template import ChatTemplate

    template = ChatTemplate("{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}\n{% endfor %}", source="a")
    spent = []
    for number in range(1000):  # each is another, as results are kept
        said = [{"role": "user", "content": f"Who is number {number}?"}]
        started = time.perf_counter()
        template.render(said, add_generation_prompt=False)
        spent.append(1000 * (time.perf_counter() - started))
    spent = sorted(spent[100:])
    return {"least_ms": round(spent[0], 3), "median_ms": round(spent[len(spent) // 2], 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--beside", type=Path, metavar="SRC", help="the folder src of the other checkout")
    parser.add_argument("--part", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        return report(part(args.part[0], Path(args.part[1])))
    if args.beside is None or not (args.beside / "headway").is_dir():
        sys.exit("reading.py: --beside is to name the folder src of another checkout")
    sides = {"here": Path(__file__).parent.parent / "src", "beside": args.beside}
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        make(folder)
        for name in readings(folder):
            least = dict.fromkeys(sides, float("inf"))
            for _ in range(ROUNDS):
                for side, source in sides.items():
                    os.environ["PYTHONPATH"] = str(source.resolve())
                    try:
                        least[side] = min(least[side], child("reading.py", "--part", name, place)["seconds"])
                    except subprocess.CalledProcessError as error:
                        sys.exit(f"reading.py: {name} failed {side} with {error.returncode}")
            more = least["here"] / least["beside"] - 1
            found[name] = {**{side: round(seconds, 4) for side, seconds in least.items()}, "more": round(more, 4)}
            print(name, found[name], file=sys.stderr)
    commit = subprocess.run(
        ["git", "-C", str(args.beside), "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    )
    write(
        "reading",
        {
            "rounds": ROUNDS,
            "repeats": REPEATS,
            "beside": commit.stdout.strip(),
            "readings": found,
            "template": call_of_a_template(),
        },
    )
    return None


if __name__ == "__main__":
    main()
