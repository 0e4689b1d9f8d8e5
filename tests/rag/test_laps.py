from __future__ import annotations

import time

from rag.laps import Laps


def test_stages_follow_each_other_at_the_time_of_day() -> None:
    before = time.time_ns()
    laps = Laps()
    laps.lap("search")
    laps.lap("embed")
    laps.lap("search")
    after = time.time_ns()
    stages, began, ended = zip(*laps.laps, strict=True)
    assert stages == ("search", "embed", "search")
    assert began[1:] == ended[:-1]
    margin = 50_000_000  # between two clocks
    assert before - margin <= began[0] <= ended[-1] <= after + margin
    assert set(laps.timings_ms) == {"search", "embed"}
    whole = (ended[-1] - began[0]) / 1e6
    assert abs(sum(laps.timings_ms.values()) - whole) <= 0.02
    assert laps.elapsed_ms() >= whole


def test_stages_that_were_measured_elsewhere_end_the_one_that_runs() -> None:
    laps = Laps()
    laps.add([("embed", 5_000_000, 7_500_000)])
    laps.lap("prompt")
    assert laps.timings_ms["embed"] == 2.5
    assert [stage for stage, _, _ in laps.laps] == ["embed", "prompt"]
