"""Spoken digits, and digit sequences with known gaps: speech with known times."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from functools import partial
from pathlib import Path, PurePath
from typing import Any, ClassVar, NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from headway.codecs import TokenizerCodec, load_codec, train_codec
from headway.codecs.tokenizer import FILE
from headway.config_kinds import deferred_check, register
from headway.data import Splits, split_by_text
from headway.data.array_store import cache_key, cache_root, open_or_build
from headway.data.input_files import ARCHIVES, File, file_kind
from headway.data.labelled_files import LabelledFiles, file_groups
from headway.data.shuffling import epoch_seed
from headway.data.splits import split_code
from headway.data.token_store import fingerprint
from headway.domains.audio.augmentation import add_noise, change_speed_and_gain
from headway.domains.audio.augmentation import augmentation_rng as sample_rng
from headway.domains.audio.classification import SoundsConfig
from headway.domains.audio.framing import choose_window
from headway.domains.audio.mel import HOP, RATE
from headway.domains.audio.sound_files import Sounds, open_sounds
from headway.domains.audio.transcription import (
    END,
    NO_TIMESTAMPS,
    START,
    SpeechConfig,
    SpeechDataset,
    SpeechRecognition,
    SpeechSpecialTokens,
    Utterance,
    alignment_picture,
    check_speech_model,
    check_targets,
)
from headway.errors import ConfigError, UserError, nearest
from headway.io.archives import open_archive
from headway.io.files import DAMAGE, user_path
from headway.learn import Recipe, Task
from headway.learn.examples import Batch, Contents, FixedSizeBatches, RngKey, spread_evenly
from headway.learn.objectives.sequences import Ids, Sources
from headway.learn.report import Picture
from headway.learn.report.pictures import Span
from headway.nn.models import EncoderDecoder, EncoderDecoderConfig

_FILE_NAME = re.compile(r"(\d)_([a-z]+)_(\d+)\.wav", re.IGNORECASE)
_TEST_TAKES = 5  # takes per digit and speaker in the official test split, from 0 on
_MAX_BYTES = 1 << 26  # maximum bytes per recording


@dataclass(frozen=True)
class Takes:
    """Recordings ordered by name: files, digits (0 to 9), speakers and take numbers, int [N]."""

    files: list[Path]
    digits: np.ndarray
    speakers: list[str]
    takes: np.ndarray

    def named_splits(self, hold_out: str | None) -> np.ndarray:
        """uint8 [N], the test split: takes 0 to 4, or all of one speaker's. UserError for an unknown speaker."""
        test = split_code("test")
        if hold_out is None:
            return np.where(self.takes < _TEST_TAKES, test, 0).astype(np.uint8)
        if hold_out not in self.speakers:
            raise UserError(f"there is no speaker {hold_out!r}; {nearest(hold_out, set(self.speakers))}")
        return np.array([test if speaker == hold_out else 0 for speaker in self.speakers], np.uint8)


def read_takes(paths: Sequence[Path]) -> Takes:
    """The recordings in an archive (.zip, .tar.gz, .tar.xz, ...) or under a folder. UserError if there are none."""
    files: list[Path] = []
    for path in paths:
        folder = archive = user_path(path)
        if not folder.is_dir():
            if file_kind(archive.name) not in ARCHIVES or not archive.is_file():
                raise UserError(
                    f"{archive} is not an existing folder or archive ({', '.join(ARCHIVES)}, .tar.xz); pass one that "
                    "exists"
                )
            key = cache_key("takes", fingerprint([File(archive)]))
            folder = open_or_build(cache_root() / key, partial(_extract, archive))
        files += [file for file in folder.rglob("*.wav") if file.is_file()]
    matches_by_name = sorted((path.name, path, match) for path in files if (match := _FILE_NAME.fullmatch(path.name)))
    if not matches_by_name:
        raise UserError(
            f"{', '.join(map(str, paths))} has no recordings with names like 7_jackson_3.wav; use the original data set"
        )
    matches = [match for _, _, match in matches_by_name]
    digits_and_takes = np.array([[int(match[1]), int(match[3])] for match in matches])
    return Takes(
        [path for _, path, _ in matches_by_name],
        digits_and_takes[:, 0],
        [match[2].lower() for match in matches],
        digits_and_takes[:, 1],
    )


