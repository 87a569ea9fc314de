"""What is said in one window: encoded once, then written by beam search, and by chance where that goes wrong."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from headway.codecs import TokenizerCodec
from headway.domains.audio.marks import Marks, Task
from headway.domains.audio.timestamps import WhisperRule
from headway.errors import ConfigError, UserError
from headway.generate import Sampling, SearchConfig, draw_on, search_on
from headway.generate.prompts import evaluating
from headway.given import check_fields
from headway.layout import Layout
from headway.models import EncoderDecoder, FramesEmbedConfig, Generative, Heard, Prompt


@dataclass(frozen=True)
class Transcribing:
    """How a sound is transcribed. The defaults are those of Radford et al. 2022 (section 4.5) and their program.

    language: None is English, or what is detected in the first window for a multilingual model.
    beam: the width of the search, at temperature 0.
    most_compression, least_logprob: a window whose text zlib compresses more than this, or whose mean log probability
    of a token is less, is written again at the next of the `temperatures`, as the best of `best_of` samples.
    most_silence: a window of uncertain text has no speech if the probability of <|nospeech|> is above this.
    initial: text that is taken to come before the sound.
    previous: whether each window is given the text before it, unless that was sampled above a temperature of 0.5.
    timestamps: without them each window is one segment.
    words: also return the time of each word.
    vad: voice activity detection: long pauses are left out, and times are moved out of pauses.
    """

    language: str | None = None
    task: Task = "transcribe"
    beam: int = 5
    best_of: int = 5
    temperatures: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    most_compression: float = 2.4
    least_logprob: float = -1.0
    most_silence: float = 0.6
    initial: str = ""
    previous: bool = True
    timestamps: bool = True
    words: bool = False
    seed: int = 0
    vad: bool = True

    def __post_init__(self) -> None:
        check_fields(self)
        SearchConfig(self.beam)
        if self.best_of < 1:
            raise ConfigError(f"best_of is {self.best_of}; give a whole number from 1 on")
        if not self.temperatures:
            raise ConfigError("there are 0 temperatures; give at least one, as in 0")
        for temperature in self.temperatures:
            Sampling(temperature)
        if self.words and not self.timestamps:
            raise ConfigError("words have times only where segments have them; leave timestamps on, or words out")


class Said(NamedTuple):
    """What was written of a window, times among the symbols, the end not; `logprob` is the mean of a symbol."""

    ids: list[int]
    text: str
    logprob: float
    compression: float
    silence: float
    temperature: float


class Hearing(Generative, Protocol):
    """An EncoderDecoder, or the engine's form of one."""

    def hear(self, source: Any, layout: Layout) -> Heard: ...


