"""`POST /v1/answers`: requests of a client, their answers as JSON or as server-sent events."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Annotated, Any, cast

import msgspec
from msgspec import Meta
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from regionqa.data.fields import RequestFields, check_json
from regionqa.errors import ItemError, QuestionError
from regionqa.flags import FLAG
from regionqa.options import BoxOptions, GenerationOptions, RuntimeOptions
from regionqa.pipeline.chat import ChatTurn, chat_turn, follow_up
from regionqa.pipeline.inputs import AskSettings, make_requests
from regionqa.pipeline.items import item_of
from regionqa.regions import BoxFormat, BoxUnits
from regionqa.requests import HistoryTurn, Request
from regionqa.serve.bodies import HttpError, convert, read_document
from regionqa.serve.events import Asking, EventStream, MadeRequests
from regionqa.serve.gallery import Gallery
from regionqa.serve.options import ServeLimits
from regionqa.serve.scheduler import Scheduler, ServedModel

SENT_OPTIONS = {
    GenerationOptions: ("max_new_tokens", "guess", "unsure_below", "temperature", "seed"),
    RuntimeOptions: ("way",),
    BoxOptions: ("box_format", "box_units"),
}
"""Options of commands that a client may send."""


class SaidTurn(msgspec.Struct, forbid_unknown_fields=True):
    """An earlier question of the conversation, and its answer."""

    question: str
    answer: str
    regions: Annotated[int, Meta(ge=0, description="Number of the regions at that time.")] = 0


class AskedRequest(RequestFields, kw_only=True):
    """One question about an image; `history` makes it a turn of a conversation."""

    history: list[SaidTurn] = msgspec.field(default_factory=list)


def _sent_options() -> list[tuple[str, Any, Any]]:
    """Return the options that a client may send as fields of a struct, with their help."""
    found = []
    for kind, names in SENT_OPTIONS.items():
        for item in fields(kind):
            if item.name in names:
                help = item.metadata[FLAG].help
                found.append((item.name, Annotated[item.type, Meta(description=help)] | None, None))
    return found


class AnswersMode(msgspec.Struct, kw_only=True):
    """How the requests of a body are asked."""

    caption: Annotated[
        bool, Meta(description="Describe each region, or the whole image if there is none.")
    ] = False
    each: Annotated[bool, Meta(description="Ask about each region separately.")] = False
    stream: Annotated[bool, Meta(description="Answer by server-sent events.")] = False
    model: Annotated[
        str | None, Meta(description="Name of the model that must answer; null: any.")
    ] = None


AnswersOptions = cast(
    type[AnswersMode],
    msgspec.defstruct("AnswersOptions", _sent_options(), bases=(AnswersMode,), kw_only=True),
)
"""`AnswersMode`, and options of commands."""


def _fields_of(kind: type[msgspec.Struct]) -> list[tuple[str, Any, Any]]:
    return [
        (each.encode_name, each.type, None if each.default is msgspec.NODEFAULT else each.default)
        for each in msgspec.structs.fields(kind)
    ]


AnswersBody = msgspec.defstruct(
    "AnswersBody",
    [
        *_fields_of(AskedRequest),
        ("requests", Annotated[list[AskedRequest] | None, Meta(description="Or several.")], None),
        *_fields_of(AnswersOptions),
    ],
    kw_only=True,
)
"""A body as it is described; `split_body` reads it."""


@dataclass(frozen=True)
class AnswerService:
    """What answers requests."""

    gallery: Gallery
    scheduler: Scheduler
    defaults: GenerationOptions
    """Options of requests that send none."""
    limits: ServeLimits

    async def handle(self, http: HttpRequest) -> Response:
        """Answer the requests of a body."""
        document = await read_document(http, self.limits.body, self.limits.seconds)
        documents, mode = split_body(document, self.limits.requests)
        model = self.scheduler.model
        if mode.model not in (None, model.name):
            raise HttpError(
                409, f"{mode.model}: is not loaded, {model.name} is; POST /v1/model switches"
            )
        options = self._options(mode)
        made = await asyncio.to_thread(self._made, documents, mode, model)
        asking = Asking(made, model, options, self.scheduler)
        faults = [request.error for request in made.requests]
        if mode.stream and None in faults:
            asking.submit()
            return EventStream(asking)
        if None in faults:
            asking.submit()
            await asking.finish(http.receive)
        return asking.reply()

    def _options(self, mode: AnswersMode) -> GenerationOptions:
        """Return the generation options of a body, over the server's own."""
        names = SENT_OPTIONS[GenerationOptions]
        given = {name: getattr(mode, name) for name in names}
        given = {name: value for name, value in given.items() if value is not None}
        most = self.limits.new_tokens
        if given.get("max_new_tokens", 0) > most:
            raise HttpError(
                422, f"max_new_tokens {given['max_new_tokens']}: must be {most} or less"
            )
        if given.get("guess"):
            given.setdefault("unsure_below", None)
        elif "unsure_below" in given:
            given.setdefault("guess", False)
        return self.defaults.replace(**given)

    def _made(
        self, documents: Sequence[dict[str, Any]], mode: AnswersMode, model: ServedModel
    ) -> "MadeRequests":
        made = MadeRequests([], [])
        for number, document in enumerate(documents, start=1):
            where = f"request {number}" if len(documents) > 1 else "the request"
            requests = self._requests(document, mode, model, where, made.warnings)
            made.requests.extend(requests)
            if len(made.requests) > self.limits.requests:
                raise HttpError(422, f"more than {self.limits.requests} questions; send fewer")
        return made

    def _requests(
        self,
        document: dict[str, Any],
        mode: AnswersMode,
        model: ServedModel,
        where: str,
        warnings: list[str],
    ) -> list[Request]:
        """Make the requests of one document; what is wrong with it becomes their error."""
        info = model.info
        said = read_history(document.pop("history", None), where)
        item = item_of(document, where)
        form, units = getattr(mode, "box_format", None), getattr(mode, "box_units", None)
        if item.boxes and (form or units):
            form, units = form or BoxFormat.xyxy, units or BoxUnits.pixel
            boxes = tuple(
                msgspec.structs.replace(box, format=form, units=units) for box in item.boxes
            )
            item = replace(item, boxes=boxes)
        settings = AskSettings(
            question=info.image_question if mode.caption else None,
            region_question=info.region_question if mode.caption else None,
            each=mode.each or mode.caption,
        )
        way = getattr(mode, "way", None)
        return [
            replace(continued(request, said, model), way=way)
            for request in make_requests([item], settings, warnings.append, self.gallery.open)
        ]


