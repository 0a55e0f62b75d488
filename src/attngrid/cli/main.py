"""The commands that the workflow's rules call, each usable by hand."""

from __future__ import annotations

import argparse
import atexit
import gc
import logging
import math
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attngrid.core.errors import (
    AttngridError,
    ConfigError,
    DivergedTrialsError,
    InterruptedTrainingError,
    RecordError,
    UnknownNameError,
)
from attngrid.core.files import modified_ns
from attngrid.training.launcher import tune_allocator

if TYPE_CHECKING:
    from attngrid.render.tables import Table
    from attngrid.study.cell import Cell
    from attngrid.study.schema import Study

# Nothing heavy is imported up here: `attngrid --help` must not wait for torch or pandas.


@contextmanager
def _importing() -> Iterator[None]:
    """Importing torch makes a million objects and no garbage, so nobody looks for any in them."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.freeze()


def train(arguments: argparse.Namespace) -> None:
    """Train one cell or trial of a study and write its record."""
    from attngrid.records.status import has_diverged
    from attngrid.study.schema import load_study
    from attngrid.training.devices import claimed
    from attngrid.training.max_runtime import require_time, set_max_runtime
    from attngrid.training.signals import hold_signals, requeue

    study = load_study(arguments.study)
    cell = study.training(arguments.cell)
    if message := has_diverged(cell.status):
        raise AttngridError(f"{cell.id}: {message}; not tried again")
    record, before = arguments.record or cell.record, modified_ns(cell.checkpoint)
    launched = "TORCHELASTIC_RUN_ID" in os.environ
    if arguments.max_runtime is not None:
        set_max_runtime(arguments.max_runtime)
    if not launched and not record.is_file():
        require_time(study, cell)
    if study.compute.gpus == 1:
        hold_signals()  # before torch takes its time
    try:
        with claimed(0 if launched else study.gpus):
            _train(arguments.study, study, cell, record)
    except InterruptedTrainingError as error:
        # Slurm's warning before its limit: the same job goes on later, if it has come any further
        if error.number == signal.SIGUSR1 and modified_ns(cell.checkpoint) != before and requeue():
            error.add_note("back in Slurm's queue")
        raise


def _train(file: Path, study: Study, cell: Cell, record: Path) -> None:
    """In this process, or in as many as the study gives a cell."""
    with _importing():
        from attngrid.training.distributed import launched, tell_launcher
        from attngrid.training.run import run_cell

    if study.compute.gpus > 1 and not launched():
        from attngrid.training.launch import launch

        launch(study, cell, ["train", str(file), cell.id, "--record", str(record)])
        return
    try:
        run_cell(study, cell, record)
    except AttngridError as error:
        if not tell_launcher(error):
            raise
        sys.exit(getattr(error, "exit_code", 1))


def tune(arguments: argparse.Namespace) -> None:
    """Choose a model's learning rate and weight decay by its trials."""
    from attngrid.records.status import write_status
    from attngrid.study.labels import setting_label
    from attngrid.study.schema import load_study
    from attngrid.training.tuning import choose, write_choice

    study = load_study(arguments.study)
    if study.tuning is None:
        raise ConfigError(f"{arguments.study}: has no `tuning`, so nothing is to be chosen")
    cell = study.choices.get(arguments.name)
    if cell is None:
        raise UnknownNameError(f"choice of study {study.study}", arguments.name, study.choices)
    try:
        choice = choose(cell)
    except DivergedTrialsError as error:
        for other in study.trainings.values():
            if other.choice == cell.choice:
                write_status(other.status, "diverged", str(error))
        raise
    write_choice(cell, choice)
    setting = setting_label(choice.chosen.learning_rate, choice.chosen.weight_decay)
    print(f"{cell.choice}: {setting}, of {len(choice.trials)} trials", file=sys.stderr)


