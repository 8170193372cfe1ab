"""Compare `regionqa batch` on a local Ray with `regionqa caption` on the same cores.

    python benchmarks/batch.py FOLDER --photos 5000

Photos of FOLDER are repeated under other names. Prints whether the answers are equal line for line
after sorting, the rates of both between 10 and 90 % of the rows and over the whole command, the
CPU seconds of a row, which other processes on the machine change less, and the largest private
memory of all processes in the first and second half of the run.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory

SECOND = os.sysconf("SC_CLK_TCK")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


@dataclass
class CommandCourse:
    """What a command did over time."""

    seconds: float = 0.0
    cpu: float = 0.0
    """CPU seconds of all of its processes."""
    rows: list[tuple[float, int]] = field(default_factory=list)
    """Seconds since the start, and rows written by then."""
    memory: list[dict[int, int]] = field(default_factory=list)
    """Private bytes of each process that holds more than 100 MB, at the same times."""

    @property
    def steady(self) -> float:
        """Rows a second between 10 and 90 % of the rows."""
        last = self.rows[-1][1]
        inner = [(at, n) for at, n in self.rows if 0.1 * last <= n <= 0.9 * last]
        if len(inner) < 2:
            return float("nan")
        return (inner[-1][1] - inner[0][1]) / (inner[-1][0] - inner[0][0])

    def halves(self) -> tuple[float, float]:
        """Largest sum of private GB in each half of the time in which rows were written."""
        busy = [m for (_, n), m in zip(self.rows, self.memory, strict=True) if n]
        half = max(1, len(busy) // 2)
        sums = [sum(each.values()) / 1e9 for each in busy]
        return max(sums[:half], default=0.0), max(sums[half:], default=0.0)


def processes() -> Iterator[tuple[int, int, float, int]]:
    """Pid, parent, CPU seconds and private bytes of every process."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            cpu = (int(fields[11]) + int(fields[12])) / SECOND
            yield int(entry.name), int(fields[1]), cpu, private_bytes(entry)


def private_bytes(entry: Path) -> int:
    """Resident bytes of a process that it shares with no other, as it does those of Ray's store."""
    try:
        for line in (entry / "status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) << 10
    except OSError:
        pass
    return 0


def run(words: Sequence[str], rows: Callable[[], int], log: Path) -> CommandCourse:
    """Run a command and watch it; SystemExit if it fails."""
    course, used = CommandCourse(), dict[int, float]()
    begun = time.monotonic()
    with log.open("wb") as stream:
        child = subprocess.Popen(words, stdout=stream, stderr=stream)
        while child.poll() is None:
            known = list(processes())
            tree = {child.pid}
            for _ in range(6):  # a worker of Ray is a grandchild
                tree |= {pid for pid, parent, _, _ in known if parent in tree}
            used |= {pid: cpu for pid, _, cpu, _ in known if pid in tree}
            large = {pid: size for pid, _, _, size in known if pid in tree and size > 100e6}
            course.rows.append((time.monotonic() - begun, rows()))
            course.memory.append(large)
            time.sleep(0.5)
    course.seconds, course.cpu = time.monotonic() - begun, sum(used.values())
    course.rows.append((course.seconds, rows()))
    course.memory.append({})
    if child.returncode not in (0, 3):
        raise SystemExit(log.read_text()[-2000:])
    return course


def photos(folder: Path, count: int, into: Path) -> None:
    """Link so many photos, repeated under other names."""
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    for number, path in enumerate(islice(cycle(found), count)):
        place = into / f"{number:07}{path.suffix}"
        if same_disk(path, into):
            place.hardlink_to(path)
        else:
            shutil.copy(path, place)


def same_disk(path: Path, folder: Path) -> bool:
    """Whether a file can be linked into a folder."""
    return path.stat().st_dev == folder.stat().st_dev


def count_lines(paths: Iterator[Path]) -> int:
    """Count the lines of all files."""
    return sum(path.read_bytes().count(b"\n") for path in paths if path.exists())


def rows_of(place: Path) -> Callable[[], int]:
    """A function that counts the rows of a file, or of the parts in a folder."""
    return lambda: count_lines(iter([place]) if place.suffix else place.glob("part-*"))


def described(name: str, course: CommandCourse) -> str:
    """Say what a command did, in a line."""
    rows = course.rows[-1][1]
    first, second = course.halves()
    return (
        f"{name:8} {rows:,} rows in {course.seconds:.0f} s ({rows / course.seconds:.2f} a second), "
        f"steady {course.steady:.2f} a second, {1000 * course.cpu / rows:.0f} ms CPU a row, "
        f"memory {first:.2f} GB in the first half, {second:.2f} GB in the second"
    )


def main() -> None:
    """Run both commands and print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--photos", type=int, default=5000)
    parser.add_argument("--actors", type=int, default=2)
    parser.add_argument("--model", default="starter")
    parser.add_argument("--batch-first", action="store_true", help="run batch before caption")
    options = parser.parse_args()
    with TemporaryDirectory() as root:
        given, out, parts = Path(root, "in"), Path(root, "one.jsonl"), Path(root, "parts")
        given.mkdir()
        photos(options.folder, options.photos, given)
        program = [sys.executable, "-m", "regionqa"]
        common = ["--model", options.model, "--device", "cpu", "--format", "jsonl", "--quiet"]
        caption = ["caption", str(given), *common, "--out", str(out)]
        batch = ["batch", str(given), str(parts), *common, "--part-size", "64",
                 "--actors", str(options.actors)]  # fmt: skip
        courses = {}
        for words in (batch, caption) if options.batch_first else (caption, batch):
            rows = rows_of(out) if words is caption else rows_of(parts)
            course = run([*program, *words], rows, Path(root, "log"))
            courses[words[0]] = course
            print(described(words[0], course), flush=True)
        one, many = courses["caption"], courses["batch"]
        lines = sorted(line for each in parts.glob("part-*") for line in each.open("rb"))
        equal = lines == sorted(out.open("rb"))
        print(f"answers {'equal' if equal else 'DIFFER'} line for line after sorting")
        print(f"whole command: batch is {one.seconds / many.seconds:.2f} times as fast as caption")
        print(f"steady rate: batch is {many.steady / one.steady:.2f} times caption")
        print(f"CPU of a row: batch is {many.cpu / one.cpu:.2f} times caption")
        raise SystemExit(not equal)


if __name__ == "__main__":
    main()
