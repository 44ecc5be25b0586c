"""Questions and events, one to one: every write that was acknowledged made exactly the event that its answer names,
and no event is there that nobody asked for. A function of the two; no I/O.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from sandbox_redis.demo.truth import Act, Entry
from sandbox_redis.record import Event

_MAY_CHANGE_NOTHING: Final = frozenset({"stop", "exit", "remove"})  # a success where another was faster


@dataclass(slots=True)
class Question:
    """One write that somebody asked the store for."""

    asked: Entry
    answer: Entry | None = None
    """What came back; None when its writer could not note it any more."""
    event: Event | None = None
    """The change that it made; None when it made none."""

    def __str__(self) -> str:
        return f"{self.asked.operation} of {self.asked.id[:12]} by {self.asked.actor} (request {self.asked.request})"

    def may_have_made(self, event: Event) -> bool:
        """Whether the event is of this sandbox, operation and writer."""
        asked = self.asked
        return (event.id, event.transition, event.by) == (asked.id, asked.operation, asked.actor)


def questions(entries: Iterable[Entry]) -> tuple[list[Question], list[str]]:
    """Every question with its answer, and the lines of the logs that do not go together."""
    asked: dict[tuple[str, int], Question] = {}
    problems = []
    for entry in entries:
        number = entry.actor, entry.request
        if entry.act is Act.ASKED:
            if number in asked:
                problems.append(f"{entry.actor} noted two questions with the number {entry.request}")
            asked[number] = Question(entry)
        elif entry.act in (Act.ANSWERED, Act.REFUSED):
            question = asked.get(number)
            if question is None or question.answer is not None or question.asked.id != entry.id:
                problems.append(f"{entry.actor} noted an answer to request {entry.request}, which it did not ask")
            else:
                question.answer = entry
    return list(asked.values()), problems


def match(asked: Iterable[Question], events: Iterable[Event], killed: frozenset[str]) -> list[str]:
    """Give each question the event that it made; what does not go up is a problem.

    Only who was killed may have left a question without its answer; the events say whether that write happened.
    """
    matching = _Matching(events)
    pending: list[Question] = []
    problems: list[str] = []
    for question in asked:
        if question.answer is None:
            pending.append(question)
        elif question.answer.act is Act.ANSWERED:
            problems += matching.answered(question, question.answer)
    for question in pending:
        matching.find(question)
        if question.asked.actor not in killed:
            problems.append(f"{question} has no answer, and nobody killed {question.asked.actor}")
    return problems + [
        f"event {event.revision}, {event.transition} of {event.id[:12]} by {event.by}, was not asked for"
        for event in matching.left.values()
    ]


def _name(event: Event) -> tuple[str, str]:
    """What no other event has: revisions are unique in a partition only."""
    return event.id, event.revision


class _Matching:
    def __init__(self, events: Iterable[Event]) -> None:
        self._events = {_name(event): event for event in events}
        self._removals = {event.id: event for event in self._events.values() if event.sandbox is None}
        self.left = dict(self._events)
        """The events that no question has claimed."""

    def answered(self, question: Question, answer: Entry) -> list[str]:
        """Claim the event that an answer names: by its revision, or it is the removal of the sandbox. What is wrong."""
        event = self._events.get((answer.id, answer.revision)) if answer.revision else self._removals.get(answer.id)
        if event is None:
            return [f"{question} was acknowledged, but there is no event {answer.revision or 'of a removal'}"]
        if event.id != answer.id or (event.sandbox and event.sandbox.status != answer.status):
            return [f"{question} was answered with something else than event {event.revision} says"]
        made_none = not answer.removed if event.sandbox is None else not question.may_have_made(event)
        if made_none and question.asked.operation in _MAY_CHANGE_NOTHING:
            return []
        if not question.may_have_made(event) or _name(event) not in self.left:
            return [f"{question} was acknowledged, but event {event.revision} is not its own"]
        question.event = self.left.pop(_name(event))
        return []

    def find(self, question: Question) -> None:
        """Claim an event for a question without an answer, if there is one."""
        event = next((event for event in self.left.values() if question.may_have_made(event)), None)
        if event is not None:
            question.event = self.left.pop(_name(event))
