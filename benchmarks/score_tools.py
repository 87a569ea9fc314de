"""Classical tools on the sets of benchmarks/scores.py. What each is given is the training split; what is chosen (the
penalty, the features, the length of n-grams) is chosen by the validation split; the test split is scored once.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import numpy as np

from phrase_model import PhraseModel

PENALTIES = (0.1, 1.0, 10.0)  # C of support-vector machines
WINDOW = 2  # words before and after a word whose tag is predicted
MAX_KERNEL = 12_000  # training samples of a machine with radial basis functions
MAX_WORDS = 200_000  # words that taggers learn from
CELLS, BINS = 4, 9  # of histograms of gradients: pixels a side of a cell, and directions
CHOOSING = 150  # validation sources by which a phrase model is tuned
EPISODES = 20  # episodes played per split
MOVES_OF = 6000  # positions that moves are learned from
Result = dict[str, Any]


def chosen(options: Iterable[tuple[str, Callable[[str], float]]], largest: bool = True) -> Result:
    """The option with the best validation score, and its test score."""
    tried = [(label, score("validation"), score) for label, score in options]
    best = (max if largest else min)(tried, key=lambda row: row[1])
    return {"chosen": best[0], "validation": {label: value for label, value, _ in tried}, "score": best[2]("test")}


def texts(task: Any) -> Result:
    """TF-IDF of words and of characters with a linear SVM; of pairs, also how much their words have in common."""
    from scipy.sparse import csr_matrix, hstack
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.svm import LinearSVC

    examples = task.examples
    columns = [np.array(column, object) for column in examples.contents()["texts"]]
    rows = {split: examples.splits.rows(split) for split in ("train", "validation", "test")}
    labels = {split: np.asarray(examples.targets)[rows[split]] for split in rows}
    kinds = {"words": ("word", (1, 2)), "characters": ("char_wb", (2, 5))}
    vectors: dict[str, dict[str, Any]] = {}
    for kind, (analyzer, lengths) in kinds.items():
        parts = []
        for column in columns:
            tfidf = TfidfVectorizer(analyzer=analyzer, ngram_range=lengths, sublinear_tf=True, min_df=2)
            tfidf.fit(column[rows["train"]])
            parts.append({split: tfidf.transform(column[rows[split]]) for split in rows})
        vectors[kind] = {split: hstack([part[split] for part in parts]).tocsr() for split in rows}
        if len(columns) == 2:  # the same words and characters on both sides
            shared = TfidfVectorizer(analyzer=analyzer, ngram_range=lengths, sublinear_tf=True, min_df=2)
            shared.fit(np.concatenate([column[rows["train"]] for column in columns]))
            for split in rows:
                first, second = (shared.transform(column[rows[split]]) for column in columns)
                overlap = csr_matrix(first.multiply(second).sum(1))
                vectors[kind][split] = hstack([vectors[kind][split], first.multiply(second), 5 * overlap]).tocsr()
    vectors["both"] = {split: hstack([vectors[kind][split] for kind in kinds]).tocsr() for split in rows}

    def option(kind: str, penalty: float) -> tuple[str, Callable[[str], float]]:
        machine = LinearSVC(C=penalty).fit(vectors[kind]["train"], labels["train"])
        return f"{kind}, C {penalty:g}", lambda split: float(machine.score(vectors[kind][split], labels[split]))

    result = chosen(option(kind, penalty) for kind in vectors for penalty in PENALTIES)
    return {"tool": "TF-IDF with a linear SVM", **result}


def tags(task: Any) -> Result:
    """Words, endings and shapes in a window, with a linear SVM."""
    from sklearn.feature_extraction import FeatureHasher
    from sklearn.svm import LinearSVC

    from headway.metrics import tag_scores

    examples = task.examples
    rows = {split: examples.splits.rows(split) for split in ("train", "validation", "test")}
    random.Random(1).shuffle(rows["train"])

    def features(words: Sequence[str], index: int) -> dict[str, float]:
        found: dict[str, float] = {"bias": 1.0}
        for offset in range(-WINDOW, WINDOW + 1):
            word = words[index + offset] if 0 <= index + offset < len(words) else "<>"
            shape = "".join("X" if c.isupper() else "x" if c.islower() else "0" if c.isdigit() else c for c in word)
            found |= {f"{offset}:{word}": 1, f"{offset}^{shape[:6]}": 1, f"{offset}${word[-3:]}": 1}
        if index:
            found[f"{words[index - 1]} {words[index]}"] = 1
        if index + 1 < len(words):
            found[f"{words[index]} {words[index + 1]} >"] = 1
        return found

    sentences = {split: [examples.sentences[int(row)] for row in rows[split]] for split in rows}
    used, size = [], 0
    for sentence in sentences["train"]:
        used.append(sentence)
        size += len(sentence.words)
        if size > MAX_WORDS:
            break
    hasher = FeatureHasher(1 << 20)
    vectors = {
        split: hasher.transform(features(s.words, i) for s in part for i in range(len(s.words)))
        for split, part in {**sentences, "train": used}.items()
    }
    labels = [tag for sentence in used for tag in sentence.tags]

    def option(penalty: float) -> tuple[str, Callable[[str], float]]:
        machine = LinearSVC(C=penalty).fit(vectors["train"], labels)

        def score(split: str) -> float:
            flat = iter(np.asarray(machine.predict(vectors[split])).tolist())
            predicted = [[next(flat) for _ in sentence.words] for sentence in sentences[split]]
            scores = tag_scores(predicted, [sentence.tags for sentence in sentences[split]])
            return cast(float, scores[task.goal])

        return f"C {penalty:g}", score

    return {"tool": "a linear SVM on word windows", **chosen(option(penalty) for penalty in (0.03, 0.1, 1.0))}


def gradients(images: np.ndarray) -> np.ndarray:
    """Histograms of oriented gradients (Dalal and Triggs 2005) of grey images [N, H, W], normalised in blocks of two by
    two cells.
    """
    down, across = np.gradient(images, axis=(1, 2))
    strength, angle = np.hypot(down, across), np.arctan2(down, across) % np.pi
    place = angle / np.pi * BINS
    low, share = np.floor(place).astype(int) % BINS, place % 1
    height, width = (size // CELLS for size in images.shape[1:])
    cells = np.zeros((len(images), height, width, BINS), np.float32)
    for number in range(BINS):
        votes = strength * ((low == number) * (1 - share) + ((low + 1) % BINS == number) * share)
        votes = votes[:, : height * CELLS, : width * CELLS].reshape(len(images), height, CELLS, width, CELLS)
        cells[..., number] = votes.sum((2, 4))
    blocks = np.concatenate([cells[:, :-1, :-1], cells[:, 1:, :-1], cells[:, :-1, 1:], cells[:, 1:, 1:]], -1)
    blocks /= np.linalg.norm(blocks, axis=-1, keepdims=True) + 1e-3
    return blocks.reshape(len(images), -1)


def arrays(task: Any, split: str, limit: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The model's inputs [N, H, W] of a split, grey, and their classes."""
    from headway.learn.examples import spread_evenly

    samples = task.examples.of(split)
    indices = spread_evenly(np.arange(len(samples)), limit)
    images, labels = [], []
    for start in range(0, len(indices), 64):
        batch = samples.take(indices[start : start + 64])
        values = batch.inputs[0].float().numpy()
        images.append(values.mean(1) if values.ndim == 4 else values)
        labels.append(batch.targets.numpy())
    return np.concatenate(images), np.concatenate(labels)


