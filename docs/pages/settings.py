"""Recipes and settings: every setting of every recipe, from the dataclasses."""

from __future__ import annotations

import dataclasses
import inspect
import os
import re
import sys
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from headway import domains
from headway.config import shortcuts
from headway.data.splits import ClassSplitConfig, SplitConfig
from headway.learn import Recipe, TaskConfig
from headway.learn.adapters import AdapterConfig
from headway.learn.objectives.masked_patches import HidingConfig
from headway.learn.optim import OptimConfig
from headway.learn.recipe import ParallelConfig, TrainConfig
from headway.learn.schedule import ScheduleConfig
from headway.nn.mixers import CrossAttentionConfig, MixerConfig
from headway.nn.mixers.recurrence import RecurrenceConfig
from headway.nn.models import ModelConfig, TransformerConfig
from headway.nn.models.agents import ObservationConfig
from headway.nn.models.block import BlockConfig, ConvolutionConfig
from headway.nn.models.captioner import ProjectorConfig
from headway.nn.models.chunks import ChunkHeadConfig
from headway.nn.models.embeds import EmbedConfig
from headway.nn.models.encoder_decoder import BridgeConfig
from headway.nn.models.heads import HeadConfig, TransformConfig
from headway.nn.models.stack import BiasConfig, StackConfig
from headway.nn.models.unet_policy import KeypointsConfig, UNetConfig
from headway.nn.parts.feedforward import FeedForwardConfig
from headway.nn.parts.init import InitConfig
from headway.nn.parts.norm import NormConfig
from headway.nn.parts.positions import PositionsConfig, RotaryConfig, ScalingConfig
from headway.visibility import Pattern
from pages.fields import Field, anchor, describe, heading, kinds

GENERATED = "*`python docs/reference.py` writes this page from the code.*"

HEAD = """# Settings

A setting is a path of names and a value: `--set train.steps=2000 optim.lr=0.003` in the shell,
`set={"train.steps": 2000, "optim.lr": 0.003}` in Python. An error names the nearest setting for an unknown name, and the
type that a setting takes for a value of another type. [Your data](../../guides/data.md) shows the most useful settings;
[how minutes choose](../../explanation/minutes.md) lists those that are chosen for you.

- **Values** are JSON or plain text: `true`, `none`, `0.1`, `[0.9, 0.95]`, `wsd`.
- **Kinds** are chosen by name: `model.mixer=lstm`, `schedule=cosine`. Pass JSON to set a kind and its own settings at once:
  `'model.mixer={"kind": "lstm", "peepholes": true}'`. Other settings of that kind keep their defaults.
- **Layers** are numbered from 0: `model.stack.blocks.0.mixer.heads=2` changes the first layer only. An encoder-decoder has
  `model.encoder.stack` and `model.decoder.stack`.
- **Defaults** on these pages are those of each part. Recipes override some: [recipes](../recipes.md) lists the main ones, and the
  `recipe.json` of a run contains all of them.

| page | settings | when to change them |
|---|---|---|
"""
# The pages in the order of the index: file name, title, settings, when to change them.
PAGES = (
    (
        "training",
        "Training",
        "`train.*`, `parallel.*`",
        "to change the length of a run, batches, precision, how often it evaluates, or how processes share it",
    ),
    ("optimisers", "Optimisers and schedules", "`optim.*`, `schedule.*`", "if the loss diverges or falls too slowly"),
    ("adapters", "Adapters", "`adapter.*`", "to fine-tune a large model with few trained weights"),
    ("models", "Models", "`model.*`", "to set the size of a model, or how its parts are joined"),
    ("layers", "Layers", "`model.stack.*`", "to change one layer, or where norms and residuals are"),
    ("mixers", "Mixers", "`model.mixer`, `mixer.*`", "to compare attention, recurrent layers and fast weights"),
    (
        "parts",
        "Parts of mixers and layers",
        "`pattern`, `rotary`, `norm`, `feed_forward`, ...",
        "to change positions, norms or masks",
    ),
    ("inputs", "Inputs", "`model.embed.*`", "to change how tokens, pixels or frames become vectors"),
    ("outputs", "Outputs", "`model.heads.*`", "to change pooling or the output layer"),
    ("tasks", "Tasks", "`task.*`", "to name columns, choose labels, splits, augmentation and metrics"),
)

