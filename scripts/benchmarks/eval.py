"""Metrics, verification from file to accuracy, 15.7 million template pairs, and a million distractors.

The verification set is --bin, by default LFW's if it is in $FACEREC_DATA or ./data, else that of the ORL
faces. The common way embeds each occurrence of an image and its mirror in batches of ten. Templates and
distractors are random vectors, as many as in IJB-C and MegaFace.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from sklearn.model_selection import KFold
from sklearn.preprocessing import normalize
from table import Row, best, in_processes, peak_memory

from data import common_views, lfw_or_orl
from facerec.backbones import create_backbone
from facerec.evaluation.metrics.base import create_metrics
from facerec.evaluation.protocols.identification import identify
from facerec.evaluation.protocols.ijb import judge_pairs
from facerec.evaluation.protocols.megaface import megaface
from facerec.evaluation.protocols.verification import evaluate_set
from facerec.evaluation.settings import USUAL_METRICS, EvalSettings
from facerec.evaluation.statistics.bootstrap import bootstrap
from facerec.evaluation.statistics.search import BLOCK, unit
from facerec.evaluation.verify import verify
from facerec.models.model import Model
from facerec.packs.verification import VerificationSet, load_verification
from facerec.vectors import unit_rows

PARTS = ("metrics", "verification", "templates", "identification")
ROUNDS = 2
IJBC_GALLERY, IJBC_PROBES, IJBC_PAIRS = 3_531, 19_593, 15_658_489
FACESCRUB_IDENTITIES, FACESCRUB = 80, 3_530


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", choices=PARTS, help="measure this part alone")
    parser.add_argument("--bin", type=Path, metavar="FILE", help="verification set")
    parser.add_argument(
        "--pairs", type=int, default=300, help="its first pairs, 0 for all (default %(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="repetitions (default %(default)s)")
    parser.add_argument("--backbone", default="iresnet18", help="default %(default)s")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"), help="ours; %(default)s")
    parser.add_argument("--device", default="cpu", type=torch.device, help="of the verification; cpu or cuda")
    parser.add_argument("--distractors", type=int, default=1_000_000, help="default %(default)s")


def rows(options: argparse.Namespace) -> Iterator[Row]:
    parts = PARTS if options.only is None else (options.only,)
    if "metrics" in parts:
        yield from metric_rows()
    if "verification" in parts:
        with tempfile.TemporaryDirectory(prefix="facerec-benchmark-") as name:
            root = lfw_or_orl(Path(name), "lfw.bin")
            path = options.bin or root / f"{root.name}.bin"
            full = load_verification(path)
            chosen = _first_pairs(full, options.pairs)
            yield from verification_rows(full, chosen, options)
    if "templates" in parts:
        yield from template_rows()
    if "identification" in parts:
        yield from identification_rows(options.distractors)


# Metrics ---------------------------------------------------------------------------------------------------


def metric_rows() -> Iterator[Row]:
    """Measure all metrics of 6,000 pairs of 512-dimensional embeddings."""
    rng = np.random.default_rng(0)
    issame_N = np.arange(6000) % 600 < 300
    centre = rng.standard_normal((6000, 2, 512), dtype=np.float32)
    centre[issame_N, 1] = centre[issame_N, 0]
    plain, mirrored = (
        (centre + rng.standard_normal(centre.shape, dtype=np.float32)).reshape(12000, 512) for _ in range(2)
    )
    common = 1e3 * best(lambda: _common_metrics(plain, issame_N), 2)
    distance_N = rng.random(6000)
    floor = 1e3 * best(lambda: np.sort(distance_N), 20)
    ways: dict[str, Callable[[], object]] = {
        "grid": lambda: verify(plain, issame_N),
        "grid, both views": lambda: verify(plain, issame_N, flipped_2ND=mirrored),
        "exact": lambda: verify(plain, issame_N, thresholds="exact"),
    }
    for name, way in ways.items():
        yield Row(f"all metrics of 6,000 × 512, {name}", 1e3 * best(way, 20), "ms", floor, common)
    resampled = 1e3 * best(lambda: verify(plain, issame_N, bootstrap=1000), 3)
    yield Row("and 1,000 bootstrap resamples, grid", resampled, "ms")
    many = np.arange(300_000) % 600 < 300
    how = {"metrics": create_metrics(USUAL_METRICS), "resamples": 1000, "seed": 0}
    for gap, said in ((1.0, "far apart"), (0.1, "that hardly differ")):
        distance_N = np.where(many, 1.1 - gap / 2, 1.1 + gap / 2) + rng.normal(0, 0.2, len(many))
        began = time.process_time()
        resampled = best(lambda d=distance_N: bootstrap(d, many, **how), 1)
        title = f"1,000 bootstrap resamples of 300,000 pairs, genuine and impostor {said}"
        yield Row(title, resampled, "s")
        yield Row("their processor time", time.process_time() - began, "s")


def _common_metrics(embedding_2ND: np.ndarray, issame_N: np.ndarray) -> float:
    """Compute the accuracy in the published way: ten folds, 400 thresholds each, one after the other."""
    unit_2ND = normalize(embedding_2ND)
    distance_N = np.sum(np.square(unit_2ND[0::2] - unit_2ND[1::2]), 1)
    thresholds = np.arange(0, 4, 0.01)
    accuracies = []
    for train, test in KFold(10, shuffle=False).split(distance_N):
        right = [_accuracy(t, distance_N[train], issame_N[train]) for t in thresholds]
        # The published scripts also judge the fold at every threshold, for their ROC.
        held_out = [_accuracy(t, distance_N[test], issame_N[test]) for t in thresholds]
        accuracies.append(held_out[int(np.argmax(right))])
    return float(np.mean(accuracies))


def _accuracy(threshold: float, distance_N: np.ndarray, issame_N: np.ndarray) -> float:
    same_N = np.less(distance_N, threshold)
    true = np.sum(np.logical_and(same_N, issame_N)) + np.sum(np.logical_and(~same_N, ~issame_N))
    return float(true) / len(distance_N)


# Verification ----------------------------------------------------------------------------------------------


def verification_rows(
    full: VerificationSet, chosen: VerificationSet, options: argparse.Namespace
) -> Iterator[Row]:
    """Measure from encoded images to the accuracy: ours, the common way, the forward passes alone, in turn.

    Both ways take time in proportion to their forward passes: one per occurrence of an image, and one per
    distinct image. The first pairs of a set repeat fewer images than all of it, so the ratio is also given
    for the full set.
    """
    name, precision, device = options.backbone, options.precision, options.device
    torch.manual_seed(0)
    backbone = create_backbone(name).eval()
    ours = Model(create_backbone(name).eval())
    ours.backbone.load_state_dict(backbone.state_dict())
    ours.backbone.to(device, memory_format=torch.channels_last)
    backbone.to(device)
    settings = EvalSettings(bootstrap=0, precision="bf16" if precision == "bf16" else "fp32")
    ready_BHWC = torch.randint(256, (32, 112, 112, 3), dtype=torch.uint8, device=device)
    passes = 2 * len(chosen.images) / len(ready_BHWC)
    seconds = dict.fromkeys(("ours", "common", "floor"), float("inf"))
    processor_seconds = dict.fromkeys(("ours", "common"), float("inf"))
    numbers = {}

    def timed(way: str, run: Callable[[], None]) -> None:
        began = time.process_time()
        seconds[way] = min(seconds[way], best(run, 1, device=device))
        processor_seconds[way] = min(processor_seconds[way], time.process_time() - began)

    def run_ours() -> None:
        numbers["ours"] = evaluate_set(ours, chosen, settings)

    def run_common() -> None:
        numbers["common"] = verify(_common_embeddings(backbone, chosen), chosen.issame_N)

    def run_floor() -> None:
        with torch.inference_mode():
            ours.forward(ready_BHWC, precision)

    run_floor()
    for _ in range(options.rounds):
        timed("common", run_common)
        timed("ours", run_ours)
        seconds["floor"] = min(seconds["floor"], passes * best(run_floor, 2, device=device))
    difference = np.abs(numbers["ours"].distance_N - numbers["common"].distance_N).max()
    if difference > (1e-3 if precision == "fp32" else 0.05):
        raise AssertionError(f"the two ways differ by {difference} in a distance")
    # Rounding may carry a distance over one of the 400 thresholds; the exact search has no such steps.
    for key in ("accuracy_exact", "auc", "eer"):
        common, own = (getattr(numbers[way], key) for way in ("common", "ours"))
        allowed = (1 if precision == "fp32" else 3) / len(chosen)
        if None not in (common, own) and abs(common - own) > allowed:
            raise AssertionError(f"the two ways differ in {key}: {common} and {own}")
    counts = f"{len(chosen):,} pairs, {len(chosen.images):,} distinct images"
    title = f"{chosen.name}, {counts}, {name}, {precision}"
    yield Row(title, seconds["ours"], "s", seconds["floor"], seconds["common"])
    faster = seconds["common"] / seconds["ours"]
    yield Row("how many times the speed of the common way", faster, "×")
    # Beside other work, processor time says more than the wall clock.
    yield Row("the same by processor time", processor_seconds["common"] / processor_seconds["ours"], "×")
    if len(chosen) < len(full):
        repeated = [len(pairs.index_2N) / len(pairs.images) for pairs in (full, chosen)]
        title = f"the same for all {len(full):,} pairs, {len(full.images):,} distinct images, from it"
        yield Row(title, faster * repeated[0] / repeated[1], "×")
    yield Row("largest difference of a distance between the two", float(difference), "")


def _common_embeddings(backbone: torch.nn.Module, chosen: VerificationSet) -> np.ndarray:
    """Decode every occurrence to a float tensor first, then embed it and its mirror in batches of ten."""
    images = common_views([chosen.images[i] for i in chosen.index_2N]).sub_(127.5).div_(127.5)
    device = next(backbone.parameters()).device
    with torch.no_grad():
        views = [torch.cat([backbone(batch.to(device)) for batch in view.split(10)]) for view in images]
    return (views[0] + views[1]).cpu().numpy()


def _first_pairs(full: VerificationSet, pairs: int) -> VerificationSet:
    if not pairs or pairs >= len(full):
        return full
    used, index_2N = np.unique(full.index_2N[: 2 * pairs], return_inverse=True)
    return replace(
        full,
        images=[full.images[i] for i in used],
        index_2N=index_2N,
        issame_N=full.issame_N[:pairs],
        identity_2N=None,
        fold_N=None,
    )


# Templates -------------------------------------------------------------------------------------------------


def template_rows() -> Iterator[Row]:
    """Measure TAR@FAR over the listed pairs of IJB-C, in a process of its own for the memory."""
    (seconds, floor, memory), *_ = in_processes(_judge_ijbc)
    title = f"TAR@FAR of {IJBC_PAIRS:,} template pairs × 512"
    yield Row(title, seconds, "s", floor)
    yield Row("memory of it besides templates and lists", memory, "MB")


def _judge_ijbc() -> tuple[float, float, float]:
    rng = np.random.default_rng(0)
    unit_TD = unit_rows(rng.standard_normal((IJBC_GALLERY + IJBC_PROBES, 512), dtype=np.float32))
    first_N = np.sort(rng.integers(0, IJBC_GALLERY, IJBC_PAIRS, dtype=np.int32))
    second_N = rng.integers(IJBC_GALLERY, len(unit_TD), IJBC_PAIRS, dtype=np.int32)
    issame_N = rng.integers(0, 800, IJBC_PAIRS, dtype=np.int16) == 0
    facts = {"images": 0, "flip": True, "detector_score": False, "protocol": ""}
    seconds: list[float] = []

    def judge() -> None:
        seconds.append(best(lambda: judge_pairs(unit_TD, first_N, second_N, issame_N, **facts), 2))

    memory = peak_memory(judge)
    gallery, probe = torch.from_numpy(unit_TD).split([IJBC_GALLERY, IJBC_PROBES])
    floor = best(lambda: [part @ probe.T for part in gallery.split(256)], 2)
    return seconds[0], floor, memory


# Identification --------------------------------------------------------------------------------------------


def identification_rows(distractors: int) -> Iterator[Row]:
    """Measure MegaFace's challenge 1 and a gallery search of the same size, in a process of its own."""
    (megaface_s, identify_s, floor, memory), *_ = in_processes(_search_distractors, distractors)
    size = f"{FACESCRUB:,} probes × {distractors:,} distractors × 512"
    yield Row(f"MegaFace, {size}", megaface_s, "s", floor)
    yield Row(f"identify, rank 1 … 20, {size}", identify_s, "s", floor)
    yield Row("memory of it besides the distractors", memory, "MB")


