"""`regionqa init`: bundles from published parts, compared with transformers.

The checkpoints are tiny and random, written by transformers itself; their answers mean nothing, but
must be the same here, token for token.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import (
    AddedToken,
)
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    Qwen2Config,
    Qwen2ForCausalLM,
    SiglipImageProcessor,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from helpers.backends import bundle_backend
from helpers.tiny_checkpoints import (
    LLAVA,
    MEAN_STD,
    QWEN,
    TEXT,
    VISION,
    write_llama_tokenizer,
    write_llava,
    write_qwen_tokenizer,
)
from regionqa.bundles.prompt_rules import PromptRules, RegionInput
from regionqa.bundles.store import Bundle, open_bundle
from regionqa.cli import init as making
from regionqa.engine import Engine
from regionqa.errors import BundleError
from regionqa.export.bundle import read_encoders
from regionqa.export.init import InitResult, init_bundle, level_indices
from regionqa.export.modules.multilevel import MultiLevelRegionEncoder
from regionqa.export.modules.tower import TowerVision
from regionqa.export.sources.chat_templates import PromptFormat, prompt_table, read_conversation
from regionqa.export.sources.checkpoints import quiet_transformers
from regionqa.export.sources.image_processors import image_table
from regionqa.export.sources.llava import llava_bundle
from regionqa.images.preprocessing import Fit, Preprocessing
from regionqa.language.prompts import render
from regionqa.language.tokenization import BundleTokenizer, Preceding, tokenize
from regionqa.schema import from_table

if TYPE_CHECKING:
    from conftest import Command

QUESTIONS = ("what is this?", "Is it {red}?\nSay yes or no.", "where is the 猫, and why?")
LENGTH = 12
WORDS = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Of a model of words alone: what a message holds is a text."""


@dataclass(frozen=True)
class Checkpoint:
    """A published model on disk, and the bundle made from it."""

    folder: Path
    made: InitResult

    @property
    def bundle(self) -> Bundle:
        return self.made.bundle


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Checkpoint]:
    """A LLaVA and its bundle, made once for each pair of parts."""
    root = tmp_path_factory.mktemp("llava")
    known: dict[str, Checkpoint] = {}

    def make(text: str, vision: str) -> Checkpoint:
        key = f"{text}-{vision}"
        if key not in known:
            folder = write_llava(root / key, text, vision)
            known[key] = Checkpoint(folder, llava_bundle(folder, root / f"{key}-bundle"))
        return known[key]

    return make


