"""vLLM's tests of its API of completions and chats, run unchanged against `headway serve` (vllm_server_shim.py).

    python benchmarks/vllm_server_suite.py vllm-0.33.0 [-k EXPRESSION]

The argument is a checkout or an unpacked source distribution. Files are copied to a folder of their own, as the
conftest.py above them imports all of vLLM.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from measure import write
from vllm_server_shim import RemoteOpenAIServer, take_over

WITHIN = Path("tests/entrypoints")
FILES = (
    "openai/completion/test_completion.py", "openai/completion/test_prompt_validation.py",
    "openai/chat_completion/test_chat.py", "openai/chat_completion/test_chat_completion.py",
    "openai/chat_completion/test_chat_echo.py", "openai/chat_completion/test_chat_logit_bias_validation.py",
    "openai/chat_completion/test_logprob_token_ids.py",
    "openai/chat_completion/test_completion_with_function_calling.py", "openai/test_return_token_ids.py",
    "openai/test_return_tokens_as_ids.py", "openai/test_chunked_prompt.py",
)  # fmt: skip
NOT_RUN = {
    "audio, image and video tests": "messages of a chat are texts",
    "prompt embeds, LoRA resolvers, tensorizer": "of vLLM's own ways to pass and load weights",
    "test_serving_chat, test_*_error, *_validation": "of vLLM's own classes, with the engine replaced",
    "test_batched_chat_completions": "of an endpoint of vLLM's own",
    "test_enable_force_include_usage, test_root_path": "of vLLM's own options",
    "test_include_reasoning, test_thinking_token_budget": "of vLLM's parsers of reasoning, which is content here",
}
OTHER_MODEL = "needs a model that knows the answer; this one is random"
COUNTED = "counts the tokens of another model's tokenizer, of an answer that does not end early"
LAST_PART = "the last part of a stream has finish_reason alone, as OpenAI's has; vLLM sends it with the last text"
NO_IDS = "log probabilities are told of the likeliest tokens, and not of any ids"
NO_BEAMS = "served texts are sampled; there is no beam search"
ENDS = "token_ids have no end token, as the text has none"
WORDS = "is refused with the same status, in other words"
OWN_CLASSES = "is of vLLM's own classes, and asks no server anything"
# Tests that ask no server anything.
LEFT_OUT = {
    "test_load_prompt_embeds|test_disable_prompt_embeds|test_responses_api_logprobs": OWN_CLASSES,
    "test_(chat_)?completion_request_|test_null_top_logprobs": OWN_CLASSES,
}
# Why a test does not pass, by its name; the first that is found counts.
REASONS: tuple[tuple[str, str], ...] = (
    ("test_logprob_token_ids", NO_IDS),
    ("^completion::test_batch_completions", NO_BEAMS),
    ("prompt_validation::", WORDS),
    ("test_more_than_one_prompt_logprobs", "needs a model for which the third token of this prompt is the likeliest"),
    ("test_single_chat_session", COUNTED),
    ("test_chat_streaming|chat::test_chat_completion_stream_options", LAST_PART),
    ("test_structured_outputs_choice_chat$", "needs a model that chooses otherwise when it is told so"),
    ("test_response_format_json_(object|schema)|test_complex_message_content", OTHER_MODEL),
    ("test_extra_fields_allowed", "unknown fields of a message are refused by name, as they may be misspelt"),
    ("test_custom_role", "roles are those of the OpenAI API"),
    ("test_long_seed", "a seed is any whole number, so that none is out of range"),
    ("test_invocations", "the API of SageMaker is not served"),
    ("test_kv_transfer", "prefill and decoding are not divided among servers"),
    ("test_per_request_metrics", "times are in /metrics and in the log, and not in answers"),
    ("test_chat_session_with_echo.*test_case0", "answers do not repeat messages"),
    ("chat_echo::test_(prompt|top)_logprobs", "at most 20 log probabilities are told, of all tokens none"),
    ("test_chat_logit_bias_(invalid|multiple)", "names the first id that is wrong, and those that there are"),
    ("test_function_tool_use.*-auto-", OTHER_MODEL),
    ("test_function_tool_use\\[\\w+-True-", "reasoning is a part of the content"),
    ("test_named_tool_use", "needs a model that writes two names"),
    ("test_chat_completion_with_tool_use", OTHER_MODEL),
    ("test_chat_completion_with_emoji_and_token_ids", ENDS),
    ("return_tokens_as_ids::.*True", "is asked for by a request alone, by return_tokens_as_token_ids"),
)


class Recorder:
    """What became of each test."""

    def __init__(self) -> None:
        self.found: dict[str, dict[str, Any]] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            if reason := next((why for name, why in LEFT_OUT.items() if re.search(name, item.name)), None):
                item.add_marker(pytest.mark.skip(reason))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = re.sub(r"^.*/test_(\w+)\.py::", r"\1::", report.nodeid)
        if report.skipped:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            self.found[name] = {"outcome": "left out", "reason": reason.removeprefix("Skipped: ")}
        elif report.when == "call" or report.failed:
            self.found[name] = {"outcome": report.outcome}
            if report.failed:
                crash = getattr(report.longrepr, "reprcrash", None)
                said = " ".join(str(getattr(crash, "message", report.longrepr)).split())
                said = re.sub(r"req-[0-9a-f]{24}|'created': \d+| at 0x[0-9a-f]+|/[^ ']*/tmp[^/ ']*", "", said)
                self.found[name]["said"] = said[:300]


def copied(checkout: Path, folder: Path) -> list[str]:
    """The tests in a folder of their own, and their paths there."""
    for name in ("openai/conftest.py", "conftest.py", *FILES):
        source, target = checkout / WITHIN / name, folder / WITHIN / name
        if source.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
    for place in [folder / "tests", *(path for path in (folder / "tests").rglob("*") if path.is_dir())]:
        (place / "__init__.py").touch()
    (folder / "tests" / "utils.py").write_text(
        "from vllm_server_shim import RemoteOpenAIServer\n\nROCM_EXTRA_ARGS: list[str] = []\n"
    )
    return [str(WITHIN / name) for name in FILES if (checkout / WITHIN / name).exists()]


def run(checkout: Path, words: list[str]) -> dict[str, dict[str, Any]]:
    recorder = Recorder()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        paths = copied(checkout, folder)
        take_over(folder)
        os.chdir(folder)
        sys.path.insert(0, str(folder))
        settings = ["-p", "no:cacheprovider", "-q", "--tb=short", "-c", os.devnull, "--rootdir", place]
        try:
            pytest.main([*settings, *words, *paths], plugins=[recorder])
        finally:
            RemoteOpenAIServer.close()
    return recorder.found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkout", type=Path)
    parser.add_argument(
        "-k", metavar="EXPRESSION", help="run only the tests that pytest selects by this; nothing is saved"
    )
    args = parser.parse_args()
    found = run(args.checkout.resolve(), ["-k", args.k] if args.k else [])
    for name, each in found.items():
        if each["outcome"] == "failed" and (reason := next((w for n, w in REASONS if re.search(n, name)), None)):
            each["reason"] = reason
    outcomes = [each["outcome"] for each in found.values()]
    counts = {outcome: outcomes.count(outcome) for outcome in ("passed", "failed", "left out")}
    if not args.k:
        version = re.sub(r"^vllm-?", "", args.checkout.resolve().name)
        write(
            "vllm-server-suite",
            {"vllm": version, "counts": counts, "not_run": NOT_RUN, "tests": dict(sorted(found.items()))},
        )
    unknown = [
        f"{name}: {each.get('said')}"
        for name, each in found.items()
        if each["outcome"] == "failed" and "reason" not in each
    ]
    print(counts, "without a reason:", *unknown, sep="\n")
    sys.exit(bool(unknown))


if __name__ == "__main__":
    main()
