"""`headway bench`: tiny shapes, and what is refused before anything is measured."""

from __future__ import annotations

import ast
import json
from importlib import import_module, metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from headway.app.cli import main as cli
from headway.bench import benchmark, headway_runner
from headway.bench.benchmark import (
    PEERS,
    BenchRequest,
    Contender,
    check_space,
    comparisons,
    list_contenders,
    prepare_models,
    without_dropout,
)
from headway.bench.measurement import NEW_TOKENS, PROMPT_TOKENS, BenchJob
from headway.errors import UserError
from headway.formats.published import save_published
from headway.learn.precision import Precision
from headway.nn.models import ModelConfig, build
from headway.nn.models.presets import decoder, gpt, marian, preset
from package_trees import nodes, trees

LLAMA = decoder(64, 2, 4, 2, 128, 96, context=1024)
GPT = gpt(32, 1, 2, vocab_size=40, context=16)
MARIAN = marian(64, 1, 4, 128, 60)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shapes")
    for name, config in (("llama", LLAMA), ("gpt", GPT), ("marian", MARIAN)):
        save_published(build(config), config, folder / name)
    return folder


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headway.bench.measurement._MIN_SECONDS", 0.0)


def ask(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, str, str]:
    code = cli.main(["bench", *map(str, argv)])
    found = capsys.readouterr()
    return code, found.out, found.err


def job(kind: str, form: str, folder: Path, config: ModelConfig, rows: int) -> BenchJob:
    context = getattr(config, "context", None)
    return BenchJob(kind, form, str(folder), rows, torch.get_num_threads(), 0, config.vocab_size, context)  # type: ignore[arg-type]


def test_a_shape_by_the_command(shapes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--shape", shapes / "llama", "--weights", "int8", "--rows", 2, "--threads", 1, "--repeats", 1)
    code, out, err = ask(capsys, "decode", *words, "--json")
    assert code == 0, err
    found = json.loads(out.splitlines()[-1])
    assert (found["kind"], found["rows"], found["threads"], found["repeats"]) == ("decode", 2, 1, 1)
    quick = found["programs"]["headway int8"]
    assert quick["tokens_per_second"]["median"] > 0
    assert quick["peak_bytes"] > 1e7
    share = quick["tokens_per_second"]["median"] / 2 * quick["weight_bytes"]
    assert quick["share_of_bound"] == pytest.approx(share / found["bounds"]["read_bytes_per_second"]["median"])
    assert found["machine"]["packages"]["torch"] == metadata.version("torch")


def test_programs_run_in_turn(
    shapes: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, str, str]] = []
    speeds = {
        "headway.bench.headway_runner": iter((30.0, 60.0, 90.0)),
        "headway.bench.peers.ctranslate2": iter((1.0, 40.0, 20.0)),
    }

    def process(module: str, action: str, job: BenchJob) -> dict[str, float]:
        told.append((module.rpartition(".")[2], action, job.form))
        if action == "prepare":
            return {}
        if module == "headway.bench.probe":
            return {"flop_per_second": 1e9, "peak_bytes": 5}
        speed = next(speeds[module])
        return {"sentences_per_second": speed, "tokens_per_second": 32 * speed, "peak_bytes": 1000 * speed}

    monkeypatch.setattr(benchmark, "_run_process", process)
    monkeypatch.setattr("headway.bench.benchmark.find_spec", lambda name: name)
    words = ("--shape", shapes / "marian", "--weights", "int4", "--against", "ctranslate2")
    code, out, err = ask(capsys, "translate", *words)
    assert code == 0
    turn = [("probe", "measure", "fp32"), ("headway_runner", "measure", "int4"), ("ctranslate2", "measure", "int8")]
    assert told == [("ctranslate2", "prepare", "int8"), *3 * turn]
    assert "run 3 of 3: ctranslate2 int8, 20 sentences per second" in err
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert lines[1] == "program sentences per second min max peak MB headway is"
    assert lines[3] == "ctranslate2 int8 20 1 40 0 3.00 x in int4"


