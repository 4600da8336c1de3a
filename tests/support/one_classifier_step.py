"""One step of an unmodified Trainer, and an evaluation; run by test_modeling_classifier.py on two processes.

With SGD at a learning rate of 1 the change of the weights is the gradient.
"""

import sys
import tempfile

import torch
from tiny import swin_config
from torch.utils.data import Subset
from transformers import Trainer, TrainingArguments

from hf_simmim import SimMIMConfig, SimMIMForImageClassification
from hf_simmim.training.labeled_trainers import ClassifierTrainer

NUM_IMAGES = 8
NUM_CLASSES = 3
CLASS_WEIGHTS = [0.5, 1.0, 2.0]


class LabeledImages(torch.utils.data.Dataset):
    """Noise with labels of a kind: "hard", some of them missing, "soft", "several" or "numbers"."""

    def __init__(self, kind: str):
        self.kind = kind

    def __len__(self) -> int:
        return NUM_IMAGES

    def __getitem__(self, index: int) -> dict:
        generator = torch.Generator().manual_seed(index)
        pixel_values = torch.randn(3, 32, 32, generator=generator)
        numbers = torch.rand(NUM_CLASSES, generator=generator)
        labels = {
            "hard": torch.tensor(-100 if index in (0, 1, 6) else index % NUM_CLASSES),
            "soft": numbers / numbers.sum(),
            "several": (numbers > 0.5).float(),
            "numbers": numbers,
        }[self.kind]
        return {"pixel_values": pixel_values, "labels": labels}


PROBLEM_TYPES = {
    "hard": None,
    "soft": None,
    "several": "multi_label_classification",
    "numbers": "regression",
}


def make_model(kind: str) -> SimMIMForImageClassification:
    torch.manual_seed(0)
    config = SimMIMConfig(
        encoder_config=swin_config(),
        num_labels=NUM_CLASSES,
        problem_type=PROBLEM_TYPES[kind],
        class_weights=CLASS_WEIGHTS,
    )
    return SimMIMForImageClassification(config)


def gradient(kind: str, batch_size: int, accumulation: int) -> dict[str, torch.Tensor]:
    """Gradient of one step over all images, as Trainer makes it."""
    model = make_model(kind)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=accumulation,
            max_steps=1,
            learning_rate=1.0,
            lr_scheduler_type="constant",
            optim="sgd",
            max_grad_norm=0.0,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            dataloader_num_workers=0,
            dataloader_pin_memory=False,
        )
        Trainer(model=model, args=arguments, train_dataset=LabeledImages(kind)).train()
    return {name: before[name] - parameter.detach() for name, parameter in model.named_parameters()}


def evaluation_loss(kind: str) -> float:
    """Loss of the images from the second to the sixth, in batches of four."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = ClassifierTrainer(
            make_model(kind),
            TrainingArguments(folder, per_device_eval_batch_size=4, use_cpu=True, report_to="none"),
            eval_dataset=Subset(LabeledImages(kind), range(2, 7)),
            compute_metrics=lambda prediction: {},
        )
        return trainer.evaluate()["eval_loss"]


if __name__ == "__main__":
    path = sys.argv[1]
    losses = {f"{kind} loss": evaluation_loss(kind) for kind in PROBLEM_TYPES}
    gradients = {kind: gradient(kind, 2, 2) for kind in PROBLEM_TYPES}
    if torch.distributed.get_rank() == 0:
        torch.save(gradients | losses, path)
