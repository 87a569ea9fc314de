"""Filling in masks: what the model reads, what it says, the command."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import headway as hw
from headway.app.cli.main import main
from headway.codecs import Codec, load_codec, train_codec
from headway.codecs.mask_tokens import SPECIAL, mask_id, masked_ids
from headway.domains.masked import fill
from headway.domains.masked.recipes import modern_encoder
from headway.errors import UserError
from headway.formats.open import OpenedModel
from headway.formats.usage import Usage
from headway.nn.models import Transformer, build
from headway.nn.models.presets import preset

TEXT = "What say you, my lord? I am the king."


@pytest.fixture(scope="module")
def play(data_dir: Path) -> str:
    return (data_dir / "lm/tinyshakespeare.txt").read_text()[:60_000]


@pytest.fixture(scope="module")
def codec(play: str) -> Codec:
    return train_codec("wordpiece", [play], 1000, prefix_space=True, special=SPECIAL)


def model_of(codec: Codec) -> Transformer:
    model = build(modern_encoder(32, 2, 2, codec.vocab_size, 32))
    assert isinstance(model, Transformer)
    return model


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram", "word"])
@pytest.mark.parametrize("spaced", [False, True])
@pytest.mark.parametrize("word", ["say", "lord", "the"])
def test_a_mask_stands_where_the_word_stood(play: str, kind: str, spaced: bool, word: str) -> None:
    """The model reads the ids of the whole text, with the word's own replaced: no space is added or lost."""
    size, spaced = (None, False) if kind == "word" else (1500, spaced)
    codec = train_codec(kind, [play], size, prefix_space=spaced, special=SPECIAL)  # type: ignore[arg-type]
    whole = [codec.bos_id, *codec.encode(TEXT), codec.eos_id]
    found = masked_ids(codec, TEXT.replace(word, "[MASK]"))
    assert found == masked_ids(codec, TEXT.replace(word, "<mask>"))
    places = [i for i, symbol in enumerate(found) if symbol == mask_id(codec)]
    assert len(places) == 1
    if len(found) == len(whole):  # the word is one symbol
        assert [i for i in range(len(whole)) if found[i] != whole[i]] == places
        assert codec.decode([whole[places[0]]]).strip() == word  # type: ignore[list-item]
    else:
        assert found[: places[0]] == whole[: places[0]]
        assert found[places[0] + 1 :] == whole[places[0] + 1 + len(whole) - len(found) :]


def test_what_was_learned_is_filled_in(codec: Codec) -> None:
    model = model_of(codec)
    ids = torch.tensor([[codec.bos_id, *codec.encode(TEXT), codec.eos_id]])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(0)
    for _ in range(150):
        hidden = torch.rand((8, ids.shape[1]), generator=generator) < 0.3
        hidden[:, [0, -1]] = False
        x = model(torch.where(hidden, mask_id(codec), ids)).x
        optimizer.zero_grad()
        model.heads["vocabulary"].loss(x, torch.where(hidden, ids, -100)).total.backward()  # type: ignore[operator]
        optimizer.step()
    found = fill(model, codec, "What say [MASK], my lord? I am [MASK] king.", top=3)
    assert [mask[0].text for mask in found] == ["you", "the"]
    for mask in found:
        assert len(mask) == 3
        assert mask[0].probability > 0.9
        assert [c.probability for c in mask] == sorted((c.probability for c in mask), reverse=True)
        assert codec.decode([mask[0].id]).strip() == mask[0].text
    assert model.training  # as it was


def test_probabilities_are_those_of_the_whole_vocabulary(codec: Codec) -> None:
    found = fill(model_of(codec), codec, "I am [MASK].", top=10_000)[0]
    assert len(found) == codec.vocab_size
    assert sum(candidate.probability for candidate in found) == pytest.approx(1, abs=1e-4)


def test_what_cannot_be_filled_in_is_refused(codec: Codec) -> None:
    model = model_of(codec)
    with pytest.raises(UserError, match="'I am the king\\.' has no mask; write"):
        fill(model, codec, "I am the king.")
    with pytest.raises(UserError, match="the model takes at most 32"):
        fill(model, codec, TEXT * 3 + "[MASK]")
    with pytest.raises(UserError, match="top is 0"):
        fill(model, codec, "[MASK]", top=0)
    bare = build(replace(model.config, heads={}, tie="none"))
    for other, kind in ((build(preset("gpt-1m")), "a language model"), (bare, r"a text model \(heads: none\)")):
        with pytest.raises(UserError, match=f"m is {kind}, which cannot fill in masks"):
            hw.Model(OpenedModel(other, Usage(), codec), Path("m")).fill("[MASK]")


def test_a_run_fills_in_masks(data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "play.txt"
    path.write_text((data_dir / "lm/tinyshakespeare.txt").read_text()[:30_000])
    settings = {"task.size": 400, "task.context": 32, "train.steps": 2, "train.batch_tokens": 64, "model.depth": 1}
    run = hw.train("masked", path, {**settings, "model.width": 16, "model.heads": 2}, run=tmp_path / "run")
    assert run.summary["scores"]["split"] == "test"
    assert mask_id(load_codec(run.directory)) == 399
    text = "I am the [MASK] of [MASK]."
    found = hw.load(run.directory).fill(text, top=2)
    assert [len(mask) for mask in found] == [2, 2]
    assert main(["fill", os.fspath(run.directory), text, "--top", "2", "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])["results"]
    assert result[0]["text"] == text
    said = [[candidate["id"] for candidate in mask] for mask in result[0]["masks"]]
    assert said == [[candidate.id for candidate in mask] for mask in found]
