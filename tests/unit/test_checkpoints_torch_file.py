"""Files of torch.save, read by our own interpreter: the tensors are those of torch, and nothing in them is ever run."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from headway.errors import UserError
from headway.formats.published import load_published, save_published
from headway.formats.torch_file import TorchFile
from headway.nn.models import build
from headway.nn.models.presets import decoder

LLAMA = decoder(16, 2, 4, 2, 24, 31, tie=False)
FORMS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
HEAD = b"\x80\x02"


def saved(tree: Any, path: Path, zipped: bool = True) -> Path:
    torch.save(tree, path, _use_new_zipfile_serialization=zipped)
    return path


def pickled(program: bytes, path: Path, storage: bytes = bytes(24)) -> Path:
    """An archive of torch.save with this pickle."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/data/0", storage)
    return path


def refused(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        TorchFile(path)
    assert "\n" not in str(caught.value)
    assert "safetensors" in str(caught.value)
    return str(caught.value)


@FORMS
def test_tensors_are_those_of_torch(zipped: bool, tmp_path: Path) -> None:
    draws = torch.Generator().manual_seed(1)
    table = torch.randn(3, 4, generator=draws)
    dtypes = (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8)
    tensors = {
        **{str(dtype): torch.arange(5).to(dtype) for dtype in (*dtypes, torch.uint8, torch.bool)},
        **{"table": table, "transposed": table.t(), "row": table[1], "every second": table[:, ::2]},
        **{"scalar": torch.tensor(2.5), "empty": torch.zeros(0, 3), "parameter": nn.Parameter(table)},
    }
    for tree in (
        tensors,
        OrderedDict(tensors),
        {"epoch": 3, "state_dict": tensors},
        {"model": tensors, "lr": (0.1, None)},
    ):
        file = TorchFile(saved(tree, tmp_path / "a.bin", zipped))
        assert set(file.names()) == set(tensors)
        for name, tensor in tensors.items():
            assert file.get(name).dtype == tensor.dtype, name
            assert torch.equal(file.get(name), tensor), name
            file.done(name)
            assert torch.equal(file.get(name), tensor), name


@FORMS
def test_a_module_with_tied_weights(zipped: bool, tmp_path: Path) -> None:
    """As transformers writes it: an OrderedDict with the versions of modules, and storages that are shared."""
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))
    module[2].weight = module[0].weight  # type: ignore[union-attr]
    file = TorchFile(saved(module.half().state_dict(), tmp_path / "a.pt", zipped))
    assert all(torch.equal(file.get(name), tensor) for name, tensor in module.state_dict().items())
    assert file.get("0.weight").data_ptr() == file.get("2.weight").data_ptr()


@FORMS
def test_a_published_folder(zipped: bool, tmp_path: Path) -> None:
    """In one file or in shards, and after safetensors if there are both."""
    model = build(LLAMA)
    save_published(model, LLAMA, tmp_path)
    expected = load_published(tmp_path).model.state_dict()
    from safetensors.torch import load_file

    tensors = load_file(tmp_path / "model.safetensors")
    saved({}, tmp_path / "pytorch_model.bin", zipped)
    assert load_published(tmp_path)  # the broken file is not read
    (tmp_path / "model.safetensors").unlink()
    saved(tensors, tmp_path / "pytorch_model.bin", zipped)
    assert_equal(load_published(tmp_path).model, expected)
    (tmp_path / "pytorch_model.bin").unlink()
    half = len(tensors) // 2
    places = {}
    for number, names in enumerate((list(tensors)[:half], list(tensors)[half:]), 1):
        shard = f"pytorch_model-{number:05}-of-00002.bin"
        saved({name: tensors[name] for name in names}, tmp_path / shard, zipped)
        places |= dict.fromkeys(names, shard)
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    assert_equal(load_published(tmp_path).model, expected)


def assert_equal(model: nn.Module, expected: dict[str, torch.Tensor]) -> None:
    tensors = model.state_dict()
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in expected.items())


