"""A model card: the README.md of an exported model. Everything comes from the run; what is unknown is stated so."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from headway.app.runs import read_recipe
from headway.config import dumps, from_dict, to_dict
from headway.data.registry import KNOWN_SETS, set_of
from headway.domains import scale_of
from headway.errors import UserError, printable
from headway.formats.open import OpenedModel
from headway.formats.usage import read_usage
from headway.io.files import open_file
from headway.io.hub import HUB_PREFIX
from headway.learn import Recipe
from headway.learn.run import RunDirectory
from headway.learn.run_report import notes, repeat_command, scores
from headway.nn.models import describe, kinds

CARD = "README.md"
_MAX_CARD = 1 << 20  # bytes of a published card, which is copied
_MAX_LABELS = 100  # classes that a card lists
_FOLDERS = re.compile(r"(?<![\w:/.])/(?:[^\s/]+/)+")  # of a path within a sentence; not of a URL
_MARKUP = re.compile(r"([\\`*_{}\[\]<>#|!~])")
_LIBRARIES = {"hf": "transformers", "gguf": "gguf", "onnx": "onnx"}


class _Use(NamedTuple):
    """How a kind of model is used: the hub's name of the task, and the arguments after the model in a shell and in
    Python.
    """

    kind: Any  # a predicate of `kinds`
    task: str | None
    verb: str
    shell: str
    python: str


_TEXT = '"Some text."'
_QUESTION = '--question "Who wrote it?" "Ada wrote it."'
_USES = (
    _Use(kinds.is_translator, "translation", "translate", _TEXT, _TEXT),
    _Use(kinds.is_transcriber, "automatic-speech-recognition", "transcribe", "speech.wav", '"speech.wav"'),
    _Use(kinds.is_captioner, "image-to-text", "caption", "photo.jpg", '"photo.jpg"'),
    _Use(kinds.is_two_tower, "zero-shot-image-classification", "match", "--image photo.jpg --text cat dog",
         '"photo.jpg", ["cat", "dog"]'),
    _Use(kinds.is_masked, "fill-mask", "fill", '"Some [MASK]."', '"Some [MASK]."'),
    _Use(kinds.is_answerer, "question-answering", "answer", _QUESTION, '"Who wrote it?", "Ada wrote it."'),
    _Use(kinds.is_tagger, "token-classification", "tag", "< lines.txt", _TEXT),
    _Use(kinds.is_cross_encoder, "text-ranking", "rerank", '--query "a query" < texts.txt', '"a query", ["A text."]'),
    _Use(kinds.is_text_classifier, "text-classification", "classify", _TEXT, _TEXT),
    _Use(kinds.is_vision_classifier, "image-classification", "classify", "photo.jpg", '"photo.jpg"'),
    _Use(kinds.is_audio_classifier, "audio-classification", "classify", "sound.wav", '"sound.wav"'),
    _Use(kinds.is_causal, "text-generation", "generate", '--prompt "Some text"', '"Some text"'),
    _Use(kinds.is_text, "feature-extraction", "embed", "< lines.txt", _TEXT),
    _Use(kinds.is_robot, "robotics", "rollout", "", ""),
    _Use(kinds.is_trajectories, "reinforcement-learning", "rollout", "", ""),
)  # fmt: skip


def model_card(opened: OpenedModel, source: Path, out: Path, target_format: str) -> str:
    """The card of the run or model at `source` for its export `out`. The card of a published model is kept."""
    if (kept := _published_card(source)) is not None:
        return kept
    run = RunDirectory(source)
    if run.exists():
        recipe = from_dict(Recipe, _without_paths(to_dict(read_recipe(run.recipe))))
        status = _without_paths(run.read_status())
    else:
        recipe, status = None, {}
    config: Any = opened.model.config
    use = next((entry for entry in _USES if entry.kind(config)), None)
    header = {
        "license": "unknown",
        "library_name": _LIBRARIES[target_format],
        **({"pipeline_tag": use.task} if use is not None and use.task else {}),
        **({"base_model": recipe.start.removeprefix(HUB_PREFIX)} if recipe and recipe.start else {}),
        "tags": ["headway", *([recipe.name] if recipe else [])],
    }
    name = _escape(source.resolve().name)
    figures = scores(status.get("scores") or {}, status.get("best") or {}, f"nats per {status.get('unit', 'token')}")
    remarks = [_escape(text).replace("\\`", "`") for text in notes((), {**status, "step": 0})]
    parts = {
        "": [
            f"# {name}",
            *([_escape(recipe.description)] if recipe and scale_of(recipe.name) is None else []),
            f"It is {kinds.kind_of(config)} with {describe(config)['parameters']:,} parameters, made with headway.",
        ],
        "How to use it": _how(use, out),
        "Data": _data(recipe, status),
        "Training": _training(recipe, status),
        "Evaluation": [_table(figures), *remarks] if figures else ["It was not evaluated, so its figures are unknown."],
        "Limits": _limits(recipe, status, opened, source),
        "Environment": _environment(status),
    }
    lines = ["---", *(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in header.items()), "---"]
    for title, paragraphs in parts.items():
        lines += [*(["", f"## {title}"] if title else []), *(line for text in paragraphs for line in ("", text))]
    return "\n".join(lines) + "\n"


def _published_card(source: Path) -> str | None:
    """The card of a published model's folder; None if there is none."""
    path = source / CARD
    if path.is_symlink() and path.resolve().parent.name != "blobs":  # but for the hub's cache, it may be a private file
        return None
    try:
        with open_file(path) as file:
            content = file.read(_MAX_CARD + 1)
        return content.decode() if len(content) <= _MAX_CARD else None
    except (UserError, UnicodeDecodeError):
        return None


