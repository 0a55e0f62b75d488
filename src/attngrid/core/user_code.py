"""Classes in a user's own files, named ``file.py:Class``."""

from __future__ import annotations

import ast
import hashlib
import re
import sys
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

from attngrid.core.class_digest import class_digest
from attngrid.core.errors import ConfigError
from attngrid.core.files import expand

# What an expression of literals is made of.
_LITERAL = (
    *(ast.Constant, ast.Tuple, ast.List, ast.Set, ast.Dict, ast.BinOp, ast.UnaryOp),
    *(ast.operator, ast.unaryop, ast.expr_context),
)
_MODULE_PREFIX = "attngrid_own_"  # of the modules that contain users' classes
_USER_CLASS = re.compile(r"(?P<file>.+\.py):(?P<name>[A-Za-z_][A-Za-z0-9_]*)")


@dataclass(frozen=True)
class UserClass:
    """A class in a user's file. The file is parsed but not run.

    Attributes:
        source: the content of the file.
        sha256: the digest of the class and of what it uses from the file.
        body: the statements of its base classes in the same file, then its own.
    """

    file: Path
    name: str
    source: bytes
    sha256: str
    body: list[ast.stmt]

    def keywords(self, skip: int) -> dict[str, Any]:
        """The constructor's arguments, without ``self`` and the first ``skip``, and their defaults.

        The default is None if there is none, or none that is a literal.
        """
        for method in reversed(self.body):
            if isinstance(method, ast.FunctionDef) and method.name == "__init__":
                given = method.args
                positional = [*given.posonlyargs, *given.args]
                values = [None] * (len(positional) - len(given.defaults)) + given.defaults
                pairs = list(zip(positional, values, strict=True))
                # a keyword cannot give an argument before the `/`
                pairs = pairs[max(1 + skip, len(given.posonlyargs)) :]
                pairs += zip(given.kwonlyargs, given.kw_defaults, strict=True)
                return {argument.arg: _literal_or_none(value) for argument, value in pairs}
        return {}

    def constants(self, names: Collection[str]) -> dict[str, Any]:
        """The values of those class attributes that have one of ``names``.

        Raises:
            ConfigError: a value is more than arithmetic of literals.
        """
        values: dict[str, Any] = {}
        for line in self.body:
            if isinstance(line, ast.Assign | ast.AnnAssign) and line.value is not None:
                targets = [line.target] if isinstance(line, ast.AnnAssign) else line.targets
                for name in (one.id for one in targets if isinstance(one, ast.Name)):
                    if name in names:
                        values[name] = self._constant(name, line.value)
        return values

    def _constant(self, name: str, value: ast.expr) -> Any:
        try:
            return _literal(value)
        except Exception:
            raise ConfigError(
                f"{self.file}, line {value.lineno}: {self.name}.{name}: found "
                f"{ast.unparse(value)}; needs a literal such as 10 or 2 * 5, because the file is "
                "read and not run"
            ) from None


def _literal(value: ast.expr) -> Any:
    """The value of an expression of literals; raises any error for another expression."""
    if not all(isinstance(part, _LITERAL) for part in ast.walk(value)):
        raise ValueError("is not made of literals")
    code = compile(ast.Expression(value), "<literal>", "eval")
    return eval(code, {"__builtins__": {}})  # noqa: S307, it has no names and no calls


def _literal_or_none(value: ast.expr | None) -> Any:
    with suppress(Exception):
        return None if value is None else _literal(value)
    return None


def is_user_class(name: str) -> bool:
    """Whether a name has the form ``file.py:Class``."""
    return _USER_CLASS.fullmatch(name) is not None


def find_user_class(kind: str, name: str) -> UserClass:
    """Find the class ``file.py:Class`` in its parsed file.

    Raises:
        ConfigError: the file is missing, is not Python, lacks the class, or imports another file
            of its folder.
    """
    match = _USER_CLASS.fullmatch(name)
    assert match is not None
    file = expand(match["file"])
    if not file.is_file():
        raise ConfigError(f"{kind} {name!r}: there is no file {file} in {Path.cwd()}")
    return _parse(file, match["name"], file.read_bytes())


@lru_cache(maxsize=256)
def _parse(file: Path, name: str, source: bytes) -> UserClass:
    try:
        tree = ast.parse(source, filename=str(file))
    except SyntaxError as error:
        raise ConfigError(f"{file}, line {error.lineno}: {error.msg}") from None
    _require_one_file(file, tree)
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    if name not in classes:
        found = ", ".join(classes) or "none"
        raise ConfigError(f"{file}: has no class {name!r}; it has {found}")
    body: list[ast.stmt] = []
    names = [name]
    while names:
        if (node := classes.pop(names.pop(0), None)) is not None:
            body = [*node.body, *body]
            names += [base.id for base in node.bases if isinstance(base, ast.Name)]
    return UserClass(file, name, source, class_digest(tree, name), body)


def _require_one_file(file: Path, tree: ast.Module) -> None:
    """Raise a ConfigError if a file imports another one of its folder.

    The digest does not cover that file, and whether Python finds it depends on the program.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = ["." * node.level + (node.module or "")]
        else:
            continue
        for module in names:
            root = module.partition(".")[0]
            files = {file.parent / f"{root}.py", file.parent / root / "__init__.py"} - {file}
            if module.startswith(".") or any(map(Path.is_file, files)):
                raise ConfigError(
                    f"{file}, line {node.lineno}: imports {module} from its own folder; the code "
                    "of a class must be in its file or in an installed package"
                )


def line_in_user_code(error: BaseException) -> str:
    """``file.py, line 12``: the innermost line of a user's class at which an error arose, or empty.

    An error that was raised from another one arose where the first one did.
    """
    while error.__cause__ is not None:
        error = error.__cause__
    found, trace = "", error.__traceback__
    while trace is not None:
        if str(trace.tb_frame.f_globals.get("__name__")).startswith(_MODULE_PREFIX):
            found = f"{trace.tb_frame.f_code.co_filename}, line {trace.tb_lineno}"
        trace = trace.tb_next
    return found


def load_user_class(name: str, sha256: str) -> Any:
    """Import the class of ``file.py:Class``. An edited file is imported again.

    Raises:
        ConfigError: the import raised an error, or the class has no longer this digest.
    """
    user = find_user_class("class", name)
    if user.sha256 != sha256:
        raise ConfigError(f"{user.file}: {user.name} was edited since this run began; run it again")
    # the whole file counts, so that all classes of a file are imported together
    content = hashlib.sha256(f"{user.file.absolute()}\0".encode() + user.source).hexdigest()
    module_name = f"{_MODULE_PREFIX}{user.file.stem}_{content[:12]}"
    if module_name not in sys.modules:
        module = ModuleType(module_name)
        module.__file__ = str(user.file)
        sys.modules[module_name] = module
        try:
            # not through the cache of bytecode, which may miss an edit within a second
            exec(compile(user.source, str(user.file), "exec"), vars(module))  # noqa: S102
        except Exception as error:
            del sys.modules[module_name]
            raise ConfigError(f"{user.file}: {type(error).__name__}: {error}") from error
    return getattr(sys.modules[module_name], user.name)
