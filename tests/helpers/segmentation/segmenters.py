"""Tiny checkpoints of SAM 2 with random weights, and a segmenter that needs none."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from helpers.detection.detectors import save
from regionqa.segmentation.base import SegmentedMask, SegmenterInfo
from regionqa.segmentation.options import Points

SIDE = 64
"""Pixels of the side of a prepared image."""


def write_sam2(folder: Path) -> Path:
    """The image model of SAM 2 alone."""
    from transformers import Sam2Config, Sam2Model

    torch.manual_seed(0)  # so that processes share their graphs
    return save(folder, Sam2Model(Sam2Config(**parts())), processor())


def write_sam2_video(folder: Path) -> Path:
    """The released layout of SAM 2: the video model, whose weights hold the image model's."""
    from transformers import Sam2VideoConfig, Sam2VideoModel, Sam2VideoProcessor
    from transformers import Sam2VideoVideoProcessor as VideoProcessor

    torch.manual_seed(0)
    config = Sam2VideoConfig(
        **parts(), image_size=SIDE, num_maskmem=2, memory_attention_hidden_size=16,
        memory_attention_num_layers=1, memory_attention_num_attention_heads=1,
        memory_attention_downsample_rate=1, memory_attention_feed_forward_hidden_size=16,
        memory_attention_rope_feat_sizes=[4, 4], memory_encoder_hidden_size=16,
        memory_encoder_output_channels=8, mask_downsampler_embed_dim=16,
        memory_fuser_embed_dim=16, memory_fuser_intermediate_dim=16, memory_fuser_num_layers=1,
    )  # fmt: skip
    both = Sam2VideoProcessor(processor().image_processor, VideoProcessor(size=square(SIDE)))
    return save(folder, Sam2VideoModel(config), both)


def parts() -> dict[str, Any]:
    """Configs of the encoder, of points and of the mask decoder."""
    from transformers import Sam2HieraDetConfig, Sam2VisionConfig
    from transformers.models.sam2.configuration_sam2 import (
        Sam2MaskDecoderConfig,
        Sam2PromptEncoderConfig,
    )

    backbone = Sam2HieraDetConfig(
        hidden_size=8, num_attention_heads=1, image_size=[SIDE, SIDE],
        blocks_per_stage=[1, 1, 2, 1], embed_dim_per_stage=[8, 16, 32, 64],
        num_attention_heads_per_stage=[1, 1, 2, 2], window_size_per_stage=[4, 2, 2, 2],
        global_attention_blocks=[3], window_positional_embedding_background_size=[4, 4],
    )  # fmt: skip
    return {
        "vision_config": Sam2VisionConfig(
            backbone_config=backbone, backbone_channel_list=[64, 32, 16, 8],
            backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]], fpn_hidden_size=16,
        ),
        "prompt_encoder_config": Sam2PromptEncoderConfig(
            hidden_size=16, image_size=SIDE, patch_size=16
        ),
        "mask_decoder_config": Sam2MaskDecoderConfig(
            hidden_size=16, mlp_dim=16, num_attention_heads=2, iou_head_hidden_dim=16
        ),
    }  # fmt: skip


def processor() -> Any:
    """SAM 2's processor at the size of the tiny model."""
    from transformers import Sam2ImageProcessor, Sam2Processor

    return Sam2Processor(Sam2ImageProcessor(size=square(SIDE), mask_size=square(SIDE // 4)))


def square(side: int) -> dict[str, int]:
    """A size as processors take it."""
    return {"height": side, "width": side}


WRITERS = {"sam2": write_sam2, "sam2_video": write_sam2_video}
"""Writers by `model_type`."""


class ColourSegmenter:
    """Finds the pixels that have the colour of a point inside, and of no point outside."""

    info = SegmenterInfo("colours", "1", "cpu", "none")

    def __init__(self) -> None:
        self.encoded = 0
        """Number of images that were encoded."""

    def encode(self, image: Image.Image) -> Any:
        self.encoded += 1
        return np.asarray(image).astype(np.int64) @ [1 << 16, 1 << 8, 1]

    def segment(self, encoded: Any, size: tuple[int, int], points: Points) -> SegmentedMask:
        assert encoded.shape == size[::-1]
        colours: dict[bool, list[int]] = {True: [], False: []}
        for point in points:
            colours[point.inside].append(encoded[int(point.y), int(point.x)])
        inside = np.isin(encoded, colours[True]) & ~np.isin(encoded, colours[False])
        return SegmentedMask(inside, 0.9)
