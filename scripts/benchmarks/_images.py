"""Part of the benchmark `data`: images a second from a pack to the model, and loading verification sets."""

import io
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from PIL import Image
from table import Row, best
from torch.utils.data import DataLoader, Dataset

from facerec.images.decode import decode_into
from facerec.images.preprocessing import Preprocessing
from facerec.loading.batch import prepare
from facerec.loading.loader import Loader
from facerec.making.orl import pack_orl
from facerec.packs.pack import Pack, open_pack
from facerec.packs.recordio import Record, RecordWriter
from facerec.packs.verification import load_verification
from facerec.threads import cores

BATCH = 128
ROUNDS = 4
DECODER_IMAGES = 2000


def image_rows(root: Path | None, folder: Path) -> Iterator[Row]:
    """Decoders, our loader and the common one, in turn, so that all see the same machine."""
    pack = open_pack(root or some_pack(folder))
    encoded = [bytes(pack.encoded(i)) for i in range(len(pack))]
    workers = cores()
    torch.set_num_threads(1)  # the workers have the cores

    decoders = _decoders()
    seconds = dict.fromkeys(decoders, float("inf"))
    some = encoded[:DECODER_IMAGES]
    for _ in range(ROUNDS):
        for name, decode_one in decoders.items():
            seconds[name] = min(seconds[name], best(lambda d=decode_one: [d(one) for one in some], 1))
    for name, one in seconds.items():
        title = f"decode with {name}, one thread"
        yield Row(title, len(some) / one, "img/s", None, len(some) / seconds["PIL"])

    rates: dict[str, float] = {}
    ways: dict[str, Callable[[], int]] = {
        "floor": lambda: _decode_only(encoded, workers),
        "ready": lambda: _our_loader(pack, workers, ready=True),
        "batches": lambda: _our_loader(pack, workers, ready=False),
        "common": lambda: _common_loader(pack, workers),
    }
    for _ in range(ROUNDS):
        for name, way in ways.items():
            counted: list[int] = []
            took = best(lambda w=way, c=counted: c.append(w()), 1)
            rates[name] = max(rates.get(name, 0.0), counted[0] / took)
    title = f"{len(pack):,} images of {pack.title}, random order, {workers} workers"
    yield Row(f"{title}: mirrored, ready", rates["ready"], "img/s", rates["floor"], rates["common"])
    yield Row(f"{title}: batches only", rates["batches"], "img/s", rates["floor"], rates["common"])


def set_rows(path: Path | None, root: Path | None, folder: Path) -> Iterator[Row]:
    """A verification set: ours reads it and decodes its distinct images; the common way makes float tensors
    of all its images and their mirrors (of a tenth of them, times ten)."""
    place = root or some_pack(folder)
    path = path or next(iter(sorted(place.glob("*.bin"))), None)
    if path is None:
        return
    torch.set_num_threads(1)
    loaded = load_verification(path)
    images = [loaded.images[i] for i in loaded.index_2N]
    part = max(1, len(images) // 10)
    common = best(lambda: _common_set(images[:part]), 1) * len(images) / part
    distinct = list(loaded.images)
    floor = best(lambda: _decode_only(distinct, 1), 3)
    title = f"load {path.name}, {len(images):,} images"
    yield Row(title, best(lambda: load_verification(path), 3), "s", None, common)
    yield Row(f"{title}, decoded", best(lambda: _decode_set(path), 3), "s", floor, common)


def _decoders() -> dict[str, Callable[[bytes], object]]:
    """Ways to RGB pixels in memory; cv2 only where it is installed."""
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
    return decoders | {
        "cv2": lambda one: cv2.imdecode(np.frombuffer(one, np.uint8), cv2.IMREAD_COLOR_RGB),
    }


def _decode_only(encoded: list[bytes], threads: int) -> int:
    """The floor: the decoder alone, on all cores, over images in memory and always into the same slot."""

    def work(begin: int) -> None:
        slot = np.empty((112, 112, 3), np.uint8)
        for one in encoded[begin::threads]:
            simplejpeg.decode_jpeg(one, "RGB", buffer=slot)

    started = [threading.Thread(target=work, args=(begin,)) for begin in range(threads)]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()
    return len(encoded)


def _our_loader(pack: Pack, workers: int, ready: bool) -> int:
    cpu, input, count = torch.device("cpu"), Preprocessing(), 0
    for batch in Loader(pack, BATCH, seed=1, workers=workers).batches(0):
        if ready:
            image_BCHW, _ = prepare(batch, cpu, input)
            assert image_BCHW.shape[1] == 3
        count += len(batch.label_B)
    return count


class _CommonFaces(Dataset):
    """PIL, and a float tensor for each image, mirrored and normalised in the worker."""

    def __init__(self, pack: Pack) -> None:
        self.pack = pack

    def __len__(self) -> int:
        return len(self.pack) // 8  # an eighth of the images is enough to know the rate

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        pixels = np.asarray(Image.open(io.BytesIO(self.pack.encoded(i))).convert("RGB"))
        image = torch.from_numpy(pixels.copy()).permute(2, 0, 1).float()
        if torch.rand(()) < 0.5:
            image = image.flip(2)
        return image.sub_(127.5).div_(127.5), int(self.pack.label_N[i])


def _common_loader(pack: Pack, workers: int) -> int:
    loader = DataLoader(_CommonFaces(pack), BATCH, shuffle=True, num_workers=workers)
    return sum(len(label_B) for _, label_B in loader)


def _common_set(images: list[bytes]) -> int:
    both_views = torch.empty(2, len(images), 3, 112, 112)
    for i, one in enumerate(images):
        pixels = np.asarray(Image.open(io.BytesIO(bytes(one))).convert("RGB"))
        both_views[0, i] = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
        both_views[1, i] = both_views[0, i].flip(2)
    return both_views.numel()


def _decode_set(path: Path) -> int:
    loaded = load_verification(path)
    slots = np.empty((BATCH, 112, 112, 3), np.uint8)
    for i, one in enumerate(loaded.images):
        decode_into(one, slots[i % BATCH])
    return len(loaded.images)


def some_pack(folder: Path) -> Path:
    """LFW where it is at hand, else the ORL faces, each 40 times."""
    lfw = Path(os.environ.get("FACEREC_DATA", "data")) / "lfw"
    if (lfw / "train.rec").is_file():
        return lfw
    many = folder / "orl_40_times"
    if not many.is_dir():
        pack_orl(folder / "orl")
        many.mkdir()
        pack = open_pack(folder / "orl")
        with RecordWriter(many / "train.rec") as writer:
            for key in range(40 * len(pack)):
                i = key % len(pack)
                writer.write(key, Record(0, float(pack.label_N[i]), key, 0, bytes(pack.encoded(i))))
        (folder / "orl" / "orl.bin").rename(many / "orl.bin")
    return many
