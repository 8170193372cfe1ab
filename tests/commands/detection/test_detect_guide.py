"""docs/guide/detect.md: the walk from photos to the page, exactly as it stands there."""

import json
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.serve.server_process import post, process
from helpers.tiny_models import WITH_HEAD
from regionqa.bundles.store import Bundle

GUIDE = Path(__file__).parents[3] / "docs" / "guide" / "detect.md"


def commands() -> list[str]:
    section = GUIDE.read_text(encoding="utf-8").partition("\n## From photos to answers\n")[2]
    (block,) = re.findall(r"```console\n(.*?)```", section.partition("\n## ")[0], re.DOTALL)
    return [line.removeprefix("$ ") for line in block.splitlines()]


def test_the_walk_leads_from_photos_to_the_page(
    tmp_path: Path, photos: Path, forked: str, tiny: Callable[[str], Bundle],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """With a tiny model for all of it, which has a detection head."""
    model = f"--model {tiny(WITH_HEAD).root}"
    *walk, serve = commands()
    assert [line.split()[1] for line in (*walk, serve)] == ["detect", "caption", "ask", "serve"]
    script = ["set -eu", f'regionqa() {{ {forked} "$@" {model}; }}', *walk]
    done = subprocess.run(
        ["bash", "-c", "\n".join(script)], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "error" not in done.stderr
    found = json.loads((tmp_path / "boxes.json").read_text())
    names = {each["id"]: each["file_name"] for each in found["images"]}
    boxes = [(names[each["image_id"]], each["bbox"]) for each in found["annotations"]]
    assert len(names) == 3 and len(boxes) > 3
    assert len(list((tmp_path / "drawn").iterdir())) == 3
    captions = list(map(json.loads, (tmp_path / "captions.jsonl").read_text().splitlines()))
    assert len(captions) == len(done.stdout.splitlines()) == len(boxes)
    assert all(each["answer"] and not each["error"] for each in captions)
    monkeypatch.chdir(tmp_path)
    words = shlex.split(f"{serve} {model}")[2:]
    with process(*words) as (_, port, token):
        status, reply = post(port, token, "/v1/detect", {"image": "cat.jpg"})
        assert status == 200, reply
        proposed = [each["box"] for each in reply["regions"]]
        wanted = [box for name, box in boxes if name.endswith("cat.jpg")]
        assert [[x, y, x + w, y + h] for x, y, w, h in wanted] == [
            pytest.approx(box, abs=0.02) for box in proposed
        ]
        body = {"image": "cat.jpg", "regions": proposed[:2], "caption": True}
        status, reply = post(port, token, "/v1/answers", body)
        assert (status, len(reply["answers"])) == (200, 2)