def prepare(arguments: argparse.Namespace) -> None:
    """Check a study's datasets once, fetching or unpacking what they need."""
    from attngrid.data.prepare import link_archives
    from attngrid.data.prepare import prepare as make_ready
    from attngrid.data.registry import find_dataset
    from attngrid.study.schema import load_study

    study = load_study(arguments.study)
    names = list(dict.fromkeys(block.dataset for block in study.grid))
    if arguments.dataset is not None:
        if arguments.dataset not in names:
            raise UnknownNameError(f"dataset of study {study.study}", arguments.dataset, names)
        names = [arguments.dataset]
    folder = study.data_folder
    if arguments.archives is not None:
        link_archives(arguments.archives, folder)
    for name in names:
        report = make_ready(name, folder, download=study.data.download, thorough=arguments.thorough)
        label = find_dataset(name).label
        if report is None:
            print(f"{label}: nothing to prepare", file=sys.stderr)
            continue
        images = report["images"]
        print(
            f"{label}: {images['train']:,} training and {images['test']:,} held-out images of "
            f"{report['classes']} classes, checked {report['checked']}",
            file=sys.stderr,
        )


def complexity(arguments: argparse.Namespace) -> None:
    """Count the models of a study, or of config/complexity.yaml."""
    with _importing():
        from attngrid.core.files import read_yaml, write_atomically
        from attngrid.core.validation import validate
        from attngrid.measure import complexity as counting
        from attngrid.study.counted import CountedGrid
        from attngrid.study.schema import Study

    def refuse(error: AttngridError) -> None:
        raise error

    def tell(error: AttngridError) -> None:
        print(f"not counted: {error}", file=sys.stderr)

    content = read_yaml(arguments.models)
    if isinstance(content, dict) and "study" in content:
        # a module of the user's own that cannot be counted is trained all the same
        models = counting.models_of_study(validate(Study, content, arguments.models))
        text = counting.table(models, tell)
    else:
        models = counting.models_of_grid(validate(CountedGrid, content, arguments.models))
        text = counting.table(models, refuse)
    write_atomically(arguments.output, text)


def cost(arguments: argparse.Namespace) -> None:
    """Measure what models take on this machine, and render what has been measured on any."""
    from attngrid.core.files import read_yaml
    from attngrid.core.validation import validate
    from attngrid.study.counted import CostGrid

    asked = {
        name: values
        for name in ("backbones", "attentions", "datasets")
        if (values := getattr(arguments, name)) is not None
    }
    content = read_yaml(arguments.grid)
    content = content | asked if isinstance(content, dict) else content
    grid = validate(CostGrid, content, arguments.grid)
    failed = []
    if not arguments.render_only:
        with _importing():
            from attngrid.core.hardware import processors
            from attngrid.measure.cost import measure_all

        failed = measure_all(grid, arguments.threads or processors(), again=arguments.again)
    from attngrid.render.cost import write_costs

    for file in write_costs():
        print(file)
    if failed:
        raise AttngridError("\n".join([f"{len(failed)} models were not measured:", *failed]))


def collect(arguments: argparse.Namespace) -> None:
    """Read a study's records into cells.csv, epochs.csv and summary.csv."""
    from attngrid.analysis import frames
    from attngrid.study.schema import load_study

    study = load_study(arguments.study)
    results = frames.collect(study)
    frames.write_results(study, results)
    if (results.cells["state"] == "refused").any():
        lines = [*frames.unfinished(results), "remove such a record to train its cell again"]
        raise RecordError("\n".join(lines))


def evaluate(arguments: argparse.Namespace) -> None:
    """Test a record's network again, with the weights that were kept, and compare."""
    from attngrid.study.paths import data_folder
    from attngrid.training.evaluation import evaluate_record

    cell, record, found = evaluate_record(
        arguments.record, arguments.data or data_folder(), arguments.device
    )
    print(f"{cell.label}: {cell.condition}")
    pairs = [
        (name, getattr(record.metrics, name), found[f"test_{name}"])
        for name in ("top1_error", "top5_error")
    ]
    for name, recorded, now in pairs:
        print(f"{name}  recorded {recorded:.4f} %  now {now:.4f} %")
    if any(recorded != now for _, recorded, now in pairs):
        device = record.run["device_name"]
        raise RecordError(
            f"{arguments.record}: these weights do not make its errors; it was trained on {device} "
            f"with torch {record.run['torch']}"
        )


def plan(arguments: argparse.Namespace) -> None:
    """Say how many hours a study should take, and on what that is founded."""
    from attngrid.study.plan import Planner
    from attngrid.study.plan import plan as lines
    from attngrid.study.schema import load_study

    for line in lines(Planner(load_study(arguments.study), gpu=arguments.gpu)):
        print(line)


