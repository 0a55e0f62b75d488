"""Render the Jinja templates in ``workflow/templates/``: LaTeX, Markdown and HTML."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jinja2

from attngrid.core.files import shipped

FOLDER = Path("workflow/templates")


class Tex(str):
    """LaTeX source that must not be escaped."""

    __slots__ = ()


_TEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        "×": r"$\times$",
        "±": r"$\pm$",
        "Σ": r"$\Sigma$",
        "√": r"$\surd$",
        "σ": r"$\sigma$",
        "·": r"$\cdot$",
        **{digit: f"$^{place}$" for place, digit in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")},
        **{digit: f"$_{place}$" for place, digit in enumerate("₀₁₂₃₄₅₆₇₈₉")},
        **{character: f"\\{character}" for character in "&%$#_{}"},
    }
)
_TEX_SYNTAX: dict[str, Any] = {
    "block_start_string": r"\BLOCK{",
    "block_end_string": "}",
    "variable_start_string": r"\VAR{",
    "variable_end_string": "}",
    "comment_start_string": r"\#{",
    "comment_end_string": "}",
    "finalize": lambda value: value if isinstance(value, Tex) else escape(str(value)),
}


def escape(text: str) -> str:
    """Plain text as LaTeX source."""
    return text.translate(_TEX)


def render(name: str, **content: Any) -> str:
    r"""Render a template; a missing variable is an error.

    LaTeX templates have the delimiters ``\VAR{}`` and ``\BLOCK{}``; all text in them is escaped.
    """
    kind = name.removesuffix(".j2").rpartition(".")[2]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(shipped(FOLDER)),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=kind == "html",  # noqa: S701 - LaTeX and Markdown have escapes of their own
        keep_trailing_newline=kind != "html",
        **(_TEX_SYNTAX if kind == "tex" else {}),
    )
    environment.globals["zip"] = zip
    environment.filters |= {
        "cell": lambda text: str(text).replace("|", r"\|").replace("_", r"\_"),
        # a \label or a comment cannot contain escapes, so other characters are replaced
        "identifier": lambda name: Tex(re.sub(r"[^A-Za-z0-9._-]+", "-", name)),
        "comment": lambda text: Tex(re.sub(r"[^ -~]+", "-", text)),
        "stacked": _stacked,
    }
    return environment.get_template(name).render(**content)


def _stacked(text: str) -> Tex:
    """Break a long head into two lines, at the comma nearest to its middle."""
    commas = [match.end() for match in re.finditer(", ", text)]
    if len(text) < 30 or not commas:
        return Tex(escape(text))
    at = min(commas, key=lambda comma: abs(comma - len(text) / 2))
    return Tex(rf"\shortstack{{{escape(text[:at].rstrip())}\\{escape(text[at:])}}}")
