"""The check of what watches and mirrors told: each event exactly once and in order, and a copy that never goes back. No
I/O.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sandbox_redis.soak.history import History, Watched
from sandbox_redis.soak.model import Change
from sandbox_redis.soak.report import Fault, Losses, Report
from sandbox_redis.soak.timeline import Timeline


class Sights:
    """The changes of a store, and what processes saw of them."""

    def __init__(
        self,
        report: Report,
        losses: Losses,
        changes: Sequence[Sequence[Change]],
        lines: Mapping[str, Timeline],
    ) -> None:
        self._report = report
        self._losses = losses
        self._changes = changes
        self._lines = lines
        self._places = [{change.revision: at for at, change in enumerate(partition)} for partition in changes]
        self._partitions: dict[str, int] = {
            change.id: number for number, partition in enumerate(changes) for change in partition
        }

    def watches(self, history: History) -> None:
        """What the watches of one process told, one after the other."""
        for number, watched in enumerate(history.watches, 1):
            self._watch(f"watch {number} of {history.agent}", watched)

    def _watch(self, name: str, watched: Watched) -> None:
        places = watched.since.split(",")
        following = [self._begin(partition, place) for partition, place in enumerate(places)]
        for seen in watched.events:
            partition = self._partitions.get(seen.id, -1)
            at = self._places[partition].get(seen.revision, -1) if partition >= 0 else -1
            if at < 0 or self._changes[partition][at].id != seen.id:
                if self._losses:
                    self._report.lost_sights += 1
                else:
                    what = f"{seen.transition} of {seen.id} (event {seen.revision})"
                    self._report.add(Fault.UNASKED, seen.id, f"{name} told {what}, which is not in the events")
                continue
            change = self._changes[partition][at]
            if (change.transition, change.status) != (seen.transition, seen.status):
                if self._losses:  # another master gave it the same number
                    self._report.lost_sights += 1
                    continue
                told = f"{name} told of event {seen.revision} of {seen.id}: {seen.transition} to {seen.status}"
                self._report.add(Fault.EFFECT, seen.id, f"{told}; it was {change.transition} to {change.status}")
            if at < following[partition]:
                last = self._changes[partition][following[partition] - 1].revision
                text = f"{name} told event {seen.revision} of {seen.id} again, after event {last}"
                self._report.add(Fault.REPEATED, seen.id, text)
                continue
            self._missed(name, partition, following[partition], at)
            following[partition] = at + 1
        if watched.ended:
            for partition, at in enumerate(following):
                self._missed(name, partition, at, len(self._changes[partition]))

    def _begin(self, partition: int, place: str) -> int:
        """The first change behind a place."""
        return self._places[partition].get(place, -1) + 1

    def _missed(self, name: str, partition: int, first: int, end: int) -> None:
        for change in self._changes[partition][first:end]:
            what = f"{change.transition} of {change.id} (event {change.revision})"
            self._report.add(Fault.MISSED, change.id, f"{name} passed over {what}")

    # -- mirrors

    def glimpses(self, history: History) -> None:
        """What one mirror said, read after read."""
        last: dict[str, int] = {}
        for glimpse in history.glimpses:
            line = self._lines.get(glimpse.id) or Timeline(())
            known = last.get(glimpse.id, 0)
            number = line.place.get(glimpse.revision) if glimpse.revision else line.first_absent(known)
            what = f"revision {glimpse.revision}" if glimpse.revision else "that there is none"
            told = f"the mirror of {history.agent} told of {glimpse.id} at {glimpse.end / 1e9:.6f} s {what}"
            if number is None:
                self._wrong(glimpse.id, glimpse.start, f"{told}, which never was after {line.revision(known)}")
            elif number < known:
                text = f"{told}, after it had told revision {line.revision(known)}"
                self._wrong(glimpse.id, glimpse.start, text)  # the other may have been another master's
                last[glimpse.id] = number
            elif not line.begun(number, glimpse.end):
                self._wrong(glimpse.id, glimpse.start, f"{told}, which came later")
            else:
                last[glimpse.id] = number

    def _wrong(self, sandbox_id: str, start: int, text: str) -> None:
        if self._losses.after(start):
            self._report.lost_sights += 1
        else:
            self._report.add(Fault.MIRROR, sandbox_id, text)

    def final(self, history: History, revisions: Mapping[str, str]) -> None:
        """What one mirror had in the end, when nobody wrote any more."""
        had = history.final or {}
        for sandbox_id in had.keys() | revisions.keys():
            if had.get(sandbox_id) != revisions.get(sandbox_id):
                text = f"the mirror of {history.agent} had in the end {had.get(sandbox_id)} of {sandbox_id}"
                self._report.add(Fault.MIRROR, sandbox_id, f"{text}; the record is {revisions.get(sandbox_id)}")