RECIPES = f"""# Recipes

`headway recipes` lists the recipes that `headway train` takes by name. The [benchmarks](../benchmarks/index.md) have their measured scores and
times. Recipes such as `text` and `vision` are for your own data: with `--minutes` they choose their size and steps.

{GENERATED}

"""

# Of every family the heading, where its settings are found, and what is said of it.
FAMILIES: dict[type, str] = {
    OptimConfig: "`optim=KIND`, `optim.NAME`. The recipes for data of your own take `muon` or `adamw`.",
    ScheduleConfig: "`schedule=KIND`, `schedule.NAME`: what the learning rate is multiplied by, step by step.",
    AdapterConfig: "`--lora RANK` for a run that starts `--from` a model; `adapter.NAME` for the rest.",
    ModelConfig: "`model.NAME`. Of published models and presets all of it is known: `headway show NAME`.",
    MixerConfig: "`model.mixer=KIND` for all layers. More on each: [models](../../guides/models.md), [history](../../explanation/history.md).",
    Pattern: "Who may see whom: `pattern` of attention.",
    ScalingConfig: "`scaling` of rotary positions, for contexts longer than those of training.",
    NormConfig: "",
    FeedForwardConfig: "`feed_forward` of a block.",
    BiasConfig: "`biases` of a stack, which attention uses by name.",
    PositionsConfig: "`positions` of an embedding.",
    BridgeConfig: "`model.bridge` of an encoder-decoder.",
    EmbedConfig: "`model.embed`. The data decide the kind.",
    ObservationConfig: "`states` of trajectories: how a state becomes a vector.",
    HeadConfig: "`model.heads`, by name. The task decides the kind.",
    ChunkHeadConfig: "`model.head` of a policy that predicts chunks of actions.",
    TaskConfig: "`task.NAME`. The recipe decides the kind.",
}
PARTS = (Pattern, ScalingConfig, NormConfig, FeedForwardConfig, BiasConfig, PositionsConfig)


def pages() -> dict[str, str]:
    """All pages, by their path below docs; links lead to the page on which a heading is."""
    written = {"reference/recipes.md": _recipes(domains.recipes())}  # which registers all kinds
    sections = {
        "training": (
            *_class(TrainConfig, "##", "`train.NAME`, the same in all recipes.", "Training"),
            *_class(
                ParallelConfig, "##", "`parallel.NAME`, for [several processes](../../guides/gpus.md).", "Processes"
            ),
        ),
        "optimisers": (*_family(OptimConfig, "##"), *_family(ScheduleConfig, "##")),
        "adapters": _family(AdapterConfig, "##"),
        "models": (
            *_family(ModelConfig, "##"),
            _shortcuts(),
            *_class(InitConfig, "###"),
            *_class(ProjectorConfig, "###"),
            *_class(KeypointsConfig, "###"),
            *_class(UNetConfig, "###"),
            *_family(BridgeConfig, "###"),
        ),
        "layers": (
            "## Stacks and blocks\n\n`model.stack`, and its blocks.\n",
            *_class(StackConfig, "###"),
            *_class(BlockConfig, "###"),
            *_class(ConvolutionConfig, "###"),
            *_class(CrossAttentionConfig, "###"),
        ),
        "mixers": _family(MixerConfig, "##", RecurrenceConfig),
        "parts": (*_class(RotaryConfig, "##"), *(part for base in PARTS for part in _family(base, "##"))),
        "inputs": (*_family(EmbedConfig, "##"), *_family(ObservationConfig, "###")),
        "outputs": (*_family(HeadConfig, "##"), *_class(TransformConfig, "###"), *_family(ChunkHeadConfig, "###")),
        "tasks": (
            f"## Tasks\n\n{FAMILIES[TaskConfig]}\n",
            *_class(SplitConfig, "###"),
            *_class(ClassSplitConfig, "###"),
            *_class(HidingConfig, "###"),
            *_tasks(),
        ),
    }
    index = HEAD
    for name, title, settings, when in PAGES:
        written[f"reference/settings/{name}.md"] = f"# {title}\n\n{GENERATED}\n\n" + "\n".join(sections[name])
        index += f"| [{title}]({name}.md) | {settings} | {when} |\n"
    written["reference/settings/index.md"] = f"{index}\n{GENERATED}"
    return _linked(written)


