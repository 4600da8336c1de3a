"""Files of strangers are read without running anything that they say."""

import os
import pathlib
import pickle
import zipfile
from collections import Counter

import pytest
import torch
from original_files import CfgNode, save

from hf_simmim.checkpoints.pth_files import read_pth

LEGACY = pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])


class Touch:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (self.path,)


class System:
    """Runs a command when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


class Evaluate(System):
    """Evaluates a text when it is unpickled."""

    def __reduce__(self):
        return eval, (f"open({str(self.path)!r}, 'w')",)


def by_state(path):
    """The config's own kind of node, with a state that runs a command."""
    node = CfgNode({"DATA": {"IMG_SIZE": 96}})
    node.__dict__["__immutable__"] = System(path)
    return node


@LEGACY
@pytest.mark.parametrize(
    ("make", "names"), [(Touch, "pathlib"), (System, "system"), (Evaluate, "eval"), (by_state, "system")]
)
@pytest.mark.parametrize("place", ["config", "model"])
def test_code_in_a_file_is_not_run(tmp_path, make, names, place, legacy):
    victim = tmp_path / "victim"
    content = {"model": {"weight": torch.ones(2)}} | {place: {"weight": torch.ones(2), "node": make(victim)}}
    path = save(content, tmp_path / "file.pth", legacy=legacy)
    with pytest.raises(ValueError, match=rf"uses \S*{names}.* No code in it was run"):
        read_pth(path)
    assert not victim.exists()


def test_the_files_do_harm_where_they_are_trusted(tmp_path):
    """Or else the test above would prove nothing."""
    for make in (Touch, System, Evaluate):
        path = save({"model": make(tmp_path / make.__name__)}, tmp_path / "file.pth")
        torch.load(path, weights_only=False)
        assert (tmp_path / make.__name__).exists()


def test_stand_ins_are_not_what_they_stand_for(tmp_path):
    """A call of what getattr would have given is refused, for nothing was got."""

    class Call:
        def __reduce__(self):
            return Attribute(), (f"touch {tmp_path / 'victim'}",)

    class Attribute:
        def __reduce__(self):
            return getattr, (Holder, "system")

        def __call__(self, *args):
            raise AssertionError

    with pytest.raises(ValueError, match="No code in it was run"):
        read_pth(save({"model": Call()}, tmp_path / "file.pth"))
    assert not (tmp_path / "victim").exists()


class Holder:
    """Stands for a module that pickle cannot name."""

    system = staticmethod(os.system)


def test_what_the_process_allows_is_not_allowed_here(tmp_path):
    torch.serialization.add_safe_globals([pathlib.Path.touch])
    try:
        before = set(torch.serialization.get_safe_globals())
        with pytest.raises(ValueError, match="uses "):
            read_pth(save({"model": Touch(tmp_path / "victim")}, tmp_path / "file.pth"))
        assert set(torch.serialization.get_safe_globals()) == before
    finally:
        torch.serialization.clear_safe_globals()
    assert not (tmp_path / "victim").exists()


@LEGACY
def test_tensors_and_stored_config_are_read(tmp_path, legacy):
    config = {"DATA": {"IMG_SIZE": 96, "SCALE": (0.67, 1.0)}, "MODEL": {"TYPE": "swin"}}
    content = {"model": {"weight": torch.arange(6.0).view(2, 3)}, "config": config, "epoch": 7}
    read = read_pth(save(content, tmp_path / "file.pth", legacy=legacy))
    assert read["config"] == config
    assert type(read["config"]["DATA"]) is dict
    assert torch.equal(read["model"]["weight"], content["model"]["weight"])
    assert read["epoch"] == 7


def test_attributes_do_not_stand_in_for_methods(tmp_path):
    node = CfgNode({"IMG_SIZE": 96})
    node.__dict__.update(items="no method", get=3, keys=None)
    assert read_pth(save({"config": node}, tmp_path / "file.pth"))["config"] == {"IMG_SIZE": 96}


