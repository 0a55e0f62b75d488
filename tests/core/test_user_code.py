"""The identity of a user's class: its code and what it uses, and nothing else of its file."""

from __future__ import annotations

import ast
import hashlib
from pathlib import Path

import pytest

from attngrid.core.class_digest import class_digest
from attngrid.core.errors import ConfigError
from attngrid.core.user_code import find_user_class, load_user_class

SOURCE = '''\
"""Modules of a paper."""
from __future__ import annotations

import math

import torch
from torch import nn
import numpy as np

SCALE = 2
OFFSET: float = 0.5
UNUSED = 3


def gate(x):
    """The gate."""
    return torch.sigmoid(x + OFFSET)


def unused(x):
    return x + UNUSED


class Base(nn.Module):
    def forward(self, x):
        return x * gate(x)


class Mine(Base):
    """A module."""

    def __init__(self, channels, reduction=16):
        super().__init__()
        self.scale = math.sqrt(SCALE)  # a comment


class Neighbour(Base):
    start = 1

    def forward(self, x):
        return x * np.float32(self.start)


if __name__ == "__main__":
    print(Mine(16))
'''


def digest(source: str, name: str = "Mine") -> str:
    return class_digest(ast.parse(source), name)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("  # a comment", ""),
        ("SCALE = 2", "\n\nSCALE = 0x2  # the same number"),
        ("reduction=16):", "\n        reduction=(16),\n    ):"),
        ('"""Modules of a paper."""\n', ""),
        ('    """The gate."""\n', ""),
        ('    """A module."""\n', "    'Another text.'\n"),
        ("UNUSED = 3", "UNUSED = 4"),
        ("x + UNUSED", "x - UNUSED"),
        ("start = 1", "start = 2"),
        ("import numpy as np", "import numpy"),
        ("print(Mine(16))", "print(Mine(32))"),
        ("class Neighbour(Base):", "def more(x):\n    return eval(x)\n\nclass Neighbour(Base):"),
    ],
)
def test_what_a_class_does_not_use_does_not_change_its_digest(old: str, new: str) -> None:
    assert old in SOURCE
    assert digest(SOURCE.replace(old, new)) == digest(SOURCE)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("reduction=16", "reduction=8"),
        ("SCALE = 2", "SCALE = 3"),  # used by the class
        ("OFFSET: float = 0.5", "OFFSET: float = 0.25"),  # used by a function that its base uses
        ("torch.sigmoid", "torch.tanh"),
        ("x * gate(x)", "x + gate(x)"),
        ("class Mine(Base)", "class Mine(nn.Module)"),
        ("import math", "import numpy as math"),
        ("from torch import nn", "from mynn import nn"),
        # what may act on everything
        ("UNUSED = 3", "torch.set_default_dtype(torch.float64)"),
        ("UNUSED = 3", "UNUSED = torch.manual_seed(1)"),
        ("UNUSED = 3", "torch.backends.mkldnn.enabled = False"),
        ("UNUSED = 3", "if SCALE:\n    OFFSET = 7"),
        ("UNUSED = 3", "UNUSED += 1"),
        ("UNUSED = 3", "from mine import *"),
        ("def unused(x)", "@torch.jit.script\ndef unused(x)"),
        ("UNUSED = 3", "def _(): pass\n\n_()"),
        ('if __name__ == "__main__":', 'if __name__ != "__main__":'),
    ],
)
def test_what_a_class_uses_changes_its_digest(old: str, new: str) -> None:
    assert old in SOURCE
    assert digest(SOURCE.replace(old, new)) != digest(SOURCE)


@pytest.mark.parametrize(
    "dynamic",
    [
        "globals()['Neighbour']",
        "eval('Neighbour')",
        "exec('Neighbour.start = 2')",
        "gate.__globals__['Neighbour']",
        "Base.__subclasses__()",
        "len(Neighbours.__doc__)",
        "__import__('sys').modules[__name__].Neighbour",
    ],
)
def test_the_whole_file_counts_where_a_class_may_reach_all_of_it(dynamic: str) -> None:
    source = SOURCE.replace("math.sqrt(SCALE)", dynamic)
    assert digest(source.replace("start = 1", "start = 2")) != digest(source)
    for line in ("import sys", "from sys import modules", "import importlib.util as u"):
        inside = SOURCE.replace("super().__init__()", f"super().__init__()\n        {line}")
        assert digest(inside.replace("start = 1", "start = 2")) != digest(inside)


REGISTRY = """
REGISTRY = {}
def register(cls):
    REGISTRY[cls.__name__] = cls
    return cls
class Root:
    def __init_subclass__(cls):
        REGISTRY[cls.__name__] = cls
class Mine:
    def forward(self, x):
        return REGISTRY["Gate"]()(x)
"""


@pytest.mark.parametrize("head", ["@register\nclass Gate:", "class Gate(Root):"])
def test_a_class_that_registers_itself_counts(head: str) -> None:
    source = f"{REGISTRY}{head}\n    start = 1\n"
    assert digest(source.replace("start = 1", "start = 2")) != digest(source)


