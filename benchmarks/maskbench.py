"""MaskBench's 11,305 real schemas through json_schema: no instance that is invalid may be written.

    python benchmarks/maskbench.py DATA      # maskbench/data of github.com/guidance-ai/jsonschemabench

Each instance is given to the rule of its schema token by token, as GPT-2's tokenizer cuts it; for the first valid and
the first invalid one of each tenth schema the mask of each token is computed too. A valid instance whose keys have
another order than the grammar asks for is tried in that order (JSON objects have none), and counted apart.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from headway.codecs import Codec, load_codec, train_codec
from headway.errors import UserError
from headway.generate.scheduler import Rule
from headway.serve.rules import rule_for
from json_schema import accepts
from measure import data_folder, write

TRIED = 2000  # beginnings of an instance that are tried in the search for the order of its keys
MASKED = 10  # one schema of so many has its masks computed


def compiled(codec: Codec, schema: Any) -> Callable[[], Rule]:
    make = rule_for(codec, {"type": "json_schema", "json_schema": {"schema": schema}})
    assert make is not None
    return make


def is_in_masks(rule: Rule, codec: Codec, text: str) -> bool:
    """Whether each token of a text is in the mask before it, and the end behind it."""
    mask = np.zeros(-(-codec.size // 32), np.int32)
    try:
        for token in (*codec.encode(text), codec.end or 0):
            rule.fill(mask)
            if not mask[token // 32] >> token % 32 & 1:
                return False
            rule.take(token)
    except UserError:
        return False
    return True


def as_ordered(schema: Any, value: Any) -> Any:
    """A value with its keys in the order in which the schema names them somewhere, and 2.0 as 2."""
    places: dict[str, int] = {}

    def look(part: Any) -> None:
        for name, each in part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ():
            if name in ("properties", "required") and isinstance(each, (dict, list)):
                for key in each:
                    places.setdefault(str(key), len(places))
            look(each)

    def ordered(part: Any) -> Any:
        if isinstance(part, dict):
            return {key: ordered(part[key]) for key in sorted(part, key=lambda key: places.get(key, len(places)))}
        if isinstance(part, list):
            return [ordered(each) for each in part]
        return int(part) if isinstance(part, float) and part.is_integer() else part

    look(schema)
    return ordered(value)


def fits_in_some_order(make: Callable[[], Rule], codec: Codec, value: Any) -> bool:
    """Whether an instance may be written with its keys in some order. `codec` writes bytes."""
    tried = 0

    def begins(text: str) -> bool:
        nonlocal tried
        tried += 1
        rule = make()
        try:
            for token in codec.encode(text):
                rule.take(token)
        except UserError:
            return False
        return tried <= TRIED

    def texts(before: str, value: Any) -> Iterator[str]:
        if isinstance(value, dict) and value:
            yield from members(before + "{", value)
        elif isinstance(value, list) and value:
            yield from items(before + "[", value)
        elif begins(text := before + json.dumps(value, ensure_ascii=False)):
            yield text

    def members(before: str, left: dict[str, Any]) -> Iterator[str]:
        if not left and begins(before + "}"):
            yield before + "}"
        for name, each in left.items():
            begun = f"{before}{'' if before.endswith('{') else ', '}{json.dumps(name, ensure_ascii=False)}: "
            if begins(begun):
                for text in texts(begun, each):
                    yield from members(text, {key: other for key, other in left.items() if key != name})

    def items(before: str, left: list[Any]) -> Iterator[str]:
        for text in texts(before, left[0]):
            if len(left) > 1:
                yield from items(text + ", ", left[1:])
            else:
                yield text + "]"

    return any(accepts(make(), codec, text) for text in texts("", value))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="the folder maskbench/data")
    parser.add_argument("--ranks", type=Path, default=data_folder() / "conformance/r50k_base.tiktoken")
    parser.add_argument("--every", type=int, default=1, help="evaluate one schema of so many (default: 1)")
    arguments = parser.parse_args()
    codec, of_bytes = load_codec(arguments.ranks), train_codec("byte", ["any"])
    counts: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    lists: dict[str, list[str]] = {"invalid_accepted": [], "valid_refused": [], "refused_schemas": []}
    seconds = []
    for file in sorted(arguments.data.glob("*.json"))[:: arguments.every]:
        found = json.loads(file.read_text(encoding="utf-8"))
        counts["schemas"] += 1
        started = time.perf_counter()
        try:
            make = compiled(codec, found["schema"])
        except UserError as error:
            told = re.sub(r" at '.*?'(?=,)|'(?:[^'\\]|\\.)*'", "", str(error))
            refused[re.sub(r"[\d.,]*\d", "N", told)] += 1
            lists["refused_schemas"].append(file.stem)
            continue
        seconds.append(time.perf_counter() - started)
        counts["taken"] += 1
        seen = set()
        for i, test in enumerate(found["tests"]):
            valid, text = test["valid"], json.dumps(test["data"], ensure_ascii=False)
            taken = accepts(make(), codec, text)
            if valid not in seen and counts["schemas"] % MASKED == 1:
                seen.add(valid)
                counts["instances_by_masks"] += 1
                counts["masks_that_differ"] += is_in_masks(make(), codec, text) != taken
            if valid:
                counts["valid"] += 1
                counts["valid_as_given"] += taken
                ordered = None if taken else as_ordered(found["schema"], test["data"])
                if not taken and not fits_in_some_order(compiled(of_bytes, found["schema"]), of_bytes, ordered):
                    lists["valid_refused"].append(f"{file.stem} {i}")
            else:
                counts["invalid"] += 1
                compact = json.dumps(test["data"], separators=(",", ":"))
                if taken or accepts(make(), codec, compact):
                    lists["invalid_accepted"].append(f"{file.stem} {i}")
    times = {f"seconds_{share}": round(float(np.quantile(seconds, share / 100)), 4) for share in (50, 99, 100)}
    print(dict(counts), {name: len(each) for name, each in lists.items()}, times)
    write("maskbench", {
        "versions": {"llguidance": version("llguidance")},
        **counts, **times, "refused": dict(refused.most_common()), **lists,
    })  # fmt: skip


if __name__ == "__main__":
    main()
