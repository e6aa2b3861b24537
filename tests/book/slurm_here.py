"""A real SLURM of one node on this machine, on loopback, for as long as a test needs it."""

import getpass
import os
import shutil
import socket
import subprocess
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest

PATH = os.environ["PATH"] + ":/usr/sbin:/sbin"  # daemons are not on an ordinary user's path
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol")


def free_port():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


@contextmanager
def slurm(folder):
    """Start it; yields the environment in which its commands are called.  folder: short, sockets have a path limit."""
    if missing := [name for name in PROGRAMS if not shutil.which(name, path=PATH)]:
        pytest.skip(f"no {', '.join(missing)} on this machine: install slurm-wlm and munge")
    for name in ("state", "spool"):
        (folder / name).mkdir()
    folder.chmod(0o755)
    about = {"host": socket.gethostname().split(".")[0], "folder": folder, "user": getpass.getuser()}
    about |= {"controller_port": free_port(), "node_port": free_port()}
    about["memory"] = psutil.virtual_memory().total // 2**20  # MiB
    settings = folder / "slurm.conf"
    settings.write_text(Path(__file__).with_name("slurm.conf").read_text().format(**about))
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    files = [f"--{name}-file={folder}/munge.{name}" for name in ("key", "pid", "log", "seed")]
    munged = ["munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *files]
    environment = os.environ | {"SLURM_CONF": str(settings), "PATH": PATH, "SLURMD_NODENAME": about["host"]}
    with ExitStack() as stack:
        for command in (munged, ["slurmctld", "-D"], ["slurmd", "-D"]):
            log = stack.enter_context((folder / f"{command[0]}.out").open("w"))
            daemon = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
            stack.callback(daemon.wait, 20)
            stack.callback(daemon.terminate)
            time.sleep(1)
        nodes = ["sinfo", "-h", "-o", "%T"]
        end = time.monotonic() + 60
        while "idle" not in subprocess.run(nodes, env=environment, capture_output=True, text=True, check=False).stdout:
            assert time.monotonic() < end, "there was no idle node within 60 s"
            time.sleep(0.5)
        stack.callback(subprocess.run, ["scancel", "--user", about["user"]], env=environment)
        yield environment
