"""The study of the components: its data, its grid on a few images, resuming, report and verdicts."""

import csv
import io
import json
import sys
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from paths import ROOT
from PIL import Image, ImageDraw

sys.path.insert(0, str(ROOT))  # as for `python -m` that is run from there

from benchmarks.ablation import fetch, study
from benchmarks.ablation.clip_art import is_blank, prepare_clip_art, stratified_split, without_duplicates
from benchmarks.ablation.cost import _peak_resident
from benchmarks.ablation.data import ImageData, augment, load_images, stratified_sample
from benchmarks.ablation.grid import Row, scratch_row, select_rows, study_tables
from benchmarks.ablation.report import _table
from benchmarks.ablation.results import RESULTS, Result, read_results
from benchmarks.ablation.settings import ENCODERS, study_settings
from benchmarks.ablation.train import METRICS, build_model, pretrain, run_row
from benchmarks.ablation.verdicts import Noise, judge, pooled_noise, scores_of, student_quantile, verdicts


def tiny_settings(scale="cpu", encoder="vit"):
    """One step of everything on sixty images."""
    settings = study_settings("cpu", "vit")
    vit = settings.encoder | {"hidden_size": 24, "intermediate_size": 24, "num_hidden_layers": 1}
    return replace(
        settings,
        encoder=vit | {"num_attention_heads": 2},
        inverse_swin={
            name: {"embed_dim": 16 * width, "depths": [1], "num_heads": [1], "window_size": 4}
            for name, width in (("light", 1), ("heavy", 2))
        },
        num_images=60,
        num_test_images=20,
        batch_size=4,
        pretrain_steps=1,
        num_labels=10,
        fine_tune_batch_size=5,
        fine_tune_steps=1,
        num_probe_images=20,
    )


@pytest.fixture(scope="module")
def images():
    settings = tiny_settings()
    return load_images("embedded", settings.image_size, settings.num_images, settings.num_test_images)


def run(output, *arguments):
    fixed = ["--scale", "cpu", "--data", "embedded", "--dtype", "float32", "--device", "cpu", "--workers", "1"]
    study.main([*fixed, "--output", str(output), *arguments], make_settings=tiny_settings)


def read_lines(output):
    with (output / RESULTS).open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(autouse=True)
def less_work(monkeypatch, images):
    """The images are read once, and the linear probe, which takes longest on tiny models, has no choice."""
    monkeypatch.setattr(study, "load_images", lambda *args: images)
    monkeypatch.setattr("benchmarks.ablation.train.PROBE_PENALTIES", (1e-2,))


def test_the_study_from_end_to_end(tmp_path, monkeypatch):
    """Rows of two tables, once; then the report with costs, plot and a verdict on every claim."""
    memory = iter([1e6, 1.1e6, 2e6, 3.5e6])
    monkeypatch.setattr("benchmarks.ablation.cost._peak_memory", lambda *args: next(memory))
    heads = study_tables(tiny_settings())["heads"]
    run(tmp_path, "--seeds", "3", "--tables", "heads", "masking", "--rows", *heads, "block 4 px 0.6", "random 8 px 0.8")
    names = [line["row"] for line in read_lines(tmp_path)]
    assert sorted(names) == sorted({"scratch", "block 4 px 0.6", "random 8 px 0.8", *heads})
    for line in read_lines(tmp_path):
        assert all(0 <= float(line[metric]) <= 1 for metric in ("fine_tune", "linear_probe", "knn"))
        assert (line["avg_dist"] == "") == (line["row"] == "scratch")
    report = (tmp_path / "README.md").read_text(encoding="utf-8")
    for name in names:
        assert f"\n| {name}" in report
    assert "3.50x |" in report  # memory of the heavy head
    with Image.open(tmp_path / "avgdist.png") as plot:
        assert plot.width > 600
    # One seed knows no noise.
    assert "**agrees**" not in report
    assert report.count("**cannot tell**") == 6  # scratch, ratio, strategy and three heads
    assert "The coarsest prediction is worse | **not run**" in report
    assert "pre-training, 1 of 2 seeds." in report


