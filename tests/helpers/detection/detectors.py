"""Tiny checkpoints of object detectors, in the layout of the released ones, with random weights.

Weights are larger than initialized, so that scores and boxes differ from query to query.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

CLASSES = ("person", "cat", "dog", "cup", "car")
"""Classes of the detectors with a fixed list."""
ID2LABEL = dict(enumerate(CLASSES))
LABEL2ID = {name: number for number, name in ID2LABEL.items()}


def write_detr(folder: Path) -> Path:
    """DETR: the image is resized by its shorter side; softmax with a class for "no object"."""
    from transformers import DetrConfig, DetrForObjectDetection, DetrImageProcessor, ResNetConfig

    config = DetrConfig(
        backbone_config=ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1],
            layer_type="basic", out_features=["stage4"],
        ),
        num_queries=12, encoder_layers=1, decoder_layers=1, d_model=16,
        encoder_ffn_dim=16, decoder_ffn_dim=16, encoder_attention_heads=2,
        decoder_attention_heads=2, id2label=ID2LABEL, label2id=LABEL2ID,
    )  # fmt: skip
    processor = DetrImageProcessor(size={"shortest_edge": 64, "longest_edge": 107})
    return save(folder, DetrForObjectDetection(config), processor)


def write_yolos(folder: Path) -> Path:
    """YOLOS: a vision transformer with detection tokens; sizes vary as in DETR."""
    from transformers import YolosConfig, YolosForObjectDetection, YolosImageProcessor

    config = YolosConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
        image_size=[64, 96], num_detection_tokens=12, id2label=ID2LABEL, label2id=LABEL2ID,
    )  # fmt: skip
    processor = YolosImageProcessor(size={"shortest_edge": 64, "longest_edge": 107})
    return save(folder, YolosForObjectDetection(config), processor)


def write_rt_detr_v2(folder: Path) -> Path:
    """RT-DETRv2: the image is squashed to a square; sigmoid scores of queries and classes."""
    from transformers import (
        RTDetrImageProcessor,
        RTDetrResNetConfig,
        RTDetrV2Config,
        RTDetrV2ForObjectDetection,
    )

    backbone = RTDetrResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = RTDetrV2Config(backbone_config=backbone, encoder_in_channels=[8, 16, 16], **HYBRID)
    processor = RTDetrImageProcessor(size={"height": 64, "width": 64})
    return save(folder, RTDetrV2ForObjectDetection(config), processor)


def write_d_fine(folder: Path) -> Path:
    """D-FINE: RT-DETR's processor, boxes as distributions over distances."""
    from transformers import (
        DFineConfig,
        DFineForObjectDetection,
        HGNetV2Config,
        RTDetrImageProcessor,
    )

    backbone = HGNetV2Config(
        stem_channels=[3, 4, 8], stage_in_channels=[8, 8, 16, 16],
        stage_mid_channels=[4, 4, 8, 8], stage_out_channels=[8, 16, 16, 16],
        stage_num_blocks=[1, 1, 1, 1], stage_numb_of_layers=[1, 1, 1, 1],
        stage_downsample=[False, True, True, True], stage_light_block=[False] * 4,
        stage_kernel_size=[3, 3, 3, 3], embedding_size=8, hidden_sizes=[8, 16, 16, 16],
        depths=[1, 1, 1, 1], out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = DFineConfig(
        backbone_config=backbone, encoder_in_channels=[16, 16, 16], max_num_bins=8,
        lqe_hidden_dim=8, **HYBRID,
    )  # fmt: skip
    processor = RTDetrImageProcessor(size={"height": 64, "width": 64})
    return save(folder, DFineForObjectDetection(config), processor)


HYBRID: dict[str, Any] = {
    "encoder_hidden_dim": 16, "encoder_ffn_dim": 16, "encoder_attention_heads": 2, "d_model": 16,
    "decoder_in_channels": [16, 16, 16], "decoder_ffn_dim": 16, "decoder_layers": 2,
    "decoder_attention_heads": 2, "decoder_n_points": 2, "num_queries": 12, "num_denoising": 0,
    "id2label": ID2LABEL, "label2id": LABEL2ID,
}  # fmt: skip
"""What RT-DETR and D-FINE have in common."""


def write_owlv2(folder: Path) -> Path:
    """OWLv2: the image is padded to a square; a query per phrase."""
    from transformers import Owlv2Config, Owlv2ForObjectDetection, Owlv2ImageProcessor
    from transformers import Owlv2Processor as Processor

    tokenizer = clip_tokenizer(folder)
    text = {
        "vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 16,
        "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 16,
        "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    vision = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "image_size": 64, "patch_size": 16,
    }  # fmt: skip
    config = Owlv2Config(text_config=text, vision_config=vision, projection_dim=16)
    processor = Processor(Owlv2ImageProcessor(size={"height": 64, "width": 64}), tokenizer)
    return save(folder, Owlv2ForObjectDetection(config), processor)


def write_grounding_dino(folder: Path) -> Path:
    """Grounding DINO: all phrases in one text; a score for every token of it."""
    from transformers import (
        GroundingDinoConfig,
        GroundingDinoForObjectDetection,
        GroundingDinoImageProcessor,
        GroundingDinoProcessor,
        SwinConfig,
    )

    tokenizer = bert_tokenizer()
    text = {
        "model_type": "bert", "vocab_size": len(tokenizer), "hidden_size": 16,
        "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "max_position_embeddings": 32,
    }  # fmt: skip
    backbone = SwinConfig(
        image_size=64, patch_size=4, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2],
        window_size=4, out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = GroundingDinoConfig(
        backbone_config=backbone, text_config=text, num_queries=12, encoder_layers=1,
        encoder_ffn_dim=16, encoder_attention_heads=2, decoder_layers=2, decoder_ffn_dim=16,
        decoder_attention_heads=2, d_model=32, encoder_n_points=2, decoder_n_points=2,
        max_text_len=24, disable_custom_kernels=True,
    )  # fmt: skip
    images = GroundingDinoImageProcessor(size={"shortest_edge": 64, "longest_edge": 107})
    processor = GroundingDinoProcessor(images, tokenizer)
    return save(folder, GroundingDinoForObjectDetection(config), processor)


def clip_tokenizer(folder: Path) -> Any:
    """CLIP's tokenizer of single characters."""
    from transformers import CLIPTokenizer

    letters = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    # id 0 first in a row means that the row is padding
    tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=16)


def bert_tokenizer() -> Any:
    """BERT's tokenizer of single characters."""
    from transformers import BertTokenizer

    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "?", *letters]
    tokens += [f"##{letter}" for letter in letters]
    return BertTokenizer(vocab={token: number for number, token in enumerate(tokens)})


def save(folder: Path, model: Any, processor: Any) -> Path:
    """Write a model with random weights, and its processor."""
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(std=0.3)
            else:
                weight.add_(torch.randn_like(weight) * 0.3)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


WRITERS: dict[str, Callable[[Path], Path]] = {
    "detr": write_detr,
    "yolos": write_yolos,
    "rt_detr_v2": write_rt_detr_v2,
    "d_fine": write_d_fine,
    "owlv2": write_owlv2,
    "grounding-dino": write_grounding_dino,
}
"""Writers by `model_type`."""
OPEN = ("owlv2", "grounding-dino")
"""Families that find what is described in words."""
CLOSED = tuple(family for family in WRITERS if family not in OPEN)


def write_detector(family: str, folder: Path) -> Path:
    """Write a tiny checkpoint, whose weights are the same in every process."""
    torch.manual_seed(0)  # so that processes share their graphs
    return WRITERS[family](folder)
