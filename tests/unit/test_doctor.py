"""`headway doctor`: what is wrong with a machine, with its remedy, and nothing that is nobody else's business."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from headway.app.cli import doctor
from headway.app.cli import main as cli
from headway.app.cli.doctor import Check
from headway.engine import code_cache
from headway.io import cpu_quota, machine_memory

QUICK = """
import json
print(json.dumps({"headway": 0.01}))
print(json.dumps({"torch": 1.0, "gpus": [], "cuda": None}))
"""


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own, and an import of torch that takes no time."""
    monkeypatch.setattr(doctor, "_IMPORTS", QUICK)
    home = tmp_path / "jane"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    for name in ("HEADWAY_CACHE", "HEADWAY_DATA", "HEADWAY_FORM", "MUJOCO_GL", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    return home


def examined(capsys: pytest.CaptureFixture[str], code: int = 0) -> tuple[dict[str, Check], str]:
    """The checks by name, and the text."""
    found = []
    for words in (["doctor"], ["doctor", "--json"]):
        if code:
            with pytest.raises(SystemExit) as exit:
                cli.main(words)
            assert exit.value.code == code
        else:
            assert cli.main(words) == 0
        found.append(capsys.readouterr().out)
    checks = {check["name"]: Check(**check) for check in json.loads(found[1])["checks"]}
    assert json.loads(found[1])["wrong"] == [name for name, check in checks.items() if check.state == "wrong"]
    return checks, "".join(found)


def test_a_machine_with_nothing_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    checks, text = examined(capsys)
    assert "Nothing is wrong." in text
    names = {"headway", "processor", "cores", "memory", "packages", "cache", "downloads", "stockfish", "clock", "GPU"}
    assert (
        not {*names, "browser", "display", "compiled code", "extra serve", "import of torch", "import of headway"}
        - checks.keys()
    )
    assert all(check.remedy for check in checks.values() if check.name.startswith("extra") and check.state != "good")
    assert checks["cache"].text.startswith("~/.cache/headway is writable")
    assert not {"extra all", "extra test"} & checks.keys()


def test_it_takes_less_than_three_seconds() -> None:
    """With the real import of torch; its process may be cut off, but not this one."""
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "headway", "doctor", "--json"], capture_output=True, text=True)
    assert time.monotonic() - started < 3 or os.getloadavg()[0] > 2  # a busy machine is slower
    assert done.returncode == 0, done.stdout + done.stderr
    assert "import of torch" in done.stdout


def test_names_and_secrets_are_not_in_it(
    machine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor.getpass, "getuser", lambda: "jane")
    monkeypatch.setattr(doctor.platform, "node", lambda: "laptop7.example.org")
    secrets = ("HF_TOKEN", "HEADWAY_API_KEY", "WANDB_API_KEY", "MUJOCO_GL", "OMP_NUM_THREADS", "HTTPS_PROXY")
    for name in secrets:
        monkeypatch.setenv(name, f"secret-{name}")
    monkeypatch.setenv("HEADWAY_DATA", "/srv/laptop7/jane/sets")
    monkeypatch.setenv("HEADWAY_CACHE", str(machine / "my cache"))
    checks, text = examined(capsys, 1)
    assert not re.search("jane|laptop7|secret-", text)
    assert checks["downloads"].text == "none in ~/my cache/data yet"
    assert "/srv/NAME/NAME/sets, which is not a folder; mkdir -p" in text
    assert checks["MUJOCO_GL"] == Check("MUJOCO_GL", "wrong", "its value is not a renderer", "export MUJOCO_GL=egl")


