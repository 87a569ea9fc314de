"""Image files of every kind to pixels; what is no sound image is one clear error. Pixels to inputs of a model."""

from __future__ import annotations

import io
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import headway
from headway.codecs import image_processor as module
from headway.codecs.image_processor import ImageProcessor, decode_image, read_image
from headway.errors import UserError
from headway.io import images
from headway.io.images import HOW_TO_INSTALL

Image = pytest.importorskip("PIL.Image")


def pixels(height: int = 9, width: int = 13, channels: int = 3, seed: int = 0) -> np.ndarray:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def saved(image: Any, path: Path, **options: Any) -> Path:
    image.save(path, **options)
    return path


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "ppm", "webp"])
def test_rgb_is_read_as_it_was_saved(suffix: str, tmp_path: Path) -> None:
    x = pixels()
    options = {"lossless": True} if suffix == "webp" else {}
    assert np.array_equal(read_image(saved(Image.fromarray(x), tmp_path / f"a.{suffix}", **options)), x)


def test_grey_palette_and_one_bit_become_rgb(tmp_path: Path) -> None:
    grey = pixels(channels=1)
    found = read_image(saved(Image.fromarray(grey), tmp_path / "grey.png"))
    assert np.array_equal(found, np.repeat(grey[:, :, None], 3, 2))
    palette = Image.fromarray(pixels()).quantize(7)
    assert np.array_equal(read_image(saved(palette, tmp_path / "p.png")), np.array(palette.convert("RGB")))
    bits = Image.fromarray(grey > 127)
    assert np.array_equal(read_image(saved(bits, tmp_path / "bits.png"))[:, :, 0], np.where(grey > 127, 255, 0))


def test_sixteen_bits_are_scaled_and_not_cut(tmp_path: Path) -> None:
    grey = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    found = read_image(saved(Image.fromarray(grey), tmp_path / "deep.png"))
    assert np.array_equal(found, np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, 2))
    wide = Image.fromarray(np.full((2, 2), 1 << 20, np.int32))
    with pytest.raises(UserError, match="outside 0 to 65535; save it with 8 or 16 bits"):
        read_image(saved(wide, tmp_path / "wide.tiff"))
    floats = Image.fromarray(np.full((2, 2), 0.5, np.float32))
    with pytest.raises(UserError, match="mode F"):
        read_image(saved(floats, tmp_path / "floats.tiff"))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_lies_on_white(mode: str, tmp_path: Path) -> None:
    clear = Image.fromarray(np.array([[[200, 10, 30, 255], [200, 10, 30, 0]]], np.uint8))
    found = read_image(saved(clear.convert(mode), tmp_path / "clear.png"))
    assert found[0, 1].tolist() == [255, 255, 255]
    assert found[0, 0].tolist() != [255, 255, 255]


def test_pictures_are_turned_as_the_camera_says(tmp_path: Path) -> None:
    x, exif = pixels(4, 6), Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    found = read_image(saved(Image.fromarray(x), tmp_path / "turned.png", exif=exif))
    assert np.array_equal(found, np.rot90(x, -1))


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK", "I;16"])
def test_pictures_of_every_mode_are_turned(mode: str, tmp_path: Path) -> None:
    """An uncompressed TIFF file is read like its bytes: Pillow maps its pixels into memory if it has a name."""
    grey, exif = np.zeros((4, 8), np.uint16 if mode == "I;16" else np.uint8), Image.Exif()
    grey[:, :4], exif[0x0112] = (65535 if mode == "I;16" else 255), 6
    image = Image.fromarray(grey) if mode == "I;16" else Image.fromarray(grey).convert(mode)
    found = read_image(saved(image, tmp_path / "turned.tiff", exif=exif))
    assert np.array_equal(found, decode_image((tmp_path / "turned.tiff").read_bytes(), "turned"))
    assert found.shape == (8, 4, 3)
    assert (found[:4] == 255).all()
    assert (found[4:] == 0).all()


def test_clear_pixels_of_sixteen_bits_are_white(tmp_path: Path) -> None:
    grey = np.array([[0, 257 * 7]], np.uint16)
    found = read_image(saved(Image.fromarray(grey), tmp_path / "clear.png", transparency=0))
    assert found[0, :, 0].tolist() == [255, 7]


