"""Small models of many encoders, and exported programs run on them."""

import onnxruntime
import torch
from tiny import VIT_SIZES, beit_config, swin_config, swinv2_config, vit_config
from transformers import ConvNextConfig, Dinov2Config, ResNetConfig

from hf_simmim import SimMIMConfig, SimMIMForImageClassification, SimMIMImageProcessorPil

SIZE = (64, 96)
# Windows that shift, that are larger than a stage, and that do not divide it.
ODD_WINDOWS = {"patch_size": 4, "window_size": 12, "embed_dim": 8, "depths": [2, 1], "num_heads": [1, 1]}
ENCODERS = {
    "swin": lambda: swin_config(**ODD_WINDOWS),
    "swinv2": lambda: swinv2_config(**ODD_WINDOWS),
    "vit": lambda: vit_config(num_hidden_layers=1),
    "beit": lambda: beit_config(num_hidden_layers=1),
    "dinov2": lambda: Dinov2Config(**VIT_SIZES),
    "convnext": lambda: ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2),
    "resnet": lambda: ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1]),
}


def make_config(encoder: str, **settings) -> SimMIMConfig:
    config = SimMIMConfig(encoder_config=ENCODERS[encoder]().to_dict(), **settings)
    config.image_size = SIZE
    return config


def shaken(model):
    """Weights as training leaves them: none is zero."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.eval()


def save_classifier(path, encoder: str = "vit"):
    config = make_config(encoder)
    config.id2label = dict(enumerate(("cat", "dog", "eel")))
    model = shaken(SimMIMForImageClassification(config))
    model.save_pretrained(path)
    SimMIMImageProcessorPil(size=SIZE, image_mean=[0.2, 0.4, 0.6]).save_pretrained(path)
    return model


def run_onnx(path, *inputs: torch.Tensor) -> list[torch.Tensor]:
    session = onnxruntime.InferenceSession(path)
    feed = {entry.name: value.numpy() for entry, value in zip(session.get_inputs(), inputs, strict=True)}
    return [torch.from_numpy(output) for output in session.run(None, feed)]
