"""report.html: complete, safe against names, and alive in a real browser."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import simplejpeg
from torch import nn

from facerec.evaluation.protocols.identification import identify
from facerec.evaluation.protocols.ijb import judge_pairs
from facerec.evaluation.protocols.megaface import megaface
from facerec.evaluation.statistics.separation import Separation
from facerec.evaluation.verify import verify
from facerec.models.model import Model
from facerec.packs.verification import VerificationSet
from facerec.reporting.evaluated import Evaluated, compared
from facerec.reporting.evaluation import write_all
from facerec.reporting.report import report_html
from facerec.vectors import unit_rows

from .browser import opened

NASTY = "<script>alert(1)</script>"


def made_result(pairs=400, noise=0.8, seed=0, name="made", **settings):
    """A verification result with images: genuine pairs share a direction."""
    rng = np.random.default_rng(0)
    issame = np.arange(pairs) % 2 == 0
    centre = rng.normal(size=(pairs, 2, 16))
    centre[issame, 1] = centre[issame, 0]
    noisy = centre + noise * np.random.default_rng(seed).normal(size=centre.shape)
    identities = np.array([[f"p{i}", f"p{i}"] if same else [f"p{i}", "<b>"] for i, same in enumerate(issame)])
    pixels = rng.integers(0, 255, (20, 8, 8, 3), dtype=np.uint8).repeat(14, 1).repeat(14, 2)
    images = [simplejpeg.encode_jpeg(np.ascontiguousarray(one), quality=90) for one in pixels]
    source = VerificationSet(
        name, images, rng.integers(0, 20, 2 * pairs), issame, None, identities.reshape(-1)
    )
    result = verify(
        noisy.reshape(-1, 16), issame, bootstrap=50, identity_2N=identities.reshape(-1), **settings
    )
    return replace(result, source=source)


def made_model(path=None):
    return Model(nn.Linear(4, 2), step=7, path=path, config={"backbone": {"name": "ir_50"}})


@pytest.fixture(scope="module")
def one():
    results = {"lfw": made_result(), NASTY: made_result(seed=5, noise=1.1, name=NASTY)}
    return Evaluated.of(f"{NASTY}.pt", made_model(), results)


@pytest.fixture(scope="module")
def three():
    return [
        Evaluated.of(name, made_model(), {"lfw": made_result(seed=seed, noise=noise)})
        for seed, (name, noise) in enumerate([("a/best.pt", 0.7), ("b/best.pt", 0.9), (NASTY, 1.4)])
    ]


@pytest.fixture(scope="module")
def others():
    """The protocols besides verification."""
    rng = np.random.default_rng(0)
    template = unit_rows(rng.normal(size=(200, 8)) + 3 * np.eye(8)[np.arange(200) % 8])
    first, second = rng.integers(0, 200, (2, 5000))
    judged = judge_pairs(
        template,
        first,
        second,
        first % 8 == second % 8,
        images=500,
        flip=True,
        detector_score=False,
        protocol="IJB-C 1:1",
        identity_N=first % 8,
        bootstrap=50,
    )
    search = identify(
        template[:100], np.arange(100) % 8, template[100:150], np.arange(100, 150) % 6, bootstrap=50
    )
    million = megaface(template[:40], np.arange(40) % 8, rng.normal(size=(1200, 8)), bootstrap=50)
    return Evaluated.of("best.pt", made_model(), {"ijbc": judged, "1n": search, "megaface": million})


def elements(html):
    """The page without the code of its scripts and styles."""
    return re.sub(r"<(script|style)\b.*?</\1>", r"<\1>", html, flags=re.S)


def visible(html):
    """The page's text as a reader without scripts sees it."""
    return " ".join(re.sub(r"<[^>]+>", " ", elements(html)).split())


