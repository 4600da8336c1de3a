"""What a checkpoint predicts of hidden patches, and the figures and pictures of it."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import VIT_SIZES, beit_config, swin_config, vit_config
from transformers import ViTConfig, ViTModel

from hf_simmim import (
    SimMIMConfig,
    SimMIMForImageClassification,
    SimMIMForMaskedImageModeling,
    SimMIMImageProcessor,
    SimMIMModel,
)
from hf_simmim.evaluation.reconstruction import Reconstruction, Reconstructor, mask_from_painting
from hf_simmim.model.masking import average_distance
from hf_simmim.visualization.pictures import MASK_GRAY


def photo(seed: int = 0, height: int = 50, width: int = 40) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8))


def save(folder, config: SimMIMConfig, model_class=SimMIMForMaskedImageModeling, **settings):
    """A checkpoint with its processor."""
    torch.manual_seed(0)
    model_class(config).save_pretrained(folder)
    height, width = config.image_size
    settings = {"mask_patch_size": 8, "model_patch_size": config.patch_size, "mask_ratio": 0.5} | settings
    SimMIMImageProcessor(size={"height": height, "width": width}, **settings).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Of rectangular images with patches of 2 px."""
    config = SimMIMConfig(encoder_config=swin_config(image_size=[32, 48]))
    return save(tmp_path_factory.mktemp("checkpoint"), config, image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.3, 0.4])


@pytest.fixture(scope="module")
def reconstructor(checkpoint):
    """That checkpoint, on the CPU."""
    return Reconstructor(checkpoint, device="cpu")


def half_hidden(**kwargs) -> Reconstruction:
    """Two images of 4 x 8 px with four channels: zeros, of which the right half is hidden and predicted as ones."""
    mask = torch.tensor([[[False, True]], [[False, True]]])
    settings = {"pixel_mask": None, "image_mean": [0.5, 0.25, 0.0, 0.9], "image_std": [0.1, 0.2, 0.4, 0.3]} | kwargs
    images = torch.zeros(2, 4, 4, 8)
    return Reconstruction(images, mask, prediction=torch.ones_like(images), patch_size=4, **settings)


def test_pictures_show_what_is_hidden_and_what_is_predicted():
    reconstruction = half_hidden()
    original, predicted = [128, 64, 0], [153, 115, 102]
    # The mean of the channels, half as far from white.
    pale = [int(255 - (255 - (153 + 115 + 102) / 3) / 2)] * 3
    for column, left, right in (
        ("original", original, original),
        ("masked", original, [MASK_GRAY] * 3),
        ("prediction", pale, predicted),
        ("composite", original, predicted),
    ):
        pictures = reconstruction.pictures(column)
        assert (pictures.dtype, pictures.shape) == (np.uint8, (2, 4, 8, 3))
        assert (pictures[:, :, :4] == left).all()
        assert (pictures[:, :, 4:] == right).all()
    # A model that is trained on all pixels is shown on all.
    everywhere = Reconstruction(**{**vars(reconstruction), "loss_region": "all"})
    assert (everywhere.pictures("prediction") == predicted).all()


def test_error_map_is_of_hidden_pixels():
    """The mean over all channels, also over those that no picture shows; visible pixels are pale."""
    from matplotlib import colormaps

    picture = half_hidden().pictures("error")[0]
    error = 255 * (0.1 + 0.2 + 0.4 + 0.3) / 4
    assert np.abs(picture[:, 4:] - 255 * np.array(colormaps["magma"](error / 128)[:3])).max() <= 2
    assert picture[:, :4].min() > 200
    assert (picture[:, :4] == picture[:, :4, :1]).all()


def test_figures_of_each_image():
    reconstruction = half_hidden()
    assert reconstruction.masked_l1.tolist() == pytest.approx([255 * 0.25] * 2)
    assert reconstruction.average_distance.tolist() == pytest.approx([2.5] * 2)
    mask = torch.tensor([[[True, True]], [[False, False]]])
    reconstruction = Reconstruction(**{**vars(reconstruction), "bool_masked_pos": mask})
    assert reconstruction.masked_l1.isnan().tolist() == [False, True]
    assert torch.equal(reconstruction.average_distance.nan_to_num(-1), torch.tensor([-1.0, 0.0]))


def test_pixels_that_are_none_are_white_and_do_not_count():
    pixel_mask = torch.ones(2, 4, 8, dtype=torch.bool)
    pixel_mask[0, :, 6:] = False
    reconstruction = half_hidden(pixel_mask=pixel_mask)
    for column in Reconstruction.columns:
        assert (reconstruction.pictures(column)[0, :, 6:] == 255).all()
        assert (reconstruction.pictures(column)[1, :, 6:] != 255).any()
    reconstruction.prediction[0, :, :, 6:] = 100
    assert reconstruction.masked_l1.tolist() == pytest.approx([255 * 0.25] * 2)


