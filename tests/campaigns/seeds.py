"""Valid inputs that a fuzz campaign damages, written with the project's own writers."""

import io
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BOX_SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".xml", ".txt", ".parquet", "")
"""Suffixes of box files by the first byte of an input; the next two bytes are FOLDERS."""
FOLDERS = ("labels/a.txt", "data.yaml", "classes.txt")
"""Files of a folder with YOLO labels, one of which is the input."""
SIZE = (64, 48)
TIFF_WAYS = (None, "tiff_lzw", "jpeg", "packbits")


def image_files() -> Iterator[bytes]:
    """Small images of every format that is read, and of every mode that a format has."""
    from PIL import Image, features

    gradient = Image.linear_gradient("L").resize((24, 16))
    colours = Image.merge("RGB", [gradient, gradient.rotate(180), gradient.rotate(90)])
    clear = colours.copy()
    clear.putalpha(gradient)
    palette = colours.quantize(16)
    exif = Image.Exif()
    exif[0x0112] = 6
    forms: list[tuple[Image.Image, str, dict[str, Any]]] = [
        *((colours.convert(mode), "PNG", {}) for mode in ("1", "L", "LA", "P", "RGB", "RGBA")),
        (gradient.convert("I").convert("I;16"), "PNG", {}),
        (clear, "PNG", {"exif": exif}),
        (palette, "PNG", {"transparency": 3}),
        (colours, "JPEG", {"exif": exif}),
        (colours, "JPEG", {"progressive": True}),
        (colours.convert("CMYK"), "JPEG", {}),
        (gradient, "JPEG", {}),
        (palette, "GIF", {"transparency": 1, "save_all": True, "append_images": [gradient]}),
        (clear, "WEBP", {"lossless": True}),
        (colours, "WEBP", {"exif": exif}),
        *((colours.convert(mode), "BMP", {}) for mode in ("1", "L", "RGB")),
        *((colours, "TIFF", {"compression": way}) for way in TIFF_WAYS),
        *((gradient.convert(mode), "TIFF", {}) for mode in ("1", "I;16", "I", "F", "CMYK")),
    ]
    if features.check("avif"):
        forms.append((colours, "AVIF", {}))
    for image, format, options in forms:
        file = io.BytesIO()
        image.save(file, format, **options)
        yield file.getvalue()


def bombs() -> Iterator[bytes]:
    """Images of few bytes and of nearly as many pixels as are read, and of more."""
    from PIL import Image

    for mode, side in (("RGBA", 13_300), ("I;16", 13_300), ("L", 20_000)):
        file = io.BytesIO()
        Image.new(mode, (side, side)).save(file, "PNG", compress_level=1)
        yield file.getvalue()


def box_files(folder: Path) -> Iterator[bytes]:
    """Box files of every format, after a byte for the suffix; some by hand, of further shapes."""
    from regionqa.boxes.entries import ImageRegions
    from regionqa.boxes.files import FORMATS, write_boxes
    from regionqa.errors import OutputError
    from regionqa.regions import Box, Region

    regions = (Region(Box(1, 2, 30.5, 40), "cat"), Region(Box(5, 5, 9, 9), None))
    images = [ImageRegions(name, *SIZE, regions[:count]) for name, count in
              (("a.png", 2), ("b/c.png", 1), ("d.png", 0))]  # fmt: skip
    labelled = [ImageRegions("a.png", *SIZE, regions[:1])]
    suffixes = {"csv": ".csv", "requests": ".jsonl", "huggingface": ".jsonl", "cvat": ".xml"}
    for format in FORMATS:
        out = folder / f"{format}{suffixes.get(format, '.json')}"
        for given in (images, labelled):
            try:
                write_boxes(out, given, format)
                break
            except OutputError:
                continue
        for path in sorted(out.rglob("*")) if out.is_dir() else [out]:
            if path.is_file():
                number = BOX_SUFFIXES.index(path.suffix)
                place = len(BOX_SUFFIXES) + FOLDERS.index("classes.txt")
                yield bytes([place if path.name == "classes.txt" else number]) + path.read_bytes()
    yield from (bytes([number]) + text.encode() for number, text in by_hand())
    yield from parquet_file(folder)


