"""How long each stage of a piece of work took, and when."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TypeAlias

Lap: TypeAlias = tuple[str, int, int]
"""A stage, and when it began and ended, in nanoseconds since the epoch."""


class Laps:
    """The stages of one piece of work: where one ends, the next begins."""

    def __init__(self) -> None:
        self.laps: list[Lap] = []
        self._started = self._last = time.perf_counter_ns()
        self._epoch = time.time_ns() - self._started  # a clock that is set must not bend a lap

    def lap(self, stage: str) -> None:
        """End a stage now."""
        began, self._last = self._last, time.perf_counter_ns()
        self.laps.append((stage, began + self._epoch, self._last + self._epoch))

    def add(self, laps: Iterable[Lap]) -> None:
        """Take in stages that were measured elsewhere; the next one begins now."""
        self.laps += laps
        self._last = time.perf_counter_ns()

    @property
    def timings_ms(self) -> dict[str, float]:
        """Milliseconds of each stage, all its laps together."""
        spent: dict[str, int] = {}
        for stage, began, ended in self.laps:
            spent[stage] = spent.get(stage, 0) + ended - began
        return {stage: round(ns / 1e6, 2) for stage, ns in spent.items()}

    def elapsed_ms(self) -> float:
        """Milliseconds since the beginning."""
        return (time.perf_counter_ns() - self._started) / 1e6
