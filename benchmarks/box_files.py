"""Time and memory of reading a large COCO file, against parsing it with `json`.

    python benchmarks/box_files.py [MEGABYTES]

Two files of the same size are made up: boxes alone, and boxes with polygons. Each is read in new
processes that take turns: parsed by `json.loads`, which is the yardstick, and read by
`regionqa.boxes.files.read_boxes` with a look-up of one image. Times are processor times, as medians
of three; memory (on Linux) is what a process needs at most beyond its imports. Exit
status 1: reading takes longer than twice the parsing, or more memory than 6 times the file.
"""

import json
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROUNDS = 3
IMAGE = "000000000001.jpg"
MOST_TIME, MOST_MEMORY = 2.0, 6.0
MEASURED = """
import json, sys, time
from pathlib import Path
from regionqa.boxes.files import read_boxes

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line[:5] == "VmHWM") / 1e6

path, before, started = Path(sys.argv[1]), peak(), time.process_time()
{work}
print(time.process_time() - started, peak() - before)
"""
WORKS = {
    "json.loads": "json.loads(path.read_text())",
    "read_boxes": f"read_boxes(path).boxes_for({IMAGE!r})",
}


def coco(megabytes: float, *, polygons: bool) -> str:
    """A COCO document of about this size, with the fields of the published ones."""
    rng = random.Random(0)
    count = int(megabytes * 1e6 / (640 if polygons else 160))
    images = [
        {
            "id": number,
            "file_name": f"{number:012d}.jpg",
            "height": 480,
            "width": 640,
            "coco_url": f"http://images.cocodataset.org/val2017/{number:012d}.jpg",
            "date_captured": "2013-11-14 17:02:52",
        }
        for number in range(1, count // 7 + 2)
    ]
    annotations = []
    for number in range(count):
        box = [round(rng.uniform(1, 300), 2) for _ in range(4)]
        shape = [[round(rng.uniform(0, 600), 2) for _ in range(60)]] if polygons else []
        image, category = rng.randint(1, len(images)), rng.randint(1, 80)
        ids = {"id": number, "image_id": image, "category_id": category}
        annotations.append({**ids, "bbox": box, "area": box[2] * box[3], "iscrowd": 0})
        if polygons:
            annotations[-1]["segmentation"] = shape
    categories = [{"id": number, "name": f"class {number}"} for number in range(1, 81)]
    return json.dumps({"images": images, "annotations": annotations, "categories": categories})


def measure(work: str, path: Path) -> tuple[float, float]:
    """Seconds of processor time and megabytes beyond the imports, in a new process."""
    command = [sys.executable, "-c", MEASURED.format(work=work), str(path)]
    found = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout
    seconds, memory = map(float, found.split())
    return seconds, memory


def main(megabytes: float) -> int:
    """Measure and print; the exit status."""
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        for name, polygons in (("boxes", False), ("polygons", True)):
            path = Path(folder) / f"{name}.json"
            path.write_text(coco(megabytes, polygons=polygons))
            size = path.stat().st_size / 1e6
            rounds = [
                {work: measure(code, path) for work, code in WORKS.items()} for _ in range(ROUNDS)
            ]
            medians = {
                work: [statistics.median(each[work][at] for each in rounds) for at in (0, 1)]
                for work in WORKS
            }
            print(f"{name}, {size:.0f} MB")
            for work, (seconds, memory) in medians.items():
                ratio = seconds / medians["json.loads"][0]
                print(
                    f"  {work:12} {seconds:6.2f} s {ratio:6.2f} x json.loads"
                    f" {memory:6.0f} MB {memory / size:6.2f} x the file"
                )
            (yardstick, _), (seconds, memory) = medians["json.loads"], medians["read_boxes"]
            failed |= seconds > MOST_TIME * yardstick or memory > MOST_MEMORY * size
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]) if len(sys.argv) > 1 else 70))
