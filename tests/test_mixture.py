"""Several packs at once: which image comes when, whose label it has, and runs that resume over them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import pytest
import torch
from hydra._internal import hydra as hydra_internals
from omegaconf import OmegaConf

from facerec.cli.config_loader import ConfigLoader
from facerec.cli.mistakes import config_folder
from facerec.cli.overrides import hydra_arguments
from facerec.errors import ConfigError, MissingDataError, UserError
from facerec.evaluation import overlap
from facerec.images.images import LabelledImages
from facerec.loading.loader import Loader
from facerec.loading.order import MixtureOrder, Order
from facerec.loading.settings import DataSettings
from facerec.loading.sources import open_faces
from facerec.making.builder import PackBuilder
from facerec.making.rewriting import merge
from facerec.packs.pack import open_pack
from facerec.randomness import permute
from tests.folder_run import TINY, make_faces
from tests.making import image
from tests.test_cli_train import command, failed
from tests.test_launched_runs import rows

SIDE = 32
IDENTITIES = {"A": (5, 2, 9, 4), "B": (3, 8)}  # images of each; 20 and 11


@pytest.fixture(scope="module")
def packs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the packs A and B, and both merged."""
    folder = tmp_path_factory.mktemp("packs")
    for seed, (name, numbers) in enumerate(IDENTITIES.items()):
        with PackBuilder(folder / name) as builder:
            for identity, number in enumerate(numbers):
                for i in range(number):
                    builder.add(
                        f"p{seed}_{identity}/{i}.jpg", image(1000 * seed + 100 * identity + i, (SIDE, SIDE))
                    )
                builder.end_identity()
            builder.finish()
    merge([open_pack(folder / name) for name in IDENTITIES], folder / "AB")
    return folder


def mixed(packs: Path, weights: list[float] | None = None, **source: Any) -> LabelledImages:
    sources = [{"kind": "rec", "root": str(packs / name), **source} for name in IDENTITIES]
    return open_faces(DataSettings(kind="mix", sources=sources, weights=weights, size=SIDE))


def taken(loader: Loader, epoch: int, start: int = 0) -> list[tuple[list[int], list[int], Any]]:
    """Images by number and label, and the pixels, of each batch."""
    return [
        (b.index_B.tolist(), b.label_B.tolist(), b.image_BHWC.clone()) for b in loader.batches(epoch, start)
    ]


# -- which image comes when ----------------------------------------------------------------------------------


@pytest.mark.parametrize("shuffle", ["full", "block", "none", "identity"])
def test_without_weights_the_batches_are_those_of_the_merged_pack(packs: Path, shuffle: Any) -> None:
    how = DataSettings(size=SIDE, shuffle=shuffle, block_size=3, window=2, images_per_identity=2)
    both, merged = Loader(mixed(packs), 6, how), Loader(open_pack(packs / "AB"), 6, how)
    assert both.faces.num_classes == merged.faces.num_classes == 6
    for epoch in range(2):
        for one, other in zip(taken(both, epoch), taken(merged, epoch), strict=True):
            assert one[:2] == other[:2]
            assert torch.equal(one[2], other[2])


