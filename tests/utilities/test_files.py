"""Files: written whole or not at all, through links, by one process at a time."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from utilities.files import atomic_write, locked, remove_parts, target


def test_atomic_write_keeps_the_old_file_on_an_exception(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_write(path) as part:
        part.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    with atomic_write(path) as part:
        part.write_text("new")
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_an_error_while_writing_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "history.dat"
    message = r"No space left on device: .*history\.dat"
    with pytest.raises(OSError, match=message), atomic_write(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # as file.write does


def test_a_link_to_a_result_stays_one_and_its_target_is_replaced(tmp_path: Path) -> None:
    """The kind: a name that leads to another file, also over several links and a linked folder."""
    (tmp_path / "disk").mkdir()
    result = tmp_path / "disk" / "a.txt"
    result.write_text("old")
    (tmp_path / "first.txt").symlink_to("disk/a.txt")
    (tmp_path / "second.txt").symlink_to(tmp_path / "first.txt")
    (tmp_path / "folder").symlink_to("disk")
    for name in ("first.txt", "second.txt", "folder/a.txt"):
        with atomic_write(tmp_path / name) as part:
            assert part.parent.resolve() == tmp_path / "disk"  # a rename can't leave its disk
            part.write_text(name)
        assert result.read_text() == name
    assert (tmp_path / "first.txt").is_symlink() and (tmp_path / "second.txt").is_symlink()
    assert os.listdir(tmp_path / "disk") == ["a.txt"]


@pytest.mark.parametrize("name", ["dangling", "circle", "folder", "to_folder"])
@pytest.mark.parametrize("write", [atomic_write, lambda path: locked(path, "wait")])
def test_what_no_result_can_replace_is_refused_before_anything_is_written(
    name: str, write, tmp_path: Path
) -> None:
    (tmp_path / "dangling").symlink_to("none/a.txt")
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "folder").mkdir()
    (tmp_path / "to_folder").symlink_to("folder")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(OSError, match=name.removeprefix("to_")) as error, write(tmp_path / name):
        pytest.fail("it was let in")
    remedy = "choose another" if name.endswith("folder") else "remove the link"
    assert remedy in str(error.value) and "\n" not in str(error.value)
    assert sorted(tmp_path.iterdir()) == before and not list((tmp_path / "folder").iterdir())


def test_a_device_is_no_result() -> None:
    with pytest.raises(OSError, match="no plain file"):
        target(os.devnull)


HOLDER = "import sys, time; from utilities.files import locked\n"
HOLDER += "with locked(sys.argv[1], 'wait'): print('held', flush=True); time.sleep(60)"


def hold(path: Path) -> subprocess.Popen[str]:
    """Another process that holds the lock of ``path``."""
    command = [sys.executable, "-c", HOLDER, str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_a_second_writer_is_refused_and_a_killed_one_leaves_the_way_free(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.h5"
    holder = hold(path)
    link = tmp_path / "link.h5"
    link.symlink_to(path)
    path.write_text("here")
    for name in (path, link):  # two names of one file
        with (
            pytest.raises(ValueError, match=r"a\.h5: another process .* wait for it, or rename"),
            locked(name, "rename"),
        ):
            pytest.fail("two hold it")
    with locked(path.with_suffix(".pt"), "rename"):
        pass  # another result of the same stem
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    for _ in range(2):
        with locked(path, "rename"):
            pass


def test_a_lock_is_free_again_after_an_exception(tmp_path: Path) -> None:
    with pytest.raises(KeyError), locked(tmp_path / "a", "rename"):
        raise KeyError
    with locked(tmp_path / "a", "rename"):
        pass


def test_parts_of_a_longer_name_are_not_removed(tmp_path: Path) -> None:
    """The kind: a name that goes on with a dot where another one ends."""
    parts = {}
    for name in ("rho0.pt", "rho0.05.pt"):
        with pytest.raises(KeyboardInterrupt), atomic_write(tmp_path / name) as part:
            part.write_text("half")
            parts[name] = part
            raise KeyboardInterrupt
        part.write_text("half")  # as a kill leaves it
    remove_parts(tmp_path / "rho0.pt")
    assert list(tmp_path.iterdir()) == [parts["rho0.05.pt"]]
