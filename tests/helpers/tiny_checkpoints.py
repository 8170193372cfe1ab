"""Tiny random checkpoints in transformers' format: what the Hub holds, a thousand times smaller."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipImageProcessor,
    SiglipVisionConfig,
)

from regionqa.export.sources.checkpoints import quiet_transformers

SENTENCES = ("what is this? a cat on a mat", "describe the image, please", "where is the cup?")
LLAVA = (
    "{% for m in messages %}{{ m.role.upper() }}: {% for c in m.content %}"
    "{% if c.type == 'image' %}<image>\n{% else %}{{ c.text }} {% endif %}{% endfor %}"
    "{% if m.role == 'assistant' %}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
QWEN = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for c in m.content %}"
    "{% if c.type == 'image' %}<image>\n{% else %}{{ c.text }}{% endif %}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_llama_tokenizer(folder: Path, scheme: str, chat: str | None = LLAVA) -> Any:
    """Make a tokenizer like LLaMA's: pieces with ▁, byte fallback, `<s>` first."""
    own = ["<unk>", "<s>", "</s>"]
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    words = "always" if scheme == "legacy" else scheme
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme=words, split=True)
    names = [*own, *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=340, special_tokens=names, show_progress=False)
    tokenizer.train_from_iterator(SENTENCES * 9, trainer)
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = [each for each in content["added_tokens"] if each["content"] in own]
    content["decoder"] = json.loads(
        decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        ).__getstate__()
    )
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "<s>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    }
    content["pre_tokenizer"]["split"] = False
    if scheme == "legacy":
        content["pre_tokenizer"] = None
        steps = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        content["normalizer"] = json.loads(normalizers.Sequence(steps).__getstate__())
    fast = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(content)),
        bos_token="<s>", eos_token="</s>", unk_token="<unk>",
    )  # fmt: skip
    fast.add_tokens([AddedToken("<image>", special=False, normalized=False)])
    fast.chat_template = chat
    fast.save_pretrained(folder)
    return fast


def write_qwen_tokenizer(folder: Path, chat: str | None = QWEN) -> Any:
    """Make a tokenizer like GPT-2's and Qwen's: byte level, no start token."""
    own = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340, special_tokens=own, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(SENTENCES * 9, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>")
    fast.chat_template = chat
    fast.save_pretrained(folder)
    return fast


TEXT: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 192, "vocab_size": 384,
    "initializer_range": 0.6,
}  # fmt: skip
VISION: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2,
    "image_size": 28, "patch_size": 14, "initializer_range": 0.2,
}  # fmt: skip
MEAN_STD: dict[str, Any] = {"image_mean": [0.48, 0.45, 0.4], "image_std": [0.27, 0.26, 0.28]}


def write_llava(
    folder: Path, text: str, vision: str, *, dtype: torch.dtype = torch.float32, **settings: Any
) -> Path:
    """A random LLaVA with its processor. text: llama or qwen2; vision: clip or siglip."""
    torch.manual_seed(3)
    if text == "llama":
        tokenizer = write_llama_tokenizer(folder, "first")
        stop = "</s>"
    else:
        tokenizer = write_qwen_tokenizer(folder)
        stop = "<|im_end|>"
    ends = {"bos_token_id": None, "eos_token_id": tokenizer.convert_tokens_to_ids(stop)}
    tied = settings.pop("tied", False)
    kind = LlamaConfig if text == "llama" else Qwen2Config
    towers = {"clip": CLIPVisionConfig, "siglip": SiglipVisionConfig}
    sizes = {"height": 28, "width": 28}
    images = {
        "clip": lambda: CLIPImageProcessor(size={"shortest_edge": 28}, crop_size=sizes, **MEAN_STD),
        "siglip": lambda: SiglipImageProcessor(size=sizes),
    }
    strategy = "default" if vision == "clip" else "full"
    config = LlavaConfig(
        vision_config=towers[vision](**VISION),
        text_config=kind(**TEXT, **ends, tie_word_embeddings=tied),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_select_strategy=strategy,
        tie_word_embeddings=tied,
        **{"vision_feature_layer": -2 if vision == "clip" else -1, **settings},
    )
    model = LlavaForConditionalGeneration(config).to(dtype).eval()
    model.generation_config.eos_token_id = ends["eos_token_id"]
    processor = LlavaProcessor(
        images[vision](), tokenizer, patch_size=14, vision_feature_select_strategy=strategy,
        num_additional_image_tokens=int(vision == "clip"), chat_template=tokenizer.chat_template,
    )  # fmt: skip
    with quiet_transformers():
        model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