def naive(
    counts: list[int], weights: list[float], seed: int, shuffle: Any, epochs: int
) -> Iterator[list[int]]:
    """The images of each epoch, drawn one after the other, with a counter for each source."""
    total, begins = sum(counts), [sum(counts[:k]) for k in range(len(counts))]
    drawn = [0] * len(counts)
    shares = [int(total * weight / sum(weights)) for weight in weights]
    largest = shares.index(max(shares))
    shares[largest] += total - sum(shares)
    orders = [
        Order(n, seed=seed + k * 2**32, shuffle=shuffle, block_size=3, window=2) for k, n in enumerate(counts)
    ]

    def until(position: int) -> list[int]:
        parts = [share * position // total for share in shares]
        parts[largest] += position - sum(parts)
        return parts

    for epoch in range(epochs):
        images: list[int] = []
        lows = range(0, max(total - 1023, 1), 1024)
        for low, high in zip(lows, [*lows[1:], total], strict=True):
            sources = []
            for k, (before, after) in enumerate(zip(until(low), until(high), strict=True)):
                sources += [k] * (after - before)
            for place in permute(np.arange(high - low), high - low, (seed, epoch, -3, low // 1024)).tolist():
                k = sources[place]
                own, at = divmod(drawn[k], counts[k])
                images.append(begins[k] + int(orders[k].take(own, at, at + 1)[0]))
                drawn[k] += 1
        yield images


@pytest.mark.parametrize("shuffle", ["full", "block", "none"])
@pytest.mark.parametrize(
    ("counts", "weights"),
    [([20, 11], [0.3, 0.7]), ([900, 40, 1300], [1, 2, 2]), ([5, 7], [5, 7]), ([1000, 20, 5], [90, 2, 1])],
)
def test_the_order_of_a_mixture_is_that_of_drawing_one_image_after_the_other(
    counts: list[int], weights: list[float], shuffle: Any
) -> None:
    order = MixtureOrder(counts, weights, seed=5, shuffle=shuffle, block_size=3, window=2)
    total = sum(counts)
    for epoch, wanted in enumerate(naive(counts, weights, 5, shuffle, 3)):
        assert order.take(epoch, 0, total).tolist() == wanted
        for start, stop in ((0, 0), (3, 9), (total // 2, total), (total - 1, total)):
            assert order.take(epoch, start, stop).tolist() == wanted[start:stop]


def test_every_stretch_has_its_proportion_and_no_image_comes_again_before_all_of_its_source_have() -> None:
    counts, weights = [700, 3000, 90], [0.5, 0.3, 0.2]
    order, total = MixtureOrder(counts, weights, seed=1), sum(counts)
    image_N = np.concatenate([order.take(epoch, 0, total) for epoch in range(3)])
    source_N = np.searchsorted(np.cumsum(counts), image_N, side="right")
    for low in (0, 1024, total, total + 1024):
        share = np.bincount(source_N[low : low + 1024], minlength=3) / 1024
        np.testing.assert_allclose(share, weights, atol=3 / 1024)
    for k, count in enumerate(counts):
        own_N = image_N[source_N == k]
        for low in range(0, len(own_N) - count, count):
            assert len(np.unique(own_N[low : low + count])) == count
    assert order.take(0, 0, total).tolist() != order.take(1, 0, total).tolist()


def test_any_numbers_of_images_and_any_weights_give_whole_epochs() -> None:
    rng = np.random.default_rng(0)
    for _ in range(60):
        sources = int(rng.integers(1, 33))
        counts = rng.integers(1, int(rng.choice([5, 60, 400])), sources).tolist()
        order = (
            MixtureOrder(counts, (rng.uniform(1, 3, sources)).tolist(), seed=1) if sum(counts) > 200 else None
        )
        if order is not None:
            image_N = order.take(2, 0, order.count)
            source_N = np.searchsorted(np.cumsum(counts), image_N, side="right")
            assert np.bincount(source_N, minlength=sources).tolist() == order.drawn_S.tolist()
            assert order.drawn_S.sum() == order.count
    with pytest.raises(ConfigError, match=r"data.sources=33 of them: may be 32"):
        MixtureOrder([10] * 33, [1.0] * 33)


def test_a_disk_is_told_of_images_before_they_are_decoded() -> None:
    order = MixtureOrder([60, 40], [1, 3], seed=1, shuffle="block", block_size=4, window=3)
    told: set[int] = set()
    for start in range(0, 100, 5):
        told |= set(order.to_read(0, start, start + 5, first=start == 0).tolist())
        assert set(order.take(0, start, start + 5).tolist()) <= told | set(
            order.to_read(0, start, start + 5, first=True).tolist()
        )


# -- the images of several sources ---------------------------------------------------------------------------


def test_each_identity_of_each_source_has_a_label_and_a_name_of_its_own(packs: Path) -> None:
    faces = mixed(packs)
    assert (len(faces), faces.num_classes) == (31, 6)
    assert np.bincount(faces.label_N).tolist() == [5, 2, 9, 4, 3, 8]
    assert list(faces.classes) == ["A/0", "A/1", "A/2", "A/3", "B/0", "B/1"]
    alone = open_pack(packs / "B")
    assert bytes(faces.encoded(20 + 7)) == bytes(alone.encoded(7))
    assert faces.where(27) == alone.where(7)
    assert faces.name(27) == f"B/{alone.name(7)}"
    assert faces.label(27) == "B/1"
    assert "2 sources: 6 identities, 31 images per epoch; A: 4 identities, 20 images" in faces.describe()
    assert "(0.75 of the samples)" in mixed(packs, [3, 1]).describe()


def test_two_sources_of_one_name_are_told_apart_and_any_kinds_go_together(
    packs: Path, tmp_path: Path
) -> None:
    make_faces(tmp_path / "A")
    sources: list[Any] = [{"root": str(packs / "A")}, {"kind": "folder", "root": str(tmp_path / "A")}]
    sources.append({"kind": "synthetic", "identities": 3, "images": 7})
    faces = open_faces(DataSettings(kind="mix", sources=sources, size=SIDE))
    assert (len(faces), faces.num_classes) == (20 + 24 + 7, 4 + 3 + 3)
    assert list(faces.classes)[3:6] == ["A0/3", "A1/anna", "A1/berta"]
    pixels_HWC = np.empty((SIDE, SIDE, 3), np.uint8)
    for i in range(len(faces)):
        faces.decode_into(i, pixels_HWC)


def test_labels_made_wrong_are_those_of_a_source_or_of_all(packs: Path) -> None:
    of_one = mixed(packs, [1, 1], label_noise=0.5)
    changed = of_one.label_N != mixed(packs).label_N
    assert changed[:20].sum() == 10 and (of_one.label_N[:20] < 4).all()
    sources = [{"root": str(packs / name)} for name in IDENTITIES]
    of_all = open_faces(DataSettings(kind="mix", sources=sources, weights=[1, 1], label_noise=0.5, size=SIDE))
    assert of_all.mixture == ([20, 11], [1.0, 1.0])
    assert (of_all.label_N[:20] >= 4).any()


def test_other_images_or_another_order_of_the_sources_have_another_fingerprint(packs: Path) -> None:
    sources = [{"root": str(packs / name)} for name in IDENTITIES]
    same, turned = (
        open_faces(DataSettings(kind="mix", sources=s, size=SIDE)) for s in (sources, sources[::-1])
    )
    assert mixed(packs).fingerprint == same.fingerprint != turned.fingerprint


def test_names_of_the_identities_of_a_test_are_found_in_every_source(packs: Path) -> None:
    assert {"p0_0", "p1_1"} <= set(overlap._identity_names(mixed(packs)))


# -- settings ------------------------------------------------------------------------------------------------


def composed(*settings: str) -> dict[str, Any]:
    """The data section, as facerec-train composes it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hydra_internals, "ConfigLoaderImpl", ConfigLoader)
        with hydra.initialize_config_dir(str(config_folder()), version_base="1.3"):
            config = hydra.compose("train", hydra_arguments(settings))
    plain: Any = OmegaConf.to_container(config, resolve=True)
    return dict(plain["data"])


def test_a_list_of_data_sets_is_a_mixture_of_their_settings(
    packs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FACEREC_DATA", "/all")
    data = composed("data=[casia,webface4m]", "data.weights=[7,3]")
    assert data["kind"] == "mix"
    assert [(one["name"], one["root"], one["identities"]) for one in data["sources"]] == [
        ("casia", "/all/faces_webface_112x112", 10572),
        ("webface4m", "/all/WebFace4M", 205990),
    ]
    assert (data["root"], data["targets"]) == ("/all/faces_webface_112x112", ["lfw", "cfp_fp", "agedb_30"])

    given = f"data.sources=[{packs}/A,{{data: casia, root: /x}},{{kind: synthetic, identities: 9}}]"
    paths = composed("data=mix", given)["sources"]
    assert [(one["kind"], one["root"]) for one in paths[:2]] == [("rec", f"{packs}/A"), ("rec", "/x")]
    assert (paths[1]["name"], paths[2]["kind"], paths[2]["identities"]) == ("casia", "synthetic", 9)
    typed = re.sub(r'"(\w+)":', r"\1:", json.dumps(paths))  # Hydra has no quotes around keys
    again = composed("data=mix", f"data.sources={typed}")["sources"]
    assert again == paths, "what a run has recorded composes to itself"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["data=[casia,webface5m]"], r"data.sources\[1\]: data=webface5m: no such data; did you mean"),
        (["data=[casia,mix]"], r"data.sources\[1\]: is a mixture itself"),
        (["data=[mix]"], r"data.sources\[0\]: is a mixture itself"),
        (["data=[casia,webface4m]", "data.root=C"], "data.root=C: is of one data set; each of several has"),
    ],
)
def test_a_source_that_there_is_not_is_refused_by_its_place(settings: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        composed(*settings)


@pytest.mark.parametrize(
    ("given", "key", "hint"),
    [
        ({"sources": []}, "data.sources", "must name one data set or more"),
        ({"sources": ["casia"]}, "data.sources[0]", "must be a mapping"),
        (
            {"sources": [{"shuffle": "none"}]},
            "data.sources[0].shuffle",
            "is of all sources together: data.shuffle",
        ),
        ({"sources": [{"rood": "x"}]}, "data.sources[0].rood", "did you mean root"),
        ({"sources": [{"label_noise": 2.0}]}, "data.sources[0].label_noise", "below 1"),
        ({"sources": [{"kind": "mix"}]}, "data.sources[0].kind", "no mixture"),
        (
            {"sources": [{}, {}], "weights": [1.0]},
            "data.weights",
            "a number above 0 for each of data.sources (2",
        ),
        ({"sources": [{}, {}], "weights": [1.0, 0.0]}, "data.weights", "a number above 0"),
        ({"kind": "rec", "sources": [{}]}, "data.sources", "needs data=mix"),
        ({"kind": "rec", "weights": [1.0]}, "data.weights", "must be null"),
    ],
)
def test_a_wrong_mixture_is_refused_before_data_are_touched(
    given: dict[str, Any], key: str, hint: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        DataSettings(**{"kind": "mix", **given})
    assert caught.value.key == key
    assert hint in caught.value.hint


def test_a_wrong_source_is_said_to_come_from_where_it_was_given(tmp_path: Path) -> None:
    ended = command(
        "facerec-train", "data=mix", "data.sources=[{data: folder, root: B, rood: 1}]", cwd=tmp_path
    )
    assert "data.sources[0].rood=1: did you mean root" in failed(ended)
    assert "(from the command line)" in failed(ended)


def test_a_source_that_is_not_there_and_weights_that_cannot_be_kept_are_named(
    packs: Path, tmp_path: Path
) -> None:
    sources = [{"root": str(packs / "A")}, {"root": str(tmp_path / "none"), "name": "casia"}]
    with pytest.raises(MissingDataError, match=r"data.sources\[1\].root=.*no such folder for data=casia"):
        open_faces(DataSettings(kind="mix", sources=sources))
    with pytest.raises(ConfigError, match=r"data.weights.*none of the 31 images"):
        Loader(mixed(packs, [1000, 1]), 4)
    with pytest.raises(ConfigError, match=r"data.shuffle=identity.*without data.weights"):
        Loader(mixed(packs, [1, 1]), 4, DataSettings(shuffle="identity"))


# -- the command ---------------------------------------------------------------------------------------------

RUN = [
    *(one for one in TINY if not one.startswith(("data=", "data.root="))),
    *("data=[A,B]", "data.weights=[1,2]", "trainer.epochs=2"),
]


def test_a_mixture_of_nothing_is_one_line(tmp_path: Path) -> None:
    assert "data.sources: must be given on the command line" in failed(
        command("facerec-train", "data=mix", cwd=tmp_path)
    )
    assert "data.sources=[]: must name one data set or more" in failed(
        command("facerec-train", "data=[]", cwd=tmp_path)
    )


def test_a_run_over_two_packs_resumes_to_the_bit_where_they_were_moved_to(
    packs: Path, tmp_path: Path
) -> None:
    for name in IDENTITIES:
        (tmp_path / name).symlink_to(packs / name)
        (tmp_path / f"{name}2").symlink_to(packs / name)
    once = command("facerec-train", *RUN, "output_dir=once", "trainer.max_steps=7", cwd=tmp_path)
    assert once.returncode == 0, once.stderr
    assert "2 sources: 6 identities, 31 images per epoch" in once.stdout
    assert (
        command("facerec-train", *RUN, "output_dir=parts", "trainer.max_steps=3", cwd=tmp_path).returncode
        == 0
    )

    refused = [*RUN, "output_dir=parts", "trainer.max_steps=7"]
    assert "data.weights[0]=nan: must be a finite number" in failed(
        command("facerec-train", *refused, "data.weights=[nan,1]", cwd=tmp_path)
    )
    assert "data.weights=[1.0,1.0] (was [1,2])" in failed(
        command("facerec-train", *refused, "data.weights=[1.0,1.0]", cwd=tmp_path)
    )
    assert "its identity 0 is A/0, that of the data is B/0" in failed(
        command("facerec-train", *refused, "data=[B,A]", cwd=tmp_path)
    )
    moved = "data.sources=[{data: rec, root: A2, name: A},{data: rec, root: B2, name: B}]"
    second = command("facerec-train", *refused, "data=mix", moved, cwd=tmp_path)
    assert second.returncode == 0, second.stderr
    one, two = (torch.load(tmp_path / name / "checkpoints" / "last.pt") for name in ("once", "parts"))
    for part in ("backbone", "head"):
        for name, value in one[part].items():
            assert torch.equal(value, two[part][name]), name
    assert [row["loss"] for row in rows(tmp_path / "once")] == [
        row["loss"] for row in rows(tmp_path / "parts")
    ]
