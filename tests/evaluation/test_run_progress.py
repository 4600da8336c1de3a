"""Progress of many runs, by a clock that is set by hand."""

import pytest

from hf_simmim.evaluation.run_progress import RunProgress, in_short


def test_the_time_left_is_that_of_the_runs_of_each_kind():
    now = [0.0]
    progress = RunProgress({"short": 3, "long": 2}, clock=lambda: now[0])
    progress.start()
    now[0] = 30
    # Of the other kind nothing is known yet: it is taken to be alike.
    assert progress.finish("short") == "run 1 of 5 finished, about 2 min left"
    now[0] = 40
    # Mean of 30 and 10 s.
    assert progress.finish("short") == "run 2 of 5 finished, about 60 s left"
    now[0] = 640
    progress.start()
    now[0] = 1240
    assert progress.finish("long") == "run 3 of 5 finished, about 10 min left"
    progress.skip("short", 1)
    assert progress.num_finished == 4
    now[0] = 1250
    assert progress.finish("long") == "run 5 of 5 finished"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "about 1 s"), (119, "about 119 s"), (120, "about 2 min"), (9000, "about 2.5 h")]
)
def test_durations_are_rough(seconds, text):
    assert in_short(seconds) == text
