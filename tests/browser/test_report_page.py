"""The report in a real browser, opened from disk with the network off."""

from __future__ import annotations

from typing import Any

import pytest

from tests.browser.conftest import no_complaints
from tests.reporting.conftest import Made

pytestmark = pytest.mark.browser

# WCAG 2.1 A and AA, and what axe calls best practice.
_AXE = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]}


def test_every_chart_is_drawn_and_nothing_complains(made: Made, look: Any) -> None:
    seen = look(made.page)
    with no_complaints(seen):
        seen.draw_all()
        empty = seen.tab.evaluate(
            "[...document.querySelectorAll('figure.chart .plot')]"
            ".filter((p) => p.querySelectorAll('path, circle, rect').length < 1).length"
        )
        assert empty == 0
        broken = seen.tab.evaluate(
            "[...document.querySelectorAll('text, path')].filter((n) =>"
            " /NaN|undefined|Infinity/.test(n.outerHTML)).length"
        )
        assert broken == 0


@pytest.mark.parametrize("width", [320, 768, 1280, 1920])
def test_no_horizontal_scroll(made: Made, look: Any, width: int) -> None:
    seen = look(made.page, width)
    seen.draw_all()
    assert seen.tab.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (320, "dark")])
def test_accessibility(made: Made, look: Any, scheme: str, width: int) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    seen = look(made.page, width, scheme)
    seen.draw_all()
    found = axe.Axe().run(seen.tab, options=_AXE)
    assert found.violations_count == 0, found.generate_report()


def test_hover_shows_the_value(made: Made, look: Any) -> None:
    seen = look(made.page)
    seen.drawn("intervals").locator(".plot circle.value").first.hover()
    tip = seen.tab.locator(".tip")
    best = max(r.summary["accuracy"]["value"] for r in made.results)
    assert f"{100 * best:.1f} %" in tip.inner_text()
    seen.tab.mouse.move(2, 2)
    assert not tip.is_visible()


def test_a_band_is_called_what_it_is(made: Made, look: Any) -> None:
    seen = look(made.page)
    seen.draw_all()
    figure = seen.tab.locator("figure.chart", has_text="Accuracy with few labels").first
    figure.locator(".plot circle.dot").first.hover()
    assert "± one standard deviation:" in seen.tab.locator(".tip").inner_text()
    figure.locator("details.numbers summary").click()
    assert "± one standard deviation, from" in figure.locator(".numbers thead").inner_text()


def test_arrow_keys_read_a_chart(made: Made, look: Any) -> None:
    seen = look(made.page)
    seen.drawn("lines").locator(".plot svg").focus()
    seen.tab.keyboard.press("ArrowRight")
    first = seen.tab.locator(".announcer").inner_text()
    seen.tab.keyboard.press("ArrowRight")
    assert first
    assert seen.tab.locator(".announcer").inner_text() != first
    seen.tab.keyboard.press("Escape")
    assert not seen.tab.locator(".tip").is_visible()


def test_confusion_matrix_switches_to_shares(made: Made, look: Any) -> None:
    seen = look(made.page)
    block = seen.tab.locator(".confusion").first
    cell = block.locator("td.right").first
    count = int(cell.inner_text())
    block.get_by_role("button", name="Share of row, %").click()
    share = float(cell.inner_text())
    assert share == pytest.approx(100 * count / 50, abs=0.06)
    assert block.locator("[aria-pressed=true]").count() == 1


def test_legend_hides_and_shows_a_curve(made: Made, look: Any) -> None:
    seen = look(made.page)
    figure = seen.drawn("lines")
    button = figure.locator(".legend button").first
    button.click()
    assert button.get_attribute("aria-pressed") == "false"
    assert figure.locator(".series.off").count() == 1
    button.click()
    assert figure.locator(".series.off").count() == 0


def test_map_switches_filters_and_shows_neighbours(made: Made, look: Any) -> None:
    seen = look(made.page)
    figure = seen.drawn("map")
    place = "document.querySelector('figure.map .point').getAttribute('cx')"
    before = seen.tab.evaluate(place)
    figure.get_by_role("button", name="PCA").click()
    assert seen.tab.evaluate(place) != before
    figure.locator("select").first.select_option("1")
    assert figure.locator(".point.dimmed").count() > 0
    figure.locator("select").first.select_option("")
    shown = figure.locator(".inspected").inner_text()
    figure.locator(".near-list button").first.click()
    assert figure.locator(".inspected").inner_text() != shown
    assert figure.locator(".near-list button").count() == 6
    seen.until(
        "document.querySelector('figure.map canvas').getContext('2d')"
        ".getImageData(0, 0, 99, 99).data.some((value) => value > 0)"
    )


def test_cost_can_be_chosen(made: Made, look: Any) -> None:
    seen = look(made.page)
    figure = seen.drawn("scatter")
    figure.locator("select").select_option(label="parameters trained")
    assert "parameters trained" in figure.locator(".plot").inner_text()


def test_every_chart_has_its_numbers_as_a_table(made: Made, look: Any) -> None:
    seen = look(made.page)
    seen.draw_all()
    rows = seen.tab.evaluate(
        "[...document.querySelectorAll('figure.chart')].map((f) => {"
        " f.querySelector('details.numbers').open = true; return f; }).length"
    )
    assert rows > 10
    seen.until(
        "[...document.querySelectorAll('figure.chart .numbers')]"
        ".every((d) => d.querySelectorAll('tbody tr').length)"
    )


