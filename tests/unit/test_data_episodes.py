"""Episodes in files of every kind: what is read, what is refused, and returns-to-go."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headway.data.episode_files import read_episodes, write_episodes
from headway.data.episodes import Episode, Episodes, collate_episodes, concatenate_episodes
from headway.errors import UserError

LENGTHS = (3, 1, 5)


def some(discrete: bool = False, lengths: tuple[int, ...] = LENGTHS, seed: int = 0) -> list[Episode]:
    random = np.random.default_rng(seed)
    found = []
    for number, length in enumerate(lengths):
        actions = random.integers(0, 3, length) if discrete else random.normal(size=(length, 2)).astype(np.float32)
        states = random.normal(size=(length, 4)).astype(np.float32)
        found.append(Episode(states, actions, random.normal(size=length), cut=number == 1))
    return found


def same(one: Episodes, other: Episodes) -> None:
    for name in ("states", "actions", "rewards", "ends", "cut"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
        assert getattr(one, name).dtype == getattr(other, name).dtype, name


@pytest.mark.parametrize("discrete", [True, False])
def test_returns_to_go_are_the_sums_of_what_is_to_come(discrete: bool) -> None:
    episodes = collate_episodes(some(discrete), "here")
    assert episodes.discrete == discrete
    found = episodes.returns_to_go()
    for start, end, whole in zip(episodes.starts, episodes.ends, episodes.returns):
        for step in range(start, end):
            plain = 0.0
            for later in range(step, end):
                plain += episodes.rewards[later]
            assert found[step] == pytest.approx(plain, abs=1e-12)
        assert whole == pytest.approx(found[start])
    assert episodes.lengths.tolist() == list(LENGTHS)


@pytest.mark.parametrize("discrete", [True, False])
def test_what_is_written_is_read_again(discrete: bool, tmp_path: Path) -> None:
    episodes = collate_episodes(some(discrete), "here", environment="CartPole-v1")
    write_episodes(tmp_path / "sub" / "a.npz", episodes)
    again = read_episodes([tmp_path / "sub"])
    same(again, episodes)
    assert again.environment == "CartPole-v1"
    assert again.keys() == episodes.keys()
    assert len(set(again.keys())) == len(LENGTHS)
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["a.npz"]


def flat(episodes: list[Episode]) -> dict[str, np.ndarray]:
    ends = np.cumsum([len(each.rewards) for each in episodes]) - 1
    columns = {
        "observations": np.concatenate([each.states for each in episodes]),
        "actions": np.concatenate([each.actions for each in episodes]),
        "rewards": np.concatenate([each.rewards for each in episodes]),
    }
    for name, cut in (("terminals", False), ("timeouts", True)):
        columns[name] = np.zeros(len(columns["rewards"]), bool)
        columns[name][[end for end, each in zip(ends, episodes) if each.cut == cut]] = True
    return columns


def as_d4rl(path: Path, episodes: list[Episode]) -> Path:
    h5py = pytest.importorskip("h5py", reason="h5py is not installed: pip install 'headway[rl]'")
    with h5py.File(path / "d4rl.hdf5", "w") as file:
        for name, values in {**flat(episodes), "next_observations": np.zeros(2)}.items():
            file[name] = values
    return path / "d4rl.hdf5"


def as_minari(path: Path, episodes: list[Episode]) -> Path:
    """A data set's folder as Minari lays it out."""
    h5py = pytest.importorskip("h5py", reason="h5py is not installed: pip install 'headway[rl]'")
    (path / "data").mkdir()
    with h5py.File(path / "data" / "main_data.hdf5", "w") as file:
        for number, each in enumerate(episodes):
            group = file.create_group(f"episode_{number}")
            group["observations"] = np.concatenate([each.states, each.states[-1:]])
            group["actions"], group["rewards"] = each.actions, each.rewards
            ends = np.arange(len(each.rewards)) == len(each.rewards) - 1
            group["terminations"], group["truncations"] = ends & (not each.cut), ends & each.cut
    spec = json.dumps({"id": "Hopper-v5"})
    (path / "data" / "metadata.json").write_text(json.dumps({"env_spec": spec}), encoding="utf-8")
    return path


def as_flat_npz(path: Path, episodes: list[Episode]) -> Path:
    np.savez(path / "flat.npz", **flat(episodes))
    return path / "flat.npz"


def as_imitation(path: Path, episodes: list[Episode]) -> Path:
    """With the state after each episode's last action, and objects that no one asks for."""
    np.savez(
        path / "imitation.npz",
        obs=np.concatenate([np.concatenate([each.states, each.states[-1:]]) for each in episodes]),
        acts=np.concatenate([each.actions for each in episodes]),
        rews=np.concatenate([each.rewards for each in episodes]),
        indices=np.cumsum([len(each.rewards) for each in episodes])[:-1],
        terminal=np.array([not each.cut for each in episodes]),
        infos=np.array([{}, {}], object),
    )
    return path / "imitation.npz"


