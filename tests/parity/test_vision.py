"""ViT and DeiT against transformers: every layer, logits at their own and at other sizes, the way back, and pixels."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from twins import check_export, check_gradients, difference, outputs_of, twins

from headway.codecs.image_processor import ImageProcessor, read_image
from headway.errors import UserError
from headway.formats.families import families
from headway.formats.published import can_express, load_published
from headway.nn.models.presets import preset

T = pytest.importorskip("transformers")
Image = pytest.importorskip("PIL.Image")
TOLERANCE = 1e-5
LABELS = {"id2label": {0: "cat", 1: "dog", 2: "bird"}, "label2id": {"cat": 0, "dog": 1, "bird": 2}}
SIZES: dict[str, dict[str, Any]] = {
    "small": {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "image_size": 16,
        "patch_size": 4,
    },
    "large": {
        "hidden_size": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 5,
        "intermediate_size": 56,
        "image_size": [12, 24],
        "patch_size": [6, 4],
        "num_channels": 2,
        "qkv_bias": False,
        "hidden_act": "gelu_new",
        "layer_norm_eps": 1e-3,
        "hidden_dropout_prob": 0.2,
        "pooler_act": "relu",
    },
}
CASES = [
    *((stem, head) for stem in ("ViT", "DeiT") for head in ("Model", "Model-bare", "ForImageClassification")),
    ("DeiT", "ForImageClassificationWithTeacher"),
]


def model(stem: str, head: str, size: str) -> Any:
    torch.manual_seed(0)
    config = getattr(T, f"{stem}Config")(**SIZES[size], **LABELS)
    return getattr(T, stem + head.removesuffix("-bare"))(config, **_options(head))


def _options(head: str) -> dict[str, bool]:
    return {"add_pooling_layer": False} if head.endswith("-bare") else {}


def images(theirs: Any, height: int | None = None, width: int | None = None) -> Tensor:
    size = theirs.config.image_size
    own = (size, size) if isinstance(size, int) else tuple(size)
    shape = (3, theirs.config.num_channels, height or own[0], width or own[1])
    return torch.randn(shape, generator=torch.Generator().manual_seed(4))


def said(output: Any, head: str) -> Tensor:
    return output[{"Model": "pooler_output", "Model-bare": "last_hidden_state"}.get(head, "logits")]


def ours_said(ours: Any, head: str, x: Tensor) -> Tensor:
    name = {"Model": "pooled", "Model-bare": None}.get(head, "classes")
    return ours(x).x if name is None else ours.output(name, x)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("stem", "head"), CASES)
def test_every_layer_and_output_is_theirs_and_so_is_the_export(stem: str, head: str, size: str, tmp_path: Path) -> None:
    pair = twins(model(stem, head, size), tmp_path / "theirs")
    x = images(pair.theirs)
    with torch.inference_mode():
        assert difference(ours_said(pair.ours, head, x), said(pair.theirs(x), head)) < TOLERANCE
    theirs = outputs_of(pair.theirs.base_model.layers, lambda: pair.theirs(x))
    ours = outputs_of(list(pair.ours.stack.blocks), lambda: pair.ours(x))
    assert len(theirs) == len(ours) == SIZES[size]["num_hidden_layers"]
    for a, b in zip(ours, theirs):
        assert difference(a, b) < TOLERANCE
    assert pair.usage.labels == ("cat", "dog", "bird")

    def again(folder: Path) -> Any:
        return getattr(T, stem + head.removesuffix("-bare")).from_pretrained(folder, **_options(head))

    check_export(pair, again, lambda peer: said(peer(x), head), tmp_path / "ours")


@pytest.mark.parametrize(("stem", "head"), [case for case in CASES if case[1].startswith("For")])
def test_gradients(stem: str, head: str, tmp_path: Path) -> None:
    pair = twins(model(stem, head, "small"), tmp_path / "theirs")
    x = images(pair.theirs)
    check_gradients(pair, lambda peer: peer(x).logits, lambda mine: mine.output("classes", x), tmp_path / "gradients")


@pytest.mark.parametrize("shape", [(24, 24), (8, 8), (20, 12), (4, 32)])
@pytest.mark.parametrize(("stem", "head"), [case for case in CASES if case[1].startswith("For")])
def test_other_sizes_interpolate_the_positions_as_theirs(
    stem: str, head: str, shape: tuple[int, int], tmp_path: Path
) -> None:
    pair = twins(model(stem, head, "small"), tmp_path)
    x = images(pair.theirs, *shape)
    with torch.inference_mode():
        theirs = pair.theirs(x, interpolate_pos_encoding=True).logits
        assert difference(pair.ours.output("classes", x), theirs) < TOLERANCE


def test_both_tokens_of_a_distilled_model_say_what_theirs_say(tmp_path: Path) -> None:
    pair = twins(model("DeiT", "ForImageClassificationWithTeacher", "small"), tmp_path)
    x = images(pair.theirs)
    with torch.inference_mode():
        theirs = pair.theirs(x)
        labelled, taught = pair.ours.heads["classes"].both(pair.ours(x).x)
    assert difference(labelled, theirs.cls_logits) < TOLERANCE
    assert difference(taught, theirs.distillation_logits) < TOLERANCE


OLD = (
    ("attention.q_proj", "attention.attention.query"),
    ("attention.k_proj", "attention.attention.key"),
    ("attention.v_proj", "attention.attention.value"),
    ("attention.o_proj", "attention.output.dense"),
    ("mlp.fc1", "intermediate.dense"),
    ("mlp.fc2", "output.dense"),
)


@pytest.mark.parametrize("stem", ["ViT", "DeiT"])
def test_files_of_every_age_are_read(stem: str, tmp_path: Path) -> None:
    """Names as models were published with, and as newer modules have them."""
    theirs = model(stem, "ForImageClassification", "small").eval()
    new = {name: tensor.contiguous() for name, tensor in theirs.state_dict().items()}
    old = {}
    for name, tensor in new.items():
        for newer, older in OLD:
            name = name.replace(newer, older)
        old[name.replace(".layers.", ".encoder.layer.")] = tensor
    assert old.keys() != new.keys()
    x = images(theirs)
    for label, tensors in (("new", new), ("old", old)):
        theirs.save_pretrained(tmp_path / label)
        save_file(tensors, tmp_path / label / "model.safetensors", {"format": "pt"})
        ours = load_published(tmp_path / label).model
        with torch.inference_mode():
            found = ours.output("classes", x)  # type: ignore[operator]
            assert difference(found, theirs(x).logits) < TOLERANCE


def test_exports_have_the_names_that_models_were_published_with(tmp_path: Path) -> None:
    pair = twins(model("DeiT", "ForImageClassification", "small"), tmp_path / "theirs")
    check_export(pair, T.DeiTForImageClassification.from_pretrained, lambda m: m(images(m)).logits, tmp_path / "ours")
    names = load_file(tmp_path / "ours" / "used" / "model.safetensors").keys()
    assert "deit.encoder.layer.0.attention.attention.query.weight" in names
    assert "deit.embeddings.distillation_token" in names


@pytest.mark.parametrize("name", ["vit-ti16", "vit-b32", "vit-h14", "deit-s16"])
def test_presets_have_a_published_form(name: str) -> None:
    fitting = [each.name for each in families().values() if can_express(each, preset(name))]
    assert fitting == [name.split("-")[0]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": [16, 16, 16]}, "image_size is .*one number, or height and width"),
        ({"patch_size": 5}, "do not split into 5 x 5 patches"),
        ({"patch_size": 0}, "patch=0 x 0, channels"),
        ({"image_size": 1 << 30}, "more than .* bytes can hold"),
        ({"image_size": 32}, "position_embeddings of shape"),
        ({"num_channels": 1}, "projection.weight of shape"),
        ({"hidden_act": "sine"}, "hidden_act is 'sine'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    model("ViT", "ForImageClassification", "small").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | change), encoding="utf-8")
    with pytest.raises(UserError, match=message):
        load_published(tmp_path)


PROCESSORS: list[tuple[str, dict[str, Any]]] = [
    ("vit", {}),
    ("vit", {"size": {"height": 20, "width": 33}, "resample": 3, "image_mean": [0.1, 0.2, 0.3]}),
    ("vit", {"size": {"shortest_edge": 30}, "do_center_crop": True, "crop_size": {"height": 30, "width": 30}}),
    ("vit", {"size": {"shortest_edge": 17}, "image_std": [0.2, 0.3, 0.4], "resample": 0}),
    ("vit", {"do_resize": False, "do_center_crop": True, "crop_size": {"height": 40, "width": 21}}),
    ("vit", {"do_rescale": False, "resample": 1}),
    ("vit", {"do_normalize": False, "rescale_factor": 1 / 127.5}),
    ("deit", {}),
    ("deit", {"size": {"height": 32, "width": 32}, "crop_size": {"height": 28, "width": 24}}),
]


def processor(kind: str, settings: dict[str, Any]) -> Any:
    """That of Pillow, for which models were published; the faster one needs torchvision."""
    name = {"vit": "ViT", "deit": "DeiT"}[kind] + "ImageProcessorPil"
    return getattr(import_module(f"transformers.models.{kind}.image_processing_pil_{kind}"), name)(**settings)


@pytest.mark.parametrize(("kind", "settings"), PROCESSORS)
@pytest.mark.parametrize("shape", [(37, 53), (53, 37), (300, 11), (1, 1), (24, 24)])
def test_pixels_become_the_same_inputs(
    kind: str, settings: dict[str, Any], shape: tuple[int, int], tmp_path: Path
) -> None:
    theirs = processor(kind, settings)
    theirs.save_pretrained(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    ours = ImageProcessor.read(json.loads(path.read_text(encoding="utf-8")), str(path))
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    wanted = theirs(Image.fromarray(pixels), return_tensors="np")["pixel_values"][0]
    found = ours(pixels)
    assert found.dtype == wanted.dtype == np.float32
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "LA", "CMYK", "1"])
def test_files_of_any_mode_become_the_same_inputs(mode: str, tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (30, 41, 4), dtype=np.uint8)
    image = Image.fromarray(pixels).convert(mode)
    path = tmp_path / ("a.tiff" if mode == "CMYK" else "a.png")
    image.save(path)
    theirs = processor("vit", {"do_convert_rgb": True})
    ours = ImageProcessor.read(theirs.to_dict(), "processor")
    with Image.open(path) as opened:
        wanted = theirs(opened, return_tensors="np")["pixel_values"][0]
    np.testing.assert_array_equal(ours(read_image(path)), wanted)
