"""Kill actors, nodes and drivers of `regionqa batch` at random moments, and count its answers.

    make chaos KILLS=30

A Ray cluster of a head and a second node runs on this machine. At random moments an actor, the
second node (another one then joins) or the driver (which is started again) gets SIGKILL, until
there were enough kills; the run then goes on undisturbed, or begins anew if it ended before. Every
request must be answered exactly once, as `caption` answers it.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from regionqa.data.english import counted

ACTOR = "_AnswerActor"
CPUS = 3


@dataclass
class ChaosRun:
    """A batch that is disturbed, and how."""

    cluster: Any
    given: Path
    out: Path
    model: Path
    log: Path
    rng: random.Random
    kills: Counter[str] = field(default_factory=Counter)
    drivers: int = 0
    """Drivers that were started."""

    def __post_init__(self) -> None:
        self._node = self.cluster.add_node(num_cpus=CPUS)
        self._driver = self._start()

    def _start(self) -> "subprocess.Popen[bytes]":
        self.drivers += 1
        words = [sys.executable, "-m", "regionqa", "batch", self.given, self.out,
                 "--model", self.model, "--device", "cpu", "--format", "jsonl", "--part-size", "20",
                 "--actors", "2", "--ray-address", self.cluster.address]  # fmt: skip
        with self.log.open("ab") as stream:
            return subprocess.Popen(
                list(map(str, words)), stdout=stream, stderr=stream, start_new_session=True
            )

    @property
    def status(self) -> int | None:
        """Exit status of the driver; None while it runs."""
        return self._driver.poll()

    def kill(self) -> None:
        """Kill something; nothing if there is none of what was drawn."""
        what = self.rng.choice(("actor", "node", "driver"))
        if what == "driver":
            os.killpg(self._driver.pid, signal.SIGKILL)
            self._driver.wait()
            self._driver = self._start()
        elif what == "node":
            self.cluster.remove_node(self._node, allow_graceful=False)
            self._node = self.cluster.add_node(num_cpus=CPUS)
        else:
            actors = list(processes(ACTOR))
            if not actors:
                return
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.rng.choice(actors), signal.SIGKILL)
        self.kills[what] += 1
        told = f"{self.kills.total()} kills, {finished(self.out)} parts: {what}"
        print(told, flush=True)

    def finish(self) -> int:
        """Wait for the driver; its exit status."""
        return self._driver.wait()

    def close(self) -> None:
        """Let the second node leave."""
        self.cluster.remove_node(self._node, allow_graceful=False)


def processes(name: str) -> Iterator[int]:
    """Pids of the processes of Ray's actors of this class, also while they load."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                line = (entry / "cmdline").read_bytes()
                if line.startswith(b"ray::MapWorker") and name.encode() in line:
                    yield int(entry.name)


def finished(out: Path) -> int:
    return sum(1 for _ in out.glob("part-*"))


def fault(out: Path, expected: list[str]) -> str | None:
    """What is wrong with the answers; None if every request has one, as `caption` gives it."""
    lines = [line for path in out.glob("part-*") for line in path.read_text().splitlines()]
    counts = Counter(json.loads(line)["image"] for line in lines)
    wanted = Counter(json.loads(line)["image"] for line in expected)
    lost, doubled = (wanted - counts).total(), (counts - wanted).total()
    if lost or doubled:
        return f"{lost} lost, {doubled} doubled"
    other = len(set(lines) ^ set(expected))
    return f"{other} lines differ from those of caption" if other else None


def make_material(folder: Path, count: int) -> tuple[Path, Path]:
    """A tiny model, and small images of many colours."""
    from PIL import Image

    from helpers.tiny_models import tiny_bundle

    tiny_bundle("levels", folder)
    images = folder / "images"
    images.mkdir()
    for number in range(count):
        colour = (number % 251, number // 251 % 251, 90)
        Image.new("RGB", (64 + number % 32, 48), colour).save(images / f"{number:06}.png")
    return folder / "levels", images


def captions(model: Path, images: Path, out: Path) -> list[str]:
    words = [sys.executable, "-m", "regionqa", "caption", images, "--model", model, "--device",
             "cpu", "--format", "jsonl", "--out", out, "--quiet"]  # fmt: skip
    subprocess.run(list(map(str, words)), check=True)
    return out.read_text().splitlines()


def main() -> int:
    """Run the campaign; 1 if anything was lost, doubled or different."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--pause", type=float, default=20.0, help="mean seconds between kills")
    parser.add_argument("--minutes", type=float, default=1e9, help="kill nothing after this time")
    parser.add_argument("--seed", type=int, default=None)
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(1 << 32) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    os.environ.setdefault("RAY_worker_niceness", "0")
    from ray.cluster_utils import Cluster

    rng, kills, faults, runs = random.Random(seed), Counter[str](), [], 0
    end = time.monotonic() + 60 * options.minutes
    with TemporaryDirectory(prefix="regionqa-chaos-") as root:
        model, images = make_material(Path(root), options.requests)
        expected = captions(model, images, Path(root, "one.jsonl"))
        print(f"{len(expected)} requests", flush=True)
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": CPUS})
        try:
            while kills.total() < options.kills and time.monotonic() < end:
                runs += 1
                out, log = Path(root, f"out{runs}"), Path(root, "log")
                run = ChaosRun(cluster, images, out, model, log, rng)
                wanted = options.kills - kills.total()
                while run.kills.total() < wanted and time.monotonic() < end:
                    time.sleep(rng.uniform(0, 2 * options.pause))
                    if run.status is not None:
                        break
                    run.kill()
                status = run.finish()
                run.close()
                kills += run.kills
                wrong = fault(out, expected) or (f"status {status}" if status else None)
                if wrong is not None:
                    faults.append(wrong)
                    print(log.read_text()[-3000:])
                told = f"{finished(out)} parts, {run.drivers} drivers: {wrong or 'as expected'}"
                print(f"run {runs}: {dict(run.kills)}, {told}", flush=True)
        finally:
            cluster.shutdown()
    print(f"{kills.total()} kills ({dict(kills)}) in {counted(runs, 'run')}, "
          f"{len(faults)} with faults")  # fmt: skip
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
