"""The family decision_transformer, held to transformers: what heads say, every layer, padding, and both ways."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from twins import check_export, check_gradients, difference, outputs_of, twins

from headway.errors import UserError
from headway.formats.families import families
from headway.formats.published import can_express, load_published, save_published
from headway.layout import Layout
from headway.nn.models import TrajectoryInputs, build
from headway.nn.models.presets import preset

T = pytest.importorskip("transformers")
TOLERANCE = 1e-5
SIZES: dict[str, dict[str, Any]] = {
    "plain": {"hidden_size": 16, "n_layer": 2, "n_head": 2},
    "other": {"hidden_size": 24, "n_layer": 3, "n_head": 3, "n_inner": 40, "activation_function": "gelu_new"}
    | {"action_tanh": False, "vocab_size": 5, "n_positions": 7, "max_ep_len": 9},
}


def model(name: str) -> Any:
    torch.manual_seed(0)
    config = {"state_dim": 5, "act_dim": 3, "max_ep_len": 50, "n_positions": 40, **SIZES[name]}
    return T.DecisionTransformerModel(T.DecisionTransformerConfig(**config))


def steps(batch: int = 3, length: int = 6, padding: tuple[int, ...] = (0, 2, 5)) -> tuple[TrajectoryInputs, Layout]:
    """Random steps, padded at the left."""
    random = torch.Generator().manual_seed(3)
    keep = torch.arange(length) >= torch.tensor(padding)[:, None]
    positions = torch.where(keep, torch.arange(length) - torch.tensor(padding)[:, None], -1)
    inputs = TrajectoryInputs(
        torch.randn(batch, length, generator=random),
        torch.randn(batch, length, 5, generator=random),
        torch.randn(batch, length, 3, generator=random),
        torch.where(keep, positions + torch.tensor([3, 0, 2])[:, None], 0),
    )
    return inputs, Layout(positions)


def run(theirs: Any, inputs: TrajectoryInputs, layout: Layout) -> Any:
    assert inputs.returns is not None
    return theirs(
        states=inputs.states,
        actions=inputs.actions,
        rewards=None,
        returns_to_go=inputs.returns[..., None],
        timesteps=inputs.timesteps,
        attention_mask=layout.mask.long(),
    )


@pytest.mark.parametrize("size", SIZES)
def test_every_layer_and_head_is_theirs_and_so_is_the_export(size: str, tmp_path: Path) -> None:
    pair = twins(model(size), tmp_path / "theirs")
    inputs, layout = steps()
    with torch.inference_mode():
        theirs = run(pair.theirs, inputs, layout)
        encoded = pair.ours(inputs, layout)
        for name, said in (
            ("actions", theirs.action_preds),
            ("states", theirs.state_preds),
            ("returns", theirs.return_preds),
        ):
            assert difference(pair.ours.heads[name](encoded.x, encoded.layout), said, layout.mask) < TOLERANCE
    keep = encoded.layout.mask
    layers = zip(
        outputs_of(list(pair.ours.stack.blocks), lambda: pair.ours(inputs, layout)),
        outputs_of(pair.theirs.encoder.h, lambda: run(pair.theirs, inputs, layout)),
        strict=True,
    )
    for a, b in layers:
        assert difference(a, b, keep) < TOLERANCE
    whole, dense = steps(padding=(0, 0, 0))
    check_export(
        pair,
        T.DecisionTransformerModel.from_pretrained,
        lambda peer: run(peer, whole, dense).action_preds,
        tmp_path / "ours",
    )


@pytest.mark.parametrize("size", SIZES)
def test_gradients(size: str, tmp_path: Path) -> None:
    pair = twins(model(size), tmp_path / "theirs")
    inputs, layout = steps()

    def theirs(peer: Any) -> Tensor:
        said = run(peer, inputs, layout)
        return torch.cat([said.action_preds, said.state_preds, said.return_preds], -1)[layout.mask]

    def ours(mine: Any) -> Tensor:
        encoded = mine(inputs, layout)
        names = ("actions", "states", "returns")
        return torch.cat([mine.heads[name](encoded.x, encoded.layout) for name in names], -1)[layout.mask]

    check_gradients(pair, theirs, ours, tmp_path / "gradients")


def test_a_model_made_here_is_theirs_when_it_is_exported(tmp_path: Path) -> None:
    """It has neither of their tables: the export has one row of zeros for each."""
    config = preset("decision-hopper")
    assert [family.name for family in families().values() if can_express(family, config)] == ["decision_transformer"]
    ours = build(config).eval()
    save_published(ours, config, tmp_path)
    theirs = T.DecisionTransformerModel.from_pretrained(tmp_path).eval()
    random = torch.Generator().manual_seed(0)
    inputs = TrajectoryInputs(
        torch.randn(2, 4, generator=random),
        torch.randn(2, 4, 11, generator=random),
        torch.randn(2, 4, 3, generator=random),
        torch.arange(4).expand(2, 4),
    )
    layout = Layout.full(2, 4)
    with torch.inference_mode():
        said = ours.output("actions", inputs, layout)  # type: ignore[operator]
        assert difference(run(theirs, inputs, layout).action_preds, said) < TOLERANCE
        again = load_published(tmp_path).model
        assert difference(again.output("actions", inputs, layout), said) < TOLERANCE  # type: ignore[operator]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"state_dim": 6}, "embed_state.weight of shape"),
        ({"max_ep_len": 0}, "timesteps"),
        ({"scale_attn_weights": False}, "scale_attn_weights is False"),
    ],
)
def test_settings_that_do_not_fit_are_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    model("plain").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | change), encoding="utf-8")
    with pytest.raises(UserError, match=message):
        load_published(tmp_path)
