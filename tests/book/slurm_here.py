"""A real SLURM of one node on this machine, on loopback, for as long as a test needs it."""

import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from contextlib import contextmanager

import psutil

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol")
PARTITION = "pages"
SETTINGS = """
ClusterName=here
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=100000
MpiDefault=none
ReturnToService=2
MinJobAge=300
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} RealMemory={memory} State=UNKNOWN
PartitionName={partition} Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing():
    """Why there can be no SLURM here, or None."""
    lacking = [name for name in PROGRAMS if not shutil.which(name, path=path())]
    return f"no {', '.join(lacking)}: install slurm-wlm and munge" if lacking else None


def path():
    """Where programs are searched; daemons are not on an ordinary user's path."""
    return os.environ["PATH"] + ":/usr/sbin:/sbin"


def free_port():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


@contextmanager
def slurm(folder, cores=2):
    """Start it; yields the environment in which its commands are called.  folder: short, sockets have a path limit."""
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    folder.chmod(0o755)
    host = socket.gethostname().split(".")[0]
    known = {"host": host, "folder": folder, "user": getpass.getuser(), "cores": cores, "partition": PARTITION}
    known["memory"] = psutil.virtual_memory().total // 2**20  # MiB
    settings = folder / "slurm.conf"
    settings.write_text(SETTINGS.format(controller_port=free_port(), node_port=free_port(), **known))
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    environment = os.environ | {"SLURM_CONF": str(settings), "PATH": path(), "SLURMD_NODENAME": host}
    files = {f"--{name}-file": str(folder / f"munge.{name}") for name in ("key", "pid", "log", "seed")}
    files["--socket"] = str(folder / "munge.socket")
    commands = [
        ["munged", "--foreground", "--force", *(f"{name}={value}" for name, value in files.items())],
        ["slurmctld", "-D"],
        ["slurmd", "-D"],
    ]
    daemons = []
    try:
        for command in commands:
            log = (folder / f"{command[0]}.out").open("w")
            daemons.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True))
            time.sleep(1)
        wait_for(lambda: "idle" in output(environment, "sinfo", "-h", "-o", "%T"), 60, "an idle node")
        yield environment
    finally:
        for daemon in reversed(daemons):
            daemon.send_signal(signal.SIGTERM)
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()


def output(environment, *command):
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False).stdout


def wait_for(holds, seconds, what):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"there was no {what} within {seconds} s"
        time.sleep(0.5)
