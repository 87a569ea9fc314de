"""Speech with transcripts: what is read, joined, foretold, judged and shown."""

from __future__ import annotations

import json
import logging
import re
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

pytest.importorskip("soundfile")

from sound_files import digits, prompts, tone, write
from tiny_runs import cut_back, weights
from whisper_models import folder as whisper_folder

import headway as hw
from headway.app.conversion import export_model
from headway.app.recipes import configure_recipe
from headway.config import override
from headway.data.packing import IGNORE_INDEX
from headway.domains import recipe as find_recipe
from headway.domains.audio import FileSound, TranscriptionOptions
from headway.domains.audio.framing import FramedWindows
from headway.domains.audio.sequences import STEP, SequenceSamples, SpokenSequences, TimedDigits, matching_words
from headway.domains.audio.sound_files import read_sound, read_transcripts
from headway.domains.audio.transcription import (
    TranscribedSpeech,
    TranscriptRecognition,
    normalize_words,
    read_segments,
)
from headway.errors import ConfigError, UserError
from headway.formats.open import open_model
from headway.learn.examples import Batch, RowSubset
from headway.learn.fine_tuning import open_new_task
from headway.learn.recipe import open_task
from headway.learn.report.pictures import Span, spectrogram
from headway.learn.report.rendering import png
from headway.learn.task import Task
from headway.nn.models import build

SMALL = {
    "model.width": 16,
    "model.depth": 1,
    "model.heads": 2,
    "train.batch_size": 4,
    "train.steps": 4,
    "train.evaluate_limit": 4,
    "train.precision": "fp32",
}
SPLIT = {"task.split.validation": 0.2, "task.split.test": 0.2}


def transcription(
    data: Path, settings: dict[str, Any] | None = None
) -> tuple[TranscribedSpeech, TranscriptRecognition]:
    recipe = override(find_recipe("transcription"), {**SMALL, **SPLIT, **(settings or {})})
    return parts(open_task(recipe, Path("/nowhere"), data))


def parts(task: Any) -> tuple[TranscribedSpeech, TranscriptRecognition]:
    assert isinstance(task.examples, TranscribedSpeech)
    assert isinstance(task.objective, TranscriptRecognition)
    return task.examples, task.objective


def batch_of(examples: TranscribedSpeech, *rows: int) -> Batch:
    return examples.take(np.array(rows))


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return digits(tmp_path_factory.mktemp("digits"))


def sequences_task(data: Path, settings: dict[str, Any] | None = None) -> Task:
    given = {"task.seconds": 1.2, "task.held_out": 12, "task.gap": [0.05, 0.2], "task.lead": 0.1, "task.most": 4}
    recipe = override(find_recipe("spoken-sequences"), {**SMALL, **given, **(settings or {})})
    task = open_task(recipe, Path("/nowhere"), data)
    assert isinstance(task, Task)
    return task


def sequences(data: Path, settings: dict[str, Any] | None = None) -> SpokenSequences:
    examples = sequences_task(data, settings).examples
    assert isinstance(examples, SpokenSequences)
    return examples


# Sounds with transcripts


def test_transcripts_lie_beside_their_sounds(tmp_path: Path) -> None:
    folder = prompts(tmp_path / "data")
    found = read_transcripts([folder])
    assert found.texts[:2] == ["a j", "b a"]
    assert found.files[1] == folder / "sounds" / "1.wav"
    rows = [{"file": f"sounds/{i}.wav", "said": text} for i, text in enumerate(found.texts)]
    (tmp_path / "data" / "prompts.tsv").unlink()
    table = folder / "all.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_transcripts([table], "file", "said").texts == found.texts
    with pytest.raises(UserError, match=r"no key 'path' \(did you mean 'file'\?\).*task\.path=file"):
        read_transcripts([table])


