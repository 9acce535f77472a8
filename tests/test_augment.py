"""Augmentation: off by default, each change does what its name says, the same for a sample in any batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from facerec.images.augment import CHANGES, INTERPOLATIONS, Augmentation, AugmentSettings, resize
from facerec.images.preprocessing import Preprocessing
from facerec.loading.batch import prepare
from facerec.loading.loader import Loader
from facerec.loading.settings import DataSettings
from facerec.loading.sources import open_faces
from facerec.loading.sources.synthetic import SyntheticImages

SIZE = 40


def images(count: int) -> torch.Tensor:
    faces = SyntheticImages(5, 500, SIZE, SIZE)
    return torch.from_numpy(np.stack([faces.pixels(i) for i in range(count)]))


def changed(count: int = 30, epoch: int = 0, **settings: float) -> tuple[torch.Tensor, torch.Tensor]:
    before = images(count)
    augmentation = Augmentation(AugmentSettings(**settings), 3, epoch, np.arange(count))
    return before, augmentation(before.clone())


def test_nothing_is_changed_by_default() -> None:
    assert not AugmentSettings().active
    before, after = changed()
    assert torch.equal(before, after)
    loader = Loader(SyntheticImages(5, 50), 10)
    assert next(iter(loader.batches(0))).augment is None


@pytest.mark.parametrize("name", CHANGES)
def test_the_wished_part_of_the_images_is_changed(name: str) -> None:
    before, after = changed(count=400, **{name: 0.3})
    differs = (before != after).flatten(1).any(1)
    assert 0.2 < differs.float().mean() < 0.4
    assert after.dtype == torch.uint8
    _, everywhere = changed(**{name: 1.0})
    assert (everywhere != before[:30]).flatten(1).any(1).float().mean() > 0.8


@pytest.mark.parametrize("name", CHANGES)
def test_a_sample_is_changed_alike_in_any_batch_and_otherwise_each_epoch(name: str) -> None:
    before, after = changed(**{name: 1.0})
    order = np.random.default_rng(0).permutation(30)
    settings = AugmentSettings(**{name: 1.0})
    for part in np.split(order, [4, 11]):
        again = Augmentation(settings, 3, 0, part)(before[torch.from_numpy(part)])
        assert torch.equal(again, after[torch.from_numpy(part)])
    if name != "gray":
        assert not torch.equal(changed(epoch=1, **{name: 1.0})[1], after)


def test_crops_are_parts_of_the_image_resized() -> None:
    ramp = torch.arange(SIZE, dtype=torch.uint8).mul(6)[None, :, None].expand(SIZE, SIZE, 3)
    image_BHWC = ramp.expand(20, SIZE, SIZE, 3).clone()
    after = Augmentation(AugmentSettings(crop=1.0, crop_side=0.5), 0, 0, np.arange(20))(image_BHWC)
    widths = (after[:, 0, -1, 0].int() - after[:, 0, 0, 0].int()) / 6
    assert 0.4 * SIZE < widths.min() < 0.7 * SIZE
    assert widths.max() <= SIZE


def test_pasted_images_are_rectangles_at_their_place_on_black() -> None:
    white = torch.full((300, SIZE, SIZE, 3), 255, dtype=torch.uint8)
    before, after = images(300), Augmentation(AugmentSettings(paste=1.0), 0, 0, np.arange(300))(white)
    rows_B, columns_B = ((after[..., 0] == 255).any(dim=axis).sum(1) for axis in (2, 1))
    area_B = (after[..., 0] == 255).sum((1, 2))
    assert torch.equal(area_B, rows_B * columns_B)
    assert 0.18 * SIZE**2 < area_B.min() < 0.3 * SIZE**2 < 0.8 * SIZE**2 < area_B.max() <= SIZE**2
    assert 0.7 < (columns_B / rows_B).min() < 0.85
    assert 1.2 < (columns_B / rows_B).max() < 1.43
    kept = Augmentation(AugmentSettings(paste=1.0), 0, 0, np.arange(300))(before.clone())
    assert torch.equal(kept, torch.where(after > 0, before, 0))


def test_images_are_resized_as_opencv_does() -> None:
    theirs = np.load(Path(__file__).parent / "fixtures" / "opencv_resize.npz")  # opencv-python 5.0.0
    image_CHW = torch.from_numpy(theirs["image"]).permute(2, 0, 1)
    for way in INTERPOLATIONS:
        for side in (5, 9, 12):
            small_CHW = resize(image_CHW, side, side, way)
            back_CHW = resize(image_CHW[:, :side, :side], *image_CHW.shape[1:], way)
            for ours_CHW, name in ((small_CHW, f"{way}_{side}"), (back_CHW, f"{way}_{side}_back")):
                difference = ours_CHW.permute(1, 2, 0).numpy().astype(int) - theirs[name]
                assert np.abs(difference).max() <= (0 if way == "nearest" else 1), name


def test_low_resolution_and_blur_take_fine_detail_and_keep_the_mean() -> None:
    for name in ("low_resolution", "blur"):
        before, after = changed(**{name: 1.0})
        assert (after.float().diff(dim=2).abs().mean() < 0.8 * before.float().diff(dim=2).abs().mean()).item()
        assert abs(after.float().mean() - before.float().mean()) < 3


def test_gray_images_have_equal_channels() -> None:
    _, after = changed(gray=1.0)
    assert torch.equal(after[..., 0], after[..., 1])
    assert torch.equal(after[..., 0], after[..., 2])


def test_colour_changes_stay_within_their_strength() -> None:
    gray = torch.full((50, SIZE, SIZE, 3), 100, dtype=torch.uint8)
    after = Augmentation(AugmentSettings(color=1.0, color_strength=0.2), 0, 0, np.arange(50))(gray)
    assert 79 <= after.min() < 90
    assert 110 < after.max() <= 121


def test_cutouts_are_gray_squares() -> None:
    black = torch.zeros(50, SIZE, SIZE, 3, dtype=torch.uint8)
    after = Augmentation(AugmentSettings(cutout=1.0, cutout_side=0.5), 0, 0, np.arange(50))(black)
    for image_HWC in after:
        rows = (image_HWC == 128).any(dim=2).any(dim=1).sum().item()
        assert 1 <= rows <= SIZE // 2
        assert (image_HWC == 128).sum().item() == rows * rows * 3


def test_jpeg_noise_grows_as_quality_falls() -> None:
    before, good = changed(jpeg=1.0, jpeg_quality=95)
    _, bad = changed(jpeg=1.0, jpeg_quality=5)
    assert 0 < (before.float() - good.float()).abs().mean() < (before.float() - bad.float()).abs().mean()


def test_prepared_batches_are_augmented_and_stay_as_they_were_loaded() -> None:
    faces = SyntheticImages(5, 50, SIZE, SIZE)
    data = DataSettings(size=SIZE, augment={"gray": 1.0}, mirror=False)
    (batch, *_) = Loader(faces, 10, data).batches(0)
    before = batch.image_BHWC.clone()
    image_BCHW, _ = prepare(batch, torch.device("cpu"), Preprocessing(size=SIZE))
    assert torch.equal(image_BCHW[:, 0], image_BCHW[:, 1])
    assert torch.equal(batch.image_BHWC, before)
    again, _ = prepare(batch, torch.device("cpu"), Preprocessing(size=SIZE))
    assert torch.equal(image_BCHW, again)


def test_real_faces_can_be_changed_in_every_way_at_once(tmp_path: Path) -> None:
    faces = open_faces(DataSettings(kind="orl", root=str(tmp_path)))
    everything = DataSettings(augment=dict.fromkeys(CHANGES, 0.5))
    batch = next(iter(Loader(faces, 60, everything).batches(0)))
    image_BCHW, _ = prepare(batch, torch.device("cpu"), Preprocessing())
    assert image_BCHW.shape == (60, 3, 112, 112)
    assert image_BCHW.abs().max() <= 1 + 1e-6
