"""The settings of tasks over conversations, and how these become symbols."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from headway.checkpoints.usage import read_usage
from headway.codecs import Kind, TokenizerCodec, load_codec, train_codec
from headway.codecs.tokenizer import END_OF_TEXT, FILE
from headway.config import register
from headway.data import SplitConfig
from headway.data.dialogues import Messages, dialogue_sources, read_chats, read_choices
from headway.errors import ConfigError
from headway.models import TransformerConfig
from headway.train import Recipe, TaskConfig

if TYPE_CHECKING:
    from headway.codecs.chat import ChatTemplate
    from headway.domains.chat.instruct import Instruct
    from headway.domains.chat.preference import Preference


@dataclass(frozen=True)
class ChatConfig(TaskConfig):
    """Tasks over conversations.

    A model that is started from brings its tokenizer and its chat template; without one, `codec` and `size` (the most
    symbols) say how text becomes symbols. No conversation has more than `context` tokens: a longer one is an error or,
    with `drop_long`, left out, and how many is said. `split` says what is held out where no file is named for it.
    """

    codec: Kind = "bpe"  # kind of the tokenizer that is trained
    size: int | None = 4096  # most symbols
    context: int = 512  # most tokens of a conversation
    drop_long: bool = False  # leave longer ones out, and count them
    split: SplitConfig = SplitConfig()  # what is held out

    def __post_init__(self) -> None:
        if self.context < 2:
            raise ConfigError(f"task.context {self.context} holds no conversation; give 2 or more")

    def codec_and_template(self, texts: Iterable[str], workspace: Path) -> tuple[TokenizerCodec, ChatTemplate]:
        """Those in the workspace (the run's, or its start's), or a codec of `texts` and the default template."""
        from headway.codecs.chat import ROLES, ChatTemplate, default_template

        if (workspace / FILE).exists():
            codec = load_codec(workspace)
        else:
            codec = train_codec(self.codec, texts, self.size, special=(*ROLES, END_OF_TEXT), fewer=True)
        said = read_usage(workspace).template
        if said is None:
            return codec, default_template(codec.marks)
        return codec, ChatTemplate(said, codec.marks, "the model's chat template")


@register("instruct")
@dataclass(frozen=True)
class InstructConfig(ChatConfig):
    """Predict what the assistant says in conversations, and nothing else of them. Rows hold several, kept apart."""

    def open(self, recipe: Recipe, data: Sequence[Path] | None, workspace: Path) -> Instruct:
        """Raises UserError for data that cannot be read, hold too little, or do not fit the settings."""
        from headway.domains.chat.instruct import Instruct

        check_model(recipe, self.context)
        rows = recipe.train.rows(self.context)
        sources = dialogue_sources(recipe.files(data))
        chats = (chat.messages for file in sources for chat in read_chats(file))
        codec, template = self.codec_and_template(texts_of(chats), workspace)
        return Instruct(self, recipe, sources, codec, template, rows)


@register("preference")
@dataclass(frozen=True)
class PreferenceConfig(ChatConfig):
    """Direct preference optimisation (Rafailov et al. 2023, equation 7).

    `beta` holds the model to the one it starts from; `smoothing` is the share of choices that are taken to be the wrong
    way round (conservative DPO, Mitchell 2023). A batch holds train.batch_tokens tokens of both endings together.
    """

    beta: float = 0.1  # how strongly the model is held to the one it starts from
    smoothing: float = 0.0  # share of choices taken to be the wrong way round

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beta <= 0:
            raise ConfigError(f"task.beta is {self.beta}; give a number above 0 such as 0.1")
        if not 0 <= self.smoothing < 0.5:
            raise ConfigError(f"task.smoothing is {self.smoothing}; give a share from 0 to below 0.5")

    def open(self, recipe: Recipe, data: Sequence[Path] | None, workspace: Path) -> Preference:
        """Raises UserError for data that cannot be read, hold too little, or do not fit the settings."""
        from headway.domains.chat.preference import Preference

        check_model(recipe, self.context)
        if recipe.train.batch_tokens is None or recipe.train.batch_size is not None:
            raise ConfigError(
                f"train.batch_size is {recipe.train.batch_size} and train.batch_tokens {recipe.train.batch_tokens}; "
                "batches of choices are made by tokens: set train.batch_tokens alone"
            )
        sources = dialogue_sources(recipe.files(data))
        choices = (choice for file in sources for choice in read_choices(file))
        told = (messages for choice in choices for messages in (choice.prompt, choice.chosen, choice.rejected))
        codec, template = self.codec_and_template(texts_of(told), workspace)
        return Preference(self, recipe, sources, codec, template, workspace)


def check_model(recipe: Recipe, context: int) -> None:
    """Raises ConfigError for a model that does not write, or that cannot see a conversation whole."""
    model = recipe.model
    if not isinstance(model, TransformerConfig) or not model.stack.causal or "vocabulary" not in model.heads:
        raise ConfigError("conversations need a model that continues text; choose a decoder such as gpt2 or a llama")
    if model.context is not None and context > model.context:
        raise ConfigError(f"task.context {context} exceeds the model's context of {model.context}; lower task.context")


def texts_of(chats: Iterable[Messages]) -> Iterator[str]:
    return (message["content"] for chat in chats for message in chat)
