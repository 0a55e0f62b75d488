"""Names to classes, without importing the classes: listing names must not cost a torch import."""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from attngrid.errors import ConfigError, UnknownNameError

_OWN_CLASS = re.compile(r"(?P<file>.+\.py):(?P<name>[A-Za-z_][A-Za-z0-9_]*)")


@dataclass(frozen=True)
class Entry:
    """What the name of an attention module or of a backbone stands for.

    Attributes:
        target: ``package.module:Class``, imported on first use; or ``file.py:Class``.
        label: how tables and figures write the name.
        options: the keyword arguments that make this name this variant.
        accepts: the keyword arguments that are left to a user.
        site: of an attention module, where it sits in a network (``backbones.sites``).
        same_as: the name that computes the same function; both share their records.
        sha256: of the file, for a class of the user's own.
        package: an optional package that it is from.
        sized: its constructor wants ``feat_size``, the height and width of its feature map.
        matches: of a control, the attention whose ``quantity`` the baseline is widened to.
        quantity: ``params`` or ``macs``.
    """

    target: str
    label: str
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    accepts: frozenset[str] = frozenset()
    same_as: str | None = None
    site: Literal["block", "expanded", "stages"] = "block"
    sha256: str | None = None
    package: str | None = None
    sized: bool = False
    matches: str | None = None
    quantity: Literal["params", "macs"] = "params"

    @property
    def foreign(self) -> bool:
        """Whether the class is another's, to be checked, and to keep the weights it starts with."""
        return self.sha256 is not None or self.package is not None

    def load(self) -> type[Any]:
        """Import the class.

        Raises:
            ConfigError: a package that is not installed, or a file that cannot be imported.
        """
        module_name, _, name = self.target.rpartition(":")
        self.require_package()
        cls: type[Any] = (
            load_own(self.target, self.sha256)
            if self.sha256 is not None
            else getattr(importlib.import_module(module_name), name)
        )
        return cls

    def require_package(self) -> None:
        """Raise where the optional package that this is from is not installed."""
        if self.package is not None and importlib.util.find_spec(self.package) is None:
            raise ConfigError(
                f"{self.label} is from {self.package}, which is not installed: "
                f'pip install "attngrid[{self.package}]"'
            )


@dataclass(frozen=True)
class OwnClass:
    """A class in a file of the user's own, read without running the file."""

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
        """The class's attributes that are written as plain values, a parent's too."""
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
                            values.pop(target.id, None)  # no plain value
        return values


def is_own(name: str) -> bool:
    """Whether a name has the form of a user's ``file.py:Class``."""
    return _OWN_CLASS.fullmatch(name) is not None


def find_own(kind: str, name: str) -> OwnClass:
    """Read a user's ``file.py:Class``.

    Raises:
        ConfigError: no such file, no Python, or no such class in it.
    """
    match = _OWN_CLASS.fullmatch(name)
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
    return OwnClass(file, match["name"], hashlib.sha256(source).hexdigest(), tuple(lineage))


def find(kind: str, registry: Mapping[str, Entry], name: str) -> Entry:
    """Return the entry of a registered name or of a user's ``file.py:Class``.

    Raises:
        UnknownNameError: no such name; the message lists the near ones.
        ConfigError: as ``find_own`` says.
    """
    if name in registry:
        return registry[name]
    if is_own(name):
        own = find_own(kind, name)
        # an attention module's first argument is channels, a backbone's is its sites
        return Entry(name, label=own.name, accepts=own.keywords(1), sha256=own.sha256)
    raise UnknownNameError(kind, name, [*registry, f"my_{kind}.py:My{kind.capitalize()}"])


def load_own(name: str, sha256: str) -> Any:
    """Import a user's ``file.py:Class``, one module per content: an edited file is read anew.

    Raises:
        ConfigError: what the file raises when it is imported.
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
