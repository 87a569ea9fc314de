"""`headway doctor`: check this machine and the installation, in a process that imports no torch."""

from __future__ import annotations

import argparse
import getpass
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Literal, NamedTuple

from headway.app.cli.terminal import Terminal
from headway.errors import UserError

EXAMPLE = """
headway doctor
headway doctor --json > doctor.json
"""
_MAX_SECONDS = 2.0  # from the start, after which the import of torch is not waited for
_DRIVER_SECONDS = 0.5  # for nvidia-smi
_MIN_FREE_DISK, _MIN_FREE_MEMORY = 1 << 30, 1 << 30  # bytes
_DEVELOPMENT = ("all", "docs", "test", "benchmark")  # extras that add nothing of their own, or are for developers
_REQUIREMENT = re.compile(r"([\w.-]+)(\[[^]]*\])?[ (]*([^;)]*)\)?(?:;(.*))?")
_PROGRAMS = {  # what each is for, and how to install it on Debian
    "stockfish": ("an opponent for headway chess match", "apt install stockfish"),
    "ffmpeg": ("to convert sounds and videos", "apt install ffmpeg"),
}
_RENDERERS = ("egl", "osmesa", "glfw")  # values of MUJOCO_GL
# In a process of its own: the seconds to import headway, and those to import torch with what it knows of GPUs.
_IMPORTS = """
import json, time
start = time.perf_counter()
import headway
print(json.dumps({"headway": time.perf_counter() - start}), flush=True)
start = time.perf_counter()
import torch
seconds, has_gpu = time.perf_counter() - start, torch.cuda.is_available()
gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())] if has_gpu else []
print(json.dumps({"torch": seconds, "gpus": gpus, "cuda": torch.version.cuda}))
"""


