"""The report: its content, and its behaviour in a real browser."""

from __future__ import annotations

import copy
import fcntl
import hashlib
import json
import os
import re
import select
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from snakemake.assets import Assets

from attngrid.analysis.frames import collect, load_results, write_results
from attngrid.cli.main import main
from attngrid.core.errors import AttngridError
from attngrid.core.validation import validate
from attngrid.records.status import write_status
from attngrid.render.charts import _colour, charts
from attngrid.render.figures import write_figure
from attngrid.render.report import write_report
from attngrid.study.schema import Study
from conftest import TINY
from made_up import enter_study, enter_study_folder, fake_record

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


def test_the_page_loads_no_other_file_and_runs_no_other_script(study: Study) -> None:
    html = page(study)
    own = html.partition("<!--")[0]  # without the libraries
    assert not re.findall(r"""(?:src|href)\s*=\s*["'](?!data:|#)""", own)
    assert not re.findall(r"@import|url\(", own)
    (policy,) = re.findall('Content-Security-Policy" content="(.*?)"', html)
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline';")
    sources = policy.partition("script-src ")[2].split()
    assert all(source.startswith("'sha256-") for source in sources)
    # a title cannot end the script that contains the data
    assert html.count("</script>") == len(sources) + 1


def test_the_libraries_and_their_licences_are_those_of_snakemakes_own_report(study: Study) -> None:
    """The checksums are those that Snakemake checks when it is built."""
    html = page(study)
    for name in ("vega", "vega-lite", "vega-embed"):
        file = Assets.base_path() / name / f"{name}.js"
        assert (
            hashlib.sha256(file.read_bytes()).hexdigest() == Assets.spec[f"{name}/{name}.js"].sha256
        )
        assert file.read_text("utf-8") in html
    assert "University of Washington Interactive Data Lab" in html
    assert "Redistributions in binary form must reproduce" in html


