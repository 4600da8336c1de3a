"""The gradient is that of the whole batch, whatever its parts hold, and every image is evaluated."""

import os
import subprocess
import sys

import pytest
import torch
from one_step import NUM_IMAGES, UnevenImages, gradient, make_trainer, uneven_collate
from paths import ROOT, SUPPORT
from tiny import swin_config
from torch import nn
from transformers import TrainingArguments

from hf_simmim import SimMIMConfig, SimMIMForMaskedImageModeling, SimMIMImageProcessor
from hf_simmim.data.transforms import normalize
from hf_simmim.training.trainers import ClassifierTrainer, RunTrainer, SimMIMTrainer


def big_batch() -> dict[str, torch.Tensor]:
    batch = uneven_collate([UnevenImages()[index] for index in range(NUM_IMAGES)])
    batch.pop("unreadable")
    processor = SimMIMImageProcessor()
    batch["pixel_values"] = normalize(batch["pixel_values"], processor.image_mean, processor.image_std)
    return batch


def expected_gradient(components: dict) -> dict[str, torch.Tensor]:
    """Of the one big batch, by hand."""
    torch.manual_seed(0)
    model = SimMIMForMaskedImageModeling(SimMIMConfig(encoder_config=swin_config(), **components))
    model(**big_batch()).loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def largest_error(ours: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    assert ours.keys() == expected.keys()
    scale = max(gradient.abs().max() for gradient in expected.values())
    return (max((ours[name] - expected[name]).abs().max() for name in ours) / scale).item()


@pytest.mark.parametrize(
    "components",
    [{}, {"loss_region": "all"}, {"prediction_stride": 4}, {"target": "color_bins", "prediction_stride": 2}],
    ids=str,
)
def test_accumulated_gradient_is_that_of_the_one_big_batch(components):
    expected = expected_gradient(components)
    assert largest_error(gradient(NUM_IMAGES, 1, components), expected) < 1e-5
    assert largest_error(gradient(2, NUM_IMAGES // 2, components), expected) < 1e-5


def test_gradient_of_two_processes_is_that_of_the_one_big_batch(tmp_path):
    path = tmp_path / "gradient.pt"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT / 'src'}"}
    result = subprocess.run(
        [*command, str(SUPPORT / "one_step.py"), "2", "2", str(path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert largest_error(torch.load(path), expected_gradient({})) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_evaluation_makes_each_target_once_of_pixels_as_they_are(tmp_path, dtype):
    config = SimMIMConfig(encoder_config=swin_config(), target="color_bins", target_options={"num_bins": 256})
    model = SimMIMForMaskedImageModeling(config).to(dtype)
    make, targets = model.target.make, []
    model.target.make = lambda pixel_values: targets.append(make(pixel_values)) or targets[-1]
    metrics = make_trainer(model, tmp_path, batch_size=4).evaluate()
    batch = big_batch()
    bytes_of_all = torch.cat([UnevenImages()[index]["pixel_values"][None] for index in range(NUM_IMAGES)]).long()
    assert torch.equal(torch.cat(targets), bytes_of_all)
    with torch.no_grad():
        prediction = model.eval()(**batch).prediction
        losses, _ = model.masked_loss(prediction, **batch, per_image=True)
    assert metrics["eval_loss"] == pytest.approx(losses.mean().item(), rel=1e-3)


def test_images_without_a_real_pixel_do_not_count_in_an_evaluation(tmp_path, monkeypatch):
    model = SimMIMForMaskedImageModeling(SimMIMConfig(encoder_config=swin_config()))
    batch = big_batch()
    batch["pixel_mask"][0] = False
    trainer = make_trainer(model, tmp_path, batch_size=4)
    original = UnevenImages.__getitem__

    def without_the_first(self, key):
        sample = original(self, key)
        return sample | {"pixel_mask": sample["pixel_mask"] & (key % NUM_IMAGES > 0)}

    monkeypatch.setattr(UnevenImages, "__getitem__", without_the_first)
    metrics = trainer.evaluate()
    with torch.no_grad():
        losses, counts = model.eval().masked_loss(model(**batch).prediction, **batch, per_image=True)
    assert counts[0] == 0
    assert metrics["eval_loss"] == pytest.approx(losses[1:].mean().item(), rel=1e-4)
    assert 40 < metrics["eval_masked_l1"] < 255


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
    trainer = RunTrainer(nn.Linear(1, 1), arguments, train_dataset=images, eval_dataset=images)

    def count(loader):
        return sum(len(batch["input"]) for batch in loader)

    assert count(trainer.get_eval_dataloader()) == num_images
    assert count(trainer.get_test_dataloader(images)) == num_images
    assert count(trainer.get_train_dataloader()) == num_images // 4 * 4
    assert arguments.dataloader_drop_last


@pytest.mark.parametrize("kind", [SimMIMTrainer, ClassifierTrainer])
def test_our_trainers_evaluate_so(kind):
    assert kind._get_dataloader is RunTrainer._get_dataloader
