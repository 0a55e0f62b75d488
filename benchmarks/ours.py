"""This package's training loop as a side of a comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from setting import Setting
from sides import Wait

from attngrid.core.validation import validate
from attngrid.study.compute import Compute
from attngrid.study.schema import Study
from attngrid.training.checkpoint import Checkpoints

OFF = {
    "channels_last": False,
    "fused_optimizer": False,
    "compile": False,
}


def train(
    wait: Wait,
    setting: Setting,
    attention: str,
    precision: str,
    performance: dict[str, Any],
    *,
    deterministic: bool = True,
) -> None:
    """Train with ``attngrid.training.loop``; call ``wait`` after every ``setting.steps`` steps."""
    from attngrid.training import loop

    class Samples(Checkpoints):
        """Counts the loop's calls of ``due``, one after each step; no checkpoint is ever due."""

        steps = 0

        def due(self) -> bool:
            if torch.is_grad_enabled():  # false for test batches at the end of an epoch
                self.steps += 1
                if self.steps % setting.steps == 0:
                    wait()
            return False

    name = setting.data.__name__
    content = {
        "study": "benchmark",
        "grid": [
            {
                "dataset": f"{Path(__file__).with_name('synthetic.py')}:{name}",
                "backbones": [setting.backbone],
                "attentions": [attention],
                "recipes": ["benchmark"],
                "seeds": [0],
            }
        ],
        "recipes": {
            "benchmark": {
                "epochs": 10_000,
                "batch_size": setting.batch,
                "learning_rate": 0.01,
                "momentum": 0.9,
                "nesterov": True,
                "weight_decay": 5e-4,
                "schedule": {"kind": "step", "milestones": [9_999]},
                "train_transforms": [
                    {"kind": "random_crop", "padding": setting.data.input_size // 8},
                    {"kind": "flip"},
                ],
            }
        },
        "compute": {
            "device": setting.device,
            "precision": precision,
            "threads": setting.threads,
        },
    }
    (cell,) = validate(Study, content, "benchmark").cells
    loop.train(
        cell,
        torch.device(setting.device),
        Path(),
        checkpoints=Samples(Path("none"), cell.digest, share=0),
        compute=Compute.model_validate(
            {"deterministic": deterministic, "performance": performance}
        ),
    )
