"""Images and texts as data: tables of captions, images of any kind and bad ones, and the emoji."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from image_text_data import TINY, draw, task

from headway.app.cli import main as cli
from headway.app.recipes import configure_recipe
from headway.codecs.image_processor import ImageProcessor
from headway.data.input_files import File
from headway.domains.image_text.captioned_images import decode_images, read_captions
from headway.domains.image_text.emoji import group_of, read_emoji
from headway.errors import UserError

Image = pytest.importorskip("PIL.Image")
PROCESSOR = ImageProcessor(size=(8, 8))


def test_tables_are_read_and_images_counted_once(tmp_path: Path) -> None:
    found = read_captions([draw(tmp_path)])
    assert (len(found.images), len(found.texts)) == (12, 24)
    assert found.image_of[:4].tolist() == [0, 0, 1, 1]
    assert found.languages is not None
    assert set(found.languages) == {"en", "xx"}
    assert found.locations[0].endswith("captions.csv, line 2")
    lines = [{"path": "dark-red.png", "caption": "a"}, {"path": str(tmp_path / "dark-red.png"), "caption": "b"}]
    (tmp_path / "some.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    again = read_captions([tmp_path / "some.jsonl"])
    assert (len(again.images), again.texts, again.languages) == (1, ["a", "b"], None)


def test_captions_without_images_are_one_line(tmp_path: Path) -> None:
    table = draw(tmp_path)
    (tmp_path / "dark-red.png").unlink()
    with pytest.raises(UserError, match=r"captions.csv, line 2: there is no image 'dark-red.png' .*2 of 24 rows"):
        read_captions([table])
    table.write_text("file,caption\na.png,b\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"no column 'path' .*set task.image=NAME"):
        read_captions([table])


def test_images_of_any_kind_are_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)
    grey = rng.integers(0, 65536, (9, 12), dtype=np.uint16)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(pixels).convert("P").save(tmp_path / "b.png")
    Image.fromarray(grey).save(tmp_path / "c.png")
    Image.fromarray(pixels).save(tmp_path / "d.bmp")
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.write(tmp_path / "a.png", "in/a.png")
    files = [File(tmp_path / name) for name in ("a.png", "b.png", "c.png", "d.bmp")] + [
        File(tmp_path / "z.zip", "in/a.png")
    ]
    found = decode_images(files, PROCESSOR, False)
    assert found.pixels.shape == (5, 8, 8, 3)
    np.testing.assert_array_equal(found.pixels[0], PROCESSOR.pixels(pixels))
    wide = ((grey.astype(np.uint32) + 128) // 257).astype(np.uint8)
    np.testing.assert_array_equal(found.pixels[2], PROCESSOR.pixels(np.repeat(wide[:, :, None], 3, 2)))
    assert found.keys[0] == found.keys[3] == found.keys[4] != found.keys[2]
    monkeypatch.setattr("headway.domains.image_text.captioned_images.decode_image", None)  # from the cache
    np.testing.assert_array_equal(decode_images(files, PROCESSOR, False).pixels, found.pixels)


def test_few_texts_fill_a_small_codec(tmp_path: Path) -> None:
    """A size is the most that there may be: nothing stops who has a hundred captions."""
    here = task(draw(tmp_path), **{"task.size": 2000})
    assert here.examples.codec.vocab_size < 600


def test_bad_images_are_an_error_or_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    table = draw(tmp_path)
    (tmp_path / "dark-red.png").write_bytes((tmp_path / "pale-red.png").read_bytes()[:50])
    (tmp_path / "pale-blue.png").write_text("no image", encoding="utf-8")
    with pytest.raises(UserError, match=r"dark-red.png is truncated or corrupt .*task.skip_bad=true"):
        task(table)
    here = task(table, **{"task.skip_bad": True})
    assert "skipped 2 of 12 images that cannot be read" in caplog.text
    assert sorted(here.examples.decoded.errors) == [0, 7]
    assert here.count("all") == 10
    model = here.adapt(configure_recipe("image-text", table, TINY, None).model).build(0)
    assert here.evaluate(model, "all")["skipped_images"] == 2
    with pytest.raises(UserError, match="truncated or corrupt"):  # though the cache has them
        task(table)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    bomb = tmp_path / "bomb.png"
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(bomb)
    with pytest.raises(UserError, match=r"bomb\.png has too many pixels"):
        decode_images([File(bomb)], PROCESSOR, False)


def test_variants_of_an_emoji_are_one_group() -> None:
    names = {"1f9d1-200d-1f692": "firefighter", "1f9dc": "merperson", "1f46e": "police officer", "1f600": "grin"}
    names |= {"1f469-200d-1f692": "woman firefighter", "1f9dc-200d-2640": "mermaid"}
    names["1f46e-1f3fd-200d-2642"] = "man police officer: medium skin tone"
    groups = [group_of(code, names) for code in names]
    assert groups == [
        "firefighter",
        "merperson",
        "police officer",
        "grin",
        "firefighter",
        "merperson",
        "police officer",
    ]


def test_emoji_are_all_read(data_dir: Path) -> None:
    found = read_emoji([data_dir / "emoji" / "noto-emoji-64px.zip", data_dir / "emoji" / "captions.json"])
    assert len(found.images) == len(found.groups or ()) == 1546
    assert found.is_query.sum() == 5 * 1546
    with pytest.raises(UserError, match=r"0 of 1 files are \.json"):
        read_emoji([data_dir / "emoji" / "noto-emoji-64px.zip"])


def test_a_set_that_no_server_has_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HEADWAY_DATA", raising=False)
    for words in (["data", "get", "emoji"], ["train", "emoji-clip", "--run", "runs/none"]):
        assert cli.main(words) == cli.USER_ERROR
        assert "put emoji/noto-emoji-64px.zip, emoji/captions.json into a folder" in capsys.readouterr().err
