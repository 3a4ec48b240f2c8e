"""What was seen of replicas and their readers -> how many replicas there should be. Reads no clock."""

import math
from dataclasses import dataclass

from mixserve.autoscaling.learned import Learned
from mixserve.autoscaling.seen import Seen, Spell
from mixserve.autoscaling.thresholds import Thresholds
from mixserve_client.errors import InvalidRequest

# A trainer may wait all of its time. To reckon with a hundredth that it does not is enough for any step.
_MOST_WAIT_SHARE = 0.99


@dataclass(frozen=True, slots=True)
class Decision:
    """How many replicas there should be, and why, in a few words for people."""

    replicas: int
    why: str


@dataclass(frozen=True, slots=True)
class _Change:
    """A change that was asked for: from what number, and what was seen before it."""

    before: int
    to: int
    seen: Spell

    @property
    def is_up(self) -> bool:
        return self.to > self.before


class Policy:
    """Decides by what trainers feel. Same calls, same decisions.

    It goes up when trainers wait, by as much as they lack, at most to twice as many; and back, if that did not help.
    It goes down when they do not wait and replicas are idle enough that fewer suffice, at most to half as many.
    """

    def __init__(self, min_replicas: int, max_replicas: int, thresholds: Thresholds | None = None):
        """Raises InvalidRequest."""
        if not 1 <= min_replicas <= max_replicas:
            raise InvalidRequest(f"min and max must be in order, and at least 1: got {min_replicas} and {max_replicas}")
        self.min_replicas, self.max_replicas = min_replicas, max_replicas
        self.thresholds = thresholds or Thresholds()
        self._asked = 0  # how many replicas there should be; 0 before the first decision
        self._asked_s = self._now_s = -math.inf
        self._is_up = False  # whether the last change was to more
        self._arrived_s: float | None = None  # when there were as many as that
        self._gone_s: float | None = None  # since when no trainer reads
        self._more_s: float | None = None  # since when there are more replicas than asked for
        self._trial: _Change | None = None  # the last change, until it is known whether it was right
        self._learned = Learned(self.thresholds.retry_after_s)
        self._forget_spells()

    def decide(self, now_s: float, replicas: int, seen: Seen) -> Decision:
        """How many there should be at the time `now_s`, of any clock that does not go back.

        `replicas` is how many there are now, and `seen` is what was seen of them. They are what this policy asked for
        last, or are on their way there; or somebody else changed their number.
        """
        now_s = self._now_s = max(now_s, self._now_s) if math.isfinite(now_s) else self._now_s
        if not self._asked:
            return self._begin(now_s, replicas)
        wrong = "no replica answers" if replicas < 1 else seen.problem()
        if wrong is not None:
            self._forget_spells()
            return self._hold(wrong)
        if not seen.readers:
            return self._without_readers(now_s, replicas)
        self._gone_s = None
        self._note_replicas(now_s, replicas)
        if now_s < (self._asked_s if self._arrived_s is None else self._arrived_s) + self.thresholds.settle_s:
            self._forget_spells()
            return self._hold(f"the change to {self._asked} has not settled")
        if seen.wait_share is None:
            self._forget_spells()
            return self._hold("no reader says yet whether it waits")
        return self._by_spells(now_s, replicas, seen)

    def _begin(self, now_s: float, replicas: int) -> Decision:
        if replicas < 1:
            return Decision(self.min_replicas, "no replica answers")
        self._ask(now_s, replicas, min(max(replicas, self.min_replicas), self.max_replicas))
        if self._asked != replicas:
            return self._hold(f"{replicas} are outside of {self.min_replicas}..{self.max_replicas}")
        return self._hold("first look")

    def _without_readers(self, now_s: float, replicas: int) -> Decision:
        self._forget_spells()
        self._gone_s = now_s if self._gone_s is None else self._gone_s
        if now_s - self._gone_s < self.thresholds.gone_after_s:
            return self._hold(f"no trainer reads, for {now_s - self._gone_s:.0f} s")
        if self._asked != self.min_replicas:
            self._ask(now_s, replicas, self.min_replicas)
        self._trial = None
        self._learned = Learned(self.thresholds.retry_after_s)  # the next job may read other data
        return self._hold("no trainer reads")

    def _note_replicas(self, now_s: float, replicas: int) -> None:
        if self._arrived_s is None and (replicas == self._asked or (replicas > self._asked) == self._is_up):
            self._arrived_s = now_s
        if self._arrived_s is None or replicas <= self._asked:
            self._more_s = None
        else:
            self._more_s = now_s if self._more_s is None else self._more_s
            if now_s - self._more_s >= self.thresholds.settle_s:  # somebody else added them
                self._ask(now_s, replicas, min(replicas, self.max_replicas))
                self._trial = None

    def _by_spells(self, now_s: float, replicas: int, seen: Seen) -> Decision:
        """Decide by what has lasted."""
        limits, share = self.thresholds, seen.wait_share or 0.0
        self._settled = self._settled or Spell(now_s)
        self._waiting = (self._waiting or Spell(now_s)) if share > limits.up else None
        self._quiet = (self._quiet or Spell(now_s)) if share <= limits.down else None
        for spell in (self._settled, self._waiting, self._quiet):
            if spell is not None:
                spell.add(seen)
        settled, waiting, quiet = self._settled, self._waiting, self._quiet
        if self._trial is not None and self._trial.is_up and settled.lasts(now_s) >= limits.up_after_s:
            change, self._trial = self._trial, None
            if self._arrived_s is not None and not self._learned.has_helped(
                change.seen, settled, change.to / change.before
            ):
                return self._go_back(now_s, replicas, change, settled)
        if (waiting is None and quiet is None) or self._spoke_of_waits != (waiting is not None):
            self._reason = ""
        self._spoke_of_waits = waiting is not None
        if waiting is not None and waiting.lasts(now_s) >= limits.up_after_s:
            self._waiting, self._reason = None, self._up(now_s, replicas, waiting)
        elif quiet is not None and quiet.lasts(now_s) >= limits.down_after_s:
            self._quiet, self._reason = None, self._down(now_s, replicas, quiet)
        return self._hold(self._reason or f"trainers wait {share:.1%} of their time")

    def _go_back(self, now_s: float, replicas: int, change: _Change, settled: Spell) -> Decision:
        pause_s = self._learned.note_no_help(now_s, settled.readers)
        self._ask(now_s, replicas, max(change.before, self.min_replicas))
        return self._hold(
            f"{change.to} hardly helped: trainers wait {settled.wait_share:.1%} of their time, and "
            f"{change.seen.wait_share:.1%} with {change.before}; more are tried again in {pause_s / 60:.0f} min"
        )

    def _up(self, now_s: float, replicas: int, spell: Spell) -> str:
        """Ask for more, if that may help. Returns why, or why not."""
        share = spell.wait_share
        said = f"trainers wait {share:.1%} of their time"
        if spell.load == 0:
            return f"{said}, but replicas deliver nothing: more would not either"
        if self._trial is not None:  # downward
            if self._arrived_s is not None and self._learned.is_same_load(self._trial.seen, spell):
                self._learned.note_too_few(spell, replicas)
                said += f", with fewer than {self._trial.before}"
            self._trial = None
        self._learned.note_waits(spell, replicas)
        if (pause_s := self._learned.pause_s(now_s, spell.readers)) > 0:
            return f"{said}, and more hardly helped; they are tried again in {pause_s / 60:.0f} min"
        lacks = math.ceil(replicas / (1 - min(share, _MOST_WAIT_SHARE)))
        wanted = min(max(lacks, replicas + 1), 2 * replicas, self.max_replicas)
        are_coming = self._is_up and self._arrived_s is None and now_s - self._asked_s < self.thresholds.arrive_s
        if are_coming or wanted <= self._asked:
            few = f"{replicas} of {self._asked} are there"
            return f"{said}; {few if replicas < self._asked else f'{self.max_replicas} are all there may be'}"
        self._trial = _Change(replicas, wanted, spell)
        self._ask(now_s, replicas, wanted)
        return said

    def _down(self, now_s: float, replicas: int, spell: Spell) -> str:
        """Ask for fewer, if they suffice. Returns why, or why not."""
        self._learned.note_quiet(spell, replicas)
        needed = self._learned.least_replicas(spell, replicas, self.thresholds.busy)
        said = f"trainers wait {spell.wait_share:.1%} of their time"
        if needed is None:
            return f"{said}; how busy replicas are is not known"
        least, why = needed
        wanted = max(least, math.ceil(replicas / 2), self.min_replicas)
        if wanted >= self._asked:
            return f"{said}, {why}"
        self._trial = _Change(replicas, wanted, spell)
        self._ask(now_s, replicas, wanted)
        return f"{said}, {why}"

    def _ask(self, now_s: float, replicas: int, wanted: int) -> None:
        self._asked, self._is_up = wanted, wanted > replicas
        self._asked_s, self._arrived_s, self._more_s = now_s, None, None
        self._forget_spells()

    def _forget_spells(self) -> None:
        self._settled: Spell | None = None  # all that was seen since the last change has settled
        self._waiting: Spell | None = None  # since when trainers wait
        self._quiet: Spell | None = None  # since when they do not
        # Why nothing has changed after the last of these two, and which it was.
        self._reason, self._spoke_of_waits = "", False

    def _hold(self, why: str) -> Decision:
        return Decision(self._asked, why)
