"""Replies taken for classes by a sentence encoder, as PVIT's authors do.

A reply is compared with "an image of a [CLASS]" for every class, and the nearest class counts
(arXiv 2308.13437, section 5). Every reply therefore means some class, however little it says. It
does not know where replies come from. Needs the extra `eval`.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from regionqa.errors import UsageError
from regionqa.evaluation.tasks.recognition import Mapper
from regionqa.requests import Answer

ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
"""The encoder if nothing is said; a folder or any repository of sentence-transformers will do."""
PATTERN = "an image of a {}"


def by_encoder(names: Sequence[str], encoder: str = ENCODER, device: str = "cpu") -> Mapper:
    """Replies taken for the class whose sentence is nearest by the cosine of their embeddings.

    Raises UsageError where the encoder cannot be loaded.
    """
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        model = SentenceTransformer(str(Path(encoder)) if Path(encoder).is_dir() else encoder,
                                    device=device)  # fmt: skip
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UsageError(
            f"--encoder {encoder}: cannot be loaded; give the folder of a sentence-transformers "
            f"model, or one of the Hub that can be reached ({reason})"
        ) from error
    sentences = [PATTERN.format(name) for name in names]
    classes = model.encode(sentences, normalize_embeddings=True, show_progress_bar=False)  # (C, D)

    def mapper(answers: Sequence[Answer]) -> list[str | None]:
        texts = sorted({answer.text for answer in answers})
        if not texts:
            return []
        replies = model.encode(texts, normalize_embeddings=True, show_progress_bar=False)  # (T, D)
        nearest = np.argmax(np.asarray(replies) @ np.asarray(classes).T, axis=1)
        taken = {text: names[int(index)] for text, index in zip(texts, nearest, strict=True)}
        return [taken[answer.text] for answer in answers]

    return mapper
