"""Training arguments that cannot be meant are refused."""

import pytest

from hf_simmim.training.arguments import SimMIMTrainingArguments


def test_fp16_is_refused_where_nothing_would_be_computed_in_it(tmp_path):
    with pytest.raises(ValueError, match="fp16 needs a GPU.*--bf16"):
        SimMIMTrainingArguments(output_dir=str(tmp_path), use_cpu=True, fp16=True)
    assert SimMIMTrainingArguments(output_dir=str(tmp_path), use_cpu=True, bf16=True).bf16


@pytest.mark.parametrize(
    ("name", "greater"),
    [("masked_l1", False), ("eval_train_masked_l1", False), ("loss", False), ("rmse", False), ("accuracy", True)],
)
def test_errors_are_better_where_they_are_smaller(tmp_path, name, greater):
    options = {"output_dir": str(tmp_path), "use_cpu": True, "metric_for_best_model": name}
    assert SimMIMTrainingArguments(**options).greater_is_better is greater
    assert SimMIMTrainingArguments(**options, greater_is_better=not greater).greater_is_better is not greater


def test_bf16_takes_the_processor_where_there_is_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_simmim.training.arguments.accelerator.is_available", lambda: False)
    assert SimMIMTrainingArguments(str(tmp_path), bf16=True, learning_rate=1e-4).device.type == "cpu"
    assert not SimMIMTrainingArguments(str(tmp_path), learning_rate=1e-4).use_cpu