def test_the_numbers_stand_in_the_page_with_intervals_and_all_that_must_be_said(one):
    text = visible(report_html([one], {}))
    for result in one.results.values():
        assert f"{result.accuracy:.5f} ± {result.accuracy_std:.5f}" in text
        for value, spread in ((result.auc, result.auc_interval), (result.eer, result.eer_interval)):
            assert f"{value:.5f}" in text and f"{spread[0]:.5f}–{spread[1]:.5f}" in text
        assert f"{result.tar_at_far['1e-2']:.5f}" in text
        assert result.protocol.replace("'", "&#39;") in text
        assert f"accuracy {result.accuracy_exact:.5f} at {result.best_threshold_exact:.5f}" in text
    for said in ("400 pairs (200 genuine, 200 impostor)", "ir_50", "(x − 127.5) / 127.5", "Step 7"):
        assert said in text, said
    assert "50 resamples of the identities" in text and "Flipped no" in text


def test_nothing_is_fetched_and_names_are_text(one):
    html = report_html([one], {})
    page = elements(html)
    assert NASTY not in page and "&lt;script&gt;alert(1)" in page
    assert page.count("<script") == 2  # the data and the page's own
    assert not re.search(r"""(?:src|href)=["'](?!data:)""", page)
    assert "http" not in re.sub(r"http-equiv", "", elements(html))
    roc, *_ = json.loads(re.search(r'id="charts">(.*?)</script>', html, re.S)[1])
    names = [one["attributes"].get("name") for one in roc["doc"]["roots"][0]["attributes"]["renderers"]]
    assert [name for name in names if name] == ["lfw", NASTY]


def test_the_hardest_pairs_are_embedded_as_images(one):
    html = elements(report_html([one], {}))
    result = one.results["lfw"]
    worst = int(np.argmax(np.where(result.issame_N, result.distance_N, -1)))
    assert f"pair {worst}, distance {result.distance_N[worst]:.3f}" in html
    assert html.count('src="data:image/jpeg;base64,') == 2 * 2 * 2 * 8
    assert f'alt="First image of genuine pair {worst}, p{worst}"' in html
    assert "impostor pair" in html and "&lt;b&gt;" in html and "<b>" not in re.findall(r'alt="([^"]*)"', html)
    assert "data:image" not in elements(report_html([one], {}, figures=False))


def test_template_and_identification_protocols_have_their_own_numbers_and_curves(others, tmp_path):
    html = report_html([others], {})
    text = visible(html)
    charts = re.findall(r'data-chart="(\w+)"', html)
    assert charts == ["roc", "det", "cmc", "tpir", "distractors", "histogram"]
    for said in ("TAR @ FAR 1e-1", "Rank 1", "Rank 5", "TPIR @ FPIR 1e-1", "Rank 1 among 1,000", "IJB-C 1:1"):
        assert said in text, said
    result = others.results["1n"]
    assert f"{result.rank['1']:.5f}" in text
    low, high = result.rank_interval["1"]
    assert low < result.rank["1"] < high and f"{low:.5f}–{high:.5f}" in text
    written = write_all(tmp_path, [others], {}, figures=True)
    figures = ["ijbc_roc.png", "ijbc_det.png", "ijbc_distances.png"]
    assert [path.name for path in written] == ["report.html", "results.json", *figures]
    assert "curve" not in json.loads((tmp_path / "results.json").read_text())["targets"]["1n"]


def test_the_headline_is_under_the_far_it_was_measured_at_even_where_all_are_one():
    unit = np.eye(8, dtype=np.float32)[np.arange(200) % 8]
    first, second = np.random.default_rng(0).integers(0, 200, (2, 20000))
    same = first % 8 == second % 8
    how = {"images": 200, "flip": False, "detector_score": False, "protocol": "IJB-C 1:1"}
    result = judge_pairs(unit, first, second, same, **how)
    assert result.tar_at_far["1e-1"] == result.tar_at_far["1e-4"] == 1.0
    assert result.headline.label == "TAR @ FAR 1e-4"
    few = judge_pairs(unit, first[:2000], second[:2000], same[:2000], **how)
    assert few.headline.label == "TAR @ FAR 1e-3", "the lowest that these pairs support"
    alone = judge_pairs(unit, first[same], second[same], same[same], **how)
    assert alone.headline is None
    evaluated = Evaluated.of("best.pt", made_model(), {"ijbc": result})
    assert "ijbc: TAR @ FAR 1e-4 1.00000" in visible(report_html([evaluated], {}))


