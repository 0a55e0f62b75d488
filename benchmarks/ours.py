"""Our own loop as a side of a comparison."""

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
    """Our own loop; a sample is so many steps, as it is of the peers."""
    from attngrid.training import loop

    class Samples(Checkpoints):
        """Is asked after each step whether a checkpoint is due: never."""

        asked = 0

        def due(self) -> bool:
            if torch.is_grad_enabled():  # not after a batch of the test at an epoch's end
                self.asked += 1
                if self.asked % setting.steps == 0:
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