def status(arguments: argparse.Namespace) -> None:
    """Show what of a study is done, running, waiting or failed; reads files only."""
    from attngrid.analysis.progress import status as lines
    from attngrid.study.schema import load_study

    for line in lines(load_study(arguments.study)):
        print(line)


def archive(arguments: argparse.Namespace) -> None:
    """Put a study's superseded records aside, so that the next run trains their cells again."""
    from attngrid.records.staleness import archive as put_aside
    from attngrid.study.schema import load_study

    study = load_study(arguments.study)
    moved = put_aside(study, other_code=arguments.other_code)
    for file, now in moved:
        print(f"{file} -> {now}")
    print(f"{study.study}: {len(moved)} files put aside", file=sys.stderr)


def import_(arguments: argparse.Namespace) -> None:
    """Check records that were made on another machine, and file them."""
    from attngrid.records.importing import import_folder, known_studies
    from attngrid.study.schema import load_study

    studies = known_studies() if arguments.study is None else [load_study(arguments.study)]
    found = import_folder(arguments.folder, studies)
    for file in found.filed:
        print(f"filed {file}")
    for cell in found.continued:
        print(f"goes on {cell.checkpoint}")
    print(
        f"{arguments.folder}: {len(found.filed)} records filed, {len(found.skipped)} were here, "
        f"{len(found.refused)} refused; {len(found.continued)} checkpoints",
        file=sys.stderr,
    )
    if found.refused:
        raise RecordError("\n".join(["refused:", *found.refused]))


def visualize(arguments: argparse.Namespace) -> None:
    """Make the attention maps of the networks whose weights were kept."""
    from attngrid.study.schema import load_study

    _update_maps(load_study(arguments.study))


def _update_maps(study: Study) -> None:
    from attngrid.analysis.maps import Maps, read_maps, with_weights, write_maps

    maps = read_maps(study.maps) if study.maps.is_file() else Maps({}, {})
    if with_weights(study):
        study.require_captum()
        from attngrid.measure.attention_maps import visualize

        maps = visualize(study, maps)
    elif not maps.cells:
        print(f"{study.maps}: without maps, no cell has kept its weights", file=sys.stderr)
    write_maps(study.maps, maps)


def table(arguments: argparse.Namespace) -> None:
    """Set a study's tables, or those named, as LaTeX, Markdown and CSV."""
    from attngrid.analysis.frames import load_results
    from attngrid.render.tables import build_table, write_table
    from attngrid.study.schema import load_study

    study = load_study(arguments.study)
    names = _of_study(arguments, "table", study.descriptions)
    results = load_results(study.study)

    def make(name: str) -> None:
        description = study.descriptions[name]
        write_table(build_table(study, results.summary, description, cells=results.cells))

    failed: list[str] = []
    for name in names:
        _tried(failed, make, name)
    _say_failed(failed)


def _of_study(arguments: argparse.Namespace, kind: str, known: Iterable[str]) -> list[str]:
    """Those that were asked for, or all."""
    for name in arguments.names:
        if name not in known:
            unknown = UnknownNameError(kind, name, known)
            raise ConfigError(f"{arguments.study}: {kind}s: {unknown}")
    return arguments.names or list(known)


def _tried(failed: list[str], make: Callable[..., object], *arguments: Any) -> None:
    """Make it, or note why it cannot be made: what else there is to make does not wait."""
    try:
        make(*arguments)
    except AttngridError as error:
        failed.append(str(error))


def _say_failed(failed: list[str]) -> None:
    if failed:
        raise AttngridError("\n".join(failed))


def claims(arguments: argparse.Namespace) -> None:
    """Give the verdicts on the papers' claims; of a study, what its own conditions say too."""
    from attngrid.analysis.optional import require_tests
    from attngrid.study.schema import load_study

    require_tests()
    _write_claims(load_study(arguments.study) if arguments.study is not None else None)


