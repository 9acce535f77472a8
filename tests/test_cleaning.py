"""`facerec-data clean`: what does not belong is found by embeddings, and left out only as asked."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from facerec import create_backbone, load_model
from facerec.cleaning.judging import outlier_limit
from facerec.cli.data import run
from facerec.errors import CheckpointError, StorageError, UserError
from facerec.images.decode import decode
from facerec.models import checkpoint
from facerec.packs.pack import Pack, open_pack
from facerec.packs.verification import write_verification
from tests.making import full_disk, overwrite, report
from tests.small_networks import photograph, write_colours

PEOPLE, IMAGES = 40, 6


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "colours.pt"
    write_colours(path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 identities of 6 images: José has a stranger, Mixed is two, Twin is Other; copies; a broken file."""
    root = tmp_path_factory.mktemp("faces") / "photographs"
    names = [f"p{person:02}" for person in range(PEOPLE)]
    names[3], names[5], names[7], names[8] = "José", "Mixed", "Other", "Twin"
    files = {
        f"{name}/{i}.png": photograph(person, i) for person, name in enumerate(names) for i in range(IMAGES)
    }
    files["José/2.png"] = photograph(100, 0)
    files |= {f"Mixed/other{i}.png": photograph(101, i) for i in range(4)}
    files |= {f"Twin/{i}.png": photograph(7, 50 + i) for i in range(IMAGES)}
    files["p09/copy.jpg"] = photograph(9, 0, "JPEG")
    files["p11/copy.png"] = photograph(10, 0)
    files["p12/broken.png"] = photograph(12, 9)[:300]
    files |= {
        "Pair/1.png": photograph(102, 0),
        "Pair/2.png": photograph(103, 0),
        "Single/1.png": photograph(104, 0),
    }
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