def test_every_protocol_says_which_of_its_numbers_is_the_score(one, others):
    for result in (*one.results.values(), *others.results.values()):
        assert result.headline.value == result.score


def test_models_that_are_equally_good_are_both_called_best(three):
    twins = [replace(model, results=three[0].results) for model in three[:2]]
    assert "lfw: best are a/best.pt and b/best.pt alike, accuracy" in visible(report_html(twins, {}))


def test_an_evaluation_names_all_its_files(one, tmp_path):
    safe = replace(one, results={"lfw": one.results["lfw"]})
    written = write_all(tmp_path, [safe], {}, figures=True)
    assert [path.name for path in written] == [
        *("report.html", "results.json"),
        *("lfw_roc.png", "lfw_det.png", "lfw_distances.png", "lfw_pairs.png"),
    ]
    assert all(path.is_file() for path in written)
    assert json.loads(written[1].read_text())["targets"]["lfw"]["accuracy"] == safe.results["lfw"].accuracy


# In a real browser -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pages(one, three, others, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    made = {"one": ([one], {}), "three": (three, compared(three, 50, 0)), "others": ([others], {})}
    for name, (evaluated, comparisons) in made.items():
        (folder / f"{name}.html").write_text(report_html(evaluated, comparisons))
    return folder


def test_a_page_that_fetches_or_fails_would_be_noticed(browser, tmp_path):
    path = tmp_path / "bad.html"
    path.write_text(
        "<img src='http://localhost:9/x.png'><script>console.error('oh'); nothing.here()</script>"
    )
    with opened(browser, path) as (_, complaints):
        for said in ("asked for http://localhost:9/x.png", "oh", "nothing is not defined"):
            assert said in " ".join(complaints)


def place_in(page, chart, x, y):
    """Move the mouse to the point at fractions (x, y) of a chart's axes."""
    plot = page.locator(f"[data-chart={chart}] .plot").first
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])


def view_of(page, chart):
    plot = f"plots().find(p => p.title.text.startsWith('{chart}'))"
    return page.evaluate(f"(p => [p.x_range.start, p.x_range.end, p.y_range.start, p.y_range.end])({plot})")


@pytest.mark.parametrize("name", ["one", "three", "others"])
@pytest.mark.parametrize("widths", [[390], [1280, 1000, 800]], ids=["phone", "screen"])
def test_pages_load_without_complaint_and_never_scroll_sideways(browser, pages, name, widths):
    with opened(browser, pages / f"{name}.html", widths[0], color_scheme="dark") as (page, complaints):
        page.evaluate("drawn")
        for width in widths:
            page.set_viewport_size({"width": width, "height": 900})
            page.wait_for_function(
                "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
            )
        charts = page.locator("[data-chart]").all()
        assert charts
        for chart in charts:
            chart.locator("svg path").first.wait_for(state="attached")
        assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
        dragged = page.evaluate("plots().map(p => p.toolbar.tools.find(t => t.type == 'BoxZoomTool').active)")
        assert set(dragged) == {widths[0] > 600}, "dragging scrolls a phone"
        assert complaints == []


def test_short_names_of_sets_and_curves_stay_on_a_line(browser, pages):
    lines = "e => e.getBoundingClientRect().height / parseFloat(getComputedStyle(e).lineHeight)"
    with opened(browser, pages / "one.html") as (page, _):
        page.evaluate("drawn")
        names = page.locator(".legend li > span:not(.dim):not(.key), .numbers thead th").all()
        for width in (1280, 1000):
            page.set_viewport_size({"width": width, "height": 900})
            assert names and all(name.evaluate(lines) < 1.9 for name in names if name.is_visible())


