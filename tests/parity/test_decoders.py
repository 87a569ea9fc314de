"""Published decoders against transformers: logits, every layer, greedy tokens, and the way back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from decoder_models import CONFIGS, SYMBOLS, continued, greedy, layers_of, logits, make, ours_of
from safetensors import safe_open
from twins import Twins, batch, check_gradients, difference, outputs_of, rows, twins

from headway.formats.published import load_published, save_published

T = pytest.importorskip("transformers")
TOLERANCE, INNER = 1e-5, 3e-5  # of logits, and of features, which reach 20
LENGTHS = [24, 1, 17]


@pytest.fixture(scope="module", params=list(CONFIGS), ids=lambda key: f"{key[0]}-{key[1]}")
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Twins:
    torch.manual_seed(5)
    return twins(make(*request.param), tmp_path_factory.mktemp("theirs"), noise=0.1)


def test_logits_of_ragged_rows(pair: Twins) -> None:
    """Rows are longer than the windows, and one is a single token."""
    given = batch(LENGTHS, SYMBOLS)
    assert difference(ours_of(pair.ours, given), logits(pair.theirs, given), given.layout.mask) < TOLERANCE


def test_every_layer(pair: Twins) -> None:
    given = batch(LENGTHS, SYMBOLS)
    theirs = outputs_of(layers_of(pair.theirs), lambda: logits(pair.theirs, given))
    ours = outputs_of(list(pair.ours.stack.blocks), lambda: pair.ours(given.ids, given.layout))
    assert len(ours) == len(theirs) == len(pair.ours.config.stack.blocks)
    for mine, other in zip(ours, theirs):
        assert difference(mine, other, given.layout.mask) < INNER


def test_gradients(pair: Twins, tmp_path: Path) -> None:
    given = batch(LENGTHS, SYMBOLS)
    check_gradients(
        pair,
        lambda peer: peer(given.ids, attention_mask=given.mask).logits[given.layout.mask],
        lambda mine: mine.logits(given.ids, given.layout)[given.layout.mask],
        tmp_path,
    )


def test_greedy_tokens(pair: Twins) -> None:
    """Prompts of several lengths at once, by a state; theirs one by one, without one."""
    given = batch([11, 3], SYMBOLS, seed=3)
    ours = greedy(pair.ours, given, 12)
    for prompt, found in zip(rows(given), ours.tolist(), strict=True):
        assert continued(pair.theirs, prompt, found) == found


def test_export_with_usage(pair: Twins, tmp_path: Path) -> None:
    """Back to the family it came from, bit for bit."""
    assert save_published(pair.ours, pair.ours.config, tmp_path, pair.usage) == pair.theirs.config.model_type
    back, told = type(pair.theirs).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(told.values()), told
    state, saved = pair.theirs.state_dict(), back.state_dict()
    assert state.keys() == saved.keys()
    assert all(torch.equal(tensor, saved[name]) for name, tensor in state.items())
    given = batch(LENGTHS, SYMBOLS)
    assert difference(logits(back.eval(), given), logits(pair.theirs, given), given.layout.mask) < TOLERANCE


def test_export_by_finding_the_family(pair: Twins, tmp_path: Path) -> None:
    """Without a word of its origin: some family says the same, and transformers computes it."""
    family = save_published(pair.ours, pair.ours.config, tmp_path)
    assert family in (pair.theirs.config.model_type, "llama", "gpt2")
    back = T.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    given = batch(LENGTHS, SYMBOLS)
    assert difference(logits(back, given), logits(pair.theirs, given), given.layout.mask) < TOLERANCE
    again = load_published(tmp_path).model.state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in pair.ours.state_dict().items())


def test_tied_heads_are_saved_once(pair: Twins, tmp_path: Path) -> None:
    save_published(pair.ours, pair.ours.config, tmp_path, pair.usage)
    settings = json.loads((tmp_path / "config.json").read_text())
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        heads = {"lm_head.weight", "embed_out.weight"} & set(file.keys())
    assert len(heads) == (0 if settings["tie_word_embeddings"] else 1)
