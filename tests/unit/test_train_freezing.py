"""Parts of a model that a recipe freezes stay as they are, to the bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_runs import play_file, small, train, weights

from headway.config import override
from headway.errors import ConfigError
from headway.learn.fine_tuning import prepare_for_training
from headway.learn.memory import training_bytes
from headway.nn.models import build, outline


@pytest.mark.parametrize("optim", ["muon", "adamw", "sgd"])
def test_frozen_parts_stay_and_the_rest_learns(data_dir: Path, tmp_path: Path, optim: str) -> None:
    """Also through decay, a moving average, an interruption's checkpoint and the mean of checkpoints."""
    settings = {"optim": optim, "train.ema": 0.5, "train.average": 2, "train.checkpoint_every": 2}
    settings |= {"train.frozen": "embed,stack.blocks.0,*.up.weight"}
    done = train(tmp_path / "run", play_file(data_dir, tmp_path), set=settings)
    before = dict(build(done.recipe.model, done.recipe.train.seed).named_parameters())
    changed = {name for name, tensor in weights(done.directory).items() if not torch.equal(tensor, before[name])}
    assert changed
    assert not any(name.startswith(("embed.", "stack.blocks.0.")) or name.endswith("up.weight") for name in changed)
    assert done.recipe.train.frozen == ("embed", "stack.blocks.0", "*.up.weight")


def test_what_is_frozen_needs_no_room_for_learning() -> None:
    whole, part = (
        training_bytes(override(small(), {"train.frozen": names}), outline(small().model)) for names in ("", "embed")
    )
    table = 4 * 32
    assert whole["weights"] == part["weights"]
    assert whole["optimiser"] - part["optimiser"] == 2 * table


def test_a_name_of_nothing_is_refused(data_dir: Path, tmp_path: Path) -> None:
    model = build(small().model)
    with pytest.raises(
        ConfigError, match=r"train.frozen: the model has no part 'stack.block'; did you mean 'stack.blocks'"
    ):
        prepare_for_training(model, override(small(), {"train.frozen": ["stack.block"]}), ())
    with pytest.raises(ConfigError, match=r"train.frozen: the model has no part 'tower'"):
        train(tmp_path / "run", play_file(data_dir, tmp_path), set={"train.frozen": ["tower"]})
    assert not (tmp_path / "run").exists()
