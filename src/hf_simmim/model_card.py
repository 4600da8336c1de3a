"""The model card of a pre-training run, from what the run really did."""

import importlib.metadata
import platform
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import ModelCard, ModelCardData

from .masking import span
from .optimization import images_per_step
from .trainer import SimMIMTrainer


def template_path() -> Path:
    """Where the template is: in the installed package, or at the top of a checkout."""
    package = Path(__file__).parent
    installed = package / "model_card_template.md"
    return installed if installed.exists() else package.parents[1] / "model_card_template.md"


def training_card(trainer: SimMIMTrainer) -> ModelCard:
    """Render the card of a finished run.

    Args:
        trainer: The trainer after `train()`.

    Returns:
        The card; `save` writes it.
    """
    arguments, config, dataset = trainer.args, trainer.model.config, trainer.train_dataset
    output_dir = Path(str(arguments.output_dir))
    metrics = next((entry for entry in reversed(trainer.state.log_history) if "eval_loss" in entry), None)
    speeds = [entry["images_per_second"] for entry in trainer.state.log_history if "images_per_second" in entry]
    values: dict[str, Any] = {
        "model_name": arguments.hub_model_id or output_dir.name,
        "location": arguments.hub_model_id or output_dir,
        "encoder_name": config.encoder_config.model_type,
        "num_parameters": f"{trainer.model.simmim.num_parameters() / 1e6:.1f}",
        "has_reconstruction": (output_dir / "reconstruction.png").exists(),
        "num_channels": config.num_channels,
        "image_height": config.image_size[0],
        "image_width": config.image_size[1],
        "patch_size": config.patch_size,
        "encoder_stride": config.encoder_stride,
        "hidden_size": config.hidden_size,
        "head": config.head,
        "target": config.target,
        "prediction_stride": trainer.model.target.stride,
        "loss": config.loss,
        "loss_region": config.loss_region,
        "mask_strategy": trainer.processing_class.mask_strategy,
        "mask_patch_size": dataset.unit_size * config.patch_size,
        "mask_ratio": span(dataset.mask_ratio),
        "num_masked": span(dataset.num_masked_units),
        "num_units": dataset.num_units,
        "num_images": f"{len(dataset):,}",
        "num_steps": f"{trainer.state.global_step:,}",
        "num_epochs": f"{trainer.state.epoch:g}",
        "images_per_step": images_per_step(arguments),
        "optimizer": getattr(arguments.optim, "value", arguments.optim),
        "weight_decay": arguments.weight_decay,
        "max_grad_norm": arguments.max_grad_norm,
        "learning_rate": f"{arguments.learning_rate:g}",
        "scheduler": getattr(arguments.lr_scheduler_type, "value", arguments.lr_scheduler_type),
        "seed": arguments.seed,
        "hardware": _hardware(arguments),
        "images_per_second": f"{sorted(speeds)[len(speeds) // 2]:g}" if speeds else None,
        "num_eval_images": f"{len(trainer.eval_dataset):,}" if trainer.eval_dataset is not None else None,
        "eval_masked_l1": f"{metrics['eval_masked_l1']:.2f}" if metrics and "eval_masked_l1" in metrics else None,
        "eval_loss": f"{metrics['eval_loss']:.4f}" if metrics else None,
        "version": importlib.metadata.version("hf-simmim"),
        "transformers_version": transformers.__version__,
        "torch_version": torch.__version__,
    }
    card_data = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-feature-extraction",
        tags=["simmim", "masked-image-modeling", "self-supervised", config.encoder_config.model_type],
    )
    return ModelCard.from_template(card_data, template_path=str(template_path()), **values)


def _hardware(arguments: transformers.TrainingArguments) -> str:
    device = arguments.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} ({platform.machine()})"
    return f"{arguments.world_size} x {name}"
