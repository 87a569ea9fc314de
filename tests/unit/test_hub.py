"""Models of a hub by name: which files are fetched, which revision, and which file of a number format."""

from __future__ import annotations

import sys
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from headway.errors import UserError
from headway.io.hub import find_folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """A hub: the files of each `repository@revision`. Every call writes those that it asks for."""
    repositories: dict[str, list[str]] = {}

    def download(name: str, revision: str | None, allow_patterns: list[str], **_: Any) -> str:
        files = repositories.get(f"{name}@{revision or 'main'}")
        if files is None:
            raise OSError(f"404: revision {revision} does not exist\nsee the page")
        folder = tmp_path / name / (revision or "main")
        folder.mkdir(parents=True, exist_ok=True)
        for file in files:
            if any(fnmatch(file, pattern) for pattern in allow_patterns):
                (folder / file).parent.mkdir(exist_ok=True)
                (folder / file).touch()
        return str(folder)

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=download))
    return repositories


def fetched(name: str) -> list[str]:
    folder = find_folder(name)
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_safetensors_are_fetched_before_files_of_torch(hub: dict[str, list[str]]) -> None:
    torch_files = ["pytorch_model.bin", "optimizer.bin", "modeling.py", "tf_model.h5"]
    hub["a/both@main"] = ["config.json", "vocab.txt", "1_Pooling/config.json", "model.safetensors", *torch_files]
    hub["a/old@main"] = ["config.json", *torch_files]
    hub["a/old@v2"] = ["config.json", "pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]
    assert fetched("hf:a/both") == ["1_Pooling/config.json", "config.json", "model.safetensors", "vocab.txt"]
    assert fetched("hf:a/old") == ["config.json", "pytorch_model.bin"]
    assert len(fetched("hf:a/old@v2")) == 3
    with pytest.raises(UserError, match=r"there is no folder hf:a/old@v3, and the hub failed \(404: revision v3"):
        find_folder("hf:a/old@v3")
    for name in ("hf:a", "hf:a/b@", "hf:a/b:", "hf:a/b@x:y:z", "hf:../b", "hf:a/b@../c"):
        with pytest.raises(UserError, match="is not a hub name; write hf:owner/name, hf:owner/name@revision"):
            find_folder(name)


def test_a_number_format_names_a_gguf_file(hub: dict[str, list[str]]) -> None:
    hub["a/m-GGUF@main"] = ["m-Q4_K_M.gguf", "m-Q4_K_S.gguf", "m.q8_0.gguf", "mmproj-Q8_0.gguf", "config.json"]
    hub["a/m-GGUF@main"] += [f"BF16/m-BF16-0000{n}-of-00002.gguf" for n in (1, 2)]
    hub["a/two@main"] = ["a-Q8_0.gguf", "b-Q8_0.gguf"]
    assert find_folder("hf:a/m-GGUF:Q4_K_M").name == "m-Q4_K_M.gguf"
    assert find_folder("hf:a/m-GGUF:q4_k_s").name == "m-Q4_K_S.gguf"
    assert find_folder("hf:a/m-GGUF:Q8_0").name == "m.q8_0.gguf"
    parts = find_folder("hf:a/m-GGUF:BF16")
    assert parts.name == "m-BF16-00001-of-00002.gguf"
    assert parts.with_name("m-BF16-00002-of-00002.gguf").exists()
    with pytest.raises(UserError, match=r"name one .gguf file, but the hub has m-Q4_K_M.gguf, m-Q4_K_S.gguf; write"):
        find_folder("hf:a/m-GGUF:Q4_K")
    with pytest.raises(UserError, match=r"but the hub has a-Q8_0.gguf, b-Q8_0.gguf; write"):
        find_folder("hf:a/two:Q8_0")
    assert find_folder("hf:a/two:b-Q8_0").name == "b-Q8_0.gguf"
    with pytest.raises(UserError, match="but the hub has no such file"):
        find_folder("hf:a/two:Q2_K")
