"""Data sets that headway knows by name: their description, licence, source and expected contents. They are found on
this machine or downloaded from their public sources.
"""

from __future__ import annotations

import hashlib
import http.client
import importlib.util
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from headway.data.corpus import iter_pairs
from headway.data.episode_files import read_episodes
from headway.data.input_files import File, archive_members, read_lines
from headway.data.labelled_files import read_idx
from headway.data.stories import write_stories
from headway.errors import UserError, nearest
from headway.io.cache import cache_errors, cache_root, data_folders
from headway.io.durable import temporary_path


@dataclass(frozen=True)
class KnownFile:
    """A file of a known set, and the checksum or counts that verify it.

    `path` is relative to a data folder, `alternative` is the path of an equivalent file, `limit` the maximum download
    size in bytes. `lines`, `pairs`, `episodes`, `sizes` (of an IDX file) and `sounds` (.wav files in an archive) are
    expected counts; `pairs` is a minimum, because some sets grow. A file without a `url` cannot be downloaded.
    """

    path: str
    url: str
    limit: int
    sha256: str | None = None
    lines: int | None = None
    pairs: int | None = None
    sizes: tuple[int, ...] | None = None
    sounds: int | None = None
    episodes: int | None = None
    alternative: str | None = None


@dataclass(frozen=True)
class KnownSet:
    """A named data set with its home page `url`. A set that comes with a Python `package` has no `files`, but a
    `package_file` inside the package; `pip` is the package's name on PyPI if it differs. `system_folders` are folders
    where packages of the operating system put the files. `write` generates the only file of a set without a download.
    """

    name: str
    description: str
    counts: str
    licence: str
    url: str
    files: tuple[KnownFile, ...] = ()
    package: str | None = None
    package_file: str | None = None
    pip: str | None = None
    system_folders: tuple[str, ...] = ()
    write: Callable[[Path], None] | None = None

    @property
    def needs_network(self) -> bool:
        """Whether the files are downloaded, rather than generated or part of a package."""
        return self.write is None and self.package is None


_MEGABYTE = 1_000_000
_MULTI30K = "https://raw.githubusercontent.com/multi30k/dataset/master/data/task1/raw"


def _multi30k(split: str, lines: int) -> tuple[KnownFile, KnownFile]:
    names = [f"{split}.{language}.gz" for language in ("en", "de")]
    english, german = (
        KnownFile(f"translation/multi30k-{name}", f"{_MULTI30K}/{name}", 5 * _MEGABYTE, lines=lines) for name in names
    )
    return english, german


def _banking77(split: str, lines: int) -> KnownFile:
    home = "https://raw.githubusercontent.com/PolyAI-LDN/task-specific-datasets/master/banking_data"
    return KnownFile(f"textcls/banking77/{split}.csv", f"{home}/{split}.csv", 5 * _MEGABYTE, lines=lines)


def _fashion(name: str, sizes: tuple[int, ...]) -> KnownFile:
    home = "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion"
    file = f"{name}-idx{len(sizes)}-ubyte.gz"
    return KnownFile(f"fashion-mnist/{file}", f"{home}/{file}", 30 * _MEGABYTE, sizes=sizes)


def _expert(name: str, description: str, episodes: int, steps: str, commit: str) -> KnownSet:
    """Expert episodes from the test data of the imitation project."""
    home = "https://raw.githubusercontent.com/HumanCompatibleAI/imitation"
    return KnownSet(
        name=f"{name}-expert",
        description=description,
        counts=f"{episodes} episodes, {steps} steps in total",
        licence="MIT",
        url="https://github.com/HumanCompatibleAI/imitation",
        files=(
            KnownFile(
                f"rl/imitation_{name}_v1_expert.npz",
                f"{home}/{commit}/tests/testdata/expert_models/{name}_0/rollouts/final.npz",
                5 * _MEGABYTE,
                episodes=episodes,
            ),
        ),
    )


def _openings(volume: str) -> KnownFile:
    home = "https://raw.githubusercontent.com/lichess-org/chess-openings/master"
    return KnownFile(f"chess/lichess-openings-{volume}.tsv", f"{home}/{volume}.tsv", 2 * _MEGABYTE)


