"""Chess, actions and episodes over HTTP: the results of the methods, and processes that end with their request."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("gymnasium", reason="gymnasium is not installed: pip install 'headway[rl]'")
pytest.importorskip("chess", reason="chess is not installed: pip install 'headway[chess]'")

import robot_data
from served import Resident
from serving import server
from starlette.testclient import TestClient
from tiny_models import stirred

import headway as hw
from headway.app.cli import rollout
from headway.app.cli.options import Parser, add_common
from headway.config import override
from headway.domains import recipe as find_recipe
from headway.errors import UserError
from headway.formats.open import OpenedModel
from headway.formats.usage import Usage
from headway.learn.recipe import open_task
from headway.nn.models import build
from headway.nn.models.presets import squares
from headway.serve import play
from headway.serve.app import create_app
from headway.serve.batcher import Batcher
from headway.serve.interfaces import ReadyModel, ServerSettings
from headway.serve.verbs import plain


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, hw.Model]:
    """An untrained chess model, agent, and robot policy with a camera."""
    folder = tmp_path_factory.mktemp("models")
    settings = {"task.env": "CartPole-v1", "task.num_envs": 2, "task.steps": 16, "train.batch_size": 16}
    recipe = override(find_recipe("ppo"), {**settings, "model.width": 16})
    agent: Any = open_task(recipe, folder)
    modules = {"agent": stirred(agent, recipe, 0.3), "chess": build(squares(16, 1, 2), seed=1).eval()}
    with pytest.MonkeyPatch.context() as patch:
        robot_data.given(patch, robot_data.made(cameras=("top",)))
        robot_settings = {"task.episodes": 0, "task.split.validation": 0.3, **robot_data.PATCHES}
        robot = robot_data.opened(folder, **robot_settings)
        modules["robot"] = robot_data.built(robot, **robot_settings)
    for name, task in {"agent": agent, "robot": robot}.items():
        (folder / name).mkdir()
        task.examples.codec.save(folder / name)
    agent.examples.close()
    return {name: hw.Model(OpenedModel(module, Usage(), None), folder / name) for name, module in modules.items()}


@pytest.fixture(scope="module")
def served(models: dict[str, hw.Model]) -> Resident:
    return Resident([ReadyModel(name, model, None, Batcher(name)) for name, model in models.items()])


@pytest.fixture(scope="module")
def client(served: Resident) -> Iterator[TestClient]:
    app = create_app(served, ServerSettings(log=False))
    with TestClient(app, base_url="http://localhost", raise_server_exceptions=False) as client:
        yield client


def test_a_move_is_the_methods(client: TestClient, models: dict[str, hw.Model]) -> None:
    arguments = {"moves": ["e4", "e5"], "nodes": 20, "top": 3}
    move = plain(models["chess"].move(**arguments))
    game = move.pop("game")
    answer = client.post("/v1/chess/move", json={"model": "chess", **arguments})
    assert answer.json() == {"move": move, "game": game, "model": "chess"}
    after = [*arguments["moves"], move["uci"]]
    state = client.post("/v1/chess/move", json={"moves": after, "play": False}).json()  # needs no model
    assert state == {"move": None, "game": game, "model": ""}


def test_methods_of_a_connected_model(served: Resident, models: dict[str, hw.Model]) -> None:
    with server(served, ServerSettings(log=False)) as url:
        chess, agent, robot = (hw.connect(url, model=name) for name in ("chess", "agent", "robot"))
        arguments: dict[str, Any] = {"moves": iter(["e4", "e5"]), "nodes": 0, "temperature": 1.0, "seed": 3}
        assert chess.move(**arguments) == models["chess"].move(**{**arguments, "moves": ["e4", "e5"]})
        assert chess.verbs == ["move"]
        with pytest.raises(UserError, match="'e5' is not a legal move"):
            chess.move(moves="e5")
        state = robot_data.np.array([0.1, -0.2, 0.03, 0.4], robot_data.np.float32)
        history = [(state, 1, 1.0)]
        assert agent.act(state, history) == models["agent"].act(state, history)
        image = robot_data.picture(state, (24, 24))
        observation = {"state": state, "cameras": {"top": image}}
        action = robot.act(observation, [(observation, state[:2], 0.0)])
        wanted = models["robot"].act(observation, [(observation, state[:2], 0.0)])
        robot_data.np.testing.assert_allclose(action, wanted, atol=1e-6)
        assert robot_data.np.shape(action) == (2,)


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("chess/move", {"model": "agent"}, "is an agent, which cannot play a move of chess"),
        ("chess/move", {"model": "chess", "nodes": 10_000}, "Expected `int` <= 2000 at nodes"),
        ("chess/move", {"model": "chess", "moves": ["f3", "e5", "g4", "Qh4"]}, "the game is over (checkmate, 0-1)"),
        ("chess/move", {"play": False, "position": "x"}, "FEN 'x'"),
        ("chess/move", {"play": False, "moves": ["e" * 10_000]}, "move 1 has 10,000 characters"),
        ("act", {"model": "chess", "observation": []}, "is a chess model, which cannot choose an action"),
        ("act", {"model": "agent", "observation": [1, [2], 3]}, "is not lists of numbers"),
        ("act", {"model": "agent", "observation": [0] * 4, "history": [[[0] * 4, [1, [2]], 0]]}, "is not lists of"),
        ("act", {"model": "robot", "observation": {"state": [0, [1]]}}, "is not lists of numbers"),
        ("act", {"model": "robot", "observation": {"state": [0] * 4, "cameras": 5}}, "is not lists of numbers"),
        ("act", {"model": "agent", "observation": {"a": 1}}, "but this agent takes 4 numbers"),
        ("act", {"model": "agent", "observation": [0] * 4, "history": [[[0] * 4, 1]]}, "Expected `array` of length 3"),
        ("act", {"model": "agent", "observation": [0] * 4, "history": [[0, 0, 0]] * 10_001}, "has 10,001 steps"),
        ("act", {"model": "robot", "observation": [0] * 4}, "the observation is a list; pass a mapping"),
        ("act", {"model": "robot", "observation": {"state": [0] * 4, "cameras": {"top": "x"}}}, "no files or URLs are"),
        ("act", {"model": "robot", "observation": {"state": [0] * 4}}, "no image from camera 'top'"),
        ("episodes", {"model": "chess"}, "is a chess model, which cannot play episodes"),
        ("episodes", {"model": "agent", "environment": "os:system"}, "agent does not play in 'os:system'"),
        ("episodes", {"model": "agent", "environment": "x" * 10_000}, "agent does not play in 'xxx"),
        ("episodes", {"model": "agent", "seed": -1}, "Expected `int` >= 0 at seed"),
    ],
)
def test_bad_requests(client: TestClient, path: str, body: dict[str, Any], message: str) -> None:
    answer = client.post(f"/v1/{path}", json=body)
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]


def test_an_error_inside_is_not_the_observations(
    client: TestClient, models: dict[str, hw.Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ValueError("inside")

    monkeypatch.setattr(type(models["agent"]), "act", fail, raising=False)
    answer = client.post("/v1/act", json={"model": "agent", "observation": [0] * 4})
    assert answer.status_code == 500
    assert "observation" not in answer.json()["error"]["message"]


def test_a_negative_target_return_is_the_commands(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    async def record(arguments: Any) -> Any:
        command.extend(arguments)
        raise UserError("recorded")

    command: list[str] = []
    monkeypatch.setattr(play, "_run_command", record)
    client.post("/v1/episodes", json={"model": "agent", "target_return": -5})
    parser = Parser("rollout", "play", "")
    rollout.arguments(parser)
    add_common(parser)
    assert parser.parse_args(command[1:]).target_return == [-5.0]


def test_environments(client: TestClient) -> None:
    assert client.get("/v1/environments/agent").json() == {"environments": ["CartPole-v1"], "target_return": None}
    assert client.get("/v1/environments/robot").json()["environments"] == [robot_data.REACH]
    assert client.get("/v1/environments/chess").status_code == 400
    assert client.get("/v1/environments/nothing").status_code == 404


def test_a_few_episodes_at_once(client: TestClient) -> None:
    for _ in range(2):
        assert play._episode_slots.acquire(blocking=False)
    try:
        answer = client.post("/v1/episodes", json={"model": "agent"})
        assert (answer.status_code, answer.headers["Retry-After"]) == (429, "10")
    finally:
        play._episode_slots.release(2)


@pytest.mark.parametrize("ends", ["time", "client"])
def test_the_process_of_an_episode_ends_with_its_request(ends: str, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[asyncio.subprocess.Process] = []
    start = asyncio.create_subprocess_exec

    async def record(*command: str, **options: Any) -> Any:
        started.append(await start("sleep", "100", **options))
        return started[-1]

    monkeypatch.setattr(asyncio, "create_subprocess_exec", record)
    monkeypatch.setattr(play, "_EPISODE_SECONDS", 0.1 if ends == "time" else 100.0)

    async def run() -> None:
        task = asyncio.create_task(play._run_command(["rollout"]))
        await asyncio.sleep(0.2)
        if ends == "client":
            task.cancel()
        await task

    with pytest.raises(UserError if ends == "time" else asyncio.CancelledError):
        asyncio.run(run())
    with pytest.raises(ProcessLookupError):
        os.kill(started[0].pid, 0)
