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
from headway.formats import native
from headway.serve import model_folders
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


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one step."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "a.txt").write_text("the cat sat on the mat. " * 400)
    settings = {"model.width": 8, "model.depth": 1, "model.heads": 1, "train.steps": 1, "train.batch_tokens": 256}
    hw.train("text", data=folder / "a.txt", run=folder / "run", set=settings, samples=0, progress=False)
    return folder / "run"


def served(folder: Path | None, named: Sequence[Path] = (), keep_alive: float | None = None) -> ServedModels:
    return ServedModels(named, [folder] if folder else [], TORCH, open_engine_loop, keep_alive)


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
    assert "stories serves requests in separate batches: it runs on torch" in caplog.messages


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
    other = tmp_path / "other/stories.bin"
    other.parent.mkdir()
    shutil.copy(zoo / "stories.bin", other)
    for named, folder, message in (
        ([zoo / "nothing"], None, "nothing does not exist"),
        ([zoo / "broken"], None, "broken contains neither"),
        ([zoo / "stories.bin", other], None, "both named stories; rename one"),
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
        while not places:
            await asyncio.sleep(0.005)  # the event loop is free meanwhile
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
        modified=int((tmp_path / "small").stat().st_mtime), path=tmp_path / "small"
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
        return ServedModels([], [tmp_path], LoadOptions(device="cpu", **options), open_engine_loop)

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
        ([{"prompt": "ay, my lord.\nROMEO:", "output": "Ay"}, {"prompt": "b \ufffd"}], False, ["ROMEO:"]),
        ([{"prompt": "Once upon a time the"}, {"prompt": " hat. “Come,” he sa"}, {"prompt": " an Ox came"}], False,
            ["Once upon a time", "“Come,” he"]),
        ([{"prompt": "d think about my nec"}, {"prompt": "d a"}], False, ["think about my", "a"]),
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


def test_folders_are_watched(
    zoo: Path, trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: Any
) -> None:
    """New, changed and removed models; a run that trains is listed once it has a model; a name is given once."""
    monkeypatch.setattr(serving, "_CHECK_SECONDS", 0.0)
    runs, made = tmp_path / "runs", tmp_path / "models"
    folders = [runs, made]

    async def names(models: ServedModels) -> list[str]:
        await models.refresh()
        return list(models.listed())

    async def work(models: ServedModels) -> None:
        assert await names(models) == []  # the folders do not exist yet
        shutil.copytree(trained, runs / "small")
        (runs / "training").mkdir()
        (runs / "training/run.json").write_text('{"format": 1}')
        shutil.copytree(zoo / "broken", runs / "broken")
        assert await names(models) == ["small"]
        shutil.copytree(runs / "small", made / "small")
        shutil.copytree(trained, made / "other")
        assert await names(models) == ["small", "other", "models/small"]
        folders.append(zoo / "tales.bin")  # a model of its own
        folders.append(made / "other")  # is listed already
        assert await names(models) == ["small", "other", "models/small", "tales"]
        for _ in range(3):
            await models.refresh()
        assert [line.partition(":")[0] for line in caplog.messages] == ["broken is not served"]
        shutil.rmtree(runs / "small")
        async with models.using("models/small") as ready:
            shutil.rmtree(made / "small")
            assert await names(models) == ["other", "tales"]
            with pytest.raises(StatusError, match="models/small cannot be served: its files were removed"):
                await use(models, "models/small")
            assert str(ready.model.generate("Once", max_new_tokens=2))  # what is under way ends as it began
        assert not models.loops()
        with pytest.raises(StatusError, match="there is no model 'models/small'"):
            await use(models, "models/small")
        shutil.copytree(trained, runs / "small")
        assert await names(models) == ["other", "tales", "small"]

    within(ServedModels([], folders, TORCH, open_engine_loop, may_be_empty=True), work)


def test_folders_are_searched_once_a_second_and_one_reading_serves_all(zoo: Path, monkeypatch: Any) -> None:
    searches: list[int] = []
    find = serving.find_all
    monkeypatch.setattr(serving, "find_all", lambda folders: searches.append(1) or find(folders))

    async def work(models: ServedModels) -> None:
        await asyncio.gather(*(models.refresh() for _ in range(5)))
        await models.refresh()
        assert len(models.listed()) == 3
        assert len(searches) == 1

    within(ServedModels([], [zoo], TORCH, open_engine_loop, may_be_empty=True), work)


def test_a_run_is_listed_once_it_has_a_model_and_again_with_a_better_one(
    trained: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(serving, "_CHECK_SECONDS", 0.0)
    runs = tmp_path / "runs"
    shutil.copytree(trained, runs / "mine", ignore=shutil.ignore_patterns("model.safetensors"))

    async def work(models: ServedModels) -> None:
        await models.refresh()
        assert not models.listed()
        shutil.copy(trained / "model.safetensors", runs / "mine/draft")
        (runs / "mine/draft").rename(runs / "mine/model.safetensors")
        await models.refresh()
        known = models.summary("mine")
        assert "generate" in known.verbs
        calls: list[Path] = []
        read = serving.summarize_model
        monkeypatch.setattr(serving, "summarize_model", lambda path, options: calls.append(path) or read(path, options))
        (runs / "mine/metrics.jsonl").write_text("")  # a run that trains writes all the time
        (runs / "mine/run.json").touch()
        await models.refresh()
        assert not calls
        (runs / "mine/model.safetensors").touch()
        await models.refresh()
        assert calls == [runs / "mine"]

    within(ServedModels([], [runs], TORCH, open_engine_loop, may_be_empty=True), work)


def test_a_list_reloads_a_model_that_has_trained_on(trained: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(serving, "_CHECK_SECONDS", 0.0)
    runs = tmp_path / "runs"
    shutil.copytree(trained, runs / "mine")

    async def work(models: ServedModels) -> None:
        await models.refresh()
        async with models.using("mine") as ready:
            first = ready.fingerprint
        path = runs / "mine/model.safetensors"
        (runs / "mine/draft").write_bytes(path.read_bytes()[:-4] + bytes(4))
        (runs / "mine/draft").rename(path)
        await models.refresh()
        while any(entry.loading for entry in models._entries.values()):
            await asyncio.sleep(0.005)
        async with models.using("mine") as ready:
            assert ready.fingerprint != first

    within(ServedModels([], [runs], TORCH, open_engine_loop, may_be_empty=True), work)


def test_too_many_models_and_a_folder_that_is_refused(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(model_folders, "_MAX_MODELS", 1)
    for name in ("a.bin", "b.bin"):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match="has 2 models, more than 1; pass models one by one"):
        model_folders.find_models(tmp_path)
    assert model_folders.find_models(tmp_path / "none") == []
    assert set(model_folders._RUN_MODELS) == {native.FILE, native.QUANTISED}
