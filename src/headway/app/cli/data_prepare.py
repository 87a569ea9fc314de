"""`headway data prepare`: write data of any size as shards that a training reads from an index."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headway.app.cli.launcher import launch
from headway.app.cli.main import run_job
from headway.app.cli.options import integer, number
from headway.app.cli.terminal import Terminal
from headway.errors import UserError
from headway.io.durable import remove
from headway.io.remote import remote_url

if TYPE_CHECKING:
    from headway.data.labelled_files import LabelledFiles
    from headway.data.prepared.preparation import Kind, Preparation
    from headway.data.prepared.remote_sources import SourceFiles
    from headway.data.prepared.sample_shards import SampleEncoder
    from headway.learn.token_shards import RowReader

EXAMPLE = """
headway data prepare books/ --out prepared/ --processes 8
headway data prepare s3://bucket/books --out s3://bucket/prepared
headway train text --data prepared/
headway data prepare books/ --part 1/3 --out parts/
headway data prepare books/ --join parts/ --out prepared/
headway data prepare pets/ --kind images --out prepared-pets/
headway data prepare reviews.csv --kind labelled-texts --columns label=stars --out prepared-reviews/
"""
CODECS = ("bpe", "wordpiece", "unigram", "word", "char", "byte")


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("paths", nargs="+", type=Path, metavar="PATH|URL", help="files, folders, archives, URLs")
    add("--out", type=Path, required=True, metavar="DIR|URL", help="output; the same command continues there")
    add(
        "--processes",
        type=integer(1),
        default=1,
        metavar="N",
        help="number of processes that share the work (default: 1)",
    )
    part = "write only this part, for hosts without a shared folder: I/N, auto, or auto/N"
    add("--part", dest="share", metavar="I/N", help=part)
    joined = "folder with the parts of all hosts, from which the output is made, with the same other arguments"
    add("--join", dest="joined", type=Path, metavar="DIR", help=joined)
    kinds = f"what to train on: {', '.join(tuple(_KINDS)[:-1])}; or files: any data as they are (default: texts)"
    add("--kind", choices=tuple(_KINDS), default="texts", metavar="KIND", help=kinds)
    columns = "columns of tables that have other names than text, text2 and label"
    add("--columns", type=_column, nargs="+", default=[], metavar="USE=NAME", help=columns)
    separate = "train a tokenizer per language of translations, as task.shared=false"
    add("--separate", action="store_true", help=separate)
    prefix = "text before each source of translations, as task.prefix"
    add("--prefix", default="", metavar="TEXT", help=prefix)
    add("--unique", action="store_true", help="drop exact duplicates, which are otherwise only counted")
    add("--tokenizer", metavar="FILE|MODEL", help="published tokenizer, or that of a run (default: train a new one)")
    kinds = f"kind of the new tokenizer: {', '.join(CODECS)} (default: bpe)"
    add("--codec", choices=CODECS, metavar="KIND", help=kinds)
    size = "maximum vocabulary size of the new tokenizer (default: 8192; of bytes, what they need)"
    add("--size", type=integer(1), metavar="N", help=size)
    for split in ("validation", "test"):
        share = f"share to hold out for {split} (default: 5 %%, at most 16 MB of text; other data: when you train)"
        add(f"--{split}", type=number(0, 1), metavar="SHARE", help=share)
    unlabelled = "prepare images or sounds without labels, for --pretrain, masked-images and masked-sounds"
    add("--unlabelled", action="store_true", help=unlabelled)
    pixels = "height and width of prepared images (default: suited to a sample of them)"
    add("--pixels", type=integer(1), nargs=2, metavar=("HEIGHT", "WIDTH"), help=pixels)
    channels = "channels of prepared images (default: 1 if a sample of them is grey)"
    add("--channels", type=integer(1), choices=(1, 3), metavar="1|3", help=channels)
    add("--skip-bad", action="store_true", help="leave out images and sounds that cannot be read, and count them")


def run(args: argparse.Namespace, terminal: Terminal) -> None:
    for name, kinds in _KINDS_OF_OPTIONS.items():
        if getattr(args, name) and args.kind not in kinds:
            option = name.replace("_", "-")
            raise UserError(f"--{option} does not apply to --kind {args.kind}; use {' or '.join(kinds)}, or remove it")
    args.codec = args.codec or "bpe"
    if args.size is None and args.codec != "byte":
        args.size = 8192
    cores = os.cpu_count() or 1
    if args.processes > cores:
        raise UserError(f"{args.processes} processes are too many for {cores} cores; use at most --processes {cores}")
    # Rust's thread pool of the tokenizers, which reads this when it starts.
    os.environ["RAYON_NUM_THREADS"] = str(args.threads or max(1, cores // args.processes))
    if args.share is not None:
        _write_part(args, terminal)
        return
    if args.processes > 1:
        job = partial(_job, args)
        code = launch(args.processes, job, remedy="run the same command again to continue")
        if code:
            raise SystemExit(code)
    else:
        _work(args, terminal)
    remove(_sources_folder(args))
    _report(args, terminal)


def _job(args: argparse.Namespace) -> int:
    return run_job(partial(_work, args, Terminal(args.json)), args.debug)


def _column(text: str) -> tuple[str, str]:
    use, equals, name = text.partition("=")
    if not (use and equals and name):
        raise argparse.ArgumentTypeError(f"{text!r} does not name a column; use a form such as label=stars")
    return use, name


def _texts(args: argparse.Namespace, sources: SourceFiles) -> Kind:
    from headway.data.prepared.text_blocks import text_files
    from headway.domains.text.text_shards import TextKind

    return TextKind(text_files(args.paths), args.codec, args.size, args.tokenizer, args.seed or 0)


def _files(args: argparse.Namespace, sources: SourceFiles) -> Kind:
    from headway.data.prepared.packed_files import PackedFiles

    if args.validation is not None or args.test is not None:
        raise UserError("files are split when you train; remove --validation and --test")
    return PackedFiles(sources)


def _images(args: argparse.Namespace, sources: SourceFiles) -> Kind:
    from headway.domains.vision.image_shards import ImageEncoder

    size = None if args.pixels is None else tuple(args.pixels)
    encoder = ImageEncoder(size, args.channels, args.unlabelled)
    return _samples(encoder, encoder.read(sources.paths), args, sources)


def _captions(args: argparse.Namespace, sources: SourceFiles) -> Kind:
    from headway.domains.image_text.caption_shards import CaptionEncoder

    encoder = CaptionEncoder(args.kind, None if args.pixels is None else tuple(args.pixels))
    return _samples(encoder, encoder.read(sources.paths), args, sources)


def _sounds(args: argparse.Namespace, sources: SourceFiles) -> Kind:
    from headway.data.labelled_files import read_labelled_files
    from headway.data.unlabelled_files import label_free
    from headway.domains.audio.sound_files import AUDIO_EXTENSIONS
    from headway.domains.audio.sound_shards import SoundEncoder
    from headway.domains.audio.unlabelled_sounds import read_files

    if args.unlabelled:
        return _samples(SoundEncoder(), label_free(read_files(sources.paths)), args, sources)
    return _samples(SoundEncoder(), read_labelled_files(sources.paths, AUDIO_EXTENSIONS, "sound"), args, sources)


def _transcripts(args: argparse.Namespace, sources: SourceFiles) -> Kind:
    from headway.data.labelled_files import LabelledFiles
    from headway.domains.audio.sound_files import read_transcripts
    from headway.domains.audio.sound_shards import TranscriptEncoder

    if args.validation is not None or args.test is not None:
        raise UserError("transcripts are split by their words when you train; remove --validation and --test")
    found = read_transcripts(
        sources.paths,
        skip=args.skip_bad,
        skip_remedy="leave such samples out with --skip-bad",
        column_remedy="name the columns path and text",
    )
    names = list(map(str, found.files))
    labelled = LabelledFiles(found.files, found.texts, found.named_splits, names, from_folders=False)
    return _samples(TranscriptEncoder(), labelled, args, sources)


def _labelled_texts(args: argparse.Namespace, sources: SourceFiles) -> Kind:
    from headway.domains.understanding.labelled_text_shards import LabelledTextReader

    return _rows(LabelledTextReader(args.kind, sources.paths, dict(args.columns), args.codec, args.size), args)


def _pairs(args: argparse.Namespace, sources: SourceFiles) -> Kind:
    from headway.domains.translation.pair_shards import PairReader
    from headway.domains.translation.pronunciation import PronounceConfig
    from headway.domains.translation.translation import TranslationConfig

    if args.kind == "pronunciations":
        return _rows(PairReader(PronounceConfig(), sources.paths, "word", None), args)
    if args.separate and args.tokenizer is not None:
        raise UserError("--separate trains a tokenizer per language, but --tokenizer names theirs; remove one of them")
    config = TranslationConfig(codec=args.codec, size=args.size, prefix=args.prefix)
    vocabularies = 2 if args.separate or args.tokenizer is not None else 1
    return _rows(PairReader(config, sources.paths, args.codec, args.size, vocabularies), args)


def _chats(args: argparse.Namespace, sources: SourceFiles) -> Kind:
    from headway.domains.chat.chat_samples import CONVERSATIONS, PREFERENCES
    from headway.domains.chat.chat_shards import ChatReader

    kind = PREFERENCES if args.kind == PREFERENCES.name else CONVERSATIONS
    if kind is PREFERENCES and args.tokenizer is None:
        raise UserError("preferences are for a model that can already answer; name it with --tokenizer")
    return _rows(ChatReader(kind, sources.paths, args.codec, args.size, args.tokenizer), args)


def _rows(reader: RowReader, args: argparse.Namespace) -> Kind:
    from headway.learn.token_shards import RowKind

    has_splits = args.validation is not None or args.test is not None
    return RowKind(reader, args.tokenizer, args.seed or 0, has_splits)


def _samples(encoder: SampleEncoder, labelled: LabelledFiles, args: argparse.Namespace, sources: SourceFiles) -> Kind:
    from headway.data.prepared.sample_shards import SampleKind

    has_splits = args.validation is not None or args.test is not None
    return SampleKind(encoder, labelled, args.seed or 0, args.skip_bad, has_splits, sources)


_KINDS: dict[str, Callable[[argparse.Namespace, SourceFiles], Kind]] = {
    "texts": _texts,
    "images": _images,
    "sounds": _sounds,
    "transcripts": _transcripts,
    "image-text": _captions,
    "caption": _captions,
    "labelled-texts": _labelled_texts,
    "labelled-pairs": _labelled_texts,
    "translations": _pairs,
    "pronunciations": _pairs,
    "conversations": _chats,
    "preferences": _chats,
    "files": _files,
}
_LABELLED, _IMAGES = ("labelled-texts", "labelled-pairs"), ("images", "image-text", "caption")
_ROWS = (*_LABELLED, "translations", "conversations", "pronunciations", "preferences")
_TRAINED = ("texts", *_LABELLED, "translations", "conversations")  # kinds whose tokenizer is of any kind and size
_KINDS_OF_OPTIONS = {
    "tokenizer": ("texts", *_ROWS),
    "codec": _TRAINED,
    "size": _TRAINED,
    "columns": _LABELLED,
    "separate": ("translations",),
    "prefix": ("translations",),
    "unlabelled": ("images", "sounds"),
    "pixels": _IMAGES,
    "channels": ("images",),
    "skip_bad": (*_IMAGES, "sounds", "transcripts"),
}
_RECIPES = {
    "texts": "text",
    "images": "vision",
    "sounds": "audio",
    "transcripts": "transcription",
    "labelled-texts": "classification",
    "labelled-pairs": "pairs",
    "translations": "translation",
    "pronunciations": "pronounce",
    "conversations": "instruct",
    "preferences": "preference",
}
_TITLES = {"units": "tokens", "text_bytes": "bytes of text"}  # of counts of texts


def _work(args: argparse.Namespace, terminal: Terminal) -> None:
    with _preparation(args, terminal) as preparation:
        if not preparation.run():
            terminal.note(f"{preparation.name} was prepared before from the same files")


@contextmanager
def _preparation(args: argparse.Namespace, terminal: Terminal) -> Iterator[Preparation]:
    from headway.data.corpus import PAIR_KINDS
    from headway.data.input_files import ARCHIVES
    from headway.data.prepared.preparation import Preparation, PrepareConfig
    from headway.data.prepared.remote_sources import LOCAL, SourceFiles
    from headway.data.table_files import TABLE_KINDS

    config = PrepareConfig(args.unique, args.validation, args.test, args.seed or 0)
    if args.kind == "texts":  # read by blocks of their own
        sources = LOCAL
    elif args.kind == "files":
        sources = SourceFiles(args.paths, _sources_folder(args))
    elif args.kind in _ROWS:
        sources = SourceFiles(args.paths, _sources_folder(args), (*TABLE_KINDS, *PAIR_KINDS, *ARCHIVES))
    else:
        sources = SourceFiles(args.paths, _sources_folder(args), TABLE_KINDS, siblings=True)
    with sources.named_errors():
        yield Preparation(_KINDS[args.kind](args, sources), config, args.out, terminal.note, args.joined)


def _sources_folder(args: argparse.Namespace) -> Path:
    """A folder for this command's copies of what is behind addresses."""
    from headway.data.array_store import cache_key
    from headway.io.cache import cache_root

    return cache_root() / cache_key("sources", args.kind, list(map(str, args.paths)), str(args.out), args.share)


