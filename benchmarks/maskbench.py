"""MaskBench's 11,305 real schemas through json_schema: no instance that is invalid may be written.

    python benchmarks/maskbench.py DATA      # maskbench/data of github.com/guidance-ai/jsonschemabench

Each instance is given to the rule of its schema byte by byte. Of each twentieth schema that is done token by token,
too, as GPT-2 cuts it, with the mask of each token computed. A valid instance whose keys have another order than
the grammar asks for is tried in that order (JSON objects have none), and counted apart.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from llguidance import LLMatcher

from headway.codecs import Codec, load_codec, train_codec
from headway.errors import UserError
from headway.generate.sampling import Rule
from headway.serve.grammar_compiler import answer
from headway.serve.schemas.matching import LIMITS, byte_tokenizer
from headway.serve.structured_outputs import rule_for
from json_schema import accepts
from measure import data_folder, write

TRIED = 3000  # parts of an instance that are tried in the search for the order of its keys
MASKED = 20  # one schema of so many has its masks computed


class Found(NamedTuple):
    """What comes of one schema."""

    name: str
    refused: str | None
    seconds: float
    counts: Counter[str]
    invalid_accepted: list[int]
    valid_refused: list[int]


@cache
def codecs(ranks: Path) -> tuple[Codec, Codec]:
    return train_codec("byte", ["any"]), load_codec(ranks)


def is_in_masks(rule: Rule, codec: Codec, text: str) -> bool:
    """Whether each token of a text is in the mask before it, and the end behind it."""
    mask = np.zeros(-(-codec.vocab_size // 32), np.int32)
    try:
        for token in (*codec.encode(text), codec.eos_id or 0):
            rule.fill(mask)
            if not mask[token // 32] >> token % 32 & 1:
                return False
            rule.take(token)
    except UserError:
        return False
    return True


def as_ordered(schema: Any, value: Any) -> Any:
    """A value with the keys of each object in the order of those `properties` that name most of them, and 2.0 as 2."""
    orders: list[dict[str, int]] = []

    def look(part: Any) -> None:
        if isinstance(part, dict):
            named, required = part.get("properties"), part.get("required")
            if isinstance(named, dict):
                keys = [*named, *(required if isinstance(required, list) else [])]
                orders.append({str(key): i for i, key in reversed(list(enumerate(keys)))})
        for each in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
            look(each)

    def ordered(part: Any) -> Any:
        if isinstance(part, dict):
            places = max(orders, key=lambda order: len(order.keys() & part.keys()), default={})
            return {key: ordered(part[key]) for key in sorted(part, key=lambda key: places.get(key, len(places)))}
        if isinstance(part, list):
            return [ordered(each) for each in part]
        return int(part) if isinstance(part, float) and part.is_integer() else part

    look(schema)
    return ordered(value)


def fits_in_some_order(schema: Any, value: Any) -> bool:
    """Whether an instance may be written with its keys in some order."""
    grammar = answer({"form": {"type": "json_schema", "schema": schema}, "symbols": 0})["grammar"]
    tried = 0

    def on(matcher: LLMatcher, text: str) -> Iterator[LLMatcher]:
        nonlocal tried
        tried += 1
        copy, raw = matcher.deep_copy(), text.encode()
        if tried <= TRIED and copy.try_consume_tokens([1 + byte for byte in raw]) == len(raw):
            yield copy

    def texts(matcher: LLMatcher, value: Any) -> Iterator[LLMatcher]:
        if isinstance(value, dict) and value:
            for begun in on(matcher, "{"):
                yield from members(begun, value, "")
        elif isinstance(value, list) and value:
            for begun in on(matcher, "["):
                yield from items(begun, value)
        else:
            yield from on(matcher, json.dumps(value, ensure_ascii=False))

    def members(matcher: LLMatcher, left: dict[str, Any], comma: str) -> Iterator[LLMatcher]:
        if not left:
            yield from on(matcher, "}")
        for name, each in left.items():
            for begun in on(matcher, f"{comma}{json.dumps(name, ensure_ascii=False)}: "):
                for told in texts(begun, each):
                    yield from members(told, {key: other for key, other in left.items() if key != name}, ", ")

    def items(matcher: LLMatcher, left: list[Any]) -> Iterator[LLMatcher]:
        for told in texts(matcher, left[0]):
            for begun in on(told, ", " if len(left) > 1 else "]"):
                if len(left) > 1:
                    yield from items(begun, left[1:])
                else:
                    yield begun

    start = LLMatcher(byte_tokenizer(), grammar, log_level=0, limits=LIMITS)
    return any(matcher.is_accepting() for matcher in texts(start, as_ordered(schema, value)))


def evaluate(ranks: Path, numbered: tuple[int, Path]) -> Found:
    number, file = numbered
    content = json.loads(file.read_text(encoding="utf-8"))
    of_bytes, of_tokens = codecs(ranks)
    form = {"type": "json_schema", "json_schema": {"schema": content["schema"]}}
    counts: Counter[str] = Counter(schemas=1)
    started = time.perf_counter()
    try:
        make = rule_for(of_bytes, form)
        by_tokens = rule_for(of_tokens, form) if number % MASKED == 0 else None
    except UserError as error:
        told = re.sub(r" at '.*?'(?=,)|'(?:[^'\\]|\\.)*'", "", str(error))
        return Found(file.stem, re.sub(r"[\d.,]*\d", "N", told), 0, counts, [], [])
    assert make is not None
    found = Found(file.stem, None, time.perf_counter() - started, counts, [], [])
    counts["taken"] += 1
    for i, test in enumerate(content["tests"]):
        text = json.dumps(test["data"], ensure_ascii=False)
        taken = accepts(make(), of_bytes, text)
        if by_tokens is not None:
            counts["instances_by_masks"] += 1
            counts["masks_that_differ"] += is_in_masks(by_tokens(), of_tokens, text) != taken
        if test["valid"]:
            counts["valid"] += 1
            counts["valid_as_given"] += taken
            if not taken and not fits_in_some_order(content["schema"], test["data"]):
                found.valid_refused.append(i)
        else:
            counts["invalid"] += 1
            compact = json.dumps(test["data"], ensure_ascii=False, separators=(",", ":"))
            if taken or accepts(make(), of_bytes, compact):
                found.invalid_accepted.append(i)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="the folder maskbench/data")
    parser.add_argument("--ranks", type=Path, default=data_folder() / "conformance/r50k_base.tiktoken")
    parser.add_argument("--every", type=int, default=1, help="evaluate one schema of so many (default: 1)")
    parser.add_argument("--workers", type=int, default=1, help="processes to use (default: 1)")
    arguments = parser.parse_args()
    files = list(enumerate(sorted(arguments.data.glob("*.json"))))[:: arguments.every]
    with ProcessPoolExecutor(arguments.workers) as pool:
        results = list(pool.map(partial(evaluate, arguments.ranks), files, chunksize=20))
    counts = sum((each.counts for each in results), Counter())
    seconds = [each.seconds for each in results if each.refused is None]
    times = {f"seconds_{share}": round(float(np.quantile(seconds, share / 100)), 4) for share in (50, 99, 100)}
    lists = {
        "invalid_accepted": [f"{each.name} {i}" for each in results for i in each.invalid_accepted],
        "valid_refused": [f"{each.name} {i}" for each in results for i in each.valid_refused],
        "refused_schemas": [each.name for each in results if each.refused is not None],
    }
    refused = Counter(each.refused for each in results if each.refused is not None)
    print(dict(counts), {name: len(each) for name, each in lists.items()}, times)
    write(
        "maskbench",
        {
            "versions": {"llguidance": version("llguidance")},
            **counts,
            **times,
            "refused": dict(refused.most_common()),
            **lists,
        },
    )


if __name__ == "__main__":
    main()
