"""Box files to the page and back, drawings, and the description of the API."""

import base64
import json
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from starlette.testclient import TestClient

from helpers.serve.apps import Served, served
from regionqa.boxes.files import FORMATS, ImageRegions, read_boxes, write_boxes
from regionqa.regions import Box, Region
from regionqa.serve.app import ENDPOINTS
from regionqa.serve.options import ServeLimits

REGIONS = [{"box": [1, 2, 5, 7], "label": "cat"}, {"box": [0, 0, 4.5, 4], "label": "dog"}]


def export(app: Served, format: str) -> Any:
    images = [{"image": "red.png", "regions": REGIONS}, {"image": "blue.png", "regions": REGIONS}]
    return app.client().post("/v1/boxes", json={"format": format, "images": images})


def sent(path: Path, name: str | None = None) -> dict[str, str]:
    content = base64.b64encode(path.read_bytes()).decode()
    return {"name": name or path.name, "content": content}


def read(client: TestClient, *files: dict[str, str], **options: object) -> Any:
    return client.post("/v1/boxes/read", json={"files": files} | options)


# -- export and import -----------------------------------------------------------------------------


@pytest.mark.parametrize("format", FORMATS)
def test_regions_written_in_a_format_are_read_back(
    colours: Path, tmp_path: Path, format: str
) -> None:
    with served(colours) as app:
        written = export(app, format)
        assert written.status_code == 200, written.text
        name = written.headers["content-disposition"].partition("filename=")[2].strip('"')
        if name == "boxes.zip":
            with zipfile.ZipFile(BytesIO(written.content)) as archive:
                archive.extractall(tmp_path / "labels")
            files = [
                sent(path, path.relative_to(tmp_path).as_posix())
                for path in (tmp_path / "labels").rglob("*.*")
            ]
        else:
            (tmp_path / name).write_bytes(written.content)
            assert read_boxes(tmp_path / name).format == format
            files = [sent(tmp_path / name)]
        found = read(app.client(), *files).json()
        assert (found["format"], found["errors"]) == (format, [])
        by_image = {each["image"]: each["regions"] for each in found["images"]}
        assert by_image.keys() == {"red.png", "blue.png"}
        for regions in by_image.values():
            boxes = [region["box"] for region in regions]
            assert boxes[0] == pytest.approx([1, 2, 5, 7], abs=0.51)
            assert boxes[1] == pytest.approx([0, 0, 4.5, 4], abs=0.51)
            assert [region["label"] for region in regions] in (["cat", "dog"], [None, None])


def test_boxes_json_serves_the_command_line(colours: Path, tmp_path: Path) -> None:
    with served(colours) as app:
        content = export(app, "plain").content
        assert json.loads(content) == {
            "red.png": REGIONS,
            "blue.png": REGIONS,
        }
        (tmp_path / "boxes.json").write_bytes(content)
        found = read_boxes(tmp_path / "boxes.json").boxes_for(str(colours / "red.png"))
        assert found is not None and found[0].values == (1, 2, 5, 7)


def test_boxes_without_an_image_here_are_told(colours: Path, tmp_path: Path) -> None:
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps({"red.png": [[0, 0, 80, 5]], "gone.png": [[1, 2, 3, 4]]}))
    with served(colours) as app:
        found = read(app.client(), sent(path)).json()
        assert found["images"] == [
            {"image": "red.png", "regions": [{"box": [0, 0, 8, 5], "label": None}]}
        ]
        assert found["unmatched"] == {"count": 1, "first": ["gone.png"]}
        assert "clipped to 0,0,8,5" in found["warnings"][0]


def test_one_malformed_box_fails_its_image(colours: Path, tmp_path: Path) -> None:
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps({"red.png": [[1, 2, 3]], "blue.png": [[1, 2, 3, 4]]}))
    with served(colours) as app:
        found = read(app.client(), sent(path)).json()
        assert [each["image"] for each in found["images"]] == ["blue.png"]
        (error,) = found["errors"]
        assert error["image"] == "red.png"
        assert "[0] of boxes.json: four numbers" in error["error"]
        assert "/" not in error["error"], "no folder of the server is told"


def test_conventions_of_a_plain_file(colours: Path, tmp_path: Path) -> None:
    path = tmp_path / "boxes.json"
    path.write_text('{"red.png": [[0.25, 0.25, 0.5, 0.5]]}')
    with served(colours) as app:
        found = read(app.client(), sent(path), box_format="xywh", box_units="fraction").json()
        assert found["images"][0]["regions"][0]["box"] == [2, 2, 6, 6]
        coco = tmp_path / "coco.json"
        write_boxes(coco, [ImageRegions("red.png", 8, 8, (Region(Box(1, 1, 2, 2)),))], "coco")
        refused = read(app.client(), sent(coco), box_format="xywh")
        assert refused.status_code == 422
        assert refused.json()["error"].startswith("--box-format: coco.json is COCO")


