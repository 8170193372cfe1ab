"""What stands beside YOLO labels: class names and the task, in data.yaml and classes.txt."""

import re
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from regionqa.boxes.fields import excerpt, load_text
from regionqa.errors import BoxFileError

CLASS_NAMES = "classes.txt"
DATASET = "data.yaml"
_LISTS = (CLASS_NAMES, "obj.names")
_DATASETS = (DATASET, "data.yml", "dataset.yaml", "dataset.yml")
_TASKS = ("detect", "segment", "pose", "obb")


@dataclass(frozen=True)
class YoloDataset:
    """What is known of a data set beside its labels."""

    path: Path | None = None
    """The data.yaml; None: there is none."""
    names: dict[int, str] = field(default_factory=dict)
    """Class names by number; empty if there are none."""
    task: str | None = None
    """detect, segment, pose or obb; None: not said."""
    keypoints: tuple[int, int] | None = None
    """`kpt_shape`: how many key points, and numbers of each; None: not said."""

    def class_number(self, text: str) -> int | None:
        """Parse a class number; None if it is none."""
        if not re.fullmatch(r"\d{1,9}(\.0*)?", text):  # numpy's savetxt writes classes as 0.0
            return None
        return int(float(text))

    def may_be_keypoints(self, count: int, total: int) -> bool:
        """Whether numbers behind a box may be its key points.

        Where data.yaml says neither `kpt_shape` nor a task, there are none. Without any data.yaml,
        eight numbers are four corners, and two key points have three numbers each.

        Args:
            count: How many they are.
            total: How many numbers the whole line has.
        """
        if self.keypoints is not None:
            return count == self.keypoints[0] * self.keypoints[1]
        if self.path is None and (total == 8 or count == 4):
            return False
        if self.path is not None and self.task != "pose":
            return False
        return count >= 2 and (count % 2 == 0 or count % 3 == 0)


def find_dataset(folder: Path, top: Path) -> YoloDataset:
    """Find class names and task for a folder of labels.

    classes.txt, obj.names, or `names` in data.yaml, is looked for in the folder, above it up to
    `top`, and at most two folders above that, because datasets keep their labels in `labels/train`.
    """
    inner = folder.relative_to(top)
    innermost = top.resolve() / inner
    names: dict[int, str] = {}
    for place in (innermost, *innermost.parents[: len(inner.parts) + 2]):
        for path in (place / name for name in _LISTS):
            if not names and path.is_file():
                texts = load_text(path).removesuffix("\n").split("\n")
                names = dict(enumerate(map(str.strip, texts)))
        for path in (place / name for name in _DATASETS):
            if path.is_file():
                return _read_dataset(path, names)
    return YoloDataset(names=names)


def _read_dataset(path: Path, names: dict[int, str]) -> YoloDataset:
    try:
        # BaseLoader keeps every scalar as text: a class called `no` or `1` stays what it is
        document = yaml.load(load_text(path), yaml.BaseLoader)
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1} of {path}" if mark else f"{path}"
        problem = getattr(error, "problem", None) or str(error).partition("\n")[0]
        raise BoxFileError(f"{where}: is not valid YAML: {problem}") from None
    if not isinstance(document, dict):
        return YoloDataset(names=names)
    task = document.get("task")
    if task is not None and task not in _TASKS:
        raise BoxFileError(f"{path}: 'task' is {excerpt(task)}; write one of {', '.join(_TASKS)}")
    keypoints = _keypoints(document.get("kpt_shape"), path)
    if keypoints is not None:
        task = task or "pose"
    return YoloDataset(path, names or _names(document, path), task, keypoints)


def _keypoints(shape: object, path: Path) -> tuple[int, int] | None:
    if shape is None:
        return None
    if (
        not isinstance(shape, list)
        or len(shape) != 2
        or not all(re.fullmatch(r"\d{1,4}", str(number)) for number in shape)
        or int(shape[1]) not in (2, 3)
    ):
        raise BoxFileError(f"{path}: 'kpt_shape' is {excerpt(shape)}; write it like [17, 3]")
    return int(shape[0]), int(shape[1])


def _names(document: dict[str, object], path: Path) -> dict[int, str]:
    if "names" not in document:
        return {}
    names = document["names"]
    numbered = dict(enumerate(names)) if isinstance(names, list) else names
    if not isinstance(numbered, dict) or not all(map(_is_class, numbered.items())):
        raise BoxFileError(
            f"{path}: 'names' is {excerpt(names)}; write a list of class names, "
            f"or put them into {CLASS_NAMES}"
        )
    return {int(number): name for number, name in numbered.items()}


def _is_class(item: tuple[object, object]) -> bool:
    number, name = item
    return isinstance(name, str) and re.fullmatch(r"\d{1,9}", str(number)) is not None
