"""Preprocessing that was not said is checked: a model that wants BGR, or other numbers, says so itself."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from torch import nn

from facerec.evaluation.sanity import COMMON, check_preprocessing
from facerec.evaluation.settings import EvalSettings
from facerec.images.preprocessing import Preprocessing
from facerec.models.model import Model
from facerec.packs.verification import verification_set
from tests.foreign_files import SIZE, Colour, red_identities

IDENTITIES = red_identities()
RED_OF_RGB, RED_OF_BGR = 0, 2


def checked(backbone: nn.Module, **input: object) -> Preprocessing | None:
    return check_preprocessing(Model(backbone, Preprocessing(size=SIZE, **input)), IDENTITIES, EvalSettings())  # type: ignore[arg-type]


def test_a_model_that_wants_bgr_is_found_out_in_one_line_with_what_to_type(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO):
        better = checked(Colour(RED_OF_BGR))
    assert better == Preprocessing(size=SIZE, channels="bgr")
    (record,) = [one for one in caplog.records if one.levelno >= logging.WARNING]
    line = record.getMessage()
    assert "\n" not in line and line.endswith("say input.channels=bgr")
    assert "the preprocessing looks wrong: on 120 pairs of red, 16×16 bgr" in line


def test_a_model_that_is_given_what_it_wants_is_left_in_peace(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert checked(Colour(RED_OF_BGR), channels="bgr") is None
        assert checked(Colour(RED_OF_RGB)) is None
    assert [one.levelno for one in caplog.records] == [logging.INFO] * 2
    assert "no other common one reads clearly better" in caplog.text


def test_a_wrong_normalisation_is_found_out(caplog: pytest.LogCaptureFixture) -> None:
    """Colour tells identities apart above and below the middle grey: x/255 has nothing below it."""
    better = checked(Colour(RED_OF_RGB), mean=0.0, std=255.0)
    assert better is not None and better.mean != 0.0 and better.channels == "rgb"
    assert "say " in caplog.text and "input.mean=" in caplog.text


def test_both_wrong_at_once_are_found_out(caplog: pytest.LogCaptureFixture) -> None:
    better = checked(Colour(RED_OF_BGR), mean=0.0, std=1.0)
    assert better is not None and better.channels == "bgr" and better.mean != 0.0
    assert "say input.channels=bgr " in caplog.text


def test_numbers_of_three_channels_are_quoted_for_the_shell(caplog: pytest.LogCaptureFixture) -> None:
    class Wants(nn.Module):
        """Sees anything only where images are prepared as for ImageNet: what is between −2.2 and 2.7."""

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            mean = nn.functional.avg_pool2d(image[:, :1], 4).flatten(1)
            return torch.where(
                mean.abs().amax(1, keepdim=True) > 1.3, mean.clamp(-3, 3), torch.ones_like(mean)
            )

    better = checked(Wants())
    assert better == Preprocessing(size=SIZE, mean=COMMON[3][0], std=COMMON[3][1])
    assert "'input.mean=[123.675,116.28,103.53]' 'input.std=[58.395,57.12,57.375]'" in caplog.text


@pytest.mark.parametrize("seed", range(6))
def test_networks_that_know_nothing_raise_no_alarm(seed: int) -> None:
    torch.manual_seed(seed)
    backbone = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.PReLU(), nn.Flatten(), nn.Linear(8 * 49, 8))
    generator = np.random.default_rng(seed)
    chance = [
        np.ascontiguousarray(one) for one in generator.integers(0, 256, (160, SIZE, SIZE, 3), dtype=np.uint8)
    ]
    made = verification_set("chance", [one.tobytes() for one in chance], np.arange(80) % 2 == 0)
    decoded = type(made)(made.name, chance, made.index_2N, made.issame_N)  # type: ignore[arg-type]
    assert (
        check_preprocessing(Model(backbone.eval(), Preprocessing(size=SIZE)), decoded, EvalSettings()) is None
    )


def test_weights_that_tell_nobody_apart_under_any_preprocessing_are_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert checked(Colour(1)) is None, "the middle channel of both orders is chance"
    assert "the weights look wrong: on 120 pairs of red no common preprocessing separates" in caplog.text


def test_a_preprocessing_that_overflows_is_not_the_right_one(caplog: pytest.LogCaptureFixture) -> None:
    class Narrow(Colour):
        """Knows numbers up to 100, as fp16 knows some thousands."""

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return torch.where(image.abs().amax() > 100, torch.inf, super().forward(image))

    with caplog.at_level(logging.INFO):
        assert checked(Narrow(RED_OF_RGB)) is None
    assert "no other common one reads clearly better" in caplog.text


def test_pairs_of_one_kind_cannot_be_checked(caplog: pytest.LogCaptureFixture) -> None:
    alike = type(IDENTITIES)(
        "alike", IDENTITIES.images, IDENTITIES.index_2N, np.ones_like(IDENTITIES.issame_N)
    )
    with caplog.at_level(logging.INFO):
        model = Model(Colour(RED_OF_BGR), Preprocessing(size=SIZE))
        assert check_preprocessing(model, alike, EvalSettings()) is None
    assert "alike has pairs of one kind only" in caplog.text
