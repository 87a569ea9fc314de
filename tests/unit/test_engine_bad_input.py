"""Damaged and strange input to the engine: a clear error, and never a wrong token."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from generate_models import language_model
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from headway.app.cli import main as cli
from headway.engine import Engine, PackedTensor, load_quantised, quantise, save_quantised
from headway.errors import UserError
from headway.formats import native
from headway.generate import GREEDY, Limits, Sampling, Session

Tensors = dict[str, Tensor]
Header = dict[str, str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One model as it is and in int8."""
    place, model = tmp_path_factory.mktemp("models"), language_model(context=16)
    native.save_model(model, model.config, place / "plain")
    save_quantised(quantise(model, "int8"), "int8", place / "int8")
    return place


def config(**settings: Any) -> Callable[[Tensors, Header], object]:
    def change(tensors: Tensors, header: Header) -> None:
        header["config"] = json.dumps({**json.loads(header["config"]), **settings})

    return change


def put(name: str, value: float) -> Callable[[Tensors, Header], object]:
    def change(tensors: Tensors, header: Header) -> None:
        tensors[name].view(-1)[3] = value

    return change


BOTH = [
    (lambda t, h: h.update(config="{"), "no configuration in its header"),
    (lambda t, h: h.pop("config"), "no configuration in its header"),
    (config(symbols=10**12), "more than .* bytes can hold"),
    (config(width=-4), "do not describe a valid model"),
    (config(symbols=24), r"\(24, 16\)|configuration needs"),  # in the tiles of a quantised file there is room for 24
    (lambda t, h: h.update(version="99"), "version 99"),
    (lambda t, h: t.pop("embed.positions.table"), r"lacks tensor 'embed\.positions\.table'"),
    (lambda t, h: t.update(more=torch.ones(2)), "has tensor 'more', which the model lacks"),
]
QUANTISED = [
    (lambda t, h: h.update(weights="int4"), "do not match int4 weights of"),
    (lambda t, h: h.update(weights="int9"), "weights in 'int9'"),
    (lambda t, h: h.update(group="32"), "groups of 32"),
    (lambda t, h: t.pop("embed.table.scales"), "and their scales"),
    (lambda t, h: t.update({"stack.norm.weight.codes": t.pop("stack.norm.weight")}), "only matrices are quantized"),
    (put("embed.table.scales", math.nan), "a scale that is NaN or infinite"),
    (put("embed.positions.table", math.inf), r"embed\.positions\.table' contains NaN or infinity"),
]
CASES = [("plain", native.FILE, *case) for case in BOTH] + [
    ("int8", native.QUANTISED, *case) for case in [*BOTH, *QUANTISED]
]


@pytest.mark.parametrize(("form", "file", "change", "message"), CASES)
def test_a_damaged_file_is_named(
    folder: Path, tmp_path: Path, form: str, file: str, change: Callable[[Tensors, Header], object], message: str
) -> None:
    with safe_open(folder / form / file, framework="pt") as opened:
        tensors: Tensors = {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118 (no mapping)
        header: Header = opened.metadata()
    change(tensors, header)
    save_file(tensors, tmp_path / file, header)
    with pytest.raises(UserError, match=message) as raised:
        native.load_model(tmp_path) if form == "plain" else load_quantised(tmp_path)
    assert str(tmp_path) in str(raised.value)


@pytest.mark.parametrize(("form", "file"), [("plain", native.FILE), ("int8", native.QUANTISED)])
@pytest.mark.parametrize("left", [0, 5, 0.3, 0.999])
def test_a_truncated_file_is_named(
    folder: Path, tmp_path: Path, form: str, file: str, left: float, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(folder / form, tmp_path, dirs_exist_ok=True)
    whole = (tmp_path / file).read_bytes()
    (tmp_path / file).write_bytes(whole[: int(left if left >= 1 or left == 0 else left * len(whole))])
    assert cli.main(["generate", str(tmp_path), "--prompt", "a"]) == 2
    assert re.search(f"{file} is not a complete safetensors file", capsys.readouterr().err)


NAMES = [name for name, _ in language_model(context=16).named_parameters()]


@pytest.mark.parametrize("form", ["fp32", "int8", "int4"])
def test_what_is_no_number_never_becomes_a_token(form: str) -> None:
    """Wherever it stands: the weights are refused, or the probabilities are."""
    for number, name in enumerate(NAMES):
        for value in (math.nan, math.inf):
            model = quantise(language_model(context=16), form)  # type: ignore[arg-type]
            place = dict(model.named_parameters())[name]
            if isinstance(place, PackedTensor):
                continue  # the next test
            with torch.no_grad():
                place.view(-1)[min(3 * 16 + 2, place.numel() - 1)] = value  # of a position after the prompt's
            sampling = (GREEDY, Sampling(1.0, seed=1), Sampling(0.7, top_p=0.9, seed=2))[number % 3]
            with pytest.raises(UserError, match=r"NaN|infinite"):
                Session(Engine(model, threads=1)).generate([[2, 3, 4]], sampling, Limits(12, ignore_end=True))  # type: ignore[arg-type]


@pytest.mark.parametrize("form", ["int8", "int4"])
def test_what_is_no_number_is_not_quantised(form: str) -> None:
    for name in NAMES:
        model = language_model(context=16)
        with torch.no_grad():
            dict(model.named_parameters())[name].view(-1)[2] = math.nan
        with pytest.raises(UserError, match=r"NaN or (infinity|infinite); use a checkpoint with valid weights"):
            quantise(model, form)  # type: ignore[arg-type]


def test_no_tokens_too_many_and_none_wanted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    session = Session(Engine(language_model(context=16), threads=1))
    for prompt, message in (
        ([], "cannot continue an empty prompt"),
        ([2] * 17, "exceeds the context of 16"),
        ([2] * 16, "fills the context"),
    ):
        with pytest.raises(UserError, match=message):
            session.generate([prompt], GREEDY)
    [found] = session.generate([[2] * 10], GREEDY, Limits(10**9, ignore_end=True))
    assert (len(found.ids), found.finish_reason) == (6, "length")
    for words, message in (
        (("--max-new-tokens", "0"), "integer of at least 1"),
        (("--threads", "4096"), "4096 threads are too many for"),
        (("--threads", "0"), "integer of at least 1"),
    ):
        assert cli.main(["generate", str(folder / "int8"), "--prompt", "a", *words]) == 2
        assert message in capsys.readouterr().err


def test_no_memory_is_taken_for_what_may_never_be_written(capsys: pytest.CaptureFixture[str]) -> None:
    """10^12 positions have no room anywhere: the engine takes blocks as it writes, torch says so before it starts."""
    model, limits = language_model(context=None), Limits(10**12, ignore_end=True)
    events = Session(Engine(model, threads=1)).events([[2, 3, 4]], GREEDY, limits)
    assert [next(events).id for _ in range(3)] == Session(model).generate([[2, 3, 4]], GREEDY, Limits(3))[0].ids
    with pytest.raises(UserError, match=r"up to 1000000000003 positions in 1 rows needs .* request fewer new tokens"):
        next(Session(model).events([[2, 3, 4]], GREEDY, limits))


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes")])
def test_memory_that_runs_out_is_said_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def none_left(*given: object) -> None:
        raise error

    monkeypatch.setattr("headway.app.cli.generate.load", none_left)
    assert cli.main(["generate", "runs/any", "--prompt", "a"]) == 1
    told = capsys.readouterr().err
    assert told.startswith("headway: out of memory (")
    assert told.count("\n") == 1
