"""Hooks of mkdocs: files outside ``docs/`` as pages, links between them, generated references."""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# pages from files outside docs/; what the pages link to is added, too
PAGES = ("README.md", "ARTIFACT.md", "CONTRIBUTING.md", "CHANGELOG.md", "config/README.md")
LINK = re.compile(r"(?:(?<=\]\()|(?<= src=\"))(?![\w-]+:|#|/)([^)\s#\"]+)")
# a page's name in code becomes a link with the page's title
NAMED = re.compile(r"(?<![\[`\w])`((?:docs|config|reference)/[\w-]+\.md|[A-Z]+\.md)`(?![`\]])")
CODE = re.compile(r"(```.*?```)", re.DOTALL)
LOADED = re.compile(r"<(?:script|img|link|iframe)\b[^>]*?\s(?:src|href)=\"((?:https?:)?//[^\"]+)")
LIMITS = {"minimum": "≥", "ge": "≥", "exclusiveMinimum": ">", "gt": ">"} | {
    "maximum": "≤",
    "le": "≤",
    "exclusiveMaximum": "<",
    "lt": "<",
}


def address(file: str) -> str:
    """The place in the site of a file of the repository; both are relative paths."""
    return "index.md" if file == "README.md" else file.removeprefix("docs/")


def source(page: str) -> str:
    """The file of the repository behind a page: the inverse of ``address``."""
    if page == "index.md":
        return "README.md"
    return f"docs/{page}" if (ROOT / "docs" / page).is_file() else page


def relink(text: str, file: str, place: Callable[[str], str]) -> str:
    """Replace each link of a Markdown file by ``place(path of its target in the repository)``."""
    folder = posixpath.dirname(file)

    def name(match: re.Match[str]) -> str:
        if not (ROOT / match[1]).is_file():
            return match[0]
        title = re.search(r"^# (.+)", (ROOT / match[1]).read_text("utf-8"), re.MULTILINE)
        shown = title[1] if title else match[1]
        return f"[{shown}]({posixpath.relpath(match[1], folder or '.')})"

    def target(match: re.Match[str]) -> str:
        return place(posixpath.normpath(posixpath.join(folder, match[1])))

    parts = CODE.split(text)
    parts[::2] = [LINK.sub(target, NAMED.sub(name, part)) for part in parts[::2]]
    return "".join(parts)


def linked(file: str) -> list[str]:
    """The targets of a Markdown file's links, as paths in the repository."""
    found: list[str] = []
    relink((ROOT / file).read_text("utf-8"), file, lambda path: found.append(path) or path)
    return found


def site_files() -> set[str]:
    """The files of the repository that the site has: its pages, and all that they link to."""
    found: set[str] = set()
    new = {*PAGES, *(str(page.relative_to(ROOT)) for page in (ROOT / "docs").rglob("*.md"))}
    while new:
        found |= new
        new = {path for file in new if file.endswith(".md") for path in linked(file)} - found
        new = {path for path in new if (ROOT / path).is_file()}
    return found


