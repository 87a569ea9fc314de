"""Recipes for sounds: what they are, and what is said in them."""

from __future__ import annotations

from dataclasses import replace

from headway.config import override
from headway.data import SplitConfig
from headway.domains.audio.augment import SoundAugmentConfig
from headway.domains.audio.classification import SoundsConfig
from headway.domains.audio.sequences import SpokenDigitsConfig, SpokenSequencesConfig
from headway.domains.audio.transcription import TranscriptionConfig
from headway.learn import MuonConfig, Recipe, TrainConfig, WSDConfig
from headway.nn.models import EncoderDecoderConfig
from headway.nn.models.presets import listener, whisper
from headway.nn.parts.init import InitConfig

MUON = MuonConfig(lr=0.02, adam_lr=3e-3, adam_betas=(0.9, 0.98))
SCHEDULE = WSDConfig(warmup=0.02, decay=0.6)


def audio() -> Recipe:
    """Any sounds with labels."""
    return Recipe(
        name="audio",
        domain="audio",
        description="any sounds with labels: a folder for each class, or a .csv of path and label",
        data=(),
        model=listener(width=128, depth=4, heads=4, classes=2),
        task=SoundsConfig(
            augment=SoundAugmentConfig(shift=0.1, gain=6.0, time_masks=2, time_width=0.1, band_masks=2, band_width=12)
        ),
        optim=MUON,
        schedule=SCHEDULE,
        train=TrainConfig(steps=1000, batch_size=32),
        expected="--minutes chooses size and steps for your data; minutes for a few thousand sounds of a second",
    )


def spoken_digits() -> Recipe:
    """The official split: of each digit and speaker takes 0 to 4 are the test part. Of the 20 sounds in 3,000 that have
    more than a second the middle is heard.
    """
    return Recipe(
        name="spoken-digits",
        domain="audio",
        description="digits said by six speakers (Free Spoken Digit Dataset)",
        data=("spoken-digits",),
        model=listener(width=128, depth=4, heads=4, classes=10),
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
            split=SplitConfig(validation=0.1, test=0.0),
        ),
        optim=MUON,
        schedule=WSDConfig(warmup=50, decay=0.7),
        train=TrainConfig(steps=3000, batch_size=32),
        expected="accuracy 99 % in 8 minutes of a core",
    )


def writer(
    width: int, depth: tuple[int, int], heads: int, symbols: int, context: int, dropout: float
) -> EncoderDecoderConfig:
    """A small Whisper to be trained from nothing. What its convolutions say is to be as large as its positions from the
    start: the weights of 0.02 that large models begin with leave the sound at a twentieth of them.
    """
    model = override(whisper(width, depth, heads, symbols), {"dropout": dropout})
    decoder = replace(model.decoder, context=context)
    return replace(model, decoder=decoder, init=InitConfig(matrices="fan_in"))


def spoken_sequences() -> Recipe:
    """Speech whose times are known: as many sequences as are wanted, joined from recordings of single digits."""
    return Recipe(
        name="spoken-sequences",
        domain="audio",
        description="sequences of spoken digits with the times of each (made of the Free Spoken Digit Dataset)",
        data=("spoken-digits",),
        model=writer(width=128, depth=(3, 2), heads=4, symbols=214, context=32, dropout=0.0),
        task=SpokenSequencesConfig(
            augment=SoundAugmentConfig(gain=6.0, speeds=(0.9, 0.95, 1.0, 1.05, 1.1)),
            split=SplitConfig(validation=0.1, test=0.0),
        ),
        optim=MUON,
        schedule=WSDConfig(warmup=50, decay=0.7),
        train=TrainConfig(steps=3000, batch_size=16, evaluate_limit=100),
        expected="WER 0.5 %, times within 6 ms in the mean, in 15 minutes of a core",
    )


def transcription() -> Recipe:
    """Any speech with transcripts. From nothing it takes many hours of it; with --from a published Whisper, minutes."""
    return Recipe(
        name="transcription",
        domain="audio",
        description="any speech with transcripts: sounds beside a .tsv or .jsonl of path and text",
        data=(),
        model=writer(width=256, depth=(4, 4), heads=4, symbols=64, context=448, dropout=0.1),
        task=TranscriptionConfig(
            augment=SoundAugmentConfig(shift=0.2, gain=6.0, speeds=(0.9, 1.0, 1.1), time_masks=2, band_masks=2)
        ),
        optim=MUON,
        schedule=SCHEDULE,
        train=TrainConfig(steps=2000, batch_size=16, evaluate_limit=200),
        expected="hours of speech from scratch; better with --from a published Whisper and --minutes",
    )


RECIPES = (audio, spoken_digits, spoken_sequences, transcription)
