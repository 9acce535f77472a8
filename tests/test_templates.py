"""Template protocols: pooling and pairs against naive recomputation, YTF and IJB from files on."""

import subprocess
import sys

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from facerec.errors import DamagedDataError, MissingDataError
from facerec.evaluation.embedding import embed_images
from facerec.evaluation.protocols.identification import identify
from facerec.evaluation.protocols.ijb import AlignedCrops, Ijb, judge_pairs, read_lists, read_template_pairs
from facerec.evaluation.protocols.ytf import Ytf, read_splits, spaced
from facerec.evaluation.statistics import templates as templates_module
from facerec.evaluation.statistics.templates import FaceList, TemplatePool, pair_cosines
from facerec.evaluation.verify import verify
from facerec.images.align import TEMPLATE_52, align
from facerec.images.preprocessing import Preprocessing
from facerec.models.model import Model
from facerec.vectors import unit_rows
from tests.small_networks import Pixels

SETTINGS = {"bootstrap": 0, "batch_size": 16}


def naive_templates(embedding_PD, faces, weight_P=None):
    """Normalised sum over media of the mean within a medium, in three loops."""
    pooled = []
    for template in range(faces.templates):
        total = np.zeros(embedding_PD.shape[1])
        rows = np.flatnonzero(faces.template_R == template)
        for medium in set(faces.medium_R[rows].tolist()):
            of_medium = [row for row in rows if faces.medium_R[row] == medium]
            weighted = [
                embedding_PD[faces.image_R[row]] * (1 if weight_P is None else weight_P[faces.image_R[row]])
                for row in of_medium
            ]
            total += np.mean(weighted, axis=0)
        pooled.append(total / np.linalg.norm(total))
    return np.array(pooled)


@pytest.fixture(scope="module")
def faces():
    rng = np.random.default_rng(0)
    template_R = np.concatenate([np.arange(12), rng.integers(0, 12, 108)])  # each template has some
    return FaceList(rng.permutation(120) % 90, template_R, rng.integers(0, 5, 120))


@pytest.mark.parametrize("weighted", [False, True])
def test_pooling_equals_the_definition_however_the_images_come(faces, weighted):
    rng = np.random.default_rng(1)
    embedding_PD = rng.normal(size=(90, 8)).astype(np.float32)
    weight_P = rng.uniform(0.1, 1, 90).astype(np.float32) if weighted else None
    expected = naive_templates(embedding_PD, faces, weight_P)
    for portion in (90, 7, 1):
        pool = TemplatePool(faces, weight_P)
        for first in range(0, 90, portion):
            pool.add(embedding_PD[first : first + portion])
        np.testing.assert_allclose(pool.unit_TD(), expected, atol=1e-6)


def test_the_frames_of_a_video_weigh_as_one_photograph():
    faces = FaceList(np.arange(4), np.zeros(4, int), np.array([7, 7, 7, 1]))
    assert faces.weight_R().tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 1])
    pool = TemplatePool(faces)
    pool.add(np.array([[1, 0], [1, 0], [1, 0], [0, 1]], np.float32))
    np.testing.assert_allclose(pool.unit_TD(), [[0.5**0.5, 0.5**0.5]], rtol=1e-6)


def test_the_same_medium_number_in_two_templates_is_two_media():
    faces = FaceList(np.arange(3), np.array([0, 1, 1]), np.array([5, 5, 6]))
    assert faces.weight_R().tolist() == [1, 1, 1]


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("ordered", [True, False])
def test_cosines_of_listed_pairs(monkeypatch, dense, ordered):
    rng = np.random.default_rng(2)
    unit = unit_rows(rng.normal(size=(50, 16)))
    first, second = rng.integers(5, 20, 3000), rng.integers(15, 50, 3000)
    if ordered:
        first = np.sort(first)
    monkeypatch.setattr(templates_module, "_BLOCK", 160)  # many blocks
    monkeypatch.setattr(templates_module, "_DENSE", 100 if dense else 0)
    expected = (unit[first].astype(np.float64) * unit[second]).sum(axis=1)
    np.testing.assert_allclose(pair_cosines(unit, first, second), expected, atol=1e-6)


