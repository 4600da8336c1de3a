"""What evaluations of a pre-training compare: the mean color, training images evaluated the same way, and RankMe."""

# Fixtures of a pre-training are arguments here.
# ruff: noqa: F401, F811
import json

import numpy as np
import pytest
import torch
from cards import table
from PIL import Image
from pretraining import ENCODER, options, photos, read_log
from safetensors.torch import load_file

from hf_simmim import SimMIMForMaskedImageModeling, SimMIMImageProcessor
from hf_simmim.cli import pretrain
from hf_simmim.data.masked_images import collate
from hf_simmim.data.transforms import normalize
from hf_simmim.evaluation.probing import extract_features
from hf_simmim.evaluation.rankme import rankme
from hf_simmim.evaluation.reconstruction import Reconstruction
from hf_simmim.model.masking import patch_mask
from hf_simmim.training.image_samples import ComparedImages, ImageSample, mean_figures
from hf_simmim.training.stop_signals import EvaluationStoppedError
from hf_simmim.visualization.plots import plot_losses

COMPARED = ("eval_train_masked_l1", "eval_rankme")


@pytest.fixture(scope="module")
def runs(photos, tmp_path_factory):
    """Folders of a run with and one without the compared images, with stochastic depth and workers."""
    folder = tmp_path_factory.mktemp("runs")
    encoder = json.dumps(ENCODER | {"drop_path_rate": 0.3})
    for name, number in (("with", 1000), ("without", 0)):
        settings = {"compared_images": number, "encoder": encoder, "dataloader_num_workers": 1}
        pretrain.COMMAND.main(options(photos, folder / name, **settings))
    return folder


def trainer_of(photos, folder, **settings):
    trainer, _ = pretrain.build_trainer(*pretrain.COMMAND.parse(options(photos, folder, **settings)))
    return trainer


def reconstruct(trainer, dataset):
    """All images of a data set, by hand."""
    batch = collate([dataset[index] for index in range(len(dataset))])
    processor, model = trainer.processing_class, trainer.model.eval()
    pixel_values = normalize(batch["pixel_values"], processor.image_mean, processor.image_std, processor.rescale_factor)
    with torch.no_grad():
        prediction = model(pixel_values, bool_masked_pos=batch["bool_masked_pos"]).reconstruction
    mask = patch_mask(batch["bool_masked_pos"], pixel_values, model.config.patch_size)
    statistics = (processor.image_mean, processor.image_std)
    return Reconstruction(pixel_values, mask, None, prediction, *statistics, model.config.patch_size)


def test_the_training_is_the_same_as_without(runs):
    one, other = (load_file(runs / name / "model.safetensors") for name in ("with", "without"))
    assert all(torch.equal(value, other[key]) for key, value in one.items())
    logs = [read_log(runs / name) for name in ("with", "without")]
    for key in ("loss", "eval_loss", "eval_masked_l1", "eval_mean_color_l1"):
        values, others = ([entry[key] for entry in log if key in entry] for log in logs)
        assert len(values) >= 2
        assert values == others
    assert [[key in entry for key in COMPARED] for entry in logs[0] if "eval_loss" in entry] == [[True, True]] * 2
    assert not any(key in entry for entry in logs[1] for key in COMPARED)


def test_figures_are_those_of_the_images(photos, tmp_path):
    """Of whole images with the masks of evaluations, however they are divided into batches."""
    trainer = trainer_of(photos, tmp_path, per_device_eval_batch_size=3, flip=1, crop_scale=[0.2, 0.3])
    metrics = trainer.evaluate()
    evaluated = reconstruct(trainer, trainer.eval_dataset)
    assert metrics["eval_masked_l1"] == pytest.approx(evaluated.masked_l1.mean().item(), rel=1e-5)
    assert metrics["eval_mean_color_l1"] == pytest.approx(evaluated.mean_color_l1.mean().item(), rel=1e-5)
    gain = 1 - metrics["eval_masked_l1"] / metrics["eval_mean_color_l1"]
    assert metrics["eval_gain_over_mean_color"] == pytest.approx(gain)
    whole = trainer.train_dataset.whole(pretrain.EVALUATION_SEED)
    # As many as validation images, evenly spaced.
    sample = trainer._compared.train
    assert (len(sample), sample.indices[0], sample.indices[-1]) == (8, 0, 39)
    chosen = reconstruct(trainer, [whole[index] for index in sample.indices])
    assert metrics["eval_train_masked_l1"] == pytest.approx(chosen.masked_l1.mean().item(), rel=1e-5)
    assert trainer.train_dataset.crop_scale == [0.2, 0.3]
    features = extract_features(trainer.model, [evaluated.pixel_values], progress=False)
    assert metrics["eval_rankme"] == pytest.approx(rankme(features), rel=1e-4)
    assert trainer.model.num_parameters(only_trainable=True) == trainer.model.num_parameters()


def test_other_images_and_predictions_are_not_compared(photos, tmp_path):
    trainer = trainer_of(photos, tmp_path)
    assert not any(key in trainer.evaluate(trainer.eval_dataset) for key in COMPARED)
    assert "eval_mean_color_l1" in trainer.evaluate(trainer.eval_dataset)
    assert {"mean_color_l1", "gain_over_mean_color", "train_masked_l1", "rankme"} <= trainer.metric_names()
    measured = {key.removeprefix("eval_") for key in trainer.evaluate()}
    assert trainer.metric_names() <= measured


