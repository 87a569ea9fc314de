"""settings.md: every setting of every recipe, from the dataclasses."""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from headway import domains
from headway.config import shortcuts
from headway.data.splits import ClassSplitConfig, SplitConfig
from headway.learn import Recipe
from headway.learn.adapters import AdapterConfig
from headway.learn.optim import OptimConfig
from headway.learn.recipe import TrainConfig
from headway.learn.schedule import ScheduleConfig
from headway.learn.task import TaskConfig
from headway.nn.mixers import CrossAttentionConfig, MixerConfig
from headway.nn.mixers.recurrence import RecurrenceConfig
from headway.nn.models import ModelConfig, TransformerConfig
from headway.nn.models.agents import ObservationConfig
from headway.nn.models.block import BlockConfig
from headway.nn.models.captioner import ProjectorConfig
from headway.nn.models.chunks import ChunkHeadConfig
from headway.nn.models.embeds import EmbedConfig
from headway.nn.models.encoder_decoder import BridgeConfig
from headway.nn.models.heads import HeadConfig, TransformConfig
from headway.nn.models.stack import StackConfig
from headway.nn.models.unet_policy import KeypointsConfig, UNetConfig
from headway.nn.parts.bias import BiasConfig
from headway.nn.parts.feedforward import FeedForwardConfig
from headway.nn.parts.init import InitConfig
from headway.nn.parts.norm import NormConfig
from headway.nn.parts.positions import PositionsConfig, RotaryConfig, ScalingConfig
from headway.visibility import Pattern
from pages.fields import Field, anchor, describe, heading, kinds

HEAD = """# All settings

A setting is a path of names and a value: `--set train.steps=2000 optim.lr=0.003` in the shell,
`set={"train.steps": 2000, "optim.lr": 0.003}` in Python. An unknown name is refused with the nearest one that exists,
a value of another type with what it should be. [data.md](data.md) shows the most useful settings;
[minutes.md](minutes.md) says which are chosen for you.

- **Values** are JSON, or text where they are none: `true`, `none`, `0.1`, `[0.9, 0.95]`, `wsd`.
- **A kind** is chosen by its name, `model.mixer=lstm`, `schedule=cosine`, and with settings of its own as JSON:
  `'model.mixer={"kind": "lstm", "peepholes": true}'`. What is not named has its default.
- **Layers** are numbered from 0: `model.stack.blocks.0.mixer.heads=2` changes the first alone. An encoder-decoder has
  `model.encoder.stack` and `model.decoder.stack`.
- **Defaults** here are those of the parts. A recipe sets its own: the table of recipes has the main ones, and the
  `recipe.json` of a run all of them.

Contents: [recipes](#recipes) · [training](#training) · [optimisers](#optimisers) · [schedules](#schedules) ·
[adapters](#adapters) · [models](#models) · [layers](#layers) · [mixers](#mixers) ·
[parts of mixers and layers](#parts-of-mixers-and-layers) · [inputs](#inputs) · [outputs](#outputs) · [tasks](#tasks)

*This page is written by `python docs/reference.py` from the code.*
"""

# Of every family the heading, where its settings are found, and what is said of it.
FAMILIES: dict[type, str] = {
    OptimConfig: "`optim=KIND`, `optim.NAME`. The recipes for data of your own take `muon` or `adamw`.",
    ScheduleConfig: "`schedule=KIND`, `schedule.NAME`: what the learning rate is multiplied by, step by step.",
    AdapterConfig: "`--lora RANK` for a run that starts `--from` a model; `adapter.NAME` for the rest.",
    ModelConfig: "`model.NAME`. Of published models and presets all of it is known: `headway show NAME`.",
    MixerConfig: "`model.mixer=KIND` for all layers. More on each: [models.md](models.md), [history.md](history.md).",
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
    ChunkHeadConfig: "`model.head` of a policy that says chunks of actions.",
    TaskConfig: "`task.NAME`. The recipe decides the kind.",
}
PARTS = (Pattern, ScalingConfig, NormConfig, FeedForwardConfig, BiasConfig, PositionsConfig)


def page() -> str:
    """The whole page."""
    parts = [
        HEAD,
        _recipes(domains.recipes()),
        *_class(TrainConfig, "##", "`train.NAME`, the same in all recipes.", "Training"),
        *_family(OptimConfig, "##"),
        *_family(ScheduleConfig, "##"),
        *_family(AdapterConfig, "##"),
        *_family(ModelConfig, "##"),
        _shortcuts(),
        *_class(InitConfig, "###"),
        *_class(ProjectorConfig, "###"),
        *_class(KeypointsConfig, "###"),
        *_class(UNetConfig, "###"),
        *_family(BridgeConfig, "###"),
        "## Layers\n\n`model.stack`, and its blocks.\n",
        *_class(StackConfig, "###"),
        *_class(BlockConfig, "###"),
        *_class(CrossAttentionConfig, "###"),
        *_family(MixerConfig, "##", RecurrenceConfig),
        "## Parts of mixers and layers\n",
        *_class(RotaryConfig, "###"),
        *(part for base in PARTS for part in _family(base, "###")),
        *_family(EmbedConfig, "##"),
        *_family(ObservationConfig, "###"),
        *_family(HeadConfig, "##"),
        *_class(TransformConfig, "###"),
        *_family(ChunkHeadConfig, "###"),
        f"## Tasks\n\n{FAMILIES[TaskConfig]}\n",
        *_class(SplitConfig, "###"),
        *_class(ClassSplitConfig, "###"),
        *_tasks(),
    ]
    return "\n".join(parts).rstrip() + "\n"


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
    return "## Recipes\n\nWhat `headway recipes` lists, and what each is made of.\n\n" + "\n".join(rows) + "\n"


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