def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> list[BenchJob]:
    """Let the benchmark find a GPU; return the jobs that its processes get."""
    jobs: list[BenchJob] = []

    def process(module: str, action: str, job: BenchJob) -> dict[str, float]:
        jobs.append(job)
        if module == "headway.bench.probe":
            bounds = {"read_bytes_per_second": 2e12} if job.kind == "decode" else {"flop_per_second": 6e13}
            return {**bounds, **({} if job.kind == "decode" else {"bf16_flop_per_second": 9e14}), "peak_bytes": 5}
        speeds = {"tokens_per_second": 1e5, "sentences_per_second": 100.0, "seconds": 0.5, "weight_bytes": 4e6}
        return {**speeds, "peak_bytes": 3e9}

    gpu = {"gpu": "NVIDIA H100", "driver": "570.86", "gpu_memory_bytes": 8e10, "packages": {}}
    monkeypatch.setattr(benchmark, "_run_process", process)
    monkeypatch.setattr(benchmark, "find_device", torch.device)
    monkeypatch.setattr(benchmark, "machine", lambda device: gpu | {"device": str(device)})
    monkeypatch.setattr(benchmark, "choose_precision", lambda *_: Precision("bf16", ""))
    monkeypatch.setattr(benchmark, "check_free_memory", lambda *_: None)
    monkeypatch.setattr(benchmark, "prepare_models", lambda *_: None)
    return jobs


def test_all_tables_of_a_gpu_by_one_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = on_a_gpu(monkeypatch)
    code, out, err = ask(capsys, "--device", "cuda", "--against", "transformers", "--repeats", 1)
    assert code == 0, err
    lines = out.splitlines()
    titles = [line.split(",")[0] for line in lines if "NVIDIA H100, 570.86, medians of 1 runs" in line]
    assert titles == ["decode", "prefill", "train", "translate", "load"]
    assert sum(line.split()[:1] == ["program"] and "peak GPU MB" in line for line in lines) == 5
    assert "this GPU: 900000.0 GFLOP/s in bf16 matrix products" in out
    assert {job.device for job in jobs} == {"cuda"}
    programs = [" ".join(line.split()[:2]) for line in lines]
    assert [programs.count(f"headway {dtype}") for dtype in ("fp32", "bf16", "int8", "int4")] == [5, 5, 4, 4]
    assert programs.count("transformers bf16") == 5
    out = ask(capsys, "--device", "cuda", "--against", "transformers", "--repeats", 1, "--json")[1]
    reports = json.loads(out.splitlines()[-1])["benchmarks"]
    assert all(report["machine"]["gpu"] == "NVIDIA H100" and report["device"] == "cuda" for report in reports)
    train = reports[2]["programs"]
    assert train["headway bf16"]["share_of_bound"] == pytest.approx(train["headway fp32"]["share_of_bound"] / 15)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("decode", "--cache", "int8"), "a KV cache in int8 needs a CPU, not device cuda; remove it, or use"),
        (("decode", "--backend", "cpu"), "--backend cpu needs a CPU, not device cuda; remove it, or use"),
        (("decode", "--against", "llama.cpp"), "llama.cpp is measured on CPUs only, not on device cuda; remove it"),
        (("decode", "--timeline", "file"), "not bench decode with backend auto on device cuda; remove --timeline"),
    ],
)
def test_what_a_gpu_refuses(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], message: str
) -> None:
    jobs = on_a_gpu(monkeypatch)
    code, out, err = ask(capsys, *words, "--device", "cuda")
    assert (code, out, err.count("\n"), jobs) == (2, "", 1, [])
    assert message in err


def test_a_gpu_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = SimpleNamespace(name="NVIDIA H100", total_memory=85e9, major=9, minor=0)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda device: properties)
    monkeypatch.setattr("torch.utils.collect_env.get_nvidia_driver_version", lambda run: "570.86")
    found = benchmark.machine(torch.device("cuda"))
    names = {"gpu": "NVIDIA H100", "gpu_memory_bytes": 85e9, "compute_capability": "9.0", "driver": "570.86"}
    assert {**found, **names} == found


@pytest.mark.usefixtures("few_steps")
@pytest.mark.parametrize(
    ("kind", "config", "form", "value"),
    [
        ("decode", LLAMA, "fp32", "tokens_per_second"),
        ("decode", LLAMA, "int4", "tokens_per_second"),
        ("prefill", LLAMA, "int8", "tokens_per_second"),
        ("translate", MARIAN, "int8", "sentences_per_second"),
        ("train", GPT, "fp32", "tokens_per_second"),
        ("train", GPT, "bf16", "tokens_per_second"),
        ("load", LLAMA, "int8", "seconds"),
    ],
)
def test_each_kind(tmp_path: Path, kind: str, config: ModelConfig, form: str, value: str) -> None:
    threads = torch.get_num_threads()
    prepare_models(kind, without_dropout(config), 0, [Contender("headway", form)], tmp_path)  # type: ignore[arg-type]
    found = headway_runner.measure(job(kind, form, tmp_path, config, rows=2))
    assert found[value] > 0
    assert torch.get_num_threads() == threads


