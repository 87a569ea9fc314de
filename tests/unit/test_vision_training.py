"""Images with classes: every kind of data, changes by seed and place alone, runs, and what they are used for."""

from __future__ import annotations

import gzip
import io
import json
import re
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_runs import cut_back, weights

import headway as hw
from headway.checkpoints.usage import read_usage
from headway.cli import main as cli
from headway.config import override
from headway.data.idx import read_idx
from headway.domains import recipe as find_recipe
from headway.domains.vision.augment import Augment, AugmentConfig
from headway.domains.vision.recipes import small_vit
from headway.domains.vision.task import Vision, VisionConfig
from headway.domains.vision.teacher import Teacher
from headway.errors import ConfigError, UserError
from headway.models import DistilledHeadConfig, Transformer
from headway.models.sight import deit, vit
from headway.report.confusion import confusion_chart
from headway.report.png import png
from headway.train import Recipe

Image = pytest.importorskip("PIL.Image")

COLOURS = {"red": (220, 30, 40), "green": (30, 200, 60), "blue": (40, 50, 210)}
SETTINGS = {
    "train.steps": 6,
    "train.batch_size": 12,
    "train.keep": 9,
    "train.precision": "fp32",
    "task.split.validation": 0.2,
    "task.split.test": 0.2,
}


