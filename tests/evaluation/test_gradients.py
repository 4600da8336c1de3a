"""Predicted histograms of gradients: their error, and their pictures."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import swin_config, vit_config

from hf_simmim import SimMIMConfig, SimMIMForMaskedImageModeling, SimMIMImageProcessor
from hf_simmim.evaluation.gradients import MASKED_COLOR, VISIBLE_COLOR, GradientReconstruction
from hf_simmim.evaluation.reconstruction import Reconstructor, reconstruction_of
from hf_simmim.visualization.glyphs import edge_lines


def two_cells(**kwargs) -> GradientReconstruction:
    """Two images of 8 x 16 px, two channels and two cells, the right one masked: bin 4 is true and bin 1 predicted."""
    target, prediction = torch.zeros(2, 18, 1, 2), torch.zeros(2, 18, 1, 2)
    target[:, [4, 9 + 4]] = 1
    prediction[:, [1, 9 + 1]] = 1
    settings = {"pixel_mask": None, "prediction": prediction, "target": target, "num_bins": 9, "cell_size": 8} | kwargs
    mask = torch.tensor([[[False, True]]] * 2)
    images = torch.zeros(2, 2, 8, 16)
    return GradientReconstruction(images, mask, image_mean=[0.5] * 2, image_std=[0.2] * 2, patch_size=8, **settings)


def colored(line: int, color: tuple[int, int, int]) -> np.ndarray:
    """A line of full weight in a color, as cells of 16 px are drawn."""
    return np.sqrt(edge_lines(9, 16)[line])[..., None] * np.array(color)


def test_masked_cells_are_predicted_and_visible_ones_true():
    result = two_cells()
    for column, right in (("prediction", 1), ("target", 4)):
        pictures = result.pictures(column)
        assert (pictures.dtype, pictures.shape) == (np.uint8, (2, 16, 32, 3))
        assert np.abs(pictures[0, :, :16] - colored(4, VISIBLE_COLOR)).max() <= 1.5
        assert np.abs(pictures[0, :, 16:] - colored(right, MASKED_COLOR)).max() <= 1.5
    # A model that is trained on all cells is shown on all.
    everywhere = two_cells(loss_region="all").pictures("prediction")
    assert np.abs(everywhere[0, :, :16] - colored(1, MASKED_COLOR)).max() <= 1.5
    assert [result.pictures(column).shape for column in ("original", "masked", "error")] == [(2, 8, 16, 3)] * 3
    with pytest.raises(ValueError, match="column='composite' is unknown. Use one of: original, masked, prediction, ta"):
        result.pictures("composite")


def test_the_error_is_the_length_of_the_difference():
    """0 for exact predictions, 1 for none, the root of 2 for another direction; visible cells do not count."""
    target = two_cells().target
    for prediction, error in ((target, 0), (0 * target, 1), (two_cells().prediction, 2**0.5), (0.5 * target, 0.5)):
        prediction = prediction.clone()
        prediction[..., 0] = 7
        result = two_cells(prediction=prediction)
        assert result.gradient_error.tolist() == pytest.approx([error] * 2)
        assert result.figures_per_image()[0][1].tolist() == [64, 64]
    # Of one channel of two.
    prediction = target.clone()
    prediction[:, 9:] = 0
    assert two_cells(prediction=prediction).masked_error.tolist() == pytest.approx([0.5] * 2)


def test_the_error_map_is_of_masked_cells():
    from matplotlib import colormaps

    target = two_cells().target
    picture = two_cells(prediction=0.5 * target).pictures("error")[0]
    assert np.abs(picture[:, 8:] - 255 * np.array(colormaps["magma"](0.5)[:3])).max() <= 2
    assert picture[:, :8].min() > 200


def test_cells_with_missing_pixels_do_not_count_and_are_white():
    pixel_mask = torch.ones(2, 8, 16, dtype=torch.bool)
    pixel_mask[0, :, 14:] = False
    result = two_cells(pixel_mask=pixel_mask)
    assert result.gradient_error.isnan().tolist() == [True, False]
    assert (result.pictures("prediction")[0, :, 28:] == 255).all()
    assert (result.pictures("prediction")[0, :, :28] < 255).any(axis=2).all()
    joined = GradientReconstruction.join([two_cells(), result]).take([2, 0])
    assert joined.gradient_error.isnan().tolist() == [True, False]
    assert joined.target.shape == (2, 18, 1, 2)


def save(folder, **settings) -> str:
    """A checkpoint of gradients with its processor."""
    torch.manual_seed(0)
    config = SimMIMConfig(target="hog", **settings)
    SimMIMForMaskedImageModeling(config).save_pretrained(folder)
    height, width = config.image_size
    statistics = {"image_mean": [0.5] * config.num_channels, "image_std": [0.25] * config.num_channels}
    processor = SimMIMImageProcessor(size={"height": height, "width": width}, mask_patch_size=8, **statistics)
    processor.model_patch_size = config.patch_size
    processor.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("cell_size", [4, 8])
def test_reconstructor_does_what_processor_and_model_do(tmp_path, cell_size):
    """Patches of 2 px, so that cells hold many of them; of an image that no cell divides."""
    config = swin_config(image_size=[36, 52])
    folder = save(tmp_path, encoder_config=config, target_options={"cell_size": cell_size, "num_bins": 6})
    reconstructor = Reconstructor(folder, device="cpu")
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 255, (36, 52, 3), np.uint8))
    result = reconstructor([photo] * 2, mask_ratio=0.5, mask_patch_size=8)
    assert isinstance(result, GradientReconstruction)
    model = reconstructor.model
    with torch.no_grad():
        outputs = model(result.pixel_values, bool_masked_pos=result.bool_masked_pos)
    assert torch.allclose(result.prediction, outputs.prediction, atol=1e-5)
    assert torch.equal(result.target, model.target(result.pixel_values))
    # As the loss weighs them.
    target, prediction = (values.unflatten(1, (3, 6)) for values in (result.target, result.prediction))
    squares = (prediction - target).square().sum(dim=2).mean(dim=1)
    hidden = result.hidden.float()
    weights = torch.nn.functional.avg_pool2d(hidden, cell_size, ceil_mode=True, divisor_override=1)
    expected = ((prediction - target).norm(dim=2).mean(dim=1) * weights).flatten(1).sum(1) / hidden.flatten(1).sum(1)
    assert torch.allclose(result.gradient_error, expected, atol=1e-5)
    loss = (squares * weights).sum() / hidden.sum() / 6
    assert outputs.loss.item() == pytest.approx(loss.item(), 1e-4)
    zoom = 16 // cell_size
    assert result.pictures("target").shape == (2, 36 * zoom, 52 * zoom, 3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_predictions_of_half_precision_are_drawn(tmp_path, dtype):
    reconstructor = Reconstructor(save(tmp_path, encoder_config=vit_config()), device="cpu")
    result = reconstructor(Image.new("RGB", (32, 32), "red"))
    outputs = {"prediction": result.prediction.to(dtype)}
    images = (result.pixel_values.to(dtype), result.bool_masked_pos, None)
    half = reconstruction_of(reconstructor.model, outputs, *images, reconstructor.processor)
    assert half.pictures("prediction").shape == (1, 64, 64, 3)
    assert torch.allclose(half.gradient_error, result.gradient_error, atol=0.02)
