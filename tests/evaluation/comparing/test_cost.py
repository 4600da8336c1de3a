"""What runs cost: added over interrupted runs, and energy only where it is measured."""

import json

import pytest

from hf_simmim.evaluation.comparing.cost import (
    Cost,
    CostMeter,
    cost_sentences,
    cost_table,
    processor_counters,
    read_cost,
    training_cost,
)


def fake_zone(folder, name: str, title: str, joules: float) -> None:
    zone = folder / name
    zone.mkdir(parents=True)
    (zone / "name").write_text(f"{title}\n")
    (zone / "energy_uj").write_text(f"{joules * 1e6:.0f}\n")
    (zone / "max_energy_range_uj").write_text("262143328850\n")


def test_time_and_energy_add_up_over_interrupted_runs(tmp_path):
    powercap = tmp_path / "powercap"
    fake_zone(powercap, "intel-rapl:0", "package-0", 1000)
    fake_zone(powercap, "intel-rapl:1", "package-1", 262_000)
    # Part of a package, and a sum of packages.
    fake_zone(powercap, "intel-rapl:0:0", "core", 5)
    fake_zone(powercap, "intel-rapl:2", "psys", 5)
    counters = {"processors": processor_counters(powercap)}
    assert len(counters["processors"]) == 2
    now = [0.0]

    def train() -> None:
        with CostMeter(tmp_path / "run", counters, lambda: now[0]):
            now[0] = 30.0
            (powercap / "intel-rapl:0" / "energy_uj").write_text("1500000000")
            # The counter starts again.
            (powercap / "intel-rapl:1" / "energy_uj").write_text("100000000")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train()
    first = read_cost(tmp_path / "run")
    assert first.seconds == 30
    assert first.joules["processors"] == pytest.approx(500 + 262_143.32885 - 262_000 + 100)
    with CostMeter(tmp_path / "run", counters, lambda: now[0]):
        now[0] = 90.0
    assert read_cost(tmp_path / "run").seconds == 90
    assert read_cost(tmp_path / "run").joules == first.joules
    # A part without counters makes the energy of all unknown.
    with CostMeter(tmp_path / "run", {}, lambda: now[0]):
        now[0] = 100.0
    assert read_cost(tmp_path / "run") == Cost(100.0)


def test_a_killed_run_keeps_what_it_spent(tmp_path):
    with CostMeter(tmp_path, {}, interval=0.01) as meter:
        meter._ended.wait(0.1)
        assert read_cost(tmp_path).seconds > 0


def test_energy_that_is_not_measured_is_said():
    known = {"from scratch": {"fine-tuning": Cost(60.0, {"processors": 3.6e6})}}
    assert cost_sentences(known) == ["Cost, from scratch: 1.0 min, 1 kWh (processors) (fine-tuning 1.0 min)."]
    unknown = known | {"pre-trained": {"pre-training": Cost(), "fine-tuning": Cost(90.0)}}
    sentences = cost_sentences(unknown)
    assert sentences[1] == "Cost, pre-trained: not measured (pre-training not measured, fine-tuning 1.5 min)."
    assert sentences[2].startswith("Energy not measured")
    assert "| from scratch | none | 1.0 | 1.0 | 1 kWh (processors) |" in cost_table(dict(reversed(unknown.items())))


def test_time_of_an_earlier_training_is_that_of_its_log(tmp_path):
    assert training_cost(tmp_path) == Cost()
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": [{"loss": 1}, {"train_runtime": 12.5}]}))
    assert training_cost(tmp_path) == Cost(12.5)
    with CostMeter(tmp_path, {}):
        pass
    assert training_cost(tmp_path).seconds < 12.5


@pytest.mark.parametrize(
    ("seconds", "rate", "expected"),
    [
        (200.0, 0.2, 200.0),  # all 40 steps
        (50.0, 0.2, 350.0),  # the last 10, after 30 of ten seconds each
        (0.1, 0.0, 400.0),  # none: a finished run was started again
    ],
)
def test_time_before_a_training_resumed_counts(tmp_path, seconds, rate, expected):
    """Trainer measures the last session alone."""
    speeds = [{"step": step, "images_per_second": 1.6} for step in range(10, 41, 10)]
    end = {"step": 40, "train_runtime": seconds, "train_steps_per_second": rate}
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": [*speeds, end]}))
    if expected != seconds:
        assert training_cost(tmp_path) == Cost()
    (tmp_path / "run.json").write_text(json.dumps({"images_per_step": 16}))
    assert training_cost(tmp_path).seconds == pytest.approx(expected, abs=0.2)


def test_counters_that_are_not_there(tmp_path):
    assert processor_counters(tmp_path / "nowhere") == []
