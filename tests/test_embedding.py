"""Embedding many images, and models rebuilt from checkpoints: nothing depends on how the work is cut up."""

import numpy as np
import pytest
import simplejpeg
import torch
from torch import nn

from facerec import create_backbone, distributed, load_model
from facerec.errors import (
    CheckpointError,
    ConfigError,
    DamagedDataError,
    FacerecError,
    NonFiniteError,
    UserError,
)
from facerec.evaluation.embedding import embed_images
from facerec.evaluation.protocols.verification import evaluate_set
from facerec.images.decode import decode
from facerec.images.preprocessing import Preprocessing
from facerec.models import checkpoint
from facerec.models.model import Model
from facerec.packs.verification import VerificationSet
from tests.several import run_ranks


def jpegs(count, size=112, seed=0):
    """Smooth random images as JPEG files."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, 7, 7, 3), dtype=np.uint8)
    return [
        simplejpeg.encode_jpeg(
            np.ascontiguousarray(np.kron(image, np.ones((size // 7,) * 2 + (1,), np.uint8)))
        )
        for image in coarse
    ]


@pytest.fixture(scope="module")
def images():
    return jpegs(45)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    backbone = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=4, bias=False),
        nn.BatchNorm2d(8),
        nn.PReLU(8),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(8 * 28 * 28, 16),
    )
    backbone[1].running_mean.normal_()
    backbone[1].running_var.uniform_(0.5, 2)
    return Model(backbone)


def close(one, other):
    """Equal to the rounding of float32 sums."""
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_each_row_is_what_the_backbone_says_of_that_image_and_its_mirror(model, images):
    embedded = embed_images(model, images, batch_size=8)
    assert embedded.plain_PD.shape == embedded.mirrored_PD.shape == (45, 16)
    assert embedded.plain_PD.dtype == np.float32
    model.backbone.eval()
    for row in (0, 7, 8, 44):
        pixels = (decode(images[row]).astype(np.float32) - 127.5) / 127.5
        both = torch.from_numpy(np.stack([pixels, pixels[:, ::-1]])).permute(0, 3, 1, 2).contiguous()
        with torch.no_grad():
            plain, mirrored = model.backbone(both).numpy()
        close(embedded.plain_PD[row], plain)
        close(embedded.mirrored_PD[row], mirrored)
    close(embedded.summed_PD, embedded.plain_PD + embedded.mirrored_PD)
    alone = embed_images(model, images, batch_size=8, flip=False)
    assert alone.mirrored_PD is None
    close(alone.summed_PD, embedded.plain_PD)


@pytest.mark.parametrize("batch_size", [1, 7, 44, 45, 46, 500])
def test_batch_size_does_not_matter(model, images, batch_size):
    reference, other = (embed_images(model, images, batch_size=size) for size in (16, batch_size))
    close(other.plain_PD, reference.plain_PD)
    close(other.mirrored_PD, reference.mirrored_PD)


def test_embeddings_are_fetched_a_portion_at_a_time(model, images, monkeypatch):
    reference = embed_images(model, images)
    fetched = []
    cpu = torch.Tensor.cpu

    def counted(tensor):
        fetched.append(tensor.shape[1])
        return cpu(tensor)

    monkeypatch.setattr(torch.Tensor, "cpu", counted)
    monkeypatch.setattr("facerec.evaluation.embedding.PORTION", 20)
    embedded = embed_images(model, images, batch_size=4)
    assert fetched == [20, 20, 4, 1]
    close(embedded.plain_PD, reference.plain_PD)
    close(embedded.mirrored_PD, reference.mirrored_PD)


def test_order_does_not_matter(model, images):
    shuffled = np.random.default_rng(1).permutation(len(images))
    reference = embed_images(model, images, batch_size=16)
    other = embed_images(model, [images[i] for i in shuffled], batch_size=16)
    close(other.plain_PD, reference.plain_PD[shuffled])
    close(other.mirrored_PD, reference.mirrored_PD[shuffled])


def test_encoded_arrays_and_decoded_images_are_taken_as_well(model, images):
    reference = embed_images(model, images).plain_PD
    as_arrays = [np.frombuffer(image, np.uint8) for image in images]
    close(embed_images(model, as_arrays).plain_PD, reference)
    close(embed_images(model, [decode(image) for image in images]).plain_PD, reference)


class Batches(nn.Module):
    """Notes what it was given."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, image_BCHW):
        self.seen.append(image_BCHW)
        return image_BCHW.mean(dim=(2, 3))


def test_batches_have_one_shape_and_are_channels_last(images):
    backbone = Batches()
    embed_images(Model(backbone), images, batch_size=20)
    assert [tuple(batch.shape) for batch in backbone.seen] == [(20, 3, 112, 112)] * 6
    assert all(batch.is_contiguous(memory_format=torch.channels_last) for batch in backbone.seen[0::2])