def test_a_killed_study_goes_on(tmp_path, monkeypatch):
    ran = []

    def count(name, row, seed, **state):
        ran.append((name, seed))
        if len(ran) == 3:
            raise KeyboardInterrupt
        return run_row(name, row, seed, **state)

    monkeypatch.setattr(study, "run_row", count)
    arguments = ["--tables", "region", "--seeds", "0", "1"]
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, *arguments)
    assert len(read_lines(tmp_path)) == 2
    before = read_lines(tmp_path)
    with (tmp_path / RESULTS).open("a") as file:
        file.write("baseline,1,0.5")  # a line that was cut off
    run(tmp_path, *arguments)
    runs = [(name, seed) for name in ("scratch", "baseline", "loss on all") for seed in (0, 1)]
    assert sorted((line["row"], int(line["seed"])) for line in read_lines(tmp_path)) == sorted(runs)
    assert read_lines(tmp_path)[:2] == before
    assert len(ran) == 7  # the one that was killed twice
    run(tmp_path, *arguments)
    assert len(ran) == 7
    report = (tmp_path / "README.md").read_text()
    (tmp_path / "README.md").unlink()
    study.main(["--report_only", "--output", str(tmp_path)])
    assert (tmp_path / "README.md").read_text() == report


def test_clusters_are_those_of_the_images(images):
    row = Row(8, target="color_clusters", target_options={"num_clusters": 4}, loss=None)
    centers = build_model(row, tiny_settings(), images, seed=0).config.target_options["centers"]
    assert len(centers) == 4
    assert centers[0][0] < 0.1  # the background of Fashion-MNIST is black
    assert centers[-1][0] > 0.7


def test_a_scale_may_name_its_rows_and_runs_them_seed_by_seed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(study, "run_row", lambda name, row, seed, **state: Result(name, seed, 0, 0, 0, 1.0, 0.0, 1.0))

    def make_settings(scale, encoder):
        return replace(tiny_settings(), rows=("l2", "random 8 px 0.4"))

    words = ["--data", "embedded", "--dtype", "float32", "--device", "cpu", "--workers", "1", "--output", str(tmp_path)]
    study.main([*words, "--seeds", "0", "1", "--scale", "cpu"], make_settings)
    names = ["scratch", "random 8 px 0.4", "baseline", "l2"]
    runs = [(line["row"], int(line["seed"])) for line in read_lines(tmp_path)]
    assert runs == [(name, seed) for seed in (0, 1) for name in names]
    capsys.readouterr()
    study.main([*words, "--tables", "targets", "--list"], make_settings)
    assert capsys.readouterr().out.split() == ["scratch", "baseline", "l2"]
    study.main([*words, "--rows", "loss on all", "--list"], make_settings)
    assert "loss on all" in capsys.readouterr().out


def test_imbalanced_images_are_scored_by_class(tmp_path, monkeypatch, images):
    """And a folder says so, names its size, and has links to studies beside it."""
    assert images.metric == "accuracy"
    rare = (images.test_labels == 0).nonzero()[:1, 0]
    kept = torch.cat([rare, (images.test_labels > 0).nonzero()[:, 0]])
    odd = ImageData("clipart-color", images.images, images.labels, images.test_images[kept], images.test_labels[kept])
    odd.test_labels[1:] = 1
    assert odd.metric == "accuracy"  # as it was made
    odd = odd.to("cpu")
    assert odd.metric == "balanced accuracy"
    predicted = torch.ones_like(odd.test_labels)
    assert METRICS["accuracy"](predicted, odd.test_labels) > 0.9
    assert METRICS["balanced accuracy"](predicted, odd.test_labels) == 0.5
    run(tmp_path, "--tables", "region", "--seeds", "0")
    monkeypatch.setattr(study, "load_images", lambda *args: odd)
    run(tmp_path / "odd", "--tables", "region", "--seeds", "0", "--data", "clipart-color")
    # One image of a class counts as much as all of the other class, and not as one of all images.
    shares = [2 * (len(kept) - 1) * float(line["knn"]) for line in read_lines(tmp_path / "odd")]
    assert shares == pytest.approx([round(share) for share in shares], abs=1e-3)
    report = (tmp_path / "odd" / "README.md").read_text(encoding="utf-8")
    assert "test balanced accuracy in percent, the mean over the classes" in report
    assert "vit encoder of 0.0" in report
    assert "(../README.md)" in report
    study.main(["--report_only", "--output", str(tmp_path)])
    report = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "M parameters, 32 px, clipart-color](odd/README.md)" in report
    assert "test accuracy in percent, as mean" in report