KNOWN_SETS: dict[str, KnownSet] = {
    known.name: known
    for known in (
        KnownSet(
            name="tinyshakespeare",
            description="Shakespeare's plays in one file",
            counts="1,115,394 characters",
            licence="public domain",
            url="https://github.com/karpathy/char-rnn",
            files=(
                KnownFile(
                    "lm/tinyshakespeare.txt",
                    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
                    2 * _MEGABYTE,
                    sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
                ),
            ),
        ),
        KnownSet(
            name="wikitext-2",
            description="good and featured Wikipedia articles, raw text",
            counts="36,718 / 3,760 / 4,358 lines for training, validation and test",
            licence="CC BY-SA 3.0",
            url="https://huggingface.co/datasets/Salesforce/wikitext",
            files=(
                KnownFile(
                    "lm/wikitext-2-raw-v1.zip",
                    "https://wikitext.smerity.com/wikitext-2-raw-v1.zip",
                    10 * _MEGABYTE,
                    sha256="ef7edb566e3e2b2d31b29c1fdb0c89a4cc683597484c3dc2517919c615435a11",
                    alternative="lm/wikitext-2-raw-valid-test.tar.xz",
                ),
            ),
        ),
        KnownSet(
            name="multi30k",
            description="image captions in English and German (Multi30k, task 1)",
            counts="29,000 / 1,014 / 1,000 pairs for training, validation and test (2016, Flickr)",
            licence="see its repository",
            url="https://github.com/multi30k/dataset",
            files=(*_multi30k("train", 29_000), *_multi30k("val", 1_014), *_multi30k("test_2016_flickr", 1_000)),
        ),
        KnownSet(
            name="tatoeba-deu-eng",
            description="everyday sentences in English and German",
            counts="169,813 pairs or more (growing); sentences repeat, so it is split by the English sentence",
            licence="CC BY 2.0, tatoeba.org",
            url="https://www.manythings.org/anki/",
            files=(
                KnownFile(
                    "translation/tatoeba-deu-eng.zip",
                    "https://www.manythings.org/anki/deu-eng.zip",
                    100 * _MEGABYTE,
                    pairs=169_813,
                ),
            ),
        ),
        KnownSet(
            name="banking77",
            description="questions from a bank's customers, each with one of 77 intents",
            counts="10,003 / 3,080 questions for training and test",
            licence="CC BY 4.0",
            url="https://github.com/PolyAI-LDN/task-specific-datasets",
            files=(_banking77("train", 10_017), _banking77("test", 3_085)),
        ),
        KnownSet(
            name="fashion-mnist",
            description="clothing in ten classes, 28 x 28 greyscale pixels (IDX files)",
            counts="60,000 / 10,000 images for training and test",
            licence="MIT",
            url="https://github.com/zalandoresearch/fashion-mnist",
            files=(
                _fashion("train-images", (60_000, 28, 28)),
                _fashion("train-labels", (60_000,)),
                _fashion("t10k-images", (10_000, 28, 28)),
                _fashion("t10k-labels", (10_000,)),
            ),
            system_folders=("/usr/share/datasets/fashion-mnist",),  # Debian's dataset-fashion-mnist
        ),
        KnownSet(
            name="digits",
            description="handwritten digits, 8 x 8 greyscale pixels (scikit-learn's copy of UCI's test set)",
            counts="1,797 images",
            licence="BSD (the package), CC BY 4.0 (UCI)",
            url="https://archive.ics.uci.edu/dataset/80",
            package="sklearn",
            package_file="datasets/data/digits.csv.gz",
            pip="scikit-learn",
        ),
        KnownSet(
            name="emoji",
            description="Noto's colour emoji, 64 x 64, with names and keywords in en, de, fr, es, cs",
            counts="1,546 images",
            licence="OFL-1.1 (images), Unicode-3.0 (texts)",
            url="Debian's fonts-noto-color-emoji and unicode-cldr-core",
            files=(
                KnownFile("emoji/noto-emoji-64px.zip", "", 20 * _MEGABYTE),
                KnownFile("emoji/captions.json", "", 20 * _MEGABYTE),
            ),
        ),
        KnownSet(
            name="spoken-digits",
            description="the digits 0 to 9, spoken by six speakers (Free Spoken Digit Dataset)",
            counts="2,700 / 300 recordings for training and test (test: takes 0 to 4 of each digit), 8 kHz",
            licence="CC BY-SA 4.0",
            url="https://github.com/Jakobovski/free-spoken-digit-dataset",
            files=(
                KnownFile(
                    "fsdd/free-spoken-digit-dataset.zip",
                    "https://github.com/Jakobovski/free-spoken-digit-dataset/archive/refs/heads/master.zip",
                    50 * _MEGABYTE,
                    sounds=3_000,
                    alternative="fsdd/free-spoken-digits.tar.xz",
                ),
            ),
        ),
        KnownSet(
            name="lichess-openings",
            description="named chess openings, used as starting positions for matches",
            counts="3,807 openings or more (growing)",
            licence="CC0",
            url="https://github.com/lichess-org/chess-openings",
            files=tuple(map(_openings, "abcde")),
        ),
        KnownSet(
            name="lichess-2013-01",
            description="rated chess games that people played on Lichess in January 2013",
            counts="121,332 games",
            licence="CC0",
            url="https://database.lichess.org",
            files=(
                KnownFile(
                    "chess/lichess_db_standard_rated_2013-01.pgn.zst",
                    "https://database.lichess.org/standard/lichess_db_standard_rated_2013-01.pgn.zst",
                    20 * _MEGABYTE,
                    sha256="aa40b3671fa3cf1072eb182892cd90b0e1e003a4a5943492f64b77e7f3fd1635",
                ),
            ),
        ),
        KnownSet(
            name="stories",
            description="short stories in simple English, which a grammar of headway generates",
            counts="12,000 stories",
            licence="MIT",
            url="headway (data/stories.py)",
            files=(KnownFile("stories/stories.jsonl", "", 20 * _MEGABYTE, lines=12_000),),
            write=write_stories,
        ),
        KnownSet(
            name="cmudict",
            description="English words with their pronunciations (CMU Pronouncing Dictionary)",
            counts="about 126,000 words with 135,000 pronunciations",
            licence="BSD (dictionary), GPL-3.0-or-later (the package around it)",
            url="https://github.com/prosegrinder/python-cmudict",
            package="cmudict",
            package_file="data/cmudict.dict",
        ),
        _expert(
            "cartpole",
            "an expert balances a pole on a cart (CartPole-v1)",
            57,
            "26,964",
            "b56567f25a9888cfa9c3656756cb21fec0379b2f",
        ),
        _expert(
            "pendulum",
            "an expert swings a pendulum up (Pendulum-v1)",
            56,
            "11,200",
            "12f2b39d4685888e5c1b85c03c0f282f4ab7fa93",
        ),
    )
}


