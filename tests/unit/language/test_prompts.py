"""Prompt rendering and tokenization: references, introductions, templates, conversations.

Two renderings are those of the published systems; the ids come from the starter's tokenizer, or
from one of a letter per id where positions are counted.
"""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regionqa.backends.bundle import BundleModel
from regionqa.bundles.prompt_rules import PromptRules, RegionInput
from regionqa.bundles.store import Bundle
from regionqa.errors import QuestionError
from regionqa.language.prompts import (
    Fractions,
    ImageSlot,
    Piece,
    RegionSlot,
    Special,
    Text,
    render,
    render_dialogue,
)
from regionqa.language.references import renumber
from regionqa.language.tokenization import BundleTokenizer, Preceding, tokenize

SPECIAL = ("<s>", "</s>", "<answer>", "<im_start>", "<im_end>", "<Region>", "</Region>")
BOXES: list[Fractions] = [(0.1, 0.25, 1.0, 2 / 3), (0, 0, 0.5, 0.5), (0.5, 0.5, 1, 1)]

PLAIN = PromptRules(
    template="<s>{image}{question}<answer>",
    region="{region}",
    image_question="describe this picture.",
    region_question="describe <region1>.",
    introduction="{regions}",
    separator="",
)
GPT4ROI = PromptRules(
    template="### Human: The <im_start>{image}<im_end> provides an overview of the image.\n"
    "{question}\n### ",
    region="region{number} {region}",
    image_question="Describe this picture.",
    region_question="What is <region1>?",
    again="region{number}",
    introduction="There are {regions}. ",
    separator=", ",
)
PVIT = replace(PLAIN, region="<Region>{region}</Region>")
COORDINATES = replace(
    PLAIN, region="[{x0},{y0},{x1},{y1}]", separator=" ", introduction="{regions} "
)
NONE = replace(PLAIN, region="")


class Letters:
    """A tokenizer of one id per letter; special tokens count from 1,000,000."""

    special_tokens: Sequence[str] = SPECIAL

    def token_id(self, token: str) -> int:
        return 1_000_000 + SPECIAL.index(token)

    def strips_space(self, token: str) -> tuple[bool, bool]:
        return False, False

    def encode(self, text: str, before: Preceding = Preceding.nothing) -> list[int]:
        return [ord(letter) for letter in text]


@pytest.fixture(scope="module")
def tokenizer(starter: Bundle) -> BundleTokenizer:
    return BundleTokenizer(starter.file("llm/tokenizer.json"))


def readable(pieces: Sequence[Piece]) -> str:
    """The pieces as text; slots and special tokens in double angle brackets."""
    words = []
    for piece in pieces:
        match piece:
            case Text(text):
                words.append(text)
            case Special(token):
                words.append(f"«{token}»")
            case ImageSlot():
                words.append("«image»")
            case RegionSlot(index):
                words.append(f"«{index}»")
    return "".join(words)


def rendered(rules: PromptRules, question: str, boxes: int = 0) -> str:
    return readable(render(rules, question, BOXES[:boxes], SPECIAL))


# -- references ------------------------------------------------------------------------------------


def test_references_are_replaced() -> None:
    assert rendered(PLAIN, "is <region2> on <region1>?", 2) == (
        "«<s>»«image»is «1» on «0»?«<answer>»"
    )


def test_repeated_reference() -> None:
    question = "is <region1> like <region2>, or <region1> alone?"
    assert "is «0» like «1», or «0» alone?" in rendered(PLAIN, question, 2)
    assert "is region1 «0» like region2 «1», or region1 alone?" in rendered(GPT4ROI, question, 2)


def test_unnamed_regions_are_introduced() -> None:
    assert rendered(PLAIN, "what are these?", 3) == "«<s>»«image»«0»«1»«2»what are these?«<answer>»"
    assert "\nThere are region1 «0», region2 «1», region3 «2». What are they?\n" in rendered(
        GPT4ROI, "What are they?", 3
    )
    assert "\nThere are region1 «0», region3 «2». What of region2 «1»?\n" in rendered(
        GPT4ROI, "What of <region2>?", 3
    )