def test_what_belongs_to_nothing_is_refused_or_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = prompts(tmp_path / "data")
    table = folder / "prompts.tsv"
    write(folder / "sounds" / "extra.wav", tone(200))
    with pytest.raises(UserError, match=r"extra\.wav has no transcript; add one.*task\.skip_bad=true"):
        read_transcripts([folder])
    table.write_text(table.read_text() + "sounds/gone.wav\tgone\nsounds/lost.wav\tlost\n")
    with pytest.raises(UserError, match=r"prompts\.tsv, line 12: sounds/gone\.wav is not a file .*\(and 1 more of 12"):
        read_transcripts([folder])
    (folder / "sounds" / "3.wav").write_bytes(b"no sound")
    write(folder / "sounds" / "4.wav", tone(200, 31.0))
    with caplog.at_level(logging.WARNING):
        examples, _ = transcription(folder, {"task.skip_bad": True})
    assert len(examples.rows) == 8
    for message in (
        "2 of 12 transcripts",
        "1 of 11 recordings",
        "skipped 1 of 10 audio files that cannot be read",
        "the window of",
    ):
        assert message in caplog.text
    for row, text in enumerate(examples.rows.texts):
        sound = FileSound(folder / "sounds" / f"{'abcdefghij'.index(text[0])}.wav")
        window = FramedWindows(sound, examples.bands, examples.frames, "silence").window(0)
        torch.testing.assert_close(batch_of(examples, row).inputs[0], window, rtol=0, atol=2e-5)
    for bad, message in (
        (tmp_path / "no.tsv", "there is no file"),
        (tmp_path / "no.wav", "does not exist"),
        (tmp_path / "cache", "has no transcripts"),
    ):
        with pytest.raises(UserError, match=message):
            read_transcripts([bad])


def test_what_does_not_fit_names_both_lengths(tmp_path: Path) -> None:
    folder = prompts(tmp_path / "data")
    with pytest.raises(UserError, match=r"is 0\.25 s long, but the model's window is 0\.2 s"):
        transcription(folder, {"task.seconds": 0.2})
    with pytest.raises(UserError, match="has a transcript of 6 tokens, but the model's context is 4"):
        transcription(folder, {"model.decoder.context": 4})
    examples, _ = transcription(folder, {"task.split.validation": 0.0})
    with pytest.raises(
        UserError, match=r"the validation split of 10 recordings is empty; .* as task\.split\.validation=0\.2"
    ):
        examples.adapt(find_recipe("transcription").model)


def test_what_is_judged_has_words(tmp_path: Path) -> None:
    folder = prompts(tmp_path / "data")
    lines = (folder / "prompts.tsv").read_text().splitlines()
    (folder / "prompts.tsv").rename(folder / "train.tsv").write_text("\n".join(lines[:9]) + "\n")
    (folder / "validation.tsv").write_text("path\ttext\nsounds/8.wav\t...\nsounds/9.wav\t?!\n")
    examples, objective = transcription(folder)
    with pytest.raises(
        UserError, match=r"no transcript in the validation split has a word to compare \(2 transcripts such as"
    ):
        objective.adapt(examples.adapt(find_recipe("transcription").model), examples)


def test_the_prompt_is_read_and_not_foretold(tmp_path: Path) -> None:
    examples, objective = transcription(prompts(tmp_path / "data"), {"task.augment": {}})
    codec = examples.codec
    start, plain, end = (codec.token_id(f"<|{n}|>") for n in ("startoftranscript", "notimestamps", "endoftext"))
    assert examples.special_tokens == ((start, plain), end, (start, plain))
    batch = batch_of(examples, 0, 1)
    frames, _, read, _ = batch.inputs
    assert frames.shape == (2, 26, 80)  # whole pairs of frames
    assert read[0].tolist() == [start, plain, *codec.encode(" a j")]
    assert batch.targets[0].tolist() == [IGNORE_INDEX, *codec.encode(" a j"), end]
    assert batch.tokens == 10
    sources = examples.with_transcripts(RowSubset(examples, np.array([0, 1])))
    scores = objective.scores(examples, sources, [codec.encode(" a j"), codec.encode(" b j")])
    assert scores["wer"] == 0.25
    assert normalize_words("Don't stop_it,  NOW.") == "don't stop it now"
    said = [objective.sample(examples, "", codec.encode(f" {text}"), ["a j"]) for text in ("a j", "a b")]
    assert [row[""] for row in said] == ["✓", "✗"]


