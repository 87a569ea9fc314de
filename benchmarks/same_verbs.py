"""What `same_cases.py` calls on the model of each recipe: its verbs with fixed inputs."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

import headway as hw
from same_facts import Facts, digest
from samples import bars, chord, write_sound

LINE = "the first words of a text"
Calls = Mapping[str, Callable[[], Any]]


def image_files(folder: Path) -> list[str]:
    from PIL import Image

    paths = [folder / f"image-{index}.png" for index in range(3)]
    for path, image in zip(paths, bars(len(paths), seed=5)[0]):
        Image.fromarray(image).save(path)
    return [str(path) for path in paths]


def sound_file(folder: Path) -> str:
    path, random = folder / "sound.wav", np.random.default_rng(3)
    write_sound(path, np.concatenate([chord(number, random) for number in (1, 4)]))
    return str(path)


def text_calls(model: Any, folder: Path) -> Calls:
    ids = [[1, 2, 3, 4], [4, 3, 2, 1]]
    return {
        "logits": lambda: model.logits(torch.tensor(ids)),
        "score": lambda: model.score([LINE, "the"]),
        **generation_calls(model, folder),
    }


def generation_calls(model: Any, folder: Path) -> Calls:
    return {
        "generate": lambda: model.generate(["the", "a "], max_new_tokens=6, temperature=0.0),
        "sample": lambda: model.generate("the", max_new_tokens=6, temperature=1.0, seed=3),
        "penalty": lambda: model.generate(LINE, max_new_tokens=8, temperature=0.0, repetition_penalty=1.3),
        "nucleus": lambda: model.generate(["the", LINE], max_new_tokens=8, top_k=40, top_p=0.9, min_p=0.01, seed=5),
        "ids": lambda: model.generate_ids([1, 2, 3], max_new_tokens=5, temperature=0.0, ignore_end=True),
        "stream": lambda: list(model.stream("the", max_new_tokens=6, temperature=0.7, seed=1)),
        "logprobs": lambda: [
            (completion.ids, completion.text, completion.logprobs, completion.finish_reason)
            for completion in model.complete(["the", "ba"], hw.Sampling(seed=2), hw.Limits(max_new_tokens=6))
        ],
    }


def chat_calls(model: Any, folder: Path) -> Calls:
    messages = [{"role": "user", "content": "hello"}]
    return {
        **text_calls(model, folder),
        "chat": lambda: model.chat(messages, max_new_tokens=5, temperature=0.0),
        "chat_stream": lambda: list(model.chat_stream(messages, max_new_tokens=5, seed=4)),
    }


def translation_calls(model: Any, folder: Path) -> Calls:
    return {
        **beam_calls(model, folder),
        "score": lambda: model.score(["eb ab"], ["ba be"]),
        "attention": lambda: model.attention("ba be").maps,
    }


def beam_calls(model: Any, folder: Path) -> Calls:
    lines = ["ba be", "the first", "x"]
    return {
        "greedy": lambda: model.translate(lines, beam=1),
        "beam": lambda: model.translate(lines, beam=4),
        "best": lambda: model.translate("ba be", beam=3, n_best=2),
        "scores": lambda: model.translate(lines, beam=4, length_penalty=1.5, n_best=3, scores=True),
        "sample": lambda: model.translate(lines, temperature=0.8, seed=6),
    }


def caption_calls(model: Any, folder: Path) -> Calls:
    return {
        "caption": lambda: model.caption(image_files(folder)),
        "greedy": lambda: model.caption(image_files(folder), beam=1),
        "best": lambda: model.caption(image_files(folder)[0], beam=3, length_penalty=1.0, n_best=2),
    }


def transcription_calls(model: Any, folder: Path) -> Calls:
    return {
        "transcribe": lambda: model.transcribe(sound_file(folder)),
        "greedy": lambda: model.transcribe(sound_file(folder), beam=1),
    }


def classification_calls(model: Any, folder: Path) -> Calls:
    return {"classify": lambda: model.classify([LINE, "ba be"])}


def image_calls(model: Any, folder: Path) -> Calls:
    return {
        "classify": lambda: model.classify(image_files(folder)),
        "embed": lambda: model.embed(image_files(folder)),
        "look": lambda: model.look(image_files(folder)),
    }


def sound_calls(model: Any, folder: Path) -> Calls:
    return {"classify": lambda: model.classify([sound_file(folder)], truncate=True)}


def matching_calls(model: Any, folder: Path) -> Calls:
    return {
        "match": lambda: model.match(image_files(folder), ["one", "two"]),
        "embed": lambda: model.embed(image_files(folder)),
    }


def environment_calls(model: Any, folder: Path) -> Calls:
    return {"rollout": lambda: model.rollout(episodes=2)}


def agent_calls(model: Any, folder: Path) -> Calls:
    def actions() -> list[Any]:
        policy = model.policy(seed=3)
        size = 4 if "CartPole" in model.recipe.task.env else 3
        return [policy.select_action(np.linspace(-1, 1, size, dtype=np.float32) * step) for step in range(4)]

    return {
        **environment_calls(model, folder),
        "draw": lambda: model.rollout(episodes=2, seed=5, draw=True),
        "policy": actions,
    }


def robot_calls(model: Any, folder: Path) -> Calls:
    return {"policy": lambda: model.policy().predict_action_chunk({"state": np.array([0.25], dtype=np.float32)})}


CALLS: dict[str, Callable[[Any, Path], Calls]] = {
    "text": text_calls,
    "shakespeare": text_calls,
    "instruct": chat_calls,
    "preference": chat_calls,
    "masked": lambda model, folder: {"fill": lambda: model.fill("ba [MASK] be", top=3)},
    "translation": translation_calls,
    "pronounce": translation_calls,
    "multi30k-en-de": translation_calls,
    "multi30k-en-de-small": translation_calls,
    "tatoeba": translation_calls,
    "transformer-base-wmt": translation_calls,
    "classification": classification_calls,
    "banking77": classification_calls,
    "pairs": lambda model, folder: {"classify": lambda: model.classify([(LINE, "ba be")])},
    "tagging": lambda model, folder: {"tag": lambda: model.tag([LINE])},
    "embedding": lambda model, folder: {"embed": lambda: model.embed([LINE, "ba"])},
    "vision": image_calls,
    "fashion-mnist": image_calls,
    "digits": image_calls,
    "audio": sound_calls,
    "spoken-digits": sound_calls,
    "spoken-sequences": lambda model, folder: {"transcribe": lambda: model.transcribe(sound_file(folder))},
    "transcription": transcription_calls,
    "image-text": matching_calls,
    "emoji-clip": matching_calls,
    "caption": caption_calls,
    "emoji-caption": caption_calls,
    "scenes": caption_calls,
    "trajectories": lambda model, folder: {},  # played only in environments, which its data do not name
    "cartpole": environment_calls,
    "pendulum": environment_calls,
    "hopper": lambda model, folder: {},
    "ppo": agent_calls,
    "robotics": robot_calls,
    "metaworld": robot_calls,
    "forecast": lambda model, folder: {"forecast": model.forecast, "longer": lambda: model.forecast(steps=40)},
    "chess": lambda model, folder: {},  # `chess_facts` of same_programs.py plays
    "chess-searchless": lambda model, folder: {},
}


def call_facts(calls: Calls) -> Facts:
    """The digest of each call's result, or its error."""
    facts: Facts = {}
    for verb, call in calls.items():
        try:
            facts[verb] = digest(call())
        except Exception as error:
            traceback.print_exc()
            facts[verb] = {"error": f"{type(error).__name__}: {error}"}
    return facts


def model_facts(recipe: str, path: Path, folder: Path, **options: Any) -> Facts:
    """The digest of what each verb of a model returns."""
    return call_facts(CALLS[recipe](hw.load(path, **options), folder))