def test_no_introduction_if_all_are_named() -> None:
    assert "There are" not in rendered(GPT4ROI, "What are <region1> and <region2>?", 2)
    assert "There are" not in rendered(GPT4ROI, "What is this?", 0)


def test_introduction_does_not_count_as_mention() -> None:
    text = rendered(GPT4ROI, "Is <region2> in <region2>?", 2)
    assert "There are region1 «0». Is region2 «1» in region2?" in text


@pytest.mark.parametrize(
    ("question", "boxes", "reason"),
    [
        ("what is <region3>?", 2, "names <region3>, but 2 regions were given"),
        ("what is <region0>?", 2, "names <region0>, but 2 regions were given"),
        ("what is <region1>?", 0, "names <region1>, but 0 regions were given"),
        ("<region1> or <region2>?", 1, "names <region2>, but 1 region was given"),
        (f"what is <region{'9' * 5000}>?", 1, "names <region999"),
        ("what is <region>?", 1, "holds '<region>', which names no region; write <region1>"),
        ("what is < region1>?", 1, "holds '< region1>', which names no region"),
        ("what is <Region1>?", 1, "holds '<Region1>', which names no region"),
        ("", 1, "the question is empty"),
        (" \n\t", 0, "the question is empty"),
    ],
)
def test_invalid_questions(question: str, boxes: int, reason: str) -> None:
    with pytest.raises(QuestionError, match=reason):
        render(PLAIN, question, BOXES[:boxes], SPECIAL)


@pytest.mark.parametrize("text", ["<regionx>", "region1", "<p>"])
def test_similar_texts_are_not_references(text: str) -> None:
    assert rendered(PLAIN, f"what is {text}?") == f"«<s>»«image»what is {text}?«<answer>»"


def test_question_is_stripped() -> None:
    assert rendered(PLAIN, "  what is this? \n") == rendered(PLAIN, "what is this?")


# -- the rules of published systems ----------------------------------------------------------------


def test_gpt4roi_prompt() -> None:
    assert rendered(GPT4ROI, "What is <region1> doing?", 1) == (
        "### Human: The «<im_start>»«image»«<im_end>» provides an overview of the image.\n"
        "What is region1 «0» doing?\n### "
    )


def test_pvit_prompt() -> None:
    assert rendered(PVIT, "What is <region2>?", 2) == (
        "«<s>»«image»«<Region>»«0»«</Region>»What is «<Region>»«1»«</Region>»?«<answer>»"
    )


def test_regions_as_coordinates() -> None:
    assert COORDINATES.region_input is RegionInput.coordinates
    assert not COORDINATES.takes_features
    assert rendered(COORDINATES, "what is <region1>?", 2) == (
        "«<s>»«image»[0.000,0.000,0.500,0.500] what is [0.100,0.250,1.000,0.667]?«<answer>»"
    )


def test_regions_left_out() -> None:
    assert NONE.region_input is RegionInput.none
    assert rendered(NONE, "what is this?", 2) == "«<s>»«image»what is this?«<answer>»"
    assert rendered(NONE, "what is <region1>?", 1) == "«<s>»«image»what is ?«<answer>»"
    assert rendered(PromptRules("{image} {question}", "", "?", "?"), "what?", 3) == "«image» what?"


def test_regions_as_features() -> None:
    assert [rules.takes_features for rules in (PLAIN, GPT4ROI, PVIT)] == [True] * 3
    assert GPT4ROI.region_input is RegionInput.features


def test_doubled_braces() -> None:
    rules = replace(PLAIN, template="{{{image}}} {question}")
    assert rendered(rules, "what {is} this?") == "{«image»} what {is} this?"


# -- conversations ---------------------------------------------------------------------------------


