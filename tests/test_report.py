"""report.html, results.md and results.csv: complete, safe against names, and alive in a real browser."""

import csv
import io
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import simplejpeg
from torch import nn

from facerec.evaluation.protocols.identification import identify, megaface
from facerec.evaluation.protocols.templates import judge_pairs
from facerec.evaluation.protocols.verification import verify
from facerec.models.model import Model
from facerec.packs.verification import VerificationSet
from facerec.reporting.evaluated import Evaluated, compared
from facerec.reporting.evaluation import write_all
from facerec.reporting.report import report_html
from facerec.reporting.sweep import read_sweep
from facerec.reporting.tables import as_csv, markdown
from facerec.vectors import unit_rows

from .browser import Browser, chromium

NASTY = "<script>alert(1)</script>"


def made_result(pairs=400, noise=0.8, seed=0, name="made", **settings):
    """A verification result with images: genuine pairs share a direction."""
    rng = np.random.default_rng(0)
    issame = np.arange(pairs) % 2 == 0
    centre = rng.normal(size=(pairs, 2, 16))
    centre[issame, 1] = centre[issame, 0]
    noisy = centre + noise * np.random.default_rng(seed).normal(size=centre.shape)
    people = np.array([[f"p{i}", f"p{i}"] if same else [f"p{i}", "<b>"] for i, same in enumerate(issame)])
    pixels = rng.integers(0, 255, (20, 8, 8, 3), dtype=np.uint8).repeat(14, 1).repeat(14, 2)
    images = [simplejpeg.encode_jpeg(np.ascontiguousarray(one), quality=90) for one in pixels]
    source = VerificationSet(name, images, rng.integers(0, 20, 2 * pairs), issame, None, people.reshape(-1))
    result = verify(noisy.reshape(-1, 16), issame, bootstrap=50, identity_2N=people.reshape(-1), **settings)
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


def visible(html):
    """The page's text as a reader without scripts sees it."""
    body = re.sub(r"<(script|style)\b.*?</\1>", " ", html, flags=re.S)
    return " ".join(re.sub(r"<[^>]+>", " ", body).split())


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
    assert NASTY not in html and "&lt;script&gt;alert(1)" in html
    assert html.count("<script") == 2  # the data and the page's own
    assert not re.search(r"""(?:src|href)=["'](?!data:)""", html)
    assert "http" not in re.sub(r"http-equiv|http://www\.w3\.org/2000/svg", "", html)
    embedded = json.loads(re.search(r'id="data">(.*?)</script>', html, re.S)[1])
    assert embedded["targets"] == ["lfw", NASTY]


def test_the_hardest_pairs_are_embedded_as_images(one):
    html = report_html([one], {})
    result = one.results["lfw"]
    worst = int(np.argmax(np.where(result.issame_N, result.distance_N, -1)))
    assert f"pair {worst}, distance {result.distance_N[worst]:.3f}" in html
    assert html.count('src="data:image/jpeg;base64,') == 2 * 2 * 2 * 8
    assert f'alt="First image of genuine pair {worst}, p{worst}"' in html
    assert "impostor pair" in html and "&lt;b&gt;" in html and "<b>" not in re.findall(r'alt="([^"]*)"', html)
    assert "data:image" not in report_html([one], {}, figures=False)


def test_tables_are_whole_in_markdown_and_csv(one):
    text = markdown([one], {})
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert rows[0].split("|")[1].strip() == "target" and len(rows) == 4
    assert "\\<script\\>" in text and "<script>" not in text
    result = one.results["lfw"]
    assert f"{result.accuracy:.5f} ± {result.accuracy_std:.5f} [" in rows[2]
    lines = list(csv.DictReader(io.StringIO(as_csv([one]).decode())))
    assert [line["target"] for line in lines] == ["lfw", NASTY]
    assert float(lines[0]["accuracy"]) == result.accuracy
    assert float(lines[0]["tar_at_far_1e-2_high"]) == result.tar_at_far_interval["1e-2"][1]
    assert lines[0]["tar_at_far_1e-6"] == ""


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
    names = ["results.json", "results.md", "results.csv", "report.html"]
    assert [path.name for path in written] == names
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


