"""What is said in one window of sound, by greedy search."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headway.checkpoints.usage import Usage
from headway.codecs import TokenizerCodec
from headway.config import from_dict
from headway.domains.audio.mel import HOP, log_mel, pad
from headway.domains.audio.resample import RATE
from headway.errors import UserError, nearest
from headway.generate.prompts import check_number, device_of
from headway.layout import Layout
from headway.models import EncoderDecoderConfig, FramesEmbedConfig, Generative, Prompt

_START, _PLAIN, _FIRST_LANGUAGE = "<|startoftranscript|>", "<|notimestamps|>", "<|en|>"
_ENGLISH_ONLY = 51864  # symbols; those of English alone are one fewer than those of 99 languages


@torch.inference_mode()
def hear(
    model: Generative,
    codec: TokenizerCodec,
    usage: Usage,
    sound: Float[Tensor, "N"],
    language: str | None = None,
    max_new_tokens: int = 224,
) -> str:
    """The text of a sound of up to 30 s at 16,000 samples a second, without timestamps.

    A multilingual model is told the `language` ("en"). UserError for a model that hears no sounds, and for a longer
    sound.
    """
    frames = _frames(model, sound)
    start = _prompt(codec, usage, language, model.config.symbols)
    limit = min(max_new_tokens, model.config.context - len(start))
    never, first = _suppressed(usage, model.config.symbols, frames.device)
    ids = torch.tensor([start], device=frames.device)
    layout = Layout.full(1, len(start), device=frames.device)
    heard = Layout.full(1, frames.shape[1], device=frames.device)
    logits, decoding = model.start(Prompt(ids, layout, frames, heard), len(start) + limit)
    found: list[int] = []
    while len(found) < limit:
        logits[:, never if found else first] = -torch.inf
        check_number(float(logits.amax()))
        symbol = logits.argmax(-1)
        if int(symbol) in usage.ends:
            break
        found.append(int(symbol))
        logits, decoding = model.step(symbol, decoding)
    return codec.decode(found).strip()


def _frames(model: Generative, sound: Tensor) -> Float[Tensor, "1 T M"]:
    config: Any = model.config
    embed = config.encoder.embed if isinstance(config, EncoderDecoderConfig) else None
    if not isinstance(embed, FramesEmbedConfig) or config.encoder.context is None:
        raise UserError("this model hears no windows of sound; give one that does, such as a Whisper")
    frames = 2 * config.encoder.context
    return log_mel(pad(sound, frames * HOP / RATE), embed.bands)[None].to(device_of(model))


def _prompt(codec: TokenizerCodec, usage: Usage, language: str | None, symbols: int) -> list[int]:
    """The symbols that a text without timestamps begins with."""
    start, plain = codec.token(_START), codec.token(_PLAIN)
    if start is None or plain is None or not usage.ends:
        raise UserError(f"the tokenizer has no {_START}, {_PLAIN} or end; use the one that came with the model")
    spoken, first = codec.token("<|transcribe|>"), codec.token(_FIRST_LANGUAGE)
    if symbols <= _ENGLISH_ONLY or spoken is None or first is None:
        if language not in (None, "en"):
            raise UserError(f"this model hears English only, not {language!r}; use a multilingual one")
        return [start, plain]
    last = codec.token("<|translate|>") or first
    names = {(codec.tokenizer.id_to_token(i) or "").strip("<|>"): i for i in range(first, last)}
    if language is None:
        raise UserError("a multilingual model has to be told the language; give one, such as 'en'")
    if language not in names:
        raise UserError(f"the language {language!r} is not among this model's; {nearest(language, names)}")
    return [start, names[language], spoken, plain]


def _suppressed(usage: Usage, symbols: int, device: torch.device) -> tuple[Int[Tensor, "N"], Int[Tensor, "M"]]:
    """Symbols that the model's files say never to write, and those and more that are not to be written first."""
    said = {**usage.settings, **{name: value for name, value in usage.generation.items() if value is not None}}
    found: list[int] = []
    kinds = []
    for name in ("suppress_tokens", "begin_suppress_tokens"):
        found += from_dict(list[int], said.get(name) or [], name)
        if not all(0 <= symbol < symbols for symbol in found):
            raise UserError(f"{name} holds ids that this model does not have; its symbols are 0 to {symbols - 1}")
        kinds.append(torch.tensor(found, dtype=torch.long, device=device))
    return kinds[0], kinds[1]
