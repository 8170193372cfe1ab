"""Give damaged inputs to every reader of files, and collect what breaks their contract.

    make fuzz SECONDS=300

An input gives a result, or a `RegionQAError` whose message is a line of at most LONGEST characters;
no other error, no hang, no more than 2 GB of memory, and no file outside the input's folder is
written, nor read unless the input names it in the user's own words. With atheris (extra `fuzz`)
inputs are chosen by the code that they reach; without it they are damaged at random.

Prints a line for each target, and each finding with the file that shows it; exits with 1 if there
is one. `--again FILE` repeats one.
"""

import argparse
import contextlib
import hashlib
import importlib
import importlib.util
import json
import os
import random
import resource
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from campaigns.mutations import damaged, smaller
from campaigns.processes import Current, Guard
from campaigns.targets import ROOT, TARGETS, Reader

LONGEST = 700
"""Longest message in characters."""
MEMORY = 2 << 30
"""Most memory in bytes."""
SLOW, STUCK = 20.0, 120.0
"""Seconds after which an input is a finding, and until it is stopped."""
MAX_LENGTH = 1 << 14


@dataclass
class Finding:
    """What breaks the contract."""

    key: str
    """Names the fault; inputs with the same key show the same."""
    text: str


@dataclass
class Trial:
    """Runs inputs of one target in this process."""

    name: str
    reader: Reader
    work: Path
    """Where the current input and the counts are written, for the parent."""
    out: Path
    """Where findings are written."""
    limited: bool = True
    """Whether slow inputs and the memory of the process are findings, which needs a process of its
    own on a machine that is not busy."""
    counts: Counter[str] = field(default_factory=Counter)
    inputs: int = 0
    found: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._current = Current(self.work / "current")

    def run(self, data: bytes, *, patient: bool = False) -> None:
        """Run an input; a new finding is made smaller and written. patient: it may be slow."""
        self._current.set(data)
        begun = time.monotonic()
        finding = self.attempt(data, self.counts)
        seconds = time.monotonic() - begun
        self.inputs += 1
        if finding is None and seconds > SLOW and self.limited and not patient:
            finding = Finding("slow", f"took {seconds:.1f} seconds")
        if finding is not None and finding.key not in self.found:
            self.found.add(finding.key)
            shown = smaller(data, lambda each: self._shows(each, finding.key))
            keep(self.out, self.name, shown if finding.key != "slow" else data, finding)
        if self.limited and seconds > 0.02:  # what takes much memory takes some time
            self._stop_above_memory(data)
        if self.inputs % 50 == 0:
            self.save()

    def _stop_above_memory(self, data: bytes) -> None:
        """Report the input and end the process, whose peak cannot be lowered, above `MEMORY`."""
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
        if used > MEMORY:
            keep(self.out, self.name, data, Finding("memory", f"{used / 1e9:.1f} GB were used"))
            self.save()
            os._exit(0)

    def save(self) -> None:
        text = json.dumps({"inputs": self.inputs, "counts": self.counts})
        (self.work / "counts.json").write_text(text)

    def _shows(self, data: bytes, key: str) -> bool:
        finding = self.attempt(data, Counter())
        return finding is not None and finding.key == key

    def attempt(self, data: bytes, counts: Counter[str]) -> Finding | None:
        """Run an input and count its errors; the first breach of the contract, if any."""
        from regionqa.errors import RegionQAError

        faults: list[Finding] = []

        def heard(message: object) -> None:
            if isinstance(message, RegionQAError):
                counts[type(message).__name__] += 1
            if (fault := fault_of(message)) is not None:
                faults.append(fault)

        Guard.active = True
        try:
            self.reader(data, heard)
            counts["read"] += 1
        except RegionQAError as error:
            heard(error)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            Guard.active = False
            faults.append(Finding(f"{type(error).__name__} {place_of(error)}", described(error)))
        finally:
            Guard.active = False
        return faults[0] if faults else None


def fault_of(message: object) -> Finding | None:
    """What is wrong with a message."""
    text = str(message)
    what = None
    if "\n" in text or "\r" in text:
        what = "more than one line"
    elif len(text) > LONGEST:
        what = f"more than {LONGEST} characters"
    if what is None:
        return None
    kind = type(message).__name__
    where = place_of(message) if isinstance(message, BaseException) else ""
    return Finding(f"{what} {kind} {where}", f"{kind}: {text[:3000]!r}")


