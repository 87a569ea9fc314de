"""`headway data prepare`: write data of any size as shards that a training reads from an index."""

from __future__ import annotations

import argparse
import os
from functools import partial
from pathlib import Path
from typing import Any

from headway.app.cli.launcher import launch
from headway.app.cli.main import run_job
from headway.app.cli.options import integer, number
from headway.app.cli.terminal import Terminal
from headway.errors import UserError

EXAMPLE = """
headway data prepare books/ --out prepared/ --processes 8
headway data prepare s3://bucket/books --out s3://bucket/prepared
headway train text --data prepared/
"""
CODECS = ("bpe", "wordpiece", "unigram", "word", "char", "byte")


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("paths", nargs="+", type=Path, metavar="PATH|URL", help="text files, folders, archives, URLs")
    add("--out", type=Path, required=True, metavar="DIR|URL", help="output; the same command continues there")
    add(
        "--processes",
        type=integer(1),
        default=1,
        metavar="N",
        help="number of processes that share the work (default: 1)",
    )
    kinds = "texts for the recipe text, or files: the data of any other recipe as they are (default: texts)"
    add("--kind", choices=("texts", "files"), default="texts", help=kinds)
    add("--unique", action="store_true", help="drop exact duplicates, which are otherwise only counted")
    add("--tokenizer", metavar="FILE|MODEL", help="published tokenizer, or that of a run (default: train a new one)")
    kinds = f"kind of the new tokenizer: {', '.join(CODECS)} (default: bpe)"
    add("--codec", choices=CODECS, default="bpe", metavar="KIND", help=kinds)
    size = "maximum vocabulary size of the new tokenizer (default: 8192)"
    add("--size", type=integer(1), default=8192, metavar="N", help=size)
    for split in ("validation", "test"):
        share = f"share to hold out for {split} (default: 5 %%, at most 16 MB of text)"
        add(f"--{split}", type=number(0, 1), metavar="SHARE", help=share)


def run(args: argparse.Namespace, terminal: Terminal) -> None:
    cores = os.cpu_count() or 1
    if args.processes > cores:
        raise UserError(f"{args.processes} processes are too many for {cores} cores; use at most --processes {cores}")
    # Rust's thread pool of the tokenizers, which reads this when it starts.
    os.environ["RAYON_NUM_THREADS"] = str(args.threads or max(1, cores // args.processes))
    if args.processes > 1:
        job = partial(_job, args)
        code = launch(args.processes, job, remedy="run the same command again to continue")
        if code:
            raise SystemExit(code)
    else:
        _work(args, terminal)
    _report(args, terminal)


def _job(args: argparse.Namespace) -> int:
    return run_job(partial(_work, args, Terminal(args.json)), args.debug)


def _work(args: argparse.Namespace, terminal: Terminal) -> None:
    from headway.data.prepared.packed_files import PackedFiles
    from headway.data.prepared.preparation import Preparation, PrepareConfig
    from headway.data.prepared.text_blocks import text_files
    from headway.domains.text.text_shards import TextKind

    seed = args.seed or 0
    if args.kind == "files":
        kind = PackedFiles(args.paths)
    else:
        kind = TextKind(text_files(args.paths), args.codec, args.size, args.tokenizer, seed)
    config = PrepareConfig(args.unique, args.validation, args.test, seed)
    if not Preparation(kind, config, args.out, terminal.note).run():
        terminal.note(f"{args.out} was prepared before from the same files")


def _report(args: argparse.Namespace, terminal: Terminal) -> None:
    from headway.data.prepared.shard_reader import PreparedData

    data = PreparedData(args.out)
    index = data.index
    counts: dict[str, Any] = dict(index.counts)
    for split, shards in index.splits.items():
        if shards:
            size = sum(shard.bytes for shard in shards)
            terminal.print(f"{split}: {len(shards):,} shards, {size / 1e6:,.1f} MB")
    terminal.print(", ".join(f"{name.replace('_', ' ')}: {count:,}" for name, count in counts.items()))
    recipe = "text" if index.kind == "texts" else "RECIPE"
    terminal.print(f"use it: headway train {recipe} --data {data.name}")
    terminal.print_result({"path": data.name, "kind": index.kind, "counts": counts, "digest": index.digest})
