"""Trainings on prepared texts: the same batches from a folder and from object storage, for any number of processes."""

from __future__ import annotations

from pathlib import Path

import pytest
from object_storage import Storage, connect, upload
from prepared_data import contents, documents, draw_texts, prepare

from headway.codecs import load_codec
from headway.config import override
from headway.data.prepared import preparation, shard_reader
from headway.data.prepared.preparation import Preparation, PrepareConfig
from headway.data.prepared.shard_reader import PreparedData, is_prepared, shrink_cache
from headway.data.prepared.text_blocks import text_files
from headway.domains import recipe
from headway.domains.text.recipes import text
from headway.domains.text.text_shards import TextKind
from headway.errors import ConfigError, UserError
from headway.io.remote import remote_url
from headway.learn import Shard, Task
from headway.learn.batches_ahead import ahead
from headway.learn.recipe import open_task


@pytest.fixture
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return draw_texts(tmp_path / "texts", monkeypatch)


def recipe_task(out: Path, workspace: Path, settings: dict[str, object]) -> Task:
    recipe = override(text(), {"task.context": 16, "model.context": 16, "train.batch_tokens": 64, **settings})
    workspace.mkdir(exist_ok=True)
    return open_task(recipe, workspace, out)


def test_an_epoch_trains_on_every_token(texts: Path, tmp_path: Path) -> None:
    out = prepare(texts, tmp_path / "out")
    assert is_prepared(out)
    assert not is_prepared(texts)
    task = recipe_task(out, tmp_path / "run", {})
    expected = sum(len(row) - 1 for row in documents(out, "train"))
    assert task.examples.count_targets("train") == expected  # type: ignore[attr-defined]
    length = round(task.examples.batches_per_epoch() or 0)
    batches = [batch for batch, _ in zip(task.batches("train"), range(length))]
    # The last shards of an epoch overlap with the next one.
    assert abs(sum(batch.tokens for batch in batches) - expected) < 0.05 * expected
    assert task.count("validation") > 3
    again = task.batches("train", start=5)
    assert all((next(again).targets == batch.targets).all() for batch in batches[5:9])


def test_processes_divide_a_step(texts: Path, tmp_path: Path) -> None:
    task = recipe_task(prepare(texts, tmp_path / "out"), tmp_path / "run", {"train.accumulate": 3})
    one = [batch for batch, _ in zip(task.batches("train", Shard(0, 1, 3)), range(9))]
    two = [task.batches("train", Shard(rank, 2, 3)) for rank in range(2)]
    for number, batch in enumerate(one):
        assert (next(two[number % 3 % 2]).targets == batch.targets).all()


