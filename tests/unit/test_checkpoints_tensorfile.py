"""safetensors files read by our own reader: equal to the library's, without a copy, and nothing unsound passes."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from format_models import GPT2, LLAMA, drawn, published_config
from safetensors.torch import load_file, save_file
from torch import Tensor

from headway.errors import UserError
from headway.formats.published import load_published, open_shards, save_published
from headway.formats.tensorfile import TensorFile
from headway.nn.models import build
from processes import Program

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]
DTYPES += [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint64, torch.uint32, torch.uint16, torch.uint8]
DTYPES += [torch.bool]


def tensors(seed: int = 1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    found = {str(dtype): torch.randint(0, 2, (3, 5), generator=generator).to(dtype) for dtype in DTYPES}
    return {**found, "scalar": torch.tensor(2.5), "empty": torch.empty(0, 4), "odd": torch.ones(3, dtype=torch.uint8)}


def content(header: Any, data: bytes = b"") -> bytes:
    """A whole file, sound or not."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(start: int, end: int, dtype: str = "F32", shape: tuple[int, ...] | None = None) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape or ((end - start) // 4,)), "data_offsets": [start, end]}


def test_it_reads_what_the_library_wrote(tmp_path: Path) -> None:
    save_file(tensors(), tmp_path / "a.safetensors", {"format": "pt"})
    file = TensorFile(tmp_path / "a.safetensors")
    assert file.metadata == {"format": "pt"}
    assert set(file.names()) == set(tensors())
    for name, expected in load_file(tmp_path / "a.safetensors").items():
        found = file.get(name)
        assert found.dtype == expected.dtype
        assert found.shape == expected.shape
        assert torch.equal(found.view(-1).view(torch.uint8), expected.view(-1).view(torch.uint8))


def test_tensors_that_lie_across_their_borders_are_copied(tmp_path: Path) -> None:
    values = torch.arange(4.0)
    header = json.dumps({"byte": entry(0, 1, "U8", (1,)), "x": entry(1, 17)}).encode()
    (tmp_path / "a.safetensors").write_bytes(content(header, b"\x07" + values.numpy().tobytes()))
    file = TensorFile(tmp_path / "a.safetensors")
    assert torch.equal(file.get("x"), values)


def test_what_is_written_to_a_tensor_never_reaches_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"x": torch.zeros(4096)}, path)
    before = path.read_bytes()
    file = TensorFile(path)
    file.get("x").fill_(1.0)
    assert path.read_bytes() == before
    file.done("x")  # pages that are given back come from the file again
    assert not file.get("x").any()


UNSOUND: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "0 bytes"),
    "header beyond the file": ((1 << 60).to_bytes(8, "little") + b"{}", "claims"),
    "header over the limit": ((100_000_001).to_bytes(8, "little") + b"{}", "limit"),
    "no JSON": (content(b"{]"), "not JSON"),
    "no UTF-8": (content(b'{"\xff": 1}'), "not JSON"),
    "a bomb of brackets": (content(b"[" * 100_000), "not JSON"),
    "a list": (content([]), "not a mapping"),
    "a name twice": (content(b'{"a": 1, "a": 2}'), "'a' twice"),
    "metadata of numbers": (content({"__metadata__": {"a": 1}}), "metadata"),
    "no description": (content({"a": {"dtype": "F32"}}), "data_offsets"),
    "an unknown dtype": (content({"a": entry(0, 4, "F4")}, b"0000"), "'F4'"),
    "a negative size": (content({"a": entry(0, 4, shape=(-1,))}, b"0000"), "shape"),
    "a true size": (content({"a": entry(0, 4, shape=(True,))}, b"0000"), "shape"),
    "another size": (content({"a": entry(0, 8, shape=(3,))}, b"00000000"), "in 8 bytes instead of 12"),
    "a huge size": (content({"a": entry(0, 0, shape=(0, 1 << 62, 1 << 62))}), "more than a file can contain"),
    "past the end": (content({"a": entry(0, 8)}, b"0000"), "ends before"),
    "backwards": (content({"a": entry(8, 4, shape=(1,))}, b"00000000"), "-4 bytes"),
    "overlap": (content({"a": entry(0, 8), "b": entry(4, 12)}, b"0" * 12), "overlaps"),
    "a gap": (content({"a": entry(0, 4), "b": entry(8, 12)}, b"0" * 12), "gap"),
    "more behind": (content({"a": entry(0, 4)}, b"0" * 8), "after its last"),
}


@pytest.mark.parametrize("case", UNSOUND)
def test_an_unsound_file_is_refused(tmp_path: Path, case: str) -> None:
    found, message = UNSOUND[case]
    (tmp_path / "a.safetensors").write_bytes(found)
    with pytest.raises(UserError, match=message):
        TensorFile(tmp_path / "a.safetensors")


