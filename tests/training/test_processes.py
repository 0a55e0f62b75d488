"""Cells that several processes train: their results, and how all of the processes end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from attngrid.core.errors import BusyCellError, ConfigError, LostProcessError
from attngrid.core.validation import validate
from attngrid.data.images import Batches, channel_statistics
from attngrid.data.loading import load
from attngrid.data.sharding import Share, split
from attngrid.models.create import create_model
from attngrid.records.record import read_record
from attngrid.records.status import locked, read_status
from attngrid.study import resources
from attngrid.study.cell import Cell
from attngrid.study.compute import Compute
from attngrid.study.schema import Study, load_study
from attngrid.training import loop
from attngrid.training.distributed import ALONE
from attngrid.training.evaluation import evaluate_record
from attngrid.training.launch import launch
from attngrid.training.micro_batches import MicroBatches
from attngrid.training.run import run_cell
from conftest import ROOT, environment
from training.test_resume import DRAWS

CPU = torch.device("cpu")
LAYOUTS = [(1, 1), (2, 1), (1, 6), (3, 2)]


# Within an epoch, a deep network with ReLU amplifies the last bit of a float32 to percents of a
# loss. The losses of this network stay equal to six digits.
SMOOTH = """
import torch
from torch import nn

class Smooth(nn.Module):
    def __init__(self, sites, *, num_classes, stem, width):
        super().__init__()
        layers, inputs = [], 3
        for stage, outputs in enumerate((8, 16), 1):
            layers += [nn.Conv2d(inputs, outputs, 3, 2, padding=1, bias=False)]
            layers += [nn.BatchNorm2d(outputs), nn.Tanh()]
            layers += [sites.any_block(outputs, stage, stages=2)]
            inputs = outputs
        self.stages = nn.Sequential(*layers)
        self.classifier = nn.Linear(inputs, num_classes)

    def forward(self, x):
        return self.classifier(self.stages(x).mean((2, 3)))
"""


@pytest.fixture
def study(tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small network; the last batch of an epoch is not full and splits unevenly."""
    monkeypatch.chdir(tmp_path)
    Path("smooth.py").write_text(SMOOTH)
    tiny["grid"][0] |= {"backbones": ["smooth.py:Smooth"], "attentions": ["se"], "seeds": [0]}
    tiny["grid"][0]["options"] = {"classes": 3}
    tiny["recipes"]["tiny"] |= {"epochs": 2, "batch_size": 84, "learning_rate": 1.0}
    tiny["recipes"]["tiny"] |= {"weight_decay": 5e-4, "label_smoothing": 0.1}
    return write_study(tiny)


def write_study(content: dict[str, Any], **compute: Any) -> Path:
    content["compute"] |= compute
    file = Path("study.yaml")
    file.write_text(yaml.safe_dump(content))
    return file


def only_cell(file: Path) -> Cell:
    (cell,) = load_study(file).trainings.values()
    return cell


# The images of each process


@pytest.mark.parametrize(("processes", "gradient_accumulation_steps"), LAYOUTS)
def test_micro_batches_are_torchs_tensor_split_for_every_layout(
    processes: int, gradient_accumulation_steps: int
) -> None:
    parts = processes * gradient_accumulation_steps
    for size in (2 * parts, 2 * parts + 1, 97):
        batch = range(1000, 1000 + size)
        taken: list[list[int]] = [[] for _ in range(parts)]
        for rank in range(processes):
            for turn, part in enumerate(
                Share(rank, processes, gradient_accumulation_steps).micro_batches(batch)
            ):
                taken[turn * processes + rank] = list(part)
        expected = torch.arange(1000, 1000 + size).tensor_split(parts)
        assert taken == [part.tolist() for part in expected]


def test_joint_micro_batches_split_those_of_one_process() -> None:
    """SyncBatchNorm normalises together the images of one process's micro-batch."""
    batch = range(50)
    alone = Share(0, 1, 2).micro_batches(batch)
    shares = [Share(rank, 4, 2, joint=True).micro_batches(batch) for rank in range(4)]
    for turn, part in enumerate(alone):
        assert [place for share in shares for place in share[turn]] == list(part)


