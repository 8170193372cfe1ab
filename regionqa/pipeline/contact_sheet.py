"""A contact sheet of training records: one HTML file with their images, boxes and conversations."""

import base64
import io
import re
from collections.abc import Callable, Iterator
from html import escape
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from regionqa.data.english import counted
from regionqa.data.overview.samples import RecordSample
from regionqa.data.records import Record
from regionqa.errors import ImageError
from regionqa.files import write_whole
from regionqa.images.reading import open_image
from regionqa.language.references import REFERENCE
from regionqa.pipeline.drawing import colour_of, draw_boxes, text_colour

SIDES = (320, 640)
"""Range of an image's longer side on the sheet, in pixels."""
JPEG_QUALITY = 82
MARK = re.compile(REFERENCE.pattern.replace("<", "&lt;").replace(">", "&gt;"))
"""A reference to a region in escaped text."""
HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; \
style-src 'unsafe-inline'">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ margin: 1rem; font: 15px/1.4 system-ui, sans-serif; }}
h1 {{ font-size: 1.2rem; }} h2 {{ font-size: 1.05rem; margin: 1.5rem 0 .5rem; }}
section {{ display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(20rem, 1fr)); }}
article {{ border: 1px solid #8886; border-radius: .4rem; padding: .5rem;
  overflow-wrap: anywhere; }}
img {{ display: block; max-width: 100%; margin: auto; }}
article > p {{ margin: .3rem 0; font-size: .8rem; opacity: .75; }}
dl {{ margin: 0; }} dt {{ font-weight: 600; margin-top: .4rem; }} dd {{ margin: 0 0 0 1rem; }}
dt, dd {{ white-space: pre-wrap; }}
.region {{ padding: 0 .35em; border-radius: .3em; white-space: nowrap; }}
</style>
</head>
<body>
<h1>{title}</h1>
"""


def write_contact_sheet(path: Path, sample: RecordSample, warn: Callable[[str], None]) -> int:
    """Write the records of a sample, by kind.

    Args:
        path: The HTML file; it needs no other.
        sample: The records.
        warn: Called with a line for each image that cannot be decoded, whose record is left out.

    Returns:
        Number of records written.

    Raises:
        OutputError: The file cannot be written.
    """
    total = sum(kind.total for kind in sample.kinds)
    title = f"{sample.stream.source.name}: {counted(total, 'record')}"
    written = 0
    with write_whole(path) as file:
        _write(file, HEAD.format(title=escape(title)))
        for kind in sample.kinds:
            shown = f"{len(kind.drawn):,} of {counted(kind.total, 'record')}"
            _write(file, f"<h2>{escape(kind.kind)}: {shown}</h2>\n<section>\n")
            for record in sample.records(kind):
                try:
                    _write(file, _article(record))
                    written += 1
                except ImageError as error:
                    warn(f"{record.where}: {error}")
            _write(file, "</section>\n")
        _write(file, "</body>\n</html>\n")
    return written


def _write(file: BinaryIO, text: str) -> None:
    file.write(text.encode("utf-8", "replace"))


def _article(record: Record) -> str:
    """Render a record; ImageError if its image cannot be decoded."""
    image = draw_boxes(open_image(record.image).load(), [r.box for r in record.regions], SIDES)
    parts = [
        "<article>",
        f'<img alt="" src="{_data_url(image)}">',
        f"<p>{escape(record.where)} · {escape(str(record.image))}</p>",
        *_labels(record),
        "<dl>",
    ]
    for turn in record.turns:
        parts += [f"<dt>{_text(turn.question)}</dt>", f"<dd>{_text(turn.answer)}</dd>"]
    return "\n".join([*parts, "</dl>", "</article>", ""])


def _labels(record: Record) -> Iterator[str]:
    """The names of the regions that have some."""
    named = [(number, each.label) for number, each in enumerate(record.regions, 1) if each.label]
    if named:
        yield f"<p>{', '.join(f'{_tag(number)} {escape(label)}' for number, label in named)}</p>"


def _text(text: str) -> str:
    return MARK.sub(lambda found: _tag(int(found[1])), escape(text))


def _tag(number: int) -> str:
    """Render a region's number in its colour."""
    ground = colour_of(number)
    style = f"background:rgb{ground};color:rgb{text_colour(ground)}"
    return f'<span class="region" style="{style}">{number}</span>'


def _data_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
