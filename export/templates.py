"""A checkpoint's tokenizer and chat template -> what a bundle needs to ask in the same words.

The template is found by rendering one conversation and seeing where picture and question went. What
counts as right is what transformers makes of the same conversation. It does not know about weights.
"""

import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoTokenizer

from regionqa.errors import BundleError
from regionqa.prompts import PromptRules, RegionInput, render, tokenize
from regionqa.tokenizer import BundleTokenizer, stages

log = logging.getLogger("regionqa.export")
VICUNA = "USER: {image}\n{question} ASSISTANT:"
"""How LLaVA 1.5 is asked (its Vicuna form); for checkpoints without a chat template."""
FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model", "vocab.txt")
"""One of these makes a tokenizer; without any, transformers would make one up."""
IMAGE, QUESTION, ANSWER = "PICTURESLOT", "QUESTIONSLOT", "ANSWERSLOT"
PROBES = ("what is this?", "Is it {red}?\n\nSay yes or no.", "  Ein Häuschen 猫 🐈  am 3. Mai?")
"""Questions on which the renderer must agree with transformers."""
Messages = list[dict[str, Any]]


@dataclass(frozen=True)
class Conversation:
    """How a checkpoint is asked."""

    written: str
    """The prompt as the checkpoint's own template writes it, `IMAGE` and `QUESTION` in it."""
    template: str
    """The card's prompt template."""
    stop: tuple[str, ...]
    """Special tokens that end an answer."""
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
) -> Conversation:
    """How the checkpoint in a folder is asked.

    ends: ids that its config says end an answer. image_token: what stands for the picture in its
    texts; None where it has never seen one, and the picture is put before the question.
    BundleError where its chat template cannot be followed.
    """
    jinja = tokenizer.chat_template or processor_template(folder)
    if isinstance(jinja, dict):
        jinja = jinja.get("default")
    if jinja is None:
        body, turn_end = VICUNA.replace("{image}", IMAGE).replace("{question}", QUESTION), None
    else:
        body, turn_end = follow(folder, tokenizer, jinja, image_token)
    opening = opening_tokens(tokenizer)
    whole = body if body.startswith(opening) else opening + body
    stop = [tokenizer.convert_ids_to_tokens(end) for end in ends] + [turn_end]
    if not any(stop):
        stop = [tokenizer.eos_token]
    return Conversation(
        written=body,
        template=card_template(strip_beside_tokens(whole, tokenizer)),
        stop=tuple(dict.fromkeys(str(token) for token in stop if token)),
        tokenizer=tokenizer_file(tokenizer, body, image_token),
    )


def processor_template(folder: Path) -> str | None:
    """The chat template where older checkpoints of pictures and words keep it."""
    for name in ("chat_template.json", "processor_config.json"):
        if (folder / name).is_file():
            found = json.loads((folder / name).read_text(encoding="utf-8")).get("chat_template")
            if isinstance(found, str):
                return found
    return None


def follow(
    folder: Path, tokenizer: Any, jinja: str, image_token: str | None
) -> tuple[str, str | None]:
    """The prompt with `IMAGE` and `QUESTION` in it, and the special token after an answer.

    Some templates want a list of what a message holds, others its text; both are tried.
    """
    picture = image_token or IMAGE
    content: list[dict[str, str]] = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    for user, answer in (
        (content, [{"type": "text", "text": ANSWER}]),
        (f"{picture}\n{QUESTION}", ANSWER),
    ):
        messages: Messages = [{"role": "user", "content": user}]
        body = rendered(tokenizer, jinja, messages, add_generation_prompt=True)
        found = [body.find(part) for part in (picture, QUESTION)]
        if not 0 <= found[0] < found[1] or body.count(picture) > 1 or body.count(QUESTION) > 1:
            continue
        messages.append({"role": "assistant", "content": answer})
        _, _, after = rendered(tokenizer, jinja, messages).partition(ANSWER)
        ends = [token for token in added_tokens(tokenizer) if after.lstrip().startswith(token)]
        return body.replace(picture, IMAGE), max(ends, key=len, default=None)
    raise BundleError(
        f"{folder}: its chat template does not put one picture before the question, so it cannot "
        "be asked about a picture"
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


def strip_beside_tokens(text: str, tokenizer: Any) -> str:
    """The text without the spaces that a token beside them takes with it when it is read."""
    for token in tokenizer.added_tokens_decoder.values():
        written = re.escape(token.content)
        if token.rstrip:
            text = re.sub(rf"({written})\s+", r"\1", text)
        if token.lstrip:
            text = re.sub(rf"\s+({written})", r"\1", text)
    return text


def card_template(text: str) -> str:
    """The text with `{image}` and `{question}`; braces of its own are written twice."""
    literal = text.replace("{", "{{").replace("}", "}}")
    return literal.replace(IMAGE, "{image}").replace(QUESTION, "{question}")


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


def prompt_table(template: str, region_input: RegionInput) -> dict[str, str]:
    """The card's [prompt] for a model that learned from pictures, but from no prompt of ours."""
    table = {
        "template": template,
        "region": {
            RegionInput.features: "{region}",
            RegionInput.coordinates: "[{x0}, {y0}, {x1}, {y1}]",
            RegionInput.none: "",
        }[region_input],
        "picture_question": "Describe this picture.",
        "region_question": "Describe the region <region1>.",
    }
    if region_input is RegionInput.coordinates:
        table |= {"introduction": "In the region {regions}: ", "separator": ", "}
    if region_input is RegionInput.none:
        table["region_question"] = table["picture_question"]
    return table


def check_ids(conversation: Conversation, tokenizer: Any, image_token: str) -> None:
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
