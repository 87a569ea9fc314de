"""Data of any size for each generic recipe, drawn by rules that can be learnt.

    python benchmarks/samples.py RECIPE COUNT FOLDER        # the paths that `--data` takes, one a line

Sentences come from a small grammar over 600 words; labels, tags, partners and translations follow from their words.
Images are two bars on noise and their labels the bars' places; sounds are chords and their labels the chords.
"""

from __future__ import annotations

import csv
import json
import sys
import wave
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

SYLLABLES = [a + b for a in "bdfgklmnprst" for b in "aeiou"]
KINDS = ("DET", "ADJ", "NOUN", "VERB", "ADV")
WORDS = {
    kind: [f"{a}{b}{'' if n else 'n'}" for a in SYLLABLES[n::5] for b in SYLLABLES[n::6]]
    for n, kind in enumerate(KINDS)
}
TOPICS = 12
CHUNK = 10_000


def sentences(count: int, seed: int = 0) -> Iterator[list[tuple[str, str]]]:
    """Words with their kinds; a sentence of topic T has the words of T more often."""
    random = np.random.default_rng(seed)
    for start in range(0, count, CHUNK):
        for _ in range(min(CHUNK, count - start)):
            topic = int(random.integers(TOPICS))
            found = []
            for kind in ("DET", "ADJ", "NOUN", "VERB", "DET", "NOUN", "ADV")[: int(random.integers(3, 8))]:
                words = WORDS[kind][topic::TOPICS] if random.random() < 0.7 else WORDS[kind]
                found.append((words[int(len(words) * random.random() ** 2)], kind))
            yield found


def spoken(words: list[tuple[str, str]]) -> str:
    return " ".join(word for word, _ in words)


def topic(words: list[tuple[str, str]]) -> str:
    """The topic that most words are of."""
    counts = [0] * TOPICS
    for word, kind in words:
        counts[WORDS[kind].index(word) % TOPICS] += 1
    return f"topic-{int(np.argmax(counts))}"


def translated(words: list[tuple[str, str]]) -> str:
    """Verbs last, each word spelt backwards."""
    moved = sorted(words, key=lambda pair: pair[1] == "VERB")
    return " ".join(word[::-1] for word, _ in moved)


def lines(count: int, folder: Path) -> list[Path]:
    path = folder / "text.txt"
    with path.open("w") as file:
        file.writelines(f"{spoken(words).capitalize()}.\n" for words in sentences(count))
    return [path]


def table(*columns: tuple[str, Callable[[list[tuple[str, str]]], str]]) -> Callable[[int, Path], list[Path]]:
    """A CSV file with columns made of sentences."""

    def write(count: int, folder: Path) -> list[Path]:
        path = folder / "table.csv"
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow([name for name, _ in columns])
            writer.writerows([make(words) for _, make in columns] for words in sentences(count))
        return [path]

    return write


def halves(words: list[tuple[str, str]]) -> str:
    return "long" if len(words) > 4 else "short"


def pairs(count: int, folder: Path) -> list[Path]:
    path = folder / "pairs.tsv"
    with path.open("w") as file:
        file.writelines(f"{spoken(words)}\t{translated(words)}\n" for words in sentences(count))
    return [path]


def tags(count: int, folder: Path) -> list[Path]:
    path = folder / "tags.conll"
    with path.open("w") as file:
        for words in sentences(count):
            file.writelines(f"{word}\t{'B-' + kind if kind == 'NOUN' else 'O'}\n" for word, kind in words)
            file.write("\n")
    return [path]


def chats(count: int, folder: Path) -> list[Path]:
    path = folder / "chats.jsonl"
    with path.open("w") as file:
        for words in sentences(count):
            turns = (("user", spoken(words)), ("assistant", translated(words)))
            chat = {"messages": [{"role": role, "content": content} for role, content in turns]}
            file.write(json.dumps(chat) + "\n")
    return [path]


def choices(count: int, folder: Path) -> list[Path]:
    """Prompts with an answer that is wanted and one that is not."""
    path = folder / "choices.jsonl"
    with path.open("w") as file:
        for words in sentences(count):
            line = {"prompt": spoken(words), "chosen": translated(words), "rejected": spoken(words[::-1])}
            file.write(json.dumps(line) + "\n")
    return [path]


