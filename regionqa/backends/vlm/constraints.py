"""Constrained decoding: answers that satisfy a JSON schema, by xgrammar."""

from collections.abc import Sequence
from copy import copy
from typing import Any, Self

import torch
from torch import Tensor

from regionqa.errors import UsageError, message_of
from regionqa.language.answer_schemas import AnswerSchema


class SchemaDecoding:
    """Masks of the tokens that keep each answer of a batch within a schema."""

    def __init__(
        self, schema: AnswerSchema, tokenizer: Any, stops: Sequence[int], vocabulary: int, rows: int
    ) -> None:
        """Compile the schema.

        Args:
            schema: The schema.
            tokenizer: transformers' tokenizer of the model.
            stops: Token ids that end an answer.
            vocabulary: Number of logits, which may exceed that of the tokenizer's tokens.
            rows: Number of answers, Q.

        Raises:
            UsageError: The schema uses what xgrammar does not support.
        """
        import xgrammar

        info = xgrammar.TokenizerInfo.from_huggingface(
            tokenizer, vocab_size=vocabulary, stop_token_ids=sorted(stops)
        )
        try:
            grammar = xgrammar.GrammarCompiler(info).compile_json_schema(
                schema.text,
                any_whitespace=False,  # a model may go on writing spaces to its limit
            )
        except RuntimeError as error:
            reason = message_of(error)
            raise UsageError(f"--schema: cannot be followed: {reason}") from error
        self._grammar, self._vocabulary = grammar, vocabulary
        self._begin(rows)

    def renewed(self, rows: int) -> Self:
        """Return masks for as many new answers, without compiling the schema again."""
        other = copy(self)
        other._begin(rows)
        return other

    def _begin(self, rows: int) -> None:
        import xgrammar

        self._matchers = [xgrammar.GrammarMatcher(self._grammar) for _ in range(rows)]
        self._bitmask = xgrammar.allocate_token_bitmask(rows, self._vocabulary)
        self._apply = xgrammar.apply_token_bitmask_inplace

    def mask(self, logits: Tensor, unfinished: Sequence[int]) -> Tensor:
        """Return logits (Q, V) in which tokens that break the schema are minus infinity."""
        self._bitmask.fill_(-1)  # all tokens are allowed where an answer has ended
        for row in unfinished:
            self._matchers[row].fill_next_token_bitmask(self._bitmask, row)
        masked = logits.float()
        self._apply(masked, self._bitmask.to(logits.device))
        return masked

    def accept(self, tokens: Tensor, unfinished: Sequence[int]) -> None:
        """Follow the tokens (Q,) that were chosen for the unfinished answers."""
        chosen: list[int] = tokens.tolist()
        for row in unfinished:
            self._matchers[row].accept_token(chosen[row])


def logits_width(model: Any) -> int:
    """Return the number of logits V of a loaded model."""
    embeddings = model.get_output_embeddings()
    if isinstance(embeddings, torch.nn.Linear):
        return int(embeddings.out_features)
    return int(model.config.get_text_config().vocab_size)
