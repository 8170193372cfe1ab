"""Memory estimates of a model by device and precision, and which of them fit this machine.

Numbers of weights come from file headers, sizes from configs, and the encoders' activations from
their graphs; nothing is loaded. For a model that is not downloaded yet, the card's sizes are used.
The memory of other programs is not considered.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from regionqa.bundles.card import LanguageRuntime, ModelCard
from regionqa.bundles.model_config import TextSizes, text_sizes
from regionqa.bundles.store import Bundle
from regionqa.bundles.weights import stored
from regionqa.errors import BundleError, message_of
from regionqa.options import Quantize
from regionqa.runtime.devices import Device
from regionqa.runtime.graph_sizes import GraphSizes, graph_sizes
from regionqa.runtime.precision import SMALL, Dtype, Precision

BASELINE = {Device.cpu: 750_000_000, Device.cuda: 1_000_000_000}
"""Bytes taken before any model is loaded. CPU: Python, torch and ONNX Runtime, 0.6 to 0.9 GB
depending on torch's build and on how much of it stays mapped. CUDA: both runtimes' contexts."""
OVERHEAD = 20_000_000
"""Bytes of an image, the tokenizer's tables, and freed memory that allocators retain."""
TRANSFORMERS = 250_000_000
"""Bytes of transformers' modelling code in the machine's memory."""
LOADING_PEAK = 2.7
"""Peak memory while ONNX Runtime loads a graph with float16 weights, in multiples of their size in
float32: they are held as stored, as float32, and transposed."""
BITS = {Quantize.eight: 8.0, Quantize.four: 4.13}
"""Bits per quantized weight, scales included: one a row in LLM.int8, one per 64 in nested NF4."""
LARGEST_SHARE = 0.9
"""Largest share of the memory that an estimate may fill; the rest is a margin for its errors."""
PUBLISHED_ACTIVATIONS = 120_000_000
"""Activations of a published model's encoders at one time, as numbers: about five times GPT4RoI's
fused maps (1024 channels, sides of 128 and less), or PVIT's first maps of a large image."""
CHANNELS_PER_LAYER = 128
"""LLaMA's channels per layer, for models without a config at hand: a layer has 12 times the square
of the channels in weights, and 2.7 times the channels in its feed-forward part."""


@dataclass(frozen=True)
class MemoryNeeds:
    """The sizes of a model that determine its memory."""

    matrices: int
    """Weights of the language model that can be quantized: matrices except embeddings and head."""
    others: int
    """The language model's other weights."""
    text: TextSizes
    context: int
    """Positions of the longest prompt with its answer."""
    encoders: GraphSizes
    transformers: bool = False
    """Whether transformers runs the language model even unquantized."""

    @property
    def is_large(self) -> bool:
        """Whether "auto" loads it in half precision."""
        return self.matrices + self.others > SMALL


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that one setting needs on its device to answer one question of full length."""

    device: Device
    precision: Precision
    language: int
    """The language model's weights."""
    encoders: int
    """The encoders' weights and the peak of their activations."""
    cache: int
    """Key-value cache of one question; every further one of a batch adds as much."""
    work: int
    """The program itself and the temporary values of a step."""
    opening: int = 0
    """Peak while the encoders are opened, before the language model is loaded."""

    @property
    def total(self) -> int:
        """The peak."""
        return max(self.opening, self.language + self.encoders + self.cache + self.work)


def memory_estimates(needs: MemoryNeeds) -> list[MemoryEstimate]:
    """Estimate every setting, those of the CPU first."""
    return [estimate(needs, device, precision) for device, precision in settings()]


def settings() -> Iterator[tuple[Device, Precision]]:
    """Yield the devices and precisions that are compared."""
    for dtype in (Dtype.float32, Dtype.bfloat16):
        yield Device.cpu, Precision(dtype)
    yield Device.cuda, Precision(Dtype.float32)
    for way in (None, *Quantize):
        yield Device.cuda, Precision(Dtype.float16, way, half_encoders=True)


def estimate(needs: MemoryNeeds, device: Device, precision: Precision) -> MemoryEstimate:
    """Estimate one setting."""
    text, width = needs.text, precision.dtype.width
    kept = BITS[precision.quantize] / 8 if precision.quantize else width
    language = int(needs.matrices * kept) + needs.others * width
    encoder_width = 2 if precision.half_encoders else 4
    encoders = (needs.encoders.weights + needs.encoders.values) * encoder_width
    position = 2 * text.layers * text.key_width * width
    # attention's queries, keys and values, and the gated parts of the widest step
    step = needs.context * (3 * text.hidden_size + 4 * text.inner) * width
    logits = 3 * text.vocabulary * 4
    work = BASELINE[device] + OVERHEAD + step + logits
    if device is Device.cpu and needs.transformers:
        work += TRANSFORMERS
    opening = int(LOADING_PEAK * needs.encoders.weights * 4) if device is Device.cpu else 0
    return MemoryEstimate(
        device, precision, language, encoders, needs.context * position, work,
        BASELINE[device] + opening,
    )  # fmt: skip