def tiny(**settings: Any) -> Recipe:
    model = small_vit(width=16, depth=2, heads=2, patch=4, size=16)
    return override(replace(find_recipe("vision"), model=model), {**SETTINGS, **settings})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each of three colours, with images of several sizes and kinds."""
    place, rng = tmp_path_factory.mktemp("colours"), np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (place / name).mkdir()
        for number in range(20):
            noise = rng.integers(-30, 31, (18 + number, 30 - number, 3))
            pixels = (np.array(colour) + noise).clip(0, 255).astype(np.uint8)
            kind = ("png", "bmp", "webp")[number % 3]
            Image.fromarray(pixels).save(place / name / f"{number}.{kind}")
    return place


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> hw.train.__class__ | Any:
    """A run that has learnt the colours, with its page."""
    place = tmp_path_factory.mktemp("runs") / "colours"
    recipe = tiny(**{"train.steps": 40, "task.augment.erase": 0.0})
    return hw.train(recipe, data=folder, run=place, progress=False, samples=3)


def opened(data: Any, workspace: Path, **settings: Any) -> Vision:
    recipe = tiny(**settings)
    found = recipe.task.open(recipe, [Path(path) for path in np.atleast_1d(data)], workspace)
    assert isinstance(found, Vision)
    return found


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
    model = task.adapt(tiny().model)
    assert model.heads["classes"].outputs == 3  # type: ignore[attr-defined]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.bin")}
    again = opened(folder, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.bin")} == before
    np.testing.assert_array_equal(task.images, again.images)
    rows = sum(len(task.numbers(split)) for split in ("train", "validation", "test"))
    assert rows == 60


def test_named_folders_and_tables_say_the_split(folder: Path, tmp_path: Path) -> None:
    for split, files in (("train", slice(0, 14)), ("val", slice(14, 17)), ("test", slice(17, 20))):
        for name in COLOURS:
            (tmp_path / "sets" / split / name).mkdir(parents=True)
            for path in sorted((folder / name).iterdir())[files]:
                (tmp_path / "sets" / split / name / path.name).write_bytes(path.read_bytes())
    task = opened(tmp_path / "sets", tmp_path)
    assert [len(task.numbers(split)) for split in ("train", "validation", "test")] == [42, 9, 9]
    lines = [f"{folder}/{name}/{path.name},{name}" for name in COLOURS for path in (folder / name).iterdir()]
    (tmp_path / "all.csv").write_text("path,label\n" + "\n".join(lines))
    assert opened(tmp_path / "all.csv", tmp_path).labels == ("blue", "green", "red")


def test_idx_files_are_grey_and_t10k_is_the_test_split(tmp_path: Path) -> None:
    task = opened(idx_folder(tmp_path), tmp_path, **{"model.size": 8, "task.names": ["a", "b", "c"]})
    assert task.images.shape == (49, 8, 8, 1)
    assert (len(task.numbers("test")), task.labels) == (9, ("a", "b", "c"))
    assert task.adapt(tiny(**{"model.size": 8}).model).embed.channels == 1  # type: ignore[attr-defined]
    larger = opened(tmp_path, tmp_path, **{"model.size": 12})
    assert larger.images.shape == (49, 12, 12, 1)
    batch = next(task.batches("train"))
    assert batch.inputs.shape == (12, 1, 8, 8)
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
    task = recipe.task.open(recipe, None, tmp_path)
    assert isinstance(task, Vision)
    assert (len(task.classes), len(task.numbers("test")), task.labels[0]) == (70_000, 10_000, "Ankle boot")
    assert np.bincount(task.classes[task.numbers("test")]).tolist() == [1000] * 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("cut", r"train-images-idx3-ubyte.gz is damaged"),
        ("short", r"is cut off: it holds 2,000 bytes of the 2,576 that its header says; get it again"),
        ("long", r"goes on after the 2,576 bytes that its header says"),
        ("counts", r"holds 40 images and train-labels-idx1-ubyte.gz 39 labels; they are not of one set"),
        ("kind", r"begins with the bytes 00 00 0d 03, not 00 00 08 03"),
        ("alone", r"train-images-idx3-ubyte.gz has no file of labels beside it"),
        ("none", r"holds 0 x 8 x 8 pixels: nothing at all"),
        ("names", r"is of class 2, and task.names has 2 names"),
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
    with pytest.raises(UserError, match="in 1 dimensions"):
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
    with pytest.raises(UserError, match=r"3.png is no image that is known.*task.skip_bad=true"):
        opened(place, tmp_path)
    assert not list((tmp_path / "cache").glob("images-*/info.json"))  # nothing half-made
    task = opened(place, tmp_path, **{"task.skip_bad": True})
    assert len(task.classes) == 19
    assert len(task.rows) == 19
    assert "2 of 21 images cannot be read and are left out" in caplog.text
    with pytest.raises(UserError, match=r"3.png is no image that is known"):  # though the cache is there now
        opened(place, tmp_path)
    for path in (place / "red").glob("*.png"):
        path.write_text("a whole class")
    with pytest.raises(UserError, match="no image of the class 'red' can be read; add images that can"):
        opened(place, tmp_path, **{"task.skip_bad": True})
    for path in place.rglob("*.png"):
        path.write_text("all of them")
    with pytest.raises(UserError, match="the data hold no samples"):
        opened(place, tmp_path, **{"task.skip_bad": True})


def test_other_bad_data_say_why(folder: Path, tmp_path: Path) -> None:
    for message, make in (
        (r"the class .*empty has no image; add some", lambda p: (p / "empty").mkdir()),
        (
            r"which is a split, and .*, which is none",
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
    with pytest.raises(UserError, match=r"some.csv, line 4: none.png is no file in"):
        opened(tmp_path / "some.csv", tmp_path)
    (tmp_path / "some.csv").write_text("file,label\ndeep.png,a\npalette.png,b\n")
    with pytest.raises(UserError, match=r"has no column 'path' \(.*\); name the columns path and label"):
        opened(tmp_path / "some.csv", tmp_path)
    (tmp_path / "some.csv").write_text("path,label\ndeep.png,a\npalette.png,b\n")
    assert opened(tmp_path / "some.csv", tmp_path).images.shape == (2, 16, 16, 3)
    with pytest.raises(ConfigError, match="this model reads no images"):
        VisionConfig().open(replace(find_recipe("text"), train=tiny().train), [folder], tmp_path)


def test_a_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for name in ("a", "b"):
        (tmp_path / "bombs" / name).mkdir(parents=True)
        Image.new("RGB", (64, 64)).save(tmp_path / "bombs" / name / "big.png")
    with pytest.raises(UserError, match=r"big.png has too many pixels"):
        opened(tmp_path / "bombs", tmp_path)


ALL = AugmentConfig(flip=0.5, shift=2, crop=0.6, rotate=20, erase=0.5, mixup=0.4, cutmix=1.0)


@pytest.mark.parametrize("config", [ALL, AugmentConfig(flip=0.5, shift=2, erase=0.5), AugmentConfig(randaugment=2)])
def test_changes_hang_on_seed_and_place_alone(config: AugmentConfig) -> None:
    if config.randaugment:
        pytest.importorskip("torchvision")
    images = np.random.default_rng(0).integers(0, 256, (6, 12, 8, 3), dtype=np.uint8)
    places = np.array([5, 900, 7, 123_456_789, 0, 31])
    augment, other = Augment(config, 1), Augment(config, 2)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    whole = augment.erase(augment.pixels(images, places), places)
    assert torch.equal(before, torch.get_rng_state())
    assert whole.shape == (6, 3, 12, 8)
    for i in range(6):
        one = augment.erase(augment.pixels(images[i : i + 1], places[i : i + 1]), places[i : i + 1])
        torch.testing.assert_close(one[0], whole[i], rtol=1e-5, atol=1e-3)
    assert not torch.equal(whole, other.erase(other.pixels(images, places), places))
    assert not torch.equal(whole, augment.erase(augment.pixels(images, places + 1), places + 1))


def test_moves_and_flips_are_those_of_whole_pixels() -> None:
    image = np.arange(1, 13, dtype=np.uint8).reshape(1, 3, 4, 1)
    repeated, places = np.repeat(image, 200, 0), np.arange(200)
    flipped = Augment(AugmentConfig(flip=0.5), 3).pixels(repeated, places)[:, 0].numpy()
    mirrored = [(x == image[0, :, ::-1, 0]).all() for x in flipped]
    assert all(m or (x == image[0, :, :, 0]).all() for m, x in zip(mirrored, flipped))
    assert 70 < sum(mirrored) < 130
    moved = Augment(AugmentConfig(shift=1), 3).pixels(repeated, places)[:, 0].numpy()
    padded = np.pad(image[0, :, :, 0], 1)
    wanted = {padded[i : i + 3, j : j + 4].tobytes() for i in range(3) for j in range(3)}
    assert {x.astype(np.uint8).tobytes() for x in moved} == wanted
    same = Augment(AugmentConfig(rotate=1e-6), 3).pixels(repeated[:2], places[:2])
    torch.testing.assert_close(same[:, 0], torch.from_numpy(repeated[:2, :, :, 0]).float(), rtol=1e-3, atol=1e-3)
    whole = Augment(AugmentConfig(flip=1.0, rotate=1e-6), 3).pixels(repeated[:1], places[:1])
    torch.testing.assert_close(whole[0, 0], torch.from_numpy(image[0, :, ::-1, 0].copy()).float(), rtol=1e-3, atol=1e-3)


def test_a_rectangle_is_painted_over() -> None:
    erased = Augment(AugmentConfig(erase=1.0), 0).erase(torch.ones(50, 1, 20, 20), np.arange(50))
    shares = (erased == 0).flatten(1).float().mean(1)
    assert 0.05 < shares.mean() < 0.3
    assert shares.max() < 0.45
    rows = (erased[0, 0] == 0).any(1).nonzero()[:, 0]
    columns = (erased[0, 0] == 0).any(0).nonzero()[:, 0]
    assert (erased[0, 0, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] == 0).all()


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixed_labels_are_the_shares_of_the_mixed_images(kind: str) -> None:
    """Images that are constant, each with its own number: what is in a mixed one can be read off."""
    x = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 1, 10, 10)
    shares = torch.eye(4)
    for first in range(20):
        places = np.arange(first * 4, first * 4 + 4)
        mixed, labels = Augment(AugmentConfig(**{kind: 1.0}), 0).mix(x, shares, places)
        torch.testing.assert_close(labels.sum(1), torch.ones(4))
        torch.testing.assert_close(mixed.mean((1, 2, 3)), labels @ torch.arange(4.0), rtol=1e-4, atol=1e-4)
        if kind == "cutmix":
            assert set(mixed.unique().tolist()) <= {0.0, 1.0, 2.0, 3.0}


def test_settings_of_changes_are_checked() -> None:
    for settings, message in (
        ({"flip": 1.5}, "give a probability"),
        ({"crop": 0.0}, "share of the area above 0"),
        ({"shift": -1}, "below 0"),
        ({"magnitude": 31}, "give 0 to 30"),
    ):
        with pytest.raises(ConfigError, match=message):
            AugmentConfig(**settings)  # type: ignore[arg-type]


def test_batches_are_a_function_of_their_number(folder: Path, tmp_path: Path) -> None:
    settings = {"task.augment.mixup": 0.2, "task.augment.crop": 0.5, "task.augment.flip": 0.5}
    stream = opened(folder, tmp_path, **settings).batches("train")
    third = [next(stream) for _ in range(4)][3]
    alone = next(opened(folder, tmp_path, **settings).batches("train", start=3))
    assert torch.equal(third.inputs, alone.inputs)
    assert torch.equal(third.labels, alone.labels)
    assert third.labels.shape == (12, 3)


def test_it_learns_the_colours_and_is_used_at_once(run: Any, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.summary["scores"]["split"] == "test"
    assert run.summary["scores"]["accuracy"] > 0.9
    usage = read_usage(run.directory)
    assert usage.labels == ("blue", "green", "red")
    assert usage.processor["size"] == {"height": 16, "width": 16}
    files = [str(folder / "red" / "0.png"), str(folder / "blue" / "4.bmp")]
    assert cli.main(["classify", str(run.directory), *files, "--json"]) == cli.DONE
    results = json.loads(capsys.readouterr().out.splitlines()[-1])["results"]
    assert [next(iter(each["labels"])) for each in results] == ["red", "blue"]
    model = hw.load(run.directory)
    assert model.embed(files).shape == (2, 16)
    task = opened(folder, run.directory)
    row = int(task.numbers("all")[0])
    torch.testing.assert_close(
        torch.tensor([list(model.classify([task.files[row]])[0].values())]),  # type: ignore[index]
        task.logits(model.module, np.array([row])).softmax(-1).sort(descending=True).values,
        rtol=1e-4,
        atol=1e-5,
    )
    assert model.evaluate(folder)["accuracy"] > 0.9


def test_the_page_has_confusions_and_images(run: Any) -> None:
    text = (run.directory / "report.html").read_text(encoding="utf-8")
    for part in ("Confusions", "red, said red", "data:image/png;base64,", "nats a image", "images a second"):
        assert part in text.replace("nats an image", "nats a image")
    assert not re.search(r"https?://|\bsrc=(?!.data:)|@import|url\(|<script", text)


def test_where_it_looks_is_drawn_over_the_image(run: Any, folder: Path, tmp_path: Path) -> None:
    file, out = str(folder / "red" / "3.png"), tmp_path / "look.png"
    assert cli.main(["classify", str(run.directory), file, "--attention", str(out)]) == cli.DONE
    with Image.open(out) as picture:
        assert picture.size == (224, 224)
    look = hw.load(run.directory).look([file])[0]
    assert look.weights.shape == (4, 4)
    assert (look.weights.min(), look.weights.max()) == (0.0, 1.0)
    assert cli.main(["classify", str(run.directory), file, "--attention", str(tmp_path / "look.xyz")]) == cli.USER_ERROR
    assert cli.main(["classify", str(run.directory), file, file, "--attention", str(out)]) == cli.USER_ERROR


def test_a_run_goes_on_to_the_bit(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headway.api.available", lambda: False)
    settings = {f"task.augment.{name}": 0.5 for name in ("flip", "crop", "erase", "mixup", "cutmix")}
    recipe = tiny(**settings, **{"train.checkpoint_every": 2, "model.drop_path": 0.2})
    one = hw.train(recipe, data=folder, run=tmp_path / "one", progress=False, samples=0)
    two = cut_back(one.directory, tmp_path / "two", 2)
    hw.train(recipe, data=folder, run=two, resume=True, progress=False, samples=0)
    first, second = weights(one.directory), weights(two)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_it_overfits_one_batch(folder: Path, tmp_path: Path) -> None:
    recipe = tiny(**{"optim.lr": 0.02})
    task = recipe.task.open(recipe, [folder], tmp_path)
    model = task.adapt(recipe.model).build(0)
    rows = task.numbers("train")[:12]  # type: ignore[attr-defined]
    batch = task.training_batch(rows, np.arange(12))  # type: ignore[attr-defined]
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60):
        loss = torch.nn.functional.cross_entropy(model.output("classes", batch.inputs), batch.labels)  # type: ignore[operator]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert float(loss.detach()) < 0.05


def test_a_vit_is_fine_tuned_at_another_size_and_with_other_classes(folder: Path, tmp_path: Path) -> None:
    from headway.checkpoints.published import save_published
    from headway.checkpoints.usage import Usage
    from headway.models import build

    config = vit(16, 2, 2, 4, classes=7, size=16)
    processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": 16, "width": 16}, "resample": 3}
    start = build(config)
    save_published(start, config, tmp_path / "vit", Usage(labels=tuple("abcdefg"), processor=processor))
    settings = {**SETTINGS, "model.size": [24, 16], "train.steps": 2, "optim.lr": 1e-6, "optim.adam_lr": 1e-6}
    run = hw.train(
        "vision", data=folder, run=tmp_path / "run", start=tmp_path / "vit", set=settings, progress=False, samples=1
    )
    assert isinstance(run.model, Transformer)
    found = run.model.embed.positions
    before = start.embed.positions  # type: ignore[union-attr]
    front, patches = before((6, 4))  # type: ignore[operator]
    torch.testing.assert_close(found.table[:1], front, rtol=0, atol=1e-4)  # type: ignore[index]
    torch.testing.assert_close(found.table[1:], patches, rtol=0, atol=1e-4)  # type: ignore[index]
    assert run.summary["fresh"] == ["heads.classes.project.weight", "heads.classes.project.bias"]
    usage = read_usage(run.directory)
    assert (usage.processor["size"], usage.processor["resample"]) == ({"height": 24, "width": 16}, 3)
    assert hw.load(run.directory).classify([folder / "red" / "0.png"])[0].keys() == set(COLOURS)
    assert cli.main(["export", str(run.directory), str(tmp_path / "out")]) == cli.DONE
    said = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (said["image_size"], said["id2label"]["2"]) == ([24, 16], "red")
    assert json.loads((tmp_path / "out" / "preprocessor_config.json").read_text()) == usage.processor
    with pytest.raises(ConfigError, match=r"model.width 32 does not fit"):
        hw.train(
            "vision", data=folder, run=tmp_path / "no", start=tmp_path / "vit", set={**SETTINGS, "model.width": 32}
        )


def test_a_stem_of_convolutions_has_no_published_format(run: Any, tmp_path: Path) -> None:
    assert cli.main(["export", str(run.directory), str(tmp_path / "out")]) == cli.USER_ERROR
    assert not (tmp_path / "out").exists()


def test_a_student_learns_from_a_teacher(run: Any, folder: Path, tmp_path: Path) -> None:
    """Half of the loss is that of the second token to the class that the teacher names."""
    recipe = replace(tiny(**{"task.teacher": str(run.directory)}), model=deit(16, 2, 2, 4, classes=3, size=16))
    task = recipe.task.open(recipe, [folder], tmp_path)
    assert isinstance(task, Vision)
    config = task.adapt(recipe.model)
    assert isinstance(config.heads["classes"], DistilledHeadConfig)  # type: ignore[attr-defined]
    model = config.build(0)
    torch.nn.init.normal_(model.heads["classes"].distilled.weight)  # type: ignore[union-attr,index,arg-type]
    batch = next(task.batches("train"))
    x = model(batch.inputs).x
    labelled, taught = model.heads["classes"].both(x)  # type: ignore[index,union-attr,operator]
    teacher = hw.load(run.directory).module
    mean, std = (
        torch.tensor(read_usage(run.directory).processor[f"image_{n}"]).view(1, 3, 1, 1) for n in ("mean", "std")
    )
    own = task.std * batch.inputs + task.mean
    says = teacher.output("classes", (own - mean) / std).argmax(-1)  # type: ignore[union-attr]
    wanted = sum(
        torch.nn.functional.cross_entropy(a, b, reduction="sum", label_smoothing=s)
        for a, b, s in ((labelled, batch.labels, 0.1), (taught, says, 0.0))
    )
    torch.testing.assert_close(task.loss(model, batch)["loss"].total, wanted / 2, rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match="has no class 'grey'"):
        Teacher.open(str(run.directory), ["red", "grey"])


def test_pictures_of_the_page_are_whole_files() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 4), dtype=np.uint8)
    for channels in (3, 4):
        with Image.open(io.BytesIO(png(pixels[..., :channels]))) as found:
            np.testing.assert_array_equal(np.asarray(found), pixels[..., :channels])


def test_of_many_classes_the_most_mistaken_are_shown() -> None:
    right = np.arange(200) % 100
    said = np.where(right == 57, 3, right)
    chart = confusion_chart(right, said, [f"class {i}" for i in range(100)])
    assert "class 57, said class 3: 2 of 2" in chart
    assert chart.count("<rect") == 24 * 24
