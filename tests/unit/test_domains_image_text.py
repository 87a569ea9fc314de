"""Images and texts: the losses, large batches, augmentation, recall, and settings that are refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_text_data import TINY, draw, task
from torch import Tensor

from headway.app.cli import main as cli
from headway.app.recipes import configure_recipe
from headway.domains.image_text.emoji import ComparedImages, recall_baselines
from headway.domains.image_text.recipes import towers
from headway.domains.image_text.task import ImageTextAugmentConfig, ImageTextConfig, retrieval_recall
from headway.errors import ConfigError, UserError
from headway.learn.learner import attach_generator
from headway.learn.objectives.contrastive import encode_chunks, sigmoid_contrast, softmax_contrast
from headway.learn.recipe import open_task
from headway.nn.models import TwoTower, build
from headway.nn.models.presets import clip


def plain_clip(logits: Tensor, of: Tensor, same: Tensor) -> float:
    """Text by text, over all that may be confused with it."""
    total = 0.0
    for n, image in enumerate(of.tolist()):
        rivals = [m for m in range(len(of)) if m == n or not same[image, m]]
        total -= 0.5 * float(logits[image, n] - torch.logsumexp(logits[image, rivals], 0))
        others = [i for i in range(len(logits)) if i == image or not same[i, n]]
        total -= 0.5 * float(logits[image, n] - torch.logsumexp(logits[others, n], 0))
    return total


def plain_siglip(logits: Tensor, of: Tensor, same: Tensor) -> float:
    total = 0.0
    for i in range(len(logits)):
        for n in range(len(of)):
            if int(of[n]) == i:
                total -= float(torch.nn.functional.logsigmoid(logits[i, n]))
            elif not same[i, n]:
                total -= float(torch.nn.functional.logsigmoid(-logits[i, n]))
    return total


@pytest.mark.parametrize("captions", [1, 3])
def test_the_losses_are_the_papers(captions: int) -> None:
    logits = 3 * torch.randn(5, 5 * captions, generator=torch.Generator().manual_seed(0)).double()
    of = torch.arange(5).repeat_interleave(captions)
    same = torch.zeros(5, 5 * captions, dtype=torch.bool)
    same[of, torch.arange(5 * captions)] = True
    if captions == 1:
        wanted = torch.nn.functional.cross_entropy(logits, of) + torch.nn.functional.cross_entropy(logits.T, of)
        assert float(softmax_contrast(logits, of, same)) == pytest.approx(5 * float(wanted) / 2)
    same[0, captions], same[3, 0] = True, True  # a text that says another image too
    assert float(softmax_contrast(logits, of, same)) == pytest.approx(plain_clip(logits, of, same))
    assert float(sigmoid_contrast(logits, of, same)) == pytest.approx(plain_siglip(logits, of, same))


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_a_batch_in_parts_has_the_gradient_of_the_whole(loss: str, tmp_path: Path) -> None:
    table, gradients, values = draw(tmp_path), [], []
    for at_once in (None, 3, 1):
        towers_of = {"model.bias": -10.0, "model.scale": 2.3} if loss == "sigmoid" else {}
        chosen = {"task.loss": loss, "task.captions": 2, "task.at_once": at_once, "train.batch_size": 7, **towers_of}
        here = task(table, **chosen)
        model = (
            here.adapt(configure_recipe("image-text", table, {**TINY, **chosen}, None).model).build(0).double().train()
        )
        batch = next(here.batches("train"))
        pixels, texts = batch.inputs
        total = here.loss(model, batch._replace(inputs=(pixels.double(), texts)))["loss"].total
        total.backward()
        values.append(float(total.detach()))
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for value, found in zip(values[1:], gradients[1:]):
        assert value == pytest.approx(values[0], rel=1e-12)
        for name, grad in found.items():
            torch.testing.assert_close(grad, gradients[0][name], rtol=1e-9, atol=1e-12)


def test_the_loss_of_tokens_is_that_of_words_weighted_by_their_number(tmp_path: Path) -> None:
    """Against a plain loop over the tokens of each text, all of the batch as candidates."""
    chosen = {"task.loss": "tokens", "task.captions": 2, "train.batch_size": 5}
    table = draw(tmp_path)
    here = task(table, **chosen)
    model = here.adapt(configure_recipe("image-text", table, {**TINY, **chosen}, None).model).build(0).double()
    assert isinstance(model, TwoTower)
    batch = next(here.batches("train"))
    pixels, texts = batch.inputs
    total, count = here.loss(model, batch._replace(inputs=(pixels.double(), texts)))["loss"]
    rows = [ids[mask] for part in texts.chunks for ids, mask in zip(part.tokens.ids, part.layout.mask)]
    rows = [rows[position] for position in texts.order.tolist()]  # in the order of the targets
    candidates = torch.cat(rows)
    vectors = model.right.output("embedding", candidates[:, None])
    odds = model.logits(model.vectors("left", pixels.double()), vectors)
    wanted = 0.0
    for row, image in zip(rows, batch.targets[0].tolist()):
        for token in row:
            wanted -= float(odds[image].softmax(0)[candidates == token].sum().log().detach()) / len(row)
    assert count == len(rows) == 10
    assert float(total.detach()) == pytest.approx(wanted, rel=1e-9)


def test_what_is_computed_again_drops_the_same(tmp_path: Path) -> None:
    model = build(towers(16, 1, 2, 8, 16, dropout=0.5)).train()
    generator = attach_generator(model)
    images = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert isinstance(model, TwoTower)
    found = []
    for again in (None, model):
        generator.manual_seed(1)
        model.zero_grad()
        vectors = encode_chunks(lambda part: model.vectors("left", part), images.split(2), again)
        vectors.square().mul(torch.arange(16.0)).sum().backward()
        found.append((vectors.detach(), [p.grad for p in model.left.parameters()], generator.get_state()))
    torch.testing.assert_close(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1])
    assert torch.equal(found[0][2], found[1][2])


def test_the_scale_is_held(tmp_path: Path) -> None:
    here = task(draw(tmp_path), **{"task.scale_limit": 50.0})
    model = here.adapt(configure_recipe("image-text", tmp_path / "captions.csv", TINY, None).model).build(0)
    with torch.no_grad():
        model.scale.fill_(9.0)
    here.loss(model, next(here.batches("train")))["loss"].total.backward()
    assert model.scale.exp().item() == pytest.approx(50.0)


def test_batches_are_a_pure_function_and_no_image_is_on_two_sides(tmp_path: Path) -> None:
    table = draw(tmp_path)
    for copy in ("one.png", "two.png"):
        (tmp_path / copy).write_bytes((tmp_path / "dark-red.png").read_bytes())
        with table.open("a", encoding="utf-8") as file:
            file.write(f"{copy},copied {copy},en\n")
    chosen = {"task.captions": 2, "task.augment.shift": 0.2}
    here, again = task(table, **chosen), task(table, **chosen)
    stream = here.batches("train")
    batches = [next(stream) for _ in range(5)]
    later = next(again.batches("train", start=4))
    (pixels, texts), (others, again) = batches[4].inputs, later.inputs
    torch.testing.assert_close(pixels, others, rtol=0, atol=0)
    assert torch.equal(batches[4].targets[1], later.targets[1])
    assert [part.tokens.ids.tolist() for part in texts.chunks] == [part.tokens.ids.tolist() for part in again.chunks]
    images = here.examples
    sides = [{images.decoded.keys[n] for n in numbers.tolist()} for numbers in images.splits.indices.values()]
    assert sum(map(len, sides)) == len(set().union(*sides))
    _, same = images.take(np.array([0, 12, 5])).targets
    assert same.tolist() == [[True, True, True, True, False, False]] * 2 + [[False] * 4 + [True] * 2]
    held = tmp_path / "test.csv"  # names one of the pictures as a test
    held.write_text("path,caption,language\ndark-red.png,held out,en\n", encoding="utf-8")
    both: Any = open_task(configure_recipe("image-text", [table, held], TINY, None), tmp_path / "none")
    assert [both.examples.describe_row(n) for n in both.examples.splits.rows("test")] == ["dark-red.png"]
    assert not {0, 12, 13} & {*both.examples.splits.rows("train").tolist()}


def test_augmentation_moves_images_and_leaves_them_alone_by_default() -> None:
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert ImageTextAugmentConfig()(images, 3) is images
    moved = ImageTextAugmentConfig(shift=0.2, zoom=0.1, turn=20, light=0.1, flip=True)(images, 3)
    assert moved.shape == images.shape
    assert not torch.equal(moved, images)
    torch.testing.assert_close(
        moved, ImageTextAugmentConfig(shift=0.2, zoom=0.1, turn=20, light=0.1, flip=True)(images, 3)
    )
    mirrored = ImageTextAugmentConfig(flip=True)(images, 1)
    for one, other in zip(images, mirrored):
        assert torch.allclose(one, other, atol=1e-5) or torch.allclose(one.flip(2), other, atol=1e-5)
    with pytest.raises(ConfigError, match=r"shift is 1\.5"):
        ImageTextAugmentConfig(shift=1.5)
    bar = torch.zeros(1, 1, 64, 128)
    bar[..., 31:33, :] = 1  # turned, not sheared, although the image is wide
    turned = ImageTextAugmentConfig(turn=30)(bar, 3)[0, 0]
    rows, columns = (turned > 0.5).nonzero().T.double()
    slope = float(((rows - rows.mean()) * (columns - columns.mean())).sum() / (columns - columns.mean()).square().sum())
    uniform = 2 * torch.rand(7, 1, generator=torch.Generator().manual_seed(3)) - 1
    assert abs(slope) == pytest.approx(abs(math.tan(float(uniform[2]) * math.pi / 6)), rel=0.1)


def test_recall_is_counted_as_by_hand() -> None:
    images = np.eye(3, dtype=np.float32)
    texts = np.array([[1, 0, 0], [0.9, 0.1, 0], [0.6, 0.5, 0.7], [1, 0, 0]], np.float32)
    of = np.array([0, 1, 2, 0])
    found = retrieval_recall(images, texts, of)
    # Image 0 finds its own; image 1 finds text 2 before its own; image 2 its own.
    assert found["recall_at_1"] == pytest.approx(2 / 3)
    assert found["recall_at_5"] == 1.0
    assert found["image_recall_at_1"] == pytest.approx(3 / 4)  # text 1 is nearer to image 0
    assert found["samples"] == 3
    by = retrieval_recall(images, texts, of, ["a", "a", "b", "b"])
    assert (by["recall_at_1_a"], by["recall_at_1_b"]) == (1.0, 1.0)
    assert by["recall_at_1"] == 1.0


def test_the_best_model_finds_most_in_both_directions(tmp_path: Path) -> None:
    """The goal is the mean of both; the loss of all held-out texts breaks its ties."""
    here = task(draw(tmp_path), **{"task.split.validation": 0.4, "train.batch_size": 2})
    model = here.adapt(configure_recipe("image-text", tmp_path, TINY, None).model).build(0).eval()
    scores = here.evaluate(model)
    assert (here.goal, here.goal_better) == ("mean_recall_at_1", "max")
    assert scores[here.goal] == (scores["recall_at_1"] + scores["image_recall_at_1"]) / 2
    images = here.examples.splits.rows("validation")
    texts, of = here.examples.query_rows(images)
    left = torch.from_numpy(here.objective.embed_images(model, here.examples, images))
    right = torch.from_numpy(here.objective.embed_texts(model, here.examples, texts))
    same = torch.from_numpy(here.examples.same(images, texts))
    assert same[torch.from_numpy(of), torch.arange(len(of))].all()
    losses = [plain_clip(2**power * left @ right.T, torch.from_numpy(of), same) / len(of) for power in range(8)]
    assert scores["loss"] == pytest.approx(min(losses), rel=1e-5)
    with torch.no_grad():
        model.get_parameter("scale").add_(3.0)  # the model is surer of the same pairs
    assert here.evaluate(model)["loss"] == pytest.approx(scores["loss"], rel=1e-5)


def test_baselines_know_what_chance_gives() -> None:
    pixels = np.zeros((3, 16, 16, 3), np.uint8)
    pixels[1] += 100
    pixels[2] += 200
    names, of, one = ["red cat", "blue dog", "green owl"], np.arange(3), ["en"] * 3
    found = recall_baselines(
        ComparedImages(pixels, names, of, one), ComparedImages(pixels, ["a cat", "a dog", "nothing"], of, one)
    )
    assert found["chance_at_1"] == pytest.approx(1 / 3)
    assert found["neighbour_at_1"] == pytest.approx((1 + 1 + 1 / 3) / 3)  # of the last, all are equally far


def test_show_tells_of_both_towers(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["show", "clip-b32", "--json"]) == cli.DONE
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["parameters"] == 151_277_313
    assert found["generates"] is None
    assert [line.strip() for line in found["tree"] if line.strip() in ("left", "right")] == ["left", "right"]
    # Of a token of an image and one of a text: their weights, and attention over 50 patches and half of 77 tokens.
    weights = 12 * (12 * 768**2 + 12 * 512**2) + 3072 * 768 + 768 * 512 + 512 * 512
    assert found["flop_per_token"] == 2 * weights + 12 * 4 * (768 * 50 + 512 * 38)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train.accumulate": 2}, "one process and train.accumulate=1, and task.at_once"),
        ({"train.batch_size": 1}, "train.batch_size is 1"),
        ({"train.batch_size": 60}, "exceeds the .* images for training"),
        ({"task.split.validation": 0.0}, "the validation split of 12 images is empty; add tables named validation"),
        ({"task.loss": "sigmoid"}, "needs a bias, but the model has none"),
        ({"task.captions": 0}, "task.captions is 0"),
        ({"model": "gpt-1m"}, "an image tower and a text tower"),
        (
            {"model.shared": 24, "model.left.heads.embedding.outputs": 12},
            "left tower outputs 12 features and the right",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    table = draw(tmp_path)

    def begin() -> None:
        chosen = configure_recipe("image-text", table, {**({} if "model" in settings else TINY), **settings}, None)
        open_task(chosen, tmp_path / "none").adapt(chosen.model).build(0)

    with pytest.raises(UserError, match=message):
        begin()


def test_settings_reach_both_towers_or_each() -> None:
    from headway.config import override

    model = override(clip((32, 2, 2), (32, 2, 2), 16, 8, 16, 40), {"depth": [3, 1], "heads": 4, "shared": 8})
    assert [len(side.stack.blocks) for side in (model.left, model.right)] == [3, 1]
    assert [side.stack.blocks[0].mixer.heads for side in (model.left, model.right)] == [4, 4]  # type: ignore[attr-defined]
    assert model.shared == 8
    assert build(override(model, {"mixer": "lstm"})) is not None
    with pytest.raises(ConfigError, match="choose 1 or more"):
        ImageTextConfig(at_once=0)
