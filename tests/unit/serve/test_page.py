"""The page: contrasts, labels, nothing inline or from elsewhere, and its functions in Node.js."""

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

import regionqa
from helpers.serve.apps import served
from regionqa.pipeline.drawing import COLOURS

PAGE = Path(regionqa.__file__).parent / "serve/page"
STYLE = (PAGE / "style.css").read_text(encoding="utf-8")
MODULES = sorted(PAGE.glob("*.js"))
LIGHT, DARK = "light", "dark"
TEXT, GRAPHIC = 4.5, 3.0
"""Least contrasts of WCAG 2.2, level AA: of text, and of what is needed to see a control."""


class Page(HTMLParser):
    """Elements of a page with their attributes, in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[int, str] = {}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.elements:
            last = len(self.elements) - 1
            self.texts[last] = self.texts.get(last, "") + data.strip()


INDEX = Page((PAGE / "index.html").read_text(encoding="utf-8"))


# -- colours ---------------------------------------------------------------------------------------


def colours(block: str) -> dict[str, str]:
    return dict(re.findall(r"--([\w-]+):\s*(#[0-9a-f]{6})", block))


def schemes() -> dict[str, dict[str, str]]:
    """Colours of the two schemes, by the name of their variable."""
    light, dark = re.findall(r":root \{([^}]*)\}", STYLE)
    return {LIGHT: colours(light), DARK: colours(light) | colours(dark)}


def luminance(colour: str) -> float:
    """Relative luminance, as WCAG 2 defines it."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: str, second: str) -> float:
    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_that_of_wcag() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("scheme", [LIGHT, DARK])
def test_contrasts(scheme: str) -> None:
    by_name = schemes()[scheme]
    pairs = [
        *((text, paper, TEXT) for text in ("ink", "muted", "accent", "alarm")
          for paper in ("paper", "panel")),
        ("on-accent", "accent", TEXT),
        ("unsure", "unsure-paper", TEXT),
        *(("line", paper, GRAPHIC) for paper in ("paper", "panel")),
        *(("accent", paper, GRAPHIC) for paper in ("paper", "panel", "stage")),
    ]  # fmt: skip
    low = {
        (text, paper): round(contrast(by_name[text], by_name[paper]), 2)
        for text, paper, least in pairs
        if contrast(by_name[text], by_name[paper]) < least
    }
    assert low == {}


def test_every_colour_is_a_declared_one() -> None:
    """So that the test of contrasts sees all; black and white border what lies on an image."""
    rules = re.sub(r"(:root|\.c\d) \{[^}]*\}", "", STYLE)
    assert set(re.findall(r"#[0-9a-f]{3,8}\b", rules)) <= {"#000000", "#ffffff", "#00000088"}
    assert not re.search(r"\b(rgb|hsl|color-mix)\(", STYLE)


def test_regions_have_the_colours_of_drawings_and_legible_numbers() -> None:
    found = [colours(block) for block in re.findall(r"\.c\d \{([^}]*)\}", STYLE)]
    assert [each["region"] for each in found] == [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in COLOURS]
    assert all(contrast(each["region"], each["on-region"]) >= TEXT for each in found)
    assert f"COLOURS = {len(COLOURS)};" in (PAGE / "regions.js").read_text(encoding="utf-8")


# -- the document ----------------------------------------------------------------------------------


def test_ids_are_unique_and_those_that_are_used_exist() -> None:
    ids = [values["id"] for _, values in INDEX.elements if "id" in values]
    assert len(ids) == len(set(ids))
    used = {values["for"] for _, values in INDEX.elements if "for" in values}
    for name in ("aria-labelledby", "aria-describedby"):
        used |= {each for _, v in INDEX.elements for each in (v.get(name) or "").split()}
    used |= {str(v["href"])[1:] for _, v in INDEX.elements if str(v.get("href")).startswith("#")}
    text = (PAGE / "app.js").read_text(encoding="utf-8")
    used |= set(re.findall(r'\$\("([\w-]+)"\)', text)) | {"add", "zoom-in", "fit", "pan"}
    assert used <= set(ids)


def test_every_control_has_a_name() -> None:
    labelled = {values.get("for") for tag, values in INDEX.elements if tag == "label"}
    unnamed = []
    for number, (tag, values) in enumerate(INDEX.elements):
        if tag in ("input", "select", "textarea"):
            inside = INDEX.elements[number - 1][0] == "label"
            if not (inside or values.get("id") in labelled):
                unnamed.append(values)
        if tag in ("button", "summary", "a", "h1", "h2") and not (
            INDEX.texts.get(number) or values.get("aria-label")
        ):
            unnamed.append(values)
    assert unnamed == []
    assert [values["lang"] for tag, values in INDEX.elements if tag == "html"] == ["en"]
    roles = {values.get("role") for _, values in INDEX.elements}
    assert {"status", "alert", "log", "toolbar"} <= roles
    assert all("type" in values for tag, values in INDEX.elements if tag == "button")


def test_nothing_is_inline_or_from_elsewhere() -> None:
    for number, (tag, values) in enumerate(INDEX.elements):
        assert "style" not in values and not [name for name in values if name.startswith("on")]
        assert tag != "style"
        if tag == "script":
            assert "src" in values and not INDEX.texts.get(number)
        for name in ("src", "href", "action"):
            assert str(values.get(name, "/")).startswith(("/", "#"))
    namespace = 'xmlns="http://www.w3.org/2000/svg"'
    for path in PAGE.iterdir():
        text = path.read_text(encoding="utf-8").replace(namespace, "")
        assert not re.search(r"https?:|(?<![:\w])//\w[\w-]*\.\w", text), path.name
        assert "@import" not in text and "url(" not in text, path.name


def test_modules_write_text_as_text() -> None:
    """No text of a model, user or file name is parsed as HTML or as a program."""
    for path in MODULES:
        text = path.read_text(encoding="utf-8")
        for name in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(",
                     "new Function", "setAttribute(\"style\"", "setAttribute(\"on"):  # fmt: skip
            assert name not in text, f"{path.name}: {name}"
        imported = re.findall(r'from "([^"]+)"', text)
        assert all((PAGE / each).is_file() and each.startswith("./") for each in imported)


def test_the_files_are_served_with_their_types(colours: Path) -> None:
    types = {".html": "text/html", ".css": "text/css", ".js": "text/javascript",
             ".svg": "image/svg+xml"}  # fmt: skip
    with served(colours) as app:
        client = app.client()
        for path in PAGE.iterdir():
            sent = client.get(f"/page/{path.name}")
            assert sent.content == path.read_bytes()
            assert sent.headers["content-type"].startswith(types[path.suffix])
        assert client.get("/").content == (PAGE / "index.html").read_bytes()
        for name in ("app.py", "../app.py", "%2e%2e%2fapp.py", "nothing.js"):
            assert client.get(f"/page/{name}").status_code == 404


# -- functions, in Node.js -------------------------------------------------------------------------

NODE = shutil.which("node")


@pytest.mark.skipif(NODE is None, reason="needs Node.js")
def test_functions_of_the_page(tmp_path: Path) -> None:
    """Geometry, undo, history, events and storage, which need no browser."""
    assert NODE is not None
    (tmp_path / "package.json").write_text('{"type": "module"}')
    shutil.copytree(PAGE, tmp_path / "page")
    shutil.copy(Path(__file__).with_name("page_checks.mjs"), tmp_path)
    ran = subprocess.run(
        [NODE, "page_checks.mjs"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (ran.returncode, ran.stdout) == (0, "done\n"), ran.stderr
