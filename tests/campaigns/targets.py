"""What a fuzz campaign gives its inputs to: every place where the product reads a stranger's file.

A target is a function that makes a reader in an empty folder. The reader takes an input and a
function `heard`, which it gives every error and message that a user would see.
"""

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from campaigns import seeds

Heard = Callable[[object], None]
Reader = Callable[[bytes, Heard], None]
ROOT = Path(__file__).parents[2]
RECORDS = ("records.jsonl", "records.json", "questions.jsonl")
SETTINGS = ("settings.toml", "saved.toml")
WEIGHTS = ("model.safetensors", "pytorch_model.bin", "model.safetensors.index.json", "trunk.pth",
           "trunk.safetensors")  # fmt: skip
CONFIGS = ("config.json", "generation_config.json", "chat_template.json",
           "preprocessor_config.json")  # fmt: skip


MAPPED = {".safetensors", ".bin", ".pth"}
"""Suffixes of files that readers map into memory."""


@dataclass(frozen=True)
class Target:
    """A place that reads files."""

    make: Callable[[Path], Reader]
    """Prepares a folder and returns the reader of its inputs."""
    seeds: Callable[[Path], Iterable[bytes]]
    """Valid inputs; may write to the folder."""
    share: float = 1.0
    """Share of the inputs, relative to the other targets."""
    first: Callable[[], Iterable[bytes]] = lambda: ()
    """Inputs that are given once and never damaged."""
    has_kind: bool = True
    """Whether the first byte of an input says which file it is."""
    opens: bool = True
    """Whether an input may name files to read outside the folder, as a user's own words may."""


def fresh(path: Path, content: bytes) -> Path:
    """Write a file anew; an earlier one may still be mapped."""
    if MAPPED.intersection(path.suffixes):
        path.unlink(missing_ok=True)
    path.write_bytes(content)
    return path


def write_image(folder: Path) -> None:
    from PIL import Image

    Image.new("RGB", seeds.SIZE, "red").save(folder / "a.png")


def images(folder: Path) -> Reader:
    from regionqa.images.reading import open_image

    def read(data: bytes, heard: Heard) -> None:
        image = open_image(fresh(folder / "image", data))
        pixels = image.load()
        assert pixels.mode == "RGB"
        assert pixels.size == (image.width, image.height)

    return read


