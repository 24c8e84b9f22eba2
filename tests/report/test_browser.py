"""The pages in a real browser: Chromium of the system, driven by Selenium."""

import json
import os
import shutil

import numpy as np
import pytest

from selftrain_jax.report import page as report
from selftrain_jax.report.data import Listing
from tests.report import test_page, test_study_page

webdriver = pytest.importorskip("selenium.webdriver", reason="Selenium is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not CHROMIUM or not DRIVER, reason="needs Chromium or Chrome, and chromedriver, on PATH (Debian: chromium-driver)"
)
PHONE, DESK = (390, 844), (1400, 900)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (
        "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-sync "
        "--disable-component-update --disable-dev-shm-usage"
    ).split():
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    os.environ["SE_OFFLINE"] = "true"  # Selenium asks no server for a driver
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


def listings(num_probes):
    """Probes of which each third is of group 64, and that number 10 alone names."""
    rng = np.random.default_rng(0)
    rows = [
        [i + 1, test_page.HOSTILE, f"suffix {i + 1} of many", ("1", "16", "64")[i % 3], x if i else None]
        for i, x in enumerate(rng.normal(size=num_probes).tolist())
    ]
    columns = [("Probe", "number"), ("Prefix", "long"), ("Suffix", "long"), ("Group", "choice"), ("Nats", "number")]
    return {"probes": Listing("Probes.", columns, rows, 2 * num_probes)}


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Folder of `run.html` and `study.html`."""
    folder = tmp_path_factory.mktemp("pages")
    run = report.render_html(test_page.full_data(listings=listings(500)))
    (folder / "run.html").write_text(run, errors="replace")
    (folder / "study.html").write_text(report.render_study(test_study_page.full_data()))
    return folder


@pytest.fixture(params=["run", "study"])
def opened(browser, pages, request):
    """The browser with one of the pages; afterwards nothing may have been complained of or asked for."""
    address = f"{(pages / request.param).as_uri()}.html"
    yield from visit(browser, address)


@pytest.fixture
def run_page(browser, pages):
    yield from visit(browser, (pages / "run.html").as_uri())


def visit(browser, address):
    browser.get("about:blank")
    messages(browser)
    screen(browser, DESK)
    browser.get(address)
    yield browser
    complaints, requests = messages(browser)
    assert complaints == [] and set(requests) == {address}


def messages(browser):
    """(what the console says, addresses asked for) since the last call."""
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    return [entry["message"] for entry in browser.get_log("browser")], sent


def screen(browser, size, scheme="light"):
    width, height = size
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def column(browser, number):
    """The shown cells of a column of the probes' table, in their order."""
    rows = "[...document.querySelectorAll('[aria-labelledby=probes-caption] tbody tr')].filter(r => !r.hidden)"
    return browser.execute_script(f"return {rows}.map(r => r.cells[{number}].textContent)")


def find(browser, selector):
    return browser.find_element("css selector", selector)


def test_probes_are_filtered_by_text_and_by_group(run_page):
    assert len(column(run_page, 0)) == 500
    count, search = find(run_page, ".find output"), find(run_page, ".find input")
    search.send_keys("SUFFIX 10 of")
    assert column(run_page, 0) == ["10"] and count.text == "1 of 500 rows"
    search.clear()
    find(run_page, ".find select").send_keys("64")
    assert set(column(run_page, 3)) == {"64"} and len(column(run_page, 3)) == 166
    search.send_keys("nothing of the kind")
    assert column(run_page, 0) == []


def test_probes_are_sorted_by_numbers_and_what_is_missing_comes_last(run_page):
    table = "[aria-labelledby=probes-caption] thead th:nth-child"
    find(run_page, f"{table}(5) button").click()
    up = column(run_page, 4)
    assert up.pop() == "-" and up == sorted(up, key=float)
    find(run_page, f"{table}(5) button").click()
    assert column(run_page, 4) == [*reversed(up), "-"]
    assert find(run_page, f"{table}(5)").get_attribute("aria-sort") == "descending"
    find(run_page, f"{table}(1) button").click()
    assert column(run_page, 0) == [str(i) for i in range(1, 501)]


def paper(browser):
    return browser.execute_script("return getComputedStyle(document.body).backgroundColor")


@pytest.mark.parametrize("scheme, other", [("light", "dark"), ("dark", "light")])
def test_the_theme_follows_the_system_until_it_is_chosen_and_then_stays(opened, scheme, other):
    colours = {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 24, 31)"}
    screen(opened, DESK, scheme)
    assert paper(opened) == colours[scheme]
    find(opened, "#theme").click()
    assert paper(opened) == colours[other]
    opened.refresh()
    assert paper(opened) == colours[other]
    opened.execute_script("localStorage.clear()")


@pytest.mark.parametrize("size", [PHONE, DESK], ids=["phone", "desk"])
def test_nothing_is_wider_than_the_screen_and_tables_scroll_in_their_box(opened, size):
    screen(opened, size)
    opened.execute_script("document.querySelectorAll('details').forEach(d => { d.open = true })")
    assert opened.execute_script("return document.documentElement.scrollWidth") <= size[0]
    wide = """return [...document.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right
        > innerWidth + 1 && !e.closest('.scroll, svg')).map(e => e.outerHTML.slice(0, 80))"""
    assert opened.execute_script(wide) == []


def test_on_a_desk_only_what_is_browsed_scrolls_sideways(browser, pages):
    names = ("flagged_documents", "matching_ngrams", "benchmark_ngrams", "texts", "short_texts", "unfindable")
    benchmarks = {name: dict.fromkeys(names, 1234) for name in ("arithmetic", "minimal_pairs")}
    data = test_page.full_data(audit=test_page.full_data().audit | {"benchmarks": benchmarks})
    (pages / "audit.html").write_text(report.render_html(data))
    screen(browser, DESK)
    browser.get((pages / "audit.html").as_uri())
    wide = """return [...document.querySelectorAll(".scroll")].filter(e => e.scrollWidth > e.clientWidth)
        .map(e => e.outerHTML)"""
    assert browser.execute_script(wide) == []


def test_markup_that_came_into_a_page_would_neither_run_nor_load(browser, pages):
    hostile = "<script>document.title = 'taken'</script><img src='http://127.0.0.1:9/x.png' onerror='document.title=1'>"
    path = pages / "hostile.html"
    path.write_text((pages / "run.html").read_text().replace("<main>", f"<main>{hostile}"))
    browser.get("about:blank")
    messages(browser)
    browser.get(path.as_uri())
    complaints, requests = messages(browser)
    assert browser.title == "A run" and len(complaints) >= 2
    assert not find(browser, "#theme").get_attribute("hidden"), "the page's own script runs"
