"""Fine-tuning tasks on encoders, over real text: data, batches, losses, scores, and the models at work."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from tiny_models import overfit
from understanding_data import opened, small, write_questions, write_sentences

import headway as hw
from headway.codecs import train_codec
from headway.codecs.tokenizer import sequence_template, tokenize_words
from headway.config import override
from headway.data import IGNORE_INDEX
from headway.domains.understanding.recipes import RECIPES, banking77, classification, embedding, pairs, tagging
from headway.errors import ConfigError, UserError
from headway.formats.open import OpenedModel
from headway.formats.usage import Usage, read_usage
from headway.learn import Shard, unit_of
from headway.learn.report.pictures import tag_confusions
from headway.learn.run_report import notes
from headway.learn.token_rows import LengthLimit, frame_rows
from headway.nn.models import PooledHeadConfig, build
from headway.nn.parts.norm import RMSNormConfig


def classify(model: Any, codec: Any, usage: Usage, items: Any, truncate: bool = False) -> Any:
    return hw.Model(OpenedModel(model, usage, codec), Path("m")).classify(items, truncate)


def embed(model: Any, codec: Any, texts: Sequence[str]) -> torch.Tensor:
    return hw.Model(OpenedModel(model, Usage(), codec), Path("m")).embed(texts)


def tag(model: Any, codec: Any, labels: Sequence[str], texts: Any) -> Any:
    return hw.Model(OpenedModel(model, Usage(labels=tuple(labels)), codec), Path("m")).tag(texts)


@pytest.fixture(scope="module")
def questions(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_questions(data_dir, tmp_path_factory.mktemp("questions"))


@pytest.fixture
def speeches(data_dir: Path, tmp_path: Path) -> Path:
    """Shakespeare's first speeches as CoNLL columns: who speaks is tagged."""
    path = tmp_path / "speeches.conll"
    found = []
    for speech in (data_dir / "lm/tinyshakespeare.txt").read_text()[:12_000].split("\n\n"):
        name, *lines = speech.split("\n")
        words = [*name.rstrip(":").split(), ":", *" ".join(lines[:1]).split()]
        size = len(name.split())
        tags = ["B-WHO", *["I-WHO"] * (size - 1), *["O"] * (len(words) - size)]
        found.append("".join(f"{word} {label}\n" for word, label in zip(words, tags)))
    path.write_text("\n".join(found))
    return path


@pytest.fixture
def sentences(data_dir: Path, tmp_path: Path) -> Path:
    return write_sentences(data_dir, tmp_path)


def test_the_recipes_have_the_promised_names() -> None:
    assert [make().name for make in RECIPES] == [
        *("classification", "pairs", "tagging", "embedding", "reranking", "banking77")
    ]
    assert banking77().data == ("banking77",)


def test_batches_are_a_pure_function_of_seed_and_index(questions: Path) -> None:
    task = opened(small(classification()), questions)
    first = [batch.targets.tolist() for batch in islice(task.batches("train"), 40)]
    assert [batch.targets.tolist() for batch in islice(task.batches("train", start=30), 10)] == first[30:]
    sharded = [islice(task.batches("train", Shard(rank, 2)), 20) for rank in range(2)]
    assert [batch.targets.tolist() for two in zip(*sharded) for batch in two] == first
    rows = task.examples.of("train").rows
    epoch = len(task.examples.rows.plan(rows, 256))
    assert sum(map(len, first[:epoch])) == len(rows) == task.count("train")


