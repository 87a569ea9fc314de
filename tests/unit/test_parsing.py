"""JSON that others wrote: a key twice in an object is refused wherever a file is read."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headway.codecs.published_tokenizers import read_without_model
from headway.codecs.tokenizer_files import read_object
from headway.config import parse_settings
from headway.data.input_files import File
from headway.data.lerobot import read_json as read_notes
from headway.data.table_files import read_json_lines
from headway.errors import UserError
from headway.io.durable import read_json
from headway.io.json_files import DuplicateKeyError, parse_json
from headway.learn.run import read_metrics
from package_trees import nodes, trees


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-32"])
def test_json_is_read_as_the_standard_library_has_it(encoding: str) -> None:
    data = {"a": [1, 2.5, None, True, {"b": "\u00e9\ud83d"}], "c": {}, "d": "x" * 99}
    text = json.dumps(data)
    assert parse_json(text) == parse_json(text.encode(encoding)) == data
    assert parse_json("3") == 3
    for wrong in ("", "{", "[1,]", "nan", '{"a" 1}'):
        with pytest.raises(ValueError, match=r"\S"):
            parse_json(wrong)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": 1, "a": 2}', r"the key 'a' twice \(1 and 2\)"),
        ('{"a": 1, "b": 0, "a": 1}', r"the key 'a' twice \(1 and 1\)"),
        ('[{"x": {"a": {}, "\\u0061": [3]}}]', r"the key 'a' twice \({...} and \[...\]\)"),
        (json.dumps({"b": "x" * 99})[:-1] + ', "b": "y"}', r"\('x{39}\.\.\. and 'y'\)"),
    ],
)
def test_a_key_that_is_there_twice_is_named_with_both_values(text: str, said: str) -> None:
    with pytest.raises(DuplicateKeyError, match=said):
        parse_json(text)


READERS: dict[str, Callable[[Path], Any]] = {
    "config.json": read_json,
    "tokenizer_config.json": read_object,
    "info.json": read_notes,
    "a.jsonl": lambda path: list(read_json_lines(File(path))),
    "metrics.jsonl": lambda path: list(read_metrics(path)),
}


@pytest.mark.parametrize("name", READERS)
def test_files_with_a_key_twice_are_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text('{"step": 1, "label": "a", "label": "b"}\n')
    with pytest.raises(UserError, match=rf"{name}.*the key 'label' twice \('a' and 'b'\)") as told:
        READERS[name](tmp_path / name)
    assert len(str(told.value).splitlines()) == 1


def test_a_tokenizer_and_a_setting_with_a_key_twice_are_refused() -> None:
    with pytest.raises(ValueError, match="the key 'type' twice"):
        read_without_model('{"normalizer": {"type": "NFC", "type": "NFD"}, "model": {}}')
    with pytest.raises(UserError, match="has the key 'test' twice"):
        parse_settings(['task.split={"test": 0.1, "test": 0.2}'])


# What the same program wrote, or a model said, or a server of ours answered; a header that names its tensor.
OWN = {
    "app/cli/compare.py",
    "app/cli/doctor.py",
    "app/cli/open.py",
    "app/remote.py",
    "bench/benchmark.py",
    "bench/measurement.py",
    "codecs/mask_tokens.py",
    "codecs/tokenizer.py",
    "codecs/tokenizer_limits.py",
    "io/helper.py",
    "io/lease.py",
    "rewards/scorer.py",
    "rewards/scoring.py",
    "codecs/tokenizer_training.py",
    "data/array_store.py",
    "domains/masked/fill.py",
    "formats/gguf/tokens.py",
    "formats/onnx.py",
    "formats/published.py",
    "formats/stored_tensors.py",
    "formats/tensorfile.py",
    "learn/parallel/equality.py",
    "learn/parallel/group.py",
    "learn/parallel/heartbeat.py",
    "learn/parallel/processes.py",
    "learn/token_shards.py",
    "serve/play.py",
    "serve/tool_call_syntax.py",
    "serve/tool_calls.py",
    "serve/unique_items.py",
    "serve/responses.py",
    "serve/structured_outputs.py",
    "serve/tools.py",
}


def test_what_is_received_is_read_by_one_reader() -> None:
    found = set()
    for place, tree in trees().items():
        calls = (node.func for node in nodes(tree) if isinstance(node, ast.Call))
        loads = (call for call in calls if isinstance(call, ast.Attribute) and call.attr in ("load", "loads"))
        if any(ast.unparse(call) in ("json.loads", "json.load") for call in loads):
            found.add(place)
    assert found <= OWN
