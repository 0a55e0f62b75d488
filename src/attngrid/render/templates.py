"""Render the Jinja templates in ``workflow/templates/``: LaTeX, Markdown and HTML."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path
from typing import Any

import jinja2

from attngrid.core.errors import ConfigError
from attngrid.core.files import shipped

FOLDER = Path("workflow/templates")


class Tex(str):
    """LaTeX source that must not be escaped."""

    __slots__ = ()


# A command in math for each sign, and for each Greek letter.
_MATH = {
    **{"×": r"\times", "±": r"\pm", "√": r"\surd", "·": r"\cdot", "÷": r"\div", "−": "-"},
    **{"≤": r"\leq", "≥": r"\geq", "≠": r"\neq", "≈": r"\approx", "∼": r"\sim", "≡": r"\equiv"},
    **{"∞": r"\infty", "∈": r"\in", "∝": r"\propto", "∂": r"\partial", "∇": r"\nabla", "∗": "*"},
    **{"∑": r"\sum", "∏": r"\prod", "⊙": r"\odot", "⊕": r"\oplus", "⊗": r"\otimes", "′": "'"},
    **{"→": r"\to", "←": r"\leftarrow", "↑": r"\uparrow", "↓": r"\downarrow", "⇒": r"\Rightarrow"},
    **{"°": r"^\circ", "µ": r"\mu", "ς": r"\varsigma", "ϵ": r"\epsilon", "⁻": "^-", "⁺": "^+"},
    **{digit: f"^{place}" for place, digit in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")},
    **{digit: f"_{place}" for place, digit in enumerate("₀₁₂₃₄₅₆₇₈₉")},
}
_GREEK = {"omicron": "o", "epsilon": r"\varepsilon", "phi": r"\varphi"}
_LATIN_CAPITALS = dict(zip("ΑΒΕΖΗΙΚΜΝΟΡΤΧ", "ABEZHIKMNOPTX", strict=True))
_TEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    # after a line break, LaTeX would take these for an argument
    **{character: f"{{{character}}}" for character in "[]*"},
    **{"–": "--", "—": "---", "‐": "-", "…": r"\ldots{}", "\xa0": "~", "‘": "`", "’": "'"},
    **{"“": "``", "”": "''", "€": r"\texteuro{}", "§": r"\S{}", "©": r"\copyright{}", "⁄": "/"},
    **{"ß": r"\ss{}", "æ": r"\ae{}", "Æ": r"\AE{}", "ø": r"\o{}", "Ø": r"\O{}", "ı": r"\i{}"},
    **{"œ": r"\oe{}", "Œ": r"\OE{}", "ł": r"\l{}", "Ł": r"\L{}", "đ": r"\dj{}", "Đ": r"\DJ{}"},
    **{sign: f"${command}$" for sign, command in _MATH.items()},
    **_LATIN_CAPITALS,
}
# Combining accents and LaTeX's commands.
_ACCENTS = dict(
    zip(
        map(chr, (0x300, 0x301, 0x302, 0x303, 0x304, 0x306, 0x307, 0x308, 0x30A, 0x30B, 0x30C)),
        (r"\`", r"\'", r"\^", r"\~", r"\=", r"\u", r"\.", r"\"", r"\r", r"\H", r"\v"),
        strict=True,
    )
) | {"\u0323": r"\d", "\u0327": r"\c", "\u0328": r"\k", "\u0331": r"\b"}
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
    """Plain text as LaTeX source in one line.

    Raises:
        ConfigError: LaTeX's usual fonts lack a character, for example of another script.
    """
    composed = unicodedata.normalize("NFC", " ".join(text.split()))
    letters: list[str] = []
    for character in composed:
        for part in [character] if character in _TEX else unicodedata.normalize("NFD", character):
            if accent := _ACCENTS.get(part):
                letters.append(f"{accent}{{{letters.pop() if letters else ''}}}")
            else:
                letters.append(_escape(part, text))
    return "".join(letters)


def _escape(character: str, text: str) -> str:
    if known := _TEX.get(character):
        return known
    if " " <= character <= "~":
        return character
    name = unicodedata.name(character, f"U+{ord(character):04X}")
    if match := re.fullmatch(r"GREEK (SMALL|CAPITAL) LETTER (\w+)", name):
        letter = match[2].lower().replace("lamda", "lambda")
        command = (
            _GREEK.get(letter, rf"\{letter}") if match[1] == "SMALL" else rf"\{letter.title()}"
        )
        return f"${command}$"
    plain = unicodedata.normalize("NFKD", character)
    if plain != character:  # for example a ligature, or a letter of full width
        return escape(plain)
    raise ConfigError(
        f"LaTeX cannot print {character!r} ({name}) in {text!r}; it prints Latin and Greek "
        "letters, accents and common mathematical signs"
    )


def _markdown(text: object) -> str:
    """Text as one line of Markdown, in which nothing is HTML."""
    return " ".join(str(text).split()).replace("&", "&amp;").replace("<", "&lt;")


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
        "cell": lambda text: _markdown(text).replace("|", r"\|").replace("_", r"\_"),
        "line": _markdown,
        # a \label or a comment cannot contain escapes, so other characters are replaced
        "identifier": lambda name: Tex(re.sub(r"[^A-Za-z0-9._-]+", "-", name)),
        "tex": Tex,
        "comment": lambda text: Tex(re.sub(r"[^ -~]+", "-", text)),
    }
    return environment.get_template(name).render(**content)
