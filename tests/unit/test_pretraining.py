"""Pre-training: the unlabelled texts, the expected gain, both stages in one run, and the auxiliary loss of GPT."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from understanding_data import opened, small, write_questions

import headway as hw
from headway.app.pretraining import Pretrained, check_pretrain, train_first_stage
from headway.app.recipes import load_recorded_recipe
from headway.config import override
from headway.domains.masked.recipes import masked, modern_encoder
from headway.domains.text.recipes import modern_decoder, text
from headway.domains.text.task import LanguageConfig
from headway.domains.understanding.recipes import PRETRAINING, classification
from headway.domains.understanding.task import TextDataset
from headway.domains.understanding.unlabelled import read_unlabelled
from headway.errors import ConfigError, UserError
from headway.learn.interrupts import UserInterrupt
from headway.learn.plan.budget import Clock
from headway.learn.pretraining import UnlabelledData, describe_stages
from headway.learn.recipe import open_task, read_recipe
from headway.learn.resume import resumed_recipe
from headway.learn.run import RunDirectory
from headway.nn.models import Transformer, build

SHARES = {"task.split.validation": 0.2, "task.split.test": 0.2}  # of few samples, also without a first stage


@pytest.fixture(scope="module")
def questions(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_questions(data_dir, tmp_path_factory.mktemp("questions"))


@pytest.fixture(scope="module")
def unlabelled(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The last 300 questions of the training part, one per line."""
    with open(data_dir / "textcls/banking77/train.csv", newline="", encoding="utf-8") as file:
        lines = [" ".join(row["text"].split()) for row in csv.DictReader(file)][-300:]
    path = tmp_path_factory.mktemp("unlabelled") / "questions.txt"
    path.write_text("\n".join(lines))
    return path


def test_texts_of_every_kind_without_the_held_out_ones(questions: Path, tmp_path: Path) -> None:
    recipe = small(classification())
    task = opened(recipe, questions, tmp_path)
    held_out = task.examples.texts_of("validation")[0]
    (tmp_path / "lines.txt").write_text(f"{held_out}\nWhere is my money?\n\n".strip() + "\nWhere is my money?\n")
    (tmp_path / "wrapped.txt").write_text("A paragraph on\ntwo lines.\n\nAnother one.\n")
    (tmp_path / "table.csv").write_text('text,other\n"A row, of a table",1\n')
    paths = [tmp_path / name for name in ("lines.txt", "wrapped.txt", "table.csv")]
    data = read_unlabelled(recipe, task, paths)
    assert [row["text"] for row in data.rows[: data.unlabelled]] == [
        "Where is my money?",
        "A paragraph on two lines.",
        "Another one.",
        "A row, of a table",
    ]
    assert {row["text"] for row in data.rows[data.unlabelled :]} == set(task.examples.texts_of("train"))
    (tmp_path / "long.csv").write_text(
        "text,label\n" + "".join(f'"{n} begins.\n\n{n} ends.",{n % 2}\n' for n in range(40))
    )
    (tmp_path / "parts.txt").write_text("\n\n".join(f"{n} begins.\n\n{n} ends." for n in range(42)))
    parts = read_unlabelled(recipe, opened(recipe, tmp_path / "long.csv", tmp_path), [tmp_path / "parts.txt"])
    assert parts.unlabelled == 4  # paragraphs of labelled texts are left out
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    for name, target in (("wrapped.txt", "a.txt"), ("table.csv", "inner/b.csv")):
        (tmp_path / "folder" / target).write_text((tmp_path / name).read_text())
    assert read_unlabelled(recipe, task, [tmp_path / "folder"]).unlabelled == 3
    (tmp_path / "blank.txt").write_text(" \n\n")
    (tmp_path / "column.csv").write_text("sentence\nA text.\n")
    for name, message in (
        ("blank.txt", "blank.txt: there are no texts; pass other texts"),
        ("column.csv", "no column 'text' .*; rename the column with texts to 'text', as in the labelled data"),
    ):
        with pytest.raises(UserError, match=message):
            read_unlabelled(recipe, task, [tmp_path / name])
    (tmp_path / "lines.txt").write_text(held_out.replace(" ", "\t  "))  # white space does not make another text
    with pytest.raises(UserError, match=r"all 1 texts are also in the labelled data"):
        read_unlabelled(recipe, task, [tmp_path / "lines.txt"])


