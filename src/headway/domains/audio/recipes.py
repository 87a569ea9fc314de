"""Recipes for audio classification and transcription, and how training from scratch scales with data and time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from headway.config import override
from headway.data import ClassSplitConfig
from headway.data.labelled_files import read_labelled_files
from headway.data.prepared.prepared_samples import PreparedSamples
from headway.data.prepared.shard_reader import is_prepared
from headway.data.splits import split_code
from headway.domains.audio.augmentation import SoundAugmentConfig
from headway.domains.audio.classification import SoundsConfig
from headway.domains.audio.masked_sounds import MaskedSoundsConfig
from headway.domains.audio.mel import RATE
from headway.domains.audio.sequences import SpokenDigitsConfig, SpokenSequencesConfig
from headway.domains.audio.sound_files import AUDIO_EXTENSIONS, FileSound
from headway.domains.audio.transcription import TranscribedSpeech, TranscriptionConfig, normalize_words
from headway.domains.audio.unlabelled_sounds import read_files, read_unlabelled
from headway.errors import UserError
from headway.learn import MuonConfig, Recipe, Task, TrainConfig, WSDConfig
from headway.learn.examples import spread_evenly
from headway.learn.formatting import format_number
from headway.learn.objectives.masked_patches import HidingConfig
from headway.learn.plan.scale import (
    DataSettings,
    Descent,
    Scale,
    ScalingLaw,
    Settings,
    contrasted_settings,
    held_out_shares,
)
from headway.learn.pretraining import Pretraining, labelled_settings
from headway.learn.recipe import batch_size_of, generic
from headway.nn.models import EncoderDecoderConfig
from headway.nn.models.presets import whisper, whisper_classifier
from headway.nn.parts.init import InitConfig

MUON = MuonConfig(lr=0.02, adam_lr=3e-3, adam_betas=(0.9, 0.98))


def audio() -> Recipe:
    """Any labelled audio files."""
    return generic(
        "audio",
        "audio",
        "audio files with labels: a folder per class, or a .csv with path and label",
        model=whisper_classifier(width=128, depth=4, heads=4, classes=2),
        task=SoundsConfig(
            augment=SoundAugmentConfig(shift=0.1, gain=6.0, time_masks=2, time_width=0.1, band_masks=2, band_width=12),
            split=ClassSplitConfig(validation=0.1, test=0.1, stratify=True),
        ),
        optim=MUON,
        train=TrainConfig(steps=1000, batch_size=32),
        expected="--minutes chooses size and steps for your data; minutes for a few thousand one-second clips",
    )


def spoken_digits() -> Recipe:
    """The official split: takes 0 to 4 of each digit and speaker are the test split. 20 of the 3,000 recordings are
    longer than one second and are cropped to the middle.
    """
    return Recipe(
        name="spoken-digits",
        domain="audio",
        description="digits spoken by six speakers (Free Spoken Digit Dataset)",
        data=("spoken-digits",),
        model=whisper_classifier(width=128, depth=4, heads=4, classes=10),
        task=SpokenDigitsConfig(
            seconds=1.0,
            crop=True,
            augment=SoundAugmentConfig(
                shift=0.1,
                gain=6.0,
                speeds=(0.9, 0.95, 1.0, 1.05, 1.1),
                time_masks=2,
                time_width=0.1,
                band_masks=2,
                band_width=12,
            ),
            split=ClassSplitConfig(validation=0.1, test=0.0),
        ),
        optim=MUON,
        schedule=WSDConfig(warmup=50, decay=0.7),
        train=TrainConfig(steps=3000, batch_size=32),
        expected="accuracy 99 % in 8 minutes on one core",
    )


def small_whisper(
    width: int, depth: tuple[int, int], heads: int, vocab_size: int, context: int, dropout: float
) -> EncoderDecoderConfig:
    """A small Whisper to train from scratch. From the start, the output of its convolutions must be as large as its
    position embeddings; with the initial weights of 0.02 that large models use, it would be a twentieth as large.
    """
    model = override(whisper(width, depth, heads, vocab_size), {"dropout": dropout})
    decoder = replace(model.decoder, context=context)
    return replace(model, decoder=decoder, init=InitConfig(matrices="fan_in"))


def spoken_sequences() -> Recipe:
    """Speech with known times: any number of sequences, concatenated from recordings of single digits."""
    return Recipe(
        name="spoken-sequences",
        domain="audio",
        description="sequences of spoken digits with the times of each digit (from the Free Spoken Digit Dataset)",
        data=("spoken-digits",),
        model=small_whisper(width=128, depth=(3, 2), heads=4, vocab_size=214, context=32, dropout=0.0),
        task=SpokenSequencesConfig(
            augment=SoundAugmentConfig(gain=6.0, speeds=(0.9, 0.95, 1.0, 1.05, 1.1)),
            split=ClassSplitConfig(validation=0.1, test=0.0),
        ),
        optim=MUON,
        schedule=WSDConfig(warmup=50, decay=0.7),
        train=TrainConfig(steps=3000, batch_size=16, evaluate_limit=100),
        expected="WER 0.5 %, mean time error 6 ms, in 15 minutes on one core",
    )


def transcription() -> Recipe:
    """Any speech with transcripts. Training from scratch takes many hours of speech; with --from a published Whisper,
    minutes are enough.
    """
    return generic(
        "transcription",
        "audio",
        "speech with transcripts: audio files next to a .tsv or .jsonl with path and text",
        model=small_whisper(width=256, depth=(4, 4), heads=4, vocab_size=64, context=448, dropout=0.1),
        task=TranscriptionConfig(
            augment=SoundAugmentConfig(shift=0.2, gain=6.0, speeds=(0.9, 1.0, 1.1), time_masks=2, band_masks=2)
        ),
        optim=MUON,
        train=TrainConfig(steps=2000, batch_size=16, evaluate_limit=200),
        expected="needs hours of speech from scratch; better with --from a published Whisper and --minutes",
    )


def masked_sounds() -> Recipe:
    """Any audio files without labels."""
    return generic(
        "masked-sounds",
        "audio",
        "audio files without labels: folders, or a .csv with path",
        model=whisper_classifier(width=128, depth=4, heads=4, classes=2),
        task=MaskedSoundsConfig(
            hiding=HidingConfig(rate=0.4, span=5),
            contrast=1.0,
            augment=SoundAugmentConfig(
                shift=0.1, gain=6.0, speeds=(0.9, 1.0, 1.1), noise=(10.0, 40.0), warp=0.1, equalizer=6.0
            ),
        ),
        # Without weight decay, matrices grow, and fine-tuning ends at a lower accuracy.
        optim=replace(MUON, weight_decay=0.3, adam_weight_decay=0.1),
        train=TrainConfig(steps=1000, batch_size=64),
        expected="as the first stage of audio with --pretrain, or to start from with --from",
    )


RECIPES = (audio, spoken_digits, spoken_sequences, transcription, masked_sounds)


_SHAPES = ((64, 2, 2), (96, 3, 3), (128, 4, 4), (192, 4, 6), (256, 6, 8), (384, 6, 6), (512, 8, 8))
_WHISPER_SHAPES = (
    (96, [2, 2], 3),
    (128, [3, 2], 4),
    (192, [4, 3], 6),
    (256, [4, 4], 4),
    (384, [6, 4], 6),
    (512, [8, 6], 8),
)
_MAX_SAMPLED = 1000  # files whose lengths are read
_MAX_WINDOW = 10.0  # maximum seconds of the chosen window; audio models take 30
_MANY_SOUNDS, _HUGE_DATASET = 20_000, 200_000  # recordings above which less augmentation is needed, and hardly any
_MIN_HOURS = 5.0  # hours of speech that are enough to learn to transcribe any text
_MIN_REPETITIONS = 200  # repetitions per word needed with less speech


class Lengths(NamedTuple):
    """Recording lengths in seconds: the 98th percentile, the maximum and the total."""

    percentile_98: float
    longest: float
    total: float


def _sounds_settings(recipe: Recipe, paths: Sequence[Path], minutes: float) -> DataSettings:
    """A window that most recordings fit into, and the augmentation from the recipe spoken-digits, reduced for many
    recordings.
    """
    task = cast(SoundsConfig, recipe.task)
    if is_prepared(paths[0]):
        prepared = PreparedSamples.open(paths, "sounds")
        named_splits = prepared.named_splits
        seconds = (prepared.lengths / RATE).__getitem__
    else:
        labelled = read_labelled_files(paths, AUDIO_EXTENSIONS, "sound", task.label)
        named_splits, seconds = labelled.named_splits, file_seconds(labelled.files)
    count = int((named_splits <= split_code("train")).sum())
    if task.seconds is not None:
        return DataSettings({**held_out_shares(count), **_augmentation(count, task.seconds)})
    lengths = sample_lengths(len(named_splits), seconds)
    window = _window(lengths)
    crops = lengths.longest > window
    settings = {**_window_settings(window), **({"task.crop": True} if crops else {})}
    crop_note = f", longer ones (up to {format_number(lengths.longest)} s) cropped" if crops else ""
    reason = f"windows of {window:g} s for {count:,} recordings{crop_note}"
    return DataSettings({**settings, **held_out_shares(count), **_augmentation(count, window)}, reason)


def _window(lengths: Lengths) -> float:
    """Seconds that most recordings fit into: a few long ones would make all the others expensive."""
    length = lengths.longest if lengths.longest <= 1.25 * lengths.percentile_98 else lengths.percentile_98
    return math.ceil(10 * min(length, _MAX_WINDOW) + 1e-6) / 10


def _window_settings(seconds: float) -> dict[str, Any]:
    return {"task.seconds": seconds, "model.context": math.ceil(seconds / 0.02)}


def _unlabelled_settings(recipe: Recipe, paths: Sequence[Path], minutes: float) -> DataSettings:
    """A window that most recordings fit into; longer ones are cut into several."""
    files = read_files(paths)
    shared = contrasted_settings(len(files), batch_size_of(recipe))
    seconds = cast(MaskedSoundsConfig, recipe.task).seconds
    if seconds is not None:
        return DataSettings({**shared, **_window_settings(seconds), "task.augment.shift": round(0.1 * seconds, 3)})
    window = _window(sample_lengths(len(files), files.seconds))
    settings = {**shared, **_window_settings(window), "task.augment.shift": round(0.1 * window, 3)}
    return DataSettings(settings, f"windows of {window:g} s for {len(files):,} recordings")


def _speech_settings(recipe: Recipe, paths: Sequence[Path], minutes: float) -> DataSettings:
    """Vocabularies that grow with the text. UserError if there is too little speech to learn from."""
    task = cast(TranscriptionConfig, recipe.task)
    transcripts, prepared = task.read(paths)
    seconds = file_seconds(transcripts.files) if prepared is None else (prepared.lengths / RATE).__getitem__
    lengths = sample_lengths(len(transcripts), seconds)
    spoken_words = [word for text in transcripts.texts for word in normalize_words(text).split()]
    hours = lengths.total / 3600
    num_words = len(spoken_words)
    num_different = len(set(spoken_words))
    needed_words = _MIN_REPETITIONS * max(1, num_different)
    if hours < _MIN_HOURS and num_words < needed_words:
        needed = min(_MIN_HOURS, hours * needed_words / max(1, num_words))
        raise UserError(
            f"{format_number(hours)} hours of speech with {num_different:,} different words are too little to learn "
            f"transcription from scratch; add speech until there are about {format_number(needed)} hours, or start "
            "from a published Whisper with --from"
        )
    num_characters = sum(map(len, transcripts.texts))
    settings: dict[str, Any] = {**held_out_shares(len(transcripts))}
    if num_characters > 2_000_000:
        settings |= {"task.codec": "bpe", "task.size": 1000 if num_characters < 20_000_000 else 4000}
    if task.seconds is None:
        settings |= {"task.seconds": math.ceil(10 * min(lengths.longest, 30.0) + 0.5) / 10}
    reason = f"{format_number(hours)} hours of speech, {num_words:,} words ({num_different:,} different)"
    return DataSettings(settings, reason)


def _speech_targets(task: Task) -> int:
    speech = cast(TranscribedSpeech, task.examples)
    return sum(len(speech.ids[row]) + 1 for row in speech.splits.rows("train").tolist())


def file_seconds(files: Sequence[Path]) -> Callable[[int], float]:
    """The length of each file, from its header."""
    return lambda row: FileSound(files[row]).seconds


def sample_lengths(count: int, seconds_of: Callable[[int], float]) -> Lengths:
    """The lengths of `count` recordings, from an evenly spaced sample. Unreadable files are skipped here and reported
    when opened.
    """
    seconds = []
    for index in spread_evenly(np.arange(count), _MAX_SAMPLED).tolist():
        with suppress(UserError):
            seconds.append(float(seconds_of(index)))
    if not seconds:
        raise UserError(f"cannot read any of {count:,} audio files; use a supported format (.wav, .flac, .mp3, ...)")
    total = sum(seconds) / len(seconds) * count
    return Lengths(float(np.quantile(seconds, 0.98, method="lower")), max(seconds), total)


def _augmentation(count: int, seconds: float) -> Settings:
    """Augmentation settings, relative to the window."""
    tenth = round(0.1 * seconds, 3)
    config = SoundAugmentConfig(shift=tenth, gain=6.0, time_masks=2, time_width=tenth, band_masks=2, band_width=12)
    if count < _MANY_SOUNDS:
        config = replace(config, speeds=(0.9, 0.95, 1.0, 1.05, 1.1))
    if count >= _HUGE_DATASET:
        config = replace(config, time_masks=1, band_masks=1)
    return {
        f"task.augment.{name}": getattr(config, name)
        for name in ("shift", "gain", "speeds", "time_masks", "time_width", "band_masks", "band_width")
    }


_SOUNDS = Scale(
    # Augmentation makes each repetition different: shifted, slower or louder, with other parts masked. Fitted to
    # spoken digits and their speakers (benchmarks/laws.py).
    law=ScalingLaw(0.0, 1.4, 0.34, 1.2, 0.34, 60.0, 60.0),
    batch_setting="train.batch_size",
    min_batch=16,
    max_batch=512,
    noise_scale=1.0,
    calibrated=True,
    descent=Descent(1.3, 3.7, 11.0),
    shapes=_SHAPES,
    dropout=((60, 0.0), (200, 0.1), (math.inf, 0.2)),  # in addition to audio augmentation
    data_settings=_sounds_settings,
)
SCALES = {
    "audio": _SOUNDS,
    # Other sounds in the batch are the negatives of the contrast, so it is not made smaller than necessary.
    "masked-sounds": replace(
        _SOUNDS,
        calibrated=False,
        descent=None,
        min_batch=32,
        max_batch=256,
        noise_scale=2.0,
        data_settings=_unlabelled_settings,
    ),
    "transcription": Scale(
        # Each token needs a few times as much data as in text, because it must be found in the audio.
        law=ScalingLaw(repeats=30.0),
        batch_setting="train.batch_size",
        min_batch=8,
        max_batch=256,
        min_steps=600,
        shapes=_WHISPER_SHAPES,
        dropout=((10, 0.0), (40, 0.1), (math.inf, 0.2)),
        unique_targets=_speech_targets,
        data_settings=_speech_settings,
    ),
}


_tuning = partial(labelled_settings, scales=SCALES)


def _first_stage_settings(recipe: Recipe) -> Settings:
    """Damaged recordings among many unlabelled ones are skipped, and windows are as long as those of the labelled
    ones.
    """
    seconds = cast(SoundsConfig, recipe.task).seconds
    return {"task.skip_bad": True, **({} if seconds is None else {"task.seconds": seconds})}


PRETRAINING = dict.fromkeys(
    ("audio", "spoken-digits"),
    Pretraining(lambda recipe: "masked-sounds", _first_stage_settings, _tuning, read_unlabelled),
)
