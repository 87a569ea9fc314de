"""Policies of LeRobot's own package, small ones, for tests: `python tests/parity/lerobot_policies.py` writes
lerobot_policies.json, what the package says of them, so that tests need it no more.

Weights, statistics and observations follow from the names and places of their numbers, so that only what the package
gave is kept: the names and shapes of its tensors, and actions. lerobot 0.4.4 asks for torch below 2.8; with
HEADWAY_LEROBOT it is imported from a folder of its own, where `pip install --no-deps --target` put it, draccus 0.10.0,
einops, diffusers, datasets and what they import, and runs with any torch.
"""

from __future__ import annotations

import json
import os
import sys
import types
import zlib
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

FILE = Path(__file__).with_suffix(".json")
STEPS = 5
_STATE, _ENV, _TOP, _WRIST = (
    "observation.state",
    "observation.environment_state",
    "observation.images.top",
    "observation.images.wrist",
)
_SMALL: dict[str, Any] = {
    "chunk_size": 6,
    "n_action_steps": 3,
    "dim_model": 32,
    "n_heads": 4,
    "dim_feedforward": 40,
    "n_encoder_layers": 2,
    "n_decoder_layers": 2,
    "n_vae_encoder_layers": 1,
    "latent_dim": 6,
}
_DENOISING: dict[str, Any] = {
    "horizon": 8,
    "n_action_steps": 3,
    "down_dims": (16, 24, 32),
    "n_groups": 4,
    "diffusion_step_embed_dim": 12,
    "num_train_timesteps": 20,
    "clip_sample_range": 9.0,
}
CAMERAS = {_TOP: (40, 72), _WRIST: (64, 32)}
_ALIKE = {_TOP: (70, 90), _WRIST: (70, 90)}

# Of each: its type, the sizes of what it sees, its settings, and whether statistics lie among the weights, as they did.
CASES: dict[str, tuple[str, dict[str, tuple[int, ...]], dict[str, Any], bool]] = {
    "act-cameras": ("act", {_TOP: CAMERAS[_TOP], _WRIST: CAMERAS[_WRIST], _STATE: (5,), _ENV: (3,)}, _SMALL, False),
    "act-older": (
        "act",
        {_ENV: (7,), _STATE: (4,)},
        {
            **_SMALL,
            "pre_norm": True,
            "feedforward_activation": "gelu",
            "n_decoder_layers": 1,
            "normalization_mapping": {"VISUAL": "MEAN_STD", "STATE": "MIN_MAX", "ENV": "MEAN_STD", "ACTION": "MIN_MAX"},
        },
        True,
    ),
    "act-ensembled": (
        "act",
        {_ENV: (7,)},
        {**_SMALL, "use_vae": False, "temporal_ensemble_coeff": 0.1, "n_action_steps": 1},
        False,
    ),
    "diffusion-numbers": ("diffusion", {_ENV: (7,), _STATE: (4,)}, _DENOISING, False),
    "diffusion-cameras": (
        "diffusion",
        {**_ALIKE, _STATE: (5,)},
        {
            **_DENOISING,
            "n_obs_steps": 3,
            "down_dims": (16, 32),
            "kernel_size": 3,
            "resize_shape": (60, 80),
            "crop_ratio": 0.9,
            "spatial_softmax_num_keypoints": 4,
            "use_film_scale_modulation": False,
            "noise_scheduler_type": "DDIM",
            "num_inference_steps": 6,
            "prediction_type": "sample",
        },
        False,
    ),
}
ACTIONS = 4


