"""Training arguments that cannot be meant are refused."""

import pytest

from hf_simmim.training.arguments import SimMIMTrainingArguments


def test_fp16_is_refused_where_nothing_would_be_computed_in_it(tmp_path):
    with pytest.raises(ValueError, match="fp16 needs a GPU.*--bf16"):
        SimMIMTrainingArguments(output_dir=str(tmp_path), use_cpu=True, fp16=True)
    assert SimMIMTrainingArguments(output_dir=str(tmp_path), use_cpu=True, bf16=True).bf16
