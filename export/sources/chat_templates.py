"""Convert a checkpoint's tokenizer and chat template to a card's prompt format.

The template is found by rendering one conversation with placeholders. The reference for the result
is transformers' rendering of the same conversation.
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
from regionqa.errors import BundleError, message_of
from regionqa.language.prompts import render
from regionqa.language.tokenization import BundleTokenizer, stages, tokenize
from regionqa.schema import read_object

log = logging.getLogger("regionqa.export")
VICUNA, VICUNA_TURN = "USER: {image}\n{question} ASSISTANT:", "USER: NEXTSLOT ASSISTANT:"
"""LLaVA 1.5's prompt (Vicuna), for checkpoints without a chat template."""
FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model", "vocab.txt")
"""Files of a tokenizer; without any of them, transformers would build an empty one."""
IMAGE, QUESTION, ANSWER, NEXT = "IMAGESLOT", "QUESTIONSLOT", "ANSWERSLOT", "NEXTSLOT"
PROBES = ("what is this?", "Is it {red}?\n\nSay yes or no.", "  Ein Häuschen 猫 🐈  am 3. Mai?")
"""Questions for which the prompt's ids must equal those of transformers."""
Messages = list[dict[str, Any]]


@dataclass(frozen=True)
class PromptFormat:
    """The prompt format of a checkpoint."""

    written: str
    """The prompt by the checkpoint's template, with `IMAGE` and `QUESTION`."""
    template: str
    """The card's prompt template."""
    answer: str
    """The card's pattern of an answer."""
    turn: str | None
    """The card's pattern between an answer's stop and the next answer; None if unknown."""
    stop: tuple[str, ...]
    """Special tokens that end an answer, the template's own first."""
    tokenizer: str
    """The content of tokenizer.json."""


def read_tokenizer(folder: Path) -> Any:
    """Load the tokenizer in a folder with transformers, which converts slow tokenizers.

    Raises:
        BundleError: There is none, or it has no form for the tokenizers library.
    """
    if not any((folder / name).is_file() for name in FILES):
        raise BundleError(f"{folder}: has no tokenizer; none of {', '.join(FILES)} is there")
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # many kinds, the library's bare Exception among them
        reason = message_of(error)
        raise BundleError(f"{folder}: transformers cannot read its tokenizer: {reason}") from error
    if not isinstance(getattr(tokenizer, "backend_tokenizer", None), Tokenizer):
        raise BundleError(f"{folder}: its tokenizer has no form that the tokenizers library reads")
    return tokenizer


def read_conversation(
    folder: Path, tokenizer: Any, ends: Sequence[int], image_token: str | None
) -> PromptFormat:
    """Read the prompt format of the checkpoint in a folder.

    Args:
        folder: The checkpoint.
        tokenizer: From `read_tokenizer`.
        ends: Ids of end tokens in its config.
        image_token: The placeholder of an image in its texts; None for a language model, for which
            the image is put before the question.

    Raises:
        BundleError: Its chat template cannot be expressed by a card.
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
        raise BundleError(f"{folder}: does not state which token ends an answer")
    return PromptFormat(
        written=prompt,
        template=card_pattern(whole),
        answer=card_pattern(f"{written.lead}{ANSWER}"),
        turn=written.turn and card_pattern(written.turn),
        stop=tuple(dict.fromkeys(stop)),
        tokenizer=tokenizer_file(tokenizer, prompt, image_token),
    )


def processor_template(folder: Path) -> str | None:
    """Return the chat template in the files of older vision-language checkpoints."""
    for name in ("chat_template.json", "processor_config.json"):
        if (folder / name).is_file():
            found = read_object(folder / name).get("chat_template")
            if isinstance(found, str):
                return found
    return None


@dataclass(frozen=True)
class RenderedTemplate:
    """The text of a chat template with the placeholders `IMAGE`, `QUESTION` and `NEXT`."""

    prompt: str
    lead: str
    """The text between prompt and answer."""
    turn: str | None
    """The text from an answer's end to the next answer; None if there is no second question."""
    end: str | None
    """The special token after an answer."""


def follow(folder: Path, tokenizer: Any, jinja: str, image_token: str | None) -> RenderedTemplate:
    """Render the chat template for a conversation about one image.

    Some templates expect a message's content as a list of parts, others as text; both are tried.
    """
    image = image_token or IMAGE
    for lists in (True, False):

        def message(role: str, text: str, lists: bool = lists) -> dict[str, Any]:
            return {"role": role, "content": [{"type": "text", "text": text}] if lists else text}

        question = message("user", QUESTION if lists else f"{image}\n{QUESTION}")
        if lists:
            question["content"].insert(0, {"type": "image"})
        prompt = rendered(tokenizer, jinja, [question], add_generation_prompt=True)
        found = [prompt.find(part) for part in (image, QUESTION)]
        if not 0 <= found[0] < found[1] or prompt.count(image) > 1 or prompt.count(QUESTION) > 1:
            continue
        dialogue = [question, message("assistant", ANSWER)]
        before, _, after = rendered(tokenizer, jinja, dialogue).partition(ANSWER)
        ends = [token for token in added_tokens(tokenizer) if after.lstrip().startswith(token)]
        end = max(ends, key=len, default=None)
        dialogue.append(message("user", NEXT))
        longer = rendered(tokenizer, jinja, dialogue, add_generation_prompt=True)
        _, _, turn = longer.partition(ANSWER)
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
    """Render a conversation; empty if the template raises an error."""
    try:
        text = tokenizer.apply_chat_template(
            messages, chat_template=jinja, tokenize=False, **options
        )
    except Exception as error:  # templates raise anything
        log.debug("the chat template refused a conversation: %s", error)
        return ""
    return str(text)


def opening_tokens(tokenizer: Any) -> str:
    """Return the tokens that the tokenizer adds before every text, such as `<s>`."""
    plain = tokenizer.encode("a", add_special_tokens=False)
    ids = tokenizer.encode("a")
    count = next((i for i in range(len(ids)) if ids[i : i + len(plain)] == plain), 0)
    return "".join(tokenizer.convert_ids_to_tokens(ids[:count]))


def added_tokens(tokenizer: Any) -> list[str]:
    """Texts of the tokenizer's special and added tokens."""
    return [token.content for token in tokenizer.added_tokens_decoder.values()]


def card_pattern(text: str) -> str:
    """Convert a text with placeholders to a card's pattern; braces are escaped."""
    pattern = text.replace("{", "{{").replace("}", "}}")
    fields = {IMAGE: "{image}", QUESTION: "{question}", NEXT: "{question}", ANSWER: "{answer}"}
    for slot, name in fields.items():
        pattern = pattern.replace(slot, name)
    return pattern


def tokenizer_file(tokenizer: Any, body: str, image_token: str | None) -> str:
    """Return the content of the bundle's tokenizer.json: the tokenizer as transformers runs it.

    Two rules that transformers applies outside the file are written to it: a prompt that begins
    with a special token gets no space before it, and the image token is special, so that users
    cannot type it.
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
    """Return the card's [prompt] for a checkpoint that was not trained with regionqa's prompts."""
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
    """BundleError if the bundle's ids of a prompt differ from those of transformers."""
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
