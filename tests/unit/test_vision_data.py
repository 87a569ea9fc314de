"""Images with classes as data: folders, tables, IDX files and known sets, and all that is wrong with them."""

from __future__ import annotations

import gzip
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from vision_data import COLOURS, colours, opened, tiny

from headway.data.labelled_files import read_idx
from headway.domains import recipe as find_recipe
from headway.domains.vision.task import ImageDataset, VisionConfig
from headway.errors import ConfigError, UserError
from headway.learn.objectives.classes import Classification

Image = pytest.importorskip("PIL.Image")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colours(tmp_path_factory.mktemp("colours"))


def write_idx(path: Path, values: np.ndarray) -> None:
    head = struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
    path.write_bytes(gzip.compress(head + values.astype(np.uint8).tobytes()))


def idx_folder(folder: Path, size: int = 8) -> Path:
    rng = np.random.default_rng(0)
    for name, count in (("train", 40), ("t10k", 9)):
        write_idx(folder / f"{name}-images-idx3-ubyte.gz", rng.integers(0, 256, (count, size, size)))
        write_idx(folder / f"{name}-labels-idx1-ubyte.gz", np.arange(count) % 3)
    return folder


def test_a_folder_for_each_class_is_decoded_once_to_what_the_model_reads(folder: Path, tmp_path: Path) -> None:
    task = opened(folder, tmp_path)
    assert task.labels == ("blue", "green", "red")
    assert task.images.shape == (60, 16, 16, 3)
    assert isinstance(task.images.base, np.memmap)
    model = Classification("image").adapt(task.adapt(tiny().model), task)
    assert model.heads["classes"].outputs == 3  # type: ignore[attr-defined]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.bin")}
    again = opened(folder, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.bin")} == before
    np.testing.assert_array_equal(task.images, again.images)
    rows = sum(len(task.splits.rows(split)) for split in ("train", "validation", "test"))
    assert rows == 60


def test_the_folder_of_a_run_is_no_class(folder: Path, tmp_path: Path) -> None:
    """`train vision --data photos --run photos/run` locks the run before it reads the photos."""
    (folder / "run").mkdir()
    (folder / "run" / ".lock").touch()
    assert opened(folder, tmp_path).labels == ("blue", "green", "red")


def test_named_folders_and_tables_say_the_split(folder: Path, tmp_path: Path) -> None:
    for split, files in (("train", slice(0, 14)), ("val", slice(14, 17)), ("test", slice(17, 20))):
        for name in COLOURS:
            (tmp_path / "sets" / split / name).mkdir(parents=True)
            for path in sorted((folder / name).iterdir())[files]:
                (tmp_path / "sets" / split / name / path.name).write_bytes(path.read_bytes())
    task = opened(tmp_path / "sets", tmp_path)
    assert [len(task.splits.rows(split)) for split in ("train", "validation", "test")] == [42, 9, 9]
    lines = [f"{folder}/{name}/{path.name},{name}" for name in COLOURS for path in (folder / name).iterdir()]
    (tmp_path / "all.csv").write_text("path,label\n" + "\n".join(lines))
    assert opened(tmp_path / "all.csv", tmp_path).labels == ("blue", "green", "red")


def test_idx_files_are_grey_and_t10k_is_the_test_split(tmp_path: Path) -> None:
    task = opened(idx_folder(tmp_path), tmp_path, **{"model.size": 8, "task.names": ["a", "b", "c"]})
    assert task.images.shape == (49, 8, 8, 1)
    assert (len(task.splits.rows("test")), task.labels) == (9, ("a", "b", "c"))
    assert task.adapt(tiny(**{"model.size": 8}).model).embed.channels == 1  # type: ignore[attr-defined]
    larger = opened(tmp_path, tmp_path, **{"model.size": 12})
    assert larger.images.shape == (49, 12, 12, 1)
    batch = next(task.batches("train"))
    assert batch.inputs[0].shape == (12, 1, 8, 8)
    assert batch.computed == 12 * 4


def test_a_table_of_numbers_is_one_of_square_images(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    rows = np.hstack([rng.integers(0, 17, (30, 64)), np.arange(30)[:, None] % 2])
    rows[0, 0] = 16
    (tmp_path / "digits.csv.gz").write_bytes(gzip.compress("\n".join(",".join(map(str, r)) for r in rows).encode()))
    task = opened(tmp_path / "digits.csv.gz", tmp_path, **{"model.size": 8})
    assert (task.images.shape, task.images[0, 0, 0, 0]) == ((30, 8, 8, 1), 255)
    assert task.labels == ("0", "1")


def test_the_known_sets_are_whole(tmp_path: Path) -> None:
    from headway.data import is_present, known_set

    known = known_set("fashion-mnist")
    if not is_present(known):
        pytest.skip("Fashion-MNIST is not here; apt install dataset-fashion-mnist, or headway data get fashion-mnist")
    recipe = find_recipe("fashion-mnist")
    task = recipe.task.open(recipe, None, tmp_path).examples
    assert isinstance(task, ImageDataset)
    assert (len(task.classes), len(task.splits.rows("test")), task.labels[0]) == (70_000, 10_000, "Ankle boot")
    assert np.bincount(task.classes[task.splits.rows("test")]).tolist() == [1000] * 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("cut", r"train-images-idx3-ubyte.gz is damaged"),
        ("short", r"is truncated: it has 2,000 bytes of the 2,576 in its header; download it again"),
        ("long", r"is longer than the 2,576 bytes in its header"),
        ("counts", r"contains 40 images but train-labels-idx1-ubyte.gz 39 labels; download both again"),
        ("kind", r"starts with the bytes 00 00 0d 03, not with 00 00 08 03"),
        ("alone", r"train-images-idx3-ubyte.gz has no file of labels next to it"),
        ("none", r"is empty \(0 x 8 x 8 pixels\)"),
        ("names", r"has class 2, but task.names has only 2 names"),
    ],
)
def test_idx_files_that_are_wrong_say_why(change: str, message: str, tmp_path: Path) -> None:
    folder = idx_folder(tmp_path)
    images, labels = folder / "train-images-idx3-ubyte.gz", folder / "train-labels-idx1-ubyte.gz"
    plain = gzip.decompress(images.read_bytes())
    if change == "cut":
        images.write_bytes(images.read_bytes()[:900])
    elif change == "short":
        images.write_bytes(gzip.compress(plain[:2000]))
    elif change == "long":
        images.write_bytes(gzip.compress(plain + b"\0"))
    elif change == "counts":
        write_idx(labels, np.arange(39) % 3)
    elif change == "kind":
        images.write_bytes(gzip.compress(plain[:2] + b"\x0d" + plain[3:]))
    elif change == "none":
        write_idx(images, np.zeros((0, 8, 8)))
        write_idx(labels, np.zeros(0))
    elif change == "alone":
        labels.unlink()
    names = ["a", "b"] if change == "names" else []
    with pytest.raises(UserError, match=message):
        opened(folder, tmp_path, **{"model.size": 8, "task.names": names})