def test_every_test_image_belongs_to_exactly_one_process() -> None:
    for images, size, processes in ((355, 100, 2), (50_000, 100, 8), (3, 100, 2)):
        batches = Share(0, processes).batches(images, size, training=False)
        found = [
            place
            for rank in range(processes)
            for batch in Share(rank, processes).assigned(batches, training=False)
            for place in batch
        ]
        assert sorted(found) == list(range(images))


def test_a_last_batch_with_single_image_micro_batches_is_left_out() -> None:
    sizes = [len(batch) for batch in Share(0, 2, 2).batches(40 + 7, 20, training=True)]
    assert sizes == [20, 20]
    sizes = [len(batch) for batch in Share(0, 2, 2).batches(40 + 8, 20, training=True)]
    assert sizes == [20, 20, 8]
    assert [len(part) for part in split(range(8), 4)] == [2, 2, 2, 2]


@pytest.mark.parametrize(("processes", "gradient_accumulation_steps"), LAYOUTS[1:])
def test_augmentation_does_not_depend_on_the_layout(
    study: Path, processes: int, gradient_accumulation_steps: int
) -> None:
    """Joined again, the micro-batches are the batches of a single process."""

    def steps(share: Share) -> list[list[tuple[Tensor, Tensor]]]:
        generator = torch.Generator().manual_seed(7)
        recipe = only_cell(study).recipe
        batches = Batches(
            images, 112, mean_C, std_C, recipe.train_transforms, generator, share=share
        )
        micro_batches = MicroBatches(nn.Flatten(), ALONE, share.gradient_accumulation_steps)
        return [list(parts) for _, parts in micro_batches.steps(batches, 3)]

    images, _ = load("digits", Path("data"), download=False, classes=None)
    mean_C, std_C = channel_statistics(images)
    whole = steps(Share())
    ranks = [
        steps(Share(rank, processes, gradient_accumulation_steps)) for rank in range(processes)
    ]
    assert len(whole) == len(ranks[0]) == 10
    for step, ((pixels, labels),) in enumerate(whole):
        turns = [rank[step][turn] for turn in range(gradient_accumulation_steps) for rank in ranks]
        assert torch.equal(torch.cat([part for part, _ in turns]), pixels)
        assert torch.equal(torch.cat([labels for _, labels in turns]), labels)


# The results


def reference_curve(cell: Cell, parts: int) -> list[dict[str, float]]:
    """A plain training in one process that normalises each micro-batch separately.

    The loss is the mean over the batch. With momentum 1, a BatchNorm's running statistics are
    those of the last micro-batch; their mean over the micro-batches updates the real ones, once
    a step.
    """
    recipe = cell.recipe
    torch.manual_seed(cell.seed)
    train, test = load(cell.dataset, Path("data"), download=False, classes=cell.options.classes)
    statistics = channel_statistics(train)
    order = torch.Generator().manual_seed(cell.seed)
    batches = Batches(train, recipe.batch_size, *statistics, recipe.train_transforms, order)
    model = create_model(**cell.model_arguments()).to(memory_format=torch.channels_last)
    norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    means = [layer.running_mean.clone() for layer in norms]
    variances = [layer.running_var.clone() for layer in norms]
    for layer in norms:
        layer.momentum = 1.0
    sgd = torch.optim.SGD(
        model.parameters(), 1.0, recipe.momentum, weight_decay=recipe.weight_decay
    )
    curve = []
    for epoch in range(recipe.epochs):
        model.train()
        total = seen = 0.0
        for step, (images, labels) in enumerate(batches):
            sgd.param_groups[0]["lr"] = recipe.learning_rate_at(epoch + step / len(batches))
            losses, part_means, part_variances = [], [], []
            for x, y in zip(images.tensor_split(parts), labels.tensor_split(parts), strict=True):
                logits = model(x.contiguous(memory_format=torch.channels_last))
                smoothing = recipe.label_smoothing
                losses.append(cross_entropy(logits, y, reduction="sum", label_smoothing=smoothing))
                part_means.append([layer.running_mean.clone() for layer in norms])
                part_variances.append([layer.running_var.clone() for layer in norms])
            sgd.zero_grad()
            loss = torch.stack(losses).sum()
            (loss / len(labels)).backward()
            sgd.step()
            for running, of_micro_batches in ((means, part_means), (variances, part_variances)):
                for layer, statistic in enumerate(running):
                    mean = torch.stack([one[layer] for one in of_micro_batches]).mean(0)
                    running[layer] = 0.9 * statistic + 0.1 * mean
            total += float(loss.detach())
            seen += len(labels)
        for layer, mean, variance in zip(norms, means, variances, strict=True):
            layer.running_mean.copy_(mean)
            layer.running_var.copy_(variance)
        model.eval()
        with torch.no_grad():
            images, labels = next(iter(Batches(test, len(test), *statistics)))
            logits = model(images.contiguous(memory_format=torch.channels_last))
        curve.append(
            {
                "train_loss": total / seen,
                "test_loss": float(cross_entropy(logits, labels)),
                "test_top1_error": 100 * float((logits.argmax(1) != labels).double().mean()),
            }
        )
    return curve


