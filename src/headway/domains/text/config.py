"""How a language model is trained on documents, as data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from headway.checkpoints.hub import find_folder
from headway.codecs import Codec, Kind
from headway.codecs.tokenizer import FILE
from headway.config import override, register
from headway.data import SplitConfig
from headway.errors import ConfigError
from headway.models import ModelConfig, TransformerConfig, describe
from headway.train import Recipe, TaskConfig

if TYPE_CHECKING:
    from headway.domains.text.task import Language


@register("language")
@dataclass(frozen=True)
class LanguageConfig(TaskConfig):
    """Predict each symbol of documents from those before it.

    `codec` and `size` say how text becomes symbols (at most so many; none: as many as there are), unless `tokenizer`
    names a published one: its file, folder or name on a hub. Rows have `context` tokens, none for the model's.
    `packing` "documents" reads every token once an epoch, short documents side by side in a row; "windows" reads rows
    at any offset of long documents, as nanoGPT does. `split` says what is held out where no file is named for it. A
    batch has train.batch_size rows or, without it, as many as train.batch_tokens holds.

    `carry_state` is for recurrent and linear mixers: in place of either packing, the text is cut into as many streams
    as a step has rows, a row goes on where it ended in the step before, and so does the state of the model.
    """

    codec: Kind = "bpe"  # kind of the tokenizer that is trained
    size: int | None = 8192  # most symbols; none: as many as there are
    tokenizer: str | None = None  # file, folder or name on a hub of a published one, in its place
    context: int | None = None  # tokens of a row; none: the model's
    packing: Literal["documents", "windows"] = "documents"  # whole documents side by side, or windows at any offset
    split: SplitConfig = SplitConfig()  # what is held out
    carry_state: bool = False  # whether a row goes on where it ended in the step before, state and all

    @property
    def crops(self) -> bool:
        """Whether rows begin anywhere in a document."""
        return self.packing == "windows" and not self.carry_state

    def open(self, recipe: Recipe, data: Sequence[Path] | None, workspace: Path) -> Language:
        """Raises UserError for data that cannot be read, hold too little, or do not fit the settings."""
        from headway.data import open_tokens
        from headway.domains.text.task import Language, StreamedLanguage

        context, train = recipe.row_length(self.context), recipe.train
        rows = train.rows(context)
        if self.carry_state:
            _check_carried(recipe.model)
        paths = recipe.files(data)
        codec = self._codec(paths, workspace)
        cache = open_tokens(paths, codec)
        if self.carry_state:
            return StreamedLanguage(self, cache, codec, context, rows, train.seed, train.accumulate)
        return Language(self, cache, codec, context, rows, train.seed)

    def _codec(self, paths: Sequence[Path], workspace: Path) -> Codec:
        """The run's codec, or one made of all the text: what is held out is never trained on, but has its symbols."""
        from headway.codecs import load_codec, train_codec
        from headway.data import chunks, text_sources

        if (workspace / FILE).exists():
            return load_codec(workspace)
        if self.tokenizer is not None:
            return load_codec(find_folder(self.tokenizer))
        texts = (chunk.text for source in text_sources(paths) for chunk in chunks(source))
        return train_codec(self.codec, texts, self.size, fewer=True)


def _check_carried(model: ModelConfig) -> None:
    """Raises ConfigError for a model whose state cannot go on from row to row without end."""
    if not isinstance(model, TransformerConfig) or not model.stack.causal:
        raise ConfigError("task.carry_state needs a model that sees earlier tokens only; set it to false")
    if model.context is not None:
        raise ConfigError(
            f"task.carry_state lets documents go on past model.context {model.context}; set model.context to none"
        )
    growth = describe(override(model, {"symbols": 1}))["state_bytes_per_token"]
    if growth:
        raise ConfigError(
            f"task.carry_state needs a state that does not grow, and this model's grows by {growth:,} bytes a token: "
            "attention, with a window too, keeps keys and values of a single document; choose another model.mixer, "
            "such as lstm, gru, linear_attention or delta, or set task.carry_state to false"
        )
