"""Images and texts: the losses, large batches, the readers and what they refuse, runs, and matching."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import headway as hw
from headway.checkpoints.published import save_published
from headway.checkpoints.usage import Usage
from headway.cli import main as cli
from headway.codecs import train_codec
from headway.codecs.processor import ImageProcessor
from headway.data.files import File
from headway.domains.image_text.augment import AugmentConfig
from headway.domains.image_text.baseline import baselines
from headway.domains.image_text.config import SPECIAL, ImageTextConfig
from headway.domains.image_text.contrast import of_parts, sigmoid_contrast, softmax_contrast
from headway.domains.image_text.data import read_captions
from headway.domains.image_text.emoji import group_of, read_emoji
from headway.domains.image_text.pictures import open_pictures
from headway.domains.image_text.recall import recall
from headway.domains.image_text.recipes import towers
from headway.errors import ConfigError, UserError
from headway.models import ProbeHeadConfig, TwoTower, build
from headway.models.clip import clip, siglip
from headway.parts.dropout import attach_generator
from headway.recipes import configured, open_task

Image = pytest.importorskip("PIL.Image")
COLOURS = {"red": (220, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 220), "white": (250, 250, 250)}
SHADES = {"dark": 0.4, "pale": 0.7, "bright": 1.0}
SMALL = {"model.width": 32, "model.depth": 1, "model.heads": 2, "model.shared": 16, "model.dropout": 0.0}
TINY: dict[str, Any] = {
    **SMALL,
    "model.left.embed.size": [16, 16],
    "model.left.embed.patch": [8, 8],
    "task.size": 280,
    "train.batch_size": 4,
    "train.precision": "fp32",
}


def draw(folder: Path, named: str | None = None) -> Path:
    """A picture of each colour in each shade, and a table of what they show, in two languages."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = ["path,caption,language"]
    for colour, rgb in COLOURS.items():
        for shade, part in SHADES.items():
            name = f"{shade}-{colour}.png"
            pixels = np.full((20, 24, 3), [round(part * c) for c in rgb], np.uint8)
            Image.fromarray(pixels).save(folder / name)
            rows += [f"{name},a {shade} {colour} picture,en", f"{name},{colour} {shade},xx"]
    table = folder / (named or "captions.csv")
    table.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return table


def task(table: Path, **settings: Any) -> Any:
    return open_task(configured("image-text", table, {**TINY, **settings}, None), table.parent / "none")


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
        model = here.adapt(configured("image-text", table, {**TINY, **chosen}, None).model).build(0).double().train()
        batch = next(here.batches("train"))
        total = here.loss(model, replace(batch, images=batch.images.double()))["loss"].total
        total.backward()
        values.append(float(total.detach()))
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for value, found in zip(values[1:], gradients[1:]):
        assert value == pytest.approx(values[0], rel=1e-12)
        for name, grad in found.items():
            torch.testing.assert_close(grad, gradients[0][name], rtol=1e-9, atol=1e-12)


def test_what_is_computed_again_drops_the_same(tmp_path: Path) -> None:
    model = build(towers(16, 1, 2, 8, 16, dropout=0.5)).train()
    generator = attach_generator(model)
    images = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert isinstance(model, TwoTower)
    found = []
    for again in (None, model):
        generator.manual_seed(1)
        model.zero_grad()
        vectors = of_parts(lambda part: model.vectors("left", part), images.split(2), again)
        vectors.square().mul(torch.arange(16.0)).sum().backward()
        found.append((vectors.detach(), [p.grad for p in model.left.parameters()], generator.get_state()))
    torch.testing.assert_close(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1])
    assert torch.equal(found[0][2], found[1][2])


def test_the_scale_is_held(tmp_path: Path) -> None:
    here = task(draw(tmp_path), **{"task.scale_limit": 50.0})
    model = here.adapt(configured("image-text", tmp_path / "captions.csv", TINY, None).model).build(0)
    with torch.no_grad():
        model.scale.fill_(9.0)
    here.loss(model, next(here.batches("train")))["loss"].total.backward()
    assert model.scale.exp().item() == pytest.approx(50.0)


def test_tables_are_read_and_images_counted_once(tmp_path: Path) -> None:
    found = read_captions([draw(tmp_path)])
    assert (len(found.images), len(found.texts)) == (12, 24)
    assert found.of[:4].tolist() == [0, 0, 1, 1]
    assert found.languages is not None
    assert set(found.languages) == {"en", "xx"}
    assert found.places[0].endswith("captions.csv, line 2")
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
    with pytest.raises(UserError, match=r"no column 'path' .*name the one that is meant with task.image=NAME"):
        read_captions([table])


