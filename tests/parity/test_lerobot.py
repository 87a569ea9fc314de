"""Policies of LeRobot's own package: the same actions, step by step, and the way back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import lerobot_policies as policies
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("gymnasium", reason="gymnasium is not installed: pip install 'headway[rl]'")
import gymnasium

import headway as hw
from headway.app.cli.main import main as cli
from headway.data.episodes import Episodes
from headway.domains.robotics import task as robotics_task
from headway.domains.robotics.policy import PolicyRunner
from headway.errors import UserError
from headway.formats.open import open_config, open_model
from headway.nn.models import (
    ActConfig,
    ChunkNoise,
    Chunks,
    Observations,
    SceneEmbedConfig,
    UNetPolicy,
    UNetPolicyConfig,
)

CLOSE: dict[str, Any] = {"rtol": 1e-5, "atol": 2e-5}
live = pytest.mark.skipif(policies.find_lerobot() is not None, reason=str(policies.find_lerobot()))
every = pytest.mark.parametrize("case", sorted(policies.CASES))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a case, written once."""
    place = tmp_path_factory.mktemp("policies")
    return lambda case: place / case if (place / case).exists() else policies.write(case, place / case)


def done(folder: Path, case: str) -> np.ndarray:
    """What the policy in a folder does at each step, where chance gives what it gave LeRobot's.

    Its weights are in memory of their own: torch's products on AMD's processors depend on where they lie in memory,
    which for weights of a file is where they lie in it.
    """
    policy = hw.load(folder).policy()
    for parameter in policy.model.parameters():
        parameter.data = parameter.data.clone()
    if isinstance(policy.model, UNetPolicy):
        policy.model.sample_noise = Chance(policy.model.config)  # type: ignore[method-assign]
    return np.stack([policy.select_action(each) for each in policies.observations(policies.CASES[case][1])])


class Chance:
    """What LeRobot draws: a chunk of noise to begin with and, where noise is added on the way, one for each step."""

    def __init__(self, config: UNetPolicyConfig) -> None:
        self.numbers, self.shape = count(), (1, config.horizon, config.actions)
        self.draws = config.head.sampled if config.head.sampler == "ddpm" else 0

    def __call__(self, random: np.random.Generator, rows: int) -> ChunkNoise:
        each = [policies.drawn(next(self.numbers), self.shape) for _ in range(self.draws or 1)]
        return ChunkNoise(torch.stack(each, 1) if self.draws else each[0])


@every
def test_what_lerobot_did(case: str, folders: Callable[[str], Path]) -> None:
    np.testing.assert_allclose(done(folders(case), case), policies.kept(case)["actions"], **CLOSE)


@live
@every
def test_lerobot_still_does_so(case: str) -> None:
    found = policies.acted(*policies.theirs(case), policies.CASES[case][1])
    np.testing.assert_allclose(found, policies.kept(case)["actions"], **CLOSE)


@every
def test_the_way_back(case: str, folders: Callable[[str], Path], tmp_path: Path) -> None:
    """By headway's own folder into LeRobot's: weights bit for bit, the same actions."""
    assert cli(["import", str(folders(case)), str(tmp_path / "ours")]) == 0
    np.testing.assert_array_equal(done(tmp_path / "ours", case), done(folders(case), case))
    assert cli(["export", str(tmp_path / "ours"), str(tmp_path / "theirs")]) == 0
    own, back = (load_file(place / "model.safetensors") for place in (folders(case), tmp_path / "theirs"))
    own = {name: each for name, each in own.items() if "normalize_" not in name}
    assert own.keys() == back.keys()
    for name, each in own.items():
        torch.testing.assert_close(back[name], each, rtol=0, atol=1e-7 if name.endswith("pos_enc") else 0)
    np.testing.assert_allclose(done(tmp_path / "theirs", case), policies.kept(case)["actions"], **CLOSE)
    told = json.loads((tmp_path / "theirs/config.json").read_text())
    assert {name: told[name] for name in policies.features(case)} == policies.features(case)


@live
@every
def test_lerobot_reads_what_is_written(case: str, folders: Callable[[str], Path], tmp_path: Path) -> None:
    from lerobot.policies.act.modeling_act import ACTPolicy
    from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy
    from lerobot.processor import PolicyProcessorPipeline
    from lerobot.processor.converters import policy_action_to_transition, transition_to_policy_action

    hw.export(folders(case), tmp_path / "theirs")
    kind = {"act": ACTPolicy, "diffusion": DiffusionPolicy}[policies.CASES[case][0]]
    policy = kind.from_pretrained(tmp_path / "theirs", strict=True)
    before = PolicyProcessorPipeline.from_pretrained(tmp_path / "theirs", config_filename="policy_preprocessor.json")
    after = PolicyProcessorPipeline.from_pretrained(
        tmp_path / "theirs",
        config_filename="policy_postprocessor.json",
        to_transition=policy_action_to_transition,
        to_output=transition_to_policy_action,
    )
    found = policies.acted(policy, before, after, policies.CASES[case][1])
    np.testing.assert_allclose(found, policies.kept(case)["actions"], **CLOSE)


