"""Datasets on disk are checked once; errors name missing or damaged files."""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import os
import pickle
import random
import shutil
import subprocess
import tarfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import torch
import yaml
from PIL import EpsImagePlugin, Image
from torchvision import datasets
from torchvision.transforms import Resize
from torchvision.transforms.functional import pil_to_tensor

import conftest
from attngrid.cli.main import main
from attngrid.core.errors import ConfigError, DataError
from attngrid.core.validation import validate
from attngrid.data import dogs, folders
from attngrid.data.decoding import to_rgb
from attngrid.data.images import ImageFiles
from attngrid.data.loading import load, load_files
from attngrid.data.prepare import fetch, prepare, report_file
from attngrid.data.registry import DATASETS, full_name
from attngrid.data.stream import DecodedBatches
from attngrid.study.recipe import shipped_recipes
from attngrid.study.resources import prepared, require_runnable
from attngrid.study.schema import Study, load_study

Snakemake = Callable[..., subprocess.CompletedProcess[str]]


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def tar(file: Path, members: dict[str, bytes]) -> str:
    """Write an archive; return its MD5."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w:gz" if file.suffix == ".gz" else "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return md5(file.read_bytes())


def tree(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, except those of the preparation in ``.attngrid``."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and ".attngrid" not in file.parts
    }


# CIFAR: files in its authors' format, with checksums of these files


class Cifar:
    """A few random images in an archive like CIFAR-10's."""

    def __init__(self, folder: Path) -> None:
        rng = np.random.default_rng(0)
        self.archive = folder / "cifar-10-python.tar.gz"
        self.pixels = rng.integers(0, 256, (60, 3072), dtype=np.uint8)
        self.labels = [n % 10 for n in range(60)]
        names = [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]
        self.files = {
            f"cifar-10-batches-py/{name}": pickle.dumps(
                {"data": self.pixels[10 * n : 10 * n + 10], "labels": self.labels[:10]}
            )
            for n, name in enumerate(names)
        }
        meta = {"label_names": [f"class {n}" for n in range(10)]}
        self.files["cifar-10-batches-py/batches.meta"] = pickle.dumps(meta)
        self.attributes: dict[str, Any] = {"tgz_md5": tar(self.archive, self.files)}
        sums = [[name, md5(self.files[f"cifar-10-batches-py/{name}"])] for name in names]
        self.attributes["train_list"], self.attributes["test_list"] = sums[:5], sums[5:]
        self.attributes["meta"] = {
            "filename": "batches.meta",
            "key": "label_names",
            "md5": md5(self.files["cifar-10-batches-py/batches.meta"]),
        }

    def sitecustomize(self, folder: Path) -> str:
        """A folder for PYTHONPATH that replaces the official checksums by those of these files."""
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(
            "import sys\n"
            "if any('attngrid' in argument for argument in sys.orig_argv):\n"
            "    from torchvision.datasets import CIFAR10\n"
            f"    for name, value in {self.attributes!r}.items():\n"
            "        setattr(CIFAR10, name, value)\n"
        )
        return os.pathsep.join([str(folder), *filter(None, [os.getenv("PYTHONPATH")])])


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], str]]:
    """Serve a folder on localhost; return its address."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    servers = []

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

    def start(folder: Path) -> str:
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder))
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}/"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, serve: Callable[[Path], str]) -> Cifar:
    made = Cifar(tmp_path / "elsewhere")
    made.attributes["url"] = serve(tmp_path / "elsewhere") + made.archive.name
    for name, value in made.attributes.items():
        monkeypatch.setattr(datasets.CIFAR10, name, value)
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def test_the_checksums_are_the_official_ones() -> None:
    """www.cs.toronto.edu/~kriz/cifar.html prints these checksums."""
    assert datasets.CIFAR10.tgz_md5 == "c58f30108f718f92721af3b95e74349a"
    assert datasets.CIFAR100.tgz_md5 == "eb9058c3a382ffc7106e4002c42a8d85"


def test_cifar10_is_unpacked_from_its_archive_and_read(cifar: Cifar, folder: Path) -> None:
    shutil.copy(cifar.archive, folder)
    train, test = load("cifar10", folder, download=False, classes=None)
    assert train.pixels_NCHW.dtype == torch.uint8
    expected = cifar.pixels.reshape(60, 3, 32, 32)
    np.testing.assert_array_equal(train.pixels_NCHW, expected[:50])
    np.testing.assert_array_equal(test.pixels_NCHW, expected[50:])
    assert train.labels_N.tolist() == list(range(10)) * 5
    report = json.loads(report_file("cifar10", folder).read_text())
    assert report["checksums"]["cifar-10-batches-py/test_batch"] == (
        f"md5:{md5(cifar.files['cifar-10-batches-py/test_batch'])}"
    )


def test_an_archive_is_downloaded_only_if_the_configuration_allows_it(
    cifar: Cifar, folder: Path
) -> None:
    with pytest.raises(DataError) as raised:
        prepare("cifar10", folder)
    for part in (str(folder / "cifar-10-python.tar.gz"), "download: true", datasets.CIFAR10.url):
        assert part in str(raised.value)
    prepare("cifar10", folder, download=True)
    assert tree(folder).keys() == {"cifar-10-python.tar.gz", *cifar.files}


def test_after_a_failed_download_the_error_says_where_to_put_the_file(
    cifar: Cifar, folder: Path
) -> None:
    cifar.archive.unlink()
    with pytest.raises(DataError, match=r"could not be fetched .* put the file of .* at .*gz$"):
        prepare("cifar10", folder, download=True)


@pytest.mark.parametrize("download", [False, True])
def test_a_wrong_checksum_deletes_nothing(cifar: Cifar, folder: Path, download: bool) -> None:
    (folder / "cifar-10-python.tar.gz").write_bytes(cifar.archive.read_bytes()[:-7])
    before = tree(folder)
    with pytest.raises(DataError, match="Nothing was deleted: move it away"):
        prepare("cifar10", folder, download=download)
    assert tree(folder) == before
    # one of the unpacked files is damaged
    shutil.copy(cifar.archive, folder)
    prepare("cifar10", folder)
    (folder / "cifar-10-batches-py/test_batch").write_bytes(b"damaged")
    before = tree(folder)
    with pytest.raises(DataError, match=r"test_batch has the MD5 .*, expected"):
        prepare("cifar10", folder, download=download)
    assert tree(folder) == before


def test_a_download_with_a_wrong_checksum_keeps_a_temporary_name(
    cifar: Cifar, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", "0" * 32)
    with pytest.raises(DataError, match=r"not be fetched to .*cifar-10-python\.tar\.gz\.part"):
        prepare("cifar10", folder, download=True)
    assert tree(folder) == {".cifar-10-python.tar.gz.part": cifar.archive.read_bytes()}


def test_an_archive_cannot_write_outside_its_folder(
    cifar: Cifar, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evil = {**cifar.files, "../evil": b"evil", "../../evil": b"evil"}
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", tar(folder / "cifar-10-python.tar.gz", evil))
    before = tree(folder)
    with pytest.raises(tarfile.OutsideDestinationError, match="evil"):
        prepare("cifar10", folder)
    assert tree(folder) == before
    assert not list(folder.parent.rglob("evil"))


def test_prepared_files_are_checked_again_only_after_a_change(
    cifar: Cifar, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(cifar.archive, folder)
    first = prepare("cifar10", folder)
    (folder / "cifar-10-python.tar.gz").unlink()  # not needed any more
    checked: list[Path] = []

    def note(file: Path, md5: str) -> str:
        checked.append(file)
        return md5

    monkeypatch.setattr("attngrid.data.cifar.verify_md5", note)
    assert prepare("cifar10", folder) == first
    assert not checked
    os.utime(folder / "cifar-10-batches-py/test_batch", (1, 1))
    prepare("cifar10", folder)
    assert len(checked) == 7
    # an unreadable report is written again
    for number, text in enumerate(("[]", '{"watched": {}, "thorough": false}'), 2):
        report_file("cifar10", folder).write_text(text)
        prepare("cifar10", folder)
        assert len(checked) == 7 * number


def test_the_files_of_a_killed_preparation_do_no_harm(cifar: Cifar, folder: Path) -> None:
    shutil.copy(cifar.archive, folder)
    left = folder / ".attngrid/cifar10.unfinished/cifar-10-batches-py"
    left.mkdir(parents=True)
    (left / "test_batch").write_bytes(b"half")
    (folder / ".cifar-10-python.tar.gz.part").write_bytes(b"half")
    prepare("cifar10", folder)
    assert not left.exists()
    # nor does half a download
    (folder / "cifar-10-python.tar.gz").unlink()
    shutil.rmtree(folder / "cifar-10-batches-py")
    prepare("cifar10", folder, download=True)
    assert tree(folder).keys() == {"cifar-10-python.tar.gz", *cifar.files}


def test_a_read_only_data_folder_is_named_in_the_error(folder: Path) -> None:
    (folder / ".attngrid").write_text("a file where a folder should be")
    with pytest.raises(DataError, match=r"CIFAR-10 could not be prepared: .*must be writable"):
        prepare("cifar10", folder)


def test_of_several_processes_only_one_prepares_a_dataset(
    cifar: Cifar, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(cifar.archive, folder)
    context = multiprocessing.get_context("fork")
    barrier, calls = context.Barrier(3), context.Value("i", 0)

    def slowly(*arguments: Any, **options: Any) -> Path:
        with calls:
            calls.value += 1
        time.sleep(0.5)
        return fetch(*arguments, **options)

    monkeypatch.setattr("attngrid.data.cifar.fetch", slowly)

    def work() -> None:
        barrier.wait()
        report = prepare("cifar10", folder)
        assert report is not None
        assert report["images"]["train"] == 50_000

    running = [context.Process(target=work) for _ in range(3)]
    for process in running:
        process.start()
    for process in running:
        process.join(60)
    assert [process.exitcode for process in running] == [0, 0, 0]
    assert calls.value == 1
    assert tree(folder).keys() == {"cifar-10-python.tar.gz", *cifar.files}


# Stanford Dogs


def picture(number: int, size: tuple[int, int], kind: str = "JPEG", mode: str = "RGB") -> bytes:
    """The bytes of an image file with a smooth random picture."""
    rng = np.random.default_rng(number)
    channels = {"RGB": 3, "CMYK": 4}[mode]
    small = rng.integers(0, 256, (5, 4, channels), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(small, mode).resize(size, Image.Resampling.BICUBIC).save(stream, kind)
    return stream.getvalue()


class Dogs:
    """Archives like Stanford's: 12 breeds, each with two training pictures and one test picture."""

    def __init__(self, folder: Path) -> None:
        self.pictures: dict[str, bytes] = {}
        lists: dict[str, list[str]] = {"train": [], "test": []}
        for breed in range(12):
            for number in range(3):
                name = f"n{breed:08d}-Breed_{breed}/n{breed:08d}_{number}.jpg"
                self.pictures[name] = picture(3 * breed + number, (40 + breed, 60 + number))
                lists["test" if number == 2 else "train"].append(name)
        random.Random(0).shuffle(lists["train"])
        self.lists = lists
        members = {f"Images/{name}": content for name, content in self.pictures.items()}
        self.images = tar(folder / "stanford-dogs/images.tar", members)
        mats: dict[str, bytes] = {}
        for split, names in lists.items():
            cells = np.empty((len(names), 1), dtype=object)
            cells[:, 0] = names
            stream = io.BytesIO()
            labels = np.array([[int(name[1:9]) + 1] for name in names], dtype=np.uint8)
            scipy.io.savemat(stream, {"file_list": cells, "labels": labels})
            mats[f"{split}_list.mat"] = stream.getvalue()
        lists_md5 = tar(folder / "stanford-dogs/lists.tar", mats)
        self.md5 = {"images.tar": self.images, "lists.tar": lists_md5}

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Replace the official checksums by those of these archives."""
        monkeypatch.setattr(dogs, "MD5", self.md5)


def test_stanford_dogs_are_resized_like_torchvisions_and_split_by_the_lists(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Dogs(folder)
    made.install(monkeypatch)
    train, test = load("dogs", folder, download=False, classes=None)
    assert train.pixels_NCHW.shape == (24, 3, 256, 256)
    assert test.pixels_NCHW.shape == (12, 3, 256, 256)
    assert train.pixels_NCHW.dtype == torch.uint8
    squash = Resize((256, 256))  # the authors' transform, on PIL images
    for split, images in {"train": train, "test": test}.items():
        names = made.lists[split]
        assert images.labels_N.tolist() == [int(name[1:9]) for name in names]
        for number in range(0, len(names), 7):
            with Image.open(io.BytesIO(made.pictures[names[number]])) as image:
                expected = pil_to_tensor(squash(image))
            assert torch.equal(images.pixels_NCHW[number], expected)
    # a subset has the first classes
    few, _ = load("dogs", folder, download=False, classes=7)
    assert len(few) == 14
    # no temporary folder remains, and the archives are not needed any more
    assert not list((folder / ".attngrid").glob("*.unfinished"))
    for archive in ("images.tar", "lists.tar"):
        (folder / "stanford-dogs" / archive).unlink()
    prepare("dogs", folder)


def test_the_error_for_missing_stanford_dogs_names_archive_and_checksum(folder: Path) -> None:
    with pytest.raises(DataError) as raised:
        prepare("dogs", folder)
    for part in (
        "stanford-dogs/images.tar",
        "http://vision.stanford.edu/aditya86/ImageNetDogs/images.tar",
        "1bb1f2a596ae7057f99d7d75860002ef",
    ):
        assert part in str(raised.value)
    assert dogs.MD5["lists.tar"] == "edbb9f16854ec66506b5f09b583e0656"


# Image folders


@pytest.fixture
def birds(tmp_path: Path) -> Path:
    """Three classes, 12 images; ImageNet also has a CMYK image and a PNG named .JPEG."""
    root = tmp_path / "birds"
    for label, name in enumerate(("wren", "owl", "Heron")):
        for split, count in {"train": 3, "val": 1}.items():
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                content = picture(10 * label + number, (30, 20))
                (root / split / name / f"{name} {number}.JPEG").write_bytes(content)
    (root / "train/owl/owl 1.JPEG").write_bytes(picture(90, (30, 20), mode="CMYK"))
    (root / "train/owl/owl 2.JPEG").write_bytes(picture(91, (30, 20), kind="PNG"))
    # some cameras append bytes after the end
    with (root / "val/owl/owl 0.JPEG").open("ab") as stream:
        stream.write(b"trailing bytes")
    (root / "train/wren/notes.txt").write_text("no image")
    return root


@pytest.mark.parametrize("thorough", [False, True])
def test_an_image_folder_has_the_files_and_labels_of_torchvisions_imagefolder(
    birds: Path, folder: Path, thorough: bool
) -> None:
    name = f"imagefolder:{birds}"
    report = prepare(name, folder, thorough=thorough)
    assert report is not None
    assert report["images"] == {"train": 9, "test": 3}
    assert (report["classes"], report["thorough"]) == (3, thorough)
    for files, split in zip(load_files(name, folder), ("train", "val"), strict=True):
        expected = datasets.ImageFolder(str(birds / split))
        paths = [os.fsdecode(path) for path in files.paths_N]
        assert list(zip(paths, files.labels_N.tolist(), strict=True)) == expected.samples
    few, _ = load_files(name, folder, classes=2)
    assert set(few.labels_N.tolist()) == {0, 1}
    assert len(few) == 6


@pytest.mark.parametrize("hidden", [".ipynb_checkpoints", "__MACOSX", "@eaDir"])
def test_hidden_folders_are_no_classes_and_have_no_images(
    birds: Path, folder: Path, hidden: str
) -> None:
    """Jupyter, macOS and Synology put copies of images into such folders."""
    name = f"imagefolder:{birds}"
    before = [set(files.paths_N.tolist()) for files in load_files(name, folder)]
    for place in ("train", "train/owl", "val/owl/near"):
        (birds / place / hidden).mkdir(parents=True)
        shutil.copy(birds / "train/owl/owl 0.JPEG", birds / place / hidden / "owl 0.jpg")
    assert full_name(name) == f"{name}:3"
    report = prepare(name, folder)
    assert report is not None
    assert report["images"] == {"train": 9, "test": 3}
    assert [set(files.paths_N.tolist()) for files in load_files(name, folder)] == before


def test_nested_images_and_ignored_files_are_counted_and_named(
    birds: Path, folder: Path, tiny: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    (birds / "train/owl/barn/young").mkdir(parents=True)
    for number in range(2):
        shutil.copy(birds / "train/owl/owl 0.JPEG", birds / f"train/owl/barn/young/{number}.png")
    shutil.copy(birds / "train/owl/owl 0.JPEG", birds / "train/no class.jpg")
    (birds / "train/owl/owl 3.heic").write_bytes(b"a camera's own")
    (birds / "val/owl/._owl 0.JPEG").write_bytes(b"macOS's own")
    study = on_dataset(tiny, f"imagefolder:{birds}") | {"data": {"folder": str(folder)}}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(study))
    for _ in range(2):  # the second time from the report
        caplog.clear()
        assert main(["prepare", str(folder / "tiny.yaml")]) == 0
        nested, ignored = (message for message in caplog.messages if "held-out" not in message)
        assert nested.startswith("birds: images in subfolders of a class: 2 (")
        assert "train/owl/barn/young/0.png" in nested
        assert ignored.startswith("birds: ignored files: 4 (")
        for name in ("no class.jpg", "owl 3.heic", "notes.txt", "val/owl/._owl 0.JPEG"):
            assert name in ignored
    train, _ = load_files(f"imagefolder:{birds}", folder)
    assert len(train) == 11
    # an image added to a subfolder is noticed
    shutil.copy(birds / "train/owl/owl 0.JPEG", birds / "train/owl/barn/young/2.png")
    assert len(load_files(f"imagefolder:{birds}", folder)[0]) == 12


def one_pixel_png(file: Path, bits: int, colour: int, samples: bytes) -> None:
    """One pixel, written as the PNG specification says."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content).to_bytes(4, "big")
        return len(content).to_bytes(4, "big") + kind + content + checksum

    header = (1).to_bytes(4, "big") * 2 + bytes([bits, colour, 0, 0, 0])
    data = zlib.compress(b"\0" + samples)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)


