"""timm's models as encoders, through transformers' wrapper; `make test-torchvision` runs this where timm can be."""

import pytest
import torch
from tiny import batch
from transformers import AutoModel, TimmWrapperConfig

from hf_simmim import SimMIMConfig, SimMIMForMaskedImageModeling, SimMIMModel
from hf_simmim.model.masking import to_pixels

pytest.importorskip("timm")

# Name, arguments that make it small, route, stride and prefix tokens.
ARCHITECTURES = [
    ("vit_tiny_patch16_224", {"depth": 2}, "tokens", 16, 1),
    ("vit_small_patch14_reg4_dinov2", {"depth": 1}, "tokens", 14, 5),
    ("swin_tiny_patch4_window7_224", {"depths": [1, 1, 1, 1]}, "tokens", 32, 0),
    ("convnext_atto", {}, "tokens", 32, 0),
    ("resnet18", {}, "pixels", 32, 0),
]


@pytest.mark.parametrize(("architecture", "arguments", "route", "stride", "num_prefix_tokens"), ARCHITECTURES)
@pytest.mark.parametrize("image_size", [224, (224, 448)])
def test_timm_encoders(architecture, arguments, route, stride, num_prefix_tokens, image_size, tmp_path):
    torch.manual_seed(0)
    encoder_config = TimmWrapperConfig(architecture=architecture, model_args=arguments)
    model = SimMIMForMaskedImageModeling(SimMIMConfig(encoder_config=encoder_config, image_size=image_size)).eval()
    geometry = model.simmim.geometry
    assert (geometry.route, geometry.stride, geometry.num_prefix_tokens) == (route, stride, num_prefix_tokens)
    pixel_values, mask = batch(model.config)
    outputs = model(pixel_values, bool_masked_pos=mask)
    outputs.loss.backward()
    hidden = to_pixels(mask, geometry.patch_size, model.config.image_size)[:, None]
    changed = torch.where(hidden, torch.randn_like(pixel_values), pixel_values)
    assert torch.equal(model(changed, bool_masked_pos=mask).reconstruction, outputs.reconstruction)

    model.save_pretrained(tmp_path / "ours")
    loaded, info = SimMIMForMaskedImageModeling.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info.values())
    with torch.no_grad():
        assert torch.allclose(loaded(pixel_values).reconstruction, model(pixel_values).reconstruction, atol=1e-5)
        model.export_encoder(tmp_path / "stock")
        assert AutoModel.from_pretrained(tmp_path / "stock").config.architecture == architecture
        again = SimMIMModel.from_encoder(tmp_path / "stock", image_size=image_size)
        feature_map = model.simmim(pixel_values).feature_map
        assert torch.allclose(again(pixel_values).feature_map, feature_map, atol=1e-5)
    if architecture.startswith("swin"):
        # timm's windows take the shape of the image, which the lengths of tables do not tell.
        with pytest.raises(ValueError, match="no conversion is known. Keep the image size"):
            SimMIMForMaskedImageModeling.from_pretrained(tmp_path / "ours", image_size=(192, 256))
        return
    larger = SimMIMForMaskedImageModeling.from_pretrained(tmp_path / "ours", image_size=(192, 256))
    pixel_values, mask = batch(larger.config)
    assert larger(pixel_values, bool_masked_pos=mask).loss.isfinite()