def test_without_snakemake_one_error_says_what_to_install(
    study: Study, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In `tests/core/test_packaging.py`, tables and figures are rendered all the same."""
    monkeypatch.setitem(sys.modules, "snakemake.assets", None)
    assert main(["report", "tiny.json"]) == 1
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith("attngrid: error: results/tiny/report.html: its charts need Vega-Lite")
    assert error.endswith('pip install "attngrid[workflow]"')


def test_verdicts_and_gains_come_first_and_the_configuration_is_folded(study: Study) -> None:
    html = page(study)
    heads = re.findall(r'<h2 id="(\w+)"', html)
    assert heads[:5] == ["verdicts", "gains", "grid", "training", "costs"]
    assert heads == re.findall(r'<li><a href="#(\w+)"', html)
    assert re.search(r'<h2 id="configuration">.*?</h2>\s*<details><summary>', html)


def test_constant_columns_are_in_the_head(study: Study) -> None:
    html = page(study)
    heads = re.findall(r'<th data-key="(\w+)"', html)
    assert "condition" not in heads
    assert {"model", "seed", "state", "top1_error"} < set(heads)
    assert "In all cells: Condition: digits, 16×16" in html
    # the table `grid` of three models with the same counts
    assert "In all rows: Params (k): 1.000; kMACs: 2.000." in html


def test_the_head_says_why_there_are_more_cells_than_trainings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: dict[str, Any]
) -> None:
    """CAM is SE, so the grid of six cells has four trainings."""
    tiny |= {"figures": [], "tables": []}
    own = enter_study(tiny, tmp_path, monkeypatch)
    for cell in own.trainings.values():
        fake_record(cell, 30.0 + cell.seed)
    write_results(own, collect(own))
    results = load_results(own.study)
    write_report(own, results, [], None, [])
    html = page(own)
    assert "4 of 4 trainings measured" in html
    assert "They fill 6 cells" in html
    assert "share a training: SE = CAM." in html
    spec = next(chart["spec"] for chart in charts(results) if chart["section"] == "curves")
    assert spec["encoding"]["color"]["scale"]["domain"] == ["ResNet-18", "ResNet-18 + SE = CAM"]


def test_no_two_of_a_thousand_models_share_a_colour() -> None:
    assert len({_colour(place) for place in range(1000)}) == 1000


def test_curves_with_too_many_points_for_a_browser_are_drawn_without(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    def of_curves() -> tuple[Any, int]:
        drawn = charts(load_results(study.study))
        (spec,) = [chart["spec"] for chart in drawn if chart["section"] == "curves"]
        return spec["mark"]["point"], len(spec["encoding"]["tooltip"])

    assert of_curves() == ("transparent", 6)  # three trainings of two epochs
    monkeypatch.setattr("attngrid.render.charts.MAX_POINTS", 5)
    assert of_curves() == (False, 1)


class Browser:
    """Headless Chromium, driven over its pipe with the Chrome DevTools Protocol."""

    def __init__(self, profile: Path) -> None:
        # descriptors 3 and 4 of Chromium are its ends of two pipes
        pipes = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (*os.pipe(), *os.pipe())]
        commands, self._to, self._from, answers = pipes
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
        options += ["--disable-background-networking", "--disable-component-update"]
        options += ["--disable-sync", "--host-resolver-rules=MAP * ~NOTFOUND"]
        options += [f"--user-data-dir={profile}", "--remote-debugging-pipe"]
        self._process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{commands} 4>&{answers}', "bash", str(BROWSER), *options],
            stderr=subprocess.DEVNULL,
            pass_fds=(commands, answers),
        )
        os.close(commands)
        os.close(answers)
        self._unread = b""
        self._number = 0
        self._session: dict[str, str] = {}
        self.console: list[str] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._session = {"sessionId": session}
        for domain in ("Page", "Runtime", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params: Any) -> Any:
        """Send a command and return its result; messages of the console are collected."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params} | self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = json.loads(self._read())
            if answer.get("method") in CONSOLE:
                self.console.append(json.dumps(answer["params"]))
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]

    def _read(self) -> bytes:
        while b"\0" not in self._unread:
            assert select.select([self._from], [], [], 60)[0], "no answer in a minute"
            more = os.read(self._from, 1 << 20)
            assert more, "Chromium ended"
            self._unread += more
        message, _, self._unread = self._unread.partition(b"\0")
        return message

    def open(self, file: Path, width: int, scheme: str = "light") -> None:
        """Show a file in a window of this width, in light or dark colours."""
        self.console.clear()
        metrics = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 500}
        self.send("Emulation.setDeviceMetricsOverride", **metrics)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.send("Emulation.setEmulatedMedia", features=features)
        self.send("Page.navigate", url=file.resolve().as_uri())
        self.run("while (document.readyState !== 'complete') await pause(); await ready;")

    def run(self, script: str) -> Any:
        """The result of an asynchronous JavaScript function with this body."""
        pause = "const pause = () => new Promise((done) => setTimeout(done, 50));"
        source = f"(async () => {{ {pause} {script} }})()"
        options = {"awaitPromise": True, "returnByValue": True}
        done = self.send("Runtime.evaluate", expression=source, **options)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def press(self, key: str) -> None:
        """Press and release a key, as a person does."""
        code = {"Escape": 27, "Enter": 13, "Tab": 9}[key]
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            also = text if kind == "keyDown" else {}
            options = {"key": key, "code": key, "windowsVirtualKeyCode": code, **also}
            self.send("Input.dispatchKeyEvent", type=kind, **options)

    def close(self) -> None:
        """End Chromium."""
        self._process.kill()
        self._process.wait()


CONSOLE = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    started = Browser(tmp_path_factory.mktemp("profile"))
    yield started
    started.close()


