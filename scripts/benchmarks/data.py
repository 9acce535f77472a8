"""Opening indexes, images per second from a pack to the model, and loading verification sets.

The indexes are generated: as many lines as MS1MV2 has, with the offsets of images of its size (--full:
WebFace42M, too). The images are those of --pack; by default LFW if it is in $FACEREC_DATA or ./data, else
the ORL faces, 40 times.
"""

import argparse
import io
import math
import mmap
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from PIL import Image
from table import Row, best, in_processes, proportional_memory
from torch.utils.data import DataLoader, Dataset

from facerec.images.decode import decode_into
from facerec.images.preprocessing import Preprocessing
from facerec.loading.batch import prepare
from facerec.loading.loader import Loader
from facerec.loading.settings import DataSettings
from facerec.making.orl import pack_orl
from facerec.packs.index import RecordIndex, read_index, write_index
from facerec.packs.pack import Pack, open_pack
from facerec.packs.recordio import Record, RecordWriter
from facerec.packs.verification import load_verification
from facerec.threads import cores

MS1MV2, WEBFACE42M = 5_822_653, 42_474_558
PROCESSES = 4
PARTS = ("index", "images", "set")
BATCH = 128
ROUNDS = 4
DECODER_IMAGES = 2000


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--full", action="store_true", help="also open an index of 42.5 million lines (1.2 GB)"
    )
    parser.add_argument("--only", choices=PARTS, help="measure this part alone")
    parser.add_argument("--pack", type=Path, metavar="FOLDER", help="pack to load images from")
    parser.add_argument(
        "--bin", type=Path, metavar="FILE", help="verification set; default: the pack's first"
    )


def rows(options: argparse.Namespace) -> Iterator[Row]:
    with tempfile.TemporaryDirectory(prefix="facerec-benchmark-") as name:
        folder = Path(name)
        parts = PARTS if options.only is None else (options.only,)
        if "index" in parts:
            yield from index_rows(folder, MS1MV2, reference=True)
            if options.full:
                yield from index_rows(folder, WEBFACE42M, reference=False)
        if "images" in parts:
            yield from image_rows(options.pack, folder)
        if "set" in parts:
            yield from set_rows(options.bin, options.pack, folder)


# Indexes ---------------------------------------------------------------------------------------------------


def index_rows(folder: Path, lines: int, reference: bool) -> Iterator[Row]:
    """Measure the first opening, later ones, and the memory of an index of that many lines."""
    path = folder / f"{lines}.idx"
    size_N = np.random.default_rng(0).integers(2000, 7000, lines) // 4 * 4
    write_index(path, RecordIndex.of(np.arange(lines), np.cumsum(size_N) - size_N))
    title = f"open an .idx of {lines:,} lines"

    def remove_caches() -> None:
        for cached in folder.glob("*.cache"):
            cached.unlink()

    floor = best(lambda: np.fromstring(path.read_bytes(), np.int64, sep=" "), 2)
    common_s, common_mb = in_processes(_common_way, path)[0] if reference else (None, None)
    yield Row(
        f"{title} the first time", best(lambda: read_index(path), 3, remove_caches), "s", floor, common_s
    )
    mapping_ms = 1e3 * best(lambda: _map(next(folder.glob("*.cache"))), 5)
    later_ms = 1e3 * best(lambda: read_index(path), 5)
    yield Row(f"{title} again", later_ms, "ms", mapping_ms, common_s and 1e3 * common_s)
    total = sum(in_processes(_our_memory, path, count=PROCESSES))
    common_all = common_mb and PROCESSES * common_mb
    yield Row(f"memory of it in {PROCESSES} processes together", total, "MB", 8e-6 * lines, common_all)
    remove_caches()
    path.unlink()


