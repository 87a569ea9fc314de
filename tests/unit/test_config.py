"""Configuration: strict keys, suggestions, and a dict that gives back the same config."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

import pytest

from headway import config, config_kinds, domains
from headway.config import dumps, from_dict, override, parse_settings, setting, to_dict
from headway.config_kinds import family, kinds, register
from headway.domains import recipe as find_recipe
from headway.domains.image_text.captioning import CaptionsConfig
from headway.domains.translation.task import PairsConfig
from headway.errors import ConfigError
from headway.learn.recipe import TrainConfig
from headway.nn.models.chunks import DiffusionConfig
from processes import Program


@family
@dataclass(frozen=True)
class Shape:
    pass


@register("square")
@dataclass(frozen=True)
class Square(Shape):
    side: float = 1.0


@register("circle")
@dataclass(frozen=True)
class Circle(Shape):
    radius: float = 1.0


@dataclass(frozen=True)
class Drawing:
    name: str
    shapes: tuple[Shape, ...] = ()
    main: Shape | None = None
    size: tuple[int, int] = (1, 2)
    mode: Literal["ink", "chalk"] = "ink"
    by_name: dict[str, Shape] = field(default_factory=dict)


@setting(Drawing, "count")
def _count(drawing: Drawing, value: object) -> Drawing:
    return Drawing(drawing.name, (Square(),) * int(str(value)))


def test_round_trip() -> None:
    drawing = Drawing("a", (Square(2.0), Circle()), Circle(3.0), (4, 5), "chalk", {"x": Square()})
    assert from_dict(Drawing, to_dict(drawing)) == drawing
    assert to_dict(drawing)["main"] == {"kind": "circle", "radius": 3.0}
    assert '"chalk"' in dumps(drawing)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"name": "a", "sizes": 1}, "no setting 'sizes'; did you mean 'size'"),
        ({"name": "a", "main": {"kind": "cirkle"}}, "did you mean 'circle'"),
        ({"name": "a", "main": {"kind": "circle", "side": 1}}, "Drawing.main has no setting 'side'"),
        ({"name": 3}, "Drawing.name is 3; use a string"),
        ({"name": "a", "size": [1]}, "use 2 values"),
        ({"name": "a", "size": [1, True]}, "use an integer"),
        ({"name": "a", "mode": "pen"}, "choose from: ink, chalk"),
        ({}, "incomplete"),
        ([], "a mapping of settings"),
    ],
)
def test_errors_name_the_place_and_the_remedy(data: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_dict(Drawing, data)


def test_override() -> None:
    drawing = Drawing("a", (Square(), Circle()), Square())
    changed = override(drawing, {"shapes.1.radius": 4, "main.side": 2, "name": "b", "main": "circle"})
    assert changed.shapes[1] == Circle(4.0)
    assert changed.main == Circle()
    assert override(drawing, {"count": 3}).shapes == (Square(),) * 3
    assert override(drawing, {"main": None}).main is None
    assert override(drawing, {"main.kind": "circle", "main.radius": 2}).main == Circle(2.0)
    assert override(drawing, {"main.side": 2, "main.kind": "square"}).main == Square(2.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"nam": "b"}, "did you mean 'name'"),
        ({"shapes.7.side": 1}, "not an index below 2"),
        ({"name.x": 1}, "nothing to set under"),
        ({"main.kind": "cirkle"}, "main.kind is 'cirkle'; did you mean 'circle'"),
        ({"main.radius": 1}, "no setting 'radius' here; did you mean|no setting 'radius' here; choose from: side"),
    ],
)
def test_override_refuses(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        override(Drawing("a", (Square(), Circle()), Square()), settings)


def test_command_line_values() -> None:
    read = parse_settings(["a.b=3", "c=x y", "d=[1,2]", "e=true", "f=none", "g=a=b"])
    assert read == {"a.b": 3, "c": "x y", "d": [1, 2], "e": True, "f": None, "g": "a=b"}
    with pytest.raises(ConfigError, match="has no '='"):
        parse_settings(["train.steps"])


def test_kinds_are_registered_once() -> None:
    assert set(kinds(Shape)) == {"square", "circle"}
    with pytest.raises(ConfigError, match="registered twice"):
        register("square")(type("Other", (Shape,), {}))


def test_settings_are_taken_together() -> None:
    from headway.domains import recipe

    vision = recipe("vision")
    both = {"model.size": 28, "model.embed.patch": [4, 4]}
    for settings in (both, dict(reversed(both.items()))):
        embed = override(vision, settings).model.embed  # type: ignore[attr-defined]
        assert (embed.size, embed.patch) == ((28, 28), (4, 4))
    conflicting = {"model.embed.stem": "linear", "model.size": 28, "model.embed.patch": [7, 7]}  # neither holds alone
    assert override(vision, conflicting).model.embed.patch == (7, 7)  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="do not split into 8 x 8 patches"):
        override(vision, {"model.size": 28})
    shares = {"task.split.validation": 0.5, "task.split.test": 0.4}
    assert override(override(vision, shares), {"task.split.test": 0.05, "task.split.validation": 0.9})
    with pytest.raises(ConfigError, match=r"take 1\.04 of the data"):
        override(vision, {"task.split.validation": 0.99})


def test_renamed_settings_are_read_under_both_names() -> None:
    """In recipe.json and in `--set`; classes in the table exist and have the new names."""
    domains.recipes()  # which registers all kinds
    known = {cls.__name__: cls for base in config_kinds.KINDS for cls in config_kinds.kinds(base).values()}
    known |= {
        "DiffusionConfig": DiffusionConfig,
        "TrainConfig": TrainConfig,
        "CaptionsConfig": CaptionsConfig,
        "PairsConfig": PairsConfig,
    }
    for name, names in config.RENAMED.items():
        assert {*names.values()} <= {f.name for f in fields(known[name])} | config.shortcuts(known[name]).keys()
    recipe = find_recipe("shakespeare")
    plain = config.to_dict(recipe)
    plain["model"]["symbols"] = plain["model"].pop("vocab_size") + 7
    plain["train"]["keep"] = plain["train"].pop("keep_checkpoints") + 2
    expected = override(recipe, {"model.vocab_size": recipe.model.vocab_size + 7, "train.keep_checkpoints": 4})
    assert config.from_dict(type(recipe), plain) == expected
    assert override(recipe, {"model.symbols": recipe.model.vocab_size + 7, "train.keep": 4}) == expected


def test_models_alone_register_the_scalings_of_positions(tmp_path: Path) -> None:
    """A run that was fine-tuned from a model with YaRN is opened without the readers of published models."""
    code = "import headway.nn.models; from headway.nn.parts.positions import ScalingConfig as S"
    code += "; from headway.config_kinds import kinds; print(*kinds(S))"
    found, err = Program(tmp_path, code).wait()
    assert {"yarn", "llama3", "longrope", "dynamic", "linear"} <= set(found.split()), err
