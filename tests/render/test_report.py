"""The report: its content, and its behaviour in a real browser."""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import yaml

from attngrid.cli.main import main
from attngrid.core.errors import AttngridError
from attngrid.core.validation import validate
from attngrid.records.status import write_status
from attngrid.render.figures import write_figure
from attngrid.study.schema import Study
from conftest import TINY
from made_up import enter_study_folder, fake_record

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
needs_browser = pytest.mark.skipif(
    BROWSER is None, reason="no browser here: on Debian, apt-get install chromium"
)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Study]:
    """Three records, one diverged training and two cells not run. The last test edits it."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        enter_study_folder(tmp_path_factory.mktemp("study"), monkeypatch)
        yield make_study(copy.deepcopy(TINY))


def make_study(tiny: dict[str, Any]) -> Study:
    tiny["grid"][0]["attentions"] = ["none", "cbam", "csm"]
    tiny |= {"title": "</script><b>a title & more", "figures": ["ordering"], "tables": ["grid"]}
    new_study = validate(Study, tiny, "tiny.yaml")
    Path("tiny.json").write_text(json.dumps(tiny))
    none, cbam = ([c for c in new_study.cells if c.attention == name] for name in ("none", "cbam"))
    fake_record(none[0], 50.0, 20.0)
    fake_record(none[1], 40.0, 30.0)
    fake_record(cbam[0], 45.0, 5.0)
    write_status(cbam[1].status, "diverged", "diverged: the loss became nan")
    rows = [
        ",".join([*map(str, cell.model_key), "1000", "2000", "3000"]) for cell in new_study.cells
    ]
    head = "backbone,attention,stem,num_classes,input_size,options,params,macs,fvcore_total"
    new_study.results.joinpath("complexity.csv").write_text("\n".join([head, *dict.fromkeys(rows)]))
    assert main(["current", "tiny.json"]) == 0
    return new_study


def test_a_study_without_a_training_has_a_page(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enter_study_folder(tmp_path, monkeypatch)
    Path("tiny.json").write_text(json.dumps(tiny | {"tables": ["grid"], "figures": ["gains"]}))
    assert main(["current", "tiny.json"]) == 0
    assert "0 of 4 trainings measured" in Path("results/tiny/report.html").read_text("utf-8")


def page(study: Study) -> str:
    return (study.results / "report.html").read_text("utf-8")


def test_the_page_loads_no_other_file(study: Study) -> None:
    html = page(study)
    assert not re.findall(r"""(?:src|href)\s*=\s*["'](?!data:)""", html)
    assert not re.findall(r"\b(?:fetch|XMLHttpRequest|import)\s*\(|@import|url\(", html)
    assert "default-src 'none'" in html
    # a title cannot end the script that contains the data
    assert html.count("</script>") == 2


