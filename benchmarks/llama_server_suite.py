"""The tests of llama.cpp's own server, run unchanged against `headway serve` (llama_server_shim.py stands between).

    python benchmarks/llama_server_suite.py llama.cpp/tools/server/tests [FILE ...]

Files are names in tests/unit without test_ and .py; without any, all of FILES are run. What was found of other files
stays in the results. Two things are run that are switched off there: that known beginnings change no answer, and
(by the name `others`) that neither do those who are served at the same time, nor a draft.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from live import Servers
from llama_server_shim import take_over
from measure import RESULTS, write

FILES = (
    "basic", "completion", "chat_completion", "tokenize", "template", "security", "ctx_shift", "ignore_eos",
    "embedding", "rerank", "slot_save", "speculative", "tool_call", "others",
)  # fmt: skip
NOT_RUN = {
    "compat_anthropic": "the API of Anthropic is not served",
    "compat_gcp": "the API of Vertex AI is not served",
    "compat_oai_responses": "/v1/responses is not served",
    "infill": "needs a model that was taught to fill in code, and asks in llama.cpp's own way",
    "kv_keep_only_active": "of llama.cpp's slots, which keep their keys and values; there are none here",
    "lora": "adapters are chosen when a model is saved, not by a request",
    "mcp_servers": "of an agent in llama.cpp's server",
    "metrics": "of llama.cpp's own names of numbers; tests/unit/test_serve_app.py has ours",
    "proxy": "of a proxy in llama.cpp's server; nothing is ever fetched for a client here",
    "router": "of the files of llama.cpp's cache and its child processes; tests/unit/test_serve_models.py has ours",
    "sleep": "of llama.cpp's own state of sleep; --keep-alive lets a model go",
    "slow": "tests that are marked so need models of gigabytes",
    "stream": "of streams that are kept and read again under llama.cpp's own path",
    "tools_builtin": "of an agent in llama.cpp's server",
    "vision_api": "images in chats are not read",
}
# Tests that need a model that is not at hand; some would download it.
LEFT_OUT = {
    "test_load_split_model": "needs stories15M in three files",
    "test_local_media_file": "needs a model of images and texts that holds conversations",
    "test_slot_save_restore_(text|with)_|test_slot_save_restore_image|without_mmproj": "needs such a model, too",
}
SAMPLER = "expects the text that llama.cpp's sampler and its random numbers draw"
PAGES = "by default no web page may ask, and each that may is named by --cors; a preflight is answered with 204"
NO_SUCH = "this server has no such option: "
OF_ITS_OWN = "a field of llama.cpp's own: "
# Why a test does not pass, by its name; the first that is found counts. SAMPLER stands last in each file, so that
# nothing else hides behind it.
REASONS: tuple[tuple[str, str], ...] = (
    ("basic::test_server_multiple", NO_SUCH + "it listens at one address"),
    ("basic::test_server_props", "the model is a folder here, and no .gguf file"),
    ("basic::test_no_ui", NO_SUCH + "the page at / is always there"),
    ("basic::test_server_model_aliases", NO_SUCH + "a model has one name; a link gives another"),
    ("^completion::test_completion_response_fields", OF_ITS_OWN + "response_fields"),
    ("^completion::test_n_probs_post", OF_ITS_OWN + "post_sampling_probs; log probabilities are those of the model"),
    ("^completion::test_completion", SAMPLER),
    ("chat_completion::test_chat_completion.None.*not a chat template", "a template that writes no <s> gets none"),
    (
        "chat_completion::test_chat_completion.*user_prompt[89]",
        "parts of a message are joined as they are, without a line break",
    ),
    (
        "chat_completion::test_chat_completion_cached",
        "beginnings are known by whole blocks, not by single tokens",
    ),
    ("chat_completion::test_chat_template$", "a prompt is told as the template writes it, <s> without a space"),
    (
        "chat_completion::test_chat_template_assistant.*prefill1",
        "parts of a message are joined as they are, without a line break",
    ),
    (
        "chat_completion::test_completion_with_response_format.response_format1",
        "items as a list is of draft 4, and refused by name",
    ),
    (
        "chat_completion::test_invalid_chat_completion_req.messages7",
        "what follows on what is the template's affair; chatml takes two answers in a row",
    ),
    ("chat_completion::test_chat_completion_with_timings", OF_ITS_OWN + "times in an answer; /metrics has them"),
    ("chat_completion::test_return_progress", OF_ITS_OWN + "prompt_progress"),
    ("chat_completion::test_chat_completion", SAMPLER),
    ("template::test_date.*fireworks", "its template reads a list of functions that llama.cpp alone gives"),
    ("template::test_reasoning.*tools2", "calls of tools in this template's format are refused"),
    ("security::test_access_static", "the page at / is one file"),
    ("security::test_correct_api_key_anthropic", "a key is shown by Authorization alone"),
    ("security::test_cors_proxy", "nothing is ever fetched for a client"),
    ("security::test_cors", PAGES),
    ("ctx_shift::test_ctx_shift_enabled", "a text ends where the context is full: nothing is forgotten in silence"),
    ("ctx_shift::test_ctx_shift_disabled_long", "says it in other words, with the same status"),
    ("ctx_shift::test_ctx_shift_disabled_stream", SAMPLER + "; ours ends the story within the context"),
    ("embedding::test_embedding_mixed_input.-False", "an empty text has no vector, and is refused"),
    (
        "embedding::test_embedding_(mixed|content)",
        "texts, ids and objects are not mixed in the OpenAI API, and refused",
    ),
    ("embedding::test_embedding_pooling", NO_SUCH + "a model pools as it was trained to"),
    ("embedding::test_embedding_error", "says it in other words, with the same status"),
    ("rerank::test_rerank_usage", "counts the tokens of another model, which reads pairs; the shim ranks by vectors"),
    (
        "slot_save::",
        "keys and values are kept by what was read, not in slots that clients name; nothing of them is saved to files",
    ),
    ("speculative::test_(with_and|synth)", NO_SUCH + "guesses are neither counted in an answer nor made up"),
    ("speculative::test_with_ctx_shift", "a text ends where the context is full: nothing is forgotten in silence"),
    ("speculative::test_slot_ctx", "the tokenizer of stories260K makes more of the prompt than its context holds"),
    ("speculative::test_multi", "expects the text of another model, stories15M"),
)


class Recorder:
    """What became of each test."""

    def __init__(self) -> None:
        self.found: dict[str, dict[str, Any]] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            if reason := next((why for name, why in LEFT_OUT.items() if re.search(name, item.name)), None):
                item.add_marker(pytest.mark.skip(reason))
            if "test_cache_vs_nocache_prompt" in item.name:  # switched off there, and a law here
                item.own_markers = [mark for mark in item.own_markers if mark.name != "skip"]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = report.nodeid.removeprefix("unit/test_").replace(".py::", "::")
        if report.skipped:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            self.found[name] = {"outcome": "left out", "reason": reason.removeprefix("Skipped: ")}
        elif report.when == "call" or report.failed:
            self.found[name] = {"outcome": report.outcome}
            if report.failed:
                self.found[name]["said"] = _said(report)


def _said(report: pytest.TestReport) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    told = " ".join(str(getattr(crash, "message", report.longrepr)).split())
    return re.sub(r" at 0x[0-9a-f]+|/[^ ']*/tmp[^/ ']*", "", told)[:300]  # which differ from one run to the next


def opened(tests: Path) -> ModuleType:
    """The tests' own utils, under the name by which they import it."""
    sys.modules.setdefault("wget", ModuleType("wget"))  # nothing is downloaded
    spec = spec_from_file_location("utils", tests / "utils.py")
    assert spec is not None
    assert spec.loader is not None
    utils = sys.modules["utils"] = module_from_spec(spec)
    spec.loader.exec_module(utils)
    return utils


