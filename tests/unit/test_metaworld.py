"""Meta-World: tasks, seeds, experts, cameras, and demonstrations collected from the command line."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headway.app.cli import main as cli
from headway.data.episode_files import read_demonstrations
from headway.environments.recording import Mixture, Recorder, SuccessFilter, default_policy, open_policy
from headway.environments.vector_env import VectorEnv, make_environment
from headway.errors import UserError

pytest.importorskip("metaworld", reason="metaworld is not installed: pip install 'headway[robotics]'")
REACH = "metaworld/reach-v3"


def played(copies: VectorEnv, seed: int, steps: int, row: int = 0) -> list[np.ndarray]:
    """States of an episode: half of it the expert's, half of it random."""
    expert, random = open_policy("expert", copies.spaces, copies.name), np.random.default_rng(seed)
    assert expert is not None
    states = [copies.reset(row, seed)]
    for step in range(steps):
        action = expert(states[-1][None])[0] if 2 * step < steps else copies.spaces.random(random)
        states.append(copies.step(row, action).state)
    return states


@pytest.mark.parametrize("name", ["reach", "drawer-open", "door-open", "button-press-topdown", "window-open"])
def test_a_seed_fixes_start_and_goal_bit_for_bit(name: str) -> None:
    """Whatever was played before; and seeds that differ are other starts, which are drawn anew without end."""
    with VectorEnv(f"metaworld/{name}-v3", 2) as copies:
        assert (copies.spaces.shape, copies.spaces.action_size, copies.horizon, copies.frame_rate) == (
            (39,),
            4,
            500,
            80,
        )
        fresh = played(copies, 7, 30)
        played(copies, 1, 40, row=1)
        np.testing.assert_array_equal(played(copies, 7, 30, row=1), fresh)
        starts = {copies.reset(0, seed).tobytes() for seed in range(60)}
    assert len(starts) == 60  # and not 50, which MT1 would draw once


def test_the_goal_is_part_of_the_state() -> None:
    environment = make_environment(REACH)
    seen, _ = environment.reset(seed=3)
    np.testing.assert_array_equal(seen[-3:], environment.unwrapped._target_pos)
    assert environment.observation_space.shape == (39,)


def test_the_first_image_shows_the_goal_of_this_episode() -> None:
    environment = make_environment(REACH)
    for seed in (3, 4):
        state, _ = environment.reset(seed=seed)
        np.testing.assert_allclose(environment.unwrapped.data.site("goal").xpos, state[-3:], atol=1e-6)


def test_experts_do_their_tasks_and_say_so() -> None:
    with VectorEnv(REACH, 1) as copies:
        expert = open_policy("expert", copies.spaces, REACH)
        assert expert is not None
        state, successes = copies.reset(0, 11), list[bool | None]()
        while not (successes and successes[-1]) and len(successes) < 150:
            step = copies.step(0, expert(state[None])[0])
            state, successes = step.state, [*successes, step.success]
    assert successes[0] is False
    assert successes[-1] is True
    with VectorEnv("CartPole-v1", 1) as copies:
        copies.reset(0, 0)
        assert copies.step(0, 1).success is None


def test_all_fifty_tasks_have_an_expert() -> None:
    from headway.environments.metaworld import Expert, task_names

    names = task_names()
    assert len(names) == 50
    for name in names:
        Expert(name.removeprefix("metaworld/"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("metaworld/reach-v4", "there is no environment 'metaworld/reach-v4'; did you mean 'metaworld/reach-v3'"),
        ("metaworld/door-opne-v3", "did you mean 'metaworld/door-open-v3'"),
    ],
)
def test_tasks_that_there_are_not(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        VectorEnv(name, 1)


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "metaworld.env_dict", None)
    with pytest.raises(UserError, match=r"need the package metaworld .*pip install 'headway\[robotics\]'"):
        make_environment(REACH)


def test_other_environments_have_no_expert() -> None:
    with VectorEnv("CartPole-v1", 1) as copies, pytest.raises(UserError, match="there is no expert for 'CartPole-v1'"):
        open_policy("expert", copies.spaces, "CartPole-v1")
    assert (default_policy("CartPole-v1"), default_policy(REACH)) == ("random", "expert")


def test_only_successes_are_kept_and_failures_are_replaced() -> None:
    """Half of the actions by chance, within few steps: some episodes fail, and others are played in their place."""
    with VectorEnv(REACH, 1) as copies:
        expert = open_policy("expert", copies.spaces, REACH)
        recorder = Recorder(copies, [Mixture(expert, 0.5)], 3, 75, SuccessFilter(after=4))
        recorder.run(4, 1)
        assert (len(recorder.finished), len(recorder.episodes())) == (4, 4)
        assert recorder.failed > 0
        assert max(recorder.finished) == 3 + recorder.failed
        for number, episode in recorder.finished.items():
            copies.reset(0, 3 + number)
            done = [copies.step(0, action).success for action in episode.actions]
            after = len(done) - 1 - done.index(True)
            assert after == 4 or (after < 4 and len(done) == 75)
        hopeless = Recorder(copies, [Mixture(None, 0.0)], 0, 2, SuccessFilter())
        with pytest.raises(UserError, match="in 0 of 4 episodes; use a better policy"):
            hopeless.run(1, 1)
    assert hopeless.failed == 4


def drawn_or_skipped(name: str, **given: Any) -> VectorEnv:
    try:
        return VectorEnv(name, 2, **given)
    except UserError as error:
        pytest.skip(f"no graphics library for MuJoCo here: {error}")


