"""The page in Chromium, as a person uses it: `make browser`."""

import json
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from helpers.segmentation.segmenters import ColourSegmenter
from helpers.serve.apps import TOKEN, Served, image_bytes, served
from regionqa.backends.base import Completion
from regionqa.boxes.files import read_boxes
from regionqa.bundles.card import ConfidenceCard
from regionqa.detection.base import DetectorInfo, ScoredBoxes
from regionqa.detection.cards import Vocabulary
from regionqa.requests import Request
from regionqa.segmentation.marks import PointSegmenter
from regionqa.serve.options import ServeLimits
from regionqa.serve.proposals import Proposers
from regionqa.serve.server import PageServer, listening

pytestmark = pytest.mark.browser

DESKTOP = {"viewport": {"width": 1280, "height": 800}}
PHONE = {"viewport": {"width": 375, "height": 740}, "has_touch": True, "is_mobile": True}
SIZES = pytest.mark.parametrize("device", [DESKTOP, PHONE], ids=["desktop", "phone"])
SERIOUS = ("serious", "critical")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """Chromium, of the system or of Playwright."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs the extra `browser`")
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    with sync_api.sync_playwright() as playwright:
        if path is None and not Path(playwright.chromium.executable_path).exists():
            pytest.skip("needs Chromium")
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


def described(request: Request) -> Completion:
    """An answer that shows what was asked; unsure if the question has the word."""
    boxes = " and ".join(str(region.box) for region in request.regions) or "all of it"
    text = f"{boxes} after {len(request.history)}"
    return Completion(text, 3, 0.1 if "sure" in request.question else 0.9)


def policy_faults(line: str) -> list[str]:
    """A line of the browser's console, if the content security policy is its subject."""
    return [line] if "Content Security Policy" in line else []


@contextmanager
def opened(
    chromium: Any, folder: Path, device: dict[str, Any], proposers: Proposers | None = None
) -> Iterator[tuple[Any, Served]]:
    """Serve a folder and open its page; faults of the page fail the test."""
    faults: list[str] = []
    card = ConfidenceCard(threshold=0.5)
    with (
        served(folder, max_regions=8, confidence=card, proposers=proposers) as app,
        listening("127.0.0.1", 0) as bound,
    ):
        app.backend.script = described
        server = PageServer(app.app, ServeLimits(), app.scheduler.close)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        context = chromium.new_context(accept_downloads=True, **device)
        try:
            page = context.new_page()
            page.on("pageerror", lambda error: faults.append(str(error)))
            page.on(
                "console", lambda line: faults.append(line.text) if "policy" in line.text else 0
            )
            port = bound.getsockname()[1]
            page.goto(f"http://127.0.0.1:{port}/?token={TOKEN}")
            assert page.url == f"http://127.0.0.1:{port}/", "the token is in no history"
            page.wait_for_selector("#pixels:not([hidden])")
            yield page, app
        finally:
            context.close()
            server.should_exit = True
            thread.join(60)
    assert faults == []


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with an image of 400 x 400 pixels and a small one."""
    path = tmp_path / "photos"
    path.mkdir()
    Image.new("RGB", (400, 400), "red").save(path / "large.png")
    Image.new("RGB", (20, 30), "blue").save(path / "small.png")
    return path


def draw(page: Any, box: tuple[float, float, float, float]) -> None:
    """Drag from corner to corner of a box in pixels of the image."""
    shown = page.locator("#pixels").bounding_box()
    scale = shown["width"] / page.locator("#pixels").evaluate("e => e.offsetWidth")
    x, y = shown["x"], shown["y"]
    page.mouse.move(x + box[0] * scale, y + box[1] * scale)
    page.mouse.down()
    page.mouse.move(x + (box[0] + box[2]) / 2 * scale, y + (box[1] + box[3]) / 2 * scale)
    page.mouse.move(x + box[2] * scale, y + box[3] * scale)
    page.mouse.up()


def ask(page: Any, question: str) -> str:
    """Ask, and return the answer that is shown."""
    before = page.locator("#talk .answer").count()
    page.fill("#question", question)
    page.click("#send")
    page.wait_for_selector("#stop", state="hidden")
    page.wait_for_function(f"document.querySelectorAll('#talk .answer').length > {before}")
    page.wait_for_selector("#talk .busy", state="detached")
    return str(page.locator("#talk .answer").last.text_content())


def regions(page: Any) -> list[list[int]]:
    """Boxes as they are named to screen readers, in pixels of the image."""
    texts = page.locator("#boxes .badge").all_text_contents()
    return [[round(float(n)) for n in text.split(": ")[1].strip(".").split(", ")] for text in texts]


def download(page: Any, button: str, path: Path) -> Path:
    page.click("#open-export")
    with page.expect_download() as started:
        page.click(button)
    started.value.save_as(path / started.value.suggested_filename)
    return path / str(started.value.suggested_filename)


def audit(page: Any) -> list[str]:
    """Serious violations that axe-core finds."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs `browser`")
    found = axe.Axe().run(page).response["violations"]
    return [f"{each['id']}: {each['nodes'][0]['target']}" for each in found
            if each["impact"] in SERIOUS]  # fmt: skip


