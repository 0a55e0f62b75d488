"""Tables: published and measured columns, dashes for missing figures, and compilation by LaTeX."""

from __future__ import annotations

import re
import subprocess
import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import attngrid
from attngrid.analysis.frames import collect
from attngrid.core.errors import ConfigError
from attngrid.core.validation import validate
from attngrid.records.status import write_status
from attngrid.render.description import check_descriptions, load_description
from attngrid.render.fitting import fit, sheets
from attngrid.render.layout import Head, Row, Table, Value, write_table
from attngrid.render.tables import build_table
from attngrid.render.templates import escape, render
from attngrid.study.schema import Study
from made_up import ROOT, cells_with, compile_latex, enter_study_folder, fake_record, needs_latex

DESCRIPTIONS = {file.stem: file for file in (ROOT / "workflow/tables").glob("*.yaml")}


@pytest.fixture
def study(tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    enter_study_folder(tmp_path, monkeypatch)
    return validate(Study, tiny, "tiny.yaml")


def table(study: Study, name: str) -> Table:
    return build_table(study, collect(study).summary, DESCRIPTIONS[name])


def text(table: Table) -> dict[str, list[str]]:
    return {row.label: [value.text for value in row.values] for row in table.rows}


@pytest.mark.parametrize("name", sorted(DESCRIPTIONS))
def test_published_and_measured_never_share_a_column(study: Study, name: str) -> None:
    """Measured figures that no paper prints appear in our columns and in no other."""
    for cell in study.cells:
        fake_record(cell, 87.65)
    built = table(study, name)
    measured = {"87.65 ± 0.00", "43.83 ± 0.00", "43.82 ± 0.00", "12.35 ± 0.00"}
    source = load_description(DESCRIPTIONS[name]).published
    printed: set[str] = set()
    if source is not None:
        frame = pd.read_csv(ROOT / "reference" / source, dtype=str, keep_default_na=False)
        printed = {value for column in frame for value in frame[column]}
    found = set()
    for index, head in enumerate(built.heads):
        values = {row.values[index].text for row in built.rows} - {"--"}
        if head.group.startswith("Published"):
            assert values <= printed
        elif head.group.startswith("Ours") and head.title != "n":
            assert not values & printed or "GMACs" in head.title or "Params" in head.title
            found |= values & measured
        else:
            assert not values & measured
    has_ours = any(head.title == "n" for head in built.heads)
    assert bool(found) == (has_ours and "ResNet-18" in text(built))


def test_table4_shows_the_printed_figures_and_our_counts(study: Study) -> None:
    rows = text(table(study, "cbam_table4"))
    assert len(rows) == 24
    published = pd.read_csv(ROOT / "reference/cbam_table4.csv", dtype=str, keep_default_na=False)
    for row, printed in zip(rows.values(), published.to_dict("records"), strict=True):
        expected = [printed[key] for key in ("params_m", "gflops", "top1_error", "top5_error")]
        assert row[:4] == expected
        assert row[4:6] == expected[:2]
        assert row[6:] == ["--", "--", "--"]


def test_missing_measurements_are_dashes_and_the_studys_rows_are_added(study: Study) -> None:
    errors = {0: 20.0, 1: 21.0}
    for cell in cells_with(study, "none"):
        fake_record(cell, errors[cell.seed])
    rows = text(table(study, "csm_table1"))
    # the paper has this network, the study does not
    assert rows["ResNet-50 + CSM"] == ["22.78", "--", "--"]
    # the study has this network, the paper does not: 20.5 ± 0.7071
    assert rows["ResNet-18"] == ["--", "20.50 ± 0.71", "2"]
    assert rows["ResNet-18 + CAM (= SE)"] == ["--", "--", "--"]
    assert text(table(study, "csm_table3"))["ResNet-18"][1] == "79.50 ± 0.71"


def test_diverged_and_failed_seeds_are_shown(study: Study) -> None:
    none, se = cells_with(study, "none"), cells_with(study, "se")
    fake_record(none[0], 20.0)
    write_status(none[1].status, "diverged", "x")
    write_status(se[0].status, "failed", "x")
    write_status(se[1].status, "failed", "x")
    rows = text(table(study, "csm_table1"))
    assert rows["ResNet-18"] == ["--", "20.00", "1, 1 diverged"]
    assert rows["ResNet-18 + CAM (= SE)"][1] == "failed"


def test_our_columns_name_the_condition(tiny: dict[str, Any], study: Study) -> None:
    tiny["grid"][0]["options"] = {"width": 0.25}
    built = table(validate(Study, tiny, "t"), "csm_table3")
    assert {head.group for head in built.heads} == {"Published (CIFAR-100)", "Ours"}
    assert built.caption.endswith(" in %. Ours: digits, 16×16, quarter width, tiny.")


@pytest.mark.parametrize(("classes", "shown"), [(5, False), (6, True)])
def test_a_top5_error_is_left_out_at_five_classes_or_fewer(
    tiny: dict[str, Any], study: Study, classes: int, shown: bool
) -> None:
    tiny["grid"][0]["options"]["classes"] = classes
    built = table(validate(Study, tiny, "t"), "grid")
    assert any("Top-5" in head.title for head in built.heads) == shown


@pytest.mark.parametrize(
    ("macs", "title", "shown"),
    [
        # the smallest figure has at least three digits and at most four
        ([1_814_073_344, 4_089_284_608], "GMACs", ["1.814", "4.089"]),
        ([151_700_000, 1_814_073_344], "GMACs", ["0.152", "1.814"]),
        ([11_034_112, 12_345_678], "MMACs", ["11.03", "12.35"]),
        ([99_900_000, 1_814_073_344], "MMACs", ["99.90", "1814.07"]),
        ([43_210, 123_456], "kMACs", ["43.21", "123.46"]),
        ([7, 90], "MACs", ["7", "90"]),
    ],
)
def test_a_unit_scales_to_the_figures(
    tiny: dict[str, Any], study: Study, macs: list[int], title: str, shown: list[str]
) -> None:
    tiny["grid"][0] |= {"attentions": ["none", "se"], "seeds": [0]}
    both = validate(Study, tiny, "t")
    summary = collect(both).summary.assign(macs=macs)
    built = build_table(both, summary, DESCRIPTIONS["grid"])
    place = [head.title for head in built.heads].index(title)
    assert [row.values[place].text for row in built.rows] == shown


def test_a_scaled_unit_needs_its_place_in_the_title(tmp_path: Path) -> None:
    for column in (
        "{title: GMACs, counted: macs, unit: auto}",
        "{title: '{unit}MACs', counted: macs}",
    ):
        (tmp_path / "own.yaml").write_text(f"caption: x\ncolumns: [{column}]\n")
        with pytest.raises(ConfigError, match=r"unit: auto and {unit} in the title need"):
            load_description(tmp_path / "own.yaml")


def test_each_recipe_has_separate_columns(tiny: dict[str, Any], study: Study) -> None:
    tiny["recipes"]["other"] = tiny["recipes"]["tiny"]
    tiny["grid"].append(tiny["grid"][0] | {"recipes": ["other"]})
    both = validate(Study, tiny, "t")
    for cell in both.cells:
        fake_record(cell, 10.0 if cell.recipe_name == "tiny" else 40.0)
    rows = text(table(both, "csm_table1"))
    assert rows["ResNet-18"] == ["--", "10.00 ± 0.00", "2", "40.00 ± 0.00", "2"]
    built = table(both, "csm_table1")
    assert [title for title, _ in built.groups][1:] == ["Ours: tiny", "Ours: other"]
    assert built.caption.endswith(" Ours: digits, 16×16, 0.0625× width.")


def test_a_condition_can_be_a_row(tiny: dict[str, Any], study: Study) -> None:
    block = tiny["grid"][0]
    tiny["grid"].append(
        block | {"attentions": ["se"], "options": block["options"] | {"placement": "last_stage"}}
    )
    placed = validate(Study, tiny, "tiny.yaml")
    for cell in placed.cells:
        fake_record(cell, 20.0 if cell.options.placement == "default" else 30.0)
    built = table(placed, "placement")
    assert {head.group for head in built.heads} == {"Ours"}
    assert built.caption.endswith(" Ours: digits, 16×16, 0.0625× width, tiny.")
    condition, error = (
        next(i for i, head in enumerate(built.heads) if head.title == title)
        for title in ("Condition", "Top-1 error")
    )
    lines = [(row.label, *(row.values[i].text for i in (condition, error))) for row in built.rows]
    assert lines == [
        ("ResNet-18", "default", "20.00 ± 0.00"),
        ("ResNet-18 + SE", "default", "20.00 ± 0.00"),
        ("ResNet-18 + SE", "placement last_stage", "30.00 ± 0.00"),
        ("ResNet-18 + CAM (= SE)", "default", "20.00 ± 0.00"),
    ]


def test_the_mobilenets_table_has_every_row_and_the_authors_figures(study: Study) -> None:
    built = table(study, "mobilenets")
    rows = text(built)
    assert len(rows) == 22
    assert rows["MobileNetV1 + MAF_C"][:2] == ["73.128", "91.372"]
    printed = [label for label, values in rows.items() if values[0] != "--"]
    assert printed == ["MobileNetV1 + MAF_C"]
    assert all("--" not in values[2:4] for values in rows.values())


def test_the_flops_audit_shows_each_counter_beside_the_printed_figure(study: Study) -> None:
    built = table(study, "flops_audit")
    titles = [head.title for head in built.heads]
    assert not any(head.group.startswith("Ours") for head in built.heads)
    published, counted, by_torch = (titles.index("GFLOPs"), 1, titles.index("Torch's counter"))
    rows = text(built)
    printed = {label: v for label, v in rows.items() if v[published] != "--"}
    assert len(printed) == 24
    for values in printed.values():
        assert values[published] == values[counted] == values[by_torch]
    assert rows["ResNet-50 v1.5"][counted] == "4.089"


def test_a_long_table_breaks_between_backbones_with_one_number(
    tiny: dict[str, Any], study: Study
) -> None:
    tiny["grid"][0]["backbones"] = ["resnet18", "resnet34", "mobilenet_v1", "wrn18_1.5"]
    tiny["grid"][0]["attentions"] = list(attngrid.list_attentions())[:20]
    long = validate(Study, tiny, "tiny.yaml")
    built = table(long, "grid")
    (part,) = fit(built)
    assert [row for page in part.pages for row in page] == list(built.rows)
    assert [len(page) for page in part.pages] == [40, 40]
    write_table(built)
    tex = Path("tables/tiny.grid.tex").read_text()
    assert tex.count(r"\begin{tabular}") == 2
    assert tex.count(r"\label{") == tex.count(r"\addtocounter{table}{-1}") == 1


def test_a_backbone_longer_than_a_page_breaks_too(tiny: dict[str, Any], study: Study) -> None:
    recipe = tiny["recipes"]["tiny"]
    tiny["recipes"] = {f"r{i}": recipe | {"epochs": 1 + i} for i in range(5)}
    tiny["grid"][0] |= {
        "recipes": list(tiny["recipes"]),
        "attentions": attngrid.list_attentions(),
    }
    built = table(validate(Study, tiny, "tiny.yaml"), "grid")
    (part,) = fit(built)
    assert [row for page in part.pages for row in page] == list(built.rows)
    lengths = [len(page) for page in part.pages]
    assert len(lengths) > 2
    assert max(lengths) - min(lengths) <= len(lengths)  # evenly filled


def made_up_table(columns: int, rows: int, **more: Any) -> Table:
    heads = [Head(f"Group {n // 4}", f"Column {n}", 2) for n in range(columns)]
    values = tuple(Value(number="12.34") for _ in heads)
    lines = [Row(f"ResNet-{n}", values, starts_backbone=n == rows - 1) for n in range(rows)]
    content = {"caption": "A table.", **more}
    return Table("made_up", heads=tuple(heads), rows=tuple(lines), frame=pd.DataFrame(), **content)


@pytest.mark.parametrize("rows", range(30, 130, 7))
def test_a_last_page_has_several_rows(rows: int) -> None:
    (part,) = fit(made_up_table(3, rows))
    pages = part.pages
    assert [row for page in pages for row in page] == [*part.table.rows]
    assert len(pages) == 1 or len(pages[-1]) >= 4


def test_a_wide_table_is_turned_and_a_wider_one_is_split_between_groups() -> None:
    assert [part.turned for part in fit(made_up_table(4, 3))] == [False]
    assert [part.turned for part in fit(made_up_table(9, 3))] == [True]
    parts = fit(made_up_table(24, 3))
    assert [place for part in parts for place in part.places] == [*range(24)]
    assert len(parts) > 1
    assert all(part.places[0] % 4 == 0 for part in parts)


def test_published_files_have_the_papers_figures() -> None:
    """A few values of the papers' tables, to detect an edit of reference/."""
    table3 = pd.read_csv(ROOT / "reference/csm_table3.csv", keep_default_na=False)
    gains = table3.pivot(index="backbone", columns="attention", values="accuracy")
    assert (gains["csm"] - gains["none"]).round(6).tolist() == [1.4] * 4
    table4 = pd.read_csv(ROOT / "reference/cbam_table4.csv", keep_default_na=False)
    row = table4.set_index(["backbone", "attention"]).loc[("resnet50", "cbam")]
    assert row.tolist() == [28.09, 3.864, 22.66, 6.31]


# LaTeX


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a_b", r"a\_b"),
        ("50% & $x$ #1", r"50\% \& \$x\$ \#1"),
        ("{x}~^\\", r"\{x\}\textasciitilde{}\textasciicircum{}\textbackslash{}"),
        ("[a] *b", "{[}a{]} {*}b"),
        (" two\n\nlines\t", "two lines"),
        ("≤ − α Δ ≈ μ µ ∞", r"$\leq$ $-$ $\alpha$ $\Delta$ $\approx$ $\mu$ $\mu$ $\infty$"),
        ("Nguyễn", r"Nguy\~{\^{e}}n"),
        ("e\u0301", r"\'{e}"),
    ],
)
def test_special_characters_are_escaped(name: str, expected: str) -> None:
    assert escape(name) == expected