def known_set(name: str) -> KnownSet:
    """A known set by name; UserError with the nearest name if it is unknown."""
    if name not in KNOWN_SETS:
        raise UserError(f"there is no known data set {name!r}; {nearest(name, KNOWN_SETS)}")
    return KNOWN_SETS[name]


def known_sets() -> list[KnownSet]:
    """All known sets, by name."""
    return [KNOWN_SETS[name] for name in sorted(KNOWN_SETS)]


def is_present(known: KnownSet) -> bool:
    """Whether all files of a set are on this machine."""
    return bool(_find_files(known))


def find_set(name: str) -> list[Path]:
    """The files of a known set, ready for `iter_documents` or `iter_pairs`. If files are missing, a UserError explains
    how to get them.
    """
    known = known_set(name)
    if paths := _find_files(known):
        return paths
    if known.package is not None:
        raise UserError(
            f"data set {name!r} is in a package that is not installed; run pip install {known.pip or known.package}"
        )
    if known.write is None and any(not file.url for file in known.files):
        raise manual_download_error(known)
    folders = " or ".join(map(str, data_folders()))
    raise UserError(f"data set {name!r} is not in {folders}; run: headway data get {name}")


def manual_download_error(known: KnownSet) -> UserError:
    """The error for a missing set that cannot be downloaded."""
    files = ", ".join(file.path for file in known.files)
    return UserError(
        f"data set {known.name!r} is missing and cannot be downloaded; create it from {known.url}, put {files} into a "
        "folder and set HEADWAY_DATA to it"
    )


def set_of(path: str | Path) -> KnownSet | None:
    """The known set that a file belongs to, by the end of its path in a data folder; None for other files."""
    for known in KNOWN_SETS.values():
        names = [name for file in known.files for name in (file.path, file.alternative) if name]
        names += [f"{known.package}/{known.package_file}"] if known.package else []
        if any(Path(path).as_posix().endswith(f"/{name}") for name in names):
            return known
    return None