def browse(study: Study, script: str, tmp_path: Path) -> tuple[Any, str]:
    """Run a script on the page in headless Chromium; return its result and the console."""
    harness = (
        "<script>window.addEventListener('load', () => {"
        "const out = document.createElement('pre'); out.id = 'result';"
        f"try {{ out.textContent = JSON.stringify((() => {{ {script} }})()); }}"
        "catch (error) { out.textContent = JSON.stringify(String(error)); console.error(error); }"
        "document.body.append(out); });</script></body>"
    )
    file = tmp_path / "browsed.html"
    file.write_text(page(study).replace("</body>", harness))
    assert BROWSER is not None
    done = subprocess.run(
        [
            BROWSER,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--enable-logging=stderr",
            "--host-resolver-rules=MAP * ~NOTFOUND",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--virtual-time-budget=5000",
            "--dump-dom",
            file.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    console = "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)
    found = re.search(r'<pre id="result">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found is not None, done.stdout[-500:]
    return json.loads(unescape(found[1])), console


READ = """
const rows = () => [...document.querySelectorAll('#cells tbody tr')].map(
  (row) => [...row.cells].map((cell) => cell.textContent));
const head = (key) => document.querySelector(`#cells th[data-key="${key}"]`);
const shown = (id) => document.getElementById(id);
"""


@needs_browser
@pytest.mark.slow
def test_the_page_sorts_filters_and_opens_a_record(study: Study, tmp_path: Path) -> None:
    script = (
        READ
        + """
    const found = {all: rows(), title: document.querySelector('h1').textContent};
    head('top1_error').querySelector('button').click();
    found.rising = rows().map((row) => row[4]);
    found.aria = head('top1_error').getAttribute('aria-sort');
    head('top1_error').querySelector('button').click();
    found.falling = rows().map((row) => row[4]);
    shown('filter').value = 'cbam';
    shown('filter').dispatchEvent(new Event('input'));
    found.filtered = rows().map((row) => row[0]);
    found.count = shown('count').textContent;
    found.points = document.querySelectorAll('#points circle').length;
    found.curves = document.querySelectorAll('#curves polyline').length;
    found.closed = shown('record').hidden;
    const click = new MouseEvent('click', {bubbles: true});
    document.querySelector('#points circle').dispatchEvent(click);
    found.opened = !shown('record').hidden;
    found.record = shown('record-body').textContent;
    found.file = shown('record-file').textContent;
    found.marked = document.querySelectorAll('#cells tr.open').length;
    shown('close').click();
    found.closed_again = shown('record').hidden;
    document.querySelectorAll('#cells tbody tr')[1].querySelector('button').click();
    found.without = shown('record-file').textContent + ' ' + shown('record-body').textContent;
    shown('filter').value = 'nothing has this name';
    shown('filter').dispatchEvent(new Event('input'));
    found.empty = [rows().length, shown('points').textContent, shown('curves').textContent];
    shown('filter').value = '';
    shown('filter').dispatchEvent(new Event('input'));
    shown('cost').value = 'params';
    shown('cost').dispatchEvent(new Event('change'));
    shown('metric').value = 'train_loss';
    shown('metric').dispatchEvent(new Event('change'));
    found.axes = [shown('points').textContent.includes('parameters'),
                  shown('curves').textContent.includes('loss in training')];
    const point = document.querySelector('#points circle');
    point.dispatchEvent(new KeyboardEvent('keydown', {key: 'Enter', bubbles: true}));
    found.by_key = !shown('record').hidden;
    return found;
    """
    )
    found, console = browse(study, script, tmp_path)
    assert isinstance(found, dict), found
    assert console == ""
    assert found["title"] == "</script><b>a title & more"
    assert len(found["all"]) == 6
    assert found["rising"] == ["5.00", "20.00", "30.00", "--", "--", "--"]
    assert found["falling"] == ["30.00", "20.00", "5.00", "--", "--", "--"]
    assert found["aria"] == "ascending"
    assert found["filtered"] == ["ResNet-18 + CBAM"] * 2
    assert (found["count"], found["points"], found["curves"]) == ("2 of 6 cells", 1, 1)
    assert (found["closed"], found["opened"], found["closed_again"]) == (True, True, True)
    record = json.loads(found["record"])
    cbam = next(cell for cell in study.cells if cell.attention == "cbam")
    assert record["config"]["digest"] == cbam.digest
    assert record["metrics"]["top1_error"] == 5.0
    assert found["file"] == str(cbam.record)
    assert found["marked"] == 1
    assert found["without"] == "no record: diverged diverged: the loss became nan"
    assert found["empty"] == [0, "nothing measured", "nothing measured"]
    assert found["axes"] == [True, True]
    assert found["by_key"]


@needs_browser
@pytest.mark.slow
def test_the_browser_harness_reports_console_errors(study: Study, tmp_path: Path) -> None:
    """The test above depends on this."""
    script = "console.error('seen'); fetch('https://example.org/x'); return 1;"
    _, console = browse(study, script, tmp_path)
    assert "seen" in console
    assert "Content Security Policy" in console  # the page must not load anything


@pytest.mark.slow
def test_snakemakes_own_report_has_categories_and_the_configuration(
    clone: Path, snakemake: Any, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The study has all records, so nothing is trained."""
    tiny |= {"figures": ["ordering"], "tables": ["grid"]}
    (clone / "tiny.yaml").write_text(yaml.safe_dump(tiny))
    monkeypatch.chdir(clone)
    for cell in validate(Study, tiny, "tiny.yaml").trainings.values():
        fake_record(cell, 30.0 + cell.seed)
    arguments = ("--configfile", "tiny.yaml")
    rendered = snakemake(clone, "--cores", "1", *arguments)
    assert rendered.returncode == 0, rendered.stderr
    done = snakemake(clone, "--report", "report.html", "--cores", "1", *arguments)
    assert done.returncode == 0, done.stderr
    html = (clone / "report.html").read_text("utf-8")
    for category in ("Page", "Tables", "Figures", "Claims", "Configuration"):
        assert f'"{category}"' in html, category


@pytest.mark.slow
def test_a_table_or_figure_that_fails_does_not_stop_the_others(
    study: Study, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    content = json.loads(Path("tiny.json").read_text("utf-8"))
    Path("mine.yaml").write_text("columns: 3\n")
    content |= {"tables": ["mine.yaml", "grid"], "figures": ["ordering", "accuracy_macs"]}
    Path("tiny.json").write_text(json.dumps(content))
    report = study.results / "report.html"
    for file in (*Path("tables").glob("*"), *Path("figures").glob("*.pdf"), report):
        file.unlink()

    def draw(study: Study, name: str, *given: Any) -> None:
        if name == "ordering":
            raise AttngridError("no ink")
        write_figure(study, name, *given)

    monkeypatch.setattr("attngrid.render.figures.write_figure", draw)
    capsys.readouterr()
    assert main(["current", "tiny.json"]) == 1
    err = capsys.readouterr().err
    assert "mine.yaml: columns: " in err
    assert "no ink" in err
    assert "Traceback" not in err
    assert all(file.is_file() for file in study.table_files("grid"))
    assert all(file.is_file() for file in study.figure_files("accuracy_macs"))
    # the report does not show the older file of a figure that could not be drawn
    assert study.figure_files("ordering")[1].is_file()
    assert page(study).count("data:image/png") == 1