@pytest.mark.parametrize(("text", "name"), [("注意", "CJK"), ("Блок", "CYRILLIC"), ("🙂", "FACE")])
def test_another_script_is_an_error_that_names_it_and_the_table(text: str, name: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"tables/made_up.tex: LaTeX cannot .*{name}.* in '{text}"
    ):
        write_table(made_up_table(1, 1, caption=text))


def test_a_description_in_another_script_is_refused_before_any_job(
    tiny: dict[str, Any], study: Study, tmp_path: Path
) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("caption: 注意\ncolumns: [{title: n, measured: top1_error}]\n", "utf-8")
    wrong = validate(Study, tiny | {"tables": [str(own)]}, "t")
    with pytest.raises(ConfigError, match=r"own.yaml: caption: LaTeX cannot print '注'"):
        check_descriptions(wrong, "t")
    (tmp_path / "own.py").write_text(
        "class Photos:\n    label = 'фото'\n    num_classes = 10\n    input_size = 16\n"
        "    @staticmethod\n    def load(folder): ...\n",
        "utf-8",
    )
    tiny["grid"][0]["dataset"] = "own.py:Photos"
    with pytest.raises(ConfigError, match=r"t: LaTeX cannot print 'ф' \(CYRILLIC"):
        check_descriptions(validate(Study, tiny, "t"), "t")