def test_tar_at_far_over_listed_pairs_equals_the_definition():
    rng = np.random.default_rng(3)
    identity_T = rng.integers(0, 12, 80)
    unit = unit_rows(rng.normal(size=(12, 16))[identity_T] + 0.9 * rng.normal(size=(80, 16)))
    first, second = np.triu_indices(80, 1)
    same = identity_T[first] == identity_T[second]
    result = judge_pairs(
        unit, first, second, same, images=80, flip=True, detector_score=False, protocol="made"
    )
    cosine = (unit[first] * unit[second]).sum(axis=1)
    for target in ("1e-1", "1e-2", "1e-3"):
        allowed = [t for t in np.unique(cosine) if (cosine[~same] > t).mean() <= float(target)]
        assert result.tar_at_far[target] == pytest.approx((cosine[same] > min(allowed)).mean())
    assert result.tar_at_far["1e-4"] is None
    assert "1e-4, 1e-5, 1e-6" in result.notes[0]
    assert (result.pairs, result.genuine_pairs, result.templates) == (len(same), same.sum(), 80)
    assert result.to_dict()["protocol"] == "made"
    assert result.log_lines("ijbb", 3)[0] == f"[ijbb][3]TAR@FAR=1e-1: {result.tar_at_far['1e-1']:.5f}"


# -- YTF --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ytf(tmp_path_factory):
    """Twelve videos of 1 … 5 frames, and 40 pairs in splits of unequal size, out of order."""
    root = tmp_path_factory.mktemp("ytf")
    rng = np.random.default_rng(0)
    videos = [f"Person_{number // 2}/{number % 2}" for number in range(12)]
    frames = {}
    for number, video in enumerate(videos):
        (root / video).mkdir(parents=True)
        frames[video] = rng.integers(0, 256, (1 + number % 5, 8, 8, 3), dtype=np.uint8)
        for at, frame in enumerate(frames[video]):
            Image.fromarray(frame).save(root / video / f"0.{at:03d}.png")
        (root / video / "notes.txt").touch()
    pairs = [(int(rng.integers(1, 4)), *rng.choice(videos, 2, replace=False)) for _ in range(40)]
    lines = [f"{split}, {a}, {b}, {int(a.split('/')[0] == b.split('/')[0])}" for split, a, b in pairs]
    (root / "splits.txt").write_text("\n".join(["split number, first name, second name, is same", *lines]))
    return root, frames, pairs


@pytest.mark.parametrize("count", [None, 2])
def test_ytf_pools_frames_and_judges_by_the_lists_splits(ytf, count):
    root, frames, pairs = ytf
    model = Model(Pixels(), Preprocessing(size=8))
    result = Ytf(root=str(root), frames=count, **SETTINGS).run(model)["ytf"]
    template = {}
    for video, images in frames.items():
        chosen = images if count is None or len(images) <= count else images[[0, len(images) - 1]]
        template[video] = model.embed(chosen, normalise=False).numpy().mean(axis=0)
    order = np.argsort([split for split, _, _ in pairs], kind="stable")
    embedding = np.array([template[video] for at in order for video in pairs[at][1:]])
    same = np.array([pairs[at][1].split("/")[0] == pairs[at][2].split("/")[0] for at in order])
    split = np.array([pairs[at][0] for at in order])
    expected = verify(embedding, same, folds=split)
    assert result.folds == 3
    assert result.accuracy == expected.accuracy
    assert result.fold_threshold == expected.fold_threshold
    assert "YTF" in result.protocol and "flip-TTA" in result.protocol
    assert ("all frames" in result.protocol) is (count is None)


def test_frames_are_spaced_evenly_from_first_to_last():
    assert spaced(list(range(100)), 4) == [0, 33, 66, 99]
    assert spaced(list(range(3)), 4) == [0, 1, 2]
    assert spaced(list(range(3)), None) == [0, 1, 2]


