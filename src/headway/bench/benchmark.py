"""Run a benchmark: take turns running each program in its own process, and collect the results."""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch.utils import collect_env

from headway.app.conversion import quantize
from headway.app.loading import find_device
from headway.app.recipes import find_model_config
from headway.bench.measurement import (
    MAX_SOURCE_TOKENS,
    NEW_TOKENS,
    PREFILL_TOKENS,
    PROMPT_TOKENS,
    TARGET_TOKENS,
    BenchJob,
    Kind,
)
from headway.config import from_dict, to_dict
from headway.engine.processor import INSTRUCTION_SET
from headway.errors import UserError, nearest
from headway.formats import native
from headway.formats.published import save_published
from headway.formats.usage import Usage
from headway.io.machine_memory import check_free_memory
from headway.learn.precision import choose_precision
from headway.nn.models import (
    CacheDtype,
    EncoderDecoder,
    EncoderDecoderConfig,
    ModelConfig,
    TransformerConfig,
    build,
    describe,
)
from headway.nn.models.describe import flop_per_token
from headway.nn.models.embeds import TokenEmbed

_CPU_FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
_PACKAGES = (
    "headway",
    "torch",
    "numpy",
    "numba",
    "tokenizers",
    "transformers",
    "ctranslate2",
    "faster-whisper",
    "llama-cpp-python",
    "sacrebleu",
)


def machine(device: torch.device | None = None) -> dict[str, Any]:
    """The processor, its cores and memory, package versions, and the GPU if `device` is one."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    flags = next((line for line in lines if line.startswith("flags")), "")
    packages = {}
    for name in _PACKAGES:
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    gpu: dict[str, Any] = {}
    if device is not None and device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        gpu = {"gpu": properties.name, "gpu_memory_bytes": properties.total_memory, "cuda": torch.version.cuda}
        gpu["compute_capability"] = f"{properties.major}.{properties.minor}"
        gpu["driver"] = collect_env.get_nvidia_driver_version(collect_env.run)
    elif device is not None and device.type != "cpu":
        gpu = {"gpu": device.type}
    return {
        **gpu,
        "processor": named[0] if named else platform.processor(),
        "cores": os.cpu_count(),
        "units": [unit for unit in _CPU_FEATURES if unit in flags.split()],
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "python": platform.python_version(),
        "packages": packages,
    }


def summarize(values: Sequence[float]) -> dict[str, Any]:
    """The minimum, median and maximum, and all values in order."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values), "values": list(values)}


HEADWAY, HEADWAY_MODULE = "headway", "headway.bench.headway_runner"
DTYPES = ("fp32", "int8", "int4")
_FINER_DTYPE = {"int4": "int8", "int8": "fp32", "bf16": "fp32"}  # the next finer format, for peers that lack a format


@dataclass(frozen=True)
class Peer:
    """Another program. `module` is the module to import, `package` what to install, `dtypes` maps number formats to the
    peer's names for them, `prepares` is whether it converts the published folder first, and `runs_on_gpus` whether the
    package that is installed by default does.
    """

    module: str
    package: str
    kinds: tuple[Kind, ...]
    dtypes: Mapping[str, str]
    prepares: bool = True
    runs_on_gpus: bool = False


PEERS = {
    "transformers": Peer(
        "transformers",
        "transformers>=5",
        ("decode", "prefill", "translate", "train", "load"),
        {"fp32": "fp32", "bf16": "bf16"},
        prepares=False,
        runs_on_gpus=True,
    ),
    "ctranslate2": Peer(
        "ctranslate2", "ctranslate2>=4.8", ("decode", "prefill", "translate"), {"fp32": "fp32", "int8": "int8"}
    ),
    "llama.cpp": Peer(
        "llama_cpp", "llama-cpp-python>=0.3", ("decode", "prefill"), {"fp32": "F32", "int8": "Q8_0", "int4": "Q4_0"}
    ),
}


@dataclass(frozen=True)
class Contender:
    """A program with one number format for its weights."""

    name: str
    dtype: str

    @property
    def title(self) -> str:
        return f"{self.name} {PEERS[self.name].dtypes[self.dtype] if self.name in PEERS else self.dtype}"

    @property
    def module(self) -> str:
        """The module that the program's process runs."""
        return f"headway.bench.peers.{self.name.replace('.', '_')}" if self.name in PEERS else HEADWAY_MODULE

    @property
    def prepares(self) -> bool:
        return self.name in PEERS and PEERS[self.name].prepares


