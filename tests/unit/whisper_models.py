"""A Whisper of a few weights with windows of a second, and one that says what it is told to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from headway.codecs import TokenizerCodec
from headway.codecs.tokenizer import BYTES
from headway.domains.audio import Transcriber, TranscriptionOptions
from headway.formats.published import save_published
from headway.formats.usage import Usage
from headway.nn.models import EncodedSource, EncoderDecoder, EncoderDecoderConfig
from headway.nn.models.presets import whisper

POSITIONS, BANDS = 50, 8  # a window is a second: 100 frames, and times from 0.00 to 1.00
SPECIAL = (
    "<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|de|>", "<|translate|>", "<|transcribe|>", "<|startoflm|>",
    "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>",
)  # fmt: skip
END = 256
FIRST_TIME = END + len(SPECIAL)
SYMBOLS = FIRST_TIME + POSITIONS + 1
USAGE = Usage("whisper", {}, END, (END,), END, decoder_start=END + 1, generation={"begin_suppress_tokens": [32, END]})


def codec() -> TokenizerCodec:
    """Bytes, and Whisper's marks behind them."""
    tokenizer = Tokenizer(models.BPE(vocab=dict(BYTES), merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in SPECIAL])
    return TokenizerCodec(tokenizer)


def model(seed: int = 0) -> EncoderDecoder:
    config = whisper(16, (1, 2), 2, SYMBOLS, BANDS)
    small: Any = replace(
        config, encoder=replace(config.encoder, context=POSITIONS), decoder=replace(config.decoder, context=64)
    )
    assert isinstance(small, EncoderDecoderConfig)
    return small.build(seed).eval()


def folder(place: Path) -> Path:
    """A published folder of it, with its tokenizer."""
    made = model()
    save_published(made, made.config, place, USAGE)
    codec().save(place)
    return place


def noise(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed)) * 0.1


def time(seconds: float) -> int:
    return FIRST_TIME + round(seconds / 0.02)


class Rows:
    """What has been written of each row (Progress)."""

    def __init__(self, rows: list[list[int]]) -> None:
        self.rows = rows

    @property
    def positions(self) -> Int[Tensor, "B"]:
        return torch.tensor([len(row) for row in self.rows])

    def select(self, rows: Tensor, memory_rows: Tensor | None = None) -> Rows:
        return Rows([list(self.rows[row]) for row in rows.tolist()])

    def assign(self, target: Tensor, source: Tensor) -> None:
        found = [list(self.rows[row]) for row in source.tolist()]
        for row, content in zip(target.tolist(), found):
            self.rows[row] = content

    def at(self, positions: Tensor) -> Rows:
        return self


class Scripted:
    """Says of each window the next of its texts, symbol by symbol, surely; with a `silence` in place of a text it says
    "um", unsurely, and holds silence for as likely. `started` are the prompts that it was given.
    """

    def __init__(self, texts: Sequence[Sequence[int] | float]) -> None:
        self.config, self.texts = model().config, list(texts)
        self.training = False
        self.window = -1
        self.started: list[list[int]] = []

    def encode(self, source: Any, layout: Any) -> EncodedSource:
        self.window += 1
        return EncodedSource(None, None, {})

    def start(self, prompt: Any, capacity: int) -> tuple[Tensor, Rows]:
        self.started.append(prompt.ids[0].tolist())
        rows: list[list[int]] = [[]]
        return self._logits(rows), Rows(rows)

    def step(self, ids: Tensor, decoding: Rows) -> tuple[Tensor, Rows]:
        marks = (END + 2, END + 3, END + 4, END + 5)  # languages and tasks, which the prompt goes on with
        rows = [
            [*row, symbol] if row or symbol not in marks else row for row, symbol in zip(decoding.rows, ids.tolist())
        ]
        return self._logits(rows), Rows(rows)

    def _logits(self, rows: list[list[int]]) -> Tensor:
        said = self.texts[self.window]
        text = [time(0), *b"um", time(0.5), END] if isinstance(said, float) else [*said, END]
        logits = torch.zeros(len(rows), SYMBOLS)
        for row, written in enumerate(rows):
            logits[row, text[min(len(written), len(text) - 1)]] = 4.0 if isinstance(said, float) else 30.0
            if isinstance(said, float) and not written:
                logits[row, END + 8] = 4.0 + said
        return logits

    def train(self, mode: bool = True) -> Any:
        return self

    def eval(self) -> Any:
        return self

    def parameters(self) -> Any:
        yield torch.zeros(1)


def transcriber(texts: Sequence[Sequence[int] | float], **settings: Any) -> tuple[Transcriber, Scripted]:
    said = Scripted(texts)
    config = TranscriptionOptions(**{"language": "en", "vad": False, **settings})
    made = Transcriber(model(), said, codec(), USAGE, config)  # type: ignore[arg-type]
    return made, said