def test_ytf_says_what_is_missing_or_wrong(tmp_path):
    model = Model(Pixels(), Preprocessing(size=8))
    with pytest.raises(MissingDataError, match=r"splits\.txt: No such file"):
        Ytf(root=str(tmp_path), **SETTINGS).run(model)
    (tmp_path / "splits.txt").write_text("header\n1, A/0, B/0, 1\n")
    with pytest.raises(MissingDataError, match="A/0: no images of this video"):
        Ytf(root=str(tmp_path), **SETTINGS).run(model)
    (tmp_path / "splits.txt").write_text("header\n1, A/0, B/0, 1\n2, A/0, B/0, yes\n")
    with pytest.raises(DamagedDataError, match="line 3: '2, A/0, B/0, yes' is not split, first video"):
        read_splits(tmp_path / "splits.txt")
    (tmp_path / "splits.txt").write_text("header\n")
    with pytest.raises(DamagedDataError, match="holds no pairs"):
        read_splits(tmp_path / "splits.txt")


# -- IJB --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ijb(tmp_path_factory):
    """Thirty loose crops of six identities in ten templates, landmarks, scores, all pairs of templates."""
    root = tmp_path_factory.mktemp("IJBC")
    (root / "meta").mkdir()
    (root / "loose_crop").mkdir()
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    template_ids = rng.choice(1000, 10, replace=False)
    faces, scores, crops = [], [], []
    for number in range(30):
        identity, template = number % 6, template_ids[number % 10]
        noise = rng.integers(-40, 40, (160, 160, 3))
        crop = np.clip(np.kron(coarse[identity], np.ones((20, 20, 1))) + noise, 0, 255).astype(np.uint8)
        encoded = simplejpeg.encode_jpeg(np.ascontiguousarray(crop), quality=95)
        (root / "loose_crop" / f"{number}.jpg").write_bytes(encoded)
        landmarks = TEMPLATE_52 * 1.2 + rng.uniform(5, 20, 2) + rng.normal(0, 1, (5, 2))
        score = rng.uniform(0.3, 1)
        faces.append(f"{number}.jpg {template} {number // 3}")
        scores.append(" ".join(map(str, [f"{number}.jpg", *landmarks.round(3).ravel(), round(score, 4)])))
        crops.append((simplejpeg.decode_jpeg(encoded), landmarks.round(3), round(score, 4)))
    pairs = [(a, b, int(rng.random() < 0.4)) for i, a in enumerate(template_ids) for b in template_ids[:i]]
    meta = root / "meta"
    (meta / "ijbc_face_tid_mid.txt").write_text("\n".join(faces) + "\n")
    (meta / "ijbc_name_5pts_score.txt").write_text("\n".join(reversed(scores)) + "\n")
    (meta / "ijbc_template_pair_label.txt").write_text("".join(f"{a} {b} {s}\n" for a, b, s in pairs))
    return root, faces, crops, pairs


def test_ijb_aligns_pools_and_compares_all_listed_pairs(ijb):
    root, rows, crops, pairs = ijb
    model = Model(Pixels(), Preprocessing(size=112))
    results = Ijb(root=str(root), **SETTINGS).run(model)
    assert list(results) == ["ijbc", "ijbc_detector_score"]
    aligned = [align(pixels, landmarks) for pixels, landmarks, _ in crops]
    embedding_PD = embed_images(model, aligned).summed_PD
    ids, template_R = np.unique([int(row.split()[1]) for row in rows], return_inverse=True)
    faces = FaceList(np.arange(30), template_R, np.array([int(row.split()[2]) for row in rows]))
    first, second, same = (np.array(column) for column in zip(*pairs, strict=True))
    first, second = np.searchsorted(ids, first), np.searchsorted(ids, second)
    for weight_P, key in (
        (None, "ijbc"),
        (np.array([score for _, _, score in crops]), "ijbc_detector_score"),
    ):
        unit = naive_templates(embedding_PD, faces, weight_P)
        cosine = (unit[first] * unit[second]).sum(axis=1)
        result = results[key]
        assert result.pairs == 45 and result.templates == 10 and result.images == 30
        assert result.detector_score is (weight_P is not None)
        assert "IJB-C" in result.protocol and "flip-TTA" in result.protocol
        impostor = np.sort(cosine[same == 0])[::-1]
        threshold = impostor[int(0.1 * len(impostor))]
        assert result.tar_at_far["1e-1"] == pytest.approx((cosine[same == 1] > threshold + 1e-6).mean())
    assert results["ijbc"].auc != results["ijbc_detector_score"].auc


