"""Calculate how long `regionqa batch` takes on many GPUs, and which stage is full first.

    python benchmarks/batch_capacity.py --requests 100e6 --gpus 64

Measures on this machine, in CPU seconds, what the stages take for each request besides the model:
planning, decoding JPEGs of the given size, taking them over in the actor, collecting answers in the
driver, and writing parts. The time of the GPU (to encode an image, to decode its text), the network
and the storage are arguments. Stages run side by side, so the slowest decides. Prints the rate of
each, how full it is at the rate of the slowest, and what to change if it is that one.
"""

import argparse
import io
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image, ImageFilter

from regionqa.batch.answering import AnsweredRequests
from regionqa.batch.options import BatchFormat
from regionqa.batch.outputs import PartFolder
from regionqa.batch.parts import BatchPart, RequestLine, make_parts
from regionqa.batch.reading import ImageRequests, read_part
from regionqa.batch.run import WRITERS, PartCollector
from regionqa.batch.storage import Location

PART = 256


@dataclass(frozen=True)
class StageRate:
    """What a stage can do."""

    name: str
    rate: float
    """Requests a second of the whole cluster."""
    what: str
    """What it was calculated from."""
    change: str
    """What to do if it is the slowest."""


def seconds(action: Callable[[], object], repeats: int = 5) -> float:
    """Median CPU time of an action, which other processes on the machine change little."""
    times = []
    for _ in range(repeats):
        begun = time.process_time()
        action()
        times.append(time.process_time() - begun)
    return sorted(times)[repeats // 2]


def photo(width: int, height: int) -> bytes:
    """A JPEG with about as much detail as a photo."""
    noise = np.random.default_rng(0).integers(0, 256, (height // 4, width // 4, 3), np.uint8)
    image = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.filter(ImageFilter.GaussianBlur(2)).save(file, "JPEG", quality=88)
    return file.getvalue()


RECORD = json.dumps(
    {
        "image": "s3://bucket/photos/0000/000000000139.jpg", "width": 640, "height": 426,
        "regions": [{"id": 1, "box": [10, 20, 200, 300], "label": "person"}],
        "question": "What is in <region1>?",
        "answer": "A person in a red jacket on a bicycle. " * 2,
        "model": "qwen3-vl-2b", "revision": "1-5f0c9a3e", "device": "cuda", "dtype": "bfloat16",
        "ms": None, "error": None,
    }
)  # fmt: skip


def measured(width: int, height: int) -> dict[str, float]:
    """Seconds of a request in each CPU stage on one core, and bytes of its image."""
    content = photo(width, height)
    with TemporaryDirectory() as root:
        path = Path(root, "photo.jpg")
        path.write_bytes(content)
        lines = tuple((f"line {n}", f"{n:02}.jpg", None) for n in range(16))
        for _, name, _ in lines:
            Path(root, name).symlink_to(path)
        part = BatchPart("k", 16, lines, root)
        read = seconds(lambda: list(read_part(part))) / 16
        group = next(iter(read_part(part)))
        row = group.as_row()
        passing = seconds(lambda: ImageRequests.from_row(row).image().load())
        entries = [RequestLine(f"line {n}", f'{{"image": "{n:09}.jpg"}}') for n in range(20_000)]
        plan = seconds(
            lambda: [part.as_json() for part in make_parts(entries, "s", PART)], 3
        ) / len(entries)
        answered = AnsweredRequests("k", 0, 1, False, [RECORD]).as_row()
        collector = PartCollector()
        collect = seconds(
            lambda: [collector.add(AnsweredRequests.from_row(answered)) for _ in range(1000)]
        )
        folder = PartFolder(Location(f"{root}/out"), BatchFormat.parquet, {})
        write = seconds(lambda: folder.write("a" * 24, [RECORD] * PART, 0)) / PART
    return {
        "read": read,
        "passing": passing,
        "plan": plan,
        "collect": collect / 1000,
        "write": write,
        "bytes": len(content),
        "row": len(row["pixels"] or row["content"] or b""),
    }


def stages(found: dict[str, float], given: argparse.Namespace) -> list[StageRate]:
    """The rate of every stage on the whole cluster."""
    nodes = max(1, given.gpus / given.gpus_per_node)
    cores = given.gpus * given.cpus_per_gpu
    gpu = 1000 * given.gpus / (given.encode_ms + given.text_ms)
    network = nodes * given.gbps * 1e9 / 8
    write = found["write"] + given.put_ms / 1000 / PART
    return [
        StageRate(
            "fetch", network / found["bytes"],
            f"{given.gbps:g} Gbit/s a node, {found['bytes'] / 1e3:.0f} kB an image",
            "store smaller images; more nodes",
        ),
        StageRate(
            "decode", cores / found["read"],
            f"{given.cpus_per_gpu:g} cores a GPU, {1000 * found['read']:.1f} ms an image",
            "more cores a GPU, also on nodes without GPUs; store smaller images",
        ),
        StageRate(
            "pass on", given.gpus / found["passing"],
            f"{1000 * found['passing']:.2f} ms in the actor, {found['row'] / 1e6:.2f} MB an image",
            "store smaller images; two actors a GPU (--num-gpus 0.5)",
        ),
        StageRate(
            "answer", gpu,
            f"{given.encode_ms:g} ms to encode, {given.text_ms:g} ms to decode text, on a GPU",
            "more GPUs; a larger --batch-size; --server with vLLM",
        ),
        StageRate(
            "collect", 1 / found["collect"],
            f"{1e6 * found['collect']:.0f} us in the driver, which is one process",
            "several runs, each on a part of the input",
        ),
        StageRate(
            "write", WRITERS / write,
            f"{WRITERS} at a time, {1000 * PART * write:.0f} ms a part of {PART}",
            "a larger --part-size",
        ),
    ]  # fmt: skip


def main() -> None:
    """Measure, calculate and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    number = float
    parser.add_argument("--requests", type=number, default=100e6)
    parser.add_argument("--gpus", type=int, default=64)
    parser.add_argument("--gpus-per-node", type=int, default=8)
    parser.add_argument("--cpus-per-gpu", type=number, default=8)
    parser.add_argument("--size", default="640x480", help="of the images, in pixels")
    parser.add_argument("--encode-ms", type=number, default=5.0, help="GPU time of an image")
    parser.add_argument("--text-ms", type=number, default=25.0, help="GPU time of an answer")
    parser.add_argument("--gbps", type=number, default=25.0, help="network of a node")
    parser.add_argument("--put-ms", type=number, default=80.0, help="time to store a part")
    given = parser.parse_args()
    width, height = map(int, given.size.split("x"))
    found = measured(width, height)
    rates = stages(found, given)
    slowest = min(rates, key=lambda stage: stage.rate)
    print(f"{given.requests:,.0f} requests on {given.gpus} GPUs, images of {given.size}")
    for stage in rates:
        full = slowest.rate / stage.rate
        print(f"{stage.name:8} {stage.rate:>10,.0f} a second  {full:>6.1%} full  {stage.what}")
    plan = found["plan"] * given.requests
    hours = given.requests / slowest.rate / 3600
    print(f"planning before the first request: {plan / 60:.0f} min in the driver")
    print(f"full first: {slowest.name}; {hours:.1f} h; to change that: {slowest.change}")
    second = sorted(rates, key=lambda stage: stage.rate)[1]
    print(f"then: {second.name}, from {second.rate:,.0f} a second on")
    cores = found["read"] * slowest.rate / given.gpus
    print(f"cores that keep a GPU busy with images: {cores:.2f}")


if __name__ == "__main__":
    main()
