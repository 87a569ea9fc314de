"""Environments by name, side by side, recorded by several policies, and drawn."""

from __future__ import annotations

import sys
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from own_module import own_module

from headway.data.episode_files import read_episodes
from headway.data.video import VideoWriter, check_video_path
from headway.environments.factory import check_environment_name, spaces_of
from headway.environments.recording import Mixture, Recorder, open_policy
from headway.environments.rollouts import (
    FilmConfig,
    PlayedEpisodes,
    Player,
    film_config,
    frame_sampling,
    open_film,
    parallel_groups,
    play_episodes,
    return_scores,
    with_caption,
)
from headway.environments.vector_env import VectorEnv, make_environment
from headway.errors import UserError
from headway.learn.report.pictures import FrameSampler, strip

gymnasium = pytest.importorskip("gymnasium", reason="gymnasium is not installed: pip install 'headway[rl]'")

OWN = '''
import gymnasium
import numpy as np

class Walk(gymnasium.Env):
    """Three steps to the right; the third ends the episode."""
    metadata = {"render_fps": 5}

    def __init__(self, render_mode=None):
        self.render_mode = render_mode
        self.observation_space = gymnasium.spaces.Dict(
            {"place": gymnasium.spaces.Discrete(4), "wind": gymnasium.spaces.Box(-1, 1, (2,), np.float32)}
        )
        self.action_space = gymnasium.spaces.Discrete(2, start=5)

    def _seen(self):
        return {"place": self.place, "wind": self.wind}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.wind = 0, self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return self._seen(), {}

    def step(self, action):
        assert action in (5, 6)
        self.place = min(3, self.place + (action == 6))
        return self._seen(), 1.0 * (action == 6), self.place == 3, False, {}

    def render(self):
        return np.full((21, 31, 3), 50 * self.place, np.uint8)

class Plain(Walk):
    def __init__(self):
        super().__init__()

class Nowhere(Walk):
    def step(self, action):
        return self._seen(), float("nan"), False, False, {}

class Several(Walk):
    def __init__(self):
        super().__init__()
        self.action_space = gymnasium.spaces.MultiDiscrete([2, 2])

def broken():
    raise ValueError("no such thing")

def act(states):
    return (states[:, 1] >= 0).astype(int)

def wrong(states):
    return np.full(len(states), 7)

number = 3
nothing = dict
'''


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a module of the user's, from which commands run."""
    return own_module(tmp_path, "walks", OWN, monkeypatch)


def recorded(name: str, mixtures: list[Mixture], episodes: int = 7, at_once: int = 3, **given: Any) -> Any:
    with VectorEnv(name, at_once) as copies:
        recorder = Recorder(copies, mixtures, given.get("seed", 0), given.get("horizon"))
        recorder.run(episodes, at_once)
    return recorder.episodes()


def network(path: Path, outputs: int = 2, states: int = 4) -> Path:
    random = np.random.default_rng(0)
    arrays = {"weight_0": random.normal(size=(8, states)), "bias_0": np.zeros(8)}
    arrays |= {"weight_1": random.normal(size=(outputs, 8)), "bias_1": np.zeros(outputs)}
    np.savez(path, **arrays, mean=np.zeros(states), std=np.ones(states))
    return path


