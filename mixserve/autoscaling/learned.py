"""What changes have taught: what one replica can deliver, and whether more of them help."""

import math
from dataclasses import dataclass

from mixserve.autoscaling.seen import Spell

_MOST_PAUSE_S = 86400.0
# Loads that differ by less are the same one, which was measured twice.
_SAME_LOAD = 1.25
# Waits that more replicas did not mend are tried again, with other numbers of readers than by this factor.
_OTHER_READERS = 1.5
# Of what a replica was seen to deliver, fewer replicas must each deliver at most this part.
_PART_OF_BEST = 0.8
# More replicas have helped if they brought at least this part of what they should.
_PART_OF_HELP = 1 / 3
_LEAST_RUN = 0.01  # of their time, in which trainers do not wait: less cannot be told apart


class Learned:
    """Of one job of trainers: forgotten when they have gone."""

    def __init__(self, retry_after_s: float):
        self._retry_after_s = retry_after_s
        self._pause_s = retry_after_s
        self._useless_until_s = -math.inf
        self._useless_readers = 0.0
        # What a replica delivers: the most that was seen, or what it did when trainers waited last.
        self._best: _Amount | None = None
        # The same, after trainers waited because replicas had been taken away. Fewer are not tried again.
        self._proven: _Amount | None = None

    def has_helped(self, before: Spell, after: Spell, factor: float) -> bool:
        """Whether `factor` times as many replicas made trainers faster, and forgets that they did not help before."""
        run_before = max(1 - before.wait_share, _LEAST_RUN)
        run_after = max(1 - after.wait_share, _LEAST_RUN)
        expected = min(factor, 1 / run_before)  # trainers that never wait are as fast as they can be
        gain = run_after / run_before
        if before.load and after.load:  # trainers that are never satisfied wait as much as before, but get more
            gain = max(gain, after.load / before.load)
        has_helped = gain >= 1 + (expected - 1) * _PART_OF_HELP
        if has_helped:
            self._pause_s, self._useless_until_s = self._retry_after_s, -math.inf
        return has_helped

    def note_no_help(self, now_s: float, readers: float) -> float:
        """More replicas did not help. Returns for how long not to try them again, in seconds."""
        self._proven = None  # it is not for want of replicas that trainers waited
        pause_s = self._pause_s
        self._useless_until_s, self._useless_readers = now_s + pause_s, readers
        self._pause_s = min(2 * pause_s, _MOST_PAUSE_S)
        return pause_s

    def pause_s(self, now_s: float, readers: float) -> float:
        """For how long not to try more replicas, since they did not help; 0 or less if they may be tried."""
        if not self._useless_readers / _OTHER_READERS <= readers <= self._useless_readers * _OTHER_READERS:
            return 0.0
        return self._useless_until_s - now_s

    def is_same_load(self, before: Spell, waiting: Spell) -> bool:
        """Whether trainers would take about as much now, if they did not wait, as before."""
        if before.load and waiting.load:
            wanted = waiting.load / max(1 - waiting.wait_share, _LEAST_RUN)
            return wanted <= before.load * _SAME_LOAD
        return waiting.readers <= before.readers * _SAME_LOAD

    def note_too_few(self, waiting: Spell, replicas: int) -> None:
        """So many replicas did not suffice, where more had."""
        self._proven = _Amount.of(waiting, replicas)

    def note_waits(self, waiting: Spell, replicas: int) -> None:
        """With so many replicas trainers wait."""
        self._best = _Amount.of(waiting, replicas)

    def note_quiet(self, quiet: Spell, replicas: int) -> None:
        """With so many they do not."""
        each = _Amount.of(quiet, replicas)
        self._best = each.or_more(self._best)
        if self._proven is not None:
            self._proven = each.or_more(self._proven)

    def least_replicas(self, quiet: Spell, replicas: int, most_busy: float) -> tuple[int, str] | None:
        """How many replicas suffice for what was seen, and why; None if nothing says so."""
        amount, found = _Amount.of(quiet), list[tuple[int, str]]()
        if quiet.busy is not None:
            # Whatever serves one reply after another, a lock or the interpreter, is in use for at most as much of the
            # time as replies are being made at a time: so with so many replicas for no more than `most_busy`.
            enough = max(1, math.ceil(replicas * quiet.busy / most_busy))
            found.append((enough, f"each replica makes {quiet.busy:.2g} replies at a time"))
        if (enough := amount.replicas(self._best)) is not None:
            found.append((enough, f"{enough} have delivered more than that"))
        if not found:
            return None
        least, why = min(found)
        if (proven := amount.replicas(self._proven)) is not None and proven > least:
            return proven, f"but waited when fewer than {proven} delivered as much"
        return least, why


@dataclass(frozen=True, slots=True)
class _Amount:
    """What replicas, or one of them, deliver: in bytes per second, or to how many readers where that is not known."""

    value: float
    in_bytes: bool

    @classmethod
    def of(cls, spell: Spell, replicas: int = 1) -> "_Amount":
        """What was delivered in that time, by one of so many replicas."""
        value = spell.readers if spell.load is None else spell.load
        return cls(value / replicas, spell.load is not None)

    def or_more(self, other: "_Amount | None") -> "_Amount":
        """The larger one."""
        return other if other is not None and other.in_bytes == self.in_bytes and other.value > self.value else self

    def replicas(self, each: "_Amount | None") -> int | None:
        """How many replicas deliver this, if each can deliver `each`; None if that is not known."""
        if each is None or each.in_bytes != self.in_bytes or not each.value > 0:
            return None
        return max(1, math.ceil(self.value / (_PART_OF_BEST * each.value)))
