"""The command line as a whole: which commands there are, their help, and what is refused."""

import contextlib
import dataclasses
import importlib
import json
import random
import subprocess
import sys
from types import SimpleNamespace

import pytest

import hf_simmim
from hf_simmim.__main__ import main
from hf_simmim.cli import COMMANDS
from hf_simmim.cli.command import Command, CommandError, print_next
from hf_simmim.cli.convert import ConvertArguments
from hf_simmim.cli.options import names


def help_of(capsys, *words) -> str:
    main([*words])
    return capsys.readouterr().out


def test_the_help_is_one_screen(capsys):
    lines = help_of(capsys, "--help").splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 100
    for name in COMMANDS:
        assert any(line.startswith(f"  {name} ") for line in lines)
    assert help_of(capsys) == help_of(capsys, "help")


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_shows_a_dozen_options_and_all_on_request(capsys, name):
    short, full = help_of(capsys, name, "--help"), help_of(capsys, name, "--help-all")
    options = [line.split()[0] for line in short.split("\noptions:\n")[1].splitlines() if line.startswith("  --")]
    assert 4 <= len(options) <= 15
    assert short.startswith(f"usage: hf-simmim {name} ")
    assert len(short.splitlines()) <= 50
    assert all(f"{option} " in full for option in options)
    assert len(full) > len(short)
    assert f"hf-simmim {name} --help-all" in short


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pretran"], "there is no command 'pretran'. Did you mean pretrain?"),
        (["pretrain", "--trian_dir", "x"], "unknown option --trian_dir. Did you mean --train_dir?"),
        (["pretrain", "--lr", "1e-3"], "unknown option --lr. Use --learning_rate."),
        (["pretrain", "--batch_size=8"], "unknown option --batch_size. Use --per_device_train_batch_size."),
        (["finetune", "--epochs", "3"], "unknown option --epochs. Use --num_train_epochs."),
        (["finetune", "--workers", "3"], "unknown option --workers. Use --dataloader_num_workers."),
        (["embed", "--workers", "3"], "unknown option --workers. Use --num_workers."),
        (["embed", "--train_dir", "photos"], "unknown option --train_dir. Use --image_dir."),
        (["pretrain", "--recipe", "swin_base__img192"], "Did you mean swin_base__img192_window6__"),
        (["pretrain", "photos"], "unknown option photos."),
        (["probe"], "No checkpoint is named. Give --checkpoint"),
        (["convert", "a.pth"], "the following arguments are required: --output_dir"),
        (["convert", "a.pth", "b", "c"], "unknown option c."),
        (["finetune", "--flip", "often"], "invalid float value: 'often'"),
    ],
)
def test_mistakes_are_one_line(words, message):
    with pytest.raises(SystemExit) as info:
        main(words)
    assert str(info.value).startswith("error: ")
    assert message in str(info.value)
    assert "\n" not in str(info.value)


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["pretran"], "error: there is no command 'pretran'. Did you mean pretrain?"),
        (["pretrain", "--trian_dir", "x"], "error: unknown option --trian_dir. Did you mean --train_dir?"),
        (["compare", "--lr", "1"], "error: unknown option --lr. Use --learning_rates."),
        (["finetune", "--recipe", "demi"], "error: there is no recipe 'demi'. Did you mean demo?"),
        (["--version"], hf_simmim.__version__),
        (["--help"], "usage: hf-simmim COMMAND"),
        ([], "usage: hf-simmim COMMAND"),
    ],
    ids=" ".join,
)
def test_mistakes_and_help_need_no_torch(words, answer):
    code = f"""
import sys
from hf_simmim.__main__ import main
try:
    main({words})
except SystemExit as error:
    print(error)
print({{"torch", "transformers", "numpy"}} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer in done.stdout
    assert done.stdout.endswith("set()\n")


@pytest.mark.parametrize("name", COMMANDS)
def test_no_option_is_refused_that_the_parser_takes(name):
    """The options as text, which are checked first, are those of the parser."""
    command = importlib.import_module(f"hf_simmim.cli.{name}").COMMAND
    assert names.option_names(name) == command.option_names()
    options = {option for action in command._parser()._actions for option in action.option_strings}
    assert not names.answered([name, *(options - {"-h", "--help"})], "0")


@pytest.mark.parametrize("other", names.OTHER_NAMES)
def test_every_other_name_leads_to_an_option(other):
    commands = [importlib.import_module(f"hf_simmim.cli.{name}").COMMAND.option_names() for name in COMMANDS]
    for name in names.OTHER_NAMES[other]:
        assert any(name in options and other not in options for options in commands), name


@pytest.mark.parametrize(("task", "trainer"), [("segmentation", "segment"), ("classification", "finetune")])
def test_what_comes_next_is_of_the_task_and_the_model_to_use(task, trainer, tmp_path, capsys):
    """Whatever was given: here the pre-trained model, beside better public weights; trained as it was compared."""
    compare = importlib.import_module("hf_simmim.cli.compare").COMMAND
    advised = SimpleNamespace(next_options={"checkpoint": "public/weights", "from_scratch": True, "recipe": "a b"})
    given = ["--checkpoint", "runs/a", "--public", "public/weights", "--train_dir", str(tmp_path), "--task", task]
    dataclasses.replace(compare, run=lambda arguments: advised).main(given)
    command = f"hf-simmim {trainer} --checkpoint public/weights --from_scratch True --recipe 'a b'"
    assert f": {command} --train_dir {tmp_path}\n" in capsys.readouterr().out


def test_what_comes_next_names_the_labeled_images(capsys):
    """As they were named: a data set has a column of labels, and a folder of volumes an axis."""
    columns = {"data_files": ["a b.parquet", "c.parquet"], "label_column": "age", "train_split": "train"}
    print_next("probe", {"checkpoint": ["runs/a", "runs/b"], **columns, "stacks": "ZC"})
    advised = {"checkpoint": "runs/a"}
    print_next("compare", {"task": "classification", "train_dir": "scans", "slice_axis": 0}, advised)
    print_next("compare", {"task": "classification", "train_dir": None}, advised)
    first, second = capsys.readouterr().out.splitlines()
    shown = "--data_files 'a b.parquet' c.parquet --label_column age --stacks ZC"
    assert first == f"Next: train a classifier: hf-simmim finetune --checkpoint runs/a {shown}"
    assert second.endswith("finetune --checkpoint runs/a --train_dir scans --slice_axis 0")


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ("classification", "hf-simmim finetune --checkpoint runs/a --train_dir LABELED_PHOTOS"),
        ("regression", "hf-simmim finetune --checkpoint runs/a --data_files PHOTOS.parquet --label_column NUMBERS"),
        ("segmentation", "hf-simmim segment --checkpoint runs/a --train_dir SCENES"),
    ],
)
def test_what_comes_after_predictions_is_of_their_kind(task, words, capsys):
    run = Command("predict", "", None, (), lambda: SimpleNamespace(task=task, checkpoint="runs/a"), ())
    run.main([])
    assert words in capsys.readouterr().out


def test_a_command_is_given_its_values():
    """Defaults, then the recipe, then the command line; lists, JSON, negative numbers and values without names."""
    seen = []
    command = Command("convert", "", None, (ConvertArguments,), seen.append, (), positional=("path", "output_dir"))
    command.main(["a.pth", "folder", "--image_size", "192", "224", "--overwrite"])
    assert vars(seen[0]) == {"path": "a.pth", "output_dir": "folder", "image_size": [192, 224], "overwrite": True}
    command(path="a.pth", output_dir="folder", image_size=(7, 8), overwrite=None)
    assert vars(seen[1]) == {"path": "a.pth", "output_dir": "folder", "image_size": [7, 8], "overwrite": False}


@pytest.mark.parametrize("program", [["-m", "hf_simmim"], ["examples/run_mim.py"]])
def test_the_ways_to_start_a_command(program, request):
    words = [] if program[0] != "-m" else ["pretrain"]
    command = [sys.executable, *program, *words, "--mask_rato", "0.5"]
    done = subprocess.run(command, cwd=request.config.rootpath, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.strip().endswith("error: unknown option --mask_rato. Did you mean --mask_ratio?")


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ('{"a":' * 20_000, "is not valid JSON"),
        ('{"report_to": ["nothing"]}', "report_to='nothing' is unknown. Use all, none, or some of: azure_ml,"),
        ('{"report_to": "neptune"}', "report_to='neptune' needs a package that is not installed"),
        ('{"deepspeed": {"a": 1}}', "an option has an invalid value: .*deepspeed"),
        ('{"accelerator_config": {"kind": 0}}', "an option has an invalid value: .*kind"),
        ('{"seed": 100000000000000000000, "ddp_timeout": 1e300}', "invalid"),
    ],
)
def test_recipes_that_libraries_refuse_are_one_line(tmp_path, recipe, message):
    path = tmp_path / "recipe.json"
    path.write_text(recipe)
    with pytest.raises(SystemExit, match=f"error: .*{message}"):
        main(["pretrain", "--recipe", str(path)])


VALUES: tuple = (None, True, 0, -1, 10**400, -0.5, 1e308, float("nan"), "", "auto", "x" * 300, "\0", "\ud800")
VALUES = (*VALUES, [], [[1]], {"a": 1})


@pytest.mark.parametrize("name", ["pretrain", "finetune", "segment", "probe", "compare", "embed", "reconstruct"])
def test_whatever_a_recipe_holds_is_taken_or_refused_in_words(tmp_path, name):
    command = importlib.import_module(f"hf_simmim.cli.{name}").COMMAND
    draw, path = random.Random(0), tmp_path / "recipe.json"
    options = sorted(command.option_names())
    for _ in range(60):
        recipe = {option: draw.choice(VALUES) for option in draw.sample(options, 2)}
        path.write_text(json.dumps(recipe))
        with contextlib.suppress(CommandError):
            command.parse(["--recipe", str(path)])