@needs_latex
@pytest.mark.slow
def test_every_table_compiles_and_shows_its_numbers(study: Study, tmp_path: Path) -> None:
    for cell in study.cells:
        if cell.attention == "none":
            fake_record(cell, 12.34 + cell.seed)
        else:
            fake_record(cell, 45.67 + 3 * cell.seed)
    tables = [table(study, name) for name in sorted(DESCRIPTIONS)]
    for built in tables:
        write_table(built)
    body = "\n".join(rf"\input{{tables/{built.stem}.tex}}\clearpage" for built in tables)
    compile_latex(tmp_path, body)
    assert min(type_sizes(tmp_path)) >= 7
    # on a page so wide that no row is turned or wrapped, for pdftotext
    wide = r"\pdfpagewidth=60cm\textwidth=40cm\columnwidth=\textwidth\hsize=\textwidth"
    page = compile_latex(tmp_path, wide + body)
    lines = [re.sub(r"\s+", " ", line).strip() for line in page.splitlines()]
    for built in tables:
        for part in fit(built):
            for row in built.rows:
                texts = [row.values[place].text.replace("--", "–") for place in part.places]
                # siunitx sets apart the thousands of five digits and more
                values = [re.sub(r"^(\d{2})(\d{3}\.)", r"\1 \2", text) for text in texts]
                assert " ".join([row.label, *values]) in lines, built.stem