def test_damaged_metadata_leave_the_pixels(tmp_path: Path) -> None:
    x = pixels()
    found = read_image(saved(Image.fromarray(x), tmp_path / "a.png", exif=b"Exif\0\0xx not valid"))
    assert np.array_equal(found, x)


def test_cmyk_and_the_first_of_many_pictures(tmp_path: Path) -> None:
    cmyk = Image.fromarray(pixels()).convert("CMYK")
    assert read_image(saved(cmyk, tmp_path / "a.tiff")).shape == (9, 13, 3)
    first, second = Image.new("RGB", (5, 4), (255, 0, 0)), Image.new("RGB", (5, 4), (0, 0, 255))
    path = saved(first, tmp_path / "a.gif", save_all=True, append_images=[second])
    assert read_image(path)[0, 0].tolist() == [255, 0, 0]


def encoded(kind: str) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels(64, 64)).save(out, kind)
    return out.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_what_is_cut_off_is_one_clear_error(kind: str, tmp_path: Path) -> None:
    whole, path = encoded(kind), tmp_path / "cut"
    for length in (0, 1, 7, 30, len(whole) // 2):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"cut is (not a supported image|truncated or corrupt)"):
            read_image(path)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_corrupt_files_are_images_or_clear_errors(kind: str, tmp_path: Path) -> None:
    whole, path, rng = encoded(kind), tmp_path / "bent", np.random.default_rng(0)
    for _ in range(40):
        bent = bytearray(whole)
        for place in rng.integers(0, min(len(bent), 400), 3):
            bent[place] = rng.integers(256)
        path.write_bytes(bytes(bent))
        refused = ""
        try:
            assert read_image(path).dtype == np.uint8
        except UserError as error:
            refused = str(error)
        assert not refused or str(path) in refused


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize("side", [10_000, 100_000])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(side: int, tmp_path: Path) -> None:
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000)))
    (tmp_path / "bomb.png").write_bytes(bomb + chunk(b"IEND", b""))
    with pytest.raises(UserError, match=r"bomb.png has too many pixels .*; make the image smaller"):
        read_image(tmp_path / "bomb.png")


def progressive(scans: int, after: bytes = b"", before: bytes = b"") -> bytes:
    """A progressive JPEG with so many more scans than its own, each of which repeats the last; `before` and `after` are
    bytes before its first scan and after its end.
    """
    out = io.BytesIO()
    Image.fromarray(pixels(16, 16)).save(out, "JPEG", progressive=True)
    whole = out.getvalue()
    last = whole.rindex(b"\xff\xda")
    return whole[:2] + before + whole[2:-2] + whole[last:-2] * scans + whole[-2:] + after


