"""The command line as a whole: which commands there are, their help, and what is refused."""

import subprocess
import sys

import pytest

from hf_simmim.__main__ import main
from hf_simmim.cli import COMMANDS
from hf_simmim.cli.command import Command
from hf_simmim.cli.convert import ConvertArguments


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
