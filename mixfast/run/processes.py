"""The processes that torchrun or srun has started for one command: their numbers, and where they meet."""

import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

import mixfast
from mixfast import world
from mixfast.errors import ConfigError
from mixfast.world import current

_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_SRUN = (
    *("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_NODEID"),
    *("SLURM_STEP_TASKS_PER_NODE", "SLURM_STEP_NODELIST", "SLURM_JOB_ID", "SLURM_STEP_ID"),
)
_PROCESS_COUNTS = ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
_PORTS = (20_000, 10_000)  # the first port that tasks of srun may meet at, and their number


class Launch(NamedTuple):
    """The place of a process among those of its command."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    init_method: str  # as for torch.distributed.init_process_group


def launched(environment: Mapping[str, str]) -> Launch | None:
    """What torchrun, or else srun, says in the environment of a process; None if neither has started it."""

    def number(name: str) -> int:
        return int(environment[name])

    if all(environment.get(name) for name in _TORCHRUN):
        rank, size = number("RANK"), number("WORLD_SIZE")
        return Launch(rank, size, number("LOCAL_RANK"), number("LOCAL_WORLD_SIZE"), "env://")
    if not all(environment.get(name) for name in _SRUN):
        return None
    host = environment.get("MASTER_ADDR") or first_host(environment["SLURM_STEP_NODELIST"])
    own_port = _PORTS[0] + (number("SLURM_JOB_ID") * 31 + number("SLURM_STEP_ID")) % _PORTS[1]
    port = environment.get("MASTER_PORT") or own_port
    local_size = tasks_per_node(environment["SLURM_STEP_TASKS_PER_NODE"])[number("SLURM_NODEID")]
    rank, size = number("SLURM_PROCID"), number("SLURM_STEP_NUM_TASKS")
    return Launch(rank, size, number("SLURM_LOCALID"), local_size, f"tcp://{host}:{port}")


def first_host(nodes: str) -> str:
    """The first name of a list in SLURM's form: "gpu[03-05,09],login1" gives gpu03."""
    first = re.split(r",(?![^\[]*\])", nodes)[0]
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first)


def tasks_per_node(counts: str) -> list[int]:
    """Tasks of each node from SLURM's form: "4(x2),3" gives [4, 4, 3]."""
    tasks = []
    for part in counts.split(","):
        count, _, repeated = part.partition("(x")
        tasks += [int(count)] * int(repeated.rstrip(")") or 1)
    return tasks


def join_processes(arguments: Sequence[str]) -> None:
    """Meet the other processes if torchrun or srun has started several, all with the same command line.

    Raises:
        ConfigError: something else has started several, or not alike. PlatformError: they cannot be reached.
    """
    launch = launched(os.environ)
    if launch is None:
        refuse_several_processes("this command takes one process, or several that torchrun or srun starts")
    elif launch.size > 1:
        world.join(launch.rank, launch.size, launch.local_rank, launch.local_size, init_method=launch.init_method)
        facts = {"command line": list(arguments), "Python": sys.version}
        current().compare(
            {**facts, "mixfast": mixfast.__version__, "torch": torch.__version__}, advice="Start all alike."
        )


def refuse_several_processes(what: str = "this command takes one process and one device") -> None:
    """Raise a ConfigError if this process is one of several that torchrun, srun or mpirun started for one command."""
    for name in _PROCESS_COUNTS:
        count = os.environ.get(name, "")
        if name.startswith("SLURM") and ("SLURM_PROCID" not in os.environ or not count):
            continue
        if count.isdigit() and int(count) > 1:
            raise ConfigError(
                f"{name} is {count}: {what}, and each of the {count} would do the same work again. Start it in one "
                "task (docs/distributed.md)."
            )
        if name == "SLURM_STEP_NUM_TASKS":
            return  # of this step; SLURM_NTASKS counts the whole job's