def type_sizes(folder: Path) -> set[float]:
    """The sizes of all type in ``page.pdf`` as printed, in points, rounded."""
    command = ["pdftohtml", "-xml", "-zoom", "3", "-stdout", "-i", folder / "page.pdf"]
    xml = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {int(size) / 3 for size in re.findall(r'<fontspec id="\d+" size="(\d+)"', xml)}


@needs_latex
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["", "twocolumn"])
def test_a_table_is_upright_turned_or_split_and_never_shrunk(tmp_path: Path, kind: str) -> None:
    """Numbers of the last column are on the page, in both of LaTeX's layouts."""
    (tmp_path / "tables").mkdir()
    for columns, pages, turned in ((3, 1, False), (9, 1, not kind), (24, 2, not kind)):
        built = made_up_table(columns, 25)
        source = render("table.tex.j2", table=built, parts=fit(built), sheets=[*sheets(built)])
        (tmp_path / "tables/made_up.tex").write_text(source, "utf-8")
        compile_latex(tmp_path, r"\input{tables/made_up.tex}", kind)
        info = subprocess.run(
            ["pdftotext", "-bbox", "page.pdf", "-"], cwd=tmp_path, capture_output=True, text=True
        ).stdout
        assert info.count("<page ") == pages
        assert info.count(">12.34<") == columns * 25
        boxes = [
            [*map(float, re.findall(r'"([\d.]+)"', line))]
            for line in info.splitlines()
            if ">12.34<" in line
        ]
        tall = [y1 - y0 > x1 - x0 for x0, y0, x1, y1 in boxes]
        assert any(tall) == turned
        assert min(min(box) for box in boxes) > 30
        assert type_sizes(tmp_path) <= {8.0, 10.0}


