"""The model card of a converted checkpoint: where it came from, and what is in it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import ModelCard

from .card_rendering import card_metadata, citations, place, render_card
from .card_tables import encoder_table, family, millions
from .card_training import versions_table
from .citations import MMPRETRAIN

if TYPE_CHECKING:
    from .conversion import Conversion


def conversion_card(conversion: "Conversion", output_dir: Path) -> ModelCard:
    """Render the card of a converted checkpoint.

    Args:
        conversion: The checkpoint.
        output_dir: Folder that it will be in.

    Returns:
        The card; `save` writes it.
    """
    model: Any = conversion.model
    config = model.config
    has_head = hasattr(model, "head")
    model_type = config.encoder_config.model_type
    has_mask_token = any(name.endswith("mask_token") for name in model.state_dict())
    title, location = place(None, output_dir)
    return render_card(
        "converted",
        card_metadata(title, ["simmim", *["masked-image-modeling"] * has_head, model_type]),
        title=title,
        location=location,
        auto_class="AutoModel",
        options="" if has_mask_token else ", use_mask_token=False",
        pipeline_options=", pool=True" if has_mask_token else ', model_kwargs={"use_mask_token": False}, pool=True',
        encoder_name=f"A {family(config)} encoder",
        num_parameters=millions(model.base_model.num_parameters()),
        framework=conversion.framework,
        num_channels=config.num_channels,
        hidden_size=config.hidden_size,
        image_height=config.image_size[0],
        image_width=config.image_size[1],
        has_head=has_head,
        model_rows=encoder_table(config, model),
        report=conversion.report,
        versions=versions_table(),
        # The method if it is in the weights, and the code that wrote the file if it is not its own.
        citations=citations(config, with_simmim=has_head or model_type == "beit")
        + [MMPRETRAIN] * ("mmpretrain" in conversion.framework),
    )