def test_recording_hangs_on_the_seed_and_the_number_alone() -> None:
    """However many environments stand side by side; and an episode is what gymnasium plays from its seed."""
    one, other = (recorded("CartPole-v1", [Mixture(None, 0.0)], at_once=count) for count in (1, 5))
    for name in ("states", "actions", "rewards", "ends", "cut"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert one.environment == "CartPole-v1"
    assert recorded("CartPole-v1", [Mixture(None, 0.0)], seed=9).keys() != one.keys()
    environment = gymnasium.make("CartPole-v1")
    for start, end, number in zip(one.starts, one.ends, range(7)):
        seen, _ = environment.reset(seed=number)
        for step in range(start, end):
            np.testing.assert_array_equal(seen, one.states[step])
            seen, reward, ended, _, _ = environment.step(one.actions[step])
            assert reward == one.rewards[step]
        assert ended


def test_policies_take_turns_with_their_share_of_chance(tmp_path: Path) -> None:
    with VectorEnv("CartPole-v1", 2) as copies:
        policy = open_policy(str(network(tmp_path / "net.npz")), copies.spaces)
    found = recorded("CartPole-v1", [Mixture(policy, 0.0), Mixture(policy, 0.5), Mixture(None, 0.0)], 9)
    assert policy is not None
    same = [
        float((policy(found.states[start:end]) == found.actions[start:end]).mean())
        for start, end in zip(found.starts, found.ends)
    ]
    assert [share == 1.0 for share in same[::3]] == [True] * 3
    assert 0.4 < np.mean(same[1::3]) < 1.0


def test_numbers_stay_within_bounds_and_are_kept_as_they_were_taken() -> None:
    with VectorEnv("Pendulum-v1", 1) as copies:
        spaces = copies.spaces
    assert (spaces.action_size, spaces.n_actions, spaces.low.tolist(), spaces.high.tolist()) == (1, None, [-2.0], [2.0])
    found = recorded("Pendulum-v1", [Mixture(lambda states: np.full((len(states), 1), 9.0), 0.0)], 2, horizon=5)
    assert found.actions.dtype == np.float32
    assert set(found.actions.ravel().tolist()) == {2.0}
    assert (found.lengths.tolist(), found.cut.tolist()) == ([5, 5], [True, True])


def test_an_environment_of_the_users_own(own: Path) -> None:
    """Parts are laid flat, choices may start anywhere, and an episode without a limit needs one."""
    with VectorEnv("walks:Walk", 1) as copies:
        assert (copies.spaces.shape, copies.spaces.n_actions, copies.frame_rate) == ((6,), 2, 5)
        act = open_policy("walks:act", copies.spaces)
    with pytest.raises(UserError, match=r"has no step limit.*--horizon"):
        recorded("walks:Walk", [Mixture(act, 0.0)])
    found = recorded("walks:Walk", [Mixture(act, 0.0)], horizon=4)
    assert set(found.actions.tolist()) <= {0, 1}
    assert found.states[0].tolist()[:4] == [1.0, 0.0, 0.0, 0.0]
    assert found.environment == "walks:Walk"


def test_what_is_finished_outlives_an_error(own: Path) -> None:
    calls = iter(range(100))

    def act(states: np.ndarray) -> np.ndarray:
        if next(calls) == 10:
            raise UserError("enough")
        return np.ones(len(states), int)

    with VectorEnv("walks:Walk", 2) as copies:
        recorder = Recorder(copies, [Mixture(act, 0.0)], 0, 5)
        with pytest.raises(UserError, match="enough"):
            recorder.run(50, 2)
    assert len(recorder.episodes()) == 6


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("CartPoll-v1", "there is no environment 'CartPoll-v1'; did you mean 'CartPole-v1'"),
        ("CartPole-v7", "did you mean 'CartPole-v1'"),
        ("ALE/Pong-v5", "there is no environment 'ALE/Pong-v5' here .*install its package"),
        ("nomodule:Foo", "the module 'nomodule' cannot be imported"),
        ("walks:Wlak", "the module 'walks' has no 'Wlak'; did you mean 'Walk'"),
        ("walks:number", "is a int, which is not callable"),
        ("walks:nothing", "returns a dict, not a gymnasium.Env"),
        ("walks:broken", "cannot be created .ValueError: no such thing"),
        ("walks:Several", "has the action space MultiDiscrete"),
    ],
)
def test_environments_that_there_are_not(name: str, message: str, own: Path) -> None:
    with pytest.raises(UserError, match=message):
        VectorEnv(name, 1)


def test_a_reward_that_is_no_number_is_told(own: Path) -> None:
    with pytest.raises(UserError, match="returned the reward nan"):
        recorded("walks:Nowhere", [Mixture(None, 0.0)], horizon=3)


