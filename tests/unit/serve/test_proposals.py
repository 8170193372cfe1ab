"""`POST /v1/segment` and `POST /v1/detect`: regions that a client need not draw."""

import base64
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from helpers.segmentation.segmenters import ColourSegmenter
from helpers.serve.apps import Served, asked_by, served
from regionqa.detection.base import open_found
from regionqa.detection.cards import find_detector
from regionqa.detection.detector import load_detector
from regionqa.images.reading import open_image
from regionqa.masks import Mask
from regionqa.options import VisionRuntime
from regionqa.runtime.devices import Device
from regionqa.segmentation.marks import PointSegmenter
from regionqa.serve.proposals import Proposers


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A red square and a blue one on white."""
    image = Image.new("RGB", (60, 40), "white")
    pen = ImageDraw.Draw(image)
    pen.rectangle((5, 5, 24, 24), fill="red")
    pen.rectangle((35, 10, 54, 29), fill="blue")
    (tmp_path / "photos").mkdir()
    image.save(tmp_path / "photos" / "a.png")
    return tmp_path / "photos"


@pytest.fixture
def app(folder: Path) -> Iterator[Served]:
    with served(folder, proposers=Proposers(PointSegmenter(ColourSegmenter(), 2))) as app:
        yield app


def segment(app: Served, **body: object) -> Any:
    return app.client().post("/v1/segment", json={"image": "a.png"} | body)


def test_points_select_a_shape_that_can_be_asked_about(app: Served) -> None:
    assert app.client().get("/v1/status").json()["segmenter"] == {"name": "colours"}
    found = segment(app, inside=[[10, 10]]).json()["region"]
    assert found["box"] == [5, 5, 25, 25]
    expected = np.zeros((40, 60), bool)
    expected[5:25, 5:25] = True
    assert np.array_equal(Mask.parse(found["mask"], "a reply").array(), expected)
    both = segment(app, inside=[[10, 10], [40, 20]]).json()["region"]
    assert both["box"] == [5, 5, 55, 30]
    one = segment(app, inside=[[10, 10], [40, 20]], outside=[[36, 11]]).json()["region"]
    assert one == found
    asked = asked_by(app)
    body = {"image": "a.png", "question": "what?", "regions": [found]}
    answer = app.client().post("/v1/answers", json=body).json()["answers"][0]
    assert answer["regions"] == [{"id": 1, **found}]
    assert asked[0].regions[0].mask == Mask.of_array(expected)
    images = [{"image": "a.png", "regions": [found]}]
    coco = app.client().post("/v1/boxes", json={"format": "coco", "images": images})
    assert coco.json()["annotations"][0]["segmentation"] == found["mask"]
    voc = app.client().post("/v1/boxes", json={"format": "voc", "images": images})
    assert voc.headers["x-left-out"] == "1 mask left out: voc holds boxes only; coco holds both"
    assert "x-left-out" not in coco.headers
    sent = {"name": "a.json", "content": base64.b64encode(coco.content).decode()}
    both_kinds = {"files": [sent], "masks": True, "scale_boxes": True}
    refused = app.client().post("/v1/boxes/read", json=both_kinds)
    assert refused.status_code == 422 and "masks are not scaled" in refused.text


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"inside": []}, "send 1 to 64 points, one of them in 'inside'"),
        ({"inside": [[1, 1]] * 65}, "send 1 to 64 points"),
        ({"inside": [[60, 1]]}, "point 60,1 lies outside the image, which is 60 x 40 pixels"),
        ({"inside": [[10, 10]], "outside": [[11, 11]]}, "colours finds nothing at 10,10 -11,11"),
        ({"inside": [[1]]}, "inside"),
        ({}, "inside"),
    ],
)
def test_refused_points(app: Served, body: dict[str, Any], message: str) -> None:
    refused = segment(app, **body)
    assert refused.status_code == 422 and message in refused.json()["error"]


def test_without_models_it_is_said_how_to_start(folder: Path) -> None:
    with served(folder) as app:
        status = app.client().get("/v1/status").json()
        assert status["segmenter"] is status["detector"] is None
        refused = segment(app, inside=[[1, 1]])
        assert refused.status_code == 422 and "with --segmenter" in refused.json()["error"]
        refused = app.client().post("/v1/detect", json={"image": "a.png"})
        assert refused.status_code == 422 and "with --detector" in refused.json()["error"]
        missing = app.client().post("/v1/segment", json={"image": "../a.png", "inside": [[1, 1]]})
        assert missing.status_code in (404, 422)


def test_boxes_are_those_of_the_detector(
    folder: Path, tiny_detector: Callable[[str], Path]
) -> None:
    model = tiny_detector("yolos")
    detector = open_found(find_detector(str(model)), Device.cpu, VisionRuntime.auto)
    with served(folder, proposers=Proposers(detector=detector)) as app:
        status = app.client().get("/v1/status").json()
        assert status["detector"] == {"name": "yolos", "takes_words": False}
        few = {"image": "a.png", "min_score": 0.05, "max_boxes": 3}
        reply = app.client().post("/v1/detect", json=few).json()
        found = reply["regions"]
        assert reply["left_out"] == 0
        expected = load_detector(model, device="cpu", min_score=0.05, max_boxes=3)
        regions = expected.find(open_image(folder / "a.png")).regions
        assert len(found) == 3
        assert [(each["label"], each["score"]) for each in found] == [
            (region.label, region.score) for region in regions
        ]
        assert [each["box"] for each in found] == [
            pytest.approx(region.box.xyxy) for region in regions
        ]
        words = app.client().post("/v1/detect", json=few | {"find": ["cup"]})
        assert words.status_code == 422 and "knows 5 classes and no others" in words.text
        wrong = app.client().post("/v1/detect", json=few | {"min_score": 7})
        assert wrong.status_code == 422
