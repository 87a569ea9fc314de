"""How the generic recipes of sounds, labelled texts, masked texts and conversations are fitted to the user's data."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import chat_data
import pytest
import sound_files
import torch
from understanding_data import write_questions, write_sentences

from headway.app.recipes import configure_recipe
from headway.config import override
from headway.domains import recipe as find_recipe
from headway.domains import scale_of
from headway.domains.image_text.recipes import resolution
from headway.errors import UserError
from headway.learn import MuonConfig, Recipe, WSDConfig
from headway.learn.plan.budget import Clock, Throughput
from headway.learn.plan.choose import active_parameters, choose_size
from headway.learn.plan.plans import can_scale, plan_run
from headway.learn.plan.scale import Scale

PACE = Throughput(2000.0, 0.002)
SIZED = ("audio", "transcription", "classification", "pairs", "tagging", "embedding", "reranking", "masked", "instruct")


def scale(name: str) -> Scale:
    found = scale_of(name)
    assert found is not None
    return found


def settled(name: str, *paths: Path, **task: Any) -> dict[str, Any]:
    recipe = override(find_recipe(name), {f"task.{key}": value for key, value in task.items()})
    return dict(scale(name).data_settings(recipe, paths, 1.0).settings)


def fit(
    monkeypatch: pytest.MonkeyPatch, name: str, data: Path, pace: Throughput = PACE, **user: Any
) -> tuple[Recipe, Any]:
    """A recipe fitted to a minute, with a speed that is not measured."""
    monkeypatch.setattr("headway.learn.plan.choose.measure_throughput", lambda *_: pace)
    recipe, nowhere = configure_recipe(name, data, user, None), Path("/nowhere")
    done = plan_run(recipe, scale(name), user, 1.0, Clock(), torch.device("cpu"), nowhere)
    return done.recipe, done.task


@pytest.mark.parametrize("name", SIZED)
def test_recipes_are_modern_and_their_ladders_lead_upwards(name: str) -> None:
    recipe = find_recipe(name)
    assert isinstance(recipe.optim, MuonConfig)
    assert isinstance(recipe.schedule, WSDConfig)
    assert recipe.schedule.warmup == 0.02
    sizes = [override(recipe, settings).model for settings in scale(name).sizes()]
    parameters = [sum(p.numel() for p in _meta(model).parameters()) for model in sizes]
    assert parameters == sorted(parameters)
    assert len(set(parameters)) == len(parameters)


def _meta(model: Any) -> torch.nn.Module:
    with torch.device("meta"):
        return model.build(seed=None)


@pytest.mark.parametrize("name", ["classification", "audio"])
def test_more_time_and_more_data_make_a_larger_model(name: str) -> None:
    recipe, found = override(find_recipe(name), {"model.context": 50}), []
    for unique, seconds in ((50, 10.0), (5000, 60.0), (500_000, 7200.0)):
        best, _ = choose_size(
            recipe,
            scale(name),
            {},
            unique,
            seconds,
            lambda sized: Throughput(2e8 / active_parameters(sized.model), 0.002),
        )
        found.append(best.parameters)
    assert found == sorted(found)
    assert found[0] < found[-1]


def test_a_batch_is_no_larger_than_the_data() -> None:
    recipe = find_recipe("embedding")
    best, _ = choose_size(recipe, scale("embedding"), {}, 40, 60.0, lambda sized: Throughput(1e5, 0.01))
    assert best.batch == 32


def test_the_steps_of_batches_whose_units_are_not_all_targets_are_counted() -> None:
    recipe = find_recipe("classification")
    best, _ = choose_size(
        recipe, scale("classification"), {}, 9000, 100.0, lambda sized: Throughput(1000.0, 0.0, 1 / 16)
    )
    assert best.targets == pytest.approx(100_000)
    assert best.steps == int(100_000 / (best.batch / 16))


def test_the_window_holds_most_sounds_and_the_rest_is_cut(tmp_path: Path) -> None:
    folder = sound_files.classes(tmp_path / "sounds", each=20)
    even = settled("audio", folder)
    assert even["task.seconds"] == 0.3
    assert even["model.context"] == 15
    assert "task.crop" not in even
    assert even["task.augment.shift"] == 0.03
    assert len(even["task.augment.speeds"]) == 5
    sound_files.write(folder / "low" / "long.wav", sound_files.tone(300, 2.0))
    cut = settled("audio", folder)
    assert cut["task.seconds"] == 0.3
    assert cut["task.crop"] is True
    given = settled("audio", folder, seconds=1.0)
    assert not {"task.seconds", "task.crop", "model.context"} & set(given)
    assert given["task.augment.shift"] == 0.1


def test_sounds_are_fitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = sound_files.classes(tmp_path / "sounds", each=20)
    recipe, task = fit(monkeypatch, "audio", folder, Throughput(200.0, 0.002))
    assert recipe.train.batch_size == 16
    assert recipe.model.context == 15
    assert recipe.reasons
    assert task.count("test") > 0
    own, _ = fit(
        monkeypatch, "audio", folder, Throughput(200.0, 0.002), **{"task.split.test": 0.0, "train.batch_size": 4}
    )
    assert own.train.batch_size == 4
    assert own.task.split.test == 0.0


def test_little_speech_is_refused_with_what_would_do(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"hours of speech with 10 different words.*add speech until there are about .* hours.*--from"
    ):
        settled("transcription", sound_files.prompts(tmp_path))


def test_speech_of_few_words_is_enough_where_each_is_heard_often(tmp_path: Path) -> None:
    sound_files.write(tmp_path / "a.wav", sound_files.tone(300, 0.5))
    (tmp_path / "all.tsv").write_text("path\ttext\n" + "a.wav\tyes no\n" * 300)
    found = settled("transcription", tmp_path)
    assert found["task.seconds"] == 0.6
    assert "task.size" not in found


def test_labelled_texts_have_vocabularies_by_what_is_trained_on(data_dir: Path, tmp_path: Path) -> None:
    questions = write_questions(data_dir, tmp_path)
    found = settled("classification", questions)
    assert found["task.size"] == 1000
    assert found["task.split.test"] == 0.2
    (tmp_path / "questions.csv").rename(tmp_path / "train.csv")
    (tmp_path / "test.csv").write_text((tmp_path / "train.csv").read_text() * 4)
    assert settled("classification", tmp_path / "train.csv", tmp_path / "test.csv") == found


@pytest.mark.parametrize(("name", "unit"), [("classification", 144), ("embedding", 144)])
def test_labelled_texts_are_fitted(
    name: str, unit: int, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, task = fit(monkeypatch, name, write_questions(data_dir, tmp_path))
    trained = scale(name).unique_targets(task)
    assert 80 < trained < unit
    assert recipe.model.embed.dropout == 0.3  # type: ignore[attr-defined]


def test_pairs_and_tags_are_fitted(data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = write_sentences(data_dir, tmp_path).read_text().splitlines()
    labelled = tmp_path / "labelled.tsv"
    labelled.write_text(f"{pairs[0]}\tlabel\n" + "".join(f"{row}\t{'ab'[i % 2]}\n" for i, row in enumerate(pairs[1:])))
    recipe, _ = fit(monkeypatch, "pairs", labelled)
    assert recipe.train.batch_tokens is not None
    assert recipe.train.batch_size is None
    tagged = tmp_path / "tagged.conll"
    tagged.write_text("".join(f"word{i % 30} X\nnext{i % 7} Y\n\n" for i in range(200)))
    recipe, task = fit(monkeypatch, "tagging", tagged)
    assert scale("tagging").unique_targets(task) == 2 * task.count("train")  # type: ignore[attr-defined]


def test_masked_texts_count_what_is_hidden(data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    play = tmp_path / "play.txt"
    lines = (data_dir / "lm/tinyshakespeare.txt").read_text()[:60_000].split("\n\n")
    play.write_text("\n\n".join(lines))
    recipe, task = fit(monkeypatch, "masked", play)
    assert recipe.task.size == 1000
    assert recipe.model.vocab_size == 1000
    assert scale("masked").unique_targets(task) == round(0.15 * task.examples.count_tokens("train"))  # type: ignore[attr-defined]


def test_conversations_get_rows_that_hold_the_longest(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = chat_data.write(tmp_path / "chats.jsonl", chat_data.chats(data_dir, 120))
    recipe, task = fit(monkeypatch, "instruct", told, Throughput(20_000.0, 0.002))
    assert recipe.task.context == recipe.model.context == 256  # type: ignore[attr-defined]
    assert recipe.train.batch_tokens == 2048
    chats = task.examples  # type: ignore[attr-defined]
    said = sum(int(chats.cache.chat(i)[1].sum()) for i in chats.rows_of("train").tolist())
    assert scale("instruct").unique_targets(task) == said > 0


def test_a_preference_needs_a_model_that_answers(data_dir: Path, tmp_path: Path) -> None:
    told = chat_data.write(tmp_path / "choices.jsonl", chat_data.choices(data_dir, 8))
    with pytest.raises(UserError, match=r"use --from with a model that can"):
        settled("preference", told)


def test_data_of_few_symbols_fill_fewer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "texts.jsonl"
    rows = ({"text": f"it is {'good' if i % 2 else 'bad'} number {i}", "label": str(i % 2)} for i in range(300))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe, task = fit(monkeypatch, "classification", path)
    assert recipe.task.size == 1000 > task.examples.codec.vocab_size  # type: ignore[attr-defined]


def test_named_recipes_are_not_fitted_nor_are_models_of_the_user() -> None:
    assert scale_of("banking77") is None
    assert scale_of("spoken-digits") is None
    recipe: Recipe = replace(find_recipe("classification"), start="somewhere")
    assert not can_scale(recipe, scale("classification"), {})


@pytest.mark.parametrize(
    ("longest", "minutes", "expected"),
    [(16, 1, (16, 2)), (28, 5, (28, 4)), (64, 5, (48, 8)), (500, 30, (64, 8)), (500, 120, (96, 16)), (3, 1, (4, 2))],
)
def test_images_with_texts_have_patches_that_resolve_them(
    longest: int, minutes: float, expected: tuple[int, int]
) -> None:
    assert resolution(longest, minutes) == expected