def sharded(folder: Path) -> Path:
    """A small GPT-2 in two shards."""
    config = published_config(GPT2)
    save_published(drawn(config), config, folder)
    whole = load_file(folder / "model.safetensors")
    names = sorted(whole)
    (folder / "model.safetensors").unlink()
    parts = {"one.safetensors": names[::2], "two.safetensors": names[1::2]}
    for file, held in parts.items():
        save_file({name: whole[name] for name in held}, folder / file)
    weight_map = {name: file for file, held in parts.items() for name in held}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def change_index(folder: Path, change: Callable[[dict[str, str]], Any]) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))


def test_shards_are_one_model(tmp_path: Path) -> None:
    model = load_published(sharded(tmp_path))[0]
    again = drawn(published_config(GPT2))
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values()))


def test_shards_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    folder = sharded(tmp_path)
    change_index(folder, lambda names: names.update(more="one.safetensors"))
    with pytest.raises(UserError, match=r"one\.safetensors lacks tensor 'more'"):
        open_shards(folder)
    change_index(folder, lambda names: names.update(more="../one.safetensors"))
    with pytest.raises(UserError, match="not a file in its folder"):
        open_shards(folder)
    change_index(folder, lambda names: names.update(more="three.safetensors"))
    with pytest.raises(UserError, match=r"lacks the shard 'three\.safetensors'"):
        open_shards(folder)
    change_index(folder, lambda names: names.pop("more"))
    save_file(
        {**load_file(folder / "one.safetensors"), **load_file(folder / "two.safetensors")}, folder / "two.safetensors"
    )
    with pytest.raises(UserError, match=r"twice, in one\.safetensors and two\.safetensors"):
        open_shards(folder)


def test_what_is_stored_as_it_is_wanted_stays_in_the_file(tmp_path: Path) -> None:
    """Fused tensors too, where their parts lie in a row: gate and up do in the order of names, query and key do not."""
    config = published_config(LLAMA)
    save_published(build(config).half(), config, tmp_path)
    file, fused = tmp_path / "model.safetensors", "stack.blocks.1.mixer.qkv.weight"
    ours = in_the_file(tmp_path, torch.float16)
    assert all(ours.values())
    save_file(load_file(file), file, {"format": "pt"})  # in the order of names
    theirs = in_the_file(tmp_path, torch.float16)
    assert {name for name, mapped in theirs.items() if not mapped} == {fused.replace("1", "0"), fused}
    assert not any(in_the_file(tmp_path, torch.float32).values())
    before, model = file.read_bytes(), load_published(tmp_path, torch.float16).model
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    assert not any(weight.any() for weight in model.parameters())
    assert file.read_bytes() == before


def in_the_file(folder: Path, dtype: torch.dtype) -> dict[str, bool]:
    """Whether each weight of the model lies in the mapped file, and none beside its place."""
    size = (folder / "model.safetensors").stat().st_size
    model, exact = load_published(folder, dtype).model, load_published(folder, torch.float64).model
    for weight, expected in zip(model.parameters(), exact.parameters()):
        assert torch.equal(weight.double(), expected)
    return {name: weight.untyped_storage().nbytes() == size for name, weight in model.named_parameters()}


PEAK = """
import resource, sys, torch
from pathlib import Path
from headway.formats.published import load_published
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
model = load_published(Path(sys.argv[1]), getattr(torch, sys.argv[2]))[0]
size = sum(p.numel() * p.element_size() for p in model.parameters())
print((peak() - before) / size)
"""


@pytest.fixture(scope="module")
def half_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """45M parameters in fp16: large beside what a process wins and loses by itself."""
    folder = tmp_path_factory.mktemp("half")
    config = published_config(LLAMA, hidden_size=768, num_hidden_layers=4, intermediate_size=3072, vocab_size=8000)
    save_published(build(config).half(), config, folder)
    return folder


@pytest.mark.parametrize("target", ["float16", "float32"])
def test_loading_takes_little_more_than_the_model(half_llama: Path, tmp_path: Path, target: str) -> None:
    """Beside what torch itself takes; the figure for 1.1B parameters is in benchmarks/results/load.json."""
    out, err = Program(tmp_path, PEAK, str(half_llama), target).wait()
    assert float(out or "inf") < 1.3, err


@pytest.mark.skipif(sys.platform != "linux", reason="reserves memory for private maps")
def test_a_file_larger_than_memory_is_mapped(tmp_path: Path) -> None:
    """A sparse file: its tensors are views that cost nothing until they are read."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    rows = 4 * memory // (2 << 20)
    header = content({"w": entry(0, rows << 21, "BF16", (rows, 1 << 20))})
    with open(tmp_path / "a.safetensors", "wb") as file:
        file.write(header)
        file.truncate(len(header) + (rows << 21))
    tensor = TensorFile(tmp_path / "a.safetensors").get("w")
    assert tensor.shape == (rows, 1 << 20)
    assert not tensor[-1].any()