def test_an_idx_file_gives_back_what_was_written(tmp_path: Path) -> None:
    values = np.arange(24).reshape(2, 3, 4)
    write_idx(tmp_path / "some.gz", values)
    np.testing.assert_array_equal(read_idx(tmp_path / "some.gz", 3), values)
    with pytest.raises(UserError, match="with 1 dimensions"):
        read_idx(tmp_path / "some.gz", 1)


def damaged(folder: Path, place: Path) -> Path:
    """A copy of the folder with a cut image and a text that pretends to be one."""
    for name in COLOURS:
        (place / name).mkdir(parents=True)
        for path in (folder / name).glob("*.png"):
            (place / name / path.name).write_bytes(path.read_bytes())
    whole = (place / "red" / "0.png").read_bytes()
    (place / "red" / "0.png").write_bytes(whole[: len(whole) // 2])
    (place / "green" / "3.png").write_text("hello")
    return place


def test_corrupt_images_are_an_error_or_counted(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    place = damaged(folder, tmp_path / "some")
    with pytest.raises(UserError, match=r"3.png is not a supported image.*task.skip_bad=true"):
        opened(place, tmp_path)
    assert not list((tmp_path / "cache").glob("images-*/info.json"))  # nothing half-made
    task = opened(place, tmp_path, **{"task.skip_bad": True})
    assert len(task.classes) == 19
    assert len(task.rows) == 19
    assert "skipped 2 of 21 images that cannot be read" in caplog.text
    with pytest.raises(UserError, match=r"3.png is not a supported image"):  # though the cache is there now
        opened(place, tmp_path)
    for path in (place / "red").glob("*.png"):
        path.write_text("a whole class")
    with pytest.raises(UserError, match="no image in class 'red' is readable; add readable images"):
        opened(place, tmp_path, **{"task.skip_bad": True})
    for path in place.rglob("*.png"):
        path.write_text("all of them")
    with pytest.raises(UserError, match="the data contain no samples"):
        opened(place, tmp_path, **{"task.skip_bad": True})


def test_other_bad_data_say_why(folder: Path, tmp_path: Path) -> None:
    for message, make in (
        (r"the class .*empty has no image; add some", lambda p: (p / "empty").mkdir()),
        (
            r"which is a split, and .*, which is not",
            lambda p: [(p / n / "x").mkdir(parents=True) for n in ("a", "test")],
        ),
    ):
        place = tmp_path / message[:9].replace(" ", "-").replace("\\", "")
        place.mkdir()
        make(place)
        with pytest.raises(UserError, match=message):
            opened(place, tmp_path)
    Image.fromarray(np.zeros((9, 9), np.uint16)).save(tmp_path / "deep.png")
    Image.new("P", (9, 9)).save(tmp_path / "palette.png")
    (tmp_path / "some.csv").write_text("path,label\ndeep.png,a\npalette.png,b\nnone.png,a\n")
    with pytest.raises(UserError, match=r"some.csv, line 4: there is no file none.png in"):
        opened(tmp_path / "some.csv", tmp_path)
    (tmp_path / "some.csv").write_text("file,label\ndeep.png,a\npalette.png,b\n")
    with pytest.raises(UserError, match=r"has no column 'path' \(.*\); name the columns path and label"):
        opened(tmp_path / "some.csv", tmp_path)
    (tmp_path / "some.csv").write_text("path,label\ndeep.png,a\npalette.png,b\n")
    assert opened(tmp_path / "some.csv", tmp_path).images.shape == (2, 16, 16, 3)
    with pytest.raises(ConfigError, match="this model does not take images"):
        VisionConfig().open(replace(find_recipe("text"), train=tiny().train), [folder], tmp_path)


def test_a_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for name in ("a", "b"):
        (tmp_path / "bombs" / name).mkdir(parents=True)
        Image.new("RGB", (64, 64)).save(tmp_path / "bombs" / name / "big.png")
    with pytest.raises(UserError, match=r"big.png has too many pixels"):
        opened(tmp_path / "bombs", tmp_path)