def test_modes_are_put_back_even_after_an_error(model, images):
    model.backbone.train()
    model.backbone[1].eval()  # a frozen batch norm in a network being trained
    statistics = model.backbone[1].running_mean.clone()
    embed_images(model, images)
    with pytest.raises(DamagedDataError):
        embed_images(model, [*images, b"no image"])
    assert [module.training for module in model.backbone] == [True, False, True, True, True, True]
    assert model.backbone.training
    assert torch.equal(model.backbone[1].running_mean, statistics)
    assert all(parameter.requires_grad for parameter in model.backbone.parameters())


def test_a_damaged_image_is_named_with_its_pair(model, images):
    damaged = [*images[:20], images[20][:200], *images[21:]]
    made = VerificationSet("lfw", damaged, np.array([0, 1, 2, 20, 20, 3]), np.array([True, False, True]))
    with pytest.raises(DamagedDataError, match="the second image of pair 1 in lfw: "):
        evaluate_set(model, made)


def test_an_embedding_that_is_not_finite_is_named(images):
    class Broken(nn.Module):
        def forward(self, image_BCHW):
            embedding = image_BCHW.mean(dim=(2, 3))
            embedding[3, 1] = float("nan")
            return embedding

    said = (
        rf"image 3 of faces, and of {-(-len(images) // 20) - 1} more of {len(images)} images, is not finite"
    )
    with pytest.raises(NonFiniteError, match=said):
        embed_images(Model(Broken()), images, name="faces", batch_size=20)


@pytest.mark.parametrize("flip", [True, False])
def test_an_embedding_too_long_for_float32_is_named_in_place_of_a_zero_row(images, flip):
    class Huge(nn.Module):
        def forward(self, image_BCHW):
            huge = 2e38 if flip else 3e38  # each view is finite, their sum or norm is not
            return torch.full((len(image_BCHW), 3), huge / 3**0.5 if flip else huge)

    with pytest.raises(NonFiniteError, match=r"image 0 of faces, .* or longer than float32 holds"):
        embed_images(Model(Huge()), images, name="faces", flip=flip)
    with pytest.raises(NonFiniteError, match=r"embedding 0 and 1 more of 2 is not finite, or too long"):
        Model(Huge()).embed(np.zeros((2, 112, 112, 3), np.uint8), flip=flip)


def test_what_cannot_be_embedded_is_refused(model):
    with pytest.raises(UserError, match="no images"):
        embed_images(model, [])
    with pytest.raises(UserError, match=r"image 0 of images is uint8 of shape \(8, 8, 3\)"):
        embed_images(model, [np.zeros((8, 8, 3), np.uint8)])
    with pytest.raises(UserError, match=r"returns \(1, 3, 112, 112\) for 1 image"):
        embed_images(Model(nn.Identity()), jpegs(1))


def test_bf16_is_near_and_comes_as_float32(model, images):
    full, half = (embed_images(model, images, precision=name).plain_PD for name in ("fp32", "bf16"))
    assert half.dtype == np.float32
    assert not np.array_equal(full, half)
    np.testing.assert_allclose(half, full, atol=0.05 * np.abs(full).max())


def small_model():
    torch.manual_seed(0)
    return Model(nn.Sequential(nn.Flatten(), nn.Linear(192, 5)), Preprocessing(size=8))


def embedded_on_ranks(folder):
    """Write what each rank gets, and how it fails where an image is damaged or a model breaks."""
    model, rank = small_model(), distributed.rank()
    images = list(np.load(folder / "images.npy"))
    for number in (17, 2, 1):
        embedded = embed_images(model, images[:number], batch_size=4)
        np.save(folder / f"{number}_of_rank{rank}.npy", [embedded.plain_PD, embedded.mirrored_PD])
    broken = Model(nn.Linear(3, 3), Preprocessing(size=8))
    for name, one, given in (
        ("error", model, [*images[:16], b"damaged"]),
        ("failure", model if rank != 1 else broken, images),
    ):
        with pytest.raises((FacerecError, RuntimeError)) as caught:
            embed_images(one, given, name="faces")
        (folder / f"{name}_of_rank{rank}").write_text(f"{caught.typename}: {caught.value}")