def _write_claims(study: Study | None) -> None:
    from attngrid.analysis.audit import audit as audit_lines
    from attngrid.analysis.claims import load_claims
    from attngrid.analysis.frames import load_results
    from attngrid.analysis.selection import selection
    from attngrid.analysis.verdicts import all_cells, answer, write_claims
    from attngrid.core.files import shipped, write_atomically
    from attngrid.render.audit import write_audit
    from attngrid.render.claims import claims_table, summary_table
    from attngrid.render.numbers import numbers, write_numbers
    from attngrid.render.tables import write_table
    from attngrid.study.paths import results_folder

    families, found = load_claims()
    if study is not None:
        cells = load_results(study.study).cells
        own = answer(families, found, cells, in_kind=True)
        write_claims(study.results / "claims.csv", own)
        write_table(claims_table(own, study.study))
    answers = answer(families, found, all_cells())
    write_claims(results_folder() / "claims.csv", answers)
    write_table(claims_table(answers))
    write_table(summary_table(answers), kinds=(".md",))
    cells = all_cells()
    # the demo's digits are nobody's finding
    choices = selection(cells[cells["dataset"] != "digits"])
    text = choices.to_csv(index=False, float_format="%.10g")
    write_atomically(results_folder() / "selection.csv", text)
    if shipped("results/complexity.csv").is_file():
        lines = audit_lines()
        write_audit(lines)
        write_numbers(numbers(families, answers, choices, lines))


def _claims_of(study: Study) -> Table | None:
    """The study's claims table as it was last made."""
    from attngrid.analysis.frames import read_frame
    from attngrid.render.claims import claims_table

    file = study.results / "claims.csv"
    if not file.is_file():
        return None
    answers = read_frame(file)
    texts = ["condition", "records"]
    answers[texts] = answers[texts].astype(object).fillna("")
    return claims_table(answers, study.study)


def audit(arguments: argparse.Namespace) -> None:
    """Audit the published figures: arithmetic on what is printed and counted."""
    from attngrid.analysis.audit import audit as lines
    from attngrid.render.audit import write_audit

    write_audit(lines())


def figure(arguments: argparse.Namespace) -> None:
    """Draw a study's figures, or those named, as PDF and PNG."""
    from attngrid.analysis.frames import load_results
    from attngrid.render.figures import write_figure
    from attngrid.study.schema import load_study

    study = load_study(arguments.study)
    names = _of_study(arguments, "figure", study.figures)
    results = load_results(study.study)
    failed: list[str] = []
    for name in names:
        _tried(failed, write_figure, study, name, results, Path("reference"))
    _say_failed(failed)


def report(arguments: argparse.Namespace) -> None:
    """Write the page that shows a study's tables and figures."""
    from attngrid.analysis.frames import load_results
    from attngrid.render.report import write_report
    from attngrid.render.tables import build_table
    from attngrid.study.schema import load_study

    study = load_study(arguments.study)
    results = load_results(study.study)
    tables = [
        build_table(study, results.summary, file, cells=results.cells)
        for file in study.descriptions.values()
    ]
    write_report(study, results, tables, _claims_of(study))


def explain(arguments: argparse.Namespace) -> None:
    """Print the chain from a table's row to its records and the commands that make them."""
    from attngrid.render.trace import explain as chain

    for line in chain(arguments.row):
        print(line)


def replicate(arguments: argparse.Namespace) -> None:
    """Train a table's row again, elsewhere; exit 0: consistent, 3: not, 4: nothing finished."""
    from attngrid.analysis.optional import require_tests
    from attngrid.core.errors import InconclusiveError, InconsistentError
    from attngrid.render.trace import trace

    require_tests()
    from attngrid.analysis.replication import compare, retrain

    found = trace(arguments.row)
    cells = list({cell.id: cell for cell in found.cells if cell.record.is_file()}.values())
    if not cells:
        raise RecordError(
            f"{arguments.row}: no record of it is here, so there is nothing to repeat"
        )
    again = retrain(found.study, cells, arguments.into, arguments.budget)
    consistent = True
    for condition in dict.fromkeys(cell.condition for cell in again):
        own = [cell for cell in again if cell.condition == condition]
        result = compare([c for c in cells if c.condition == condition], own, arguments.into)
        consistent &= result.consistent
        print(f"{found.row.label}: {condition}")
        print(f"  {len(own)} trained again, {result.identical} equal to the bit")
        print(
            f"  top-1 error: new mean less the {len(result.committed)} records' "
            f"{result.difference:+.3f} points, {result.limit:.3f} allowed: "
            f"{'consistent' if result.consistent else 'not consistent'}"
        )
    if not again:
        raise InconclusiveError(
            f"{arguments.row}: no training finished within {arguments.budget:g} s; the same "
            "command goes on from its checkpoint"
        )
    if not consistent:
        raise InconsistentError(f"{arguments.row}: not consistent with the records")


