"""What the engine takes of a machine: some of its cores, and a lesser processor."""

from __future__ import annotations

import platform
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from headway.engine import pool
from headway.engine.barrier import barrier, barriers_passed, claim_part
from headway.engine.machine import compiled, i64
from headway.engine.processor import INSTRUCTION_SET
from processes import Program


def group(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content)


def test_the_least_quota_of_nested_groups_counts(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text("0::/outer/inner\n")
    groups = tmp_path / "groups"
    group(groups)
    group(groups / "outer", cpu__max="150000 100000\n")
    group(groups / "outer/inner", cpu__max="max 100000\n")
    assert pool.cpu_quota(groups, own) == 1.5
    group(groups / "outer/inner", cpu__max="50000 100000\n")
    assert pool.cpu_quota(groups, own) == 0.5


def test_groups_of_version_1_have_a_quota_too(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text("5:memory:/jobs\n2:cpu,cpuacct:/jobs\n0::/\n")
    for place in (tmp_path / "one/cpu,cpuacct/jobs", tmp_path / "two/cpu/jobs"):
        group(place, cpu__cfs_quota_us="400000\n", cpu__cfs_period_us="100000\n")
    assert pool.cpu_quota(tmp_path / "one", own) == 4
    assert pool.cpu_quota(tmp_path / "two", own) == 4
    group(tmp_path / "two/cpu/jobs", cpu__cfs_quota_us="-1\n")
    assert pool.cpu_quota(tmp_path / "two", own) is None


def test_a_container_shows_its_own_group_as_the_first(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text("0::/docker/0123\n")
    group(tmp_path, cpu__max="200000 100000\n")
    assert pool.cpu_quota(tmp_path, own) == 2


@pytest.mark.parametrize("content", ["", "many 100000\n", "100000 0\n", "1 2 3\n"])
def test_a_quota_that_says_nothing_is_none(content: str, tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text("0::/\n")
    group(tmp_path, cpu__max=content)
    assert pool.cpu_quota(tmp_path, own) is None
    assert pool.cpu_quota(tmp_path, tmp_path / "nowhere") is None


@pytest.mark.parametrize(("quota", "threads"), [(None, 4), (0.5, 1), (1.9, 1), (2.0, 2), (64.0, 4)])
def test_no_more_threads_than_the_quota_feeds(
    quota: float | None, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(pool, "_process_quota", lambda: quota)
    assert pool.max_threads() == threads


LESSER = """
import os
os.environ["HEADWAY_FORM"] = "avx2"
import numba
import numpy as np
from headway.engine import compiler, dots, processor, tiles
assert (processor.INSTRUCTION_SET, processor.INSTRUCTIONS) == ("avx2", "avx2")
assert not (processor.WIDE or processor.HAS_MATRIX_UNIT or processor.HAS_BF16_UNIT or dots._FULL)

def add(x, y):
    for i in range(4096):
        y[i] += x[i]

add = numba.njit(add)
x, y = np.ones(4096, np.float32), np.ones(4096, np.float32)
add(x, y)
assert (y == 2).all()
code = next(iter(add.inspect_asm().values()))
assert "ymm" in code and "zmm" not in code
"""


@pytest.mark.skipif(INSTRUCTION_SET not in ("vnni", "amx"), reason="this processor is no better than the lesser one")
def test_the_engine_runs_as_on_a_lesser_processor(tmp_path: Path) -> None:
    program = Program(tmp_path, LESSER, NUMBA_CACHE_DIR=str(tmp_path))
    _, err = program.wait()
    assert program.returncode == 0, err


REFUSED = """
import os
from headway.errors import UserError
for form in ("avx512", "{more}"):
    os.environ["HEADWAY_FORM"] = form
    try:
        from headway.engine import Engine
    except UserError as error:
        print(error)
"""


def test_a_form_that_is_not_there_is_refused(tmp_path: Path) -> None:
    out, _ = Program(
        tmp_path, REFUSED.replace("{more}", "vnni" if INSTRUCTION_SET in ("avx2", "portable") else "vmx")
    ).wait()
    said = out.strip().splitlines()
    assert len(said) == 2
    assert all(line.startswith("HEADWAY_FORM=") for line in said)


LIGHT = """
import sys
import torch
from headway.engine.packed_weights import PackedMatrix, PackedTensor, parameter_of
from headway.engine.tiles import INT8, TILE8
from headway.formats.native import named_tensors

module = torch.nn.Module()
packed = PackedMatrix(INT8, torch.zeros(1, 1, TILE8, dtype=torch.int8), torch.ones(1, 1, 16), 16, 64)
module.weight = parameter_of(PackedTensor(packed))
module.eval().requires_grad_(False)
assert [tensor.packed is packed for _, tensor in named_tensors(module)] == [True]
assert isinstance(module.weight.detach(), PackedTensor)
heavy = {"torch.distributed.tensor", "sympy"} & set(sys.modules)
assert not heavy, heavy
"""


def test_packed_weights_import_nothing_large(tmp_path: Path) -> None:
    program = Program(tmp_path, LIGHT)
    _, err = program.wait()
    assert program.returncode == 0, err


@compiled
def _meet_often(seen: int, made: int, rounds: int, parts: int, counter: int, thread: int, threads: int) -> int:
    """How often a thread met another that was not where it should be. In every other round parts are taken."""
    wrong, mine = 0, i64(seen)
    for number in range(rounds):
        mine[thread] = number
        barrier(counter, threads)
        for other in range(threads):
            wrong += mine[other] != number
        barrier(counter, threads)
        if number % 2 == 0:
            met = barriers_passed(counter, threads)
            for turn in range(threads):
                owner = (thread + turn) % threads
                part = claim_part(counter, owner, met, parts)
                while part < parts:
                    i64(made)[(number * threads + owner) * parts + part] += 1
                    part = claim_part(counter, owner, met, parts)
    return wrong


@pytest.mark.parametrize("threads", [2, 5, 64])
def test_threads_meet_and_each_part_is_taken_once(threads: int) -> None:
    rounds, parts, workers = 40, 3, pool.pool(threads)
    seen, made, wrong = np.zeros(threads, np.int64), np.zeros((rounds, threads, parts), np.int64), [-1] * threads
    fields = (seen.ctypes.data, made.ctypes.data, rounds, parts, workers.counter)

    def job(thread: int) -> None:
        wrong[thread] = _meet_often(*fields, thread, threads)

    for _ in range(3):
        made[:] = 0
        workers.run(job)
        assert wrong == [0] * threads
        assert (made[::2] == 1).all()
        assert not made[1::2].any()


@pytest.mark.skipif(
    platform.system() != "Linux" or platform.machine() not in ("x86_64", "aarch64"), reason="threads do not sleep here"
)
def test_who_waits_long_takes_no_time_of_a_core() -> None:
    workers, took = pool.pool(2), [0.0, 0.0]

    def job(thread: int) -> None:
        if thread == 0:
            time.sleep(0.4)
        began = time.thread_time()
        barrier(workers.counter, 2)
        took[thread] = time.thread_time() - began

    workers.run(job)
    workers.run(job)
    assert max(took) < 0.1