def test_the_mean_of_a_sweep_is_over_the_same_targets_in_each_run(tmp_path):
    given = {"0": ["head.m=0.3"], "1": ["head.m=0.5", "~eval.seed"], "2": ["head.m=0.7"]}
    scores = {"0": {"lfw": 0.9, "cfp": 0.7}, "1": {"lfw": 0.95}}
    for run, overrides in given.items():
        (tmp_path / run / ".hydra").mkdir(parents=True)
        (tmp_path / run / ".hydra" / "overrides.yaml").write_text(json.dumps(overrides))
        targets = {name: {"accuracy": value} for name, value in scores.get(run, {}).items()}
        if targets:
            (tmp_path / run / "results.json").write_text(json.dumps({"targets": targets}))
    header, rows = read_sweep(tmp_path)
    assert header[-3:] == ["lfw", "cfp", "mean"]
    assert [[row[0], *row[-3:]] for row in rows] == [
        ["0", "0.90000", "0.70000", "0.80000"],
        ["1", "0.95000", "–", "–"],
        ["2", "–", "–", "–"],
    ]


def test_an_evaluation_names_all_its_files(one, tmp_path):
    safe = replace(one, results={"lfw": one.results["lfw"]})
    written = write_all(tmp_path, [safe], {}, figures=True)
    assert [path.name for path in written] == [
        *("results.json", "results.md", "results.csv", "report.html"),
        *("lfw_roc.png", "lfw_det.png", "lfw_distances.png", "lfw_pairs.png"),
    ]
    assert all(path.is_file() for path in written)
    assert json.loads(written[0].read_text())["targets"]["lfw"]["accuracy"] == safe.results["lfw"].accuracy


