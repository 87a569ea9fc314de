"""CLIP and SigLIP against transformers: both towers, what they say to each other, the way back, tokens and pixels."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from twins import Twins, check_export, check_gradients, difference, outputs_of, twins

from headway.codecs import load_codec
from headway.codecs.image_processor import ImageProcessor
from headway.codecs.tokenizer import sequence_template
from headway.errors import UserError
from headway.formats.families import families
from headway.formats.published import can_express, load_published
from headway.layout import Layout
from headway.nn.models.presets import preset, siglip

T = pytest.importorskip("transformers")
Image = pytest.importorskip("PIL.Image")
TOLERANCE = 1e-5
SYMBOLS, CONTEXT, END = 40, 9, 39
SIZES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "small": (
        {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2},
        {"image_size": 16, "patch_size": 4},
    ),
    "large": (
        {"hidden_size": 40, "intermediate_size": 56, "num_hidden_layers": 3, "num_attention_heads": 5},
        {"image_size": 20, "patch_size": 5, "num_channels": 2, "layer_norm_eps": 1e-3, "hidden_act": "gelu_new"},
    ),
}


def model(stem: str, size: str = "small", **text: Any) -> Any:
    torch.manual_seed(0)
    shared, seen = SIZES[size]
    words = {**shared, "vocab_size": SYMBOLS, "max_position_embeddings": CONTEXT, **text}
    if stem == "CLIP":
        words = {"eos_token_id": END, "bos_token_id": 38, **words}
        config = T.CLIPConfig(text_config=words, vision_config={**shared, **seen}, projection_dim=12)
        return T.CLIPModel(config)
    words = {"eos_token_id": 2, "bos_token_id": 0, **words}
    return T.SiglipModel(T.SiglipConfig(text_config=words, vision_config={**shared, **seen}))


def images(pair: Twins, height: int | None = None, width: int | None = None) -> Tensor:
    config = pair.theirs.config.vision_config
    shape = (3, config.num_channels, height or config.image_size, width or config.image_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(4))


def texts() -> Tensor:
    """Some end early, and one twice."""
    ids = torch.randint(3, 38, (4, CONTEXT), generator=torch.Generator().manual_seed(5))
    ids[:, -1] = END
    ids[1, 4:] = END
    ids[2, 6] = END
    return ids


def said(x: Tensor) -> Callable[[Any], Tensor]:
    return lambda peer: peer(input_ids=texts(), pixel_values=x).logits_per_image


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("stem", ["CLIP", "Siglip"])
def test_both_towers_and_their_logits_are_theirs_and_so_is_the_export(stem: str, size: str, tmp_path: Path) -> None:
    pair = twins(model(stem, size), tmp_path / "theirs")
    x, ids = images(pair), texts()
    with torch.inference_mode():
        theirs = pair.theirs(input_ids=ids, pixel_values=x)
        left, right = pair.ours.vectors("left", x), pair.ours.vectors("right", ids)
        assert difference(left, theirs.image_embeds) < TOLERANCE
        assert difference(right, theirs.text_embeds) < TOLERANCE
        assert difference(pair.ours(x, ids), theirs.logits_per_image) < TOLERANCE
        assert difference(pair.ours.logits(left, right).T, theirs.logits_per_text) < TOLERANCE
    for side, tower in (("left", pair.theirs.vision_model), ("right", pair.theirs.text_model)):
        own = list(getattr(pair.ours, side).stack.blocks)
        found = outputs_of(own, lambda: pair.ours(x, ids))
        for a, b in zip(found, outputs_of(tower.encoder.layers, lambda: pair.theirs(input_ids=ids, pixel_values=x))):
            keep = pair.ours.layout(ids).mask if side == "right" else None
            assert difference(a, b, keep) < TOLERANCE
    check_export(pair, type(pair.theirs).from_pretrained, said(x), tmp_path / "ours")


@pytest.mark.parametrize("stem", ["CLIP", "Siglip"])
def test_gradients(stem: str, tmp_path: Path) -> None:
    pair = twins(model(stem), tmp_path / "theirs")
    x, ids = images(pair), texts()
    check_gradients(pair, said(x), lambda mine: mine(x, ids), tmp_path / "gradients")


@pytest.mark.parametrize("shape", [(24, 24), (8, 12)])
@pytest.mark.parametrize("stem", ["CLIP", "Siglip"])
def test_other_sizes_interpolate_the_positions_as_theirs(stem: str, shape: tuple[int, int], tmp_path: Path) -> None:
    pair = twins(model(stem), tmp_path)
    x = images(pair, *shape)
    with torch.inference_mode():
        theirs = pair.theirs.get_image_features(pixel_values=x, interpolate_pos_encoding=True).pooler_output
        wanted = torch.nn.functional.normalize(theirs, dim=-1)
        assert difference(pair.ours.vectors("left", x), wanted) < TOLERANCE


def test_a_text_ends_at_its_end_whatever_follows_and_however_its_row_is_padded(tmp_path: Path) -> None:
    """New files name the end; in old ones, which name 2, it is the highest id."""
    for label, end in (("new", END), ("old", 2)):
        pair = twins(model("CLIP", eos_token_id=end), tmp_path / label)
        ids = texts()
        ids[3, 2:] = torch.tensor([END, 5, 6, 7, 8, 9, 10])
        with torch.inference_mode():
            theirs = pair.theirs(input_ids=ids, pixel_values=images(pair)).text_embeds
            found = pair.ours.vectors("right", ids)
            short = pair.ours.vectors("right", ids[3:, :3], Layout.full(1, 3))
        assert difference(found, theirs) < TOLERANCE
        assert difference(short, theirs[3:]) < TOLERANCE
        check_export(pair, T.CLIPModel.from_pretrained, said(images(pair)), tmp_path / f"{label}-ours")
        config = json.loads((tmp_path / f"{label}-ours" / "used" / "config.json").read_text(encoding="utf-8"))
        assert config["text_config"]["eos_token_id"] == end


def test_files_of_every_age_are_read(tmp_path: Path) -> None:
    """Position numbers among the weights, and settings of towers under their older name, which has the last word."""
    theirs = model("CLIP").eval()
    theirs.save_pretrained(tmp_path)
    tensors = dict(load_file(tmp_path / "model.safetensors"))
    tensors["text_model.embeddings.position_ids"] = torch.arange(CONTEXT)[None]
    tensors["vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    path = tmp_path / "config.json"
    said = json.loads(path.read_text(encoding="utf-8"))
    said["text_config_dict"] = said["text_config"]
    said["text_config"] = {"num_hidden_layers": 7}
    said["vision_config_dict"] = None
    path.write_text(json.dumps(said), encoding="utf-8")
    ours = load_published(tmp_path).model
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        wanted = theirs(input_ids=texts(), pixel_values=x).logits_per_image
        assert difference(ours(x, texts()), wanted) < TOLERANCE


@pytest.mark.parametrize("name", ["clip-b32", "clip-b16", "clip-l14"])
def test_presets_have_a_published_form(name: str) -> None:
    assert [each.name for each in families().values() if can_express(each, preset(name))] == ["clip"]


def test_the_size_of_siglip_has_a_published_form() -> None:
    assert [each.name for each in families().values() if can_express(each, siglip((768, 12, 12)))] == ["siglip"]


@pytest.mark.parametrize(
    ("stem", "change", "message"),
    [
        ("CLIP", {"architectures": ["CLIPForImageClassification"]}, "architectures is .*which is not supported"),
        ("CLIP", {"projection_dim": 8}, "projection.weight of shape"),
        ("CLIP", {"text_config": 3}, "text_config is 3; it should be a mapping"),
        ("CLIP", {"text_config": {"num_hidden_layers": 1 << 30}}, "num_hidden_layers is 1073741824, too many"),
        ("Siglip", {"vision_config": {"vision_use_head": False}}, "vision_use_head is False, which is not supported"),
    ],
)
def test_settings_that_do_not_fit_are_refused(stem: str, change: dict[str, Any], message: str, tmp_path: Path) -> None:
    model(stem).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    said = json.loads(path.read_text(encoding="utf-8"))
    for key, value in change.items():
        said[key] = {**said[key], **value} if isinstance(value, dict) else value
    path.write_text(json.dumps(said), encoding="utf-8")
    with pytest.raises(UserError, match=message):
        load_published(tmp_path)


def test_siglips_tokens_are_theirs_without_case_and_marks(data_dir: Path, tmp_path: Path) -> None:
    shutil.copy(data_dir / "conformance" / "sentencepiece_test_model.model", tmp_path / "spiece.model")
    theirs = T.SiglipTokenizer(str(tmp_path / "spiece.model"))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "SiglipTokenizer"}', encoding="utf-8")
    ours = load_codec(tmp_path)
    for text in (
        "I saw a girl with a telescope.",
        "A photo,of  a Cat!! ",
        "don't",
        "x  y\tz",
        "Ünïcode – dash…",
        "_a_",
    ):
        assert sequence_template(ours).add_special_tokens(ours.encode(text)) == theirs(text).input_ids, text
    ours.save(tmp_path / "again")
    assert load_codec(tmp_path / "again").encode("A Cat!") == ours.encode("a cat")


PROCESSORS: list[tuple[str, dict[str, Any]]] = [
    ("clip", {}),
    ("clip", {"size": 20, "crop_size": 16}),
    ("clip", {"size": {"shortest_edge": 30}, "crop_size": {"height": 24, "width": 40}}),
    ("clip", {"do_center_crop": False, "size": {"height": 18, "width": 12}}),
    ("siglip", {}),
    ("siglip", {"size": {"height": 20, "width": 33}, "resample": 2}),
]


@pytest.mark.parametrize(("kind", "settings"), PROCESSORS)
@pytest.mark.parametrize("shape", [(37, 53), (53, 37), (300, 17), (1, 1), (24, 24)])
def test_pixels_become_the_same_inputs(
    kind: str, settings: dict[str, Any], shape: tuple[int, int], tmp_path: Path
) -> None:
    name = {"clip": "CLIP", "siglip": "Siglip"}[kind] + "ImageProcessorPil"
    theirs = getattr(import_module(f"transformers.models.{kind}.image_processing_pil_{kind}"), name)(**settings)
    theirs.save_pretrained(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    said = json.loads(path.read_text(encoding="utf-8"))
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    wanted = theirs(Image.fromarray(pixels), return_tensors="np")["pixel_values"][0]
    for values in (said, {**said, **settings}):  # as newer files say it, and as older ones did
        np.testing.assert_array_equal(ImageProcessor.read(values, str(path))(pixels), wanted)