def test_any_number_of_processes_gives_every_process_the_same(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (17, 8, 8, 3), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    run_ranks(3, tmp_path, embedded_on_ranks)
    for number in (17, 2, 1):
        expected = embed_images(small_model(), list(images[:number]))
        for rank in range(3):
            plain, mirrored = np.load(tmp_path / f"{number}_of_rank{rank}.npy")
            close(plain, expected.plain_PD)
            close(mirrored, expected.mirrored_PD)
    for rank in range(3):  # the damaged image is in the last rank's part, and stops all of them
        error = (tmp_path / f"error_of_rank{rank}").read_text()
        assert error.startswith("DamagedDataError: ") and "image 16 of faces" in error
        failure = (tmp_path / f"failure_of_rank{rank}").read_text()  # one whose model fails stops all, too
        assert failure.startswith(
            "RuntimeError" if rank == 1 else "FacerecError: process 1 failed: RuntimeError"
        )


# -- the model --------------------------------------------------------------------------------------------


def test_embed_gives_unit_vectors_of_both_views(model, images):
    pixels = np.stack([decode(image) for image in images[:10]])
    raw = embed_images(model, images[:10])
    embedding = model.embed(pixels)
    assert embedding.dtype == torch.float32 and embedding.shape == (10, 16)
    close(embedding, raw.summed_PD / np.linalg.norm(raw.summed_PD, axis=1, keepdims=True))
    close(model.embed(torch.from_numpy(pixels), normalise=False, batch_size=3), raw.summed_PD)
    close(model.embed(pixels, flip=False, normalise=False), raw.plain_PD)
    for wrong in (pixels.astype(np.float32), pixels[0], pixels[:, :100], pixels.transpose(0, 3, 1, 2)):
        with pytest.raises(UserError, match=r"this model takes uint8 RGB of shape \(B, 112, 112, 3\)"):
            model.embed(wrong)


def test_preprocessing_is_what_it_says():
    image = torch.arange(2 * 4 * 4 * 3, dtype=torch.uint8).reshape(2, 4, 4, 3)
    chw = image.permute(0, 3, 1, 2).float()
    close = {"rtol": 0, "atol": 1.2e-7}  # an ulp of 1
    torch.testing.assert_close(Preprocessing(size=4).normalise(image), (chw - 127.5) / 127.5, **close)
    bgr = Preprocessing(size=4, channels="bgr").normalise(image)
    torch.testing.assert_close(bgr, (chw.flip(1) - 127.5) / 127.5, **close)
    given = Preprocessing(mean=[1, 2, 3], std=[4, 5, 6], size=4).normalise(image)
    expected = (chw - torch.tensor([1.0, 2, 3]).view(3, 1, 1)) / torch.tensor([4.0, 5, 6]).view(3, 1, 1)
    torch.testing.assert_close(given, expected)
    assert image[0, 0, 1].tolist() == [3, 4, 5]  # the caller's images are left alone


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("std", 0),
        ("std", [1, 1, -1]),
        ("mean", [1, 2]),
        ("mean", float("inf")),
        ("channels", "rbg"),
        ("size", 0),
    ],
)
def test_preprocessing_out_of_range_is_refused_by_name(key, value):
    with pytest.raises(ConfigError, match=f"input.{key}="):
        Preprocessing(**{key: value})


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A checkpoint as a training run leaves it, and the backbone that is in it."""
    torch.manual_seed(0)
    backbone = create_backbone("mobilefacenet", embedding_size=32).eval()
    state = {
        "config": {
            "backbone": {"name": "mobilefacenet", "embedding_size": 32, "pretrained": None, "lr_scale": 1.0}
        },
        "backbone": backbone.state_dict(),
        "input": Preprocessing(mean=120.0, std=[50, 60, 70], channels="bgr").to_dict(),
        "step": 60000,
        "epoch": 11,
    }
    path = tmp_path_factory.mktemp("run") / "best.pt"
    checkpoint.save(path, state)
    return path, backbone, state


def test_a_checkpoint_alone_rebuilds_backbone_and_preprocessing(saved):
    path, backbone, _ = saved
    loaded = load_model(path, device="cpu")
    assert loaded.input == Preprocessing(mean=120.0, std=[50, 60, 70], channels="bgr")
    assert (loaded.step, loaded.epoch, loaded.path) == (60000, 11, path)
    assert not loaded.backbone.training
    images = np.stack([decode(image) for image in jpegs(3)])
    close(loaded.embed(images), Model(backbone, loaded.input).embed(images))


def test_preprocessing_can_be_overridden(saved):
    path, _, _ = saved
    assert load_model(path, channels="rgb", mean=None).input == Preprocessing(mean=120.0, std=[50, 60, 70])
    assert load_model(path, input={"std": 128, "mean": None}).input.std == 128.0
    with pytest.raises(ConfigError, match=r"input\.chanels=rgb: no such setting; did you mean channels"):
        load_model(path, chanels="rgb")


def test_weights_saved_from_a_wrapped_backbone_load(saved, tmp_path):
    _, backbone, state = saved
    wrapped = {f"module._orig_mod.{key}": value for key, value in backbone.state_dict().items()}
    checkpoint.save(tmp_path / "wrapped.pt", {**state, "backbone": wrapped})
    images = np.stack([decode(image) for image in jpegs(2)])
    close(load_model(tmp_path / "wrapped.pt").embed(images), load_model(saved[0]).embed(images))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"config": {"backbone": {"name": "mobilefacenet", "embedding_size": 64}}},
            "do not fit .* mobilefacenet",
        ),
        (
            {"config": {"backbone": {"name": "mobilfacenet"}}},
            "its backbone mobilfacenet is none of .*, mobilefacenet, .*if a plugin brings it, name it",
        ),
        ({"backbone": None}, "has no backbone, so it is not a checkpoint of a training run"),
        ({"input": None}, "has no input"),
        ({"config": {}}, r"has no config\.backbone\.name"),
    ],
)
def test_a_checkpoint_of_something_else_is_refused(saved, tmp_path, change, message):
    state = {key: value for key, value in {**saved[2], **change}.items() if value is not None}
    checkpoint.save(tmp_path / "other.pt", state)
    with pytest.raises(CheckpointError, match=rf"ckpt=.*other\.pt: .*{message}"):
        load_model(tmp_path / "other.pt")