def _map(path: Path) -> int:
    """Map a file and touch all of it."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        return int(np.frombuffer(mapped, np.uint8)[:: mmap.PAGESIZE].max())


def _our_memory(path: Path) -> Callable[[], float]:
    before = proportional_memory()
    index = read_index(path)
    assert int(index.offset_N.max()) > 0, "touches every page"
    return lambda: proportional_memory() - before if len(index) else 0.0


def _common_way(path: Path) -> tuple[float, float]:
    """Return the seconds and MB of the common readers' loop: a dict and a list of Python numbers."""
    before = proportional_memory()
    start = time.perf_counter()
    offsets, keys = {}, []
    with path.open() as file:
        for line in file:
            fields = line.strip().split("\t")
            key = int(fields[0])
            offsets[key] = int(fields[1])
            keys.append(key)
    return time.perf_counter() - start, proportional_memory() - before


# Images ---------------------------------------------------------------------------------------------------


def image_rows(root: Path | None, folder: Path) -> Iterator[Row]:
    """Measure decoders, our loader and the common one in turn, so that all see the same machine."""
    pack = open_pack(root or default_pack(folder))
    encoded = [bytes(pack.encoded(i)) for i in range(len(pack))]
    workers = cores()
    torch.set_num_threads(1)  # the workers have the cores

    decoders = _decoders()
    seconds = dict.fromkeys(decoders, float("inf"))
    images = encoded[:DECODER_IMAGES]
    for _ in range(ROUNDS):
        for name, decoder in decoders.items():
            took = best(lambda decode=decoder: [decode(image) for image in images], 1)
            seconds[name] = min(seconds[name], took)
    for name, took in seconds.items():
        title = f"decode with {name}, one thread"
        yield Row(title, len(images) / took, "img/s", None, len(images) / seconds["PIL"])

    rates: dict[str, float] = {}
    processor: dict[str, float] = {}
    ways: dict[str, Callable[[], int]] = {
        "floor": lambda: _decode_only(encoded, workers),
        "ready": lambda: _our_loader(pack, workers, ready=True),
        "batches": lambda: _our_loader(pack, workers, ready=False),
        "common": lambda: _common_loader(pack, workers),
    }
    for _ in range(ROUNDS):
        for name, way in ways.items():
            counted: list[int] = []
            began = time.process_time()
            took = best(lambda w=way, c=counted: c.append(w()), 1)
            each = (time.process_time() - began) / counted[0]
            rates[name] = max(rates.get(name, 0.0), counted[0] / took)
            processor[name] = min(processor.get(name, math.inf), each)
    title = f"{len(pack):,} images of {pack.title}, random order, {workers} workers"
    yield Row(f"{title}: mirrored, ready", rates["ready"], "img/s", rates["floor"], rates["common"])
    yield Row(f"{title}: batches only", rates["batches"], "img/s", rates["floor"], rates["common"])
    # Beside other work, processor time says more than the wall clock; that of the common way is elsewhere.
    ready_us, floor_us = 1e6 * processor["ready"], 1e6 * processor["floor"]
    yield Row("processor time of an image: mirrored, ready", ready_us, "µs", floor_us)