def list_contenders(kind: Kind, dtypes: Sequence[str], against: Sequence[str]) -> list[Contender]:
    """headway in each of `dtypes`, and each peer in the same formats or the next finer ones that it supports."""
    contenders = [Contender(HEADWAY, dtype) for dtype in dtypes]
    for name in against:
        contenders += [Contender(name, _nearest_dtype(PEERS[name], dtype)) for dtype in dtypes]
    return list(dict.fromkeys(contenders))


def comparisons(contenders: Sequence[Contender]) -> dict[str, list[Contender]]:
    """The peers to compare with headway for each format, by headway's title."""
    ours = [program for program in contenders if program.name == HEADWAY]
    peers = [program for program in contenders if program.name != HEADWAY]
    return {entry.title: [p for p in peers if p.dtype == _nearest_dtype(PEERS[p.name], entry.dtype)] for entry in ours}


def _nearest_dtype(peer: Peer, dtype: str) -> str:
    while dtype not in peer.dtypes:
        dtype = _FINER_DTYPE[dtype]
    return dtype


def check_peers(kind: Kind, against: Sequence[str], device: torch.device) -> None:
    """Raise UserError for a peer that is unknown, does not support the benchmark or device, or is not installed."""
    for name in against:
        if name not in PEERS:
            raise UserError(f"unknown program {name!r} in --against; {nearest(name, PEERS)}")
        if kind not in PEERS[name].kinds:
            supporting = ", ".join(peer_name for peer_name, peer in PEERS.items() if kind in peer.kinds)
            raise UserError(f"{name} does not support bench {kind}; choose from: {supporting}")
        if device.type != "cpu" and not PEERS[name].runs_on_gpus:
            raise UserError(f"{name} is measured on CPUs only, not on device {device}; remove it, or use --device cpu")
    for name in against:
        if find_spec(PEERS[name].module) is None:
            package = PEERS[name].package
            raise UserError(f"{name} is not installed; run pip install '{package}'")


_BYTES_PER_WEIGHT = {"fp32": 4.0, "bf16": 4.0, "int8": 1.1, "int4": 0.6}  # maximum bytes per weight on disk
_CONTEXT_NEEDS = {
    "decode": (PROMPT_TOKENS + NEW_TOKENS, "generates up to"),
    "prefill": (PREFILL_TOKENS + 1, "encodes up to"),
    "translate": (max(MAX_SOURCE_TOKENS, TARGET_TOKENS + 1), "encodes or generates up to"),
}


def without_dropout(config: ModelConfig) -> ModelConfig:
    """The config without dropout, so that all programs do the same arithmetic."""

    def cleared(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: 0.0 if key == "dropout" else cleared(item) for key, item in value.items()}
        return [cleared(item) for item in value] if isinstance(value, list) else value

    return from_dict(ModelConfig, cleared(to_dict(config)))


def check_shape(kind: Kind, name: str, config: ModelConfig) -> None:
    """Raise UserError for a shape that the benchmark cannot use."""
    if kind == "translate" and not isinstance(config, EncoderDecoderConfig):
        raise UserError(
            f"shape {name!r} is not an encoder-decoder and cannot translate; choose one such as marian-base"
        )
    is_causal_lm = isinstance(config, TransformerConfig) and config.stack.causal and "vocabulary" in config.heads
    if kind in ("decode", "prefill", "train") and not is_causal_lm:
        raise UserError(f"shape {name!r} is not a language model, which {kind} needs; choose one such as llama-135m")
    context = config.context
    if kind == "train" and context is None:
        raise UserError(f"shape {name!r} has no context limit to fill; choose one that has, such as gpt-10m")
    needed, verb = _CONTEXT_NEEDS.get(kind, (0, ""))
    if context is not None and context < needed:
        raise UserError(f"shape {name!r} has a context of {context}, but {kind} {verb} {needed} tokens; choose another")


