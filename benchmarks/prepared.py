"""What preparing data costs and gives: processes, kills, starts, memory, and object storage on loopback.

    python benchmarks/prepared.py texts --megabytes 4000 --work /large/folder   # continues: measured parts are kept
    python benchmarks/prepared.py processes --megabytes 40 --work /large/folder
    python benchmarks/prepared.py storage --work /large/folder                  # an S3 server of moto on loopback
    python benchmarks/prepared.py files --images 20000 --sounds 2000 --work /large/folder
    python benchmarks/prepared.py files --images 1000000 --sounds 100000 --alone --work /large/folder
    python benchmarks/prepared.py start --work /large/folder
    python benchmarks/prepared.py paper

- texts: text drawn by this script, prepared by one process of one thread and by two; two that are killed at random
  moments and started again must give the same bytes. A training on the shards and one on a little local text have the
  same model; each states its start, its memory and its tokens per second.
- processes: only the first part of texts: one process, and two.
- storage: two hosts, which are processes with caches of their own, read an epoch from S3. Both are killed, and three
  continue. The server answers slowly, with 403 and 500, and cuts answers short. Batches must be those from the folder.
- files: PNG images of 32 x 32 and sounds of one second, prepared by one process, by two, and by two that are killed and
  started again. A training on them and one on 2,000 of the files have the same model; each states its start, its memory
  and the processor time of its batches and steps.
- start: a training on a million prepared images of noise and one on 2,000: the start, memory, batches and steps.
- paper: the index, its memory and its time for 1e12 tokens.

Wall times mean little on a machine with other work, so processor seconds are stated next to them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
import wave
import zlib
from collections import Counter
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from faulty_storage import Faulty
from measure import RESULTS, report, write

TRAIN = {
    "train.steps": 40,
    "train.batch_tokens": 4096,
    "train.evaluate_every": 40,
    "train.evaluate_limit": 8,
    "model.width": 128,
    "model.depth": 2,
    "model.heads": 4,
}
VOCABULARY = 4096  # of the recipe text, so that trainings on prepared and local texts have the same model
FILE_BYTES = 20_000_000  # of text per file
KILLS = 4
FEW = 2000  # files of the training to compare with


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "headway", "data", "prepare", *map(str, arguments), "--threads", "1"]


def draw_texts(folder: Path, megabytes: int) -> None:
    """Documents of about 2,000 characters in .jsonl files, of words whose frequencies follow Zipf's law."""
    import numpy as np

    letters = "etaoinshrdlucmfwygpbvk"
    words = ["".join(random.Random(n).choices(letters, k=2 + n % 7)) for n in range(30_000)]
    weights = 1 / np.arange(1, len(words) + 1)
    cumulative = np.cumsum(weights / weights.sum())
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(-(-megabytes * 1_000_000 // FILE_BYTES)):
        path, rng = folder / f"{number:04d}.jsonl", np.random.default_rng(number)
        if path.exists():
            continue
        with open(path.with_suffix(".part"), "w") as file:
            while file.tell() < min(FILE_BYTES, megabytes * 1_000_000):
                chosen = np.searchsorted(cumulative, rng.random(400))
                file.write(json.dumps({"text": " ".join(words[i] for i in chosen.tolist())}) + "\n")
        path.with_suffix(".part").rename(path)


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def children(*commands: list[str]) -> dict[str, float]:
    """Run commands at the same time: wall and processor seconds, and the most memory of one."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    running = [subprocess.Popen(each, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for each in commands]
    if any(process.wait() for process in running):
        raise SystemExit(f"failed: {commands}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "wall_seconds": round(time.perf_counter() - start, 2),
        "processor_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 2),
        "peak_megabytes": round(after.ru_maxrss / 1024, 1),  # of all children until now
    }


def killed(source: Path, out: Path, items: int, *options: object) -> dict[str, Any]:
    """Two processes that are killed at random moments of the work; then one ends it. The number of kills, and the parts
    and shards of `items` that were finished at each.
    """
    chooser, kills, finished = random.Random(0), 0, []

    def count() -> int:
        return sum(len(list((out / ".work" / name).glob("*[0-9]"))) for name in ("parts", "shards"))

    for target in sorted(chooser.choices(range(items), k=KILLS)):
        pair = [subprocess.Popen(command(source, "--out", out, *options), stdout=-3, stderr=-3) for _ in range(2)]
        while count() < target and all(process.poll() is None for process in pair):
            time.sleep(0.05)
        time.sleep(chooser.uniform(0, 1))
        finished.append(count())
        for process in pair:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                kills += 1
            process.wait()
    subprocess.run(command(source, "--out", out, *options), check=True, stdout=-3, stderr=-3)
    return {"processes": kills, "items": items, "finished_items": finished}


def train_part(data: str, run: str) -> dict[str, Any]:
    """Train in this process: the seconds until the first step, tokens per second after it, and memory."""
    started = time.perf_counter()
    import headway as hw

    imported = time.perf_counter()
    result = hw.train("text", data=data, run=run, set=TRAIN, threads=1, samples=0, progress=False, seed=1)
    steps = [line for line in result.metrics if "tokens_per_second" in line]
    return {
        "start_seconds": round(result.summary["elapsed"] - result.summary["seconds"], 2),
        "import_seconds": round(imported - started, 2),
        "tokens_per_second": round(sum(line["tokens_per_second"] for line in steps) / max(1, len(steps))),
        "peak_megabytes": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    }


def open_part(data: str) -> dict[str, Any]:
    """Open a task and take the first batch, as a training does before its first step: seconds and memory."""
    import headway as hw  # noqa: F401
    from headway.config import override
    from headway.domains.text.recipes import text
    from headway.learn.recipe import open_task

    started, processor = time.perf_counter(), time.process_time()
    task = open_task(override(text(), TRAIN), Path("/nonexistent"), data)
    stream = task.batches("train")
    next(stream)
    first = time.perf_counter() - started
    spent = time.process_time() - processor
    before, count = time.process_time(), 200
    for _ in range(count):
        next(stream)
    return {
        "wall_seconds": round(first, 3),
        "processor_seconds": round(spent, 3),
        "milliseconds_per_batch": round(1000 * (time.process_time() - before) / count, 3),
        "peak_megabytes": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    }


def part(*arguments: str) -> dict[str, Any]:
    done = subprocess.run([sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def processes(work: Path, megabytes: int) -> dict[str, Any]:
    draw_texts(work / "texts", megabytes)
    result: dict[str, Any] = {"megabytes": megabytes, "files": len(list((work / "texts").glob("*.jsonl")))}
    for name, count in (("one", 1), ("two", 2)):
        shutil.rmtree(work / name, ignore_errors=True)
        size = ("--size", VOCABULARY)
        result[name] = children(*[command(work / "texts", *size, "--out", work / name)] * count)
    result["speedup_wall"] = round(result["one"]["wall_seconds"] / result["two"]["wall_seconds"], 2)
    result["extra_processor_share"] = round(
        result["two"]["processor_seconds"] / result["one"]["processor_seconds"] - 1, 3
    )
    return result


def texts(work: Path, megabytes: int, rounds: int) -> dict[str, Any]:
    result = processes(work, megabytes)
    index = json.loads((work / "one" / "index.json").read_text())
    result["shards"] = {split: len(shards) for split, shards in index["splits"].items()}
    shutil.rmtree(work / "killed", ignore_errors=True)
    items = sum(result["shards"].values()) + 1
    result["kills"] = killed(work / "texts", work / "killed", items, "--size", VOCABULARY)
    result["same_bytes"] = digests(work / "one") == digests(work / "two") == digests(work / "killed")
    result["index"] = {"bytes": (work / "one" / "index.json").stat().st_size, **index["counts"]}
    draw_texts(work / "little", 5)
    result["first_batch"] = {
        "prepared": part("part", "open", "--data", str(work / "one")),
        "little_local": part("part", "open", "--data", str(work / "little")),
    }
    for name, data in (("prepared", work / "one"), ("little_local", work / "little")):
        runs = result[f"training_{name}"] = []
        for _ in range(rounds):
            shutil.rmtree(work / "run", ignore_errors=True)
            runs.append(part("part", "train", "--data", str(data), "--run", str(work / "run")))
    return result


def host_part(data: str, rank: int, world: int, start: int, stop: int) -> dict[str, Any]:
    """Digests of the micro-batches of one host, from step `start` to `stop` of 6 micro-batches."""
    from headway.config import override
    from headway.domains.text.recipes import text
    from headway.learn import Shard
    from headway.learn.recipe import open_task

    settings = {"task.context": 64, "model.context": 64, "train.batch_tokens": 4096, "train.accumulate": 6}
    task = open_task(override(text(), settings), Path("/nonexistent"), data)
    found: dict[str, str] = {}
    stream = task.batches("train", Shard(rank, world, 6), start * 6)
    for number in Shard(rank, world, 6).indices(start * 6):
        if number >= stop * 6:
            break
        batch = next(stream)
        found[str(number)] = hashlib.sha256(batch.targets.numpy().tobytes()).hexdigest()
        print(f"batch {number}", file=sys.stderr, flush=True)
    return {"batches": found, "epoch": task.examples.batches_per_epoch()}


def start_host(work: Path, name: str, data: str, *numbers: int) -> subprocess.Popen[str]:
    environment = {**os.environ, "HEADWAY_CACHE": str(work / name)}
    order = [sys.executable, __file__, "part", "host", "--data", data, "--numbers", *map(str, numbers)]
    return subprocess.Popen(order, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def ended(process: subprocess.Popen[str]) -> dict[str, Any]:
    output, errors = process.communicate()
    if process.returncode:
        raise SystemExit(errors[-2000:])
    return json.loads(output.strip().splitlines()[-1])


def storage(work: Path) -> dict[str, Any]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    Faulty.target = "http://{}:{}".format(*server.get_host_and_port())
    Faulty.faults, Faulty.counts = Counter(), Counter()
    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Faulty)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    os.environ |= {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": Faulty.target,  # uploads are chunked, which the proxy does not pass on
        "AWS_MAX_ATTEMPTS": "1",
    }
    urlopen(
        Request(
            Faulty.target + "/bucket",
            method="PUT",
            headers={"Authorization": "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request"},
        )
    ).close()
    draw_texts(work / "storage", 20)
    for cache in work.glob("host*"):
        shutil.rmtree(cache)
    subprocess.run(command(work / "storage", "--out", work / "folder"), check=True, stdout=-3)
    subprocess.run(command(work / "storage", "--out", "s3://bucket/prepared"), check=True, stdout=-3)
    local = PreparedFolder(work / "folder")
    result: dict[str, Any] = {
        "same_index": local.index == read_object("prepared/index.json"),
        "shards": len(json.loads(local.index)["splits"]["train"]),
    }
    os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{proxy.server_port}"
    total = ended(start_host(work, "host-local", str(work / "folder"), 0, 1, 0, 1))
    steps = int(total["epoch"] // 6)
    expected = ended(start_host(work, "host-local", str(work / "folder"), 0, 1, 0, steps))["batches"]
    Faulty.counts.clear()
    Faulty.faults = Counter({"slow": 2, "error": 3, "short": 3})
    url, middle = "s3://bucket/prepared", steps // 2
    first, second = (start_host(work, f"host{rank}", url, rank, 2, 0, steps) for rank in range(2))
    assert second.stderr is not None
    for line in second.stderr:
        if line.startswith("batch") and int(line.split()[1]) >= middle * 6:
            break
    for process in (first, second):
        process.kill()
        process.wait()
    before = {name: count for name, count in Counter(Faulty.counts).items() if name.startswith("train")}
    hosts = [start_host(work, f"host{rank}", url, rank, 3, middle, steps) for rank in range(3)]
    batches = {name: digest for host in hosts for name, digest in ended(host)["batches"].items()}
    counts = {name: count for name, count in Faulty.counts.items() if name.startswith("train")}
    cached = sum(1 for rank in range(2) for _ in (work / f"host{rank}" / "shards").glob("*.safetensors"))
    result |= {
        "steps": steps,
        "resumed_at_step": middle,
        "faults_left": dict(Faulty.faults),
        "same_batches": all(expected[name] == digest for name, digest in batches.items()) and len(batches) > 0,
        "batches_compared": len(batches),
        "fetched_before_the_kill": sum(before.values()),
        "fetched_in_total": sum(counts.values()),
        "most_fetches_of_a_shard": max(counts.values()),
        "shards_in_the_caches_of_two": cached,
    }
    Faulty.forbid = True
    refused = start_host(work, "host-refused", url, 0, 1, 0, 1)
    result["forbidden"] = refused.communicate()[1].strip().splitlines()[-1].replace(str(work), "WORK")
    proxy.shutdown()
    server.stop()
    return result


class PreparedFolder:
    """The index of a local folder."""

    def __init__(self, folder: Path) -> None:
        self.index = (folder / "index.json").read_bytes()


def read_object(name: str) -> bytes:
    from headway.io.remote import RemoteFolder

    return RemoteFolder("s3://bucket").read(name)


def png(pixels: bytes, side: int) -> bytes:
    """A greyscale PNG."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = b"".join(b"\0" + pixels[n * side : (n + 1) * side] for n in range(side))
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 1)) + chunk(b"IEND", b"")