def test_ijb_gives_a_narrow_network_the_middle_of_an_aligned_face(ijb):
    root, _, _, _ = ijb
    lists = read_lists(root / "meta", "ijbc")
    narrow, square = (AlignedCrops(root / "loose_crop", lists, (112, side), root) for side in (96, 112))
    assert all(np.array_equal(narrow.pixels(i), square.pixels(i)[:, 8:-8]) for i in range(30))
    model = Model(Pixels(), Preprocessing(size=[112, 96]))
    assert Ijb(root=str(root), **SETTINGS).run(model)["ijbc"].pairs == 45


def test_ijb_lists_that_do_not_fit_together_are_refused(ijb, tmp_path):
    root, _, _, _ = ijb
    for path in (root / "meta").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    read_lists(tmp_path, "ijbc")
    faces = tmp_path / "ijbc_face_tid_mid.txt"
    whole = faces.read_text()
    faces.write_text(whole + "31.jpg 5 5\n")
    with pytest.raises(DamagedDataError, match=r"5pts_score\.txt: lacks the image '31\.jpg'"):
        read_lists(tmp_path, "ijbc")
    faces.write_text(
        "\n".join(line for line in whole.splitlines() if not line.startswith(("0.", "10.", "20.")))
    )
    with pytest.raises(DamagedDataError, match=r"pair_label\.txt: names template \d+, of which"):
        read_lists(tmp_path, "ijbc")
    faces.write_text(whole + "only_a_name.jpg\n")
    with pytest.raises(
        DamagedDataError, match=r"face_tid_mid\.txt, line 31: 'only_a_name.jpg' is not image name"
    ):
        read_lists(tmp_path, "ijbc")
    scores = tmp_path / "ijbc_name_5pts_score.txt"
    scores.write_text(scores.read_text() + "0.jpg 1 2 3\n")
    faces.write_text(whole)
    with pytest.raises(DamagedDataError, match=r"line 31: .* is not name, five landmarks x y, score"):
        read_lists(tmp_path, "ijbc")


def test_a_missing_crop_is_named(ijb, tmp_path):
    root, _, _, _ = ijb
    (tmp_path / "meta").symlink_to(root / "meta")
    with pytest.raises(MissingDataError, match=r"loose_crop/\d+\.jpg cannot be read: No such file"):
        Ijb(root=str(tmp_path), **SETTINGS).run(Model(Pixels(), Preprocessing(size=112)))


def test_a_crop_or_video_that_is_a_link_out_of_its_folder_is_not_opened(ijb, tmp_path):
    root, _, _, _ = ijb
    model = Model(Pixels(), Preprocessing(size=112))
    (tmp_path / "meta").symlink_to(root / "meta")
    (tmp_path / "loose_crop").mkdir()
    for number in range(30):
        (tmp_path / "loose_crop" / f"{number}.jpg").symlink_to(root / "loose_crop" / f"{number}.jpg")
    with pytest.raises(
        MissingDataError, match=r"\.jpg cannot be read: a link that leads out of .*/loose_crop; put the files"
    ):
        Ijb(root=str(tmp_path), **SETTINGS).run(model)
    (tmp_path / "A").symlink_to(root / "loose_crop")
    (tmp_path / "B").mkdir()
    (tmp_path / "B" / "0").symlink_to(root / "loose_crop")
    for first, second in (("A/0", "B/1"), ("B/0", "B/1")):
        (tmp_path / "splits.txt").write_text(f"1, {first}, {second}, 0\n")
        with pytest.raises(MissingDataError, match=f"{first}: a link that leads out of {tmp_path}; put"):
            Ytf(root=str(tmp_path), **SETTINGS).run(model)


def test_pair_lists_of_either_separator_are_read(tmp_path):
    rng = np.random.default_rng(0)
    expected = np.column_stack([rng.integers(1, 10 ** rng.integers(1, 9, 5000)), rng.integers(1, 99, 5000)])
    same = rng.random(5000) < 0.3
    text = "".join(f"{a} {b} {int(s)}\n" for (a, b), s in zip(expected, same, strict=True))
    path = tmp_path / "pairs.txt"
    for written in (text, text.rstrip(), text.replace("\n", "\r\n"), text.replace(" ", "\t"), text + "\n \n"):
        path.write_bytes(written.encode())
        first, second, issame = read_template_pairs(path)
        np.testing.assert_array_equal(np.column_stack([first, second]), expected)
        np.testing.assert_array_equal(issame, same)
    assert first.dtype == np.int32


