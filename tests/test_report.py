"""The page on a run, and the pictures on it, in a real browser where there is one."""

import dataclasses
import html.parser
import re
import subprocess

import numpy as np
import pytest
from matplotlib import image

import jaxpt
from tests import browser
from tests.conftest import make_engine
from tests.test_checkpoint import bowl

pytestmark = pytest.mark.slow

TITLE = '<b>"Tom" & Jerry</b>'


class Page(html.parser.HTMLParser):
    """What a page holds: tags, images, its text; and that tags close in order."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.images, self.words, self._open = [], [], [], []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag == "img":
            self.images.append(dict(attributes))
        elif tag != "meta":
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def result(data):
    engine = make_engine(rule=jaxpt.Tempering(3.0), burn_in=10)
    return jaxpt.fit(engine, data.train, data.valid, test=data.test, steps=83, seeds=[3, 11], progress=False)


@pytest.fixture(scope="module")
def written(result, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "deep" / "page.html"
    result.report(path, title=TITLE)
    return path


def test_the_page_says_what_the_result_does(result, written):
    page = Page(written.read_text())
    text = " ".join(" ".join(page.words).split())
    assert TITLE in text, "escaped, so that it is text"
    assert "b" not in page.tags
    for seed in (0, 1):
        best = result.best(seed=seed)
        for score in (*best.valid.values(), *best.hyper.values(), *best.test.values()):
            assert f" {score:.4g} " in text
    for line in str(jaxpt.diagnostics.diagnosis(result.trace)).splitlines():
        assert " ".join(line.split()) in text
    assert "cpu" in text
    assert jaxpt.__version__ in text
    assert "random_adjacent" in text, "the rule's settings"
    captions = [attributes["alt"] for attributes in page.images]
    assert captions == [
        "Paths of the replicas over the ladder (seed 0)",
        "Acceptance per pair of rungs",
        "Flow f over the rungs",
        "Energy against rung",
        "Course of the run: energy",
        "Course of the run: error",
        "Lineage of the best replica (seed 0)",
    ]
    assert len({a["src"] for a in page.images}) == len(captions)


def test_the_page_needs_nothing_but_itself(written):
    text = written.read_text()
    assert "<script" not in text
    assert not re.search(r"(src|href)\s*=\s*[\"'](?!data:)", text)
    assert not re.search(r"url\(|@import|https?:", text)
    assert [path.name for path in written.parent.iterdir()] == ["page.html"]


METRICS = [
    *(f"metric_number_{k}" for k in range(9)),
    "expected_calibration_error_of_fifteen_bins_of_equal_width",
    "AreaUnderTheReceiverOperatingCharacteristicCurveOfTheFirstClass",
    "a.dotted.name_" + "x" * 60,
]


@pytest.fixture(scope="module")
def crowded(tmp_path_factory):
    """A page with eight replicas of three seeds, twelve metrics on two splits, and long names."""
    problem = bowl().problem

    def score(params, state, batch):
        found = problem.evaluate(params, state, batch)
        return found | dict.fromkeys(METRICS, found["energy"])

    ladder = jaxpt.Ladder(temperature=jaxpt.geometric(0.01, 0.1, 8))
    engine = dataclasses.replace(bowl(), problem=problem._replace(evaluate=score), ladder=ladder)
    path = tmp_path_factory.mktemp("crowded") / "page.html"
    jaxpt.fit(engine, steps=20, seeds=[1, 2, 3], progress=False).report(path)
    return path


@pytest.mark.skipif(browser.CHROMIUM is None, reason="no Chromium to open the page in")
@pytest.mark.parametrize("width", [400, 1280])
def test_many_metrics_stay_inside_the_page(crowded, tmp_path, width):
    script = """const numbers = [document.documentElement.scrollWidth,
        document.querySelectorAll("table.named tr").length, innerWidth];"""
    page = tmp_path / "page.html"
    page.write_text(crowded.read_text())
    widest, rows, seen = browser.measured(page, width, script, tmp_path)
    assert seen == width
    assert rows > len(METRICS), "each metric has its row"
    assert widest <= width, "nothing sticks out to the right"


@pytest.mark.skipif(browser.CHROMIUM is None, reason="no Chromium to open the page in")
def test_a_browser_shows_the_page_with_all_its_pictures(written, tmp_path):
    def browse(page, *options):
        command = browser.command(tmp_path, *options)
        done = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr[-1000:]
        return done.stdout

    ask = """<script>addEventListener("load", () => { document.title = "measured " + [...document.images].map(
        i => [i.naturalWidth, Math.round(i.getBoundingClientRect().width), i.complete].join(":")).join(" ")
        + " over " + document.documentElement.scrollWidth; })</script>"""
    asking = tmp_path / "asking.html"
    asking.write_text(written.read_text().replace("</body>", ask + "</body>"))
    title = re.search(
        r"<title>measured (.*) over (\d+)</title>", browse(asking, "--window-size=1280,1000", "--dump-dom")
    )
    found = [one.split(":") for one in title[1].split()]
    assert len(found) == 7
    assert all(int(natural) >= 700 and int(shown) >= 400 and done == "true" for natural, shown, done in found)
    assert int(title[2]) <= 1280, "nothing sticks out to the right"
    picture = tmp_path / "page.png"
    browse(written, "--window-size=1280,3000", f"--screenshot={picture}")
    pixels = image.imread(picture)[..., :3]
    assert pixels.shape[:2] == (3000, 1280)
    assert (pixels[:, :20] > 0.99).all(), "a white margin"
    assert 0.02 < (pixels.mean(-1) < 0.5).mean() < 0.3, "dark on light"
    blue = np.abs(pixels - np.array([0x00, 0x72, 0xB2]) / 255).max(-1) < 0.15
    assert blue[300:].sum() > 3000, "bars and lines of the pictures"


def test_rules_without_swaps_have_a_page_too(tmp_path):
    for rule in (jaxpt.Independent(), jaxpt.PBT()):
        found = jaxpt.fit(bowl(rule=rule), steps=20, progress=False)
        found.report(tmp_path / "page.html")
        page = Page((tmp_path / "page.html").read_text())
        assert "No swap was offered." in page.words
        captions = [attributes["alt"] for attributes in page.images]
        assert ("Energy against rung" in captions) == isinstance(rule, jaxpt.Independent)
        assert "Lineage of the best replica" in captions


def test_pictures_are_written_by_name(result, tmp_path):
    figures = result.plot(tmp_path / "pictures", seed=1)
    names = {"paths", "acceptance", "flow", "energies", "score-energy", "score-error", "lineage"}
    assert set(figures) == names
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == {f"{name}.png" for name in names}
    lines = figures["paths"].axes[0].get_lines()
    np.testing.assert_array_equal(lines[2].get_ydata()[:-1], result.trace.rung["learning_rate+dropout_rate"][:, 1, 2])
    with pytest.raises(ValueError, match="give seed=0"):
        result.plot(seed=5)