def boxes(folder: Path) -> Reader:
    from regionqa.boxes.files import read_boxes
    from regionqa.errors import ItemError
    from regionqa.regions import BoxFormat, BoxUnits, clip_all

    places = [Path(f"boxes{suffix}") for suffix in seeds.BOX_SUFFIXES]
    places += [Path("yolo", name) for name in seeds.FOLDERS]
    conventions = ((None, None), (BoxFormat.xywh, None), (BoxFormat.cxcywh, BoxUnits.fraction))
    (folder / "yolo" / "labels").mkdir(parents=True)
    usual = {"labels/a.txt": "0 0.5 0.5 0.2 0.2\n", "data.yaml": "names: [cat]\n"}
    last = Path()

    def read(data: bytes, heard: Heard) -> None:
        kind = data[0] if data else 0
        place = places[kind % len(places)]
        nonlocal last
        if place.parts[0] == "yolo" and place != last:
            for name in seeds.FOLDERS:
                (folder / "yolo" / name).unlink(missing_ok=True)
                if name in usual:
                    (folder / "yolo" / name).write_text(usual[name])
            last = place
        fresh(folder / place, data[1:])
        format, units = conventions[kind // len(places) % len(conventions)]
        file = read_boxes(folder / place.parts[0], format=format, units=units)
        for line in file.remarks:
            heard(line)
        for name in (*file.images[:8], "a.png", "gone.png"):
            with reported(ItemError, heard):
                found = file.for_one_image().boxes_for(name)
                regions = tuple(box.resolve(*seeds.SIZE) for box in found or ())
                for warning in clip_all(regions, *seeds.SIZE)[1]:
                    heard(warning)
        heard(ItemError(file.why_not("gone.png")))

    return read


class reported(suppress):  # noqa: N801 (used like a function)
    """Suppress an error, after it was told."""

    def __init__(self, kind: type[BaseException], heard: Heard) -> None:
        super().__init__(kind)
        self._heard = heard

    def __exit__(self, kind: Any, error: Any, trace: Any) -> bool:
        expected = super().__exit__(kind, error, trace)
        if expected:
            self._heard(error)
        return bool(expected)


def cards(folder: Path) -> Reader:
    from regionqa.bundles.store import open_bundle
    from regionqa.language.prompts import render

    def read(data: bytes, heard: Heard) -> None:
        fresh(folder / "card.toml", data)
        card = open_bundle(folder).card
        render(card.prompt, "what is <region1>?", [(0.0, 0.0, 1.0, 1.0)] * 2)

    return read


def toy_engine(multi_turn: bool = False) -> Any:
    """An engine that renders prompts as bundles do, and whose answers repeat the question."""
    from helpers.backends import ToyBackend, ToyPrompt, toy_info
    from regionqa.backends.base import Completion
    from regionqa.bundles.prompt_rules import PromptRules
    from regionqa.engine import Engine
    from regionqa.language.prompts import render

    rules = PromptRules("{image}{question}", "[{region}]", "describe", "describe <region1>")

    class Rendering(ToyBackend):
        def render(self, request: Any, max_new_tokens: int) -> ToyPrompt:
            render(rules, request.question, [(0.0, 0.0, 1.0, 1.0)] * len(request.regions))
            return ToyPrompt(request)

        def encode(self, image: Any, prompts: Any) -> list[ToyPrompt]:
            return list(prompts)

    backend = Rendering(toy_info(max_regions=4, multi_turn=multi_turn))
    backend.script = lambda request: Completion(request.question[:20], 1, 0.5)
    return Engine(backend)


def requests(folder: Path) -> Reader:
    from regionqa.options import OutputFormat
    from regionqa.pipeline.inputs import AskSettings, make_requests
    from regionqa.pipeline.items import find_images
    from regionqa.pipeline.outputs import OutputSettings, as_csv, as_json, as_text, encode

    write_image(folder)
    engine = toy_engine()
    output = OutputSettings(OutputFormat.jsonl, "toy", "1", "cpu", "none", carried=True)

    def read(data: bytes, heard: Heard) -> None:
        stdin = io.TextIOWrapper(io.BytesIO(data), encoding="utf-8")
        settings = AskSettings("what is this?", "and this?", each=len(data) % 2 == 0)
        items = find_images(["-"], stdin, heard, null=len(data) % 5 == 0)
        for answer in engine.answer(make_requests(items, settings, heard)):
            if answer.error is not None:
                heard(answer.error)
            for record in (as_json(answer, output), as_csv(answer, output)):
                encode(record)
            encode(as_text(answer, bare=False))

    return read


def records(folder: Path) -> Reader:
    from regionqa.data.check import summarise
    from regionqa.data.files import read_training_data
    from regionqa.data.questions import read_questions

    write_image(folder)

    def read(data: bytes, heard: Heard) -> None:
        name = RECORDS[data[0] % len(RECORDS) if data else 0]
        path = fresh(folder / name, data[1:])
        if name.startswith("questions"):
            for question in read_questions(path):
                heard(question.request.error or "")
            return
        found = read_training_data(path)
        for line in (*summarise(found).lines(), *found.remarks, *found.problems):
            heard(line)
        found.or_stop(skip_bad=True)

    return read


def settings(folder: Path) -> Reader:
    from regionqa.cli.finetune import chosen_settings
    from regionqa.finetune.settings_files import saved_settings

    def read(data: bytes, heard: Heard) -> None:
        name = SETTINGS[data[0] % len(SETTINGS) if data else 0]
        path = fresh(folder / name, data[1:])
        if name.startswith("saved"):
            saved_settings(path)
        else:
            chosen_settings(None, None, path, {}, {})

    return read


class Listener:
    """Passes what a chat says on."""

    def __init__(self, heard: Heard) -> None:
        self.error = self.warn = heard

    def part(self, text: str) -> None:
        pass

    answer = note = part

    def show(self, heading: str, lines: Sequence[str]) -> None:
        pass


def chat(folder: Path) -> Reader:
    from regionqa.errors import OutputError
    from regionqa.pipeline.chat import Chat, ChatSettings

    write_image(folder)
    engines = toy_engine(), toy_engine(multi_turn=True)

    def write(path: Path, kept: object) -> None:
        if len(str(path)) % 2:
            raise OutputError(f"{path}: cannot be written: no space")

    def read(data: bytes, heard: Heard) -> None:
        engine = engines[len(data) % 2]
        conversation = Chat(engine, ChatSettings(), Listener(heard), write)
        conversation.open(str(folder / "a.png"))
        for line in data.decode("utf-8", "surrogateescape").split("\n"):
            if not conversation.follow(line):
                break

    return read


def weights(folder: Path) -> Reader:
    from regionqa.export.sources.region_checkpoints import check_regionclip
    from regionqa.export.sources.shards import Shards

    shard = next(iter(seeds.weight_files(folder)))[1:]

    def read(data: bytes, heard: Heard) -> None:
        for name in WEIGHTS:
            (folder / name).unlink(missing_ok=True)
        name = WEIGHTS[data[0] % len(WEIGHTS) if data else 0]
        path = fresh(folder / name, data[1:])
        if name.startswith("trunk"):
            check_regionclip(path)
            return
        if name.endswith(".index.json"):
            fresh(folder / "shard.safetensors", shard)
        found = Shards(folder)
        for each in list(found.entries)[:8]:
            if found.entries[each].size < 1 << 20:
                found.tensor(each).float().sum()
        found.release()

    return read


def tokenizers(folder: Path) -> Reader:
    from regionqa.export.sources.sentencepiece import legacy_llama_tokenizer, read_added_tokens

    usual = next(iter(seeds.tokenizer_files(ROOT)))[1:]

    def read(data: bytes, heard: Heard) -> None:
        (folder / "added_tokens.json").unlink(missing_ok=True)
        if data[:1] == b"\1":
            fresh(folder / "tokenizer.model", usual)
            fresh(folder / "added_tokens.json", data[1:])
        else:
            fresh(folder / "tokenizer.model", data[1:])
        added = read_added_tokens(folder)
        legacy_llama_tokenizer(folder / "tokenizer.model", added or ("<image>",)).encode("a b")

    return read


def configs(folder: Path) -> Reader:
    from regionqa.errors import RegionQAError
    from regionqa.export.sources.chat_templates import processor_template
    from regionqa.export.sources.checkpoints import (
        end_ids,
        quiet_transformers,
        read_text_config,
    )
    from regionqa.export.sources.image_processors import image_table
    from regionqa.export.sources.llava import check_config
    from regionqa.export.sources.published import PublishedCheckpoints, language_config

    usual = next(iter(seeds.config_files()))[1:]

    def read(data: bytes, heard: Heard) -> None:
        for name in CONFIGS:
            (folder / name).unlink(missing_ok=True)
        name = CONFIGS[data[0] % len(CONFIGS) if data else 0]
        fresh(folder / "config.json", usual)
        fresh(folder / name, data[1:])
        with quiet_transformers():
            if name == "preprocessor_config.json":
                image_table(folder, 32)
            elif name == "chat_template.json":
                processor_template(folder)
            else:
                with reported(RegionQAError, heard):
                    language_config(PublishedCheckpoints(folder, folder, folder))
                config = read_text_config(folder)
                end_ids(folder, config)
                check_config(folder, config)

    return read


TARGETS: Mapping[str, Target] = {
    "images": Target(images, lambda folder: seeds.image_files(), 3, seeds.bombs, has_kind=False),
    "boxes": Target(boxes, seeds.box_files, 4, opens=False),
    "cards": Target(
        cards,
        lambda folder: [path.read_bytes() for path in sorted(ROOT.glob("models/*/card.toml"))],
        2,
        has_kind=False,
        opens=False,
    ),
    "requests": Target(requests, lambda folder: seeds.request_lines(), 3, has_kind=False),
    "records": Target(records, lambda folder: seeds.record_files(), 3),
    "settings": Target(settings, lambda folder: seeds.settings_files(), 1, opens=False),
    "chat": Target(chat, lambda folder: seeds.chat_lines(), 2, has_kind=False),
    "weights": Target(weights, seeds.weight_files, 2, opens=False),
    "tokenizers": Target(tokenizers, lambda folder: seeds.tokenizer_files(ROOT), 0.5, opens=False),
    "configs": Target(configs, lambda folder: seeds.config_files(), 0.5, opens=False),
}
