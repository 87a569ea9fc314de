"""Many models in one server: known without being loaded, loaded once when asked for, let go when idle or for room."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest

import headway as hw
from headway.engine import PackedTensor
from headway.errors import UserError
from headway.serve import models as serving
from headway.serve.engine_loop import open_engine_loop
from headway.serve.http_errors import StatusError
from headway.serve.models import LoadOptions, ServedModels

T = TypeVar("T")
TORCH = LoadOptions(device="cpu", backend="torch")


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory, data_dir: Path, minilm: Path) -> Path:
    """Two small models that write, one that makes vectors, one that is broken, and what is no model."""
    folder = tmp_path_factory.mktemp("zoo")
    shutil.copy(data_dir / "weights/stories260K.bin", folder / "stories.bin")
    shutil.copy(data_dir / "weights/stories260K.bin", folder / "tales.bin")
    shutil.copy(data_dir / "weights/tok512.bin", folder / "tok512.bin")
    (folder / "minilm").symlink_to(minilm)
    (folder / "broken").mkdir()
    (folder / "broken/config.json").write_text('{"model_type": "bert"}')
    (folder / "notes").mkdir()
    (folder / ".hidden").mkdir()
    return folder


def served(folder: Path | None, named: Sequence[Path] = (), keep_alive: float | None = None) -> ServedModels:
    return ServedModels(named, folder, TORCH, open_engine_loop, keep_alive)


def within(models: ServedModels, work: Callable[[ServedModels], Awaitable[T]]) -> T:
    async def inside() -> T:
        await models.start()
        try:
            return await work(models)
        finally:
            await models.close(1)

    return asyncio.run(inside())


async def use(models: ServedModels, name: str) -> str:
    async with models.using(name) as ready:
        return ready.name


def test_what_models_can_do_is_known_before_one_is_loaded(
    zoo: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "load", None)
    models = served(zoo)
    found = models.listed()
    assert set(found) == {"stories", "tales", "minilm"}
    assert (found["stories"].kind, found["stories"].context, found["stories"].parameters) == (
        "a language model", 512, 260_032
    )  # fmt: skip
    assert "generate" in found["stories"].verbs
    assert "embed" in found["minilm"].verbs
    assert found["minilm"].sequential_reason is None
    assert any("broken is not served" in line for line in caplog.messages)
    within(models, lambda models: asyncio.sleep(0))
    assert "stories is served one request at a time: it runs on torch" in caplog.messages


def test_the_broken_one_says_why_and_where_is_not_told(zoo: Path, data_dir: Path) -> None:
    async def work(models: ServedModels) -> None:
        with pytest.raises(StatusError, match="broken cannot be served: broken") as error:
            await use(models, "broken")
        assert error.value.status == 503
        assert str(zoo) not in str(error.value)
        assert await use(models, "stories") == "stories"
        with pytest.raises(StatusError, match="no model 'storys'; did you mean 'stories'") as error:
            await use(models, "storys")
        assert error.value.status == 404
        with pytest.raises(StatusError, match="no model ''"):
            await use(models, "")

    within(served(zoo), work)
    one = data_dir / "weights/stories260K.bin"
    assert within(served(None, [one]), lambda models: use(models, "")) == "stories260K"


def test_bad_names_are_refused_at_the_start(zoo: Path, tmp_path: Path) -> None:
    for named, folder, message in (
        ([zoo / "nothing"], None, "nothing does not exist"),
        ([zoo / "broken"], None, "broken contains neither"),
        ([zoo / "stories.bin"], zoo, "both named stories; rename one"),
        ([], tmp_path, "there is no model to serve"),
        ([], zoo / "tok512.bin", "is not a folder"),
    ):
        with pytest.raises(UserError, match=message):
            served(folder, named)


def test_a_model_is_loaded_once_in_a_thread_and_waited_for(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places: list[str] = []
    threads: list[str] = []
    go = threading.Event()
    load = serving.load

    def slow(place: Path, *rest: object) -> object:
        places.append(place.stem)
        threads.append(threading.current_thread().name)
        assert go.wait(10)
        return load(place, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(serving, "load", slow)

    async def work(models: ServedModels) -> None:
        tasks = [asyncio.create_task(use(models, "stories")) for _ in range(4)]
        await asyncio.sleep(0.05)  # the event loop is free meanwhile
        assert places == ["stories"]
        tasks[0].cancel()  # who asked first leaves, and the others have it all the same
        await asyncio.sleep(0)
        go.set()
        assert await asyncio.gather(*tasks[1:]) == ["stories"] * 3
        assert list(models.loops()) == list(models.batchers()) == ["stories"]
        await use(models, "stories")
        assert places == ["stories"]

    within(served(zoo), work)
    assert threads[0] != threading.main_thread().name


def test_one_that_cannot_be_loaded_tells_all_who_wait_and_may_be_asked_for_again(
    zoo: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    load = serving.load
    faults: list[Exception] = [UserError(f"{zoo}/tales.bin is cut off; get it again"), MemoryError("no room")]

    def failing(place: Path, *rest: object) -> object:
        if place.stem == "tales" and faults:
            raise faults.pop(0)
        return load(place, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(serving, "load", failing)

    async def work(models: ServedModels) -> None:
        found = await asyncio.gather(*(use(models, "tales") for _ in range(2)), return_exceptions=True)
        assert {str(each) for each in found} == {"tales cannot be served: tales is cut off; get it again"}
        with pytest.raises(StatusError, match="no room"):
            await use(models, "tales")
        assert await use(models, "tales") == "tales"

    within(served(zoo), work)


def test_who_is_idle_is_let_go(zoo: Path) -> None:
    async def work(models: ServedModels) -> None:
        async with models.using("stories"):
            await asyncio.sleep(0.2)
            assert list(models.loops()) == ["stories"]  # in use, however long
        await use(models, "stories")
        assert list(models.loops()) == ["stories"]
        for _ in range(100):
            await asyncio.sleep(0.02)
            if not models.loops():
                break
        assert not models.batchers()
        assert await use(models, "stories") == "stories"

    within(served(zoo, keep_alive=0.1), work)


def test_memory_is_made_by_the_least_recently_used_of_the_idle(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(models: ServedModels) -> None:
        room = lambda device: 10**9 if len(models.batchers()) < 2 else 0  # noqa: E731
        monkeypatch.setattr(serving, "free_bytes", room)
        await use(models, "stories")
        await use(models, "tales")
        await use(models, "stories")
        await use(models, "minilm")
        assert set(models.batchers()) == {"stories", "minilm"}
        async with models.using("stories"), models.using("minilm"):
            with pytest.raises(StatusError, match=r"tales needs 1,040,128 bytes .* and minilm, stories is in use") as e:
                await use(models, "tales")
            assert (e.value.status, e.value.retry_after) == (503, 10)
        await use(models, "tales")
        assert set(models.batchers()) == {"stories", "tales"} or set(models.batchers()) == {"minilm", "tales"}

    within(served(zoo), work)


def test_the_end_waits_for_those_who_use_and_takes_no_others(zoo: Path) -> None:
    async def inside() -> None:
        models = served(zoo)
        async with models.using("stories"):
            ending = asyncio.create_task(models.close(5))
            await asyncio.sleep(0.1)
            assert not ending.done()
            assert not models.ready()
            with pytest.raises(StatusError, match="shutting down"):
                await use(models, "tales")
        await ending
        assert not models.batchers()

    asyncio.run(inside())


def test_a_quantized_model_is_known_too(zoo: Path, tmp_path: Path) -> None:
    hw.quantize(zoo / "stories.bin", tmp_path / "small", "int8")
    assert served(None, [tmp_path / "small"]).listed()["small"] == served(zoo).listed()["stories"]._replace(
        modified=int((tmp_path / "small").stat().st_mtime)
    )


def test_two_may_ask_for_the_end(zoo: Path) -> None:
    """The server and the application both do, and a model may be let go meanwhile, as nobody used it for a while."""

    async def work(models: ServedModels) -> None:
        await use(models, "stories")
        await use(models, "tales")
        await asyncio.gather(models.close(1), models.close(1))
        assert not models.loops()
        assert not models.batchers()

    for keep_alive in (None, 0.0):
        within(served(zoo, keep_alive=keep_alive), work)


def test_quantised_gguf_files_are_served_as_they_are_quantised(zoo: Path, tmp_path: Path) -> None:
    for name, dtype in (("eight", "Q8_0"), ("plain", "F16")):
        hw.export(zoo / "stories.bin", tmp_path / f"{name}.gguf", dtype=dtype)

    def found(**options: Any) -> ServedModels:
        return ServedModels([], tmp_path, LoadOptions(device="cpu", **options), open_engine_loop)

    models = found()
    assert (models.summary("eight").weights, models.summary("plain").weights) == ("int8", None)
    assert models.notes() == ["eight: Q8_0 weights are served in int8; use --weights fp32 for their exact values"]
    assert not found(weights="fp32").notes()
    assert found(weights="int4").summary("eight").weights == "int4"
    assert found(backend="torch").notes() == ["eight: Q8_0 weights are served in fp32 because the backend is torch"]
    assert found(backend="torch").summary("eight").weights is None

    async def work(models: ServedModels) -> None:
        async with models.using("eight") as eight, models.using("plain") as plain:
            for ready, packed in ((eight, True), (plain, False)):
                tables = [each for each in ready.model.module.parameters() if isinstance(each, PackedTensor)]
                assert bool(tables) == packed

    within(models, work)


@pytest.mark.parametrize(
    ("samples", "chats", "examples"),
    [
        ([{"source": "ein Hund", "output": "a dog"}, {"source": "ein Hund"}, {"source": " "}], False, ["ein Hund"]),
        ([{"masked": "a [MASK] dog", "text": "a red dog"}], False, ["a [MASK] dog"]),
        ([{"prompt": "ay, my lord.\nROMEO:", "output": "Ay"}, {"prompt": "b \ufffd"}], False, ["my lord.\nROMEO:"]),
        ([{"prompt": "user\nWho?\nassistant"}, {"prompt": "user\nHi\nassistant\nHi\nuser"}], True, ["Who?"]),
        ([{"source": f"{number}"} for number in range(9)], False, ["0", "1", "2", "3", "4"]),
        ([{"source": "x" * 1001}, {"return": "4"}], False, []),
        ([{"source": 1}], False, []),
        (None, False, []),
    ],
)  # fmt: skip
def test_examples_are_the_inputs_of_a_runs_samples(
    tmp_path: Path, samples: object, chats: bool, examples: list[str]
) -> None:
    status = {"format": 1, "status": "finished", "parameters": 1, "steps": 1, "step": 1, "tokens": 1, "seconds": 1.0}
    (tmp_path / "run.json").write_text(json.dumps({**status, **({} if samples is None else {"samples": samples})}))
    assert list(serving._example_inputs(tmp_path, chats)) == examples
