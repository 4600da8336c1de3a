"""The classifier: its loss, its gradient under an unmodified Trainer, and its place behind every encoder."""

import math
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from golden import golden_model
from one_classifier_step import (
    CLASS_WEIGHTS,
    NUM_IMAGES,
    PROBLEM_TYPES,
    LabeledImages,
    evaluation_loss,
    gradient,
    make_model,
)
from paths import FIXTURES, SUPPORT
from safetensors.torch import load_file
from tiny import ENCODER_CONFIGS, beit_config, swin_config
from transformers import AutoModelForImageClassification, BeitModel

from hf_simmim import SimMIMConfig, SimMIMForImageClassification, SimMIMForMaskedImageModeling, SimMIMModel
from hf_simmim.model.encoder_stages import encoder_layers
from hf_simmim.model.losses import classification_loss


def test_soft_labels_by_hand():
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.5, 0.0]])
    labels = torch.tensor([[0.7, 0.3, 0.0], [0.1, 0.1, 0.8]])
    expected = 0.0
    for scores, shares in zip(logits.tolist(), labels.tolist(), strict=True):
        normalizer = math.log(sum(math.exp(score) for score in scores))
        expected -= sum(share * (score - normalizer) for share, score in zip(shares, scores, strict=True))
    assert classification_loss(logits, labels).item() == pytest.approx(expected / 2, rel=1e-6)
    # One hot is the loss of integers.
    classes = torch.tensor([2, 0])
    one_hot = F.one_hot(classes, 3).float()
    torch.testing.assert_close(classification_loss(logits, one_hot), F.cross_entropy(logits, classes))
    torch.testing.assert_close(classification_loss(logits, classes), F.cross_entropy(logits, classes))


def test_other_problems_are_those_of_torch():
    torch.manual_seed(0)
    logits, labels = torch.randn(4, 3), torch.randint(2, (4, 3))
    several = classification_loss(logits, labels, "multi_label_classification")
    torch.testing.assert_close(several, F.binary_cross_entropy_with_logits(logits, labels.float()))
    numbers = classification_loss(logits, labels.float(), "regression")
    torch.testing.assert_close(numbers, F.mse_loss(logits, labels.float()))
    single = classification_loss(logits[:, :1], labels[:, 0].float())
    torch.testing.assert_close(single, F.mse_loss(logits[:, 0], labels[:, 0].float()))


def test_class_weights():
    torch.manual_seed(0)
    logits, labels, weights = torch.randn(5, 3), torch.tensor([0, 1, 2, 2, -100]), [0.5, 1.0, 2.0]
    each = F.cross_entropy(logits[:4], labels[:4], reduction="none")
    expected = (each * torch.tensor(weights)[labels[:4]]).mean()
    torch.testing.assert_close(classification_loss(logits, labels, class_weights=weights), expected)
    soft = F.one_hot(labels[:4], 3).float()
    torch.testing.assert_close(classification_loss(logits[:4], soft, class_weights=weights), expected)
    whole = [classification_loss(logits, labels, class_weights=numbers) for numbers in ([1, 2, 4], [1.0, 2.0, 4.0])]
    torch.testing.assert_close(*whole)