READ = """
const $$ = (selector) => [...document.querySelectorAll(selector)];
const column = (key) => {
  const place = $$('#cells thead th').findIndex((head) => head.dataset.key === key);
  return $$('#cells tbody tr:not([hidden])').map((row) => row.cells[place].textContent.trim());
};
const click = (key) => document.querySelector(`#cells th[data-key="${key}"] button`).click();
const type = async (words) => {
  $('filter').value = words;
  $('filter').dispatchEvent(new Event('input', {bubbles: true}));
  await pause();
};
const marks = (section, selector) => charts
  .filter(({section: own, element}) => own === section && !element.parentElement.hidden)
  .flatMap(({element}) => [...element.querySelectorAll(selector)]);
const points = () => marks('cost', '.role-mark path[aria-label]');
const lines = () => marks('curves', '.mark-line path');
const count = () => $('count').textContent;
"""


@needs_browser
@pytest.mark.slow
def test_the_page_sorts_and_filters_cells_curves_and_points(study: Study, browser: Browser) -> None:
    browser.open(study.results / "report.html", 1280)
    found = browser.run(
        READ
        + """
    const found = {title: document.querySelector('h1').textContent, all: column('model')};
    click('top1_error');
    found.rising = column('top1_error');
    found.aria = document.querySelector('#cells [data-key=top1_error]').getAttribute('aria-sort');
    click('top1_error');
    found.falling = column('top1_error');
    click('model');
    found.models = column('model');
    found.sorted = $$('#cells [aria-sort]').map((head) => head.dataset.key);
    for (const words of ['resnet18 cbam', 'ResNet-18 + CBAM', 'cbam measured', 'tiny-no-such']) {
      await type(words);
      found[words] = [column('model').length, points().length, lines().length, count()];
    }
    await type($('filter').placeholder);
    found.placeholder = column('model').length;
    await type('');
    found.again = [points().length, lines().length];
    found.fit = marks('curves', 'svg')
      .map((svg) => svg.clientWidth === svg.closest('.chart').clientWidth);
    for (const [id, value] of [['cost', 'params_m'], ['curves', 'train_loss']]) {
      document.getElementById(id).value = value;
      document.getElementById(id).dispatchEvent(new Event('change'));
    }
    await pause();
    const texts = (section) => marks(section, 'text').map((text) => text.textContent);
    found.axes = [texts('cost').includes('parameters (millions)'),
                  texts('curves').includes('loss in training')];
    return found;
    """
    )
    assert browser.console == []
    assert found["title"] == "</script><b>a title & more"
    assert len(found["all"]) == 6
    assert found["rising"] == ["5.00", "20.00", "30.00", "--", "--", "--"]
    assert found["falling"] == ["30.00", "20.00", "5.00", "--", "--", "--"]
    assert found["aria"] == "ascending"
    names = ("ResNet-18", "ResNet-18 + CBAM", "ResNet-18 + CSM")
    assert found["models"] == [name for name in names for _ in range(2)]
    assert found["sorted"] == ["model"]
    assert found["resnet18 cbam"] == [2, 1, 1, "2 of 6 cells"]
    assert found["ResNet-18 + CBAM"] == [2, 1, 1, "2 of 6 cells"]
    assert found["cbam measured"] == [1, 1, 1, "1 of 6 cells"]
    assert found["tiny-no-such"] == [0, 0, 0, "0 of 6 cells"]
    assert found["placeholder"] > 0
    assert found["again"] == [3, 3]
    assert found["fit"] == [True]
    assert found["axes"] == [True, True]


