"""A checkpoint's tokenizer and chat template -> what a bundle needs to ask in the same words.

The template is found by rendering one conversation and seeing where image and question went. What
counts as right is what transformers makes of the same conversation. It does not know about weights.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoTokenizer

from regionqa.bundles.prompt_rules import PromptRules, RegionInput
from regionqa.errors import BundleError
from regionqa.language.prompts import render
from regionqa.language.tokenization import BundleTokenizer, stages, tokenize

log = logging.getLogger("regionqa.export")
VICUNA, VICUNA_TURN = "USER: {image}\n{question} ASSISTANT:", "USER: NEXTSLOT ASSISTANT:"
"""How LLaVA 1.5 is asked (its Vicuna form); for checkpoints without a chat template."""
FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model", "vocab.txt")
"""One of these makes a tokenizer; without any, transformers would make one up."""
IMAGE, QUESTION, ANSWER, NEXT = "IMAGESLOT", "QUESTIONSLOT", "ANSWERSLOT", "NEXTSLOT"
PROBES = ("what is this?", "Is it {red}?\n\nSay yes or no.", "  Ein Häuschen 猫 🐈  am 3. Mai?")
"""Questions on which the renderer must agree with transformers."""
Messages = list[dict[str, Any]]


@dataclass(frozen=True)
class PromptFormat:
    """How a checkpoint is asked."""

    written: str
    """The prompt as the checkpoint's own template writes it, `IMAGE` and `QUESTION` in it."""
    template: str
    """The card's prompt template."""
    answer: str
    """How an answer stands after its prompt; the card's pattern."""
    turn: str | None
    """What follows an answer and its stop, up to the next answer; None where that is not known."""
    stop: tuple[str, ...]
    """Special tokens that end an answer, the one its template writes first."""
    tokenizer: str
    """The content of tokenizer.json."""


def read_tokenizer(folder: Path) -> Any:
    """The tokenizer in a folder as transformers reads it; BundleError where there is none.

    A tokenizer that is only there in its slow form is converted.
    """
    if not any((folder / name).is_file() for name in FILES):
        raise BundleError(f"{folder}: has no tokenizer; none of {', '.join(FILES)} is there")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # many kinds, the library's bare Exception among them
        reason = " ".join(str(error).split())
        raise BundleError(f"{folder}: transformers cannot read its tokenizer: {reason}") from error
    if not isinstance(getattr(tokenizer, "backend_tokenizer", None), Tokenizer):
        raise BundleError(f"{folder}: its tokenizer has no form that the tokenizers library reads")
    return tokenizer


def read_conversation(
    folder: Path, tokenizer: Any, ends: Sequence[int], image_token: str | None
) -> PromptFormat:
    """How the checkpoint in a folder is asked.

    ends: ids that its config says end an answer. image_token: what stands for the image in its
    texts; None where it has never seen one, and the image is put before the question.
    BundleError where its chat template cannot be followed.
    """
    jinja = tokenizer.chat_template or processor_template(folder)
    if isinstance(jinja, dict):
        jinja = jinja.get("default")
    if jinja is None:
        written = RenderedTemplate(
            VICUNA.format(image=IMAGE, question=QUESTION), " ", VICUNA_TURN, None
        )
    else:
        written = follow(folder, tokenizer, jinja, image_token)
    opening = opening_tokens(tokenizer)
    prompt = written.prompt
    whole = prompt if prompt.startswith(opening) else opening + prompt
    ends_by_name = [tokenizer.convert_ids_to_tokens(end) for end in ends]
    stop = [token for token in (written.end, *ends_by_name) if token] or [tokenizer.eos_token]
    if not stop[0]:
        raise BundleError(f"{folder}: does not say which token ends an answer")
    return PromptFormat(
        written=prompt,
        template=card_pattern(whole),
        answer=card_pattern(f"{written.lead}{ANSWER}"),
        turn=written.turn and card_pattern(written.turn),
        stop=tuple(dict.fromkeys(stop)),
        tokenizer=tokenizer_file(tokenizer, prompt, image_token),
    )


def processor_template(folder: Path) -> str | None:
    """The chat template where older checkpoints of images and words keep it."""
    for name in ("chat_template.json", "processor_config.json"):
        if (folder / name).is_file():
            found = json.loads((folder / name).read_text(encoding="utf-8")).get("chat_template")
            if isinstance(found, str):
                return found
    return None


@dataclass(frozen=True)
class RenderedTemplate:
    """What a chat template writes, with `IMAGE`, `QUESTION` and `NEXT` where these stand."""

    prompt: str
    lead: str
    """Between prompt and answer."""
    turn: str | None
    """From an answer's end to the next answer; None where the template knows one question only."""
    end: str | None
    """The special token that follows an answer."""


