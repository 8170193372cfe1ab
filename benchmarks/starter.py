"""Measure everything that is promised about the starter, and print it beside its aim.

    python benchmarks/starter.py DATA/coco_small [--model MODEL] [--only PART ...] [--json FILE]

Parts, each of a few minutes at most; their figures are those of the commands named here:

- names: `regionqa eval recognition` of the dev boxes of at least 32 px; calibration
- questions: `regionqa eval vqa` of the questions of starter_questions.py, taught and not taught
- captions: `regionqa eval caption --boxes` of the dev photos
- regions: `regionqa eval recognition --question` with the model's question for region captions
- steadiness: steadiness.py, and whether scikit-image's cat is a dog
- speed: answering.py, and a cold `regionqa ask` against importing its libraries (startup.py)

Prints a table of figures, aims and whether they are reached, then the captions that name an object
which is not annotated, for a person to judge. Timings hold for a quiet machine only. --json FILE
writes the figures; figures of other parts that it holds already for the same model are kept, so
that parts can be measured one by one. --answers FOLDER keeps the answers of `regionqa eval`.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import starter_questions
import startup
from answering import cat
from starter_aims import CHOICES, OTHER_KINDS, Figures, aim_rows
from steadiness import steadiness

import regionqa
from regionqa.backends.base import find_model
from regionqa.evaluation.metrics.matching import yes_or_no
from regionqa.evaluation.options import EvaluationOptions
from regionqa.evaluation.report import Table, format_table, result_document
from regionqa.evaluation.results import EvalResult
from regionqa.evaluation.runner import EvalSettings, EvalTask, evaluate_models
from regionqa.evaluation.tasks.captions import CaptionTask
from regionqa.evaluation.tasks.recognition import RecognitionTask
from regionqa.evaluation.tasks.vqa import VqaTask
from regionqa.options import DeviceChoice, RuntimeOptions
from regionqa.pipeline.console import Console
from regionqa.pipeline.demo import QUESTIONS

COLD_ROUNDS = 3


@dataclass(frozen=True)
class Measured:
    """What the parts measure."""

    model: str
    data: Path
    """The folder coco_small."""
    answers: Path | None
    """Where answers of `regionqa eval` are kept."""

    @property
    def boxes(self) -> Path:
        """The labelled boxes of the dev photos."""
        return self.data / "instances_dev.json"

    @property
    def images(self) -> Path:
        """The photos."""
        return self.data / "images"

    def evaluate(self, task: EvalTask) -> dict[str, Any]:
        """Run a task as `regionqa eval` does; return what its --json writes."""
        kept = None if self.answers is None else self.answers / "answers.jsonl"
        runtime = RuntimeOptions(model=self.model, device=DeviceChoice.cpu)
        settings = EvalSettings(runtime, evaluation=EvaluationOptions(answers=kept))
        with Console() as console:
            result = evaluate_models(task, settings, console)
        assert isinstance(result, EvalResult)
        if result.failed:
            raise SystemExit(f"{result.failed} items failed; the reasons are above")
        return result_document(result)


def values(document: dict[str, Any], group: str | None = None) -> Figures:
    """Return the metrics of a document by key, of all items or of a group."""
    found = document["figures"] if group is None else document["groups"].get(group, [])
    return {each["key"]: each["value"] for each in found}


# -- parts -----------------------------------------------------------------------------------------


def names(measured: Measured) -> Figures:
    """Measure how boxes are named, always answering and by default."""
    document = measured.evaluate(RecognitionTask(measured.boxes, measured.images))
    found = values(document)
    return {
        "names, always answering: all boxes": found["accuracy"],
        "names, always answering: not a person": found["without_most_frequent"],
        "names, always answering: mean over classes": found["class_mean"],
        "names, always answering: 96 x 96 px and more": values(document, "area")["large"],
        "names, by default: answered": 100 - found.get("not_sure", 0),
        "names, by default: right of those answered": found.get(
            "accuracy_when_sure", found["accuracy"]
        ),
        "expected calibration error": found["calibration_error"],
    }


def questions(measured: Measured) -> Figures:
    """Measure answers to questions with known answers, and refusals."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "questions.jsonl")
        starter_questions.main(measured.data, "dev", file)
        document = measured.evaluate(VqaTask(file, measured.images))
    kinds, balanced = values(document, "kind"), values(document, "kind, balanced")
    near = values(document, "kind, within one, balanced")
    likely, chance = (values(document, f"kind, by {each}") for each in ("likelihood", "chance"))
    return {
        "relations as yes or no": kinds["relation"],
        **{text: (kinds | balanced)[kind] for kind, text in OTHER_KINDS.items()},
        "presence, balanced": balanced["presence"],
        "is this a ...?, balanced": balanced["check"],
        "colour of 100 labelled boxes": kinds["colour"],
        "counts within one, mean over one to five": near["count"],
        **{
            f"four choices above chance: {kind}": likely[f"choice: {kind}"]
            - chance[f"choice: {kind}"]
            for kind in CHOICES
        },
        "not taught: refused": values(document)["unanswerable"],
        "taught: refused": share_of_kinds(document, "kind, not sure", starter_questions.TAUGHT),
    }