def beside_others(utils: ModuleType) -> dict[str, Any]:
    """The assertion that test_completion_parallel_slots has in a comment: slots change no answer. Six prompts say alone
    what they say together, by any number of slots.
    """
    prompts = [
        "Write a very long book.", "Write another a poem.", "What is LLM?", "The sky is blue and I love it.",
        "Write another very long music lyrics.", "Write a very long joke.",
    ]  # fmt: skip
    found = []
    for slots in (1, 2, 4, 6):
        server = utils.ServerPreset.tinyllama2()
        server.n_slots, server.n_ctx = slots, 256 * slots
        server.start()
        with ThreadPoolExecutor(6) as threads:
            found += [
                [written(server, prompt, 1.0) for prompt in prompts],
                list(threads.map(lambda prompt, server=server: written(server, prompt, 1.0), prompts)),
            ]
        server.stop()
    return _same(found, len(prompts), "in a comment there; run by this program")


def with_guesses(utils: ModuleType) -> dict[str, Any]:
    """What test_with_and_without_draft asks first, without its numbers of guesses: a draft changes no token."""
    prompts = ["I believe the meaning of life is", "Once upon a time", "Lily"]
    found = []
    for draft in (None, "stories260K"):
        server = utils.ServerPreset.tinyllama2()
        server.model_draft = draft
        server.start()
        found.append([written(server, prompt, 0.0) for prompt in prompts])
        server.stop()
    return _same(found, len(prompts), "the part of the test that counts no guesses, at temperature 0")


