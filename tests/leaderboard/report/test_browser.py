"""The page in a real browser, opened from a file: Chromium without a window, driven by selenium.

Skipped where Chromium or its driver is not installed, unless AVALANCHE_RWF_BROWSER=required.
"""

from __future__ import annotations

import json
import os
import shutil

import pytest

from avalanche_rwf.leaderboard.report import write_report
from avalanche_rwf.leaderboard.style import look

EVIL = "<script>alert(1)</script>"
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
WAIT = 10


def chromium():
    """The paths of browser and driver, or the reason why there is none."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    driver = shutil.which("chromedriver")
    try:
        import selenium  # noqa: F401
    except ImportError:
        return "selenium is not installed"
    if browser is None or driver is None:
        return "Chromium and its driver are not installed (apt-get install chromium-driver)"
    return browser, driver


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """One browser for the whole module, with a profile of its own and all of its logs."""
    found = chromium()
    if isinstance(found, str):
        if os.environ.get("AVALANCHE_RWF_BROWSER") == "required":
            pytest.fail(f"AVALANCHE_RWF_BROWSER=required, and {found}.")
        pytest.skip(f"The report was not opened in a browser: {found}.")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = found[0]
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(found[1]))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def page(tmp_path_factory, runs, study):
    """A report of three rows, one of them with a name that would be a script, a failed run, and a
    search."""
    out = tmp_path_factory.mktemp("results")
    for seed in (0, 1):
        runs(out, "rwf", seed, "aaaa", 0.9 + 0.02 * seed)
        runs(out, "slda", seed, "bbbb", 0.8)
        runs(out, EVIL, seed, "cccc", 0.85, log=EVIL)
    runs(out, "rwf", 2, "aaaa", status="failed", log="no luck")
    runs(out, "slda", 0, "dddd", 0.7, batch_size=4)
    notes = [{"options": {"lr": 0.1 * n}, "score": 0.5 + 0.1 * n, "pruned": False}
             for n in range(3)]  # fmt: skip
    study(out, EVIL, [*notes, {"options": {}, "score": None, "pruned": True}], {"lr": 1.0})
    return write_report(out)


@pytest.fixture
def visit(browser, page):
    """Open the page anew; the console must stay empty and the network unasked.

    Gives the open page with helpers.
    """
    from selenium.webdriver.support.ui import WebDriverWait

    def size(width, height=900, theme="light"):
        browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600},
        )
        browser.execute_cdp_cmd(
            "Emulation.setEmulatedMedia",
            {"features": [{"name": "prefers-color-scheme", "value": theme}]},
        )

    class Page:
        resize = staticmethod(size)
        js = staticmethod(browser.execute_script)

        @staticmethod
        def until(script, *args):
            """Wait for a script to give something true, and return it."""
            return WebDriverWait(browser, WAIT, poll_frequency=0.05).until(
                lambda b: b.execute_script(script, *args), f"never true: {script}"
            )

        @staticmethod
        def open(address=""):
            browser.get("about:blank")
            browser.get(page.as_uri() + address)
            return Page

        @staticmethod
        def methods():
            return browser.execute_script(
                "return [...document.querySelectorAll('#rows button.row')].map(b => b.textContent)"
            )

        @staticmethod
        def find(css):
            return browser.find_element("css selector", css)

    browser.get_log("browser"), browser.get_log("performance")
    size(1440)
    yield Page
    console = browser.get_log("browser")
    assert console == []
    asked = [
        message["params"]["request"]["url"]
        for entry in browser.get_log("performance")
        for message in [json.loads(entry["message"])["message"]]
        if message["method"] == "Network.requestWillBeSent"
    ]
    ours = [url for url in asked if url.startswith("file:")]
    assert any(url.endswith("board.js") for url in ours)
    # The browser's own new-tab page is at chrome: addresses.
    assert not [url for url in asked if not url.startswith(("file:", "data:", "about:", "chrome"))]


def test_rows_are_ranked_and_the_best_is_marked(visit):
    p = visit.open()
    assert p.methods() == ["rwf", EVIL, "slda"]
    cells = p.js("return [...document.querySelectorAll('td.best')].map(c => c.textContent)")
    assert "91.0± 1.4" in cells
    assert "batch 16" in p.find("#header").text
    assert p.find("th[data-field=rank]").get_attribute("aria-sort") == "ascending"


def test_a_search_is_drawn_with_its_best_trial(visit):
    p = visit.open()
    assert "4 trials, 1 pruned" in p.find("#studies .about ~ div .about").text
    assert "Best: trial 2, 70.0 %, with lr=0.2" in p.find("#studies-list").text
    assert p.find("#studies pre").text.startswith(f"avalanche-rwf compare --methods {EVIL}")
    p.js("document.querySelector('#studies').scrollIntoView()")
    p.until("return document.querySelectorAll('#studies .plot .point, #studies .bars path').length")


def test_a_click_sorts_and_another_turns_it_round(visit):
    p = visit.open()
    head = "th[data-field=a_last]"
    p.find(f"{head} button").click()
    assert p.find(head).get_attribute("aria-sort") == "descending"
    p.find(f"{head} button").click()
    assert p.find(head).get_attribute("aria-sort") == "ascending"
    assert p.methods() == ["slda", EVIL, "rwf"]
    assert p.js("return document.querySelectorAll('[aria-sort]').length") == 1


def test_filters_are_kept_in_the_address(visit):
    p = visit.open()
    p.find("#query").send_keys("slda")
    assert p.methods() == ["slda"]
    assert p.find("#count").text == "1 of 3 rows"
    address = p.js("return location.hash")
    p.find("#reset").click()
    assert len(p.methods()) == 3
    assert visit.open(address).methods() == ["slda"]
    # The second protocol, by its place.
    assert visit.open("#p=1").methods() == ["slda"]
    assert "batch 4" in p.find("#header").text


def test_a_link_to_a_row_opens_it(visit):
    p = visit.open("#aaaa")
    p.until("return document.getElementById('detail').open")
    p.until("return document.querySelectorAll('#detail .run').length === 3")
    text = p.find("#detail").text
    assert "avalanche-rwf compare --benchmark split-digits --methods rwf --seeds 0,1,2" in text
    assert "failed: no luck" in text
    # Configuration and log are one click away.
    assert "config_hash" not in text and "it ran" not in text
    for summary in p.js("return [...document.querySelectorAll('.run summary')].slice(0, 2)"):
        summary.click()
    text = p.find("#detail").text
    assert '"config_hash": "aaaa"' in text and "it ran" in text


@pytest.mark.parametrize("column", ["a_last", "head", "rank"])
def test_a_click_anywhere_in_a_row_opens_it(column, visit):
    p = visit.open()
    place = p.js("return [...document.querySelectorAll('#columns th')].findIndex("
                 "th => th.dataset.field === arguments[0])", column)  # fmt: skip
    p.find(f"#rows tr:nth-child(3) > :nth-child({place + 1})").click()
    p.until("return document.getElementById('detail').open")
    assert p.find("#detail-title").text == "slda"
    p.find("#close").click()
    p.until("return !document.querySelector('tr.open')")
    p.find("#rows tr:nth-child(3) .mark input").click()  # chooses a curve, and opens nothing
    assert not p.js("return document.getElementById('detail').open")
    assert "plot=" in p.js("return location.hash")


def test_a_method_keeps_its_colour_whatever_else_is_shown(visit):
    for address in ("", "#p=1"):  # among three rows, and alone
        p = visit.open(address)
        p.js("document.documentElement.style.scrollBehavior = 'auto';"
             "document.getElementById('curves').scrollIntoView()")  # fmt: skip
        for theme in ("light", "dark"):
            p.find("#theme").click()  # auto is light here
            assert p.until(
                "const t = (document.getElementById('curves-plot').data || [])"
                ".find(t => t.name === 'slda' && t.line.color); return t && t.line.color"
            ) == getattr(look("slda"), theme)
        p.find("#theme").click()


def test_a_name_that_would_be_a_script_is_text(visit):
    p = visit.open("#cccc")
    p.until("return document.querySelectorAll('#detail .run').length === 2")
    assert p.find("#detail-title").text == EVIL
    p.find(".run details:last-child summary").click()
    assert EVIL in p.find(".run details:last-child pre").text
    p.until("return document.querySelector('#detail .plot .main-svg')")
    p.find("#close").click()
    p.js("document.getElementById('curves').scrollIntoView()")
    p.until("return document.querySelector('#curves-plot .legendtext')")
    legend = p.js("return [...document.querySelectorAll('.legendtext')].map(t => t.textContent)")
    assert EVIL in legend
    inline = p.js("return [...document.scripts].filter(s => !s.src).length")
    assert inline == 0


def test_keys_alone_are_enough(visit):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    p = visit.open()
    keys = ActionChains(p.find("body").parent)
    keys.send_keys(Keys.TAB).perform()
    assert p.js("return document.activeElement.className") == "skip"
    ActionChains(keys._driver).send_keys(Keys.ENTER).perform()
    assert p.js("return document.activeElement.id") == "main"
    p.js("document.querySelector('#rows button.row').focus()")
    ActionChains(keys._driver).send_keys(Keys.ENTER).perform()
    p.until("return document.getElementById('detail').open")
    assert "row=aaaa" in p.js("return location.hash")
    ActionChains(keys._driver).send_keys(Keys.ESCAPE).perform()
    p.until("return !document.getElementById('detail').open")
    p.until("return document.activeElement.textContent === 'rwf'")
    assert p.js("return location.hash") in ("", "#")


def test_curves_and_matrices_say_their_values(visit):
    from selenium.webdriver.common.action_chains import ActionChains

    p = visit.open("#plot=aaaa")
    assert p.js("return typeof Plotly") == "undefined"  # drawn when they come into view
    p.js("document.documentElement.style.scrollBehavior = 'auto';"
         "document.getElementById('curves').scrollIntoView()")  # fmt: skip
    point = p.until("return document.querySelector('#curves-plot .points path')")
    ActionChains(p.find("body").parent).move_to_element(point).perform()
    said = p.until(
        "const h = document.querySelector('#curves-plot .hovertext'); return h && h.textContent"
    )
    # 0.9 + 0.06 and 0.92 + 0.06 at the first end.
    assert "rwf" in said and "97.0 ± 1.4 %" in said and "100 samples, 2 seeds" in said
    p.js("document.getElementById('matrices').scrollIntoView()")
    cells = p.until(
        "const t = [...document.querySelectorAll('#matrices-grid .heatmap-label')];"
        "return t.length && t.map(c => c.textContent)"
    )
    assert sorted(cells) == sorted(["91", "90", "91", "89", "90", "91"])
    p.js("document.getElementById('routing').scrollIntoView()")
    p.until("return document.querySelector('#routing-grid .main-svg')")
    titles = p.js("return [...document.querySelectorAll('#routing-grid h3')].map(t=>t.textContent)")
    assert "Prompts: cosine to their first value" in titles
    assert "Accuracy on the same classes, %" in titles


def test_stream_and_broken_runs_are_listed(visit):
    p = visit.open()
    assert p.js("return document.querySelectorAll('#stream-list li').length") == 3
    assert "3 experiences, 6 classes, 300 training" in p.find("#stream-about").text
    rows = p.js("return [...document.querySelectorAll('#missing-rows tr')].map(r=>r.textContent)")
    assert rows == ["runs/split-digits/m/aaaa/seed2failed: no luck"]


def test_classes_that_come_back_are_not_called_new(visit, browser, tmp_path, runs):
    path = runs(tmp_path, "ncm", 4, "eeee")
    content = json.loads((path / "config.json").read_text())
    content["data"].update(classes_per_experience=[[0, 1], [0, 2], []],
                           samples_per_experience=[100, 1, 0])  # fmt: skip
    (path / "config.json").write_text(json.dumps(content))
    browser.get(write_report(tmp_path).as_uri())
    said = visit.js(
        "return [...document.querySelectorAll('#stream-list small')].map(s => s.textContent)"
    )
    assert said == [
        "2 new classes, 100 images", "1 new class, 1 again, 1 image", "0 new classes, 0 images"
    ]  # fmt: skip
    assert "stream of seed 4" in visit.find("#stream-about").text
    assert visit.js("return document.querySelector('.chips .again').textContent") == "class 0"


def test_bands_end_at_a_hundred_percent(visit, browser, tmp_path, runs):
    for seed, a_last in enumerate((0.6, 0.94)):  # mean and deviation at the first end: 0.83, 0.24
        runs(tmp_path, "ncm", seed, "eeee", a_last)
    browser.get(write_report(tmp_path).as_uri())
    visit.js("document.documentElement.style.scrollBehavior = 'auto';"
             "document.getElementById('curves').scrollIntoView()")  # fmt: skip
    top = visit.until(
        "const d = document.getElementById('curves-plot').data;"
        "return d && Math.max(...d.flatMap(trace => trace.y))"
    )
    assert top == 100


@pytest.mark.parametrize("width", [360, 1440])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_fits_the_window_in_both_themes(width, theme, visit, browser, tmp_path):
    visit.resize(width, theme=theme)
    p = visit.open("#aaaa")
    assert p.js("return document.documentElement.dataset.theme") == theme
    p.until("return document.querySelectorAll('#detail .main-svg').length")
    overflow = "const e = arguments[0]; return e.scrollWidth - e.clientWidth"
    assert p.js(overflow, p.find("#detail")) <= 0
    p.find("#close").click()
    p.js("document.documentElement.style.scrollBehavior = 'auto';"
         "document.getElementById('curves').scrollIntoView()")  # fmt: skip
    p.until("return document.querySelector('#curves-plot .main-svg')")
    assert p.js(overflow, p.find("html")) <= 0
    plot = "const b = document.getElementById('curves-plot'); return b.querySelector('.main-svg')"
    assert p.js(f"{plot}.getBoundingClientRect().width <= b.getBoundingClientRect().width")
    shot = tmp_path / "page.png"
    browser.save_screenshot(str(shot))
    from PIL import Image

    with Image.open(shot) as image:
        assert image.width == width
        corner = image.convert("L").getpixel((2, 2))
    assert (corner < 64) == (theme == "dark")


def test_the_theme_can_be_chosen(visit):
    p = visit.open()
    said = []
    for _ in range(3):
        p.find("#theme").click()
        said.append((p.find("#theme").text, p.js("return document.documentElement.dataset.theme")))
    assert said == [("Theme: light", "light"), ("Theme: dark", "dark"), ("Theme: auto", "light")]


def test_two_thousand_runs_stay_small(tmp_path, runs):
    """Measured on 100: all but the library grows with the runs. Its time: profiling/report.py."""
    for row in range(50):
        for seed in (0, 1):
            runs(tmp_path, f"rwf-{row}", seed, f"{row:04}", 0.5 + row / 150, log="x" * 600)
    page = write_report(tmp_path)
    sizes = {p.name: p.stat().st_size for p in page.parent.rglob("*") if p.is_file()}
    library = sizes.pop("plotly.min.js")
    assert library + 20 * sum(sizes.values()) < 15e6
