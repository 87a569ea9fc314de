"""The JSON-Schema-Test-Suite (drafts 4 to 2020-12) through json_schema: no instance that is invalid may be written.

    python benchmarks/json_schema.py SUITE      # a checkout of github.com/json-schema-org/JSON-Schema-Test-Suite

Each instance is given to the rule of its schema, compact and indented, a byte at a time, and is accepted where it may
end there; invalid ones are tried with escapes, too. Schemas that are refused are counted by their reason; valid
instances that may not be written (keys in another order than the schema's, 1.0 for an integer) are listed. What is
optional, formats and patterns, is read alike.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from headway.codecs import Codec, train_codec
from headway.errors import UserError
from headway.generate.sampling import Rule
from headway.serve.structured_outputs import rule_for
from measure import write

DRAFTS = {
    "draft4": "http://json-schema.org/draft-04/schema#",
    "draft6": "http://json-schema.org/draft-06/schema#",
    "draft7": "http://json-schema.org/draft-07/schema#",
    "draft2019-09": "https://json-schema.org/draft/2019-09/schema",
    "draft2020-12": "https://json-schema.org/draft/2020-12/schema",
}


def accepts(rule: Rule, codec: Codec, text: str) -> bool:
    """Whether a text may be written and end there."""
    mask = np.zeros(-(-codec.vocab_size // 32), np.int32)
    try:
        for symbol in codec.encode(text):
            rule.take(symbol)
        rule.fill(mask)
    except UserError:
        return False
    end = codec.eos_id or 0
    return bool(mask[end // 32] >> end % 32 & 1)


def judge(codec: Codec, group: dict[str, Any], name: str, draft: str, found: dict[str, Any]) -> None:
    """Add what comes of one schema, which is of `draft` where it names no other, and its instances."""
    found["schemas"] += 1
    schema = group["schema"] if isinstance(group["schema"], bool) else {"$schema": DRAFTS[draft], **group["schema"]}
    try:
        make = rule_for(codec, {"type": "json_schema", "json_schema": {"schema": schema}})
    except UserError as error:
        found["refused"][re.sub(r" at '.*?'(?=,)", "", str(error))] += 1
        found["refused_schemas"].append(f"{name}: {group['description']}")
        return
    assert make is not None
    found["held"] += 1
    for test in group["tests"]:
        plain = {"ensure_ascii": False}
        styles = {**plain, "separators": (",", ":")}, {**plain, "indent": 2}, {"separators": (", ", ": ")}
        texts = [json.dumps(test["data"], **style) for style in styles if not test["valid"] or style is not styles[2]]
        taken = [accepts(make(), codec, text) for text in texts]
        found["valid" if test["valid"] else "invalid"] += 1
        where = f"{name}: {group['description']}: {test['description']}"
        if test["valid"]:
            found["valid_accepted"] += all(taken)
            if not all(taken):
                found["valid_not_accepted"].append(where)
        elif any(taken):
            found["invalid_accepted"].append(where)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("suite", type=Path, help="a checkout of the suite")
    suite = parser.parse_args().suite
    codec = train_codec("byte", ["any"])
    results: dict[str, dict[str, Any]] = {}
    for draft in DRAFTS:
        folder = suite / "tests" / draft
        for part in ("required", "optional"):
            files = sorted(folder.glob("*.json") if part == "required" else (folder / "optional").rglob("*.json"))
            counts = dict.fromkeys(("schemas", "held", "valid", "valid_accepted", "invalid"), 0)
            lists = {name: [] for name in ("invalid_accepted", "valid_not_accepted", "refused_schemas")}
            found: dict[str, Any] = {**counts, "refused": Counter(), **lists}
            for file in files:
                for group in json.loads(file.read_text(encoding="utf-8")):
                    judge(codec, group, str(file.relative_to(folder)), draft, found)
            found["refused"] = dict(found["refused"].most_common())
            results.setdefault(draft, {})[part] = found
            print(draft, part, {name: value for name, value in found.items() if isinstance(value, int)})
            print("\n".join(found["invalid_accepted"]) or "no invalid instance was accepted")
    commit = subprocess.run(["git", "-C", suite, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    versions = {"llguidance": version("llguidance"), "suite": commit or "not a checkout"}
    write("json-schema", {"versions": versions, **results})


if __name__ == "__main__":
    main()
