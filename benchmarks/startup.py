"""How fast `regionqa --help` answers, and how much memory one answer takes.

    python benchmarks/startup.py [IMAGE]

Times are wall times in new processes, as medians of five that take turns, after one of each that
does not count; `import typer` is the yardstick, because no command line built on it can be faster.
Memory is the largest resident set (`getrusage`), of an answer and of importing what it runs on.
Without an image, scikit-image's cat is asked about.
"""

import os
import resource
import shutil
import statistics
import subprocess
import sys
import sysconfig
import time
from importlib.util import find_spec
from pathlib import Path

ROUNDS = 5
YARDSTICK = 'python -c "import typer"'
LIBRARIES = "import torch, onnxruntime, tokenizers, numpy, PIL.Image"


def regionqa(*words: str) -> list[str]:
    """A command line of the installed command."""
    command = shutil.which("regionqa", path=sysconfig.get_path("scripts"))
    return [command, *words] if command else [sys.executable, "-m", "regionqa", *words]


def seconds(command: list[str]) -> float:
    """Wall time of a command that must end well, with bytecode cached as it is by default."""
    environment = {
        name: value for name, value in os.environ.items() if name[:15] != "PYTHONDONTWRITE"
    }
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
    return time.perf_counter() - started


def peak(command: list[str]) -> tuple[float, float]:
    """Seconds, and the largest resident set in MB of all commands so far."""
    taken = seconds(command)
    unit = 1 if sys.platform == "darwin" else 1024
    return taken, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit / 1e6


def main(image: str) -> None:
    """Measure and print."""
    commands = {
        YARDSTICK: [sys.executable, "-c", "import typer"],
        "regionqa --help": regionqa("--help"),
        "regionqa ask --help": regionqa("ask", "--help"),
        "regionqa models list": regionqa("models", "list"),
    }
    rounds = [{name: seconds(words) for name, words in commands.items()} for _ in range(ROUNDS + 1)]
    medians = {name: statistics.median(taken[name] for taken in rounds[1:]) for name in commands}
    for name, median in medians.items():
        print(f"{name:28} {median:6.3f} s  {median / medians[YARDSTICK]:5.2f} x {YARDSTICK}")
    ask = regionqa("ask", image, "--box", "10,10,100,100", "what is this?", "--device", "cpu")
    # in this order, because the largest of all counts
    for name, command in (
        ("importing the libraries", [sys.executable, "-c", LIBRARIES]),
        ("regionqa ask", ask),
    ):
        taken, memory = peak(command)
        print(f"{name:28} {taken:6.3f} s  {memory:5.0f} MB at most")


if __name__ == "__main__":
    if len(sys.argv) == 1:
        skimage = find_spec("skimage")
        if skimage is None or skimage.origin is None:
            sys.exit("name an image, or: pip install scikit-image")
        sys.argv.append(str(Path(skimage.origin).parent / "data" / "chelsea.png"))
    main(sys.argv[1])
