"""Transcription: the rules of times, what is done with each window, words, and files of subtitles."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from generate_models import language_model, translator
from torch import Tensor
from whisper_models import (
    BANDS,
    END,
    FIRST_TIME,
    POSITIONS,
    SYMBOLS,
    USAGE,
    codec,
    folder,
    model,
    noise,
    time,
    transcriber,
)

import headway as hw
from headway.app.cli.main import main
from headway.app.model import Model
from headway.domains.audio import (
    SubtitleLines,
    Transcriber,
    Transcription,
    TranscriptionOptions,
    TranscriptionStream,
    Word,
    advance_together,
    format_transcript,
    window_transcriber,
)
from headway.domains.audio.mel import RATE, log_mel
from headway.domains.audio.sound_files import open_sound
from headway.domains.audio.transcriber import MAX_PARALLEL_SOUNDS, Segment, transcribe_all
from headway.domains.audio.voice_activity import DetectedSpeech
from headway.domains.audio.window_transcriber import WhisperRule, WhisperTokens, compression_ratio, split_segments
from headway.domains.audio.word_times import (
    align,
    between_pauses,
    dynamic_time_warping,
    merge_punctuation,
    split_ids,
    split_words,
)
from headway.engine import Engine, Format, quantise
from headway.errors import ConfigError, UserError
from headway.formats.open import OpenedModel
from headway.generate.stepper import run_coroutine
from headway.layout import Layout
from headway.nn.models import EncoderDecoder

MARKS = WhisperTokens.of(codec(), USAGE, SYMBOLS)


def test_marks() -> None:
    assert (MARKS.eos, MARKS.start, MARKS.first_time) == (END, END + 1, FIRST_TIME)
    assert MARKS.initial_ids("de", "translate") == [END + 1, END + 3, END + 4]
    assert set(range(END + 1, FIRST_TIME)) == set(MARKS.suppressed)
    with pytest.raises(UserError, match="this model has no language 'fr'"):
        MARKS.check("fr", "transcribe")
    english = WhisperTokens.of(codec(), USAGE, 51864)
    assert english.initial_ids("en", "transcribe") == [END + 1]
    for language, task, message in (("de", "transcribe", "not language 'de'"), (None, "translate", "task translate")):
        with pytest.raises(UserError, match=message):
            english.check(language, task)  # type: ignore[arg-type]


def histories(length: int) -> Iterator[list[int]]:
    """What may have been written: texts and times in pairs."""
    draw = np.random.default_rng(length)
    for _ in range(8):
        last, row = int(draw.integers(0, 10)), []
        row.append(FIRST_TIME + last)
        while len(row) < length:
            row += draw.integers(40, 90, int(draw.integers(1, 4))).tolist()
            last = min(last + int(draw.integers(1, 6)), POSITIONS)
            row += [FIRST_TIME + last] * int(draw.integers(0, 3))
        yield row[:length]


@pytest.mark.parametrize("length", [0, 1, 2, 3, 5, 8])
@pytest.mark.parametrize("towards", [-4.0, 0.0, 4.0])
@pytest.mark.parametrize("first", [4, 4096])  # symbols that are looked at first: a few, and all
def test_the_rule_is_that_of_transformers(
    length: int, towards: float, first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(window_transcriber, "_FREQUENT_TOKENS", first)
    logits_process = pytest.importorskip("transformers.generation.logits_process")
    rows = list(histories(length)) if length else [[]] * 8
    logits = torch.randn(8, SYMBOLS, generator=torch.Generator().manual_seed(length))
    logits[:, FIRST_TIME:] += towards

    class Told:
        no_timestamps_token_id, eos_token_id, bos_token_id = MARKS.no_timestamps, END, END
        max_initial_timestamp_index = 5

    theirs = logits_process.WhisperTimeStampLogitsProcessor(Told(), begin_index=1)
    starts = torch.tensor([[MARKS.start, *row] for row in rows])
    wanted = theirs(starts, logits.clone())
    found = logits.clone()
    never = WhisperTokens(
        SYMBOLS, END, MARKS.start, MARKS.no_timestamps, None, None, {}, {}, (MARKS.no_timestamps,), ()
    )
    WhisperRule(never, latest=0.1)(found, torch.tensor(rows, dtype=torch.long).view(8, length))
    assert torch.equal(found, wanted)


def test_the_rule_forbids_what_the_files_say_and_all_times_if_asked() -> None:
    logits = torch.zeros(2, SYMBOLS)
    WhisperRule(MARKS, timed=False)(logits, torch.zeros(2, 0, dtype=torch.long))
    assert logits[:, list(MARKS.suppressed)].eq(-torch.inf).all()
    assert logits[:, [32, END, *range(FIRST_TIME, SYMBOLS)]].eq(-torch.inf).all()
    assert logits.isfinite().sum() == 2 * 255


TEXT = tuple(b" a b.")


@pytest.mark.parametrize(
    ("ids", "spans", "done"),
    [
        ([time(0), *TEXT, time(0.5)], [(0.0, 0.5)], 100),  # closed: nothing more in the window
        ([time(0), *TEXT], [(0.0, 1.0)], 100),
        (TEXT, [(0.0, 1.0)], 100),
        ([time(0), *TEXT, time(0.4), time(0.4), *TEXT, time(0.9)], [(0.0, 0.4), (0.4, 0.9)], 100),
        ([time(0), *TEXT, time(0.4), time(0.5), *TEXT], [(0.0, 0.4)], 40),  # the second is heard again
        ([time(0), *TEXT, time(0.4), time(0.4)], [(0.0, 0.4)], 40),
        ([], [(0.0, 1.0)], 100),
    ],
)
def test_segments_of_a_window(ids: Sequence[int], spans: list[tuple[float, float]], done: int) -> None:
    found, frames = split_segments(ids, MARKS, 100)
    assert [(pytest.approx(part.start), pytest.approx(part.end)) for part in found] == spans
    assert frames == done


@pytest.mark.parametrize("beam", [1, 3])
def test_windows_follow_the_times_and_know_the_text_before(beam: int) -> None:
    first = [time(0), *b" One.", time(0.4), time(0.6), *b" Tw"]
    second, third = [time(0), *b" Two.", time(0.8)], [time(0.1), *b" Three.", time(0.3)]
    made, said = transcriber([first, second, third], beam=beam)
    moments: list[float] = []
    found = made.transcribe(noise(2 * RATE), lambda done, whole: moments.append(done / whole))
    assert found.text == "One. Two. Three."
    assert [(s.start, s.end) for s in found.segments] == [(0.0, 0.4), (0.4, 1.2), (1.5, 1.7)]
    assert moments == pytest.approx([0.2, 0.7, 1.0])
    assert (found.language, found.duration) == ("en", 2.0)
    opening = [END + 1]  # language and task follow one by one
    before = [*first[: first.index(time(0.4)) + 1]]
    assert said.started == [opening, [END + 7, *before, *opening], [END + 7, *before, *second, *opening]]
    assert found.segments[0].tokens == before
    assert all(s.temperature == 0 and s.avg_logprob > -0.01 and s.no_speech_prob < 0.01 for s in found.segments)


def test_without_the_text_before_and_with_a_prompt() -> None:
    made, said = transcriber([[time(0), *b" a", time(1)]] * 2, previous=False, initial="Names: Li")
    made.transcribe(noise(2 * RATE))
    assert said.started == [[END + 7, *b" Names: Li", END + 1], [END + 1]]


def test_silence_is_left_out_and_doubt_is_tried_again() -> None:
    made, _ = transcriber([5.0, [time(0), *b" a", time(1)]])
    assert made.transcribe(noise(2 * RATE)).text == "a"
    made, said = transcriber([-20.0], temperatures=(0.0, 0.2, 1.0))
    [segment] = made.transcribe(noise(RATE)).segments  # in doubt, but no silence: the best of all, in the end
    assert segment.temperature == 1.0
    assert segment.avg_logprob < -1.0
    repeated = [time(0), *b"a" * 30, time(1)]
    made, said = transcriber([repeated, repeated], temperatures=(0.0, 0.8))
    found = made.transcribe(noise(2 * RATE))
    assert [s.temperature for s in found.segments] == [0.8, 0.8]
    assert found.segments[0].compression_ratio > 2.4
    assert said.started == [[END + 1], [END + 1]]  # such a text is no beginning for the next


def test_a_random_model_comes_to_an_end_and_repeats_itself_only_by_seed() -> None:
    real = model()
    made = Transcriber(
        real, real, codec(), USAGE, TranscriptionOptions(beam=2, temperatures=(0.0, 1.0), words=True, vad=False)
    )
    one, two = made.transcribe(noise(3 * RATE)), made.transcribe(noise(3 * RATE))
    assert one == two
    assert one.language in ("en", "de")
    assert all(0 <= s.start < s.end <= 3 for s in one.segments)
    assert all(0 <= w.start <= w.end <= 3 for s in one.segments for w in s.words)
    told = made.window_transcriber.languages(made.window_transcriber.encode(log_mel(noise(RATE), BANDS)[None]))
    assert sum(told.values()) == pytest.approx(1)


def test_sounds_told_together_are_those_told_alone_whenever_they_join() -> None:
    """Languages that are detected, texts before, beams and draws; a sound that fails costs the others nothing."""
    real = model(3)
    engine = Engine(real, threads=1)
    hows = [{"beam": 2, "temperatures": (0.0, 1.0)}, {"language": "de", "beam": 3, "initial": "So"}, {"words": True}]
    by = [
        Transcriber(real, engine, codec(), USAGE, TranscriptionOptions(**{"vad": False, "best_of": 2, **how}))
        for how in hows
    ]
    sounds = [open_sound(noise(length * RATE // 2, seed)) for seed, length in enumerate((3, 5, 2))]
    alone = [each.transcribe(sound) for each, sound in zip(by, sounds)]
    going = [TranscriptionStream(by[0], sounds[0])]

    def fails(done: float, whole: float) -> None:
        raise UserError("it is not whole; make it again")

    broken = TranscriptionStream(by[0], sounds[0], fails)
    for join in (TranscriptionStream(by[1], sounds[1]), TranscriptionStream(by[2], sounds[2]), broken):
        for _ in range(7):
            advance_together(going)
        going.append(join)
    assert not any(telling.is_finished for telling in going)
    while not all(telling.is_finished for telling in going):
        advance_together(going)
    assert [telling.transcription() for telling in going[:3]] == alone
    assert len({found.text for found in alone}) == 3
    with pytest.raises(UserError, match="not whole"):
        list(broken)


def test_several_sounds_are_those_one_by_one_and_what_fails_is_named(tmp_path: Path) -> None:
    real = model(3)
    config = TranscriptionOptions("en", beam=2, temperatures=(0.0,), vad=False)
    by = Transcriber(real, Engine(real, threads=1), codec(), USAGE, config)
    sounds = [noise(RATE + 1000 * seed, seed) for seed in range(MAX_PARALLEL_SOUNDS + 2)]
    alone = [by.transcribe(sound) for sound in sounds]
    failed: dict[int, UserError] = {}
    missing = tmp_path / "missing.wav"
    assert transcribe_all(by, [*sounds[:1], missing, *sounds[1:], noise(10)], failed) == alone
    assert sorted(failed) == [1, len(sounds) + 1]


@pytest.mark.parametrize("form", ["fp32", "int8"])
def test_the_engine_writes_what_torch_writes(form: Format) -> None:
    """Tasks, the text before, beams that share a memory, and draws."""
    real = quantise(model(2), form)
    assert isinstance(real, EncoderDecoder)
    engine = Engine(real, threads=1)
    sides = [Transcriber(real, side, codec(), USAGE, TranscriptionOptions("de", beam=3)) for side in (real, engine)]
    ours = engine.encode(log_mel(noise(RATE), BANDS)[None], Layout.full(1, 100))
    first, second = (
        run_coroutine(
            side.window_transcriber.generator,
            side.window_transcriber.decode_steps(ours, tuple(b" before"), side.config),
        )
        for side in sides
    )
    assert first.ids == second.ids
    assert first.logprob == pytest.approx(second.logprob, abs=0.03 if form == "int8" else 1e-4)
    assert first.silence == pytest.approx(second.silence, abs=1e-2)


def test_models_that_hear_nothing() -> None:
    for made in (language_model(), translator()):
        with pytest.raises(UserError, match=r"cannot transcribe audio; .*use a speech model"):
            Model(OpenedModel(made, USAGE, codec()), Path("a-model")).transcribe(noise(RATE))


def test_settings_that_cannot_be() -> None:
    for settings, message in (
        ({"temperatures": ()}, "temperatures is empty"),
        ({"temperatures": (-1.0,)}, "temperature is -1"),
        ({"best_of": 0}, "best_of is 0"),
        ({"beam": 0}, "beam is 0"),
        ({"words": True, "timestamps": False}, "word times need timestamps"),
    ):
        with pytest.raises(ConfigError, match=message):
            TranscriptionOptions(**settings)  # type: ignore[arg-type]


def test_words_and_their_marks() -> None:
    text = " He said, «né» 你好."
    found = split_words(codec(), list(text.encode()))
    assert "".join(word for word, _ in found) == text
    assert sum(count for _, count in found) == len(text.encode())
    assert [word for word, _ in found if word not in "."] == [" He", " said", ",", " «né»", " ", "你", "好"]
    spoken = [Word(word, float(n), n + 1.0, 1.0) for n, word in enumerate([' "', "Yes", ",", " she", "!"])]
    assert [word.word for word in merge_punctuation(spoken)] == [' "Yes,', " she!"]


def test_a_segment_is_split_at_pauses() -> None:
    times = [(0.0, 0.5), (0.5, 1.0), (3.0, 3.4), (3.6, 4.0), (6.0, 6.0)]
    spoken = [Word(f" w{n}", *times, 1.0) for n, times in enumerate(times)]
    groups = between_pauses(spoken, 0.5)
    assert [[word.word for word in group] for group in groups] == [[" w0", " w1"], [" w2", " w3", " w4"]]
    ids = [time(0), *b" w0 w1 w2 w3 w4", time(0.9)]
    parts = split_ids(codec(), ids, END, ["".join(word.word for word in group) for group in groups])
    assert parts == [[time(0), *b" w0 w1"], [*b" w2 w3 w4", time(0.9)]]
    assert split_ids(codec(), [*"né".encode(), time(1)], END, ["né"]) == [[*"né".encode(), time(1)]]


def tune(seconds: int) -> Tensor:
    """Notes of a scale, which sound like a voice to the detection."""
    draw, at = np.random.default_rng(0), np.arange(RATE) / RATE
    sound = np.zeros((seconds + 1) * RATE)
    for note in range(4 * seconds):
        pitch = 220 * 2 ** ((0, 2, 4, 5, 7, 9, 11, 12)[draw.integers(8)] / 12)
        tones = sum(np.sin(2 * np.pi * pitch * k * at) / k for k in range(1, 9)) * np.exp(-6 * at)
        sound[note * RATE // 4 :][:RATE] += 0.1 * tones + 0.1 * np.sin(220 * np.pi * at) * np.exp(-3 * at)
    return torch.from_numpy(sound[: seconds * RATE].astype(np.float32))


def test_segments_end_with_speech_and_music_has_none(whisper: Path, data_dir: Path) -> None:
    """The real tiny.en: its segments go on through a pause, and it makes words of music."""
    soundfile = pytest.importorskip("soundfile")
    name = "sense_and_sensibility_01_austen_64kb-0880.wav"
    said = torch.from_numpy(soundfile.read(data_dir / "speech" / "pocketsphinx" / name, dtype="float32")[0])
    pause, length = torch.zeros(5 * RATE), len(said) / RATE
    made = hw.load(whisper, "cpu", "int8").transcriber(TranscriptionOptions(beam=1, temperatures=(0.0,)))
    found = made.transcribe(torch.cat([pause, said, pause, said, pause])).segments
    starts = (5.0, 10.0 + length)
    shown = sum(segment.end - segment.start for segment in found)
    spoken = sum(
        max(0.0, min(segment.end, start + length) - max(segment.start, start)) for segment in found for start in starts
    )
    assert shown > 1.5 * length
    assert spoken == pytest.approx(shown)
    assert "".join(segment.text for segment in found).lower().count("young man") == 2
    assert made.transcribe(tune(8)).text == ""


def test_a_model_without_times_hears_up_to_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each window is one segment, so a pause ends it."""
    spans = np.array([[0.1, 0.4], [1.0, 1.3], [1.5, 1.8]])  # the last pause is too short
    monkeypatch.setattr(
        "headway.domains.audio.transcriber.detect_speech", lambda sound: DetectedSpeech(2 * RATE, spans)
    )
    made, _ = transcriber([list(b" one"), list(b" two"), list(b" no")], vad=True)
    made.special_tokens = replace(made.special_tokens, vocab_size=made.special_tokens.first_time)  # writes no times
    made.config = replace(made.config, timestamps=False)
    made.window_transcriber.special_tokens, made.words = made.special_tokens, None
    found = made.transcribe(noise(2 * RATE)).segments
    assert [(one.start, one.end, one.text) for one in found] == [
        (0.1, 0.4, "one"),
        (1.0, 1.7, "two"),
        (1.7, 1.8, "no"),
    ]