def segment(marker: int, data: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


def test_scans_of_a_jpeg_are_counted_before_it_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    message = "a.jpg is a JPEG file with over 64 scans; save it again with fewer"
    (tmp_path / "a.jpg").write_bytes(progressive(100))
    with pytest.raises(UserError, match=message):
        read_image(tmp_path / "a.jpg")
    with pytest.raises(UserError, match=message):
        decode_image(progressive(100), "a.jpg")
    hidden = segment(0xE5, b"\xff\xd9" * 9)  # what looks like the end is in a part that is passed over
    with pytest.raises(UserError, match=message):
        decode_image(progressive(100, before=hidden), "a.jpg")
    monkeypatch.setattr(images, "_MAX_SCANNED_PIXELS", 16 * 16 * 40)
    with pytest.raises(UserError, match=r"a.jpg is a JPEG file with 4\d scans of 16 x 16 pixels; save it with fewer"):
        decode_image(progressive(35), "a.jpg")
    assert decode_image(progressive(10), "a.jpg").shape == (16, 16, 3)
    monkeypatch.undo()
    scan = segment(0xDA, bytes(6)) * 100  # in a film after the image, or in the camera's notes
    assert decode_image(progressive(40, after=scan), "a.jpg").shape == (16, 16, 3)
    assert decode_image(progressive(40, before=segment(0xE5, scan)), "a.jpg").shape == (16, 16, 3)


def test_parts_of_a_jpeg_that_take_long_together_are_counted() -> None:
    exif = segment(0xE1, b"Exif\0\0A")
    assert decode_image(progressive(0, before=exif * 90), "a.jpg").shape == (16, 16, 3)
    with pytest.raises(UserError, match="has over 100 parts of Exif data"):
        decode_image(progressive(0, before=exif * 101), "a.jpg")


def test_runs_of_a_large_bmp_are_refused() -> None:
    for wide, message in ((4000, "truncated or corrupt"), (5000, "is a compressed BMP file of 5000 x 5000")):
        runs = b"\x01\x01\0\0\0\1"
        head = struct.pack("<IiiHHIIiiII", 40, wide, wide, 1, 8, 1, len(runs), 0, 0, 256, 0) + bytes(1024)
        file = b"BM" + struct.pack("<IHHI", 14 + len(head) + len(runs), 0, 0, 14 + len(head)) + head + runs
        with pytest.raises(UserError, match=message):
            decode_image(file, "a.bmp")


def test_images_are_opened_in_one_module() -> None:
    root = Path(headway.__file__).parent
    opener = re.compile(r"\bImage\.open\(|pillow\(\)\.open\(|from PIL\.Image import")
    found = [str(path.relative_to(root)) for path in root.rglob("*.py") if opener.search(path.read_text("utf-8"))]
    assert found == ["io/images.py"]


def test_what_is_no_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_text("hello", encoding="utf-8")
    (tmp_path / "a.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", encoding="utf-8")
    for name in ("a.png", "a.eps"):
        with pytest.raises(UserError, match="is not a supported image; use one of PNG"):
            read_image(tmp_path / name)
    for place in (tmp_path, tmp_path / "none.png"):
        with pytest.raises(UserError, match="is not a file; pass image files"):
            read_image(place)
    monkeypatch.setattr(module, "pillow", lambda: (_ for _ in ()).throw(UserError(HOW_TO_INSTALL)))
    with pytest.raises(UserError, match=r"install headway\[vision\]"):
        read_image(tmp_path / "a.png")


def test_older_files_say_one_number_for_both_sides() -> None:
    values = {"feature_extractor_type": "ViTFeatureExtractor", "size": 32, "do_normalize": False}
    found = ImageProcessor.read(values, "p.json")
    assert (found.size, found.mean, found.crop) == ((32, 32), None, None)
    assert ImageProcessor.read({}, "p.json") == ImageProcessor()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"image_processor_type": "BlipImageProcessor"}, "image_processor_type is 'BlipImageProcessor'"),
        ({"size": {"longest_edge": 3}}, "use height and width, or only shortest_edge"),
        ({"size": 0}, "size is 0; use 1 to"),
        ({"size": "big"}, "size"),
        ({"size": {"shortest_edge": 10**9}}, "size is 1000000000"),
        ({"image_mean": [0.5, 0.5]}, "image_mean has 2 numbers; use 3"),
        ({"image_std": [0.5, 0.0, 0.5]}, "use numbers that are not near 0"),
        ({"image_mean": float("nan")}, "image_mean is nan"),
        ({"rescale_factor": 1e30}, "rescale_factor is 1e.30; use a number from"),
        ({"resample": 9}, "resample is 9"),
        ({"do_resize": "yes"}, "do_resize"),
        ({"rescale_factor": "x"}, "rescale_factor"),
    ],
)
def test_processors_that_cannot_be_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        ImageProcessor.read(values, "p.json")
    assert "p.json" in str(caught.value)


def test_one_pixel_and_thin_images(tmp_path: Path) -> None:
    for shape in ((1, 1, 3), (1, 200, 3), (300, 2, 3)):
        x = np.full(shape, 128, np.uint8)
        found = ImageProcessor(size=None, shortest=16, crop=(16, 16))(x)
        assert found.shape == (3, 16, 16)
        np.testing.assert_allclose(found, (128 / 255 - 0.5) / 0.5, atol=1e-6)


def test_an_image_that_is_too_thin_is_refused() -> None:
    with pytest.raises(UserError, match="an image of 1 x 4000 pixels is too narrow"):
        ImageProcessor(size=None, shortest=16)(np.zeros((1, 4000, 3), np.uint8))