def _extract(archive: Path, folder: Path) -> None:
    """Extract in one pass, because compressed archives have no random access."""
    try:
        opened_archive = open_archive(archive)
        for name in opened_archive.sizes:
            if _FILE_NAME.fullmatch(PurePath(name).name):
                with opened_archive.open(name) as member:
                    (folder / PurePath(name).name).write_bytes(member.read(_MAX_BYTES))
    except (*DAMAGE, OSError) as error:
        raise UserError(f"{archive} is damaged ({error or type(error).__name__}); download it again") from error


@register("spoken_digits")
@dataclass(frozen=True)
class SpokenDigitsConfig(SoundsConfig):
    """Classify spoken digits. The test split is the official one (takes 0 to 4 of each digit and speaker) or, with
    `hold_out`, all recordings of one speaker. The validation split is sampled from the rest.
    """

    prepared_kinds: ClassVar[tuple[str, ...]] = ()  # its splits are those in the names of files

    hold_out: str | None = None  # the speaker whose recordings are the test split

    def open(self, recipe: Recipe, data: Sequence[Path] | None, workspace: Path) -> Task:
        """Raises UserError for any other data set."""
        takes = read_takes(recipe.files(data))
        labels, locations = [str(digit) for digit in takes.digits], [str(file) for file in takes.files]
        groups = None if self.group is None else file_groups(takes.files, self.group, locations)
        labelled = LabelledFiles(takes.files, labels, takes.named_splits(self.hold_out), locations, groups=groups)
        return self.task_over(recipe, labelled, workspace)


WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
STEP = 0.02  # seconds between timestamps, as in Whisper
_SPLITS = ("train", "validation", "test", "all")  # their indices seed the sequences


class JoinedDigits(NamedTuple):
    """The samples of a window, and the spoken words with their times."""

    window: Float[Tensor, "N"]
    spans: list[Span]


@register("spoken_sequences")
@deferred_check
@dataclass(frozen=True)
class SpokenSequencesConfig(SpeechConfig):
    """Transcribe the digits in a window of `seconds`, each between start and end timestamps.

    One speaker reads `least` to `most` digits, with a random `gap` of silence between them and at most `lead` seconds
    before the first; digits that do not fit into the window are omitted. Each split's sequences are concatenated from
    its own recordings: the official test takes, and a validation sample of the others. Validation and test have
    `held_out` sequences each; training has an unlimited number.
    """

    seconds: float | None = 4.0
    least: int = 2  # minimum number of digits
    most: int = 5  # maximum number of digits
    gap: tuple[float, float] = (0.1, 0.6)  # range of silence between digits, in seconds
    lead: float = 0.5  # maximum seconds of silence before the first
    held_out: int = 300  # number of validation sequences, and of test sequences

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seconds is None:
            raise ConfigError("task.seconds is not set; choose a window length, such as 4")
        if not 1 <= self.least <= self.most:
            raise ConfigError(
                f"task.least is {self.least} and task.most is {self.most}; both must be at least 1, and task.least at "
                "most task.most"
            )
        if not 0 <= self.gap[0] <= self.gap[1] or self.lead < 0:
            raise ConfigError(
                f"task.gap is {self.gap} and task.lead is {self.lead}; use at least 0 seconds, and put the smaller gap "
                "first"
            )
        if self.held_out < 1:
            raise ConfigError(f"task.held_out is {self.held_out}; choose 1 or more")

    def open(self, recipe: Recipe, data: Sequence[Path] | None, workspace: Path) -> Task:
        """Raises UserError for any other data set."""
        takes, model = read_takes(recipe.files(data)), check_speech_model(recipe.model)
        sounds = open_sounds(takes.files, self.skip_bad)
        return Task(SpokenSequences(self, recipe, model, takes, sounds, workspace), TimedDigits(self))