@pytest.fixture(scope="module")
def test_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A test set with further images of p14, and one that p15 has, too."""
    path = tmp_path_factory.mktemp("tests") / "known.bin"
    images = [photograph(14, 70), photograph(14, 71), photograph(15, 0), photograph(200, 0)]
    write_verification(path, images, [True, False])
    return path


def clean(pack: Path, out: Path, network: Path, *options: str) -> None:
    model = ["--ckpt", str(network), "--allow-code", "--size", "16", "--device", "cpu"]
    assert run(["clean", str(pack), str(out), *model, *options]) == 0


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "decisions.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def found(out: Path, kind: str, column: str = "image") -> set[str]:
    return {row[column] for row in rows(out) if row["kind"] == kind}


def names(out: Path) -> dict[str, set[str]]:
    """The images of each identity of a pack."""
    pack = open_pack(out)
    of: dict[str, set[str]] = {}
    for i in range(len(pack)):
        of.setdefault(pack.label(i), set()).add(pack.name(i).rpartition("/")[2])
    return of


# What is found --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def proposals(folder: Path, network: Path, test_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("clean") / "proposals"
    clean(folder, out, network, "--dry-run", "--against", str(test_set))
    return out


def test_wrong_images_and_only_those_are_found(proposals: Path) -> None:
    assert found(proposals, "outlier") == {"José/2.png", "p11/copy.png"}
    (of_jose,) = [row for row in rows(proposals) if row["image"] == "José/2.png"]
    assert float(of_jose["cosine"]) < float(of_jose["least"]) < 0.8
    (of_copy,) = [row for row in rows(proposals) if row["kind"] == "outlier" and row["identity"] == "p11"]
    assert of_copy["other"] == "p10", "the identity that it is of"


def test_the_second_person_of_an_identity_is_found(proposals: Path) -> None:
    assert found(proposals, "mixed") == {f"Mixed/other{i}.png" for i in range(4)}
    assert found(proposals, "mixed", "other") == {"Mixed~2"}


def test_identities_of_one_person_are_found(proposals: Path) -> None:
    pairs = [{row["identity"], row["other"]} for row in rows(proposals) if row["kind"] == "merge"]
    assert pairs == [{"Other", "Twin"}]


def test_copies_are_found_in_other_formats_and_other_identities(proposals: Path) -> None:
    copies = {row["image"]: row["other"] for row in rows(proposals) if row["kind"] == "duplicate"}
    assert copies == {"p09/copy.jpg": "p09/0.png", "p11/copy.png": "p10/0.png"}


def test_identities_and_images_of_a_test_set_are_found(proposals: Path) -> None:
    leaks = {row["image"] or row["identity"] for row in rows(proposals) if row["kind"] == "leak"}
    assert leaks == {"p14", "p15", "p15/0.png"}


def test_what_does_not_decode_is_named_and_what_is_too_small_is_said(
    folder: Path, network: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clean(folder, tmp_path / "out", network, "--dry-run")
    assert found(tmp_path / "out", "damaged") == {"p12/broken.png"}
    said = capsys.readouterr().out
    assert "too few to judge: 3 images of 2 identities with fewer than 3\n" in said
    assert "no pack was written (--dry-run)" in said
    assert {row["action"] for row in rows(tmp_path / "out")} == {"keep"} or "applied" in said


def test_the_page_shows_the_images_to_judge_by(proposals: Path) -> None:
    page = (proposals / "report.html").read_text()
    assert "José/2.png" in page and page.count("data:image/jpeg") > 10
    assert "like p10" in page and "Identities that are one person" in page
    assert "1 finding, 0 to be applied" in page and "kept; proposed: merge" in page


def test_a_clean_set_loses_nothing(network: Path, tmp_path: Path) -> None:
    for person in range(PEOPLE):
        (tmp_path / "photographs" / f"p{person}").mkdir(parents=True)
        for i in range(IMAGES):
            (tmp_path / "photographs" / f"p{person}" / f"{i}.png").write_bytes(photograph(person, i))
    clean(tmp_path / "photographs", tmp_path / "out", network)
    assert len(open_pack(tmp_path / "out")) == PEOPLE * IMAGES
    assert not rows(tmp_path / "out")


# What is applied ------------------------------------------------------------------------------------------


def test_by_default_images_are_dropped_and_identities_stay(
    folder: Path, network: Path, test_set: Path, tmp_path: Path
) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    clean(folder, tmp_path / "out", network, "--against", str(test_set))
    there = names(tmp_path / "out")
    assert len(there) == PEOPLE + 2 and "Mixed~2" not in there and {"p14", "Twin", "Other"} <= there.keys()
    assert there["José"] == {f"{i}.png" for i in (0, 1, 3, 4, 5)}
    assert "copy.jpg" not in there["p09"] and "broken.png" not in there["p12"]
    dropped = {name for name, outcome, _ in report(tmp_path / "out") if outcome == "dropped"}
    assert dropped == {"José/2.png", "p09/copy.jpg", "p11/copy.png", "p12/broken.png"}
    applied = {row["image"] for row in rows(tmp_path / "out") if row["action"] == "drop"}
    assert applied == dropped
    assert (tmp_path / "out" / "property").read_text() == f"{PEOPLE + 2},32,32\n"
    assert run(["verify", str(tmp_path / "out")]) == 0
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_identities_are_split_merged_and_left_out_on_request(
    folder: Path, network: Path, test_set: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    clean(folder, out, network, "--split", "--merge", "--drop", "leak", "--against", str(test_set))
    there = names(out)
    assert there["Mixed~2"] == {f"Mixed_other{i}.png" for i in range(4)}
    assert len(there["Mixed"]) == IMAGES
    (both,) = there.keys() & {"Twin", "Other"}
    other = ({"Twin", "Other"} - {both}).pop()
    assert there[both] == {f"{i}.png" for i in range(IMAGES)} | {f"{other}_{i}.png" for i in range(IMAGES)}
    assert not {"p14", "p15"} & there.keys()
    assert "2.png" in there["José"], "outliers were not asked for"
    noted = {name: outcome for name, outcome, _ in report(out)}
    assert noted == {"p14": "identity dropped", "p15": "identity dropped", "p15/0.png": "dropped"}


def test_a_pack_gives_the_same_as_its_folder(folder: Path, network: Path, tmp_path: Path) -> None:
    """The images of a pack without a .lst have numbers for names; a damaged record is said and left out."""
    assert run(["pack", str(folder), str(tmp_path / "pack"), "--size", "32", "--keep"]) == 0
    clean(tmp_path / "pack", tmp_path / "named", network, "--dry-run")
    assert found(tmp_path / "named", "outlier") == {"José/2.png", "p11/copy.png"}
    (tmp_path / "pack" / "train.lst").unlink()
    clean(tmp_path / "pack", tmp_path / "numbered", network)
    outliers = [row for row in rows(tmp_path / "numbered") if row["kind"] == "outlier"]
    assert len(outliers) == 2 and all(
        row["image"] == f"{row['identity']}/{int(row['number']) + 1}.png" for row in outliers
    )
    assert len(open_pack(tmp_path / "numbered").classes) == PEOPLE + 2


@pytest.mark.parametrize("at", [0, 60])  # its frame: left out when the pack is opened; or the image in it
@pytest.mark.parametrize("listed", [True, False])
def test_a_damaged_record_is_said_and_left_out(
    folder: Path, network: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, at: int, listed: bool
) -> None:
    run(["pack", str(folder), str(tmp_path / "pack"), "--size", "32", "--keep"])
    if not listed:
        (tmp_path / "pack" / "train.lst").unlink()
    pack = open_pack(tmp_path / "pack")
    name, images = pack.name(20), len(pack)
    overwrite(tmp_path / "pack" / "train.rec", int(pack.offset_N[20]) + at, b"\0" * 40)
    clean(tmp_path / "pack", tmp_path / "out", network)
    dropped = [row for row, outcome, _ in report(tmp_path / "out") if outcome == "dropped"]
    assert name in dropped or "damaged record" in caplog.text
    assert len(open_pack(tmp_path / "out")) == images - len(dropped) - (name not in dropped)


# The list -------------------------------------------------------------------------------------------------


def test_an_edited_list_is_applied_without_a_model(folder: Path, proposals: Path, tmp_path: Path) -> None:
    lines = (proposals / "decisions.csv").read_text().splitlines()
    edited = []
    for line in lines:  # keep the copies and one outlier, merge the twins
        if line.startswith("duplicate") or (line.startswith("outlier") and "José" not in line):
            line = line.replace("drop,drop,", "drop,keep,")
        edited.append(line.replace("merge,keep,", "merge,merge,"))
    (tmp_path / "mine.csv").write_text("\ufeff" + "\r\n".join(edited))
    out = tmp_path / "out"
    assert run(["clean", str(folder), str(out), "--decisions", str(tmp_path / "mine.csv")]) == 0
    there = names(out)
    assert "2.png" not in there["José"] and "copy.jpg" in there["p09"]
    assert len({"Twin", "Other"} & there.keys()) == 1
    assert (out / "decisions.csv").read_bytes() == (tmp_path / "mine.csv").read_bytes()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            ("outlier,drop,drop", "outlier,drop,remove"),
            r"line \d+: action 'remove' is not keep, drop, split or",
        ),
        (
            ("José/2.png", "José/3.png"),
            r"line \d+: number \d+ is José/2\.png, not José/3\.png; is the list of",
        ),
        (("kind,proposal,action", "kind,proposal,do"), "line 1: lacks the column action"),
        (("mixed,split,keep,", "mixed,split,split,x"), r"number 'x\d+' is no number; leave it as it was"),
        (("damaged,drop,drop,", "damaged,drop,drop,9999"), "has no number 9999"),
        (("outlier,drop,drop", "outlier,drop,merge"), "merge needs an identity, and the other_number"),
        (("outlier,drop,drop", "x" * 200_000), r"after line \d+: is no CSV \(field larger than field limit"),
    ],
)
def test_a_list_that_does_not_fit_is_refused(
    folder: Path, proposals: Path, tmp_path: Path, change: tuple[str, str], said: str
) -> None:
    text = (proposals / "decisions.csv").read_text()
    assert change[0] in text
    (tmp_path / "mine.csv").write_text(text.replace(*change))
    with pytest.raises(UserError, match=said):
        run(["clean", str(folder), str(tmp_path / "out"), "--decisions", str(tmp_path / "mine.csv")])
    assert not (tmp_path / "out").exists()


def test_an_identity_is_not_merged_with_itself(folder: Path, proposals: Path, tmp_path: Path) -> None:
    with (proposals / "decisions.csv").open(newline="") as file:
        head, *rows = csv.reader(file)
    number, other = head.index("number"), head.index("other_number")
    row = next(one for one in rows if one[0] == "merge")
    row[head.index("action")], row[other] = "merge", row[number]
    (tmp_path / "mine.csv").write_text("\n".join(",".join(one) for one in (head, row)))
    with pytest.raises(UserError, match=r"line 2: merge needs two identities, and number and other_number"):
        run(["clean", str(folder), str(tmp_path / "out"), "--decisions", str(tmp_path / "mine.csv")])


# What is refused, and what is left behind -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "give --ckpt MODEL to look for what does not belong, or --decisions CSV"),
        (["--ckpt", "a.pt", "--decisions", "b.csv"], "give --ckpt MODEL to look for"),
        (["--ckpt", "a.pt", "--outlier", "1.5"], "--outlier=1.5: must be a cosine"),
        (["--ckpt", "a.pt", "--merge-at", "0"], "--merge-at=0: must be a cosine, above 0 to 1"),
        (["--ckpt", "a.pt", "--false-drop", "1"], "--false-drop=1: must be 0 or more, and below 1"),
        (["--ckpt", "a.pt", "--min-images", "2"], "--min-images=2: must be 3 or more: of two, none can be"),
        (["--ckpt", "a.pt", "--drop", "none", "outlier"], "--drop none: stands alone"),
        (["--ckpt", "a.pt", "--drop", "leak"], "--drop leak and --leak-at need --against TEST"),
        (
            ["--decisions", "b.csv", "--merge"],
            "--decisions applies a list as it is; leave out --merge, or edit",
        ),
        (["--decisions", "b.csv", "--false-drop", "0.2"], "leave out --false-drop, or edit the list"),
        (["--decisions", "b.csv"], "b.csv: No such file"),
        (["--ckpt", "a.pt"], "a.pt: no such file"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=said):
        run(["clean", str(folder), "out", *options])
    assert not Path("out").exists()


def test_places_where_it_must_not_write_are_refused(
    folder: Path, network: Path, test_set: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="is in the source, which is never changed"):
        clean(folder, folder / "clean", network)
    with pytest.raises(UserError, match="is a verification set"):
        clean(test_set, tmp_path / "out", network)
    with pytest.raises(UserError, match="no such file or folder"):
        clean(tmp_path / "nothing", tmp_path / "out", network)
    run(["pack", str(folder), str(tmp_path / "pack"), "--size", "32", "--keep"])
    with pytest.raises(UserError, match="is in the source, which is never changed"):
        clean(tmp_path / "pack", tmp_path / "pack", network, "--force")
    with pytest.raises(UserError, match=r"train\.rec: is already there; --force replaces it"):
        clean(folder, tmp_path / "pack", network)
    with pytest.raises(UserError, match="is a file; give a folder"):
        clean(folder, network, network)


def test_a_kept_embedding_is_not_computed_again(
    folder: Path, network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean(folder, tmp_path / "one", network, "--cache", str(tmp_path / "cache"))
    monkeypatch.setattr("facerec.evaluation.embedding._embed_shard", None)
    clean(folder, tmp_path / "two", network, "--cache", str(tmp_path / "cache"))
    assert rows(tmp_path / "one") == rows(tmp_path / "two")
    assert {"outlier", "damaged", "mixed", "merge", "duplicate"} == {
        row["kind"] for row in rows(tmp_path / "two")
    }


@pytest.mark.parametrize("most", [20_000, 100_000])  # embeddings do not fit, nor does the pack
def test_what_cannot_be_written_leaves_nothing(
    folder: Path, network: Path, tmp_path: Path, most: int
) -> None:
    with full_disk(most), pytest.raises(StorageError, match="could not be written: File too large"):
        clean(folder, tmp_path / "new" / "out", network)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "where", ["facerec.cleaning.copies.Looks.__call__", "facerec.making.builder.PackBuilder.end_identity"]
)
def test_interrupted_it_leaves_nothing(
    folder: Path, network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(where, interrupt)
    with pytest.raises(KeyboardInterrupt):
        clean(folder, tmp_path / "new" / "out", network)
    assert not list(tmp_path.iterdir())


# Centres of a head ----------------------------------------------------------------------------------------


def trained(path: Path, faces: Pack, weight: torch.Tensor) -> None:
    backbone = create_backbone("mobilefacenet", embedding_size=8, input_size=32)
    checkpoint.save(
        path,
        {
            "facerec": "0.1.0",
            "config": {"backbone": {"name": "mobilefacenet", "embedding_size": 8, "input_size": 32}},
            "input": {"size": 32},
            "classes": torch.from_numpy(np.array(faces.classes)),
            "backbone": backbone.state_dict(),
            "head": {"weight": weight},
        },
    )


def test_the_dominant_sub_centre_of_a_head_is_the_centre(folder: Path, tmp_path: Path) -> None:
    run(["pack", str(folder), str(tmp_path / "pack"), "--size", "32", "--keep"])
    faces = open_pack(tmp_path / "pack")
    weight = torch.randn(faces.num_classes, 3, 8, generator=torch.Generator().manual_seed(0))
    trained(tmp_path / "last.pt", faces, weight)
    options = ["--ckpt", str(tmp_path / "last.pt"), "--centres", "head", "--dry-run", "--device", "cpu"]
    assert run(["clean", str(tmp_path / "pack"), str(tmp_path / "out"), *options]) == 0
    model = load_model(tmp_path / "last.pt", device="cpu")
    shown = [i for i in range(len(faces)) if faces.name(i) != "p12/broken.png"]
    unit_ND = model.embed(np.stack([decode(faces.encoded(i), 32) for i in shown])).numpy()
    unit_CKD = nn.functional.normalize(weight, dim=2).numpy()
    wanted = {}
    for label in range(faces.num_classes):
        of = [row for row, i in enumerate(shown) if faces.label_N[i] == label]
        cosine_NK = unit_ND[of] @ unit_CKD[label].T
        dominant = np.bincount(cosine_NK.argmax(1)).argmax()
        for row, cosine in zip(of, cosine_NK[:, dominant].tolist(), strict=True):
            if np.degrees(np.arccos(cosine)) > 75:
                wanted[faces.name(shown[row])] = cosine
    far = [row for row in rows(tmp_path / "out") if row["kind"] == "outlier"]
    assert {row["image"] for row in far if row["action"] == "drop"} == wanted.keys() and wanted
    assert found(tmp_path / "out", "mixed") == set()
    assert all(float(row["cosine"]) == pytest.approx(wanted[row["image"]], abs=1e-4) for row in far)


def test_a_head_of_other_identities_is_refused(folder: Path, tmp_path: Path) -> None:
    run(["pack", str(folder), str(tmp_path / "pack"), "--size", "32", "--keep"])
    faces = open_pack(tmp_path / "pack")
    trained(tmp_path / "last.pt", faces, torch.randn(faces.num_classes - 1, 8))
    options = ["--ckpt", str(tmp_path / "last.pt"), "--centres", "head", "--device", "cpu"]
    with pytest.raises(CheckpointError, match="--centres head needs the pack it was trained on"):
        run(["clean", str(tmp_path / "pack"), str(tmp_path / "out"), *options])


# Thresholds -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [0.0, 0.02, 0.2, 0.5])
def test_the_threshold_is_where_wrong_images_and_right_ones_part(wrong: float) -> None:
    rng = np.random.default_rng(0)
    impostor_P = rng.normal(0.0, 0.1, 20_000).astype(np.float32)
    is_wrong_N = rng.random(20_000) < wrong
    own_N = np.where(is_wrong_N, rng.normal(0, 0.1, 20_000), rng.normal(0.6, 0.12, 20_000)).astype(np.float32)
    limit = outlier_limit(own_N, impostor_P)
    assert limit.wrong == pytest.approx(wrong, abs=0.01)
    dropped = own_N < limit.least
    assert (dropped & ~is_wrong_N).sum() <= 0.012 * (~is_wrong_N).sum()
    assert (dropped & is_wrong_N).sum() >= 0.97 * is_wrong_N.sum()
    if wrong > 0.1:
        assert limit.found == pytest.approx(dropped[is_wrong_N].mean(), abs=0.01)
        assert limit.false_drop == pytest.approx(dropped[~is_wrong_N].mean(), abs=0.005)


def test_right_images_that_look_like_strangers_are_dropped_up_to_a_part_only() -> None:
    rng = np.random.default_rng(1)
    impostor_P = rng.normal(0.0, 0.15, 20_000).astype(np.float32)
    own_N = np.r_[rng.normal(0.4, 0.15, 8000), rng.normal(0.0, 0.15, 2000)].astype(np.float32)
    for most in (0.002, 0.01, 0.05):
        limit = outlier_limit(own_N, impostor_P, most)
        assert (own_N[:8000] < limit.least).mean() < most + 0.02
        assert limit.false_drop is not None and limit.false_drop <= most
    assert outlier_limit(own_N, impostor_P, least=0.1).least == 0.1