def parquet_file(folder: Path) -> Iterator[bytes]:
    """A small table of Hugging Face's form, where pyarrow is installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        return
    objects = [{"bbox": [[1.0, 2.0, 9.0, 9.0]], "categories": [0]}]
    table = pyarrow.table({"file_name": ["a.png"], "objects": objects})
    pyarrow.parquet.write_table(table, folder / "a.parquet")
    yield bytes([BOX_SUFFIXES.index(".parquet")]) + (folder / "a.parquet").read_bytes()


def by_hand() -> Iterator[tuple[int, str]]:
    """Box files of shapes that the writers do not write, with the numbers of their suffixes."""
    coco: dict[str, Any] = {
        "images": [{"id": 1, "file_name": "a.png", "width": 64, "height": 48}],
        "categories": [{"id": 3, "name": "cat"}],
    }
    size = {"size": [48, 64]}
    shapes: list[dict[str, Any]] = [
        {"bbox": [1, 2, 3, 4], "iscrowd": 1, "segmentation": {"counts": [5, 3067], **size}},
        {"segmentation": {"counts": "]2Xo0", **size}},
        {"segmentation": [[1, 2, 30, 4, 9, 20]], "keypoints": [1, 2, 2], "num_keypoints": 1},
    ]  # fmt: skip
    notes = [{"id": n, "image_id": 1, "category_id": 3, **each} for n, each in enumerate(shapes)]
    yield 0, json.dumps({**coco, "annotations": notes})
    yield 0, json.dumps([{"image_id": 1, "category_id": 3, "bbox": [1, 2, 3, 4], "score": 0.5}])
    studio = {"x": 10, "y": 20, "width": 30, "height": 40, "rotation": 30}
    ends = {"original_width": 64, "original_height": 48, "from_name": "label", "to_name": "image"}
    results = [
        {"type": "rectanglelabels", "value": {**studio, "rectanglelabels": ["cat"]}, **ends},
        {"type": "polygonlabels", "value": {"points": [[1, 2], [3, 4], [9, 1]]}, **ends},
        {"type": "ellipselabels", "value": {"x": 1, "y": 2, "radiusX": 3, "radiusY": 4}, **ends},
    ]
    yield 0, json.dumps([{"data": {"image": "/data/upload/1/0a1b2c3d-a.png"},
                          "annotations": [{"result": results}]}])  # fmt: skip
    yield 0, json.dumps([{"image": "a.png", "label": [{**studio, "rectanglelabels": ["cat"]}]}])
    shaped = {"rectangle": [[1, 2], [9, 9]], "polygon": [[1, 2], [9, 9], [4, 8]],
              "circle": [[10, 10], [15, 10]], "point": [[1, 1]], "mask": [[1, 2], [9, 9]],
              "rotation": [[1, 2], [9, 2], [9, 9], [1, 9]]}  # fmt: skip
    drawn = [{"label": "cat", "shape_type": kind, "points": at} for kind, at in shaped.items()]
    yield (
        0,
        json.dumps({"shapes": drawn, "imagePath": "a.png", "imageWidth": 64, "imageHeight": 48}),
    )
    yield 0, "```json\n" + json.dumps([{"bbox_2d": [1, 2, 30, 40], "label": "cat"}]) + "\n```"
    yield 0, json.dumps({"objects": [{"x_min": 0.1, "y_min": 0.2, "x_max": 0.3, "y_max": 0.4}]})
    yield 0, json.dumps({"a.png": [[1, 2, 3, 4], {"box": [1, 2, 3, 4], "label": "cat"}]})
    yield 2, "image;x1;y1;x2;y2;label\na.png;1,5;2;3;4;cat\n"
    yield (
        2,
        ("ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax\na,x,/m/01,1,0.1,0.5,0.1,0.5\n"),
    )
    yield 2, ("filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,"
              'region_attributes\na.png,9,"{}",1,0,"{""name"":""rect"",""x"":1,""y"":2,""width"":3,'
              '""height"":4}","{""label"":""cat""}"\n')  # fmt: skip
    yield 4, ('<annotations><image id="0" name="a.png" width="64" height="48"><box label="cat" '
              'xtl="1" ytl="2" xbr="9" ybr="9" rotation="10"/><polygon label="dog" '
              'points="1,2;3,4;9,1"/><points label="x" points="1,1"/>'
              '<mask label="m" rle="3,4" left="1" top="2" width="3" height="2"/>'
              "</image></annotations>")  # fmt: skip
    yield 8, "0 0.5 0.5 0.2 0.2\n1 0.1 0.1 0.9 0.1 0.9 0.9\n"
    yield 8, "0 0.5 0.5 0.2 0.2 0.1 0.1 2 0.2 0.2 1\n"
    yield 8, "0 0.1 0.1 0.9 0.1 0.9 0.9 0.1 0.9\n"
    yield 8, "0 0.5 0.5 0.2 0.2 0.9 7\n"
    yield 9, "names:\n  0: cat\n  1: dog\nnc: 2\nkpt_shape: [2, 3]\ntask: pose\npath: .\n"
    yield 10, "cat\ndog\n"


def request_lines() -> Iterator[bytes]:
    """Lines of stdin for asking: paths and JSON requests."""
    request = {"image": "a.png", "regions": [[1, 2, 30, 40], {"box": [5, 5, 9, 9], "label": "cat"}],
               "question": "what is <region1>, and <region2>?", "id": 7, "meta": [1]}  # fmt: skip
    answered = {**request, "width": 64, "height": 48, "answer": "a cat", "error": None}
    for one in (request, answered, {"image": "a.png"}, {"image": "a.png", "question": "<region>?"}):
        yield json.dumps(one).encode()
    lines = [b"a.png", b"gone.png", json.dumps(request).encode(), b"", b"\xff.png", b"[1]"]
    yield b"\r\n".join(lines)
    yield b'"a.png"\n\xef\xbb\xbf{"image": "a.png", "bbox": [1, 2, 3, 4]}'
    inline = "what is <Region><L10><L20><L300><L400></Region>?"
    yield json.dumps({"image": "a.png", "question": inline}).encode()


def record_files() -> Iterator[bytes]:
    """Files of training records and of evaluation questions, after a byte for the suffix."""
    turns = [{"from": "human", "value": "what is <region1>?"}, {"from": "gpt", "value": "a cat."}]
    inline = [{"from": "human", "value": "<image>\nwhat is <Region><L1><L2><L300><L400></Region>?"},
              {"from": "gpt", "value": "a cat."}]  # fmt: skip
    record = {"image": "a.png", "regions": [[1, 2, 30, 40]], "conversations": turns, "id": "x"}
    pvit = {"image": "a.png", "id": "1", "conversations": inline}
    coco = {
        "images": [{"id": 1, "file_name": "a.png", "width": 64, "height": 48}],
        "categories": [{"id": 3, "name": "cat"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 3, "bbox": [1, 2, 3, 4]}],
    }
    questions = {"image": "a.png", "regions": [[1, 2, 30, 40]], "question": "what is <region1>?",
                 "answer": "a cat", "answers": ["cat"], "choices": ["cat", "dog"]}  # fmt: skip
    both = f"{json.dumps(record)}\n{json.dumps(pvit)}\n"
    for number, text in (
        (0, both),
        (1, json.dumps([record, pvit])),
        (1, json.dumps(coco)),
        (1, json.dumps({"a.png": [{"box": [1, 2, 3, 4], "label": "cat"}]})),
        (2, f"{json.dumps(questions)}\n"),
        (2, both),
    ):
        yield bytes([number]) + text.encode()


def settings_files() -> Iterator[bytes]:
    """Settings of finetuning, after a byte: 0 as a user writes them, 1 as a run saves them."""
    import tomli_w

    from regionqa.finetune.config import PRESETS, FinetuneSettings
    from regionqa.schema import without_none

    yield b'\0data = ["a.jsonl"]\nmodel = "starter"\nseed = 1\nlora_rank = 8\nrun = ["instruct"]\n'
    yield (b'\0data = ["a.jsonl"]\nheld_out_share = 0.2\n[align]\nepochs = 1\n'
           b'region = "projector"\n[instruct]\nlora_rank = 4\nlanguage = true\n')  # fmt: skip
    from dataclasses import asdict

    for stages in PRESETS.values():
        settings = asdict(FinetuneSettings(data=("a.jsonl",), model="starter", stages=stages))
        yield b"\1" + tomli_w.dumps({"settings": without_none(settings)}).encode()


def chat_lines() -> Iterator[bytes]:
    """Lines of a conversation."""
    yield b"what is this?\n/box 1,2,30,40\nand <region1>?\n/boxes\n/undo\n/undo\n/save a.jsonl"
    yield b"/box 10 10 20 20\n/box 1;2;3;4\nis <region2> on <region1>?\n/new\n/boxes\n/help\nwhat?"
    yield b"/image a.png\n/image gone.png\n/image\n/box\n/save\n/nonsense\n<region 1>?\n/quit"


def weight_files(folder: Path) -> Iterator[bytes]:
    """Weights, after a byte for the name; see `campaigns.targets.WEIGHTS`."""
    import numpy as np
    import torch
    from safetensors.torch import save

    tensors = {"model.a.weight": torch.ones(3, 4), "lm_head.weight": torch.ones(2, 3).half()}
    trunk = {
        "backbone.conv3.weight": torch.ones(2, 3, 1, 1),
        "backbone.bn.running_var": torch.ones(2),
    }
    listed = {"metadata": {}, "weight_map": dict.fromkeys(tensors, "shard.safetensors")}
    yield b"\0" + save(tensors)
    yield b"\4" + save(trunk)
    yield b"\2" + json.dumps(listed).encode()
    held = {"model": trunk, "iteration": np.float64(3), "optimizer": [1, None, {"lr": 1e-3}]}
    for number, content in ((1, tensors), (3, trunk), (3, held), (1, {"step": 1, **tensors})):
        file = io.BytesIO()
        torch.save(content, file)
        yield bytes([number]) + file.getvalue()
    old = io.BytesIO()
    torch.save(tensors, old, _use_new_zipfile_serialization=False)
    yield b"\3" + old.getvalue()
    yield b"\1" + old.getvalue()
    yield b"\3" + pickle.dumps({"model": {"backbone.a": 1}}, protocol=2)


def tokenizer_files(root: Path) -> Iterator[bytes]:
    """SentencePiece files and added tokens, after a byte for the name."""
    for name in ("gpt4roi/toy_llama.model", "pvit/toy_spm.model"):
        content = (root / "tests" / "golden" / name).read_bytes()
        yield b"\0" + content
    yield b"\1" + json.dumps({"<image>": 400, "<bbox>": 401}).encode()


def config_files() -> Iterator[bytes]:
    """Configs of checkpoints, after a byte for the name; see `campaigns.targets.CONFIGS`."""
    llama = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 8,
             "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 16,
             "rms_norm_eps": 1e-6, "vocab_size": 32, "rope_theta": 10000.0, "dtype": "float16",
             "eos_token_id": 2}  # fmt: skip
    tower = {"model_type": "clip_vision_model", "hidden_size": 8, "image_size": 32,
             "patch_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
             "intermediate_size": 16}  # fmt: skip
    llava = {"model_type": "llava", "text_config": llama, "vision_config": tower,
             "vision_feature_layer": -2, "image_token_index": 31}  # fmt: skip
    remote = {"model_type": "own", "auto_map": {"AutoConfig": "config.Own"}}
    for config in (llama, llava, tower, remote):
        yield b"\0" + json.dumps(config).encode()
    yield b"\1" + json.dumps({"eos_token_id": [2, 3], "max_length": 20}).encode()
    yield b"\2" + json.dumps({"chat_template": "{{ messages }}"}).encode()
    processor = {"image_processor_type": "CLIPImageProcessor", "do_resize": True, "resample": 3,
                 "size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32},
                 "do_center_crop": True, "do_normalize": True, "rescale_factor": 1 / 255,
                 "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}  # fmt: skip
    yield b"\3" + json.dumps(processor).encode()