def on_files(files: Any, config: Any) -> Any:
    """Add the files outside ``docs/``."""
    from mkdocs.structure.files import File

    for file in sorted(path for path in site_files() if not path.startswith("docs/")):
        files.append(File.generated(config, address(file), abs_src_path=str(ROOT / file)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn links into those of the site, and put the generated references in their places."""
    here = page.file.src_uri
    folder = posixpath.dirname(here) or "."
    text = relink(markdown, source(here), lambda file: posixpath.relpath(address(file), folder))
    for name, generate in (("keys", configuration_keys), ("commands", commands)):
        if (place := f"<!-- generated: {name} -->") in text:
            text = text.replace(place, "\n".join(generate()))
    return text


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Raise an error if the page would load a file from another server."""
    if found := LOADED.findall(output):
        raise RuntimeError(f"{page.file.src_uri}: loads {', '.join(found)}; needs a file here")
    return output


def cell(text: str) -> str:
    """A text in a cell of a Markdown table."""
    return " ".join(text.replace("``", "`").replace("|", "\\|").split())


def configuration_keys() -> Iterator[str]:
    """The tables of all keys of a study's configuration, from ``config/schema.json``."""
    schema = json.loads((ROOT / "config/schema.json").read_text("utf-8"))
    sections = {"Study": schema, **schema["$defs"]}
    order = ["Study"]
    for name in order:  # a section comes after the first that refers to it
        found = re.findall(r'"\$ref": "#/\$defs/(\w+)"', json.dumps(sections[name]["properties"]))
        order += [one for one in dict.fromkeys(found) if one not in order]
    for name in order:
        section = sections[name]
        text = section.get("description", "").replace("``", "`")
        kind = section["properties"].get("kind", {}).get("const")
        yield from ("", f"## {f'`{kind}`' if kind else name} {{ #{name.lower()} }}", "", text, "")
        rows = [
            _key(key, value, key in section.get("required", ()), sections)
            for key, value in section["properties"].items()
            if not (kind and key == "kind")
        ]
        if rows:
            yield from ("| key | what | values | default |", "|---|---|---|---|", *rows)


def _key(name: str, value: dict[str, Any], required: bool, sections: dict[str, Any]) -> str:
    """A row of the table of a section."""
    inside = re.search(r"#/\$defs/(\w+)", json.dumps(value))
    what = value.get("description") or (
        sections[inside[1]].get("description", "") if inside else ""
    )
    default = value.get("default")
    if required:
        shown = "required"
    elif "$ref" in value or default in (None, "", [], {}):  # a section's own table has defaults
        shown = ""
    else:
        shown = f"`{json.dumps(default)}`"
    return (
        f"| `{name}` | {cell(what.partition(chr(10) * 2)[0])} | {cell(_values(value))} | {shown} |"
    )


def _values(value: dict[str, Any]) -> str:
    """The accepted values of a key."""
    if "$ref" in value:
        name = value["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if options := value.get("anyOf", value.get("oneOf")):
        return " or ".join(_values(one) for one in options if one.get("type") != "null")
    if "enum" in value or "const" in value:
        return ", ".join(f"`{one}`" for one in value.get("enum", [value.get("const")]))
    if value["type"] == "array":
        return f"list of {_values(value['items'])}"
    if value["type"] == "object":
        inside = [*value.get("patternProperties", {}).values(), value.get("additionalProperties")]
        return f"names, each with {_values(next(filter(None, inside)))}"
    words = {"string": "text", "boolean": "true or false", "number": "number"}
    limits = [f"{sign} {value[key]:,}" for key, sign in LIMITS.items() if key in value]
    return ", ".join([words.get(value["type"], "whole number"), *limits])


def commands() -> Iterator[str]:
    """The commands and their arguments, from the parsers."""
    from attngrid.cli.arguments import COMMANDS, GROUPS
    from attngrid.cli.main import DESCRIPTION, parser  # it fills COMMANDS

    parser()
    yield from DESCRIPTION.splitlines()
    for group in GROUPS:
        yield from ("", f"## {group[0].upper()}{group[1:]}")
        for name, command in sorted(COMMANDS.items()):
            if command.group != group:
                continue
            yield from ("", f"### attngrid {name}", "", command.run.__doc__ or "", "")
            if command.arguments:
                yield from ("| argument | what |", "|---|---|")
            for names, options in command.arguments:
                yield _argument(names, options)


def _argument(names: tuple[str, ...], options: dict[str, Any]) -> str:
    """A row of a command's table."""
    shown = ", ".join(names) if names[0].startswith("-") else options.get("metavar", names[0])
    if choices := options.get("choices"):
        shown += f" {{{','.join(map(str, choices))}}}"
    if options.get("nargs") in ("?", "*"):
        shown = f"[{shown}]"
    default = options.get("default")
    said = "" if default in (None, False) else f"default: `{default}`"
    told = options.get("help", "").replace("see `attngrid --help`", "as above")
    what = "; ".join(filter(None, [told, said]))
    return f"| `{cell(shown)}` | {cell(what)} |"
