"""METEOR by its authors' own program, which needs Java and the extra `meteor`.

Rewritten METEORs give other scores (one in common use 0.68 where this one gives 0.42), so there is
none of our own. Denkowski and Lavie 2014. It gets texts; it knows no images.
"""

import shutil
import subprocess
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from regionqa.errors import UsageError
from regionqa.evaluation.metrics.captions import CaptionPair
from regionqa.evaluation.metrics.statistics import Floats

PACKAGE = "pycocoevalcap"
"""Which carries the program and its English paraphrases."""
OPTIONS = ("-", "-", "-stdio", "-l", "en", "-norm")


def meteor(items: Sequence[CaptionPair]) -> Floats:
    """The score of every item, 0 to 1, and last that of all together: (N + 1,).

    Raises UsageError where Java or the program is missing, or it fails.
    """
    java, program = shutil.which("java"), _program()
    if java is None or program is None:
        missing = "Java" if java is None else f"the package {PACKAGE}"
        raise UsageError(
            f"--meteor needs {missing}, which is not installed: pip install 'regionqa[meteor]', "
            "and a Java runtime"
        )
    asked = [_line(item) for item in items]
    command = [java, "-jar", "-Xmx2G", program.name, *OPTIONS]
    counted = _run(command, program.parent, [f"SCORE ||| {text}" for text in asked])
    evaluated = _run(command, program.parent, ["EVAL ||| " + " ||| ".join(counted[: len(items)])])
    if len(counted) < len(items) or len(evaluated) < len(items) + 1:
        raise UsageError("--meteor: the program has given too few scores; run it without --meteor")
    return np.array(list(map(float, evaluated[: len(items) + 1])))


def _program() -> Path | None:
    found = find_spec(PACKAGE)
    for folder in (found.submodule_search_locations or ()) if found else ():
        jars = sorted((Path(folder) / "meteor").glob("meteor-*.jar"))
        if jars:
            return jars[0].absolute()
    return None


def _line(item: CaptionPair) -> str:
    """References, then what was said, as the program's protocol has them."""
    return " ||| ".join(" ".join(words) for words in (*item.references, item.said))


def _run(command: Sequence[str], folder: Path, lines: Sequence[str]) -> list[str]:
    text = "".join(f"{line}\n" for line in lines)
    ran = subprocess.run(command, input=text, capture_output=True, text=True, cwd=folder)
    if ran.returncode:
        reason = " ".join(ran.stderr.split())[-200:]
        raise UsageError(f"--meteor: the program failed: {reason}; check your Java runtime")
    return ran.stdout.splitlines()