# In a real browser -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    chromium()
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def pages(one, three, others, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    made = {"one": ([one], {}), "three": (three, compared(three, 50, 0)), "others": ([others], {})}
    for name, (evaluated, comparisons) in made.items():
        (folder / f"{name}.html").write_text(report_html(evaluated, comparisons))
    return folder


def test_a_page_that_fetches_or_fails_would_be_noticed(browser, tmp_path):
    page = tmp_path / "bad.html"
    page.write_text(
        "<img src='http://localhost:9/x.png'><script>console.error('oh'); nothing.here()</script>"
    )
    browser.open(page)
    complaints = " ".join(browser.complaints())
    for said in ("asked for http://localhost:9/x.png", "oh", "nothing is not defined"):
        assert said in complaints


def place_in(browser, selector, x, y):
    """The point of the window at shares (x, y) of an element, scrolled into view."""
    box = browser.run(
        f"(() => {{ const e = document.querySelector('{selector}'); e.scrollIntoView({{block: 'center'}});"
        "const b = e.getBoundingClientRect(); return [b.left, b.top, b.width, b.height]; })()"
    )
    return box[0] + x * box[2], box[1] + y * box[3]


def view_of(browser, chart):
    return json.loads(browser.run(f"document.querySelector('[data-chart={chart}] svg').dataset.view"))


@pytest.mark.parametrize("name", ["one", "three", "others"])
@pytest.mark.parametrize("width", [390, 1280])
def test_pages_load_without_complaint_and_never_scroll_sideways(browser, pages, name, width):
    browser.open(pages / f"{name}.html", width)
    assert browser.complaints() == []
    assert browser.run("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    charts = browser.run(
        "[...document.querySelectorAll('[data-chart]')].map(e => e.querySelectorAll('svg path').length)"
    )
    assert charts and min(charts) > 0
    assert browser.run("[...document.images].every(i => i.complete && i.naturalWidth > 0)")


def test_pointing_at_a_curve_reads_its_values(browser, pages, one):
    browser.open(pages / "one.html")
    for chart, word in (
        ("roc", "false accept rate ≤"),
        ("det", "false accept rate ≤"),
        ("histogram", " to "),
    ):
        readout = f"document.querySelector('[data-chart={chart}] .readout').innerText"
        assert word not in browser.run(readout)
        browser.mouse("Moved", *place_in(browser, f"[data-chart={chart}] svg", 0.5, 0.5))
        browser.settle()
        assert word in browser.run(readout)
        assert re.search(r"\d\.\d+", browser.run(readout))
    browser.run("document.querySelector('[data-chart=roc] svg').focus()")
    for _ in range(3):
        browser.key("ArrowRight")
    said = browser.run("document.querySelector('[data-chart=roc] .readout').innerText")
    far = float(re.search(r"≤ ([\d.]+)", said)[1])
    result = one.results["lfw"]
    fars, tars = result.roc()
    expected = tars[np.searchsorted(fars, far, side="right") - 1]
    assert float(re.search(r"lfw\n([\d.]+)", said)[1]) == pytest.approx(expected, abs=0.02)
    assert f"{NASTY}\n" in said


def test_dragging_zooms_a_chart_and_double_click_shows_all(browser, pages):
    browser.open(pages / "one.html")
    before = view_of(browser, "roc")
    browser.mouse("Pressed", *place_in(browser, "[data-chart=roc] svg", 0.4, 0.3))
    for share in (0.5, 0.6):
        browser.mouse("Moved", *place_in(browser, "[data-chart=roc] svg", share, 0.2 + share / 2), buttons=1)
    browser.mouse("Released", *place_in(browser, "[data-chart=roc] svg", 0.6, 0.5), buttons=0)
    zoomed = view_of(browser, "roc")
    assert before[0] < zoomed[0] < zoomed[1] < before[1] and before[2] < zoomed[2] < zoomed[3] < before[3]
    ticks = "[...document.querySelectorAll('[data-chart=roc] svg text')].map(e => e.textContent).join()"
    zoomed_ticks = browser.run(ticks)
    x, y = place_in(browser, "[data-chart=roc] svg", 0.5, 0.5)
    for count in (1, 2):
        browser.mouse("Pressed", x, y, clickCount=count)
        browser.mouse("Released", x, y, clickCount=count, buttons=0)
    assert view_of(browser, "roc") == before and browser.run(ticks) != zoomed_ticks
    browser.run("document.querySelector('[data-chart=det] .tools button').click()")
    assert view_of(browser, "det")[0] > before[0]
    assert browser.complaints() == []


def test_models_are_toggled_in_all_charts_at_once(browser, pages):
    browser.open(pages / "three.html")
    curves = "['roc', 'det'].map(c => document.querySelectorAll(`[data-chart=${c}] .curve`).length)"
    shown = "[...document.querySelectorAll('[data-chart=histogram]')].filter(e => e.offsetHeight > 0).length"
    assert browser.run(curves) == [3, 3] and browser.run(shown) == 3
    assert NASTY in browser.run("document.querySelector('.filters').innerText")
    browser.run("document.querySelector('.filters input').click()")
    assert browser.run(curves) == [2, 2] and browser.run(shown) == 2
    assert browser.complaints() == []


def test_without_scripts_the_numbers_and_images_are_there(browser, pages, one):
    browser.scripts_off(True)
    try:
        browser.go(pages / "one.html")
        document = browser.send("DOM.getDocument", depth=0)["root"]["nodeId"]
        for selector in ("noscript p", "table.numbers td .value", ".pairs img", "dl dd"):
            node = browser.send("DOM.querySelector", nodeId=document, selector=selector)["nodeId"]
            assert node, selector
            box = browser.send("DOM.getBoxModel", nodeId=node)["model"]
            assert box["width"] > 0 and box["height"] > 0, selector
    finally:
        browser.scripts_off(False)


def test_the_page_prints(browser, pages, tmp_path):
    browser.open(pages / "three.html")
    browser.pdf(tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
    browser.send("Emulation.setEmulatedMedia", media="print")
    try:
        displays = "[...document.querySelectorAll('.tools, .screen')].map(e => getComputedStyle(e).display)"
        assert set(browser.run(displays)) == {"none"}
        assert browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    finally:
        browser.send("Emulation.setEmulatedMedia", media="")