def _search_distractors(count: int) -> tuple[float, float, float, float]:
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(FACESCRUB, 512, generator=generator)
    identity_P = np.arange(FACESCRUB) % FACESCRUB_IDENTITIES
    distractor = torch.randn(count, 512, generator=generator)
    probe_PD = unit(probe)
    buffer = torch.empty(FACESCRUB, BLOCK)

    def products() -> None:
        for block in distractor.split(BLOCK):
            torch.mm(probe_PD, block.T, out=buffer[:, : len(block)])

    def search() -> None:
        enrolled = identity_P < FACESCRUB_IDENTITIES // 2
        gallery = slice(0, FACESCRUB_IDENTITIES // 2)
        assert enrolled[gallery].all()
        identify(probe, identity_P, probe[gallery], identity_P[gallery], distractors=distractor)

    ways: dict[str, Callable[[], object]] = {
        "floor": products,
        "megaface": lambda: megaface(probe, identity_P, distractor),
        "identify": search,
    }
    seconds = dict.fromkeys(ways, float("inf"))

    def measure() -> None:
        for _ in range(ROUNDS):
            for name, way in ways.items():
                seconds[name] = min(seconds[name], best(way, 1))

    memory = peak_memory(measure)
    return seconds["megaface"], seconds["identify"], seconds["floor"], memory
