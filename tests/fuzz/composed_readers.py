"""Readers of files that are composed: of valid structure, with hostile values."""

from __future__ import annotations

import io
import json
import random
from collections import deque
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

from grammar_data import Parquet, composed_csv, composed_epd, composed_lines, composed_pgn, composed_template
from grammar_models import composed_config, composed_gguf, composed_recipe, composed_tensors, composed_torch
from model_readers import (
    config_seeds,
    gguf_seeds,
    read_config_file,
    read_gguf,
    read_tensors,
    read_torch,
    tensor_seeds,
    torch_seeds,
)
from mutate import half_mild
from run import Reader

from headway.app.runs import read_recipe
from headway.codecs.chat_template import ChatTemplate
from headway.config import dumps
from headway.data.corpus import iter_documents, iter_pairs
from headway.data.dialogues import find_chat_files, read_chats
from headway.data.series import SeriesColumns, read_series
from headway.data.table_files import read_table
from headway.domains import recipes
from headway.errors import UserError
from headway.nn.models import describe

TOLD = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "I, a\nman."}]


def _each(*reads: Callable[[], Any]) -> None:
    """What several read, each of which may refuse it. UserError where all do."""
    refused: list[UserError] = []
    for read in reads:
        try:
            found = read()
            if isinstance(found, Iterator):
                deque(found, maxlen=0)
        except UserError as error:
            refused.append(error)
    if len(refused) == len(reads):
        raise refused[0]


def read_rows(path: Path) -> None:
    """A table as texts with labels, as two texts, and as series."""
    table = partial(read_table, [path])
    _each(
        lambda: table({"text": "text", "label": "label"}),
        lambda: table({"text": "source", "label": "target"}),
        lambda: read_series([path], SeriesColumns(None, None, None), True),
        lambda: _chess(path),
    )


def read_lines(path: Path) -> None:
    """JSON lines as texts, pairs, a table, and chats."""
    _each(
        lambda: iter_documents([path]),
        lambda: iter_pairs([path]),
        lambda: read_table([path], {"text": "text", "label": "label"}),
        lambda: (chat for file in find_chat_files([path]) for chat in read_chats(file)),
    )


def _chess(path: Path) -> Iterator[Any]:
    from headway.domains.chess.position_files import ReadTally, chess_files, samples

    return (found for file in chess_files([path]) for found in samples(file, 0.5, False, ReadTally()))


def read_epd(path: Path) -> None:
    from headway.domains.chess.puzzles import puzzles, read_suite

    _each(lambda: _chess(path), lambda: read_suite(path), lambda: puzzles(path))


def read_parquet(path: Path) -> None:
    deque(iter_documents([path]), maxlen=0)


@cache
def parquet_seeds(folder: Path) -> list[bytes]:
    """A column of texts, and one beside numbers and lists, in several groups."""
    import pyarrow
    import pyarrow.parquet

    found = []
    texts = [f"text {number % 5}" for number in range(40)]
    for columns, groups in (
        ({"text": texts}, 40),
        ({"id": list(range(40)), "text": texts, "more": [[number] * 3 for number in range(40)]}, 15),
    ):
        out = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.table(columns), out, row_group_size=groups)
        found.append(out.getvalue())
    return found


def recipe_seeds(folder: Path) -> list[bytes]:
    """All that are built in."""
    return [dumps(recipe).encode() for _, recipe in sorted(recipes().items())]


@cache
def kinds() -> dict[str, tuple[str, ...]]:
    """The kinds of each part that there are in recipes."""
    found: dict[str, set[str]] = {}

    def gather(tree: Any, above: str) -> None:
        for name, value in tree.items() if isinstance(tree, dict) else ((above, each) for each in tree):
            if name == "kind":
                found.setdefault(above, set()).add(value)
            elif isinstance(value, (dict, list)):
                gather(value, name)

    for recipe in recipes().values():
        gather(json.loads(dumps(recipe)), "")
    return {name: tuple(sorted(sorts)) for name, sorts in sorted(found.items())}


def read_recipe_file(path: Path) -> None:
    """As `headway show` does."""
    describe(read_recipe(path).model)


def read_template(path: Path) -> None:
    template = ChatTemplate(path.read_text(encoding="utf-8"), source=str(path))
    template.render(TOLD, add_generation_prompt=True)


def _composed(compose: Callable[[bytes, random.Random], bytes]) -> Callable[[bytes, random.Random], bytes]:
    return lambda seed, draw: compose(seed, half_mild(draw))


def _template(_: bytes, draw: random.Random) -> bytes:
    return composed_template(draw).encode("utf-8", "replace")


COMPOSED = {
    "composed-config": Reader("config.json", config_seeds, _composed(composed_config), read_config_file),
    "composed-recipe": Reader(
        "recipe.json",
        recipe_seeds,
        _composed(lambda seed, draw: composed_recipe(seed, draw, kinds())),
        read_recipe_file,
    ),
    "composed-safetensors": Reader(
        "a.safetensors", tensor_seeds, _composed(lambda _, draw: composed_tensors(draw)), read_tensors
    ),
    "composed-torch": Reader("a.bin", torch_seeds, _composed(lambda _, draw: composed_torch(draw)), read_torch),
    "composed-gguf": Reader("a.gguf", gguf_seeds, _composed(lambda _, draw: composed_gguf(draw)), read_gguf),
    "composed-parquet": Reader(
        "a.parquet", parquet_seeds, _composed(lambda seed, draw: Parquet(seed).composed(draw)), read_parquet
    ),
    "composed-csv": Reader(
        "a.csv", lambda _: [b"text,label\na,b\n"], _composed(lambda _, draw: composed_csv(draw)), read_rows
    ),
    "composed-jsonl": Reader(
        "a.jsonl", lambda _: [b'{"text": "a"}\n'], _composed(lambda _, draw: composed_lines(draw)), read_lines
    ),
    "composed-template": Reader(
        "a.jinja", lambda _: [b"{{ messages[0].content }}"], _composed(_template), read_template
    ),
}
BOARD = b"rnbqkbnr/pppppppp/8/8/8/8/PPPPPPPP/RNBQKBNR w KQkq - bm e4;\n"
GAME = b'[Event "x"]\n\n1. e4 e5 *\n'
COMPOSED |= {
    "composed-epd": Reader("a.epd", lambda _: [BOARD], _composed(lambda _, draw: composed_epd(draw)), read_epd),
    "composed-pgn": Reader(
        "a.pgn",
        lambda _: [GAME],
        _composed(lambda _, draw: composed_pgn(draw)),
        lambda path: deque(_chess(path), maxlen=0),
    ),
}