def test_cameras_show_each_copy() -> None:
    cameras = ("corner2", "gripperPOV")
    with drawn_or_skipped(REACH, cameras=cameras, size=(32, 48)) as copies:
        copies.reset(0, 0)
        copies.reset(1, 1)
        one, other = copies.images(0), copies.images(1)
        again = copies.images(0)
    for name in cameras:
        assert (one[name].shape, one[name].dtype) == ((32, 48, 3), np.uint8)
        assert one[name].std() > 10
        assert (one[name] != other[name]).any()
        np.testing.assert_array_equal(one[name], again[name])
    with drawn_or_skipped(REACH, cameras=cameras[:1], size=(32, 48)) as later:  # while `copies` is still alive
        later.reset(0, 0)
        np.testing.assert_array_equal(later.images(0)["corner2"], one["corner2"])


def test_the_robot_is_shown_the_right_way_up() -> None:
    """Above the table there is a wall of one grey, below it a floor of tiles."""
    with drawn_or_skipped(REACH, cameras=("corner2",), size=(64, 64)) as copies:
        copies.reset(0, 0)
        seen = copies.images(0)["corner2"]
    above, below = (part.std(axis=(0, 1)).max() for part in (seen[:8], seen[-8:]))
    assert (above, below > 10) == (0, True)


def test_cameras_that_there_are_not() -> None:
    for name, cameras, size, message in (
        (REACH, ("corner9",), (32, 32), "has no camera 'corner9'; did you mean 'corner"),
        (REACH, ("corner2",), (0, 32), "images of 0 x 32 pixels cannot be rendered"),
        ("CartPole-v1", ("corner2",), (32, 32), "'CartPole-v1' does not use MuJoCo and has no cameras"),
    ):
        with pytest.raises(UserError, match=message):
            VectorEnv(name, 1, cameras=cameras, size=size)


def test_mujoco_warns_in_the_log_and_litters_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    with caplog.at_level(logging.DEBUG, "headway.environments.factory"):
        for name in ("Hopper-v5", REACH):
            environment = make_environment(name)
            environment.reset(seed=0)
            environment.unwrapped.data.qvel[:] = np.nan
            environment.step(environment.action_space.sample())
    assert list(tmp_path.iterdir()) == []
    assert sum("unstable" in record.getMessage() for record in caplog.records) >= 2


def said(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_collecting_several_tasks_with_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drawn_or_skipped(REACH, cameras=("corner2",), size=(32, 32)).__exit__()
    command = ["data", "collect", REACH, "metaworld/window-open-v3", "--episodes", "2", "--horizon", "99"]
    command += ["--cameras", "gripperPOV", "--size", "16", "24", "--out", str(tmp_path / "arm"), "--json"]
    assert cli.main(command) == cli.DONE
    rows = said(capsys)["tasks"]
    assert [(row["environment"], row["episodes"], row["success_rate"] > 0) for row in rows] == [
        (REACH, 2, True),
        ("metaworld/window-open-v3", 2, True),
    ]
    found = read_demonstrations([tmp_path / "arm"], tmp_path / "cache")
    assert (found.task_names, found.tasks.tolist(), found.rate) == (("reach", "window open"), [0, 0, 1, 1], 80.0)
    assert found.environments == (REACH, "metaworld/window-open-v3")
    assert len(found.actions) == sum(row["steps"] for row in rows)
    with VectorEnv(REACH, 1, cameras=("gripperPOV",), size=(16, 24)) as copies:
        np.testing.assert_array_equal(copies.reset(0, 1), found.states[found.starts[1]])
        seen = found.cameras["gripperPOV"].read(found.starts[1:2])[0].astype(int)
        assert np.abs(seen - copies.images(0)["gripperPOV"]).mean() < 12
    assert sorted(path.name for path in tmp_path.iterdir()) == ["arm", "cache"]


def test_an_interrupt_keeps_what_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step, calls = VectorEnv.step, iter(range(10_000))

    def interrupted(self: VectorEnv, row: int, action: Any) -> Any:
        if next(calls) == 250:
            raise KeyboardInterrupt
        return step(self, row, action)

    monkeypatch.setattr(VectorEnv, "step", interrupted)
    out = tmp_path / "arm"
    assert cli.main(["data", "collect", REACH, "--episodes", "50", "--out", str(out)]) == cli.INTERRUPTED
    found = read_demonstrations([out], tmp_path / "cache")
    assert f"{len(found)} finished episodes are in {out}" in capsys.readouterr().err
    assert len(found) > 1


@pytest.mark.parametrize(("package", "extra"), [("pyarrow.parquet", "robotics"), ("av", "rl")])
def test_packages_are_asked_for_before_work(
    package: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(VectorEnv, "step", lambda *given: 1 / 0)
    out = tmp_path / "arm"
    assert cli.main(["data", "collect", REACH, "--cameras", "corner2", "--out", str(out)]) == cli.USER_ERROR
    assert f"pip install 'headway[{extra}]'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([REACH, "--cameras", "corner2", "--out", "a.npz"], "a.npz cannot store images; pass a folder"),
        ([REACH, "metaworld/door-open-v3", "--out", "a.npz"], "can store only one environment, not 2"),
        ([REACH, REACH, "--out", "a"], "is listed twice"),
        ([REACH, "--cameras", "corner2", "--size", "33", "32", "--out", "a"], "videos need an even height and width"),
        (["CartPole-v1", "--out", "a"], "actions are 2 choices in 'CartPole-v1'; use an .npz file"),
        ([REACH, "--policy", "clever", "--out", "a"], "unknown policy 'clever'"),
    ],
)
def test_collecting_what_does_not_fit(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["data", "collect", *words]) == cli.USER_ERROR
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