def test_another_processor_is_refused(tmp_path, monkeypatch):
    run(tmp_path, "--tables", "region", "--seeds", "0")
    monkeypatch.setattr(study, "device_name", lambda device: "Abacus")
    with pytest.raises(ValueError, match=r"not comparable: device was .* and is Abacus. Use another --output"):
        run(tmp_path, "--tables", "region", "--seeds", "0", "1")


def test_other_settings_and_other_rows_are_refused(tmp_path, monkeypatch):
    run(tmp_path, "--tables", "region", "--seeds", "0")
    with pytest.raises(ValueError, match=r"dtype was float32 and is bfloat16.*another --output"):
        run(tmp_path, "--tables", "region", "--seeds", "1", "--dtype", "bfloat16")
    text = (tmp_path / RESULTS).read_text()
    (tmp_path / RESULTS).write_text(text.replace('""loss_region"": ""all""', '""loss_region"": ""none""'))
    with pytest.raises(ValueError, match="'loss on all' with other components"):
        run(tmp_path, "--tables", "region", "--seeds", "0")


@pytest.mark.slow
def test_two_processes_measure_what_one_does(tmp_path, images):
    """Each process imports everything anew, which takes long."""
    settings = tiny_settings()
    rows = {"scratch": scratch_row(settings), "baseline": Row(8)}
    found = []
    for workers in (1, 2):
        (tmp_path / str(workers)).mkdir()
        results = study.run_study(rows, [0], settings, images, torch.float32, tmp_path / str(workers), workers)
        found.append({result.row: (result.fine_tune, result.knn, result.loss, result.avg_dist) for result in results})
    assert found[0] == found[1]


def test_rows_that_cannot_be_built_stop_the_study_at_once(images):
    rows = {"baseline": Row(8), "new": Row(8, head="transformer"), "odd": Row(6), "other": Row(8, strategy="spiral")}
    with pytest.raises(ValueError, match=r"(?s)3 of 4 rows.*new: .*transformer.*odd: .*6 px.*other: .*spiral"):
        study.check_rows(rows, tiny_settings(), images)
    with pytest.raises(ValueError, match="no row mpl"):
        run("nowhere", "--rows", "mpl")


def test_pretraining_learns_from_the_images_alone(images):
    settings = replace(tiny_settings(), pretrain_steps=60, learning_rate=3e-3)
    losses = {}
    for steps in (1, 60):
        model = build_model(Row(8), settings, images, seed=0)
        losses[steps] = pretrain(model, Row(8), replace(settings, pretrain_steps=steps), images, 0, torch.float32)
    assert losses[60] < 0.9 * losses[1]