def test_the_digest_is_the_same_in_every_version_of_python() -> None:
    """The tree is written out by hand: Python 3.12 and 3.13 print and store it otherwise."""
    target = ["Name", ("id", "'x'")]
    value = ["Constant", ("value", "1")]
    assign = ["Assign", ("targets", [target]), ("value", value)]
    tree = [["ClassDef", ("name", "'A'"), ("body", [assign])]]
    expected = hashlib.sha256(repr(tree).encode()).hexdigest()
    assert digest("class A:\n  'text'\n  x = 1\n", "A") == expected
    newer = ast.parse("class A:\n  x = 1\n")
    newer.body[0].type_params = []  # type: ignore[attr-defined]  # a field of Python 3.12
    newer.body[0]._fields += ("type_params",)  # type: ignore[attr-defined,misc]
    assert class_digest(newer, "A") == expected


def test_equal_classes_of_two_files_are_one_and_others_are_not() -> None:
    assert digest("class A: pass\n", "A") == digest("import math\nclass A: ...\n", "A")
    assert digest("class A: x = 1\n", "A") != digest("class A: x = True\n", "A")
    assert digest("class A: x = None\n", "A") != digest("class A: x: None\n", "A")
    both = "class A: pass\nclass B(A): pass\n"
    assert digest(both, "A") != digest(both, "B")


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "mine.py"


def test_an_edited_file_is_imported_again_and_its_classes_together(mine: Path) -> None:
    """Also within the second in which Python's cache of bytecode takes a file to be the same."""
    for number in (1, 2):
        mine.write_text(f"VALUE = {number}\nclass A: value = VALUE\nclass B(A): pass\n")
        a, b = (find_user_class("attention", f"mine.py:{name}") for name in "AB")
        found = load_user_class("mine.py:A", a.sha256)
        assert found.value == number
        assert issubclass(load_user_class("mine.py:B", b.sha256), found)
        mine.write_text(mine.read_text() + "class C: pass\n")
        assert find_user_class("attention", "mine.py:A").sha256 == a.sha256
        assert load_user_class("mine.py:A", a.sha256).value == number


def test_an_edit_between_the_digest_and_the_import_is_an_error(mine: Path) -> None:
    mine.write_text("class A: value = 1\n")
    digest = find_user_class("attention", "mine.py:A").sha256
    mine.write_text("class A: value = 2\n")
    with pytest.raises(ConfigError, match=r"mine\.py: A was edited since this run began"):
        load_user_class("mine.py:A", digest)


@pytest.mark.parametrize(
    ("line", "file"),
    [
        ("import helper", "helper.py"),
        ("from helper import gate", "helper.py"),
        ("import blocks.gates", "blocks/__init__.py"),
        ("from .helper import gate", "helper.py"),
        ("from . import helper", "helper.py"),
    ],
)
def test_an_import_of_a_file_beside_it_is_one_line(mine: Path, line: str, file: str) -> None:
    Path(file).parent.mkdir(exist_ok=True)
    Path(file).write_text("gate = 1\n")
    mine.write_text(f"import math\nclass A:\n    def f(self):\n        {line}\n")
    with pytest.raises(ConfigError) as raised:
        find_user_class("attention", "mine.py:A")
    module = line.split()[1]
    assert str(raised.value) == (
        f"mine.py, line 4: imports {module} from its own folder; the code of a class must be in "
        "its file or in an installed package"
    )


@pytest.mark.parametrize(
    ("arguments", "keywords"),
    [
        ("self, channels, reduction=16", {"reduction": 16}),
        ("self, channels, /, reduction=16", {"reduction": 16}),
        ("self, channels, start=1, /, reduction=2 * 8", {"reduction": 16}),
        ("self, /, channels, reduction=16, *, bias=False", {"reduction": 16, "bias": False}),
        ("self, channels, reduction", {"reduction": None}),
        ("self, channels, *args, rates=(0.5, 1 - 0.5), **more", {"rates": (0.5, 0.5)}),
        ("self, channels, act=print, r=SCALE", {"act": None, "r": None}),
    ],
)
def test_keywords_are_what_a_call_can_name(mine: Path, arguments: str, keywords: object) -> None:
    mine.write_text(f"class A:\n    def __init__({arguments}): pass\n")
    assert find_user_class("attention", "mine.py:A").keywords(skip=1) == keywords


def test_class_attributes_are_arithmetic_of_literals(mine: Path) -> None:
    mine.write_text(
        "class Base:\n    num_classes = 2 * 4\n    size: int = 2**5 - -1\n    other = print()\n"
        "class A(Base):\n    label = 'a' + 'b'\n    files = ('x', *('y',)) if 0 else ['x']\n"
    )
    user = find_user_class("dataset", "mine.py:A")
    assert user.constants({"num_classes", "size", "label"}) == {
        "num_classes": 8,
        "size": 33,
        "label": "ab",
    }
    with pytest.raises(ConfigError, match=r"mine\.py, line 7: A\.files: found .*needs a literal"):
        user.constants({"files"})