def check_space(
    kind: Kind, name: str, config: ModelConfig, programs: Sequence[Contender], folder: Path, device: torch.device
) -> None:
    """Raise UserError if the models do not fit in memory or on disk."""
    weight_bytes = describe(config)["weights_bytes"]
    parts = {"weights": weight_bytes, "file buffer": weight_bytes}
    if kind == "train":
        parts = {"weights": weight_bytes, "gradients": weight_bytes, "optimiser": 2 * weight_bytes}
    for place in {torch.device("cpu"), device}:
        check_free_memory(f"measuring {name}", parts, place, "choose a smaller --shape")
    needed = weight_bytes + sum(
        round(weight_bytes / 4 * _BYTES_PER_WEIGHT[p.dtype])
        for p in programs
        if p.prepares or p.dtype in ("int8", "int4")
    )
    needed += weight_bytes if any(program.name == "llama.cpp" for program in programs) else 0  # before quantisation
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"measuring {name} needs {needed:,} bytes of disk space, but {folder} has {free:,} free; "
            "choose a smaller --shape, or set TMPDIR to a folder with more space"
        )


def prepare_models(kind: Kind, config: ModelConfig, seed: int, programs: Sequence[Contender], folder: Path) -> None:
    """Initialise a random model and write it, in a published format if peers read it, and quantised to 8 and 4 bits.

    Raises UserError for a shape that the published formats cannot represent.
    """
    model, path = build(config, seed), folder / "model"
    if isinstance(model, EncoderDecoder) and isinstance(model.decoder.embed, TokenEmbed):
        with torch.no_grad():  # Marian's decoder start embedding is zero
            model.decoder.embed.table[-1] = 0.0
    if kind == "load" or any(program.name != HEADWAY for program in programs):
        usage = Usage()
        if isinstance(
            config, EncoderDecoderConfig
        ):  # Marian's special tokens, so that all programs start and stop alike
            usage = Usage("marian", ends=(0,), pad=config.vocab_size - 1, decoder_start=config.vocab_size - 1)
        save_published(model, config, path, usage)
    else:
        native.save_model(model, config, path)
    if kind == "load":  # load measures quantisation, too
        return
    for program in programs:
        if program.name == HEADWAY and program.dtype in ("int8", "int4"):
            quantize(path, folder / f"{HEADWAY}-{program.dtype}", program.dtype)  # type: ignore[arg-type]


SHAPES: dict[Kind, str] = {
    "decode": "llama-135m",
    "prefill": "llama-135m",
    "translate": "marian-base",
    "train": "gpt-10m",
    "load": "llama-135m",
}
BATCH_SIZES: dict[Kind, int] = {"decode": 1, "prefill": 1, "translate": 32, "train": 12, "load": 1}
GOALS: dict[Kind, str] = {"translate": "sentences_per_second", "load": "seconds"}  # otherwise tokens_per_second
REPEATS = 3
_PROBE = "headway.bench.probe"
_BF16_FEATURES = ("avx512_bf16", "amx_bf16")  # CPU features that make training in bf16 fast

Note = Callable[[str], None]


@dataclass(frozen=True)
class BenchRequest:
    """What to measure. `dtypes` are the number formats of headway's weights (empty: all that the benchmark has); `rows`
    is the batch size (None: the benchmark's default).
    """

    kind: Kind
    shape: str | None = None
    dtypes: tuple[str, ...] = ()
    against: tuple[str, ...] = ()
    rows: int | None = None
    threads: int | None = None
    seed: int = 0
    repeats: int = REPEATS
    backend: str = "auto"
    deterministic: bool = False
    cache: CacheDtype | None = None
    timeline: Path | None = None
    device: str = "cpu"


