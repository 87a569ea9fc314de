"""The parts of models of chess."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from headway.codecs.chess_boards import MOVE_INDEX, MOVES, UPWARD_MOVES, board_planes, parse_fen
from headway.errors import ConfigError, UserError
from headway.layout import Layout
from headway.nn.kernels import View, attend, attend_reference
from headway.nn.models import BoardEmbedConfig, FromToHeadConfig, build, describe
from headway.nn.models.presets import squares
from headway.nn.models.score_biases import SmolgenConfig
from headway.nn.parts.init import InitConfig, initialise
from headway.visibility import Full

FEN = "r3k2r/p1ppqpb1/bn2pnp1/3PN3/1p2P3/2N2Q1p/PPPBBPPP/R3K2R w KQkq - 0 1"


def read(*fens: str) -> torch.Tensor:
    positions = np.array([parse_fen(fen) for fen in fens])
    return torch.from_numpy(board_planes([positions, positions], np.zeros((len(fens), 1), bool)))


def test_the_from_to_head_is_a_query_and_a_key_and_what_a_pawn_becomes() -> None:
    torch.manual_seed(0)
    head, x = FromToHeadConfig(4).build(6, 0, None), torch.randn(2, 64, 6)
    initialise(head, InitConfig(std=1.0), 1, 0)
    with torch.no_grad():
        found = head(x, Layout.full(2, 64))
    assert found.shape == (2, UPWARD_MOVES)
    query, key = (x @ head.ends.weight.T + head.ends.bias).detach().chunk(2, -1)
    become = (x @ head.promote.weight.T + head.promote.bias).detach()
    plain = (query[1, 12] @ key[1, 28]) / 2  # e2 to e4
    assert found[1, MOVE_INDEX["e2e4"]] == pytest.approx(float(plain), abs=1e-5)
    pawn = (query[1, 49] @ key[1, 56]) / 2 + become[1, 56, 2]  # b7 takes on a8 and becomes a rook
    assert found[1, MOVE_INDEX["b7a8r"]] == pytest.approx(float(pawn), abs=1e-5)
    assert MOVES[MOVE_INDEX["b7a8r"]] == "b7a8r"


def test_smolgen_depends_on_the_position_and_refuses_other_lengths() -> None:
    bias = SmolgenConfig(heads=2, length=4, compressed=2, hidden=8, generated=4).build(6)
    initialise(bias, InitConfig(std=0.5), 1, 0)
    layout = Layout.full(3, 4)
    found = bias(torch.randn(3, 4, 6), layout, layout)
    assert found.shape == (3, 2, 4, 4)
    assert not torch.allclose(found[0], found[1])
    with pytest.raises(UserError, match="exactly 4 tokens"):
        bias(torch.randn(3, 5, 6), Layout.full(3, 5), Layout.full(3, 5))


@pytest.mark.parametrize("rows", [1, 3])
def test_a_learnt_bias_attends_as_the_reference_does_gradients_too(rows: int) -> None:
    torch.manual_seed(0)
    layout = Layout.full(3, 5)
    q, k, v, bias = (
        torch.randn(*shape, dtype=torch.float64, requires_grad=True)
        for shape in ((3, 5, 2, 4), (3, 5, 2, 4), (3, 5, 2, 4), (rows, 2, 5, 5))
    )
    view, results = View(Full(), layout, layout), []
    for function in (attend, attend_reference):
        y = function(q, k, v, view, bias=bias, scale=0.7)
        results.append([y, *torch.autograd.grad((y**3).sum(), (q, k, v, bias))])
    for found, wanted in zip(*results):
        torch.testing.assert_close(found, wanted)


def test_the_model_thinks_of_a_mirrored_position_as_of_the_position() -> None:
    chess = pytest.importorskip("chess")
    model = build(squares(16, 2, 2))
    inputs = read(FEN, chess.Board(FEN).mirror().fen())
    encoded = model(inputs)
    for name, shape in (("policy", (2, UPWARD_MOVES)), ("value", (2, 3))):
        said = model.heads[name](encoded.x, encoded.layout)  # type: ignore[index,operator]
        assert said.shape == shape
        torch.testing.assert_close(said[0], said[1])


def test_it_is_told_what_it_costs_and_settings_reach_its_bias() -> None:
    from headway.config import override

    config = override(squares(16, 1, 2), {"depth": 3, "heads": 4, "embed.history": 0})
    found = describe(config)
    assert found["parameters"] > 0
    assert found["flop_per_token"] > 0
    assert "chess positions (64 tokens), 0 earlier ones" in found["tree"][0]
    assert config.stack.biases["smolgen"].heads == 4
    with pytest.raises(ConfigError, match="history is 9"):
        BoardEmbedConfig(9)
