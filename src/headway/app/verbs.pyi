# Written by `python docs/reference.py` from the predictors of the domains; do not edit.
# ruff: noqa
from typing import Literal, overload

from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
from jaxtyping import Float
from pathlib import Path
from torch import Tensor
from typing import Any
from typing import Literal
import headway.domains.agents.predictors as _agents
import headway.domains.audio.predictors as _audio
import headway.domains.chat.predictors as _chat
import headway.domains.chess.predictors as _chess
import headway.domains.forecast.predictors as _forecast
import headway.domains.image_text.predictors as _image_text
import headway.domains.masked.predictors as _masked
import headway.domains.robotics.predictors as _robotics
import headway.domains.text.predictors as _text
import headway.domains.translation.predictors as _translation
import headway.domains.understanding.predictors as _understanding
import headway.domains.vision.predictors as _vision
import headway.predict.model_evaluation as _model_evaluation
import numpy as np

class LocalVerbs:
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
        stop: str | _text.Texts = ...,
        seed: int | None = ...,
    ) -> str:
        """Continue a prompt, or each of several prompts.

        max_new_tokens: maximum number of new tokens.
        temperature: sampling temperature; 0 is greedy.
        top_k: sample only from the K most probable tokens.
        top_p: sample from the most probable tokens with total probability P.
        min_p: drop tokens less probable than P times the most probable one.
        repetition_penalty: penalty on repeated tokens; 1 turns it off.
        stop: stop before this string.
        seed: the seed of the sampled tokens.

        Raises UserError for a model that does not generate text, and for a prompt that is too long.
        """
        ...
    @overload
    def generate(
        self,
        prompt: _text.Texts,
        max_new_tokens: int = ...,
        temperature: float = ...,
        top_k: int | None = ...,
        top_p: float = ...,
        min_p: float = ...,
        repetition_penalty: float = ...,
        stop: str | _text.Texts = ...,
        seed: int | None = ...,
    ) -> list[str]: ...
    def chat(
        self,
        messages: str | _chat.Messages,
        max_new_tokens: int = 200,
        temperature: float = 1.0,
        seed: int | None = None,
        thinking_token_budget: int | None = None,
    ) -> str:
        """The reply to a conversation: messages with a `role` and a `content`, or a string for one user message. The
        model's chat template formats the prompt. The thinking before a reply is not part of it.

        thinking_token_budget: maximum number of tokens that a model thinks before it answers; 0 turns thinking off.

        If the conversation is longer than the context, the oldest turns are dropped with a warning. Raises UserError
        for a model without a chat template, and for messages that the template rejects. `talk` takes all settings of
        Sampling and Limits.
        """
        ...
    @overload
    def translate(
        self,
        lines: str,
        beam: int | None = ...,
        length_penalty: float | None = ...,
        n_best: None = ...,
        temperature: float | None = ...,
        seed: int | None = ...,
        scores: Literal[False] = ...,
        source: str | None = ...,
        target: str | None = ...,
    ) -> str:
        """Translate a line, or each of several; with `n_best`, return a list of the best translations per line.

        beam: beams per line; 1 is greedy (default: as in the run's evaluation, or 4).
        length_penalty: length penalty, GNMT's alpha (default: as in the run's evaluation, or 0.6).
        temperature: sample at this temperature instead of beam search.
        seed: the seed of the samples.
        scores: return (text, score) pairs: the log probability divided by the length penalty, or for samples the mean
        log probability per token.
        source: language of the lines, such as en, for a model of several languages (default: the tokenizer's).
        target: language to translate into, such as de, for a model of several languages.

        Raises UserError for a model that is not a text encoder-decoder.
        """
        ...
    @overload
    def translate(
        self,
        lines: _translation.Texts,
        beam: int | None = ...,
        length_penalty: float | None = ...,
        n_best: None = ...,
        temperature: float | None = ...,
        seed: int | None = ...,
        scores: Literal[False] = ...,
        source: str | None = ...,
        target: str | None = ...,
    ) -> list[str]: ...
    @overload
    def translate(
        self,
        lines: str,
        beam: int | None = ...,
        length_penalty: float | None = ...,
        *,
        n_best: int,
        temperature: float | None = ...,
        seed: int | None = ...,
        scores: Literal[False] = ...,
        source: str | None = ...,
        target: str | None = ...,
    ) -> list[str]: ...
    @overload
    def translate(
        self,
        lines: _translation.Texts,
        beam: int | None = ...,
        length_penalty: float | None = ...,
        *,
        n_best: int,
        temperature: float | None = ...,
        seed: int | None = ...,
        scores: Literal[False] = ...,
        source: str | None = ...,
        target: str | None = ...,
    ) -> list[list[str]]: ...
    @overload
    def translate(
        self,
        lines: str,
        beam: int | None = ...,
        length_penalty: float | None = ...,
        n_best: int | None = ...,
        temperature: float | None = ...,
        seed: int | None = ...,
        *,
        scores: Literal[True],
        source: str | None = ...,
        target: str | None = ...,
    ) -> _translation.Scored: ...
    @overload
    def translate(
        self,
        lines: _translation.Texts,
        beam: int | None = ...,
        length_penalty: float | None = ...,
        n_best: int | None = ...,
        temperature: float | None = ...,
        seed: int | None = ...,
        *,
        scores: Literal[True],
        source: str | None = ...,
        target: str | None = ...,
    ) -> list[_translation.Scored]: ...
    @overload
    def translate(
        self,
        lines: str | _translation.Texts,
        beam: int | None = ...,
        length_penalty: float | None = ...,
        n_best: int | None = ...,
        temperature: float | None = ...,
        seed: int | None = ...,
        scores: bool = ...,
        source: str | None = ...,
        target: str | None = ...,
    ) -> str | list[str] | list[list[str]] | _translation.Scored | list[_translation.Scored]: ...
    @overload
    def transcribe(
        self,
        sound: _audio.SoundInput,
        language: str | None = ...,
        task: _audio.Task = ...,
        beam: int = ...,
        prompt: str = ...,
        words: bool = ...,
        seed: int = ...,
        vad: bool = ...,
    ) -> _audio.Transcription:
        """Transcribe a recording, or each of several, with timestamps. Pass files or samples at 16 kHz, [N] or [N,
        channels].

        language: spoken language, such as en or de (default: detected in the first 30 s).
        task: "translate" translates into English.
        beam: beams at temperature 0.
        prompt: text assumed to precede the audio; sets names, spelling and style.
        words: also return the time of each word.
        vad: skip parts without speech.

        `transcriber` takes all settings.

        Raises UserError for a model that does not take audio, and for damaged files.
        """
        ...
    @overload
    def transcribe(
        self,
        sound: Iterable[_audio.SoundInput],
        language: str | None = ...,
        task: _audio.Task = ...,
        beam: int = ...,
        prompt: str = ...,
        words: bool = ...,
        seed: int = ...,
        vad: bool = ...,
    ) -> list[_audio.Transcription]: ...
    @overload
    def caption(
        self, images: _image_text.Image, beam: int = ..., length_penalty: float = ..., n_best: None = ...
    ) -> str:
        """Caption an image, or each of several; with `n_best`, return a list of the best captions per image.

        Images are files or pixels, uint8 [height, width, 3].

        beam: beams per image; 1 is greedy.
        length_penalty: length penalty, GNMT's alpha.
        n_best: captions per image, best first.

        Raises UserError for a model that does not caption images.
        """
        ...
    @overload
    def caption(
        self, images: Iterable[_image_text.Image], beam: int = ..., length_penalty: float = ..., n_best: None = ...
    ) -> list[str]: ...
    @overload
    def caption(
        self, images: _image_text.Image, beam: int = ..., length_penalty: float = ..., *, n_best: int
    ) -> list[str]: ...
    @overload
    def caption(
        self, images: Iterable[_image_text.Image], beam: int = ..., length_penalty: float = ..., *, n_best: int
    ) -> list[list[str]]: ...
    @overload
    def caption(
        self,
        images: _image_text.Image | Iterable[_image_text.Image],
        beam: int = ...,
        length_penalty: float = ...,
        n_best: int | None = ...,
    ) -> str | list[str] | list[list[str]]: ...
    @overload
    def fill(self, text: str, top: int = ...) -> list[list[_masked.Candidate]]:
        """The `top` most probable tokens for each mask of a text, or of each of several.

        A mask is [MASK], <mask>, or the tokenizer's own mask token.

        top: number of words per mask, most probable first.
        """
        ...
    @overload
    def fill(self, text: _masked.Texts, top: int = ...) -> list[list[list[_masked.Candidate]]]: ...
    @overload
    def classify(
        self,
        items: _audio.Sound | _understanding.Text | _vision.Image,
        truncate: bool = ...,
        labels: Iterable[str] | None = ...,
        hypothesis: str = ...,
        multiple: bool = ...,
    ) -> _audio.Labels:
        """The probability of each label, most probable first, for a text, a text pair (a tuple), an image or an audio
        clip, or for each of several. A regression model returns its prediction as "value". A multi-label model
        predicts the labels whose probability reaches their `thresholds`.

        Images are files or pixels, uint8 [height, width, 3] or [height, width]. Audio is a file or samples at 16 kHz,
        [N].

        truncate: truncate text that is too long for the model, and use the middle of audio that is too long; otherwise
        both are errors.
        labels: choose from these labels instead of the model's classes. The model must have a class "entailment", as
        models for natural language inference have.
        hypothesis: sentence that a text entails if a label, which replaces {}, is right.
        multiple: several labels may be right, so each has an independent probability.

        Raises UserError for a model without classes.
        """
        ...
    @overload
    def classify(
        self,
        items: Iterable[_audio.Sound] | Iterable[_understanding.Text] | Iterable[_vision.Image],
        truncate: bool = ...,
        labels: Iterable[str] | None = ...,
        hypothesis: str = ...,
        multiple: bool = ...,
    ) -> list[_audio.Labels]: ...
    def rerank(
        self,
        query: str,
        documents: _understanding.Texts,
        top_n: int | None = None,
        truncate: bool = False,
        instruction: str | None = None,
    ) -> list[_understanding.RankedDocument]:
        """Rank documents by their relevance to a query with a cross-encoder or a reranking language model: at most `top_n`,
        most relevant first. Scores are from 0 to 1: the sigmoid of the output, or the output itself if the model's
        settings name Identity as the activation.

        truncate: truncate inputs that are too long for the model, the longer text first; otherwise they are errors.
        instruction: what makes a document relevant, for models whose prompt contains it, such as Qwen3-Reranker.

        Raises UserError for a model that does not have exactly one output.
        """
        ...
    def answer(
        self,
        question: str,
        context: str | _understanding.Texts,
        window: int = 384,
        stride: int | None = None,
        max_tokens: int = 15,
        allow_none: bool = False,
    ) -> _understanding.Answer | list[_understanding.Answer]:
        """Answer a question with a part of a context, or of each of several: its text, its characters from `start` to
        before `end`, and its score.

        window: number of tokens of the question and a part of a long context that the model reads at once.
        stride: number of tokens that successive parts share (default: half the window, at most 128).
        max_tokens: maximum number of tokens of an answer.
        allow_none: return an empty answer if the score for no answer is higher, as models for SQuAD 2 are trained to.
        """
        ...
    @overload
    def tag(self, texts: str, truncate: bool = ...) -> _understanding.TaggedWords:
        """The words, tags and entities of a text, or of each of several. Texts in a list may be lists of words.

        truncate: truncate text that is too long for the model.
        """
        ...
    @overload
    def tag(
        self, texts: Iterable[str | _understanding.Texts], truncate: bool = ...
    ) -> list[_understanding.TaggedWords]: ...
    def match(
        self,
        images: _image_text.Image | Iterable[_image_text.Image],
        texts: str | _image_text.Texts,
        templates: str | _image_text.Texts = (),
        truncate: bool = False,
    ) -> _image_text.Matches:
        """Match images (files or pixels) with texts: cosine similarities [N, M], and text probabilities for
        each image. A single image or a single text drops its axis.

        For zero-shot classification, pass the class names as texts and `templates` such as "a photo of a {}"; each
        class is then the mean vector of its filled templates. Raises UserError for a model without a joint space.

        truncate: truncate text that is too long for the model.
        """
        ...
    @overload
    def embed(
        self, items: str | _image_text.Image, truncate: bool = ..., prompt: str | None = ...
    ) -> Float[Tensor, "D"]:
        """A vector for a text or an image, Float[D], or for each of several, Float[N, D]. It has unit length, unless the
        model is a sentence encoder whose modules do not normalise.

        A model with a joint space for images and texts takes both; a string that is an image path stands
        for the image.

        truncate: truncate text that is too long for the model.
        prompt: name of a prompt of the model to put before each text, such as query or document.
        """
        ...
    @overload
    def embed(
        self, items: _image_text.Texts | Iterable[_image_text.Image], truncate: bool = ..., prompt: str | None = ...
    ) -> Float[Tensor, "N D"]: ...
    @overload
    def look(self, images: _vision.Image) -> _vision.ImageAttention:
        """The attention rollout over an image, or over each of several. `picture()` of the result draws it. Raises
        UserError for a model that does not take images.
        """
        ...
    @overload
    def look(self, images: Iterable[_vision.Image]) -> list[_vision.ImageAttention]: ...
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
        and the success rate for a robot policy; `results` has them per target return or task,
        and `rewards` those of each step of the episodes in a video.

        env: a Gymnasium id, metaworld/NAME, or module:Name (None: the run's); several for a robot policy.
        episodes: episodes per target return or task.
        seed: episode i starts from this seed + i.
        render: the path for a video of the first `render_episodes` episodes, at `speed` times real time.
        target_return: the target return of a trajectory model.
        draw: sample actions instead of taking the best (default: as in the run).
        execute: robot policy: actions to execute from each predicted chunk (default: as in the run).
        ensemble: robot policy: temporal ensembling coefficient (default: as in the run).

        Raises UserError for a model that does not act in environments, and for arguments of other kinds of models.
        """
        ...
    def act(
        self,
        observation: Any,
        history: Sequence[Any] = (),
        target_return: float | None = None,
        task: str | None = None,
        seed: int | None = None,
    ) -> int | np.ndarray:
        """Choose the next action of an episode: a choice, or numbers, in the environment's units.

        observation: the current observation: numbers, or for a robot the mapping that its policy takes.
        history: the earlier steps of the episode, oldest first, each an observation, an action and a reward.
        target_return: the return that a trajectory model aims for (default: the run's).
        task: the task of a multi-task robot.
        seed: seed of sampled actions, and of a diffusion policy's noise (default: 0).

        Raises UserError for an unsuitable observation, and for arguments of other kinds of models.
        """
        ...
    def policy(self, task: str | None = None, seed: int = 0) -> _agents.AgentPolicy | _robotics.RobotController:
        """The policy of an agent or a robot, with `reset()`, `select_action(observation)` and, for a robot,
        `predict_action_chunk(observation)`.

        task: the task of a multi-task robot, unless the observations contain it.
        seed: the seed of a diffusion policy's noise and of an agent's sampled actions.

        Raises UserError for a model that is not a policy.
        """
        ...
    def move(
        self,
        position: str = "",
        moves: str | Iterable[str] = (),
        nodes: int = 100,
        temperature: float = 0.0,
        top: int = 5,
        seed: int | None = None,
    ) -> _chess.ChessMove:
        """Play a move in a game of chess. Returns it in UCI and SAN, with the probabilities of win, draw and loss for the
        side that moves, the most probable moves, and the game after it. Needs the extra `chess`.

        position: the position that the game starts from, as FEN (default: the start of chess).
        moves: the moves played since then, such as e2e4 or Nf3.
        nodes: positions to search; 0 plays without a search.
        temperature: sampling temperature; 0 plays the best move.
        top: number of most probable moves to return.
        seed: random seed of the sampled move.

        Raises UserError for an invalid position, an illegal move, and a finished game.
        """
        ...
    def player(self, search: str | None = None) -> _chess.ChessPlayer:
        """A chess player that chooses moves by the model's "policy", by the "value" of the position after each move, or
        by a tree search ("puct"). None chooses the strongest that the model supports. Needs the extra `chess`.
        """
        ...
    def forecast(self, data: _forecast.Data | None = None, steps: int | None = None) -> list[_forecast.Forecast]:
        """Quantiles of the next `steps` (None: the run's horizon) after each series of `data` (whatever `train` takes;
        None: the run's own).

        Beyond the horizon the model continues from its own medians, so its intervals are too narrow. Missing values
        raise an error or are filled, as in the run (`task.fill`). Raises UserError for a model that does not forecast,
        and for series that are too short or have a different time step.

        steps: steps to forecast (default: the run's horizon).
        """
        ...
    @overload
    def score(self, texts: str, sources: str | _text.Texts | None = ...) -> list[float]:
        """The log probability of each token of a text, or of each of several, in nats.

        A language model with a bos token also scores the first token. An encoder-decoder scores the tokens of a target
        and its eos token, given the source. Raises UserError for an encoder-decoder without `sources`.
        """
        ...
    @overload
    def score(self, texts: _text.Texts, sources: str | _text.Texts | None = ...) -> list[list[float]]: ...
    def attention(self, text: str, target: str | None = None) -> _text.Attention:
        """The attention weights over `text`; for an encoder-decoder also over `target` or its own translation.

        target: target text for a translation model (default: its own translation).
        """
        ...
    def lens(self, text: str, top: int = 5, neighbours: int = 0, target: str | None = None) -> _text.Lens:
        """What the model would predict at each token of `text` if its stack ended after each layer: the final norm and the
        head are applied to the layer's features (nostalgebraist 2020). The last layer is the model's own prediction.

        top: number of tokens per layer and position, most probable first; 100 at most.
        neighbours: number of nearest tokens by output embedding for each token of the text; 100 at most.
        target: target text for a translation model (default: its own translation), to whose tokens the predictions belong.

        Raises UserError for a model without a vocabulary, and for text that is empty or has more than 256 tokens.
        """
        ...
    def logits(self, ids: Any, source: Any = None) -> Float[Tensor, "B T C"]:
        """Logits after each token, Float[B, T, C], for `ids` Int[B, T]. An encoder-decoder also needs the ids of the
        `source`, Int[B, S].
        """
        ...
    def evaluate(
        self,
        data: _model_evaluation.Data | None = None,
        split: str | None = None,
        limit: int | None = None,
        stride: int | None = None,
    ) -> dict[str, Any]:
        """The metrics of the model's domain on the run's own data, or on `data` (whatever `train` takes).

        split: "train", "validation", "test" or "all"; by default all of `data`, otherwise the run's test split (the
        validation split if there is no test split). For images and audio with a named test split, that split of
        `data` is the default, otherwise its validation split. "split" in the result names the split used.
        limit: maximum number of samples.
        stride: language models: evaluate in overlapping windows that advance by N tokens.

        A published model can be evaluated on `data` as a language model, or as an image and text model. For a run,
        "note" in the result explains how the data differs from the training data, if it does.
        Raises UserError for a split that does not exist, and for data that the model cannot take.
        """
        ...
    def stream(
        self,
        prompt: str,
        max_new_tokens: int = 100,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        stop: str | _text.Texts = (),
        seed: int | None = None,
    ) -> Iterator[str]:
        """Stream the continuation of a prompt in chunks; a chunk never ends within a character. Takes the arguments
        of `generate`.
        """
        ...
    @overload
    def complete(self, prompts: str, sampling: _text.Sampling = ..., limits: _text.Limits = ...) -> _text.Completion:
        """Continue a prompt, or each of several; a Completion has text, ids, log probabilities and speed."""
        ...
    @overload
    def complete(
        self, prompts: _text.Texts, sampling: _text.Sampling = ..., limits: _text.Limits = ...
    ) -> list[_text.Completion]: ...
    def continuations(self, prompt: str, sampling: _text.Sampling, limits: _text.Limits) -> Iterator[str]:
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
    ) -> list[int]:
        """The ids generated after a prompt's ids, or after each of several, without the eos token. With `ignore_end`
        there are always `max_new_tokens` of them.
        """
        ...
    @overload
    def generate_ids(
        self,
        ids: Iterable[Iterable[int]],
        max_new_tokens: int = ...,
        temperature: float = ...,
        ignore_end: bool = ...,
        seed: int | None = ...,
    ) -> list[list[int]]: ...
    def prompt_ids(self, text: str) -> list[int]:
        """The ids of a prompt, after the bos token if the model was trained or published with one."""
        ...
    def chat_stream(
        self,
        messages: str | _chat.Messages,
        max_new_tokens: int = 200,
        temperature: float = 1.0,
        seed: int | None = None,
        thinking_token_budget: int | None = None,
    ) -> Iterator[str]:
        """`chat`, streamed in chunks; a chunk never ends within a character."""
        ...
    def transcriber(self, config: _audio.TranscriptionOptions) -> _audio.Transcriber:
        """A transcriber with all settings, for many recordings or for a stream. Errors as for `transcribe`."""
        ...

class RemoteVerbs:
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
        stop: str | _text.Texts = ...,
        seed: int | None = ...,
    ) -> str:
        """Continue a prompt, or each of several prompts.

        max_new_tokens: maximum number of new tokens.
        temperature: sampling temperature; 0 is greedy.
        top_k: sample only from the K most probable tokens.
        top_p: sample from the most probable tokens with total probability P.
        min_p: drop tokens less probable than P times the most probable one.
        repetition_penalty: penalty on repeated tokens; 1 turns it off.
        stop: stop before this string.
        seed: the seed of the sampled tokens.

        Raises UserError for a model that does not generate text, and for a prompt that is too long.
        """
        ...
    @overload
    def generate(
        self,
        prompt: _text.Texts,
        max_new_tokens: int = ...,
        temperature: float = ...,
        top_k: int | None = ...,
        top_p: float = ...,
        min_p: float = ...,
        repetition_penalty: float = ...,
        stop: str | _text.Texts = ...,
        seed: int | None = ...,
    ) -> list[str]: ...
    def chat(
        self,
        messages: str | _chat.Messages,
        max_new_tokens: int = 200,
        temperature: float = 1.0,
        seed: int | None = None,
        thinking_token_budget: int | None = None,
    ) -> str:
        """The reply to a conversation: messages with a `role` and a `content`, or a string for one user message. The
        model's chat template formats the prompt. The thinking before a reply is not part of it.

        thinking_token_budget: maximum number of tokens that a model thinks before it answers; 0 turns thinking off.

        If the conversation is longer than the context, the oldest turns are dropped with a warning. Raises UserError
        for a model without a chat template, and for messages that the template rejects. `talk` takes all settings of
        Sampling and Limits.
        """
        ...
    @overload
    def translate(
        self,
        lines: str,
        beam: int | None = ...,
        length_penalty: float | None = ...,
        n_best: None = ...,
        temperature: float | None = ...,
        seed: int | None = ...,
        scores: Literal[False] = ...,
        source: str | None = ...,
        target: str | None = ...,
    ) -> str:
        """Translate a line, or each of several; with `n_best`, return a list of the best translations per line.

        beam: beams per line; 1 is greedy (default: as in the run's evaluation, or 4).
        length_penalty: length penalty, GNMT's alpha (default: as in the run's evaluation, or 0.6).
        temperature: sample at this temperature instead of beam search.
        seed: the seed of the samples.
        scores: return (text, score) pairs: the log probability divided by the length penalty, or for samples the mean
        log probability per token.
        source: language of the lines, such as en, for a model of several languages (default: the tokenizer's).
        target: language to translate into, such as de, for a model of several languages.

        Raises UserError for a model that is not a text encoder-decoder.
        """
        ...
    @overload
    def translate(
        self,
        lines: _translation.Texts,
        beam: int | None = ...,
        length_penalty: float | None = ...,
        n_best: None = ...,
        temperature: float | None = ...,
        seed: int | None = ...,
        scores: Literal[False] = ...,
        source: str | None = ...,
        target: str | None = ...,
    ) -> list[str]: ...
    @overload
    def translate(
        self,
        lines: str,
        beam: int | None = ...,
        length_penalty: float | None = ...,
        *,
        n_best: int,
        temperature: float | None = ...,
        seed: int | None = ...,
        scores: Literal[False] = ...,
        source: str | None = ...,
        target: str | None = ...,
    ) -> list[str]: ...
    @overload
    def translate(
        self,
        lines: _translation.Texts,
        beam: int | None = ...,
        length_penalty: float | None = ...,
        *,
        n_best: int,
        temperature: float | None = ...,
        seed: int | None = ...,
        scores: Literal[False] = ...,
        source: str | None = ...,
        target: str | None = ...,
    ) -> list[list[str]]: ...
    @overload
    def translate(
        self,
        lines: str,
        beam: int | None = ...,
        length_penalty: float | None = ...,
        n_best: int | None = ...,
        temperature: float | None = ...,
        seed: int | None = ...,
        *,
        scores: Literal[True],
        source: str | None = ...,
        target: str | None = ...,
    ) -> _translation.Scored: ...
    @overload
    def translate(
        self,
        lines: _translation.Texts,
        beam: int | None = ...,
        length_penalty: float | None = ...,
        n_best: int | None = ...,
        temperature: float | None = ...,
        seed: int | None = ...,
        *,
        scores: Literal[True],
        source: str | None = ...,
        target: str | None = ...,
    ) -> list[_translation.Scored]: ...
    @overload
    def translate(
        self,
        lines: str | _translation.Texts,
        beam: int | None = ...,
        length_penalty: float | None = ...,
        n_best: int | None = ...,
        temperature: float | None = ...,
        seed: int | None = ...,
        scores: bool = ...,
        source: str | None = ...,
        target: str | None = ...,
    ) -> str | list[str] | list[list[str]] | _translation.Scored | list[_translation.Scored]: ...
    @overload
    def caption(
        self, images: _image_text.Image, beam: int = ..., length_penalty: float = ..., n_best: None = ...
    ) -> str:
        """Caption an image, or each of several; with `n_best`, return a list of the best captions per image.

        Images are files or pixels, uint8 [height, width, 3].

        beam: beams per image; 1 is greedy.
        length_penalty: length penalty, GNMT's alpha.
        n_best: captions per image, best first.

        Raises UserError for a model that does not caption images.
        """
        ...
    @overload
    def caption(
        self, images: Iterable[_image_text.Image], beam: int = ..., length_penalty: float = ..., n_best: None = ...
    ) -> list[str]: ...
    @overload
    def caption(
        self, images: _image_text.Image, beam: int = ..., length_penalty: float = ..., *, n_best: int
    ) -> list[str]: ...
    @overload
    def caption(
        self, images: Iterable[_image_text.Image], beam: int = ..., length_penalty: float = ..., *, n_best: int
    ) -> list[list[str]]: ...
    @overload
    def caption(
        self,
        images: _image_text.Image | Iterable[_image_text.Image],
        beam: int = ...,
        length_penalty: float = ...,
        n_best: int | None = ...,
    ) -> str | list[str] | list[list[str]]: ...
    @overload
    def fill(self, text: str, top: int = ...) -> list[list[_masked.Candidate]]:
        """The `top` most probable tokens for each mask of a text, or of each of several.

        A mask is [MASK], <mask>, or the tokenizer's own mask token.

        top: number of words per mask, most probable first.
        """
        ...
    @overload
    def fill(self, text: _masked.Texts, top: int = ...) -> list[list[list[_masked.Candidate]]]: ...
    @overload
    def classify(
        self,
        items: _audio.Sound | _understanding.Text | _vision.Image,
        truncate: bool = ...,
        labels: Iterable[str] | None = ...,
        hypothesis: str = ...,
        multiple: bool = ...,
    ) -> _audio.Labels:
        """The probability of each label, most probable first, for a text, a text pair (a tuple), an image or an audio
        clip, or for each of several. A regression model returns its prediction as "value". A multi-label model
        predicts the labels whose probability reaches their `thresholds`.

        Images are files or pixels, uint8 [height, width, 3] or [height, width]. Audio is a file or samples at 16 kHz,
        [N].

        truncate: truncate text that is too long for the model, and use the middle of audio that is too long; otherwise
        both are errors.
        labels: choose from these labels instead of the model's classes. The model must have a class "entailment", as
        models for natural language inference have.
        hypothesis: sentence that a text entails if a label, which replaces {}, is right.
        multiple: several labels may be right, so each has an independent probability.

        Raises UserError for a model without classes.
        """
        ...
    @overload
    def classify(
        self,
        items: Iterable[_audio.Sound] | Iterable[_understanding.Text] | Iterable[_vision.Image],
        truncate: bool = ...,
        labels: Iterable[str] | None = ...,
        hypothesis: str = ...,
        multiple: bool = ...,
    ) -> list[_audio.Labels]: ...
    def rerank(
        self,
        query: str,
        documents: _understanding.Texts,
        top_n: int | None = None,
        truncate: bool = False,
        instruction: str | None = None,
    ) -> list[_understanding.RankedDocument]:
        """Rank documents by their relevance to a query with a cross-encoder or a reranking language model: at most `top_n`,
        most relevant first. Scores are from 0 to 1: the sigmoid of the output, or the output itself if the model's
        settings name Identity as the activation.

        truncate: truncate inputs that are too long for the model, the longer text first; otherwise they are errors.
        instruction: what makes a document relevant, for models whose prompt contains it, such as Qwen3-Reranker.

        Raises UserError for a model that does not have exactly one output.
        """
        ...
    def answer(
        self,
        question: str,
        context: str | _understanding.Texts,
        window: int = 384,
        stride: int | None = None,
        max_tokens: int = 15,
        allow_none: bool = False,
    ) -> _understanding.Answer | list[_understanding.Answer]:
        """Answer a question with a part of a context, or of each of several: its text, its characters from `start` to
        before `end`, and its score.

        window: number of tokens of the question and a part of a long context that the model reads at once.
        stride: number of tokens that successive parts share (default: half the window, at most 128).
        max_tokens: maximum number of tokens of an answer.
        allow_none: return an empty answer if the score for no answer is higher, as models for SQuAD 2 are trained to.
        """
        ...
    @overload
    def tag(self, texts: str, truncate: bool = ...) -> _understanding.TaggedWords:
        """The words, tags and entities of a text, or of each of several. Texts in a list may be lists of words.

        truncate: truncate text that is too long for the model.
        """
        ...
    @overload
    def tag(
        self, texts: Iterable[str | _understanding.Texts], truncate: bool = ...
    ) -> list[_understanding.TaggedWords]: ...
    def match(
        self,
        images: _image_text.Image | Iterable[_image_text.Image],
        texts: str | _image_text.Texts,
        templates: str | _image_text.Texts = (),
        truncate: bool = False,
    ) -> _image_text.Matches:
        """Match images (files or pixels) with texts: cosine similarities [N, M], and text probabilities for
        each image. A single image or a single text drops its axis.

        For zero-shot classification, pass the class names as texts and `templates` such as "a photo of a {}"; each
        class is then the mean vector of its filled templates. Raises UserError for a model without a joint space.

        truncate: truncate text that is too long for the model.
        """
        ...
    @overload
    def embed(
        self, items: str | _image_text.Image, truncate: bool = ..., prompt: str | None = ...
    ) -> Float[Tensor, "D"]:
        """A vector for a text or an image, Float[D], or for each of several, Float[N, D]. It has unit length, unless the
        model is a sentence encoder whose modules do not normalise.

        A model with a joint space for images and texts takes both; a string that is an image path stands
        for the image.

        truncate: truncate text that is too long for the model.
        prompt: name of a prompt of the model to put before each text, such as query or document.
        """
        ...
    @overload
    def embed(
        self, items: _image_text.Texts | Iterable[_image_text.Image], truncate: bool = ..., prompt: str | None = ...
    ) -> Float[Tensor, "N D"]: ...
    @overload
    def look(self, images: _vision.Image) -> _vision.ImageAttention:
        """The attention rollout over an image, or over each of several. `picture()` of the result draws it. Raises
        UserError for a model that does not take images.
        """
        ...
    @overload
    def look(self, images: Iterable[_vision.Image]) -> list[_vision.ImageAttention]: ...
    def act(
        self,
        observation: Any,
        history: Sequence[Any] = (),
        target_return: float | None = None,
        task: str | None = None,
        seed: int | None = None,
    ) -> int | np.ndarray:
        """Choose the next action of an episode: a choice, or numbers, in the environment's units.

        observation: the current observation: numbers, or for a robot the mapping that its policy takes.
        history: the earlier steps of the episode, oldest first, each an observation, an action and a reward.
        target_return: the return that a trajectory model aims for (default: the run's).
        task: the task of a multi-task robot.
        seed: seed of sampled actions, and of a diffusion policy's noise (default: 0).

        Raises UserError for an unsuitable observation, and for arguments of other kinds of models.
        """
        ...
    def move(
        self,
        position: str = "",
        moves: str | Iterable[str] = (),
        nodes: int = 100,
        temperature: float = 0.0,
        top: int = 5,
        seed: int | None = None,
    ) -> _chess.ChessMove:
        """Play a move in a game of chess. Returns it in UCI and SAN, with the probabilities of win, draw and loss for the
        side that moves, the most probable moves, and the game after it. Needs the extra `chess`.

        position: the position that the game starts from, as FEN (default: the start of chess).
        moves: the moves played since then, such as e2e4 or Nf3.
        nodes: positions to search; 0 plays without a search.
        temperature: sampling temperature; 0 plays the best move.
        top: number of most probable moves to return.
        seed: random seed of the sampled move.

        Raises UserError for an invalid position, an illegal move, and a finished game.
        """
        ...
    def forecast(self, data: _forecast.Data | None = None, steps: int | None = None) -> list[_forecast.Forecast]:
        """Quantiles of the next `steps` (None: the run's horizon) after each series of `data` (whatever `train` takes;
        None: the run's own).

        Beyond the horizon the model continues from its own medians, so its intervals are too narrow. Missing values
        raise an error or are filled, as in the run (`task.fill`). Raises UserError for a model that does not forecast,
        and for series that are too short or have a different time step.

        steps: steps to forecast (default: the run's horizon).
        """
        ...
    @overload
    def score(self, texts: str, sources: str | _text.Texts | None = ...) -> list[float]:
        """The log probability of each token of a text, or of each of several, in nats.

        A language model with a bos token also scores the first token. An encoder-decoder scores the tokens of a target
        and its eos token, given the source. Raises UserError for an encoder-decoder without `sources`.
        """
        ...
    @overload
    def score(self, texts: _text.Texts, sources: str | _text.Texts | None = ...) -> list[list[float]]: ...
    def attention(self, text: str, target: str | None = None) -> _text.Attention:
        """The attention weights over `text`; for an encoder-decoder also over `target` or its own translation.

        target: target text for a translation model (default: its own translation).
        """
        ...
    def lens(self, text: str, top: int = 5, neighbours: int = 0, target: str | None = None) -> _text.Lens:
        """What the model would predict at each token of `text` if its stack ended after each layer: the final norm and the
        head are applied to the layer's features (nostalgebraist 2020). The last layer is the model's own prediction.

        top: number of tokens per layer and position, most probable first; 100 at most.
        neighbours: number of nearest tokens by output embedding for each token of the text; 100 at most.
        target: target text for a translation model (default: its own translation), to whose tokens the predictions belong.

        Raises UserError for a model without a vocabulary, and for text that is empty or has more than 256 tokens.
        """
        ...
    def stream(
        self,
        prompt: str,
        max_new_tokens: int = 100,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        stop: str | _text.Texts = (),
        seed: int | None = None,
    ) -> Iterator[str]:
        """Stream the continuation of a prompt in chunks; a chunk never ends within a character. Takes the arguments
        of `generate`.
        """
        ...