def images(task: Any) -> Result:
    """Histograms of gradients, and pixels, with an SVM."""
    from scipy.ndimage import zoom
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    parts = {split: arrays(task, split, MAX_KERNEL) for split in ("train", "validation", "test")}
    side = min(parts["train"][0].shape[1:])
    factor = max(1, round(24 / side))  # small images need enlarging for cells

    def features(kind: str, split: str) -> np.ndarray:
        pixels = parts[split][0]
        if kind == "pixels":
            return pixels.reshape(len(pixels), -1)
        return gradients(np.asarray(zoom(pixels, (1, factor, factor), order=1)))

    def option(kind: str, penalty: float) -> tuple[str, Callable[[str], float]]:
        machine = make_pipeline(StandardScaler(), SVC(C=penalty)) if kind == "pixels" else SVC(C=penalty)
        machine.fit(features(kind, "train"), parts["train"][1])
        return f"{kind}, C {penalty:g}", lambda split: float(machine.score(features(kind, split), parts[split][1]))

    return {"tool": "HOG with an SVM", **chosen(option(k, c) for k in ("gradients", "pixels") for c in (3.0, 30.0))}


def sounds(task: Any) -> Result:
    """Means and deviations of mel bands in eight parts of the sound, with an SVM or gradient boosting."""
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    parts = {split: arrays(task, split) for split in ("train", "validation", "test")}

    def features(split: str) -> np.ndarray:
        spans = np.array_split(parts[split][0], 8, axis=1)
        return np.concatenate([f(span, axis=1) for span in spans for f in (np.mean, np.std)], axis=1)

    vectors = {split: features(split) for split in parts}
    machines: dict[str, Any] = {f"SVM, C {c:g}": make_pipeline(StandardScaler(), SVC(C=c)) for c in (1.0, 10.0, 100.0)}
    machines["gradient boosting"] = HistGradientBoostingClassifier(max_iter=100, random_state=0)

    def option(label: str) -> tuple[str, Callable[[str], float]]:
        machine = machines[label].fit(vectors["train"], parts["train"][1])
        return label, lambda split: float(machine.score(vectors[split], parts[split][1]))

    return {"tool": "mel statistics with an SVM", **chosen(map(option, machines))}


