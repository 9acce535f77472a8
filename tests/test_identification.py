"""Identification against naive recomputation: ranks, open-set rates, MegaFace, folders."""

import json
import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from facerec import distributed
from facerec.errors import MissingDataError, NonFiniteError, UserError
from facerec.evaluation.overlap import overlap_notes
from facerec.evaluation.protocols.identification import Identification, identify
from facerec.evaluation.protocols.megaface import Megaface, megaface
from facerec.evaluation.statistics.search import Highest, PrefixMaxima, TopK, cosine_blocks, unit
from facerec.images.preprocessing import Preprocessing
from facerec.models.model import Model
from tests.several import run_ranks
from tests.small_networks import Pixels


def normalised(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def embeddings_of(count, images, noise, seed=0, size=16):
    """Embeddings of `count` identities, `images` of each, of any norm; and who they are."""
    rng = np.random.default_rng(seed)
    identity = np.repeat(np.arange(count), images)
    raw = rng.normal(size=(count, size))[identity] + noise * rng.normal(size=(len(identity), size))
    return (raw * rng.uniform(1, 30, (len(raw), 1))).astype(np.float32), identity


# -- search -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [1, 7, 64, 128, 384, 1000])
@pytest.mark.parametrize("k", [1, 5, 40])
def test_the_running_top_k_is_the_top_k_of_the_whole(block, k):
    rng = np.random.default_rng(0)
    probe, gallery = rng.normal(size=(30, 8)), rng.normal(size=(1000, 8))
    cosine = normalised(probe) @ normalised(gallery).T
    top = TopK(30, k)
    for first, cosine_PB in cosine_blocks(unit(probe), gallery, block):
        top.add(first, cosine_PB)
    expected = np.argsort(-cosine, axis=1)[:, :k]
    np.testing.assert_array_equal(top.index_PK, expected)
    np.testing.assert_allclose(top.score_PK, np.take_along_axis(cosine, expected, 1), atol=1e-6)


def test_fewer_entries_than_are_kept_leave_places_free():
    top = TopK(2, 5)
    top.add(0, torch.tensor([[0.1, 0.3], [0.2, 0.0]]))
    top.add(2, torch.tensor([[0.2], [0.4]]))
    assert top.index_PK.tolist() == [[1, 2, 0, -1, -1], [2, 0, 1, -1, -1]]


def test_equal_entries_stay_in_their_order():
    top = TopK(1, 3)
    for first in range(0, 8, 2):
        top.add(first, torch.tensor([[0.5, 0.5]]))
    assert top.index_PK.tolist() == [[0, 1, 2]]


@pytest.mark.parametrize("block", [1, 9, 100, 1000])
def test_maxima_of_the_first_entries(block):
    rng = np.random.default_rng(1)
    probe, gallery = rng.normal(size=(20, 8)), rng.normal(size=(300, 8))
    cosine = normalised(probe) @ normalised(gallery).T
    maxima = PrefixMaxima(20, [1, 10, 100, 300])
    for first, cosine_PB in cosine_blocks(unit(probe), gallery, block):
        maxima.add(first, cosine_PB)
    expected = np.column_stack([cosine[:, :cut].max(axis=1) for cut in (1, 10, 100, 300)])
    np.testing.assert_allclose(maxima.maximum_PC, expected, atol=1e-6)


@pytest.mark.parametrize("count", [1, 3, 100, 5999, 6000, 9000])
@pytest.mark.parametrize("width", [17, 128, 150, 300])
def test_the_highest_of_all_values_are_kept(count, width):
    values = torch.randn(20, 300, generator=torch.Generator().manual_seed(0))
    highest = Highest(count)
    for first in range(0, 300, width):
        highest.add(values[:, first : first + width])
    assert torch.equal(highest.values(), values.flatten().sort(descending=True).values[:count])


def test_a_gallery_may_come_in_portions_and_need_not_be_in_memory(tmp_path):
    rng = np.random.default_rng(0)
    gallery = rng.normal(size=(50, 8)).astype(np.float32)
    np.save(tmp_path / "gallery.npy", gallery)
    mapped = np.load(tmp_path / "gallery.npy", mmap_mode="r")
    probe = unit(gallery[:3])
    for source in (mapped, iter([gallery[:20], gallery[20:21], gallery[21:]]), torch.from_numpy(gallery)):
        parts = [(first, part.clone()) for first, part in cosine_blocks(probe, source, 16)]
        assert [first for first, _ in parts] == np.cumsum([0, *[p.shape[1] for _, p in parts[:-1]]]).tolist()
        np.testing.assert_allclose(
            torch.cat([part for _, part in parts], dim=1),
            normalised(gallery[:3]) @ normalised(gallery).T,
            atol=1e-6,
        )


def test_entries_that_cannot_be_compared_are_named():
    gallery = np.ones((40, 4))
    gallery[33, 1] = np.nan
    with pytest.raises(NonFiniteError, match="gallery entry 33 is not finite"):
        list(cosine_blocks(unit(np.ones((2, 4))), gallery, 16))
    with pytest.raises(UserError, match="gallery embeddings have 5 numbers, probes 4"):
        list(cosine_blocks(unit(np.ones((2, 4))), np.ones((3, 5))))
    assert unit(np.zeros((1, 3))).tolist() == [[0, 0, 0]]


# -- gallery and probes -----------------------------------------------------------------------------------


def naive_ranks(probe, probe_identity, gallery, gallery_identity, distractors):
    """Rank of each probe's identity among all identities by their best entries; None without a mate."""
    cosine = normalised(probe) @ normalised(gallery).T
    others = normalised(probe) @ normalised(distractors).T if len(distractors) else np.empty((len(probe), 0))
    ranks = []
    for row, identity in enumerate(probe_identity):
        best = {one: cosine[row, gallery_identity == one].max() for one in np.unique(gallery_identity)}
        if identity not in best:
            ranks.append(None)
            continue
        mate = best.pop(identity)
        ranks.append(1 + sum(score >= mate for score in [*best.values(), *others[row]]))
    return ranks


@pytest.mark.parametrize("per_identity", [1, 4])
@pytest.mark.parametrize("distractors", [0, 70])
def test_ranks_and_open_set_rates_equal_the_definition(per_identity, distractors):
    embedding, identity = embeddings_of(40, 8, noise=1.2)
    enrolled = (identity < 25) & (np.arange(320) % 8 < per_identity)
    searched = np.arange(320) % 8 >= 4
    gallery, gallery_identity = embedding[enrolled], identity[enrolled]
    probe, probe_identity = embedding[searched], identity[searched]
    others = embeddings_of(distractors or 1, 1, noise=0, seed=9)[0][:distractors]
    result = identify(probe, probe_identity, gallery, gallery_identity, distractors=others, ranks=12)

    ranks = naive_ranks(probe, probe_identity, gallery, gallery_identity, others)
    mated = np.array([rank is not None for rank in ranks])
    rank = np.array([rank or 0 for rank in ranks])
    assert result.cmc == [pytest.approx((rank[mated] <= k).mean()) for k in range(1, 13)]
    assert result.rank == {"1": result.cmc[0], "5": result.cmc[4]}
    longer = identify(probe, probe_identity, gallery, gallery_identity, distractors=others)
    assert longer.rank == result.rank | {"20": longer.cmc[19]}
    assert 0.1 < result.cmc[0] < result.cmc[11] <= 1
    counted = (result.probes, result.mated_probes, result.gallery, result.identities, result.distractors)
    assert counted == (160, 100, 25 * per_identity, 25, distractors)

    everyone = np.concatenate([gallery, others]) if distractors else gallery
    top = (normalised(probe) @ normalised(everyone).T).max(axis=1)
    for target in ("1e-1",):
        threshold = min(t for t in np.unique(top) if (top[~mated] > t).mean() <= float(target))
        found = (rank[mated] == 1) & (top[mated] > threshold)
        assert result.tpir_at_fpir[target] == pytest.approx(found.mean(), abs=1e-9)
    assert result.tpir_at_fpir["1e-2"] is None
    assert "1e-2, 1e-3, 1e-4 needs more than the 60 non-mated probes" in result.notes[0]


def test_a_tie_with_another_identity_is_not_a_success():
    result = identify(np.ones((1, 3)), ["a"], np.ones((2, 3)), ["b", "a"], ranks=2)
    assert result.cmc == [0.0, 1.0]


def test_zero_embeddings_find_nobody():
    gallery = np.eye(3)
    assert identify(np.zeros((2, 3)), [0, 1], gallery, [0, 1, 2], ranks=1).rank == {"1": 0.0}


@pytest.mark.parametrize("ranks", [1, 2, 20])
def test_a_model_that_gives_everyone_one_embedding_identifies_nobody(ranks):
    identity = np.arange(40).repeat(2)
    result = identify(np.ones((80, 3)), identity, np.ones((80, 3)), identity, ranks=ranks)
    assert result.cmc == [0.0] * ranks


def test_names_and_numbers_are_identities():
    embedding, identity = embeddings_of(10, 2, noise=0.1)
    names = np.array([f"identity {one}" for one in identity])
    by_name = identify(embedding[1::2], names[1::2], embedding[0::2], names[0::2])
    assert (
        by_name.to_dict()
        == identify(embedding[1::2], identity[1::2], embedding[0::2], identity[0::2]).to_dict()
    )
    assert by_name.log_lines("orl", 7)[0] == f"[orl][7]Rank-1: {by_name.rank['1']:.5f}"


def test_what_cannot_be_identified_is_refused():
    with pytest.raises(UserError, match="no probe's identity is in the gallery"):
        identify(np.ones((1, 3)), ["a"], np.ones((1, 3)), ["b"])
    with pytest.raises(UserError, match="3 identities for 1 gallery entries and 1 probes"):
        identify(np.ones((1, 3)), ["a", "b"], np.ones((1, 3)), ["b"])


# -- MegaFace ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("as_portions", [False, True])
def test_megaface_equals_the_definition(monkeypatch, as_portions):
    monkeypatch.setattr("facerec.evaluation.protocols.megaface.MEGAFACE_FAR", "1e-3")
    monkeypatch.setattr("facerec.evaluation.statistics.search.BLOCK", 128)
    probe, identity = embeddings_of(6, 7, noise=1.5)
    order = np.random.default_rng(5).permutation(len(probe))
    probe, identity = probe[order], identity[order]
    distractor, _ = embeddings_of(1000, 1, noise=0, seed=3)
    given = iter([distractor[:333], distractor[333:]]) if as_portions else distractor
    result = megaface(probe, identity, given, 1000, cuts=(10, 100, 1000, 10_000))

    impostor = normalised(probe) @ normalised(distractor).T
    hits = {10: [], 100: [], 1000: []}
    mates = []
    for i in range(len(probe)):
        for j in range(len(probe)):
            if i != j and identity[i] == identity[j]:
                cosine = float(normalised(probe)[i] @ normalised(probe)[j])
                mates.append(cosine)
                for cut, found in hits.items():
                    found.append(cosine > impostor[i, :cut].max())
    assert {cut: result.rank1[str(cut)] for cut in hits} == {cut: np.mean(hit) for cut, hit in hits.items()}
    assert 0 < result.rank1["1000"] < result.rank1["10"] < 1
    assert result.rank1["10000"] is None
    allowed = int(1e-3 * impostor.size)
    threshold = np.sort(impostor.ravel())[::-1][allowed]
    assert result.tar_at_far["1e-3"] == pytest.approx(np.mean(np.array(mates) > threshold))
    assert (result.probes, result.identities, result.mate_pairs, result.distractors) == (42, 6, 252, 1000)
    assert result.log_lines("megaface")[0] == f"[megaface][0]Rank-1@10: {result.rank1['10']:.5f}"


def test_megaface_says_what_its_numbers_do_not_support():
    probe, identity = embeddings_of(4, 2, noise=0.5)
    distractor, _ = embeddings_of(50, 1, noise=0, seed=3)
    result = megaface(np.concatenate([probe, distractor[:1]]), [*identity, 99], distractor)
    assert result.rank1["100"] is None and result.tar_at_far["1e-6"] is None
    notes = " ".join(result.notes)
    assert "rank-1 at 100, 1000, 10000, 100000, 1000000 needs more than the 50 distractors" in notes
    assert "TAR at FAR 1e-6 needs more than the 450 impostor pairs" in notes
    assert "1 probe without a mate" in notes


def test_megaface_refuses_what_makes_no_sense():
    probe, identity = embeddings_of(4, 2, noise=0.5)
    with pytest.raises(UserError, match="no identity of the probe set has two images"):
        megaface(probe[::2], identity[::2], probe)
    with pytest.raises(UserError, match="8 distractors came, 9 were announced"):
        megaface(probe, identity, iter([probe]), 9)
    with pytest.raises(UserError, match="needs distractors"):
        megaface(probe, identity, iter([probe]))


# -- folders ----------------------------------------------------------------------------------------------


@pytest.fixture
def model():
    return Model(Pixels(), Preprocessing(size=8))


def write_folders(root, names, images, seed, noise=25):
    """Images of identities in a folder each; the same name gives similar images whatever the seed."""
    rng = np.random.default_rng(seed)
    for name in names:
        face = np.random.default_rng([ord(letter) for letter in name]).integers(60, 190, (8, 8, 3))
        (root / name).mkdir(parents=True)
        for number in range(images):
            noisy = face + rng.integers(-noise, noise + 1, face.shape)
            Image.fromarray(noisy.astype(np.uint8)).save(root / name / f"{number}.png")
    return root


def embedded(model, root):
    paths = sorted(root.rglob("*.png"))
    images = np.stack([np.asarray(Image.open(path)) for path in paths])
    return model.embed(images).numpy(), [path.relative_to(root).parts[0] for path in paths]


def identified(model, gallery, probes, **settings):
    protocol = Identification(gallery=str(gallery), probes=str(probes), **settings)
    return protocol.run(model)["identification"]


def test_folders_are_gallery_probes_and_distractors(model, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("facerec.evaluation.embedding.PORTION", 5)
    caplog.set_level(logging.INFO)
    gallery = write_folders(tmp_path / "gallery", "abcdefgh", 1, seed=1, noise=60)
    probes = write_folders(tmp_path / "probes", "abcdefghxyz", 3, seed=2, noise=60)
    others = write_folders(tmp_path / "others" / "deep", "klmnop", 2, seed=3)
    (gallery / "a" / "notes.txt").write_text("no image")
    Image.new("RGB", (8, 8)).save(gallery / "loose.png")
    result = identified(model, gallery, probes, batch_size=4, distractors=str(tmp_path / "others"))
    (gallery / "loose.png").unlink()
    (probe_PD, probe_names), (gallery_GD, gallery_names) = embedded(model, probes), embedded(model, gallery)
    expected = identify(
        probe_PD, probe_names, gallery_GD, gallery_names, distractors=embedded(model, others)[0]
    )
    assert result.cmc == expected.cmc and result.tpir_at_fpir == expected.tpir_at_fpir
    assert (result.distractors, result.probes, result.mated_probes) == (12, 33, 24)
    assert "flip-TTA" in result.protocol
    assert f"[identification][0]Rank-1: {result.rank['1']:.5f}" in caplog.text


def test_noisy_images_are_left_out(model, tmp_path, caplog):
    gallery = write_folders(tmp_path / "gallery", "ab", 1, seed=1)
    probes = write_folders(tmp_path / "probes", "ab", 3, seed=2)
    listed = tmp_path / "noisy.txt"
    listed.write_text("# wrong identity\na/1.png\n\nb/7.png\n")
    result = identified(model, gallery, probes, leave_out=str(listed))
    assert (result.probes, result.gallery) == (5, 2)
    assert "1 listed image left out" in result.notes
    assert "not there, of 2 images to leave out: 1, e.g. b/7.png" in caplog.text
    with pytest.raises(MissingDataError, match=r"nowhere\.txt: No such file"):
        identified(model, gallery, probes, leave_out=str(tmp_path / "nowhere.txt"))


def test_megaface_from_folders(model, tmp_path, monkeypatch):
    monkeypatch.setattr("facerec.evaluation.embedding.PORTION", 7)
    probes = write_folders(tmp_path / "probes", "abcd", 4, seed=1, noise=60)
    others = write_folders(tmp_path / "distractors", "klmnopqrst", 3, seed=2)
    (tmp_path / "noisy.txt").write_text("k/0.png\n")
    folders = {key: str(tmp_path / key) for key in ("probes", "distractors")}
    settings = Megaface(**folders, seed=4, leave_out=str(tmp_path / "noisy.txt"), cuts=[10, 29])
    result = settings.run(model)["megaface"]
    probe_PD, names = embedded(model, probes)
    distractor, _ = embedded(model, others)
    distractor = distractor[1:][np.random.default_rng(4).permutation(29)]
    assert result.rank1 == megaface(probe_PD, names, distractor, cuts=(10, 29)).rank1
    assert result.distractors == 29 and "seed 4" in result.protocol


def judged_on_ranks(folder):
    """Write what each rank finds of the folders of both protocols, under its number."""
    model = Model(Pixels(), Preprocessing(size=8))
    found = identified(model, folder / "gallery", folder / "probes")
    paths = {"probes": str(folder / "probes"), "distractors": str(folder / "gallery")}
    mega = Megaface(**paths, cuts=[4]).run(model)["megaface"]
    numbers = [found.cmc, found.rank_interval, mega.rank1, mega.rank1_interval]
    (folder / f"{distributed.rank()}.json").write_text(json.dumps(numbers))


def test_rank_zero_alone_draws_the_intervals_which_are_those_of_one_process(tmp_path):
    write_folders(tmp_path / "gallery", "abcdef", 1, seed=1, noise=60)
    write_folders(tmp_path / "probes", "abcdef", 3, seed=2, noise=60)
    judged_on_ranks(tmp_path)
    alone = json.loads((tmp_path / "0.json").read_text())
    run_ranks(2, tmp_path, judged_on_ranks)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first == alone
    assert (second[0], second[2]) == (first[0], first[2])
    assert all(first[1].values()) and first[3]["4"]
    assert not any([*second[1].values(), *second[3].values()])


def test_missing_folders_are_said(model, tmp_path):
    with pytest.raises(MissingDataError, match="gallery cannot be read: No such file"):
        identified(model, tmp_path / "gallery", tmp_path)
    (tmp_path / "gallery").mkdir()
    with pytest.raises(MissingDataError, match="gallery: holds no images"):
        identified(model, tmp_path / "gallery", tmp_path)
    Image.new("RGB", (8, 8)).save(tmp_path / "gallery" / "loose.png")
    with pytest.raises(MissingDataError, match="gallery: no images in folders of identities"):
        identified(model, tmp_path / "gallery", tmp_path)


def test_identities_of_the_training_set_in_the_test_are_a_warning(model, tmp_path, caplog):
    trained = Model(Pixels(), Preprocessing(size=8), identities=["Adam_Brody", "Zoe", "17"])
    notes = overlap_notes(trained, ["adam brody", "17", "Berta"], "FaceScrub")
    assert notes == ["the training set holds 1 identity of FaceScrub (adam brody): its numbers are too good"]
    assert notes[0] in caplog.text
    assert overlap_notes(model, ["adam brody"], "FaceScrub") == []
    accented = replace(trained, identities=["José-María_Aznar"])
    assert "(jose maria aznar)" in str(overlap_notes(accented, ["jose maria aznar"], "LFW"))
    gallery = write_folders(tmp_path / "gallery", ["Zoe", "b"], 1, seed=1)
    probes = write_folders(tmp_path / "probes", ["Zoe", "b"], 2, seed=2)
    assert "the training set holds 1 identity of identification" in str(
        identified(trained, gallery, probes).notes
    )
