"""One step of training on images of which very different shares are hidden; run by test_trainers.py on two processes.

With SGD at a learning rate of 1 the change of the weights is the gradient.
"""

import sys
import tempfile
from pathlib import Path

import torch
from tiny import swin_config
from transformers import TrainingArguments

from hf_simmim import SimMIMConfig, SimMIMForMaskedImageModeling, SimMIMImageProcessor
from hf_simmim.data.masked_images import collate
from hf_simmim.data.reading import UnreadableImages
from hf_simmim.training.trainers import SimMIMTrainer

NUM_IMAGES = 8


class UnevenImages(torch.utils.data.Dataset):
    """Image i has 2 i + 1 of its 16 mask units hidden, and every third one pixels that are none."""

    def __len__(self) -> int:
        return NUM_IMAGES

    def __getitem__(self, key: int) -> dict:
        index = key % NUM_IMAGES
        generator = torch.Generator().manual_seed(index)
        units = torch.randperm(16, generator=generator).view(4, 4) < 2 * index + 1
        pixel_mask = torch.ones(32, 32, dtype=torch.bool)
        pixel_mask[: 8 * (index % 3)] = False
        return {
            "pixel_values": torch.randint(256, (3, 32, 32), generator=generator, dtype=torch.uint8),
            "bool_masked_pos": units.repeat_interleave(4, 0).repeat_interleave(4, 1).flatten(),
            "pixel_mask": pixel_mask,
            "unreadable": [],
        }


def uneven_collate(samples: list[dict]) -> dict:
    """As the package's, whatever it makes of `pixel_mask`."""
    return collate(samples) | {"pixel_mask": torch.stack([sample["pixel_mask"] for sample in samples])}


def make_trainer(
    model: SimMIMForMaskedImageModeling, folder: str | Path, batch_size: int, accumulation: int = 1
) -> SimMIMTrainer:
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=batch_size,
        per_device_eval_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        max_steps=1,
        learning_rate=1.0,
        lr_scheduler_type="constant",
        optim="sgd",
        max_grad_norm=0.0,
        save_strategy="no",
        report_to="none",
        remove_unused_columns=False,
        label_names=["bool_masked_pos"],
        prediction_loss_only=True,
        use_cpu=True,
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
    )
    return SimMIMTrainer(
        model=model,
        args=arguments,
        train_dataset=UnevenImages(),
        eval_dataset=UnevenImages(),
        data_collator=uneven_collate,
        processing_class=SimMIMImageProcessor(size={"height": 32, "width": 32}, model_patch_size=2),
        unreadable_images=UnreadableImages(Path(folder) / "unreadable.txt", NUM_IMAGES, 1.0),
    )


def gradient(batch_size: int, accumulation: int, components: dict) -> dict[str, torch.Tensor]:
    """Gradient of one step over all images, as the trainer makes it."""
    torch.manual_seed(0)
    model = SimMIMForMaskedImageModeling(SimMIMConfig(encoder_config=swin_config(), **components))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(model, folder, batch_size, accumulation)
        trainer.train()
        if torch.distributed.is_initialized():
            # Not copied into what processes exchange.
            assert trainer.model_wrapped.gradient_as_bucket_view
    return {name: before[name] - parameter.detach() for name, parameter in model.named_parameters()}


if __name__ == "__main__":
    batch_size, accumulation, path = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    gradients = gradient(batch_size, accumulation, {})
    if torch.distributed.get_rank() == 0:
        torch.save(gradients, path)