def dialogue(rules: PromptRules, given: Sequence[int] | None, *texts: str) -> str:
    """A prompt of questions, and answers to all but the last, that ends each with `###`."""
    count = max(given) if given else 2
    pieces = render_dialogue(rules, texts[::2], texts[1::2], BOXES[:count], "###", SPECIAL, given)
    return readable(pieces).partition("image.\n")[2]


TALKING = replace(GPT4ROI, turn=" Human: {question}\n### ", answer="Assistant: {answer}\n")


def test_dialogue() -> None:
    text = dialogue(TALKING, [1, 1], "What is <region1>?", " A dog. ", "Is it <region1>?")
    assert text == ("What is region1 «0»?\n### Assistant: A dog.\n### Human: Is it region1?\n### ")


def test_new_region_is_introduced_before_its_question() -> None:
    text = dialogue(TALKING, [1, 2], "What is it?", "A dog.", "Is it on <region1>?")
    assert text.startswith("There are region1 «0». What is it?")
    assert text.endswith("### Human: There are region2 «1». Is it on region1?\n### ")


def test_regions_known_from_the_start_are_introduced_first() -> None:
    text = dialogue(TALKING, None, "What is it?", "A dog.", "Is it <region1>?")
    assert text.startswith("There are region2 «1». What is it?")
    assert "Is it region1 «0»?" in text


def test_references_in_answers_become_text() -> None:
    text = dialogue(TALKING, None, "What?", "<region1> and </s>.", "Why?")
    assert "Assistant: region 1 and </s>.\n" in text


def test_reference_to_later_region_is_refused() -> None:
    with pytest.raises(QuestionError, match="names <region2>, but 1 region was given"):
        dialogue(TALKING, [1, 2], "What is <region2>?", "A dog.", "And <region2>?")


def test_introduced_question_gives_the_same_prompt(starter: Bundle) -> None:
    for rules in (TALKING, COORDINATES, NONE, PVIT):
        model = BundleModel(Bundle(replace(starter.card, prompt=rules), starter.root))
        question = model.info.introduce("What of <region2>?", [1, 3])
        assert rendered(rules, question, 3) == rendered(rules, "What of <region2>?", 3)


def test_renumber() -> None:
    text = "is <region3> on <region1>, or <region2>?"
    assert renumber(text, [3, 2]) == "is <region1> on region 1, or <region2>?"
    assert renumber("<region99999999999>", [1]) == "region 99999999999"


@pytest.mark.parametrize("takes", [(True, True), (True, False), (False, True), (False, False)])
def test_tokens_absorb_white_space(
    takes: tuple[bool, bool],
) -> None:
    class Taking(Letters):
        def strips_space(self, token: str) -> tuple[bool, bool]:
            return takes if token == "<im_end>" else (False, False)

    pieces: list[Piece] = [
        Text("a \n"),
        RegionSlot(0, "<im_end>"),
        Text(" \n"),
        Special("<im_end>"),
        Text(" b"),
    ]
    ids = tokenize(pieces, Taking(), 0, 1).input_ids
    token = Taking().token_id("<im_end>")
    text = "".join("#" if index == token else chr(index) for index in ids)
    head = "a" if takes[0] else "a \n"
    middle = "" if any(takes) else " \n"
    assert text == head + "#" + middle + "#" + ("b" if takes[1] else " b")


# -- special tokens --------------------------------------------------------------------------------


@pytest.mark.parametrize("token", ["<s>", "</s>", "<answer>", "<im_start>"])
def test_special_tokens_in_questions_are_text(token: str) -> None:
    pieces = render(PLAIN, f"{token}what{token} is this?{token}", [], SPECIAL)
    assert pieces == [
        Special("<s>"),
        ImageSlot(),
        Text(f"{token}what{token} is this?{token}"),
        Special("<answer>"),
    ]


def test_starter_encodes_typed_special_tokens_as_text(tokenizer: BundleTokenizer) -> None:
    special = {tokenizer.token_id(token) for token in tokenizer.special_tokens}
    pieces = render(PLAIN, "<s></s><answer> what is this?", [], tokenizer.special_tokens)
    prompt = tokenize(pieces, tokenizer, 0, 1)
    assert prompt.input_ids[0] == tokenizer.token_id("<s>")
    assert prompt.input_ids[-1] == tokenizer.token_id("<answer>")
    assert not special & set(prompt.input_ids[1:-1])