def as_numbered(path: Path, episodes: list[Episode]) -> Path:
    columns = {}
    for number, each in enumerate(episodes):
        columns |= {f"observation_{number}": each.states, f"action_{number}": each.actions}
        columns |= {f"reward_{number}": each.rewards, f"next_observation_{number}": each.states}
        columns[f"terminal_{number}"] = np.arange(len(each.rewards)) == (-1 if each.cut else len(each.rewards) - 1)
    np.savez(path / "numbered.npz", **columns)
    return path / "numbered.npz"


@pytest.mark.parametrize("discrete", [True, False])
@pytest.mark.parametrize("write", [as_d4rl, as_minari, as_flat_npz, as_imitation, as_numbered])
def test_files_of_all_kinds_hold_the_same(
    write: Callable[[Path, list[Episode]], Path], discrete: bool, tmp_path: Path
) -> None:
    episodes = some(discrete)
    found = read_episodes([write(tmp_path, episodes)])
    same(found, collate_episodes(episodes, "here"))
    assert found.environment == ("Hopper-v5" if write is as_minari else "")


def test_minaris_own_files_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    minari = pytest.importorskip("minari", reason="minari is not installed: its layout is tested by hand")
    gymnasium = pytest.importorskip("gymnasium", reason="gymnasium is not installed: pip install 'headway[rl]'")
    buffers = []
    for number, each in enumerate(some(discrete=True)):
        ends = np.arange(len(each.rewards)) == len(each.rewards) - 1
        buffers.append(
            minari.data_collector.EpisodeBuffer(
                id=number,
                observations=list(np.concatenate([each.states, each.states[-1:]])),
                actions=list(each.actions % 2),
                rewards=each.rewards.tolist(),
                terminations=(ends & (not each.cut)).tolist(),
                truncations=(ends & each.cut).tolist(),
            )
        )
    minari.create_dataset_from_buffers("cartpole/test-v0", buffers, env=gymnasium.make("CartPole-v1"))
    found = read_episodes([tmp_path / "cartpole" / "test-v0"])
    wanted = collate_episodes([each._replace(actions=each.actions % 2) for each in some(discrete=True)], "here")
    same(found, wanted)
    assert found.environment == "CartPole-v1"


def test_a_recording_that_stopped_within_an_episode_keeps_it(tmp_path: Path) -> None:
    columns = flat(some())
    columns["terminals"][-1] = False
    np.savez(tmp_path / "a.npz", **columns)
    found = read_episodes([tmp_path / "a.npz"])
    assert found.lengths.tolist() == list(LENGTHS)
    assert found.cut.tolist() == [False, True, True]


def test_several_files_are_one_and_sides_are_kept(tmp_path: Path) -> None:
    for name, seed in (("train.npz", 1), ("val.npz", 2)):
        write_episodes(tmp_path / name, collate_episodes(some(seed=seed), name))
    found = read_episodes([tmp_path])
    assert found.named_splits.tolist() == [1, 1, 1, 2, 2, 2]
    assert found.lengths.tolist() == [*LENGTHS, *LENGTHS]
    same(
        found,
        concatenate_episodes([collate_episodes(some(seed=1), "a"), collate_episodes(some(seed=2), "b")], ["a", "b"]),
    )


def test_real_episodes_of_experts(data_dir: Path) -> None:
    """The counts that are known of them, and their mean return."""
    cartpole = read_episodes([data_dir / "rl/imitation_cartpole_v1_expert.npz"])
    assert (len(cartpole), len(cartpole.rewards), cartpole.discrete) == (57, 26_964, True)
    assert cartpole.returns.mean() == pytest.approx(473.05, abs=0.01)
    hopper = read_episodes([data_dir / "rl/cs285_expert_Hopper-v4.npz"])
    assert (len(hopper), hopper.states.shape, hopper.actions.shape) == (2, (2000, 11), (2000, 3))
    assert hopper.returns.tolist() == pytest.approx([3717.16, 3717.87], abs=0.01)


def spoilt(**changes: Any) -> dict[str, Any]:
    return {**flat(some()), **changes}


