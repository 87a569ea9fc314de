"""`headway look`: draw where an image model looks."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from headway.app.cli.inputs import Failures, image_paths, predict_each, report_outcome
from headway.app.cli.options import add_server, load, torch_options
from headway.app.cli.terminal import Terminal
from headway.errors import UserError

if TYPE_CHECKING:
    from headway.domains.vision import ImageAttention

EXAMPLE = """
headway look runs/mine cat.png --out cat-look.png
headway look runs/mine photos/ --out looks                          # a picture per image, in the folder looks
headway look mine cat.png --out cat-look.png --server http://127.0.0.1:8000
"""
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", metavar="RUN|MODEL", help="run directory, or published image model with attention, such as ViT")
    add("images", nargs="+", metavar="IMAGE", help="image files, or folders of image files")
    add("--out", type=Path, required=True, metavar="PATH", help="picture to write, or folder for several pictures")
    add_server(parser)


def run(args: argparse.Namespace, terminal: Terminal) -> None:
    from headway.codecs.image_processor import write_image

    images, out = image_paths(args.images), args.out
    is_picture = out.suffix.lower() in _SUFFIXES
    if is_picture and len(images) > 1:
        raise UserError(f"{out} is one picture, but there are {len(images):,} images; pass a folder with --out")
    if not out.parent.is_dir() or (out.exists() and out.is_dir() == is_picture):
        raise UserError(f"{out} cannot be written as a {'picture' if is_picture else 'folder'}; choose another path")
    failures: Failures = []
    pictures: list[dict[str, str]] = []
    with torch_options(args):
        model = load(args)
        attention: ImageAttention | None
        for image, attention in predict_each(images, model.look, failures):
            if attention is None:
                continue
            name = f"{len(pictures) + 1}-{Path(image).stem}.png" if len(images) > 1 else f"{Path(image).stem}.png"
            path = out if is_picture else out / name
            if not is_picture:
                out.mkdir(exist_ok=True)
            write_image(attention.side_by_side([Path(image).name]), path)
            terminal.print(f"picture: {path}")
            pictures.append({"image": image, "picture": str(path)})
    report_outcome({"pictures": pictures}, failures, terminal)