class SpokenSequences(SpeechDataset):
    """Digit sequences, each a pure function of its split and index."""

    def __init__(
        self,
        config: SpokenSequencesConfig,
        recipe: Recipe,
        model: EncoderDecoderConfig,
        takes: Takes,
        sounds: Sounds,
        workspace: Path,
    ) -> None:
        self.config, self.takes, self.sounds = config, takes, sounds
        readable = np.setdiff1d(np.arange(len(takes.files)), self.sounds.unreadable)
        splits = split_by_text(sounds.keys, takes.named_splits(None), config.split).without(sounds.unreadable)
        self.splits = Splits(splits, readable, "recordings", "recordings")
        names = np.array(takes.speakers)
        self.rows_by_speaker = {
            split: [rows[names[rows] == name] for name in sorted(set(names[rows].tolist()))]  # the rows of each speaker
            for split, rows in (*splits.items(), ("all", readable))
        }
        frames = choose_window(recipe, model.encoder, self.sounds.lengths, config.seconds, workspace)
        if (workspace / FILE).exists():
            codec = cast(TokenizerCodec, load_codec(workspace))
        else:  # the ten words, and Whisper's special tokens in its order, the timestamps last
            special = (END, START, NO_TIMESTAMPS, *timestamp_tokens(frames * HOP / RATE))
            codec = train_codec("word", [" ".join(WORDS)], special=special)
        start, no_timestamps, eos = (codec.token_id(name) for name in (START, NO_TIMESTAMPS, END))
        if start is None or no_timestamps is None or eos is None:
            raise UserError(f"the tokenizer has no {START}, {NO_TIMESTAMPS} or {END}; start from a run with this task")
        super().__init__(
            recipe, codec, SpeechSpecialTokens((start,), eos, (start, no_timestamps)), frames, config, workspace
        )
        self.times = [cast(int, codec.token_id(name)) for name in timestamp_tokens(frames * HOP / RATE)]
        self.time_index = {token: index for index, token in enumerate(self.times)}
        check_targets(np.array([3 * config.most + 1]), model.context, "a sequence with the maximum number of digits")

    def contents(self) -> Contents:
        return {
            "sounds": (self.sounds.keys,),
            "digits": (np.asarray(self.takes.digits),),
            "speakers": (self.takes.speakers,),
        }

    def of(self, split: str) -> SequenceSamples:
        """Training sequences are unlimited, and `len` is nominal. UserError for a split without recordings."""
        self.splits.rows(split)
        return SequenceSamples(self, split, np.arange(self.config.held_out))

    def sequence(self, split: str, index: int, augmented: bool = False) -> JoinedDigits:
        """A sequence: a pure function of its split and index and, for training, of the run's seed."""
        seed = epoch_seed(self.seed if split == "train" else 0, _SPLITS.index(split))
        rng = sample_rng(seed, index)
        config, speakers = self.config, self.rows_by_speaker[split]
        speaker_rows = speakers[int(rng.integers(len(speakers)))]
        window = torch.zeros(self.frames * HOP)
        spans: list[Span] = []
        start = round(rng.uniform(0, config.lead) * RATE)
        for _ in range(int(rng.integers(config.least, config.most + 1))):
            row = int(speaker_rows[int(rng.integers(len(speaker_rows)))])
            sound = change_speed_and_gain(self.sounds[row], config.augment, rng) if augmented else self.sounds[row]
            end = start + len(sound)
            if end > len(window):
                break
            window[start:end] = sound
            spans.append(Span(WORDS[self.takes.digits[row]], start / RATE, end / RATE))
            start = end + round(rng.uniform(*config.gap) * RATE)
        spoken = int((window != 0).sum())
        return JoinedDigits(add_noise(window, spoken, config.augment, rng) if augmented else window, spans)

    def ids(self, spans: Sequence[Span]) -> list[int]:
        """Each word between its timestamp tokens."""
        words = self.codec.encode_batch([span.text for span in spans])
        return [
            token
            for span, word in zip(spans, words)
            for token in (self.times[round(span.start / STEP)], *word, self.times[round(span.end / STEP)])
        ]

    def spans(self, ids: Sequence[int]) -> list[Span]:
        """The words between two timestamps, with their times."""
        timed_words: list[Span] = []
        for start_token, word_token, end_token in zip(ids, ids[1:], ids[2:]):
            if start_token in self.time_index and word_token not in self.time_index and end_token in self.time_index:
                text = self.codec.decode([word_token]).strip()
                timed_words.append(Span(text, self.time_index[start_token] * STEP, self.time_index[end_token] * STEP))
        return timed_words

    def with_transcripts(self, samples: SequenceSamples) -> Sources:
        spans = samples.spans()
        return Sources(
            samples,
            [[" ".join(span.text for span in sequence_spans)] for sequence_spans in spans],
            list(map(_format_times, spans)),
        )


