"""Losses of TRL's own trainers: `python tests/parity/trl_losses.py` writes trl_losses.json, what their methods return
for the log probabilities below, so that tests do not need TRL.

trl 1.16.0 was installed by `pip install --no-deps trl datasets` with what they import, next to the test environment.
The methods run as they are, on a stand-in for the trainer that has only the settings they read.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

FILE = Path(__file__).with_suffix(".json")
BETAS = {"dpo": 0.3, "ipo": 0.2, "orpo": 0.4, "simpo": 2.5}
SMOOTHING, GAMMA = 0.1, 1.2


def token_log_probs(seed: int) -> tuple[Tensor, Tensor]:
    """Log probabilities of the tokens of 4 chosen and 4 rejected endings, and which tokens exist; from improbable
    endings to nearly certain ones.
    """
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([1, 3, 7, 9, 2, 5, 4, 9])
    scale = torch.tensor([3.0, 2.0, 1.0, 0.01, 1.0, 0.5, 4.0, 0.1])
    values = -torch.rand(8, 9, generator=generator, dtype=torch.float64) * scale[:, None]
    mask = torch.arange(9) < lengths[:, None]
    return values * mask, mask


def _losses() -> dict[str, Any]:
    """The mean loss of TRL's DPOTrainer and ORPOTrainer, and the losses of its CPOTrainer."""
    from trl.experimental.cpo.cpo_trainer import CPOTrainer
    from trl.experimental.orpo.orpo_trainer import ORPOTrainer
    from trl.trainer.dpo_trainer import DPOTrainer

    tokens, mask = token_log_probs(1)
    reference = token_log_probs(2)[0]
    means = (tokens.sum(1) / mask.sum(1)).chunk(2)
    accelerator = SimpleNamespace(device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x)

    def output(log_probs: Tensor) -> SimpleNamespace:
        unused = torch.zeros_like(log_probs)
        return SimpleNamespace(log_probs=log_probs, entropy=unused, mean_logits=unused, is_top1=unused.bool())

    def dpo(kind: str, beta: float) -> float:
        model: Any = torch.nn.Module()
        model.is_gradient_checkpointing = False
        trainer: Any = SimpleNamespace(
            model=model,
            ref_model=lambda **_: output(reference),
            accelerator=accelerator,
            aux_loss_enabled=False,
            ld_alpha=None,
            precompute_ref_logps=False,
            args=SimpleNamespace(gradient_checkpointing=False, gradient_checkpointing_kwargs=None),
            f_divergence_type="reverse_kl",
            loss_types=[kind],
            loss_weights=[1.0],
            beta=beta,
            use_weighting=False,
            _metrics={"train": defaultdict(list)},
            _total_train_tokens=0,
            _tp_size=1,
        )
        before = torch.zeros(8, 1, dtype=torch.bool)  # the first token is only an input
        inputs = {
            "input_ids": torch.zeros(8, 10, dtype=torch.long),
            "attention_mask": torch.ones(8, 10),
            "completion_mask": torch.cat([before, mask], 1),
        }
        return float(DPOTrainer._compute_loss(trainer, lambda **_: output(tokens), inputs, return_outputs=False))

    settings: Any = SimpleNamespace(
        accelerator=accelerator,
        alpha=0.0,
        loss_type="simpo",
        simpo_gamma=GAMMA,
        beta=BETAS["simpo"],
        label_smoothing=0.0,
    )
    losses: dict[str, Any] = {
        "dpo": dpo("sigmoid", BETAS["dpo"]),
        "ipo": dpo("ipo", BETAS["ipo"]),
        "simpo": CPOTrainer.cpo_loss(settings, *means)[0].tolist(),
    }
    settings.label_smoothing = SMOOTHING
    losses["simpo-smoothed"] = CPOTrainer.cpo_loss(settings, *means)[0].tolist()
    settings.beta = BETAS["orpo"]
    odds = ORPOTrainer.odds_ratio_loss(settings, *means)[0]  # the weighted log sigmoid, which is subtracted
    losses["orpo"] = (-odds).tolist()
    return losses


if __name__ == "__main__":
    import trl

    found = {"versions": {"trl": trl.__version__, "torch": torch.__version__}, "losses": _losses()}
    FILE.write_text(json.dumps(found, separators=(",", ":")) + "\n")
    sys.stdout.write(json.dumps(found, indent=1) + "\n")