def test_the_path_of_least_cost() -> None:
    cost = np.random.default_rng(0).standard_normal((4, 6))

    def best(i: int, j: int) -> float:
        ways = [(i - 1, j - 1), (i - 1, j), (i, j - 1)]
        before = [best(a, b) for a, b in ways if a >= 0 and b >= 0]
        return cost[i, j] + min(before, default=0.0)

    rows, columns = dynamic_time_warping(cost)
    assert cost[rows, columns].sum() == pytest.approx(best(3, 5))
    assert (rows[0], columns[0], rows[-1], columns[-1]) == (0, 0, 3, 5)
    assert all(abs(np.diff(side)).max() <= 1 for side in (rows, columns))


def test_alignment_of_a_random_model() -> None:
    made = model()
    heard = made.encode(log_mel(noise(RATE), BANDS)[None], Layout.full(1, 100))
    spoken = align(made, heard, MARKS, [MARKS.start], list(b" abc"), 100)
    assert len(spoken.seconds) == 5
    assert (np.diff(spoken.seconds) >= 0).all()
    assert spoken.seconds[-1] <= 1.0
    ids = torch.tensor([[MARKS.start, MARKS.no_timestamps, *b" abc"]])
    logits = made.heads["vocabulary"](made(heard, Layout.full(1, 100), ids, Layout.full(1, 6)).x)
    wanted = logits[0, 1:-1, :END].softmax(-1).gather(1, torch.tensor([list(b" abc")]).T)[:, 0]
    np.testing.assert_allclose(spoken.probabilities, wanted.detach().numpy(), rtol=1e-4)