@dataclass(frozen=True)
class SequenceSamples:
    """A split's sequences by index."""

    examples: SpokenSequences
    split: str
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    def take(self, indices: np.ndarray, rng_key: RngKey | None = None) -> Batch:
        """Each training position has its own sequence."""
        examples, positions = self.examples, self.indices[indices] if rng_key is None else rng_key.positions
        sequences = [examples.sequence(self.split, index, rng_key is not None) for index in positions.tolist()]
        utterances = [Utterance(window, len(window), examples.ids(spans)) for window, spans in sequences]
        return examples.batch(utterances, rng_key)

    def spans(self) -> list[list[Span]]:
        """The spoken words of each sequence with their times."""
        return [self.examples.sequence(self.split, index).spans for index in self.indices.tolist()]

    def training_order(self) -> FixedSizeBatches:
        return FixedSizeBatches(len(self), self.examples.batch_size, self.examples.seed)

    def evaluation_order(self) -> FixedSizeBatches:
        return FixedSizeBatches(len(self), self.examples.eval_batch_size)

    def limited_to(self, limit: int | None) -> SequenceSamples:
        return replace(self, indices=spread_evenly(self.indices, limit))


class TimedDigits(SpeechRecognition[SpokenSequences]):
    """Digits between their start and end timestamps; scores words and times."""

    def scores(self, examples: SpokenSequences, sources: Sources, generated: Sequence[Ids]) -> dict[str, Any]:
        """Adds the mean time error of correct words, in milliseconds."""
        scores = {**super().scores(examples, sources, generated), "beam": self.search.beam}
        predictions = zip(sources.inputs.spans(), generated)
        pairs = [pair for spans, ids in predictions for pair in matching_words(spans, examples.spans(ids))]
        if not pairs:
            return scores
        errors = 1000 * np.abs(
            [
                (true_span.start - predicted_span.start, true_span.end - predicted_span.end)
                for true_span, predicted_span in pairs
            ]
        )
        start_error, end_error = errors.mean(0).tolist()
        times = {"boundary_error_ms": float(errors.mean()), "start_error_ms": start_error, "end_error_ms": end_error}
        return {**scores, **times, "boundaries": 2 * len(pairs)}

    def sample(self, examples: SpokenSequences, source: str, ids: Ids, references: Sequence[str]) -> dict[str, str]:
        return {**super().sample(examples, source, ids, references), "times": _format_times(examples.spans(ids))}

    def pictures(self, model: nn.Module, examples: SpokenSequences) -> list[Picture]:
        """A sequence from the final split, with the true and the recognised times of its digits, and the decoder's
        attention.
        """
        samples = examples.of(examples.final_split).limited_to(12)
        spans, index = max(zip(samples.spans(), samples.indices), key=lambda candidate: len(candidate[0]))
        sample = replace(samples, indices=np.array([index]))
        aligned = self.alignment(cast(EncoderDecoder, model), examples, sample)
        tracks = {"spoken": spans, "recognised": examples.spans(aligned.ids)}
        [[reference]] = examples.with_transcripts(sample).references
        name = f"{aligned.text} (spoken: {reference})"
        return [alignment_picture(name, aligned.frames, tracks, aligned.weights, aligned.tokens)]


def _format_times(spans: Sequence[Span]) -> str:
    return ", ".join(f"{span.text} {span.start:.2f}–{span.end:.2f}" for span in spans)


def matching_words(true: Sequence[Span], predicted: Sequence[Span]) -> list[tuple[Span, Span]]:
    """The words that are equal in both, in order."""
    blocks = SequenceMatcher(None, [span.text for span in true], [span.text for span in predicted], False)
    return [
        (true[block.a + i], predicted[block.b + i]) for block in blocks.get_matching_blocks() for i in range(block.size)
    ]


def timestamp_tokens(seconds: float) -> list[str]:
    """The timestamp tokens of a window."""
    return [f"<|{index * STEP:.2f}|>" for index in range(round(seconds / STEP) + 1)]
