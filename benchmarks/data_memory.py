"""Memory and speed of the data commands on files of two lengths, in one run.

    python benchmarks/data_memory.py [--lines 1000000] [--ratio 10] [--commands stats,look,...]

Writes training records about few images to a temporary folder, as --lines lines and as a part of
them, and Visual Genome's region descriptions of as many regions. Runs each command on both and
prints a line of JSON: seconds, records per second, the largest memory without pages of files, and
the ratio of the two lengths' memories, which is 1 where memory is flat. `generate` asks a stand-in
in a process of its own about an image for each of --generate-lines records.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

sys.path[:0] = [
    str(Path(__file__).resolve().parent),
    str(Path(__file__).resolve().parents[1] / "tests"),
]

from processes import watched  # noqa: E402

IMAGES = 200
SIDE = 512
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


def records(count: int, images: int) -> Iterator[str]:
    """Lines of records, about so many images in turn."""
    for number in range(count):
        left = number * 7 % 400
        box = [left, number % 300, left + 20 + number % 60, number % 300 + 50]
        texts = (f"What is <region1> number {number}?", f"A thing of kind {number % 997}.")
        said = [{"from": ("human", "gpt")[n], "value": text} for n, text in enumerate(texts)]
        label = f"thing {number % 50}"
        yield json.dumps({"image": f"{number % images}.png", "conversations": said,
                          "regions": [{"box": box, "label": label}]}) + "\n"  # fmt: skip


def write_lines(path: Path, count: int, images: int = IMAGES) -> Path:
    """Write records of one question each; images that are not there yet are links to the first."""
    for number in range(IMAGES, images):
        if not (path.parent / f"{number}.png").exists():
            (path.parent / f"{number}.png").hardlink_to(path.parent / "0.png")
    with path.open("w") as file:
        file.writelines(records(count, images))
    return path


def write_visual_genome(path: Path, count: int, per_image: int = 50) -> Path:
    """Write region descriptions of so many regions."""
    with path.open("w") as file:
        file.write("[")
        for number in range(count // per_image):
            regions = [
                {"region_id": n, "image_id": number % IMAGES, "x": n * 5, "y": n * 3, "width": 60,
                 "height": 40, "phrase": f"thing {number} {n}"}
                for n in range(per_image)
            ]  # fmt: skip
            file.write("," * bool(number) + json.dumps({"id": number % IMAGES, "regions": regions}))
        file.write("]")
    return path


def commands(root: Path, url: str) -> dict[str, tuple[str, ...]]:
    """The commands, in which FILE stands for the lines, GENOME for the descriptions."""
    out = ("--out", str(root / "out.jsonl"), "--overwrite")
    return {
        "stats": ("stats", "FILE"),
        "look": ("look", "FILE", "--out", str(root / "look.html"), "--overwrite"),
        "convert": ("convert", "FILE", *out),
        "visual-genome": ("convert", "GENOME", "--kind", "visual-genome", *out),
        "generate": ("generate", "FILE", "--server", url, "--kinds", "small", *out),
    }


def measure(root: Path, name: str, words: tuple[str, ...], count: int) -> dict[str, float]:
    """Run a command on files of a length."""
    images = count if name == "generate" else IMAGES
    files = {"FILE": write_lines(root / "mine.jsonl", count, images)}
    if "GENOME" in words:
        files["GENOME"] = write_visual_genome(root / "region_descriptions.json", count)
    line = [str(files.get(word, word)) for word in words]
    found = watched([sys.executable, "-m", "regionqa", "data", *line], stdout=subprocess.DEVNULL)
    mb = round(found["peak_without_file_pages_gb"] * 1000)
    return {"lines": count, "seconds": found["seconds"], "mb": mb,
            "per_second": round(count / found["seconds"])}  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", type=int, default=1_000_000)
    parser.add_argument("--generate-lines", type=int, default=20_000)
    parser.add_argument("--ratio", type=int, default=10, help="of the two lengths")
    parser.add_argument("--commands", default="stats,look,convert,visual-genome,generate")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for number in range(IMAGES):
            for suffix in ("png", "jpg"):
                Image.new("RGB", (SIDE, SIDE), (number, 90, 60)).save(root / f"{number}.{suffix}")
        server = subprocess.Popen(
            [sys.executable, "-c", STAND_IN], stdout=subprocess.PIPE, text=True,
            cwd=Path(__file__).resolve().parents[1] / "tests",
        )  # fmt: skip
        try:
            assert server.stdout
            every = commands(root, server.stdout.readline().strip())
            for name in options.commands.split(","):
                most = options.generate_lines if name == "generate" else options.lines
                runs = [
                    measure(root, name, every[name], most // part) for part in (options.ratio, 1)
                ]
                ratio = round(runs[1]["mb"] / runs[0]["mb"], 2)
                print(
                    json.dumps({"command": name, "memory_ratio": ratio, "runs": runs}), flush=True
                )
        finally:
            server.kill()
            server.wait()


if __name__ == "__main__":
    main()