def test_english_is_compared_by_whispers_normaliser(whisper: Path, tmp_path: Path) -> None:
    """Where a model says that it writes English, or its user does."""
    folder = prompts(tmp_path / "data")
    table = folder / "prompts.tsv"
    table.write_text(table.read_text().replace("a j", "Mr. Li's colour, um, is twenty-one"))
    said = " mister li is color is 21"
    plain, told = transcription(folder), transcription(folder, {"task.language": "en"})
    german = transcription(folder, {"task.language": "de"})
    recipe = configure_recipe("transcription", folder, SPLIT, None, start=whisper)
    published = parts(open_new_task(recipe, tmp_path / "run"))
    for task, language in ((plain, None), (german, "de"), (told, "en"), (published, "en")):
        examples, objective = task
        sources = examples.with_transcripts(RowSubset(examples, np.array([0])))
        written = examples.codec.encode(said) if task is published else []
        scores = objective.scores(examples, sources, [written])
        assert examples.language == language
        assert scores["wer_signature"] == (
            "normalizer:whisper-english" if language == "en" else "case:lower|punctuation:no"
        )
        assert scores["wer"] == (0 if task is published else 1)
    assert told[1].normalize("twenty-one, um") == "21"
    assert plain[1].normalize("twenty-one, um") == "twenty one um"


def test_augmented_speech_is_a_function_of_seed_and_place(tmp_path: Path) -> None:
    folder = prompts(tmp_path / "data")
    examples, _ = transcription(folder, {"task.augment.noise": [20.0, 30.0]})
    stream = examples.batches("train")
    batches = [next(stream) for _ in range(4)]
    again = next(transcription(folder, {"task.augment.noise": [20.0, 30.0]})[0].batches("train", start=3))
    assert torch.equal(again.inputs[0], batches[3].inputs[0])
    assert torch.equal(again.targets, batches[3].targets)
    assert not torch.equal(batches[0].inputs[0], batches[3].inputs[0])


def test_fine_tuning_keeps_the_models_symbols(tmp_path: Path) -> None:
    """A run of one's own stands for a published model: its tokenizer, window and prompt go on."""
    data = prompts(tmp_path / "data")
    settings = {**SMALL, **SPLIT, "train.evaluate_every": 4, "model.decoder.context": 16}
    first = hw.train("transcription", data, settings, run=tmp_path / "first", progress=False, samples=1)
    assert first.summary["scores"]["wer_signature"]
    page = (tmp_path / "first" / "report.html").read_text()
    assert "Alignment" in page
    usage = json.loads((tmp_path / "first" / "usage.json").read_text())
    short = prompts(tmp_path / "short", 5)
    recipe = configure_recipe("transcription", short, {"train.steps": 2, **SPLIT}, None, start=tmp_path / "first")
    task = open_new_task(recipe, tmp_path / "second")
    examples, _ = parts(task)
    assert examples.codec.fingerprint() == parts(first.task)[0].codec.fingerprint()
    assert usage["ends"] == [examples.special_tokens.eos]
    assert task.adapt(recipe.model) == first.recipe.model


def test_a_real_whisper_starts_as_it_is(whisper: Path, tmp_path: Path) -> None:
    recipe = configure_recipe("transcription", prompts(tmp_path / "data"), SPLIT, None, start=whisper)
    examples, _ = parts(open_new_task(recipe, tmp_path / "run"))
    assert examples.frames == 3000
    batch = batch_of(examples, 0)
    both = batch.inputs[2][0].tolist(), batch.targets[0, 1:].tolist()
    read, said = ([examples.codec.tokenizer.id_to_token(i) for i in ids] for ids in both)
    assert read == ["<|startoftranscript|>", "<|notimestamps|>", "Ġa", "Ġj"]
    assert said == ["Ġa", "Ġj", "<|endoftext|>"]
    assert examples.special_tokens.eos not in examples.special_tokens.suppressed
    with pytest.raises(ConfigError, match="supports English only, not 'de'"):
        open_new_task(override(recipe, {"task.language": "de"}), tmp_path / "run")


