"""Answers to an evaluation's requests, kept in a file as they come and used again.

    kept = KeptAnswers.open(Path("answers.jsonl"), settings)
    for answer in kept.answers(lambda: engine, requests): ...

The file is JSON lines like those of `ask --format jsonl`, one per answer, in the order of asking.
What it holds is not asked again; an answer that failed is. Nothing is held back that the model is
not sure of: judging decides what that counts as. It does not know what is asked or why.
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
from regionqa.pipeline.outputs import OutputSettings, as_record, boxes_text, encode, request_boxes
from regionqa.pipeline.resume import JSON_START
from regionqa.requests import Answer, Request

Key = tuple[str, ...]
"""What makes two requests the same: image, boxes, question, choices, model and variant."""


@dataclass
class AnswerCache:
    """Answers of one model, in a file or (path None) nowhere."""

    path: Path | None
    settings: OutputSettings
    variant: str = ""
    """In which other precision the model runs, if it does: its answers may differ then."""
    _found: dict[Key, deque[dict[str, Any]]] = field(default_factory=lambda: defaultdict(deque))

    @classmethod
    def open(cls, path: Path | None, settings: OutputSettings, variant: str = "") -> "AnswerCache":
        """Read what is there; a last line that a killed run left unfinished is cut off.

        Raises OutputError where the file cannot be read, or holds something else.
        """
        kept = cls(path, settings, variant)
        if path is None or not path.exists():
            return kept
        try:
            content = path.read_bytes()
        except OSError as error:
            raise OutputError(f"{path}: cannot be read: {error.strerror}; name another") from error
        end = content.rfind(b"\n") + 1
        if not JSON_START.startswith(content[: len(JSON_START)]):
            raise OutputError(f"{path}: is no file of answers; name another, or a new one")
        for number, line in enumerate(content[:end].splitlines(), start=1):
            try:
                fields = json.loads(line)
                key = _key_of_record(fields)
                failed = fields["error"] is not None
            except (ValueError, LookupError, TypeError, AttributeError):
                raise OutputError(
                    f"{path}: line {number} is no answer of regionqa; name another file"
                ) from None
            if not failed:
                kept._found[key].append(fields)
        if end < len(content):
            try:
                with path.open("r+b") as file:
                    file.truncate(end)
            except OSError as error:
                raise OutputError(f"{path}: cannot be mended: {error.strerror}") from error
        return kept

    def answers(
        self, load: Callable[[], Engine], requests: Iterable[Request], longest: int | None = None
    ) -> Iterator[Answer]:
        """An Answer to every request, in order; only what the file lacks is asked, and appended.

        load: gives the engine, and is not called where nothing is to be asked.
        """
        waiting: deque[tuple[Request, dict[str, Any] | None]] = deque()

        def missing() -> Iterator[Request]:
            for request in requests:
                found = self._take(request)
                waiting.append((request, found))
                if found is None:
                    yield request

        def recorded() -> Iterator[Answer]:
            while waiting and (found := waiting[0][1]) is not None:
                yield _as_answer(waiting.popleft()[0], found)

        asked = missing()
        first = next(asked, None)
        if first is not None:
            engine = load()
            for answer in engine.answer(
                chain([first], asked), max_new_tokens=longest, unsure_below=0, temperature=0
            ):
                yield from recorded()
                waiting.popleft()
                self._write(answer, engine)
                yield answer
        yield from recorded()

    def _take(self, request: Request) -> dict[str, Any] | None:
        """The record that answers a request; each answers one."""
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
        where, how = str(engine.device), str(engine.precision)
        record = as_record(answer, replace(self.settings, device=where, dtype=how))
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
                f"{self.path}: cannot be written: {error.strerror}; what was answered is kept; "
                "put that right, then run again"
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
    """Parts as they come back from a file, where a stray byte of a name may be spelt out."""
    return tuple(encode(part).decode() for part in parts)
