"""Digests of code that comments, docstrings, formatting and the version of Python do not change."""

from __future__ import annotations

import ast
import hashlib
from typing import Any

# Code with one of these can reach a name of its file without mentioning it.
DYNAMIC_NAMES = {"__import__", "eval", "exec", "globals", "locals", "vars"}
DYNAMIC_ATTRIBUTES = {"__builtins__", "__doc__", "__globals__", "__subclasses__"}
DYNAMIC_MODULES = {"builtins", "gc", "importlib", "inspect", "pkgutil", "runpy", "sys"}
# What differs between equal code, or between versions of Python.
IGNORED_FIELDS = {"ctx", "kind", "type_comment"}


def file_digest(source: bytes) -> str:
    """SHA-256 of the code of a Python file."""
    return hashlib.sha256(repr(_content(ast.parse(source).body)).encode()).hexdigest()


def class_digest(tree: ast.Module, name: str) -> str:
    """SHA-256 of a class and of the statements of its file that it uses, directly or not.

    A top-level statement is used if it binds a name that a used statement mentions. One that may
    act on everything is always used: all but imports, definitions without a decorator, and
    assignments that call nothing. The whole file is used if a used statement may reach a name
    without mentioning it.
    """
    statements = [one for one in tree.body if not _does_nothing(one)]
    used = [one for one in statements if _acts(one)]
    while True:
        mentioned = {name}.union(*map(_mentions, used))
        found = [one for one in statements if one not in used and _binds(one) & mentioned]
        if not found:
            break
        used += found
    if any(map(_is_dynamic, used)):
        used = statements
    content = [_content(one) for one in statements if one in used]
    return hashlib.sha256(repr(content).encode()).hexdigest()


def _does_nothing(node: Any) -> bool:
    """Whether a statement does nothing on import: a docstring, or the part for a script."""
    if isinstance(node, ast.If) and not node.orelse:
        return ast.unparse(node.test) == "__name__ == '__main__'"
    is_constant = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    return is_constant or isinstance(node, ast.Pass)


def _acts(node: ast.stmt) -> bool:
    """Whether a statement may change more than the names that it binds."""
    if isinstance(node, ast.ImportFrom):
        return node.names[0].name == "*"
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        is_hook = getattr(node, "keywords", False) or "__init_subclass__" in map(_name, node.body)
        return bool(node.decorator_list or is_hook)
    if isinstance(node, ast.Import):
        return False
    return not isinstance(node, ast.Assign | ast.AnnAssign) or any(
        isinstance(part, ast.Call)
        or (isinstance(part, ast.Attribute | ast.Subscript) and isinstance(part.ctx, ast.Store))
        for part in ast.walk(node)
    )


def _name(node: ast.stmt) -> str | None:
    return getattr(node, "name", None)


def _binds(node: ast.stmt) -> set[str]:
    """The names that a definition, an import or an assignment binds."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {node.name}
    if isinstance(node, ast.Import | ast.ImportFrom):
        return {alias.asname or alias.name.partition(".")[0] for alias in node.names}
    names = (part for part in ast.walk(node) if isinstance(part, ast.Name))
    return {part.id for part in names if isinstance(part.ctx, ast.Store)}


def _mentions(node: ast.stmt) -> set[str]:
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}


def _is_dynamic(node: ast.stmt) -> bool:
    """Whether a statement may reach a name that it does not mention."""
    for part in ast.walk(node):
        match part:
            case ast.Name(id=name) if name in DYNAMIC_NAMES | DYNAMIC_ATTRIBUTES:
                return True
            case ast.Attribute(attr=name) if name in DYNAMIC_ATTRIBUTES:
                return True
            case ast.FunctionDef(name="__init_subclass__"):
                return True
            case ast.ImportFrom(module=str(name), names=[first, *_]):
                if name.partition(".")[0] in DYNAMIC_MODULES or first.name == "*":
                    return True
            case ast.Import(names=names):
                if any(alias.name.partition(".")[0] in DYNAMIC_MODULES for alias in names):
                    return True
    return False


def _content(node: Any) -> Any:
    """A syntax tree as nested lists, without positions and without what does nothing.

    Empty fields are left out, because newer versions of Python have more of them.
    """
    if isinstance(node, list):
        return [_content(one) for one in node if not _does_nothing(one)]
    if not isinstance(node, ast.AST):
        return ascii(node)
    fields = ((k, v) for k, v in ast.iter_fields(node) if k not in IGNORED_FIELDS and v is not None)
    pairs = ((name, _content(value)) for name, value in fields)
    return [type(node).__name__, *(pair for pair in pairs if pair[1] != [])]
