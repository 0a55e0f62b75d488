"""Classes in a user's own files, named ``file.py:Class``."""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attngrid.core.errors import ConfigError

_USER_CLASS = re.compile(r"(?P<file>.+\.py):(?P<name>[A-Za-z_][A-Za-z0-9_]*)")


@dataclass(frozen=True)
class UserClass:
    """A class in a user's file. The file is parsed and not run."""

    file: Path
    name: str
    sha256: str
    lineage: tuple[ast.ClassDef, ...]

    def keywords(self, first: int) -> frozenset[str]:
        """The constructor's arguments after ``self`` and the next ``first``."""
        for node in self.lineage:
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and method.name == "__init__":
                    arguments = [*method.args.args[1 + first :], *method.args.kwonlyargs]
                    return frozenset(argument.arg for argument in arguments)
        return frozenset()

    def constants(self) -> dict[str, Any]:
        """The literal class attributes, with those of base classes in the same file."""
        values: dict[str, Any] = {}
        for node in reversed(self.lineage):
            for line in node.body:
                if isinstance(line, ast.Assign):
                    targets, value = line.targets, line.value
                elif isinstance(line, ast.AnnAssign) and line.value is not None:
                    targets, value = [line.target], line.value
                else:
                    continue
                for target in targets:
                    if isinstance(target, ast.Name):
                        try:
                            values[target.id] = ast.literal_eval(value)
                        except ValueError:
                            values.pop(target.id, None)  # not a literal
        return values


def is_user_class(name: str) -> bool:
    """Whether a name has the form ``file.py:Class``."""
    return _USER_CLASS.fullmatch(name) is not None


def find_user_class(kind: str, name: str) -> UserClass:
    """Parse the file of ``file.py:Class``.

    Raises:
        ConfigError: the file is missing, is not Python, or lacks the class.
    """
    match = _USER_CLASS.fullmatch(name)
    assert match is not None
    file = Path(match["file"])
    if not file.is_file():
        raise ConfigError(f"{kind} {name!r}: there is no file {file} in {Path.cwd()}")
    source = file.read_bytes()
    try:
        tree = ast.parse(source, filename=str(file))
    except SyntaxError as error:
        raise ConfigError(f"{file}, line {error.lineno}: {error.msg}") from None
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    if match["name"] not in classes:
        have = ", ".join(classes) or "none"
        raise ConfigError(f"{file}: has no class {match['name']!r}; it has {have}")
    lineage, names = [], [match["name"]]
    while names:
        if (node := classes.pop(names.pop(0), None)) is not None:
            lineage.append(node)
            names += [base.id for base in node.bases if isinstance(base, ast.Name)]
    return UserClass(file, match["name"], hashlib.sha256(source).hexdigest(), tuple(lineage))


def load_user_class(name: str, sha256: str) -> Any:
    """Import the class of ``file.py:Class``. An edited file is imported anew.

    Raises:
        ConfigError: the import raised an error.
    """
    filename, _, class_name = name.rpartition(":")
    file = Path(filename)
    module_name = f"attngrid_own_{file.stem}_{sha256[:12]}"
    if module_name not in sys.modules:
        spec = importlib.util.spec_from_file_location(module_name, file)
        if spec is None or spec.loader is None:
            raise ConfigError(f"{file}: cannot be imported")
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[module_name]
            raise ConfigError(f"{file}: {type(error).__name__}: {error}") from error
    return getattr(sys.modules[module_name], class_name)