def run_script(what: str, study: Path, processes: int) -> list[Any]:
    """The results of ``together.py``, by process."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    options = ["--local-addr=localhost", f"--nproc-per-node={processes}"]
    script = [str(ROOT / "tests/together.py"), what, str(study), "found.json"]
    done = subprocess.run(
        [*torchrun, *options, *script],
        env=environment() | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found: list[Any] = json.loads(Path("found.json").read_text())
    assert len(found) == processes
    return found


def close(
    curve: list[dict[str, float]], expected: list[dict[str, float]], within: float = 2e-6
) -> bool:
    return all(
        abs(line[name] - other[name]) <= within * other[name]
        for line, other in zip(curve, expected, strict=True)
        for name in ("train_loss", "test_loss")
    )


def test_accumulation_normalises_each_micro_batch_separately(study: Path) -> None:
    cell, parts = only_cell(study), 4
    compute = Compute(gradient_accumulation_steps=parts)
    metrics, *_ = loop.train(cell, CPU, Path("data"), compute=compute)
    assert close(metrics["curve"], reference_curve(cell, parts))
    # another number of micro-batches gives other losses
    assert not close(metrics["curve"], reference_curve(cell, parts + 1), 1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "gradient_accumulation_steps"), [(2, 2), (3, 1)])
def test_several_processes_have_the_losses_of_the_reference(
    tiny: dict[str, Any], study: Path, processes: int, gradient_accumulation_steps: int
) -> None:
    study = write_study(tiny, gradient_accumulation_steps=gradient_accumulation_steps)
    metrics, *others = run_script("train", study, processes)
    assert all(other == metrics for other in others)
    assert close(
        metrics["curve"], reference_curve(only_cell(study), processes * gradient_accumulation_steps)
    )


@pytest.mark.slow
def test_two_processes_mix_clip_and_average_as_one_with_two_steps(
    tiny: dict[str, Any], study: Path
) -> None:
    tiny["recipes"]["tiny"] |= {"optimizer": "adamw", "learning_rate": 0.01, "epochs": 1}
    tiny["recipes"]["tiny"] |= {"mixup": 0.4, "cutmix": 1.0, "clip_grad_norm": 0.1, "ema": 0.5}
    first, second = run_script("train", write_study(tiny), 2)
    assert first == second
    compute = Compute(gradient_accumulation_steps=2)
    metrics, *_ = loop.train(only_cell(study), CPU, Path("data"), compute=compute)
    assert close(metrics["curve"], first["curve"])


@pytest.mark.slow
def test_processes_that_are_stopped_and_resumed_are_bit_identical(
    tiny: dict[str, Any], study: Path
) -> None:
    """Each process has its own random draws; three processes could sum in another order.

    Processes that see another checkpoint than the first one go on from the first one's.
    """
    Path("draws.py").write_text(DRAWS)
    tiny["grid"][0]["attentions"] = ["draws.py:Draws"]
    undisturbed, *resumed = run_script(
        "stopped", write_study(tiny, gradient_accumulation_steps=2), 3
    )[0]
    assert len(resumed) == 4
    assert all(metrics == undisturbed | {"resumed": 1} for metrics in resumed)


def test_conversion_to_sync_batch_norm_keeps_the_weights(study: Path) -> None:
    """It trains on a GPU only, but parameters, state and evaluation are those of the model."""
    model = create_model(**only_cell(study).model_arguments())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images = torch.randn(4, 3, 16, 16)
    expected = model.eval()(images)
    parameters = list(model.parameters())
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert any(isinstance(layer, nn.SyncBatchNorm) for layer in converted.modules())
    assert all(a is b for a, b in zip(parameters, converted.parameters(), strict=True))
    after = converted.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert torch.equal(converted(images), expected)


# The digest


def test_only_the_number_of_micro_batches_changes_the_digest(tiny: dict[str, Any]) -> None:
    def digest(**compute: Any) -> str:
        content = tiny | {"compute": {"device": "auto", **compute}}
        return validate(Study, content, "tiny.yaml").cells[0].digest

    plain = digest()
    assert plain == digest(gpus=1, gradient_accumulation_steps=1) == digest(gpus=8, sync_bn=True)
    two = digest(gpus=2)
    assert (
        two
        == digest(gradient_accumulation_steps=2)
        == digest(gpus=4, gradient_accumulation_steps=2, sync_bn=True)
        != plain
    )
    assert (
        digest(gpus=4)
        == digest(gpus=2, gradient_accumulation_steps=2)
        == digest(gradient_accumulation_steps=4)
        != two
    )


def test_a_condition_names_the_images_per_batch_norm(tiny: dict[str, Any]) -> None:
    tiny["compute"] |= {"gpus": 2, "gradient_accumulation_steps": 4}
    cell = validate(Study, tiny, "tiny.yaml").cells[0]
    assert cell.condition.endswith(", batch norm over 32 images")
    assert cell.config()["parts"] == 8
    assert Cell.from_config(cell.config(), "tiny") == cell
    assert cell.matches(cell.config())
    del tiny["compute"]["gpus"]
    assert not validate(Study, tiny, "tiny.yaml").cells[0].matches(cell.config())


# Errors


@pytest.mark.parametrize(
    ("compute", "message"),
    [
        ({"gpus": 3}, r"grid\.0\.recipes: 'tiny': batch_size: found 256; compute\.gpus 3 × "),
        (
            {"gpus": 16, "gradient_accumulation_steps": 16},
            r".* need a multiple of 256 with 2 or more images in each",
        ),
        ({"gpus": 0}, r"compute\.gpus: found 0; .*greater than 0"),
        ({"gradient_accumulation_steps": 1.5}, r"compute\.gradient_accumulation_steps: found 1\.5"),
        ({"sync_bn": True}, r"compute: sync_bn: found true, on a CPU; needs device: cuda"),
        (
            {"gradient_accumulation_steps": 2, "performance": {"cuda_graphs": True}},
            r"compute: performance\.cuda_graphs: found true",
        ),
    ],
)
def test_an_impossible_compute_section_is_an_error(
    tiny: dict[str, Any], compute: dict[str, Any], message: str
) -> None:
    tiny["compute"] |= compute
    with pytest.raises(ConfigError, match=rf"^tiny\.yaml: {message}"):
        validate(Study, tiny, "tiny.yaml")


def test_a_training_for_two_processes_does_not_start_in_one(
    tiny: dict[str, Any], study: Path
) -> None:
    wanted = load_study(write_study(tiny, gpus=2))
    (cell,) = wanted.trainings.values()
    with pytest.raises(
        ConfigError, match="found 2, but 1 processes; start them by `attngrid train`"
    ):
        run_cell(wanted, cell, cell.record)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_sync_bn_without_a_gpu_is_an_error(tiny: dict[str, Any], study: Path) -> None:
    wanted = load_study(write_study(tiny, gpus=2, sync_bn=True, device="auto"))
    (cell,) = wanted.trainings.values()
    with pytest.raises(ConfigError, match=r"compute.sync_bn: found true; there is no GPU here"):
        launch(wanted, cell, [])


def test_the_workflow_requests_the_cores_and_gpus_of_a_cell(tiny: dict[str, Any]) -> None:
    tiny["compute"] |= {"gpus": 4, "threads": 3, "device": "cuda"}
    study = validate(Study, tiny, "tiny.yaml")
    assert (resources.cores(study, study.cells[0].id), study.gpus) == (12, 4)
    tiny["compute"] |= {"device": "cpu"}
    assert validate(Study, tiny, "tiny.yaml").gpus == 0


# The end of the processes


def start(file: Path) -> subprocess.Popen[str]:
    """The command that the workflow's rule runs."""
    return subprocess.Popen(
        ["attngrid", "train", file, only_cell(file).id],
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
    )