def export(arguments: argparse.Namespace) -> None:
    """Turn a study's records into logs of TensorBoard or Weights & Biases."""
    from attngrid.analysis.export import to_tensorboard, to_wandb
    from attngrid.study.schema import load_study

    study = load_study(arguments.study)
    if arguments.tensorboard is not None:
        count, folder = to_tensorboard(study, arguments.tensorboard), arguments.tensorboard
    else:
        count, folder = to_wandb(study, study.study, arguments.wandb), arguments.wandb
    print(f"{folder}: {count} records", file=sys.stderr)


def _seconds(text: str) -> float:
    """``90``, ``90s``, ``30m`` or ``2h`` in seconds."""
    units = {"s": 1, "m": 60, "h": 3600}
    number, unit = (text[:-1], text[-1]) if text[-1:] in units else (text, "s")
    try:
        seconds = float(number) * units[unit]
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"found {text!r}; 90s, 30m or 2h")
    return seconds


def current(arguments: argparse.Namespace) -> None:
    """Collect whatever records exist and render everything; train nothing."""
    from attngrid.analysis import frames
    from attngrid.analysis.maps import with_weights
    from attngrid.analysis.optional import can_test
    from attngrid.render.report import write_report
    from attngrid.render.tables import build_table, write_table
    from attngrid.study.schema import load_study

    study = load_study(arguments.study)
    results = frames.collect(study, trained_by_now=arguments.ended)
    frames.write_results(study, results)
    if "maps" in study.figures and with_weights(study):
        try:
            _update_maps(study)
        except Exception as error:  # a user's module may raise anything; the rest is rendered
            print(f"no new attention maps: {error}", file=sys.stderr)
    # read back: what is rendered is what load_results hands out
    results = frames.load_results(study.study)
    failed: list[str] = []
    tables: list[Table] = []
    drawn: list[str] = []

    def set_table(file: Path) -> None:
        ready = build_table(study, results.summary, file, cells=results.cells)
        write_table(ready)
        tables.append(ready)

    def draw(name: str) -> None:
        write_figure(study, name, results, Path("reference"))
        drawn.append(name)

    def write_page() -> None:
        write_report(study, results, tables, _claims_of(study), figures=drawn)

    for file in study.descriptions.values():
        _tried(failed, set_table, file)
    if can_test():
        _tried(failed, _write_claims, study)
    else:
        print('no verdicts and no bold: pip install "attngrid[evidence]"', file=sys.stderr)
    if study.figures:
        from attngrid.render.figures import write_figure

        for name in study.figures:
            _tried(failed, draw, name)
    _tried(failed, write_page)
    print(f"{study.study}: {frames.counts(results.cells)}", file=sys.stderr)
    if results.trials is not None:
        print(f"{study.study}, trials: {frames.counts(results.trials)}", file=sys.stderr)
    for line in frames.unfinished(results):
        print(f"  {line}", file=sys.stderr)
    _say_failed(failed)


def outputs(arguments: argparse.Namespace) -> None:
    """Name what was rendered of a study."""
    from attngrid.study.schema import load_study

    for file in load_study(arguments.study).outputs():
        if file.is_file():
            print(file)


def init(arguments: argparse.Namespace) -> None:
    """Make a folder for a study of your own, with a working example of everything in it."""
    from attngrid.study.scaffold import init as make_folder

    for file in make_folder(arguments.folder):
        print(file)
    print(f"now: cd {shlex.quote(str(arguments.folder))} && snakemake --cores all", file=sys.stderr)


