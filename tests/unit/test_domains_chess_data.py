"""Games and positions of chess as data, and what is learnt from them."""

from __future__ import annotations

import json
import lzma
from pathlib import Path

import numpy as np
import pytest
import torch
from chess_data import game, games_file, recipe, train

import headway as hw
from headway.codecs.chess_boards import MIRRORED_MOVES, MOVE_INDEX
from headway.config import override
from headway.data import SplitConfig
from headway.data.input_files import File
from headway.domains import recipe as find_recipe
from headway.errors import ConfigError, UserError
from headway.nn.models import build

chess = pytest.importorskip("chess")

from headway.domains.chess.boards import centipawns, expected, mate, outcome, read_score, worth  # noqa: E402
from headway.domains.chess.config import ChessConfig, make_evaluator  # noqa: E402
from headway.domains.chess.evaluator import BoardEvaluator, position_input  # noqa: E402
from headway.domains.chess.position_files import games  # noqa: E402
from headway.domains.chess.positions import open_positions  # noqa: E402
from headway.domains.chess.task import Boards  # noqa: E402
from headway.learn.examples import RngKey  # noqa: E402


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_a_game_has_its_moves_its_result_and_the_engines_judgement(tmp_path: Path) -> None:
    (found,) = games(File(write(tmp_path, "a.pgn", game())))
    played = ["e2e4", "e7e5", "d1h5", "b8c6", "f1c4", "g8f6", "h5f7"]
    sides = [
        MOVE_INDEX[move] if at % 2 == 0 else int(MIRRORED_MOVES[MOVE_INDEX[move]]) for at, move in enumerate(played)
    ]
    assert found.moves == sides
    assert found.result is not None
    assert found.result.tolist() == [1, 0, 0]
    assert [judged is not None for judged in found.evaluations] == [True, True, False, True, False, True, False]
    source = open_positions([tmp_path / "a.pgn"], 0.5, False)
    targets = source.targets(np.arange(7))
    assert targets.moves[:, 0].tolist() == sides
    assert targets.values[0].tolist() == [1, 0, 0]  # nothing was judged before the first move
    after = outcome(30.0)  # after e4; black is to move, who lost
    np.testing.assert_allclose(targets.values[1], ((after + np.array([1, 0, 0])) / 2)[::-1], atol=2e-3)
    assert targets.worths[5, 0] == pytest.approx(-0.1, abs=1e-3)  # what allows a mate at once
    assert targets.worths[6, 0] == 1
    records, known = source.records(np.array([0, 3]), 2)
    assert known.tolist() == [[False, False], [True, True]]
    assert records[2][1] == source.positions[1]


def test_evaluations_are_chances() -> None:
    assert float(expected(outcome(0.0))) == pytest.approx(0.5)
    assert outcome(100.0)[0] == pytest.approx(0.5)
    assert outcome(np.array([-300.0, 300.0])).sum(-1) == pytest.approx(1)
    assert outcome(300.0)[2] < 0.01
    assert [read_score(text) for text in ("0.34", "-1.2", "#3", "#-2")] == [34, -120, mate(3), mate(-2)]
    assert mate(1) > mate(5) > 5000 > -5000 > mate(-5) > mate(-1)
    won = worth(np.array([-20.0, 300.0, 900.0, mate(9), mate(2), mate(1)]))
    assert (np.diff(won) > 0.01).all()  # what `outcome` takes for one and the same win
    assert worth(-np.array([300.0, mate(2)])) == pytest.approx(1 - won[[1, 4]])
    assert centipawns(float(expected(outcome(123.0)))) == pytest.approx(123, abs=2)


