"""The page of a report in a browser: what is drawn, and what it does not do.

Not part of the default run: these tests need Chromium, under any of the usual names.
"""

import math
import os
import shutil
from pathlib import Path

import pytest

from dataflare import (
    BatchConfig,
    FailureRecoveryConfig,
    PluginManager,
    PluginManagerConfig,
    map_plugin,
)
from dataflare.plugins import Chain, Contains, Upper

pytestmark = pytest.mark.browser

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
HOSTILE = "<script>document.title = 'taken over'; fetch('http://localhost/')</script>"
LONG = "a_name_without_any_place_to_break_it_" * 8
WIDTHS = (1280, 390)
SCHEMES = ("light", "dark")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with plugins of every kind: busy, failing, idle, and with names that are hard."""
    path = tmp_path_factory.mktemp("report") / "report.html"

    @map_plugin(name=HOSTILE)
    def fail(value: bytes) -> bytes:
        if value.endswith(b"7"):
            raise type(f"Error{value[0]}", (Exception,), {})("as told")
        return value

    recovery = FailureRecoveryConfig(max_retries=0, circuit_breaker_threshold=0.2)
    config = PluginManagerConfig(
        failure_recovery=recovery,
        batch_config=BatchConfig(max_batch_size=10_000),
        monitoring_interval=math.inf,
    )
    with PluginManager(config) as manager:
        manager.register_plugin("chain", Chain(Contains(b"1"), Upper(), Contains(b"2")))
        manager.register_plugin(HOSTILE, fail)
        manager.register_plugin(LONG, Upper())
        for number in range(60):
            lines = [b"%d line %d" % (number, each) for each in range(50 + 20 * number)]
            manager.process_batch("chain", lines)
            if number % 3:
                manager.process_batch(HOSTILE, lines)
            manager.take_sample()
        manager.export_performance_report(path)
    return path


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory):
    """Chromium without a window, with a profile of its own."""
    from playwright.sync_api import sync_playwright

    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    assert program is not None, f"none of {', '.join(BROWSERS)} is installed"
    with sync_playwright() as playwright:
        sandbox = [] if os.geteuid() else ["--no-sandbox"]
        options = ["--disable-gpu", "--disable-background-networking", *sandbox]
        browser = playwright.chromium.launch(executable_path=program, args=options)
        yield browser
        browser.close()


@pytest.fixture(params=[(width, scheme) for width in WIDTHS for scheme in SCHEMES])
def page(request: pytest.FixtureRequest, browser, report: Path):
    """The report, open; at the end it has asked for nothing and complained of nothing."""
    width, scheme = request.param
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    asked, said = [], []
    page.on("request", lambda asking: asked.append(asking.url))
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(report.as_uri())
    yield page
    assert asked == [report.as_uri()]
    assert said == []
    page.close()


def test_every_plot_is_drawn(page) -> None:
    """It has a place, a line in a colour of its own, and labels at both axes."""
    figures = page.locator("figure")
    assert figures.count() == 3 * 6 + 2
    drawn = 0
    for figure in figures.all():
        if figure.locator("svg").count() == 0:
            assert figure.locator("p.note").is_visible()
            continue
        drawn += 1
        box = figure.locator("svg").bounding_box()
        assert box["width"] > 200
        assert box["height"] > 100
        assert figure.locator("svg .line").count() > 0
        for axis in ("x", "y"):
            assert figure.locator(f"svg .axis.{axis} text").count() >= 2
        colours = figure.locator(".series .line").evaluate_all(
            "lines => lines.map(line => getComputedStyle(line).stroke)"
        )
        assert "none" not in colours
        series = figure.locator(".legend li").count() or 1
        assert len(set(colours)) == series
    assert drawn == 5 + 6 + 2 + 2  # elsewhere no record failed, or none came


def test_nothing_in_a_plot_is_cut_off(page) -> None:
    """Labels are within the plot, large enough, and do not overlap."""
    plots = page.evaluate(
        """() => [...document.querySelectorAll("figure svg")].map(svg => ({
            frame: svg.getBoundingClientRect().toJSON(),
            texts: [...svg.querySelectorAll("text")].map(text => text.getBoundingClientRect()
                .toJSON()),
        }))"""
    )
    for plot in plots:
        frame = plot["frame"]
        for text in plot["texts"]:
            assert text["left"] >= frame["left"] - 1
            assert text["right"] <= frame["right"] + 1
            assert text["top"] >= frame["top"] - 1
            assert text["bottom"] <= frame["bottom"] + 1
            assert text["height"] >= 9
        for index, one in enumerate(plot["texts"]):
            for other in plot["texts"][index + 1 :]:
                apart = (
                    one["right"] <= other["left"] + 1
                    or other["right"] <= one["left"] + 1
                    or one["bottom"] <= other["top"] + 1
                    or other["bottom"] <= one["top"] + 1
                )
                assert apart


def test_the_page_fits(page) -> None:
    """Nothing has to be scrolled sideways, whatever the names are."""
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    outside = page.evaluate(
        """() => [...document.querySelectorAll("body *")].filter(
            each => !each.closest("thead") && each.getBoundingClientRect().right > innerWidth + 1
        ).map(each => each.outerHTML.slice(0, 200))"""
    )
    assert outside == []


def test_names_are_shown_and_not_run(page) -> None:
    """A script in the name of a plugin is text."""
    assert page.title().startswith("DataFlare performance report")
    assert page.locator("script").count() == 0
    assert page.get_by_role("heading", name=HOSTILE).is_visible()


def test_text_can_be_read(page) -> None:
    """All text has a contrast of 4.5 or more to what is behind it, as WCAG 2.2 asks (1.4.3)."""
    low = page.evaluate(
        """() => {
            const parse = colour => colour.match(/[\\d.]+/g).map(Number);
            const light = colour => parse(colour).slice(0, 3).map(part => part / 255)
                .map(part => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
                .reduce((sum, part, index) => sum + part * [0.2126, 0.7152, 0.0722][index], 0);
            const behind = element => {
                for (; element; element = element.parentElement) {
                    const colour = getComputedStyle(element).backgroundColor;
                    if ((parse(colour)[3] ?? 1) > 0) return colour;
                }
                return "rgb(255, 255, 255)";
            };
            const found = [];
            for (const each of document.querySelectorAll("body *")) {
                if (![...each.childNodes].some(n => n.nodeType === 3 && n.data.trim())) continue;
                const style = getComputedStyle(each);
                if (each.tagName === "title") continue;
                const colour = each.namespaceURI.endsWith("svg") ? style.fill : style.color;
                const [a, b] = [light(colour), light(behind(each))].sort((x, y) => y - x);
                const contrast = (a + 0.05) / (b + 0.05);
                if (contrast < 4.5) found.push([each.outerHTML.slice(0, 99), colour, contrast]);
            }
            return found;
        }"""
    )
    assert low == []


def test_the_page_can_be_printed(browser, report: Path) -> None:
    """In light colours, on several pages, with nothing hidden."""
    page = browser.new_page(color_scheme="dark")
    page.goto(report.as_uri())
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.locator("figure").first.is_visible()
    printed = page.pdf(format="A4")
    assert printed.startswith(b"%PDF-")
    assert 4 <= printed.count(b"/Type /Page\n") <= 20
    page.close()