def _find_files(known: KnownSet) -> list[Path]:
    """All files of a set from one folder; empty if no folder has them all."""
    if known.package is not None and known.package_file is not None:
        # The package is located, not imported: only its data is needed.
        spec = importlib.util.find_spec(known.package)
        return [] if spec is None or spec.origin is None else [Path(spec.origin).parent / known.package_file]
    for folder in data_folders():
        candidates = [[folder / path for path in (file.path, file.alternative) if path] for file in known.files]
        paths = [path for paths in candidates for path in [path for path in paths if path.is_file()][:1]]
        if len(paths) == len(known.files):
            return paths
    for folder in map(Path, known.system_folders):
        paths = [folder / Path(file.path).name for file in known.files]
        if all(path.is_file() for path in paths):
            return paths
    return []


_BLOCK_SIZE = 1 << 16
_TIMEOUT = 60.0  # seconds without a byte


def get_set(name: str, progress: Callable[[int, int], None] | None = None) -> list[Path]:
    """The files of a known set; missing ones are downloaded to headway's cache, or generated there."""
    known = known_set(name)
    return find_set(name) if is_present(known) or known.package else download(known, cache_root() / "data", progress)


def download(known: KnownSet, folder: Path, progress: Callable[[int, int], None] | None = None) -> list[Path]:
    """Download the missing files of a set into `folder` and return its files.

    `progress` is called with bytes done and total bytes (0 if unknown). UserError if there is no connection, a file is
    too large or fails verification, the disk is full, or the set cannot be downloaded; no partial files remain.
    """
    if known.write is None and any(not file.url for file in known.files):
        raise manual_download_error(known)
    for file in known.files:
        if not (folder / file.path).is_file():
            final = folder / file.path
            with cache_errors(final.parent):
                # The name keeps its extension, because verification reads the file by its extension.
                part = temporary_path(final, f"draft{final.suffix}")
                try:
                    digest = ""
                    if known.write is None:
                        digest = _receive(file, part, progress)
                    else:
                        known.write(part)
                    _verify(file, part, digest)
                    part.replace(final)
                finally:
                    part.unlink(missing_ok=True)
    return [folder / file.path for file in known.files]


def _receive(file: KnownFile, part: Path, progress: Callable[[int, int], None] | None) -> str:
    """Download a file to `part` and return its SHA-256."""
    digest, done = hashlib.sha256(), 0
    request = urllib.request.Request(file.url, headers={"User-Agent": "headway"})
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as response, open(part, "wb") as out:
            total = int(response.headers.get("Content-Length") or 0)
            while block := response.read(_BLOCK_SIZE):
                done += len(block)
                if max(done, total) > file.limit:
                    raise UserError(
                        f"{file.url} has {max(done, total):,} bytes or more, over the limit of {file.limit:,}; "
                        "download it by hand if it has grown"
                    )
                digest.update(block)
                out.write(block)
                if progress is not None:
                    progress(done, total)
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        reason = str(error).strip("<>") or type(error).__name__
        raise UserError(f"{file.url} cannot be downloaded ({reason}); try again, or download it by hand") from error
    if done < total:
        raise UserError(f"{file.url} stopped after {done:,} of {total:,} bytes; try again")
    return digest.hexdigest()


def _verify(file: KnownFile, part: Path, digest: str) -> None:
    if file.sha256 is not None and digest != file.sha256:
        raise UserError(
            f"{file.url} has the SHA-256 {digest}, not {file.sha256}: it has changed or was damaged; "
            "try again, or download it by hand"
        )
    if file.lines is not None:
        actual = sum(1 for _ in read_lines(File(part)))
        if actual != file.lines:
            raise UserError(f"{file.url} has {actual:,} lines, not {file.lines:,}; try again")
    if file.sizes is not None:
        actual = read_idx(part, len(file.sizes)).shape
        if actual != file.sizes:
            raise UserError(f"{file.url} has the sizes {actual}, not {file.sizes}; try again")
    if file.pairs is not None:
        actual = sum(1 for _ in iter_pairs([part]))
        if actual < file.pairs:
            raise UserError(f"{file.url} has {actual:,} pairs, fewer than {file.pairs:,}; try again")
    if file.sounds is not None:
        actual = sum(1 for member in archive_members(part) if member.kind == ".wav")
        if actual != file.sounds:
            raise UserError(f"{file.url} has {actual:,} .wav files, not {file.sounds:,}; try again")
    if file.episodes is not None:
        actual = len(read_episodes([part]))
        if actual != file.episodes:
            raise UserError(f"{file.url} has {actual:,} episodes, not {file.episodes:,}; try again")