def test_a_wrong_instruction_set_and_a_cache_that_cannot_be_written(machine: Path) -> None:
    (machine / "file").touch()
    settings = {**os.environ, "HEADWAY_FORM": "sse", "HEADWAY_CACHE": str(machine / "file")}
    code = f"from headway.app.cli import doctor, main; doctor._IMPORTS = {QUICK!r}; exit(main.main(['doctor']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=settings)
    assert done.returncode == 1
    assert re.search(r"wrong +processor +HEADWAY_FORM=sse is not an instruction set of the engine; ", done.stdout)
    assert re.search(r"wrong +cache +~/file is not writable .*; set HEADWAY_CACHE to a writable folder", done.stdout)
    assert "are wrong: processor, compiled code, cache" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("script", "seconds", "state", "text"),
    [
        ("raise ImportError('libgomp.so.1: no such file')", 2.0, "wrong", "it fails: ImportError: libgomp.so.1"),
        ("import time; time.sleep(60)", 0.0, "note", "more than 0.1 s"),
        (QUICK, 60.0, "good", "1.0 s, version"),
    ],
)
def test_an_import_of_torch(
    script: str, seconds: float, state: str, text: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(doctor, "_IMPORTS", script)
    monkeypatch.setattr(doctor, "_MAX_SECONDS", seconds)
    check = examined(capsys, int(state == "wrong"))[0]["import of torch"]
    assert check.state == state
    assert check.text.startswith(text)


def test_a_gpu_that_torch_cannot_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_DRIVER_SECONDS", 20)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    driver = tmp_path / "nvidia-smi"
    driver.write_text("#!/bin/sh\necho 'NVIDIA H100'\n")
    driver.chmod(0o755)
    found = {"torch": 1.0, "gpus": [], "cuda": None}
    assert doctor._gpu(found).text == "NVIDIA H100, but torch was made without CUDA"
    assert "made for CUDA 12.8, cannot use it" in doctor._gpu({**found, "cuda": "12.8"}).text
    assert doctor._gpu({}).state == "note"
    assert doctor._gpu({**found, "gpus": ["NVIDIA H100"]}) == Check("GPU", "good", "NVIDIA H100")
    driver.write_text("#!/bin/sh\nexit 9\n")
    assert doctor._gpu(found) == Check("GPU", "good", "none; headway uses the processor")


def test_packages_of_the_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    requires = [
        "torch>=2.9", 'starlette>=0.46; extra == "serve"', 'headway[chat]; extra == "serve"',
        'uvloop>=0.22; (sys_platform != "win32") and extra == "serve"', 'h5py (>=3.10) ; extra == "rl"',
        'gymnasium[mujoco]>=1.0; extra == "rl"', 'ruff; extra == "test"',
    ]  # fmt: skip
    installed = {"torch": "2.13.0+cpu", "starlette": "0.5", "uvloop": "0.22rc1", "h5py": "3.10"}

    def version(name: str) -> str:
        if name not in installed:
            raise doctor.metadata.PackageNotFoundError(name)
        return installed[name]

    described = SimpleNamespace(get_all=lambda field: ["serve", "rl", "test"])
    monkeypatch.setattr(doctor.metadata, "version", version)
    monkeypatch.setattr(
        doctor.metadata, "distribution", lambda name: SimpleNamespace(requires=requires, metadata=described)
    )
    assert list(doctor._extras()) == [
        Check("packages", "good", "complete"),
        Check("extra serve", "wrong", "has starlette 0.5 instead of 0.46 or newer", "pip install -U 'headway[serve]'"),
        Check("extra rl", "note", "lacks gymnasium", "pip install 'headway[rl]'"),
    ]
    del installed["torch"]
    assert next(doctor._extras()) == Check("packages", "wrong", "lacks torch", "pip install 'headway'")


def test_limits_of_a_container(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_quota, "cpu_quota", lambda groups, membership: 0.5)
    monkeypatch.setattr(machine_memory, "free_cpu_bytes", lambda: 10**8)
    assert (doctor._cores().state, doctor._cores().remedy) == ("note", "use --threads 1")
    assert doctor._memory().state == "wrong"
    assert doctor._memory().text == "0.1 GB are free, which is too little for torch"


def test_compiled_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder, state in ((None, "wrong"), (tmp_path, "note")):
        monkeypatch.setattr(code_cache, "CACHE", folder)
        assert doctor._compiled_code().state == state
    (tmp_path / "a.object").write_bytes(b"cut off")
    assert doctor._compiled_code().text == f"1 of 1 files in {tmp_path} are damaged"


def test_a_clock_that_was_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.time, "time", lambda: 0.0)
    assert doctor._clock().state == "wrong"
