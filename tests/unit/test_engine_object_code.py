"""Compiled functions that are kept: loaded without the compiler, made anew where what is kept is damaged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_runs

from headway.engine import compiler, machine
from headway.engine.int8_keys import padded_to_vectors, rounding_bytes, store_key
from headway.engine.machine import CompiledFunction, f32, i64
from headway.engine.object_code import read_object
from processes import Program


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this process keeps what it compiles: functions of tests may change, and their names are not told apart."""
    monkeypatch.setattr(machine, "CACHE", tmp_path / "kept")
    (tmp_path / "kept").mkdir()
    return tmp_path / "kept"


def largest(table: np.ndarray, numbers: np.ndarray, at: int, scale: float) -> int:
    """Where the largest of all products is; they are written at `at`."""
    best = 0
    for i in range(table.shape[0]):
        for j in range(table.shape[1]):
            k = i * table.shape[1] + j
            f32(at)[k] = numbers[i, j] * table[i, j] * scale
            if f32(at)[k] > f32(at)[best]:
                best = k
    return best


def test_arrays_and_numbers_come_as_they_are_and_results_too() -> None:
    drawn = np.random.default_rng(1)
    table, numbers = drawn.integers(-9, 9, (5, 7)), drawn.standard_normal((5, 7))
    out, function = np.zeros((4, 7), np.float32), CompiledFunction(largest)
    for scale in (np.float32(0.5), np.float64(2.0)):  # each kind of number has code of its own
        found = function(table[1:], numbers[1:], out.ctypes.data, scale)
        assert np.allclose(out, table[1:] * numbers[1:] * float(scale), rtol=1e-6)
        assert found == out.argmax()
    with pytest.raises(ValueError, match="not contiguous"):
        function(table[:, 1:], numbers[:, 1:], out.ctypes.data, np.float32(1))
    x, keys = np.zeros(rounding_bytes(27), np.uint8), np.zeros((7, 32, 4), np.int8)
    x[:108].view(np.float32)[:] = drawn.standard_normal(27)
    scale = store_key(x.ctypes.data, 27, keys.ctypes.data, 3)
    assert scale == pytest.approx(np.abs(x[:108].view(np.float32)).max() / 127, rel=1e-6)


GENERATED = """
import sys
if sys.argv[1] == "without":
    for name in [name for name in sys.modules if name.partition(".")[0] == "numba"]:
        del sys.modules[name]
    sys.modules["numba"] = None  # to import it is an error
import headway as hw
for form in (None, "int8"):
    model = hw.load(sys.argv[2], backend="cpu", weights=form)
    print(model.generate("ROMEO:", 20, temperature=0), model.generate("ROMEO:", 20, seed=3))
"""


def test_what_is_kept_is_run_without_the_compiler(data_dir: Path, tmp_path: Path) -> None:
    run = tiny_runs.train(tmp_path / "run", tiny_runs.play_file(data_dir, tmp_path)).directory
    wanted, _ = Program(tmp_path, GENERATED, "with", str(run)).wait(300)  # which may have to compile
    found, err = Program(tmp_path, GENERATED, "without", str(run)).wait()
    assert wanted.strip()
    assert found == wanted, err


@pytest.mark.parametrize(
    "damage",
    [
        lambda held: b"",
        lambda held: held[:20],
        lambda held: held[:-1],
        lambda held: held[:200] + bytes([held[200] ^ 1]) + held[201:],
        lambda held: bytes(len(held)),
    ],
)
def test_what_is_damaged_is_made_anew(
    damage: Callable[[bytes], bytes], kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert CompiledFunction(padded_to_vectors.function)(20) == 32
    [path] = kept.glob("*.object")
    path.write_bytes(damage(path.read_bytes()))
    assert read_object(path) is None
    assert CompiledFunction(padded_to_vectors.function)(33) == 48
    assert read_object(path) is not None
    monkeypatch.setattr(compiler, "compile_object", None)  # from here on nothing is compiled
    assert CompiledFunction(padded_to_vectors.function)(1) == 16


@pytest.mark.parametrize("place", [None, "nowhere"])
def test_where_nothing_can_be_kept(place: str | None, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "CACHE", place and kept / place)
    assert CompiledFunction(padded_to_vectors.function)(20) == 32
    assert not list(kept.iterdir())


def test_code_that_asks_for_the_compiler_is_not_kept(kept: Path) -> None:
    """Loading it would end a process that has no compiler."""

    def says(count: int) -> None:
        print(count)

    with pytest.raises(RuntimeError, match=r"says needs .*which exist only in a process with the compiler"):
        CompiledFunction(says)(3)
    assert not list(kept.iterdir())


TOGETHER = """
import os, sys
from headway.engine import machine
from headway.engine.int8_keys import padded_to_vectors, rounding_bytes
assert str(machine.CACHE).startswith(os.environ["NUMBA_CACHE_DIR"])
print(padded_to_vectors(20), rounding_bytes(20), flush=True)
child = os.fork()
if child == 0:  # what was loaded is there
    os._exit(0 if padded_to_vectors(1) == 16 and rounding_bytes(33) == 240 else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""


def test_several_processes_compile_at_once_and_fork(tmp_path: Path) -> None:
    programs = [Program(tmp_path, TOGETHER, NUMBA_CACHE_DIR=str(tmp_path / "all")) for _ in range(3)]
    for program in programs:
        out, err = program.wait()
        assert program.returncode == 0, err
        assert out == "32 160\n"
    found = list((tmp_path / "all").rglob("*.object*"))
    assert [path.suffix for path in found] == [".object", ".object"]  # no parts
    assert None not in map(read_object, found)


def test_arguments_are_what_the_code_was_compiled_for() -> None:
    """An address and a number of single precision are never taken for each other."""
    function = CompiledFunction(lambda x, y: x + y)
    assert function(1, np.int64(2)) == 3
    assert function(np.float32(0.5), np.float32(2)) == 2.5
    out = np.zeros(2, np.int64)

    def put(at: int, value: int) -> None:
        i64(at)[1] = value

    assert CompiledFunction(put)(out.ctypes.data, -7) is None
    assert out.tolist() == [0, -7]