def test_batches_join_and_images_are_taken():
    pixel_mask = torch.ones(2, 4, 8, dtype=torch.bool)
    pixel_mask[1, 0, 0] = False
    parts = [half_hidden(), half_hidden(pixel_mask=pixel_mask)]
    parts[1].prediction.mul_(3)
    taken = Reconstruction.join(parts).take([3, 0])
    assert taken.masked_l1.tolist() == pytest.approx([3 * 255 * 0.25, 255 * 0.25])
    assert taken.pixel_mask is not None
    assert taken.pixel_mask.logical_not().nonzero().tolist() == [[0, 0, 0]]
    assert Reconstruction.join(parts[:1]).take([1]).pixel_mask is None


def test_unknown_column_is_refused():
    with pytest.raises(ValueError, match="column='reconstruction' is unknown. Use one of: original"):
        half_hidden().pictures("reconstruction")


def test_reconstructor_does_what_processor_and_model_do(reconstructor, checkpoint):
    result = reconstructor([photo(0), photo(1, 30, 90)], seed=3)
    processor = SimMIMImageProcessor.from_pretrained(checkpoint)
    model = SimMIMForMaskedImageModeling.from_pretrained(checkpoint)
    for index, image in enumerate((photo(0), photo(1, 30, 90))):
        inputs = processor(image, do_mask=True, seed=3 + index, return_tensors="pt")
        with torch.no_grad():
            outputs = model(**inputs)
        assert torch.equal(result.pixel_values[index], inputs["pixel_values"][0])
        assert torch.equal(result.bool_masked_pos[index].flatten(), inputs["bool_masked_pos"][0])
        assert torch.allclose(result.prediction[index], outputs.reconstruction[0], atol=1e-5)
        hidden = result.hidden[index]
        pixels, predicted = (
            (values[index].permute(1, 2, 0) * torch.tensor([0.2, 0.3, 0.4]) + torch.tensor([0.5, 0.4, 0.3])) * 255
            for values in (result.pixel_values, result.prediction)
        )
        assert result.masked_l1[index].item() == pytest.approx((pixels - predicted).abs()[hidden].mean().item(), 1e-4)
    assert result.bool_masked_pos.flatten(1).sum(1).tolist() == [12 * 16] * 2
    assert torch.equal(result.average_distance, average_distance(result.bool_masked_pos, 2))
    assert not torch.equal(*result.bool_masked_pos)


def test_batches_make_no_difference(reconstructor):
    images = [photo(seed) for seed in range(3)]
    together = reconstructor(images, seed=5)
    last = reconstructor(images[2:], seed=7)
    assert torch.equal(together.bool_masked_pos[2], last.bool_masked_pos[0])
    assert torch.allclose(together.prediction[2], last.prediction[0], atol=1e-5)


def test_any_mask(reconstructor, tmp_path):
    photo().save(tmp_path / "photo.png")
    result = reconstructor(tmp_path / "photo.png", mask_strategy="central_square", mask_ratio=0.25, mask_patch_size=2)
    rows, columns = result.bool_masked_pos[0].nonzero(as_tuple=True)
    assert len(rows) == 0.25 * 16 * 24
    assert (rows.float().mean().item(), columns.float().mean().item()) == pytest.approx((7.5, 11.5), abs=1)
    painted = torch.zeros(16, 24, dtype=torch.bool)
    painted[3, 5] = True
    for mask in (painted, painted[None].expand(2, -1, -1), painted.numpy()):
        result = reconstructor([photo()] * 2, bool_masked_pos=mask)
        assert torch.equal(result.bool_masked_pos, painted.expand(2, -1, -1))


def test_settings_that_do_not_fit_are_refused(reconstructor):
    for settings, message in (
        ({"mask_ratio": 1.5}, "mask_ratio=1.5 is outside"),
        ({"mask_strategy": "stripes"}, "mask_strategy='stripes' is unknown"),
        ({"mask_patch_size": 3}, "mask_patch_size=3 px is not a multiple"),
        ({"bool_masked_pos": torch.ones(4, 4)}, "bool_masked_pos has shape"),
    ):
        with pytest.raises(ValueError, match=message):
            reconstructor(photo(), **settings)
    with pytest.raises(ValueError, match="no images"):
        reconstructor([])