PROCESSOR = ImageProcessor(size=(8, 8))


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
    found = open_pictures(files, PROCESSOR, False)
    assert found.pixels.shape == (5, 8, 8, 3)
    np.testing.assert_array_equal(found.pixels[0], PROCESSOR.pixels(pixels))
    wide = ((grey.astype(np.uint32) + 128) // 257).astype(np.uint8)
    np.testing.assert_array_equal(found.pixels[2], PROCESSOR.pixels(np.repeat(wide[:, :, None], 3, 2)))
    assert found.keys[0] == found.keys[3] == found.keys[4] != found.keys[2]
    monkeypatch.setattr("headway.domains.image_text.pictures.decode_image", None)  # from the cache
    np.testing.assert_array_equal(open_pictures(files, PROCESSOR, False).pixels, found.pixels)


def test_few_texts_fill_a_small_codec(tmp_path: Path) -> None:
    """A size is the most that there may be: nothing stops who has a hundred captions."""
    here = task(draw(tmp_path), **{"task.size": 2000})
    assert here.codec.size < 600


def test_bad_images_are_an_error_or_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    table = draw(tmp_path)
    (tmp_path / "dark-red.png").write_bytes((tmp_path / "pale-red.png").read_bytes()[:50])
    (tmp_path / "pale-blue.png").write_text("no image", encoding="utf-8")
    with pytest.raises(UserError, match=r"dark-red.png is cut off or corrupt .*task.skip_bad=true"):
        task(table)
    here = task(table, **{"task.skip_bad": True})
    assert "2 of 12 images cannot be read and are left out" in caplog.text
    assert sorted(here.pictures_of.wrong) == [0, 7]
    assert len(here.numbers("all")) == 10
    model = here.adapt(configured("image-text", table, TINY, None).model).build(0)
    assert here.evaluate(model, "all")["skipped_images"] == 2
    with pytest.raises(UserError, match="cut off or corrupt"):  # though the cache has them
        task(table)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    bomb = tmp_path / "bomb.png"
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(bomb)
    with pytest.raises(UserError, match=r"bomb\.png has too many pixels"):
        open_pictures([File(bomb)], PROCESSOR, False)


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
    torch.testing.assert_close(batches[4].images, later.images, rtol=0, atol=0)
    assert torch.equal(batches[4].same, later.same)
    assert [part.tokens.ids.tolist() for part in batches[4].texts.parts] == [
        part.tokens.ids.tolist() for part in later.texts.parts
    ]
    sides = [{here.pictures_of.keys[n] for n in numbers.tolist()} for numbers in here.sides.values()]
    assert sum(map(len, sides)) == len(set().union(*sides))
    whole = here._batch(np.array([0, 12, 5]), np.arange(3), None)
    assert whole.same.tolist() == [[True, True, True, True, False, False]] * 2 + [[False] * 4 + [True] * 2]
    held = tmp_path / "test.csv"  # names one of the pictures as a test
    held.write_text("path,caption,language\ndark-red.png,held out,en\n", encoding="utf-8")
    both = open_task(configured("image-text", [table, held], TINY, None), tmp_path / "none")
    assert [both.captions.images[n].name for n in both.sides["test"]] == ["dark-red.png"]
    assert not {0, 12, 13} & {*both.sides["train"].tolist()}


def test_augmentation_moves_images_and_leaves_them_alone_by_default() -> None:
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert AugmentConfig()(images, 3) is images
    moved = AugmentConfig(shift=0.2, zoom=0.1, turn=20, light=0.1, flip=True)(images, 3)
    assert moved.shape == images.shape
    assert not torch.equal(moved, images)
    torch.testing.assert_close(moved, AugmentConfig(shift=0.2, zoom=0.1, turn=20, light=0.1, flip=True)(images, 3))
    mirrored = AugmentConfig(flip=True)(images, 1)
    for one, other in zip(images, mirrored):
        assert torch.allclose(one, other, atol=1e-5) or torch.allclose(one.flip(2), other, atol=1e-5)
    with pytest.raises(ConfigError, match=r"shift is 1\.5"):
        AugmentConfig(shift=1.5)


def test_recall_is_counted_as_by_hand() -> None:
    images = np.eye(3, dtype=np.float32)
    texts = np.array([[1, 0, 0], [0.9, 0.1, 0], [0.6, 0.5, 0.7], [1, 0, 0]], np.float32)
    of = np.array([0, 1, 2, 0])
    found = recall(images, texts, of)
    # Image 0 finds its own; image 1 finds text 2 before its own; image 2 its own.
    assert found["recall_at_1"] == pytest.approx(2 / 3)
    assert found["recall_at_5"] == 1.0
    assert found["image_recall_at_1"] == pytest.approx(3 / 4)  # text 1 is nearer to image 0
    assert found["samples"] == 3
    by = recall(images, texts, of, ["a", "a", "b", "b"])
    assert (by["recall_at_1_a"], by["recall_at_1_b"]) == (1.0, 1.0)
    assert by["recall_at_1"] == 1.0


def test_baselines_know_what_chance_gives() -> None:
    pixels = np.zeros((3, 16, 16, 3), np.uint8)
    pixels[1] += 100
    pixels[2] += 200
    names, of, one = ["red cat", "blue dog", "green owl"], np.arange(3), ["en"] * 3
    found = baselines((pixels, names, of, one), (pixels, ["a cat", "a dog", "nothing"], of, one))
    assert found["chance_at_1"] == pytest.approx(1 / 3)
    assert found["neighbour_at_1"] == pytest.approx((1 + 1 + 1 / 3) / 3)  # of the last, all are equally far


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
    assert found.asked.sum() == 5 * 1546
    with pytest.raises(UserError, match=r"0 of 1 files are \.json"):
        read_emoji([data_dir / "emoji" / "noto-emoji-64px.zip"])


def test_a_set_that_no_server_has_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HEADWAY_DATA", raising=False)
    for words in (["data", "get", "emoji"], ["train", "emoji-clip", "--run", "runs/none"]):
        assert cli.main(words) == cli.USER_ERROR
        assert "put emoji/noto-emoji-64px.zip, emoji/captions.json into a folder" in capsys.readouterr().err


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run over the coloured pictures, which are judged too, long enough to tell them apart."""
    folder = tmp_path_factory.mktemp("colours")
    draw(folder / "seen", "train.csv")
    draw(folder / "held", "validation.csv")
    for path in (folder / "held").glob("*.png"):  # no equal pixels, or they would not be trained on
        pixels = np.asarray(Image.open(path)).copy()
        pixels[0] += 3
        Image.fromarray(pixels).save(path)
    more = {"train.steps": 60, "train.batch_size": 12, "optim.lr": 3e-3, "optim.weight_decay": 0.0, "task.captions": 2}
    hw.train(
        "image-text",
        [folder / "seen", folder / "held"],
        {**TINY, **more, "task.augment": {}, "task.split.test": 0.0, "train.evaluate_every": 60},
        run=folder / "run",
        progress=False,
    )
    return folder / "run"


def test_a_run_learns_to_find_what_it_saw(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = json.loads((run / "run.json").read_text(encoding="utf-8"))
    assert summary["scores"]["recall_at_1"] > 0.8
    assert summary["scores"]["recall_at_1_xx"] > 0.8
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "Nearest images of a text" in page
    assert "data:image/png;base64," in page
    assert cli.main(["evaluate", str(run), "--json"]) == cli.DONE
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["recall_at_1"] == summary["scores"]["recall_at_1"]


def test_match_says_which_text_an_image_shows(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = [str(run.parent / "seen" / f"bright-{colour}.png") for colour in ("red", "green")]
    texts = ["a bright green picture", "a bright red picture"]
    assert cli.main(["match", str(run), "--image", *images, "--text", *texts, "--json"]) == cli.DONE
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (found["images"], found["texts"]) == (images, texts)
    probable = np.array(found["probabilities"])
    assert probable.argmax(1).tolist() == [1, 0]
    np.testing.assert_allclose(probable.sum(1), 1, rtol=1e-5)
    assert cli.main(["match", str(run), "--image", images[0], "--text", *texts]) == cli.DONE
    assert capsys.readouterr().out.splitlines()[2].startswith("a bright red picture")
    model = hw.load(run)
    vectors = model.embed([*images, *texts])
    np.testing.assert_allclose((vectors[:2] @ vectors[2:].T).tolist(), found["similarities"], atol=1e-5)
    np.testing.assert_allclose(vectors.norm(dim=1).tolist(), 1, rtol=1e-5)


def test_templates_are_averaged(run: Path) -> None:
    model, image = hw.load(run), str(run.parent / "seen" / "bright-red.png")
    forms = ["a bright {} picture", "a pale {} picture"]
    found = model.match([image], ["red", "blue"], forms).similarities[0]
    each = model.embed([form.format(name) for name in ("red", "blue") for form in forms]).unflatten(0, (2, 2)).mean(1)
    wanted = torch.nn.functional.normalize(each, dim=-1) @ model.embed([image])[0]
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_a_model_keeps_what_it_says_in_other_forms(run: Path, tmp_path: Path) -> None:
    """Exported, and imported again."""
    images = [str(run.parent / "seen" / f"bright-{colour}.png") for colour in ("red", "green")]
    texts = ["a bright green picture", "a bright red picture"]
    wanted = hw.load(run).match(images, texts)
    assert cli.main(["export", str(run), str(tmp_path / "clip")]) == cli.DONE
    assert cli.main(["import", str(tmp_path / "clip"), str(tmp_path / "own")]) == cli.DONE
    for place in ("clip", "own"):
        found = hw.load(tmp_path / place).match(images, texts)
        torch.testing.assert_close(found.probabilities, wanted.probabilities, rtol=1e-4, atol=1e-5)


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
    ("arguments", "message"),
    [
        (["--image", "none.png", "--text", "a"], "none.png is no file"),
        (["--image", "IMAGE", "--text", " "], "text 1 of 1 is empty"),
        (["--image", "IMAGE", "--text", "a", "--template", "no place"], "has no one place for a text"),
        (["--image", "IMAGE", "--text", "a " * 90], "tokens and the model reads 64 at most"),
    ],
)
def test_what_cannot_be_matched_is_one_line(
    run: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(run.parent / "seen" / "bright-red.png") if word == "IMAGE" else word for word in arguments]
    assert cli.main(["match", str(run), *given]) == cli.USER_ERROR
    assert message in capsys.readouterr().err


def test_a_model_that_matches_refuses_other_uses(run: Path) -> None:
    model = hw.load(run)
    for use in (
        model.generate,
        model.attention,
        lambda text: model.score([text]),
        lambda text: model.translate([text]),
    ):
        with pytest.raises(UserError, match="compares images with texts and writes none"):
            use("red")
    with pytest.raises(UserError, match="give their names to match"):
        model.classify(["a.png"])


def test_a_published_siglip_fills_its_texts_and_is_judged_on_captions(tmp_path: Path) -> None:
    """Its tokens see the filling, so a text alone and beside longer ones must be the same."""
    codec = train_codec("bpe", ["red green blue white dark pale bright a picture"] * 4, 270, special=SPECIAL)
    config = siglip((16, 1, 2), 8, 16, codec.size, 20)
    assert isinstance(config.left.heads["embedding"], ProbeHeadConfig)
    processor = {"image_processor_type": "SiglipImageProcessor", "size": {"height": 16, "width": 16}}
    save_published(build(config), config, tmp_path / "model", Usage(processor=processor))
    codec.save(tmp_path / "model")
    model, table = hw.load(tmp_path / "model"), draw(tmp_path / "data")
    together = model.embed(["red", "a bright blue"])
    torch.testing.assert_close(model.embed(["red"]), together[:1], rtol=1e-5, atol=1e-6)
    found = model.evaluate(data=table)
    assert found["samples"] == 12
    assert 0 <= found["recall_at_5"] <= 1
    said = model.match([str(tmp_path / "data" / "dark-red.png")], ["red", "blue"]).probabilities
    assert (said > 0).all()
    assert (said < 1).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train.accumulate": 2}, "set train.accumulate to 1, and task.at_once"),
        ({"train.batch_size": 1}, "train.batch_size is 1"),
        ({"train.batch_size": 60}, "exceeds the"),
        ({"task.loss": "sigmoid"}, "learns a bias, and the model has none"),
        ({"task.captions": 0}, "task.captions is 0"),
        ({"model": "gpt-1m"}, "a tower of images and one of texts"),
        ({"model.shared": 24, "model.left.heads.embedding.outputs": 12}, "left tower gives 12 numbers and the right"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    table = draw(tmp_path)

    def begin() -> None:
        chosen = configured("image-text", table, {**({} if "model" in settings else TINY), **settings}, None)
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
    with pytest.raises(ConfigError, match="give 1 or more"):
        ImageTextConfig(at_once=0)


def test_a_run_starts_from_a_published_clip(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exported, fine-tuned with its own tokenizer and image size, whole and by an adapter, and embedded from lines."""
    assert cli.main(["export", str(run), str(tmp_path / "clip")]) == cli.DONE
    config = json.loads((tmp_path / "clip" / "config.json").read_text(encoding="utf-8"))
    assert config["model_type"] == "clip"
    settings = {"train.steps": 2, "train.batch_size": 4, "train.precision": "fp32", "task.augment": {}}
    table = draw(tmp_path / "data")
    hw.train("image-text", table, settings, run=tmp_path / "tuned", start=tmp_path / "clip", progress=False)
    hw.train("image-text", table, settings, run=tmp_path / "lora", start=tmp_path / "clip", lora=2, progress=False)
    assert (tmp_path / "lora" / "adapter" / "adapter_model.safetensors").is_file()
    before, after = hw.load(run), hw.load(tmp_path / "tuned")
    assert before.codec.fingerprint() == after.codec.fingerprint()
    assert after.usage.processor["crop_size"] == {"height": 16, "width": 16}
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{tmp_path}/data/dark-red.png\na dark red picture\n"))
    assert cli.main(["embed", str(tmp_path / "tuned")]) == cli.DONE