@live
@pytest.mark.parametrize(
    ("case", "settings"),
    [
        ("act-cameras", {"vision_backbone": "resnet34"}),
        ("act-cameras", {"pre_norm": True, "feedforward_activation": "gelu"}),
        (
            "act-cameras",
            {
                "normalization_mapping": {
                    "VISUAL": "IDENTITY",
                    "STATE": "MIN_MAX",
                    "ENV": "MIN_MAX",
                    "ACTION": "IDENTITY",
                }
            },
        ),
        ("act-cameras", {"n_action_steps": 6, "use_vae": False}),
        (
            "diffusion-cameras",
            {"use_group_norm": False, "resize_shape": None, "crop_ratio": 1.0, "crop_shape": (60, 81)},
        ),
        ("diffusion-cameras", {"use_separate_rgb_encoder_per_camera": True, "vision_backbone": "resnet34"}),
        ("diffusion-numbers", {"noise_scheduler_type": "DDIM", "num_inference_steps": 7, "n_obs_steps": 1}),
        ("diffusion-numbers", {"num_inference_steps": 6, "prediction_type": "sample", "clip_sample": False}),
    ],
    ids=lambda given: given if isinstance(given, str) else "-".join(given),
)
def test_other_settings(case: str, settings: dict[str, Any], tmp_path: Path) -> None:
    made = policies.theirs(case, **settings)
    for each in made:
        each.save_pretrained(tmp_path / "policy")
    np.testing.assert_allclose(done(tmp_path / "policy", case), policies.acted(*made, policies.CASES[case][1]), **CLOSE)