SEGMENTS = [
    Segment(0.0, 3.5, " One --> two", [1], -0.1, 1.0, 0.0, 0.0),
    Segment(3661.25, 3662.0, " Three", [2], -0.1, 1.0, 0.0, 0.0, (Word(" Three", 3661.3, 3662.0, 0.9),)),
]


def test_files_of_subtitles() -> None:
    found = Transcription("One --> two Three", "en", 3700.0, SEGMENTS)
    assert format_transcript(found, "txt") == "One --> two\nThree\n"
    assert format_transcript(found, "srt") == (
        "1\n00:00:00,000 --> 00:00:03,500\nOne -> two\n\n2\n01:01:01,250 --> 01:01:02,000\nThree\n\n"
    )
    assert format_transcript(found, "vtt").startswith(
        "WEBVTT\n\n00:00:00.000 --> 00:00:03.500\nOne -> two\n\n01:01:01.250"
    )
    read = json.loads(format_transcript(found, "json"))
    assert read["segments"][1]["words"] == [{"word": " Three", "start": 3661.3, "end": 3662.0, "probability": 0.9}]
    assert "words" not in read["segments"][0]


def cues(lines: SubtitleLines, form: Any = "srt") -> list[tuple[str, str]]:
    """Times and text of subtitles of nine words, of half a second each, with a pause of 2 s before the last two."""
    times = [*(n / 2 for n in range(7)), 5.5, 6.0]
    spoken = [Word(word, at, at + 0.5, 1.0) for word, at in zip(SPOKEN, times)]
    pieces = (spoken[:4], spoken[4:])  # segments end anywhere, and lines go on
    segments = [Segment(0.0, 6.5, "...", [1], -0.1, 1.0, 0.0, 0.0, tuple(piece)) for piece in pieces]
    text = format_transcript(Transcription("", "en", 7.0, segments), form, lines)
    blocks = [block.split("\n") for block in text.strip().split("\n\n")]
    assert [block[0] for block in blocks] == [str(n) for n in range(1, len(blocks) + 1)]
    return [(block[1], "|".join(block[2:])) for block in blocks]