def test_no_file_may_name_code(own: Path) -> None:
    assert check_environment_name("CartPole-v1") == "CartPole-v1"
    with pytest.raises(UserError, match=r"its own code.*--env walks:Walk"):
        check_environment_name("walks:Walk")


def test_without_gymnasium_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(UserError, match=r"pip install 'headway\[rl\]'"):
        make_environment("CartPole-v1")


def test_without_mujoco_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*args: Any, **given: Any) -> None:
        raise gymnasium.error.DependencyNotInstalled("MuJoCo is not installed.")

    monkeypatch.setattr(gymnasium, "make", missing)
    with pytest.raises(UserError, match=r"needs a package .MuJoCo is not installed.*headway\[rl\]"):
        make_environment("Hopper-v5")


def test_policies_that_do_not_fit(own: Path) -> None:
    with VectorEnv("CartPole-v1", 1) as copies:
        spaces = copies.spaces
    for name, message in (
        (str(network(own / "a.npz", outputs=3)), "outputs 3 numbers, but the environment has 2 choices"),
        (str(network(own / "b.npz", states=5)), "states of 4 numbers"),
        ("none.npz", "there is no policy none.npz"),
        ("clever", "unknown policy 'clever'"),
        ("walks:number", "is not callable"),
        ("walks:missing", "has no 'missing'"),
    ):
        with pytest.raises(UserError, match=message):
            open_policy(name, spaces)
    wrong = open_policy("walks:wrong", spaces)
    assert wrong is not None
    with pytest.raises(UserError, match="returned action 7; return 0 to 2 - 1"):
        wrong(np.zeros((2, 4)))
    np.savez(own / "c.npz", weight_0=np.array([{}], object), bias_0=np.zeros(2))
    with pytest.raises(UserError, match="Python objects, which can run code"):
        open_policy(str(own / "c.npz"), spaces)


def test_spaces_of_images_and_matrices() -> None:
    box, discrete = gymnasium.spaces.Box, gymnasium.spaces.Discrete

    class Shown:
        observation_space = box(0, 255, (8, 9, 3), np.uint8)
        action_space = box(-1, 1, (2, 2), np.float32)

    found = spaces_of(Shown, "shown")
    assert (found.shape, found.image, found.action_size) == ((8, 9, 3), True, 4)
    assert found.action(np.array([5, 0, 0, 0])).tolist() == [[1.0, 0.0], [0.0, 0.0]]
    Shown.observation_space, Shown.action_space = box(0, 1, (2, 3), np.float64), discrete(3)
    found = spaces_of(Shown, "shown")
    assert found.state(np.ones((2, 3))).shape == (6,)


def test_scores_of_d4rl() -> None:
    def normalised(environment: str, value: float) -> float | None:
        played = PlayedEpisodes(np.full(2, value), np.full(2, 5))
        return return_scores(played, environment).get("return_normalised")

    assert normalised("Hopper-v5", 3234.3) == pytest.approx(100)
    assert normalised("HalfCheetah-v4", -280.178953) == pytest.approx(0)
    assert normalised("CartPole-v1", 3.0) is None


def test_a_film_holds_its_frames(own: Path) -> None:
    av = pytest.importorskip("av", reason="av is not installed: pip install 'headway[rl]'")
    frames = [np.full((21, 31, 3), value, np.uint8) for value in (0, 100, 250)]
    with VideoWriter(own / "a.mp4", rate=5) as made:
        for frame in frames:
            made.add(frame)
    with av.open(str(own / "a.mp4")) as film:
        seen = [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]
    assert len(seen) == 3
    for wanted, found in zip(frames, seen):
        assert found.shape == (20, 30, 3)
        assert abs(float(found.mean()) - float(wanted.mean())) < 8
    assert [path.name for path in own.glob("*.mp4")] == ["a.mp4"]
    for path, message in ((own / "a.gif", "a video's extension"), (own / "no" / "a.mp4", "there is no folder")):
        with pytest.raises(UserError, match=message):
            check_video_path(path)
    with pytest.raises(AttributeError), VideoWriter(own / "b.mp4", rate=5) as made:
        made.add(frames[0].tolist())
    assert [path.name for path in own.glob("*.mp4")] == ["a.mp4"]