@pytest.mark.parametrize("name", [
    "../x.json", "/etc/x.json", "a/../../x.json", "..", "", "a\nb.json", "C:\\x.json",
    "..\\x.json", "a/" * 9 + "x.json",
])  # fmt: skip
def test_names_of_box_files_lead_nowhere(colours: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / "boxes.json"
    path.write_text("{}")
    with served(colours) as app:
        refused = read(app.client(), sent(path) | {"name": name})
        assert refused.status_code == 422
        assert "is not the name of a file in a folder" in refused.json()["error"]


def test_files_that_hold_no_boxes(colours: Path, tmp_path: Path) -> None:
    path = tmp_path / "boxes.json"
    with served(colours) as app:
        client = app.client()
        for content in ("", "{", "hello", '{"a": 1}'):
            path.write_text(content)
            refused = read(client, sent(path))
            assert refused.status_code == 422
            assert "boxes.json" in refused.json()["error"]
            assert str(tmp_path) not in refused.json()["error"]
        assert read(client).status_code == 422
        assert read(client, {"name": "a.json", "content": "not base64!"}).status_code == 422
        assert read(client, {"name": "a.json"}).status_code == 422
        twice = read(client, sent(path, "a.json"), sent(path, "a.json"))
        assert "is given twice" in twice.json()["error"]
        inside = read(client, sent(path, "a"), sent(path, "a/b.json"))
        assert inside.status_code == 422


def test_exports_are_bounded_and_checked(colours: Path) -> None:
    with served(colours, limits=ServeLimits(box_files=500)) as app:
        post = app.client().post
        assert post("/v1/boxes", json={"images": []}).status_code == 422
        assert post("/v1/boxes", json={"images": [{"image": "x"}]}).status_code == 404
        wrong = {"images": [{"image": "red.png", "regions": [[1]]}]}
        assert post("/v1/boxes", json=wrong).status_code == 422
        unknown = {"images": [{"image": "red.png"}], "format": "../x"}
        assert "must be one of coco" in post("/v1/boxes", json=unknown).json()["error"]
        large = {"name": "a.json", "content": "A" * 600}
        assert read(app.client(), large).status_code == 413


# -- drawings --------------------------------------------------------------------------------------


def test_a_drawing_of_answers(colours: Path) -> None:
    with served(colours) as app:
        answer = {"question": "what?", "answer": "a cat", "regions": REGIONS[:1]}
        drawn = app.client().post("/v1/drawing", json={"image": "red.png", "answers": [answer]})
        assert drawn.headers["content-type"] == "image/png"
        with Image.open(BytesIO(drawn.content)) as image:
            assert image.width >= 640


def test_drawings_are_bounded(colours: Path) -> None:
    with served(colours, limits=ServeLimits(drawn_text=100)) as app:
        answer = {"question": "what?", "answer": "x" * 100, "regions": []}
        for answers in ([answer], []):
            body = {"image": "red.png", "answers": answers}
            assert app.client().post("/v1/drawing", json=body).status_code == 422


# -- description -----------------------------------------------------------------------------------


def test_every_route_of_the_api_is_described(colours: Path) -> None:
    with served(colours) as app:
        client = app.client()
        paths = client.get("/openapi.json").json()["paths"]
        described = {(method.upper(), path) for path, each in paths.items() for method in each}
        assert described == {(e.method, e.path.replace(":path", "")) for e in ENDPOINTS}
        for method, path in described:
            found = client.request(method, path.replace("{name}", "red.png"), json={})
            assert found.status_code != 405, path
        assert client.put("/v1/answers").json() == {"error": "PUT /v1/answers: Method Not Allowed"}
        assert client.get("/v2").json() == {"error": "GET /v2: Not Found"}


def test_options_in_the_description_are_those_of_the_commands(colours: Path) -> None:
    with served(colours) as app:
        document = app.client().get("/openapi.json").json()
        body = document["components"]["schemas"]["AnswersBody"]["properties"]
        assert set(body) == {
            "image", "regions", "question", "choices", "id", "meta", "history", "requests",
            "caption", "each", "stream", "model", "way", "box_format", "box_units",
            "max_new_tokens", "guess", "unsure_below", "temperature", "seed",
        }  # fmt: skip
        assert "schema" not in body, "a path of this machine"
        references = json.dumps(document).split('"$ref": "')[1:]
        names = {text.partition('"')[0].rpartition("/")[2] for text in references}
        assert names <= document["components"]["schemas"].keys()


def test_docs_are_a_page_without_scripts(colours: Path) -> None:
    with served(colours) as app:
        page = app.client().get("/docs")
        assert page.headers["content-type"].startswith("text/html")
        assert "<script" not in page.text and "style=" not in page.text
        for endpoint in ENDPOINTS:
            assert f"{endpoint.method} {endpoint.path.replace(':path', '')}" in page.text
        assert "max_new_tokens" in page.text and "history[].answer" in page.text