def test_longest_special_token_wins() -> None:
    pieces = render(
        replace(PLAIN, template="<<s>>{image}{question}"), "what?", [], ("<s>", "<<s>>")
    )
    assert pieces[0] == Special("<<s>>")


def test_template_without_special_tokens() -> None:
    assert render(PLAIN, "what?", []) == [Text("<s>"), ImageSlot(), Text("what?<answer>")]


# -- ids and slots ---------------------------------------------------------------------------------


@pytest.mark.parametrize("image_tokens", [0, 1, 5])
@pytest.mark.parametrize("region_tokens", [0, 1, 3])
def test_slot_lengths(image_tokens: int, region_tokens: int) -> None:
    pieces = render(PLAIN, "is <region2> on <region1>?", BOXES[:2], SPECIAL)
    prompt = tokenize(pieces, Letters(), image_tokens, region_tokens)
    first = 1 + image_tokens + len("is ")
    second = first + region_tokens + len(" on ")
    assert prompt.image_start == 1
    assert prompt.region_starts == ((first, 1), (second, 0))
    assert len(prompt.input_ids) == second + region_tokens + len("?") + 1
    slots = {1 + i for i in range(image_tokens)} | {
        start + i for start in (first, second) for i in range(region_tokens)
    }
    assert {i for i, token in enumerate(prompt.input_ids) if token == 0} == slots


def test_shared_prefix_ends_after_the_image() -> None:
    for rules in (PLAIN, GPT4ROI, PVIT, COORDINATES, NONE):
        prompts = [
            tokenize(render(rules, question, BOXES[:count], SPECIAL), Letters(), 7, 2)
            for question, count in (("what?", 0), ("what is this?", 3), ("<region2>", 2))
        ]
        [shared] = {prompt.shared for prompt in prompts}
        assert shared == prompts[0].image_start + 7
        assert len({prompt.input_ids[:shared] for prompt in prompts}) == 1
        assert all(start >= shared for prompt in prompts for start, _ in prompt.region_starts)


def test_adjacent_texts_are_encoded_together(tokenizer: BundleTokenizer) -> None:
    rules = replace(PLAIN, template="the {image}image: {question} end", region="it")
    pieces = render(rules, "is <region1> red?", BOXES[:1], SPECIAL)
    assert pieces == [Text("the "), ImageSlot(), Text("image: is it red? end")]
    prompt = tokenize(pieces, tokenizer, 2, 0)
    assert list(prompt.input_ids[prompt.shared :]) == tokenizer.encode("image: is it red? end")


# -- bad rules -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "pattern", "reason"),
    [
        ("template", "{question}", r"prompt template: \{image\} is missing"),
        ("template", "{image}", r"prompt template: \{question\} is missing"),
        ("template", "", "is missing"),
        ("template", "{image}{question}{region}", r"\{region\} is unknown; known: \['image'"),
        ("template", "{image}{question}{}", r"\{\} is unknown"),
        ("template", "{image}{question", r"prompt template '\{image\}\{question': "),
        ("template", "{image}}{question}", r"prompt template .*: Single '\}'"),
        ("template", "{question}{image}", r"\{image\} must stand once, and before \{question\}"),
        ("template", "{image}{image}{question}", r"\{image\} must stand once"),
        ("template", "{image}{question}{image}", r"\{image\} must stand once"),
        ("template", "{image:>9}{question}", "a field is a name alone"),
        ("template", "{image}{question!r}", "a field is a name alone"),
        ("region", "{regions}", r"prompt region: \{regions\} is unknown"),
        ("region", "{x0:.2f}", r"prompt region '\{x0:.2f\}': a field is a name alone"),
        ("region", "{region", "prompt region"),
        ("again", "{x2}", r"prompt again: \{x2\} is unknown"),
        ("introduction", "look: ", r"prompt introduction: \{regions\} is missing"),
        ("introduction", "{region} ", r"prompt introduction: \{region\} is unknown"),
    ],
)
def test_invalid_rules(field: str, pattern: str, reason: str) -> None:
    values = {"template": PLAIN.template, "region": "", field: pattern}
    with pytest.raises(ValueError, match=reason):
        PromptRules(image_question="?", region_question="?", **values)