def draw_files(folder: Path, images: int, sounds: int) -> None:
    chooser = random.Random(0)
    for number in range(images):
        path = folder / "images" / f"class{number % 10}" / f"{number:07d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(bytes([chooser.randrange(256)]) * 512 + chooser.randbytes(512), 32))
    for number in range(sounds):
        path = folder / "sounds" / f"class{number % 10}" / f"{number:07d}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        with wave.open(str(path), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(16_000)
            file.writeframes(chooser.randbytes(32_000))


def samples_part(recipe: str, data: str) -> dict[str, Any]:
    """Open a task and train a small model for 20 steps: the start, the time of batches and steps, and memory."""
    started, processor = time.perf_counter(), time.process_time()
    import headway as hw  # noqa: F401
    from headway.config import override
    from headway.domains import recipe as find_recipe
    from headway.learn.recipe import open_task
    from headway.nn.models import build

    size = {"model.embed.size": [32, 32], "model.embed.channels": 1} if recipe == "vision" else {"task.seconds": 1.0}
    small = {"model.width": 64, "model.depth": 2, "model.heads": 2, "train.batch_size": 64}
    settings = override(find_recipe(recipe), {**small, **size})
    task = open_task(settings, Path("/nonexistent"), data)
    stream = iter(task.batches("train"))
    next(stream)
    first, spent = time.perf_counter() - started, time.process_time() - processor
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    before, batches = time.process_time(), [next(stream) for _ in range(20)]
    read = time.process_time() - before
    model = build(task.adapt(settings.model))
    before = time.process_time()
    for batch in batches:
        loss = task.objective.loss(model, batch)["loss"]
        (loss.total / loss.count).backward()
    return {
        "start_wall_seconds": round(first, 2),
        "start_processor_seconds": round(spent, 2),
        "start_peak_megabytes": round(peak, 1),
        "milliseconds_per_batch": round(50 * read, 3),
        "milliseconds_per_step": round(50 * (time.process_time() - before + read), 3),
        "peak_megabytes": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    }