def test_lines_with_a_blank_one_are_not_paragraphs(questions: Path, unlabelled: Path, tmp_path: Path) -> None:
    """They would be compared with the held-out texts as one long text, and all be learned from."""
    recipe = small(classification())
    task = opened(recipe, questions, tmp_path)
    held_out = [text.upper() for split in ("validation", "test") for text in task.examples.texts_of(split)]
    lines = unlabelled.read_text().splitlines()
    (tmp_path / "blank.txt").write_text("\n".join([*lines[:20], "", *lines[20:], *held_out]))
    data = read_unlabelled(recipe, task, [unlabelled])
    assert read_unlabelled(recipe, task, [tmp_path / "blank.txt"]).rows == data.rows
    wrapped = (
        "A paragraph of words that goes on and\non over a few lines, each of which ends\nwhere no other word fits."
    )
    (tmp_path / "wrapped.txt").write_text(f"{wrapped}\n\n{held_out[0]}\n\n{wrapped} Twice.\n")
    paragraph = " ".join(wrapped.split())
    texts = [row["text"] for row in read_unlabelled(recipe, task, [tmp_path / "wrapped.txt"]).rows]
    assert texts[:2] == [paragraph, f"{paragraph} Twice."]
    (tmp_path / "cells.csv").write_text(f'text\n"See below:\n{held_out[0]}"\n')
    with pytest.raises(UserError, match="all 1 texts are also in the labelled data"):
        read_unlabelled(recipe, task, [tmp_path / "cells.csv"])


def test_texts_without_words_leave_no_gain(questions: Path, tmp_path: Path) -> None:
    recipe = small(classification())
    task = opened(recipe, questions, tmp_path)
    (tmp_path / "numbers.txt").write_text("\n".join(map(str, range(1000))))
    assert "0% of the words" in (read_unlabelled(recipe, task, [tmp_path / "numbers.txt"]).doubt or "")


def test_the_first_stage_fits_a_short_context() -> None:
    for context, expected in ((None, 128), (64, 64), (1024, 128)):
        recipe = override(classification(), {"model.context": context})
        assert PRETRAINING["classification"].settings(recipe)["task.context"] == expected


def test_another_language_or_few_texts_leave_no_gain(questions: Path, unlabelled: Path, tmp_path: Path) -> None:
    recipe = small(classification())
    task = opened(recipe, questions, tmp_path)
    data = read_unlabelled(recipe, task, [unlabelled])
    assert data.similar is not None
    assert data.similar > 0.6
    plan, expectation = describe_stages("masked", data._replace(unlabelled=9000), 20)
    assert "takes 17 of 20 minutes on 9,000 unlabelled and 118 labelled texts" in plan
    counts = ((300, 118), (9000, 1000), (9000, 50))
    shares = [data._replace(unlabelled=many, labelled=few).share for many, few in counts]
    assert shares == pytest.approx([0.7, 1 - 600 * 1000**0.5 / (600 * 1000**0.5 + 100_000), 0.85])
    assert expectation.startswith("a gain from pre-training is expected: 76 times as many")
    (tmp_path / "german.txt").write_text(
        "Ein Mann mit einem Hut steht auf der Straße.\nZwei Hunde spielen im Schnee.\n"
    )
    german = read_unlabelled(recipe, task, [tmp_path / "german.txt"])
    assert german.similar is not None
    assert german.similar < 0.2
    assert "another language" in describe_stages("masked", german, 20)[1]
    few = UnlabelledData([], 100, 100, "texts", 1.0, "of the words", "")
    (tmp_path / "numbers.csv").write_text("text,label\n" + "".join(f"{n} + {n},{n % 2}\n" for n in range(40)))
    numbers = opened(recipe, tmp_path / "numbers.csv", tmp_path)
    assert read_unlabelled(recipe, numbers, [unlabelled]).similar is None  # there are no words to compare
    assert few.doubt is not None
    assert "few compared with 100 labelled" in few.doubt


def brief(stage: str, data: Any, set: dict[str, Any], minutes: float | None, run: Path, **arguments: Any) -> Any:
    """hw.train with a tiny model for two steps instead of minutes; no minutes are left for a finished stage."""
    assert (stage, minutes) == ("masked", None if RunDirectory(run).exists() else 14)
    tiny = {"model.width": 32, "model.depth": 1, "model.heads": 2, "task.size": 300, "train.batch_tokens": 512}
    return hw.train(stage, data, set={**set, **tiny, "train.steps": 2, "train.precision": "fp32"}, run=run, **arguments)


