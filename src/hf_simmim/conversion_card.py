"""The model card of a converted checkpoint: where it came from, and what is in it."""

import importlib.metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import ModelCard, ModelCardData

if TYPE_CHECKING:
    from .conversion import Conversion

TEMPLATE = """---
{{ card_data }}
---

# {{ model_name }}

{{ encoder_name }} of {{ num_parameters }} M parameters, converted from a checkpoint of
[{{ framework }}](https://github.com/{{ framework }}). The weights are those of that checkpoint.

## How to load it

```python
import hf_simmim  # pip install hf-simmim
from transformers import AutoImageProcessor, AutoModel

processor = AutoImageProcessor.from_pretrained("{{ location }}")
model = AutoModel.from_pretrained("{{ location }}"{{ options }})
features = model(**processor(image, return_tensors="pt")).pooler_output  # (1, {{ hidden_size }})
```
{% if has_head %}
`AutoModelForMaskedImageModeling.from_pretrained` loads it with its prediction head.
{% endif %}
## Where it came from

| | |
| --- | --- |
{%- for title, text in report.items() %}
| {{ title }} | {{ text }} |
{%- endfor %}

Converted with hf-simmim {{ version }}.

## Licence

The weights keep the licence of the file they came from, which the file does not state. Check it before you pass them
on, and write it into the metadata above.

## Citation
{% for citation in citations %}
```bibtex
{{ citation }}
```
{% endfor -%}
"""

SIMMIM = """@inproceedings{xie2021simmim,
  title={SimMIM: A Simple Framework for Masked Image Modeling},
  author={Xie, Zhenda and Zhang, Zheng and Cao, Yue and Lin, Yutong and Bao, Jianmin and Yao, Zhuliang and Dai, Qi
    and Hu, Han},
  booktitle={International Conference on Computer Vision and Pattern Recognition (CVPR)},
  year={2022}
}"""
SWIN = """@inproceedings{liu2021swin,
  title={Swin Transformer: Hierarchical Vision Transformer using Shifted Windows},
  author={Liu, Ze and Lin, Yutong and Cao, Yue and Hu, Han and Wei, Yixuan and Zhang, Zheng and Lin, Stephen
    and Guo, Baining},
  booktitle={IEEE/CVF International Conference on Computer Vision (ICCV)},
  year={2021}
}"""
SWINV2 = """@inproceedings{liu2021swinv2,
  title={Swin Transformer V2: Scaling Up Capacity and Resolution},
  author={Liu, Ze and Hu, Han and Lin, Yutong and Yao, Zhuliang and Xie, Zhenda and Wei, Yixuan and Ning, Jia
    and Cao, Yue and Zhang, Zheng and Dong, Li and Wei, Furu and Guo, Baining},
  booktitle={International Conference on Computer Vision and Pattern Recognition (CVPR)},
  year={2022}
}"""
MMPRETRAIN_CITATION = """@misc{2023mmpretrain,
  title={OpenMMLab's Pre-training Toolbox and Benchmark},
  author={MMPreTrain Contributors},
  howpublished={\\url{https://github.com/open-mmlab/mmpretrain}},
  year={2023}
}"""


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
    encoder_name = {"swin": "A Swin", "swinv2": "A SwinV2", "beit": "A ViT (BEiT)"}[config.encoder_config.model_type]
    has_mask_token = any(name.endswith("mask_token") for name in model.state_dict())
    # Cells of a table end at a bar, and file names can hold one.
    report = {title: text.replace("|", "\\|").replace("\n", " ") for title, text in conversion.report.items()}
    card_data = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-feature-extraction",
        tags=["simmim", *["masked-image-modeling"] * has_head, config.encoder_config.model_type],
    )
    return ModelCard.from_template(
        card_data,
        template_str=TEMPLATE,
        model_name=output_dir.resolve().name,
        location=output_dir,
        options="" if has_mask_token else ", use_mask_token=False",
        encoder_name=f"{encoder_name} encoder",
        num_parameters=f"{model.base_model.num_parameters() / 1e6:.1f}",
        framework=conversion.framework,
        hidden_size=config.hidden_size,
        has_head=has_head,
        report=report,
        citations=_citations(conversion),
        version=importlib.metadata.version("hf-simmim"),
    )


def _citations(conversion: "Conversion") -> list[str]:
    """The method if it is in the weights, the architecture, and the code that wrote the file if it is not its own."""
    model_type = conversion.model.config.encoder_config.model_type
    citations = [SIMMIM] if hasattr(conversion.model, "head") or model_type == "beit" else []
    citations += {"swin": [SWIN], "swinv2": [SWINV2]}.get(model_type, [])
    return citations + [MMPRETRAIN_CITATION] * ("mmpretrain" in conversion.framework)
