"""Pictures of attention: what they show, what they are asked for, and what they refuse."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from headway.app.cli import main as cli
from headway.errors import UserError
from headway.predict.attention_maps import Attention

pytest.importorskip("matplotlib", reason="matplotlib is not installed")


def translated() -> Attention:
    """Two layers of three heads: each symbol but the last reads the source symbol of its place."""
    across = {f"decoder.{layer}.cross": torch.eye(3, 2)[None].expand(3, 3, 2) * layer for layer in (1, 2)}
    maps = {"encoder.1.mixer": torch.ones(3, 2, 2), **across}
    return Attention(maps, ["<begin>", "$a$", "x" * 40], ["cat", "<end>"], tuple(across))


def test_the_mean_of_all_is_between_target_and_source() -> None:
    [axes] = translated().picture().axes
    assert axes.images[0].get_array().tolist() == [[1.5, 0.0], [0.0, 1.5], [0.0, 0.0]]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["cat", "<end>"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["<begin>", r"\$a\$", "x" * 15 + "…"]
    assert axes.get_title(loc="left") == "mean of 2 layers, mean of heads\ndarkest: 1.50"


def test_one_layer_and_head_or_each_of_them(tmp_path: Path) -> None:
    found = translated()
    [axes] = found.picture(layer=2, head=3).axes
    assert axes.images[0].get_array().max() == 2.0
    assert axes.get_title(loc="left") == "layer 2, head 3\ndarkest: 2.00"
    assert [axes.get_title() for axes in found.picture(each=True).axes][2:4] == ["layer 1, head 3", "layer 2, head 1"]
    assert len(found.picture(layer=2, each=True).axes) == 3
    found.picture(each=True).savefig(tmp_path / "heads.png")
    assert (tmp_path / "heads.png").read_bytes().startswith(b"\x89PNG")


def test_without_a_source_symbols_look_at_each_other() -> None:
    [axes] = Attention({"stack.0": torch.full((2, 2, 2), 0.5)}, ["a", "b"], []).picture().axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["a", "b"]


@pytest.mark.parametrize(
    ("found", "asked", "message"),
    [
        (translated(), {"layer": 3}, "there is no attention layer 3; choose one from 1 to 2"),
        (translated(), {"head": 4}, "there is no head 4; choose one from 1 to 3"),
        (translated(), {"head": 1, "each": True}, "head 1 and all heads are both requested; choose one"),
        (Attention({}, ["a"], []), {}, "the model has no attention to plot"),
        (
            Attention({"encoder.1": torch.ones(1, 1, 1)}, ["a"], ["b"]),
            {},
            "the model has no attention to",
        ),
        (Attention({"a": torch.ones(1, 81, 81)}, ["a"] * 81, []), {}, "81 tokens are too many .* use at most 80"),
    ],
)
def test_what_cannot_be_drawn_is_told(found: Attention, asked: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        found.picture(**asked)


def test_a_place_that_cannot_be_written_is_told_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for out, message in (
        (tmp_path / "a.txt", "is not a supported image file"),
        (tmp_path / "no" / "a.png", "is not a folder"),
    ):
        assert cli.main(["attention", str(tmp_path / "run"), str(out), "--text", "a"]) == cli.USER_ERROR
        err = capsys.readouterr().err
        assert message in err
        assert err.count("\n") == 1