@pytest.mark.parametrize("dtype", ["uint16", "int32", "float32"])
def test_grey_values_of_16_and_32_bits_are_refused_by_name(
    birds: Path, folder: Path, dtype: str
) -> None:
    """PIL clips them at 255, so most of such images would be white or black."""
    values = np.linspace(0, 1 if dtype == "float32" else 60_000, 16).reshape(4, 4)
    Image.fromarray(values.astype(dtype)).save(birds / "train/owl/owl 1.tiff")
    one_pixel_png(birds / "train/owl/owl 2.JPEG", 16, 0, b"\x12\x34")
    for thorough in (False, True):
        with pytest.raises(DataError) as raised:
            prepare(f"imagefolder:{birds}", folder, thorough=thorough)
        message = str(raised.value)
        assert "birds: 2 of 13 images cannot be read: " in message
        assert "owl 1.tiff (found grey values of mode" in message
        assert "owl 2.JPEG (found grey values of mode I;16, 16 or 32 bits; needs 8: " in message
    # a training refuses them, too, although an older version has accepted them
    files = ImageFiles(np.array([os.fsencode(birds / "train/owl/owl 2.JPEG")]), torch.zeros(1))
    assert "found grey values of mode I;16" in DecodedBatches(files, (), None)[torch.arange(1)]