SPOKEN = (" He", " might", " even", " --> have", " been", " made", " amiable,", " all", " incomprehensibilities.")


def test_subtitles_by_words() -> None:
    found = cues(SubtitleLines(max_line_width=14, max_line_count=2))
    assert [text for _, text in found] == ["He might even|-> have been", "made amiable,", "all|incomprehensibilities."]
    assert found[0][0] == "00:00:00,000 --> 00:00:02,500"
    assert found[2][0] == "00:00:05,500 --> 00:00:06,500"  # nothing stands there in the pause
    assert [text for _, text in cues(SubtitleLines(max_words_per_line=2, max_line_count=1))] == [
        "He might", "even -> have", "been made", "amiable,", "all incomprehensibilities."
    ]  # fmt: skip
    whole = [text for _, text in cues(SubtitleLines(max_line_width=80))]
    assert whole == ["He might even -> have been made amiable,", "all incomprehensibilities."]
    many = [text for _, text in cues(SubtitleLines(max_line_width=14, max_words_per_line=1))]
    assert many[0].count("|") == 6
    for given, message in (
        ({"max_line_count": 2}, "subtitle lines have no limit"),
        ({"max_line_width": 0}, "max_line_width is 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            SubtitleLines(**given)
    lines = SubtitleLines(40)
    for form, message in (("txt", "not txt"), ("srt", "need word times")):
        with pytest.raises(UserError, match=message):
            format_transcript(Transcription("One", "en", 1.0, SEGMENTS[:1]), form, lines)  # type: ignore[arg-type]
    assert format_transcript(Transcription("", "en", 1.0, []), "vtt", lines) == "WEBVTT\n\n"


def test_texts_that_repeat_themselves() -> None:
    assert compression_ratio(" yes" * 60) > 2.4 > compression_ratio("He might even have been made amiable himself.")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    soundfile = pytest.importorskip("soundfile")
    place = str(folder(tmp_path / "model"))
    for name, rate, subtype in (("a.wav", 96000, "PCM_U8"), ("b.flac", 8000, "PCM_16"), ("c.ogg", 44100, "VORBIS")):
        soundfile.write(tmp_path / name, np.stack([noise(rate).numpy()] * 2, 1), rate, subtype=subtype)
    files = [str(tmp_path / name) for name in ("a.wav", "b.flac", "c.ogg")]
    quick = ["--backend", "torch", "--beam", "1", "--temperature", "0", "--language", "en"]
    assert main(["transcribe", place, *files, *quick, "--json", "--word-timestamps"]) == 0
    out = capsys.readouterr().out
    results = json.loads(out.splitlines()[-1])["results"]
    assert [result["file"] for result in results] == files
    assert all(result["duration"] == 1.0 and "text" in result and "segments" in result for result in results)
    assert main(["transcribe", place, *files, *quick, "--format", "srt", "--out", str(tmp_path / "out")]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.srt", "b.srt", "c.srt"]


def test_bad_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    soundfile = pytest.importorskip("soundfile")
    place = str(folder(tmp_path / "model"))
    good = tmp_path / "good.wav"
    soundfile.write(good, noise(RATE).numpy(), RATE)
    (tmp_path / "cut.wav").write_bytes(good.read_bytes()[:20000])
    soundfile.write(tmp_path / "empty.wav", np.zeros(0, np.float32), RATE)
    soundfile.write(tmp_path / "whole.flac", noise(4 * RATE).numpy(), RATE)
    whole = (tmp_path / "whole.flac").read_bytes()
    (tmp_path / "cut.flac").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.mp3").write_text("no sound")
    (tmp_path / "other").mkdir()
    soundfile.write(tmp_path / "other" / "good.flac", noise(RATE).numpy(), RATE)
    quick = ["--backend", "torch", "--beam", "1", "--temperature", "0", "--language", "en"]
    for given, message in (
        ([tmp_path / "cut.wav"], "ends after"),
        ([tmp_path / "empty.wav"], "0 samples"),
        ([tmp_path / "text.mp3"], "not a readable audio file"),
        ([tmp_path / "absent.wav"], "does not exist"),
        ([good, good, "--format", "srt"], "cannot share stdout"),
        ([good, tmp_path / "other" / "good.flac", "--out", tmp_path / "out"], "is the output of two files"),
        ([good, "--max-line-width", "42"], "not txt; add --format srt"),
        ([good, "--max-line-count", "2", "--format", "srt"], "add --max-line-width"),
        ([good, "--max-line-width", "0", "--format", "srt"], "max-line-width"),
        ([good, "--language", "xx"], "no language 'xx'"),
        ([good, "--temperature", "0,hot"], "'hot' is not a number"),
    ):
        assert main(["transcribe", place, *quick, *map(str, given)]) == 2
        error = capsys.readouterr().err.strip()
        assert message in error
        assert len(error.splitlines()) == 1
    # Damage that shows only as a file is read costs the others nothing.
    assert main(["transcribe", place, *quick, str(tmp_path / "cut.flac"), str(good), "--json"]) == 2
    shown = capsys.readouterr()
    result = json.loads(shown.out.splitlines()[-1])
    assert [Path(one["file"]).name for one in result["results"]] == ["good.wav"]
    assert [Path(one["file"]).name for one in result["errors"]] == ["cut.flac"]
    assert "Traceback" not in shown.err


def test_pairs_of_times_come_in_order_in_what_a_model_writes() -> None:
    """A random model under the rule writes what the rule says, whatever its weights."""
    real = model(3)
    made = Transcriber(real, real, codec(), USAGE, TranscriptionOptions("en", beam=3, temperatures=(0.0,)))
    heard = made.window_transcriber.encode(log_mel(noise(RATE), BANDS)[None])
    ids = run_coroutine(real, made.window_transcriber.decode_steps(heard, (), made.config)).ids
    times = [symbol for symbol in ids if symbol >= FIRST_TIME]
    assert ids[0] >= FIRST_TIME
    assert times == sorted(times)
    assert not set(ids) & set(MARKS.suppressed)
    assert all(len(list(run)) <= 2 for is_time, run in itertools.groupby(ids, lambda s: s >= FIRST_TIME) if is_time)