def bars(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Images of 16 x 16 pixels, and which of 16 pairs of places their bars have."""
    random = np.random.default_rng(seed)
    images = random.integers(0, 120, (count, 16, 16), dtype=np.uint8)
    labels = random.integers(0, 16, count)
    for place in range(4):
        images[labels // 4 == place, 1 + 4 * place : 3 + 4 * place, 2:14] = 220
        images[labels % 4 == place, 2:14, 1 + 4 * place : 3 + 4 * place] = 220
    return images, labels.astype(np.uint8)


def images(count: int, folder: Path) -> list[Path]:
    """Two IDX files, as those of MNIST."""
    found, labels = bars(count)
    header = lambda kind, *sizes: bytes([0, 0, 8, kind]) + b"".join(size.to_bytes(4, "big") for size in sizes)  # noqa: E731
    (folder / "train-images-idx3-ubyte").write_bytes(header(3, count, 16, 16) + found.tobytes())
    (folder / "train-labels-idx1-ubyte").write_bytes(header(1, count) + labels.tobytes())
    return [folder]


def captions(count: int, folder: Path) -> list[Path]:
    """Image files, at most 10,000 of them, and a table of captions."""
    from PIL import Image

    found, labels = bars(min(count, 10_000))
    for number, image in enumerate(found):
        Image.fromarray(image).save(folder / f"{number:05}.png")
    names = ("first", "second", "third", "fourth")
    with (folder / "captions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "caption"))
        for number in range(count):
            label = int(labels[number % len(found)])
            text = f"bars in the {names[label // 4]} row and the {names[label % 4]} column"
            writer.writerow((f"{number % len(found):05}.png", text))
    return [folder / "captions.csv"]


def chord(number: int, random: np.random.Generator) -> np.ndarray:
    """A fifth of a second of one of eight chords, whose tones lie three semitones apart or more, on noise."""
    time = np.arange(1600) / 8000
    steps = (0, 3 + 3 * (number % 4), 15 + 5 * (number // 4))
    tones = [440 * 2 ** ((step + random.normal(0, 0.1)) / 12) for step in steps]
    wave_form = sum(np.sin(2 * np.pi * (tone * time + random.random())) for tone in tones)
    return (4000 * wave_form + random.normal(0, 800, len(time))).clip(-32768, 32767).astype("<i2")


def write_sound(path: Path, samples: np.ndarray) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(samples.tobytes())


def sounds(count: int, folder: Path) -> list[Path]:
    """A folder for each of eight chords, with sounds of a fifth of a second; at most 20,000 files."""
    random = np.random.default_rng(0)
    for number in range(min(count, 20_000)):
        place = folder / f"chord-{number % 8}"
        place.mkdir(exist_ok=True)
        write_sound(place / f"{number:06}.wav", chord(number % 8, random))
    return [folder]


def speech(count: int, folder: Path) -> list[Path]:
    """Sounds of two to four chords with a table of their names; at most 20,000 files."""
    random = np.random.default_rng(0)
    names = ("ba", "de", "fi", "go", "ku", "la", "me", "ni")
    with (folder / "speech.tsv").open("w") as table:
        table.write("path\ttext\n")
        for number in range(min(count, 20_000)):
            heard = random.integers(8, size=random.integers(2, 5)).tolist()
            write_sound(folder / f"{number:06}.wav", np.concatenate([chord(one, random) for one in heard]))
            table.write(f"{number:06}.wav\t{' '.join(names[one] for one in heard)}\n")
    return [folder / "speech.tsv"]


def episodes(count: int, folder: Path) -> list[Path]:
    """`count` steps of a point that is pushed to the middle of a line, in episodes of 50."""
    random = np.random.default_rng(0)
    whole = max(10, count // 50)
    place, states, actions = random.uniform(-1, 1, whole), [], []
    for _ in range(50):
        push = np.clip(-2 * place + random.normal(0, 0.2, whole), -1, 1)
        states.append(place)
        actions.append(push)
        place = place + 0.1 * push
    state, action = (np.stack(one, 1).reshape(-1, 1).astype(np.float32) for one in (states, actions))
    path = folder / "episodes.npz"
    ends = 50 * np.arange(1, whole + 1)
    np.savez(path, states=state, actions=action, rewards=-np.abs(state[:, 0]), ends=ends)
    return [path]


def games(count: int, folder: Path) -> list[Path]:
    """Positions of games of chance with a move that takes the most there is to take."""
    import chess

    random, worth = np.random.default_rng(0), (0, 1, 3, 3, 5, 9, 0)
    path, board = folder / "positions.csv", chess.Board()
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("fen", "bestmove"))
        for _ in range(count):
            moves = sorted(board.legal_moves, key=lambda move: move.uci())
            if not moves or board.ply() > 80:
                board = chess.Board()
                moves = sorted(board.legal_moves, key=lambda move: move.uci())
            taken = [worth[board.piece_type_at(move.to_square) or 0] for move in moves]
            writer.writerow((board.fen(), moves[taken.index(max(taken))].uci()))
            board.push(moves[random.integers(len(moves))])
    return [path]


def series(count: int, folder: Path) -> list[Path]:
    """A number a day, by the day of the week and of the year, and chance."""
    random, days = np.random.default_rng(0), np.arange(count)
    level = 50 + 10 * np.sin(days / 58.1) + 6 * np.sin(days * 2 * np.pi / 7) + random.normal(0, 2, count)
    path, dates = folder / "series.csv", np.datetime64("1990-01-01") + days
    rows = (f"{date},{value:.2f}\n" for date, value in zip(dates, level))
    path.write_text("date,value\n" + "".join(rows), encoding="utf-8")
    return [path]


DRAWN: dict[str, Callable[[int, Path], list[Path]]] = {
    "text": lines,
    "masked": lines,
    "translation": pairs,
    "classification": table(("text", spoken), ("label", topic)),
    "pairs": table(("text", spoken), ("text2", translated), ("label", halves)),
    "embedding": table(("text", spoken), ("text2", translated)),
    "tagging": tags,
    "instruct": chats,
    "preference": choices,
    "vision": images,
    "image-text": captions,
    "caption": captions,
    "audio": sounds,
    "transcription": speech,
    "trajectories": episodes,
    "robotics": episodes,
    "chess": games,
    "forecast": series,
}


def drawn(recipe: str, count: int, folder: Path) -> list[str]:
    """The paths for `--data` of so many samples."""
    folder.mkdir(parents=True, exist_ok=True)
    return [str(path) for path in DRAWN[recipe](count, folder)]


if __name__ == "__main__":
    print("\n".join(drawn(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))))