def _without_paths(value: Any) -> Any:
    """A JSON value with the names of files instead of their paths on this machine."""
    if isinstance(value, dict):
        return {key: _without_paths(part) for key, part in value.items()}
    if isinstance(value, list):
        return list(map(_without_paths, value))
    if not isinstance(value, str):
        return value
    if not os.path.isabs(value):
        return _FOLDERS.sub("", value)
    known = set_of(value)
    return Path(value).name if known is None else known.name


def _how(use: _Use | None, out: Path) -> list[str]:
    if use is None:
        return ["How it is used is unknown."]
    folder = shlex.quote(out.name)
    shell = f"headway {use.verb} {folder} {use.shell}".strip()
    python = f"import headway as hw\n\nmodel = hw.load({json.dumps(out.name)})\nprint(model.{use.verb}({use.python}))"
    return [f"```sh\n{shell}\n```", f"```python\n{python}\n```"]


def _data(recipe: Recipe | None, status: Mapping[str, Any]) -> list[str]:
    if recipe is None:
        return ["The training data and their licence are unknown."]
    lines = []
    for name in dict.fromkeys(recipe.data):
        if (known := KNOWN_SETS.get(name)) is not None:
            lines.append(
                f"- {name}: {known.description}; {known.counts}. Licence: {known.licence}. Source: {known.url}"
            )
        else:
            lines.append(f"- {_escape(name)}: a local file or folder. Licence and source: unknown.")
    if not recipe.data:
        lines.append("- generated by headway while it trained")
    recorded = status.get("data") or {}
    counts = {name: value for name, value in recorded.items() if isinstance(value, int) and name != "version"}
    digests = {name: value for name, value in recorded.items() if isinstance(value, str)}
    facts = [f"{value:,} {name}" for name, value in counts.items()]
    return [
        "\n".join(lines),
        *([f"Samples: {_escape(', '.join(facts))}."] if facts else []),
        *([f"Digests of the data: {_escape(', '.join(f'{k} {v}' for k, v in digests.items()))}."] if digests else []),
        "The licence of the model is for its publisher to choose; the licences of the data may limit the choice.",
    ]


def _training(recipe: Recipe | None, status: Mapping[str, Any]) -> list[str]:
    if recipe is None:
        return ["How it was trained is unknown."]
    sentences = [_escape(text) for text in notes(recipe.reasons, {**status, "scores": None, "samples": None})]
    base = [f"It started from {_escape(recipe.start)}."] if recipe.start else []
    command = repeat_command(Path(recipe.name), status)
    return [
        f"Recipe: {_escape(recipe.name)}.",
        *base,
        *(["\n".join(f"- {text}" for text in sentences)] if sentences else []),
        f"To repeat it, store the recipe below as {_escape(recipe.name)}/recipe.json next to the data, and run:",
        f"```sh\n{command}\n```",
        f"<details><summary>recipe.json</summary>\n\n```json\n{dumps(recipe).strip()}\n```\n\n</details>",
    ]


def _limits(recipe: Recipe | None, status: Mapping[str, Any], opened: OpenedModel, source: Path) -> list[str]:
    split = (status.get("scores") or {}).get("split")
    lines = [
        f"It was tested on the {split} split of the data above, and on nothing else. How it does on other data, "
        "in other domains or languages is unknown."
        if split
        else "What it was tested on is unknown.",
        "Bias, safety and private data in its output were not tested.",
        "The languages of its data are not recorded, so they are unknown here.",
    ]
    rows = getattr(getattr(recipe, "task", None), "context", None)
    config: Any = opened.model.config
    context = getattr(config, "context", None)
    if rows:
        lines.append(f"It was trained on at most {rows:,} tokens at once; longer inputs were not tested.")
    elif context:
        lines.append(f"It reads at most {context:,} tokens.")
    labels = opened.usage.labels or (read_usage(source).labels if source.is_dir() else ())
    if labels:
        shown = ", ".join(map(_escape, labels[:_MAX_LABELS]))
        more = f" and {len(labels) - _MAX_LABELS:,} more" if len(labels) > _MAX_LABELS else ""
        lines.append(f"It knows only these {len(labels):,} classes: {shown}{more}.")
    return ["\n".join(f"- {line}" for line in lines)]


def _environment(status: Mapping[str, Any]) -> list[str]:
    facts = {
        **(status.get("machine") or {}),
        **{name: status.get(name) for name in ("device", "threads", "precision", "python")},
        **(status.get("packages") or {}),
    }
    rows = [{"what": name, "value": str(value)} for name, value in facts.items() if value is not None]
    return [_table(rows)] if rows else ["Where it was trained is unknown."]


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    def line(cells: Iterable[Any]) -> str:
        return "| " + " | ".join("" if cell is None else _escape(str(cell)) for cell in cells) + " |"

    return "\n".join([line(rows[0]), line("---" for _ in rows[0]), *(line(row.values()) for row in rows)])


def _escape(text: str) -> str:
    """A string as plain text in Markdown, on one line."""
    return _MARKUP.sub(r"\\\1", printable(" ".join(text.split())))
