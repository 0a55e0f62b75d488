"""attngrid: the grids of the attention papers, trained, counted and set beside what was printed.

>>> import attngrid
>>> model = attngrid.create_model("resnet50", "cbam")
>>> results = attngrid.load_results("demo")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attngrid.attention import list_attentions
    from attngrid.backbones import list_backbones
    from attngrid.evidence.frames import load_results
    from attngrid.model import create_model

__version__ = "0.1.0"
__all__ = ["create_model", "list_attentions", "list_backbones", "load_results"]

# Imported on first use: reading results must not need torch, nor building a model pandas.
_HOME = {
    "create_model": "attngrid.model",
    "list_attentions": "attngrid.attention",
    "list_backbones": "attngrid.backbones",
    "load_results": "attngrid.evidence.frames",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'attngrid' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
