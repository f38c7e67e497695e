"""How soon one object may be written again: each backs off alone, and delays no other.

Two things are paced. A write that the kernel refuses is tried again, at growing intervals. An object that
another program keeps undoing is repaired at once the first time and then less and less often, so that two
programs that disagree do not keep a processor busy.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from overlaynet.core.backoff import delay
from overlaynet.state import Key


@dataclass(slots=True)
class Streak:
    """`times` in a row since `since`, the last at `last`; not again before `due`."""

    times: int
    since: float
    last: float
    due: float


@dataclass(slots=True)
class Pace:
    """Streaks by key. `cap_s` bounds the interval; after `quiet_s` without a strike a streak is over."""

    cap_s: float
    quiet_s: float
    streaks: dict[Key, Streak] = field(default_factory=dict)
    _waiting: set[Key] = field(default_factory=set)

    def strike(self, key: Key, now: float) -> Streak:
        """It happened once more."""
        old = self.streaks.get(key)
        if old is None or now - old.last > self.quiet_s:
            old = Streak(0, now, now, now)
        times = old.times + 1
        self.streaks[key] = Streak(times, old.since, now, now + min(self.cap_s, delay(times, 0.0)))
        return self.streaks[key]

    def forget(self, key: Key) -> None:
        self.streaks.pop(key, None)
        self._waiting.discard(key)

    def must_wait(self, key: Key, now: float) -> bool:
        """Whether it is too early for this one; if so, `take_due` will bring it back."""
        streak = self.streaks.get(key)
        if streak is None or streak.due <= now:
            return False
        self._waiting.add(key)
        return True

    def take_due(self, now: float) -> set[Key]:
        """Those that had to wait and need not any more."""
        due = {key for key in self._waiting if self.streaks[key].due <= now}
        self._waiting -= due
        return due

    def deadline(self) -> float | None:
        """When `take_due` will have something."""
        return min((self.streaks[key].due for key in self._waiting), default=None)

    def prune(self, now: float) -> None:
        """Forget the streaks that are over."""
        for key in [
            k for k, s in self.streaks.items() if now - s.last > self.quiet_s and k not in self._waiting
        ]:
            del self.streaks[key]