def split_body(document: dict[str, Any], most: int) -> tuple[list[dict[str, Any]], AnswersMode]:
    """Split a body into requests and options; HttpError if it is malformed.

    A body is one request with options beside it, or has a list of requests.
    """
    known = {field.encode_name for field in msgspec.structs.fields(AnswersOptions)}
    mode = {key: value for key, value in document.items() if key in known}
    rest = {key: value for key, value in document.items() if key not in known}
    try:
        check_json(mode)
    except ItemError as error:
        raise HttpError(422, str(error)) from None
    options = convert(mode, AnswersOptions)
    if "requests" not in rest:
        return [rest], options
    requests = rest.pop("requests")
    if rest:
        raise HttpError(
            422,
            f"{next(iter(rest))!r} stands beside 'requests'; put it into each of them, known "
            f"beside them are {', '.join(sorted(known))}",
        )
    if not isinstance(requests, list) or not all(isinstance(each, dict) for each in requests):
        raise HttpError(422, "'requests' is not a list of objects")
    if not 1 <= len(requests) <= most:
        raise HttpError(422, f"{len(requests):,} requests; send 1 to {most}")
    return [dict(each) for each in requests], options


def read_history(document: object, where: str) -> list[SaidTurn] | None:
    """Read the earlier turns of a request, None without any; HttpError if they are malformed."""
    if document is None:
        return None
    try:
        said = msgspec.convert(document, list[SaidTurn])
    except msgspec.ValidationError as error:
        raise HttpError(422, f"{where}: history: {error}") from None
    if any(later.regions < one.regions for one, later in pairwise(said)):
        raise HttpError(422, f"{where}: history: 'regions' never decreases from turn to turn")
    return said


def continued(request: Request, said: Sequence[SaidTurn] | None, model: ServedModel) -> Request:
    """Return a request as a turn of a conversation, as `regionqa chat` asks it.

    said: the turns before it; empty: it is the first; None: it belongs to no conversation.
    """
    if said is None or request.error is not None:
        return request
    if said and said[-1].regions > len(request.regions):
        return replace(
            request,
            error=QuestionError(
                f"{request.image}: the history has {said[-1].regions} regions, and the request "
                f"{len(request.regions)}; send all regions of the conversation"
            ),
        )
    turns: list[ChatTurn] = []
    for one in said:
        turns.append(
            chat_turn(model.info, HistoryTurn(one.question, one.answer, one.regions), turns)
        )
    return follow_up(model.info, request, turns)
