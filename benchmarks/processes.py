"""Commands run by benchmarks, with the largest memory that they held."""

import subprocess
import threading
import time
from pathlib import Path


def memory_of(pid: int) -> tuple[int, int]:
    """Bytes a process and its children hold now: all, and those that are no pages of files."""
    total = private = 0
    for process in (pid, *children(pid)):
        try:
            lines = Path(f"/proc/{process}/status").read_text().splitlines()
        except OSError:  # it has ended
            continue
        table = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith("R") or
                 line.startswith("VmRSS")}  # fmt: skip
        total += int(table.get("VmRSS", 0)) * 1024
        private += int(table.get("RssAnon", 0)) * 1024
    return total, private


def children(pid: int) -> list[int]:
    """All processes under one."""
    found: list[int] = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            direct = [int(word) for word in file.read_text().split()]
        except OSError:
            continue
        found += direct + [further for child in direct for further in children(child)]
    return found


def watched(words: list[str], stdout: int | None = None) -> dict[str, float]:
    """Run a command; seconds, and the largest memory that it and its children held together."""
    peak = {"all": 0, "private": 0}
    started = time.monotonic()
    process = subprocess.Popen(words, stdout=stdout)
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.05):
            total, private = memory_of(process.pid)
            peak["all"] = max(peak["all"], total)
            peak["private"] = max(peak["private"], private)

    thread = threading.Thread(target=watch)
    thread.start()
    status = process.wait()
    ended.set()
    thread.join()
    if status:
        raise SystemExit(f"the command failed with status {status}")
    return {
        "seconds": round(time.monotonic() - started, 1),
        "peak_gb": round(peak["all"] / 1e9, 3),
        "peak_without_file_pages_gb": round(peak["private"] / 1e9, 3),
    }