def noise_images(out: Path, count: int) -> None:
    """Prepared images of 32 x 32 grey pixels of noise in ten classes, as `headway data prepare` would write them."""
    import numpy as np

    from headway.data.prepared.sample_shards import TABLE_FILE
    from headway.data.prepared.shard_files import write_shard
    from headway.data.prepared.shard_index import ShardFile, ShardIndex

    out.mkdir(parents=True)
    shards, keys, checksums, per_shard = [], [], [], 1 << 16
    for number, first in enumerate(range(0, count, per_shard)):
        pixels = np.random.default_rng(number).integers(0, 256, (min(per_shard, count - first), 1024), np.uint8)
        contents = [row.tobytes() for row in pixels]
        keys += [hashlib.blake2b(content, digest_size=8).digest() for content in contents]
        checksums += list(map(zlib.crc32, contents))
        name = f"train-{number:05d}.safetensors"
        digest = write_shard(out / name, {"data": pixels.reshape(-1)})
        shards.append(ShardFile(name, (out / name).stat().st_size, digest, len(pixels), pixels.size))
    names = [f"images/class{number % 10}/{number:07d}.png".encode() for number in range(count)]
    table = {
        "keys": np.frombuffer(b"".join(keys), np.uint8).reshape(count, 8),
        "checksums": np.array(checksums, np.uint32),
        "positions": np.arange(count),
        "sizes": np.full(count, 1024),
        "lengths": np.ones(count, np.int64),
        "flags": np.zeros(count, np.uint8),
        "splits": np.zeros(count, np.uint8),
        "labels": (np.arange(count) % 10).astype(np.uint32),
        "label_text": np.frombuffer(b"".join(b"class%d" % n for n in range(10)), np.uint8),
        "label_offsets": np.arange(11) * 6,
        "name_text": np.frombuffer(b"".join(names), np.uint8),
        "name_offsets": np.cumsum([0, *map(len, names)]),
    }
    digest = write_shard(out / TABLE_FILE, table)
    details = {"shape": [32, 32, 1], "from_folders": True}
    index = ShardIndex(
        "images",
        {"train": tuple(shards)},
        {"samples": count},
        {},
        {TABLE_FILE: ((out / TABLE_FILE).stat().st_size, digest)},
        details,
    )
    (out / "index.json").write_text(json.dumps(index.to_json()))