def test_a_share_of_a_whispers_training_samples_has_timestamps(whisper: Path, data_dir: Path, tmp_path: Path) -> None:
    """Those of the transcript, or the ends of speech; from them the model learns what it already could."""
    pytest.importorskip("soundfile")
    folder = data_dir / "speech/pocketsphinx"
    texts = ["<|0.10|> ten of<|0.62|><|0.62|> clubs<|0.90|>", "four queen of clubs", "seven of clubs", "five five"]
    table = tmp_path / "table.tsv"
    rows = [f"{folder}/cards-00{i}.wav\t{text}\n" for i, text in enumerate(texts, 1)]
    table.write_text("path\ttext\n" + "".join(rows))
    settings = {**SPLIT, "task.timestamps": 1.0, "task.augment": {}}
    recipe = configure_recipe("transcription", table, settings, None, start=whisper)
    examples, _ = parts(open_new_task(recipe, tmp_path / "run"))
    assert examples.rows.texts[0] == "ten of clubs"
    timed, plain = examples.utterance(0, 0), examples.utterance(0, None)
    first, eos = examples.first_time, examples.special_tokens.eos
    assert [i - first for i in timed.ids if i >= first] == [5, 31, 31, 45]
    assert [i for i in timed.ids if i < first] == plain.ids == examples.codec.encode(" ten of clubs")
    batch = examples.batch([timed, plain])
    prompt = examples.special_tokens.prompt
    assert batch.inputs[2][0, : 1 + len(timed.ids)].tolist() == [prompt[0], *timed.ids]
    assert batch.targets[0, : 1 + len(timed.ids)].tolist() == [*timed.ids, eos]
    assert batch.inputs[2][1, : 2 + len(plain.ids)].tolist() == [*prompt, *plain.ids]
    assert batch.targets[1, : 2 + len(plain.ids)].tolist() == [-100, *plain.ids, eos]
    start, *words, end = examples.utterance(1, 0).ids
    assert words == examples.codec.encode(" four queen of clubs")
    seconds = [0.02 * (i - first) for i in (start, end)]
    assert 0 <= seconds[0] < 0.5 < seconds[1] <= len(examples.sounds[1]) / 16000
    slower = examples.timed_ids(1, lambda second: 0.4 + 2 * second)
    assert [0.02 * (slower[i] - first) for i in (0, -1)] == pytest.approx([0.4 + 2 * t for t in seconds], abs=0.021)
    half, _ = parts(open_new_task(override(recipe, {"task.timestamps": 0.5}), tmp_path / "run"))
    assert 10 < sum(half.utterance(1, position).timed for position in range(40)) < 30
    for text in ("<|0.10|> ten", "ten <|0.10|> of<|0.20|>", "<|0.90|> ten<|0.20|>"):
        with pytest.raises(
            UserError, match=r"here: the timestamps of '.*' do not enclose each segment in order; write"
        ):
            read_segments(text, "here")


