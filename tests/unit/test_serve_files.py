"""Files of a served model that are overwritten, cut, removed or replaced change no answer of a fingerprint."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chat_models import echo_model
from serve_models import stories

import headway as hw
from headway.app.conversion import import_model
from headway.formats.open import open_model
from headway.formats.tensorfile import MappedFile
from headway.serve import models as serving
from headway.serve.engine_loop import open_engine_loop
from headway.serve.http_errors import StatusError
from headway.serve.interfaces import ReadyModel
from headway.serve.models import LoadOptions, ServedModels

KINDS = ("llama2.c", "published", "native", "quantised", "gguf")


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Path:
    """One small model in each form that is read."""
    folder = tmp_path_factory.mktemp("originals")
    model = folder / "llama2.c/model.bin"
    model.parent.mkdir()
    shutil.copy(stories(data_dir), model)
    shutil.copy(data_dir / "weights/tok512.bin", model.parent)
    for each in ("published", "gguf"):
        (folder / each).mkdir()
    hw.export(model, folder / "published/model")
    hw.export(model, folder / "gguf/model.gguf")
    hw.quantize(model, folder / "quantised/model", "int8")
    import_model(open_model(model), folder / "native/model")
    return folder


@pytest.fixture
def place(originals: Path, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A writable copy of one of them; files are looked at with each request."""
    monkeypatch.setattr(serving, "_CHECK_SECONDS", 0.0)
    shutil.copytree(originals / request.param, tmp_path / "served")
    for path in (tmp_path / "served").rglob("*"):
        path.chmod(0o755)
    return next(path for path in (tmp_path / "served").iterdir() if path.stem == "model")


def files_of(place: Path) -> list[Path]:
    return [path for path in sorted(place.parent.rglob("*")) if path.is_file() and path.suffix != ".md"]


def text_of(ready: ReadyModel) -> str:
    return str(ready.model.generate("Once upon a time", max_new_tokens=4, temperature=0.0))


def served(place: Path, work: Callable[[ServedModels], Awaitable[None]], weights: str | None = None) -> None:
    async def inside() -> None:
        options = LoadOptions("cpu", weights, "torch")  # type: ignore[arg-type]
        models = ServedModels([place], [], options, open_engine_loop)
        await models.start()
        try:
            await work(models)
        finally:
            await models.close(1)

    asyncio.run(inside())


async def answer(models: ServedModels) -> tuple[str, str]:
    async with models.using("") as ready:
        return ready.fingerprint, text_of(ready)


async def reloaded(models: ServedModels) -> None:
    """Until what was begun by the last request has ended."""
    while any(entry.loading for entry in models._entries.values()):
        await asyncio.sleep(0.005)


def overwrite(path: Path, start: int = 0) -> None:
    """Change every byte from `start` on, in place."""
    found = np.fromfile(path, np.uint8)
    with path.open("r+b") as file:
        file.seek(start)
        file.write((found[start:] ^ 1).tobytes())


@pytest.mark.parametrize("place", KINDS, indirect=True)
def test_damaged_files_change_nothing(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def work(models: ServedModels) -> None:
        first = await answer(models)
        mapped = Path("/proc/self/maps")
        assert not mapped.exists() or str(place.parent) not in mapped.read_text()
        for damage in (overwrite, lambda path: os.truncate(path, path.stat().st_size // 2), Path.unlink):
            for path in files_of(place):
                damage(path)
            assert await answer(models) == first
            await reloaded(models)
        assert await answer(models) == first
        assert any("the old version stays in use" in line for line in caplog.messages)

    served(place, work)


@pytest.mark.parametrize("place", ["llama2.c", "published", "native"], indirect=True)
@pytest.mark.parametrize("way", ["overwritten", "replaced"])
def test_other_weights_are_loaded_and_have_another_fingerprint(place: Path, way: str) -> None:
    async def work(models: ServedModels) -> None:
        first = await answer(models)
        path = max(files_of(place), key=lambda path: path.stat().st_size)
        async with models.using("") as older:
            if way == "replaced":
                shutil.copy(path, path.with_name("draft"))
                overwrite(path.with_name("draft"), path.stat().st_size // 2 // 4 * 4)
                path.with_name("draft").rename(path)
            else:
                overwrite(path, path.stat().st_size // 2 // 4 * 4)
            assert await answer(models) == first
            await reloaded(models)
            second = await answer(models)
            assert second[0] != first[0]
            assert (older.fingerprint, text_of(older)) == first  # what is under way ends with the one it began with
            assert len(models._replaced) == 1
        assert not models._replaced
        await asyncio.gather(*models._retiring)
        assert await answer(models) == second

    served(place, work)


@pytest.mark.parametrize("place", ["native"], indirect=True)
def test_another_tokenizer_is_another_fingerprint(place: Path) -> None:
    async def work(models: ServedModels) -> None:
        first = await answer(models)
        path = place / "tokenizer.json"
        said = json.loads(path.read_text())
        vocabulary = said["model"]["vocab"]
        vocabulary["a"], vocabulary["e"] = vocabulary["e"], vocabulary["a"]
        path.write_text(json.dumps(said))
        await answer(models)
        await reloaded(models)
        assert (await answer(models))[0] != first[0]

    served(place, work)


@pytest.mark.parametrize("place", ["llama2.c"], indirect=True)
def test_a_file_that_is_cut_while_it_is_read_is_an_error_of_that_load(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = echo_model(tmp_path / "echo")
    whole, read, tensor = place.read_bytes(), serving.summarize_model, MappedFile.tensor

    async def work() -> None:
        models = ServedModels([place, other], [], LoadOptions("cpu", None, "torch"), open_engine_loop)

        def cut(file: MappedFile, *where: Any) -> Any:
            os.truncate(place, 1000)
            return tensor(file, *where)

        def touched(at: Path, options: LoadOptions) -> object:
            found = read(at, options)
            place.write_bytes(whole)
            os.utime(place, (0, 0))  # also on file systems whose clock is coarse
            return found

        async with models.using("echo") as ready:
            before = ready.fingerprint
        for owner, name, damage, told in (
            (MappedFile, "tensor", cut, "was truncated while it was read"),
            (serving, read.__name__, touched, "changed while it was read"),
        ):
            with monkeypatch.context() as patch:
                patch.setattr(owner, name, damage)
                with pytest.raises(StatusError, match=told) as error:
                    async with models.using("model"):
                        pass
            assert error.value.status == 503
            place.write_bytes(whole)
        async with models.using("model") as ready, models.using("echo") as same:
            assert text_of(ready)
            assert same.fingerprint == before
        await models.close(1)

    asyncio.run(work())