def follow(folder: Path, tokenizer: Any, jinja: str, image_token: str | None) -> RenderedTemplate:
    """What the chat template writes about one image.

    Some templates want a list of what a message holds, others its text; both are tried.
    """
    image = image_token or IMAGE
    for lists in (True, False):

        def said(role: str, text: str, lists: bool = lists) -> dict[str, Any]:
            return {"role": role, "content": [{"type": "text", "text": text}] if lists else text}

        asked = said("user", QUESTION if lists else f"{image}\n{QUESTION}")
        if lists:
            asked["content"].insert(0, {"type": "image"})
        prompt = rendered(tokenizer, jinja, [asked], add_generation_prompt=True)
        found = [prompt.find(part) for part in (image, QUESTION)]
        if not 0 <= found[0] < found[1] or prompt.count(image) > 1 or prompt.count(QUESTION) > 1:
            continue
        talk = [asked, said("assistant", ANSWER)]
        before, _, after = rendered(tokenizer, jinja, talk).partition(ANSWER)
        ends = [token for token in added_tokens(tokenizer) if after.lstrip().startswith(token)]
        end = max(ends, key=len, default=None)
        talk.append(said("user", NEXT))
        further = rendered(tokenizer, jinja, talk, add_generation_prompt=True)
        _, _, turn = further.partition(ANSWER)
        if end and turn.lstrip().startswith(end):
            turn = turn.lstrip().removeprefix(end)
        return RenderedTemplate(
            prompt=prompt.replace(image, IMAGE),
            lead=before.removeprefix(prompt) if before.startswith(prompt) else "",
            turn=turn if turn.count(NEXT) == 1 else None,
            end=end,
        )
    raise BundleError(
        f"{folder}: its chat template does not put one image before the question, so it cannot "
        "be asked about an image"
    )


def rendered(tokenizer: Any, jinja: str, messages: Messages, **options: bool) -> str:
    """The conversation as text; empty where the template refuses it."""
    try:
        text = tokenizer.apply_chat_template(
            messages, chat_template=jinja, tokenize=False, **options
        )
    except Exception as error:  # whatever a template does to what it was not written for
        log.debug("the chat template refused a conversation: %s", error)
        return ""
    return str(text)


def opening_tokens(tokenizer: Any) -> str:
    """What the tokenizer puts before every text by itself, such as `<s>`."""
    plain = tokenizer.encode("a", add_special_tokens=False)
    ids = tokenizer.encode("a")
    count = next((i for i in range(len(ids)) if ids[i : i + len(plain)] == plain), 0)
    return "".join(tokenizer.convert_ids_to_tokens(ids[:count]))


def added_tokens(tokenizer: Any) -> list[str]:
    """Texts of the tokenizer's special and added tokens."""
    return [token.content for token in tokenizer.added_tokens_decoder.values()]


def card_pattern(text: str) -> str:
    """The text as a card's pattern, with fields for slots; its own braces are written twice."""
    pattern = text.replace("{", "{{").replace("}", "}}")
    fields = {IMAGE: "{image}", QUESTION: "{question}", NEXT: "{question}", ANSWER: "{answer}"}
    for slot, name in fields.items():
        pattern = pattern.replace(slot, name)
    return pattern


def tokenizer_file(tokenizer: Any, body: str, image_token: str | None) -> str:
    """The content of the bundle's tokenizer.json: the tokenizer as transformers runs it.

    Two things may be said in it that transformers knows without: no text opens a prompt that
    begins with a special token of the template, and the image token is special, so that nobody
    can type it.
    """
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    if any(body.startswith(token) for token in added_tokens(tokenizer)):
        for stage in stages(content["pre_tokenizer"] or {}):
            if stage.get("prepend_scheme") == "first":
                stage["prepend_scheme"] = "never"
    for token in content["added_tokens"]:
        token["special"] = token["special"] or token["content"] == image_token
    return json.dumps(content, ensure_ascii=False)


def prompt_table(conversation: PromptFormat, region_input: RegionInput) -> dict[str, str]:
    """The card's [prompt] for a model that learned from images, but from no prompt of ours."""
    table = {
        "template": conversation.template,
        "answer": conversation.answer,
        "region": {
            RegionInput.features: "{region}",
            RegionInput.coordinates: "[{x0}, {y0}, {x1}, {y1}]",
            RegionInput.none: "",
        }[region_input],
        "image_question": "Describe this picture.",
        "region_question": "Describe the region <region1>.",
    }
    if conversation.turn:
        table["turn"] = conversation.turn
    if region_input is RegionInput.coordinates:
        table |= {"introduction": "In the region {regions}: ", "separator": ", "}
    if region_input is RegionInput.none:
        table["region_question"] = table["image_question"]
    return table


def check_ids(conversation: PromptFormat, tokenizer: Any, image_token: str) -> None:
    """BundleError where the bundle's ids of a prompt are not those of transformers."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "tokenizer.json"
        file.write_text(conversation.tokenizer, encoding="utf-8")
        own = BundleTokenizer(file)
    rules = PromptRules(conversation.template, "", "", "")
    image = tokenizer.convert_tokens_to_ids(image_token)
    opening = opening_tokens(tokenizer)
    for question in PROBES:
        pieces = render(rules, question, (), own.special_tokens)
        prompt = tokenize(pieces, own, image_tokens=1, region_tokens=0)
        ids = list(prompt.input_ids)
        ids[prompt.image_start] = image
        text = conversation.written.replace(IMAGE, image_token).replace(QUESTION, question.strip())
        adds_opening = not (opening and text.startswith(opening))
        expected = tokenizer.encode(text, add_special_tokens=adds_opening)
        if ids != expected:
            raise BundleError(
                f"the tokenizer: {text!r} is read as {ids}, transformers reads it as {expected}"
            )