@live
def test_what_the_posterior_infers_of_chunks_that_end(tmp_path: Path) -> None:
    """Training goes on from the same latent: mean and log variance behind chunks of which some actions are not."""
    policy, *_ = policies.theirs("act-cameras")
    policy.save_pretrained(tmp_path / "policy")
    for each in policies.theirs("act-cameras")[1:]:
        each.save_pretrained(tmp_path / "policy")
    model: Any = open_model(tmp_path / "policy").model
    chunks = torch.from_numpy(policies.noise("chunks", (2, 6, policies.ACTIONS)).astype(np.float32))
    keep = torch.arange(6) < torch.tensor([[6], [3]])
    batch = {
        "observation.state": torch.randn(2, 5),
        "observation.environment_state": torch.randn(2, 3),
        **{name: torch.randn(2, 3, *size) for name, size in policies.CAMERAS.items()},
    }
    states = torch.cat([batch["observation.state"], batch["observation.environment_state"]], 1)
    seen = Observations(states, tuple(batch[name] for name in policies.CAMERAS))
    mean, log_variance = model.infer(seen, Chunks(chunks, keep))
    batch["observation.images"] = [batch[name] for name in policies.CAMERAS]
    policy.train()  # its layers have dropout, of which there is none here
    for module in policy.modules():
        module.training = isinstance(module, type(policy.model))
    _, (wanted, wanted_log) = policy.model({**batch, "action": chunks, "action_is_pad": ~keep})
    torch.testing.assert_close(mean, wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(log_variance, wanted_log, rtol=1e-4, atol=1e-5)


@live
@pytest.mark.parametrize("says", ["epsilon", "sample"])
def test_what_a_diffusion_learns(says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same loss at the same steps and noise, of chunks that begin before an episode's first step, too."""
    made = policies.theirs("diffusion-numbers", prediction_type=says, do_mask_loss_for_padding=True)
    for each in made:
        each.save_pretrained(tmp_path / "policy")
    model: Any = open_model(tmp_path / "policy").model
    actions = policies.drawn(100, (3, 8, policies.ACTIONS))
    keep = torch.arange(8) >= torch.tensor([[0], [1], [1]])
    drawn = ChunkNoise(policies.drawn(0, (3, 20, 8, policies.ACTIONS)), torch.tensor([0, 7, 19]))
    batch = {"observation.state": torch.randn(3, 2, 4), "observation.environment_state": torch.randn(3, 2, 7)}
    seen = Observations(torch.cat([batch["observation.state"], batch["observation.environment_state"]], -1))
    found = model.losses(seen, Chunks(actions, keep), drawn)["actions"]
    monkeypatch.setattr(torch, "randn", lambda *_, **__: drawn.noise[:, 0])
    monkeypatch.setattr(torch, "randint", lambda *_, **__: drawn.steps)
    wanted, _ = made[0].forward({**batch, "action": actions, "action_is_pad": ~keep})
    assert found.count == int(keep.sum())
    torch.testing.assert_close(found.total / keep.numel(), wanted, rtol=1e-5, atol=1e-6)


def test_a_configuration_is_read_without_weights(folders: Callable[[str], Path]) -> None:
    config = open_config(folders("act-cameras"))
    assert isinstance(config, ActConfig)
    assert isinstance(config.observation, SceneEmbedConfig)
    assert (config.observation.length, config.chunk) == (3 + 2 * 3 + 2 * 1, 6)


def test_what_a_diffusion_policy_is(folders: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    config = open_config(folders("diffusion-cameras"))
    assert isinstance(config, UNetPolicyConfig)
    assert (config.chunk, config.history, config.observation.crop, config.observation.grid) == (6, 3, (54, 72), (2, 3))
    assert cli(["show", str(folders("diffusion-cameras"))]) == 0
    told = capsys.readouterr().out
    for part in ("8 actions with 4 dimensions", "2 cameras of 70 x 90", "widths 16, 32", "6 of 20 steps by DDIM"):
        assert part in told


class Nudged(gymnasium.Env):
    """States of 11 numbers and actions of 4, of which the first move the first numbers; no one says what succeeds."""

    observation_space = gymnasium.spaces.Box(-9, 9, (11,), np.float32)
    action_space = gymnasium.spaces.Box(-9, 9, (policies.ACTIONS,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self.state = np.random.default_rng(seed).uniform(-1, 1, 11).astype(np.float32)
        return self.state.copy(), {}

    def step(self, action: np.ndarray) -> Any:
        self.state[: policies.ACTIONS] += 0.1 * action
        return self.state.copy(), -float(np.abs(self.state).max()), False, False, {}


gymnasium.register("HeadwayNudged-v0", entry_point=Nudged, max_episode_steps=9)


def test_it_plays_where_it_is_told_to(
    folders: Callable[[str], Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["rollout", str(folders("act-older")), "--episodes", "3", "--json"]
    assert cli(words) == 2
    assert "has no environment; choose one with --env" in capsys.readouterr().err
    assert cli([*words, "--env", "HeadwayNudged-v0"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (found["length_mean"], found["samples"]) == (9.0, 3)
    again = hw.load(folders("act-older")).rollout("HeadwayNudged-v0", 3, seed=found["seed"], execute=3, ensemble=None)
    assert again["return_mean"] == found["return_mean"]
    assert cli(["rollout", str(folders("diffusion-numbers")), "--env", "HeadwayNudged-v0", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    again = hw.load(folders("diffusion-numbers")).rollout("HeadwayNudged-v0", 10, seed=found["seed"])
    assert again["return_mean"] == found["return_mean"]


def test_side_by_side_as_alone(folders: Callable[[str], Path]) -> None:
    """What was seen before goes on with its own episode where others end."""
    policy = hw.load(folders("diffusion-numbers")).policy()
    states = policies.noise("several", (5, 3, 11)).astype(np.float32)

    def played(rows: list[int], over: int | None = None) -> np.ndarray:
        """The actions of rows; that of `over` ends before the fourth step."""
        acting, found, here = PolicyRunner(policy.model, policy.codec, rows), [], list(rows)
        for step, state in enumerate(states):
            if step == 3 and over is not None:
                acting.keep_rows(np.array([place for place, row in enumerate(here) if row != over]))
                here.remove(over)
            seen = Observations(torch.from_numpy(state[here]))
            found.append(acting.act(lambda seen=seen: seen)[here.index(2)])
        return np.stack(found)

    np.testing.assert_allclose(played([0, 1, 2], over=0), played([2]), **CLOSE)


def demonstrations(numbers: int) -> Episodes:
    """Six of ten steps, with states of so many numbers."""
    states = policies.noise("states", (60, numbers)).astype(np.float32)
    actions = 4 * policies.noise("actions", (60, policies.ACTIONS)).astype(np.float32)
    none = np.zeros(6, np.int64)
    ends = np.cumsum(np.full(6, 10))
    return Episodes(
        states=states,
        actions=actions,
        rewards=np.zeros(60),
        ends=ends,
        cut=none.astype(bool),
        named_splits=none.astype(np.uint8),
        tasks=none,
        task_names=("nudge",),
        environments=("",),
        rate=10.0,
    )


@pytest.mark.parametrize("case", ["act-older", "diffusion-numbers"])
def test_training_goes_on_from_it(
    case: str, folders: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its own scales; the run is written back into LeRobot's format with them."""
    data = demonstrations(11)
    monkeypatch.setattr(robotics_task, "read_demonstrations", lambda paths, cache, size, cameras: data)
    how: dict[str, Any] = {"train.steps": 5, "train.batch_size": 8, "train.precision": "fp32", "task.episodes": 0}
    how |= {"task.split.validation": 0.3, "task.split.test": 0.3, "optim.lr": 1e-3}
    run = tmp_path / "run"
    start = str(folders(case))
    found = hw.train("robotics", "any.npz", how, run=run, from_=start, progress=False)
    assert found.summary["fresh"] == []
    first, last = (open_model(place).model for place in (start, run))
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), last.parameters()))
    own, kept = (hw.load(place).policy().codec for place in (start, run))
    for name in ("mean", "std", "shift", "scale", "farthest"):
        assert getattr(kept, name) == getattr(own, name)
    hw.export(run, tmp_path / "theirs")
    seen = {"state": data.states[0]}
    wanted = hw.load(run).policy().predict_action_chunk(seen)
    np.testing.assert_allclose(hw.load(tmp_path / "theirs").policy().predict_action_chunk(seen), wanted, **CLOSE)


def test_demonstrations_of_another_robot_are_refused(
    folders: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = demonstrations(4)
    monkeypatch.setattr(robotics_task, "read_demonstrations", lambda paths, cache, size, cameras: data)
    with pytest.raises(UserError, match="the data have states of 4 numbers, but this policy takes 11 numbers"):
        hw.train("robotics", "any.npz", run=tmp_path / "run", from_=str(folders("act-older")), progress=False)


def edited(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    said = json.loads(path.read_text())
    change(said)
    path.write_text(json.dumps(said))


def settings(**values: Any) -> Callable[[Path], None]:
    return lambda folder: edited(folder / "config.json", lambda said: said.update(values))


def feature(name: str, side: str = "input_features", **values: Any) -> Callable[[Path], None]:
    return lambda folder: edited(folder / "config.json", lambda said: said[side].update({name: values}))


def step(**values: Any) -> Callable[[Path], None]:
    return lambda folder: edited(folder / "policy_preprocessor.json", lambda said: said["steps"][3].update(values))


def without(name: str) -> Callable[[Path], None]:
    """A folder that lacks a statistic."""

    def change(folder: Path) -> None:
        path = next(folder.glob("policy_preprocessor*.safetensors"))
        save_file({key: each for key, each in load_file(path).items() if key != name}, path)

    return change


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def unsaid(folder: Path) -> None:
    for path in folder.glob("policy_*"):
        path.unlink()


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "another policy": (
        settings(type="pi0"),
        "policies of type 'pi0' are not supported; use act or diffusion",
    ),
    "a language model's": (settings(type="smolvla"), "policies of type 'smolvla' are not supported"),
    "another backbone": (settings(vision_backbone="resnet50"), "vision_backbone is 'resnet50'"),
    "several observations": (settings(n_obs_steps=2), "n_obs_steps is 2"),
    "dilated": (settings(replace_final_stride_with_dilation=True), "replace_final_stride_with_dilation is True"),
    "gated": (settings(feedforward_activation="glu"), "feedforward_activation is 'glu'"),
    "too many to execute": (settings(n_action_steps=7), "n_action_steps is 7; choose 1 to 6, the chunk length"),
    "heads that do not fit": (settings(n_heads=5), "width 32 is not divisible by heads 5"),
    "another width": (settings(dim_model=64), "shape"),
    "many layers": (settings(n_encoder_layers=10**9), "too many for the"),
    "a chunk beyond the file": (settings(chunk_size=10**12), "more than"),
    "a width of no one": (settings(dim_model=10**9, n_heads=1), "head"),
    "pictures of no one": (
        feature(policies._TOP, type="VISUAL", shape=[3, 10**9, 10**9]),
        "are not supported; set both sides from 1 to 16384",
    ),
    "a depth map": (feature("observation.images.depth", type="VISUAL", shape=[1, 40, 72]), "use observation.state and"),
    "words": (feature("task", type="LANGUAGE", shape=[1]), "use observation.state and"),
    "shapes as text": (feature(policies._STATE, type="STATE", shape="five"), "shape"),
    "another state": (feature(policies._STATE, type="STATE", shape=[6]), "shape"),
    "two things said": (feature("torque", "output_features", type="ACTION", shape=[2]), "the output should be action"),
    "no statistics": (unsaid, "has no mean for observation.images.top"),
    "a statistic too few": (without("observation.state.std"), "has no std for observation.state"),
    "a step of its own": (step(registry_name=None), "has the unknown step"),
    "code of its own": (step(**{"class": "mine.Step", "registry_name": None}), "has the unknown step 'mine.Step'"),
    "a file elsewhere": (step(state_file="../other.safetensors"), "which are not a file in its folder"),
    "no pipeline": (lambda folder: (folder / "policy_postprocessor.json").write_text("{}"), "has no list of steps"),
    "cut weights": (cut, "bytes"),
    "another mode": (
        lambda folder: edited(
            folder / "policy_preprocessor.json", lambda said: said["steps"][3]["config"]["norm_map"].update(STATE="LOG")
        ),
        "STATE is 'LOG'",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_folders(
    name: str, folders: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line that says what is wrong, exit code 2, nothing written."""
    change, message = BAD[name]
    shutil.copytree(folders("act-cameras"), tmp_path / "policy")
    change(tmp_path / "policy")
    assert cli(["import", str(tmp_path / "policy"), str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) == 1, error
    assert not (tmp_path / "out").exists()


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "another schedule": ({"beta_schedule": "linear"}, "beta_schedule is 'linear'"),
    "another sampler": ({"noise_scheduler_type": "LCM"}, "noise_scheduler_type is 'LCM'"),
    "what is said": ({"prediction_type": "v_prediction"}, "prediction_type is 'v_prediction'"),
    "no limit": ({"clip_sample": False}, "a head that predicts noise needs clipped samples"),
    "an odd horizon": ({"horizon": 10, "n_action_steps": 8}, "set a multiple of 4"),
    "a longer past": ({"n_obs_steps": 9, "n_action_steps": 1}, "and model.horizon at least model.history"),
    "too many to execute": ({"n_action_steps": 8}, "n_action_steps is 8; choose 1 to 7, the chunk length"),
    "even taps": ({"kernel_size": 4}, "taps is 4; set an odd kernel size"),
    "groups that do not fit": ({"n_groups": 5}, "16 channels are not divisible into 5 groups"),
    "no levels": ({"down_dims": []}, "widths=[] and groups"),
    "more steps than there are": ({"num_inference_steps": 21}, "cannot sample 21 of 20 steps"),
    "wider": ({"down_dims": [16, 24, 64]}, "shape"),
    "an odd step": ({"diffusion_step_embed_dim": 5}, "set an even embedding size"),
    "no state": ({"input_features": {policies._ENV: {"type": "ENV", "shape": [7]}}}, "policy needs actions"),
    "a crop beyond": (
        {
            "input_features": {
                policies._STATE: {"type": "STATE", "shape": [4]},
                policies._TOP: {"type": "VISUAL", "shape": [3, 40, 40]},
            },
            "crop_shape": [50, 30],
        },
        "a crop of 50 x 30 pixels does not fit in 40 x 40",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_bad_diffusion_policies(
    name: str, folders: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, message = WRONG[name]
    shutil.copytree(folders("diffusion-numbers"), tmp_path / "policy")
    settings(**change)(tmp_path / "policy")
    assert cli(["import", str(tmp_path / "policy"), str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) == 1, error
    assert not (tmp_path / "out").exists()


def test_statistics_that_were_never_filled(folders: Callable[[str], Path], tmp_path: Path) -> None:
    """Older files begin with infinities."""
    shutil.copytree(folders("act-older"), tmp_path / "policy")
    path = tmp_path / "policy/model.safetensors"
    tensors = load_file(path)
    tensors["normalize_inputs.buffer_observation_state.min"].fill_(torch.inf)
    save_file(tensors, path)
    with pytest.raises(UserError, match=r"has 4 values, but 4 finite values are needed"):
        open_model(tmp_path / "policy")


def test_other_pictures_are_made_as_large_as_those_of_training(folders: Callable[[str], Path]) -> None:
    policy = hw.load(folders("act-cameras")).policy()
    seen = next(policies.observations(policies.CASES["act-cameras"][1]))
    first, second = ({**seen, policies._TOP: np.full((*size, 3), 90, np.uint8)} for size in ((40, 72), (90, 100)))
    np.testing.assert_allclose(*map(policy.predict_action_chunk, (first, second)), rtol=1e-5, atol=1e-5)