def test_colours_of_16_bits_keep_their_upper_byte(tmp_path: Path) -> None:
    """PNG, section 13.12: a decoder may drop the lower byte of a sample."""
    for name, colour, samples in (
        ("rgb.png", 2, b"\x12\x34\x56\x78\x9a\xbc"),
        ("grey and alpha.png", 4, b"\x12\x34\xff\xff"),
    ):
        one_pixel_png(tmp_path / name, 16, colour, samples)
        with Image.open(tmp_path / name) as image:
            found = to_rgb(image).getpixel((0, 0))
        assert found == (tuple(samples[::2]) if colour == 2 else (0x12,) * 3)


def test_held_out_images_may_be_in_test(birds: Path, folder: Path) -> None:
    (birds / "val").rename(birds / "test")
    _, test = load_files(f"imagefolder:{birds}:3", folder)
    assert os.fsdecode(test.paths_N[0]) == str(birds / "test/Heron/Heron 0.JPEG")


@pytest.mark.parametrize("thorough", [False, True])
def test_incomplete_image_files_are_named_in_the_error(
    birds: Path, folder: Path, thorough: bool
) -> None:
    wrens = birds / "train/wren"
    whole = picture(0, (300, 200))
    (wrens / "wren 0.JPEG").write_bytes(whole[: len(whole) * 2 // 3])
    (wrens / "wren 1.JPEG").write_bytes(b"")
    (wrens / "wren 2.JPEG").write_bytes(b"<html>not found</html>")
    (wrens / "wren 3.JPEG").symlink_to(birds / "nowhere")
    with pytest.raises(DataError) as raised:
        prepare(f"imagefolder:{birds}", folder, thorough=thorough)
    message = str(raised.value)
    assert "birds: 4 of 13 images cannot be read" in message
    for number in range(4):
        assert f"wren {number}.JPEG (" in message
    assert "truncated" in message
    assert "\n" not in message
    assert not report_file(f"imagefolder:{birds}", folder).exists()


@pytest.mark.parametrize("thorough", [False, True])
def test_other_formats_and_named_pipes_are_not_opened(
    birds: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, *, thorough: bool
) -> None:
    """By default PIL gives an EPS file to Ghostscript, and a reader of a pipe waits for ever."""
    called: list[object] = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *given, **more: called.append(given))
    wrens = birds / "train/wren"
    Image.new("RGB", (9, 9)).save(wrens / "wren 0.JPEG", format="EPS")
    Image.new("RGB", (9, 9)).save(wrens / "wren 1.JPEG", format="GIF")
    (wrens / "wren 2.JPEG").unlink()
    os.mkfifo(wrens / "wren 2.JPEG")
    with pytest.raises(DataError) as raised:
        prepare(f"imagefolder:{birds}", folder, thorough=thorough)
    message = str(raised.value)
    assert "3 of 12 images cannot be read" in message
    assert "wren 2.JPEG (is no regular file)" in message
    train, _ = folders.list_files(f"imagefolder:{birds}", folder)
    batch = DecodedBatches(train, (), None)
    for position, path in enumerate(train.paths_N.tolist()):
        if b"wren" in path:
            assert "cannot be read" in str(batch[torch.tensor([position])])
    assert not called


def test_damage_inside_a_file_is_found_by_decoding(birds: Path, folder: Path) -> None:
    """In a PNG, which has checksums. A JPEG has none, so changed bytes may only change pixels."""
    jpeg = birds / "train/owl/owl 0.JPEG"
    content = bytearray(jpeg.read_bytes())
    content[-9] ^= 0xFF
    jpeg.write_bytes(content)
    prepare(f"imagefolder:{birds}", folder, thorough=True)
    report_file(f"imagefolder:{birds}", folder).unlink()
    file = birds / "train/owl/owl 2.JPEG"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content)
    prepare(f"imagefolder:{birds}", folder)
    with pytest.raises(DataError, match="1 of 12 images cannot be read"):
        prepare(f"imagefolder:{birds}", folder, thorough=True)