class Listener:
    """A model that hears windows of sound."""

    def __init__(self, model: EncoderDecoder, generator: Hearing, codec: TokenizerCodec, marks: Marks) -> None:
        """`generator` writes what `model` would. UserError for a model that hears no sounds."""
        config = model.config
        embed = config.encoder.embed
        positions, context = config.encoder.context, config.context
        if not isinstance(embed, FramesEmbedConfig) or positions is None or context is None:
            raise UserError("this model cannot read windows of sound; use one that can, such as a Whisper")
        self.model, self.generator, self.codec, self.marks = model, generator, codec, marks
        self.bands, self.frames = embed.bands, 2 * positions
        self.context = context  # symbols, of the text before and the text

    @torch.inference_mode()
    def encode(self, frames: Float[Tensor, "1 T M"]) -> Heard:
        device = next(self.model.parameters()).device
        with evaluating(self.generator):
            return self.generator.hear(frames.to(device), Layout.full(1, frames.shape[1], device=device))

    @torch.inference_mode()
    def languages(self, heard: Heard) -> dict[str, float]:
        """The probability of each language, the likeliest first. UserError for a model of English alone."""
        if not self.marks.languages:
            raise UserError("this model hears English only, so it tells no languages apart; use a multilingual one")
        logits, _ = self._start(heard, [self.marks.start], 1)
        found = logits[0, list(self.marks.languages.values())].float().softmax(0).tolist()
        return dict(sorted(zip(self.marks.languages, found), key=lambda pair: -pair[1]))

    @torch.inference_mode()
    def write(self, heard: Heard, before: Sequence[int], config: Transcribing) -> Said:
        """The text of a window that follows the symbols `before`; `config.language` is known here.

        Half of the context is kept for the text before, in a model that is given any.
        """
        marks = self.marks
        room = self.context if marks.previous is None else self.context // 2
        prompt = self._before(before, room - 1)
        opening = [*marks.opening(config.language, config.task), *([] if config.timestamps else [marks.plain])]
        limit = min(room, self.context - len(prompt) - len(opening))
        logits, decoding = self._start(heard, [*prompt, opening[0]], len(opening) - 1 + limit)
        silence = 0.0 if marks.silence is None else float(logits[0].float().softmax(0)[marks.silence])
        for symbol in opening[1:]:
            logits, decoding = self.generator.step(torch.tensor([symbol], device=logits.device), decoding)
        tried: list[Said] = []
        for temperature in config.temperatures:
            tried.append(self._attempt(logits.clone(), decoding, limit, silence, temperature, config))
            if _is_good(tried[-1], config):
                return tried[-1]
        plausible = [said for said in tried if said.compression <= config.most_compression]
        best = max(plausible or tried, key=lambda said: said.logprob)
        return best._replace(temperature=tried[-1].temperature)

    def _before(self, ids: Sequence[int], most: int) -> list[int]:
        if self.marks.previous is None or not ids:
            return []
        return [self.marks.previous, *ids[-most:]]

    def _start(self, heard: Heard, ids: Sequence[int], more: int) -> tuple[Tensor, Any]:
        """The logits after `ids`, and a generation with room for `more` symbols."""
        prompt = torch.tensor([list(ids)], device=next(self.model.parameters()).device)
        layout = Layout.full(*prompt.shape, device=prompt.device)
        with evaluating(self.generator):
            return self.generator.start(Prompt(prompt, layout, heard, layout), len(ids) + more)

    def _attempt(
        self, logits: Tensor, decoding: Any, limit: int, silence: float, temperature: float, config: Transcribing
    ) -> Said:
        marks = self.marks
        rule = WhisperRule(marks, config.timestamps)
        with evaluating(self.generator):
            if temperature == 0:
                search = SearchConfig(config.beam, length_penalty=1.0, length_offset=0.0)
                [[best]] = search_on(self.generator, logits, decoding, [limit], marks.end, search, rule=rule)
            else:
                sampling, ends = Sampling(temperature, seed=config.seed), (marks.end,)
                best = draw_on(self.generator, logits, decoding, config.best_of, limit, ends, sampling, rule)[0]
        text = self.text(best.ids)
        mean = best.log_probability / (len(best.ids) + best.finished)
        return Said(best.ids, text, mean, compression_ratio(text), silence, temperature)

    def text(self, ids: Sequence[int]) -> str:
        """The text of symbols, without what is none."""
        return self.codec.decode([symbol for symbol in ids if symbol < self.marks.end])


def compression_ratio(text: str) -> float:
    """How many times smaller zlib makes it; above 2.4 a text repeats itself."""
    raw = text.strip().encode()
    return len(raw) / len(zlib.compress(raw))


def _is_good(said: Said, config: Transcribing) -> bool:
    doubtful = said.logprob < config.least_logprob
    if doubtful and said.silence > config.most_silence:
        return True  # silence, of which no other temperature makes more
    return not doubtful and said.compression <= config.most_compression


def is_silent(said: Said, config: Transcribing) -> bool:
    """Whether nothing is said in a window, whatever was written of it."""
    return said.silence > config.most_silence and said.logprob <= config.least_logprob
