"""The application: routes of the page and of the JSON API."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from importlib.resources import files
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

import regionqa
from regionqa.boxes.files import FORMATS
from regionqa.errors import ItemError, RegionQAError, UsageError
from regionqa.images.reading import InputImage
from regionqa.options import GenerationOptions
from regionqa.serve.access import Guard
from regionqa.serve.answers import AnswersBody, AnswerService
from regionqa.serve.bodies import (
    HttpError,
    convert,
    failure,
    read_body,
    read_document,
    reply,
)
from regionqa.serve.boxes import (
    LEFT_OUT,
    BoxFileBody,
    BoxService,
    DrawingBody,
    ExportBody,
    Exported,
)
from regionqa.serve.gallery import Gallery, NotServedError
from regionqa.serve.openapi import ApiEndpoint, docs_page, openapi
from regionqa.serve.options import ServeLimits
from regionqa.serve.proposals import DetectBody, PointsBody, Proposers
from regionqa.serve.scheduler import NotAnsweringError, Scheduler, ServedModel

Result = TypeVar("Result")
Endpoint = Callable[[HttpRequest], Awaitable[Response]]

PAGE_TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
SIDES = (64, 2048)
"""Range of the longest side of a smaller image, in pixels."""
DECODED_AT_ONCE = 2
"""Images that are decoded for clients at the same time, which bounds the memory."""


class ModelBody(msgspec.Struct):
    """The model to switch to."""

    name: Annotated[str, Meta(description="One of the names of GET /v1/status.")]


UPLOAD = ApiEndpoint(
    "POST", "/v1/images", "Upload an image.", "application/octet-stream",
    (("name", "string", "Its file name."),),
    details="The body is the image file itself. The response has the name to ask about, width and "
    "height. Uploads are kept in memory until the server ends.",
)  # fmt: skip
ENDPOINTS = (
    ApiEndpoint(
        "POST", "/v1/answers", "Ask about images.", AnswersBody,
        details="A body is one request with options beside it, or has a list of `requests`. The "
        "response has `answers`, records as those of `regionqa ask --format json`, and `warnings`. "
        "With `stream`, events: `text` (the next part of an answer), `answer` (its record), "
        "`warning`, `error`, and `done` at the end.",
    ),
    ApiEndpoint("GET", "/v1/images", "List the images."),
    UPLOAD,
    ApiEndpoint("GET", "/v1/images/{name:path}", "Give the size of an image."),
    ApiEndpoint("DELETE", "/v1/images/{name:path}", "Remove an uploaded image."),
    ApiEndpoint(
        "GET", "/v1/pixels/{name:path}", "Give an image as displayed.", None,
        (("side", "integer", "Longest side in pixels, from 64 to 2048; full size without it."),),
        replies="image/*",
    ),
    ApiEndpoint("GET", "/v1/status", "Describe the model, other models and limits."),
    ApiEndpoint(
        "POST", "/v1/model", "Switch to another model, for all clients.", ModelBody,
        details="Questions that wait are answered by the model before it. If the other model "
        "cannot be loaded, the one before it remains.",
    ),
    ApiEndpoint(
        "POST", "/v1/boxes", "Write regions as a box file.", ExportBody, replies="*/*",
        details=f"If the format holds no masks, the header `{LEFT_OUT}` counts those that were "
        "left out.",
    ),
    ApiEndpoint(
        "POST", "/v1/boxes/read", "Read box files of any format.", BoxFileBody,
        details="The response has the regions of each image that the files are about, errors, "
        "warnings, and names without an image.",
    ),
    ApiEndpoint(
        "POST", "/v1/drawing", "Draw answers on their image.", DrawingBody, replies="image/png"
    ),
    ApiEndpoint(
        "POST", "/v1/segment", "Find the region that points lie on.", PointsBody,
        details="The response has its `region`, with the mask and the box around it. The server "
        "must have been started with `--segmenter`.",
    ),
    ApiEndpoint(
        "POST", "/v1/detect", "Find objects in an image.", DetectBody,
        details="The response has `regions` with labels and scores, of highest score first, and "
        "`left_out`, the number of boxes without area. The server must have been started with "
        "`--detector`.",
    ),
)  # fmt: skip
"""Endpoints that are described, in the order of the description."""


@dataclass(frozen=True)
class ServedApp:
    """Handlers of all routes."""

    gallery: Gallery
    scheduler: Scheduler
    defaults: GenerationOptions
    limits: ServeLimits
    decoding: asyncio.Semaphore
    uploading: asyncio.Semaphore
    page: Mapping[str, bytes]
    proposers: Proposers

    def routes(self) -> list[Route]:
        """Return the routes, of which `ENDPOINTS` describes those of the API."""
        answers = AnswerService(self.gallery, self.scheduler, self.defaults, self.limits)
        handlers: dict[tuple[str, str], Endpoint] = {
            ("POST", "/v1/answers"): answers.handle,
            ("GET", "/v1/images"): self.list_images,
            ("POST", "/v1/images"): self.upload,
            ("GET", "/v1/images/{name:path}"): self.describe_image,
            ("DELETE", "/v1/images/{name:path}"): self.remove_image,
            ("GET", "/v1/pixels/{name:path}"): self.pixels,
            ("GET", "/v1/status"): self.status,
            ("POST", "/v1/model"): self.switch,
            ("POST", "/v1/boxes"): self.export_boxes,
            ("POST", "/v1/boxes/read"): self.import_boxes,
            ("POST", "/v1/drawing"): self.draw,
            ("POST", "/v1/segment"): self.segment,
            ("POST", "/v1/detect"): self.detect,
            ("GET", "/openapi.json"): self.openapi,
            ("GET", "/docs"): self.docs,
            ("GET", "/"): self.index,
            ("GET", "/page/{file}"): self.asset,
        }
        return [
            Route(path, handler, methods=[method]) for (method, path), handler in handlers.items()
        ]

    # -- the page ----------------------------------------------------------------------------------

    async def index(self, http: HttpRequest) -> Response:
        """Send the page."""
        return Response(self.page["index.html"], media_type="text/html")

    async def asset(self, http: HttpRequest) -> Response:
        """Send a file of the page."""
        name = http.path_params["file"]
        if name not in self.page:
            raise HttpError(404, "no such file")
        return Response(self.page[name], media_type=PAGE_TYPES[name[name.rindex(".") :]])

    async def openapi(self, http: HttpRequest) -> Response:
        """Send the OpenAPI document."""
        return reply(openapi(ENDPOINTS))

    async def docs(self, http: HttpRequest) -> Response:
        """Send the description for people."""
        return Response(docs_page(openapi(ENDPOINTS)), media_type="text/html")

    # -- images ------------------------------------------------------------------------------------

    async def list_images(self, http: HttpRequest) -> Response:
        """List the images."""
        names = await asyncio.to_thread(self.gallery.names)
        images = [{"name": name, "uploaded": self.gallery.is_upload(name)} for name in names]
        return reply({"images": images, "left_out": self.gallery.left_out})

    async def upload(self, http: HttpRequest) -> Response:
        """Keep an image."""
        if self.uploading.locked():
            raise HttpError(
                429,
                f"{self.limits.uploads_at_once} images are being uploaded; try again",
                retry_after="1",
            )
        async with self.uploading:
            content = await read_body(http, self.limits.upload, self.limits.seconds)
            name = http.query_params.get("name", "image")
            image = await self._decoding(self.gallery.add, name, content)
        return reply(described(image), 201)

    async def describe_image(self, http: HttpRequest) -> Response:
        """Give the size of an image."""
        image = await asyncio.to_thread(self.gallery.open, http.path_params["name"])
        return reply(described(image))

    async def remove_image(self, http: HttpRequest) -> Response:
        """Remove an uploaded image."""
        self.gallery.remove(http.path_params["name"])
        return reply({})

    async def pixels(self, http: HttpRequest) -> Response:
        """Send the pixels of an image."""
        name, text = http.path_params["name"], http.query_params.get("side", "0")
        side = int(text) if text.isascii() and text.isdecimal() and len(text) < 6 else -1
        if side and not SIDES[0] <= side <= SIDES[1]:
            raise HttpError(422, f"side {text[:20]!r}: must be from {SIDES[0]} to {SIDES[1]}")
        tag = await asyncio.to_thread(self.gallery.etag, name, side)
        headers = {"etag": tag, "cache-control": "private, no-cache"}
        if http.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        content, kind = await self._decoding(self.gallery.pixels, name, side)
        return Response(content, media_type=kind, headers=headers)

    # -- the model ---------------------------------------------------------------------------------

    async def status(self, http: HttpRequest) -> Response:
        """Describe the model, what waits, and the limits."""
        scheduler = self.scheduler
        model, info = scheduler.model, scheduler.model.info
        return reply(
            {
                "version": regionqa.__version__,
                "model": {
                    "name": model.name,
                    "title": info.name,
                    "revision": info.revision,
                    "device": model.device,
                    "dtype": model.precision,
                    "max_regions": info.max_regions,
                    "multi_turn": info.multi_turn,
                    "free_questions": info.free_questions,
                    "ways": info.ways,
                    "image_question": info.image_question,
                    "region_question": info.region_question,
                    "unsure": info.confidence.unsure,
                    "note": info.note,
                },
                "models": list(scheduler.models),
                "switching_to": None if scheduler.next_name == model.name else scheduler.next_name,
                "waiting": scheduler.waiting,
                **self.proposers.describe(),
                "formats": [{"name": name, "title": each.TITLE} for name, each in FORMATS.items()],
                "limits": {
                    "questions": self.limits.requests,
                    "waiting": self.limits.waiting,
                    "upload_bytes": self.limits.upload,
                    "upload_pixels": self.limits.upload_pixels,
                    "uploads": self.limits.uploads,
                },
            }
        )

    async def switch(self, http: HttpRequest) -> Response:
        """Switch to another model, and answer once it is loaded."""
        document = await read_document(http, self.limits.body, self.limits.seconds)
        body = convert(document, ModelBody)
        try:
            waited: Future[ServedModel] = self.scheduler.switch(body.name)
            # shielded: the switch goes on although its client goes away
            await asyncio.shield(asyncio.wrap_future(waited))
        except NotAnsweringError as error:
            raise HttpError(503, str(error)) from None
        except UsageError as error:
            raise HttpError(422, str(error)) from None
        except RegionQAError as error:
            raise HttpError(409, str(error)) from None
        return await self.status(http)

    # -- box files ---------------------------------------------------------------------------------

    async def export_boxes(self, http: HttpRequest) -> Response:
        """Write a box file."""
        document = await read_document(http, self.limits.body, self.limits.seconds)
        boxes = BoxService(self.gallery, self.limits)
        return exported(await asyncio.to_thread(boxes.write, convert(document, ExportBody)))

    async def import_boxes(self, http: HttpRequest) -> Response:
        """Read box files."""
        document = await read_document(http, self.limits.box_files, self.limits.seconds)
        boxes = BoxService(self.gallery, self.limits)
        return reply(await self._decoding(boxes.read, convert(document, BoxFileBody)))

    async def draw(self, http: HttpRequest) -> Response:
        """Draw answers."""
        document = await read_document(http, self.limits.body, self.limits.seconds)
        boxes = BoxService(self.gallery, self.limits)
        return exported(await self._decoding(boxes.draw, convert(document, DrawingBody)))

    # -- proposals ---------------------------------------------------------------------------------

    async def segment(self, http: HttpRequest) -> Response:
        """Find the region that points lie on."""
        document = await read_document(http, self.limits.body, self.limits.seconds)
        body = convert(document, PointsBody)
        return reply(await self._decoding(self.proposers.segment, self.gallery, body))

    async def detect(self, http: HttpRequest) -> Response:
        """Find objects in an image."""
        document = await read_document(http, self.limits.body, self.limits.seconds)
        body = convert(document, DetectBody)
        return reply(await self._decoding(self.proposers.detect, self.gallery, body))

    async def _decoding(self, work: Callable[..., Result], *arguments: Any) -> Result:
        """Run work on pixels in a thread, little of it at a time."""
        async with self.decoding:
            return await asyncio.to_thread(work, *arguments)


def described(image: InputImage) -> dict[str, object]:
    """Return an image's name and size."""
    return {"name": image.name, "width": image.width, "height": image.height}


