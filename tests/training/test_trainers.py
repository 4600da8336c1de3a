"""The gradient is that of the whole batch, whatever its parts hold, and every image is evaluated."""

import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from one_step import NUM_IMAGES, UnevenImages, gradient, make_trainer, uneven_collate
from paths import ROOT, SUPPORT
from PIL import Image
from tiny import swin_config
from torch import nn
from transformers import AutoImageProcessor, AutoModel, TrainingArguments

from hf_simmim import SimMIMConfig, SimMIMForMaskedImageModeling, SimMIMImageProcessor
from hf_simmim.data.masked_images import MaskedImageDataset, collate
from hf_simmim.data.reading import NoReadableImageError, UnreadableImages
from hf_simmim.data.transforms import normalize
from hf_simmim.training import trainers
from hf_simmim.training.labeled_trainers import ClassifierTrainer
from hf_simmim.training.trainers import RunTrainer, SimMIMTrainer


def big_batch() -> dict[str, torch.Tensor]:
    batch = uneven_collate([UnevenImages()[index] for index in range(NUM_IMAGES)])
    batch.pop("unreadable")
    batch.pop("names")
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


def photo_rows(num_images: int = 8) -> Dataset:
    """Rows of `load_images`, of which the third cannot be read."""
    generator = np.random.default_rng(0)
    pictures = [
        {"bytes": png_bytes(generator.integers(0, 255, (40, 36, 3), dtype=np.uint8)), "path": None}
        for _ in range(num_images)
    ]
    pictures[2]["bytes"] = b"nothing"
    return Dataset.from_dict({"image": pictures, "name": [str(index) for index in range(num_images)]})