def test_the_classes_of_both_splits_must_be_the_same_and_have_images(
    birds: Path, folder: Path
) -> None:
    name = f"imagefolder:{birds}:3"
    (birds / "val/wren").rename(birds / "val/robin")
    with pytest.raises(DataError, match=r"one of them lacks robin, wren"):
        prepare(name, folder)
    (birds / "val/robin").rename(birds / "val/wren")
    with pytest.raises(DataError, match=r"found 3 classes in .*train, expected 4"):
        prepare(f"imagefolder:{birds}:4", folder)
    (birds / "val/wren/wren 0.JPEG").unlink()
    with pytest.raises(DataError, match=r"birds/val: found no images in wren; each class"):
        prepare(name, folder)
    shutil.rmtree(birds / "val")
    with pytest.raises(DataError, match=r"birds could not be prepared: .*val: No such file"):
        prepare(name, folder)
    (birds / "val").mkdir()
    with pytest.raises(DataError, match=r"birds/val: found no images in it; each class"):
        prepare(name, folder)


def test_a_prepared_folder_is_checked_again_after_files_are_added_or_removed(
    birds: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"imagefolder:{birds}"
    first = prepare(name, folder)
    with monkeypatch.context() as patched:
        patched.setattr(folders, "_damage", None)  # would raise
        assert prepare(name, folder) == first
        assert len(load_files(name, folder)[0]) == 9
    shutil.copy(birds / "train/owl/owl 0.JPEG", birds / "train/owl/owl 9.JPEG")
    assert prepare(name, folder) != first
    assert len(load_files(name, folder)[0]) == 10
    # so soon that the folder's modification time is the same
    before = (birds / "train/owl").stat()
    (birds / "train/owl/owl 9.JPEG").unlink()
    os.utime(birds / "train/owl", ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(DataError, match=r"its files have changed; remove .*birds_3\.json"):
        load_files(name, folder)


def test_imagenet_needs_its_image_counts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DATASETS, "imagenet", replace(DATASETS["imagenet"], num_classes=2))
    for split in ("train", "val"):
        for wnid in ("n01440764", "n01443537"):
            (folder / "imagenet" / split / wnid).mkdir(parents=True)
            content = picture(1, (9, 9))
            (folder / "imagenet" / split / wnid / f"{wnid}_1.JPEG").write_bytes(content)
    with pytest.raises(DataError, match=r"found {'train': 2, .* expected {'train': 1281167, "):
        prepare("imagenet", folder)
    monkeypatch.setattr(folders, "IMAGENET_COUNTS", {"train": 2, "test": 2})
    assert prepare("imagenet", folder) is not None


def test_the_location_of_an_image_folder_changes_no_id(
    birds: Path, tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def study(name: str) -> Study:
        return validate(Study, on_dataset(tiny, name), "tiny.yaml")

    first = study(f"imagefolder:{birds}").cells[0]
    assert first.dataset == f"imagefolder:{birds}:3"
    assert first.id.startswith("imagefolder_birds_3-resnet18-none-tiny-s0-")
    # the folder is in another place, or missing as in a clone
    birds.rename(tmp_path / "gone")
    moved = study("imagefolder:other/birds:3").cells[0]
    assert moved.id == first.id
    assert moved.matches(first.config())
    assert not study("imagefolder:other/birds:4").cells[0].matches(first.config())
    assert moved.num_classes == 3
    with pytest.raises(ConfigError, match=r"no folder .*birds/train to count .* write imagefolder"):
        study(f"imagefolder:{birds}")
    tiny["grid"].append(tiny["grid"][0] | {"dataset": "imagefolder:second/birds:3"})
    with pytest.raises(ConfigError, match=r"would both be .* rename a class or a folder"):
        study("imagefolder:first/birds:3")


@pytest.mark.parametrize("names", [("set-1", "set_1"), ("鸟类", "狗类"), ("a b", "a+b")])
def test_folders_whose_names_differ_in_replaced_characters_share_nothing(
    birds: Path, folder: Path, tiny: dict[str, Any], names: tuple[str, str]
) -> None:
    for name in names:
        shutil.copytree(birds, folder / name)
    one, two = (f"imagefolder:{folder / name}:3" for name in names)
    on_dataset(tiny, one)
    tiny["grid"].append(tiny["grid"][0] | {"dataset": two})
    study = validate(Study, tiny | {"data": {"folder": str(folder)}}, "tiny.yaml")
    assert len(study.trainings) == 4
    assert set(prepared(study).values()) == {one, two}
    first, second = prepare(one, folder), prepare(two, folder)
    assert first is not None
    assert second is not None
    assert prepare(one, folder) == first  # the second report has not replaced it
    assert first["source"] != second["source"]
    assert report_file(one, folder).name.isascii()


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("imagenet", "data/imagenet/train"),
        ("dogs", "data/stanford-dogs/squashed-256/train_images.npy"),
        ("imagefolder:birds:3", "birds/train"),
    ],
)
def test_missing_images_are_an_error_before_any_job(
    tiny: dict[str, Any], name: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    study = validate(Study, on_dataset(tiny, name), "tiny.yaml")
    with pytest.raises(ConfigError, match=f"there is no .*{file}; "):
        require_runnable(study)
    require_runnable(study, [])


@pytest.mark.slow
def test_a_cell_is_trained_on_stanford_dogs_by_its_authors_recipe(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The archives have random pictures; the training has 7 classes and one epoch."""
    monkeypatch.chdir(tmp_path)
    Dogs(Path("data")).install(monkeypatch)
    authors = shipped_recipes()["dogs_200ep"].model_dump()
    tiny["recipes"]["tiny"] = authors | {"epochs": 1, "batch_size": 7, "schedule": {"kind": "step"}}
    tiny["grid"][0] |= {
        "dataset": "dogs",
        "backbones": ["mobilenet_v2"],
        "attentions": ["srap"],
        "seeds": [0],
        "options": {"width": 0.0625, "classes": 7},
    }
    Path("study.yaml").write_text(yaml.safe_dump(tiny))
    (cell,) = load_study("study.yaml").trainings.values()
    assert main(["train", "study.yaml", cell.id]) == 0
    metrics = json.loads(cell.record.read_text())["metrics"]
    assert (metrics["train_images"], metrics["test_images"]) == (14, 7)
    assert main(["evaluate", str(cell.record)]) == 0


# The command and the workflow


def on_dataset(tiny: dict[str, Any], dataset: str) -> dict[str, Any]:
    """Two cells of the tiny study on another dataset, with transforms that fit it."""
    authors = {"dogs": "dogs_200ep", "imagenet": "imagenet_100ep", "imagefolder": "imagenet_100ep"}
    if (name := authors.get(dataset.partition(":")[0])) is not None:
        recipe = shipped_recipes()[name].model_dump()
        transforms = ("train_transforms", "test_transforms")
        tiny["recipes"]["tiny"] |= {key: recipe[key] for key in transforms}
    tiny["grid"][0] |= {"dataset": dataset, "attentions": ["none", "se"], "seeds": [0]}
    tiny["tables"], tiny["figures"] = ["grid"], []
    return tiny


def test_attngrid_prepare_prepares_the_datasets_of_a_study(
    cifar: Cifar, folder: Path, tiny: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    file = folder.parent / "tiny.yaml"
    study = on_dataset(tiny, "cifar10") | {"data": {"folder": str(folder)}}
    file.write_text(yaml.safe_dump(study))
    with pytest.raises(ConfigError, match=f"put {folder / cifar.archive.name} there"):
        require_runnable(load_study(file))
    assert main(["prepare", str(file)]) == 1
    assert "attngrid: error: there is no" in capsys.readouterr().err
    shutil.copy(cifar.archive, folder)
    require_runnable(load_study(file))  # archives are enough before Snakemake unpacks them
    assert main(["prepare", str(file), "cifar10"]) == 0
    assert "CIFAR-10: 50,000 training and 10,000 held-out images of 10" in capsys.readouterr().err
    assert main(["prepare", str(file), "cifar100"]) == 1
    assert "unknown dataset of study tiny 'cifar100'" in capsys.readouterr().err


def jobs(done: subprocess.CompletedProcess[str]) -> dict[str, int]:
    """The number of jobs of each rule in a dry run."""
    assert done.returncode == 0, done.stdout + done.stderr
    return conftest.jobs(done.stdout + done.stderr)


def shuffle_times(clone: Path) -> None:
    shuffled = random.Random(0)
    for file in clone.rglob("*"):
        if file.is_file():
            time = 1_700_000_000 + shuffled.randrange(10**6)
            os.utime(file, (time, time))


@pytest.mark.slow
def test_a_dataset_is_prepared_before_the_first_training_and_not_for_finished_cells(
    clone: Path,
    snakemake: Snakemake,
    tiny: dict[str, Any],
    cifar: Cifar,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHONPATH", cifar.sitecustomize(clone / "site"))
    study = on_dataset(tiny, "cifar10") | {"tables": []}
    study["grid"][0]["attentions"] = ["none"]
    study["recipes"]["tiny"]["batch_size"] = 25
    (clone / "tiny.yaml").write_text(yaml.safe_dump(study))
    # the target "all" would also render the report, which another test does
    arguments = ("records", "--cores", "2", "--configfile", "tiny.yaml")
    done = snakemake(clone, *arguments)
    assert done.returncode != 0
    assert "cifar-10-python.tar.gz there" in done.stderr
    assert not (clone / "logs").exists()

    (clone / "data").mkdir()
    shutil.copy(cifar.archive, clone / "data")
    done = snakemake(clone, *arguments)
    assert done.returncode == 0, done.stderr
    (cell,) = load_study(clone / "tiny.yaml").trainings.values()
    report = report_file("cifar10", clone / "data")
    assert report.stat().st_mtime_ns < (clone / cell.record).stat().st_mtime_ns

    # a clone without the data folder and with other modification times
    shutil.move(clone / "data", clone / "moved")
    shutil.rmtree(clone / ".snakemake")
    shuffle_times(clone)
    assert not {"train", "prepare"} & set(jobs(snakemake(clone, "-n", *arguments)))

    # only another seed is trained, after its dataset is prepared
    study["grid"][0]["seeds"] = [0, 1]
    (clone / "tiny.yaml").write_text(yaml.safe_dump(study | {"data": {"folder": "moved"}}))
    report_file("cifar10", clone / "moved").unlink()
    found = jobs(snakemake(clone, "-n", *arguments))
    assert (found["train"], found["prepare"]) == (1, 1)
