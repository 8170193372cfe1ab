"""One task to a conversation: requests, strict reading, filters, and the judge."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec

from regionqa.backends.server.backend import CONTROL
from regionqa.errors import ItemError
from regionqa.generation.filters import RejectedTurn, RejectReason, turn_fault
from regionqa.generation.options import DataGenerationOptions, GenerationKind
from regionqa.generation.prompts import (
    ChatMessage,
    answer_messages,
    judge_messages,
    question_messages,
    single_messages,
)
from regionqa.generation.replies import (
    AnswersReply,
    PairReply,
    PairsReply,
    QuestionsReply,
    ReplyFormError,
    VerdictsReply,
    json_schema,
    read_reply,
)
from regionqa.generation.sources import BudgetSpentError, KeptReplies, TextRequest
from regionqa.generation.tasks import GenerationTask, seed_of

Form = TypeVar("Form", bound=msgspec.Struct)
FEWEST_TURNS = 2
"""Of a conversation of the kind `multi-turn`."""


@dataclass
class WrittenConversation:
    """What became of a task."""

    task: GenerationTask
    turns: list[tuple[str, str]] = field(default_factory=list)
    """Accepted questions and answers, with references to the image's objects."""
    rejected: list[RejectedTurn] = field(default_factory=list)
    replies: list[str] = field(default_factory=list)
    """The replies as they came."""
    unasked: bool = False
    """Whether the budget was spent before it was finished."""

    @property
    def failed(self) -> bool:
        """Whether a request had no reply, which another run may change."""
        return any(each.reason is RejectReason.no_reply for each in self.rejected)

    def reject_all(self, reason: RejectReason, detail: str = "") -> None:
        """Reject the turns that are left."""
        self.rejected += (RejectedTurn(reason, *turn, detail) for turn in self.turns)
        self.turns = []


class _RejectedReplyError(Exception):
    """A whole reply is of no use."""

    def __init__(self, reason: RejectReason, detail: str = "") -> None:
        super().__init__(reason)
        self.rejected = RejectedTurn(reason, detail=detail)


