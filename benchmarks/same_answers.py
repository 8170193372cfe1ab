"""Compare answers and exit statuses with those recorded for an earlier version.

    python benchmarks/same_answers.py DATA/coco_small              # compare with the recorded file
    python benchmarks/same_answers.py DATA/coco_small --record     # record this version

Runs three commands over the 200 dev images of coco_small and compares their JSON lines byte by
byte: "what is this?" for every box, `caption` for every box, `caption` for every image. The exit
status of `--help` is compared for every command. The recorded file has digests instead of answers,
because the images' annotations may not be republished.

Prints a line per run: its number of lines, and how many differ. The exit status is 1 if any does.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

RECORDED = Path(__file__).with_name("same_answers.json")
COMMANDS = (
    "", "ask", "caption", "chat", "models", "models list", "models show", "finetune", "data",
    "data check", "data convert", "eval", "eval recognition", "eval vqa", "eval caption",
    "eval fineeval", "download", "export", "init", "doctor", "demo",
)  # fmt: skip


def regionqa(*words: str) -> subprocess.CompletedProcess[bytes]:
    """Run the command line of the checkout or the environment that this script runs in."""
    return subprocess.run(
        [sys.executable, "-m", "regionqa", *words], capture_output=True, check=False
    )


def runs(data: Path, images: list[str]) -> dict[str, list[str]]:
    """Command lines by name; each writes JSON lines to stdout."""
    boxes = ["--boxes", str(data / "instances_dev.json")]
    common = ["--format", "jsonl", "--device", "cpu", "--confidence", "--quiet"]
    return {
        "ask every box": ["ask", *images, "what is this?", *boxes, "--each", *common],
        "caption every box": ["caption", *images, *boxes, *common],
        "caption every image": ["caption", *images, *common],
    }


def without_confidence(line: str) -> str:
    """The line without the confidence, whose last digits depend on the processor."""
    fields = json.loads(line)
    fields.pop("confidence", None)
    return json.dumps(fields, ensure_ascii=False)


def digests_of(data: Path) -> dict[str, object]:
    """Digests of every line of every run, and the status of every `--help`."""
    names = sorted(
        image["file_name"]
        for image in json.loads((data / "instances_dev.json").read_text())["images"]
    )
    result: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as folder:
        # the image's path is part of each line, so it must not depend on where the data lies
        link = Path(folder, "images")
        link.symlink_to((data / "images").resolve())
        paths = [str(link / name) for name in names]
        for name, words in runs(data.resolve(), paths).items():
            done = regionqa(*words)
            text = done.stdout.decode().replace(f"{folder}/", "")
            lines = [without_confidence(line) for line in text.splitlines()]
            digests = [hashlib.sha256(line.encode()).hexdigest()[:12] for line in lines]
            result[name] = {"status": done.returncode, "lines": digests}
    result["help"] = {words: regionqa(*words.split(), "--help").returncode for words in COMMANDS}
    return result


def main() -> int:
    """Record, or compare and say how many lines differ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("data", type=Path, help="the folder coco_small")
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    now = digests_of(options.data)
    if options.record:
        RECORDED.write_text(json.dumps(now, indent=0) + "\n", encoding="utf-8")
        return 0
    before = json.loads(RECORDED.read_text(encoding="utf-8"))
    differ = 0
    for name, recorded in before.items():
        here = now[name]
        assert isinstance(here, dict)
        if name == "help":
            wrong = [words for words in recorded if recorded[words] != here.get(words)]
            print(f"--help: {len(recorded)} commands, {len(wrong)} statuses differ: {wrong}")
            differ += len(wrong)
            continue
        pairs = zip(recorded["lines"], here["lines"], strict=False)
        wrong_lines = sum(a != b for a, b in pairs)
        wrong_lines += abs(len(recorded["lines"]) - len(here["lines"]))
        wrong_lines += recorded["status"] != here["status"]
        print(f"{name}: {len(recorded['lines'])} lines, {wrong_lines} differ")
        differ += wrong_lines
    return int(differ > 0)


if __name__ == "__main__":
    sys.exit(main())
