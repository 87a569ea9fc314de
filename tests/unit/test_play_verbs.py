"""One move of a game and one action of an episode: what the player or the rollout of the same model would do."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("gymnasium", reason="gymnasium is not installed: pip install 'headway[rl]'")
chess = pytest.importorskip("chess", reason="chess is not installed: pip install 'headway[chess]'")

import robot_data  # noqa: E402
import trajectory_data  # noqa: E402
from chess_data import MATE  # noqa: E402
from tiny_models import stirred  # noqa: E402

from headway.app.cli import main as cli  # noqa: E402
from headway.config import override  # noqa: E402
from headway.domains import recipe as find_recipe  # noqa: E402
from headway.domains.agents import predictors as agents  # noqa: E402
from headway.domains.agents.agent_policy import Agents  # noqa: E402
from headway.domains.chess import predictors as chess_verbs  # noqa: E402
from headway.domains.chess.boards import board_from_fen  # noqa: E402
from headway.domains.chess.games import game_state, play_moves  # noqa: E402
from headway.domains.chess.limits import SearchLimits  # noqa: E402
from headway.domains.robotics import predictors as robots  # noqa: E402
from headway.domains.robotics.policy import RobotPlayer  # noqa: E402
from headway.domains.trajectories import predictors as trajectories  # noqa: E402
from headway.domains.trajectories.trajectory_player import Actor  # noqa: E402
from headway.environments.rollouts import Player, play_episodes  # noqa: E402
from headway.environments.vector_env import VectorEnv  # noqa: E402
from headway.errors import UserError  # noqa: E402
from headway.formats.native import save_model  # noqa: E402
from headway.formats.usage import Usage  # noqa: E402
from headway.learn.recipe import open_task  # noqa: E402
from headway.nn.models import build  # noqa: E402
from headway.nn.models.presets import squares  # noqa: E402

SEED = 2_000_003


def handle(module: Any, directory: Path) -> Any:
    """What predictors take of a model."""
    return SimpleNamespace(module=module.eval(), directory=directory, usage=Usage(), recipe=None)


@pytest.fixture(scope="module")
def player() -> Any:
    return handle(build(squares(16, 1, 2), seed=1), Path("chess"))


def played(make: Callable[[Any], Player], environment: str) -> Any:
    """The first episode of a player, as (states, actions, rewards)."""
    episodes: list[Any] = []
    with VectorEnv(environment, 1) as envs:
        play_episodes(lambda group: make(group), envs, [SEED], record=lambda number, episode: episodes.append(episode))
    return episodes[0]


def check_actions(
    act: Callable[..., Any], episode: Any, seen: Callable[[Any], Any] = lambda state: state, bound: float = np.inf
) -> None:
    """Each step's action, within the environment's bounds and from what was there before it, is that of the episode;
    also with JSON's lists.
    """
    steps, history = list(zip(episode.states, episode.actions, episode.rewards))[:12], list[Any]()
    assert len({str(action) for _, action, _ in steps}) > 1  # else a constant would pass
    for state, action, reward in steps:
        chosen = act(seen(state), history, seed=SEED)
        np.testing.assert_allclose(np.clip(chosen, -bound, bound), action, atol=1e-5)
        history.append((seen(state.tolist()), action.tolist(), float(reward)))


def test_an_agent_acts_as_in_its_rollout(tmp_path: Path) -> None:
    settings = {"task.env": "CartPole-v1", "task.num_envs": 2, "task.steps": 16, "task.context": 3, "task.draw": True}
    recipe = override(find_recipe("ppo"), {**settings, "train.batch_size": 16, "model.width": 16})
    task: Any = open_task(recipe, tmp_path)
    module, codec = stirred(task, recipe, 0.3), task.examples.codec
    codec.save(tmp_path)
    model = handle(module, tmp_path)
    check_actions(partial(agents.act, model), played(lambda group: Agents(module, codec, group), "CartPole-v1"))
    task.examples.close()
    for arguments, message in [
        (([1, 2, 3],), "but this agent takes 4 numbers"),
        (([1, 2, 3, float("nan")],), "but this agent takes 4 numbers"),
        (([1, 2, 3, 4], [[1, 2]]), "step 1 of the history is not an observation, an action and a reward"),
        (([1, 2, 3, 4], [], 5.0), "is an agent without target returns"),
        (([1, 2, 3, 4], [], None, "reach"), "is an agent for one environment"),
    ]:
        with pytest.raises(UserError, match=message):
            agents.act(model, *arguments)


@pytest.mark.parametrize("environment", ["CartPole-v1", "Pendulum-v1"])
def test_a_trajectory_model_acts_as_in_its_rollout(environment: str, tmp_path: Path) -> None:
    is_choice = environment == "CartPole-v1"
    path = trajectory_data.saved(tmp_path, discrete=is_choice, states=4 if is_choice else 3)
    settings = {"task.env": environment, "task.draw": is_choice}
    task = trajectory_data.opened(path, tmp_path, **settings)
    module, codec = stirred(task, trajectory_data.tiny(**settings), 0.3), task.examples.codec
    codec.save(tmp_path)
    model = handle(module, tmp_path)
    episode = played(lambda group: Actor(module, codec, [9.0] * len(group), group), environment)
    check_actions(partial(trajectories.act, model, target_return=9.0), episode, bound=2.0)
    state, longest = [0.1] * codec.shape[0], module.config.embed.timesteps
    assert np.shape(trajectories.act(model, state)) == (() if is_choice else (1,))
    for arguments, message in [
        (([1, 2],), f"but this model takes {codec.shape[0]} numbers"),
        ((state, [(state, "left", 1.0)]), "the action left is not one of"),
        ((state, [(state, 7 if is_choice else [1, 2], 1.0)]), "is not one of"),
        ((state, [(state, 0, 1.0)] * longest), f"the history has {longest} steps, but the model has {longest}"),
        ((state, [], None, "reach"), "is a model for one environment"),
    ]:
        with pytest.raises(UserError, match=message):
            trajectories.act(model, *arguments)


def test_a_robot_acts_as_in_its_rollout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    robot_data.given(monkeypatch, robot_data.made())
    task = robot_data.opened(tmp_path, **{"task.execute": 2, "task.ensemble": 0.5})
    module, codec = robot_data.built(task), task.examples.codec
    codec.save(tmp_path)
    model = handle(module, tmp_path)
    with VectorEnv(robot_data.REACH, 1) as envs:
        make = lambda group: RobotPlayer(module, codec, envs, "reach", group)  # noqa: E731
        episode = played(make, robot_data.REACH)
    check_actions(partial(robots.act, model), episode, lambda state: {"state": state}, 1.0)
    assert codec.environment_names == [robot_data.REACH]
    with pytest.raises(UserError, match="no target returns"):
        robots.act(model, {"state": [0, 0, 0, 0]}, target_return=1.0)
    with pytest.raises(UserError, match="the observation is a list; pass a mapping"):
        robots.act(model, [0, 0, 0, 0])


def test_a_move_is_the_players(player: Any) -> None:
    moves = ["e4", "e7e5", "Nf3"]
    board = play_moves("", moves)
    for nodes, search in ((0, "policy"), (40, "puct")):
        thought = chess_verbs.player(player, search).think(board, SearchLimits(nodes=max(1, nodes)))
        move = chess_verbs.move(player, moves=moves, nodes=nodes, top=3)
        assert move.uci == thought.move.uci()
        assert move.outcome == pytest.approx(thought.lines[0].outcome.tolist())
        total = sum(line.visits for line in thought.lines)
        shares = sorted((line.visits / total for line in thought.lines), reverse=True)
        assert [candidate.probability for candidate in move.candidates] == pytest.approx(shares[:3])
        after = board.copy()
        after.push(thought.move)
        assert move.game == game_state(after)
        assert move.game.moves == ["e4", "e5", "Nf3", board.san(thought.move)]
        assert move.game.legal == {each.uci(): after.san(each) for each in after.legal_moves}
    mate = chess_verbs.move(player, MATE, nodes=50, temperature=5.0, seed=1)
    assert (mate.san, mate.game.end, mate.game.result) == ("Ra8#", "checkmate", "1-0")


def test_a_temperature_samples_by_the_probabilities(player: Any) -> None:
    moves = [chess_verbs.move(player, nodes=0, temperature=1.0, top=20, seed=seed) for seed in range(150)]
    shares = {candidate.san: candidate.probability for candidate in moves[0].candidates}
    assert sum(shares.values()) == pytest.approx(1, abs=1e-4)
    counts = {san: sum(move.san == san for move in moves) for san in shares}
    best = max(shares, key=lambda san: shares[san])
    assert counts[best] / 150 == pytest.approx(shares[best], abs=4 * (shares[best] / 150) ** 0.5)
    assert len([san for san in counts if counts[san]]) > 5
    cold = {chess_verbs.move(player, nodes=0, temperature=0.001, seed=seed).san for seed in range(20)}
    assert cold == {best}
    assert moves[3] == chess_verbs.move(player, nodes=0, temperature=1.0, top=20, seed=3)


@pytest.mark.parametrize(
    ("position", "moves", "end", "result"),
    [
        ("", ["f3", "e5", "g4", "Qh4"], "checkmate", "0-1"),
        ("7k/5Q2/6K1/8/8/8/8/8 b - - 0 1", [], "stalemate", "1/2-1/2"),
        ("7k/8/6K1/8/8/8/8/8 w - - 0 1", [], "insufficient material", "1/2-1/2"),
        ("7k/8/5K2/8/8/8/8/R7 w - - 99 80", ["Ra2"], "fifty moves", "1/2-1/2"),
        ("", ["Nf3", "Nf6", "Ng1", "Ng8"] * 2, "threefold repetition", "1/2-1/2"),
        ("", ["Nf3", "Nf6", "Ng1", "Ng8", "Nf3", "Nf6", "Ng1"], None, None),
    ],
)
def test_how_games_end(position: str, moves: list[str], end: str | None, result: str | None, player: Any) -> None:
    state = game_state(play_moves(position, moves))
    assert (state.end, state.result) == (end, result)
    assert bool(state.legal) == (end is None)
    if end is not None:
        with pytest.raises(UserError, match=f"the game is over .{end}"):
            chess_verbs.move(player, position, moves, nodes=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"moves": ["e5"]}, "'e5' is not a legal move"),
        ({"moves": "e" * 10_000}, "move 1 has 10,000 characters; write moves as e2e4"),
        ({"moves": ["e4"] * 3000}, "the game has 3,000 moves; pass at most 2,048"),
        ({"moves": [4]}, "move 1 of 1 is 4"),
        ({"position": "nonsense"}, "FEN 'nonsense'"),
        ({"position": "x" * 10_000}, "has 10,000 characters, but a FEN"),
        ({"position": "8/8/8/8/8/8/8/8 w - - 0 1"}, "is not a chess position"),
        ({"nodes": -1}, "nodes is -1"),
        ({"temperature": float("nan")}, "choose numbers of at least 0"),
        ({"top": 0}, "top 0"),
    ],
)
def test_what_is_no_game(arguments: dict[str, Any], message: str, player: Any) -> None:
    with pytest.raises(UserError, match=message):
        chess_verbs.move(player, **arguments)


def test_the_command(player: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "chess").mkdir()
    save_model(player.module, player.module.config, tmp_path / "chess")
    assert cli.main(["chess", "move", str(tmp_path / "chess"), "e4", "e5", "--nodes", "0", "--json"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    move = chess_verbs.move(player, moves=["e4", "e5"], nodes=0)
    assert (report["uci"], report["game"]["position"]) == (move.uci, move.game.position)
    assert report["candidates"][0]["san"] == move.candidates[0].san
    assert cli.main(["chess", "move", str(tmp_path / "chess"), "--position", MATE]) == 0
    assert "Ra8# (a1a8)" in (printed := capsys.readouterr().out)
    assert "checkmate: 1-0" in printed
    assert cli.main(["chess", "move", str(tmp_path / "chess"), "e5"]) == 2
    assert "'e5' is not a legal move" in capsys.readouterr().err
    assert board_from_fen(MATE).turn == chess.WHITE
