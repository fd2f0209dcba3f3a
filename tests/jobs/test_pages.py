"""The pages as a browser shows them: on a desk and on a phone, light and dark, with the keyboard, and with no error.

Needs Chromium and its driver (`apt-get install chromium chromium-driver`); without them the tests are skipped.
"""

import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

from tests.inspection_data import dataset
from tests.pages import SWEEP, story_of, sweep_effects, sweep_rows
from tests.support import present
from tsdfm.jobs.ablate.page import ablation_page
from tsdfm.jobs.demo.page import report_page
from tsdfm.pipeline.dataset.manifest import read_vocabulary
from tsdfm.pipeline.dataset.player import player_page
from tsdfm.pipeline.dataset.summary import read_trajectories, summarise
from tsdfm.schemas.ablate import Sweep

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None, reason="no Chromium: apt-get install chromium chromium-driver")]
NAMES = ("report", "ablation", "player")
DESK, PHONE = (1440, 900), (390, 844)
SIZES = {"desk": DESK, "laptop": (1280, 800), "phone": PHONE, "small phone": (360, 640)}
SMALLEST = 11.0  # pixels high that letters may be

# What stands out of the window and scrolls nowhere, and letters that are too small, of all that is visible.
FAULTS = """
const visible = [...document.querySelectorAll("body *")].filter((each) => {
  const box = each.getBoundingClientRect();
  return each.checkVisibility() && box.width > 1 && box.height > 1;
});
const written = visible.filter((each) => [...each.childNodes].some((node) => node.nodeType === 3 && node.data.trim()));
const said = (each) => `${each.tagName} ${each.textContent.trim().slice(0, 40)}`;
const size = (each) => {
  const matrix = each.ownerSVGElement ? each.getScreenCTM() : null;
  return parseFloat(getComputedStyle(each).fontSize) * (matrix ? Math.hypot(matrix.a, matrix.b) : 1);
};
const out = (each) => !each.closest(".scroll") && each.getBoundingClientRect().right > innerWidth + 1;
return {
  wide: document.documentElement.scrollWidth - innerWidth,
  out: visible.filter((each) => !(each instanceof SVGElement) || each instanceof SVGTextElement).filter(out).map(said),
  small: written.filter((each) => size(each) < arguments[0]).map((each) => `${size(each)} ${said(each)}`),
};
"""
# Letters whose contrast with what is behind them is under 4.5 (WCAG AA).
CONTRASTS = """
const channels = (colour) => colour.match(/[\\d.]+/g).map(Number);
const light = (colour) => channels(colour).slice(0, 3).map((c) => c / 255).map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
  .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
const behind = (each) => {
  for (let at = each; at; at = at.parentElement) {
    const colour = channels(getComputedStyle(at).backgroundColor);
    if (colour.length < 4 || colour[3] === 1) return getComputedStyle(at).backgroundColor;
  }
  return "rgb(255, 255, 255)";
};
return [...document.querySelectorAll("body *")].filter((each) => each.checkVisibility() && each.getBoundingClientRect().width > 1
    && [...each.childNodes].some((node) => node.nodeType === 3 && node.data.trim())).flatMap((each) => {
  const style = getComputedStyle(each), colour = each instanceof SVGElement ? style.fill : style.color;
  const [a, b] = [light(colour), light(behind(each))].sort((x, y) => y - x);
  const ratio = (a + 0.05) / (b + 0.05);
  return ratio < arguments[0] ? [`${ratio.toFixed(2)} ${each.tagName} ${each.textContent.trim().slice(0, 40)}`] : [];
});
"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory, tiny_models) -> dict[str, str]:
    """Name -> URI of each page."""
    folder = tmp_path_factory.mktemp("pages")
    store, manifest = dataset("mask", folder / "out", tiny_models)
    sweep = Sweep.model_validate(SWEEP)
    texts = {
        "report": report_page(story_of(summarise(store))),
        "ablation": ablation_page(sweep, sweep_rows(sweep), sweep_effects(sweep)),
        "player": player_page(manifest, read_trajectories(store, manifest, range(3)), read_vocabulary(store, manifest)),
    }
    for name, text in texts.items():
        (folder / f"{name}.html").write_text(text)
    return {name: (folder / f"{name}.html").as_uri() for name in texts}


class Browser:
    """Chromium without a window, in which pages are opened at a size and in a scheme."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def show(self, uri: str, size: tuple[int, int] = DESK, scheme: str = "light") -> None:
        width, height = size
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {
            "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600})
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {
            "features": [{"name": "prefers-color-scheme", "value": scheme}, {"name": "prefers-reduced-motion", "value": "reduce"}]})
        self.driver.get(uri)

    def run(self, script: str, *arguments: object) -> Any:
        return self.driver.execute_script(script, *arguments)

    def press(self, *keys: str) -> None:
        for key in keys:
            ActionChains(self.driver).send_keys(key).perform()

    @property
    def errors(self) -> list[Any]:
        """What the console said since it was last asked."""
        return list(self.driver.get_log("browser"))

    @property
    def focus(self) -> dict[str, str]:
        """What has the focus: its name, and the style of its outline."""
        return self.run("""const at = document.activeElement, drawn = at.type === "radio" ? at.nextElementSibling : at;
            return { name: at.id || at.name || at.className || at.tagName, outline: getComputedStyle(drawn).outlineStyle };""")

    @property
    def clock(self) -> str:
        return str(self.run('return document.getElementById("clock").textContent'))


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Browser]:
    options = webdriver.ChromeOptions()
    options.binary_location = present(CHROMIUM)
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
                     "--disable-background-networking", f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(present(DRIVER)))
    yield Browser(driver)
    driver.quit()


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("name", NAMES)
def test_a_page_fits_and_can_be_read(browser, pages, name, size):
    browser.show(pages[name], size)
    found = browser.run(FAULTS, SMALLEST)
    assert found["wide"] <= 0
    assert found["out"] == []
    assert found["small"] == []
    assert browser.errors == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
