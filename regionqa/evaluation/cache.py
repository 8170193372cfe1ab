"""Cache of an evaluation's answers: a file that they are appended to, and read from again.

    cache = AnswerCache.open(Path("answers.jsonl"), settings)
    for answer in cache.answers(lambda: engine, requests): ...

The file has JSON lines like those of `ask --format jsonl`, one per answer, in the order of asking.
Failed requests are asked again. Answers that the model is not sure of are not held back: scoring
decides how they count.
"""

import json
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

from regionqa.engine import Engine
from regionqa.errors import OutputError
from regionqa.options import GenerationOptions
from regionqa.pipeline.outputs import OutputSettings, as_record, boxes_text, encode, request_boxes
from regionqa.pipeline.resume import JSON_START, answer_missing
from regionqa.requests import Answer, Request

Key = tuple[str, ...]
"""Identifies a request: image, boxes, question, choices, model, revision and variant."""


@dataclass
class AnswerCache:
    """The cached answers of one model; without a path, nothing is cached."""

    path: Path | None
    settings: OutputSettings
    variant: str = ""
    """Precision, if the user chose one: answers may differ between precisions."""
    _found: dict[Key, deque[dict[str, Any]]] = field(default_factory=lambda: defaultdict(deque))

    @classmethod
    def open(cls, path: Path | None, settings: OutputSettings, variant: str = "") -> "AnswerCache":
        """Read the file if it exists; an incomplete last line, left by a killed run, is cut off.

        Raises:
            OutputError: The file cannot be read, or is no file of answers.
        """
        cached = cls(path, settings, variant)
        if path is None or not path.exists():
            return cached
        try:
            content = path.read_bytes()
        except OSError as error:
            raise OutputError(f"{path}: cannot be read: {error.strerror}; name another") from error
        end = content.rfind(b"\n") + 1
        if not JSON_START.startswith(content[: len(JSON_START)]):
            raise OutputError(f"{path}: is not a file of answers; name another file or a new one")
        for number, line in enumerate(content[:end].splitlines(), start=1):
            try:
                fields = json.loads(line)
                key = _key_of_record(fields)
                failed = fields["error"] is not None
            except (ValueError, LookupError, TypeError, AttributeError):
                raise OutputError(
                    f"{path}: line {number} is not an answer of regionqa; name another file"
                ) from None
            if not failed:
                cached._found[key].append(fields)
        if end < len(content):
            try:
                with path.open("r+b") as file:
                    file.truncate(end)
            except OSError as error:
                raise OutputError(f"{path}: cannot be truncated: {error.strerror}") from error
        return cached

    def answers(
        self,
        load: Callable[[], Engine],
        requests: Iterable[Request],
        options: GenerationOptions | None = None,
    ) -> Iterator[Answer]:
        """Yield an answer to every request, in order; only those the file lacks are asked.

        Args:
            load: Returns the engine; called only if something must be asked.
            requests: The requests.
            options: How answers are generated. Decoding is greedy and no answer is held back.
        """

        def ask(missing: Iterator[Request]) -> Iterator[Answer]:
            for first in missing:
                yield from load().answer(
                    chain([first], missing), options, unsure_below=0, temperature=0
                )

        for answer, is_new in answer_missing(requests, self._find, ask):
            if is_new:
                self._write(answer, load())
            yield answer

    def _find(self, request: Request) -> Answer | None:
        record = self._take(request)
        return None if record is None else _as_answer(request, record)

    def _take(self, request: Request) -> dict[str, Any] | None:
        """Remove and return a record that answers the request; None if there is none."""
        if request.error is not None:
            return None
        settings = self.settings
        key = _key(
            request.image,
            request_boxes(request.regions),
            request.question,
            *request.choices,
            settings.model,
            settings.revision,
            self.variant,
        )
        records = self._found.get(key)
        return records.popleft() if records else None

    def _write(self, answer: Answer, engine: Engine) -> None:
        if self.path is None:
            return
        device, dtype = str(engine.device), str(engine.precision)
        record = as_record(answer, replace(self.settings, device=device, dtype=dtype))
        record |= {"confidence": answer.confidence, "tokens": answer.tokens}
        if self.variant:
            record["variant"] = self.variant
        if answer.request.choices:
            record["choices"] = list(answer.request.choices)
        try:
            with self.path.open("ab") as file:
                file.write(encode(json.dumps(record, ensure_ascii=False) + "\n"))
        except OSError as error:
            raise OutputError(
                f"{self.path}: cannot be written: {error.strerror}; fix that and run again; "
                "the answers written so far will be used"
            ) from error


def _as_answer(request: Request, record: dict[str, Any]) -> Answer:
    confidence = record.get("confidence")
    tokens = record.get("tokens")
    return Answer(
        request,
        str(record["answer"]),
        tokens if isinstance(tokens, int) else 0,
        confidence=float(confidence) if isinstance(confidence, int | float) else None,
    )


def _key_of_record(fields: dict[str, Any]) -> Key:
    boxes = boxes_text(region["box"] for region in fields["regions"])
    choices = fields.get("choices") or []
    names = (fields["model"], fields["revision"], fields.get("variant", ""))
    return _key(fields["image"], boxes, fields["question"], *choices, *names)


def _key(*parts: str) -> Key:
    """Return the parts as they are after writing and reading: undecodable bytes are escaped."""
    return tuple(encode(part).decode() for part in parts)