def test_both_stages_are_one_run_that_resumes(questions: Path, unlabelled: Path, tmp_path: Path) -> None:
    settings, folder = {"task.lowercase": False, "task.smoothing": 0.1}, tmp_path / "run"

    def first_stage(train: Callable[..., Any], resume: bool, texts: Path = unlabelled) -> Pretrained:
        options = {"progress": False, "resume": resume}
        arguments = texts, "classification", questions, settings, 3, 20, folder, Clock(), options
        return train_first_stage(train, *arguments)

    def stopped(*_: Any, **__: Any) -> None:
        raise UserInterrupt("stopped at step 1 of 2", "resume elsewhere", 2)

    with RunDirectory(folder).locked():
        with pytest.raises(
            UserInterrupt, match=rf"stopped at step 1 of 2; resume {folder} with --resume and --pretrain"
        ):
            first_stage(stopped, False)
        pretrained = first_stage(brief, True)
        first = hw.load(pretrained.start)
        assert first.fill("Where is my [MASK]?")
        again = first_stage(brief, True)  # a finished stage is not trained again
        assert again.start == pretrained.start == folder / "pretraining"
        assert 0 < again.clock.elapsed() < 60 * 14
        status = RunDirectory(folder / "pretraining").status
        status.write_text(json.dumps({**json.loads(status.read_text()), "elapsed": 5000.0}))
        assert 60 * 14 <= first_stage(brief, True).clock.elapsed() < 60 * 15  # the rest is for the labels
        with pytest.raises(UserError, match="already contains a run"):
            first_stage(brief, False)
        (tmp_path / "other.txt").write_text("Another text.\nYet another one.\n" * 20)
        with pytest.raises(UserError, match="pretraining was trained on other data: the new data have"):
            first_stage(brief, True, tmp_path / "other.txt")
    with pytest.raises(UserError, match=r"a first stage on unlabelled data; continue it with --resume and --pretrain"):
        hw.train("classification", questions, run=folder, resume=True)
    texts = [str(path) for path in (folder / "pretraining/data").iterdir()]
    assert pretrained.settings == {
        **settings,
        **SHARES,
        "task.pool": "mean",
        "task.ngrams": True,
        "task.unlabelled": texts,
    }
    chosen = {**pretrained.settings, "train.steps": 2, "train.batch_tokens": 512}
    run = hw.train("classification", questions, set=chosen, start=pretrained.start, run=folder, progress=False)
    assert run.summary["fresh"] == ["heads.classes.project.weight", "heads.classes.project.bias"]
    assert (run.recipe.model.width, run.recipe.model.vocab_size) == (32, first.codec.vocab_size)
    # The factor of the n-grams was chosen before the validation texts were learned, too.
    assert run.summary["refitted"] == sum(run.task.count(split) for split in ("train", "validation"))
    assert f"validation accuracy {100 * run.summary['best']['accuracy']:.1f} % without" in run.summary["extended"]
    assert run.model.heads["classes"].ngrams.weight.abs().sum() > 0
    recorded = read_recipe(run.directory / "recipe.json")  # the model is that of the first stage
    assert load_recorded_recipe(folder, "classification", None, {"model": "text"}, None) == recorded
    texts[0] = str(tmp_path / "other-place.jsonl")
    moved = override(recorded, {"task.unlabelled": texts})
    assert resumed_recipe(moved, recorded, {}, "accuracy", {}, folder).task == moved.task
    moved_task = open_task(moved, folder)  # copies of the texts are in the run
    moved_task.close()


@pytest.mark.parametrize(
    ("name", "minutes", "start", "resuming", "message"),
    [
        (
            "chess",
            5,
            None,
            False,
            "recipe 'chess' has no pre-training; remove --pretrain, or use one of audio, spoken-digits, classification",
        ),
        ("classification", None, None, False, "none are set; add --minutes"),
        ("classification", None, None, True, "started without --pretrain"),
        ("pairs", 5, "runs/other", False, "--pretrain and --from runs/other both set the initial weights"),
    ],
)
def test_what_cannot_be_pretrained(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    minutes: float | None,
    start: str | None,
    resuming: bool,
    message: str,
) -> None:
    with pytest.raises(UserError, match=message):
        check_pretrain("texts.txt", name, minutes, start, tmp_path, resuming)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="--pretrain trains with one process"):
        check_pretrain("texts.txt", "classification", 5, None, tmp_path, False)
    monkeypatch.delenv("WORLD_SIZE")
    with pytest.raises(UserError, match="--pretrain has no files"):
        check_pretrain([], "classification", 5, None, tmp_path, False)


def test_few_related_texts_are_one_batch(unlabelled: Path, tmp_path: Path) -> None:
    """The batch of the recipe has 64 pairs, and that of a plan as many as there are."""
    rows = "".join(f"first text {number},second text {number}\n" for number in range(40))
    (tmp_path / "related.csv").write_text("text,text2\n" + rows)
    arguments = unlabelled, "embedding", tmp_path / "related.csv", {"task.size": 300}, 3, 20, tmp_path / "run", Clock()
    pretrained = train_first_stage(lambda *_, **__: None, *arguments, {"progress": False, "resume": False})
    assert pretrained.settings == {**SHARES, "train.batch_size": 12, "task.size": 300}