@SIZES
def test_draw_ask_follow_up_caption_export_and_reload(
    chromium: Any, folder: Path, tmp_path: Path, device: dict[str, Any]
) -> None:
    with opened(chromium, folder, device) as (page, _):
        draw(page, (40, 40, 200, 200))
        draw(page, (220, 60, 360, 300))
        first, second = regions(page)
        assert first == pytest.approx([40, 40, 200, 200], abs=3)
        assert second == pytest.approx([220, 60, 360, 300], abs=3)
        texts = [",".join(map(str, box)) for box in (first, second)]
        assert ask(page, "is <region1> on <region2>?") == f"{texts[0]} and {texts[1]} after 0"
        draw(page, (60, 240, 160, 360))
        assert ask(page, "and <region3>?").endswith("after 1")
        page.click("#caption")
        page.wait_for_function("document.querySelectorAll('#talk .answer').length === 5")
        page.wait_for_selector("#talk .busy", state="detached")
        notes = page.locator("#boxes .note").all_text_contents()
        assert [text.rpartition(" after")[0] for text in notes][:2] == texts
        assert audit(page) == []
        boxes = read_boxes(download(page, "#save-boxes", tmp_path)).boxes_for("large.png")
        assert boxes is not None
        assert [list(map(int, box.values)) for box in boxes] == regions(page)
        lines = download(page, "#save-answers", tmp_path).read_text().splitlines()
        assert [json.loads(line)["model"] for line in lines] == ["toy"] * 5
        with Image.open(download(page, "#save-drawing", tmp_path)) as drawn:
            assert drawn.width >= 640
        page.reload()
        page.wait_for_selector("#boxes .box")
        assert len(regions(page)) == 3
        assert page.locator("#talk .answer").count() == 5
        assert page.evaluate("document.documentElement.scrollWidth") <= device["viewport"]["width"]


def test_keys_alone(chromium: Any, folder: Path) -> None:
    with opened(chromium, folder, DESKTOP) as (page, _):
        page.focus("#stage")
        page.keyboard.press("n")
        (made,) = regions(page)
        for keys in ("ArrowRight", "Shift+ArrowDown", "Alt+ArrowLeft"):
            page.keyboard.press(keys)
        x0, y0, x1, y1 = made
        assert regions(page) == [[x0 + 1, y0 + 10, x1, y1 + 10]]
        page.keyboard.press("Control+z")
        assert regions(page) == [[x0 + 1, y0 + 10, x1 + 1, y1 + 10]]
        page.keyboard.press("Control+Shift+z")
        assert regions(page) == [[x0 + 1, y0 + 10, x1, y1 + 10]]
        page.keyboard.press("Enter")
        assert page.input_value("#question") == "<region1>"
        page.keyboard.press("Delete")
        assert regions(page) == []
        assert page.locator("#live").text_content() == "Region 1 deleted"


@SIZES
def test_what_is_not_sure_is_shown_as_such(
    chromium: Any, folder: Path, device: dict[str, Any]
) -> None:
    scheme = device | {"color_scheme": "dark"}
    with opened(chromium, folder, scheme) as (page, _):
        draw(page, (40, 40, 200, 200))
        assert ask(page, "are you sure?") == "? I am not sure."
        assert page.locator("#boxes .note.unsure").count() == 1
        assert audit(page) == []
        page.click("text=Answer anyway")
        page.wait_for_selector("#talk .unsure", state="detached")
        page.wait_for_selector("#talk .busy", state="detached")
        assert "after 0" in str(page.locator("#talk .answer").last.text_content())


def test_moved_regions_begin_a_new_conversation(chromium: Any, folder: Path) -> None:
    with opened(chromium, folder, DESKTOP) as (page, _):
        draw(page, (40, 40, 200, 200))
        assert ask(page, "a?").endswith("after 0")
        assert ask(page, "b?").endswith("after 1")
        page.locator("#boxes .box").focus()
        page.keyboard.press("ArrowLeft")
        assert ask(page, "c?").endswith("after 0")
        page.click("#new-talk")
        assert ask(page, "d?").endswith("after 0")