class Trap:
    """A pickle of it makes a file where it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("protocol", range(6))
def test_nothing_is_run(protocol: int, tmp_path: Path) -> None:
    program = pickle.dumps({"w": torch.zeros(1).numpy(), "trap": Trap(tmp_path / "trapped")}, protocol)
    refused(pickled(program, tmp_path / "a.bin"))
    (tmp_path / "b.bin").write_bytes(program)
    refused(tmp_path / "b.bin")
    assert not (tmp_path / "trapped").exists()


STORAGE = b"(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\x000X\3\0\0\0cpuK\x06tQ"
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"


def tensor(storage: bytes = STORAGE, numbers: bytes = b"K\0K\2K\3\x86K\3K\1\x86", function: bytes = REBUILD) -> bytes:
    """A mapping of one tensor, of shape (2, 3) in a storage of six numbers."""
    return HEAD + b"}(X\1\0\0\0a" + function + b"(" + storage + numbers + b"\x89NtRu."


@pytest.mark.parametrize(("program", "words"), [
    (tensor(function=b"cos\nsystem\n"), "calls os.system, which is never run"),
    (tensor(function=b"cbuiltins\neval\n"), "calls builtins.eval, which is never run"),
    (tensor(function=b"ctorch._utils\n_rebuild_tensor_v2 \n"), "calls torch._utils._rebuild_tensor_v2 , which is"),
    (tensor(function=b"X\4\0\0\0eval"), "calls a value, which is never run"),
    (HEAD + b"}(ios\nsystem\nu.", "uses the pickle instruction INST"),
    (HEAD + b"cos\nsystem\n)\x81.", "uses the pickle instruction NEWOBJ"),
    (HEAD + b"\x82\1.", "uses the pickle instruction EXT1"),
    (HEAD + b"cos\nsystem\n}b.", "has a _Name in its pickle where a dict belongs"),
    (tensor(STORAGE.replace(b"FloatStorage", b"load")), "refers to torch.load, which is not a storage"),
    (tensor(STORAGE.replace(b"ctorch\n", b"cos\n")), "refers to os.FloatStorage, which is not a storage"),
    (tensor(STORAGE.replace(b"K\x06", b"K\x07")), "has no storage '0' of 7 numbers"),
    (tensor(STORAGE.replace(b"K\x06", b"J\xff\xff\xff\xff")), "has a storage of -1 numbers"),
    (tensor(STORAGE.replace(b"\x000X", b"\x001X")), "has no storage '1'"),
    (tensor(numbers=b"K\1K\2K\3\x86K\3K\1\x86"), "has tensor 'a' beyond the end of its storage"),
    (tensor(numbers=b"K\0K\2K\3\x86K\4K\1\x86"), "has tensor 'a' beyond the end of its storage"),
    (tensor(numbers=b"K\0K\xffK\3\x86K\0K\0\x86"), "for which its storage has no numbers"),
    (tensor(numbers=b"K\0K\2\x85K\3K\1\x86"), "for which its storage has no numbers"),
    (tensor(numbers=b"J\xff\xff\xff\xffK\2K\3\x86K\3K\1\x86"), "for which its storage has no numbers"),
    (tensor(numbers=b"K\0K\2K\3\x86NK\1\x86"), "describes a tensor by something else"),
    (HEAD + b"]}h\0.", "contains a damaged pickle"),
    (HEAD + b"}(X\1\0\0\0au.", "has keys in its pickle"),
    (HEAD + b"}.", "contains 0 tensors"),
    (HEAD + b"K\5.", "does not contain a mapping"),
    (HEAD + b"}", "contains a pickle without an end"),
    (HEAD + b"S'a\\d'\n.", "uses the pickle instruction STRING"),
    (HEAD + b"\xff.", "uses the pickle instruction b'\\xff'"),
    (HEAD + b"}q\0X\5\0\0\0modelh\0s.", "contains 0 tensors"),  # a mapping that contains itself
    (HEAD + b"(q\0" + b"t" + b"\x86" * 3 + b".", "contains a damaged pickle"),
    (HEAD + b"N\x85q\0" + b"h\0h\0\x86q\0" * 200 + b"(Nh\0NNNtQ.", "refers to a value, which"),  # of 2 ** 200 parts
], ids=lambda value: value.split(" ", 1)[0] if isinstance(value, str) else "")  # fmt: skip
def test_what_is_no_tensor_is_refused_by_name(program: bytes, words: str, tmp_path: Path) -> None:
    assert words in refused(pickled(program, tmp_path / "a.bin"))


def test_the_program_of_these_tests_is_sound(tmp_path: Path) -> None:
    storage = torch.arange(6.0).numpy().tobytes()
    assert TorchFile(pickled(tensor(), tmp_path / "a.bin", storage)).get("a").tolist() == [[0, 1, 2], [3, 4, 5]]


def test_archives_that_torch_does_not_write(tmp_path: Path) -> None:
    whole = saved({"a": torch.ones(100)}, tmp_path / "a.bin").read_bytes()
    (tmp_path / "cut.bin").write_bytes(whole[:-50])
    assert "is not a readable zip archive" in refused(tmp_path / "cut.bin")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", tensor())
        archive.writestr("archive/data/0", bytes(24))
    (tmp_path / "packed.bin").write_bytes(buffer.getvalue())
    assert "has compressed or encrypted 'archive/data.pkl'" in refused(tmp_path / "packed.bin")
    with zipfile.ZipFile(tmp_path / "big.bin", "w") as archive:
        archive.writestr("archive/data.pkl", tensor())
        archive.writestr("archive/byteorder", "big")
    assert "is big-endian" in refused(tmp_path / "big.bin")
    with zipfile.ZipFile(tmp_path / "empty.bin", "w") as archive:
        archive.writestr("archive/version", "3")
    assert "has no data.pkl" in refused(tmp_path / "empty.bin")
    legacy = saved({"a": torch.ones(100)}, tmp_path / "b.bin", zipped=False).read_bytes()
    (tmp_path / "cut.bin").write_bytes(legacy[:-50])
    assert "ends within storage" in refused(tmp_path / "cut.bin")