@pytest.mark.parametrize("line", ["1 2", "1 2 3", "1 x 0", "-1 2 1", "1 2 0 4", "1 99999999999 1"])
def test_a_wrong_line_of_a_pair_list_is_named(tmp_path, line):
    path = tmp_path / "pairs.txt"
    path.write_text("12 34 1\n" * 30 + line + "\n" + "12 34 1\n" * 30)
    with pytest.raises(DamagedDataError, match=f"line 31: '{line}' is not template 1"):
        read_template_pairs(path)


@pytest.mark.slow
def test_ten_million_pairs_stay_within_a_gigabyte(tmp_path):
    program = """
import numpy as np, resource
from facerec.evaluation.protocols.ijb import judge_pairs
from facerec.vectors import unit_rows
rng = np.random.default_rng(0)
unit = unit_rows(rng.standard_normal((23124, 512), dtype="f4"))
first = np.sort(rng.integers(0, 3531, 15_658_489)).astype("i4")
second = rng.integers(3531, 23124, 15_658_489).astype("i4")
same = rng.random(len(first)) < 0.00125
judge_pairs(unit, first, second, same, images=0, flip=True, detector_score=False, protocol="")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    templates = 2 * 23124 * 512 * 4 / 2**20
    assert int(done.stdout) / 1024 - templates < 1024


def test_ijb_1n_searches_the_probes_in_each_gallery(ijb, tmp_path):
    root, rows, crops, _ = ijb
    (tmp_path / "meta").mkdir()
    (tmp_path / "loose_crop").symlink_to(root / "loose_crop")
    for path in (root / "meta").iterdir():
        (tmp_path / "meta" / path.name).symlink_to(path)
    template_of = [int(row.split()[1]) for row in rows[:10]]  # ten templates, their images ten rows apart
    lists = {"gallery_G1": range(3), "gallery_G2": range(3, 5), "probe_mixed": range(5, 10)}
    subject = [100, 101, 102, 103, 104, 100, 101, 103, 104, 102]
    for name, members in lists.items():
        lines = [f"{template_of[at]},{subject[at]},img/{at}.jpg" for at in members for _ in range(2)]
        (tmp_path / "meta" / f"ijbc_1N_{name}.csv").write_text(
            "\n".join(["TEMPLATE_ID,SUBJECT_ID,FILENAME", *lines])
        )
    model = Model(Pixels(), Preprocessing(size=112))
    results = Ijb(root=str(tmp_path), **SETTINGS).run(model)
    assert sorted(results) == sorted(
        f"ijbc{search}{score}" for search in ("", "_1n_G1", "_1n_G2") for score in ("", "_detector_score")
    )
    aligned = [align(pixels, landmarks) for pixels, landmarks, _ in crops]
    embedding_PD = embed_images(model, aligned).summed_PD
    faces = FaceList(np.arange(30), np.arange(30) % 10, np.array([int(row.split()[2]) for row in rows]))
    unit = naive_templates(embedding_PD, faces)
    probe, gallery = list(lists["probe_mixed"]), list(lists["gallery_G1"])
    expected = identify(unit[probe], np.array(subject)[probe], unit[gallery], np.array(subject)[gallery])
    assert results["ijbc_1n_G1"].cmc == expected.cmc
    assert (results["ijbc_1n_G1"].mated_probes, results["ijbc_1n_G2"].mated_probes) == (3, 2)
    assert "IJB-C 1:N" in results["ijbc_1n_G2"].protocol
    (tmp_path / "meta" / "ijbc_1N_gallery_G2.csv").write_text("TEMPLATE_ID,SUBJECT_ID\n4711,3\n")
    with pytest.raises(DamagedDataError, match=r"gallery_G2\.csv: names template 4711"):
        Ijb(root=str(tmp_path), **SETTINGS).run(model)
    (tmp_path / "meta" / "ijbc_1N_gallery_G2.csv").unlink()
    with pytest.raises(MissingDataError, match=r"gallery_G2\.csv: No such file"):
        Ijb(root=str(tmp_path), **SETTINGS).run(model)