def noise(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers of -0.5 to 0.5 that follow from a name and their places."""
    count, phase = int(np.prod(shape)), zlib.crc32(name.encode()) / 2**32
    found = np.sin(np.arange(1, count + 1) * 12.9898 + 6.2 * phase) * 43758.5453
    return (found - np.floor(found) - 0.5).reshape(shape)


def weight(name: str, shape: tuple[int, ...]) -> Tensor:
    """One of a policy, of such a size that signals neither vanish nor grow."""
    found, last = noise(name, shape), name.rpartition(".")[2]
    if last.endswith("pos_enc"):
        found = sinusoids(*shape[1:])[None]
    elif last == "pos_grid":
        found = GRIDS[shape[0]]
    elif len(shape) > 1:
        found = found * (4.5 / np.sqrt(np.prod(shape[1:])))
    elif last == "running_var" or (last == "weight" and any(part in name for part in ("norm", ".bn", "diffusion."))):
        found = 1.0 + found
    return torch.from_numpy(found.astype(np.float32))


def grid(rows: int, columns: int) -> np.ndarray:
    """x and y of -1 to 1, row after row."""
    x, y = np.meshgrid(np.linspace(-1, 1, columns), np.linspace(-1, 1, rows))
    return np.stack([x.ravel(), y.ravel()], 1)


GRIDS = {6: grid(2, 3)}  # by their sizes


def sinusoids(length: int, width: int) -> np.ndarray:
    """Vaswani et al. 2017, section 3.5."""
    angles = np.arange(length)[:, None] / 10000.0 ** (np.arange(width) // 2 * 2 / width)
    return np.where(np.arange(width) % 2 == 0, np.sin(angles), np.cos(angles))


def statistics(seen: dict[str, tuple[int, ...]]) -> dict[str, dict[str, Tensor]]:
    """Of what is seen and of actions."""
    found = {}
    for name, size in {**seen, "action": (ACTIONS,)}.items():
        shape = (3, 1, 1) if len(size) == 2 else size
        low = noise(f"{name}.min", shape) - 1.0
        values = {"mean": noise(f"{name}.mean", shape), "std": 1.0 + noise(f"{name}.std", shape)}
        values |= {"min": low, "max": low + 2.0 + noise(f"{name}.max", shape)}
        found[name] = {each: torch.from_numpy(value.astype(np.float32)) for each, value in values.items()}
    return found


def drawn(number: int, shape: tuple[int, ...]) -> Tensor:
    """What chance gives at the draw of this number, of unit variance."""
    return torch.from_numpy((np.sqrt(12.0) * noise(f"drawn {number}", shape)).astype(np.float32))


def observations(seen: dict[str, tuple[int, ...]]) -> Iterator[dict[str, np.ndarray]]:
    """What is seen at each step: numbers, and pictures uint8 [H, W, 3]."""
    for step in range(STEPS):
        found = {}
        for name, size in seen.items():
            if len(size) == 2:
                found[name] = (255 * (noise(f"{name} {step}", (*size, 3)) + 0.5)).astype(np.uint8)
            else:
                found[name] = (3 * noise(f"{name} {step}", size)).astype(np.float32)
        yield found


def features(case: str) -> dict[str, Any]:
    """Those of a config.json."""
    kinds = {_STATE: "STATE", _ENV: "ENV"}
    seen = CASES[case][1]
    inputs = {
        name: {"type": kinds.get(name, "VISUAL"), "shape": [3, *size] if len(size) == 2 else list(size)}
        for name, size in seen.items()
    }
    return {"input_features": inputs, "output_features": {"action": {"type": "ACTION", "shape": [ACTIONS]}}}


def kept(case: str) -> dict[str, Any]:
    """What the package said of a case."""
    return json.loads(FILE.read_text(encoding="utf-8"))[case]


def write(case: str, folder: Path) -> Path:
    """The folder of a case, as the package wrote it, weights by their names."""
    said, seen, older = kept(case), CASES[case][1], CASES[case][3]
    tensors = {name: weight(name, tuple(shape)) for name, shape in said["shapes"].items()}
    folder.mkdir(parents=True)
    for name, text in said["files"].items():
        (folder / name).write_text(json.dumps(text), encoding="utf-8")
    for name, told in said["files"].items():
        for step in told.get("steps", ()) if name != "config.json" else ():
            if "state_file" in step:
                of = {f"{key}.{kind}": value for key, each in statistics(seen).items() for kind, value in each.items()}
                save_file(of, folder / step["state_file"])
    if older:
        for key, each in statistics(seen).items():
            place = f"buffer_{key.replace('.', '_')}"
            for prefix in ("normalize_targets", "unnormalize_outputs") if key == "action" else ("normalize_inputs",):
                tensors |= {f"{prefix}.{place}.{kind}": value.clone() for kind, value in each.items()}
    save_file(tensors, folder / "model.safetensors")
    return folder


def find_lerobot() -> str | None:
    """Why LeRobot's policies cannot be imported, in words; None where they can."""
    beside = os.environ.get("HEADWAY_LEROBOT")
    if beside and beside not in sys.path:
        sys.path.append(beside)
    spec = find_spec("lerobot")
    if spec is None or not spec.submodule_search_locations:
        return "lerobot is not installed: HEADWAY_LEROBOT may name the folder of a pip install --target"
    if "lerobot.policies" not in sys.modules:  # its own imports every policy, some of which need other packages
        package = types.ModuleType("lerobot.policies")
        package.__path__ = [str(Path(place) / "policies") for place in spec.submodule_search_locations]
        sys.modules["lerobot.policies"] = package
    try:
        import lerobot.policies.act.modeling_act
        import lerobot.policies.act.processor_act
        import lerobot.policies.diffusion.modeling_diffusion
        import lerobot.policies.diffusion.processor_diffusion  # noqa: F401
    except Exception as error:  # whatever is missing of what it imports
        return f"lerobot cannot be imported here: {error}"
    return None


def theirs(case: str, **settings: Any) -> tuple[Any, Any, Any]:
    """Policy, preprocessor and postprocessor of LeRobot's, with the weights of their names."""
    from lerobot.configs.types import FeatureType, NormalizationMode, PolicyFeature

    kind, seen, own, _ = CASES[case]
    if kind == "act":
        from lerobot.policies.act.configuration_act import ACTConfig as Config
        from lerobot.policies.act.modeling_act import ACTPolicy as Policy
        from lerobot.policies.act.processor_act import make_act_pre_post_processors as processors
    else:
        from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig as Config
        from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy as Policy
        from lerobot.policies.diffusion.processor_diffusion import make_diffusion_pre_post_processors as processors
    told = {
        side: {name: PolicyFeature(FeatureType[each["type"]], tuple(each["shape"])) for name, each in part.items()}
        for side, part in features(case).items()
    }
    how = {"pretrained_backbone_weights": None, "device": "cpu", **own, **settings}
    modes = how.pop("normalization_mapping", None)
    if modes:
        how["normalization_mapping"] = {name: NormalizationMode[mode] for name, mode in modes.items()}
    config = Config(**told, **how)
    policy = Policy(config)
    state = policy.state_dict()
    policy.load_state_dict(
        {name: weight(name, tuple(each.shape)) for name, each in state.items() if each.is_floating_point()},
        strict=False,  # without the numbers of batches that norms have seen
    )
    return policy.eval(), *processors(config, statistics(seen))


def acted(policy: Any, before: Any, after: Any, seen: dict[str, tuple[int, ...]]) -> np.ndarray:
    """What a policy of LeRobot's does at each step, [STEPS, ACTIONS], where chance gives what `drawn` says."""
    policy.reset()
    found, numbers = [], count()
    monkey = pytest.MonkeyPatch()
    monkey.setattr(torch, "randn", lambda *shape, size=None, **_: drawn(next(numbers), size or _shape(shape)))
    for each in observations(seen):
        tensors = {
            name: torch.from_numpy(value).permute(2, 0, 1).float() / 255 if value.ndim == 3 else torch.from_numpy(value)
            for name, value in each.items()
        }
        if _STATE not in tensors:  # LeRobot asks the robot's state for the number of rows, even where it reads none
            tensors[_STATE] = torch.zeros(0)
        found.append(after(policy.select_action(before(tensors)))[0].numpy())
    monkey.undo()
    return np.stack(found)


def _shape(given: tuple[Any, ...]) -> tuple[int, ...]:
    """That of torch.randn's arguments, numbers or a tuple of them."""
    return tuple(given[0]) if len(given) == 1 and not isinstance(given[0], int) else given


def main() -> None:
    reason = find_lerobot()
    if reason:
        raise SystemExit(reason)
    import tempfile
    from importlib.metadata import version

    found: dict[str, Any] = {"versions": {name: version(name) for name in ("lerobot", "torch", "diffusers")}}
    for case, (_, seen, _, older) in CASES.items():
        policy, before, after = theirs(case)
        with tempfile.TemporaryDirectory() as place:
            for each in (policy, before, after):
                each.save_pretrained(place)
            files = {path.name: json.loads(path.read_text(encoding="utf-8")) for path in Path(place).glob("*.json")}
        kept_files = {name: text for name, text in files.items() if not older or name == "config.json"}
        shapes = {name: list(each.shape) for name, each in policy.state_dict().items()}
        actions = [[round(float(number), 6) for number in row] for row in acted(policy, before, after, seen)]
        found[case] = {"files": kept_files, "shapes": shapes, "actions": actions}
    FILE.write_text(json.dumps(found, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