def written(server: Any, prompt: str, temperature: float) -> str:
    asked = {"prompt": prompt, "seed": 42, "temperature": temperature}
    return server.make_request("POST", "/completion", data=asked).body["content"]


def _same(found: list[list[str]], count: int, reason: str) -> dict[str, Any]:
    same = all(each == found[0] for each in found) and len(set(found[0])) == count
    return {"outcome": "passed" if same else "failed", "reason": reason}


def reasoned(found: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The results with the reason of each that did not pass."""
    for name, each in found.items():
        if each["outcome"] == "failed" and (reason := next((w for n, w in REASONS if re.search(n, name)), None)):
            each["reason"] = reason
    return dict(sorted(found.items()))


def run(tests: Path, files: list[str]) -> dict[str, dict[str, Any]]:
    recorder, utils = Recorder(), opened(tests)
    with tempfile.TemporaryDirectory() as folder:
        servers = Servers(Path(folder))
        take_over(utils, servers)
        os.chdir(tests)  # templates are named from there
        paths = [f"unit/test_{name}.py" for name in files if name != "others"]
        words = ["-c", "pytest.ini", "-p", "no:cacheprovider", "-q", "--tb=short", "-m", "not slow", *paths]
        try:
            if paths:
                pytest.main(words, plugins=[recorder])
            if "others" in files:
                recorder.found["others::test_completion_parallel_slots, its comment"] = beside_others(utils)
                recorder.found["others::test_with_and_without_draft, its texts"] = with_guesses(utils)
        finally:
            servers.close()
    return recorder.found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tests", type=Path)
    parser.add_argument("files", nargs="*", choices=[*FILES, []], metavar="FILE")
    args = parser.parse_args()
    files = args.files or list(FILES)
    place = RESULTS / "llama-server-suite.json"
    before = json.loads(place.read_text())["tests"] if place.exists() else {}
    found = {name: each for name, each in before.items() if name.partition("::")[0] not in files}
    found = reasoned({**found, **run(args.validation_ends.resolve(), files)})
    outcomes = [each["outcome"] for each in found.values()]
    counts = {outcome: outcomes.count(outcome) for outcome in ("passed", "failed", "left out")}
    write("llama-server-suite", {"counts": counts, "not_run": NOT_RUN, "tests": found})
    unknown = [name for name, each in found.items() if each["outcome"] != "passed" and "reason" not in each]
    print(counts, "without a reason:", *unknown, sep="\n")
    sys.exit(bool(unknown))


if __name__ == "__main__":
    main()
