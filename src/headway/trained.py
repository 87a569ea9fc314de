"""A trained model, ready to be used: text in, text out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast, overload

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from headway import given
from headway.acting import Acts
from headway.attending import Attention
from headway.card import Card, shows
from headway.checkpoints.alike import look
from headway.codecs import Codec
from headway.data import SIDES
from headway.domains import audio, forecast, image_text, masked, text, translation, understanding, vision
from headway.errors import UserError, nearest
from headway.generate import SearchConfig, score_ids
from headway.given import typed
from headway.handed import Data, kept
from headway.layout import Layout
from headway.loaded import Texts
from headway.mixers import ConditionalGRU, CrossAttention
from headway.models import EncoderDecoder, Transformer, attention_maps, describe
from headway.recipes import Paths, final_split, listed, open_task
from headway.senses import matches, sees
from headway.train import Task
from headway.writing import Writes

Labels = dict[str, float]


@shows
class Model(Writes, Acts):
    """What `load` returns. One class for all models: a method that the model cannot serve raises a UserError which says
    what it can do.

    `module` is the torch module; `directory` where it was loaded from; `recipe` how it was trained, None for a
    published model; `usage` what a published model says of its use (end symbols, labels, chat template). `backend`,
    `cache` and `draft` are as given to `load`. `beyond` lists what in the texts given so far was beyond everything met
    in training.
    """

    def card(self) -> Card:
        """A summary: the kind of model, its size, and what it was trained for."""
        recipe = self.recipe
        return Card(
            f"Model {self.directory}",
            {
                "kind": type(self.module).__name__,
                "parameters": describe(self.module.config)["parameters"],
                "context": self.context,
                "on": str(self.device),
                "recipe": None if recipe is None else f"{recipe.name} ({recipe.domain})",
            },
        )

    @torch.inference_mode()
    def logits(self, ids: Any, source: Any = None) -> Float[Tensor, "B T C"]:
        """Logits after each token, Float[B, T, C], for `ids` Int[B, T]. An encoder-decoder also needs the ids of the
        `source`, Int[B, S].
        """
        self._check_one_stream()
        rows = self._tensor(ids, "ids")
        if isinstance(self.module, Transformer):
            return self.module.logits(rows)
        if source is None:
            raise UserError(f"{self.directory} is an encoder-decoder, which needs a source; give source=...")
        read = self._tensor(source, "source")
        module = cast(EncoderDecoder, self.module)
        layouts = [Layout.full(*some.shape, device=self.device) for some in (read, rows)]
        return module.heads["vocabulary"](module(read, layouts[0], rows, layouts[1]).x)

    def _tensor(self, ids: Any, name: str) -> Int[Tensor, "B T"]:
        rows = torch.as_tensor(ids, device=self.device)
        if rows.dim() != 2 or rows.is_floating_point():
            raise UserError(f"{name} has shape {tuple(rows.shape)}; give whole numbers of shape [batch, time]")
        return rows

    @overload
    def score(self, texts: str, sources: str | None = ...) -> list[float]: ...

    @overload
    def score(self, texts: Texts, sources: Texts | None = ...) -> list[list[float]]: ...

    def score(self, texts: str | Texts, sources: str | Texts | None = None) -> list[float] | list[list[float]]:
        """The log probability of each token of a text, or of each of many, in nats.

        A language model with a begin symbol also scores the first token. An encoder-decoder scores the tokens of a
        target and the end after it, given its source. Raises UserError for an encoder-decoder without `sources`.
        """
        self._check_one_stream()
        asked = given.texts(texts)
        if isinstance(self.module, Transformer):
            return asked.answer(score_ids(self.module, [self.prompt_ids(text) for text in asked.items]))
        if sources is None:
            raise UserError(f"{self.directory} is an encoder-decoder, which scores targets; give their sources=...")
        read = given.texts(sources, "source").items
        if len(read) != len(asked.items):
            raise UserError(f"{len(asked.items)} targets and {len(read)} sources; give each target its source")
        return asked.answer(self._translator.score(asked.items, read) if read else [])

    @overload
    def translate(self, lines: str, beam: int = ..., length_penalty: float = ..., n_best: None = ...) -> str: ...

    @overload
    def translate(self, lines: str, beam: int = ..., length_penalty: float = ..., *, n_best: int) -> list[str]: ...

    @overload
    def translate(
        self, lines: Texts, beam: int = ..., length_penalty: float = ..., n_best: None = ...
    ) -> list[str]: ...

    @overload
    def translate(
        self, lines: Texts, beam: int = ..., length_penalty: float = ..., *, n_best: int
    ) -> list[list[str]]: ...

    @typed
    def translate(
        self, lines: str | Texts, beam: int = 4, length_penalty: float = 0.6, n_best: int | None = None
    ) -> str | list[str] | list[list[str]]:
        """The translation of a line, or of each of many; with `n_best`, a list of the best ones for each. A `beam` of 1
        is greedy. Raises UserError for a model that is no encoder-decoder for texts.
        """
        self._check_one_stream()
        if not isinstance(self.module, EncoderDecoder):
            raise UserError(f"{self.directory} is a language model, which cannot translate; use generate")
        asked, search = given.texts(lines, "line"), SearchConfig(beam, length_penalty, 1 if n_best is None else n_best)
        found = self._translator.translate(asked.items, search) if asked.items else []
        return asked.answer([best[0] for best in found] if n_best is None else found)

    @property
    def _translator(self) -> translation.Translator:
        module = cast(EncoderDecoder, self.module)
        if self.recipe is None:
            return translation.Translator.of_published(module, self.codec, self.usage, self.generator)
        if not isinstance(self.recipe.task, translation.PairsConfig):
            raise UserError(f"{self.directory} was not trained on pairs, but as {type(self.recipe.task).__name__}")
        return translation.Translator.of_run(module, self.recipe.task, self.directory, self.generator, self.meet)

    @overload
    def classify(self, items: understanding.Text | vision.Image | audio.Sound, truncate: bool = ...) -> Labels: ...

    @overload
    def classify(
        self,
        items: Iterable[understanding.Text] | Iterable[vision.Image] | Iterable[audio.Sound],
        truncate: bool = ...,
    ) -> list[Labels]: ...

    @typed
    def classify(self, items: Any, truncate: bool = False) -> Labels | list[Labels]:
        """The probability of each label, most probable first, for a text, a pair of texts (a tuple), an image or a
        sound, or for each of many.

        Images are files or pixels, uint8 [height, width, 3] or [height, width]. Sounds are files or samples at 16 kHz,
        [N].

        truncate: cut texts, and take the middle of sounds, that are longer than the model reads; otherwise they are an
        error.

        Raises UserError for a model without classes.
        """
        if matches(self.module):
            raise UserError(f"{self.directory} has no classes of its own; give their names to match, as texts")
        source, failed = str(self.directory), given.Failed()
        if isinstance(self.module, Transformer) and audio.hears(self.module.config):
            asked = given.sounds(items)
            said = audio.classify(self.module, self.usage, asked.items, source, truncate, failed)
            return asked.answer(said, failed, "sound")
        if sees(self.module):
            asked = given.images(items)
            found: dict[int, np.ndarray] = {}
            watch = lambda place, pixels: found.update({place: look(pixels)})  # noqa: E731
            said = vision.classify(
                self.module, self.usage, asked.items, source, failed, watch if self.watches else None
            )
            if found:
                names = [given.named(item, place, "image") for place, item in enumerate(asked.items)]
                self.see([names[place] for place in found], np.stack(list(found.values())))
            return asked.answer(said, failed, "image")
        asked, labels = given.texts_or_pairs(items), self.usage.labels
        self._meet_texts([text if isinstance(text, str) else " ".join(text) for text in asked.items])
        return asked.answer(understanding.classify(self.module, self.codec, labels, asked.items, truncate=truncate))

    def _meet_texts(self, texts: Sequence[str]) -> None:
        if self.recipe is not None:
            self.meet(texts, self.codec.encode_batch(texts))

    @overload
    def tag(self, texts: str, truncate: bool = ...) -> understanding.TaggedWords: ...

    @overload
    def tag(self, texts: Iterable[str | Texts], truncate: bool = ...) -> list[understanding.TaggedWords]: ...

    @typed
    def tag(
        self, texts: str | Iterable[str | Texts], truncate: bool = False
    ) -> understanding.TaggedWords | list[understanding.TaggedWords]:
        """The words of a text, the tag of each and the entities they spell; or those of each of many texts. A text may
        be given as a list of its words, inside a list of texts.
        """
        asked, labels = given.texts_or_words(texts), self.usage.labels
        self._meet_texts([text if isinstance(text, str) else " ".join(text) for text in asked.items])
        return asked.answer(understanding.tag(self.module, self.codec, labels, asked.items, truncate=truncate))

    @overload
    def embed(self, items: str | vision.Image, truncate: bool = ...) -> Float[Tensor, "D"]: ...

    @overload
    def embed(self, items: Texts | Iterable[vision.Image], truncate: bool = ...) -> Float[Tensor, "N D"]: ...

    @typed
    def embed(self, items: Any, truncate: bool = False) -> Float[Tensor, "D"] | Float[Tensor, "N D"]:
        """A vector of unit length for a text or an image, Float[D], or for each of many, Float[N, D].

        A model with a joint space for images and texts takes both: a text that is the path of an image file is the
        image.
        """
        source, failed = str(self.directory), given.Failed()
        if matches(self.module):
            asked = given.images(items, "image or text")
            found = image_text.embed(self.module, self.codec, self.usage, asked.items, truncate, source, failed)
        elif sees(self.module):
            asked = given.images(items)
            found = vision.embed(self.module, self.usage, asked.items, source, failed)
        else:
            asked = given.texts(items)
            found = understanding.embed(self.module, self.codec, asked.items, truncate=truncate)
        return asked.answer(found, failed, "image")

    @overload
    def fill(self, text: str, top: int = ...) -> list[list[masked.Candidate]]: ...

    @overload
    def fill(self, text: Texts, top: int = ...) -> list[list[list[masked.Candidate]]]: ...

    @typed
    def fill(
        self, text: str | Texts, top: int = 5
    ) -> list[list[masked.Candidate]] | list[list[list[masked.Candidate]]]:
        """The `top` most probable tokens for each mask of a text, or of each of many texts. A mask is written [MASK],
        <mask>, or as the tokenizer writes it.
        """
        asked = given.texts(text)
        return asked.answer([masked.fill(self.module, self.codec, each, top) for each in asked.items])

    @typed
    def attention(self, text: str, target: str | None = None) -> Attention:
        """The attention weights while the model reads `text`; an encoder-decoder writes `target`, or its own
        translation.
        """
        self._check_one_stream()
        if not text.strip():
            raise UserError("an empty text has no attention; give one with at least a word")
        if isinstance(self.module, Transformer):
            ids = self.prompt_ids(text)
            maps = attention_maps(self.module, lambda: self.module(torch.tensor([ids], device=self.device)))
            return Attention(_first(maps), _names(self.codec, ids), [])
        translator, codecs = self._translator, self._translator.codecs
        written = self.translate(text) if target is None else target
        source = translator.read([text])[0]
        decoder = [translator.begin, *codecs.target.encode(written)]
        both = [torch.tensor([ids], device=self.device) for ids in (source, decoder)]
        layouts = [Layout.full(*ids.shape, device=self.device) for ids in both]
        maps = attention_maps(self.module, lambda: self.module(both[0], layouts[0], both[1], layouts[1]))
        readers = (ConditionalGRU, CrossAttention)
        across = tuple(name for name in maps if isinstance(self.module.get_submodule(name), readers))
        return Attention(_first(maps), _names(codecs.target, decoder), _names(codecs.source, source), across)

    @typed
    def forecast(self, data: Data | None = None, steps: int | None = None) -> list[forecast.Forecast]:
        """Quantiles of the next `steps` of time (None: the run's horizon) after each series of `data` (whatever `train`
        takes; None: the run's own).

        Beyond the horizon the model goes on from its own medians, and its bands are too narrow. Values that are
        missing are refused or filled as in the run (`task.fill`). Raises UserError for a model of anything else, and
        for data that are too short for it or have other steps.
        """
        with kept(data, "forecast") as paths:
            given_paths = None if paths is None else [Path(path) for path in listed(paths)]
            return forecast.forecast(cast(Transformer, self.module), self.directory, self.recipe, given_paths, steps)

    @typed
    def evaluate(
        self,
        data: Data | None = None,
        split: str | None = None,
        limit: int | None = None,
        stride: int | None = None,
    ) -> dict[str, Any]:
        """The metrics of the model's domain on the run's own data, or on `data` (whatever `train` takes).

        split: "train", "validation", "test" or "all"; by default all of `data`, or else the run's test split (the
        validation split if it has no test). Of images and sounds whose folders or files name a test part, that part of
        `data` is the default, or else its validation part. "split" in the result says which it was.
        limit: evaluate on at most so many samples.
        stride: for language models, read the texts in overlapping windows.

        A published model can be evaluated on `data` as a language model, or as one that matches images and texts.
        Raises UserError for a split that does not exist, and for data that do not fit.
        """
        with kept(data, self._domain) as paths:
            task = self._task(paths)
            wanted = split or (final_split(task) if data is None else getattr(task, "stated", "all"))
            known = {*SIDES, "all", *getattr(task, "sides", ())}
            if wanted not in known:
                raise UserError(f"there is no split {wanted!r}; {nearest(wanted, known)}")
            if stride is None:
                return {"split": wanted, **task.evaluate(self.module, wanted, limit)}
            if not isinstance(task, text.Language):
                raise UserError(f"{self.directory} is not a language model, so it has no windows; leave the stride out")
            return {"split": wanted, "stride": stride, **task.strided(self.module, wanted, stride, limit)}

    @property
    def _domain(self) -> str:
        """What its data are of."""
        if self.recipe is not None:
            return self.recipe.domain
        return "image_text" if matches(self.module) else "text"

    def _task(self, data: Paths | None) -> Task:
        if self.recipe is not None:
            return open_task(self.recipe, self.directory, data)
        if data is None:
            raise UserError(f"{self.directory} has no recipe that says what to measure; give data=... (--data)")
        if matches(self.module):
            paths = [Path(path) for path in listed(data)]
            return image_text.published_task(self.module, self.codec, self.usage, paths)
        if not isinstance(self.module, Transformer) or not self.module.config.stack.causal:
            raise UserError(f"{self.directory} is not a language model; fine-tune it with --from and evaluate that run")
        return text.language_task(self.module, self.codec, [Path(path) for path in listed(data)])


def _first(maps: dict[str, Float[Tensor, "B H T S"]]) -> dict[str, Float[Tensor, "H T S"]]:
    return {name: weights[0].cpu() for name, weights in maps.items()}


def _names(codec: Codec, ids: Sequence[int]) -> list[str]:
    marks = {codec.begin: "<begin>", codec.end: "<end>"}
    return [marks.get(symbol, _visible(codec.decode([symbol]))) for symbol in ids]


def _visible(text: str) -> str:
    return text.strip() or ("⏎" if "\n" in text else "␣")