def run(request: BenchRequest, note: Note = lambda line: None) -> dict[str, Any]:
    """Measure, and return the settings, machine, bounds, and all values by program. `note` receives progress lines.

    Raises UserError for invalid requests before measuring anything.
    """
    config, contenders, device = check(request)
    kind, shape = request.kind, request.shape or SHAPES[request.kind]
    with tempfile.TemporaryDirectory(prefix="headway-bench-") as folder:
        check_space(kind, shape, config, contenders, Path(folder), device)
        note(f"initialising {shape} with random weights")
        prepare_models(kind, config, request.seed, contenders, Path(folder))
        rows = BATCH_SIZES[kind] if request.rows is None else request.rows
        threads, context = request.threads or torch.get_num_threads(), config.context
        settings: dict[str, Any] = {"backend": request.backend, "deterministic": request.deterministic}
        settings |= {"cache": request.cache, "device": str(device)}
        settings["timeline"] = request.timeline and str(request.timeline)
        job = BenchJob(kind, "fp32", folder, rows, threads, request.seed, config.vocab_size, context, **settings)
        for program in contenders:
            if program.prepares:
                note(f"preparing {program.title}")
                _run_process(program.module, "prepare", replace(job, form=program.dtype))
        # The runs of each program by title, and those of the probe, in turns.
        runs: dict[str, list[dict[str, float]]] = {program.title: [] for program in contenders}
        probes: list[dict[str, float]] = []
        goal = GOALS.get(kind, "tokens_per_second")
        for repeat in range(request.repeats):
            if kind != "load":
                probes.append(_run_process(_PROBE, "measure", job))
            for program in contenders:
                runs[program.title].append(_run_process(program.module, "measure", replace(job, form=program.dtype)))
                value = runs[program.title][-1][goal]
                progress = f"run {repeat + 1} of {request.repeats}: {program.title}"
                note(f"{progress}, {value:,.4g} {goal.replace('_', ' ')}")
    return _build_report(request, shape, config, job, contenders, runs, probes)


def check(request: BenchRequest) -> tuple[Any, list[Contender], torch.device]:
    """The model to measure, the programs, and the device; UserError for an invalid request."""
    kind, shape, device = request.kind, request.shape or SHAPES[request.kind], find_device(request.device)
    check_peers(kind, request.against, device)
    dtypes = _requested_dtypes(request, device)
    if request.timeline is not None:
        check_timeline(request.timeline, kind, dtypes, request.backend, device)
    if device.type != "cpu" and (request.backend == "cpu" or request.cache not in (None, "fp32")):
        option = f"a KV cache in {request.cache}" if request.backend != "cpu" else "--backend cpu"
        raise UserError(f"{option} needs a CPU, not device {device}; remove it, or use --device cpu")
    if request.rows is not None and kind == "load":
        raise UserError(f"bench load has no batch, but --rows is {request.rows}; remove --rows")
    config = without_dropout(find_model_config(shape))
    check_shape(kind, shape, config)
    return config, list_contenders(kind, dtypes, request.against), device


def check_timeline(path: Path, kind: Kind, dtypes: Sequence[str], backend: str, device: torch.device) -> None:
    """Raise UserError if there would be no timeline or more than one."""
    if kind != "decode" or backend == "torch" or device.type != "cpu":
        raise UserError(
            f"--timeline needs bench decode with the engine, not bench {kind} with backend {backend} on device "
            f"{device}; remove --timeline"
        )
    if len(dtypes) > 1:
        raise UserError(
            f"--timeline needs one number format for the weights, not {', '.join(dtypes)}; choose one with --weights"
        )
    if not path.parent.is_dir():
        raise UserError(f"the timeline's folder {path.parent} does not exist; create it first")


def _requested_dtypes(request: BenchRequest, device: torch.device) -> tuple[str, ...]:
    """The number formats of headway's weights, or the training precisions."""
    on_cpu = device.type == "cpu"
    if request.kind == "train" and request.dtypes not in ((), ("fp32",)):
        raise UserError(f"training needs fp32 weights, not {request.dtypes[0]}; remove --weights")
    if "bf16" in request.dtypes and on_cpu and request.backend != "torch":
        raise UserError("bf16 weights need torch on a CPU; pass --backend torch, or choose other --weights")
    if device.type == "mps" and set(request.dtypes) - {"fp32", "bf16"}:
        raise UserError(f"{request.dtypes[0]} weights need a CPU or a CUDA GPU, not device {device}; use --device cpu")
    if on_cpu and request.kind != "train":
        return request.dtypes or DTYPES
    if on_cpu:
        has_bf16 = "HEADWAY_FORM" not in os.environ and any(unit in machine()["units"] for unit in _BF16_FEATURES)
    else:
        has_bf16 = choose_precision("auto", torch.nn.Module(), device).name == "bf16"
    floats = ("fp32", "bf16") if has_bf16 else ("fp32",)
    return request.dtypes or (floats if request.kind == "train" or device.type == "mps" else (*floats, *DTYPES[1:]))


