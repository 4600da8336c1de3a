"""The model card of a pre-training run, rendered from its trainer during or after training."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard

from ...evaluation.probing import name_pair
from ...evaluation.reconstruction import kind_of
from ...hub.card import (
    Table,
    augmentation_table,
    average_mask_distance,
    citations,
    counted,
    encoder_table,
    listed,
    pixels_table,
    result_entry,
)
from ...hub.provenance import RunOrigin, hub_id, last_part
from ...model.masking import span
from ...model.visible import WINDOWED_ENCODERS
from ..callbacks import ProbeCallback
from ..optimization import images_per_step
from .facts import CardFacts, held_out_images, hours, measured_after, render_training, session_time

COLUMN_MEANINGS = {
    "original": "the image",
    "masked": "the input of the encoder",
    "prediction": "the output of the model; pale in visible patches, where it is not trained",
    "composite": "the prediction in masked patches, the image in the others",
    "predicted gradients": "histograms of gradients as lines along the edges: yellow ones are the model's, in masked"
    " patches, and blue ones the image's",
    "true gradients": "those of the image, blue where it was visible",
}
# Options of components that are too long for a table.
LONG_OPTIONS = ("centers", "model_config", "image_mean", "image_std")
# Share of the mean color's error that a model takes away which has learned more than mean colors (docs/search.md).
LITTLE_GAIN = 0.1
PROBE_FIGURES = {"probe_linear_accuracy": "linear probe", "probe_knn_accuracy": "k-NN"}


def pretraining_card(trainer: Any) -> ModelCard:
    """Render the model card of a pre-training run, during or after its training.

    Args:
        trainer: The trainer, before, during or after `train()`; its `origin` holds the provenance.

    Returns:
        The card; `save` writes it.
    """
    model: Any = trainer.model
    config: Any = model.config
    origin, log = trainer.origin, trainer.state.log_history
    return render_training(
        trainer,
        config,
        CardFacts(
            kind="pretrained",
            auto_class="AutoModel",
            num_parameters=model.simmim.num_parameters(),
            tags=("masked-image-modeling", "self-supervised"),
            pipeline_tag="image-feature-extraction",
            training_type="pre-training",
            # Without a provenance the model at least knows what it was loaded from.
            base_model=origin.base_model or (None if origin.checkpoint else hub_id(config.name_or_path or None)),
            eval_results=probe_results(log, origin),
            model_rows=encoder_table(config, model) | _prediction_table(model) | _masking_table(trainer),
            data_rows=_data_table(trainer),
            training_rows=_trained_part(trainer.args) | _forecast(trainer),
            time=_training_time(log, images_per_step(trainer.args)) or session_time(trainer),
            speed=speed(log),
            citations=citations(config),
            values={
                "target": config.target,
                "hidden_size": config.hidden_size,
                "pipeline_options": ", pool=True",
                "has_head": True,
                "reconstruction": _reconstruction(trainer),
                "results": _results(trainer),
                "results_intro": _results_intro(trainer),
                "pictures": _pictures(Path(str(trainer.args.output_dir))),
            },
        ),
    )


def _trained_part(arguments: Any) -> dict[str, str | None]:
    """What was trained of an encoder whose weights were there before; nothing if all of it was."""
    layers, rank = (getattr(arguments, name, None) for name in ("train_layers", "lora"))
    if layers is not None:
        return {"trained": f"the last {counted(layers, 'block')} of the encoder, and the head"}
    if rank is not None:
        return {"trained": f"adapters (LoRA) of rank {rank} in the encoder, merged into its weights, and the head"}
    return {}


def _forecast(trainer: Any) -> dict[str, str | None]:
    """What the training was expected to take, and what it took; nothing for parts of a run and without a forecast."""
    done = last_entry(trainer.state.log_history, "train_runtime")
    if trainer.plan is None or done is None or vars(trainer).get("_initial_global_step"):
        return {}
    text = trainer.plan.outcome(trainer.args, done["train_samples_per_second"], done["train_runtime"])
    return {"forecast": text} if text else {}


def _training_time(log: Sequence[dict[str, Any]], batch: int) -> str | None:
    """Time of all logged steps, also of those before the run resumed, without evaluations."""
    seconds, last = 0.0, 0
    for entry in log:
        if entry.get("images_per_second"):
            seconds += (entry["step"] - last) * batch / entry["images_per_second"]
            last = entry["step"]
    return f"{hours(seconds)}, without evaluations" if seconds else None


def speed(log: Sequence[dict[str, Any]]) -> str | None:
    """Median of the logged speeds."""
    speeds = sorted(entry["images_per_second"] for entry in log if entry.get("images_per_second"))
    return f"{speeds[len(speeds) // 2]:,g} images/s (median), over all devices" if speeds else None


def probe_results(log: Sequence[dict[str, Any]], origin: RunOrigin) -> list[EvalResult]:
    """Entries of the model index: the latest accuracies of the probes."""
    if origin.evaluation is None:
        return []
    last = {key: last_entry(log, key) for key in PROBE_FIGURES}
    return [
        result_entry(origin.evaluation, name, last[key][key])
        for key, name in PROBE_FIGURES.items()
        if last[key] is not None
    ]


def last_entry(log: Sequence[dict[str, Any]], key: str) -> Any:
    """The last entry of a log that has a key, or None."""
    return next((entry for entry in reversed(log) if key in entry), None)


def describe_evaluation(metrics: dict[str, float], decode_uses: str, hidden_size: int) -> str:
    """Say what an evaluation of a pre-training measured, and what it is worth.

    Args:
        metrics: Metrics of the evaluation.
        decode_uses: What decoding reads from the original image, `Target.decode_uses`; "" for nothing.
        hidden_size: Number of dimensions of the features.

    Returns:
        Lines to print: the validation loss with the error and its baseline, the training images, and RankMe.
    """
    pixels = errors_in_words(metrics)
    borrowed = f"; decoded with the {decode_uses} of the original, which the mean color does not get"
    lines = [f"Validation: loss {metrics['eval_loss']:.4f}{pixels}" + (borrowed if decode_uses and pixels else "")]
    for key, name, digits in (("eval_train_masked_l1", "masked l1", 2), ("eval_train_loss", "loss", 4)):
        if _is_number(metrics.get(key)):
            lines.append(f"Training images, evaluated the same way: {name} {metrics[key]:.{digits}f}")
    if _is_number(metrics.get("eval_rankme")):
        lines.append(f"Features: RankMe {metrics['eval_rankme']:.1f} of {hidden_size} dimensions")
    if not decode_uses and (warning := learned_little(metrics)):
        lines.append(f"Warning: {warning}")
    return "\n".join(lines)


def learned_little(metrics: dict[str, float]) -> str:
    """Say so if a model predicts hardly more than the mean color of each image.

    Args:
        metrics: Metrics of the evaluation.

    Returns:
        A sentence with what to change; "" if it predicts more, or that was not measured.
    """
    gain = metrics.get("eval_gain_over_mean_color")
    if gain is None or not _is_number(gain) or gain >= LITTLE_GAIN:
        return ""
    better = f"only {gain:.0%} better" if gain >= 0 else "no better"
    return (
        f"masked pixels are predicted {better} than by the mean color of each image, so little was learned, and"
        " fine-tuning from it can be worse than from scratch. Try --target hog, more epochs, or smaller mask patches."
    ).replace("%", " %")


def read_metrics(folder: Path) -> dict[str, float]:
    """Read the last evaluation of a pre-training.

    Args:
        folder: Folder of the run.

    Returns:
        Metrics by name; none if the folder has no such file.
    """
    try:
        found = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def errors_in_words(metrics: dict[str, float], emphasis: str = "") -> str:
    """Masked l1 of an evaluation, compared with the mean color, or its gradient error; "" if neither was measured.

    Args:
        metrics: Metrics of the evaluation.
        emphasis: Markup around the number.

    Returns:
        Text that follows that of the loss, such as ", masked l1 22.15 of 255, 59 % better than the mean color (54.0)",
        or ", gradient error 0.652 of 1".
    """
    error, gain = metrics.get("eval_masked_l1"), metrics.get("eval_gain_over_mean_color")
    gradients = metrics.get("eval_gradient_error")
    if _is_number(gradients):
        return f", gradient error {emphasis}{gradients:.3f}{emphasis} of 1"
    if not _is_number(error):
        return ""
    text = f", masked l1 {emphasis}{error:.2f}{emphasis} of 255"
    if gain is None or not _is_number(gain):
        return text
    better = "better" if gain >= 0 else "worse"
    return f"{text}, {abs(gain):.0%} {better} than the mean color ({metrics['eval_mean_color_l1']:.1f})".replace(
        "%", " %"
    )


def _is_number(value: float | None) -> bool:
    """Whether a metric was measured and is not NaN."""
    return value is not None and value == value


def _prediction_table(model: Any) -> Table:
    """Describe target, prediction head and loss."""
    config = model.config

    def described(component: str) -> str:
        options = {
            key: value
            for key, value in getattr(config, f"{component}_options").items()
            if value is not None and key not in LONG_OPTIONS
        }
        if "model" in options:
            # It may be the path of a folder.
            options["model"] = hub_id(options["model"]) or last_part(options["model"])
        if component == "target" and config.target == "color_clusters":
            options["clusters"] = len(config.target_options["centers"])
        detail = ", ".join(f"{key} {listed(value)}" for key, value in options.items())
        return f"`{getattr(config, component)}`" + (f" ({detail})" if detail else "")

    stride = model.target.stride
    return {
        "target": f"{described('target')} of {'every pixel' if stride == 1 else f'every {stride} x {stride} px'}",
        "prediction head": described("head"),
        "encoder sees": _seen(model),
        "loss": f"{described('loss')} on {config.loss_region} pixels",
    }


def _seen(model: Any) -> str | None:
    """What of masked images the encoder sees; None for the paper's way."""
    if model.config.encode == "all":
        return None
    layers, size = counted(len(model.decoder.layers), "layer"), model.decoder.hidden_size
    method = "GreenMIM" if model.config.encoder_config.model_type in WINDOWED_ENCODERS else "MAE"
    return f"visible patches only, as in {method}; a decoder of {layers} and {size} channels predicts the others"


