"""What a form costs a step: the time of a processor that a rule takes for a symbol, at GPT-2's 50,257 symbols.

    python benchmarks/rules.py

The texts are cut into symbols by the tokenizer and given to the rule one by one; each is filled for and taken. That is
compared with steps of 5 ms, which a 135M Llama in int8 takes for one client, and of 12 ms, for eight.
"""

from __future__ import annotations

import json
import time
from importlib.metadata import version
from typing import Any

import numpy as np

from headway.codecs import TokenizerCodec
from headway.codecs.published_tokenizers import load_codec
from headway.serve.structured_outputs import rule_for
from measure import data_folder, write

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "born": {"type": "string", "format": "date"},
        "role": {"enum": ["author", "editor", "reader"]},
        "score": {"type": "number", "minimum": 0, "maximum": 1},
        "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 8},
        "friends": {"type": "array", "items": {"$ref": "#"}},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
ANN = {
    "name": "Ann of Green Gables",
    "age": 41,
    "born": "1983-02-28",
    "role": "editor",
    "score": 0.875,
    "tags": ["a long story about the sea", "poems", "naïve ☃"],
    "friends": [{"name": "Gilbert", "age": 43, "tags": []}],
}
FORMS = {
    "json_object": ({"type": "json_object"}, ANN),
    "json_schema": ({"type": "json_schema", "json_schema": {"schema": PERSON}}, ANN),
    "long strings": ({"type": "json_object"}, {"story": "Once upon a time there was a little girl. " * 20}),
    "regex": ({"type": "regex", "regex": "([A-Za-z ,.]+\n)+"}, "Once upon a time, there was a girl.\n" * 20),
}
STEPS = {"one client": (5.0, 1), "eight clients": (12.0, 8)}  # milliseconds of a step, and rules of one


def measured(codec: TokenizerCodec, form: dict[str, Any], value: Any) -> dict[str, Any]:
    """Microseconds of a processor a symbol, after a first answer in the form and in that one."""
    start = time.process_time()
    make = rule_for(codec, form)
    compiled = time.process_time() - start
    assert make is not None
    symbols = codec.encode(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
    mask = np.zeros(-(-codec.vocab_size // 32), np.int32)
    found: list[list[float]] = []
    for _ in range(6):
        rule, times = make(), []
        for symbol in symbols:
            start = time.perf_counter()
            rule.fill(mask)
            rule.take(symbol)
            times.append((time.perf_counter() - start) * 1e6)
        found.append(times)
    best = np.min(found, axis=0)  # of each symbol, as others run beside
    cost = float(np.mean(best))
    return {
        "symbols": len(symbols),
        "compiled_ms": round(compiled * 1e3, 1),
        "microseconds": round(cost, 1),
        "median_of_first_answer": round(float(np.median(found[0])), 1),
        "slowest_of_first_answer": round(float(np.max(found[0])), 1),
        **{name: round(step / (step + rules * cost / 1e3), 4) for name, (step, rules) in STEPS.items()},
    }


def main() -> None:
    codec = load_codec(data_folder() / "conformance/r50k_base.tiktoken")
    assert isinstance(codec, TokenizerCodec)
    start = time.process_time()
    rule_for(codec, {"type": "json_object"})
    first = time.process_time() - start
    results = {name: measured(codec, form, value) for name, (form, value) in FORMS.items()}
    for name, result in results.items():
        print(name, result)
    versions = {"llguidance": version("llguidance")}
    write(
        "rules",
        {"versions": versions, "symbols": codec.vocab_size, "first_form_seconds": round(first, 2), "forms": results},
    )


if __name__ == "__main__":
    main()