def test_a_causal_model_keeps_the_case_of_its_texts(questions: Path, unlabelled: Path, tmp_path: Path) -> None:
    """The recipe text has no setting for lower case, which the labelled texts have."""
    decoder = modern_decoder(width=16, depth=1, heads=2, window=64, vocab_size=1)
    recipe, chosen = replace(small(classification()), model=decoder), {}

    def record(stage: str, data: Any, set: dict[str, Any], *_: Any, **__: Any) -> None:
        assert stage == "text"
        chosen.update(set)

    settings, options = {"task.lowercase": False, "task.size": 300}, {"progress": False, "resume": False}
    train_first_stage(record, unlabelled, recipe, questions, settings, 3, 20, tmp_path / "run", Clock(), options)
    stage = override(text(), {key: value for key, value in chosen.items() if key != "model.context"})
    assert cast(LanguageConfig, stage.task).size == 300
    arguments = unlabelled, recipe, questions, {"task.lowercase": True}, 3, 20, tmp_path / "lower", Clock(), options
    with pytest.raises(UserError, match="a first stage of recipe 'text' keeps the case; remove the setting"):
        train_first_stage(record, *arguments)


def test_contrast_is_between_two_maskings_of_each_document(unlabelled: Path, tmp_path: Path) -> None:
    """Gao et al. 2021, equation 1, in both directions, also for documents that share a row."""
    lines = (json.dumps({"text": line}) for line in unlabelled.read_text().splitlines())
    (tmp_path / "texts.jsonl").write_text("\n".join(lines))
    model = modern_encoder(width=32, depth=1, heads=2, vocab_size=1, context=64)
    settings = {"task.contrast": 0.5, "task.size": 300, "train.batch_tokens": 256, "task.split.validation": 0.2}
    recipe = override(replace(masked(), model=model), settings)
    task = open_task(recipe, tmp_path, tmp_path / "texts.jsonl")
    encoder = build(task.adapt(model), 0).eval()
    batch = next(task.batches("train"))
    ids, layout = batch.inputs[0].ids, batch.inputs[1]
    assert len(ids) == 256 // 64
    x, means = encoder(*batch.inputs).x, []
    for row in range(len(ids)):
        for number in range(1, int(layout.segments[row].max()) + 1):
            means.append(x[row][(layout.segments[row] == number) & layout.mask[row]].mean(0))
    first, second = F.normalize(torch.stack(means), dim=-1).chunk(2)
    assert not torch.equal(ids[: len(ids) // 2], ids[len(ids) // 2 :])
    assert torch.equal(layout.positions[: len(ids) // 2], layout.positions[len(ids) // 2 :])
    scores, target = first @ second.T / 0.05, torch.arange(len(first))
    expected = 0.5 * (F.cross_entropy(scores, target) + F.cross_entropy(scores.T, target)) / 2
    losses, counts = task.loss(encoder, batch), task.objective.counts(batch)
    assert counts == {"masked": batch.tokens, "contrast": len(first)}
    assert losses["contrast"].total.item() / len(first) == pytest.approx(expected.item(), rel=1e-4)
    assert len(next(task.batches("validation")).inputs[0].ids) > 0
    with pytest.raises(ConfigError, match=r"task.contrast=0.5 with task.next=true is not valid"):
        open_task(override(recipe, {"task.next": True}), tmp_path, tmp_path / "texts.jsonl")


def test_auxiliary_loss_is_that_of_the_next_tokens(questions: Path, tmp_path: Path) -> None:
    """Radford et al. 2018, equation 5."""
    decoder = modern_decoder(width=32, depth=1, heads=2, window=64, vocab_size=1)
    recipe = override(small(classification()), {"task.language_weight": 0.5})
    with pytest.raises(ConfigError, match=r"language_weight=0.5 needs a causal model"):
        opened(recipe, questions, tmp_path).adapt(recipe.model)
    task = opened(override(recipe, {"model": decoder}), questions, tmp_path)
    assert isinstance(task.examples, TextDataset)
    model = cast(Transformer, build(task.adapt(decoder), 0))
    with torch.no_grad():
        for parameter in model.parameters():  # the heads start at zero
            parameter.normal_(0, 0.1)
    batch = next(task.batches("train"))
    losses, counts = task.loss(model, batch), task.objective.counts(batch)
    ids, layout = batch.inputs.tokens.ids, batch.inputs.layout
    logits, nats, count = model.logits(ids, layout), 0.0, 0
    for row, length in enumerate(layout.lengths.tolist()):
        nats += F.cross_entropy(logits[row, : length - 1], ids[row, 1:length], reduction="sum").item()
        count += length - 1
    assert counts == {"loss": len(ids), "language": count}
    assert losses["language"].count == count
    assert losses["language"].total.item() == pytest.approx(0.5 * nats, rel=1e-4)
    classes = F.cross_entropy(model.output("classes", *batch.inputs), batch.targets, reduction="sum")
    assert losses["loss"].total.item() == pytest.approx(classes.item(), rel=1e-5)