def _masking_table(trainer: Any) -> Table:
    dataset = trainer.train_dataset
    side = dataset.unit_size * dataset.patch_size
    return {
        "masks": f"`{trainer.processing_class.mask_strategy}`, mask ratio {span(dataset.mask_ratio)}:"
        f" {span(dataset.num_masked_units)} of {dataset.num_units} mask patches of {side} px",
        "AvgDist of the masks": f"{average_mask_distance(dataset):.3g} px: the mean distance of masked pixels from the"
        " nearest visible pixel",
    }


def _data_table(trainer: Any) -> Table:
    dataset = trainer.train_dataset
    unreadable, skipped = len(trainer.unreadable_images.reasons), len(trainer.skipped_steps.steps)
    return {
        "validation images": held_out_images(trainer),
        "unreadable": f"{counted(unreadable, 'image')}, each replaced by another at random" if unreadable else None,
        "skipped steps": f"{skipped}, whose loss or a gradient was not finite" if skipped else None,
        **augmentation_table(dataset.crop_scale, dataset.flip, dataset.vertical_flip),
        **pixels_table(trainer.processing_class),
    }


def _results(trainer: Any) -> Table:
    log = trainer.state.log_history
    training, evaluation = last_entry(log, "loss"), last_entry(log, "eval_loss")
    table: Table = {}
    if training is not None:
        error = training.get("masked_l1")
        pixels = f", masked l1 {error:.2f} of 255" if _is_number(error) else ""
        table["training loss"] = f"{training['loss']:.4g}{pixels}, up to step {training['step']:,}"
    if evaluation is not None:
        when = measured_after(trainer, "eval_loss")
        table["validation loss"] = f"{evaluation['eval_loss']:.4g}{errors_in_words(evaluation, '**')}, {when}"
        for key, name, digits in (("eval_train_masked_l1", "masked l1", ".2f"), ("eval_train_loss", "loss", ".4g")):
            if _is_number(evaluation.get(key)):
                table["training images, evaluated the same way"] = f"{name} {evaluation[key]:{digits}}, {when}"
        if _is_number(evaluation.get("eval_rankme")):
            size = trainer.model.config.hidden_size
            table["RankMe"] = f"{evaluation['eval_rankme']:.1f} of {size} feature dimensions, {when}"
    drift = last_entry(log, "drift_knn_agreement")
    if drift is not None:
        when = measured_after(trainer, "drift_knn_agreement")
        table["nearest neighbors as with the first weights"] = f"{drift['drift_knn_agreement']:.1%}, {when}"
    for key, name in PROBE_FIGURES.items():
        last = last_entry(log, key)
        if last is None:
            continue
        first = next((entry for entry in log if key in entry and entry["step"] == 0), None)
        before = f", before training {first[key]:.1%}" if first is not None and last is not first else ""
        table[f"{name}, accuracy"] = f"**{last[key]:.1%}** {measured_after(trainer, key)}{before}"
    return table