@pytest.mark.parametrize(
    ("labels", "problem_type", "message"),
    [
        (torch.zeros(2), None, "probabilities"),
        (torch.zeros(2, 3, dtype=torch.long), None, "integers"),
        (torch.zeros(2, dtype=torch.long), "multi_label_classification", "0 or 1 for each class"),
        (torch.tensor([[0, -1, 1], [0, 1, 0]]), "multi_label_classification", "have the value -1, .* from 0 to 1"),
        (torch.tensor([[0, torch.nan, 1]] * 2), "multi_label_classification", "have the value nan"),
        (torch.zeros(2), "regression", "a number for each output"),
        (torch.zeros(2, 3), "classification", "single_label_classification"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels, problem_type, message):
    with pytest.raises(ValueError, match=message):
        classification_loss(torch.zeros(2, 3), labels, problem_type)


@pytest.mark.parametrize("kind", PROBLEM_TYPES)
def test_config_is_left_alone(kind):
    """transformers' own loss writes a problem type into the config, and soft labels become several ones."""
    model = make_model(kind)
    before = model.config.to_dict()
    images = [LabeledImages(kind)[index] for index in range(2, 5)]
    model(**{key: torch.stack([image[key] for image in images]) for key in images[0]}).loss.backward()
    assert model.config.to_dict() == before


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """Gradients and losses of each kind of label, on two processes with two accumulated batches each."""
    path = tmp_path_factory.mktemp("two") / "gradients.pt"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    subprocess.run([*command, str(SUPPORT / "one_classifier_step.py"), str(path)], check=True, capture_output=True)
    return torch.load(path)


def whole_batch_gradient(kind: str) -> dict[str, torch.Tensor]:
    """By torch alone."""
    model = make_model(kind).train()
    images = [LabeledImages(kind)[index] for index in range(NUM_IMAGES)]
    logits = model(torch.stack([image["pixel_values"] for image in images])).logits
    labels = torch.stack([image["labels"] for image in images])
    weights = torch.tensor(CLASS_WEIGHTS)
    if kind == "hard":
        each = F.cross_entropy(logits, labels, weight=weights, reduction="none")
        loss = each.sum() / (labels != -100).sum()
    elif kind == "soft":
        loss = (-labels * weights * logits.log_softmax(1)).sum(1).mean()
    elif kind == "several":
        loss = F.binary_cross_entropy_with_logits(logits, labels, weight=weights)
    else:
        loss = (weights * (logits - labels) ** 2).mean()
    loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("kind", PROBLEM_TYPES)
def test_parts_of_a_batch_give_the_gradient_of_the_whole(kind, two_processes):
    expected = whole_batch_gradient(kind)
    for found in (gradient(kind, 8, 1), gradient(kind, 2, 4), two_processes[kind]):
        error = torch.cat([(found[name] - expected[name]).flatten() for name in expected]).norm()
        assert error < 1e-5 * torch.cat([value.flatten() for value in expected.values()]).norm()


@pytest.mark.parametrize("kind", PROBLEM_TYPES)
def test_two_processes_evaluate_each_image_once(kind, two_processes):
    """Also where the last batch is filled up with images that were there before."""
    model = make_model(kind).eval()
    images = [LabeledImages(kind)[index] for index in range(2, 7)]
    with torch.no_grad():
        expected = model(**{key: torch.stack([image[key] for image in images]) for key in images[0]}).loss.item()
    assert evaluation_loss(kind) == pytest.approx(expected, rel=1e-6)
    assert two_processes[f"{kind} loss"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("encoder", ENCODER_CONFIGS)
def test_every_encoder_learns_to_classify(encoder, tmp_path):
    """Every parameter that is trained gets a gradient, and a saved classifier says the same."""
    config = SimMIMConfig(encoder_config=ENCODER_CONFIGS[encoder](), num_labels=4)
    model = SimMIMForImageClassification(config)
    pixel_values = torch.randn(3, config.num_channels, *config.image_size)
    outputs = model(pixel_values, labels=torch.tensor([0, 3, 1]))
    assert outputs.logits.shape == (3, 4)
    outputs.loss.backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    model.eval().save_pretrained(tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert type(loaded) is SimMIMForImageClassification
    torch.testing.assert_close(loaded(pixel_values).logits, model(pixel_values).logits)


def test_swin_keeps_its_norm_and_the_vit_begins_another():
    swin = SimMIMForImageClassification(SimMIMConfig(encoder_config=swin_config()))
    assert isinstance(swin.norm, torch.nn.Identity)
    config = SimMIMConfig(encoder_config=beit_config(layer_norm_eps=1e-6))
    vit = SimMIMForImageClassification(config.for_fine_tuning())
    assert isinstance(vit.norm, torch.nn.LayerNorm)
    assert vit.norm.eps == 1e-6
    # Near zero, as released.
    assert 0 < vit.classifier.weight.std() < 1e-4 < swin.classifier.weight.std()


def test_from_pretraining_at_another_size_and_window(tmp_path):
    """Equal to the authors' fine-tuning trunk on weights that went through their remap."""
    golden_model("swin").save_pretrained(tmp_path)
    model = SimMIMForImageClassification.from_pretrained(tmp_path, image_size=128, window_size=4, num_labels=5)
    values = load_file(FIXTURES / "swin_finetune_remap.safetensors")
    with torch.no_grad():
        features = model.simmim(values["pixel_values"]).pooler_output
    assert (features - values["pooled_features"]).norm() / values["pooled_features"].norm() < 1e-5
    assert model.classifier.out_features == 5
    assert not any("mask_token" in name for name, _ in model.named_parameters())


@pytest.mark.parametrize("through", [SimMIMForImageClassification, AutoModelForImageClassification])
def test_from_the_papers_vit(tmp_path, through):
    """The shared table goes to every block, and the final norm gives way to a fresh one."""
    golden_model("vit").save_pretrained(tmp_path / "pretrained")
    model, info = through.from_pretrained(
        tmp_path / "pretrained", image_size=96, num_labels=5, output_loading_info=True
    )
    assert set(info["missing_keys"]) == {"norm.weight", "norm.bias", "classifier.weight", "classifier.bias"}
    values = load_file(FIXTURES / "vit_finetune_remap.safetensors")
    with torch.no_grad():
        outputs = model.simmim(values["pixel_values"])
        pooled = model.norm(outputs.pooler_output)
    tokens = values["tokens"][:, 1:]
    assert (outputs.last_hidden_state - tokens).norm() / tokens.norm() < 1e-5
    assert (pooled - values["pooled_features"]).norm() / values["pooled_features"].norm() < 1e-5
    assert not model.config.encoder_config.use_shared_relative_position_bias
    model.save_pretrained(tmp_path / "tuned")
    again = through.from_pretrained(tmp_path / "tuned", image_size=128)
    torch.testing.assert_close(again.norm.weight, model.norm.weight)
    torch.testing.assert_close(again.classifier.weight, model.classifier.weight)


def test_a_classifier_with_another_structure_keeps_it(tmp_path):
    """Only what was pre-trained is turned into what the paper fine-tunes."""
    model = SimMIMForImageClassification(SimMIMConfig(encoder_config=beit_config())).eval()
    model.save_pretrained(tmp_path)
    pixel_values = torch.randn(1, 3, 32, 32)
    loaded = SimMIMForImageClassification.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(pixel_values).logits, model(pixel_values).logits)
    assert loaded.config.encoder_config.use_shared_relative_position_bias


@pytest.mark.parametrize("source", [SimMIMForMaskedImageModeling, SimMIMModel])
def test_weights_of_every_checkpoint_of_ours(tmp_path, source):
    model = source(SimMIMConfig(encoder_config=swin_config()))
    model.save_pretrained(tmp_path)
    loaded, info = SimMIMForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert set(info["missing_keys"]) == {"classifier.weight", "classifier.bias"}
    assert not info["unexpected_keys"]
    for name, weight in loaded.simmim.encoder.state_dict().items():
        torch.testing.assert_close(weight, model.base_model.encoder.state_dict()[name])


def test_stock_weights_too(tmp_path):
    from transformers import SwinModel

    stock = SwinModel(swin_config())
    stock.save_pretrained(tmp_path)
    model = SimMIMForImageClassification.from_encoder(tmp_path, num_labels=4)
    torch.testing.assert_close(model.simmim.encoder.layernorm.weight, stock.layernorm.weight)
    assert model.classifier.out_features == 4


def test_stock_weights_of_the_papers_vit(tmp_path):
    """As from our own checkpoint: the shared table goes to every block, and the norm gives way to a fresh one."""
    stock = BeitModel(beit_config(), add_pooling_layer=False)
    (table,) = (p for name, p in stock.named_parameters() if name.endswith("relative_position_bias_table"))
    torch.nn.init.normal_(table)
    stock.save_pretrained(tmp_path)
    model = SimMIMForImageClassification.from_encoder(tmp_path, num_labels=4)
    tables = [p for name, p in model.named_parameters() if name.endswith("relative_position_bias_table")]
    assert len(tables) == 2
    for own in tables:
        torch.testing.assert_close(own, table)
    assert isinstance(model.norm, torch.nn.LayerNorm)


def test_a_batch_without_labels_has_no_loss():
    logits = torch.randn(2, 3, requires_grad=True)
    loss = classification_loss(logits, torch.tensor([-100, -100]))
    loss.backward()
    assert loss == 0
    assert not logits.grad.any()


@pytest.mark.parametrize("values", [(112.0, 4.0), ([112.0, -3.0], [4.0, 0.5])])
def test_numbers_are_predicted_in_the_units_of_the_labels(values, tmp_path):
    torch.manual_seed(0)
    outputs = 2 if isinstance(values[0], list) else 1
    config = SimMIMConfig(encoder_config=swin_config(), num_labels=outputs, problem_type="regression")
    plain = SimMIMForImageClassification(config).eval()
    plain.save_pretrained(tmp_path)
    model = SimMIMForImageClassification.from_pretrained(tmp_path, label_mean=values[0], label_std=values[1]).eval()
    model.save_pretrained(tmp_path)
    pixels, mean, std = torch.randn(3, 3, 32, 32), torch.tensor(values[0]), torch.tensor(values[1])
    labels = mean + std * torch.randn(3, outputs)
    expected, found = plain(pixels, labels=(labels - mean) / std), model(pixels, labels=labels)
    torch.testing.assert_close(found.logits, expected.logits * std + mean)
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-4, atol=1e-5)
    again = SimMIMForImageClassification.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(again(pixels).logits, found.logits)
    # Half precision would round the mean.
    halved = again.bfloat16()(pixels.bfloat16())
    torch.testing.assert_close(halved.logits, found.logits, rtol=0, atol=0.1)


def test_scales_of_numbers_are_checked():
    with pytest.raises(Exception, match="label_std=0 must be a positive number"):
        SimMIMConfig(encoder_config=swin_config(), label_std=0)
    with pytest.raises(ValueError, match="one for each of 1 outputs"):
        SimMIMForImageClassification(SimMIMConfig(encoder_config=swin_config(), num_labels=1, label_mean=[1.0, 2.0]))


def test_class_weights_are_checked():
    with pytest.raises(ValueError, match="class_weights has 2 numbers"):
        SimMIMForImageClassification(SimMIMConfig(encoder_config=swin_config(), num_labels=3, class_weights=[1.0, 2.0]))
    with pytest.raises(Exception, match="0 or more"):
        SimMIMConfig(encoder_config=swin_config(), class_weights=[1.0, -2.0])
    config = SimMIMConfig(encoder_config=swin_config(), num_labels=2)
    config.class_weights = [1.0, -2.0]
    with pytest.raises(ValueError, match="0 or more"):
        SimMIMForImageClassification(config)


@pytest.mark.parametrize("make", [swin_config, beit_config])
def test_stochastic_depth_is_on_both_branches(make):
    """Where all branches are dropped the layers change nothing, whatever is in them."""
    config = SimMIMConfig(encoder_config=make(drop_path_rate=0.5))
    model = SimMIMForImageClassification(config).train()
    paths = [module for module in model.modules() if hasattr(module, "drop_prob")]
    assert paths
    for path in paths:
        path.drop_prob = 1 - 1e-9
    last = encoder_layers(config).names[-1]
    seen = {}
    model.simmim.encoder.get_submodule(last).register_forward_hook(
        lambda module, inputs, output: seen.update(before=inputs[0], after=output)
    )
    model(torch.randn(2, 3, 32, 32))
    assert torch.equal(seen["before"], seen["after"])