def test_text_of_users_files_and_models_is_text(chromium: Any, folder: Path) -> None:
    evil = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"
    with opened(chromium, folder, DESKTOP) as (page, app):
        app.backend.script = lambda request: Completion(evil, 3, 0.9)
        assert ask(page, evil) == evil
        name = "<img src=x onerror=alert(1)>.png"
        file = {"name": name, "mimeType": "image/png", "buffer": image_bytes()}
        page.set_input_files("#upload", file)
        page.wait_for_selector("#strip li:nth-child(3)")
        assert "<img src=x" in page.locator("#strip").inner_text()
        assert page.title() == "regionqa"
        assert page.locator("#talk img, #talk script, #strip img[src=x]").count() == 0


def test_faults_are_told(chromium: Any, folder: Path) -> None:
    with opened(chromium, folder, DESKTOP) as (page, _):
        page.set_input_files("#upload", {"name": "x.png", "mimeType": "image/png", "buffer": b"no"})
        page.wait_for_selector("#alert:not([hidden])")
        assert page.locator("#alert").inner_text().startswith("x.png: not an image")
        page.fill("#question", "what is <region7>?")
        assert page.locator("#about").inner_text() == "There is no region 7."
        page.click("#send")
        assert page.locator("#alert").inner_text() == "There is no region 7; draw it first."


def click(page: Any, x: float, y: float, *keys: str) -> None:
    """Click on a pixel of the image, while keys are held."""
    shown = page.locator("#pixels").bounding_box()
    scale = shown["width"] / page.locator("#pixels").evaluate("e => e.offsetWidth")
    for key in keys:
        page.keyboard.down(key)
    page.mouse.click(shown["x"] + x * scale, shown["y"] + y * scale)
    for key in keys:
        page.keyboard.up(key)


class Squares:
    """A detector that finds two boxes in every image."""

    info = DetectorInfo("squares", "1", Vocabulary.fixed, ("square",), 0.5, 1.0, "cpu", "none")

    def check_phrases(self, phrases: Sequence[str]) -> None:
        assert not phrases

    def detect(self, image: Image.Image, phrases: Sequence[str], min_score: float) -> ScoredBoxes:
        boxes = np.array([[10.0, 10, 50, 50], [60, 60, 90, 90]])
        return ScoredBoxes(boxes, np.array([0.9, 0.8]), (0, 0), ("square", "square"))


@SIZES
def test_click_to_select_and_proposals(
    chromium: Any, tmp_path: Path, device: dict[str, Any]
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    image = Image.new("RGB", (400, 400), "white")
    pen = ImageDraw.Draw(image)
    pen.ellipse((40, 40, 180, 160), fill="red")
    pen.rectangle((220, 220, 359, 319), fill="blue")
    image.save(folder / "large.png")
    segmenter = PointSegmenter(ColourSegmenter())
    asked: list[Request] = []

    def script(request: Request) -> Completion:
        asked.append(request)
        return described(request)

    with opened(chromium, folder, device, Proposers(segmenter, Squares())) as (page, app):
        app.backend.script = script
        wide = "#boxes .badge:has-text('360')"
        page.click("#select")
        click(page, 100, 100)
        page.wait_for_selector("#boxes .box canvas")
        assert regions(page) == [[40, 40, 181, 161]]
        click(page, 300, 300, "Shift")
        page.wait_for_selector(wide, state="attached")
        assert regions(page) == [[40, 40, 360, 320]]
        click(page, 230, 230, "Alt")
        page.wait_for_selector(wide, state="detached")
        draw(page, (230, 230, 350, 310))
        page.wait_for_selector("#boxes .box:nth-child(2) canvas")
        assert regions(page) == [[40, 40, 181, 161], [220, 220, 360, 320]]
        assert (
            ask(page, "is <region1> on <region2>?") == "40,40,181,161 and 220,220,360,320 after 0"
        )
        masks = [region.mask for region in asked[-1].regions]
        assert [mask.bounds for mask in masks if mask] == [(40, 40, 181, 161), (220, 220, 360, 320)]
        page.click("#propose")
        page.wait_for_selector("#boxes .box:nth-child(4)")
        assert regions(page)[2:] == [[10, 10, 50, 50], [60, 60, 90, 90]]
        assert audit(page) == []
        page.screenshot(path=tmp_path / "page.png")
        page.click("#undo")
        assert len(regions(page)) == 2
        found = read_boxes(download(page, "#save-boxes", tmp_path), masks=True)
        boxes = found.boxes_for("large.png") or ()
        assert [box.resolve(400, 400).mask for box in boxes] == masks


def test_without_models_nothing_proposes(chromium: Any, folder: Path) -> None:
    with opened(chromium, folder, DESKTOP) as (page, _):
        assert page.locator("#select, #exclude, #propose, #find").count() == 4
        assert page.locator("#select:visible, #exclude:visible, #propose:visible").count() == 0