# Environment variables that limit torch, MKL, oneDNN and CTranslate2 to the instruction set in HEADWAY_FORM. llama.cpp
# has no such variable; it uses the instruction set it was compiled for.
_INSTRUCTION_LIMITS = {
    "vnni": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI", "CT2_FORCE_CPU_ISA": "AVX512"},
    "avx2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "CT2_FORCE_CPU_ISA": "AVX2",
    },
    "portable": {
        "ATEN_CPU_CAPABILITY": "default",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "CT2_FORCE_CPU_ISA": "GENERIC",
    },
}


def _run_process(module: str, action: str, job: BenchJob) -> dict[str, float]:
    """Run a module for a job. Raises UserError if the module reports one, and RuntimeError if it fails."""
    threads = str(job.threads)
    limits = _INSTRUCTION_LIMITS.get(os.environ.get("HEADWAY_FORM", ""), {})
    thread_limits = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), threads)
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, **thread_limits, **limits, "HF_HUB_OFFLINE": "1", "PYTHONPATH": path}
    if module == HEADWAY_MODULE and job.kind not in ("train", "load"):
        environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in the commands that generate text
    command = [sys.executable, "-P", "-m", module, action, json.dumps(asdict(job))]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    lines = process.stdout.strip().splitlines()
    if process.returncode == -signal.SIGKILL:
        raise UserError(f"{module} was killed, probably because it ran out of memory; choose a smaller --shape")
    if process.returncode or not lines:
        error_lines = process.stderr.strip().splitlines()
        raise RuntimeError(
            f"{module} exited with {process.returncode}: {error_lines[-1] if error_lines else 'no error message'}"
        )
    output = json.loads(lines[-1])
    if "error" in output:
        raise UserError(output["error"])
    return output


def _build_report(
    request: BenchRequest,
    shape: str,
    config: ModelConfig,
    job: BenchJob,
    contenders: Sequence[Contender],
    runs: dict[str, list[dict[str, float]]],
    probes: list[dict[str, float]],
) -> dict[str, Any]:
    goal = GOALS.get(job.kind, "tokens_per_second")
    measured = {
        title: {name: summarize([run[name] for run in stats]) for name in stats[0]} for title, stats in runs.items()
    }
    for stats in measured.values():
        stats["peak_bytes"] = stats["peak_bytes"]["max"]
    bounds = (
        {name: summarize([probe[name] for probe in probes]) for name in probes[0] if name != "peak_bytes"}
        if probes
        else {}
    )
    settings = {"shape": shape, "parameters": describe(config)["parameters"], "rows": job.rows}
    settings |= {"threads": job.threads, "seed": job.seed, "repeats": request.repeats}
    settings |= {"backend": job.backend, "deterministic": job.deterministic, "cache": job.cache, "device": job.device}
    # The fraction of the machine's limit that each program reaches.
    if "read_bytes_per_second" in bounds:
        for stats in measured.values():
            if "weight_bytes" in stats:
                stats["weight_bytes"] = round(stats["weight_bytes"]["median"])
                steps = stats["tokens_per_second"]["median"] / job.rows
                stats["share_of_bound"] = steps * stats["weight_bytes"] / bounds["read_bytes_per_second"]["median"]
    if "flop_per_second" in bounds and not isinstance(config, EncoderDecoderConfig):
        with torch.device("meta"):
            forward = flop_per_token(config.build(None), None)
        # Without attention: 2 FLOP per weight, plus 4 in training.
        flop = 3 * forward if job.kind == "train" else forward
        for title, stats in measured.items():
            stats["flop_per_second"] = stats["tokens_per_second"]["median"] * flop
            bound = bounds.get(f"{title.split()[-1]}_flop_per_second", bounds["flop_per_second"])
            stats["share_of_bound"] = stats["flop_per_second"] / bound["median"]
    times: dict[str, dict[str, float]] = {}  # headway's speedup, by medians
    for own_title, peers in comparisons(contenders).items():
        ours = measured[own_title][goal]["median"]
        ratios = {peer.title: ours / measured[peer.title][goal]["median"] for peer in peers}
        times[own_title] = {title: 1 / ratio if goal == "seconds" else ratio for title, ratio in ratios.items()}
    return {
        "kind": job.kind,
        **settings,
        "instructions": INSTRUCTION_SET,
        "goal": goal,
        "bounds": bounds,
        "programs": measured,
        "times": times,
        "machine": machine(torch.device(job.device)),
    }
