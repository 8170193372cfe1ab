"""Mutation score: plant one small fault at a time and see whether the matching tests fail.

    make mutants FILES="regionqa/regions.py finetune/batches/sampler.py"
    python benchmarks/mutants.py --sample 60 regionqa/engine.py

The faults are cosmic-ray's (extra `mutants`). Its own runner starts a process for each, which here
means importing torch for seconds, and changes the checkout while it runs. mutmut 3 copies the
checkout with its weights, leaves out decorated functions and, by default, changes the case of every
error message. This runner imports the libraries once and forks: the child imports the changed text
in place of the file and runs the tests, so that a fault costs its tests and little more.

A survivor is either a gap in the tests or an equivalent mutant, one that changes nothing a caller
could see. Those that were read and found equivalent are listed in `EQUIVALENT`.
"""

import argparse
import difflib
import importlib
import os
import random
import resource
import signal
import sys
import tempfile
import time
import tomllib
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from pathlib import Path
from types import ModuleType
from typing import IO

from cosmic_ray.mutating import MutationVisitor
from cosmic_ray.plugins import get_operator

ROOT = Path(__file__).parents[1]
TESTS = ROOT / "benchmarks" / "mutants.toml"
"""Which tests look at which module, and the equivalent mutants."""
LIBRARIES = (
    "hypothesis", "numpy", "onnx", "onnxruntime", "PIL.ImageDraw", "pytest", "rich.console",
    "safetensors.torch", "tokenizers", "torch", "torchvision", "transformers", "typer",
)  # fmt: skip
"""Imported before the fork; none of them imports regionqa."""
OPERATORS = (
    *(f"ReplaceComparisonOperator_{pair}" for pair in (
        "Lt_LtE", "LtE_Lt", "Gt_GtE", "GtE_Gt", "Eq_NotEq", "NotEq_Eq", "Is_IsNot", "IsNot_Is",
    )),
    *(f"ReplaceBinaryOperator_{pair}" for pair in (
        "Add_Sub", "Sub_Add", "Mul_Div", "Div_Mul", "FloorDiv_Div", "Mod_Mul", "Pow_Mul",
    )),
    "ReplaceUnaryOperator_Delete_USub", "ReplaceUnaryOperator_Delete_Not", "AddNot",
    "ReplaceTrueWithFalse", "ReplaceFalseWithTrue", "ReplaceAndWithOr", "ReplaceOrWithAnd",
    "ReplaceBreakWithContinue", "ReplaceContinueWithBreak", "NumberReplacer",
    "ZeroIterationForLoop",
)  # fmt: skip
"""One neighbour of each operator: `<` to `<=`, not also to `==`, `>` and `is`."""
PYTEST_OPTIONS = (
    "-x", "-q", "-p", "no:randomly",
    "-W", "ignore::pytest.PytestAssertRewriteWarning",  # of hypothesis, imported before
)  # fmt: skip
NOTICED, SURVIVED, BROKEN = "noticed", "SURVIVED", "broken"


@dataclass(frozen=True)
class Mutant:
    """A module's text with one fault."""

    operator: str
    number: int
    """Which occurrence of the operator in the file."""
    source: str
    line: int
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.line}: {self.before}  ->  {self.after}"


class Replacement(MetaPathFinder, Loader):
    """Import a module from a changed text."""

    def __init__(self, module: str, path: Path, source: str) -> None:
        self.module, self.path, self.source = module, path, source

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Answer for the one module; see `MetaPathFinder`."""
        if fullname != self.module:
            return None
        return spec_from_loader(fullname, self, origin=str(self.path))

    def exec_module(self, module: ModuleType) -> None:
        """Run the changed text; see `Loader`."""
        module.__file__ = str(self.path)
        exec(compile(self.source, str(self.path), "exec"), module.__dict__)


NO_FAULTS = ("@", "class ", "*,", "if TYPE_CHECKING:")
"""Beginnings of lines that are left alone: decorators and class headers, as in
`@dataclass(frozen=False)`; the mark of keyword arguments, which an operator takes for a product;
imports for type checkers."""
GUARD = "strict=True"
"""Of `zip`: never reached unless another line is wrong, so its mutants are equivalent."""


def mutants(source: str) -> Iterator[Mutant]:
    """All mutants of a module's text but those of `NO_FAULTS` and `GUARD`."""
    lines = source.splitlines()
    for name in OPERATORS:
        operator = get_operator(f"core/{name}")()
        number = 0
        while (changed := MutationVisitor.mutate_code(source, operator, number)) is not None:
            pairs = difflib.SequenceMatcher(None, lines, changed.splitlines(), False)
            for tag, first, last, start, end in pairs.get_opcodes():
                if tag != "equal" and not lines[first].lstrip().startswith(NO_FAULTS):
                    before = " ".join(line.strip() for line in lines[first:last])
                    after = " ".join(line.strip() for line in changed.splitlines()[start:end])
                    if after != before.replace(GUARD, "strict=False"):
                        yield Mutant(name, number, changed, first + 1, before, after)
                    break
            number += 1


