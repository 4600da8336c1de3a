"""transformers' pipelines on our checkpoints; `make test-torchvision` runs this with both image processors."""

import numpy as np
import pytest
import torch
from photos import random_photo
from PIL import Image
from tiny import swin_config
from transformers import AutoImageProcessor, pipeline
from transformers.utils import is_torchvision_available

from hf_simmim import (
    SimMIMConfig,
    SimMIMForImageClassification,
    SimMIMForMaskedImageModeling,
    SimMIMImageProcessorPil,
    SimMIMModel,
)
from hf_simmim.model import image_processing_simmim

needs_torchvision = pytest.mark.skipif(not is_torchvision_available(), reason="torchvision is not installed")
SIZE = (32, 48)
CLASSES = {0: "cat", 1: "dog", 2: "eel"}
# Whatever is random in training, so that a model left in training mode is found out.
RANDOM = {"hidden_dropout_prob": 0.3, "drop_path_rate": 0.3, "attention_probs_dropout_prob": 0.3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Folders of a pre-training and of a classifier, and pictures: in color, gray, and of the model's own size."""
    folder = tmp_path_factory.mktemp("pipelines")
    config = SimMIMConfig(encoder_config=swin_config(depths=[2, 1], num_heads=[2, 4], **RANDOM).to_dict())
    config.image_size = SIZE
    torch.manual_seed(0)
    SimMIMForMaskedImageModeling(config).save_pretrained(folder / "pretrained")
    config.id2label = CLASSES
    classifier = SimMIMForImageClassification(config)
    torch.nn.init.normal_(classifier.classifier.weight)
    classifier.save_pretrained(folder / "classifier")
    for name in ("pretrained", "classifier"):
        SimMIMImageProcessorPil(size=SIZE, model_patch_size=2, mask_patch_size=4).save_pretrained(folder / name)
    photo = random_photo(np.random.default_rng(0), (150, 100))
    photo.save(folder / "photo.png")
    photo.convert("L").save(folder / "gray.png")
    random_photo(np.random.default_rng(1), SIZE[::-1]).save(folder / "exact.png")
    return folder


@pytest.fixture(params=["pil", pytest.param("torchvision", marks=needs_torchvision)])
def backend(request):
    return request.param


@pytest.fixture
def no_masks(monkeypatch):
    """Fails where a mask is drawn."""

    def draw(*args, **kwargs):
        raise AssertionError("A mask was drawn.")

    monkeypatch.setattr(
        image_processing_simmim, "MASK_STRATEGIES", dict.fromkeys(image_processing_simmim.MASK_STRATEGIES, draw)
    )


def make_pipeline(task: str, path, backend: str):
    processor = AutoImageProcessor.from_pretrained(path, backend=backend)
    assert processor.backend == backend
    return pipeline(task, model=str(path), image_processor=processor, device="cpu")


def inputs_of(folder) -> list:
    """Pictures, and paths of pictures."""
    names = [folder / name for name in ("photo.png", "gray.png", "exact.png")]
    return [*(Image.open(name) for name in names), *map(str, names)]


@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("checkpoint", ["pretrained", "classifier"])
def test_features_are_those_of_the_model(checkpoint, pool, backend, folder, no_masks):
    extract = make_pipeline("image-feature-extraction", folder / checkpoint, backend)
    model = SimMIMModel.from_pretrained(folder / checkpoint)
    processor = AutoImageProcessor.from_pretrained(folder / checkpoint, backend=backend)
    state = torch.get_rng_state()
    images = inputs_of(folder)
    first = [extract(image, pool=pool, return_tensors=True) for image in images]
    assert torch.equal(torch.get_rng_state(), state)
    again = extract(images, pool=pool, return_tensors=True, batch_size=3)
    with torch.no_grad():
        outputs = [model(**processor(image, return_tensors="pt")) for image in images]
    for feature, repeated, output in zip(first, again, outputs, strict=True):
        expected = output.pooler_output if pool else output.last_hidden_state
        assert feature.shape == ((1, 32) if pool else (1, 96, 32))
        assert torch.equal(feature, expected)
        # A batch is computed in another order than one image.
        torch.testing.assert_close(repeated.view(feature.shape), feature, rtol=1e-4, atol=1e-5)
    # A path is the picture that it leads to.
    assert all(torch.equal(first[index], first[index + 3]) for index in range(3))
    assert torch.equal(extract(images[0], pool=pool, return_tensors=True), first[0])
    assert extract(images[0], pool=pool) == first[0].tolist()


def test_classes_are_those_of_the_model(backend, folder, no_masks):
    classify = make_pipeline("image-classification", folder / "classifier", backend)
    model = SimMIMForImageClassification.from_pretrained(folder / "classifier")
    processor = AutoImageProcessor.from_pretrained(folder / "classifier", backend=backend)
    state = torch.get_rng_state()
    images = inputs_of(folder)
    first = [classify(image) for image in images]
    assert torch.equal(torch.get_rng_state(), state)
    assert classify(images) == first
    assert first[:3] == first[3:]
    assert len({str(scores) for scores in first}) == 3
    for image, scores in zip(images, first, strict=True):
        with torch.no_grad():
            logits = model(**processor(image, return_tensors="pt")).logits[0]
        expected = dict(zip(CLASSES.values(), logits.softmax(0).tolist(), strict=True))
        assert {entry["label"]: entry["score"] for entry in scores} == pytest.approx(expected, abs=1e-6)
    assert classify(images[0], top_k=1) == first[0][:1]
    batched = classify(images[:3], batch_size=3)
    for scores, single in zip(batched, first[:3], strict=True):
        assert [entry["label"] for entry in scores] == [entry["label"] for entry in single]


@needs_torchvision
@pytest.mark.parametrize("pool", [False, True])
def test_backends_give_the_same_features(pool, folder):
    pil, torchvision = (
        make_pipeline("image-feature-extraction", folder / "pretrained", backend) for backend in ("pil", "torchvision")
    )
    for name in ("exact.png", "photo.png", "gray.png"):
        features = [extract(str(folder / name), pool=pool, return_tensors=True) for extract in (pil, torchvision)]
        # Where nothing is resized, the same sums in another order; else an interpolation that rounds in another way.
        tolerance = 1e-5 if name == "exact.png" else 2e-2
        torch.testing.assert_close(*features, rtol=0, atol=tolerance)


@needs_torchvision
def test_backends_give_the_same_classes(folder):
    pil, torchvision = (
        make_pipeline("image-classification", folder / "classifier", backend) for backend in ("pil", "torchvision")
    )
    for name in ("exact.png", "photo.png", "gray.png"):
        ours, theirs = (
            {entry["label"]: entry["score"] for entry in classify(str(folder / name))}
            for classify in (pil, torchvision)
        )
        assert ours == pytest.approx(theirs, abs=1e-5 if name == "exact.png" else 1e-2)