def _linked(written: dict[str, str]) -> dict[str, str]:
    """Pages whose links to headings name the page that has them."""
    home = {
        anchor(line.lstrip("# ").strip()): path
        for path, text in written.items()
        for line in text.splitlines()
        if line.startswith("#")
    }

    def linked(path: str, text: str) -> str:
        def target(match: re.Match[str]) -> str:
            other = home[match[1]]
            return (
                f"](#{match[1]})" if other == path else f"]({os.path.relpath(other, os.path.dirname(path))}#{match[1]})"
            )

        return re.sub(r"\]\(#([\w-]+)\)", target, text).rstrip() + "\n"

    return {path: linked(path, text) for path, text in written.items()}


def _recipes(known: dict[str, Recipe]) -> str:
    rows = ["| recipe | model | width x layers | task | optimiser | schedule | batch | steps |", "|---" * 8 + "|"]
    for name, recipe in known.items():
        train = recipe.train
        batch = f"{train.batch_tokens:,} tokens" if train.batch_tokens else f"{train.batch_size or 0:,}"
        times = f" x {train.accumulate}" if train.accumulate > 1 else ""
        rows.append(
            f"| `{name}` | {_kind(recipe.model)} | {_size(recipe.model)} | {_kind(recipe.task)} | "
            f"{recipe.optim.kind} {recipe.optim.lr:g} | {recipe.schedule.kind} | {batch}{times} | {train.steps:,} |"  # type: ignore[attr-defined]
        )
    return RECIPES + "\n".join(rows) + "\n"


def _kind(config: Any) -> str:
    return f"[{config.kind}](#{anchor(heading(type(config)))})"


def _size(model: Any) -> str:
    """Width and layers of each of a model's stacks."""
    parts = [getattr(model, f.name) for f in dataclasses.fields(model) if f.name != "posterior"]
    whole = [part for part in parts if isinstance(part, TransformerConfig)] or [model]
    stacks = [part.stack for part in whole if hasattr(part, "stack")] or [
        p for p in parts if isinstance(p, StackConfig)
    ]
    widths = dict.fromkeys(part.width for part in whole)
    return f"{' + '.join(map(str, widths))} x {' + '.join(str(len(stack.blocks)) for stack in stacks)}"


def _class(cls: type, depth: str, said: str = "", name: str = "", above: type | None = None) -> Iterator[str]:
    """A heading, what the class is, and a table of its fields; those of `above`, one of its bases, stand elsewhere."""
    found = describe(cls, above)
    yield f"{depth} {name or heading(cls)}\n"
    prose = [text for text in [said, _built(cls), *map(_escaped, found.prose)] if text]
    if prose:
        yield "\n\n".join(prose) + "\n"
    if found.fields:
        yield table(found.fields) + "\n"


def table(found: list[Field]) -> str:
    """Fields, a row each."""
    rows = [f"| `{f.name}` | {f.type} | {f.default} | {_escaped(f.meaning)} |" for f in found]
    return "\n".join(["| setting | type | default | meaning |", "|---|---|---|---|", *rows])


def _escaped(text: str) -> str:
    """Text as markdown, in which stars, lines and angles outside of code are letters."""
    pieces = text.split("`")
    for place in range(0, len(pieces), 2):
        pieces[place] = re.sub(r"([*_|<])", r"\\\1", pieces[place])
    return "`".join(pieces)