@pytest.mark.usefixtures("few_steps")
@pytest.mark.parametrize(("kind", "config"), [("prefill", LLAMA), ("translate", MARIAN), ("train", GPT), ("load", GPT)])
def test_transformers_does_each_kind(tmp_path: Path, kind: str, config: ModelConfig) -> None:
    from headway.bench.peers import transformers  # the rest of the package never does that

    program = Contender("transformers", "fp32")
    prepare_models(kind, without_dropout(config), 0, [program], tmp_path)  # type: ignore[arg-type]
    found = transformers.measure(job(kind, "fp32", tmp_path, config, rows=2))
    assert all(value > 0 for value in found.values())


@pytest.mark.parametrize(
    ("name", "kind", "config", "form"),
    [
        ("ctranslate2", "decode", LLAMA, "int8"),
        ("ctranslate2", "prefill", LLAMA, "fp32"),
        ("ctranslate2", "translate", MARIAN, "int8"),
        ("llama.cpp", "decode", LLAMA, "int4"),
        ("llama.cpp", "prefill", LLAMA, "fp32"),
    ],
)
def test_the_other_peers_where_they_are_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: str, config: ModelConfig, form: str
) -> None:
    # Two times are subtracted, which must not drown in what other programs do.
    monkeypatch.setattr("headway.bench.measurement._MIN_SECONDS", 0.6)
    program = Contender(name, form)
    pytest.importorskip(PEERS[name].module)
    peer = import_module(program.module)
    prepare_models(kind, without_dropout(config), 0, [program], tmp_path)  # type: ignore[arg-type]
    asked = job(kind, form, tmp_path, config, rows=2)
    peer.prepare(asked)
    assert all(value > 0 for value in peer.measure(asked).values())


def test_weights_that_are_read_are_counted(tmp_path: Path) -> None:
    """Without the embedding, of which a step reads a row, where the head is another matrix."""
    for tie, tables in ((True, 1), (False, 1)):
        config = decoder(64, 1, 4, 4, 128, 96, tie=tie)
        folder = tmp_path / str(tie)
        prepare_models("decode", config, 0, [Contender("headway", "fp32")], folder)
        block = 4 * 64 * 64 + 3 * 64 * 128 + 2 * 64
        weights = headway_runner.measure(job("decode", "fp32", folder, config, rows=1))["weight_bytes"]
        assert weights == 4 * (block + 64 + tables * 96 * 64)