@pytest.mark.parametrize(("scale", "encoder"), [(scale, encoder) for scale in ENCODERS for encoder in ENCODERS[scale]])
def test_settings_fit_their_encoders(scale, encoder, images, monkeypatch):
    """Every row can be built, and the inverse Swins have the shares of parameters that the report tells."""
    monkeypatch.setattr("benchmarks.ablation.train.DISTANCE_MASKS", 2)
    monkeypatch.setattr("benchmarks.ablation.train._color_centers", lambda data, count: [[0.0], [1.0]])
    settings = study_settings(scale, encoder)
    tables = study_tables(settings)
    assert all("baseline" in table for table in tables.values())
    assert len(select_rows(tables, settings.rows, scratch_row(settings))) >= len(settings.rows or ())
    # Fewer blocks are built sooner and have the same geometry.
    depth = {"vit": {"num_hidden_layers": 1}, "swin": {"depths": [1] * len(settings.encoder.get("depths", []))}}[
        encoder
    ]
    shallow = replace(settings, encoder=settings.encoder | depth)
    study.check_rows({name: row for table in tables.values() for name, row in table.items()}, shallow, images)
    light, heavy = (settings.inverse_swin[size] for size in ("light", "heavy"))
    assert 0.25 < blocks_size(light) / encoder_size(settings.encoder) < 0.45
    assert 0.9 < blocks_size(heavy) / encoder_size(settings.encoder) < 1.2


def blocks_size(options):
    """About as many parameters as the blocks have."""
    return sum(12 * depth * (options["embed_dim"] * 2**index) ** 2 for index, depth in enumerate(options["depths"]))


def encoder_size(config):
    if config["model_type"] == "vit":
        return 12 * config["num_hidden_layers"] * config["hidden_size"] ** 2
    return blocks_size(config)


def test_memory_of_a_step(images):
    """A head that is a hundred times as wide needs more."""
    sizes = [
        _peak_resident(Row(8, head="mlp", head_options={"hidden_size": width}), tiny_settings(), images, torch.float32)
        for width in (8, 80000)
    ]
    assert sizes[1] > sizes[0] + 4 * 24 * 80000