class Check(NamedTuple):
    """One line: "good", "wrong" with the remedy, or "note", which may be as it is, with a remedy if you want it."""

    name: str
    state: Literal["good", "wrong", "note"]
    text: str
    remedy: str = ""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add no options."""


def run(args: argparse.Namespace, terminal: Terminal) -> None:
    checks = [_without_names(check) for check in _all_checks(terminal)]
    width = max(len(check.name) for check in checks)
    for check in checks:
        remedy = f"; {check.remedy}" * bool(check.remedy)
        terminal.print(f"{check.state:<5}  {check.name:<{width}}  {check.text}{remedy}")
    wrong = [check.name for check in checks if check.state == "wrong"]
    terminal.print(f"\n{len(wrong)} of {len(checks)} are wrong: {', '.join(wrong)}" if wrong else "\nNothing is wrong.")
    terminal.print_result({"wrong": wrong, "checks": [check._asdict() for check in checks]})
    if wrong:
        sys.exit(1)


def _all_checks(terminal: Terminal) -> Iterator[Check]:
    from headway import __version__

    command = [sys.executable, "-c", _IMPORTS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            python = f"Python {platform.python_version()}"
            system = f"{platform.system()} {platform.release()} ({platform.machine()})"
            yield Check("headway", "good", f"{__version__}, {python}, {system}")
            for check in (_processor, _cores, _memory, _compiled_code):
                yield _guarded(check)
            yield from _extras()
            yield from _folders()
            yield from _programs()
            yield _clock()
            yield from _imports(process, max(0.1, _MAX_SECONDS - terminal.seconds()))
        finally:
            process.kill()


def _guarded(check: Callable[[], Check]) -> Check:
    """The check; an error of the installation that it meets is what is wrong."""
    name = check.__name__.strip("_").replace("_", " ")
    try:
        return check()
    except UserError as error:
        text, _, remedy = str(error).partition("; ")
        return Check(name, "wrong", text, remedy)
    except ImportError as error:
        return Check(
            name, "wrong", f"{error.name or error} cannot be imported", "pip install --force-reinstall headway"
        )


def _processor() -> Check:
    from headway.engine.processor import INSTRUCTION_SET

    names = []
    with suppress(OSError):
        cpus = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        names = [line.partition(":")[2].strip() for line in cpus if line.startswith("model name")]
    forced = " (chosen by HEADWAY_FORM)" if "HEADWAY_FORM" in os.environ else ""
    name = names[0] if names else platform.processor() or platform.machine()
    return Check("processor", "good", f"{name}; the engine uses {INSTRUCTION_SET}{forced}")


def _cores() -> Check:
    from headway.io.cpu_quota import cpu_quota

    cores = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
    quota = cpu_quota(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup"))
    text = f"{cores}" + (f", of which this process may use {usable}" if usable < cores else "")
    if quota is not None and quota < usable:
        return Check("cores", "note", f"{text}, with a quota of {quota:g} cores", f"use --threads {max(1, int(quota))}")
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if threads.isdecimal() and int(threads) < usable:
        return Check("cores", "note", f"{text}; OMP_NUM_THREADS limits torch to {threads}", "unset OMP_NUM_THREADS")
    return Check("cores", "good", text)


def _memory() -> Check:
    from headway.io.machine_memory import free_cpu_bytes

    free, limit = free_cpu_bytes(), None
    with suppress(ImportError):
        import resource

        soft = resource.getrlimit(resource.RLIMIT_AS)[0]
        limit = None if soft == resource.RLIM_INFINITY else soft
    text = "unknown" if free is None else f"{free / 1e9:.1f} GB are free"
    if limit is not None:
        text += f", and a process may have {limit / 1e9:.1f} GB"
    least = min(size for size in (free, limit, 1 << 62) if size is not None)
    if least < _MIN_FREE_MEMORY:
        remedy = "ulimit -v unlimited" if least == limit else "close other programs, or raise the container's limit"
        return Check("memory", "wrong", f"{text}, which is too little for torch", remedy)
    return Check("memory", "good", text)


def _compiled_code() -> Check:
    from headway.engine.code_cache import CACHE
    from headway.engine.object_code import read_object

    if CACHE is None:
        remedy = "set NUMBA_CACHE_DIR to a folder that only you can write"
        return Check("compiled code", "wrong", "no folder for it is writable, so each start compiles again", remedy)
    files = list(CACHE.glob("*.object"))
    damaged = [path for path in files if read_object(path) is None]
    if damaged:
        return Check(
            "compiled code", "wrong", f"{len(damaged)} of {len(files)} files in {CACHE} are damaged", f"rm -r {CACHE}"
        )
    if not files:
        text = f"none yet for this processor and version, in {CACHE}; the first use compiles it"
        return Check("compiled code", "note", text)
    return Check("compiled code", "good", f"{len(files)} programs for this processor in {CACHE}")


def _extras() -> Iterator[Check]:
    """A line per extra of the installed distribution, from its own list of requirements."""
    try:
        distribution = metadata.distribution("headway")
    except metadata.PackageNotFoundError:
        yield Check("extras", "note", "headway is not installed as a package", "pip install headway")
        return
    requirements = [match for text in distribution.requires or () if (match := _REQUIREMENT.match(text))]
    yield _packages(
        "packages", [match for match in requirements if "extra ==" not in (match[4] or "")], "headway", "wrong"
    )
    for extra in distribution.metadata.get_all("Provides-Extra") or ():
        own = [match for match in requirements if re.search(rf"extra == .{extra}.(?![\w])", match[4] or "")]
        if extra not in _DEVELOPMENT:
            yield _packages(f"extra {extra}", own, f"headway[{extra}]", "note")


def _packages(name: str, requirements: list[re.Match[str]], package: str, state: Literal["note", "wrong"]) -> Check:
    missing, old = [], []
    for match in requirements:
        required = match[1]
        if required == "headway" or ("win32" in (match[4] or "") and sys.platform == "win32"):
            continue  # other extras have a line of their own
        try:
            version = metadata.version(required)
        except metadata.PackageNotFoundError:
            missing.append(required)
            continue
        least = re.search(r">=([\w.]+)", match[3])
        if least and _release(version) < _release(least[1]):
            old.append(f"{required} {version} instead of {least[1]} or newer")
    if old:
        return Check(name, "wrong", f"has {', '.join(old)}", f"pip install -U '{package}'")
    if missing:
        return Check(name, state, f"lacks {', '.join(missing)}", f"pip install '{package}'")
    return Check(name, "good", "complete")


def _release(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", re.split(r"[a-z+-]", version)[0])))


def _folders() -> Iterator[Check]:
    from headway.io.cache import cache_errors, cache_root, data_folders

    try:
        cache = cache_root()
        with cache_errors(cache), TemporaryFile(dir=cache):
            free = shutil.disk_usage(cache).free
    except UserError as error:
        text, _, remedy = str(error).partition("; ")
        yield Check("cache", "wrong", text, remedy)
    else:
        text = f"{cache} is writable, with {free / 1e9:.1f} GB free"
        is_full = free < _MIN_FREE_DISK
        remedy = "free some space, or set HEADWAY_CACHE to a folder on another disk" if is_full else ""
        yield Check("cache", "wrong" if is_full else "good", text, remedy)
    *chosen, downloads = data_folders()
    for folder in chosen:
        is_there = folder.is_dir()
        text = f"HEADWAY_DATA is {folder}" + ("" if is_there else ", which is not a folder")
        yield Check("data", "good" if is_there else "wrong", text, "" if is_there else f"mkdir -p {folder}")
    if downloads.is_dir():
        yield Check("downloads", "good", f"in {downloads}")
    else:
        yield Check("downloads", "note", f"none in {downloads} yet", "headway data list shows what there is")


def _programs() -> Iterator[Check]:
    for program, (purpose, remedy) in _PROGRAMS.items():
        found = shutil.which(program) is not None
        yield Check(
            program,
            "good" if found else "note",
            "installed" if found else f"not installed: {purpose}",
            remedy * (not found),
        )
    import webbrowser

    has_display = sys.platform != "linux" or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))
    yield Check(
        "display", "good" if has_display else "note", "there is one" if has_display else "none: windows cannot open"
    )
    try:
        webbrowser.get()
        yield Check("browser", "good", "headway open can open it")
    except webbrowser.Error:
        yield Check("browser", "note", "none; headway open prints its address", "apt install firefox-esr")
    renderer = os.environ.get("MUJOCO_GL")
    if renderer is None:
        default = "" if has_display else "; headway uses egl because there is no display"
        yield Check("MUJOCO_GL", "good", f"not set{default}")
    elif renderer in _RENDERERS:
        yield Check("MUJOCO_GL", "good", renderer)
    else:
        yield Check("MUJOCO_GL", "wrong", "its value is not a renderer", f"export MUJOCO_GL={_RENDERERS[0]}")


def _clock() -> Check:
    installed = Path(__file__).stat().st_mtime
    if time.time() < installed - 86_400:
        text = f"it is set to {time.strftime('%Y-%m-%d')}, before headway was installed"
        return Check("clock", "wrong", text, "timedatectl set-ntp true")
    return Check("clock", "good", time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()))


def _imports(process: subprocess.Popen[str], seconds: float) -> Iterator[Check]:
    facts: dict[str, Any] = {}
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired as error:
        out, err = error.stdout or b"", None
        out = out.decode() if isinstance(out, bytes) else out
    for line in out.splitlines():
        facts |= json.loads(line)
    version = ""
    with suppress(metadata.PackageNotFoundError):
        version = metadata.version("torch")
    if "headway" in facts:
        yield Check("import of headway", "good", f"{facts['headway']:.2f} s")
    if "torch" in facts:
        yield Check("import of torch", "good", f"{facts['torch']:.1f} s, version {version}")
    elif err is None:
        text = f"more than {seconds:.1f} s, version {version}; the first import after a start takes longer"
        yield Check("import of torch", "note", text, "run headway doctor again")
    else:
        last = (err.strip().splitlines() or ["no message"])[-1]
        yield Check("import of torch", "wrong", f"it fails: {last[:200]}", "pip install --force-reinstall torch")
    yield _gpu(facts)


def _gpu(facts: dict[str, Any]) -> Check:
    """What torch has reported, or else the driver."""
    if facts.get("gpus"):
        return Check("GPU", "good", ", ".join(facts["gpus"]))
    names: list[str] = []
    with suppress(OSError, subprocess.SubprocessError):
        command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_DRIVER_SECONDS, check=True)
        names = [line.strip() for line in answer.stdout.splitlines() if line.strip()]
    if not names:
        return Check("GPU", "good", "none; headway uses the processor")
    if "torch" not in facts:
        return Check("GPU", "note", f"{', '.join(names)}; whether torch can use it was not found out")
    cuda = facts["cuda"]
    reason = f"torch, made for CUDA {cuda}, cannot use it" if cuda else "torch was made without CUDA"
    remedy = "pip install --force-reinstall torch, with the options for your driver from pytorch.org"
    return Check("GPU", "wrong", f"{', '.join(names)}, but {reason}", remedy)


def _without_names(check: Check) -> Check:
    """Without the home folder and the names of user and machine, so that everyone may read it."""
    home, names = os.path.expanduser("~"), [platform.node().partition(".")[0]]
    with suppress(Exception):  # there is no such user in some containers
        names.append(getpass.getuser())

    def hide(text: str) -> str:
        text = text.replace(os.path.realpath(home), "~").replace(home, "~") if len(home) > 1 else text
        for name in names:
            if len(name) > 2 and name not in ("root", "localhost"):
                text = re.sub(rf"(?<![\w-]){re.escape(name)}(?![\w-])", "NAME", text)
        return " ".join("".join(c if c.isprintable() else " " for c in text).split())

    return check._replace(text=hide(check.text), remedy=hide(check.remedy))