def schema(arguments: argparse.Namespace) -> None:
    """Print the JSON schema of a study's configuration."""
    from attngrid.study.schema import json_schema

    print(json_schema(), end="")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="attngrid",
        description="The commands that the Snakemake workflow calls. STUDY is a configuration, "
        "config/config.yaml, or a resolved one, results/demo/study.json.",
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    for command in (
        init,
        plan,
        status,
        prepare,
        train,
        tune,
        complexity,
        cost,
        evaluate,
        collect,
        archive,
        import_,
        visualize,
        table,
        claims,
        audit,
        figure,
        report,
        explain,
        replicate,
        export,
        current,
        outputs,
        schema,
    ):
        name = command.__name__.rstrip("_")
        sub = commands.add_parser(name, help=command.__doc__, description=command.__doc__)
        sub.set_defaults(command=command)
        if command is complexity:
            sub.add_argument("models", type=Path, help="a study, or config/complexity.yaml")
            sub.add_argument("--output", type=Path, required=True, help="the CSV to write")
        elif command is cost:
            sub.add_argument("grid", type=Path, metavar="GRID", help="config/cost.yaml")
            for name in ("backbones", "attentions", "datasets"):
                sub.add_argument(f"--{name}", nargs="+", metavar="NAME", help="only these")
            sub.add_argument("--threads", type=int, help="of the CPU; left out, one a core")
            sub.add_argument("--again", action="store_true", help="what was measured before, too")
            sub.add_argument("--render-only", action="store_true", help="measure nothing")
        elif command is import_:
            sub.add_argument("folder", type=Path, metavar="FOLDER", help="a copy of results/, or records")
            sub.add_argument("--study", type=Path, help="whose they are; left out, any in config/")
        elif command is init:
            sub.add_argument("folder", type=Path, help="a new one; the study takes its name")
        elif command is evaluate:
            sub.add_argument("record", type=Path, metavar="RECORD")
            sub.add_argument("--data", type=Path, help="of the datasets, if not the site's")
            sub.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
        elif command in (explain, replicate):
            sub.add_argument("row", metavar="TABLE:ROW", help="tables/demo.grid.tex:ResNet-18")
        elif command is claims:
            sub.add_argument("study", type=Path, metavar="STUDY", nargs="?")
        elif command not in (audit, schema):
            sub.add_argument("study", type=Path, metavar="STUDY")
        if command is plan:
            sub.add_argument("--gpu", help="A100, H100 and so on; left out, the cluster's")
        if command is train:
            sub.add_argument("cell", metavar="CELL", help="the id of a cell or trial")
            sub.add_argument("--record", type=Path, help="where to write the record")
            sub.add_argument("--max-runtime", type=_seconds, help="90s, 30m or 2h: then it stops")
        if command is archive:
            sub.add_argument("--other-code", action="store_true", help="also those of other code")
        if command is prepare:
            sub.add_argument("dataset", nargs="?", metavar="DATASET", help="one of the study's")
            sub.add_argument("--thorough", action="store_true", help="decode every image")
            sub.add_argument(
                "--archives",
                type=Path,
                metavar="FOLDER",
                help="has the archives, whole or in parts",
            )
        if command is tune:
            sub.add_argument("name", metavar="NAME")
        if command in (table, figure):
            sub.add_argument("names", metavar="NAME", nargs="*", help="left out, all it names")
        if command is replicate:
            sub.add_argument("--budget", type=_seconds, default="30m", help="90s, 30m or 2h")
            sub.add_argument(
                "--into", type=Path, default=Path("replication"), help="where the trainings go"
            )
        if command is export:
            kind = sub.add_mutually_exclusive_group(required=True)
            kind.add_argument("--tensorboard", type=Path, metavar="FOLDER")
            kind.add_argument("--wandb", type=Path, metavar="FOLDER", help="offline runs")
        if command is current:
            sub.add_argument(
                "--ended", action="store_true", help="no cell of the study is running any more"
            )
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; an error that the user can mend is one message, not a traceback."""
    arguments = parser().parse_args(argv)
    log = logging.getLogger("attngrid")
    log.handlers[:] = [logging.StreamHandler()]
    log.setLevel(logging.INFO)
    if argv is None and arguments.command in (train, cost):
        tune_allocator()
    atexit.register(gc.freeze)  # one more search for garbage, at the end, is half a second of torch
    try:
        arguments.command(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        if arguments.command is train:
            raise
        # whoever reads this has ended first; the interpreter's own last flush is to find a file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except AttngridError as error:
        with suppress(OSError):  # whoever reads this may have ended first
            notes = "".join(f"; {note}" for note in getattr(error, "__notes__", ()))
            print(f"attngrid: error: {error}{notes}", file=sys.stderr, flush=True)
        return getattr(error, "exit_code", 1)
    return 0