def test_augmented_images_are_crops(images):
    pictures = images.normalize(images.images[:8])
    first, again, other = (augment(pictures, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    torch.testing.assert_close(first, again)
    assert not torch.equal(first, other)
    assert first.min() >= pictures.min() - 1e-4
    assert first.max() <= pictures.max() + 1e-4
    plain = torch.linspace(0, 1, 32).expand(4000, 1, 32, 32)
    crops = augment(plain, torch.Generator().manual_seed(0))[:, 0, 0]
    share = (crops[:, -1] - crops[:, 0]) / (plain[0, 0, 0, -1] - plain[0, 0, 0, 0])
    assert 0.45 < (share < 0).float().mean() < 0.55  # flipped
    assert 0.65 < share.abs().min() < 0.75  # the square root of 0.67 * 3/4
    assert share.abs().max() <= 1.0001


def test_samples_keep_the_shares_of_classes():
    labels = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)
    drawn = stratified_sample(labels, 20, torch.Generator().manual_seed(0))
    assert labels[drawn].bincount().tolist() == [12, 6, 2]
    assert len(drawn.unique()) == 20


def results_of(**rows):
    """Accuracies of a row for each seed, with a distance where a mask has one."""
    return [
        Result(name, seed, accuracy, accuracy, accuracy, None, None, 1.0)
        for name, accuracies in rows.items()
        for seed, accuracy in enumerate(accuracies)
    ]


def test_verdicts_follow_the_numbers():
    # Seeds shift all rows together by 5 points, which is no noise; the noise is one of 0.1 points.
    shared = np.array([0.0, 0.05, -0.05])
    wiggle = np.array([[1, -1, 0], [-1, 1, 0], [0, -1, 1], [0, 1, -1], [1, 0, -1]]) * 0.001
    means = {"base": 0.70, "better": 0.75, "near": 0.701, "worse": 0.6, "close": 0.699}
    rows = {name: mean + shared + noise for (name, mean), noise in zip(means.items(), wiggle, strict=True)}
    scores = scores_of(results_of(**rows))
    noise = pooled_noise(scores)
    assert noise.freedom == 8
    assert 0.0005 < noise.deviation < 0.0015
    cases = [
        ("better", "base", "worse", "agrees"),
        ("better", "base", "better", "disagrees"),
        ("better", "base", "near", "cannot tell"),
        ("no worse", "base", "near", "agrees"),
        ("no worse", "better", "base", "agrees"),
        ("no worse", "base", "better", "disagrees"),
        ("equal", "base", "close", "agrees"),
        ("equal", "base", "better", "disagrees"),
        ("equal", "base", "worse", "disagrees"),
    ]
    for kind, first, second, expected in cases:
        assert judge("", kind, [first], [second], scores, noise).verdict == expected, (kind, first, second)
    # The same differences are lost in more noise, or with none known, or where a row is missing.
    loud = Noise(0.2, 8)
    assert {judge("", kind, [a], [b], scores, loud).verdict for kind, a, b, _ in cases} == {"cannot tell"}
    assert judge("", "better", ["base"], ["worse"], scores, Noise(0.0, 0)).verdict == "cannot tell"
    assert judge("", "better", ["base"], ["gone"], scores, noise).verdict == "not run"
    found = judge("", "better", ["base"], ["worse"], scores, noise)
    assert found.difference == pytest.approx(0.1)
    assert found.half_width == pytest.approx(student_quantile(8) * noise.deviation * (2 / 3) ** 0.5)


def test_noise_of_an_unfinished_study_is_that_of_its_finished_seeds():
    random = np.random.default_rng(0)
    rows = {f"row {index}": (0.5 + 0.01 * random.standard_normal(3)).tolist() for index in range(10)}
    finished = pooled_noise(scores_of(results_of(**rows)))
    assert finished.freedom == 18
    rows["row 0"].append(0.9)
    assert pooled_noise(scores_of(results_of(**rows))) == finished
    for name in rows:
        rows[name] = (rows[name] + [0.4])[:4]
    rows["row 1"] = rows["row 1"][:1]
    assert pooled_noise(scores_of(results_of(**rows))).freedom == 8 * 3
    assert pooled_noise({}) == pooled_noise({"alone": {0: 0.5, 1: 0.6}}) == Noise(0.0, 0)


def test_quantiles_of_student():
    table = {1: 12.706, 2: 4.303, 3: 3.182, 5: 2.571, 10: 2.228, 40: 2.021}
    assert {freedom: student_quantile(freedom) for freedom in table} == pytest.approx(table, rel=0.01)


def test_claims_find_their_rows():
    """On made-up numbers in which random masks win, and every other choice changes nothing."""
    settings = study_settings("cpu", "vit")
    rows = {"scratch": scratch_row(settings)}
    for table in study_tables(settings).values():
        rows |= table
    results = []
    for index, (name, row) in enumerate(rows.items()):
        other_mask = row.strategy != "random" or row.mask_patch_size != 8
        accuracy = 0.4 if name == "scratch" else 0.5 if other_mask else 0.6
        distance = None if name == "scratch" else 9.0 if other_mask else 2.5
        for seed in range(3):
            noise = 0.0004 * ((index * 7 + seed * 5) % 11 - 5)
            results.append(Result(name, seed, accuracy + noise, 0, 0, distance, 0.0, 1.0))
    found = {verdict.claim: verdict for verdict in verdicts(rows, results, settings.image_size)}
    disagreeing = [claim for claim, verdict in found.items() if verdict.verdict != "agrees"]
    # These two choices changed nothing in the numbers.
    assert disagreeing == [
        "The coarsest prediction is worse",
        "The loss on masked pixels is better than that on all pixels",
    ]
    assert found["Pre-training is better than training from scratch"].difference == pytest.approx(0.2, abs=0.01)
    assert len([claim for claim in found if claim.startswith("The linear head")]) == 3
    assert len([claim for claim in found if claim.startswith("Regression of RGB")]) == 6
    assert len([claim for claim in found if claim.startswith("l1 and")]) == 2
    assert all(verdict.difference is not None for verdict in found.values())


def test_tables_have_the_difference_of_each_row_to_the_baseline():
    values = {"baseline": (0.9, 0.7, 0.8), "scratch": (0.8, 0.6, 0.71)}
    results = [
        Result(row, seed, value, 0, 0, None, None, 1.0) for row in values for seed, value in enumerate(values[row])
    ]
    rows = dict.fromkeys(values, Row(8))
    lines = _table(rows, results).splitlines()
    assert "| fine-tuning, baseline minus row | runs |" in lines[0]
    assert lines[2].endswith("|  | 3 |")
    # 10, 10 and 9 points; the same deviation as `pooled_noise`.
    width = student_quantile(2) * pooled_noise(scores_of(results)).deviation * (2 / 3) ** 0.5
    assert lines[3].endswith(f"| +9.7 ({9.6667 - 100 * width:+.1f} to {9.6667 + 100 * width:+.1f}) | 3 |")


def test_claims_about_rgb_find_their_rows_beside_a_baseline_of_gradients():
    settings = study_settings("textures", "swin")
    rows = {"scratch": scratch_row(settings)}
    for table in study_tables(settings).values():
        rows |= table
    assert set(settings.rows) < set(rows)
    accuracies = {"baseline": 0.9, "scratch": 0.8, "rgb l1": 0.85, "rgb l2": 0.84, "random 16 px 0.4": 0.7}
    distances = {"baseline": 8.6, "random 8 px 0.6": 4.5}
    results = [
        Result(
            name, seed, accuracies.get(name, 0.88) + 0.001 * ((7 * index + seed) % 3), 0, 0, distances.get(name), 0, 1
        )
        for index, name in enumerate(["scratch", "baseline", *settings.rows])
        for seed in range(3)
    ]
    found = {verdict.claim: verdict for verdict in verdicts(rows, results, settings.image_size)}
    between = {claim: verdict.between for claim, verdict in found.items()}
    assert between["l1 and l2 are equal"] == "rgb l1 against rgb l2"
    assert between["Regression of RGB is no worse than hog cell_size 8"] == "rgb l1 against baseline"
    assert between["Regression of RGB is no worse than normalized_rgb window_size 31"].startswith("rgb l1 against")
    assert found["Regression of RGB is no worse than hog cell_size 8"].verdict == "disagrees"
    assert between["A mask ratio of 0.6 is no worse than 0.4"] == "baseline against random 16 px 0.4"
    assert found["A mask ratio of 0.6 is no worse than 0.4"].difference == pytest.approx(0.2, abs=0.01)
    assert between["The loss on masked pixels is better than that on all pixels"] == "baseline against loss on all"
    moderate = next(claim for claim in found if "moderate AvgDist" in claim)
    assert between[moderate] == "random 8 px 0.6 against baseline"


def picture(seed, size=64):
    """A drawing of ten rectangles in color on white."""
    random = np.random.default_rng(seed)
    image = Image.new("RGB", (size, size), "white")
    for _ in range(10):
        x, y = sorted(random.integers(0, size, 2).tolist()), sorted(random.integers(0, size, 2).tolist())
        ImageDraw.Draw(image).rectangle((x[0], y[0], x[1], y[1]), fill=tuple(random.integers(0, 255, 3).tolist()))
    return image


def test_duplicates_and_blank_pictures_are_left_out():
    near = np.asarray(picture(0)).copy()
    near[20:22, 20:22] ^= 3
    images = [picture(0), picture(1), picture(0), near, Image.new("RGB", (64, 64), "white"), picture(2)]
    kept, counts = without_duplicates(np.stack([np.asarray(image) for image in images]))
    assert kept.tolist() == [0, 1, 5]
    assert counts == "1 blank, 1 equal to another, 1 similar to another"
    dot = np.full((64, 64, 3), 255, np.uint8)
    dot[0, :5] = 0
    assert is_blank(dot)
    dot[0, :30] = 0
    assert not is_blank(dot)


def test_clip_art_becomes_arrays(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.ablation.clip_art.MIN_PICTURES", 5)
    for name, count in (("animals", 10), ("rare", 2), ("tools", 5), ("unsorted", 6)):
        for index in range(count):
            path = tmp_path / "usr" / "png" / name / "deep" / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image = picture(100 * len(name) + index, size=48)
            image.putalpha(255)
            image.save(path)
    (tmp_path / "usr" / "png" / "animals" / "broken.png").write_bytes(b"\x89PNG no more")
    (tmp_path / "usr" / "png" / "animals" / "link.png").symlink_to("deep/0.png")
    arrays = prepare_clip_art(tmp_path)
    assert arrays["classes"].tolist() == ["animals", "tools"]
    assert arrays["train_images"].shape == (12, 64, 64, 3)
    assert np.bincount(arrays["train_labels"]).tolist() == [8, 4]
    assert np.bincount(arrays["test_labels"]).tolist() == [2, 1]
    # Smaller pictures stay as they are, on white.
    assert (arrays["train_images"][:, :8] == 255).all()
    assert stratified_split(np.zeros(10), 0.2, seed=0).tolist() == stratified_split(np.zeros(10), 0.2, seed=0).tolist()


def write_deb(path, files, compression="xz"):
    """A package as Debian makes it: an ar archive of a version, control data and the files."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode=f"w:{compression}") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    parts = {"debian-binary": b"2.0\n", "control.tar.xz": b"odd", f"data.tar.{compression}": content.getvalue()}
    with path.open("wb") as file:
        file.write(b"!<arch>\n")
        for name, data in parts.items():
            file.write(f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n".encode() + data)
            file.write(b"\n" * (len(data) % 2))


@pytest.mark.parametrize("compression", ["xz", "gz"])
def test_a_package_is_unpacked_without_dpkg(tmp_path, compression):
    write_deb(tmp_path / "a.deb", {"./usr/share/one.txt": b"one", "./usr/two.txt": b"two"}, compression)
    fetch.extract_deb(tmp_path / "a.deb", tmp_path / "files")
    assert (tmp_path / "files" / "usr" / "share" / "one.txt").read_bytes() == b"one"
    assert (tmp_path / "files" / "usr" / "two.txt").read_bytes() == b"two"


def test_packages_that_are_none_or_reach_out_are_refused(tmp_path):
    (tmp_path / "b.deb").write_bytes(b"<html>")
    with pytest.raises(ValueError, match="not an ar archive"):
        fetch.extract_deb(tmp_path / "b.deb", tmp_path)
    write_deb(tmp_path / "c.deb", {"../outside.txt": b"out"})
    with pytest.raises(tarfile.OutsideDestinationError):
        fetch.extract_deb(tmp_path / "c.deb", tmp_path / "files")
    assert not (tmp_path / "outside.txt").exists()


def test_a_changed_download_is_refused(tmp_path, monkeypatch):
    package = replace(fetch.PACKAGES["fashion"], path="pool/a.deb", size=3, sha256="0" * 64)
    (tmp_path / "mirror" / "pool").mkdir(parents=True)
    (tmp_path / "mirror" / "pool" / "a.deb").write_bytes(b"bad")
    monkeypatch.setattr(fetch, "MIRROR", (tmp_path / "mirror").as_uri() + "/")
    monkeypatch.setattr(fetch.shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match="SHA256"):
        fetch.download(package, tmp_path)
    good = "3cf9a1a81f6bdeaf08a343c1e1c73e89cf44c06ac2427a892382cae825e7c9c1"
    with pytest.raises(ValueError, match="instead of"):
        fetch.download(replace(package, sha256=good), tmp_path)


def test_what_was_not_fetched_says_how(tmp_path):
    with pytest.raises(ValueError, match=r"benchmarks\.ablation\.fetch clipart"):
        load_images("clipart", 32, 10, 10, folder=tmp_path)


def test_the_report_needs_results(tmp_path):
    with pytest.raises(ValueError, match="Run the study first"):
        study.main(["--report_only", "--output", str(tmp_path)])
    assert read_results(tmp_path) == []
    (tmp_path / "settings.json").write_text(json.dumps({}))