def test_hardly_anything_is_padding(data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADWAY_DATA", str(data_dir))
    recipe = override(banking77(), {"task.codec": "char", "task.size": None})
    task: Any = recipe.task.open(recipe, None, tmp_path)
    batches = list(islice(task.batches("train"), 100))
    kept = sum(int(batch.inputs.layout.mask.sum()) for batch in batches)
    assert kept / sum(batch.computed for batch in batches) > 0.95
    assert task.final_split == "test"
    assert len(task.examples.labels) == 77


def test_classification_overfits_one_batch_and_is_used(questions: Path, tmp_path: Path) -> None:
    recipe = small(classification())
    task = opened(recipe, questions)
    model, _, loss = overfit(task, recipe)
    assert loss < 0.05
    scores = task.evaluate(model, "train")
    assert scores["accuracy"] > 0.3  # it has seen a batch
    assert scores.keys() >= {"loss", "accuracy", "accuracy_interval", "f1", "f1_interval", "samples"}
    task.save(tmp_path)
    texts = task.examples
    assert read_usage(tmp_path).labels == texts.labels
    first = texts.of("train").limited_to(1)
    text = texts.table.columns["text"][first.rows[0]]
    found = classify(model, texts.codec, Usage(labels=texts.labels), [text, "hello"])
    assert list(found[0].values()) == sorted(found[0].values(), reverse=True)
    assert sum(found[1].values()) == pytest.approx(1.0, abs=1e-5)
    logits, right = task.objective.outputs(model, first)
    assert next(iter(found[0])) == texts.labels[int(logits.argmax())]
    assert texts.labels[int(right)] == texts.table.columns["label"][first.rows[0]]
    assert task.pictures(model)[0].caption.startswith(f"{task.count(task.final_split):,} {task.final_split} texts")
    few = task.evaluate(model, task.final_split, 7)
    assert few["samples"] == 7
    assert task.pictures(model)[0].caption.startswith(f"7 {task.final_split} texts")  # those of the score
    assert unit_of(task) == "text"
    sample = task.samples(model, 3)[0]
    assert sample["source"] in texts.table.columns["text"]
    assert sample["output"] in texts.labels


def test_sizes_and_order_of_texts_do_not_change_what_is_said(questions: Path) -> None:
    recipe = small(classification())
    task = opened(recipe, questions)
    model = build(task.adapt(recipe.model))
    codec, labels, texts = task.examples.codec, task.examples.labels, task.examples.table.columns["text"][:40]
    together = classify(model, codec, Usage(labels=labels), texts)
    alone = [classify(model, codec, Usage(labels=labels), [text])[0] for text in reversed(texts)]
    for one, other in zip(together, reversed(alone)):
        assert one == pytest.approx(other, abs=1e-5)
    vectors = embed(model, codec, texts)
    assert torch.allclose(vectors.norm(dim=1), torch.ones(40), atol=1e-5)
    assert torch.allclose(vectors[7:8], embed(model, codec, texts[7:8]), atol=1e-5)


def write_pairs(path: Path, source: Path, labels: Sequence[str]) -> Path:
    rows = [line.split("\t") for line in source.read_text().splitlines()[1:]]
    lines = []
    for number, (one, other) in enumerate(rows):
        label = labels[number % len(labels)]
        second = other if label == labels[0] else rows[(number + 40) % len(rows)][1]
        lines.append(json.dumps({"text": one, "text2": second, "label": label}))
    path.write_text("\n".join(lines))
    return path


def test_pairs_overfit_one_batch_and_are_used(sentences: Path) -> None:
    path = write_pairs(sentences.with_name("pairs.jsonl"), sentences, ["same", "other"])
    recipe = small(pairs())
    task = opened(recipe, path)
    batch = next(task.batches("train"))
    ids, types = batch.inputs.tokens
    marks = ids == task.examples.codec.eos_id
    assert torch.equal(marks.sum(1), torch.full((len(ids),), 2))
    assert torch.equal(types, ((marks.cumsum(1) - marks.long() > 0) & batch.inputs.layout.mask).long())
    model, _, loss = overfit(task, recipe)
    assert loss < 0.05
    usage, given = Usage(labels=task.examples.labels), [("Hello there.", "Guten Tag."), ("Hello there.", "Nein.")]
    found = classify(model, task.examples.codec, usage, given)
    assert set(found[0]) == {"same", "other"}
    with pytest.raises(UserError, match="1 of 2 inputs are text pairs"):
        classify(model, task.examples.codec, usage, [("a", "b"), "c"])


def test_numbers_of_pairs_are_predicted_as_numbers(sentences: Path) -> None:
    path = write_pairs(sentences.with_name("pairs.jsonl"), sentences, ["4.5", "0", "1"])
    recipe = small(pairs())
    task = opened(recipe, path)
    assert task.reasons == (
        "predicts a number for each pair, because all labels are numbers (task.target=number; otherwise set class)",
    )
    assert task.chosen_settings["target"] == "number"
    assert task.goal == "spearman"
    model, _, loss = overfit(task, recipe)
    assert loss < 0.1
    scores = task.evaluate(model)
    assert scores.keys() >= {"pearson", "pearson_interval", "spearman", "spearman_interval", "samples"}
    said = classify(model, task.examples.codec, Usage(), [("Hello.", "Hallo.")])[0]
    assert list(said) == ["value"]
    assert opened(small(pairs(), **{"task.target": "class"}), path).examples.labels == ("0", "1", "4.5")


def test_tagging_overfits_one_batch_and_is_used(speeches: Path, tmp_path: Path) -> None:
    recipe = small(tagging())
    task = opened(recipe, speeches)
    assert task.goal == "f1"
    assert task.examples.labels == ("B-WHO", "I-WHO", "O")
    model, _, loss = overfit(task, recipe)
    assert loss < 0.02
    scores = task.evaluate(model)
    assert scores["f1"] > 0.7  # who speaks stands first, before a colon
    assert scores.keys() >= {"accuracy", "f1", "f1_interval", "precision", "recall", "samples"}
    words = ["First", "Citizen", ":", "Before", "we", "proceed"]
    found = tag(model, task.examples.codec, task.examples.labels, [words, "MENENIUS: What work's, my countrymen?"])
    assert found[0].words == words
    assert len(found[0].tags) == 6
    assert found[1].words == ["MENENIUS", ":", "What", "work's", ",", "my", "countrymen", "?"]
    assert [(one.start, one.stop) for one in found[0].entities] == [(0, 2)]
    assert task.samples(model, 2)[0].keys() == {"source", "output", "reference"}


def test_a_page_has_the_scores_of_each_kind_of_entity_and_says_what_was_done(speeches: Path, tmp_path: Path) -> None:
    settings = {"task.size": 400, "model.width": 32, "model.depth": 1, "model.heads": 2, "train.batch_tokens": 256}
    run = hw.train(
        "tagging",
        data=speeches,
        set={**settings, "train.steps": 5, "task.split": {"validation": 0.2, "test": 0.2}},
        run=tmp_path / "who-speaks",
        progress=False,
    )
    page = (run.directory / "report.html").read_text(encoding="utf-8")
    assert "<title>who-speaks: tagging</title>" in page
    table = page[page.index("<b>Entities</b>") :]
    assert re.search(r'<td class="label">WHO</td><td class="short">\d+</td>(<td class="short">[\d.]+ %</td>|-)', table)
    assert "outside" in page[page.index("<b>Confusions</b>") :]
    batches = len(run.task.examples.of("train").training_order().plan)
    assert run.summary["epochs"] == pytest.approx(5 / batches)
    done = f"Trained for 5 steps ({run.summary['tokens']:,} words, {5 / batches:.1f} epochs)"
    assert done in page
    assert any(note.startswith(done) for note in notes((), run.summary))
    assert run.summary["trained"] == run.summary["parameters"] == sum(p.numel() for p in run.model.parameters())


def test_words_without_entities_are_confused_by_their_tags() -> None:
    right, said = [["NN", "VB"], ["NN"]], [["NN", "NN"], ["NN"]]
    matrix, pairs, classes = tag_confusions(right, said, "test words", entities=False)
    assert matrix.caption.startswith("3 test words")
    assert "1 of 1" in str(pairs.figure)
    assert classes.title == "Classes"
    assert "outside" not in str(matrix.figure)


def test_only_first_symbols_of_words_are_labelled(speeches: Path) -> None:
    task = opened(small(tagging()), speeches)
    batch = next(task.batches("train"))
    assert batch.tokens == int((batch.targets != IGNORE_INDEX).sum())
    first = task.examples.of("train").limited_to(1)
    words, tags = task.examples.sentences[first.rows[0]]
    one = first.take(np.array([0]))
    kept = one.targets[0] != IGNORE_INDEX
    assert int(kept.sum()) == len(words)
    starts = one.inputs.tokens.ids[0][kept].tolist()
    for word, label, start in zip(words, one.targets[0][kept].tolist(), starts):
        assert task.examples.labels[label] == tags[words.index(word)]
        assert word.startswith(task.examples.codec.decode([start]).strip())


@pytest.mark.parametrize("kind", ["word", "bpe", "wordpiece", "unigram", "char"])
def test_first_symbols_by_every_kind_of_codec(speeches: Path, kind: Any) -> None:
    text = speeches.read_text().replace(" O", "")
    size = None if kind in ("word", "char") else 350
    spaced = kind in ("bpe", "wordpiece", "unigram")
    codec = train_codec(kind, [text], size, prefix_space=spaced)
    words = ["First", "Citizen", ":", "Before", "proceed", "\u200d"]
    pieces = tokenize_words(codec, [words])[0]
    assert None not in pieces.first_tokens[:5]
    assert len(set(pieces.first_tokens[:5])) == 5
    for word, first in zip(words[:5], pieces.first_tokens):
        assert first is not None
        assert word.startswith(codec.decode([pieces.ids[first]]).strip())


@pytest.mark.parametrize(
    ("recipe", "settings", "message"),
    [
        (embedding, {"train.accumulate": 2}, "train.accumulate=2, but a contrastive loss needs all pairs"),
        (embedding, {"train.batch_size": None}, "train.batch_size is None"),
        (embedding, {"task.temperature": 0}, "task.temperature is 0"),
        (embedding, {"train.batch_size": 500}, "exceeds the .* pairs for training"),
        (classification, {"train.batch_size": 8}, "counted in tokens, so set only train.batch_tokens"),
        (classification, {"task.label": "category"}, "no column 'category'.*did you mean 'label'.*task.label=label"),
        (classification, {"model.context": 8}, "tokens, but the model reads at most 8; shorten it, or allow"),
        (pairs, {}, "no column 'text2'"),
    ],
)
def test_misfits_are_errors_before_any_work(questions: Path, recipe: Any, settings: dict, message: str) -> None:
    chosen = small(recipe(), **settings)
    with pytest.raises((ConfigError, UserError), match=message):
        opened(chosen, questions).adapt(chosen.model)


def test_labels_that_cannot_be_learned_are_errors(questions: Path, tmp_path: Path) -> None:
    rows = questions.read_text().splitlines()
    (tmp_path / "train.csv").write_text("\n".join(rows[:40]))
    (tmp_path / "test.csv").write_text("text,label\nWho are you?,unheard of\n")
    with pytest.raises(UserError, match=r"test.csv, line 2: label 'unheard of' does not occur in the training data"):
        opened(small(classification()), tmp_path)
    (tmp_path / "one.csv").write_text("text,label\n" + "".join(f"text {n},only\n" for n in range(30)))
    with pytest.raises(UserError, match="only one label, 'only'"):
        opened(small(classification(), **{"task.codec": "char", "task.size": None}), tmp_path / "one.csv")


def test_long_texts_are_cut_where_that_is_asked_for(questions: Path) -> None:
    recipe = small(classification(), **{"model.context": 12, "task.truncate": True})
    task = opened(recipe, questions)
    assert task.examples.rows.lengths.max() == 12
    model = build(task.adapt(recipe.model))
    long, usage = " ".join(["money"] * 40), Usage(labels=task.examples.labels)
    with pytest.raises(UserError, match=r"text 2 has \d+ tokens, but the model reads at most 12"):
        classify(model, task.examples.codec, usage, ["short", long])
    assert len(classify(model, task.examples.codec, usage, ["short", long], truncate=True)) == 2


def test_the_longer_of_two_texts_is_cut_first() -> None:
    codec = train_codec("char", ["abcdefgh xyz"], special=("[CLS]", "[SEP]"))
    frame = sequence_template(codec)
    encoded = codec.encode_batch(["abcdefgh", "xyz"])
    rows = frame_rows(frame, encoded[:1], encoded[1:], LengthLimit(9, truncate=True))
    assert codec.decode(rows.ids.tolist()) == "abcxyz"
    assert rows.second_starts is not None
    assert rows.second_starts.tolist() == [5]
    rows = frame_rows(frame, encoded[:1], encoded[1:], LengthLimit(6, truncate=True))
    assert codec.decode(rows.ids.tolist()) == "abx"


def test_labels_of_the_start_are_kept_where_they_are_the_same(questions: Path, tmp_path: Path) -> None:
    recipe = small(classification())
    names = opened(recipe, questions).examples.labels
    Usage(labels=names[::-1]).save(tmp_path)
    assert opened(recipe, questions, tmp_path).examples.labels == names[::-1]
    Usage(labels=("positive", "negative")).save(tmp_path)
    assert opened(recipe, questions, tmp_path).examples.labels == names
    (tmp_path / "recipe.json").write_text("{}")  # a run that has begun: its labels stand
    with pytest.raises(UserError, match=r"does not occur in the training data \(choose from: negative, positive"):
        opened(recipe, questions, tmp_path)


def test_the_pooler_of_a_start_is_kept(questions: Path) -> None:
    recipe = small(classification())
    pooler = PooledHeadConfig(dense=True, activation="tanh")
    start = replace(recipe, start="somewhere", model=replace(recipe.model, heads={"pooled": pooler}))
    head = opened(start, questions).adapt(start.model).heads
    assert head == {"classes": replace(pooler, outputs=6)}
    bare = replace(recipe, start="somewhere")
    assert opened(bare, questions).adapt(bare.model).heads == {"classes": replace(pooler, outputs=6)}
    mean = override(start, {"task.pool": "mean"})
    assert opened(mean, questions).adapt(mean.model).heads == {"classes": PooledHeadConfig(6, pool="mean")}


def test_the_pooling_of_sentence_vectors_comes_before_a_pooler(questions: Path) -> None:
    recipe = replace(small(classification()), start="somewhere")
    pooler, vectors = PooledHeadConfig(dense=True, activation="tanh"), PooledHeadConfig(pool="mean", unit=True)
    start = replace(recipe, model=replace(recipe.model, heads={"pooled": pooler, "embedding": vectors}))
    head = PooledHeadConfig(6, pool="mean", norm=RMSNormConfig(weight=False))  # at unit length, as they were trained
    assert opened(start, questions).adapt(start.model).heads == {"classes": head}
    first = override(start, {"task.pool": "first"})  # the published form of BERT's classifiers
    assert opened(first, questions).adapt(first.model).heads == {"classes": replace(pooler, outputs=6)}


def test_models_without_the_head_say_so(questions: Path) -> None:
    recipe = small(classification())
    task = opened(recipe, questions)
    model = build(task.adapt(recipe.model))
    said = r"\(heads: classes\), which cannot tag words; use classify or embed with it, .*headway train tagging"
    with pytest.raises(UserError, match=said):
        hw.Model(OpenedModel(model, Usage(), task.examples.codec), Path("m")).tag("a text")
    with pytest.raises(UserError, match="outputs 6 classes but 2 have names"):
        classify(model, task.examples.codec, Usage(labels=("a", "b")), ["a text"])
    with pytest.raises(UserError, match="text 2 of 2 is empty"):
        embed(model, task.examples.codec, ["a text", " "])
    assert embed(model, task.examples.codec, []).shape == (0, 32)


def table(path: Path, rows: list[tuple[str, str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    return path


def test_spellings_of_a_label_are_one_class_from_training_to_use(tmp_path: Path, caplog: Any) -> None:
    spellings = ("1", "1.0", "1\u00a0"), ("caf\u00e9", "cafe\u0301", " caf\u00e9")
    rows = [(f"text {n} of {'cats' if n % 2 else 'dogs'}", spellings[n % 2][n % 3]) for n in range(120)]
    examples = opened(small(classification()), table(tmp_path / "a.csv", rows)).examples
    assert examples.labels == ("1", "caf\u00e9")
    assert examples.classes.tolist() == [n % 2 for n in range(120)]
    assert caplog.text.count("labels that differ only in formatting were merged: '1' and") == 1
    assert [remark[:6] for remark in examples.remarks] == ["Labels"]
    examples.save(tmp_path / "run")
    other = [(text, {"1": "1.00"}.get(label, label)) for text, label in rows]
    again = opened(small(classification()), table(tmp_path / "b.csv", other), tmp_path / "run").examples
    assert again.labels == ("1", "caf\u00e9")
    assert again.classes.tolist() == examples.classes.tolist()


def test_tags_and_groups_are_joined_too(tmp_path: Path) -> None:
    tags = ("B-CAF\u00c9", "B-CAFE\u0301")
    lines = "".join(f"word{n} {tags[n % 2]}\nother O\n\n" for n in range(60))
    (tmp_path / "a.conll").write_text(lines, encoding="utf-8")
    found = opened(small(tagging()), tmp_path / "a.conll").examples
    assert found.labels == ("B-CAF\u00c9", "O")
    rows = [(f"text {n}", ("a", "a ", "b")[n % 3]) for n in range(120)]
    groups = opened(small(embedding()), table(tmp_path / "a.csv", rows)).examples
    assert sorted(set(groups.labels.tolist())) == [0, 1]
    assert groups.remarks


def test_labels_that_occur_once_are_trained_on(tmp_path: Path) -> None:
    lines = [f"word{n} {f'RARE{n}' if n % 20 == 0 else 'O'}\nother O\n" for n in range(200)]
    (tmp_path / "a.conll").write_text("\n".join(lines))
    rows = [(f"text {n}", "AB"[n % 2]) for n in range(200)] + [(f"text {n}", f"C{n}") for n in range(12)]
    labelled = table(tmp_path / "a.csv", rows)
    for seed in range(4):
        settings = {"task.split.seed": seed}
        recipe = small(tagging(), **settings)
        found = cast(Any, recipe.task.open(recipe, [tmp_path / "a.conll"], tmp_path / f"t{seed}").examples)
        assert len(found.labels) == 11
        recipe = small(classification(), **settings)
        texts = cast(Any, recipe.task.open(recipe, [labelled], tmp_path / f"c{seed}").examples)
        assert set(texts.classes[texts.splits.rows("train")].tolist()) == set(range(14))


def test_held_out_sentences_without_entities_have_scores(speeches: Path, tmp_path: Path) -> None:
    (tmp_path / "valid.conll").write_text("nobody O\nspeaks O\n\nhere O\n")
    (tmp_path / "train.conll").write_text(speeches.read_text())
    recipe, files = small(tagging()), [tmp_path / "train.conll", tmp_path / "valid.conll"]
    task = recipe.task.open(recipe, files, tmp_path / "run")
    model = build(task.adapt(recipe.model))
    assert task.evaluate(model)["f1"] == 0
    assert task.pictures(model)


def test_names_of_digits_are_no_numbers_and_have_one_order(tmp_path: Path) -> None:
    names = [f"{a}_{b}" for a in range(1, 8) for b in range(1, 5)]
    rows = [(f"text {n}", names[n % len(names)]) for n in range(280)]
    assert opened(small(classification()), table(tmp_path / "a.csv", rows), tmp_path / "a").examples.labels == (*names,)
    rows = [(f"text {n}", ("01x", "2x", "10x")[n % 3].rstrip("x")) for n in range(60)]
    found = opened(small(classification()), table(tmp_path / "b.csv", rows), tmp_path / "b").examples
    assert found.labels in (("01", "2", "10"), ("1", "2", "10"))


def test_one_held_out_number_is_refused_before_training(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,label\n" + "".join(f"text {n},{n / 7}\n" for n in range(60)))
    (tmp_path / "valid.csv").write_text("text,label\na,0.5\nb,1.5\n")
    (tmp_path / "test.csv").write_text("text,label\nc,0.5\n")
    recipe, parts = small(classification()), [tmp_path / f"{name}.csv" for name in ("train", "valid", "test")]
    task = recipe.task.open(recipe, parts, tmp_path / "run")
    with pytest.raises(UserError, match="the test split has one sample, too few for a correlation; add samples"):
        task.adapt(recipe.model)


def test_samples_that_the_test_part_has_are_reported(tmp_path: Path, caplog: Any) -> None:
    rows = [(f"text {n}", "ab"[n % 2]) for n in range(90)]
    table(tmp_path / "train.csv", rows)
    table(tmp_path / "test.csv", rows[:7])
    found = opened(small(classification()), tmp_path).examples
    assert "training samples that are also in validation or test files" in caplog.text
    validated = {found.table.columns["text"][row] for row in found.splits.rows("validation")}
    removed = 7 - len(validated & {text for text, _ in rows[:7]})
    assert found.splits.removed == removed > 0
    assert found.remarks[0].startswith(
        f"{removed} of the samples to train on were skipped because they also occur in validation or"
    )