def exported(file: Exported) -> Response:
    """Return a file to save."""
    headers = {"content-disposition": f'attachment; filename="{file.name}"'}
    if file.left_out:
        headers[LEFT_OUT] = file.left_out
    return Response(file.content, media_type=file.media_type, headers=headers)


def read_page() -> dict[str, bytes]:
    """Return the files of the page by name."""
    folder = files("regionqa.serve") / "page"
    return {
        each.name: each.read_bytes()
        for each in folder.iterdir()
        if each.name[each.name.rfind(".") :] in PAGE_TYPES
    }


async def refused(http: HttpRequest, error: Exception) -> Response:
    """Return the response to an error: one line of JSON."""
    if isinstance(error, HttpError):
        return error.response()
    if isinstance(error, HTTPException):
        methods = error.headers or {}
        return failure(error.status_code, f"{http.method} {http.url.path}: {error.detail}", methods)
    if isinstance(error, NotServedError):
        return failure(404, str(error))
    status = 422 if isinstance(error, UsageError | ItemError) else 500
    return failure(status, str(error))


def make_app(
    gallery: Gallery,
    scheduler: Scheduler,
    *,
    token: str,
    report: Callable[[str], None],
    host: str = "127.0.0.1",
    defaults: GenerationOptions | None = None,
    limits: ServeLimits | None = None,
    proposers: Proposers | None = None,
) -> Guard:
    """Make the application.

    Args:
        gallery: The images.
        scheduler: What answers questions.
        token: What clients must know.
        report: Called with a line for each fault of the server's own.
        host: The address that is listened on.
        defaults: Options of questions that bring none.
        limits: Limits on what clients send.
        proposers: What proposes regions; None: nothing does.
    """
    limits = limits or ServeLimits()
    served = ServedApp(
        gallery,
        scheduler,
        defaults or GenerationOptions(),
        limits,
        asyncio.Semaphore(DECODED_AT_ONCE),
        asyncio.Semaphore(limits.uploads_at_once),
        read_page(),
        proposers or Proposers(),
    )
    handlers = dict.fromkeys((HttpError, HTTPException, RegionQAError), refused)
    return Guard(
        Starlette(routes=served.routes(), exception_handlers=handlers), token, host, report
    )
