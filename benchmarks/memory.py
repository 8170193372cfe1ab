"""Memory of a process against its estimate, and what returning freed memory is worth.

    python benchmarks/memory.py

Both are ratios within one run, on Linux. First, a process asks a tiny model and then one of 50
million weights; the growth of its peak is divided by the estimate that `regionqa doctor` prints.
Second, a graph of 40 million weights stored in float16 is opened with and without the call that
returns freed memory to the system. Exit status 1: an estimate is off by more than 30 %, or
returning memory saves less than half.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from transformers import LlamaConfig, LlamaForCausalLM

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from helpers.tiny_models import tiny_bundle, tiny_card, tiny_vision  # noqa: E402
from regionqa.bundles.store import Bundle  # noqa: E402
from regionqa.export.bundle import write_bundle  # noqa: E402
from regionqa.runtime import memory  # noqa: E402
from regionqa.runtime.devices import Device  # noqa: E402
from regionqa.runtime.memory import estimate, needs_of  # noqa: E402
from regionqa.runtime.precision import Dtype, Precision  # noqa: E402

RESIDENT = """
def memory(field):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field))
"""
ASK = f"""
import sys
from regionqa.cli import main
{RESIDENT}
small, model, *words = sys.argv[1:]
main([*words, "--model", small])
before = memory("VmRSS")
status = main([*words, "--model", model])
print(before, memory("VmHWM"), file=sys.stderr)
sys.exit(status)
"""
OPEN = f"""
import sys
from pathlib import Path
import onnxruntime
from regionqa.runtime import devices
{RESIDENT}
if sys.argv[2] == "kept":
    devices.trim_memory = lambda: None
before = memory("VmRSS")
session = devices.open_session(Path(sys.argv[1]), devices.Device.cpu)
print(memory("VmRSS") - before)
"""


def larger_bundle(folder: Path, small: Bundle) -> Bundle:
    """Tiny encoders and a LLaMA of 50 million weights, 200 MB in its file."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1600, hidden_size=768, intermediate_size=2048, num_hidden_layers=7,
        num_attention_heads=12, max_position_embeddings=512, tie_word_embeddings=False,
    )  # fmt: skip
    card = tiny_card("none")
    card["language"]["context"] = 512
    vision = tiny_vision(())
    vision.projector = torch.nn.Linear(16, 768)
    bundle, _ = write_bundle(
        folder, card, vision, None, LlamaForCausalLM(config), small.root / "llm/tokenizer.json"
    )
    return bundle


def large_graph(path: Path) -> Path:
    """Ten matrices of 2000 x 2000, stored in float16 and used transposed in float32."""
    rng = np.random.default_rng(0)
    nodes, weights, last = [], [], "x"
    for number in range(10):
        values = rng.standard_normal((2000, 2000), np.float32).astype(np.float16)
        weights.append(numpy_helper.from_array(values, f"w{number}"))
        nodes += [
            helper.make_node("Cast", [f"w{number}"], [f"f{number}"], to=TensorProto.FLOAT),
            helper.make_node("Transpose", [f"f{number}"], [f"t{number}"]),
            helper.make_node("MatMul", [last, f"t{number}"], [f"y{number}"]),
        ]
        last = f"y{number}"
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2000]) for name in "xy"]
    nodes.append(helper.make_node("Relu", [last], ["y"]))
    graph = helper.make_graph(nodes, "large", ends[:1], ends[1:], weights)
    opset = helper.make_opsetid("", 20)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=10), path)
    return path


def run(code: str, *words: object) -> "subprocess.CompletedProcess[str]":
    """Run code in a new process, which must end well."""
    command = [sys.executable, "-c", code, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)


def main() -> int:
    """Measure and print."""
    sound = True
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        image = folder / "grey.png"
        Image.new("RGB", (320, 240), (90, 90, 90)).save(image)
        small = tiny_bundle("none", folder / "tiny")
        larger = larger_bundle(folder / "larger", small)
        for dtype in (Dtype.float32, Dtype.bfloat16):
            words = ("ask", image, "what is this? " * 100, "--device", "cpu", "--quiet")
            ran = run(ASK, small.root, larger.root, *words, "--dtype", dtype)
            before, peak = map(int, ran.stderr.split()[-2:])
            total = estimate(needs_of(larger), Device.cpu, Precision(dtype)).total
            program = memory.BASELINE[Device.cpu]
            ratio = (peak - before) / (total - program)
            sound &= 0.7 <= ratio <= 1.3
            print(f"{dtype}: {ratio:.2f} of the estimate; program {before / program:.2f} of its")
        graph = large_graph(folder / "large.onnx")
        returned, kept = (int(run(OPEN, graph, way).stdout) for way in ("returned", "kept"))
        sound &= returned < kept / 2
        print(f"a graph of {4 * 40} MB: {returned / 1e6:.0f} MB, {kept / 1e6:.0f} if kept")
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main())