def test_variants_are_left_out_and_counted(data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Twelve of the 989 real games, all five variants among them."""
    parts = lzma.decompress((data_dir / "chess/lichess_magnus.pgn.xz").read_bytes()).decode().split("[Event ")[1:]
    assert (len(parts), sum('[Variant "Atomic"]' in part for part in parts)) == (989, 5)
    path = write(tmp_path, "some.pgn", "".join("[Event " + part for part in parts[:12]))
    source = open_positions([path], 0.5, False)
    assert "5 of 12 games are chess variants and are skipped" in capsys.readouterr().err
    assert source.tally.games == 12
    assert (source.counts == 1).all()
    assert len(source) > 300


def test_the_puzzles_and_the_list_of_positions(data_dir: Path, tmp_path: Path) -> None:
    lines = (data_dir / "chess/lichess_puzzles_8k.csv").read_text().splitlines()
    source = open_positions([write(tmp_path, "puzzles.csv", "\n".join(lines[:40]))], 0.5, False)
    assert len(source) == 39
    with pytest.raises(UserError, match="headway data label"):
        open_positions([write(tmp_path, "a.epd", "rnbqkbnr/pppppppp/8/8/8/8/PPPPPPPP/RNBQKBNR w KQkq -\n")], 0.5, False)


def test_forms_of_lists(tmp_path: Path) -> None:
    start = "rnbqkbnr/pppppppp/8/8/8/8/PPPPPPPP/RNBQKBNR w KQkq -"
    epd = write(tmp_path, "a.epd", f'{start} bm e4 d4; ce 35; id "one";\n{start} ce -20;\n\n')
    found = open_positions([epd], 0.5, False).targets(np.arange(2))
    assert found.moves.tolist() == [[MOVE_INDEX["e2e4"], MOVE_INDEX["d2d4"]], [-1, -1]]
    np.testing.assert_allclose(found.values[1], outcome(-20.0), atol=1e-3)
    own = "PuzzleId,FEN,Moves,Rating\n1,r6k/pp2r2p/4Rp1Q/3p4/8/1N1P2R1/PqP2bPP/7K b - - 0 24,f2g3 e6e7 b2b1 b3c1,1900\n"
    lichess = open_positions([write(tmp_path, "own.csv", own)], 0.5, False)
    moves = [
        MIRRORED_MOVES[MOVE_INDEX[m]] if black else MOVE_INDEX[m] for m, black in (("e6e7", False), ("b3c1", False))
    ]
    assert lichess.targets(np.arange(2)).moves[:, 0].tolist() == moves
    labels = "position,bestmove,scores,wdl\n" + f"{start} 0 1,e2e4,e2e4:35 d2d4:#3,900 50 50\n"
    found = open_positions([write(tmp_path, "labels.csv", labels)], 0.5, False).targets(np.arange(1))
    np.testing.assert_allclose(found.values[0], [0.9, 0.05, 0.05], atol=1e-3)
    assert found.worths[0].tolist() == pytest.approx([float(worth(35.0)), 1 + 0.1 / 3], abs=1e-3)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.pgn", '[Result "1-0"]\n\n1. e4 e5 2. Qh6 Nc6 1-0\n', "starting at line 1: illegal san: 'Qh6'"),
        ("a.pgn", '[Result "1-0"]\n\n1. e4 e5 2. Nf3', "ends without a result, like a truncated file"),
        ("a.pgn", '[FEN "nonsense"]\n\n1. e4 e5 1-0\n', "task.skip_bad=true"),
        ("a.pgn", "   \n", "nothing to learn from"),
        ("a.csv", "position,bestmove\nnonsense,e2e4\n", "line 2: FEN 'nonsense' has 1 parts"),
        (
            "a.csv",
            "position,bestmove\n8/8/8/8/8/8/8/8 w - - 0 1,e2e4\n",
            "not a chess position .no white king, no black",
        ),
        ("a.csv", "position,bestmove\n8/8/8/8/8/k7/8/K1q5 w - - 0 1,e2e4\n", "line 2: 'e2e4' is not a legal move in"),
        ("a.csv", "position,bestmove\n8/8/8/8/8/k7/8/K6q w - - 0 1,best\n", "'best' contains no move"),
        ("a.csv", "position,bestmove,scores\n8/8/8/8/7q/k7/8/1K6 b - - 0 1,h4h1,h4h1:x\n", "'x' is not an evaluation"),
        ("a.csv", "fen2,bestmov\n", "no column 'position' or 'fen'"),
        ("a.csv", "position,bestmove\na\n", "line 2 has 1 columns"),
        ("a.epd", "8/8/8/8/7q/k7/8/1K6 b - - bm Qq9;\n", "'Qq9' is not a chess move"),
        ("a.epd", "4k3/8/8/8/8/8/8/4K2R w HA - bm Kd1;\n", "Chess960"),
        ("a.txt", "e4\n", "unknown extension '.txt'"),
    ],
)
def test_bad_input_is_told_with_its_place(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_positions([write(tmp_path, name, text)], 0.5, False)


def test_damaged_games_are_passed_over_if_asked(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    bad = '[Result "1-0"]\n\n1. e4 e5 2. Qh6 1-0\n\n'
    path = write(tmp_path, "a.pgn", bad + game() + '[Result "1-0"]\n\n1. d4 d5 2. c4')
    source = open_positions([path], 0.5, True)
    assert len(source) == 2 + 7 + 3
    assert "2 of 3 games are damaged" in capsys.readouterr().err


def test_a_game_stands_on_one_side_and_equal_games_on_the_same(tmp_path: Path) -> None:
    path = games_file(tmp_path)
    path.write_text(path.read_text() + "\n" + path.read_text())
    source = open_positions([path], 0.5, False)
    sides = source.split(SplitConfig(0.2, 0.2))
    where = {key: {side for side, rows in sides.items() if key in source.keys[rows]} for key in np.unique(source.keys)}
    assert all(len(found) == 1 for found in where.values())
    assert all(len(rows) for rows in sides.values())
    assert sum(len(rows) for rows in sides.values()) == len(source) == 80 * 6


def test_a_run_trains_reports_and_is_the_same_again(tmp_path: Path) -> None:
    path = games_file(tmp_path)
    first, second = (train(tmp_path / name, path) for name in ("one", "two"))
    for one, two in zip(first.model.parameters(), second.model.parameters()):
        assert torch.equal(one, two)
    scores = first.summary["scores"]
    assert {"loss", "policy", "value", "accuracy", "accuracy_interval", "legal_rate", "score_error"} <= set(scores)
    page = (tmp_path / "one/report.html").read_text()
    assert "chess position" in page
    assert "Attention, head 1" in page
    again = hw.load(tmp_path / "one").evaluate(split="test")
    assert again["loss"] == pytest.approx(scores["loss"])
    puzzles = write(tmp_path, "p.csv", "position,bestmove\n6k1/5ppp/8/8/8/8/5PPP/R5K1 w - - 0 1,a1a8\n")
    assert hw.load(tmp_path / "one").evaluate([puzzles])["puzzle_accuracy"] in (0.0, 1.0)


def test_a_model_of_single_positions_reads_nothing_into_earlier_ones(tmp_path: Path) -> None:
    board, rows = chess.Board(), ["position,bestmove"]
    for number in range(60):
        moves = list(board.legal_moves)
        move = moves[5 * number % len(moves)]
        rows.append(f"{board.fen()},{move}")
        board.push(move)
    run = train(tmp_path / "run", write(tmp_path, "labels.csv", "\n".join(rows) + "\n"))
    judge = make_evaluator(run.model, run.recipe, "run")
    assert isinstance(judge, BoardEvaluator)
    assert judge.history == 1
    alone, after = (judge.evaluate([position_input(some, 1)])[0] for some in (chess.Board(board.fen()), board))
    assert np.array_equal(alone.policy, after.policy)
    assert np.array_equal(alone.outcome, after.outcome)


def test_left_and_right_are_exchanged_where_no_one_may_castle(tmp_path: Path) -> None:
    free, bound = "6k1/5ppp/8/8/8/8/5PPP/R5K1 w - - 0 1", "r3k3/8/8/8/8/8/8/4K2R w Kq - 0 1"
    other = chess.Board(free).transform(chess.flip_horizontal).fen()
    text = f"position,bestmove\n{free},a1a8\n{bound},h1h8\n{other},h1h8\n"
    source = open_positions([write(tmp_path, "a.csv", text)], 0.5, False)
    rows, split = np.arange(3), ChessConfig().split
    boards = [Boards(recipe(), source, split, forget=0, turn=share) for share in (0, 1)]
    plain, turned = (examples.take(rows, RngKey(0, rows)) for examples in boards)
    for first, second in ((0, 2), (1, 1), (2, 0)):
        assert torch.equal(turned.inputs[0][first], plain.inputs[0][second])
        assert torch.equal(turned.targets.moves[first], plain.targets.moves[second])


def test_it_overfits_a_batch(tmp_path: Path) -> None:
    given = {"train.batch_size": 16, "task.forget": 0.0, "task.turn": 0.0, "task.split.validation": 0.3}
    chosen = override(recipe(), given)
    task = chosen.task.open(chosen, [games_file(tmp_path, 24)], tmp_path)
    model = build(chosen.model)
    batch = next(task.batches("train"))
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(80):
        losses = task.loss(model, batch)
        total = sum(loss.total / loss.count for loss in losses.values())
        optimizer.zero_grad()
        total.backward()  # type: ignore[union-attr]
        optimizer.step()
    policy, value = (float(loss.total.detach()) / loss.count for loss in losses.values())
    values = batch.targets.values
    floor = -(values * values.clamp(min=1e-9).log()).sum(1).mean()
    assert policy < 0.5  # equal positions go on in several ways
    assert value < float(floor) + 0.1


def test_an_empty_split_is_told_before_any_work(tmp_path: Path) -> None:
    rows = "".join(f"{chess.STARTING_FEN[:-1]}{n},e2e4\n" for n in range(1, 9))
    path = write(tmp_path, "a.csv", f"position,bestmove\n{rows}")
    with pytest.raises(UserError, match="the validation split of 8 positions is empty; add games in files named val"):
        train(tmp_path / "run", path, **{"task.split.validation": 0.0})
    told = "the train split of 0 positions with the target action_value is empty; add games with results"
    chosen = find_recipe("chess-searchless")
    task = chosen.task.open(chosen, [path], tmp_path)
    with pytest.raises(UserError, match=told):
        task.adapt(chosen.model)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("target", ["behaviour", "state_value", "action_value"])
def test_the_tokens_of_a_fen_learn_each_target(tmp_path: Path, target: str) -> None:
    given = {"model.width": 16, "model.depth": 1, "model.heads": 2, "train.steps": 2, "train.batch_size": 8}
    split = {"task.split.validation": 0.2, "task.split.test": 0.2, "task.target": target}
    run = hw.train(
        "chess-searchless",
        [games_file(tmp_path)],
        {**given, **split, "train.evaluate_every": 2},
        run=tmp_path / "run",
        progress=False,
        samples=2,
    )
    head = run.model.heads["value"]  # type: ignore[index]
    assert head.project.weight.shape[0] == (1968 if target == "behaviour" else 128)
    batch = next(run.task.batches("train"))
    assert batch.inputs[0].shape == (8, 79 if target == "action_value" else 78)
    assert run.summary["scores"]["positions"] > 0
    assert json.loads((tmp_path / "run/recipe.json").read_text())["task"]["target"] == target
    if target == "behaviour":  # its symbols are no tokenizer's, and another run starts from it all the same
        more, changed = (
            {**given, **split, "train.steps": 1},
            {"train.evaluate_every": 1, "optim": "adamw", "optim.lr": 1e-9},
        )
        again = hw.train(
            "chess-searchless",
            [games_file(tmp_path)],
            {**more, **changed},
            run=tmp_path / "again",
            from_=tmp_path / "run",
            progress=False,
        )
        first, second = (each.model.heads["value"].project.weight for each in (run, again))  # type: ignore[index]
        assert torch.allclose(first, second, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task.temperature": 0}, "task.temperature is 0.0"),
        ({"task.evals": 2}, "task.evals is 2"),
        ({"task.forget": -1}, "task.forget is -1"),
        ({"task.turn": 1.5}, "task.turn is 1.5"),
        ({"model": "gpt2"}, "does not read 64 squares"),
        ({"model": "chess-9m"}, "recipe chess-searchless"),
        ({"train.batch_tokens": 5}, "set only train.batch_size"),
    ],
)
def test_wrong_settings_are_told(tmp_path: Path, settings: dict, message: str) -> None:
    with pytest.raises((ConfigError, UserError), match=message):
        hw.train("chess", [games_file(tmp_path, 8)], settings, run=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_the_recipes_need_data() -> None:
    with pytest.raises(UserError, match="pass your own with --data"):
        hw.train("chess", progress=False)
    assert find_recipe("chess").domain == "chess"