def children(pid: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True)
    return [int(child) for child in found.stdout.split()]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_until(condition: Callable[[], bool], seconds: float = 240) -> None:
    """Wait for a condition. Processes import torch first, which may be slow."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def status(cell: Cell) -> dict[str, Any]:
    return read_status(cell.status) or {"state": "", "message": ""}


@pytest.fixture
def running(
    tiny: dict[str, Any], study: Path
) -> Iterator[tuple[Cell, subprocess.Popen[str], list[int]]]:
    """A cell in its second epoch, the launcher, and its two processes by rank."""
    tiny["recipes"]["tiny"] |= {"epochs": 5000}
    file = write_study(tiny, gpus=2, checkpoint_share=1.0)
    cell, launcher = only_cell(file), start(file)
    ranks: list[int] = []
    try:
        wait_until(lambda: status(cell).get("epoch", 0) >= 1 or launcher.poll() is not None)
        assert launcher.poll() is None, launcher.communicate()[1]
        first = status(cell)["pid"]
        ranks = sorted(children(launcher.pid), key=lambda pid: pid != first)
        assert ranks[0] == first
        assert len(ranks) == 2
        yield cell, launcher, ranks
    finally:  # end all processes after a failure, too
        left = [*(ranks or children(launcher.pid)), launcher.pid]
        for pid in left if launcher.poll() is None else filter(alive, ranks):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        launcher.communicate()


@pytest.mark.slow
@pytest.mark.parametrize(("whom", "number"), [(0, signal.SIGTERM), (2, signal.SIGUSR1)])
def test_a_signal_to_one_process_ends_all_with_one_checkpoint(
    running: tuple[Cell, subprocess.Popen[str], list[int]], whom: int, number: signal.Signals
) -> None:
    cell, launcher, ranks = running
    busy = pytest.raises(BusyCellError, match=f"is being trained by process {ranks[0]} on")
    with busy, locked(cell):
        pass
    os.kill([launcher.pid, *ranks][whom], number)
    _, output = launcher.communicate(timeout=240)
    assert launcher.returncode == 128 + number
    message = f"stopped by {number.name}; the next run goes on from its checkpoint"
    assert output.count(message) == 1
    assert "Traceback" not in output
    assert status(cell)["message"] == message
    assert not any(map(alive, ranks))
    assert cell.checkpoint.is_file()
    assert not cell.record.exists()


@pytest.mark.slow
def test_a_killed_process_ends_the_others_and_is_named(
    running: tuple[Cell, subprocess.Popen[str], list[int]],
) -> None:
    cell, launcher, ranks = running
    os.kill(ranks[1], signal.SIGKILL)
    _, output = launcher.communicate(timeout=240)
    assert launcher.returncode == 1
    message = "process 2 of 2 was ended by SIGKILL"
    assert f"attngrid: error: {cell.id}: {message}" in output
    assert "Traceback" not in output
    assert status(cell)["state"] == "failed"
    assert status(cell)["message"].startswith(message)
    assert not any(map(alive, ranks))


@pytest.mark.slow
def test_processes_without_their_launcher_write_a_checkpoint_and_end(
    running: tuple[Cell, subprocess.Popen[str], list[int]],
) -> None:
    cell, launcher, ranks = running
    launcher.kill()
    launcher.communicate(timeout=240)
    wait_until(lambda: not any(map(alive, ranks)))
    assert "stopped by SIGTERM" in status(cell)["message"]
    assert cell.checkpoint.is_file()


@pytest.mark.slow
def test_a_process_whose_launcher_was_killed_before_all_joined_ends(
    tiny: dict[str, Any], study: Path
) -> None:
    """The other process was never started; waiting for it would take ten minutes."""
    file = write_study(tiny, gpus=2)
    (cell_id, *_) = load_study(file).trainings
    with subprocess.Popen(["true"]) as ended:
        ended.wait()
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    ranks = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    ranks |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "1"}
    ranks |= {"ATTNGRID_LAUNCHER": str(ended.pid)}
    command = [sys.executable, "-m", "attngrid.cli", "train", str(file), cell_id]
    done = subprocess.run(command, env=environment() | ranks, timeout=240, check=False)
    assert done.returncode == LostProcessError.exit_code
    assert not load_study(file).trainings[cell_id].record.exists()


@pytest.mark.slow
def test_an_error_of_one_process_is_the_only_message(tiny: dict[str, Any], study: Path) -> None:
    """Rank 1 runs out of memory; rank 0 waits for it and prints nothing."""
    Path("large.py").write_text(
        "import os, torch\n"
        "class Large(torch.nn.Identity):\n"
        "    def __init__(self, channels):\n"
        "        super().__init__()\n"
        "    def forward(self, x):\n"
        "        if self.training and os.environ.get('RANK') == '1':\n"
        "            raise torch.OutOfMemoryError('CUDA out of memory.')\n"
        "        return x\n"
    )
    tiny["grid"][0]["attentions"] = ["large.py:Large"]
    file = write_study(tiny, gpus=2)
    process = start(file)
    _, output = process.communicate(timeout=240)
    assert process.returncode == 1
    (line,) = output.splitlines()
    assert line.startswith(f"attngrid: error: {only_cell(file).id}: out of memory at batches of")
    assert status(only_cell(file))["message"].endswith("CUDA out of memory.")


@pytest.mark.slow
def test_the_rule_trains_a_cell_with_two_processes(
    tiny: dict[str, Any], clone: Path, snakemake: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """The module has an unused parameter; one process reproduces the record's errors."""
    (clone / "unused.py").write_text(
        "import torch\n"
        "class Unused(torch.nn.Identity):\n"
        "    def __init__(self, channels):\n"
        "        super().__init__()\n"
        "        self.unused = torch.nn.Parameter(torch.ones(channels))\n"
    )
    tiny["grid"][0] |= {"attentions": ["unused.py:Unused"], "seeds": [0]}
    tiny |= {"tables": [], "figures": [], "compute": {"device": "cpu", "gpus": 2}}
    (clone / "study.yaml").write_text(yaml.safe_dump(tiny))
    done = snakemake(clone, "records", "--cores", "2", "--configfile", "study.yaml")
    assert done.returncode == 0, done.stderr
    os.chdir(clone)
    cell = only_cell(Path("study.yaml"))
    record = read_record(cell.record, cell)
    assert (record.run["processes"], record.run["gradient_accumulation_steps"]) == (2, 1)
    assert record.metrics.test_images == 355
    assert (read_status(cell.status) or {})["state"] == "done"
    # one process tests it again, with the same errors
    _, _, found = evaluate_record(cell.record, Path("data"), "cpu")
    assert found["test_top1_error"] == record.metrics.top1_error
    assert found["test_top5_error"] == record.metrics.top5_error
