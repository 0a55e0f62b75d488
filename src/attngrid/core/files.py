"""Paths of the project's files, atomic writes, and reading YAML and JSON."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any, NoReturn

import yaml

from attngrid.core.errors import ConfigError


def is_checkout() -> bool:
    """Whether the working folder is a checkout; a user's own workflow is none."""
    return Path("workflow/rules/train.smk").is_file() and Path("reference/claims.yaml").is_file()


def home() -> Path:
    """The folder of the workflow, its tables and the published figures.

    This is the working folder if it is a checkout; else the copy in the installed package, or the
    checkout that an editable installation imports.
    """
    if is_checkout():
        return Path()
    package = Path(__file__).resolve().parents[1]
    installed = package / "shipped"
    return installed if installed.is_dir() else package.parents[1]


def shipped(file: str | Path) -> Path:
    """A file in the working folder; if it is missing there, the same file in ``home()``."""
    at_home = home() / file
    return at_home if not Path(file).exists() and at_home.exists() else Path(file)


def expand(path: str | os.PathLike[str], where: str = "") -> Path:
    """A path with ``~`` and environment variables such as ``$SCRATCH`` replaced.

    Raises:
        ConfigError: a variable is not set; the message begins with ``where``.
    """
    found = os.path.expandvars(path)
    if re.search(r"\$[\w{]", str(found)):
        raise ConfigError(f"{where}found {str(path)!r}, but a variable in it is not set")
    return Path(found).expanduser()


def write_atomically(file: Path, content: str | bytes) -> None:
    """Write a temporary file, flush it to disk and rename it to ``file``; create its folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    # the process id is in the name because two processes may write the same file
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as stream:
            stream.write(content.encode() if isinstance(content, str) else content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def modified_ns(file: Path) -> int:
    """Modification time in ns since 1970; 0 for a missing file."""
    try:
        return file.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def read_yaml(file: str | os.PathLike[str]) -> Any:
    """Parse a YAML (or JSON) file safely.

    Raises:
        ConfigError: the file is missing or not valid, has a key twice, or a value that YAML reads
            as something else than it looks; the message names file and line.
    """
    try:
        text = Path(file).read_text("utf-8")
        # YAML 1.1 reads JSON's 1e-05 as a string
        if Path(file).suffix == ".json":
            return json.loads(text, object_pairs_hook=_unique)
        return yaml.load(text, _Loader)  # noqa: S506, a subclass of SafeLoader
    except ConfigError as error:
        raise ConfigError(f"{file}{error}") from None
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from None
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", error)
        raise ConfigError(f"{file}{where}: not valid YAML: {problem}") from None


class _Loader(yaml.SafeLoader):
    """Refuses a key that is there twice, and what YAML 1.1 reads as something else.

    By default the last of two keys wins, ``010`` is 8, ``12:00:00`` is 43200 and ``no`` is false.
    """

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        marks: dict[str, yaml.Mark] = {}
        for key, _ in node.value:
            number = re.fullmatch("0|[1-9][0-9]*", key.value)  # a tier of seeds
            text = key.tag in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge")
            if not (text or number):
                _refuse(key, f'is no text to YAML; write the key as "{key.value}"')
            elif (first := marks.setdefault(key.value, key.start_mark)) != key.start_mark:
                _refuse(key, f"is there twice, also in line {first.line + 1}; remove one")
        return node

    def construct_yaml_number(self, node: yaml.ScalarNode) -> int | float:
        """A number that is written as YAML 1.2 and everybody else reads it."""
        is_int = node.tag.endswith("int")
        value = self.construct_yaml_int(node) if is_int else self.construct_yaml_float(node)
        if ":" in node.value or (is_int and re.fullmatch(r"[+-]?0[0-9_]+", node.value)):
            _refuse(node, f'is {value} to YAML; write {value} or "{node.value}"')
        return value

    def construct_yaml_date(self, node: yaml.ScalarNode) -> NoReturn:
        _refuse(node, f'is a date to YAML; write "{node.value}"')


for kind in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{kind}", _Loader.construct_yaml_number)
_Loader.add_constructor("tag:yaml.org,2002:timestamp", _Loader.construct_yaml_date)


def _refuse(node: yaml.Node, problem: str) -> NoReturn:
    raise ConfigError(f", line {node.start_mark.line + 1}: {node.value} {problem}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ConfigError(f": {twice} is there twice; remove one")
    return found
