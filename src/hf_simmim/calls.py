"""The commands as Python calls: options are keyword arguments, and what a command computed is returned.

    result = hf_simmim.pretrain(train_dir="photos", output_dir="runs/photos", encoder="swin-tiny", num_train_epochs=100)
    result.model, result.metrics, result.pictures["reconstruction"]

Options are those of the command line: `hf-simmim pretrain --help-all` lists them. None leaves an option at its default.
Random states, environment variables and progress bars are restored afterwards. In a notebook with several GPUs:
`accelerate.notebook_launcher(lambda: hf_simmim.pretrain(...), num_processes=2)`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .cli.audit import AuditResult
    from .cli.compare import ComparisonResult
    from .cli.embed import EmbeddingResult
    from .cli.finetune import FineTuningResult
    from .cli.pack import PackingResult
    from .cli.plan import PlanResult
    from .cli.predict import PredictionResult
    from .cli.pretrain import PretrainingResult
    from .cli.probe import ProbingResult
    from .cli.reconstruct import ReconstructionResult
    from .cli.replay import ReplayResult
    from .cli.segment import SegmentationResult


def _command(name: str) -> Any:
    # Imported when called, so that models and processors need no trainers, plots and data sets.
    return importlib.import_module(f".cli.{name}", __package__).COMMAND


def audit(**options: Any) -> "AuditResult":
    """Look at a folder of images: broken and blank files, copies, test images among them, and what to set.

    Args:
        **options: Options of `hf-simmim audit`: `folder`, `against`, `output_dir`, `workers`, `max_images`.

    Returns:
        What was found, in numbers and in sentences, images to leave out, settings that follow, and the page.

    Raises:
        TypeError: If an option is unknown; the message names the nearest valid one.
        ValueError: If the options or the images cannot be used; the message says why and what to do.
    """
    return _command("audit")(**options)


def pretrain(**options: Any) -> "PretrainingResult":
    """Pre-train an encoder with SimMIM on images without labels.

    Args:
        **options: Options of `hf-simmim pretrain`: `train_dir`, `output_dir`, `encoder`, `image_size` (pixels),
            `num_train_epochs`, `mask_ratio` (0 to 1), `recipe` and many more.

    Returns:
        The trained model, its processor, metrics, log, folder and pictures.

    Raises:
        TypeError: If an option is unknown; the message names the nearest valid one.
        ValueError: If the options or the images cannot be used; the message says why and what to do.
    """
    return _command("pretrain")(**options)


def plan(**options: Any) -> "PlanResult":
    """Look at images and machine, and propose a pre-training: settings, time, memory, disk and energy.

    Args:
        **options: Options of `hf-simmim pretrain`: `train_dir`, `hours`, `recipe`, ...; what is not set is chosen.

    Returns:
        The options given and chosen, the command that trains as planned, and the plan with its forecast.

    Raises:
        TypeError: If an option is unknown; the message names the nearest valid one.
        ValueError: If the options or the images cannot be used; the message says why and what to do.
    """
    return _command("plan")(**options)


def pack(**options: Any) -> "PackingResult":
    """Shrink images to the size that training needs, and write them to shards.

    Args:
        **options: Options of `hf-simmim pack`: `image_dir`, `output_dir`, `size` (pixels), `workers`, `part`, ...

    Returns:
        Shards, number of images, unreadable images, and statistics of the pixels.

    Raises:
        TypeError: If an option is unknown; the message names the nearest valid one.
        ValueError: If the options or the images cannot be used; the message says why and what to do.
    """
    return _command("pack")(**options)


def finetune(**options: Any) -> "FineTuningResult":
    """Train a classifier on labeled images, from a checkpoint or from scratch.

    Args:
        **options: Options of `hf-simmim finetune`: `checkpoint`, `train_dir`, `output_dir`, `labels_per_class`, ...

    Returns:
        The trained model, its processor, metrics of all runs, folder and pictures.

    Raises:
        TypeError: If an option is unknown; the message names the nearest valid one.
        ValueError: If the options or the images cannot be used; the message says why and what to do.
    """
    return _command("finetune")(**options)


def segment(**options: Any) -> "SegmentationResult":
    """Train a segmentation model on annotated images.

    Args:
        **options: Options of `hf-simmim segment`: `checkpoint`, `train_dir`, `output_dir`, `crop_size` (pixels), ...

    Returns:
        The trained model, its processor, metrics, IoU of each class, folder and pictures.

    Raises:
        TypeError: If an option is unknown; the message names the nearest valid one.
        ValueError: If the options or the images cannot be used; the message says why and what to do.
    """
    return _command("segment")(**options)


def predict(**options: Any) -> "PredictionResult":
    """Predict on new images with a trained classifier or segmentation model, and write the predictions.

    Args:
        **options: Options of `hf-simmim predict`: `checkpoint`, `image_dir`, `output`, `max_images`, `overwrite`, ...

    Returns:
        The file of the predictions and how to read it, number of images of each class, unreadable images.

    Raises:
        TypeError: If an option is unknown; the message names the nearest valid one.
        ValueError: If the options or the images cannot be used; the message says why and what to do.
    """
    return _command("predict")(**options)


def probe(**options: Any) -> "ProbingResult":
    """Evaluate the features of a frozen encoder with a linear probe and k-NN.

    Args:
        **options: Options of `hf-simmim probe`: `checkpoint`, `train_dir`, `validation_dir`, `layers`, `seeds`, ...

    Returns:
        Accuracies of each layer and seed, folder and picture.

    Raises:
        TypeError: If an option is unknown; the message names the nearest valid one.
        ValueError: If the options or the images cannot be used; the message says why and what to do.
    """
    return _command("probe")(**options)


def compare(**options: Any) -> "ComparisonResult":
    """Evaluate the benefit of pre-training on labeled images.

    Args:
        **options: Options of `hf-simmim compare`: `train_dir`, `unlabeled_dir`, `checkpoint`, `public`, `arms`,
            `labels_per_class`, ...

    Returns:
        The conclusion and recommendation, verdicts and values at each label budget, labels saved, costs, folder and
        picture.

    Raises:
        TypeError: If an option is unknown; the message names the nearest valid one.
        ValueError: If the options or the images cannot be used; the message says why and what to do.
    """
    return _command("compare")(**options)


def embed(**options: Any) -> "EmbeddingResult":
    """Compute the features of images.

    Args:
        **options: Options of `hf-simmim embed`: `checkpoint`, `image_dir`, `output_dir`, `layer`, `pooling`, ...

    Returns:
        The file of features, names of the images, folder and pictures.

    Raises:
        TypeError: If an option is unknown; the message names the nearest valid one.
        ValueError: If the options or the images cannot be used; the message says why and what to do.
    """
    return _command("embed")(**options)


def reconstruct(**options: Any) -> "ReconstructionResult":
    """Draw what a checkpoint predicts for masked patches.

    Args:
        **options: Options of `hf-simmim reconstruct`: `checkpoint`, `images`, `output`, `mask_ratio` (0 to 1), ...

    Returns:
        Reconstructions and their errors by checkpoint, and the picture.

    Raises:
        TypeError: If an option is unknown; the message names the nearest valid one.
        ValueError: If the options or the images cannot be used; the message says why and what to do.
    """
    return _command("reconstruct")(**options)


def replay(**options: Any) -> "ReplayResult":
    """Run a skipped training step again, and tell which images were not finite, and where.

    Args:
        **options: Options of `hf-simmim replay`: `file`, `checkpoint`, `precision`, `device`.

    Returns:
        Losses, gradients and layers of each image, and the conclusion.

    Raises:
        TypeError: If an option is unknown; the message names the nearest valid one.
        ValueError: If there is no such step, or there are no weights; the message says why and what to do.
    """
    return _command("replay")(**options)
