"""The engine by way of the API and the command line."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import tiny_runs
import torch
from generate_models import language_model, translator

import headway as hw
from headway.app.cli import main as cli
from headway.codecs import train_codec
from headway.config import override
from headway.engine import Engine, PackedTensor, machine
from headway.errors import UserError
from headway.formats.native import save_model
from headway.formats.usage import Usage
from headway.generate import GREEDY, Limits
from headway.nn.kernels import deterministic
from headway.nn.mixers import GRUConfig
from headway.nn.models import BlockConfig, OneHotEmbedConfig, StackConfig, TransformerConfig, build
from processes import Program


@pytest.fixture(scope="module")
def run(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("engine")
    return tiny_runs.train(folder / "run", tiny_runs.play_file(data_dir, folder)).directory


def ask(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, str, str]:
    code = cli.main([str(word) for word in argv])
    found = capsys.readouterr()
    return code, found.out, found.err


def test_loaded_models_generate_by_the_engine(run: Path) -> None:
    model, plain = hw.load(run), hw.load(run, backend="torch")
    assert isinstance(model.generator, Engine)
    assert plain.generator is plain.module
    for seed in (1, 2):
        assert model.generate("ROMEO:", 40, seed=seed) == plain.generate("ROMEO:", 40, seed=seed)
    assert "".join(model.stream("ROMEO:", 20, temperature=0)) == plain.generate("ROMEO:", 20, temperature=0)


def test_quantize_writes_what_load_reads(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = ask(capsys, "quantize", run, tmp_path / "small", "--weights", "int8", "--json")
    told = json.loads(out.splitlines()[-1])
    assert code == 0
    assert told["bytes"] < 0.5 * told["bytes_before"]  # a tiny model is padded to whole groups
    model, rounded = hw.load(tmp_path / "small"), hw.load(run, weights="int8")
    assert isinstance(rounded.module.embed.table, PackedTensor)  # type: ignore[union-attr]
    assert model.generate("ROMEO:", 30, seed=3) == rounded.generate("ROMEO:", 30, seed=3)
    whole = hw.load(run).score(["ROMEO: what"])[0]
    assert model.score(["ROMEO: what"])[0] == pytest.approx(whole, abs=0.2)
    assert model.score(["ROMEO: what"])[0] != whole
    code, out, _ = ask(capsys, "generate", tmp_path / "small", "--prompt", "ROMEO:", "--max-new-tokens", "5")
    assert code == 0
    assert out.startswith("ROMEO:")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("quantize", "{run}", "{run}", "--weights", "int8"), "already exists and is not empty"),
        (("quantize", "{small}", "{new}", "--weights", "int4"), "is already quantized"),
        (("generate", "{small}", "--prompt", "a", "--weights", "int4"), "has weights in int8, not int4"),
        (("quantize", "{run}", "{new}", "--weights", "int3"), "invalid choice: 'int3'"),
    ],
)
def test_what_cannot_be_quantized_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], argv: tuple[str, ...], message: str
) -> None:
    assert ask(capsys, "quantize", run, tmp_path / "small", "--weights", "int8")[0] == 0
    places = {"run": run, "small": tmp_path / "small", "new": tmp_path / "new"}
    code, _, err = ask(capsys, *(word.format(**places) for word in argv))
    assert code == 2
    assert message in err
    assert not (tmp_path / "new").exists()


@pytest.fixture
def dropping(tmp_path: Path) -> Path:
    """A language model and a translator with dropout."""
    for name, config in (("writes", language_model().config), ("translates", translator().config)):
        config = override(config, {"dropout": 0.5})
        save_model(build(config), config, tmp_path / name)
        Usage(decoder_start=2, ends=(1,)).save(tmp_path / name)
        train_codec("char", iter(["abc"])).save(tmp_path / name)
    return tmp_path


@pytest.mark.parametrize("weights", [None, "int8"])
def test_what_generates_leaves_no_dropout_on(dropping: Path, weights: Any) -> None:
    model = hw.load(dropping / "writes", weights=weights, backend="cpu")
    before = model.logits([[2, 3, 4]])
    model.generate_ids([2, 3], 3, seed=1)
    assert not model.module.training
    assert torch.equal(model.logits([[2, 3, 4]]), before)
    events = model.session.events([[2, 3]], GREEDY, Limits(9, ignore_end=True))
    next(events)
    events.close()  # type: ignore[attr-defined]
    assert torch.equal(model.logits([[2, 3, 4]]), before)
    model = hw.load(dropping / "translates", weights=weights, backend="cpu")
    before = model.logits([[2, 3]], [[3, 4]])
    model.translate(["ab"], beam=2)
    assert torch.equal(model.logits([[2, 3]], [[3, 4]]), before)


def test_an_engine_is_in_the_mode_of_its_model(dropping: Path) -> None:
    model = hw.load(dropping / "writes", backend="cpu")
    for training in (False, True, False):
        model.module.train(training)
        model.generate_ids([2, 3], 3, seed=1)
        assert model.module.training == model.module.stack.training == training  # type: ignore[union-attr]


def test_a_backend_that_cannot_be_had_is_refused(run: Path, tmp_path: Path) -> None:
    config = TransformerConfig(8, 11, 16, StackConfig((BlockConfig(GRUConfig()),)), OneHotEmbedConfig(), tie="none")
    save_model(build(config), config, tmp_path)
    model = hw.load(tmp_path)
    assert model.generator is model.module
    assert model.generate_ids([1], 3, seed=1) == hw.load(tmp_path, backend="torch").generate_ids([1], 3, seed=1)
    with pytest.raises(UserError, match="no instruction for OneHotEmbed"):
        hw.load(tmp_path, backend="cpu").generate_ids([1], 3)
    with pytest.raises(UserError, match="device meta"):
        hw.load(run, device="meta", weights="int8")


def test_keys_and_values_may_be_kept_in_int8(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = []
    for cache in ("fp32", "int8"):
        model = hw.load(run, cache=cache)
        engine = model.generator
        assert isinstance(engine, Engine)
        pieces = model.stream("ROMEO:", 20, temperature=0)
        told = next(pieces)
        sizes.append(engine.cache_bytes)
        told += "".join(pieces)
        said = ask(capsys, "generate", run, "--prompt", "ROMEO:", "--max-new-tokens", 20, "--temperature", 0,
                   "--cache", cache)[1]  # fmt: skip
        assert said.strip() == f"ROMEO:{told}".strip()
    assert 0 < sizes[1] < 0.4 * sizes[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cache": "int4"}, "unknown number format 'int4' for the KV cache; use fp32 or fp16 or int8"),
        ({"weights": "int3"}, "unknown number format 'int3' for weights; use fp32 or bf16 or int8 or int4"),
        ({"backend": "gpu"}, "unknown backend 'gpu'; use auto or torch or cpu"),
        ({"cache": "int8", "backend": "torch"}, "which cannot be used with backend torch"),
        ({"cache": "int8", "device": "meta"}, "which cannot be used with device meta"),
    ],
)
def test_settings_that_cannot_be_had_are_refused(run: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        hw.load(run, **settings)


def test_a_cache_is_never_left_out_silently(run: Path, tmp_path: Path) -> None:
    config = TransformerConfig(8, 11, 16, StackConfig((BlockConfig(GRUConfig()),)), OneHotEmbedConfig(), tie="none")
    save_model(build(config), config, tmp_path)
    with pytest.raises(UserError, match=r"no instruction for OneHotEmbed.*--cache fp32"):
        hw.load(tmp_path, cache="int8").generate_ids([1], 3)


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_in_deterministic_mode_texts_do_not_depend_on_their_batch(run: Path, backend: Literal["auto", "torch"]) -> None:
    """By the engine, which the mode does not turn off, and without it."""
    model = hw.load(run, backend=backend)
    prompts = ["ROMEO:", "A", "What light through yonder window"]
    with deterministic():
        assert isinstance(model.generator, Engine) == (backend == "auto")
        together = model.generate(prompts, 20, seed=3)
        assert together == [model.generate(prompt, 20, seed=3) for prompt in prompts]


def test_a_draft_changes_no_text(run: Path, data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = tiny_runs.train(
        tmp_path / "small", tiny_runs.play_file(data_dir, tmp_path), set={"model.depth": 1}
    ).directory
    model, both = hw.load(run, weights="int8"), hw.load(run, weights="int8", draft=small)
    assert both.draft is not None
    assert isinstance(both.draft.module.embed.table, PackedTensor)  # type: ignore[union-attr]
    for seed, temperature in ((1, 0.0), (2, 1.0)):
        given = {"max_new_tokens": 12, "temperature": temperature, "seed": seed}
        assert both.generate("RO", **given) == model.generate("RO", **given)  # type: ignore[arg-type]
        assert "".join(both.stream("RO", **given)) == model.generate("RO", **given)  # type: ignore[arg-type]
    code, out, _ = ask(
        capsys, "generate", run, "--prompt", "RO", "--draft", small, "--seed", "3", "--max-new-tokens", 12
    )
    assert code == 0
    assert out == ask(capsys, "generate", run, "--prompt", "RO", "--seed", "3", "--max-new-tokens", 12)[1]


def test_a_draft_that_cannot_guess_is_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    play = tmp_path / "other.txt"
    play.write_text("abcdefghij klmnop\n" * 200)
    other = tiny_runs.train(tmp_path / "other", play).directory
    bare = TransformerConfig(8, 11, 16, StackConfig((BlockConfig(GRUConfig()),)))
    save_model(build(bare), bare, tmp_path / "bare")
    for arguments, message in (
        (("--draft", other), r"draft \S+ and model \S+ have different vocabularies \(\d+ \w+ instead of \d+\)"),
        (("--draft", tmp_path / "bare"), "only one of them has a tokenizer"),
        (("--draft", tmp_path / "none"), "does not exist"),
        (("--draft", run, "--backend", "torch"), "remove the draft"),
    ):
        code, _, err = ask(capsys, "generate", run, "--prompt", "RO", *arguments)
        assert code == 2
        assert re.search(message, err), err
    with pytest.raises(UserError, match="attention"):
        hw.load(tmp_path / "bare", draft=tmp_path / "bare").generate_ids([1], 3)
    wider = replace(bare, vocab_size=12)
    save_model(build(wider), wider, tmp_path / "wider")
    with pytest.raises(UserError, match="12 and 11 tokens"):
        hw.load(tmp_path / "bare", draft=tmp_path / "wider")
    swapped = train_codec("char", iter(["abc"])), train_codec("char", iter(["abd"]))
    assert swapped[0].difference(swapped[1]) == "id 2 is 'd' instead of 'c'"
    assert swapped[0].difference(train_codec("char", iter(["abc"]))) is None


def test_show_says_what_generates(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "generates on a CPU with the compiled engine" in ask(capsys, "show", run)[1]
    assert "generates" not in ask(capsys, "show", "bert-base")[1]


INTERRUPTED = """
import os, signal, sys, threading, torch
import headway as hw
signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(2)
model = hw.load(sys.argv[1], backend="cpu")
wanted = model.generate("ROMEO:", 60, temperature=0)
stopped = 0
for number in range(5):
    threading.Timer(0.01 + 0.007 * number, os.kill, (os.getpid(), signal.SIGINT)).start()
    try:
        while True:
            model.generate("ROMEO:", 60, temperature=0)
    except KeyboardInterrupt:
        stopped += 1
    assert model.generate("ROMEO:", 60, temperature=0) == wanted
print(stopped)
"""


def test_ctrl_c_leaves_the_engine_usable(run: Path, tmp_path: Path) -> None:
    out, err = Program(tmp_path, INTERRUPTED, str(run)).wait()
    assert out.strip() == "5", err


def test_threads_may_generate_with_one_model(run: Path) -> None:
    model = hw.load(run, backend="cpu")
    prompts = ["ROMEO:", "JULIET:", "A", "the king"]
    wanted = [model.generate(prompt, 60, temperature=0) for prompt in prompts]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda prompt: model.generate(prompt, 60, temperature=0), prompts * 2)) == wanted * 2


def test_compiling_is_said_before_it_begins_and_only_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run() -> None: ...

    function = machine.CompiledFunction(run)
    monkeypatch.setattr(machine, "CACHE", tmp_path)
    with machine.announce_compilation(function):
        assert "compiling the CPU engine" in capsys.readouterr().err
        function()
    with machine.announce_compilation(machine.CompiledFunction(run)):  # as another process finds it
        pass
    monkeypatch.setattr(machine, "CACHE", None)
    with machine.announce_compilation(function):
        pass
    assert capsys.readouterr().err == ""