def test_settings_that_the_index_has_decided_are_refused(texts: Path, tmp_path: Path) -> None:
    out = prepare(texts, tmp_path / "out")
    with pytest.raises(ConfigError, match=r"task.packing was decided when .* was prepared; remove the setting"):
        recipe_task(out, tmp_path / "run", {"task.packing": "windows"})
    other = prepare(texts, tmp_path / "other", size=290)
    (tmp_path / "other" / "tokenizer.json").rename(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer.json").rename(tmp_path / "run" / "tokenizer.json")
    with pytest.raises(UserError, match="was prepared with another tokenizer"):
        recipe_task(out, tmp_path / "run", {})
    with pytest.raises(UserError, match="texts is not prepared, unlike other paths; prepare it, too"):
        open_task(text(), tmp_path / "empty", [out, texts])
    with pytest.raises(ConfigError, match=r"task.mix has 2 shares for 1 sources; set one above 0 for each"):
        recipe_task(other, tmp_path / "mixed", {"task.mix": [1, 2]})


def test_sources_are_mixed_by_shares(texts: Path, tmp_path: Path) -> None:
    (tmp_path / "numbers.txt").write_text("1234 5678 90\n" * 2000)
    out = prepare(texts, tmp_path / "out")
    numbers = tmp_path / "numbers"
    kind = TextKind(text_files([tmp_path / "numbers.txt"]), "bpe", 300, str(out))
    Preparation(kind, PrepareConfig(), numbers, lambda _: None).run()
    digits = {number for number in range(280) if load_codec(out).decode([number]).strip().isdigit()}

    def share(mix: list[float]) -> float:
        settings = {"task.context": 16, "model.context": 16, "train.batch_tokens": 64, "task.mix": mix}
        (tmp_path / f"run{len(mix)}").mkdir(exist_ok=True)
        task = open_task(override(text(), settings), tmp_path / f"run{len(mix)}", [out, numbers])
        rows = [row for batch, _ in zip(task.batches("train"), range(250)) for row in batch.inputs[0].tolist()]
        return sum(len(digits & set(row)) > 0 for row in rows) / len(rows)

    assert share([3, 1]) == 0.25
    assert share([1, 3]) == 0.75
    assert 0.5 < share([]) < 0.8  # by their sizes


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    monkeypatch.setenv("HEADWAY_CACHE", str(tmp_path / "cache"))
    return connect(monkeypatch)


def test_paths_of_urls() -> None:
    assert remote_url(Path("s3://bucket/a/b")) == remote_url("s3://bucket/a/b") == "s3://bucket/a/b"
    assert remote_url(Path("https://host/a?b=c")) == "https://host/a?b=c"
    assert remote_url("hf:owner/name") is remote_url("folder/s3") is remote_url("/s3:/a") is None


def test_object_storage_has_the_bytes_of_a_folder(texts: Path, tmp_path: Path, storage: Storage) -> None:
    expected = contents(prepare(texts, tmp_path / "out"))
    upload(storage, texts, "/bucket/texts")
    storage.faults = [OSError("500"), 100, TimeoutError()]
    prepare("s3://bucket/texts", "s3://bucket/out")
    (tmp_path / "copy").mkdir()
    for name, entry in storage.store.items():
        if name.startswith("/bucket/out/"):
            (tmp_path / "copy" / name.rpartition("/")[2]).write_bytes(entry.getvalue())
    found = contents(tmp_path / "copy")
    assert {name for name in expected if found.get(name) != expected[name]} <= {"index.json"}  # it has the files' names
    assert not list((tmp_path / "cache").glob("prepare-*"))


def test_hosts_fetch_each_shard_once(
    texts: Path,
    tmp_path: Path,
    storage: Storage,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = prepare(texts, tmp_path / "out")
    upload(storage, out, "/bucket/out")
    local = recipe_task(out, tmp_path / "run", {"train.accumulate": 2})
    steps = round((local.examples.batches_per_epoch() or 0) / 2)
    expected = [batch for batch, _ in zip(local.batches("train"), range(2 * steps))]
    storage.fetched.clear()
    for rank in range(2):
        monkeypatch.setenv("HEADWAY_CACHE", str(tmp_path / f"host{rank}"))
        task = recipe_task(Path("s3://bucket/out"), tmp_path / "run", {"train.accumulate": 2})
        samples = task.examples.of("train")
        for step in range(steps):
            _, indices = next(samples.training_order().endless(Shard(), 2 * step + rank))
            assert (samples.take(indices).targets == expected[2 * step + rank].targets).all()
        task.examples.split("train").sources[0].reader.close()  # type: ignore[attr-defined]
    names = [path for path in storage.fetched if "train-" in path]
    shards = len(PreparedData(out).index.splits["train"])
    assert shards <= len(names) <= shards + 2 * 3  # those that are fetched ahead of the next epoch
    assert len(set(names)) == shards


def test_errors_of_storage_are_one_line(texts: Path, tmp_path: Path, storage: Storage) -> None:
    upload(storage, prepare(texts, tmp_path / "out"), "/bucket/out")
    assert is_prepared(Path("s3://bucket/out"))
    storage.faults = [PermissionError("Access Denied")]
    with pytest.raises(UserError, match=r"out/index.json cannot be accessed \(Access Denied\); check the cred"):
        PreparedData("s3://bucket/out")
    with pytest.raises(UserError, match=r"s3://bucket/none has no index.json, and only prepared data are read"):
        recipe("vision").files([Path("s3://bucket/none")])
    storage.faults = [OSError("Internal Error")] * 6
    with pytest.raises(UserError, match=r"could not be transferred in 6 attempts \(Internal Error\); check the conn"):
        PreparedData("s3://bucket/out")
    shard = PreparedData("s3://bucket/out").index.splits["train"][0]
    storage.pipe_file(f"/bucket/out/{shard.name}", b"x" * shard.bytes)
    with pytest.raises(UserError, match=f"upload s3://bucket/out/{shard.name} again"):
        PreparedData("s3://bucket/out").map(shard)
    assert not list((tmp_path / "cache" / "shards").glob("*.safetensors"))


def test_the_cache_removes_only_what_it_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADWAY_SHARD_CACHE", "25")
    names = [f"{number:064x}.safetensors" for number in range(4)] + ["mine.safetensors"]
    for time, name in enumerate(names):
        (tmp_path / name).write_bytes(b"x" * 10)
        shard_reader.os.utime(tmp_path / name, (time, time))
    shrink_cache(tmp_path, tmp_path / names[0])
    assert {path.name for path in tmp_path.iterdir()} == {names[0], names[3], names[4]}
    monkeypatch.setenv("HEADWAY_SHARD_CACHE", "1")
    shrink_cache(tmp_path, tmp_path / names[0])
    assert {path.name for path in tmp_path.iterdir()} == {names[0], names[4]}


def test_items_are_made_ahead_in_order() -> None:
    made: list[int] = []

    def items():
        for number in range(8):
            made.append(number)
            yield number
        raise ValueError("the ninth")

    stream = ahead(items(), 2)
    assert [next(stream) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="the ninth"):
        list(stream)
    assert made == list(range(8))


def test_images_behind_an_address_have_the_bits_of_the_folder(
    tmp_path: Path, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("PIL")
    from vision_data import colours, opened  # needs Pillow

    from headway.data.prepared.sample_shards import SampleKind
    from headway.domains.vision.image_shards import ImageEncoder

    monkeypatch.setattr(preparation, "_MAX_SHARD_BYTES", 8192)
    monkeypatch.setattr(preparation, "_MIN_SHARD_BYTES", 8192)
    (tmp_path / "pets").mkdir()
    encoder = ImageEncoder((16, 16))
    kind = SampleKind(encoder, encoder.read([colours(tmp_path / "pets")]), 0)
    Preparation(kind, PrepareConfig(), "s3://bucket/pets", lambda _: None).run()
    storage.fetched.clear()
    remote_images, local = opened("s3://bucket/pets", tmp_path / "a"), opened(tmp_path / "pets", tmp_path / "b")
    for expected, batch, _ in zip(local.batches("train"), remote_images.batches("train"), range(6)):
        assert (expected.inputs[0] == batch.inputs[0]).all()
    fetched = [name for name in storage.fetched if "train-" in name]
    assert len(set(fetched)) == len(fetched) > 3