def set_rows(path: Path | None, root: Path | None, folder: Path) -> Iterator[Row]:
    """Load a verification set: ours reads it and decodes its distinct images; the common way makes float
    tensors of all its images and their mirrors (measured on a tenth of them).
    """
    path = path or next(iter(sorted((root or default_pack(folder)).glob("*.bin"))), None)
    if path is None:
        return
    torch.set_num_threads(1)
    loaded = load_verification(path)
    images = [loaded.images[i] for i in loaded.index_2N]
    part = max(1, len(images) // 10)
    common = best(lambda: common_views(images[:part]), 1) * len(images) / part
    distinct = list(loaded.images)
    floor = best(lambda: _decode_only(distinct, 1), 3)
    title = f"load {path.name}, {len(images):,} images"
    yield Row(title, best(lambda: load_verification(path), 3), "s", None, common)
    yield Row(f"{title}, decoded", best(lambda: _decode_set(path), 3), "s", floor, common)


def _decoders() -> dict[str, Callable[[bytes], object]]:
    """Functions from encoded bytes to RGB pixels; cv2 only if it is installed."""
    from torchvision.io import ImageReadMode, decode_jpeg

    slot = np.empty((112, 112, 3), np.uint8)
    decoders: dict[str, Callable[[bytes], object]] = {
        "facerec (simplejpeg, into a slot)": lambda one: decode_into(one, slot),
        "simplejpeg": lambda one: simplejpeg.decode_jpeg(one, "RGB"),
        "torchvision.io": lambda one: decode_jpeg(
            torch.frombuffer(bytearray(one), dtype=torch.uint8), ImageReadMode.RGB
        ),
        "PIL": lambda one: np.asarray(Image.open(io.BytesIO(one)).convert("RGB")),
    }
    try:
        import cv2
    except ImportError:
        return decoders
    return decoders | {"cv2": lambda one: cv2.imdecode(np.frombuffer(one, np.uint8), cv2.IMREAD_COLOR_RGB)}


def _decode_only(encoded: list[bytes], threads: int) -> int:
    """The floor: the decoder alone, in threads, over images in memory and always into the same slot."""

    def work(begin: int) -> None:
        slot = np.empty((112, 112, 3), np.uint8)
        for image in encoded[begin::threads]:
            simplejpeg.decode_jpeg(image, "RGB", buffer=slot)

    workers = [threading.Thread(target=work, args=(begin,)) for begin in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return len(encoded)


def _our_loader(pack: Pack, workers: int, ready: bool) -> int:
    cpu, input, count = torch.device("cpu"), Preprocessing(), 0
    for batch in Loader(pack, BATCH, DataSettings(workers=workers), seed=1).batches(0):
        if ready:
            image_BCHW, _ = prepare(batch, cpu, input)
            assert image_BCHW.shape[1] == 3
        count += len(batch.label_B)
    return count


class _CommonFaces(Dataset):
    """A float tensor per image, decoded by PIL, mirrored and normalised in the worker."""

    def __init__(self, pack: Pack) -> None:
        self.pack = pack

    def __len__(self) -> int:
        return len(self.pack) // 8  # an eighth of the images gives the rate

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        pixels = np.asarray(Image.open(io.BytesIO(self.pack.encoded(i))).convert("RGB"))
        image = torch.from_numpy(pixels.copy()).permute(2, 0, 1).float()
        if torch.rand(()) < 0.5:
            image = image.flip(2)
        return image.sub_(127.5).div_(127.5), int(self.pack.label_N[i])


def _common_loader(pack: Pack, workers: int) -> int:
    loader = DataLoader(_CommonFaces(pack), BATCH, shuffle=True, num_workers=workers)
    return sum(len(label_B) for _, label_B in loader)


def common_views(images: list[bytes]) -> torch.Tensor:
    """Decode images and mirror them as the common implementations do: (2, N, 3, 112, 112) floats, 0 … 255."""
    views = torch.empty(2, len(images), 3, 112, 112)
    for i, image in enumerate(images):
        pixels = np.asarray(Image.open(io.BytesIO(bytes(image))).convert("RGB"))
        views[0, i] = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
        views[1, i] = views[0, i].flip(2)
    return views


def _decode_set(path: Path) -> int:
    loaded = load_verification(path)
    slots = np.empty((BATCH, 112, 112, 3), np.uint8)
    for i, image in enumerate(loaded.images):
        decode_into(image, slots[i % BATCH])
    return len(loaded.images)


def lfw_or_orl(folder: Path, file: str) -> Path:
    """Return the folder of LFW if `file` is there, else that of the ORL faces, packed below `folder`."""
    lfw = Path(os.environ.get("FACEREC_DATA", "data")) / "lfw"
    if (lfw / file).is_file():
        return lfw
    if not (folder / "orl").is_dir():
        pack_orl(folder / "orl")
    return folder / "orl"


def default_pack(folder: Path) -> Path:
    """Return the folder of LFW if it is at hand, else one of the ORL faces, each 40 times."""
    found = lfw_or_orl(folder, "train.rec")
    if found.name == "lfw":
        return found
    many = folder / "orl_40_times"
    if not many.is_dir():
        many.mkdir()
        pack = open_pack(folder / "orl")
        with RecordWriter(many / "train.rec") as writer:
            for key in range(40 * len(pack)):
                i = key % len(pack)
                writer.write(key, Record(0, float(pack.label_N[i]), key, 0, bytes(pack.encoded(i))))
        shutil.copy(folder / "orl" / "orl.bin", many)
    return many
