"""Guesses by a small model that has the same symbols (Leviathan et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from headway.codecs import Codec, TokenizerCodec
from headway.errors import UserError
from headway.generate.prompts import context_of, device_of, make_prompt
from headway.generate.sampling import Sampler
from headway.generate.speculation import MOST, Extending
from headway.models import Generative
from headway.models.kinds import is_causal


def check_draft(
    place: Path, model: nn.Module, codec: Codec | None, draft_place: Path, draft: nn.Module, draft_codec: Codec | None
) -> None:
    """UserError for a draft that is no language model, or whose symbols mean something else than the model's."""
    for here, one, what in ((place, model, "it needs no draft"), (draft_place, draft, "it is no draft")):
        if not is_causal(one):
            raise UserError(f"{here} is no language model, so {what}; generate with one that is")
    different = _difference(model, codec, draft, draft_codec)
    if different is not None:
        raise UserError(
            f"the draft {draft_place} has other symbols than {place} ({different}); give one of the same tokenizer"
        )


def _difference(model: Any, codec: Codec | None, draft: Any, draft_codec: Codec | None) -> str | None:
    if isinstance(codec, TokenizerCodec) and isinstance(draft_codec, TokenizerCodec):
        return codec.difference(draft_codec)
    if codec is not draft_codec:
        return "only one of them has a tokenizer"
    sizes = model.config.symbols, draft.config.symbols
    return None if sizes[0] == sizes[1] else f"{sizes[1]} symbols against {sizes[0]}"


class Draft:
    """What a small model would write, drawn with the very numbers that the sequence will be drawn with: where it thinks
    as the large one does, it draws the same, whatever the temperature.

    Of a text that is longer than its context it reads the end. It has nothing to say after a symbol that it does not
    know.
    """

    def __init__(self, model: Generative, prompt: Sequence[int], sampler: Sampler, symbols: int, limit: int) -> None:
        """`sampler` draws the sequence, of at most `limit` symbols below `symbols`."""
        self.model, self.sampler, self.symbols = model, sampler, symbols
        self.ids = list(prompt)
        self._prompt, self._end = len(prompt), len(prompt) + limit
        self._context = context_of(model) or self._end
        self._strange = not all(symbol < model.config.symbols for symbol in prompt)
        if not self._strange:
            self._begin()

    def add(self, symbol: int) -> None:
        self.ids.append(symbol)
        self._strange |= symbol >= self.model.config.symbols

    def guess(self, most: int) -> list[int]:
        most = min(most, self._context // 2)
        if self._strange or not most:
            return []
        if len(self.ids) + most - self._first > self._context:
            self._begin()
        self._catch_up()
        # Guesses may be wrong, so they go on from a copy; what comes true is read again with what follows it.
        logits, ahead, found = self._logits, self._decoding.select(torch.tensor([0], device=self._device)), []
        while True:
            step = len(self.ids) - self._prompt + len(found)
            found.append(self.sampler.foresee(logits[:, : self.symbols], step, found))
            if len(found) == most:
                return found
            logits, ahead = self.model.step(torch.tensor(found[-1:], device=self._device), ahead)

    @property
    def _device(self) -> torch.device:
        return device_of(self.model)

    def _begin(self) -> None:
        """Read the text, or as much of its end as leaves half of the context for what comes."""
        fits = self._end <= self._context
        self._first = 0 if fits else max(0, len(self.ids) - max(1, self._context // 2))
        capacity = min(self._context, self._end - self._first)
        prompt = make_prompt([self.ids[self._first :]], None, self._device)
        self._logits: Float[Tensor, "1 C"]
        self._decoding: Any
        self._logits, self._decoding = self.model.start(prompt, capacity)
        self._read = len(self.ids)

    def _catch_up(self) -> None:
        """Read what was written since."""
        width = MOST + 1 if getattr(self.model, "extends", False) else 1
        for start in range(self._read, len(self.ids), width):
            new = torch.tensor([self.ids[start : start + width]], device=self._device)
            if width == 1:
                self._logits, self._decoding = self.model.step(new[0], self._decoding)
            else:
                logits, self._decoding = cast(Extending, self.model).extend(new, self._decoding)
                self._logits = logits[:, -1]
        self._read = len(self.ids)