def png_bytes(pixels: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


def test_the_usual_arguments_of_trainer_are_enough(tmp_path):
    """As with the plain Trainer: model, arguments, images; all else has a default."""
    config = SimMIMConfig(encoder_config=swin_config())
    settings = {"image_size": config.image_size, "num_channels": 3, "patch_size": config.patch_size}
    settings |= {"mask_patch_size": 8, "mask_ratio": [0.3, 0.5]}
    train_dataset, eval_dataset = (MaskedImageDataset(photo_rows(), **settings, seed=seed) for seed in (0, 1))
    arguments = TrainingArguments(
        str(tmp_path), per_device_train_batch_size=4, num_train_epochs=1, logging_steps=1, use_cpu=True
    )

    def model() -> SimMIMForMaskedImageModeling:
        torch.manual_seed(0)
        return SimMIMForMaskedImageModeling(config)

    trainer = SimMIMTrainer(model(), arguments, train_dataset=train_dataset, eval_dataset=eval_dataset)
    assert arguments.remove_unused_columns
    with pytest.raises(NoReadableImageError, match="1 of 16 images cannot be read"):
        trainer.train()
    assert (tmp_path / "unreadable_images.txt").read_text().startswith("2\t")
    trainer = SimMIMTrainer(model(), arguments, train_dataset=train_dataset, eval_dataset=eval_dataset)
    trainer.unreadable_images.max_share = 0.5
    trainer.train()
    assert {"loss", "masked_l1", "images_per_second", "data_wait"} <= trainer.state.log_history[0].keys()
    assert 0 <= trainer.state.log_history[0]["data_wait"] <= 1
    assert {"eval_loss", "eval_masked_l1"} <= trainer.evaluate().keys()
    trainer.save_model()
    trainer.create_model_card()
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    assert (processor.mask_patch_size, processor.mask_ratio, processor.model_patch_size) == (8, [0.3, 0.5], 2)
    assert "mask ratio 0.3 to 0.5" in (tmp_path / "README.md").read_text()
    # The same with the arguments of the command, by name.
    again = SimMIMTrainer(
        model=model(),
        args=arguments,
        train_dataset=train_dataset,
        data_collator=collate,
        processing_class=processor,
        unreadable_images=UnreadableImages(tmp_path / "list.txt", 16, 0.5),
    )
    again.train()
    assert again.state.log_history[0]["loss"] == trainer.state.log_history[0]["loss"]


@pytest.mark.parametrize("decoder", ["pillow", "simplejpeg"])
def test_waiting_for_images_is_told_once_with_its_remedies(decoder, tmp_path, monkeypatch):
    config = SimMIMConfig(encoder_config=swin_config())
    settings = {"image_size": config.image_size, "num_channels": 3, "patch_size": config.patch_size}
    rows = photo_rows().select([0, 1, 3, 4])
    dataset = MaskedImageDataset(rows, **settings, mask_patch_size=8, image_decoder=decoder)
    arguments = TrainingArguments(
        str(tmp_path), per_device_train_batch_size=1, max_steps=8, logging_steps=1, use_cpu=True, save_strategy="no"
    )
    trainer = SimMIMTrainer(SimMIMForMaskedImageModeling(config), arguments, train_dataset=dataset)
    told, get_batch = [], RunTrainer.get_batch_samples

    def slow(*args, **kwargs):
        # More at each step, so that the shares differ.
        time.sleep(0.1 * trainer.state.global_step)
        return get_batch(*args, **kwargs)

    monkeypatch.setattr(RunTrainer, "get_batch_samples", slow, raising=False)
    monkeypatch.setattr(trainers.logger, "warning", told.append)
    trainer.train()
    told = [message for message in told if "waits for images" in message]
    assert len({entry["data_wait"] for entry in trainer.state.log_history if entry.get("data_wait", 0) > 0.1}) > 1
    assert len(told) == 1
    assert "dataloader_num_workers (0 now)" in told[0]
    assert "hf-simmim pack" in told[0]
    assert ("pip install simplejpeg" in told[0]) == (decoder == "pillow")


def test_without_a_processor_the_images_must_be_ours():
    model = SimMIMForMaskedImageModeling(SimMIMConfig(encoder_config=swin_config()))
    with pytest.raises(ValueError, match="needs processing_class .* Pass a SimMIMImageProcessor"):
        SimMIMTrainer(model, TrainingArguments("nowhere", use_cpu=True), train_dataset=UnevenImages())


def code_of(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*.py")}


def test_code_is_saved_for_others_only(tmp_path):
    """Not into the folders of a training, unless it is pushed or `save_code` says so; by hand as ever."""
    config = SimMIMConfig(encoder_config=swin_config())
    for name, settings, expected in (("plain", {}, set()), ("code", {"save_code": True}, {"modeling_simmim.py"})):
        trainer = make_trainer(SimMIMForMaskedImageModeling(config), tmp_path / name, batch_size=4)
        for key, value in settings.items():
            setattr(trainer.args, key, value)
        trainer.args.save_strategy = "steps"
        trainer.args.save_steps = 1
        trainer.train()
        trainer.save_final_model()
        for folder in (tmp_path / name, tmp_path / name / "checkpoint-1"):
            assert code_of(folder) >= expected
            assert bool(code_of(folder)) == bool(expected)
            for file in ("config.json", "preprocessor_config.json"):
                assert ("auto_map" in json.loads((folder / file).read_text())) == bool(expected)
            model = AutoModel.from_pretrained(folder)
            assert all(map(torch.equal, model.state_dict().values(), trainer.model.simmim.state_dict().values()))
        trainer.save_model(str(tmp_path / name / "given"))
        assert "modeling_simmim.py" in code_of(tmp_path / name / "given")
        trainer.model.save_pretrained(tmp_path / name / "by_hand")
        assert "auto_map" in json.loads((tmp_path / name / "by_hand" / "config.json").read_text())
        assert "modeling_simmim.py" in code_of(tmp_path / name / "by_hand")
        # What was saved with its code is saved without it again.
        trainer.save_final_model()
        assert "auto_map" not in json.loads((tmp_path / "plain" / "config.json").read_text())


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_weights_have_the_permissions_of_the_other_files(tmp_path):
    trainer = make_trainer(SimMIMForMaskedImageModeling(SimMIMConfig(encoder_config=swin_config())), tmp_path, 4)
    trainer.args.save_strategy, trainer.args.save_steps = "steps", 1
    before = os.umask(0o027)
    try:
        trainer.train()
        trainer.save_final_model()
    finally:
        os.umask(before)
    for folder in (tmp_path, tmp_path / "checkpoint-1"):
        assert (folder / "model.safetensors").stat().st_mode & 0o777 == 0o640