@pytest.mark.parametrize("stopped_after", [2, 4])
def test_a_signal_gives_up_the_samples_too(photos, tmp_path, monkeypatch, stopped_after):
    """Eight images of each sample, in batches of four, after the two batches of the evaluation."""
    trainer = trainer_of(photos, tmp_path, per_device_eval_batch_size=4)
    seen = []

    def stop(*args, **kwargs):
        seen.append(trainer.model.training)
        if len(seen) == 2 + stopped_after:
            raise EvaluationStoppedError

    monkeypatch.setattr(trainer._stop_signals, "on_prediction_step", stop)
    with pytest.raises(EvaluationStoppedError):
        trainer.evaluate()
    assert seen == [False] * (2 + stopped_after)
    assert "test_rankme" not in trainer.predict(trainer.eval_dataset).metrics


def test_targets_without_pixels_compare_the_loss(photos, tmp_path):
    settings = {"target": "hog", "prediction_stride": 8}
    trainer = trainer_of(photos, tmp_path, **settings)
    metrics = trainer.evaluate()
    assert metrics["eval_train_loss"] > 0
    assert "eval_rankme" in metrics
    assert not any("mean_color" in key or "masked_l1" in key for key in metrics)
    assert metrics["eval_gradient_error"] >= 0
    assert trainer.metric_names() == {"loss", "gradient_error", "train_loss", "rankme"}


def test_the_end_of_a_run_says_what_the_error_is_worth(runs, photos, tmp_path, capsys):
    pretrain.COMMAND.main(options(photos, tmp_path))
    printed = capsys.readouterr().out
    last = [entry for entry in read_log(tmp_path) if "eval_loss" in entry][-1]
    gain = last["eval_gain_over_mean_color"]
    words = f"{abs(gain):.0%} {'better' if gain >= 0 else 'worse'}".replace("%", " %")
    error = f"masked l1 {last['eval_masked_l1']:.2f} of 255, {words} than the mean color"
    assert f"Validation: loss {last['eval_loss']:.4f}, {error} ({last['eval_mean_color_l1']:.1f})\n" in printed
    assert f"Training images, evaluated the same way: masked l1 {last['eval_train_masked_l1']:.2f}" in printed
    assert f"Features: RankMe {last['eval_rankme']:.1f} of 32 dimensions" in printed
    rows = table((tmp_path / "README.md").read_text())
    assert f"{words} than the mean color ({last['eval_mean_color_l1']:.1f})" in rows["validation loss"]
    assert rows["training images, evaluated the same way"].startswith(f"masked l1 {last['eval_train_masked_l1']:.2f}")
    assert rows["RankMe"].startswith(f"{last['eval_rankme']:.1f} of 32 feature dimensions")


def test_what_decoding_borrows_is_said(photos, tmp_path, capsys):
    pretrain.COMMAND.main(options(photos, tmp_path, target="normalized_rgb"))
    assert "decoded with the local mean and contrast of the original, which the mean" in capsys.readouterr().out
    card = " ".join((tmp_path / "README.md").read_text().split())
    assert "decoded with the local mean and contrast of the original. The mean color is not." in card


def test_loss_curve_shows_the_mean_color(tmp_path):
    history = [{"step": step, "loss": 1 / step, "learning_rate": 1e-3} for step in range(1, 20)]
    errors = [{"step": step, "eval_loss": 1 / step, "eval_masked_l1": 100 / step} for step in (5, 10)]
    baseline = [entry | {"eval_mean_color_l1": 54.0} for entry in errors]
    alike = [entry | {"eval_train_masked_l1": 90 / entry["step"]} for entry in baseline]
    pictures = []
    for index, entries in enumerate(([{"step": 5, "eval_loss": 1.0}], errors, baseline, alike)):
        plot_losses([*history, *entries], tmp_path / f"{index}.png")
        pictures.append(np.asarray(Image.open(tmp_path / f"{index}.png")))
    assert [picture.shape[0] for picture in pictures] == [540, 960, 960, 960]
    assert (pictures[1] != pictures[2]).any()
    assert (pictures[2] != pictures[3]).any()


def test_samples_are_shared_among_processes():
    class Images(torch.utils.data.Dataset):
        num_channels, image_size = 1, (2, 2)

        def __len__(self):
            return 25

        def __getitem__(self, index):
            return index

    sample = ImageSample(Images(), 5, torch.tensor)
    shards = [sample.shard(rank, 3) for rank in range(3)]
    assert [len(shard) for shard in shards] == [2, 2, 2]

    class Three:
        num_processes, device = 3, torch.device("cpu")

        @staticmethod
        def gather(own):
            return torch.cat([torch.tensor(shard) for shard in shards])[:, None] * 10

    assert sample.gather(torch.zeros(2, 1), Three())[:, 0].tolist() == [0, 10, 20, 30, 40]


def test_images_without_pixels_are_left_out_of_means():
    figures = torch.tensor([[[1.0, 4.0], [10.0, 4.0]], [[9.0, 0.0], [90.0, 0.0]], [[3.0, 1.0], [20.0, 1.0]]])
    assert mean_figures(figures, ("loss", "masked_l1")) == {"loss": 2.0, "masked_l1": 15.0}
