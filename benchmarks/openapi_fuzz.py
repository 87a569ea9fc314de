"""Requests that schemathesis makes of our own OpenAPI document, sent to a live `headway serve` on loopback.

    python benchmarks/openapi_fuzz.py --count 2000     # goes on where the results end; 50,000 are the whole

The server has stories260K with a chat template, all-MiniLM-L6-v2 and Whisper tiny.en, which the requests name.
Each operation of the document gets requests that fit its schema, and requests that do not, in rounds; the number of a
round is the seed of its requests. A fault is an
answer of 500 or above, none within a minute, or one whose status, type or body the document does not have. Requests
that the document allows and the server refuses (no such model, a conversation that no template takes) are counted, and
so are those that it forbids and the server takes.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS
from schemathesis.core.failures import Failure, FailureGroup

from live import TEMPLATES, Options, Servers, models_beside, owner
from measure import RESULTS, write

_NAME = "openapi-fuzz"
_EACH = 10  # requests of one kind for one operation in a round
_SECONDS = 60  # without an answer, which then counts as a hang
_CHECKS = (
    "not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance",
)  # fmt: skip
_MODELS, _FITTING = ("stories", "minilm", "whisper"), {"/embeddings": "minilm", "/audio/": "whisper"}
_FAULTS = 50  # of which the words are kept


class Results:
    """What came of all requests so far."""

    def __init__(self, before: dict[str, Any]) -> None:
        self.rounds = before.get("rounds", 0)
        self.statuses = Counter(before.get("statuses", {}))
        self.operations = Counter(before.get("operations", {}))
        self.taken = Counter(before.get("forbidden_and_taken", {}))
        self.refused = Counter(before.get("allowed_and_refused", {}))
        self.faults: list[dict[str, Any]] = before.get("faults", [])
        self.slowest: float = before.get("slowest_seconds", 0.0)

    def ask(self, case: Any, url: str, mode: GenerationMode, heads: dict[str, str]) -> None:
        named = f"{case.method} {case.operation.path}"
        self.operations[named] += 1
        if isinstance(case.body, dict) and isinstance(case.body.get("model", ""), str):
            fitting = next((model for path, model in _FITTING.items() if path in named), "stories")
            number = self.operations[named]
            case.body["model"] = fitting if number % 4 else _MODELS[number // 4 % 3]  # else hardly any finds one
        started = time.monotonic()
        try:
            answer = case.call(base_url=url, headers=heads, timeout=_SECONDS)
        except requests.RequestException as error:
            self.fault(case, named, f"no answer: {error}"[:300])
            return
        self.slowest = max(self.slowest, round(time.monotonic() - started, 2))
        self.statuses[str(answer.status_code)] += 1
        if mode is GenerationMode.NEGATIVE and answer.status_code == 200:
            self.taken[named] += 1
        if mode is GenerationMode.POSITIVE and answer.status_code == 400:
            self.refused[f"{named}: {answer.json()['error']['param']}"] += 1
        try:
            case.validate_response(answer, checks=CHECKS.get_by_names(list(_CHECKS)))
        except (FailureGroup, Failure) as error:
            told = getattr(error, "exceptions", [error])
            self.fault(case, named, "; ".join(f"{type(each).__name__}: {each}" for each in told)[:600])

    def fault(self, case: Any, named: str, why: str) -> None:
        if len(self.faults) < _FAULTS:
            self.faults.append(
                {"operation": named, "why": " ".join(why.split()), "asked": case.as_curl_command()[:600]}
            )

    def write(self) -> None:
        counts = {
            "requests": sum(self.operations.values()), "rounds": self.rounds, "faults": self.faults,
            "slowest_seconds": self.slowest, "statuses": dict(sorted(self.statuses.items())),
            "operations": dict(sorted(self.operations.items())), "forbidden_and_taken": dict(self.taken),
            "allowed_and_refused": dict(self.refused.most_common()),
        }  # fmt: skip
        write(_NAME, {"schemathesis": version("schemathesis"), **counts})


def fuzzed(results: Results, url: str, heads: dict[str, str], count: int) -> None:
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json", headers=heads)
    operations = [found.ok() for found in schema.get_all_operations()]
    end = sum(results.operations.values()) + count
    while sum(results.operations.values()) < end:
        for operation in operations:
            for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
                if mode is GenerationMode.POSITIVE or operation.method.upper() != "GET":  # nothing is wrong in these
                    asked(results, operation, mode, url, heads)
        results.rounds += 1
        results.write()


def asked(results: Results, operation: Any, mode: GenerationMode, url: str, heads: dict[str, str]) -> None:
    """The requests of one kind for one operation in this round."""

    @seed(results.rounds)
    @settings(
        max_examples=_EACH,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def one(case: Any) -> None:
        results.ask(case, url, mode, heads)

    one()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2000, metavar="N", help="requests beyond those of the results")
    args = parser.parse_args()
    place = RESULTS / f"{_NAME}.json"
    results = Results(json.loads(place.read_text()) if place.exists() else {})
    with tempfile.TemporaryDirectory() as folder:
        beside = models_beside(Path(folder))
        servers = Servers(Path(folder))
        try:
            running = servers.of(
                Options("stories", TEMPLATES["chatml"], 512, ("--models", str(beside)), None), "stories"
            )
            heads = {"Authorization": f"Bearer {owner(0)}"}
            fuzzed(results, f"http://127.0.0.1:{running.port}", heads, args.count)
        finally:
            servers.close()
    print(sum(results.operations.values()), "requests,", len(results.faults), "faults")
    sys.exit(bool(results.faults))


if __name__ == "__main__":
    main()