def test_containers_that_hold_themselves_are_read(tmp_path):
    loop: dict = {}
    loop["loop"] = loop
    read = read_pth(save({"model": loop}, tmp_path / "file.pth"))
    assert read["model"]["loop"] is read["model"]


@LEGACY
@pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
def test_cut_off_files_are_refused(tmp_path, legacy, share):
    path = save({"model": {"weight": torch.ones(2000)}}, tmp_path / "file.pth", legacy=legacy)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ValueError, match="truncated"):
        read_pth(path)


def test_other_kinds_of_files_are_refused(tmp_path):
    path = tmp_path / "file.pth"
    with pytest.raises(ValueError, match="does not exist"):
        read_pth(path)
    with pytest.raises(ValueError, match="is a folder"):
        read_pth(tmp_path)
    for content in (b"", b"<!DOCTYPE html><html>", pickle.dumps({"model": System(tmp_path / "victim")})):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="not a file of torch.save: it begins with"):
            read_pth(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("photos/one.txt", "hello")
    with pytest.raises(ValueError, match="zip archive, but not of torch.save"):
        read_pth(path)
    torch.jit.script(torch.nn.Linear(2, 2)).save(path)
    with pytest.raises(ValueError, match="TorchScript"):
        read_pth(path)
    assert not (tmp_path / "victim").exists()


def archive(path, pickled: bytes, compression: int = zipfile.ZIP_STORED):
    """A file of torch.save with a pickle of one's own."""
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in (("data.pkl", pickled), ("version", b"3\n"), ("byteorder", b"little")):
            file.writestr(f"archive/{name}", content)
    return path


class Calls:
    """Is pickled as a call."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def nested(depth: int) -> list:
    lists: list = [1]
    for _ in range(depth):
        lists = [lists, lists]
    return lists


# A tuple of tuples 40 times, each twice: its hash alone would take hours.
PAIRS = b"K\x01K\x02\x86" + b"".join(b"q%ch%c\x86" % (index, index) for index in range(40))


@LEGACY
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": Calls(bytearray, 10**11)}, "calls bytearray"),
        ({complex(1, 2): 1}, "calls complex"),
        ({(1, 2): 1}, "a key that is a tuple"),
        ({2**100: 1}, "an integer of 101 bits"),
        ({"kinds": {(1, 2)}}, "a set of other things"),
        ({"config": nested(40)}, "lists in lists"),
    ],
)
def test_content_without_end_is_refused_at_once(tmp_path, content, message, legacy):
    path = save(content, tmp_path / "file.pth", legacy=legacy)
    with pytest.raises(ValueError, match=f"is not read, since .*{message}.* No code in it was run"):
        read_pth(path)


def test_archives_without_end_are_refused_at_once(tmp_path):
    path = tmp_path / "file.pth"
    with pytest.raises(ValueError, match=r"archive/data.pkl is compressed, which torch\.save never does"):
        read_pth(archive(path, b"\x80\x02](" + b"K\x01" * 10**7 + b"e.", zipfile.ZIP_DEFLATED))
    with pytest.raises(ValueError, match="a key that is a tuple"):
        read_pth(archive(path, b"\x80\x02}(" + PAIRS + b"K\x01u."))
    with pytest.raises(ValueError, match="more than 3000000 steps"):
        read_pth(archive(path, b"\x80\x02](" + b"N" * 3_100_000 + b"e."))
    kind = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
    storage = kind + b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpu\x8a\x05\x00\x00\x00\x00\x10tQ"
    with pytest.raises(ValueError, match="a tensor claims 68719476736 numbers, more than the file holds"):
        read_pth(archive(path, b"\x80\x02" + storage + b"."))


@LEGACY
def test_sets_and_counters_of_schedules_are_read(tmp_path, legacy):
    content = {"model": {"w": torch.ones(2)}, "milestones": Counter([3, 3]), "frozen": {"a", "b"}}
    read = read_pth(save(content, tmp_path / "file.pth", legacy=legacy))
    assert read["milestones"] == {3: 2}
    assert read["frozen"] == {"a", "b"}
