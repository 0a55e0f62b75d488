"""The documentation: links lead to files, references are whole, commands exist."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from attngrid.cli.arguments import COMMANDS
from attngrid.cli.main import parser
from attngrid.study.schema import load_study
from made_up import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "config/README.md"])


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs/hooks.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def code_of(page: Path) -> list[str]:
    """The lines of a page's code blocks and its code within the text."""
    text = page.read_text("utf-8")
    fenced = re.findall(r"^```(?:\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    indented = re.findall(r"^    (.+)$", text, re.MULTILINE)
    return [*"\n".join(fenced).splitlines(), *indented, *re.findall(r"`([^`\n]+)`", text)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_a_page_lead_to_files(page: Path, hooks: ModuleType) -> None:
    missing = [
        path for path in hooks.linked(str(page.relative_to(ROOT))) if not (ROOT / path).is_file()
    ]
    named = re.findall(r"`(docs/[\w./-]+|config/\w+\.\w+)`", page.read_text("utf-8"))
    assert [*missing, *(path for path in named if not (ROOT / path).exists())] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_of_a_page_exist(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for line in code_of(page):
        command = re.sub(r"\s+(#|&&|>).*", "", line.removeprefix("$ ")).strip()
        if command.startswith("attngrid ") and "..." not in command and "…" not in command:
            words = shlex.split(command)[1:]
            if words[0] in COMMANDS and len(words) > 1 and "--help" not in words:
                parser().parse_args(words)
            else:
                assert words[0] in {*COMMANDS, "COMMAND", "--help", "--version"}, line
        if target := re.match(r"make ([a-z-]+)\b", command):
            assert re.search(rf"^{target[1]}:", makefile, re.MULTILINE), line
        for name in re.findall(r"--configfile (config/\w+\.yaml)", command):
            if "nope" not in name:
                load_study(ROOT / name)


def test_a_link_into_the_repository_becomes_one_of_the_site(hooks: ModuleType) -> None:
    def relinked(text: str, file: str) -> str:
        return hooks.relink(text, file, hooks.address)

    assert relinked("[a](docs/models.md#attention) ![b](figures/cost.png)", "README.md") == (
        "[a](models.md#attention) ![b](figures/cost.png)"
    )
    assert relinked("[a](../tables/audit.md)", "docs/findings.md") == "[a](tables/audit.md)"
    assert relinked("[a](https://x.org/y) [b](#c)", "docs/x.md") == "[a](https://x.org/y) [b](#c)"
    assert relinked("```\n[a](docs/b.md)\n```", "README.md") == "```\n[a](docs/b.md)\n```"
    assert relinked("`docs/models.md`", "config/README.md") == "[The models](models.md)"


def test_a_page_that_loads_a_file_from_a_server_is_an_error(hooks: ModuleType) -> None:
    page = SimpleNamespace(file=SimpleNamespace(src_uri="x.md"))
    local = '<script src="assets/a.js"></script><a href="https://x.org">x</a>'
    assert hooks.on_post_page(local, page) == local
    for loaded in ('<script async src="https://x.org/a.js">', '<link rel="icon" href="//x.org/a">'):
        with pytest.raises(RuntimeError, match=r"x\.md: loads .*x\.org/a"):
            hooks.on_post_page(loaded, page)


def test_every_key_of_the_schema_is_in_the_reference(hooks: ModuleType) -> None:
    lines = list(hooks.configuration_keys())
    text = "\n".join(lines)
    schema = json.loads((ROOT / "config/schema.json").read_text("utf-8"))
    for name, section in schema["$defs"].items():
        assert f"{{ #{name.lower()} }}" in text, name
        kind = section["properties"].get("kind", {}).get("const")
        for key in section["properties"]:
            assert f"| `{key}` |" in text or (kind and key == "kind"), (name, key)
    rows = {line.split("|")[1].strip(): line for line in lines if line.startswith("| `")}
    assert rows["`threads`"].endswith("| whole number, > 0, ≤ 1,024 | `1` |")
    assert "`auto`, `cpu`, `cuda`" in rows["`device`"]
    assert "list of [Block](#block) | required |" in rows["`grid`"]


def test_every_argument_of_a_command_is_in_the_reference(hooks: ModuleType) -> None:
    """The expected names are those that argparse prints."""
    text = "\n".join(hooks.commands())
    top = parser().format_help()
    sections = dict(re.findall(r"### attngrid (\w+)\n(.*?)(?=\n#|\Z)", text, re.DOTALL))
    assert set(re.findall(r"^  (\w+) +[A-Z]", top, re.MULTILINE)) == set(sections)
    (parsers,) = (one for one in parser()._actions if one.choices)
    assert isinstance(parsers.choices, dict)
    for name, one in parsers.choices.items():
        flags = set(re.findall(r"--[a-z][\w-]+", one.format_help())) - {"--help"}
        assert flags - {"--verbose", "--quiet"} <= set(re.findall(r"--[\w-]+", sections[name])), (
            name
        )


def test_examples_of_docstrings_are_code_in_the_python_reference() -> None:
    """A section ``Example:`` would be shown as running text; Google's style names it in plural."""
    for file in ROOT.glob("src/attngrid/**/*.py"):
        assert not re.search(r"^ *Example:$", file.read_text("utf-8"), re.MULTILINE), file


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason='pip install ".[docs]"')
@pytest.mark.skipif(not shutil.which("chromium"), reason="no chromium here")
def test_the_search_works_in_a_page_that_is_opened_as_a_file(tmp_path: Path) -> None:
    """With the site's settings, on two pages."""
    docs, site = tmp_path / "docs", tmp_path / "site"
    docs.mkdir()
    for name in ("extra.css", "iframe-worker.js"):
        shutil.copy(ROOT / "docs" / name, docs)
    (docs / "index.md").write_text("# First")
    (docs / "second.md").write_text("# Second\n\nA word: preemption.")
    own = {"INHERIT": str(ROOT / "mkdocs.yml"), "docs_dir": "docs", "site_dir": "site", "hooks": []}
    own |= {"nav": ["index.md", "second.md"], "plugins": ["search", "offline"]}
    (tmp_path / "mkdocs.yml").write_text(json.dumps(own))
    build = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    done = subprocess.run(build, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    browse = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    page = f"file://{site}/index.html?q=preemption"
    command = [*browse, "--virtual-time-budget=10000", f"--user-data-dir={tmp_path}/profile", page]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    assert re.search(r"<a href=\"[^\"]*second\.html[^\"]*\" class=\"md-search-result__link", shown)