@needs_browser
@pytest.mark.slow
def test_a_point_opens_its_record_by_mouse_and_keyboard(study: Study, browser: Browser) -> None:
    browser.open(study.results / "report.html", 1280)
    read = """
    const text = (name) => $(`record-${name}`).textContent;
    return {open: $('record').open, title: text('title'), file: text('file'), body: text('body'),
            chosen: $$('#cells tr.open').length, focus: document.activeElement.ariaLabel};
    """
    browser.run(READ + "points().find((p) => p.ariaLabel.includes('CBAM')).focus(); await pause();")
    browser.press("Enter")
    by_key = browser.run(READ + read)
    cbam = next(cell for cell in study.cells if cell.attention == "cbam")
    record = json.loads(by_key["body"])
    assert by_key["open"]
    assert by_key["title"].startswith("ResNet-18 + CBAM, seed 0: digits")
    assert by_key["file"] == str(cbam.record)
    assert record["config"]["digest"] == cbam.digest
    assert record["metrics"]["top1_error"] == 5.0
    assert "curve" not in record["metrics"]
    assert by_key["chosen"] == 1
    # Escape closes the record and keeps its point marked, and the focus is back at the point
    browser.press("Escape")
    closed = browser.run(READ + read)
    assert not closed["open"]
    assert closed["focus"] == "ResNet-18 + CBAM, seed 0"
    where = browser.run(
        READ
        + """
    const point = points().find((p) => p.ariaLabel.includes('seed 1'));
    point.scrollIntoView({block: 'center'});
    const {x, y, width, height} = point.getBoundingClientRect();
    return {x: x + width / 2, y: y + height / 2};
    """
    )
    for kind in ("mousePressed", "mouseReleased"):
        options = {"button": "left", "clickCount": 1, **where}
        browser.send("Input.dispatchMouseEvent", type=kind, **options)
    by_mouse = browser.run(READ + read)
    assert by_mouse["title"].startswith("ResNet-18, seed 1")
    browser.press("Escape")
    without = browser.run(
        READ
        + "await type('cbam diverged'); $$('#cells tr:not([hidden]) td button')[0].click();"
        + read
    )
    assert without["file"] == "no record: diverged"
    assert without["body"] == "diverged: the loss became nan"
    assert browser.console == []


@needs_browser
@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_fits_the_window_and_the_first_column_stays(
    study: Study, browser: Browser, width: int
) -> None:
    browser.open(study.results / "report.html", width, "dark" if width == 390 else "light")
    found = browser.run(
        READ
        + """
    const wide = $$('.wide').filter((box) => box.querySelector('table'))
      .filter((box) => box.scrollWidth > box.clientWidth);
    const moved = wide.map((box) => {
      const first = box.querySelector('tbody tr').cells[0];
      const before = first.getBoundingClientRect().left;
      box.scrollLeft = 60;
      return first.getBoundingClientRect().left - before;
    });
    return {page: document.documentElement.scrollWidth, moved,
            charts: $$('.chart svg').map((svg) => svg.getBoundingClientRect().right),
            small: $$('.chart text').filter((text) => parseFloat(text.style.fontSize) < 12).length,
            text: getComputedStyle(document.querySelector('.chart text')).fill,
            ground: getComputedStyle(document.body).backgroundColor};
    """
    )
    assert browser.console == []
    assert found["page"] <= width
    assert set(found["moved"]) <= {0}
    assert len(found["moved"]) >= (2 if width == 390 else 0)
    assert max(found["charts"]) <= width
    assert found["small"] == 0
    light = found["text"] == "rgb(34, 34, 34)" and found["ground"] == "rgb(255, 255, 255)"
    dark = found["text"] == "rgb(221, 221, 221)" and found["ground"] == "rgb(22, 24, 28)"
    assert dark if width == 390 else light


@needs_browser
@pytest.mark.slow
def test_the_browser_reports_errors_and_the_page_runs_no_script_from_a_text(
    study: Study, browser: Browser, tmp_path: Path
) -> None:
    """The tests above depend on this."""
    file = tmp_path / "hostile.html"
    own, _, end = page(study).rpartition("</body>")
    file.write_text(f"{own}<script>document.title = 'hostile'</script></body>{end}")
    browser.open(file, 1280)
    script = "console.error('seen'); try { await fetch('https://example.org/x'); } catch {}"
    assert browser.run(f"{script} return document.title;") == "attngrid: tiny"
    console = "\n".join(browser.console)
    assert "seen" in console
    assert "Content Security Policy" in console


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
    assert "WARNING" not in done.stderr  # of docutils
    assert '"rule": "train"' in html  # in the graph
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
