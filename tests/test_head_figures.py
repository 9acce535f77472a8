"""Figures of the heads show what the formulas say, and one command makes them."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from facerec.cli.base import reported
from facerec.cli.figures import FIGURES, run
from facerec.errors import ConfigError, UserError
from facerec.figures import digits as digit_figures
from facerec.figures import heads as head_figures
from facerec.figures.heads import CURVES, target_logit
from facerec.heads import HEADS
from facerec.heads.base import ClassHead, MarginHead

ANGLES = torch.linspace(0.01, math.pi - 0.01, 50, dtype=torch.float64)
COSINE = ANGLES.cos()


def test_every_head_of_the_curves_is_registered_and_can_be_scattered() -> None:
    drawn = {line.head for lines in CURVES.values() for line in lines}
    assert drawn <= set(HEADS.names()) and drawn <= set(digit_figures.drawable())


@pytest.mark.parametrize(
    ("name", "parameters", "norm", "right"),
    [
        ("softmax", {}, 3.0, COSINE),
        ("l2softmax", {}, 3.0, COSINE),
        ("normface", {}, 3.0, COSINE),
        ("center", {"lambda_c": 0.0}, 3.0, COSINE),
        ("adacos", {}, 1.0, COSINE),
        ("cosface", {"m": 0.2}, 1.0, COSINE - 0.2),
        (
            "arcface",
            {"m": 0.02},
            1.0,
            torch.where(math.pi > ANGLES + 0.02, (ANGLES + 0.02).cos(), COSINE - 4e-4),
        ),
        (
            "sphereface",
            {"m": 2, "base": 0.0, "lambda_min": 0.0},
            5.0,
            torch.where(math.pi / 2 > ANGLES, 1, -1) * (2 * ANGLES).cos()
            - torch.where(math.pi / 2 > ANGLES, 0, 2),
        ),
        ("sphereface2", {"t": 1.0, "m": 0.2}, 1.0, COSINE - 0.2),
        ("circle", {"m": 0.25}, 1.0, (1.25 - COSINE) * (COSINE - 0.75)),
        ("sface", {}, 1.0, COSINE / (1 + torch.exp(-80 * (ANGLES - 0.87)))),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_target_logit_is_that_of_the_formula(
    name: str, parameters: dict, norm: float, right: torch.Tensor
) -> None:
    curve = target_logit(name, ANGLES, norm, **parameters)
    torch.testing.assert_close(curve, right.double(), rtol=1e-7, atol=1e-7)


def test_a_new_head_is_drawn_by_its_target_logit_and_another_is_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Halved(MarginHead):
        def target(self, cosine_B: torch.Tensor, norm_B: torch.Tensor) -> torch.Tensor:
            return cosine_B / 2

    class Bare(ClassHead):
        pass

    HEADS.names()
    monkeypatch.setattr(HEADS, "_builders", HEADS._builders | {"halved": Halved, "bare": Bare})
    caplog.set_level("INFO")
    panel = head_figures.target_curves().axes[8]
    assert panel.get_title() == "further heads"
    _, curve = panel.lines
    assert curve.get_label() == "halved"
    np.testing.assert_allclose(curve.get_ydata(), np.cos(np.radians(curve.get_xdata())) / 2)
    assert "logits: not drawn: head=bare: it has no `target_logit`" in caplog.messages
    assert any("head=triplet: " in message for message in caplog.messages)


def test_quality_and_hard_negatives_move_the_curves() -> None:
    angle = (ANGLES + 0.4).clamp(1e-3, math.pi - 1e-3)
    worst = target_logit("adaface", ANGLES, 1.0, h=1e9)  # a length far below the running mean
    torch.testing.assert_close(worst, angle.cos(), rtol=1e-6, atol=1e-6)
    hard, none = target_logit("npcface", ANGLES, hard=0.6), target_logit("npcface", ANGLES)
    assert (hard[:20] < none[:20]).all()


def test_arcface_wins_where_its_angle_is_smaller_by_the_margin() -> None:
    own, other = torch.tensor([0.2, 0.2, 1.0]).double(), torch.tensor([0.8, 0.6, 1.4]).double()
    assert head_figures._wins("arcface", own, other).tolist() == [True, False, False]
    assert head_figures._wins("softmax", own, other).tolist() == [True, True, True]
    assert head_figures._wins("softmax", own, other, 1, 1.5).tolist() == [False, False, True]
    others = torch.tensor([1.3, 1.1, 1.4]).double()  # at rest: own angle below a = 0.87, the other's above b
    assert head_figures._wins("sface", own, others).tolist() == [True, False, False]


def test_sface_figure_follows_its_parameters() -> None:
    axes = head_figures.sface_gradients(k=20, a=0.5, b=1.0).axes[0]
    _, pull, push = (line.get_ydata() for line in axes.lines[:3])
    degrees = axes.lines[0].get_xdata()
    radians = np.radians(degrees)
    np.testing.assert_allclose(pull, np.sin(radians) / (1 + np.exp(-20 * (radians - 0.5))), atol=1e-7)
    np.testing.assert_allclose(push, np.sin(radians) / (1 + np.exp(20 * (radians - 1.0))), atol=1e-7)


def test_scaled_softmax_shows_the_softmax() -> None:
    axes = head_figures.scaled_softmax((1, 10)).axes[0]
    heights = [bar.get_height() for bar in axes.containers[1]]
    exponential = np.exp(10 * np.array([1, 0.8, 0.6, 0.4, 0.2]))
    np.testing.assert_allclose(heights, exponential / exponential.sum())


def test_networks_learn_the_digits() -> None:
    digits = digit_figures.load()
    start = digit_figures.warm_start(digits, 3, 120)
    for name in ("arcface", "triplet", "subcenter"):
        embedding, direction = digit_figures.trained_on(start, digits, name, 20)
        assert embedding.shape == (1797, 3)
        assert digit_figures.accuracy(embedding, direction, digits) > 0.8


def test_one_command_writes_them_as_png_and_svg(tmp_path: Path) -> None:
    small = ["--out", str(tmp_path), "--steps", "2", "--heads", "softmax,subcenter,contrastive"]
    assert run(small) == 0
    for name in FIGURES:
        png = (tmp_path / f"heads_{name}.png").read_bytes()
        width, height = struct.unpack(">II", png[16:24])
        assert width >= 900 and height >= 400
        assert "<svg" in (tmp_path / f"heads_{name}.svg").read_text()[:600]


def test_same_figure_is_the_same_file_and_what_was_written_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("one", "two"):
        run(["scale", "--formats", "svg", "--out", str(tmp_path / folder)])
        assert capsys.readouterr().out == f"wrote 1 figure to {tmp_path / folder}, as svg\n"
    one, two = (tmp_path / folder / "heads_scale.svg" for folder in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


def test_mistakes_are_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="scater: no such figure; did you mean scatter"):
        run(["scater"])
    with pytest.raises(ConfigError, match=r"--formats=gif: must be some of png,svg,pdf"):
        run(["scale", "--formats", "gif"])
    with pytest.raises(ConfigError, match=r"head\.k=-1"):
        run(["sface", "--k", "-1", "--out", str(tmp_path)])
    assert reported("facerec-figures", lambda: run(["--wrong"])) == 2
    assert capsys.readouterr().err.startswith("facerec-figures: ")