def _results_intro(trainer: Any) -> str:
    """Explain the metrics."""
    table = _results(trainer)
    parts = []
    if any("masked l1" in str(text) for text in table.values()):
        parts.append("Masked l1 is the mean absolute error of masked pixels on a scale of 0 to 255.")
        if "mean color" in str(table.get("validation loss")):
            parts.append("The mean color is that of the visible pixels of each image, painted over the masked ones.")
        if trainer.model.target.decode_uses:
            parts.append(f"Predictions are decoded with the {trainer.model.target.decode_uses} of the original.")
            if "mean color" in str(table.get("validation loss")):
                parts.append("The mean color is not.")
    if "gradient error" in str(table.get("validation loss")):
        parts.append(
            "The gradient error is the mean length of the difference between predicted and true histograms of masked"
            " cells: 0 is exact, 1 what predicting nothing gets. It says little of how useful the features are."
        )
    if "training images, evaluated the same way" in table:
        parts.append(
            "The training images of that row are whole, with fixed masks like those of the validation images: the"
            " difference shows overfitting."
        )
    if "RankMe" in table:
        parts.append(
            "RankMe (arXiv 2210.02885) is the effective rank of the pooled features of validation images, measured"
            " without labels."
        )
    if any("loss" in title for title in table):
        parts.append(
            "Losses are comparable only between runs with the same images, masks and target; they do not measure how"
            " useful the features are for a task."
        )
    callback = next((part for part in trainer.callback_handler.callbacks if isinstance(part, ProbeCallback)), None)
    if callback is not None and any("accuracy" in title for title in table):
        train, test = (len(part.labels) for part in callback.parts)
        source = trainer.origin.evaluation
        named = f" ({source})" if source is not None else ""
        chosen = ", chosen on a part of the training images" if len(callback.pairs) > 1 else ""
        parts.append(
            f"The probes classify frozen features ({name_pair(callback.chosen)}{chosen}) into {callback.num_classes}"
            f" classes: trained on {train:,} labeled images, tested on {test:,} others{named}. Chance level is"
            f" {1 / callback.num_classes:.1%} for balanced classes; k-NN uses {callback.k} neighbors. Labels are never"
            " used for training the encoder."
        )
    return " ".join(parts)