@pytest.mark.parametrize(
    ("rate", "every", "shown"), [(30, 1, 30), (20, 1, 20), (50, 2, 25), (80, 3, Fraction(80, 3)), (125, 5, 25)]
)
def test_a_film_shows_at_most_thirty_frames_a_second(rate: float, every: int, shown: Fraction) -> None:
    assert frame_sampling(rate) == (every, shown)


def test_only_what_a_film_shows_is_drawn(own: Path) -> None:
    """In real time, and the same bytes for the same frames."""
    av = pytest.importorskip("av", reason="av is not installed: pip install 'headway[rl]'")
    random = np.random.default_rng(0)
    frames = random.integers(0, 255, (80, 32, 48, 3), np.uint8)
    drawn: list[int] = []

    def shown(step: int) -> np.ndarray:
        drawn.append(step)
        return frames[step]

    for name in ("a.mp4", "b.mp4"):
        drawn.clear()
        with open_film(FilmConfig(own / name), 80.0) as watch:
            assert watch is not None
            for step in range(80):
                watch.step(partial(shown, step), 0, 0.0)
        assert drawn == list(range(0, 80, 3))
    assert (own / "a.mp4").read_bytes() == (own / "b.mp4").read_bytes()
    with av.open(str(own / "a.mp4")) as film:
        seen = [(frame.time, frame.to_ndarray(format="rgb24")[:32]) for frame in film.decode(video=0)]
    np.testing.assert_allclose([time for time, _ in seen], np.arange(27) * 3 / 80, atol=1e-3)
    wanted = [frames[step].mean((0, 1)) for step in drawn]
    np.testing.assert_allclose([image.mean((0, 1)) for _, image in seen], wanted, atol=8)


class Right(Player):
    """Walks to the right; episode 1 a step later than the others."""

    def __init__(self, seeds: Any) -> None:
        self.late = np.array([seed == 1 for seed in seeds])

    def act(self, rows: Any, states: np.ndarray) -> np.ndarray:
        found = np.where(self.late, 0, 1)
        self.late[:] = False
        return found

    def keep_rows(self, kept: np.ndarray) -> None:
        self.late = self.late[kept]


@pytest.mark.parametrize("speed", [1.0, 2.0, 0.5])
def test_a_film_shows_several_episodes_at_its_speed(own: Path, speed: float) -> None:
    """One after the other, in steps of a fifth of a second, each with its end; what is played stays the same."""
    av = pytest.importorskip("av", reason="av is not installed: pip install 'headway[rl]'")
    with VectorEnv("walks:Walk", 3, render=True) as copies:
        plain = play_episodes(Right, copies, range(5))
        with open_film(film_config(own / "a.mp4", 2, speed), copies.frame_rate) as watch:
            found = play_episodes(Right, copies, range(5), watch)
    for name in ("returns", "lengths"):
        np.testing.assert_array_equal(getattr(found, name), getattr(plain, name))
    assert plain.lengths.tolist() == [3, 4, 3, 3, 3]
    with av.open(str(own / "a.mp4")) as film:
        frames = [(frame.time, frame.to_ndarray(format="rgb24")) for frame in film.decode(video=0)]
    held = max(1, round(0.7 * 5 * speed))
    places = [0, 1, 2, *[3] * held, 0, 0, 1, 2, *[3] * held]
    np.testing.assert_allclose([frame[:20].mean() for _, frame in frames], [50 * place for place in places], atol=8)
    np.testing.assert_allclose([time for time, _ in frames], np.arange(len(places)) / (5 * speed), atol=1e-3)


def test_episodes_that_are_watched_come_first_in_their_groups() -> None:
    assert parallel_groups(5, 3, None) == [[0, 1, 2], [3, 4]]
    assert parallel_groups(6, 3, FrameSampler()) == [[0, 1, 2], [3, 4, 5]]
    assert parallel_groups(1, 3, FrameSampler()) == [[0]]


