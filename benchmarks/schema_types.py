"""Sixty types of Zod, pydantic and OpenAI's libraries: their schemas through json_schema, with values of either kind.

    npm install zod openai                                   # in a folder of its own
    python benchmarks/schema_types.py FOLDER                 # that folder

Each library is asked itself which values it takes. A type is right where all of its schema's good values may be written
and none of its bad ones.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
from datetime import date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from importlib.metadata import version
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import UUID

from openai import pydantic_function_tool
from openai.lib._pydantic import to_strict_json_schema
from pydantic import AnyUrl, BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError

from headway.codecs import train_codec
from headway.errors import UserError
from headway.serve.structured_outputs import rule_for
from json_schema import accepts
from measure import write


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Step(BaseModel):
    model_config = ConfigDict(extra="forbid")
    explanation: str
    output: str


class Solution(BaseModel):
    steps: list[Step]
    answer: str
    colour: Colour | None


class Tree(BaseModel):
    value: int
    children: list[Tree] = []


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int = Field(ge=0, le=9)


class Dog(BaseModel):
    kind: Literal["dog"]
    name: str = "Rex"


class House(BaseModel):
    pet: Annotated[Cat | Dog, Field(discriminator="kind")]
    tags: set[str] = set()
    where: Path | None = None


STEP = {"explanation": "a", "output": "b"}
SOLUTION = {"steps": [STEP], "answer": "b", "colour": "red"}
SOLUTIONS = [SOLUTION, {**SOLUTION, "colour": None}], [{**SOLUTION, "colour": "green"}, {"steps": [{}]}, {}]
TYPES: dict[str, tuple[Any, list[Any], list[Any]]] = {
    "pydantic: str": (str, ["a"], [1]),
    "pydantic: bytes": (bytes, ["abc"], [[1]]),
    "pydantic: pattern": (Annotated[str, StringConstraints(pattern=r"^\d{3}$")], ["123"], ["12"]),
    "pydantic: decimal": (Decimal, [1.5, "1.5"], [[], None]),
    "pydantic: date": (date, ["2024-02-29"], ["2023-02-30"]),
    "pydantic: datetime": (datetime, ["2024-02-29T10:00:00Z"], ["yesterday"]),
    "pydantic: timedelta": (timedelta, ["P1D", "PT5M"], ["a day"]),
    "pydantic: UUID": (UUID, ["123e4567-e89b-42d3-a456-426614174000"], ["123"]),
    "pydantic: Path": (Path, ["/a/b"], [1]),
    "pydantic: IPv4Address": (IPv4Address, ["10.0.0.1"], ["10.0.0.256"]),
    "pydantic: IPv6Address": (IPv6Address, ["fe80::1"], ["fe80"]),
    "pydantic: AnyUrl": (AnyUrl, ["https://example.org/a"], ["a b"]),
    "pydantic: set": (set[int], [[1, 2], []], [["a"]]),
    "pydantic: frozenset of an enum": (frozenset[Colour], [["red", "blue"]], [["green"]]),
    "pydantic: tuple": (tuple[int, str], [[1, "a"]], [[1], [1, 2], [1, "a", 3]]),
    "pydantic: dict of ints": (dict[int, str], [{"1": "a"}], [{"1": 2}]),
    "pydantic: dict of two": (Annotated[dict[str, int], Field(min_length=2)], [{"a": 1, "b": 2}], [{"a": 1}, {}]),
    "pydantic: model": (Tree, [{"value": 1, "children": [{"value": 2}]}], [{"children": []}, {"value": "x"}]),
    "pydantic: union of models": (
        House,
        [{"pet": {"kind": "cat", "lives": 9}}],
        [{"pet": {"kind": "cat", "lives": 10}}],
    ),
    "pydantic: a list of models": (list[Step], [[STEP]], [[{}], [{**STEP, "more": 1}]]),
}
STRICT: dict[str, tuple[Any, Any, list[Any], list[Any]]] = {
    "openai (python): response format": (Solution, to_strict_json_schema(Solution), *SOLUTIONS),
    "openai (python): function": (Solution, pydantic_function_tool(Solution)["function"]["parameters"], *SOLUTIONS),  # type: ignore[typeddict-item]
    "openai (python): recursion": (
        Tree,
        to_strict_json_schema(Tree),
        [{"value": 1, "children": [{"value": 2, "children": []}]}],
        [{"value": "x", "children": []}],
    ),
}


def of_python() -> list[dict[str, Any]]:
    """Types of pydantic, with what it takes itself."""
    found = []
    every = {name: (of, TypeAdapter(of).json_schema(), good, bad) for name, (of, good, bad) in TYPES.items()}
    for name, (of, schema, good, bad) in {**every, **STRICT}.items():
        for values, wanted in ((good, True), (bad, False)):
            for value in values:
                try:
                    TypeAdapter(of).validate_json(json.dumps(value))
                    taken = True
                except ValidationError:
                    taken = False
                if taken is not wanted:
                    raise SystemExit(f"{name} of pydantic does not judge {value} so")
        found.append({"name": name, "schema": schema, "good": good, "bad": bad})
    return found


def of_node(folder: Path) -> list[dict[str, Any]]:
    script = shutil.copy(Path(__file__).with_suffix(".mjs"), folder)
    return json.loads(subprocess.run(["node", script], stdout=subprocess.PIPE, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where npm has installed zod and openai")
    folder = parser.parse_args().folder
    codec = train_codec("byte", ["any"])
    wrong: dict[str, Any] = {}
    types = [*of_node(folder), *of_python()]
    for each in types:
        try:
            make = rule_for(codec, {"type": "json_schema", "json_schema": {"schema": each["schema"]}})
        except UserError as error:
            wrong[each["name"]] = str(error)
            continue
        assert make is not None
        taken = {True: [], False: []}
        for wanted in (True, False):
            for value in each["good" if wanted else "bad"]:
                taken[wanted].append(accepts(make(), codec, json.dumps(value)))
        if not all(taken[True]) or any(taken[False]):
            wrong[each["name"]] = taken
    packages = {
        name: json.loads((folder / "node_modules" / name / "package.json").read_text())["version"]
        for name in ("zod", "openai")
    }
    print(f"{len(types) - len(wrong)} of {len(types)} types are taken and right", wrong)
    versions = {**packages, "pydantic": version("pydantic"), "openai (python)": version("openai")}
    write("schema-types", {"versions": versions, "types": len(types), "right": len(types) - len(wrong), "wrong": wrong})


if __name__ == "__main__":
    main()
