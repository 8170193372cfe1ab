"""Encoder-decoder language models (Florence-2): the prompt is encoded, the answer is decoded.

Image tokens attend to the question, so questions about an image share its features only.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regionqa.backends.vlm.features import join
from regionqa.backends.vlm.language import (
    GREEDY,
    CheckpointLanguage,
    EncodedPart,
    MakeConstraint,
    VlmPrompt,
)
from regionqa.language.decoding import (
    AnswerRows,
    DecodedAnswer,
    OnTokens,
    decode_answers,
    score_answers,
)
from regionqa.language.sampling import TokenSampler
from regionqa.requests import Sampling


@dataclass
class _State:
    """A batch in the middle of decoding."""

    encoded: Any
    """The encoder's output, (Q, L, H)."""
    mask: Tensor
    """(Q, L) int64 over the prompt; 0 is padding."""
    ids: Tensor
    """(Q, T) int64: the decoder's start token, and what was chosen so far."""
    cache: Any = None


class EncoderDecoderLanguage(CheckpointLanguage):
    """Generates and scores answers with a loaded encoder-decoder model."""

    type_name: str | None = None

    def shared_length(self, ids: Sequence[int], image: EncodedPart) -> int:
        """Return 0: no state of the language model is shared."""
        return 0

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[VlmPrompt],
        max_new_tokens: int,
        sampling: Sampling = GREEDY,
        on_tokens: OnTokens | None = None,
        constrain: MakeConstraint | None = None,
    ) -> list[DecodedAnswer]:
        """See `VlmLanguage.generate`; the rules of the checkpoint's generation config are kept."""
        if not prompts:
            return []
        state = self._encode(prompts)
        rules = self._rules(max_new_tokens)

        def advance(tokens: Tensor) -> Tensor:
            state.ids = torch.cat([state.ids, tokens.unsqueeze(1)], dim=1)
            return rules(state.ids, self._run(state, state.ids[:, -1:]))

        return decode_answers(
            rules(state.ids, self._run(state, state.ids)),
            advance,
            AnswerRows(len(prompts), self._decode, self._stops, on_tokens=on_tokens),
            TokenSampler(sampling, [prompt.seed for prompt in prompts]),
            max_new_tokens,
            constrain(len(prompts)) if constrain else None,
        )

    @torch.inference_mode()
    def score(self, prompt: VlmPrompt, answers: Sequence[Sequence[int]]) -> list[float]:
        """See `VlmLanguage.score`; a first token that every answer has is not counted."""
        state = self._encode([prompt] * len(answers))
        first = self.model.generation_config.forced_bos_token_id
        if first is not None:
            column = torch.full_like(state.ids, first)
            state.ids = torch.cat([state.ids, column], dim=1)
        logits = self._run(state, state.ids)
        return score_answers(logits, lambda tokens: self._run(state, tokens.unsqueeze(1)), answers)

    def _encode(self, prompts: Sequence[VlmPrompt]) -> _State:
        """Run the encoder on a batch, right-padded: its positions count from the left."""
        device = self.model.device
        longest = max(len(prompt.ids) for prompt in prompts)
        padding = self.model.config.get_text_config().pad_token_id or 0
        rows = [[*prompt.ids, *[padding] * (longest - len(prompt.ids))] for prompt in prompts]
        ids = torch.tensor(rows, device=device)
        lengths = torch.tensor([len(prompt.ids) for prompt in prompts], device=device)
        mask = (torch.arange(longest, device=device) < lengths.unsqueeze(1)).long()
        embedded = self.model.get_input_embeddings()(ids)  # (Q, L, H)
        parts = [part.features for prompt in prompts for part in prompt.images]
        features = join(parts).pooler_output.to(embedded.device, embedded.dtype)
        places = self.model.get_placeholder_mask(
            ids, inputs_embeds=embedded, image_features=features
        )
        embedded = embedded.masked_scatter(places, features)
        encoded = self.model.get_encoder()(inputs_embeds=embedded, attention_mask=mask)
        config = self.model.generation_config
        start = config.decoder_start_token_id
        if start is None:
            start = self.model.config.get_text_config().decoder_start_token_id
        return _State(encoded, mask, torch.full((len(prompts), 1), start, device=device))

    def _run(self, state: _State, ids: Tensor) -> Tensor:
        """Append tokens, (Q, T), to the decoder's input -> logits (Q, V) after the last."""
        output = self.model(
            encoder_outputs=state.encoded,
            attention_mask=state.mask,
            decoder_input_ids=ids,
            cache=state.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        state.cache = output.cache
        logits: Tensor = output.logits[:, -1]
        return logits

    def _rules(self, max_new_tokens: int) -> Callable[[Tensor, Tensor], Tensor]:
        """The changes of logits that the checkpoint's generation config asks for."""
        from transformers import (
            ForcedBOSTokenLogitsProcessor,
            ForcedEOSTokenLogitsProcessor,
            LogitsProcessorList,
            NoRepeatNGramLogitsProcessor,
        )

        config = self.model.generation_config
        rules = LogitsProcessorList()
        if config.no_repeat_ngram_size:
            rules.append(NoRepeatNGramLogitsProcessor(config.no_repeat_ngram_size))
        if config.forced_bos_token_id is not None:
            rules.append(ForcedBOSTokenLogitsProcessor(config.forced_bos_token_id))
        if config.forced_eos_token_id is not None:
            rules.append(
                ForcedEOSTokenLogitsProcessor(
                    max_new_tokens + 1, config.forced_eos_token_id, device=self.model.device
                )
            )
        return lambda ids, logits: rules(ids, logits.float())