def test_the_line_below_a_picture_says_what_it_shows() -> None:
    frame = np.full((40, 300, 3), 90, np.uint8)
    one, other = with_caption(frame, "episode 1 of 2   return 5"), with_caption(frame, "episode 2 of 2   return 5")
    assert one.shape == (64, 300, 3)
    np.testing.assert_array_equal(one[:40], frame)
    assert (one[40:] < 128).any()
    assert (one[40:] != other[40:]).any()


@pytest.mark.parametrize(("episodes", "speed"), [(0, 1.0), (2, 0.0), (2, float("inf"))])
def test_a_film_of_nothing_is_told(episodes: int, speed: float, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="use at least 1 episode and a speed above 0"):
        film_config(tmp_path / "a.mp4", episodes, speed)


def test_what_fails_while_a_film_is_made_is_told(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the thread that encodes, and of the one that plays; nothing stays."""
    pytest.importorskip("av", reason="av is not installed: pip install 'headway[rl]'")

    def filmed(steps: int, error: BaseException | None = None) -> None:
        with open_film(FilmConfig(own / "a.mp4"), 30.0) as watch:
            assert watch is not None
            for _ in range(steps):
                watch.step(lambda: np.zeros((32, 48, 3), np.uint8), 0, 0.0)
            if error is not None:
                raise error

    with pytest.raises(KeyboardInterrupt):
        filmed(1, KeyboardInterrupt())
    monkeypatch.setattr(VideoWriter, "add", lambda self, frame: (_ for _ in ()).throw(UserError("the disk is full")))
    for steps in (1, 40):
        with pytest.raises(UserError, match="the disk is full"):
            filmed(steps)
    assert not [*own.glob("*.mp4"), *own.glob(".*draft*")]


def test_a_reel_is_never_long() -> None:
    """Whatever the episode's length, its frames are evenly apart and the last is near the end."""
    for length in (1, 7, 8, 100, 1000):
        reel = FrameSampler(max_frames=8)
        for _ in range(length):
            reel.step(lambda: np.zeros((4, 6, 3), np.uint8))
        steps = [step for step, _ in reel.frames]
        assert len(steps) < 8
        assert len(set(np.diff(steps))) <= 1
        assert length - steps[-1] <= max(1, length // 3)
        assert strip(reel.frames, 3).count("<image") == min(3, len(steps))


def test_cartpole_is_drawn_without_a_screen() -> None:
    pytest.importorskip("pygame", reason="pygame is not installed: pip install 'headway[rl]'")
    with VectorEnv("CartPole-v1", 1, render=True) as copies:
        copies.reset(0, 0)
        frame = copies.frame()
    assert frame.dtype == np.uint8
    assert frame.std() > 0


def test_mujoco_is_drawn_without_a_screen() -> None:
    pytest.importorskip("mujoco", reason="mujoco is not installed: pip install 'headway[rl]'")
    with VectorEnv("Hopper-v5", 1, render=True) as copies:
        copies.reset(0, 0)
        try:
            frame = copies.frame()
        except UserError as error:
            pytest.skip(f"no graphics library for MuJoCo here: {error}")
    assert frame.std() > 0


def test_what_cannot_be_drawn_is_told(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="has no parameter render_mode"):
        VectorEnv("walks:Plain", 1, render=True)
    with VectorEnv("CartPole-v1", 1) as copies:  # not made to be drawn
        copies.reset(0, 0)
        with pytest.raises(UserError, match=r"renders NoneType|cannot be rendered"):
            copies.frame()
        monkeypatch.setattr(copies._environments[0], "render", lambda: 1 / 0)
        with pytest.raises(UserError, match=r"cannot be rendered .division by zero.*MUJOCO_GL=egl"):
            copies.frame()


def test_recorded_episodes_are_data(tmp_path: Path) -> None:
    from headway.data.episode_files import write_episodes

    found = recorded("CartPole-v1", [Mixture(None, 0.0)], 4)
    write_episodes(tmp_path / "a.npz", found)
    assert read_episodes([tmp_path / "a.npz"]).keys() == found.keys()