def test_a_tuned_whisper_still_times_its_subtitles(
    whisper: Path, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few steps with the real tiny.en, in a window of 10.5 s, because steps of 30 s take three times as long. After
    as many steps without timestamps in the training samples, its times are whole seconds.
    """
    pytest.importorskip("soundfile")
    monkeypatch.setattr("headway.app.api.available", lambda: False)  # the report's attention takes as long as steps
    folder = data_dir / "speech/pocketsphinx"
    said = [(folder / f"{name}.transcription").read_text() for name in ("librivox", "cards")]
    lines = [line for text in said for line in re.findall(r"<s> (.*?) </s> \((\S+)\)", text)]
    lines = [(text, f"cards-{name}" if name.isdecimal() else name) for text, name in lines]
    table = tmp_path / "table.tsv"
    table.write_text("path\ttext\n" + "".join(f"{folder}/{name}.wav\t{' '.join(t.split())}.\n" for t, name in lines))
    settings = {"train.steps": 4, "train.batch_size": 1, "train.precision": "fp32", **SPLIT}
    settings |= {"train.evaluate_limit": 1, "train.evaluate_every": 4, "task.seconds": 10.5}
    settings |= {"optim": {"kind": "adamw", "lr": 2e-4}, "schedule": {"kind": "cosine", "warmup": 0.1, "floor": 0.1}}
    hw.train("transcription", table, settings, run=tmp_path / "run", start=whisper, progress=False, samples=0)
    pause, edges, samples = np.zeros(14400, np.float32), list[float](), list[np.ndarray]()
    for _, name in lines[1:3]:
        samples += [pause, read_sound(folder / f"{name}.wav").numpy()]
        edges += [sum(map(len, samples[:-1])) / 16000, sum(map(len, samples)) / 16000]
    options = TranscriptionOptions(beam=1, temperatures=(0.0,), vad=False)  # the model's own times
    found = hw.load(tmp_path / "run", "cpu").transcriber(options).transcribe(np.concatenate(samples))
    times = [time for segment in found.segments for time in (segment.start, segment.end)]
    assert times == pytest.approx(edges, abs=0.5)


def test_a_run_transcribes_what_its_evaluation_writes(tmp_path: Path) -> None:
    """Of sounds shorter than the window and of the longest, which fills it: the same frames, so the same texts."""
    folder = prompts(tmp_path / "data")
    write(folder / "sounds" / "9.wav", tone(700, 0.4))
    settings = {**SMALL, **SPLIT, "model.decoder.context": 16, "train.steps": 60, "train.batch_size": 8}
    settings |= {"model.width": 32, "model.dropout": 0.0, "task.augment": {}}
    settings |= {"optim": {"kind": "adamw", "lr": 0.005, "betas": [0.9, 0.98], "weight_decay": 0.01}}
    settings |= {"schedule": {"kind": "cosine", "warmup": 0.05, "floor": 0.0}}
    run = hw.train("transcription", folder, settings, run=tmp_path / "run", progress=False, samples=0)
    (examples, objective), model = parts(run.task), hw.load(tmp_path / "run")
    assert model.usage.settings == {"sound_padding": "silence"}
    transcriber = model.transcriber(TranscriptionOptions(beam=1, temperatures=(0.0,), vad=False))  # its words are tones
    texts = set[str]()
    for row in examples.of("all").rows.tolist():
        frames = batch_of(examples, row).inputs[0]
        sound = FileSound(examples.rows.files[row])
        window = FramedWindows(sound, examples.bands, examples.frames, transcriber.padding).window(0)
        torch.testing.assert_close(window, frames, rtol=0, atol=2e-5)
        alone = examples.with_transcripts(RowSubset(examples, np.array([row])))
        [wanted] = examples.decode_all(objective.generate(model.module, examples, alone, objective.search))
        wanted = wanted.strip()
        assert transcriber.transcribe(sound.path).text == wanted
        texts.add(wanted)
    assert len(texts) > 1
    for asked, message in (
        ({"words": True}, "does not generate timestamps"),
        ({"language": "de"}, "only the language it was trained on"),
    ):
        with pytest.raises(UserError, match=message):
            model.transcribe(folder / "sounds" / "1.wav", **asked)
    export_model(open_model(tmp_path / "run"), tmp_path / "published")
    published, sound = hw.load(tmp_path / "published"), folder / "sounds" / "1.wav"
    assert published.usage.settings["sound_padding"] == "silence"
    said = model.transcribe(sound, beam=1).text
    assert [found.text for found in published.transcribe([sound, read_sound(sound)], beam=1)] == [said, said]


def test_fine_tuning_a_published_model_keeps_its_frames_of_zeros(tmp_path: Path) -> None:
    folder, start = prompts(tmp_path / "data"), whisper_folder(tmp_path / "published")
    settings = {**SPLIT, "train.steps": 2, "train.batch_size": 2, "train.precision": "fp32"}
    run = hw.train("transcription", folder, settings, run=tmp_path / "run", start=start, progress=False, samples=0)
    (examples, _), model = parts(run.task), hw.load(tmp_path / "run")
    assert model.usage.settings["sound_padding"] == examples.padding == "zeros"
    [frames] = batch_of(examples, 0).inputs[0]
    assert frames.shape == (100, 8)
    assert [bool(frames[:25].all()), bool(frames[25:].any())] == [True, False]
    changed = next(examples.batches("train")).inputs[0]  # later, slower and masked, but still with zeros behind
    assert not changed[:, 50:].any()
    window = FramedWindows(FileSound(examples.rows.files[0]), examples.bands, examples.frames, "zeros").window(0)
    torch.testing.assert_close(window[0], frames, rtol=0, atol=2e-5)


# Sequences of digits


def test_between_digits_there_is_silence_and_in_them_the_recording(recordings: Path) -> None:
    task = sequences(recordings)
    seen = 0
    for number in range(12):
        window, spans = task.sequence("test", number)
        assert len(window) == 1.2 * 16000
        edges = [0, *(round(t * 16000) for span in spans for t in span[1:]), len(window)]
        assert edges == sorted(edges)
        for start, end in zip(edges[::2], edges[1::2]):
            assert not window[start:end].any()
        gaps = [after.start - before.end for before, after in pairwise(spans)]
        assert all(0.05 - 1e-4 <= gap <= 0.2 + 1e-4 for gap in gaps)
        for start, end in zip(edges[1::2], edges[2::2]):
            assert any(
                torch.equal(window[start:end], task.sounds[row])
                for voice in task.rows_by_speaker["test"]
                for row in voice
            )
        seen += len(spans)
    assert seen > 24


def test_no_recording_is_in_two_splits(recordings: Path) -> None:
    task = sequences(recordings)
    rows = {split: {int(row) for voice in voices for row in voice} for split, voices in task.rows_by_speaker.items()}
    assert rows.pop("all") == set.union(*rows.values())
    assert sum(map(len, rows.values())) == len(set.union(*rows.values())) == 240
    assert {task.takes.takes[row] for row in rows["test"]} == {0, 1, 2, 3, 4}
    assert not {task.takes.takes[row] for row in rows["train"] | rows["validation"]} & {0, 1, 2, 3, 4}


def test_sequences_are_a_function_of_split_and_number(recordings: Path) -> None:
    task, again = sequences(recordings), sequences(recordings, {"train.seed": 5})
    for split in ("validation", "test"):  # what is judged is the same whatever the seed
        assert torch.equal(task.sequence(split, 3).window, again.sequence(split, 3).window)
    assert not torch.equal(task.sequence("train", 3, True).window, again.sequence("train", 3, True).window)
    stream = task.batches("train")
    batches = [next(stream) for _ in range(3)]
    assert torch.equal(next(sequences(recordings).batches("train", start=2)).inputs[0], batches[2].inputs[0])
    targets = {tuple(row) for batch in batches for row in batch.inputs[2].tolist()}
    assert len(targets) == 12  # no place has the sequence of another


def test_times_stand_around_each_word(recordings: Path) -> None:
    task = sequences(recordings)
    spans = [Span("seven", 0.101, 0.349), Span("two", 0.52, 0.8)]
    ids = task.ids(spans)
    names = [task.codec.tokenizer.id_to_token(i) for i in ids]
    assert names == ["<|0.10|>", " seven", "<|0.34|>", "<|0.52|>", " two", "<|0.80|>"]
    assert task.codec.decode(ids) == "seven two"
    assert [span.text for span in task.spans(ids)] == ["seven", "two"]
    assert task.spans([*ids[:2], ids[3], ids[4]]) == [Span("seven", 0.1, pytest.approx(0.52))]
    shown = task.codec.tokenizer.get_vocab_size()
    assert shown == 11 + 3 + round(1.2 / STEP) + 1


def test_what_is_right_has_no_errors_but_those_of_the_step(recordings: Path) -> None:
    task = sequences_task(recordings)
    examples, objective = sequences(recordings), task.objective
    assert isinstance(objective, TimedDigits)
    sources = examples.sources("test")
    right = [examples.ids(spans) for spans in sources.inputs.spans()]
    scores = objective.scores(examples, sources, right)
    assert scores["wer"] == 0
    assert 0 < scores["boundary_error_ms"] <= 10
    late = [[i + 1 if i in examples.time_index and i + 1 in examples.time_index else i for i in ids] for ids in right]
    assert objective.scores(examples, sources, late)["boundary_error_ms"] == pytest.approx(20, abs=6)
    assert objective.scores(examples, sources, [[] for _ in right])["wer"] == 1
    true = [Span(word, i, i + 0.5) for i, word in enumerate(("one", "two", "three"))]
    pairs = matching_words(true, [Span("one", 0.1, 0.4), Span("nine", 1, 1.5), Span("three", 2, 2.5)])
    assert [one.text for one, _ in pairs] == ["one", "three"]


def test_a_batch_of_sequences_is_learned_by_heart(recordings: Path) -> None:
    task = sequences_task(recordings, {"task.augment": {}})
    examples, objective = task.examples, task.objective
    assert isinstance(examples, SpokenSequences)
    assert isinstance(objective, TimedDigits)
    model = build(task.adapt(override(find_recipe("spoken-sequences"), {**SMALL, "model.width": 32}).model))
    batch = next(task.batches("train"))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60):
        loss = task.loss(model, batch)["loss"]
        optimizer.zero_grad()
        (loss.total / loss.count).backward()
        optimizer.step()
    assert float(loss.total.detach()) / loss.count < 0.1
    wanted = [examples.spans(row) for row in batch.inputs[2].tolist()]
    first = SequenceSamples(examples, "train", np.arange(len(wanted)))
    written = objective.generate(model, examples, examples.with_transcripts(first), objective.search)
    assert [examples.spans(ids) for ids in written] == wanted


def test_a_run_of_sequences_goes_on_bit_for_bit_and_is_shown(recordings: Path, tmp_path: Path) -> None:
    settings = {
        **SMALL,
        "task.seconds": 1.2,
        "task.held_out": 2,
        "train.checkpoint_every": 2,
        "train.keep_checkpoints": 9,
    }
    settings |= {"train.evaluate_every": 2, "task.most": 3, "model.decoder.context": 16}
    hw.train("spoken-sequences", recordings, settings, run=tmp_path / "run", progress=False, samples=2)
    before = cut_back(tmp_path / "run", tmp_path / "again", 2)
    hw.train("spoken-sequences", recordings, None, run=before, resume=True, progress=False, samples=0)
    ours, wanted = weights(before), weights(tmp_path / "run")
    assert all(torch.equal(ours[name], wanted[name]) for name in wanted)
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Alignment" in page
    assert page.count("data:image/png;base64,") == 2  # the spectrogram and the attention
    assert "wer" in json.loads((tmp_path / "run" / "run.json").read_text())["scores"]


# Pictures


def test_a_spectrogram_is_a_picture_of_its_numbers() -> None:
    image = pytest.importorskip("PIL.Image")
    import io

    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 4), dtype=np.uint8)
    assert np.array_equal(np.asarray(image.open(io.BytesIO(png(pixels)))), pixels)
    tracks = {"said": [Span("<one>", 0.1, 0.3)], "heard": []}
    drawn = spectrogram(np.random.default_rng(1).random((50, 8)), 0.5, tracks, np.eye(3, 25), ["a", "b & c", "·"])
    tree = ElementTree.fromstring(drawn.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1))
    texts = [node.text for node in tree.iter() if node.text]
    assert "b & c" in texts
    assert any("<one>: 0.10 to 0.30 s" in text for text in texts)
    assert len([node for node in tree.iter() if node.tag.endswith("image")]) == 2
