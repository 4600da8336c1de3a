"""Dropped batches are of training only, in every script's trainer."""

import pytest
import torch
from torch import nn
from transformers import TrainingArguments

from hf_simmim.training.trainers import ClassifierTrainer, SimMIMTrainer, WholeEvaluation


@pytest.mark.parametrize("num_images", [3, 5])
def test_every_image_is_evaluated(tmp_path, num_images):
    arguments = TrainingArguments(
        str(tmp_path),
        per_device_train_batch_size=4,
        per_device_eval_batch_size=4,
        dataloader_drop_last=True,
        use_cpu=True,
        report_to="none",
    )
    images = [{"input": torch.zeros(1)} for _ in range(num_images)]
    trainer = WholeEvaluation(nn.Linear(1, 1), arguments, train_dataset=images, eval_dataset=images)

    def count(loader):
        return sum(len(batch["input"]) for batch in loader)

    assert count(trainer.get_eval_dataloader()) == num_images
    assert count(trainer.get_test_dataloader(images)) == num_images
    assert count(trainer.get_train_dataloader()) == num_images // 4 * 4
    assert arguments.dataloader_drop_last


@pytest.mark.parametrize("kind", [SimMIMTrainer, ClassifierTrainer])
def test_our_trainers_evaluate_so(kind):
    assert kind._get_dataloader is WholeEvaluation._get_dataloader
