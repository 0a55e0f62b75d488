"""Test a trained cell again with its kept weights."""

from __future__ import annotations

from pathlib import Path

from attngrid.records.record import Record, read_cell
from attngrid.study.cell import Cell
from attngrid.study.compute import Performance
from attngrid.training.batches import make_batches
from attngrid.training.loop import autocast, choose_device, evaluate, make_deterministic
from attngrid.training.performance import (
    callable_network,
    compiler_problem,
    memory_format,
)
from attngrid.training.weights import create_network, weights_of


def evaluate_record(
    file: Path, folder: Path, device: str = "auto"
) -> tuple[Cell, Record, dict[str, float]]:
    """Test a record's network on its test images, as after its last epoch.

    On the same kind of device the errors equal the record's exactly, if the training was
    deterministic and this machine can compile a network that was compiled.

    ``folder`` has the datasets; the device is ``auto``, ``cpu`` or ``cuda``.

    Returns:
        The cell, its record, and ``test_loss``, ``test_top1_error`` and ``test_top5_error``.

    Raises:
        RecordError: no record, no weights, or the weights of another cell.
        DataError: missing images.
    """
    cell, record = read_cell(file)
    torch_device = choose_device(device)
    make_deterministic(cell.seed, cell.threads, strict=bool(record.run["deterministic"]))
    _, test_batches = make_batches(cell, folder, torch_device)
    model = create_network(cell, weights_of(file))
    # Older records do not name their options. Tests ran compiled only if the whole network did.
    performance = Performance.model_validate(record.run.get("performance", {}))
    same_device = torch_device.type == record.run["device"]
    if performance.compile is not True or not same_device or compiler_problem(torch_device.type):
        performance = performance.model_copy(update={"compile": False, "cuda_graphs": False})
    model.to(device=torch_device, memory_format=memory_format(performance)).eval()  # type: ignore[call-overload]
    with autocast(cell.precision, torch_device):
        found = evaluate(callable_network(model, performance), test_batches)
    return cell, record, found
