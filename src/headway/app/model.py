"""A trained model, ready to be used: text in, text out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from headway.app.predictors import verb, verbs
from headway.card import Card, shows
from headway.generate import Completion, Limits, Sampling, Session
from headway.handle import Handle
from headway.nn.models import describe

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from headway.attending import Attention
    from headway.data.dialogues import Message
    from headway.domains import agents, audio, chat, forecast, image_text, masked, robotics, understanding, vision
    from headway.domains.chess.player import Player
    from headway.in_memory import Data

    Labels = dict[str, float]
    Messages = Sequence[Message]
    Texts = Iterable[str]

_SAMPLING, _LIMITS = Sampling(), Limits()


@shows
class Model(Handle):
    """What `load` returns. One class for all models: `verbs` says what this one can do, and a method that it cannot
    serve raises a UserError which says what it is and what it can do instead. Each method is answered by the predictor
    of its name; see `headway.app.predictors`.

    `module` is the torch module; `directory` where it was loaded from; `recipe` how it was trained, None for a
    published model; `usage` what a published model says of its use (end symbols, labels, chat template). `backend`,
    `cache` and `draft` are as given to `load`. `beyond` lists what in the texts given so far was beyond everything met
    in training.
    """

    def card(self) -> Card:
        """A summary: the kind of model, its size, what it was trained for, and what it can do."""
        recipe = self.recipe
        return Card(
            f"Model {self.directory}",
            {
                "kind": type(self.module).__name__,
                "parameters": describe(self.module.config)["parameters"],
                "context": self.context,
                "on": str(self.device),
                "recipe": None if recipe is None else f"{recipe.name} ({recipe.domain})",
                "can": ", ".join(self.verbs),
            },
        )

    @property
    def verbs(self) -> list[str]:
        """What this model can do: the names of its methods. Other forms of them (`stream` is one of `generate`) are
        left out.
        """
        return verbs(self.module.config, self.usage, self.recipe is not None)

    @property
    def thresholds(self) -> dict[str, float]:
        """The probability from which on each label is predicted, of a model that predicts several labels at once; of
        others nothing. They were chosen on the validation part, and are 1/2 where none were.
        """
        return self.usage.decisions

    @overload
    def generate(
        self,
        prompt: str,
        max_new_tokens: int = ...,
        temperature: float = ...,
        top_k: int | None = ...,
        top_p: float = ...,
        min_p: float = ...,
        repetition_penalty: float = ...,
        stop: str | Texts = ...,
        seed: int | None = ...,
    ) -> str: ...

    @overload
    def generate(
        self,
        prompt: Texts,
        max_new_tokens: int = ...,
        temperature: float = ...,
        top_k: int | None = ...,
        top_p: float = ...,
        min_p: float = ...,
        repetition_penalty: float = ...,
        stop: str | Texts = ...,
        seed: int | None = ...,
    ) -> list[str]: ...

    @verb
    def generate(
        self,
        prompt: str | Texts,
        max_new_tokens: int = 100,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        stop: str | Texts = (),
        seed: int | None = None,
    ) -> str | list[str]:
        """The continuation of a prompt, or of each of many.

        max_new_tokens, stop: when to end; see Limits.
        temperature, top_k, top_p, min_p, repetition_penalty, seed: how tokens are drawn; see Sampling.

        Raises UserError for a model that generates no text, and for a prompt that is too long.
        """
        ...

    @verb
    def stream(
        self,
        prompt: str,
        max_new_tokens: int = 100,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        stop: str | Texts = (),
        seed: int | None = None,
    ) -> Iterator[str]:
        """The continuation of a prompt, in pieces as they are generated; a piece never ends within a character. The
        arguments are those of `generate`.
        """
        ...

    @overload
    def complete(self, prompts: str, sampling: Sampling = ..., limits: Limits = ...) -> Completion: ...

    @overload
    def complete(self, prompts: Texts, sampling: Sampling = ..., limits: Limits = ...) -> list[Completion]: ...

    @verb
    def complete(
        self, prompts: str | Texts, sampling: Sampling = _SAMPLING, limits: Limits = _LIMITS
    ) -> Completion | list[Completion]:
        """The continuation of a prompt, or of each of many, as a Completion: text, ids, log probabilities and speed."""
        ...

    @verb
    def continuations(self, prompt: str, sampling: Sampling, limits: Limits) -> Iterator[str]:
        """The same as `stream`, with the settings as objects."""
        ...

    @overload
    def generate_ids(
        self,
        ids: Iterable[int],
        max_new_tokens: int = ...,
        temperature: float = ...,
        ignore_end: bool = ...,
        seed: int | None = ...,
    ) -> list[int]: ...

    @overload
    def generate_ids(
        self,
        ids: Iterable[Iterable[int]],
        max_new_tokens: int = ...,
        temperature: float = ...,
        ignore_end: bool = ...,
        seed: int | None = ...,
    ) -> list[list[int]]: ...

    @verb
    def generate_ids(
        self,
        ids: Iterable[int] | Iterable[Iterable[int]],
        max_new_tokens: int = 100,
        temperature: float = 1.0,
        ignore_end: bool = False,
        seed: int | None = None,
    ) -> list[int] | list[list[int]]:
        """The ids that follow the ids of a prompt, or of each of many, without the end symbol. With `ignore_end` there
        are always `max_new_tokens` of them.
        """
        ...

    @verb
    def prompt_ids(self, text: str) -> list[int]:
        """The ids of a prompt: its tokens, after the begin symbol if the model was trained or published with one."""
        ...

    @verb
    def chat(
        self, messages: str | Messages, max_new_tokens: int = 200, temperature: float = 1.0, seed: int | None = None
    ) -> str:
        """The model's reply to a conversation: messages with a `role` and a `content`, or a text, which is one message
        of the user. The prompt is built by the model's chat template.

        If the conversation outgrows the context, the oldest turns are left out, and a warning is logged. Raises
        UserError for a model without a chat template, and for messages that the template refuses. `talk` takes all
        settings of Sampling and Limits.
        """
        ...

    @verb
    def chat_stream(
        self, messages: str | Messages, max_new_tokens: int = 200, temperature: float = 1.0, seed: int | None = None
    ) -> Iterator[str]:
        """The same as `chat`, in pieces as they are generated; a piece never ends within a character."""
        ...

    @cached_property
    @verb
    def talk(self) -> chat.Talk:
        """Conversations by the model's chat template, with all settings. Raises UserError for a model without a
        template.
        """
        ...

    @property
    @verb
    def session(self) -> Session:
        """Generation for many sequences at once. Raises UserError for a model that generates no text."""
        ...

    @overload
    def translate(
        self, lines: str, beam: int | None = ..., length_penalty: float | None = ..., n_best: None = ...
    ) -> str: ...

    @overload
    def translate(
        self, lines: Texts, beam: int | None = ..., length_penalty: float | None = ..., n_best: None = ...
    ) -> list[str]: ...

    @overload
    def translate(
        self, lines: str, beam: int | None = ..., length_penalty: float | None = ..., *, n_best: int
    ) -> list[str]: ...

    @overload
    def translate(
        self, lines: Texts, beam: int | None = ..., length_penalty: float | None = ..., *, n_best: int
    ) -> list[list[str]]: ...

    @overload
    def translate(
        self, lines: str | Texts, beam: int | None = ..., length_penalty: float | None = ...,
        n_best: int | None = ..., temperature: float | None = ..., seed: int | None = ..., scores: bool = ...,
    ) -> Any: ...

    @verb
    def translate(
        self,
        lines: str | Texts,
        beam: int | None = None,
        length_penalty: float | None = None,
        n_best: int | None = None,
        temperature: float | None = None,
        seed: int | None = None,
        scores: bool = False,
    ) -> Any:
        """The translation of a line, or of each of many; with `n_best`, a list of the best ones for each.

        beam, length_penalty: the search; a beam of 1 is greedy. By default a run translates as it is evaluated.
        temperature, seed: sample instead of searching.
        scores: return (text, score) for each: log p by the length penalty; of samples, the mean log p of a token.

        Raises UserError for a model that is no encoder-decoder for texts.
        """
        ...

    @overload
    def fill(self, text: str, top: int = ...) -> list[list[masked.Candidate]]: ...

    @overload
    def fill(self, text: Texts, top: int = ...) -> list[list[list[masked.Candidate]]]: ...

    @verb
    def fill(
        self, text: str | Texts, top: int = 5
    ) -> list[list[masked.Candidate]] | list[list[list[masked.Candidate]]]:
        """The `top` most probable tokens for each mask of a text, or of each of many texts. A mask is written [MASK],
        <mask>, or as the tokenizer writes it.
        """
        ...

    @overload
    def classify(self, items: understanding.Text | vision.Image | audio.Sound, truncate: bool = ...) -> Labels: ...

    @overload
    def classify(
        self,
        items: Iterable[understanding.Text] | Iterable[vision.Image] | Iterable[audio.Sound],
        truncate: bool = ...,
    ) -> list[Labels]: ...

    @verb
    def classify(self, items: Any, truncate: bool = False) -> Labels | list[Labels]:
        """The probability of each label, most probable first, for a text, a pair of texts (a tuple), an image or a
        sound, or for each of many. A model that predicts a number returns it as "value"; one that predicts several
        labels at once predicts those whose probability reaches their `thresholds`.

        Images are files or pixels, uint8 [height, width, 3] or [height, width]. Sounds are files or samples at 16 kHz,
        [N].

        truncate: cut texts, and take the middle of sounds, that are longer than the model reads; otherwise they are an
        error.

        Raises UserError for a model without classes.
        """
        ...

    @verb
    def rerank(
        self, query: str, documents: Texts, top_n: int | None = None, truncate: bool = False
    ) -> list[understanding.RankedDocument]:
        """The documents by their relevance to a query, from 0 to 1, the most relevant first, by a cross-encoder. With
        `top_n` that many of them.

        truncate: cut what is longer than the model reads, the longer of the two texts first; otherwise it is an error.

        Raises UserError for a model with another number of outputs than one.
        """
        ...

    @overload
    def tag(self, texts: str, truncate: bool = ...) -> understanding.TaggedWords: ...

    @overload
    def tag(self, texts: Iterable[str | Texts], truncate: bool = ...) -> list[understanding.TaggedWords]: ...

    @verb
    def tag(
        self, texts: str | Iterable[str | Texts], truncate: bool = False
    ) -> understanding.TaggedWords | list[understanding.TaggedWords]:
        """The words of a text, the tag of each and the entities they spell; or those of each of many texts. A text may
        be given as a list of its words, inside a list of texts.
        """
        ...

    @overload
    def embed(self, items: str | vision.Image, truncate: bool = ...) -> Float[Tensor, "D"]: ...

    @overload
    def embed(self, items: Texts | Iterable[vision.Image], truncate: bool = ...) -> Float[Tensor, "N D"]: ...

    @verb
    def embed(self, items: Any, truncate: bool = False) -> Float[Tensor, "D"] | Float[Tensor, "N D"]:
        """A vector of unit length for a text or an image, Float[D], or for each of many, Float[N, D].

        A model with a joint space for images and texts takes both: a text that is the path of an image file is the
        image.
        """
        ...

    @overload
    def caption(
        self, images: image_text.Image, beam: int = ..., length_penalty: float = ..., n_best: None = ...
    ) -> str: ...

    @overload
    def caption(
        self, images: image_text.Image, beam: int = ..., length_penalty: float = ..., *, n_best: int
    ) -> list[str]: ...

    @overload
    def caption(
        self, images: Iterable[image_text.Image], beam: int = ..., length_penalty: float = ..., n_best: None = ...
    ) -> list[str]: ...

    @overload
    def caption(
        self, images: Iterable[image_text.Image], beam: int = ..., length_penalty: float = ..., *, n_best: int
    ) -> list[list[str]]: ...

    @verb
    def caption(
        self,
        images: image_text.Image | Iterable[image_text.Image],
        beam: int = 4,
        length_penalty: float = 0.6,
        n_best: int | None = None,
    ) -> str | list[str] | list[list[str]]:
        """The best caption of an image, or of each of many; with `n_best`, a list of the best ones for each.

        Images are files or pixels, uint8 [height, width, 3].

        beam: the width of the search; 1 is greedy.

        Raises UserError for a model that writes no captions.
        """
        ...

    @verb
    def match(
        self,
        images: image_text.Image | Iterable[image_text.Image],
        texts: str | Texts,
        templates: str | Texts = (),
        truncate: bool = False,
    ) -> image_text.Matches:
        """How well images (files or pixels) and texts go together: cosine similarities [N, M], and probabilities of the
        texts for each image. An axis is left out if a single image or a single text is given.

        For zero-shot classification, give the names of the classes as texts and `templates` such as "a photo of a {}":
        each class is then the mean vector of its filled templates. Raises UserError for a model without a joint space.
        """
        ...

    @overload
    def look(self, images: vision.Image) -> vision.Look: ...

    @overload
    def look(self, images: Iterable[vision.Image]) -> list[vision.Look]: ...

    @verb
    def look(self, images: vision.Image | Iterable[vision.Image]) -> vision.Look | list[vision.Look]:
        """Where a model of images looks in an image, or in each of many: its attention rolled out over the layers.
        `picture()` of the result draws it. Raises UserError for a model that reads no images.
        """
        ...

    @overload
    def transcribe(
        self,
        sound: audio.Given,
        language: str | None = ...,
        task: audio.Task = ...,
        beam: int = ...,
        prompt: str = ...,
        words: bool = ...,
        seed: int = ...,
    ) -> audio.Transcription: ...

    @overload
    def transcribe(
        self,
        sound: Iterable[audio.Given],
        language: str | None = ...,
        task: audio.Task = ...,
        beam: int = ...,
        prompt: str = ...,
        words: bool = ...,
        seed: int = ...,
    ) -> list[audio.Transcription]: ...

    @verb
    def transcribe(
        self,
        sound: audio.Given | Iterable[audio.Given],
        language: str | None = None,
        task: audio.Task = "transcribe",
        beam: int = 5,
        prompt: str = "",
        words: bool = False,
        seed: int = 0,
        vad: bool = True,
    ) -> audio.Transcription | list[audio.Transcription]:
        """The transcript of a sound, or of each of many, with times. Sounds are files or samples at 16 kHz, [N] or [N,
        channels].

        language: None detects it in the first 30 s.
        task: "translate" translates into English.
        prompt: text that is taken to come before the sound.
        words: also return the time of each word.
        vad: leave out stretches without a voice.

        `transcriber` takes all settings.

        Raises UserError for a model that hears no sounds, and for damaged files.
        """
        ...

    @verb
    def transcriber(self, config: audio.Transcribing) -> audio.Transcriber:
        """A transcriber with all settings, for many sounds or for a stream. Errors as for `transcribe`."""
        ...

    @verb
    def rollout(
        self,
        env: str | Sequence[str] | None = None,
        episodes: int = 10,
        target_return: float | Sequence[float] = (),
        seed: int | None = None,
        render: str | Path | None = None,
        draw: bool | None = None,
        execute: int | None = None,
        ensemble: float | Literal["run"] | None = "run",
        render_episodes: int = 3,
        speed: float = 1.0,
    ) -> dict[str, Any]:
        """Play episodes in an environment. Returns the mean return with its interval for an agent or a model of
        trajectories, and the success rate for a robot's policy; `results` has them for each target return or task.

        env: an id of gymnasium, metaworld/NAME, or module:Name (None: that of the run); several for a robot.
        episodes: how many; episode i starts from seed `seed` + i.
        render: the path of a video of the first `render_episodes` of them, `speed` times as fast as real time.
        target_return: the return to ask for, for models of trajectories.
        draw: whether actions are sampled, by agents and by models of trajectories (None: as in the run).
        execute, ensemble: for robots: actions of a chunk to carry out, and temporal ensembling ("run": as in the run).

        Raises UserError for a model that acts in no environment, and for arguments of the other kind of model.
        """
        ...

    @verb
    def policy(self, task: str | None = None, seed: int = 0) -> robotics.Policy | agents.AgentPolicy:
        """The policy of an agent or a robot, with `reset()`, `select_action(observation)` and, for a robot,
        `predict_action_chunk(observation)`.

        task: which of several tasks a robot does, where the observations do not say.
        seed: of the noise that a diffusion policy draws, and of the actions that an agent samples.

        Raises UserError for a model that is no policy of either kind.
        """
        ...

    @verb
    def player(self, search: str | None = None) -> Player:
        """A chess player that chooses moves by the model's "policy", by the "value" of the position after each move, or
        by a tree search ("puct"). None takes the strongest that the model allows. Needs the extra `chess`.
        """
        ...

    @verb
    def forecast(self, data: Data | None = None, steps: int | None = None) -> list[forecast.Forecast]:
        """Quantiles of the next `steps` of time (None: the run's horizon) after each series of `data` (whatever `train`
        takes; None: the run's own).

        Beyond the horizon the model goes on from its own medians, and its bands are too narrow. Values that are
        missing are refused or filled as in the run (`task.fill`). Raises UserError for a model of anything else, and
        for data that are too short for it or have other steps.
        """
        ...

    @overload
    def score(self, texts: str, sources: str | None = ...) -> list[float]: ...

    @overload
    def score(self, texts: Texts, sources: Texts | None = ...) -> list[list[float]]: ...

    @verb
    def score(self, texts: str | Texts, sources: str | Texts | None = None) -> list[float] | list[list[float]]:
        """The log probability of each token of a text, or of each of many, in nats.

        A language model with a begin symbol also scores the first token. An encoder-decoder scores the tokens of a
        target and the end after it, given its source. Raises UserError for an encoder-decoder without `sources`.
        """
        ...

    @verb
    def attention(self, text: str, target: str | None = None) -> Attention:
        """The attention weights while the model reads `text`; an encoder-decoder writes `target`, or its own
        translation.
        """
        ...

    @verb
    def logits(self, ids: Any, source: Any = None) -> Float[Tensor, "B T C"]:
        """Logits after each token, Float[B, T, C], for `ids` Int[B, T]. An encoder-decoder also needs the ids of the
        `source`, Int[B, S].
        """
        ...

    @verb
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

        A published model can be evaluated on `data` as a language model, or as one that matches images and texts. Of a
        run, "note" in the result says how the data differ from those that it was trained on, if they do.
        Raises UserError for a split that does not exist, and for data that do not fit.
        """
        ...