def start(work: Path, images: int) -> dict[str, Any]:
    os.environ["HEADWAY_CACHE"] = str(work / "cache")
    row: dict[str, Any] = {}
    for name, count in (("few", FEW), ("many", images)):
        if not (work / f"noise-{count}").exists():
            noise_images(work / f"noise-{count}", count)
        table = (work / f"noise-{count}" / "samples.safetensors").stat().st_size
        row[name] = {
            "images": count,
            "table_bytes": table,
            **part("part", "vision", "--data", str(work / f"noise-{count}")),
        }
    return row


def files(work: Path, images: int, sounds: int, alone: bool) -> dict[str, Any]:
    result: dict[str, Any] = {}
    os.environ["HEADWAY_CACHE"] = str(work / "cache")
    for kind, recipe, count in (("images", "vision", images), ("sounds", "audio", sounds)):
        if not count:
            continue
        for name, size in (("files", count), ("few", min(count, FEW))):
            if not (work / name / kind / "complete").exists():
                shutil.rmtree(work / name / kind, ignore_errors=True)
                draw_files(work / name, size if kind == "images" else 0, size if kind == "sounds" else 0)
                (work / name / kind / "complete").touch()
        source = work / "files" / kind
        row: dict[str, Any] = {"files": count}
        for name, processes in (("one", 1), ("two", 2))[: 1 if alone else 2]:
            shutil.rmtree(work / f"{kind}-{name}", ignore_errors=True)
            row[name] = children(*[command(source, "--kind", kind, "--out", work / f"{kind}-{name}")] * processes)
        index = json.loads((work / f"{kind}-one" / "index.json").read_text())
        shards = sum(map(len, index["splits"].values()))
        if not alone:
            row["extra_processor_share"] = round(
                row["two"]["processor_seconds"] / row["one"]["processor_seconds"] - 1, 3
            )
            out = work / f"{kind}-killed"
            shutil.rmtree(out, ignore_errors=True)
            row["kills"] = killed(source, out, shards + 1, "--kind", kind)
            row["same_bytes"] = digests(work / f"{kind}-one") == digests(work / f"{kind}-two") == digests(out)
        row["shards"], row["bytes"] = shards, index["counts"]["units"]
        row["table_bytes"] = (work / f"{kind}-one" / "samples.safetensors").stat().st_size
        row["prepared"] = part("part", recipe, "--data", str(work / f"{kind}-one"))
        part("part", recipe, "--data", str(work / "few" / kind))  # fills the cache
        row["few_local"] = part("part", recipe, "--data", str(work / "few" / kind))
        result[kind] = row
        report({kind: row})
    return result