@pytest.mark.parametrize("name", NAMES)
def test_letters_stand_out_in_either_scheme(browser, pages, name, size, scheme):
    """Those of plots, too: of axes at 4.5, and of curves' labels, which take the colour of the curve, at 3."""
    browser.show(pages[name], size, scheme)
    assert [each for each in browser.run(CONTRASTS, 4.5) if " text " not in each] == []
    assert browser.run(CONTRASTS, 3.0) == []
    page = browser.run("return getComputedStyle(document.body).backgroundColor")
    assert (page == "rgb(246, 245, 242)") == (scheme == "light")
    assert browser.errors == []


@pytest.mark.parametrize("name", ["report", "ablation"])
def test_tables_fit_a_laptop_and_scroll_in_their_own_frame_on_a_phone(browser, pages, name):
    cut = "return [...document.querySelectorAll('.scroll')].filter((each) => each.scrollWidth > each.clientWidth + 1).length"
    browser.show(pages[name], SIZES["laptop"])
    assert browser.run(cut) == 0
    browser.show(pages[name], PHONE)
    assert browser.run(cut) > 0
    before = browser.run("const all = [...document.querySelectorAll('a, summary, [tabindex]')].filter((each) => each.checkVisibility());"
                         "return all.findIndex((each) => each.className === 'scroll')")
    browser.press(*[Keys.TAB] * (before + 1))  # the first table takes the focus in its turn, and the arrows scroll it
    assert browser.focus == {"name": "scroll", "outline": "solid"}
    browser.press(*[Keys.ARROW_RIGHT] * 3)
    assert browser.run("return new Promise((done) => setTimeout(() => done(document.activeElement.scrollLeft), 300))") > 0


@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
def test_a_plot_is_drawn_for_its_window(browser, pages, size):
    browser.show(pages["report"], size)
    shown = browser.run("return [...document.querySelectorAll('.plot svg')].filter((each) => each.checkVisibility())"
                        ".map((each) => each.parentElement.className)")
    assert shown == ["wide" if size == DESK else "narrow"] * 3


def test_the_player_opens_on_what_was_written(browser, pages):
    browser.show(pages["player"])
    assert browser.clock == "step 37 of 37  ·  t = 1"
    assert browser.run("return document.querySelectorAll('.text span.mask').length") == 0
    assert browser.run("return document.querySelectorAll('tr.chosen').length") == 1


def test_the_player_obeys_the_keyboard(browser, pages):
    browser.show(pages["player"])
    browser.press(Keys.HOME)
    assert browser.clock.endswith("t = 0.000")
    browser.press(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    second = browser.clock
    browser.press(Keys.ARROW_RIGHT, Keys.ARROW_LEFT)
    assert browser.clock == second != "step 0 of 37  ·  t = 0.000"
    browser.press(Keys.END)
    assert browser.clock.endswith("t = 1")
    browser.press(Keys.SPACE)  # plays, from the start
    assert browser.run("return document.getElementById('play').textContent") == "Pause"
    assert not browser.clock.endswith("t = 1")
    browser.press(Keys.SPACE)
    assert browser.run("return document.getElementById('play').textContent") == "Play"
    assert browser.errors == []


def test_the_focus_goes_through_the_player_in_order_and_can_be_seen(browser, pages):
    browser.show(pages["player"])
    seen = []
    for _ in range(8):
        browser.press(Keys.TAB)
        seen.append(browser.focus)
    assert [each["name"] for each in seen] == ["trajectory", "speed", "arm", "play", "back", "next", "slider", "scroll"]
    assert {each["outline"] for each in seen} == {"solid"}


def test_the_players_slider_and_candidates_fit_a_phone(browser, pages):
    browser.show(pages["player"], PHONE)
    boxes = {name: browser.run(f"const box = document.querySelector('{name}').getBoundingClientRect(); return [box.width, box.height]")
             for name in ("#slider", "#play", "#back", "#next")}
    assert boxes["#slider"][0] > 340
    assert all(height >= 32 for _, height in boxes.values())
    assert browser.run("const table = document.querySelector('.scroll'); return table.scrollWidth - table.clientWidth") <= 0


def test_the_player_does_not_jump_while_it_plays(browser, pages):
    browser.show(pages["player"])
    heights = browser.run("return player.pictures.map((step, index) => { go(index); return document.body.offsetHeight; })")
    assert max(heights) - min(heights) <= 40
