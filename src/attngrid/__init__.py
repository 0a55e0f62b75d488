"""attngrid: the grids of the attention papers, trained, counted and set beside what was printed.

>>> import attngrid
>>> model = attngrid.create_model("resnet18", "cbam", num_classes=10, stem="cifar", width=0.25)
>>> results = attngrid.load_results("cifar20")
>>> results.summary.set_index("attention")["top1_accuracy_mean"].round(1).to_dict()
{'none': 49.7, 'se': 50.8, 'sam': 7.8, 'csm': 50.2, 'csm_sam_first': 37.4}

``docs/notebooks/first_steps.ipynb`` shows all of it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attngrid.analysis.frames import load_results
    from attngrid.data.registry import list_datasets
    from attngrid.models.registry import list_attentions, list_backbones
    from attngrid.study.recipe import list_recipes
    from attngrid.training.trained import load_model
    from attngrid.training.weights import create_model

__version__ = "0.1.0"
__all__ = [
    "create_model",
    "list_attentions",
    "list_backbones",
    "list_datasets",
    "list_recipes",
    "load_model",
    "load_results",
]

# Imported on first use: reading results must not need torch, nor building a model pandas.
_HOME = {
    "create_model": "attngrid.training.weights",
    "list_attentions": "attngrid.models.registry",
    "list_backbones": "attngrid.models.registry",
    "list_datasets": "attngrid.data.registry",
    "list_recipes": "attngrid.study.recipe",
    "load_model": "attngrid.training.trained",
    "load_results": "attngrid.analysis.frames",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'attngrid' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return ["__version__", *__all__]
