"""Tables: published and measured columns, dashes for missing figures, and compilation by LaTeX."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import attngrid
from attngrid.analysis.frames import collect
from attngrid.core.validation import validate
from attngrid.records.status import write_status
from attngrid.render.description import load_description
from attngrid.render.layout import Table, write_table
from attngrid.render.tables import build_table
from attngrid.render.templates import escape
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
    assert rows["ResNet-18 + CAM"] == ["--", "--", "--"]
    assert text(table(study, "csm_table3"))["ResNet-18"][1] == "79.50 ± 0.71"


def test_diverged_and_failed_seeds_are_shown(study: Study) -> None:
    none, se = cells_with(study, "none"), cells_with(study, "se")
    fake_record(none[0], 20.0)
    write_status(none[1].status, "diverged", "x")
    write_status(se[0].status, "failed", "x")
    write_status(se[1].status, "failed", "x")
    rows = text(table(study, "csm_table1"))
    assert rows["ResNet-18"] == ["--", "20.00", "1, 1 diverged"]
    assert rows["ResNet-18 + CAM"][1] == "failed"


def test_our_columns_name_the_condition(tiny: dict[str, Any], study: Study) -> None:
    tiny["grid"][0]["options"] = {"width": 0.25}
    heads = {head.group for head in table(validate(Study, tiny, "t"), "csm_table3").heads}
    assert heads == {"Published (CIFAR-100)", "Ours: digits, 16×16, quarter width, tiny"}


def test_each_recipe_has_separate_columns(tiny: dict[str, Any], study: Study) -> None:
    tiny["recipes"]["other"] = tiny["recipes"]["tiny"]
    tiny["grid"].append(tiny["grid"][0] | {"recipes": ["other"]})
    both = validate(Study, tiny, "t")
    for cell in both.cells:
        fake_record(cell, 10.0 if cell.recipe_name == "tiny" else 40.0)
    rows = text(table(both, "csm_table1"))
    assert rows["ResNet-18"] == ["--", "10.00 ± 0.00", "2", "40.00 ± 0.00", "2"]


def test_a_condition_can_be_a_row(tiny: dict[str, Any], study: Study) -> None:
    block = tiny["grid"][0]
    tiny["grid"].append(
        block | {"attentions": ["se"], "options": block["options"] | {"placement": "last_stage"}}
    )
    placed = validate(Study, tiny, "tiny.yaml")
    for cell in placed.cells:
        fake_record(cell, 20.0 if cell.options.placement == "default" else 30.0)
    built = table(placed, "placement")
    assert {head.group for head in built.heads} == {"Ours: digits, 16×16, 0.0625× width, tiny"}
    condition, error = (
        next(i for i, head in enumerate(built.heads) if head.title == title)
        for title in ("Condition", "Top-1 error")
    )
    lines = [(row.label, *(row.values[i].text for i in (condition, error))) for row in built.rows]
    assert lines == [
        ("ResNet-18", "default", "20.00 ± 0.00"),
        ("ResNet-18 + SE", "default", "20.00 ± 0.00"),
        ("ResNet-18 + SE", "placement last_stage", "30.00 ± 0.00"),
        ("ResNet-18 + CAM", "default", "20.00 ± 0.00"),
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
    assert [row for page in built.pages for row in page] == list(built.rows)
    assert [len(page) for page in built.pages] == [40, 40]
    write_table(built)
    tex = Path("tables/tiny.grid.tex").read_text()
    assert tex.count(r"\begin{table}") == 2
    assert tex.count(r"\label{") == tex.count(r"\addtocounter{table}{-1}") == 1


def test_a_backbone_longer_than_a_page_breaks_too(tiny: dict[str, Any], study: Study) -> None:
    recipe = tiny["recipes"]["tiny"]
    tiny["recipes"] = {f"r{i}": recipe | {"epochs": 1 + i} for i in range(5)}
    tiny["grid"][0] |= {
        "recipes": list(tiny["recipes"]),
        "attentions": attngrid.list_attentions(),
    }
    built = table(validate(Study, tiny, "tiny.yaml"), "grid")
    assert max(len(page) for page in built.pages) == 42
    assert [row for page in built.pages for row in page] == list(built.rows)


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
    ],
)
def test_special_characters_are_escaped(name: str, expected: str) -> None:
    assert escape(name) == expected


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
    page = compile_latex(tmp_path, body)
    lines = [re.sub(r"\s+", " ", line).strip() for line in page.splitlines()]
    for built in tables:
        for row in built.rows:
            values = [value.text.replace("--", "–") for value in row.values]
            assert " ".join([row.label, *values]) in lines, built.stem


@needs_latex
@pytest.mark.slow
def test_a_name_full_of_special_characters_compiles(
    tiny: dict[str, Any], study: Study, tmp_path: Path
) -> None:
    (tmp_path / "a_b%&#$~^{}.py").write_text("class M_1: pass\n")
    tiny["grid"][0]["attentions"] = ["none", "a_b%&#$~^{}.py:M_1"]
    odd = validate(Study, tiny, "tiny.yaml")
    for cell in odd.cells:
        fake_record(cell, 1.0)
    description = tmp_path / "odd_1.yaml"
    description.write_text(
        "caption: '100 % of #1 & $x$ ~ {y} ^ \\'\n"
        "columns: [{title: 'a_b & %', measured: top1_error}]\n"
    )
    built = build_table(odd, collect(odd).summary, description)
    write_table(built)
    page = compile_latex(tmp_path, r"\input{tables/tiny.odd_1.tex}")
    assert "100 % of #1 & $x$" in page
    assert "ResNet-18 + M_1" in page


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
