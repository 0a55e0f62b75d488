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

_USER_CLASS = re.compile(r"(?P<file>.+\.py):(?P<name>[A-Za-z_][A-Za-z0-9_]*)")


@dataclass(frozen=True)
class Entry:
    """What a registered name stands for.

    Attributes:
        target: ``package.module:Class``, imported on first use; or ``file.py:Class``.
        label: how tables and figures write the name.
        options: the keyword arguments that make this name this variant.
        accepts: the keyword arguments that are left to a user.
        site: of an attention module, where it sits in a network (``backbones.sites``).
        same_as: the name that computes the same function; both share their records.
        sha256: of the file, for a class of the user's own.
    """

    target: str
    label: str
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    accepts: frozenset[str] = frozenset()
    same_as: str | None = None
    site: Literal["block", "expanded", "stages"] = "block"
    sha256: str | None = None

    def load(self) -> type[Any]:
        """Import the class."""
        module_name, _, name = self.target.rpartition(":")
        if self.sha256 is None:
            module = importlib.import_module(module_name)
        else:
            module = _import_file(Path(module_name), self.sha256)
        cls: type[Any] = getattr(module, name)
        return cls


def find(kind: str, registry: Mapping[str, Entry], name: str) -> Entry:
    """Return the entry of a registered name or of a user's ``file.py:Class``.

    Raises:
        UnknownNameError: no such name; the message lists the near ones.
        ConfigError: a ``file.py:Class`` whose file does not exist.
    """
    if name in registry:
        return registry[name]
    if match := _USER_CLASS.fullmatch(name):
        file = Path(match["file"])
        if not file.is_file():
            raise ConfigError(f"{kind} {name!r}: there is no file {file} in {Path.cwd()}")
        source = file.read_bytes()
        return Entry(
            name,
            label=match["name"],
            accepts=_keywords(file, source, match["name"]),
            sha256=hashlib.sha256(source).hexdigest(),
        )
    known = [*registry, "my_module.py:MyAttention"] if kind == "attention" else registry
    raise UnknownNameError(kind, name, known)


def _keywords(file: Path, source: bytes, name: str) -> frozenset[str]:
    """The options of a class's constructor, beside ``channels``, read without running the file."""
    try:
        tree = ast.parse(source, filename=str(file))
    except SyntaxError as error:
        raise ConfigError(f"{file}, line {error.lineno}: {error.msg}") from None
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    if name not in classes:
        raise ConfigError(f"{file}: has no class {name!r}; it has {', '.join(classes) or 'none'}")
    lineage = [name]
    while lineage:
        node = classes.get(lineage.pop(0))
        for method in node.body if node else ():
            if isinstance(method, ast.FunctionDef) and method.name == "__init__":
                arguments = [*method.args.args[2:], *method.args.kwonlyargs]  # after channels
                return frozenset(argument.arg for argument in arguments)
        lineage += [base.id for base in node.bases if isinstance(base, ast.Name)] if node else []
    return frozenset()


def _import_file(file: Path, sha256: str) -> Any:
    # One module per content, so that an edited file is never served from the cache.
    name = f"attngrid_user_{file.stem}_{sha256[:12]}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, file)
        if spec is None or spec.loader is None:
            raise ConfigError(f"{file}: cannot be imported")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[name]
            raise ConfigError(f"{file}: {type(error).__name__}: {error}") from error
    return sys.modules[name]