def paper() -> dict[str, Any]:
    """An index for 1e12 tokens in uint16: it is made, written, read and dealt."""
    import numpy as np

    from headway.data.prepared.shard_index import ShardFile, ShardIndex, parse_index
    from headway.data.prepared.shard_order import ShardOrder
    from headway.io.durable import decode_json

    tokens, size = 10**12, 1 << 26
    count = -(-2 * tokens // size)
    shards = tuple(
        ShardFile(f"train-{n:05d}.safetensors", size, hashlib.sha256(str(n).encode()).hexdigest(), 33_000, size // 2)
        for n in range(count)
    )
    details = {"dtype": "uint16", "fingerprint": "f", "vocab_size": 1 << 16}
    content = json.dumps(ShardIndex("texts", {"train": shards}, {"units": tokens}, {}, {}, details).to_json()).encode()
    started = time.process_time()
    index = parse_index(decode_json(content, "index"), "index", hashlib.sha256(content).hexdigest())
    parsed = time.process_time() - started
    sizes = [-(-(shard.units - shard.samples) // 2048) for shard in index.splits["train"]]
    started = time.process_time()
    order = ShardOrder(sizes, 64, 0)
    epoch = sum(sizes)
    order.rows(0, np.arange(epoch // 64, epoch // 64 + 32))
    return {
        "tokens": tokens,
        "shards": count,
        "index_megabytes": round(len(content) / 1e6, 2),
        "index_seconds": round(parsed, 2),
        "seconds_to_find_the_place_after_an_epoch": round(time.process_time() - started, 2),
        "peak_megabytes": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("texts", "storage", "files", "start", "processes", "paper", "part"))
    parser.add_argument("name", nargs="?")
    parser.add_argument("--work", type=Path)
    parser.add_argument("--data")
    parser.add_argument("--run")
    parser.add_argument("--numbers", type=int, nargs="*")
    parser.add_argument("--megabytes", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--alone", action="store_true", help="files: prepare with one process, without kills")
    parser.add_argument("--sounds", type=int, default=100_000)
    args = parser.parse_args()
    if args.what == "part":
        report(
            host_part(args.data, *args.numbers)
            if args.name == "host"
            else open_part(args.data)
            if args.name == "open"
            else samples_part(args.name, args.data)
            if args.name in ("vision", "audio")
            else train_part(args.data, args.run)
        )
        return
    started = time.process_time() + sum(os.times()[2:4])
    if args.what == "texts":
        measured = texts(args.work, args.megabytes, args.rounds)
    elif args.what == "storage":
        measured = storage(args.work)
    elif args.what == "processes":
        measured = processes(args.work, args.megabytes)
    elif args.what == "start":
        measured = start(args.work, args.images)
    else:
        measured = files(args.work, args.images, args.sounds, args.alone) if args.what == "files" else paper()
    measured["core_minutes"] = round((time.process_time() + sum(os.times()[2:4]) - started) / 60, 2)
    measured["load"] = [round(load, 1) for load in os.getloadavg()]
    path = RESULTS / "prepared.json"  # read now, because another part may have been measured at the same time
    result = json.loads(path.read_text()) if path.exists() else {}
    names = ("texts", "storage", "files", "many_files", "start", "processes", "paper")
    parts = {name: result[name] for name in names if name in result}
    what = "many_files" if args.alone else args.what
    write("prepared", {**parts, what: {**(parts.get(what, {}) if args.alone else {}), **measured}})


if __name__ == "__main__":
    main()