def _nan(name: str) -> dict[str, Any]:
    columns = spoilt()
    columns[name][4] = np.nan
    return columns


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (_nan("rewards"), "episode 2, step 0: rewards contain nan"),
        (_nan("observations"), "episode 2, step 0: states contain nan"),
        (_nan("actions"), "episode 2, step 0: actions contain nan"),
        (spoilt(ends=np.array([3, 3, 9])), "episode 1 has 0 steps; remove it"),
        (spoilt(ends=np.array([3, 2, 9])), "episode ends do not increase"),
        (spoilt(ends=np.array([3, 8])), "episode ends do not increase"),
        (spoilt(rewards=np.zeros(4)), "4 rewards but 9 terminals"),
        (spoilt(actions=np.zeros((4, 2))), "9 rewards, 9 states and 4 actions"),
        (spoilt(actions=np.zeros((9, 2), int)), "actions of 2 integers per step"),
        (spoilt(actions=np.full(9, -1)), "the action -1; number actions from 0"),
        (spoilt(actions=np.array(["a"] * 9)), "actions have the dtype <U1"),
        (spoilt(rewards=np.zeros((9, 2))), "rewards of shape"),
        (spoilt(rewards=np.array([{}] * 9, object)), "rewards contains Python objects, which can run code"),
        ({"observations": np.zeros((2, 3)), "actions": np.zeros(2)}, "has no rewards"),
        ({name: flat(some())[name] for name in ("observations", "actions", "rewards")}, "mark where episodes end"),
        ({}, "has no states"),
        (
            spoilt(observations=np.zeros((0, 4)), actions=np.zeros(0), rewards=np.zeros(0), ends=np.zeros(0, int)),
            "ends",
        ),
    ],
)
def test_what_is_no_sound_episode_is_told(columns: dict[str, Any], message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **columns)
    with pytest.raises(UserError, match=message):
        read_episodes([tmp_path / "a.npz"])


def test_files_that_are_none_are_told(tmp_path: Path) -> None:
    whole, array = as_flat_npz(tmp_path, some()).read_bytes(), tmp_path / "a.npy"
    np.save(array, np.zeros(3))
    for name, content, message in (
        ("cut.npz", whole[: len(whole) // 2], "is damaged or not .npz"),
        ("text.npz", b"no zip at all", "is damaged or not .npz"),
        ("pickle.npz", b"\x80\x04N.", "is damaged or not .npz"),
        ("array.npz", b"\x93NUMPY" + array.read_bytes()[6:], "one unnamed array"),
        ("a.hdf5", b"no hdf5", "is damaged or not HDF5"),
        ("empty.npz", b"", "is empty"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=message):
            read_episodes([tmp_path / name])
    with pytest.raises(UserError, match="there is no file or folder"):
        read_episodes([tmp_path / "none.npz"])
    (tmp_path / "a.pkl").write_bytes(b"x")
    with pytest.raises(UserError, match=r"unknown extension '\.pkl'"):
        read_episodes([tmp_path / "a.pkl"])
    with pytest.raises(UserError, match="no episodes; pass at least one"):
        read_episodes([])


def test_hdf5_that_leads_elsewhere_is_not_followed(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py", reason="h5py is not installed: pip install 'headway[rl]'")
    as_d4rl(tmp_path, some())
    with h5py.File(tmp_path / "link.hdf5", "w") as file:
        for name in ("observations", "actions", "rewards", "terminals", "timeouts"):
            file[name] = h5py.ExternalLink("d4rl.hdf5", name)
    with pytest.raises(UserError, match="is a link to another file"):
        read_episodes([tmp_path / "link.hdf5"])
    with h5py.File(tmp_path / "groups.hdf5", "w") as file:
        file.create_group("observations")["position"] = np.zeros((2, 3))
        file["actions"], file["rewards"], file["terminals"] = np.zeros(2), np.zeros(2), np.ones(2)
    with pytest.raises(UserError, match="observations is a group of several arrays"):
        read_episodes([tmp_path / "groups.hdf5"])


def test_files_of_several_environments_do_not_go_together(tmp_path: Path) -> None:
    write_episodes(tmp_path / "a.npz", collate_episodes(some(), "a"))
    other = [each._replace(states=each.states[:, :2]) for each in some()]
    write_episodes(tmp_path / "b.npz", collate_episodes(other, "b"))
    with pytest.raises(UserError, match=r"has states of 2 numbers, but .* has states of 4 numbers"):
        read_episodes([tmp_path])
    write_episodes(tmp_path / "b.npz", collate_episodes(some(discrete=True), "b"))
    with pytest.raises(UserError, match=r"has discrete actions, but .* has actions of 2 numbers"):
        read_episodes([tmp_path])
    uneven = [some()[0], some()[1]._replace(states=np.zeros((1, 2), np.float32))]
    with pytest.raises(UserError, match="episode 1 has states of shape"):
        collate_episodes(uneven, "here")


def test_without_h5py_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    (tmp_path / "a.hdf5").write_bytes(b"x")
    with pytest.raises(UserError, match=r"pip install 'headway\[rl\]'"):
        read_episodes([tmp_path / "a.hdf5"])


def test_images_stay_bytes(tmp_path: Path) -> None:
    images = [each._replace(states=np.zeros((len(each.rewards), 8, 8, 3), np.uint8)) for each in some(discrete=True)]
    write_episodes(tmp_path / "a.npz", collate_episodes(images, "a"))
    found = read_episodes([tmp_path / "a.npz"])
    assert (found.states.dtype, found.states.shape) == (np.uint8, (9, 8, 8, 3))
    assert replace(found, environments=("x",)).returns.shape == (3,)