@needs_latex
@pytest.mark.slow
def test_names_full_of_special_characters_compile(
    tiny: dict[str, Any], study: Study, tmp_path: Path
) -> None:
    (tmp_path / "a_b%&#$~^{}.py").write_text("class M_1: pass\n")
    tiny["grid"][0]["attentions"] = ["none", "a_b%&#$~^{}.py:M_1"]
    odd = validate(Study, tiny, "tiny.yaml")
    for cell in odd.cells:
        fake_record(cell, 1.0)
    description = tmp_path / "odd_1.yaml"
    description.write_text(
        'caption: "100 % of #1 & $x$ ~ {y} ^ \\\\ [z]\\n\\n'
        'Nguyễn, Müller, e\u0301, ≤ −1 ≈ Δα μ ∞"\n'
        "columns:\n"
        '  - {title: "a_b & %\\n[c]", measured: top1_error}\n'
        '  - {title: "[x]", measured: best_top1_error}\n',
        "utf-8",
    )
    built = build_table(odd, collect(odd).summary, description)
    bracket = replace(built.rows[1], label="[1] *", starts_backbone=False)
    write_table(replace(built, rows=(*built.rows, bracket, bracket)))
    page = compile_latex(tmp_path, r"\input{tables/tiny.odd_1.tex}")
    assert "100 % of #1 & $x$" in page
    assert "[z] Nguyễn, Müller, é, ≤ −1 ≈ ∆α µ ∞" in unicodedata.normalize(
        "NFC", " ".join(page.split())
    )
    assert "ResNet-18 + M_1" in page
    assert page.count("[1] *") == 2


def test_markdown_and_csv_have_the_same_figures(study: Study) -> None:
    for cell in study.cells:
        fake_record(cell, 12.5)
    built = table(study, "csm_table2")
    write_table(built)
    lines = Path("tables/tiny.csm_table2.md").read_text("utf-8").splitlines()
    body = [line for line in lines if line.startswith("| ResNet") or line.startswith("| WRN")]
    assert len(body) == len(built.rows) == 12
    assert "| ResNet-18 | 29.62 | 10.56 | 12.50 ± 0.00 | 6.25 ± 0.00 | 2 |" in body
    assert all(line.count("|") == body[0].count("|") for line in lines if line.startswith("|"))
    frame = pd.read_csv("tables/tiny.csm_table2.csv", keep_default_na=False, dtype=str)
    row = frame.set_index(["backbone", "attention"]).loc[("resnet18", "none")]
    assert (row["published_top1_error"], row["measured_top1_error_mean"]) == ("29.62", "12.5")


def test_no_text_is_html_in_markdown_or_a_formula_in_a_spreadsheet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    hostile = "<script>alert(1)</script>\n| a &lt; b"
    texts = ["=1+1", "+cmd|' /C calc'!A0", "-1+2", "@SUM(A1)", "--", "-- --", "-0.5", "+3", "a = b"]
    made_up = Table(
        "tiny.made_up",
        caption=hostile,
        heads=(Head("Ours", hostile),),
        rows=(Row(hostile, (Value(hostile),)),),
        frame=pd.DataFrame({"label": texts, "number": [-1.5] * len(texts)}),
    )
    write_table(made_up, [".md", ".csv"])
    text = Path("tables/tiny.made_up.md").read_text()
    assert "<" not in text
    (_, _, row) = [line for line in text.splitlines() if line.startswith("|")]
    assert row.replace(r"\|", "").count("|") == 3
    written = pd.read_csv("tables/tiny.made_up.csv", dtype=str, keep_default_na=False)
    expected = ["'=1+1", "'+cmd|' /C calc'!A0", "'-1+2", "'@SUM(A1)", *texts[4:]]
    assert written["label"].tolist() == expected
    assert set(written["number"]) == {"-1.5"}