def test_pointing_at_a_curve_reads_its_values(browser, pages, one):
    with opened(browser, pages / "one.html") as (page, complaints):
        page.evaluate("drawn")
        for chart in ("roc", "det", "histogram"):
            place_in(page, chart, 0.5, 0.5)
            said = page.locator(".bk-tooltip-content").all_inner_texts()
            assert said and all(re.search(r"\d\.\d+", text) for text in said), chart
        place_in(page, "roc", 0.6, 0.5)
        tar, far = re.search(
            r"lfw: ([\d.]+) at ([\d.]+)", " ".join(page.locator(".bk-tooltip-content").all_inner_texts())
        ).groups()
        lfw = one.results["lfw"]
        fars, tars = Separation.of(lfw.distance_N, lfw.issame_N).roc()
        expected = tars[np.searchsorted(fars, float(far) + 1e-5, side="right") - 1]
        assert float(tar) == pytest.approx(expected, abs=0.02)
        assert complaints == []


def test_dragging_zooms_a_chart_and_a_button_shows_all(browser, pages):
    with opened(browser, pages / "one.html") as (page, complaints):
        page.evaluate("drawn")
        before = zoomed = view_of(page, "true accept")
        for _ in range(5):  # a busy machine may deliver the pointer's moves too late to be a gesture
            place_in(page, "roc", 0.4, 0.3)
            page.mouse.down()
            for fraction in (0.5, 0.6):
                page.wait_for_timeout(50)
                place_in(page, "roc", fraction, 0.2 + fraction / 2)
            page.mouse.up()
            page.wait_for_timeout(100)
            zoomed = view_of(page, "true accept")
            if zoomed != before:
                break
        assert before[0] < zoomed[0] < zoomed[1] < before[1] and before[2] < zoomed[2] < zoomed[3] < before[3]
        page.locator("[data-chart=roc] [title=Reset]").click()
        assert view_of(page, "true accept") == before
        page.locator("[data-chart=det] [title='Zoom In']").first.click()
        assert view_of(page, "false reject")[0] > before[0]
        assert complaints == []


def test_models_are_toggled_in_all_charts_at_once(browser, pages):
    with opened(browser, pages / "three.html") as (page, complaints):
        page.evaluate("drawn")
        curves = "plots().slice(0, 2).map(p => p.renderers.filter(r => r.name && r.visible).length)"
        histograms = page.locator("[data-chart=histogram]:visible")
        entries = page.locator("[data-chart=roc] .legend li:visible")
        assert (page.evaluate(curves), histograms.count(), entries.count()) == ([3, 3], 3, 3)
        assert NASTY in page.locator(".filters").inner_text()
        page.locator(".filters input").first.click()
        assert (page.evaluate(curves), histograms.count(), entries.count()) == ([2, 2], 2, 2)
        assert complaints == []


def test_without_scripts_the_numbers_and_images_are_there(browser, pages):
    with opened(browser, pages / "one.html", java_script_enabled=False) as (page, _):
        for selector in ("noscript p", "table.numbers td .value", ".pairs img", "dl dd", ".legend li"):
            assert page.locator(selector).first.is_visible(), selector


def test_the_page_prints(browser, pages, tmp_path):
    with opened(browser, pages / "three.html", color_scheme="dark") as (page, _):
        page.evaluate("drawn")
        assert page.pdf(format="A4", prefer_css_page_size=True).startswith(b"%PDF")
        page.emulate_media(media="print")
        assert page.locator(".screen").first.is_hidden()
        assert page.locator("[data-chart=roc] .bk-Toolbar").is_hidden()
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert page.evaluate("getComputedStyle(document.querySelector('.plot')).filter") == "none"
