"""LeRobotDataset folders: read back as they were written, and every kind of damage told in a line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lerobot_data import KEY, LENGTHS, SIZE, Held, made, pictures

from headway.data.episode_files import read_demonstrations, write_episodes
from headway.data.episodes import Episode, Episodes, collate_episodes, task_name
from headway.data.lerobot_writer import write_lerobot
from headway.data.splits import split_code
from headway.data.video import VideoWriter, read_frames
from headway.errors import UserError

pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install 'headway[robotics]'")
pytest.importorskip("av", reason="av is not installed: pip install 'headway[robotics]'")
import pyarrow.parquet as parquet  # noqa: E402


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_lerobot(tmp_path / "set", made(), robot_size=4)
    return tmp_path / "set"


def of(path: Path, **given: Any) -> Episodes:
    return read_demonstrations([path], path.parent / "cache", **given)


def check_same(found: Episodes, wanted: Episodes) -> None:
    for name in ("states", "actions", "ends", "tasks"):
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))
    assert (found.task_names, found.environments, found.rate) == (wanted.task_names, wanted.environments, wanted.rate)
    assert found.keys() == wanted.keys()
    for name, frames in wanted.cameras.items():
        places = np.array([14, 0, 7, 7])
        seen = found.cameras[name].read(places)
        assert (found.cameras[name].size, len(found.cameras[name]), seen.dtype) == (SIZE, len(frames), np.uint8)
        assert np.abs(seen.astype(int) - frames.read(places)).max() <= 3


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    said = json.loads(path.read_text())
    change(said)
    path.write_text(json.dumps(said))


def rewritten(path: Path, change: Callable[[dict[str, list[Any]]], None]) -> None:
    """A Parquet file with its columns changed as lists."""
    columns = parquet.read_table(path).to_pydict()
    change(columns)
    parquet.write_table(pyarrow.table(columns), path)


def older(folder: Path, version: str) -> None:
    """Turn a folder of v3.0 into one of v2: a file of rows and a video an episode, notes as lines."""
    noted = parquet.read_table(folder / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    tasks = parquet.read_table(folder / "meta/tasks.parquet").to_pylist()
    rows = parquet.read_table(folder / "data/chunk-000/file-000.parquet")
    film = folder / f"videos/{KEY}/chunk-000/file-000.mp4"
    frames = list(read_frames(film, np.arange(sum(LENGTHS)), 10.0, SIZE))
    shutil.rmtree(folder / "data")
    shutil.rmtree(folder / "videos")
    shutil.rmtree(folder / "meta/episodes")
    (folder / "data/chunk-000").mkdir(parents=True)
    (folder / f"videos/chunk-000/{KEY}").mkdir(parents=True)
    for row in noted:
        begin, end, name = row["dataset_from_index"], row["dataset_to_index"], f"episode_{row['episode_index']:06d}"
        parquet.write_table(rows.slice(begin, end - begin), folder / f"data/chunk-000/{name}.parquet")
        with VideoWriter(folder / f"videos/chunk-000/{KEY}/{name}.mp4", 10.0) as video:
            for frame in frames[begin:end]:
                video.add(frame)
    lines = [{name: row[name] for name in ("episode_index", "tasks", "length")} for row in noted]
    (folder / "meta/episodes.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (folder / "meta/tasks.jsonl").write_text("\n".join(map(json.dumps, tasks)))
    (folder / "meta/tasks.parquet").unlink()
    edit(
        folder / "meta/info.json",
        lambda said: said.update(
            codebase_version=version,
            data_path="data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
            video_path="videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
        ),
    )


def test_a_folder_is_read_back_as_it_was_written(folder: Path) -> None:
    check_same(of(folder), made())
    info = json.loads((folder / "meta/info.json").read_text())
    assert {name: each["shape"] for name, each in info["features"].items() if "observation" in name} == {
        "observation.state": [4],
        "observation.environment_state": [2],
        KEY: [*SIZE, 3],
    }
    assert [path.name for path in folder.parent.iterdir() if path.name.startswith(".")] == []


def test_films_of_several_cameras_come_back_in_place_and_colour(tmp_path: Path) -> None:
    """A bright square that wanders over a coloured ground, other ones for each camera, and a red object of 2 pixels."""
    steps, side = sum(LENGTHS), 64
    films = {}
    for place, (name, ground) in enumerate({"wrist": (30, 60, 160), "front": (170, 50, 40)}.items()):
        film = np.empty((steps, side, 96, 3), np.uint8)
        film[:] = ground
        for step in range(steps):
            row, column = (16, 4 * step) if place else (2 * step, 64)
            film[step, row : row + 16, column : column + 16] = (230, 220, 60)
            film[step, 50:52, step + 1 : step + 3] = (204, 0, 0)
        films[name] = Held(film)
    write_lerobot(tmp_path / "set", replace(made(), cameras=films), robot_size=4)
    found = of(tmp_path / "set").cameras
    assert set(found) == set(films)
    for name, film in films.items():
        seen = found[name].read(np.arange(steps)).astype(int)
        error = np.abs(seen - film.pixels).mean()
        assert (error < 1, np.abs(seen - film.pixels).max() <= 3) == (True, True), name
        others = (np.roll(film.pixels, 1, 0), film.pixels[..., ::-1], film.pixels[:, ::-1], film.pixels[:, :, ::-1])
        assert all(np.abs(seen - other).mean() > 2 * error for other in others), name  # a frame, a channel, a side


@pytest.mark.parametrize("version", ["v2.0", "v2.1"])
def test_older_versions_hold_the_same(folder: Path, version: str) -> None:
    older(folder, version)
    check_same(of(folder), made())


def test_pictures_may_be_a_column(folder: Path) -> None:
    """PNG bytes, as LeRobot keeps them without videos."""
    import io

    from PIL import Image

    def embedded(columns: dict[str, list[Any]]) -> None:
        columns[KEY] = []
        for pixels in pictures(sum(LENGTHS)):
            Image.fromarray(pixels).save(buffer := io.BytesIO(), "PNG")
            columns[KEY].append({"bytes": buffer.getvalue(), "path": None})

    rewritten(folder / "data/chunk-000/file-000.parquet", embedded)
    shutil.rmtree(folder / "videos")
    edit(folder / "meta/info.json", lambda said: said["features"][KEY].update(dtype="image"))
    found = of(folder)
    check_same(found, made())
    np.testing.assert_array_equal(found.cameras["front"].read(np.arange(15)), pictures(15))
    Image.fromarray(pictures(1)[0]).save(buffer := io.BytesIO(), "JPEG", progressive=True)
    whole = buffer.getvalue()
    slow = whole[:-2] + whole[whole.rindex(b"\xff\xda") : -2] * 100 + whole[-2:]  # a scan, a hundred times more
    rewritten(folder / "data/chunk-000/file-000.parquet", lambda columns: columns.update({KEY: [slow] * 15}))
    with pytest.raises(UserError, match=f"row 0, {KEY} is a JPEG file with over 64 scans"):
        of(folder)


def test_pictures_are_decoded_once_and_scaled_if_asked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = of(folder, size=(8, 12)).cameras["front"]
    assert (first.size, first.read(np.array([2])).shape) == ((8, 12), (1, 8, 12, 3))
    assert np.abs(first.read(np.arange(15)).astype(int) - pictures(15)[:, :8, :12]).max() <= 3
    monkeypatch.setattr("headway.data.lerobot.read_frames", lambda *given: 1 / 0)
    np.testing.assert_array_equal(
        of(folder, size=(8, 12)).cameras["front"].read(np.arange(15)), first.read(np.arange(15))
    )
    with pytest.raises(ZeroDivisionError):
        of(folder)


def test_cameras_that_are_not_read_are_not_decoded(tmp_path: Path) -> None:
    write_lerobot(tmp_path / "two", made(cameras=("front", "wrist")))
    found = of(tmp_path / "two", cameras=["wrist"], size=(8, 12))
    assert list(found.cameras) == ["wrist"]
    assert (found.cameras["wrist"].size, found.cameras["wrist"].recorded_size) == ((8, 12), SIZE)
    sizes = [file.stat().st_size for file in (tmp_path / "cache").rglob("*") if file.is_file()]
    assert sum(sizes) < 1.5 * len(found.actions) * 8 * 12 * 3
    with pytest.raises(UserError, match="has no camera 'rist'; did you mean 'wrist'"):
        of(tmp_path / "two", cameras=["rist"])


def test_a_stopped_decoding_leaves_nothing_half_done(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*given: Any) -> Any:
        yield np.zeros((*SIZE, 3), np.uint8)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("headway.data.lerobot.read_frames", stopped)
        with pytest.raises(KeyboardInterrupt):
            of(folder)
    check_same(of(folder), made())


def test_several_sources_are_joined(tmp_path: Path, folder: Path) -> None:
    """Tasks of one text are one task, whichever folder they are in; a folder of folders is all of them."""
    write_lerobot(tmp_path / "more" / "test", made(seed=9))
    write_lerobot(tmp_path / "more" / "other", made(seed=5))
    found = read_demonstrations([folder, tmp_path / "more"], tmp_path / "cache")
    assert (len(found), found.task_names, found.tasks.tolist()) == (9, ("reach", "open the door"), [0, 1, 0] * 3)
    assert found.environments == ("metaworld/reach-v3", "")
    assert found.named_splits.tolist() == [0] * 6 + [split_code("test")] * 3
    np.testing.assert_array_equal(found.actions[30:], made(seed=9).actions)
    seen = found.cameras["front"].read(np.array([44, 0, 30]))
    wanted = np.stack([pictures(15, 9)[14], pictures(15)[0], pictures(15, 9)[0]])
    assert np.abs(seen.astype(int) - wanted).max() <= 3
    lone = read_demonstrations([tmp_path / "more" / "test"], tmp_path / "cache")
    assert lone.named_splits.tolist() == [0] * 3  # nothing else would be left to train on


def test_sets_are_found_however_deep_and_files_beside_them(tmp_path: Path) -> None:
    """But for hidden ones, such as a writer leaves that was killed; a link that leads back is not followed again."""
    mine = tmp_path / "mine"
    for place, seed in (("robot/a", 1), ("robot/test/b", 2), (".0123.part.c", 3), ("robot/.d/e", 4), ("robot/a/f", 5)):
        write_lerobot(mine / place, made(seed=seed, cameras=()))
    (mine / "robot" / "round").symlink_to(mine, target_is_directory=True)
    episodes = [Episode(np.zeros((4, 6)), np.full((4, 2), 0.5), np.zeros(4))]
    for place in ("open.npz", "robot/a/g.npz", "robot/.h.npz"):
        write_episodes(mine / place, collate_episodes(episodes, place, environment="mine:Open-v0"))
    found = read_demonstrations([mine], tmp_path / "cache")
    wanted = [made(seed=1).actions, made(seed=2).actions, np.full((4, 2), 0.5, np.float32)]
    np.testing.assert_array_equal(found.actions, np.concatenate(wanted))
    assert found.task_names == ("reach", "open the door", "mine Open")
    assert found.named_splits.tolist() == [0] * 3 + [split_code("test")] * 3 + [0]


def test_a_file_beside_a_set_that_it_does_not_fit_is_told(tmp_path: Path, folder: Path) -> None:
    episodes = [Episode(np.zeros((4, 6)), np.zeros((4, 2)), np.zeros(4))]
    write_episodes(tmp_path / "b.npz", collate_episodes(episodes, "b"))
    with pytest.raises(UserError, match=r"b\.npz has no cameras, but .*set has the cameras front"):
        read_demonstrations([tmp_path], tmp_path / "cache")


def test_splits_of_a_folder_are_kept(folder: Path) -> None:
    edit(folder / "meta/info.json", lambda said: said.update(splits={"train": "0:2", "val": "2:3"}))
    assert of(folder).named_splits.tolist() == [split_code("train")] * 2 + [split_code("validation")]


def test_files_of_episodes_are_demonstrations(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    found = [Episode(random.normal(size=(4, 3)), random.normal(size=(4, 2)), np.zeros(4)) for _ in range(2)]
    write_episodes(tmp_path / "a.npz", collate_episodes(found, "a", environment="metaworld/door-open-v3"))
    write_episodes(tmp_path / "stacked.npz", collate_episodes(found, "b"))
    both = read_demonstrations([tmp_path / "a.npz", tmp_path / "stacked.npz"], tmp_path / "cache")
    assert (both.task_names, both.environments) == (("door open", "stacked"), ("metaworld/door-open-v3", ""))
    assert (both.states.shape, both.lengths.tolist(), both.rate, dict(both.cameras)) == ((16, 3), [4] * 4, None, {})
    choices = [Episode(np.zeros((4, 3)), np.zeros(4, int), np.zeros(4))]
    write_episodes(tmp_path / "c.npz", collate_episodes(choices, "c"))
    with pytest.raises(UserError, match=r"c.npz has discrete actions"):
        read_demonstrations([tmp_path / "c.npz"], tmp_path / "cache")


def test_names_of_tasks() -> None:
    names = ("metaworld/door-open-v3", "Hopper-v5", "walks:Walk", "")
    assert [task_name(name) for name in names] == ["door open", "Hopper", "walks Walk", ""]


ROWS, NOTES = "data/chunk-000/file-000.parquet", "meta/episodes/chunk-000/file-000.parquet"
FILM = f"videos/{KEY}/chunk-000/file-000.mp4"


def cut(path: Path, share: float = 0.5) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


def spoil(column: str, row: int, value: Any) -> Callable[[Path], None]:
    """Put a value into a column of the rows: the first number of a list, or a number."""

    def change(columns: dict[str, list[Any]]) -> None:
        before = columns[column][row]
        columns[column][row] = [value, *before[1:]] if isinstance(before, list) else value

    return lambda folder: rewritten(folder / ROWS, change)


def noted(column: str, row: int, value: Any) -> Callable[[Path], None]:
    def change(columns: dict[str, list[Any]]) -> None:
        columns[column][row] = value

    return lambda folder: rewritten(folder / NOTES, change)


def said(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "meta/info.json", lambda info: info.update(changes))


def feature(name: str, **changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "meta/info.json", lambda info: info["features"][name].update(changes))


def shorter_film(folder: Path) -> None:
    with VideoWriter(folder / FILM, 10.0) as film:
        for frame in pictures(9):
            film.add(frame)


def no_episodes(folder: Path) -> None:
    rewritten(folder / NOTES, lambda columns: [values.clear() for values in columns.values()] and None)


def wider(folder: Path) -> None:
    def change(columns: dict[str, list[Any]]) -> None:
        columns["action"] = [[*values, 0.0] for values in columns["action"]]

    rewritten(folder / ROWS, change)


def test_columns_with_longer_names_are_others(folder: Path) -> None:
    before = of(folder)

    def change(columns: dict[str, list[Any]]) -> None:
        columns["action.original"] = [[1.0, 2.0, 3.0]] * len(columns["action"])

    rewritten(folder / ROWS, change)
    assert np.array_equal(of(folder).actions, before.actions)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: cut(folder / "meta/info.json"), r"info\.json is damaged or not JSON .*download the data"),
        (said(codebase_version="v9.9"), r"codebase_version is 'v9\.9'; use a folder in version v2\.0, v2\.1, v3\.0"),
        (said(fps="fast"), "fps is 'fast'"),
        (said(features={}), "has no feature 'action'"),
        (said(data_path="../{chunk_index}.parquet"), "is outside the folder"),
        (said(video_path="/etc/{video_key}.mp4"), "is outside the folder"),
        (said(data_path="data/{chunk_index.__class__}.parquet"), r"there is no .*__class__"),
        (said(data_path="data/{secret}.parquet"), "has the field 'secret'"),
        (feature("action", shape=[10**9]), r"'action' has the shape \[1000000000\]"),
        (feature("action", shape=[3]), r"action has 30 values, but 15 steps of 3 need 45"),
        (feature(KEY, shape=[10**6, 10**6, 3]), "use images of"),
        (feature(KEY, shape=[32, 24, 3]), r"has 16 x 24 pixels, but info\.json has 32 x 24"),
        (lambda folder: cut(folder / ROWS), r"file-000\.parquet is damaged or not Parquet"),
        (lambda folder: (folder / ROWS).unlink(), r"there is no .*data/chunk-000/file-000\.parquet"),
        (lambda folder: cut(folder / NOTES), r"file-000\.parquet is damaged or not Parquet"),
        (lambda folder: cut(folder / "meta/tasks.parquet"), r"tasks\.parquet is damaged or not Parquet"),
        (no_episodes, "contains no episodes"),
        (noted("length", 1, 0), "episode 1 has 0 steps; remove it"),
        (noted("length", 1, 4), "has 15 rows, but 16 according to meta/"),
        (noted("length", 1, -3), "has the length -3"),
        (noted("episode_index", 1, 5), "episode 2 is where episode 1 should be"),
        (
            spoil("action", 6, float("nan")),
            "episode 1, step 1: actions contain nan, which is not a finite number; remove the episode",
        ),
        (spoil("observation.state", 0, float("inf")), "episode 0, step 0: states contain inf"),
        (spoil("action", 6, None), "episode 1, step 1: actions contain nan"),
        (spoil("episode_index", 5, 2), "row 5 belongs to episode 2, but to 1 according to meta/"),
        (spoil("task_index", 14, 7), "rows have the task 7, which is missing from meta/"),
        (wider, "action has 45 values, but 15 steps of 2 need 30"),
        (lambda folder: (folder / FILM).unlink(), r"there is no .*file-000\.mp4"),
        (lambda folder: cut(folder / FILM, 0.3), r"file-000\.mp4 is damaged or not a video"),
        (lambda folder: (folder / FILM).write_bytes(b"no video at all"), r"file-000\.mp4 is damaged or not a video"),
        (shorter_film, "has no frame 9, but the rows have one"),
        (said(fps=13), r"does not match the 13 frames per second in info\.json; correct fps"),
        (noted(f"videos/{KEY}/from_timestamp", 2, 0.2), "share frames or are out of order"),
        (lambda folder: (folder / "meta/headway.json").write_text("[]"), r"headway\.json does not contain"),
    ],
)
def test_damage_is_told(folder: Path, damage: Callable[[Path], Any], message: str) -> None:
    damage(folder)
    with pytest.raises(UserError, match=message) as told:
        of(folder)
    assert "\n" not in str(told.value)
    cache = folder.parent / "cache"
    assert not [path for path in cache.glob("*") if path.is_dir()]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            made(states=7),
            "has states of 7 numbers, but .* has states of 6 numbers; pass data from one environment or robot",
        ),
        (made(cameras=()), r"has no cameras, but .* has the cameras front \(16 x 24\)"),
        (made(cameras=("side",)), r"has the cameras side \(16 x 24\), but .* front"),
        (made(rate=50.0), "has 50 steps per second, but .* has 10 steps per second"),
    ],
)
def test_sets_that_do_not_fit_together(folder: Path, other: Episodes, message: str) -> None:
    write_lerobot(folder.parent / "other", other)
    with pytest.raises(UserError, match=message):
        read_demonstrations([folder, folder.parent / "other"], folder.parent / "cache")


def test_what_is_not_there_is_told(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for paths, message in (
        ([], "no demonstrations; pass"),
        ([tmp_path / "empty"], "contains no supported files"),
        ([tmp_path / "x"], "there is no"),
    ):
        with pytest.raises(UserError, match=message):
            read_demonstrations(paths, tmp_path / "cache")


def test_a_full_disk_is_told_before_work(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 100}))
    with pytest.raises(UserError, match=r"images of front need 0.0 GB, but .* has 0.0 GB free; set HEADWAY_CACHE"):
        of(folder)


def test_a_folder_needs_its_rate_and_a_place(tmp_path: Path) -> None:
    from dataclasses import replace

    with pytest.raises(UserError, match="needs the steps per second"):
        write_lerobot(tmp_path / "a", replace(made(), rate=None))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written .*choose another path"):
        write_lerobot(tmp_path / "file" / "a", made())
