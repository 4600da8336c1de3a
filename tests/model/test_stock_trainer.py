"""Our models under the unmodified transformers.Trainer: a resumed and a best model come back with every tensor."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import ENCODER_CONFIGS, batch
from transformers import Trainer, TrainingArguments

from hf_simmim import SimMIMConfig, SimMIMForMaskedImageModeling

encoders = pytest.mark.parametrize("encoder", ["swin", "swinv2", "vit", "beit", "deit", "dinov2", "clip_vision_model"])


def make_trainer(encoder: str, output_dir: Path, seed: int = 0, **kwargs) -> Trainer:
    torch.manual_seed(seed)
    model = SimMIMForMaskedImageModeling(SimMIMConfig(encoder_config=ENCODER_CONFIGS[encoder]()))
    with torch.no_grad():
        for parameter in model.parameters():
            # So that nothing is at a value which every fresh model has.
            parameter.add_(torch.randn_like(parameter) * 0.02)
    pixel_values, masks = batch(model.config, batch_size=8)
    images = [{"pixel_values": image, "bool_masked_pos": mask} for image, mask in zip(pixel_values, masks, strict=True)]
    arguments = TrainingArguments(
        str(output_dir),
        per_device_train_batch_size=2,
        per_device_eval_batch_size=8,
        max_steps=4,
        logging_steps=1,
        save_steps=1,
        save_strategy="steps",
        prediction_loss_only=True,
        remove_unused_columns=False,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        **kwargs,
    )
    return Trainer(model=model, args=arguments, train_dataset=images, eval_dataset=images)


def assert_same(state_dict: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert state_dict.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(state_dict[name], tensor), name


@encoders
def test_resume_restores_every_tensor(encoder, tmp_path):
    whole = make_trainer(encoder, tmp_path, learning_rate=1e-2)
    whole.train()
    resumed = make_trainer(encoder, tmp_path, seed=1, learning_rate=1e-2)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert_same(resumed.model.state_dict(), whole.model.state_dict())


@encoders
def test_the_best_model_comes_back_whole(encoder, tmp_path):
    """The learning rate is so high that the first evaluation is the best."""
    trainer = make_trainer(
        encoder,
        tmp_path,
        learning_rate=1.0,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=2,
        eval_strategy="steps",
        eval_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
    )
    trainer.train()
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-1")
    assert_same(trainer.model.state_dict(), load_file(tmp_path / "checkpoint-1" / "model.safetensors"))
    last = load_file(tmp_path / "checkpoint-4" / "model.safetensors")
    moved = [name for name, tensor in trainer.model.named_parameters() if not torch.equal(last[name], tensor)]
    assert len(moved) == sum(parameter.requires_grad for parameter in trainer.model.parameters())
