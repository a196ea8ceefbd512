"""Trainings through torchrun, and through the example for SLURM."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from forks import LIMIT
from processes import flags, history, last_of

from trainings import my_train_GCN
from utilities.files import ROOT


def torchrun(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", *map(str, arguments)]


def test_torchrun_starts_again_after_a_killed_worker(data_dir: Path, tmp_path: Path) -> None:
    more = ("--epochs=40", "--batch_size=14", "--save_seconds=0", "--tensorboard", "--dropout=0")
    argv = flags("GCN", data_dir, tmp_path / "two", *more)
    command = torchrun("--standalone", "--nproc_per_node=2", "--max_restarts=3")
    command += [str(ROOT / "trainings/my_train_GCN.py"), *argv, "--resume"]
    run = subprocess.Popen(command, cwd=ROOT, stdout=-1, stderr=-1, text=True)
    assert run.stdout is not None and run.stderr is not None
    before = []
    for line in run.stdout:
        before.append(line)
        if line.strip().startswith("10 "):
            break
    workers = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    os.kill(int(workers[1]), signal.SIGKILL)
    after, errors = run.communicate(timeout=LIMIT)
    assert run.returncode == 0, errors
    assert "goes on, " in after
    for line in ("files written:", "best epoch"):
        assert ("".join(before) + after).count(line) == 1  # one process speaks
    assert history(tmp_path / "two")["epoch"].tolist() == list(range(1, 41))
    assert last_of(tmp_path / "two")["record"]["processes"] == "2"
    writers = list((tmp_path / "two/outputs/tensorboard").rglob("events*"))
    assert len(writers) == 2  # one for each start
    my_train_GCN.main(flags("GCN", data_dir, tmp_path / "one", *more))
    one, two = history(tmp_path / "one"), history(tmp_path / "two")
    # ADAM in float32 amplifies the order of summation, so only the first epochs are compared.
    assert (one["val_loss"][:10] - two["val_loss"][:10]).abs().max() < 1e-3


def test_the_slurm_example_trains_and_stops_where_slurm_says(
    data_dir: Path, tmp_path: Path
) -> None:
    """SLURM's commands are replaced by scripts that do on this machine what they do there."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool, body in {
        "srun": 'exec "$@"',
        "torchrun": f'exec {sys.executable} -m torch.distributed.run "$@"',
        "scontrol": 'if [ "$1" = show ]; then echo 127.0.0.1; else echo "queued $2"; fi',
        # Only torchrun's own process, as it is the one that srun started.
        "scancel": f"kill $1 $(cat {tmp_path}/step) 2>/dev/null".replace("$1", "-TERM"),
    }.items():
        (tools / tool).write_text(f"#!/bin/bash\n{body}\n")
        (tools / tool).chmod(0o755)
    (tools / "srun").write_text(f'#!/bin/bash\necho $$ > {tmp_path}/step\nexec "$@"\n')
    slurm = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "here", "SLURM_JOB_NUM_NODES": "1"}
    slurm |= {"SLURM_SUBMIT_DIR": str(tmp_path), "PROCESSES": "2", "SLURM_CPUS_PER_TASK": "2"}
    environment = {**os.environ, **slurm, "PATH": f"{tools}:{os.environ['PATH']}"}
    argv = flags("GCN", data_dir, tmp_path, "--epochs=100000", "--batch_size=14")
    command = ["bash", str(ROOT / "examples/slurm_train.sh")]
    command += [str(ROOT / "trainings/my_train_GCN.py"), *argv]
    run = subprocess.Popen(command, env=environment, stdout=-1, stderr=-1, text=True)
    assert run.stdout is not None
    for line in run.stdout:
        if line.strip().startswith("20 "):
            break
    run.send_signal(signal.SIGUSR1)
    rest, errors = run.communicate(timeout=LIMIT)
    assert "queued 7" in rest
    assert errors.count("saved; go on with: torchrun --nproc_per_node=2") == 1
    last = last_of(tmp_path)
    assert last["epoch"] >= 20 and last["resume"]["rows"][-1]["epoch"] == last["epoch"]


@pytest.mark.skipif(shutil.which("shellcheck", path=Path(sys.executable).parent) is None,
                    reason="no shellcheck")  # fmt: skip
def test_the_examples_pass_shellcheck() -> None:
    tool = Path(sys.executable).parent / "shellcheck"
    scripts = sorted((ROOT / "examples").glob("*.sh"))
    done = subprocess.run([tool, *scripts], capture_output=True, text=True)
    assert scripts and done.returncode == 0, done.stdout