def language(task: Any) -> Result:
    """Kneser-Ney n-grams of bytes and of the run's tokens: bits per byte."""
    from headway.learn.objectives.baselines import NgramModel

    examples = task.examples
    ids = {split: examples.token_lists(split, 1 << 60) for split in ("train", "validation", "test")}
    written = {split: [examples.codec.decode(row) for row in rows] for split, rows in ids.items()}
    octets = {split: [list(text.encode()) for text in rows] for split, rows in written.items()}
    sizes = {split: sum(len(examples.codec.decode(row[1:]).encode()) for row in rows) for split, rows in ids.items()}

    def option(unit: str, order: int) -> tuple[str, Callable[[str], float]]:
        parts, vocabulary = (octets, 256) if unit == "bytes" else (ids, examples.codec.vocab_size)
        model = NgramModel(parts["train"], order, vocabulary)
        return f"{order} {unit}", lambda split: model.nats(parts[split]) / math.log(2) / sizes[split]

    options = [("bytes", order) for order in (4, 6, 8)] + [("tokens", order) for order in (2, 3)]
    return {"tool": "a Kneser-Ney n-gram model", **chosen((option(*each) for each in options), largest=False)}


def actions(task: Any) -> Result:
    """Actions from states by gradient boosting (behaviour cloning), played in the environment."""
    import gymnasium
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    from headway.environments.rollouts import evaluation_seeds

    episodes, name = task.examples.episodes, task.objective.config.env
    rows = {split: task.examples.splits.rows(split) for split in ("train", "validation")}
    steps = {
        split: np.concatenate([np.arange(episodes.starts[row], episodes.ends[row]) for row in part])
        for split, part in rows.items()
    }
    known = episodes.actions[steps["train"]]
    kind = HistGradientBoostingClassifier if episodes.discrete else HistGradientBoostingRegressor
    columns = [known] if episodes.discrete else list(known.reshape(len(known), -1).T)

    def option(leaves: int) -> tuple[str, Callable[[str], float]]:
        machines = [
            kind(max_leaf_nodes=leaves, random_state=0).fit(episodes.states[steps["train"]], c) for c in columns
        ]

        def score(split: str) -> float:
            environment, total = gymnasium.make(name), 0.0
            for seed in evaluation_seeds(split, EPISODES):
                state, _ = environment.reset(seed=seed)
                ended = False
                while not ended:
                    predicted = [machine.predict(state[None])[0] for machine in machines]
                    action = int(predicted[0]) if episodes.discrete else np.array(predicted, np.float32)
                    state, reward, terminated, truncated, _ = environment.step(action)
                    ended, total = terminated or truncated, total + float(reward)
            return total / EPISODES

        return f"{leaves} leaves", score

    return {"tool": "gradient boosting", **chosen(map(option, (7, 31)))}


def moves(task: Any) -> Result:
    """Chess moves by gradient boosting on what a move does: piece, squares, capture, check, attackers."""
    import chess
    from sklearn.ensemble import HistGradientBoostingClassifier

    from headway.codecs.chess_boards import to_fens
    from headway.domains.chess.boards import decode_move
    from headway.learn.examples import spread_evenly

    examples, worth = task.examples, (0, 1, 3, 3, 5, 9, 20)

    def features(board: chess.Board, move: chess.Move) -> list[float]:
        piece, taken = board.piece_type_at(move.from_square) or 0, board.piece_type_at(move.to_square) or 0
        flip = 0 if board.turn else 56
        start, end = move.from_square ^ flip, move.to_square ^ flip
        attackers = len(board.attackers(not board.turn, move.to_square))
        defenders = len(board.attackers(board.turn, move.to_square))
        threatened = len(board.attackers(not board.turn, move.from_square))
        last = board.peek().to_square == move.to_square if board.move_stack else False
        return [piece, worth[taken], start % 8, start // 8, end % 8, end // 8, board.gives_check(move), attackers,
                defenders, threatened, worth[piece], last, len(board.piece_map()), bool(move.promotion)]  # fmt: skip

    def positions(split: str, limit: int | None) -> list[tuple[list[list[float]], int]]:
        rows = spread_evenly(examples.splits.rows(split), limit)
        targets, found = examples.source.targets(rows).moves[:, 0], []
        for fen, target in zip(to_fens(np.asarray(examples.source.positions[rows])), targets.tolist()):
            board = chess.Board(fen)
            legal = list(board.legal_moves)
            played = decode_move(target, board.turn) if target >= 0 else None
            if played in legal:
                found.append(([features(board, move) for move in legal], legal.index(played)))
        return found

    train = positions("train", MOVES_OF)
    held_out = {"validation": positions("validation", 1000), "test": positions("test", None)}
    vectors = np.array([row for rows, _ in train for row in rows])
    labels = np.array([number == played for rows, played in train for number in range(len(rows))])

    def option(leaves: int) -> tuple[str, Callable[[str], float]]:
        machine = HistGradientBoostingClassifier(max_leaf_nodes=leaves, max_iter=200, random_state=0).fit(
            vectors, labels
        )

        def score(split: str) -> float:
            edges = np.cumsum([len(rows) for rows, _ in held_out[split]])[:-1]
            values = machine.predict_proba(np.array([row for rows, _ in held_out[split] for row in rows]))[:, 1]
            best = [int(part.argmax()) for part in np.split(values, edges)]
            return float(np.mean([b == played for b, (_, played) in zip(best, held_out[split])]))

        return f"{leaves} leaves", score

    return {"tool": "gradient boosting on moves", **chosen(map(option, (15, 63)))}