# -- any question ----------------------------------------------------------------------------------

any_text = st.text(st.characters())  # half surrogate pairs, as in a broken JSON line, included
fragments = st.sampled_from(
    ["<region1>", "<region2>", "<region5>", "<region0>", "<region", "<s>", "</s>", "{image}", "{}"]
)
questions = st.lists(any_text | fragments, max_size=8).map("".join)
all_boxes = st.lists(
    st.tuples(*[st.floats(0, 1)] * 4).map(lambda box: (box[0], box[1], box[2], box[3])), max_size=6
)


@given(question=questions, boxes=all_boxes, rules=st.sampled_from([PLAIN, GPT4ROI, PVIT]))
def test_any_question_renders_or_raises(
    question: str, boxes: list[Fractions], rules: PromptRules
) -> None:
    try:
        pieces = render(rules, question, boxes, SPECIAL)
    except QuestionError:
        return
    slots = [piece.index for piece in pieces if isinstance(piece, RegionSlot)]
    assert set(slots) == set(range(len(boxes))), "every region is told"
    assert pieces.count(ImageSlot()) == 1
    expected = [p.token for p in render(rules, "?", [], SPECIAL) if isinstance(p, Special)]
    if rules is PVIT:
        expected += ["<Region>", "</Region>"] * len(slots)
    special = [piece.token for piece in pieces if isinstance(piece, Special)]
    assert sorted(special) == sorted(expected), "nothing that is typed becomes a special token"


@given(
    parts=st.lists(st.text(st.characters(exclude_characters="<")) | st.integers(1, 5), min_size=1),
    boxes=all_boxes,
)
def test_region_slots_of_any_question(parts: list[str | int], boxes: list[Fractions]) -> None:
    question = "".join(part if isinstance(part, str) else f"<region{part}>" for part in parts)
    mentions = [part for part in parts if isinstance(part, int)]
    if not question.strip() or any(number > len(boxes) for number in mentions):
        with pytest.raises(QuestionError):
            render(PLAIN, question, boxes, SPECIAL)
        return
    pieces = render(PLAIN, question, boxes, SPECIAL)
    unnamed = [number for number in range(1, len(boxes) + 1) if number not in mentions]
    assert [p.index + 1 for p in pieces if isinstance(p, RegionSlot)] == unnamed + mentions
    words = "".join(piece.text for piece in pieces if isinstance(piece, Text))
    assert words == "".join(question_texts(question)), "no letter is lost"
    first_time = render(GPT4ROI, question, boxes, SPECIAL)
    assert sorted(p.index for p in first_time if isinstance(p, RegionSlot)) == list(
        range(len(boxes))
    ), "a region that is named again has no second slot"


def question_texts(question: str) -> list[str]:
    """The texts around the references of a question."""
    head, *rest = question.strip().split("<region")
    return [head, *(part.split(">", 1)[1] for part in rest)]


@given(question=questions, boxes=all_boxes)
def test_any_question_tokenizes(
    tokenizer: BundleTokenizer, question: str, boxes: list[Fractions]
) -> None:
    try:
        pieces = render(PLAIN, question, boxes, tokenizer.special_tokens)
    except QuestionError:
        return
    prompt = tokenize(pieces, tokenizer, 4, 2)
    assert all(0 <= token < tokenizer.size for token in prompt.input_ids)
    taken = [*range(1, 5)]
    for start, _ in prompt.region_starts:
        taken += [start, start + 1]
    assert taken == sorted(set(taken)), "slots do not overlap"
    assert taken[-1] < len(prompt.input_ids) - 1, "the answer token comes last"
