"""A trained model, ready for inference."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from headway.app.predictors import verb, verbs
from headway.generate import Completion, Limits, Sampling, Session
from headway.model_handle import ModelHandle
from headway.nn.models import describe
from headway.summary_card import SummaryCard, summary_repr

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from headway.attention_maps import Attention
    from headway.data.dialogues import Message
    from headway.domains import agents, audio, chat, forecast, image_text, masked, robotics, understanding, vision
    from headway.domains.chess.player import ChessPlayer
    from headway.in_memory_data import Data

    Labels = dict[str, float]
    Messages = Sequence[Message]
    Texts = Iterable[str]

_SAMPLING, _LIMITS = Sampling(), Limits()


@summary_repr
class Model(ModelHandle):
    """The class of all models that `load` returns. `verbs` lists the methods that a model supports; the others raise a
    UserError that names alternatives. The predictor of the same name implements each method; see
    `headway.app.predictors`.

    `module` is the torch module; `directory` where it was loaded from; `recipe` how it was trained, None for a
    published model; `usage` holds a published model's stop tokens, labels and chat template. `backend`, `cache`
    and `draft` are the arguments of `load`. `unexpected` lists properties of previous inputs that were outside the
    training data.
    """

    def card(self) -> SummaryCard:
        """A summary: the kind of model, its size, recipe and verbs."""
        recipe = self.recipe
        return SummaryCard(
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
        """The names of the methods that this model supports, without variants (`stream` is a variant of `generate`)."""
        return verbs(self.module.config, self.usage, self.recipe is not None)

    @property
    def thresholds(self) -> dict[str, float]:
        """The minimum probability for predicting each label of a multi-label model; empty for other models. Training
        chooses them on the validation split; the default is 1/2.
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
        """Continue a prompt, or each of several prompts.

        max_new_tokens, stop: when to stop; see Limits.
        temperature, top_k, top_p, min_p, repetition_penalty, seed: how to sample tokens; see Sampling.

        Raises UserError for a model that does not generate text, and for a prompt that is too long.
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
        """Stream the continuation of a prompt in chunks; a chunk never ends within a character. Takes the arguments
        of `generate`.
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
        """Continue a prompt, or each of several; a Completion has text, ids, log probabilities and speed."""
        ...

    @verb
    def continuations(self, prompt: str, sampling: Sampling, limits: Limits) -> Iterator[str]:
        """`stream`, with the settings as objects."""
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
        """The ids generated after a prompt's ids, or after each of several, without the eos token. With `ignore_end`
        there are always `max_new_tokens` of them.
        """
        ...

    @verb
    def prompt_ids(self, text: str) -> list[int]:
        """The ids of a prompt, after the bos token if the model was trained or published with one."""
        ...

    @verb
    def chat(
        self, messages: str | Messages, max_new_tokens: int = 200, temperature: float = 1.0, seed: int | None = None
    ) -> str:
        """The reply to a conversation: messages with a `role` and a `content`, or a string for one user message. The
        model's chat template formats the prompt.

        If the conversation is longer than the context, the oldest turns are dropped with a warning. Raises UserError
        for a model without a chat template, and for messages that the template rejects. `talk` takes all settings of
        Sampling and Limits.
        """
        ...

    @verb
    def chat_stream(
        self, messages: str | Messages, max_new_tokens: int = 200, temperature: float = 1.0, seed: int | None = None
    ) -> Iterator[str]:
        """`chat`, streamed in chunks; a chunk never ends within a character."""
        ...

    @cached_property
    @verb
    def talk(self) -> chat.Conversation:
        """Conversations in the model's chat template. Raises UserError for a model without one."""
        ...

    @property
    @verb
    def session(self) -> Session:
        """Batched generation. Raises UserError for a model that does not generate text."""
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
        self,
        lines: str | Texts,
        beam: int | None = ...,
        length_penalty: float | None = ...,
        n_best: int | None = ...,
        temperature: float | None = ...,
        seed: int | None = ...,
        scores: bool = ...,
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
        """Translate a line, or each of several; with `n_best`, return a list of the best translations per line.

        beam, length_penalty: the beam search; a beam of 1 is greedy. By default as in the run's evaluation.
        temperature, seed: sample instead of beam search.
        scores: return (text, score) pairs: the log probability divided by the length penalty, or for samples the mean
        log probability per token.

        Raises UserError for a model that is not a text encoder-decoder.
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
        """The `top` most probable tokens for each mask of a text, or of each of several.

        A mask is [MASK], <mask>, or the tokenizer's own mask token.
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
        """The probability of each label, most probable first, for a text, a text pair (a tuple), an image or an audio
        clip, or for each of several. A regression model returns its prediction as "value". A multi-label model
        predicts the labels whose probability reaches their `thresholds`.

        Images are files or pixels, uint8 [height, width, 3] or [height, width]. Audio is a file or samples at 16 kHz,
        [N].

        truncate: cut text, and use the middle of audio, that is longer than the model's input; otherwise it raises
        an error.

        Raises UserError for a model without classes.
        """
        ...

    @verb
    def rerank(
        self, query: str, documents: Texts, top_n: int | None = None, truncate: bool = False
    ) -> list[understanding.RankedDocument]:
        """Rank documents by their relevance to a query with a cross-encoder: scores from 0 to 1, most relevant first,
        at most `top_n`.

        truncate: cut inputs that are too long, the longer of the two texts first; otherwise they raise an error.

        Raises UserError for a model that does not have exactly one output.
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
        """The words, tags and entities of a text, or of each of several. Texts in a list may be lists of words."""
        ...

    @overload
    def embed(self, items: str | vision.Image, truncate: bool = ...) -> Float[Tensor, "D"]: ...

    @overload
    def embed(self, items: Texts | Iterable[vision.Image], truncate: bool = ...) -> Float[Tensor, "N D"]: ...

    @verb
    def embed(self, items: Any, truncate: bool = False) -> Float[Tensor, "D"] | Float[Tensor, "N D"]:
        """A unit-length vector for a text or an image, Float[D], or for each of several, Float[N, D].

        A model with a joint space for images and texts takes both; a string that is an image path stands
        for the image.
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
        """Caption an image, or each of several; with `n_best`, return a list of the best captions per image.

        Images are files or pixels, uint8 [height, width, 3].

        beam: the beam width; 1 is greedy.

        Raises UserError for a model that does not caption images.
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
        """Match images (files or pixels) with texts: cosine similarities [N, M], and text probabilities for
        each image. A single image or a single text drops its axis.

        For zero-shot classification, pass the class names as texts and `templates` such as "a photo of a {}"; each
        class is then the mean vector of its filled templates. Raises UserError for a model without a joint space.
        """
        ...

    @overload
    def look(self, images: vision.Image) -> vision.ImageAttention: ...

    @overload
    def look(self, images: Iterable[vision.Image]) -> list[vision.ImageAttention]: ...

    @verb
    def look(
        self, images: vision.Image | Iterable[vision.Image]
    ) -> vision.ImageAttention | list[vision.ImageAttention]:
        """The attention rollout over an image, or over each of several. `picture()` of the result draws it. Raises
        UserError for a model that does not take images.
        """
        ...

    @overload
    def transcribe(
        self,
        sound: audio.SoundInput,
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
        sound: Iterable[audio.SoundInput],
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
        sound: audio.SoundInput | Iterable[audio.SoundInput],
        language: str | None = None,
        task: audio.Task = "transcribe",
        beam: int = 5,
        prompt: str = "",
        words: bool = False,
        seed: int = 0,
        vad: bool = True,
    ) -> audio.Transcription | list[audio.Transcription]:
        """Transcribe a recording, or each of several, with timestamps. Pass files or samples at 16 kHz, [N] or [N,
        channels].

        language: None detects it in the first 30 s.
        task: "translate" translates into English.
        prompt: text assumed to precede the recording.
        words: also return the time of each word.
        vad: skip parts without speech.

        `transcriber` takes all settings.

        Raises UserError for a model that does not take audio, and for damaged files.
        """
        ...

    @verb
    def transcriber(self, config: audio.TranscriptionOptions) -> audio.Transcriber:
        """A transcriber with all settings, for many recordings or for a stream. Errors as for `transcribe`."""
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
        """Play episodes in an environment. Returns the mean return with its interval for agents and trajectory models,
        and the success rate for a robot policy; `results` has them per target return or task.

        env: a Gymnasium id, metaworld/NAME, or module:Name (None: the run's); several for a robot policy.
        episodes: the number of episodes; episode i starts from seed `seed` + i.
        render: the path for a video of the first `render_episodes` episodes, at `speed` times real time.
        target_return: the target return of a trajectory model.
        draw: whether agents and trajectory models sample their actions (None: as in the run).
        execute, ensemble: robot policies: actions to execute per chunk, and temporal ensembling ("run": as in the run).

        Raises UserError for a model that does not act in environments, and for arguments of other kinds of models.
        """
        ...

    @verb
    def policy(self, task: str | None = None, seed: int = 0) -> robotics.RobotController | agents.AgentPolicy:
        """The policy of an agent or a robot, with `reset()`, `select_action(observation)` and, for a robot,
        `predict_action_chunk(observation)`.

        task: the task of a multi-task robot, unless the observations contain it.
        seed: the seed of a diffusion policy's noise and of an agent's sampled actions.

        Raises UserError for a model that is not a policy.
        """
        ...

    @verb
    def player(self, search: str | None = None) -> ChessPlayer:
        """A chess player that chooses moves by the model's "policy", by the "value" of the position after each move, or
        by a tree search ("puct"). None chooses the strongest that the model supports. Needs the extra `chess`.
        """
        ...

    @verb
    def forecast(self, data: Data | None = None, steps: int | None = None) -> list[forecast.Forecast]:
        """Quantiles of the next `steps` (None: the run's horizon) after each series of `data` (whatever `train` takes;
        None: the run's own).

        Beyond the horizon the model continues from its own medians, so its intervals are too narrow. Missing values
        raise an error or are filled, as in the run (`task.fill`). Raises UserError for a model that does not forecast,
        and for series that are too short or have a different time step.
        """
        ...

    @overload
    def score(self, texts: str, sources: str | None = ...) -> list[float]: ...

    @overload
    def score(self, texts: Texts, sources: Texts | None = ...) -> list[list[float]]: ...

    @verb
    def score(self, texts: str | Texts, sources: str | Texts | None = None) -> list[float] | list[list[float]]:
        """The log probability of each token of a text, or of each of several, in nats.

        A language model with a bos token also scores the first token. An encoder-decoder scores the tokens of a target
        and its eos token, given the source. Raises UserError for an encoder-decoder without `sources`.
        """
        ...

    @verb
    def attention(self, text: str, target: str | None = None) -> Attention:
        """The attention weights over `text`; for an encoder-decoder also over `target` or its own translation."""
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

        split: "train", "validation", "test" or "all"; by default all of `data`, otherwise the run's test split (the
        validation split if there is no test split). For images and audio with a named test split, that split of
        `data` is the default, otherwise its validation split. "split" in the result names the split used.
        limit: the maximum number of samples.
        stride: for language models, evaluate in overlapping windows.

        A published model can be evaluated on `data` as a language model, or as an image and text model. For a run,
        "note" in the result explains how the data differs from the training data, if it does.
        Raises UserError for a split that does not exist, and for data that the model cannot take.
        """
        ...
