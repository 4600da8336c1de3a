"""What a run finds in its folder, writes down, and deletes."""

import json

import pytest

from hf_simmim.training.arguments import ReleasedTrainingArguments
from hf_simmim.training.run_folder import begin_run, check_same_run, prepare_output_dir, settings_before

SETTINGS = {"encoder": {"depth": 2, "width": 8}, "seed": 0}


def arguments(folder, **kwargs) -> ReleasedTrainingArguments:
    return ReleasedTrainingArguments(output_dir=str(folder), use_cpu=True, **kwargs)


def write(folder, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def names(folder) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_restart_deletes_the_run_and_nothing_else(tmp_path):
    mine = {"notes.md", "checkpoint-best/model.safetensors", "photos/1.png"}
    write(tmp_path, *mine, "checkpoint-5/model.safetensors", "reconstructions/step-5.png", "README.md", "results.json")
    begin_run(arguments(tmp_path), SETTINGS, ("reconstructions",))
    assert len(names(tmp_path)) == 8
    restarted = arguments(tmp_path, restart=True)
    assert prepare_output_dir(restarted) is None
    assert len(names(tmp_path)) == 8
    begin_run(restarted, {"seed": 1}, ("reconstructions",))
    assert names(tmp_path) == mine | {"run.json"}
    assert settings_before(tmp_path) == {"seed": 1}


def test_a_restart_where_no_run_was_leaves_files_of_its_names(tmp_path):
    write(tmp_path, "README.md", "results.json", "reconstructions/mine.png")
    before = names(tmp_path)
    begin_run(arguments(tmp_path, restart=True), SETTINGS, ("reconstructions",))
    assert names(tmp_path) == before | {"run.json"}


def test_another_run_is_refused(tmp_path):
    begin_run(arguments(tmp_path), SETTINGS)
    check_same_run(SETTINGS, tmp_path, resuming=True)
    # An older version wrote fewer keys.
    check_same_run(SETTINGS | {"new": 1}, tmp_path, resuming=True)
    other = SETTINGS | {"encoder": {"depth": 3, "width": 8}}
    with pytest.raises(ValueError, match=r"another encoder: \{'depth': 2\} then, \{'depth': 3\} now.*--restart"):
        check_same_run(other, tmp_path, resuming=True)
    check_same_run(other, tmp_path, resuming=False)
    assert json.loads((tmp_path / "run.json").read_text()) == SETTINGS