def reference(folder: Path, image: Image.Image, question: str, length: int = LENGTH) -> list[int]:
    """Ids of the answer by transformers' own processor and `generate`, without the stop token."""
    with quiet_transformers():
        model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    images = AutoImageProcessor.from_pretrained(folder, backend="pil")
    config = json.loads((folder / "processor_config.json").read_text())
    names = ("patch_size", "vision_feature_select_strategy", "num_additional_image_tokens")
    processor = LlavaProcessor(
        images, tokenizer, chat_template=tokenizer.chat_template,
        **{name: config[name] for name in names},
    )  # fmt: skip
    content = [{"type": "image"}, {"type": "text", "text": question}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    inputs = processor(images=image, text=text, return_tensors="pt")
    with torch.no_grad():
        ids = model.generate(**inputs, do_sample=False, max_new_tokens=length, pad_token_id=0)
    answer = [int(token) for token in ids[0, inputs["input_ids"].shape[1] :]]
    ends = model.generation_config.eos_token_id
    return answer[: answer.index(ends)] if ends in answer else answer


def own_answer(engine: Engine, path: Path, question: str, length: int = LENGTH) -> list[int]:
    """Ids of the bundle's answer."""
    seen: list[tuple[int, ...]] = []
    language = bundle_backend(engine).language
    generate = language.generate

    def spy(*arguments: Any) -> Any:
        answers = generate(*arguments)
        seen.extend(answer.ids for answer in answers)
        return answers

    language.generate = spy  # type: ignore[method-assign, assignment]
    try:
        engine.ask(path, question, max_new_tokens=length)
    finally:
        language.generate = generate  # type: ignore[method-assign]
    return list(seen[0])


PAIRS = [("llama", "clip"), ("llama", "siglip"), ("qwen2", "clip"), ("qwen2", "siglip")]


@pytest.mark.parametrize(("text", "vision"), PAIRS)
def test_answers_equal_transformers(
    llava: Callable[[str, str], Checkpoint], skimage_photos: Path, text: str, vision: str
) -> None:
    made = llava(text, vision)
    engine = Engine.load(made.bundle, device="cpu")
    answers = []
    for photo in ("astronaut.png", "chelsea.png"):
        with Image.open(skimage_photos / photo) as image:
            for question in QUESTIONS:
                expected = reference(made.folder, image.convert("RGB"), question)
                assert own_answer(engine, skimage_photos / photo, question) == expected
                answers.append(tuple(expected))
    assert len(set(answers)) > len(QUESTIONS)  # the image matters, and so does the question


def test_stop_token_ends_an_answer(
    llava: Callable[[str, str], Checkpoint], skimage_photos: Path, tmp_path: Path
) -> None:
    """Swap the embedding rows of the answer's fifth token and the stop token."""
    made, photo = llava("llama", "clip"), skimage_photos / "astronaut.png"
    question = QUESTIONS[1]
    with Image.open(photo) as image:
        answer = reference(made.folder, image, question)
        end = next(i for i in range(3, LENGTH) if answer[i] not in answer[:i])
        folder = tmp_path / "ends"
        shutil.copytree(made.folder, folder)
        with quiet_transformers():
            model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
            stop = model.generation_config.eos_token_id
            rows = model.lm_head.weight.data
            rows[[stop, answer[end]]] = rows[[answer[end], stop]].clone()
            model.save_pretrained(folder)
        assert reference(folder, image, question) == answer[:end]
    bundle = llava_bundle(folder, tmp_path / "mine").bundle
    assert own_answer(Engine.load(bundle, device="cpu"), photo, question) == answer[:end]


@pytest.mark.parametrize("text", ["llama", "qwen2"])
def test_half_precision_and_tied_embeddings(
    tmp_path: Path, skimage_photos: Path, text: str
) -> None:
    folder = write_llava(tmp_path / "tied", text, "clip", dtype=torch.bfloat16, tied=True)
    made = llava_bundle(folder, tmp_path / "mine")
    kinds = {
        tensor.dtype for tensor in load_file(made.bundle.root / "llm/model.safetensors").values()
    }
    assert kinds == {torch.bfloat16}
    photo = skimage_photos / "astronaut.png"
    engine = Engine.load(made.bundle, device="cpu")
    with Image.open(photo) as image:
        assert own_answer(engine, photo, QUESTIONS[0]) == reference(folder, image, QUESTIONS[0])


def test_runtime_is_chosen_by_config(llava: Callable[[str, str], Checkpoint]) -> None:
    assert llava("llama", "clip").bundle.card.language.runtime == "native"
    assert llava("qwen2", "clip").bundle.card.language.runtime == "transformers"


# -- the command -----------------------------------------------------------------------------------


def test_llava_answers_about_boxes(
    regionqa: "Command",
    llava: Callable[[str, str], Checkpoint],
    skimage_photos: Path,
    tmp_path: Path,
) -> None:
    source = llava("llama", "siglip").folder
    out = tmp_path / "my-llava"
    ran = regionqa("init", out, "--from-llava", source)
    assert (ran.status, ran.lines) == (0, [str(out)]), ran.err
    assert "regions: coordinates" in ran.err
    assert "language model" in ran.err
    assert "vision.onnx: differs from torch by" in ran.err
    assert "untrained" not in ran.err
    photo = skimage_photos / "astronaut.png"
    words = ["--model", out, "--max-new-tokens", 8, "what is this?"]
    boxed = regionqa("ask", photo, "--box", "10,20,200,300", *words)
    plain = regionqa("ask", photo, *words)
    assert boxed.status == plain.status == 0
    assert boxed.out != plain.out
    assert regionqa("caption", photo, "--box", "10,20,200,300", *words[:-1]).status == 0


@pytest.mark.parametrize(("text", "vision"), [("llama", "clip"), ("qwen2", "siglip")])
def test_new_region_encoder_is_untrained(
    regionqa: "Command", parts: Path, skimage_photos: Path, tmp_path: Path, text: str, vision: str
) -> None:
    out = tmp_path / "mine"
    ran = regionqa("init", out, "--vision", parts / vision, "--llm", parts / text, "--name", "ours")
    assert (ran.status, ran.lines) == (0, [str(out)]), ran.err
    assert "untrained: projector and region encoder; train it with regionqa finetune" in ran.err
    card = open_bundle(out).card
    assert (card.name, card.image.fit, card.region is not None) == ("ours", "squash", True)
    assert card.prompt.template.startswith("<s>USER:" if text == "llama" else "<|im_start|>user")
    assert str(parts) not in (out / "card.toml").read_text(encoding="utf-8")
    vision_module, region = read_encoders(open_bundle(out))
    assert isinstance(vision_module, TowerVision)
    assert isinstance(region, MultiLevelRegionEncoder)
    asked = regionqa(
        "ask", skimage_photos / "coffee.png", "--box", "10,20,200,300", "--model", out,
        "--max-new-tokens", 4, "what is <region1>?",
    )  # fmt: skip
    assert asked.status == 0, asked.err


def test_model_without_regions(regionqa: "Command", parts: Path, cat: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine"
    words = ["--vision", parts / "clip", "--llm", parts / "qwen2"]
    ran = regionqa("init", out, *words, "--region-input", "none", "--fit", "crop")
    assert ran.status == 0, ran.err
    assert "untrained: projector; train" in ran.err
    card = open_bundle(out).card
    assert (card.region, card.vision.levels, card.image.fit) == (None, (), "crop")
    ask = ["ask", cat, "--model", out, "--max-new-tokens", 6, "what is this?"]
    assert regionqa(*ask).out == regionqa(*ask, "--box", "10,20,200,250").out


def test_region_encoder_with_its_own_pixels(
    regionqa: "Command", llava: Callable[[str, str], Checkpoint], cat: Path, tmp_path: Path
) -> None:
    out = tmp_path / "mine"
    words = ["--from-llava", llava("llama", "clip").folder, "--region-input", "features"]
    ran = regionqa("init", out, *words, "--region-source", "pixels")
    assert ran.status == 0, ran.err
    assert "region.onnx: differs from torch by" in ran.err
    assert "untrained: region encoder; train" in ran.err
    card = open_bundle(out).card
    assert card.region is not None
    assert card.region.image is not None
    assert card.vision.levels == ()
    ask = ["ask", cat, "--box", "10,20,200,250", "--model", out, "--max-new-tokens", 4]
    assert regionqa(*ask, "what is <region1>?").status == 0


def test_weights_are_unchanged(parts: Path, tmp_path: Path) -> None:
    nothing = RegionInput.none
    made = init_bundle(parts / "both", parts / "bin", tmp_path / "mine", region_input=nothing)
    vision, _ = read_encoders(made.bundle)
    weights = load_file(parts / "both" / "model.safetensors")
    name = "encoder.layers.0.mlp.fc1.weight"
    assert isinstance(vision, TowerVision)
    assert torch.equal(vision.tower.state_dict()[name], weights[f"vision_model.{name}"])
    copied = load_file(made.bundle.root / "llm" / "model.safetensors")
    original = torch.load(parts / "bin" / "pytorch_model.bin", weights_only=True)
    assert all(torch.equal(copied[name], original[name]) for name in copied)
    again = init_bundle(parts / "both", parts / "bin", tmp_path / "again", region_input=nothing)
    assert again.bundle.card.revision == made.bundle.card.revision


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny published parts: clip, siglip, both (of CLIP's towers), llama, qwen2, bin."""
    root = tmp_path_factory.mktemp("parts")
    torch.manual_seed(5)
    sizes = {"height": 28, "width": 28}
    clip = CLIPImageProcessor(size={"shortest_edge": 28}, crop_size=sizes)
    words = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": 50}
    both = CLIPConfig(
        vision_config=VISION, text_config={**words, "num_attention_heads": 2, "bos_token_id": 0,
                                           "eos_token_id": 1},
    )  # fmt: skip
    with quiet_transformers():
        for name, model, processor in (
            ("clip", CLIPVisionModel(CLIPVisionConfig(**VISION)), clip),
            (
                "siglip",
                SiglipVisionModel(SiglipVisionConfig(**VISION)),
                SiglipImageProcessor(size=sizes),
            ),
            ("both", CLIPModel(both), clip),
        ):
            model.save_pretrained(root / name)
            processor.save_pretrained(root / name)
        ends = {"bos_token_id": None, "eos_token_id": 2}
        write_llama_tokenizer(root / "llama", "first", chat=None)
        LlamaForCausalLM(LlamaConfig(**TEXT, **ends)).save_pretrained(root / "llama")
        write_qwen_tokenizer(root / "qwen2", chat=WORDS)
        Qwen2ForCausalLM(Qwen2Config(**TEXT, **ends)).save_pretrained(root / "qwen2")
    shutil.copytree(root / "llama", root / "bin")
    torch.save(load_file(root / "bin" / "model.safetensors"), root / "bin" / "pytorch_model.bin")
    (root / "bin" / "model.safetensors").unlink()
    return root


# -- what is refused -------------------------------------------------------------------------------


def test_incompatible_options(regionqa: "Command", parts: Path, tmp_path: Path) -> None:
    out, taken = tmp_path / "mine", tmp_path / "taken"
    taken.mkdir()
    (taken / "letter").touch()
    pair = ["--vision", parts / "clip", "--llm", parts / "llama"]
    for words, line in (
        ([out], "give either --vision and --llm, or --from-llava alone"),
        (
            [out, "--vision", parts / "clip"],
            "give either --vision and --llm, or --from-llava alone",
        ),
        ([out, *pair, "--from-llava", parts], "give either"),
        ([taken, *pair], f"{taken}: already exists; name a new or empty folder"),
        ([taken / "letter", *pair], "letter: already exists"),
    ):
        ran = regionqa("init", *words)
        assert (ran.status, ran.out) == (2, "")
        assert ran.err.count("\n") == 1
        assert line in ran.err
    assert not out.exists()


def test_invalid_folders(regionqa: "Command", parts: Path, tmp_path: Path) -> None:
    bare, speechless = tmp_path / "bare", tmp_path / "speechless"
    bare.mkdir()
    shutil.copytree(parts / "llama", speechless)
    (speechless / "tokenizer.json").unlink()
    blind = tmp_path / "blind"
    shutil.copytree(parts / "clip", blind)
    for file in blind.glob("*processor_config.json"):
        file.unlink()
    for vision, language, line in (
        (tmp_path / "gone", parts / "llama", "gone: "),
        (bare, parts / "llama", "bare: is no checkpoint in transformers' format: no config.json"),
        (
            parts / "llama",
            parts / "llama",
            "type 'llama' is not a supported vision tower",
        ),
        (parts / "clip", parts / "clip", "'clip_vision_model' is no causal language model"),
        (parts / "clip", speechless, "speechless: has no tokenizer"),
        (blind, parts / "llama", "blind: has no image processor"),
    ):
        ran = regionqa("init", tmp_path / "mine", "--vision", vision, "--llm", language)
        assert ran.status in (1, 2)
        assert ran.err.count("\n") == 1
        assert line in ran.err
    assert not (tmp_path / "mine").exists()


def test_checkpoints_other_than_llava(
    regionqa: "Command", llava: Callable[[str, str], Checkpoint], parts: Path, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    shutil.copytree(llava("llama", "clip").folder, source)
    config = json.loads((source / "config.json").read_text())
    for changes, line in (
        ({"model_type": "llava_next"}, "'llava_next' cuts images into tiles"),
        ({"model_type": "vipllava"}, "'vipllava' joins several hidden states"),
        ({"vision_feature_layer": [-2, -1]}, "joins hidden states [-2, -1] into one"),
        ({"mm_vision_tower": "clip"}, "is in LLaVA's own format"),
        ({"text_config": {**config["text_config"], "max_position_embeddings": 20}}, "no room"),
        (
            {"vision_config": {**config["vision_config"], "image_size": 42}},
            "its image processor gives 28 pixels, its vision tower reads 42",
        ),
    ):
        (source / "config.json").write_text(json.dumps({**config, **changes}))
        ran = regionqa("init", tmp_path / "mine", "--from-llava", source)
        assert ran.status == 1
        assert ran.err.count("\n") == 1
        assert line in ran.err
    (source / "config.json").write_text(json.dumps(config))
    weights = load_file(source / "model.safetensors")
    name = next(name for name in weights if "multi_modal_projector.linear_2.weight" in name)
    del weights[name]
    save_file(weights, source / "model.safetensors", {"format": "pt"})
    ran = regionqa("init", tmp_path / "mine", "--from-llava", source)
    assert (ran.status, ran.err.count("\n")) == (1, 1)
    assert "multi_modal_projector.linear_2.weight is missing" in ran.err
    ran = regionqa("init", tmp_path / "mine", "--from-llava", parts / "llama")
    assert "'llama' is no LLaVA" in ran.err


# -- prompts and tokenizers ------------------------------------------------------------------------

SYSTEM = "{% if messages[0].role == 'user' %}<s>{% endif %}[INST] {a} " + LLAVA + " [/INST]"


@pytest.mark.parametrize("chat", [LLAVA, SYSTEM])
@pytest.mark.parametrize("scheme", ["first", "always", "never", "legacy"])
@pytest.mark.parametrize("kind", ["LlamaTokenizer", "PreTrainedTokenizerFast"])
def test_prompt_ids_equal_transformers(tmp_path: Path, kind: str, scheme: str, chat: str) -> None:
    """transformers rebuilds a tokenizer.json that is loaded as LlamaTokenizer."""
    write_llama_tokenizer(tmp_path, scheme, chat)
    file = tmp_path / "tokenizer_config.json"
    config = {**json.loads(file.read_text()), "tokenizer_class": kind, "add_bos_token": True}
    file.write_text(json.dumps({**config, "legacy": scheme == "legacy"}))
    same_ids(tmp_path, AutoTokenizer.from_pretrained(tmp_path), tmp_path / "own.json")


def test_prompt_ids_of_byte_tokenizers_equal_transformers(tmp_path: Path) -> None:
    write_qwen_tokenizer(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    conversation = same_ids(tmp_path, tokenizer, tmp_path / "own.json")
    assert conversation.stop == ("<|im_end|>",)
    assert conversation.answer == "{answer}"
    assert conversation.turn == (
        "\n<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    )


def test_answers_and_later_turns_in_templates(tmp_path: Path) -> None:
    tokenizer = write_llama_tokenizer(tmp_path, "first")
    conversation = read_conversation(tmp_path, tokenizer, [2], "<image>")
    assert conversation.template == "<s>USER: {image}\n{question} ASSISTANT:"
    assert conversation.answer == " {answer}"
    assert conversation.turn == "USER: {question} ASSISTANT:"
    assert conversation.stop == ("</s>",)
    tokenizer.chat_template = None
    assert read_conversation(tmp_path, tokenizer, [2], "<image>") == conversation


def test_tokens_that_absorb_spaces(tmp_path: Path) -> None:
    tokenizer = write_qwen_tokenizer(tmp_path)
    tokenizer.add_tokens([AddedToken("<|role|>", special=True, rstrip=True, lstrip=True)])
    tokenizer.chat_template = QWEN.replace("<|im_end|>", " <|role|>  ")
    conversation = same_ids(tmp_path, tokenizer, tmp_path / "own.json")
    assert "{question} <|role|>" in conversation.template


def same_ids(folder: Path, tokenizer: Any, file: Path) -> PromptFormat:
    """Compare ids with transformers' ids of the text with all image tokens."""
    conversation = read_conversation(folder, tokenizer, [], "<image>")
    file.write_text(conversation.tokenizer, encoding="utf-8")
    own = BundleTokenizer(file)
    rules = from_table(PromptRules, prompt_table(conversation, RegionInput.coordinates), "prompt")
    image = tokenizer.convert_tokens_to_ids("<image>")
    for question in QUESTIONS:
        prompt = tokenize(render(rules, question, (), own.special_tokens), own, 3, 0)
        content = [{"type": "image"}, {"type": "text", "text": question}]
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        ).replace("<image>", "<image>" * 3)
        expected = tokenizer(text, add_special_tokens=not text.startswith("<s>"))["input_ids"]
        start = prompt.image_start
        ids = [*prompt.input_ids[:start], image, image, image, *prompt.input_ids[start + 3 :]]
        assert ids == expected
    return conversation


def test_typed_image_token_is_text(llava: Callable[[str, str], Checkpoint]) -> None:
    for text in ("llama", "qwen2"):
        bundle = llava(text, "clip").bundle
        tokenizer = BundleTokenizer(bundle.file("llm/tokenizer.json"))
        special = {tokenizer.token_id(token) for token in tokenizer.special_tokens}
        for words in ("<image>", "a <image></s><|im_end|>"):
            for before in Preceding:
                assert not special & set(tokenizer.encode(words, before))


def test_templates_with_braces_or_without_image(tmp_path: Path) -> None:
    tokenizer = write_qwen_tokenizer(tmp_path)
    tokenizer.chat_template = "{% raw %}{a} {{b}} {% endraw %}" + QWEN
    template = read_conversation(tmp_path, tokenizer, [], "<image>").template
    assert template.startswith("{{a}} {{{{b}}}} <|im_start|>user\n{image}\n{question}<|im_end|>")
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}{% endfor %}"
    with pytest.raises(BundleError, match="does not put one image before the question"):
        read_conversation(tmp_path, tokenizer, [], "<image>")
    tokenizer.chat_template = "{% for m in messages %}{{ m.role + ': ' + m.content }}{% endfor %}"
    template = read_conversation(tmp_path, tokenizer, [], None).template
    assert template == "user: {image}\n{question}"


# -- sizes and fits --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "expected"),
    [(24, (14, 17, 20, 23)), (12, (5, 7, 9, 11)), (27, (17, 20, 23, 26)), (3, (1, 2)), (1, (0,))],
)
def test_levels_are_spaced_as_in_gpt4roi(layers: int, expected: Sequence[int]) -> None:
    assert level_indices(layers) == expected


@pytest.mark.parametrize(
    ("settings", "fit"),
    [
        ({"size": {"height": 28, "width": 28}, "do_center_crop": False}, "squash"),
        ({"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}, "crop"),
    ],
)
def test_fit_is_that_of_the_image_processor(
    tmp_path: Path, skimage_photos: Path, settings: dict[str, Any], fit: str
) -> None:
    CLIPImageProcessor(**settings, **MEAN_STD).save_pretrained(tmp_path)
    table, notes = image_table(tmp_path, 28)
    assert (table["fit"], notes) == (fit, [])
    rules = from_table(Preprocessing, table, "image")
    theirs = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    for photo in ("astronaut.png", "chelsea.png", "coffee.png"):
        with Image.open(skimage_photos / photo) as image:
            for turned in (image.convert("RGB"), image.convert("RGB").rotate(90, expand=True)):
                expected = theirs(turned, return_tensors="np").pixel_values[0]
                assert np.abs(rules.pixel_values(turned) - expected).max() < 1e-5


def test_unknown_fit_needs_the_fit_option(tmp_path: Path) -> None:
    CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 28, "width": 28}
    ).save_pretrained(tmp_path)
    with pytest.raises(BundleError, match="use --fit squash, pad or crop"):
        image_table(tmp_path, 28)
    assert image_table(tmp_path, 28, Fit.squash)[0]["fit"] == "squash"


def test_fit_option_lists_square_fits() -> None:
    squares = set(map(str, Fit)) - {"shortest"}
    assert set(map(str, making.FitChoice)) == squares