def test_another_image_size_and_channels(tmp_path):
    config = SimMIMConfig(encoder_config=beit_config(num_channels=4))
    folder = save(tmp_path, config, image_mean=[0.5] * 4, image_std=[0.2] * 4)
    reconstructor = Reconstructor(folder, image_size=(40, 64))
    assert (reconstructor.image_size, reconstructor.grid_size, reconstructor.patch_size) == ((40, 64), (5, 8), 8)
    image = np.random.default_rng(0).integers(0, 255, (20, 30, 4)).astype(np.float32)
    image[:10, :, 0] = np.nan
    result = reconstructor([np.nan_to_num(image), image])
    assert result.prediction.shape == (2, 4, 40, 64)
    # Resizing spreads what is missing.
    assert result.pixel_mask.float().mean(dim=(1, 2)).tolist() == pytest.approx([1, 0.45], abs=0.06)
    assert not result.bool_masked_pos[1, :2].any()
    assert result.bool_masked_pos[0, :2].any()
    assert result.pictures("composite").shape == (2, 40, 64, 3)


def test_a_target_of_its_own_space_is_decoded(tmp_path):
    folder = save(tmp_path, SimMIMConfig(encoder_config=vit_config(), target="normalized_rgb"))
    reconstructor = Reconstructor(folder, device="cpu")
    result = reconstructor(photo())
    with torch.no_grad():
        outputs = reconstructor.model(result.pixel_values, bool_masked_pos=result.bool_masked_pos)
    decoded = reconstructor.model.target.decode(outputs.prediction, result.pixel_values)
    assert torch.allclose(result.prediction, decoded, atol=1e-5)
    assert not torch.allclose(decoded, outputs.prediction, atol=0.1)


def test_what_cannot_be_shown_is_refused(tmp_path):
    config = SimMIMConfig(encoder_config=vit_config())
    with pytest.raises(ValueError, match="neither the folder of a model nor a model on the Hub"):
        Reconstructor(tmp_path / "nothing")
    for name, model_class in (("classifier", SimMIMForImageClassification), ("encoder", SimMIMModel)):
        with pytest.raises(ValueError, match="no prediction head .*Name a pre-training checkpoint"):
            Reconstructor(save(tmp_path / name, config, model_class))
    ViTModel(ViTConfig(**VIT_SIZES)).save_pretrained(tmp_path / "teacher")
    settings = {"target": "features", "target_options": {"model": str(tmp_path / "teacher")}, "prediction_stride": 8}
    with pytest.raises(ValueError, match="predicts 'features', which cannot be drawn.* such as 'rgb' or 'hog'"):
        Reconstructor(save(tmp_path / "features", SimMIMConfig(encoder_config=vit_config(), **settings)))
    (save(tmp_path / "bare", config) / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match="has no image processor"):
        Reconstructor(tmp_path / "bare")


def test_painting_hides_the_patches_that_it_touches():
    painting = np.zeros((100, 60), np.uint8)
    painting[49, 59] = 1
    mask = mask_from_painting(painting, (4, 3))
    assert mask.nonzero().tolist() == [[1, 2]]
    layers = np.zeros((100, 60, 4), np.uint8)
    layers[..., :3] = 255
    layers[..., 3] = painting
    assert torch.equal(mask_from_painting(layers, (4, 3)), mask)
    assert torch.equal(mask_from_painting(torch.tensor(painting)[..., None].expand(-1, -1, 3), (4, 3)), mask)
    with pytest.raises(ValueError, match=r"The painting has shape \(3,\)"):
        mask_from_painting(np.zeros(3), (4, 3))


def test_the_mean_color_is_that_of_visible_real_pixels():
    """By hand: halves of 4 and 8, the right half masked; a missing column counts neither as visible nor as masked."""
    pixel_values = torch.full((3, 2, 4, 8), 4.0)
    pixel_values[..., 4:] = 8
    pixel_values[1, :, :, :2] = 0
    pixel_values[:, 1] *= -1
    mask = torch.tensor([[False, False, True, True]] * 2).expand(3, 2, 4)
    real = torch.ones(3, 4, 8, dtype=torch.bool)
    real[1, :, :2] = False
    real[1, :, 7] = False
    real[2, :, :4] = False
    reconstruction = Reconstruction(
        pixel_values, mask, real, torch.zeros_like(pixel_values), [0.5, 0.5], [0.1, 0.3], patch_size=2
    )
    error, num_pixels = reconstruction.mean_color_error_per_image()
    # Without visible pixels it is the mean of the normalization, 0.
    assert error.tolist() == pytest.approx([4 * 0.2 * 255, 4 * 0.2 * 255, 8 * 0.2 * 255])
    assert num_pixels.tolist() == [16, 12, 16]
    assert reconstruction.mean_color_l1.tolist() == error.tolist()