def _reconstruction(trainer: Any) -> dict[str, str] | None:
    kind = kind_of(trainer.model.target) if trainer.eval_dataset is not None else None
    if kind is None or not (Path(str(trainer.args.output_dir)) / "reconstruction.png").exists():
        return None
    columns = [kind.titles.get(column, column) for column in kind.usual_columns]
    meanings = [f"{name} ({COLUMN_MEANINGS[name]})" for name in columns]
    evaluation = last_entry(trainer.state.log_history, "eval_loss")
    when = f" {measured_after(trainer, 'eval_loss')}" if evaluation is not None else ""
    decode_uses = trainer.model.target.decode_uses
    helped = (
        f" Predictions are decoded with the {decode_uses} of the original and look better for it."
        if decode_uses
        else ""
    )
    return {
        "alt": " | ".join(columns),
        "caption": f"Validation images{when}, from left to right: {', '.join(meanings)}.{helped}",
    }


def _pictures(output_dir: Path) -> list[dict[str, str]]:
    pictures = [
        (
            "probe.png",
            "accuracy of the probes over steps",
            "Accuracy of k-NN and a linear probe on frozen features during pre-training, with 95 % intervals.",
        ),
        (
            "spectrum.png",
            "RankMe over steps, and the singular values of the features",
            "RankMe during pre-training, and the singular values of the features of validation images.",
        ),
        (
            "loss_curve.png",
            "loss over steps",
            "Losses (validation with fixed masks), learning rate, and masked l1 if the target has pixels.",
        ),
    ]
    return [
        {"file": file, "alt": alt, "caption": caption}
        for file, alt, caption in pictures
        if (output_dir / file).exists()
    ]
