"""What a user writes. `make lint` checks with mypy and pyright that the types hold."""

from __future__ import annotations

from pathlib import Path
from typing import assert_type

import numpy as np
import pandas as pd
import torch

import attngrid

model = attngrid.create_model("resnet18", "cbam", num_classes=100, stem="cifar")
assert_type(model, torch.nn.Module)
logits: torch.Tensor = model(torch.zeros(1, 3, 32, 32))

assert_type(attngrid.list_backbones(), list[str])
assert_type(attngrid.list_attentions(), list[str])
assert_type(attngrid.list_datasets(), list[str])
assert_type(attngrid.list_recipes(), list[str])
assert_type(attngrid.__version__, str)

results = attngrid.load_results("cifar20", Path(__file__).parents[2])
assert_type(results.summary, pd.DataFrame)
assert_type(results.trials, pd.DataFrame | None)

trained = attngrid.load_model("results/demo/records/….json")
assert_type(trained.predict(np.zeros((16, 16, 3), np.uint8)), list[tuple[str, float]])
assert_type(trained.classes, list[str])
assert_type(trained.cell.seed, int)
trained.export(Path("network.pt2"))