def test_theme_button_turns_the_colours(made: Made, look: Any) -> None:
    seen = look(made.page, scheme="light")
    colour = "getComputedStyle(document.body).backgroundColor"
    light = seen.tab.evaluate(colour)
    seen.tab.get_by_role("button", name="Show in dark colours").click()
    dark = seen.tab.evaluate(colour)
    assert light != dark
    assert look(made.page, scheme="dark").tab.evaluate(colour) == dark


def test_contents_open_the_part_they_lead_to(made: Made, look: Any) -> None:
    seen = look(made.page)
    entry = seen.tab.locator("nav.contents a", has_text="Nearest class mean")
    part = str(entry.get_attribute("href")).removeprefix("#")
    entry.click()
    seen.until(f"document.getElementById('{part}').open")


_TWO_FRAMES = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"


@pytest.mark.parametrize("width", [390, 1280])
def test_contents_links_land_on_their_headings(made: Made, look: Any, width: int) -> None:
    seen = look(made.page, width)
    seen.tab.emulate_media(reduced_motion="reduce")  # then the page jumps where it else glides
    links = seen.tab.locator("nav.contents a")
    anchors = [links.nth(i).get_attribute("href")[1:] for i in range(links.count())]
    assert len(anchors) > 10
    for anchor in anchors:
        if width < 1000 and not seen.tab.evaluate("document.querySelector('nav details').open"):
            seen.tab.evaluate("scrollTo({top: 0, behavior: 'instant'})")
            seen.tab.locator("nav.contents summary").click()
        seen.tab.evaluate(f"document.querySelector('nav a[href=\"#{anchor}\"]').click()")
        heading = f"document.querySelector('#{anchor} > h2, #{anchor}:not(:has(> h2))')"
        top = f"{heading}.getBoundingClientRect().top"
        end = "scrollY + innerHeight >= document.documentElement.scrollHeight - 2"
        landed = f"({end}) || (-1 <= {top} && {top} <= 20)"
        seen.until(landed)
        seen.tab.evaluate(_TWO_FRAMES)  # what is drawn only now moves nothing
        assert seen.tab.evaluate(landed), (anchor, seen.tab.evaluate(top))


def test_what_is_open_is_drawn_at_once(made: Made, look: Any) -> None:
    seen = look(made.page)
    undrawn = (
        "[...document.querySelectorAll('figure.chart')].filter((f) =>"
        " f.querySelector('.plot').clientWidth && !f.dataset.drawn).length"
    )
    assert seen.tab.evaluate(undrawn) == 0
    seen.tab.evaluate("document.querySelector('details.method:not([open])').open = true")
    seen.until(f"{undrawn} === 0")


def test_classes_differ_by_more_than_colour(made: Made, look: Any) -> None:
    seen = look(made.page)
    figure = seen.drawn("map")
    assert figure.locator(".class-name").count() == 4
    kinds = seen.tab.evaluate(
        "[...document.querySelectorAll('figure.map .legend .key svg')].slice(0, 4)"
        ".map((s) => s.firstChild.tagName + (s.firstChild.getAttribute('d') ?? '').slice(-8))"
    )
    assert len(set(kinds)) == 4
    dashes = seen.tab.evaluate(
        "[...document.querySelectorAll('figure[data-kind=lines] .series:not(.ink) .path')]"
        ".slice(0, 4).map((p) => getComputedStyle(p).strokeDasharray)"
    )
    assert len(set(dashes)) == 4


@pytest.mark.parametrize("width", [390, 1280])
def test_every_point_of_the_cost_plot_is_named(made: Made, look: Any, width: int) -> None:
    seen = look(made.page, width)
    figure = seen.drawn("scatter")
    points = figure.locator("circle.value").count()
    names, numbers = figure.locator(".point-name").count(), figure.locator(".disc-number").count()
    assert sorted((names, numbers)) == [0, points]
    if numbers:
        assert figure.locator(".legend .key").count() == points
    boxes = figure.locator(".point-name, .disc").evaluate_all(
        "all => all.map((one) => one.getBoundingClientRect())"
        ".map((b) => [b.x, b.y, b.right, b.bottom])"
    )
    for number, (left, top, right, bottom) in enumerate(boxes):
        for other in boxes[:number]:
            apart = right < other[0] or left > other[2] or bottom < other[1] or top > other[3]
            assert apart, "no label covers another"


def test_printing_opens_everything(made: Made, look: Any) -> None:
    seen = look(made.page)
    seen.draw_all()
    closed = "document.querySelectorAll('main details:not(.numbers):not([open])').length"
    assert seen.tab.evaluate(closed) == 0
    seen.tab.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert seen.tab.evaluate(closed) > 0
    assert len(seen.tab.pdf()) > 50_000


def test_hostile_names_run_nothing(hostile: Made, look: Any) -> None:
    seen = look(hostile.page)
    with no_complaints(seen):
        seen.draw_all()
        seen.tab.wait_for_timeout(200)
        assert seen.tab.get_by_text("<script>alert(1)</script>").count() > 0


def test_index_leads_to_the_report(made: Made, look: Any) -> None:
    index = made.world.workspace.reports / "index.html"
    seen = look(index, 320)
    assert seen.complaints == []
    assert seen.tab.evaluate("document.documentElement.scrollWidth") <= 320
    seen.tab.locator("a[href='toy.html']").click()
    assert "toy" in seen.tab.title()