def place_of(error: BaseException) -> str:
    """The last line of the product in an error's traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [each for each in frames if "campaigns" not in each.filename
           and each.filename.startswith(str(ROOT))]  # fmt: skip
    frame = (own or frames)[-1] if frames else None
    return f"{Path(frame.filename).name}:{frame.name}:{frame.lineno}" if frame else ""


def described(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))[-6000:]


def keep(out: Path, name: str, data: bytes, finding: Finding) -> None:
    """Write the input of a finding, and beside it what it shows."""
    digest = hashlib.sha256(f"{name} {finding.key}".encode()).hexdigest()[:10]
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}-{digest}.input").write_bytes(data)
    (out / f"{name}-{digest}.txt").write_text(
        f"{finding.key}\n\n{finding.text}\n", "utf-8", "replace"
    )


# -- one target, in a process of its own -----------------------------------------------------------


def prepared(name: str, folder: Path, work: Path, out: Path) -> tuple[Trial, list[bytes]]:
    target = TARGETS[name]
    (folder / "in").mkdir()
    (folder / "seeds").mkdir()
    given = list(target.seeds(folder / "seeds"))
    os.chdir(folder / "in")
    trial = Trial(name, target.make(folder / "in"), work, out)
    Guard(folder / "in", target)
    return trial, given


def run_target(options: argparse.Namespace) -> None:
    """Give inputs to a target until their number or the time is reached."""
    with TemporaryDirectory(prefix="fuzz-") as root:
        atheris: Any = None
        instrumented: Any = contextlib.nullcontext()
        if importlib.util.find_spec("atheris") and not options.random:
            atheris = importlib.import_module("atheris")
            instrumented = atheris.instrument_imports(include=["regionqa"])
        with instrumented:
            trial, given = prepared(options.one, Path(root), options.work, options.out)
        for data in TARGETS[options.one].first() if options.first else ():
            trial.run(data, patient=True)
        end = time.monotonic() + options.seconds  # imports take seconds
        if atheris is not None:
            guided(atheris, trial, given, options, end)
        rng = random.Random(options.seed)
        for data in given:
            trial.run(data)
        while trial.inputs < options.runs and time.monotonic() < end:
            trial.run(mutated(trial.name, rng.choice(given), rng, given, MAX_LENGTH))
        trial.save()


def mutated(
    name: str, data: bytes, rng: random.Random, given: Sequence[bytes], limit: int
) -> bytes:
    """Damage an input; its first byte, if that says which file it is, changes rarely."""
    if not TARGETS[name].has_kind or rng.random() < 0.03:
        return damaged(data, rng, given, limit)
    return data[:1] + damaged(data[1:], rng, [each[1:] for each in given[:50]], limit - 1)


def guided(
    atheris: Any, trial: Trial, given: Sequence[bytes], options: argparse.Namespace, end: float
) -> None:
    """Let libFuzzer choose inputs by the code that they reach; ends the process."""
    corpus = Path(options.corpus, trial.name)
    corpus.mkdir(parents=True, exist_ok=True)
    for data in given:
        (corpus / hashlib.sha1(data).hexdigest()).write_bytes(data)

    def one(data: bytes) -> None:
        trial.run(data)
        if trial.inputs >= options.runs or time.monotonic() > end:
            trial.save()
            os._exit(0)

    def change(data: bytes, limit: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if rng.random() < 0.4:
            return bytes(atheris.Mutate(data, limit))
        return mutated(trial.name, bytes(data), rng, given, limit)

    words = [sys.argv[0], str(corpus), "-timeout=100000", "-rss_limit_mb=0", "-detect_leaks=0",
             f"-seed={options.seed % (1 << 31) or 1}", f"-max_len={MAX_LENGTH}", "-verbosity=0",
             f"-artifact_prefix={options.work}/"]  # fmt: skip
    atheris.Setup(words, one, custom_mutator=change)
    atheris.Fuzz()


# -- all targets -----------------------------------------------------------------------------------


def watched(name: str, out: Path, seconds: float, inputs: int, options: Any) -> dict[str, Any]:
    """Run a target in processes of its own until the time is over; its counts.

    A process that ends early, or is stuck, is a finding, and another one goes on.
    """
    end = time.monotonic() + seconds
    total: dict[str, Any] = {"inputs": 0, "counts": Counter[str]()}
    first = True
    while (left := end - time.monotonic()) > 0 and total["inputs"] < inputs:
        with TemporaryDirectory(prefix="fuzz-work-") as work:
            words = [sys.executable, "-m", "campaigns.fuzzing", "--one", name, "--work", work,
                     "--out", out, "--seconds", left, "--runs", inputs - total["inputs"],
                     "--seed", random.randrange(1 << 31), "--corpus", options.corpus,
                     *["--random"][: options.random], *["--first"][:first]]  # fmt: skip
            log, current = Path(work, "log"), Current(Path(work, "current"))
            with log.open("wb") as stream:
                child = subprocess.Popen(list(map(str, words)), stdin=subprocess.DEVNULL,
                                         stdout=stream, stderr=stream)  # fmt: skip
                why = waited_for(child, current)
            if why is not None:
                said = log.read_text("utf-8", "replace")[-3000:]
                keep(out, name, current.data, Finding(why, said))
            saved = Path(work, "counts.json")
            if not saved.exists():
                break
            counts = json.loads(saved.read_text())
            total["inputs"] += counts["inputs"]
            total["counts"].update(counts["counts"])
            first = False
    return total


def waited_for(child: "subprocess.Popen[bytes]", current: Current) -> str | None:
    """Wait for a process; why it ended early, if it did."""
    number, since = 0, time.monotonic()
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            status = child.wait(timeout=1)
            return None if status == 0 else f"ended with status {status}"
        if current.number != number:
            number, since = current.number, time.monotonic()
        elif time.monotonic() - since > STUCK:
            child.kill()
            child.wait()
            return "stuck"


def reports(options: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """Run the targets in turn, each for its share of time and inputs."""
    names = options.only.split(",") if options.only else list(TARGETS)
    whole = sum(TARGETS[name].share for name in names)
    for name in names:
        share = TARGETS[name].share / whole
        inputs = round(options.inputs * share) if options.inputs else sys.maxsize
        yield name, watched(name, options.out, options.seconds * share, inputs, options)


def repeat(options: argparse.Namespace) -> int:
    """Run the input of a finding again, and print what it shows."""
    with TemporaryDirectory(prefix="fuzz-") as root:
        name = options.again.name.partition("-")[0]
        data = options.again.read_bytes()
        trial, _ = prepared(name, Path(root), Path(root), options.out)
        finding = trial.attempt(data, trial.counts)
    print(finding.text if finding else f"nothing: {dict(trial.counts)}")
    return int(finding is not None)


def main(words: Sequence[str] | None = None) -> int:
    """Run the campaign; 1 if there are findings."""
    parser = argparse.ArgumentParser(description=__doc__)
    number: Callable[[str], float] = float
    parser.add_argument("--seconds", type=number, default=300.0, help="time of all targets")
    parser.add_argument("--inputs", type=int, default=0, help="stop after this many inputs")
    parser.add_argument("--only", help="names of targets, separated by commas")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "fuzz", help="for findings")
    parser.add_argument("--corpus", type=Path, default=ROOT / "build" / "corpus")
    parser.add_argument("--random", action="store_true", help="do without atheris")
    parser.add_argument("--again", type=Path, metavar="FILE", help="repeat a finding")
    for name, kind in (("--one", str), ("--work", Path), ("--runs", int), ("--seed", int)):
        parser.add_argument(name, type=kind, help=argparse.SUPPRESS)
    parser.add_argument("--first", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(words)
    options.out, options.corpus = options.out.absolute(), options.corpus.absolute()
    if options.again:
        return repeat(options)
    if options.one:
        run_target(options)
        return 0
    before = set(options.out.glob("*.txt"))
    total = 0
    for name, report in reports(options):
        total += report["inputs"]
        counts = ", ".join(f"{kind} {n:,}" for kind, n in report["counts"].most_common())
        print(f"{name:10} {report['inputs']:>8,} inputs: {counts}", flush=True)
    for path in (found := sorted(set(options.out.glob("*.txt")) - before)):
        print(f"finding: {path.read_text().splitlines()[0]}: {path.with_suffix('.input')}")
    print(f"{total:,} inputs, {len(found)} findings")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
