"""Wordings of tasks, for datasets that have answers but no questions.

The numbers of wordings and what they ask for are those of GPT4RoI's training data (arXiv
2307.03601); the sentences are our own. Its opening line about the image is part of its card's
prompt, so no question repeats it.
"""

from collections.abc import Sequence

NAME_REGION = "Say what the object in a region is, in one of these words: {names}.\n{region}"
"""First question about labelled boxes; the following ones are the region alone."""
NAME_ANYTHING = "Say in a word or two what the object in a region is.\n{region}"
"""The same where there are too many names to list them."""

REFER = (
    "Each region holds one object. Tell it apart from the others: where it is in the image, "
    "how it lies to other objects, and what it looks like.\n{region}"
)
"""First question about referring expressions; the following ones are the region alone."""
REFER_WITHOUT_PLACE = (
    "Each region holds one object. Tell it apart from the others by what it looks like and what "
    "is around it, without saying where in the image it is.\n{region}"
)
"""The same for RefCOCO+, whose expressions name no place in the image."""

DESCRIBE = (
    "What is in {region}?",
    "Describe {region}.",
    "Describe what {region} shows in a short phrase.",
    "What can be seen in {region}?",
    "Give a short description of {region}.",
    "What does {region} contain?",
    "Say briefly what {region} is about.",
    "Write a caption for {region}.",
    "How would you describe {region}?",
    "What is there to see in {region}?",
    "Summarise {region} in one phrase.",
    "What is going on in {region}?",
    "Look at {region}. What does it show?",
    "Please describe the part of the image in {region}.",
    "In a few words, what is {region}?",
    "Which object or scene does {region} show?",
    "Tell me what you see in {region}.",
    "What would be a good caption for {region}?",
    "Put the content of {region} into words.",
    "Explain in a phrase what {region} depicts.",
)
"""Questions about one region, answered by a phrase."""

DETAIL = (
    "Describe {region} in detail.",
    "What is in {region}? Give as many details as you can.",
    "Tell me everything that you can see in {region}.",
    "Give a full description of {region}.",
    "Look closely at {region} and describe it.",
    "Write a detailed paragraph about {region}.",
    "What are the details of {region}?",
    "Describe the appearance of {region} thoroughly.",
    "Explain in detail what {region} shows.",
    "Please describe {region} at length.",
    "Which colours, shapes and materials are in {region}? Describe it.",
    "Describe {region} for someone who cannot see it.",
    "Give a close description of what is in {region}.",
    "Go through {region} and name what stands out.",
    "What does {region} look like, in detail?",
    "I would like to know more about {region}. Describe it in full.",
    "Study {region} and report what you find.",
    "Provide a complete account of {region}.",
    "Describe what is special about {region}, and all the rest of it.",
    "Put {region} into words as exactly as you can.",
    "How would you describe {region} in several sentences?",
    "Give an elaborate description of {region}.",
    "What can be said about {region}? Be thorough.",
    "Describe {region}, its parts and what is around them.",
    "Examine {region} and write down every detail.",
    "Depict {region} in words, leaving nothing out.",
    "Could you describe {region} with all its details?",
    "Share all that you notice about {region}.",
    "Make a detailed note of what {region} contains.",
    "What exactly is in {region}?",
)
"""Questions about one region, answered by several sentences; Osprey has as many."""

BRIEFLY = "Answer in a word or a short phrase."
"""A sentence after questions whose answers are short."""

CHOOSE = (
    "Choose one of {regions}.",
    "Is it {regions}?",
    "Answer with one of {regions}.",
    "The choices are {regions}.",
)
"""Sentences after a question that one of several regions answers."""