def run_in_turn(tests: Sequence[str]) -> int:
    """Run pytest on one file or folder after the other until one fails, and return its status.

    Most faults fail in the first, so that the others need not even be collected.
    """
    pytest = importlib.import_module("pytest")
    options = [each for each in tests if each.startswith("-")]
    none_selected = status = int(pytest.ExitCode.NO_TESTS_COLLECTED)
    for path in tests:
        if path not in options:
            found = int(pytest.main([*PYTEST_OPTIONS, *options, path]))
            status = status if found == none_selected else found
            if status not in (0, none_selected):
                break
    return status


def run_tests(
    module: str, path: Path, source: str, tests: Sequence[str], seconds: int, output: IO[bytes]
) -> str:
    """Run tests on a changed module in a child process.

    Args:
        module: Dotted name of the module.
        path: Its file.
        source: The text to import in its place.
        tests: Arguments of pytest.
        seconds: CPU seconds after which the child is killed, as an endless loop must end.
        output: Where the child's output goes.

    Returns:
        `NOTICED`, `SURVIVED`, or `BROKEN` where pytest itself did not run.
    """
    child = os.fork()
    if child == 0:
        status = 3
        try:
            resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
            signal.signal(signal.SIGXCPU, signal.SIG_DFL)
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            sys.meta_path.insert(0, Replacement(module, path, source))
            status = run_in_turn(tests)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)
    _, ended = os.waitpid(child, 0)
    status = os.waitstatus_to_exitcode(ended)
    # 2: a module could not even be imported; below 0: killed, as a rule for its CPU time
    return SURVIVED if status == 0 else NOTICED if status in (1, 2) or status < 0 else BROKEN


def score(
    file: str, tests: Sequence[str], equivalent: tuple[str, ...], args: argparse.Namespace
) -> bool:
    """Print the survivors and the score of one file; whether all its mutants could run."""
    path = (ROOT / file).resolve()
    dotted = file.removesuffix(".py").replace("/", ".")
    module = dotted if dotted.startswith("regionqa.") else f"regionqa.{dotted}"
    source = path.read_text(encoding="utf-8")
    started = os.times()
    with tempfile.TemporaryFile() as output:
        if run_tests(module, path, source, tests, 3600, output) != SURVIVED:
            output.seek(0)
            print(output.read().decode()[-3000:])
            print(f"{file}: the tests fail without a fault: pytest {' '.join(tests)}")
            return False
    ended = os.times()
    seconds = (ended.children_user - started.children_user) + (
        ended.children_system - started.children_system
    )
    drawn = list(mutants(source))
    total = len(drawn)
    if args.sample and args.sample < total:
        drawn = random.Random(args.seed).sample(drawn, args.sample)
    drawn.sort(key=lambda mutant: mutant.line)
    counts = dict.fromkeys((NOTICED, SURVIVED, BROKEN, "equivalent"), 0)
    begin = time.monotonic()
    for mutant in drawn:
        if f"{mutant.before}  ->  {mutant.after}".startswith(equivalent):
            counts["equivalent"] += 1
            continue
        with tempfile.TemporaryFile() as output:
            limit = int(10 * seconds) + 20
            outcome = run_tests(module, path, mutant.source, tests, limit, output)
        counts[outcome] += 1
        if outcome != NOTICED:
            print(f"{outcome} {file}:{mutant}", flush=True)
    judged = counts[NOTICED] + counts[SURVIVED]
    print(
        f"{file}: {counts[NOTICED]} of {judged} noticed"
        f" ({100 * counts[NOTICED] / max(judged, 1):.1f} %), {counts['equivalent']} equivalent,"
        f" {counts[BROKEN]} broken; {len(drawn)} of {total} mutants, seed {args.seed};"
        f" {seconds:.1f} CPU seconds for the tests, {time.monotonic() - begin:.0f} s in all",
        flush=True,
    )
    return not counts[BROKEN]


def main() -> int:
    """Print survivors and scores."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("files", nargs="+", help="modules, relative to the repository's root")
    parser.add_argument("--sample", type=int, default=0, help="mutants per file; 0: all")
    parser.add_argument("--seed", type=int, default=0, help="random seed of the sample")
    args = parser.parse_args()
    os.chdir(ROOT)
    os.environ |= {"HYPOTHESIS_PROFILE": "mutants", "OMP_NUM_THREADS": "1"}
    graphs = tempfile.TemporaryDirectory()  # of the tests' models, exported once; see conftest.py
    if not any(file.startswith("export/") for file in args.files):
        os.environ["REGIONQA_TEST_GRAPHS"] = graphs.name
    table = tomllib.loads(TESTS.read_text(encoding="utf-8"))
    unknown = [file for file in args.files if file not in table["tests"]]
    if unknown:
        print(f"{TESTS.name} names no tests for {', '.join(unknown)}; add a line", file=sys.stderr)
        return 2
    for library in LIBRARIES:
        importlib.import_module(library)
    assert not any(name.startswith("regionqa") for name in sys.modules)
    sound = True
    for file in args.files:
        equivalent = tuple(table.get("equivalent", {}).get(file, []))
        sound &= score(file, table["tests"][file], equivalent, args)
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main())
