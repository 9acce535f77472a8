"""`facerec-data overlap`: people who are in two packs are found by embeddings, and left out of one."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from facerec.errors import ConfigError, UserError
from facerec.loading.settings import DataSettings
from facerec.loading.sources import open_faces
from facerec.making.builder import PackBuilder
from tests.making import data
from tests.small_networks import photograph, write_colours

BOTH = range(30, 40)  # people of A (0 … 39) and of B (30 … 59)


def make_pack(out: Path, people: range, first: int, images: int) -> None:
    with PackBuilder(out) as builder:
        for person in people:
            for i in range(first, first + images):
                builder.add(f"{out.name.lower()}{person}/{i}.png", photograph(person, i))
            builder.end_identity()
        builder.finish()


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Packs A and B, and the network."""
    folder = tmp_path_factory.mktemp("overlap")
    make_pack(folder / "A", range(40), 0, 4)
    make_pack(folder / "B", range(30, 60), 10, 3)
    write_colours(folder / "colours.pt")
    return folder


def overlap(work: Path, first: str, second: str, out: Path, *options: str) -> list[dict[str, str]]:
    """The rows of pairs.csv."""
    model = ["--ckpt", str(work / "colours.pt"), "--allow-code", "--size", "16", "--device", "cpu"]
    assert data("overlap", work / first, work / second, out, *model, *options) == 0
    with (out / "pairs.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_people_in_both_are_found_whatever_they_are_called_and_left_out_of_one(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = overlap(work, "A", "B", tmp_path / "both")
    assert {(row["first_name"], row["second_name"]) for row in found} == {(f"a{p}", f"b{p}") for p in BOTH}
    assert {(row["first"], row["second"]) for row in found} == {(str(p), str(p - 30)) for p in BOTH}
    assert {(row["first_images"], row["second_images"]) for row in found} == {("4", "3")}
    cosines = [float(row["cosine"]) for row in found]
    assert cosines == sorted(cosines, reverse=True) and cosines[-1] > 0.8
    assert "10 of 30 identities of" in capsys.readouterr().out

    listing = tmp_path / "both" / "drop.txt"
    assert listing.read_text().split() == [str(p - 30) for p in BOTH]
    assert data("filter", work / "B", tmp_path / "B2", "--drop", listing) == 0
    sources = [{"root": str(work / "A")}, {"root": str(tmp_path / "B2")}]
    faces = open_faces(DataSettings(kind="mix", sources=sources, size=32))
    assert faces.num_classes == 60, "each person of both packs has one class row now"


def test_a_folder_per_identity_will_do_and_a_threshold_may_be_given(work: Path, tmp_path: Path) -> None:
    assert data("unpack", work / "B", work / "folders") == 0
    every = overlap(work, "A", "folders", tmp_path, "--at", "0.5")
    assert {row["second"] for row in every} == {f"b{p}" for p in BOTH}
    assert overlap(work, "A", "folders", tmp_path, "--at", every[3]["cosine"], "--force") in (
        every[:4],
        every[:3],  # where the four digits were rounded up
    )


def test_no_one_in_both_leaves_no_list(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_pack(tmp_path / "C", range(100, 130), 0, 2)
    assert overlap(work, "A", str(tmp_path / "C"), tmp_path / "out") == []
    assert "0 of 30 identities" in capsys.readouterr().out
    assert not (tmp_path / "out" / "drop.txt").exists()


def test_what_cannot_be_searched_is_one_line(work: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--at=1\.5: must be a cosine above 0"):
        overlap(work, "A", "B", tmp_path, "--at", "1.5")
    with pytest.raises(ConfigError, match=r"--batch-size=0: must be 1 or more"):
        overlap(work, "A", "B", tmp_path, "--batch-size", "0")
    for name, people in (("D", range(3)), ("E", range(3, 6))):
        make_pack(tmp_path / name, people, 0, 2)
    with pytest.raises(UserError, match=r"D and E: too few identities to choose a threshold from.*--at"):
        overlap(work, str(tmp_path / "D"), str(tmp_path / "E"), tmp_path / "few")
    (tmp_path / "pairs.csv").touch()
    with pytest.raises(UserError, match=r"pairs.csv: is already there; --force"):
        overlap(work, "A", "B", tmp_path)
