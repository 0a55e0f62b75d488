"""Classes in a user's own files, named ``file.py:Class``."""

from __future__ import annotations

import ast
import hashlib
import re
import sys
from contextlib import suppress
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

from attngrid.core.errors import ConfigError
from attngrid.core.files import expand

_USER_CLASS = re.compile(r"(?P<file>.+\.py):(?P<name>[A-Za-z_][A-Za-z0-9_]*)")


@dataclass(frozen=True)
class UserClass:
    """A class in a user's file. The file is parsed but not run.

    Attributes:
        body: the statements of its base classes in the same file, then its own.
    """

    file: Path
    name: str
    sha256: str
    body: list[ast.stmt]

    def keywords(self, skip: int) -> dict[str, Any]:
        """The constructor's arguments, without ``self`` and the first ``skip``, and their defaults.

        The default is None if there is none, or none that is a literal.
        """
        for method in reversed(self.body):
            if isinstance(method, ast.FunctionDef) and method.name == "__init__":
                given = method.args
                values = [None] * (len(given.args) - len(given.defaults)) + given.defaults
                pairs = list(zip(given.args, values, strict=True))[1 + skip :]
                pairs += zip(given.kwonlyargs, given.kw_defaults, strict=True)
                return {argument.arg: _literal(value) for argument, value in pairs}
        return {}

    def constants(self) -> dict[str, Any]:
        """The class attributes whose values are literals."""
        values: dict[str, Any] = {}
        for line in self.body:
            if isinstance(line, ast.Assign | ast.AnnAssign) and line.value is not None:
                target = line.target if isinstance(line, ast.AnnAssign) else line.targets[0]
                if isinstance(target, ast.Name):
                    values.pop(target.id, None)
                    with suppress(ValueError):  # not a literal
                        values[target.id] = ast.literal_eval(line.value)
        return values


def _literal(value: ast.expr | None) -> Any:
    """The value of a literal; None for another expression."""
    with suppress(ValueError):
        return None if value is None else ast.literal_eval(value)
    return None


def is_user_class(name: str) -> bool:
    """Whether a name has the form ``file.py:Class``."""
    return _USER_CLASS.fullmatch(name) is not None


def find_user_class(kind: str, name: str) -> UserClass:
    """Find the class ``file.py:Class`` in its parsed file.

    Raises:
        ConfigError: the file is missing, is not Python, or lacks the class.
    """
    match = _USER_CLASS.fullmatch(name)
    assert match is not None
    file = expand(match["file"])
    if not file.is_file():
        raise ConfigError(f"{kind} {name!r}: there is no file {file} in {Path.cwd()}")
    source = file.read_bytes()
    try:
        tree = ast.parse(source, filename=str(file))
    except SyntaxError as error:
        raise ConfigError(f"{file}, line {error.lineno}: {error.msg}") from None
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    if match["name"] not in classes:
        found = ", ".join(classes) or "none"
        raise ConfigError(f"{file}: has no class {match['name']!r}; it has {found}")
    body: list[ast.stmt] = []
    names = [match["name"]]
    while names:
        if (node := classes.pop(names.pop(0), None)) is not None:
            body = [*node.body, *body]
            names += [base.id for base in node.bases if isinstance(base, ast.Name)]
    return UserClass(file, match["name"], hashlib.sha256(source).hexdigest(), body)


def load_user_class(name: str, sha256: str) -> Any:
    """Import the class of ``file.py:Class``. An edited file is imported again.

    Raises:
        ConfigError: the import raised an error.
    """
    filename, _, class_name = name.rpartition(":")
    file = expand(filename)
    module_name = f"attngrid_own_{file.stem}_{sha256[:12]}"
    if module_name not in sys.modules:
        module = ModuleType(module_name)
        module.__file__ = str(file)
        sys.modules[module_name] = module
        try:
            SourceFileLoader(module_name, str(file)).exec_module(module)
        except Exception as error:
            del sys.modules[module_name]
            raise ConfigError(f"{file}: {type(error).__name__}: {error}") from error
    return getattr(sys.modules[module_name], class_name)
