"""Decode image files, and preprocess pixels for a model according to a published preprocessor_config.json."""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from headway.config import from_dict
from headway.errors import UserError, nearest
from headway.io.images import FORMATS, open_image, pillow

_LARGE_IMAGE = 1 << 23  # pixels; larger images are decoded one at a time
_LARGE_IMAGE_LOCK = threading.Lock()


def read_image(path: Path | str) -> UInt8[np.ndarray, "H W 3"]:
    """The pixels in an image file, rotated according to its EXIF orientation. If there are several frames, the first
    one is used.

    Palettes and grey become RGB, 16 bits become 8, and transparency becomes white. Raises UserError if the file is not
    an image, is truncated or corrupt, or has so many pixels that decoding would exhaust memory (a decompression bomb).
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(f"{file} is not a file; pass image files ({', '.join(FORMATS)})")
    return _read(file, str(file))


def decode_image(data: bytes, name: str) -> UInt8[np.ndarray, "H W 3"]:
    """`read_image` for a file's bytes; `name` is for messages."""
    return _read(io.BytesIO(data), name)


def _read(source: Path | io.BytesIO, name: str) -> UInt8[np.ndarray, "H W 3"]:
    Image = pillow()
    try:
        with open_image(source, name) as image:
            is_large = image.width * image.height > _LARGE_IMAGE
            with _LARGE_IMAGE_LOCK if is_large else nullcontext():
                return _rgb(image, name)
    except UserError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning, MemoryError) as error:
        raise UserError(f"{name} has too many pixels ({_error_text(error)}); make the image smaller") from None
    except Image.UnidentifiedImageError:
        raise UserError(f"{name} is not a supported image; use one of {', '.join(FORMATS)}") from None
    except Exception as error:  # each format's parser raises its own errors: OSError, SyntaxError, struct.error, ...
        raise UserError(f"{name} is truncated or corrupt ({_error_text(error)}); download or save it again") from None


def write_image(pixels: UInt8[np.ndarray, "H W 3"], path: Path | str) -> None:
    """Write an image in the format given by the file extension. Raises UserError if the extension is unknown or the
    path is not writable.
    """
    try:
        pillow().fromarray(pixels).save(path)
    except ValueError:
        raise UserError(f"{path} has no image file extension; use one such as .png") from None
    except OSError as error:
        raise UserError(f"{path} cannot be written ({_error_text(error)}); choose another path") from None


