"""The law of the lens: its last layer is the model's own output, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import torch
from cases import shake

import headway as hw
from headway.codecs import train_codec
from headway.formats.native import save_model
from headway.nn.mixers import AttentionConfig, BidirectionalConfig, GRUConfig, LSTMConfig, MixerConfig
from headway.nn.models import BlockConfig, StackConfig, TransformerConfig, build, cycle
from headway.nn.models.block import Placement
from headway.nn.parts.norm import LayerNormConfig
from headway.predict.logit_lens import Lens
from headway.visibility import Full

TEXT = "one two three two one"
MIXERS: dict[str, tuple[MixerConfig, ...]] = {
    "attention": (AttentionConfig(2),),
    "hybrid": (AttentionConfig(2), LSTMConfig(cells=12), GRUConfig()),
    "masked": (AttentionConfig(2, pattern=Full()), BidirectionalConfig()),
}


def model_of(folder: Path, mixers: tuple[MixerConfig, ...], placement: Placement, shared: bool = False) -> hw.Model:
    codec = train_codec("word", iter([TEXT]), special=("[MASK]",))
    blocks = tuple(BlockConfig(mixer, placement=placement) for mixer in mixers)
    final = None if placement == "post" else LayerNormConfig()
    stack = StackConfig(cycle(blocks, 3), final, shared=shared)
    config = TransformerConfig(16, codec.vocab_size, 64, stack)
    module = build(config, seed=1)
    shake(module)
    save_model(module.float(), config, folder)
    codec.save(folder)
    return hw.load(folder, "cpu", backend="torch")


def check_last_layer(model: hw.Model, lens: Lens) -> None:
    ids = torch.tensor([[token.id for token in lens.tokens]])
    logits = model.logits(ids)[0]
    best = logits.softmax(-1).topk(4)
    assert [[token.id for token in row] for row in lens.layers[-1].predictions] == best.indices.tolist()
    assert [[token.score for token in row] for row in lens.layers[-1].predictions] == best.values.tolist()
    following = logits[lens.next.position]
    assert [token.score for token in lens.next.candidates] == following.topk(len(lens.next.candidates)).values.tolist()


@pytest.mark.parametrize("mixers", MIXERS)
@pytest.mark.parametrize("placement", get_args(Placement))
def test_the_last_layer_is_the_models_own_output(tmp_path: Path, mixers: str, placement: Placement) -> None:
    model = model_of(tmp_path, MIXERS[mixers], placement)
    lens = model.lens(TEXT, top=4)
    assert len(lens.layers) == 3
    check_last_layer(model, lens)
    assert lens.masked == (mixers == "masked")


def test_layers_that_share_weights_are_each_shown(tmp_path: Path) -> None:
    model = model_of(tmp_path, MIXERS["attention"], "post", shared=True)
    lens = model.lens(TEXT, top=4)
    check_last_layer(model, lens)
    assert len({str(layer.predictions) for layer in lens.layers}) == 3


def test_an_earlier_layer_is_the_output_of_a_shorter_model(tmp_path: Path) -> None:
    model = model_of(tmp_path, MIXERS["hybrid"], "pre")
    lens = model.lens(TEXT, top=4)
    model.module.stack.blocks = model.module.stack.blocks[:2]
    shorter = model.lens(TEXT, top=4)
    assert shorter.layers == lens.layers[:2]
    check_last_layer(model, shorter)
