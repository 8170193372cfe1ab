"""Memory and speed of the data commands on files of two lengths, in one run.

    python benchmarks/data_memory.py [--records 1000000] [--ratio 10] [--commands stats,gqa,...]

Writes each dataset to a temporary folder, with 20 regions or questions about an image, at the full
length and at a part of it. Runs `data stats`, `look` and `generate` on training records, and `data
convert` on these (`lines`) and on every kind. Prints a line of JSON for each: CPU seconds, records
(regions, questions or captions) per CPU second, the largest memory without pages of files in MB,
and the ratio of the two lengths' memories, which is 1 where memory is flat. `generate` asks a
stand-in in a process of its own. Flickr30k has as many captions as --captions, since each image of
it is two files.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path[:0] = [
    str(Path(__file__).resolve().parent),
    str(Path(__file__).resolve().parents[1] / "tests"),
]

from processes import watched  # noqa: E402

from helpers.datasets.sized import DATASETS, convert_words  # noqa: E402

STAND_IN = """
import sys, time
from helpers.vlm.chat_server import ChatServer
from helpers.vlm.instruction_server import scripted
server = ChatServer(answer=scripted)
server.structured = False
print(server.url, flush=True)
while True:
    time.sleep(1)
    server.asked.clear()
"""


def commands(root: Path, url: str) -> dict[str, tuple[str, ...]]:
    """The commands but `convert`, in which FILE stands for the records."""
    out = ("--out", str(root / "out.jsonl"), "--overwrite")
    return {
        "stats": ("stats", "FILE"),
        "look": ("look", "FILE", "--out", str(root / "look.html"), "--overwrite"),
        "generate": ("generate", "FILE", "--server", url, "--kinds", "small", *out),
    }


def measure(root: Path, name: str, words: tuple[str, ...] | None, count: int) -> dict[str, float]:
    """Run a command, or the conversion of a kind if there are no words, on so many records."""
    line = convert_words(name if words is None else "lines", root, count)
    if words is None:
        line += ["--out", str(root / "out.jsonl"), "--overwrite"]
    else:
        line = ["data", *(line[2] if word == "FILE" else word for word in words)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    found = watched([sys.executable, "-m", "regionqa", *line], stdout=subprocess.DEVNULL)
    used = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
    mb = round(found["peak_without_file_pages_gb"] * 1000)
    return {"records": count, "cpu_seconds": round(used, 1), "mb": mb,
            "per_cpu_second": round(count / used)}  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--generate-records", type=int, default=100_000)
    parser.add_argument("--captions", type=int, default=150_000, help="of Flickr30k")
    parser.add_argument("--ratio", type=int, default=10, help="of the two lengths")
    parser.add_argument("--commands", default=",".join([*DATASETS, "stats", "look", "generate"]))
    options = parser.parse_args()
    lengths = {"generate": options.generate_records, "flickr30k-entities": options.captions}
    server = subprocess.Popen(
        [sys.executable, "-c", STAND_IN], stdout=subprocess.PIPE, text=True,
        cwd=Path(__file__).resolve().parents[1] / "tests",
    )  # fmt: skip
    try:
        assert server.stdout
        url = server.stdout.readline().strip()
        for name in options.commands.split(","):
            most = lengths.get(name, options.records)
            with tempfile.TemporaryDirectory() as folder:
                root = Path(folder)
                words = commands(root, url).get(name)
                runs = [measure(root, name, words, most // part) for part in (options.ratio, 1)]
            ratio = round(runs[1]["mb"] / runs[0]["mb"], 2)
            print(json.dumps({"command": name, "memory_ratio": ratio, "runs": runs}), flush=True)
    finally:
        server.kill()
        server.wait()


if __name__ == "__main__":
    main()