def captions(task: Any) -> Result:
    """The caption of the training image that is most similar in its pixels or gradients."""
    from headway.learn.objectives.sequences import without_padding
    from headway.metrics import caption_scores

    parts: dict[str, tuple[np.ndarray, list[str]]] = {}
    for split in ("train", "validation", "test"):
        samples, pixels, written = task.examples.of(split), [], []
        for start in range(0, len(samples), 64):
            batch = samples.take(np.arange(start, min(start + 64, len(samples))))
            pixels.append(batch.inputs[0].float().numpy())
            written += task.examples.decode_all([without_padding(row) for row in batch.targets])
        parts[split] = np.concatenate(pixels), written

    def features(kind: str, split: str) -> np.ndarray:
        pixels = parts[split][0]
        flat = pixels.reshape(len(pixels), -1)
        return flat if kind == "pixels" else np.concatenate([gradients(pixels.mean(1)), 0.02 * flat], 1)

    def option(kind: str) -> tuple[str, Callable[[str], float]]:
        train = features(kind, "train")

        def score(split: str) -> float:
            other = features(kind, split)
            distances = (train**2).sum(1) - 2 * other @ train.T
            outputs = [parts["train"][1][row] for row in distances.argmin(1)]
            return cast(float, caption_scores(outputs, [[text] for text in parts[split][1]])[task.goal])

        return kind, score

    return {"tool": "the nearest image", **chosen(map(option, ("pixels", "gradients")))}


def smoothing(task: Any) -> Result:
    """Exponential smoothing whose parameters have the lowest AIC (Hyndman et al. 2008), on all windows."""
    from headway.metrics.forecasts import forecast_scores

    def score(split: str) -> float:
        examples = task.examples
        rows = examples.of(split).rows
        window, forecast = examples.forecast_window(rows), examples.classical_forecast(rows)
        scores = forecast_scores(forecast, window.after, window.valid, window.scale, task.objective.levels)
        return float(scores["mase"])

    return {"tool": "exponential smoothing", **chosen([("AIC", score)], largest=False)}


def sequences(task: Any) -> Result:
    """Phrases and a language model; sources of one word are taken as letters."""
    from headway.learn.examples import spread_evenly
    from headway.metrics import translation_scores

    found = {split: task.examples.sources(split) for split in ("train", "validation", "test")}
    lengths = [len(text.split()) for text in found["train"].inputs]
    split_source: Callable[[str], list[str]] = list if np.mean(lengths) < 1.5 else words_of
    texts = found["train"]
    model = PhraseModel([(split_source(a), words_of(b[0])) for a, b in zip(texts.inputs, texts.references)])

    def option(weight: float, bonus: float) -> tuple[str, Callable[[str], float]]:
        def score(split: str) -> float:
            part = found[split]
            rows = spread_evenly(np.arange(len(part.inputs)), CHOOSING if split == "validation" else None).tolist()
            outputs = ["".join(model.translate(split_source(part.inputs[row]), weight, bonus)).strip() for row in rows]
            return cast(float, translation_scores(outputs, [part.references[row] for row in rows])[task.goal])

        return f"language model {weight:g}, bonus {bonus:g}", score

    options = [(weight, bonus) for weight in (0.5, 1.0) for bonus in (0.0, 1.0)]
    return {"tool": "a phrase model", **chosen(option(*each) for each in options)}


def words_of(text: str) -> list[str]:
    """Words and punctuation, each with the space before it."""
    return re.findall(r"\s?(?:\w+|[^\w\s])", f" {text}")


TOOLS: dict[str, Callable[[Any], Result]] = {
    "classification": texts,
    "pairs": texts,
    "tagging": tags,
    "vision": images,
    "audio": sounds,
    "text": language,
    "translation": sequences,
    "caption": captions,
    "chess": moves,
    "trajectories": actions,
    "forecast": smoothing,
}