def _write_part(args: argparse.Namespace, terminal: Terminal) -> None:
    from headway.app.shares import parse_part

    if args.joined is not None or args.processes > 1:
        raise UserError("--part writes one part with one process; remove --join and --processes")
    if (url := remote_url(args.out)) is not None:
        raise UserError(f"--part writes to a local folder, not to {url}; pass another --out, and {url} with --join")
    part = parse_part(args.share)
    with _preparation(args, terminal) as preparation:
        folder = preparation.write_part(*part)
    remove(_sources_folder(args))
    terminal.print(f"part {part} is complete: {folder}")
    terminal.print(f"when all parts are in one folder: the same command with --join {args.out} and another --out")
    terminal.print_result({"path": folder, "part": part.number, "parts": part.count})


def _report(args: argparse.Namespace, terminal: Terminal) -> None:
    from headway.data.prepared.shard_reader import PreparedData

    data = PreparedData(args.out)
    index = data.index
    counts: dict[str, Any] = dict(index.counts)
    for split, shards in index.splits.items():
        if shards:
            size = sum(shard.bytes for shard in shards)
            number = "1 shard" if len(shards) == 1 else f"{len(shards):,} shards"
            terminal.print(f"{split}: {number}, {size / 1e6:,.1f} MB")
    shown = counts if index.kind == "texts" else {name: counts[name] for name in ("samples", "duplicates", "removed")}
    terminal.print(", ".join(f"{_TITLES.get(name, name)}: {count:,}" for name, count in shown.items()))
    recipe = _RECIPES.get(index.kind, "RECIPE" if index.kind == "files" else index.kind)
    if args.unlabelled:
        terminal.print(f"use it: headway train {recipe} --data LABELLED --pretrain {data.name} --minutes M")
        terminal.print(f"or, without labels: headway train masked-{index.kind} --data {data.name} --minutes M")
    else:
        changed = [f"task.{use}={name}" for use, name in args.columns]
        changed += [f"task.prefix={args.prefix}"] if args.prefix else []
        changed += ["task.shared=false", "model.tie=head"] if args.separate else []
        settings = f" --set {shlex.join(changed)}" if changed else ""
        start = f" --from {shlex.quote(args.tokenizer)}" if args.kind == "preferences" else ""
        terminal.print(f"use it: headway train {recipe} --data {data.name}{start}{settings}")
    terminal.print_result({"path": data.name, "kind": index.kind, "counts": counts, "digest": index.digest})