def needs_of(bundle: Bundle) -> MemoryNeeds:
    """Return the sizes of a bundle, from its files; BundleError if they cannot be read."""
    card = bundle.card
    folder = bundle.file(card.language.folder)
    try:
        from transformers import AutoConfig

        sizes = text_sizes(
            AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        )
        tensors = stored(folder)
    except (OSError, ValueError, KeyError) as error:
        reason = message_of(error)
        raise BundleError(f"{folder}: its size cannot be read: {reason}") from error
    matrices = sum(
        tensor.count
        for tensor in tensors
        if len(tensor.shape) == 2 and sizes.vocabulary not in tensor.shape
    )
    graphs = [card.vision.graph, *([card.region.graph] if card.region else [])]
    encoders = sum((graph_sizes(bundle.file(graph)) for graph in graphs), GraphSizes(0, 0))
    return MemoryNeeds(
        matrices,
        sum(tensor.count for tensor in tensors) - matrices,
        sizes,
        card.language.context,
        encoders,
        card.language.runtime is not LanguageRuntime.native,
    )


def needs_of_published(card: ModelCard) -> MemoryNeeds:
    """Return the sizes of a published model before its download, from its card.

    Assumes published weights in float16, a base of LLaMA's proportions, and that the delta's
    surplus over the base belongs to the encoders.

    Raises:
        BundleError: The card has no [sources].
    """
    sources = card.sources
    if sources is None:
        raise BundleError(f"card of {card.name}: has no [sources], so its sizes are unknown")
    count = sources.base.size // 2
    layers = max(1, round((count / (12 * CHANNELS_PER_LAYER**2)) ** (1 / 3)))
    width = CHANNELS_PER_LAYER * layers
    text = TextSizes(width, 32_000, layers, card.language.context, int(2.7 * width), width)
    others = 2 * text.vocabulary * width
    trunks = sources.vision.size // 4 + (sources.region.size // 4 if sources.region else 0)
    further = max(0, sources.delta.size - sources.base.size) // 2
    encoders = GraphSizes(trunks + further, PUBLISHED_ACTIVATIONS)
    return MemoryNeeds(count - others, others, text, card.language.context, encoders)


# -- this machine ----------------------------------------------------------------------------------


def memory(device: Device) -> int | None:
    """Return the memory of a device in bytes; None if it is unknown or there is no such device."""
    if device is Device.cpu:
        return machine_memory()
    import torch

    if not torch.cuda.is_available():
        return None
    return int(torch.cuda.get_device_properties(0).total_memory)


def machine_memory() -> int | None:
    """Return the machine's memory in bytes, or of this process's cgroup limit; None if unknown."""
    try:
        pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return None
    limits = [pages * size]
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limits.append(int(Path(path).read_text(encoding="ascii")))
        except (OSError, ValueError):  # none, or "max"
            continue
    return min(limits)


# -- the table of `doctor` -------------------------------------------------------------------------

HEADER = ("setting", "language", "encoders", "question", "other", "total", "here")


def table(needs: MemoryNeeds) -> list[str]:
    """Return the estimates as an aligned table, followed by the recommended setting."""
    rows: list[tuple[str, ...]] = [HEADER]
    found = memory_estimates(needs)
    here = {device: memory(device) for device in Device}
    for each in found:
        parts = (each.language, each.encoders, each.cache, each.work, each.total)
        rows.append((setting_text(each), *map(gigabytes, parts), fits_text(each, here)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:-1], widths[1:-1], strict=True)]
        lines.append("  ".join([*cells, row[-1]]))
    return [*lines, advice(needs, found, here)]


def setting_text(each: MemoryEstimate) -> str:
    """Return the command-line options of a setting."""
    words = [f"--device {each.device}", f"--dtype {each.precision.dtype}"]
    if each.precision.quantize:
        words = [words[0], f"--quantize {each.precision.quantize}"]
    return " ".join(words)


def fits(each: MemoryEstimate, here: dict[Device, int | None]) -> bool:
    """Return whether a setting fits into the memory of its device."""
    room = here[each.device]
    return room is not None and each.total <= LARGEST_SHARE * room


def fits_text(each: MemoryEstimate, here: dict[Device, int | None]) -> str:
    """Return whether a setting fits this machine, in words."""
    room = here[each.device]
    if room is None:
        return "no GPU" if each.device is Device.cuda else "unknown"
    return f"{'fits' if fits(each, here) else 'too large for'} {gigabytes(room)}"


def advice(needs: MemoryNeeds, found: list[MemoryEstimate], here: dict[Device, int | None]) -> str:
    """Recommend a setting; see `best_setting`."""
    best = best_setting(needs, found, here)
    if best is None:
        return "no setting fits: use a GPU with more memory, or a smaller model"
    return f"recommended: {setting_text(best)}"


def best_setting(
    needs: MemoryNeeds, found: list[MemoryEstimate], here: dict[Device, int | None]
) -> MemoryEstimate | None:
    """Choose a setting that fits: a GPU before the CPU, and the most precise; None if none does.

    float32 is not chosen for large models, which read all their weights for every token.
    """
    for each in sorted(found, key=lambda each: each.device is Device.cpu):
        if fits(each, here) and not (needs.is_large and each.precision.dtype is Dtype.float32):
            return each
    return None


def default_setting(needs: MemoryNeeds, here: dict[Device, int | None]) -> MemoryEstimate:
    """Estimate what runs without options: on a GPU if there is one, in the precision of "auto"."""
    device = Device.cpu if here[Device.cuda] is None else Device.cuda
    if not needs.is_large:
        return estimate(needs, device, Precision())
    dtype = Dtype.bfloat16 if device is Device.cpu else Dtype.float16
    return estimate(needs, device, Precision(dtype, None, half_encoders=device is Device.cuda))


def gigabytes(size: int) -> str:
    """Bytes in GB, with one decimal; two below one."""
    return f"{size / 1e9:.1f} GB" if size >= 10**9 else f"{size / 1e9:.2f} GB"