DESCRIBE_ALL = (
    "Describe these areas of the image: {regions}.",
    "What do {regions} show together?",
    "Write one sentence about {regions}.",
    "How do {regions} belong together? Describe the scene.",
    "Describe the image with the help of {regions}.",
    "What is happening in {regions}?",
    "Give a caption that covers {regions}.",
    "Look at {regions} and describe what you see.",
    "Summarise {regions} in a sentence.",
    "Tell me in one sentence what {regions} contain.",
    "Which scene do {regions} make up?",
    "Describe what can be seen in {regions}.",
    "Please describe {regions} in a single sentence.",
    "What are {regions} about?",
    "Use one sentence to describe {regions}.",
    "Put {regions} into words.",
    "What would a caption of {regions} say?",
    "Describe the people and things in {regions}.",
    "Explain what goes on in the areas {regions}.",
    "What do you notice in {regions}?",
    "Compose a caption that mentions {regions}.",
    "Given {regions}, what does the image show?",
    "Tell what {regions} have to do with each other.",
    "Report what is visible in {regions}.",
    "What story do {regions} tell?",
    "Here are some areas: {regions}. Describe them together.",
    "Describe the content of {regions} briefly.",
    "Say what {regions} show, in one sentence.",
    "Make a sentence out of what is in {regions}.",
    "What is depicted in {regions}?",
)
"""Questions about all regions at once, answered by a caption."""

WHICH_PART = (
    "Which part of your description is about region {number}?",
    "Which of your words refer to region {number}?",
    "Quote the phrase of your description that stands for region {number}.",
    "Where in your description do you speak of region {number}?",
    "What did you call region {number}?",
    "Name the words that describe region {number}.",
    "Which phrase belongs to region {number}?",
    "How did your sentence mention region {number}?",
    "Which piece of the description matches region {number}?",
    "Repeat the words you used for region {number}.",
)
"""Questions after a caption, answered by its phrase for one region."""

GIVEN = (
    "Given are {regions}.",
    "The image has these regions: {regions}.",
    "Use {regions} to answer.",
    "Consider {regions}.",
    "Take a look at {regions}.",
    "These regions are marked: {regions}.",
)
"""Sentences that name all regions before a question."""

DETECTED = "Some regions of the image, with what they may be: {regions}."
"""A sentence that names detected boxes before a question about the whole image."""

WHY = (
    "Why?",
    "Why do you think so?",
    "How do you know?",
    "What makes you say that?",
    "Can you explain why?",
    "What is your reason?",
    "Please explain your answer.",
    "What supports your answer?",
    "How did you come to that conclusion?",
    "What in the image tells you that?",
    "Give a reason for your answer.",
    "Why is that?",
    "What is that based on?",
    "On what grounds?",
    "Explain how you can tell.",
    "What leads you to this answer?",
    "How can you be sure?",
    "What evidence is there?",
    "Which clues did you use?",
    "Justify your answer.",
    "Tell me why.",
    "What did you see that suggests this?",
    "Why should that be so?",
    "How does the image show it?",
    "What makes this likely?",
    "Could you give the reason?",
    "What is the thinking behind your answer?",
    "How did you work that out?",
    "Say why you believe this.",
    "What points to that?",
    "For what reason?",
    "Why did you answer that way?",
    "What convinces you?",
    "Please tell me what your answer rests on.",
    "How would you defend this answer?",
    "What details back this up?",
    "Where do you see that?",
    "Explain your reasoning.",
    "What gives it away?",
)
"""Questions after an answer, answered by its rationale."""

_CLOSING = frozenset(".,!?;:)]}%") | {"'s", "n't", "'re", "'ve", "'ll", "'d", "'m", "..."}
"""Words that stand directly after the word before them."""
_OPENING = frozenset("([{$#")
"""Words that stand directly before the word after them."""
_AFTER_APOSTROPHE = frozenset({"s", "t", "re", "ve", "ll", "d", "m"})


def sentence(words: Sequence[str]) -> str:
    """Join the words and punctuation marks of a tokenized sentence."""
    text, glued = "", True
    for place, word in enumerate(words):
        following = words[place + 1] if place + 1 < len(words) else ""
        is_contraction = word == "'" and following in _AFTER_APOSTROPHE
        text += word if glued or word in _CLOSING or is_contraction else f" {word}"
        glued = word in _OPENING or is_contraction
    return text.strip()


LOOK = (
    "Look at {regions}.",
    "See {regions}.",
    "{regions} shows it.",
    "Answer from {regions}.",
)
"""What follows a question whose answer is about regions."""