class ConversationWriter:
    """Writes the conversation of a task through requests."""

    def __init__(self, replies: KeptReplies, options: DataGenerationOptions) -> None:
        """Combine the parts.

        Args:
            replies: Answers requests.
            options: Sampling, limits, and whether a judge is asked.
        """
        self._replies = replies
        self._options = options

    async def write(self, task: GenerationTask) -> WrittenConversation:
        """Write a conversation; whatever fails becomes a part of it."""
        made = WrittenConversation(task)
        if found := CONTROL.search(task.image.text):  # would steer the chat template
            made.rejected.append(RejectedTurn(RejectReason.control, detail=found[0]))
            return made
        try:
            if task.kind is GenerationKind.multi_turn:
                await self._write_several(made)
            else:
                await self._write_single(made)
            if made.turns and self._options.judge:
                await self._judge(made)
        except _RejectedReplyError as error:
            made.rejected.append(error.rejected)
            made.turns = []
        except ItemError as error:
            made.turns, made.rejected = [], [RejectedTurn(RejectReason.no_reply, detail=str(error))]
        except BudgetSpentError:
            made.turns, made.rejected, made.unasked = [], [], True
        if task.kind is GenerationKind.multi_turn and 0 < len(made.turns) < FEWEST_TURNS:
            made.reject_all(RejectReason.few)
        return made

    async def _write_single(self, made: WrittenConversation) -> None:
        """Ask for questions with answers in one request."""
        messages = single_messages(made.task)
        if made.task.kind is GenerationKind.general:
            pairs = (await self._ask(made, messages, PairsReply)).pairs
            if not pairs:
                raise _RejectedReplyError(RejectReason.few)
        else:
            pairs = [await self._ask(made, messages, PairReply)]
        self._filter(made, [(pair.question, pair.answer) for pair in pairs])

    async def _write_several(self, made: WrittenConversation) -> None:
        """Ask for questions, then for the answers to some of them."""
        asked = await self._ask(made, question_messages(made.task), QuestionsReply)
        questions = []
        for question in asked.questions:
            fault = self._fault(made.task, question, answer="-")
            if fault is None:
                questions.append(question)
            else:
                made.rejected.append(RejectedTurn(fault.reason, question, detail=fault.detail))
        if len(questions) < FEWEST_TURNS:
            raise _RejectedReplyError(RejectReason.few)
        messages = answer_messages(made.task, questions)
        answers = (await self._ask(made, messages, AnswersReply)).answers
        numbers = [answer.number for answer in answers]
        if len(set(numbers)) < len(numbers) or not set(numbers) <= {*range(1, len(questions) + 1)}:
            raise _RejectedReplyError(RejectReason.wrong_form, f"answers questions {numbers}")
        by_number = sorted(answers, key=lambda answer: answer.number)
        self._filter(made, [(questions[each.number - 1], each.answer) for each in by_number])
        if not answers:
            raise _RejectedReplyError(RejectReason.few)

    def _filter(self, made: WrittenConversation, turns: Sequence[tuple[str, str]]) -> None:
        """Keep the turns without a fault."""
        for question, answer in turns:
            fault = self._fault(made.task, question.strip(), answer.strip())
            if fault is None:
                made.turns.append((question.strip(), answer.strip()))
            else:
                made.rejected.append(fault)

    def _fault(self, task: GenerationTask, question: str, answer: str) -> RejectedTurn | None:
        return turn_fault(
            question,
            answer,
            objects=len(task.image.objects),
            targets=task.targets,
            max_words=self._options.max_words,
        )

    async def _judge(self, made: WrittenConversation) -> None:
        """Reject the turns that do not follow from the annotations."""
        messages = judge_messages(made.task.image, made.turns)
        try:
            verdicts = (await self._ask(made, messages, VerdictsReply)).verdicts
        except _RejectedReplyError as error:
            made.reject_all(RejectReason.unverified, error.rejected.reason)
            return
        by_number = {verdict.number: verdict for verdict in verdicts}
        if len(verdicts) != len(by_number) or by_number.keys() != {*range(1, len(made.turns) + 1)}:
            made.reject_all(RejectReason.unverified, "not one verdict for each number")
            return
        judged, made.turns = made.turns, []
        for number, turn in enumerate(judged, 1):
            if by_number[number].follows:
                made.turns.append(turn)
            else:
                detail = by_number[number].reason
                made.rejected.append(RejectedTurn(RejectReason.unfounded, *turn, detail))

    async def _ask(
        self, made: WrittenConversation, messages: Sequence[ChatMessage], form: type[Form]
    ) -> Form:
        """Ask for a reply of a form.

        Raises:
            _RejectedReplyError: The reply is cut, or has another form.
            ItemError: There is no reply.
            BudgetSpentError: No more requests may be sent.
        """
        reply = await self._replies.reply(
            TextRequest(
                messages=messages,
                schema_name=form.__name__.removesuffix("Reply").lower(),
                schema=json_schema(form),
                seed=seed_of(made.task.seed, form.__name__),
                temperature=0.0 if form is VerdictsReply else self._options.temperature,
                max_tokens=self._options.max_new_tokens,
            )
        )
        made.replies.append(reply.text)
        if reply.finish == "content_filter":
            raise _RejectedReplyError(RejectReason.withheld)
        if reply.finish == "length":
            raise _RejectedReplyError(RejectReason.cut, f"{reply.tokens} tokens")
        if not reply.text:
            raise _RejectedReplyError(RejectReason.empty)
        try:
            return read_reply(reply.text, form)
        except ReplyFormError as error:
            reason = RejectReason.wrong_form if error.is_json else RejectReason.not_json
            raise _RejectedReplyError(reason, str(error)) from None
