"""From facts to a model card: the one template, and the metadata that the Hub takes."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers.utils import logging

from .citations import ARCHITECTURES, SIMMIM
from .data import describe
from .provenance import ImageSource, last_part, shown_path

logger = logging.get_logger(__name__)

MAX_LISTED_CLASSES = 50


def template_path() -> Path:
    """Where the template is: in the installed package, or at the top of a checkout."""
    package = Path(__file__).parent
    installed = package / "model_card_template.md"
    return installed if installed.exists() else package.parents[1] / "model_card_template.md"


def render_card(kind: str, card_data: ModelCardData, **values: Any) -> ModelCard:
    """Fill the template in.

    Args:
        kind: "pretrained", "converted", "classifier" or "segmentation".
        card_data: The metadata.
        **values: What the template asks for; what a kind does not have may be left out.

    Returns:
        The card, without empty rows and double blank lines; `save` writes it.
    """
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    environment.filters |= {"cell": _cell, "line": _line}
    template = environment.from_string(template_path().read_text(encoding="utf-8"))
    text = template.render(kind=kind, card_data=card_data.to_yaml(), license=card_data.license, **values)
    return ModelCard(re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n")


def card_metadata(
    title: str,
    tags: Sequence[str],
    pipeline_tag: str = "image-feature-extraction",
    images: ImageSource | None = None,
    base_model: str | None = None,
    weights_license: str | None = None,
    eval_results: Sequence[EvalResult] = (),
    **others: Any,
) -> ModelCardData:
    """The metadata of a card; what is not known is left out.

    Args:
        title: Name of the model.
        tags: Of the model.
        pipeline_tag: Its task.
        images: What it was trained on.
        base_model: Name on the Hub of the model that it started from.
        weights_license: Of the weights, as the Hub names it.
        eval_results: What was measured.
        **others: More entries.

    Returns:
        The metadata.
    """
    return ModelCardData(
        library_name="transformers",
        pipeline_tag=pipeline_tag,
        license=weights_license,
        license_name=weights_license if weights_license == "other" else None,
        tags=list(tags),
        base_model=base_model,
        datasets=[images.hub_id] if images is not None and images.hub_id else None,
        # It is no entry of its own; it names the results.
        model_name=title if eval_results else None,
        eval_results=list(eval_results) or None,
        **{key: value for key, value in others.items() if value is not None},
    )


def check_license(arguments: Any) -> None:
    """Ask the Hub about the licence that its pushes are going to state, before any work is lost.

    Args:
        arguments: `ReleasedTrainingArguments`.

    Raises:
        ValueError: If the Hub is there and does not know it.
    """
    if not arguments.push_to_hub or arguments.hub_license is None:
        return
    try:
        ModelCard(f"---\n{card_metadata('', [], weights_license=arguments.hub_license).to_yaml()}\n---\n").validate()
    except ValueError as error:
        message = str(error).strip()
        raise ValueError(
            f"hub_license={arguments.hub_license!r} is refused by the Hub, and with it every push: {message}"
        ) from error
    except Exception as error:  # each client has its own kinds
        logger.warning(f"The Hub was not asked about hub_license={arguments.hub_license!r} ({describe(error)}).")


def result_entry(
    source: ImageSource, name: str, value: float, metric: str = "accuracy", task: str = "image-classification"
) -> EvalResult:
    """An entry of the model index: a figure of a task on a data set."""
    return EvalResult(
        task_type=task,
        task_name=task.replace("-", " ").capitalize(),
        dataset_type=source.hub_id or source.kind,
        dataset_name=source.name,
        dataset_config=source.config,
        dataset_split=source.split,
        metric_type=metric,
        metric_name=name,
        metric_value=round(float(value), 4),
    )


def citations(config: Any, with_simmim: bool = True) -> list[str]:
    """What to cite: the method, and the architecture where it is of the paper."""
    architecture = ARCHITECTURES.get(config.encoder_config.model_type)
    return [SIMMIM] * with_simmim + ([architecture] if architecture else [])


def listed_classes(names: Sequence[str]) -> str:
    """Names of classes, as many as one reads."""
    more = len(names) - MAX_LISTED_CLASSES
    return ", ".join(names[:MAX_LISTED_CLASSES]) + (f", and {more:,} more in `config.json`" if more > 0 else "")


def place(hub_model_id: str | None, output_dir: str | Path) -> tuple[str, str]:
    """Title of a model, and the text in Python code that it is loaded by: on the Hub, or in a folder."""
    if hub_model_id:
        return hub_model_id.split("/")[-1], json.dumps(hub_model_id)
    absolute = Path(output_dir).resolve()
    title = last_part(absolute if last_part(output_dir) == "images" else output_dir)
    return title, json.dumps(shown_path(output_dir), ensure_ascii=False)


def _line(text: Any) -> str:
    """Text for a paragraph: one line, and no HTML."""
    return " ".join(str(text).split()).replace("<", "&lt;")


def _cell(text: Any) -> str:
    """Text for a cell of a table, which ends at a bar."""
    return _line(text).replace("|", "\\|")