def _rgb(image: Any, name: str) -> UInt8[np.ndarray, "H W 3"]:
    from PIL import ImageOps

    image.load()  # decode now, so that errors are raised here
    is_grey = image.mode.startswith(("I", "F"))
    with suppress(Exception):  # damaged metadata are no reason to refuse the pixels, which are there
        ImageOps.exif_transpose(image, in_place=True)
    clear = image.info.get("transparency") if is_grey else None
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    rows = max(1, _LARGE_IMAGE // (8 * image.width))
    for top in range(0, image.height, rows):  # in bands, because conversion takes several times the memory of its input
        band = image if rows >= image.height else image.crop((0, top, image.width, min(image.height, top + rows)))
        if is_grey:  # 16 bits are scaled to 8; Pillow itself would clip them at 255
            grey = np.asarray(band)
            if grey.dtype.kind == "f" or grey.min(initial=0) < 0 or grey.max(initial=0) > 65535:
                raise UserError(f"{name} has pixels in mode {band.mode} outside 0 to 65535; save it with 8 or 16 bits")
            bright = np.where(grey == clear, 65535, grey) if isinstance(clear, int) else grey
            pixels[top : top + rows] = ((bright.astype(np.uint32) + 128) // 257)[:, :, None]
            continue
        if "A" in band.getbands() or band.info.get("transparency") is not None:
            band = band.convert("RGBA")
            white = pillow().new("RGBA", band.size, (255, 255, 255, 255))
            band = pillow().alpha_composite(white, band)
        pixels[top : top + rows] = np.asarray(band.convert("RGB"))
    return pixels


def _error_text(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


FILE = "preprocessor_config.json"
_MAX_EDGE = 1 << 12  # maximum height or width of a model's input
_MAX_SCALE = 1e6  # maximum for scaling constants
_HALF = (0.5, 0.5, 0.5)
_COMMON = {"do_resize": True, "do_rescale": True, "do_normalize": True, "rescale_factor": 1 / 255}
_COMMON |= {"image_mean": _HALF, "image_std": _HALF, "resample": 2, "do_center_crop": False}
# Each kind's defaults for missing keys.
DEFAULTS: dict[str, dict[str, Any]] = {
    "ViT": {**_COMMON, "size": 224},
    "DeiT": {**_COMMON, "size": 256, "resample": 3, "do_center_crop": True, "crop_size": 224},
    "CLIP": {
        **_COMMON,
        "size": 224,
        "resample": 3,
        "do_center_crop": True,
        "crop_size": 224,
        "image_mean": (0.48145466, 0.4578275, 0.40821073),
        "image_std": (0.26862954, 0.26130258, 0.27577711),
    },
    "Siglip": {**_COMMON, "size": 224, "resample": 3},
}
_SHORTEST_EDGE_KINDS = ("CLIP",)  # kinds for which a single number as size is the shorter edge


@dataclass(frozen=True)
class ImageProcessor:
    """Image preprocessing. Steps set to None are skipped.

    Images are resized with Pillow's filter `resample`, to `size` (height, width) or so that the shorter edge is
    `shortest`. Then the centre `crop` (height, width) is cut out, padded with black if needed. Finally, pixels x become
    (`factor` x - `mean`) / `std` per channel. A single number for `mean` and `std` means greyscale input.
    """

    size: tuple[int, int] | None = (224, 224)
    shortest: int | None = None
    resample: int = 2
    crop: tuple[int, int] | None = None
    factor: float | None = 1 / 255
    mean: tuple[float, ...] | None = _HALF
    std: tuple[float, ...] | None = _HALF

    @staticmethod
    def read(values: Mapping[str, Any], source: str) -> ImageProcessor:
        """Parse the values in a preprocessor_config.json; `source` is for messages. Raises UserError for unsupported
        values.
        """
        name = values.get("image_processor_type") or values.get("feature_extractor_type") or "ViTImageProcessor"
        kind = re.sub(r"(ImageProcessor|FeatureExtractor)(Fast|Pil)?$", "", str(name))
        if kind not in DEFAULTS:
            raise UserError(f"{source}: image_processor_type is {name!r}; {nearest(kind, DEFAULTS)}")
        settings = {**DEFAULTS[kind], **{k: v for k, v in values.items() if v is not None}}
        size = shortest = crop = None
        if _flag(settings, "do_resize", source):
            edges = settings["size"]
            if kind in _SHORTEST_EDGE_KINDS and not isinstance(edges, Mapping):
                edges = {"shortest_edge": edges}
            if isinstance(edges, Mapping) and edges.get("shortest_edge") and not edges.get("longest_edge"):
                shortest = _edge(edges["shortest_edge"], f"{source}: size")
            else:
                size = _height_and_width(edges, f"{source}: size")
        if _flag(settings, "do_center_crop", source):
            crop = _height_and_width(settings.get("crop_size", 224), f"{source}: crop_size")
        factor = mean = std = None
        if _flag(settings, "do_rescale", source):
            factor = _number(settings["rescale_factor"], f"{source}: rescale_factor")
        if _flag(settings, "do_normalize", source):
            mean, std = (_channels(settings[name], f"{source}: {name}") for name in ("image_mean", "image_std"))
            if len(mean) != len(std):
                raise UserError(
                    f"{source}: image_mean has {len(mean)} numbers, but image_std has {len(std)}; use equally many"
                )
            if min(map(abs, std)) * _MAX_SCALE < 1:
                raise UserError(f"{source}: image_std is {list(std)}; use numbers that are not near 0")
        resample = from_dict(int, settings["resample"], f"{source}: resample")
        if not 0 <= resample <= 5:
            raise UserError(f"{source}: resample is {resample}; use a Pillow filter, 0 to 5 (2 bilinear, 3 bicubic)")
        return ImageProcessor(size, shortest, resample, crop, factor, mean, std)

    @property
    def channels(self) -> int:
        return 3 if self.mean is None else len(self.mean)

    @property
    def shape(self) -> tuple[int, int] | None:
        """Height and width of the model's input; None if images keep their own."""
        return self.crop or (None if self.shortest is not None else self.size)

    def __call__(self, pixels: UInt8[np.ndarray, "H W 3"]) -> Float32[np.ndarray, "C h w"]:
        """The model's input for one image."""
        return self.normalize(self.pixels(pixels))

    def pixels(self, image: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "h w C"]:
        """The resized and cropped image, with the model's number of channels."""
        height, width = image.shape[:2]
        if self.shortest is not None:
            longer_edge = int(self.shortest * max(height, width) / min(height, width))
            if longer_edge > _MAX_EDGE:
                raise UserError(
                    f"an image of {height} x {width} pixels is too narrow: with a shorter edge of {self.shortest}, the "
                    f"longer one would have {longer_edge}, more than {_MAX_EDGE}; crop it"
                )
            height, width = (longer_edge, self.shortest) if width <= height else (self.shortest, longer_edge)
        elif self.size is not None:
            height, width = self.size
        resized = image
        if (height, width) != image.shape[:2]:
            resized = np.array(pillow().fromarray(image).resize((width, height), resample=self.resample))
        if self.crop is not None:
            out = np.zeros((*self.crop, resized.shape[2]), resized.dtype)
            image_part, crop_part = [], []
            for length, crop_length in zip(resized.shape, self.crop):
                start = (length - crop_length) // 2
                image_part.append(slice(max(start, 0), max(start, 0) + min(length, crop_length)))
                crop_part.append(slice(max(-start, 0), max(-start, 0) + min(length, crop_length)))
            out[tuple(crop_part)] = resized[tuple(image_part)]
            resized = out
        return to_grey(resized) if self.channels == 1 else resized

    def normalize(self, pixels: UInt8[np.ndarray, "h w C"]) -> Float32[np.ndarray, "C h w"]:
        x = pixels.astype(np.float32)
        if self.factor is not None:
            x = (pixels.astype(np.float64) * self.factor).astype(np.float32)
        if self.mean is not None and self.std is not None:
            x = (x - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return np.ascontiguousarray(x.transpose(2, 0, 1))


def to_grey(pixels: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "H W 1"]:
    """ITU-R 601-2 luma, bit-identical to Pillow's mode L; grey images are unchanged."""
    red, green, blue = (pixels[..., i : i + 1].astype(np.uint32) for i in range(3))
    return ((19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16).astype(np.uint8)


def _flag(settings: Mapping[str, Any], name: str, source: str) -> bool:
    return from_dict(bool, settings[name], f"{source}: {name}")


def _edge(value: Any, path: str) -> int:
    length = from_dict(int, value, path)
    if not 1 <= length <= _MAX_EDGE:
        raise UserError(f"{path} is {length}; use 1 to {_MAX_EDGE} pixels")
    return length


def _height_and_width(value: Any, path: str) -> tuple[int, int]:
    """Height and width from a mapping, or from one number for both (older files)."""
    if isinstance(value, Mapping):
        if not {"height", "width"} <= value.keys():
            raise UserError(f"{path} is {dict(value)}; use height and width, or only shortest_edge")
        return _edge(value["height"], path), _edge(value["width"], path)
    length = _edge(value, path)
    return length, length


def _number(value: Any, path: str) -> float:
    number = from_dict(float, value, path)
    if not abs(number) <= _MAX_SCALE:
        raise UserError(f"{path} is {number}; use a number from -{_MAX_SCALE:g} to {_MAX_SCALE:g}")
    return number


def _channels(value: Any, path: str) -> tuple[float, ...]:
    """A number per channel, or one for all; a list of one is for greyscale."""
    if not isinstance(value, (list, tuple)):
        return (_number(value, path),) * 3
    if len(value) not in (1, 3):
        raise UserError(f"{path} has {len(value)} numbers; use 3 for red, green and blue, or 1 for grey")
    return tuple(_number(number, path) for number in value)
