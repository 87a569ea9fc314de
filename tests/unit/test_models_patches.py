"""Images as tokens: patches, tokens before them, positions on any grid; heads that read them; branches left out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from headway.config import from_dict, override, to_dict
from headway.errors import ConfigError, UserError
from headway.layout import Layout
from headway.nn.kernels import deterministic
from headway.nn.models import (
    DistilledHeadConfig,
    PatchEmbedConfig,
    PooledHeadConfig,
    TransformerConfig,
    build,
    describe,
)
from headway.nn.models.describe import rollout
from headway.nn.models.presets import deit, preset, vit
from headway.nn.parts.dropout import DropPath

SMALL = vit(16, 3, 2, 4, classes=5, size=8)


def drawn(config: TransformerConfig, seed: int = 0) -> Any:
    """A model all of whose numbers are drawn, in evaluation mode."""
    model = build(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


def images(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


def embedded(model: Any, x: Tensor) -> Tensor:
    found, layout = model.embed(x, model.embed.default_layout(x))
    assert found.shape[:2] == layout.positions.shape
    assert layout.dense
    return found


def test_patches_are_a_convolution_whose_stride_is_its_size() -> None:
    config = replace(SMALL, embed=PatchEmbedConfig((4, 2), (8, 12), channels=2))
    model, x = drawn(config), images(3, 2, 8, 12)
    project = model.embed.project
    kernel = project.weight.view(16, 2, 4, 2)
    wanted = F.conv2d(x, kernel, project.bias, stride=(4, 2)).flatten(2).mT + model.embed.positions.table[1:]
    found = embedded(model, x)
    torch.testing.assert_close(found[:, 1:], wanted, rtol=1e-5, atol=1e-5)
    first = model.embed.tokens.table[0] + model.embed.positions.table[0]
    torch.testing.assert_close(found[:, 0], first.expand(3, -1))


def test_histograms_count_edges_and_colours() -> None:
    """A vertical edge has one direction, in the cells that it crosses; colours are counted wherever they are."""
    embed = PatchEmbedConfig((8, 8), (8, 16), tokens=0, stem="histograms", cells=2)
    stem, x = drawn(replace(SMALL, embed=embed)).embed.stem, torch.zeros(1, 3, 8, 16)
    x[:, :, :, 2:] = 1.0
    edges, colours = stem._edges(x)[0], stem._colours(x)[0]
    by_cell = edges.view(2, 8, 2, 2)  # patch, direction, rows and columns of cells
    assert by_cell[0, 0].tolist() == [[0.5, 0.0], [0.5, 0.0]]  # two of four columns have strength 1
    assert edges.sum() == by_cell[0, 0].sum()
    assert (colours > 0).sum(1).tolist() == [2, 1]
    assert sorted(colours[0].tolist())[-2:] == [16, 48]
    turned = stem._edges(x[..., :8].mT)[0, 0].view(8, 2, 2)
    assert torch.equal(turned[4], by_cell[0, 0].mT)
    assert stem(images(2, 3, 8, 16)).shape == (2, 2, 16)
    assert stem(torch.zeros(1, 3, 8, 16)).isfinite().all()
    with pytest.raises(ConfigError, match="cells=3 does not divide patches of 8 x 8"):
        replace(embed, cells=3)
    with pytest.raises(ConfigError, match="levels=17 is not from 1 to 16; choose 4 or 8"):
        replace(embed, levels=17)
    with pytest.raises(ConfigError, match="hidden=-1 is below 0; choose a number of units"):
        replace(embed, hidden=-1)


def test_hidden_units_see_edges_alone() -> None:
    """Exchanging colour channels keeps the mean and so the edges: vectors then differ by a linear map of colours."""
    embed = PatchEmbedConfig((8, 8), (8, 16), tokens=0, stem="histograms", cells=2, levels=8, hidden=24)
    stem, x = drawn(replace(SMALL, embed=embed)).double().embed.stem, images(2, 3, 8, 16).double()
    assert stem.project.weight.shape[1] == 24 + 2 * 2 * 3 + 8**3
    inputs: list[torch.Tensor] = []
    stem.project.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    first, second = stem(x), stem(x[:, [2, 0, 1]])
    assert torch.allclose(inputs[0][..., :24], inputs[1][..., :24], atol=1e-5)
    assert not torch.allclose(inputs[0][..., 24:], inputs[1][..., 24:])
    by_colour = (inputs[0] - inputs[1])[..., 24:] @ stem.project.weight[:, 24:].T
    assert torch.allclose(first - second, by_colour, atol=1e-4)  # edges are computed in fp32


def test_a_stem_is_a_chain_of_convolutions_that_halve_the_image() -> None:
    embed = PatchEmbedConfig((4, 4), (8, 12), channels=2, tokens=1, stem="convolutional", stem_more=1)
    config = replace(SMALL, embed=embed)
    model, x = drawn(config).double(), images(3, 2, 8, 12).double()
    stem, y = model.embed.stem, x
    widths = [convolution.product.weight.shape[0] for convolution in stem.convolutions]
    assert widths == [8, 8, 16, 16]
    for convolution, norm, stride in zip(stem.convolutions, stem.norms, (2, 1, 2, 1)):
        weight = convolution.product.weight
        kernel = weight.view(weight.shape[0], 3, 3, -1).permute(0, 3, 1, 2)
        y = F.gelu(norm(F.conv2d(y, kernel, stride=stride, padding=1).movedim(1, -1))).movedim(-1, 1)
    wanted = stem.project(y.flatten(2).mT) + model.embed.positions.table[1:]
    torch.testing.assert_close(embedded(model, x)[:, 1:], wanted, rtol=1e-9, atol=1e-9)
    # every weight is multiplied once for each place that it sees
    told = (
        describe(config)["flop_per_token"]
        - describe(replace(config, embed=replace(embed, stem="linear")))["flop_per_token"]
    )
    convolutions = 9 * (4 * 2 * 8 + 4 * 8 * 8 + 8 * 16 + 16 * 16)
    assert told == 2 * (convolutions + 16 * 16 - 2 * 4 * 4 * 16)


def test_a_stem_reads_any_size_and_each_image_by_itself() -> None:
    model = drawn(replace(SMALL, embed=PatchEmbedConfig((4, 4), (8, 8), tokens=0, stem="convolutional")))
    x = images(4, 3, 12, 8)
    together = embedded(model, x)
    assert together.shape == (4, 3 * 2, 16)
    torch.testing.assert_close(embedded(model, x[2:3])[0], together[2], rtol=1e-5, atol=1e-5)
    with torch.inference_mode(), deterministic():
        assert torch.equal(embedded(model, x), torch.cat([embedded(model, row[None]) for row in x]))


def test_layer_scale_starts_every_branch_small() -> None:
    config = override(SMALL, {"layer_scale": 1e-4})
    model = build(config)
    gains = [module.gain for name, module in model.named_modules() if name.endswith("gain")]
    assert len(gains) == 2 * 3
    assert all(torch.equal(gain, torch.full((16,), 1e-4)) for gain in gains)
    assert override(config, {"layer_scale": None}) == SMALL


def test_attention_rolls_out_to_shares_of_the_input() -> None:
    """Of two layers by hand (Abnar and Zuidema 2020, equation 1); each row sums to 1."""
    first, second = torch.rand(2, 2, 3, 5, 5, generator=torch.Generator().manual_seed(0)).softmax(-1)
    found = rollout({"a": first, "b": second})
    eye = torch.eye(5)
    wanted = (second.mean(1) + eye) / 2 @ ((first.mean(1) + eye) / 2)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(found.sum(-1), torch.ones(2, 5))


def test_registers_stand_behind_the_tokens_without_positions() -> None:
    config = replace(SMALL, embed=PatchEmbedConfig((4, 4), (8, 8), tokens=2, registers=3))
    model, x = drawn(config), images(2, 3, 8, 8)
    found = embedded(model, x)
    assert found.shape == (2, 2 + 3 + 4, 16)
    assert torch.equal(found[:, 2:5], model.embed.registers.table.expand(2, -1, -1))
    assert describe(config)["parameters"] == sum(p.numel() for p in model.parameters())
    without = replace(config, embed=replace(config.embed, registers=0))  # type: ignore[type-var]
    plain = drawn(without)
    plain.load_state_dict({name: p for name, p in model.state_dict().items() if "registers" not in name})
    assert torch.equal(embedded(plain, x)[:, 2:], found[:, 5:])


def test_positions_follow_any_grid_and_stay_at_their_own() -> None:
    model = drawn(SMALL)
    patches = model.embed.positions.table[1:].view(2, 2, 16).permute(2, 0, 1)[None]
    front, places = model.embed.positions((3, 5))
    wanted = F.interpolate(patches, size=(3, 5), mode="bicubic")[0].permute(1, 2, 0).reshape(15, 16)
    torch.testing.assert_close(places, wanted)
    assert torch.equal(front, model.embed.positions.table[:1])
    assert torch.equal(model.embed.positions((2, 2))[1], model.embed.positions.table[1:])
    assert model.output("classes", images(2, 3, 12, 20)).shape == (2, 5)


def test_a_flat_field_of_positions_stays_flat_at_any_size() -> None:
    model = drawn(SMALL)
    with torch.no_grad():
        model.embed.positions.table[1:] = model.embed.positions.table[1]
    for grid in ((1, 1), (3, 7), (9, 2)):
        places = model.embed.positions(grid)[1]
        torch.testing.assert_close(places, model.embed.positions.table[1].expand(grid[0] * grid[1], -1))


def test_rows_are_independent_and_images_are_whole_documents() -> None:
    model, x = drawn(SMALL), images(4, 3, 8, 12)
    together = model.output("classes", x)
    for row in range(4):
        torch.testing.assert_close(model.output("classes", x[row : row + 1])[0], together[row], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("config", [SMALL, deit(16, 3, 2, 4, classes=5, size=8)])
def test_a_batch_says_bit_for_bit_what_each_image_says_in_deterministic_mode(config: TransformerConfig) -> None:
    model, x = drawn(config), images(9, 3, 8, 12)
    with torch.inference_mode(), deterministic():
        alone = torch.cat([model.output("classes", row[None]) for row in x])
        assert torch.equal(model.output("classes", x), alone)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 10, 8), "an image of 10 x 8 pixels does not split into 4 x 4 patches; resize"),
        ((1, 3, 8, 0), "an image of 8 x 0 pixels"),
        ((1, 1, 8, 8), "images have 1 channels, but the model takes 3"),
    ],
)
def test_images_that_cannot_be_read_are_refused(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(SMALL).output("classes", torch.zeros(shape))  # type: ignore[operator]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"embed": {"kind": "patches", "patch": [16, 16], "size": [230, 224]}}, "such as 224 x 224"),
        ({"embed": {"kind": "patches", "patch": [0, 16]}}, "patch=0 x 16, channels"),
        ({"embed": {"kind": "patches", "tokens": -1}}, "tokens=-1, registers"),
        (
            {"embed": {"kind": "patches", "patch": [12, 12], "size": [24, 24], "stem": "convolutional"}},
            "set squares of 2",
        ),
        ({"width": 12, "embed": {"kind": "patches", "stem": "convolutional"}}, "12 is not a multiple of 8"),
        ({"size": [224, 224, 3]}, "set height and width, or one number for both"),
        ({"size": 100}, "images of 100 x 100 do not split into 16 x 16 patches"),
        ({"drop_path": 1.5}, "model.drop_path is 1.5; set a probability below 1"),
    ],
)
def test_settings_that_cannot_be_are_told_before_any_work(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(override(preset("vit-ti16"), settings))


def test_the_heads_read_first_mean_or_both_tokens() -> None:
    x, layout = images(2, 7, 16), Layout.full(2, 7)
    mean = PooledHeadConfig(4, pool="mean", skip=3).build(16, 0, None)
    torch.nn.init.normal_(mean.project.weight)  # type: ignore[arg-type]
    torch.testing.assert_close(mean(x, layout), mean.project(x[:, 3:].mean(1)))
    both = drawn(deit(16, 2, 2, 4, classes=5, size=8)).heads["classes"]
    labelled, taught = both.both(x)
    assert torch.equal(labelled, both.project(x[:, 0]))
    assert torch.equal(taught, both.distilled(x[:, 1]))
    torch.testing.assert_close(both(x, layout), (labelled + taught) / 2)


def test_the_mean_without_its_first_tokens_leaves_padding_out() -> None:
    x, layout = images(2, 7, 16), Layout.padded([7, 5])
    found = PooledHeadConfig(pool="mean", skip=2).build(16, 0, None)(x, layout)
    torch.testing.assert_close(found, torch.stack([x[0, 2:7].mean(0), x[1, 2:5].mean(0)]))


@pytest.mark.parametrize("config", [SMALL, deit(16, 2, 2, 4, classes=5, size=8)])
def test_a_classifier_starts_with_equal_chances_and_learns_one_batch(config: TransformerConfig) -> None:
    model, x, labels = build(config), images(5, 3, 8, 8), torch.arange(5)
    assert not model.output("classes", x).any()  # type: ignore[operator]
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60):
        loss = F.cross_entropy(model.output("classes", x), labels)  # type: ignore[operator]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert float(loss.detach()) < 0.05


def test_configurations_are_plain_data() -> None:
    config = override(preset("deit-s16"), {"drop_path": 0.2})
    assert from_dict(TransformerConfig, to_dict(config)) == config
    assert isinstance(config.heads["classes"], DistilledHeadConfig)  # type: ignore[attr-defined]


def test_attention_over_the_patches_is_counted() -> None:
    found = describe(preset("vit-b16"))
    weights = 768 * 3 * 16 * 16 + 12 * 12 * 768 * 768 + 768 * 1000
    assert found["flop_per_token"] == 2 * weights + 12 * 4 * 768 * 197
    assert "patches 16 x 16, 1 learned tokens" in found["tree"][0]
    assert "224 x 224 (197 tokens)" in found["tree"][0]


def test_drop_path_leaves_whole_rows_out_and_keeps_the_mean() -> None:
    path, x = DropPath(0.25), torch.ones(20_000, 2, 3)
    path.generator = torch.Generator().manual_seed(0)
    found = path(x)
    assert torch.equal(found, found[:, :1, :1].expand_as(found))
    assert sorted(found.unique().tolist()) == pytest.approx([0.0, 4 / 3], abs=1e-3)
    assert float(found.mean()) == pytest.approx(1.0, abs=0.02)
    assert path.eval()(x) is x


def test_drop_path_grows_with_depth_and_takes_no_part_in_use() -> None:
    config = override(SMALL, {"drop_path": 0.4})
    assert [block.drop_path for block in config.stack.blocks] == pytest.approx([0.0, 0.2, 0.4])
    with_path, without = drawn(config), drawn(SMALL)
    x = images(2, 3, 8, 8)
    assert torch.equal(with_path.output("classes", x), without.output("classes", x))
    with_path.train()
    assert not torch.equal(with_path.output("classes", x), without.output("classes", x))