def _built(cls: type) -> str:
    """What the docs of the module that a mixer's or norm's config builds say first: its equation or its paper."""
    module = getattr(sys.modules[cls.__module__], cls.__name__.removesuffix("Config"), None)
    if module is cls or module is None or not issubclass(cls, (MixerConfig, NormConfig)):
        return ""
    return _escaped(" ".join((inspect.getdoc(module) or "").split("\n\n")[0].split()))


def _family(base: type, depth: str, shared: type | None = None) -> Iterator[str]:
    """All kinds of a family; what its base class or the class `shared` gives to several of them stands once, above."""
    found = kinds(base)
    yield f"{depth} {heading(base)}\n"
    yield f"{FAMILIES[base] or describe(base).prose[0]}\n"
    if dataclasses.fields(base):
        yield f"All have:\n\n{table(describe(base).fields)}\n"
    if shared is not None:
        yield _in_common(shared, found)
    for _, cls in sorted(found.items()):
        yield from _class(cls, f"{depth}#", above=shared if shared and issubclass(cls, shared) else base)


def _in_common(shared: type, found: Mapping[str, type], above: type | None = None) -> str:
    members = ", ".join(f"`{name}`" for name, cls in sorted(found.items()) if issubclass(cls, shared))
    prose = describe(shared, above).prose
    text = f"\n\n{_escaped(' '.join(prose))}" if prose else ""
    return f"**{members}** have in common:{text}\n\n{table(describe(shared, above).fields)}\n"


def _shortcuts() -> str:
    """The settings that are no fields, and which models have them."""
    found = kinds(ModelConfig)
    rows: dict[str, list[str]] = {}
    for name, cls in sorted(found.items()):
        for shortcut in shortcuts(cls):
            rows.setdefault(shortcut, []).append(name)
    lines = ["| setting | models | meaning |", "|---|---|---|"]
    for shortcut, models in sorted(rows.items()):
        setters = [shortcuts(found[name]).get(shortcut) for name in ("transformer", *models)]
        docs = [inspect.getdoc(setter) for setter in setters if inspect.isfunction(setter)]
        said = " ".join(next((doc for doc in docs if doc), "").split()).rstrip(".")
        where = "all" if len(models) == len(found) else ", ".join(models)
        lines.append(f"| `model.{shortcut}` | {where} | {_escaped(said)} |")
    head = "### For a whole model at once\n\nThey change every layer, and both sides where there are two.\n\n"
    return head + "\n".join(lines) + "\n"


def _tasks() -> Iterator[str]:
    """The tasks of each domain: what several have in common, each of them, and what they hold."""
    by_domain: dict[str, dict[str, type]] = {}
    for name, cls in sorted(kinds(TaskConfig).items(), key=lambda item: item[1].__module__.split(".")[2]):
        by_domain.setdefault(cls.__module__.split(".")[2], {})[name] = cls
    for found in by_domain.values():
        bases = {base for cls in found.values() for base in _above(cls) if base not in found.values()}
        for base in sorted(bases, key=lambda base: (len(base.__mro__), base.__name__)):
            yield _in_common(base, found, next(iter(_above(base)), None))
        for _, cls in sorted(found.items(), key=lambda item: (len(item[1].__mro__), item[0])):
            parent = next(iter(_above(cls)), None)
            more = (
                f"All settings of [{heading(parent)}](#{anchor(heading(parent))}), and:"
                if parent in found.values()
                else ""
            )
            yield from _class(cls, "###", more, above=parent)
        held = {hint: None for cls in found.values() for hint in typing.get_type_hints(cls).values() if _is_own(hint)}
        for cls in held:
            yield from _class(cls, "###")


def _above(cls: type) -> list[type]:
    """The dataclasses that a task's config inherits from, the nearest first."""
    return [base for base in cls.__mro__[1:] if dataclasses.is_dataclass(base) and base is not TaskConfig]


def _is_own(hint: Any) -> bool:
    return dataclasses.is_dataclass(hint) and hint.__module__.startswith("headway.domains.")