def test_prompts_are_ragged_and_repeat(tmp_path: Path) -> None:
    many = job("decode", "fp32", tmp_path, LLAMA, rows=8)
    lengths = sorted(map(len, many.prompts()))
    assert (lengths[0], lengths[-1], len(set(lengths))) == (PROMPT_TOKENS // 2, PROMPT_TOKENS, 8)
    assert many.prompts() == many.prompts()
    assert [len(row) for row in job("decode", "int8", tmp_path, LLAMA, rows=1).prompts()] == [PROMPT_TOKENS]
    sources = job("translate", "fp32", tmp_path, MARIAN, rows=4).sources()
    assert all(row[-1] == 0 and 0 < min(row[:-1]) <= max(row) < MARIAN.vocab_size - 1 for row in sources)


def test_peers_are_measured_in_the_nearest_form_they_have() -> None:
    found = list_contenders("decode", ("fp32", "int4"), ("transformers", "ctranslate2", "llama.cpp"))
    assert [program.title for program in found] == [
        "headway fp32", "headway int4", "transformers fp32", "ctranslate2 fp32", "ctranslate2 int8", "llama.cpp F32",
        "llama.cpp Q4_0",
    ]  # fmt: skip
    beside = {own: [peer.title for peer in peers] for own, peers in comparisons(found).items()}
    assert beside["headway int4"] == ["transformers fp32", "ctranslate2 int8", "llama.cpp Q4_0"]


def test_dropout_is_left_out() -> None:
    config = without_dropout(preset("gpt2"))
    assert config.embed.dropout == config.stack.blocks[3].dropout == 0.0  # type: ignore[union-attr]
    assert without_dropout(LLAMA) == LLAMA


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("decod",), "invalid choice: 'decod'"),
        (("decode", "--shape", "llama-136m"), "'llama-136m' is not a recipe, preset, run or model; did you mean"),
        (("decode", "--shape", "bert-base"), "shape 'bert-base' is not a language model, which decode needs"),
        (
            ("decode", "--shape", "gpt-1m"),
            f"a context of 64, but decode generates up to {PROMPT_TOKENS + NEW_TOKENS} tokens",
        ),
        (("translate", "--shape", "gpt2"), "shape 'gpt2' is not an encoder-decoder and cannot translate"),
        (("train", "--shape", "shakespeare"), "shape 'shakespeare' has no context limit to fill"),
        (("train", "--weights", "int8"), "training needs fp32 weights, not int8; remove --weights"),
        (("load", "--rows", "2"), "bench load has no batch, but --rows is 2; remove --rows"),
        (("decode", "--weights", "int2"), "invalid choice: 'int2'"),
        (("decode", "--weights", "bf16"), "bf16 weights need torch on a CPU; pass --backend torch, or choose"),
        (("decode", "--against", "vlm"), "unknown program 'vlm' in --against; choose from: ctranslate2"),
        (
            ("translate", "--against", "llama.cpp"),
            "llama.cpp does not support bench translate; choose from: transformers",
        ),
        (("decode", "--threads", "5000"), "5000 threads are too many for"),
        (("--shape", "gpt2"), "--shape needs one benchmark; choose decode, prefill, train, translate or load"),
        (("--against", "ctranslate2"), "ctranslate2 does not support bench train; choose from: transformers"),
        (("--device", "cuda"), "device 'cuda' is not available here (Torch not compiled with CUDA enabled); use"),
        (("decode", "--repeats", "0"), "'0' is not an integer of at least 1"),
        (("decode", "--shape", "gpt3-175b"), "measuring gpt3-175b needs 1,396,834,074,624 bytes"),
    ],
)
def test_what_is_refused(capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str) -> None:
    code, out, err = ask(capsys, *words)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_a_peer_that_is_not_installed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headway.bench.benchmark.find_spec", lambda name: None)
    code, _, err = ask(capsys, "decode", "--against", "transformers,llama.cpp")
    assert code == 2
    assert err == ("headway: transformers is not installed; run pip install 'transformers>=5'\n")


def test_a_disk_that_is_too_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=1))
    with pytest.raises(UserError, match=r"bytes of disk space, but .* has 1 free; .* set TMPDIR"):
        check_space("decode", "tiny", LLAMA, [Contender("headway", "int8")], tmp_path, torch.device("cpu"))


def test_a_process_that_fails(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"headway\.bench\.nothing exited with 1: .*No module named"):
        benchmark._run_process("headway.bench.nothing", "measure", job("train", "fp32", tmp_path, GPT, 1))


@pytest.mark.parametrize(
    ("code", "out", "message"),
    [(-9, "", "was killed, probably because it ran out of memory; choose"), (0, '{"error": "no; yes"}', "no; yes")],
)
def test_what_a_process_says_is_for_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, out: str, message: str
) -> None:
    done = SimpleNamespace(returncode=code, stdout=out, stderr="")
    monkeypatch.setattr("subprocess.run", lambda *words, **settings: done)
    with pytest.raises(UserError, match=message):
        benchmark._run_process("headway.bench.headway_runner", "measure", job("train", "fp32", tmp_path, GPT, 1))


def test_all_programs_run_as_on_the_same_lesser_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[dict[str, str]] = []

    def noted(*words: object, env: dict[str, str], **settings: object) -> SimpleNamespace:
        found.append(env)
        return SimpleNamespace(returncode=0, stdout="{}", stderr="")

    monkeypatch.setattr("subprocess.run", noted)
    for form in (None, "avx2"):
        if form is not None:
            monkeypatch.setenv("HEADWAY_FORM", form)
        benchmark._run_process("headway.bench.probe", "measure", job("decode", "fp32", tmp_path, GPT, 1))
    whole, lesser = found
    assert "ONEDNN_MAX_CPU_ISA" not in whole
    told = {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
    assert {**lesser, **told} == lesser


def test_the_peers_are_imported_by_nothing() -> None:
    """And their packages by nothing but their modules."""
    names = {"transformers", "ctranslate2", "llama_cpp"}
    for path, tree in trees().items():
        found: set[str] = set()
        for node in nodes(tree):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        assert not any(name.startswith("headway.bench.peers") for name in found), path
        if Path(path).parent.name != "peers":
            assert not names & {name.partition(".")[0] for name in found}, path


def test_requests_have_the_kind_s_own_shape() -> None:
    for kind, name in benchmark.SHAPES.items():
        benchmark.check_shape(kind, name, preset(name))
    assert BenchRequest("train").repeats == 3