def share_of_kinds(document: dict[str, Any], group: str, kinds: Sequence[str]) -> float:
    """Return the mean over the questions of several kinds; 0 where the group is missing."""
    found = [each for each in document["groups"].get(group, []) if each["key"] in kinds]
    count: int = sum(each["of"] for each in found)
    total: float = sum(each["value"] * each["of"] for each in found)
    return total / max(1, count)


def captions(measured: Measured) -> Figures:
    """Measure captions of whole photos, and print those that may name what is not there."""
    file = measured.data / "captions_dev.json"
    document = measured.evaluate(CaptionTask(file, measured.images, boxes=measured.boxes))
    for row in document["listings"]["not annotated"]:
        print(f"{row['image']}  {row['said']}  ({row['not annotated']})")
    found = values(document)
    return {
        "captions of photos: CIDEr-D": found["cider_d"],
        "captions naming an object that is not there (CHAIRs)": found["chair_s"],
        "captions naming an object that is not annotated": found["unannotated"],
    }


def regions(measured: Measured) -> Figures:
    """Measure whether the caption of a region names its class."""
    question = find_model(measured.model).info.region_question
    task = RecognitionTask(measured.boxes, measured.images, question=question)
    return {"captions of regions naming the class": values(measured.evaluate(task))["label_named"]}


def steady(measured: Measured) -> Figures:
    """Measure names of shifted boxes, and whether the cat is taken for a dog."""
    engine = regionqa.load(measured.model, device="cpu")
    figures = {f"shifted boxes: {each.label}": each.right for each in steadiness(engine)}
    asked = next(each for each in QUESTIONS if each.text == "is this a dog?")
    reply = engine.ask(cat(), asked.text, [box.xyxy for box in asked.boxes]).text
    return figures | {'"is this a dog?" of the cat: no': float(yes_or_no(reply) is False)}


def speed(measured: Measured) -> Figures:
    """Measure the CPU time of answers, answers per second, and a first answer."""
    script = str(Path(__file__).with_name("answering.py"))
    figures: Figures = {}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "figures.json")
        for options in ((), ("--folder", str(measured.data))):
            command = [sys.executable, script, measured.model, *options, "--json", str(out)]
            subprocess.run(command, check=True)
            figures |= json.loads(out.read_text(encoding="utf-8"))
    libraries = [sys.executable, "-c", startup.LIBRARIES]
    ask = startup.regionqa("ask", cat(), "--box", "10,10,100,100", "what is this?")
    ask += ["--device", "cpu", "--model", measured.model]
    pairs = [(startup.seconds(ask), startup.seconds(libraries)) for _ in range(COLD_ROUNDS + 1)]
    return {
        "one region, one thread": figures["what is this?"],
        "32 regions of a photo": figures["ratio"],
        "folder with 8 boxes a photo": figures["answers per second"],
        "cold ask": statistics.median(first / second for first, second in pairs[1:]),
    }


def size(measured: Measured) -> Figures:
    """Measure the size of the model's files."""
    from regionqa.bundles.store import find_folder, open_bundle

    return {"size of the model": open_bundle(find_folder(measured.model)).size / 1e6}


PARTS: dict[str, Callable[[Measured], Figures]] = {
    "names": names, "questions": questions, "captions": captions, "regions": regions,
    "steadiness": steady, "speed": speed, "size": size,
}  # fmt: skip


# -- table -----------------------------------------------------------------------------------------


def earlier_figures(path: Path | None, model: str) -> Figures:
    """Return the figures that a file holds of the same model."""
    if path is None or not path.exists():
        return {}
    document = json.loads(path.read_text(encoding="utf-8"))
    return dict(document["figures"]) if document["model"] == model else {}


def main() -> None:
    """Measure the chosen parts and print the table."""
    parser = argparse.ArgumentParser(prog="python benchmarks/starter.py")
    parser.add_argument("data", type=Path, help="the folder coco_small")
    parser.add_argument("--model", default="starter")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--answers", type=Path)
    options = parser.parse_args()
    measured = Measured(options.model, options.data, options.answers)
    info = find_model(options.model).info
    name = f"{info.name} {info.revision}"
    figures = earlier_figures(options.json, name)
    for part in options.only:
        figures |= PARTS[part](measured)
        if options.json:
            text = json.dumps({"model": name, "figures": figures}, indent=1)
            options.json.write_text(text + "\n", encoding="utf-8")
    table = Table(name, ("", "figure", "aim", "reached"), tuple(aim_rows(figures)))
    print("\n".join(format_table(table)))


if __name__ == "__main__":
    main()
