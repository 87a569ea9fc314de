"""Files beside a model that say how its inputs are scaled are refused where their values do not fit together."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headway.data.series import Calendar
from headway.domains.agents.agent_policy import AgentCodec
from headway.domains.forecast.task import read_codec as read_windows
from headway.domains.robotics.robot_codec import RobotCodec
from headway.domains.trajectories.trajectory_player import TrajectoryCodec
from headway.errors import UserError
from headway.formats.out_of_distribution import read_training_statistics


def _windows(folder: Path) -> Any:
    return read_windows(folder, Calendar("number", 1, ""))


WINDOWS = {"context": 8, "horizon": 2, "season": 1, "patch": 4, "unit": "number", "step": 1}
ROBOT = {
    "recorded": 4,
    "mean": [0, 0],
    "std": [1, 1],
    "shift": [0],
    "scale": [1],
    "names": ["reach"],
    "environments": [""],
    "words": [],
    "cameras": [{"name": "top", "recorded": [8, 8], "read": [8, 8]}],
    "execute": 1,
    "ensemble": None,
    "longest": 9,
}
TRAJECTORIES = {"shape": [2], "mean": [0, 0], "std": [1, 1], "scale": 1, "choices": 2, "reach": [], "context": 4}
TRAJECTORIES |= {"target": 1}
AGENT = {"states": 2, "choices": None, "first": 0, "low": [-1], "high": [None], "action_shape": [1], "context": 1}
AGENT |= {"environment": "CartPole-v1"}
FAMILIAR = {"alike": {"middle": [0, 0], "scale": [[1, 0], [0, 1]], "limit": 1, "contrast": 0}}
FILES: dict[str, tuple[dict[str, Any], Callable[[Path], Any]]] = {
    "forecast.json": (WINDOWS, _windows),
    "robotics.json": (ROBOT, RobotCodec.read),
    "trajectories.json": (TRAJECTORIES, TrajectoryCodec.read),
    "agent.json": (AGENT, AgentCodec.read),
    "familiar.json": (FAMILIAR, read_training_statistics),
}


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("forecast.json", {"patch": 0}),
        ("forecast.json", {"patch": 3}),
        ("forecast.json", {"context": -8}),
        ("forecast.json", {"horizon": 1 << 40}),
        ("forecast.json", {"errors": [[0, 0], [0]]}),
        ("forecast.json", {"errors": [[0]] * 5}),
        ("forecast.json", {"spread": 0}),
        ("forecast.json", {"line": "season"}),
        ("robotics.json", {"std": [1]}),
        ("robotics.json", {"recorded": 1}),
        ("robotics.json", {"scale": [0]}),
        ("robotics.json", {"environments": []}),
        ("robotics.json", {"execute": 0}),
        ("robotics.json", {"rate": -1}),
        ("robotics.json", {"cameras": [{"name": "top", "recorded": [8, 8], "read": [0, 8]}]}),
        ("trajectories.json", {"mean": [0]}),
        ("trajectories.json", {"std": [0, 1]}),
        ("trajectories.json", {"shape": [2, 2]}),
        ("trajectories.json", {"shape": []}),
        ("trajectories.json", {"choices": -1}),
        ("trajectories.json", {"choices": None}),
        ("trajectories.json", {"scale": 0}),
        ("trajectories.json", {"context": 0}),
        ("agent.json", {"high": []}),
        ("agent.json", {"states": 0}),
        ("agent.json", {"choices": 0}),
        ("familiar.json", {"alike": {**FAMILIAR["alike"], "scale": [[1, 0]]}}),
        ("familiar.json", {"alike": {**FAMILIAR["alike"], "scale": [[1, 0], [0]]}}),
    ],
)
def test_values_that_do_not_fit_together_are_refused(file: str, changes: dict[str, Any], tmp_path: Path) -> None:
    values, read = FILES[file]
    (tmp_path / file).write_text(json.dumps(values))
    assert read(tmp_path) is not None
    (tmp_path / file).write_text(json.dumps({**values, **changes}))
    with pytest.raises(UserError, match=rf"^{file}(:| is inconsistent)") as caught:
        read(tmp_path)
    assert str(caught.value).endswith(("restore it from a copy", "did you mean 'mean'?"))


@pytest.mark.parametrize("file", FILES)
def test_numbers_that_are_none_are_refused(file: str, tmp_path: Path) -> None:
    values, read = FILES[file]
    name = {"agent.json": "low", "familiar.json": "alike", "forecast.json": "spread"}.get(file, "mean")
    bad: Any = {"alike": {**FAMILIAR["alike"], "middle": [float("nan"), 0]}, "spread": float("inf")}
    (tmp_path / file).write_text(json.dumps({**values, name: bad.get(name, [1e300, 0])}))
    with pytest.raises(UserError, match=r"is (nan|inf|1e\+300); use a (finite number|number from -1e\+30 to 1e\+30)"):
        read(tmp_path)
