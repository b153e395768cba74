"""The machine that a command runs on: its devices, its processes, and the C heap, before JAX starts."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import platform
import sys
from collections.abc import Callable
from typing import Any

import absl.logging
import click
import jax
from jax.sharding import Mesh

from jaxrnn.cli.group import console
from jaxrnn.layer.machine import cores
from jaxrnn.training import devices as training_devices
from jaxrnn.training.settings import Settings
from jaxrnn.training.signals import take_back

# A process that has said nothing for so long is taken for dead, and the others end.
SILENCE = 30


def with_processes(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the options by which several processes find one another, and joins these before the command runs."""

    @click.option(
        "--distributed",
        is_flag=True,
        help="Train with the other processes of this job of Slurm, Open MPI, Kubernetes or Cloud TPU.",
    )
    @click.option("--coordinator", metavar="HOST:PORT", help="Train with other processes; the first listens here.")
    @click.option("--processes", type=int, help="Say how many processes there are, with --coordinator.")
    @click.option("--process", type=int, help="Say which one this is, counted from 0, with --coordinator.")
    @functools.wraps(command)
    def run(
        distributed: bool, coordinator: str | None, processes: int | None, process: int | None, **options: Any
    ) -> None:
        join(distributed, coordinator, processes, process)
        command(**options)

    return run


def keep_the_heap() -> None:
    """Makes glibc keep the memory of large blocks for the next call; elsewhere does nothing."""
    if platform.libc_ver()[0] != "glibc":
        return
    # By itself it gives large blocks back, and the next step faults in every page of them again: without and with
    # MALLOC_MMAP_THRESHOLD_=33554432 MALLOC_TRIM_THRESHOLD_=2147483647 MALLOC_TOP_PAD_=67108864, `scripts/bench.py
    # --cell lstm --shapes 2` takes 84 and 70 ms, or 88 and 79 (AMD EPYC with AVX-512, jax 0.10.2). 32 MB is the largest
    # threshold that every glibc takes.
    libc = ctypes.CDLL(None)
    M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
    libc.mallopt(M_MMAP_THRESHOLD, 32 << 20)
    libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    libc.mallopt(M_TOP_PAD, 64 << 20)


def silence_libraries() -> None:
    """Leaves out what Orbax prints of an error besides raising it: a hundred lines, of what is told in one."""
    absl.logging.set_verbosity(absl.logging.FATAL)
    if getattr(sys.unraisablehook, "func", None) is not _show_unraisable:  # a caller in Python may come twice
        sys.unraisablehook = functools.partial(_show_unraisable, sys.unraisablehook)


def _show_unraisable(show: Callable[[Any], None], unraisable: Any) -> None:
    if str(unraisable.exc_value) != "Event loop is closed":  # a write that ends after the save that failed
        show(unraisable)


def use_all_cores() -> None:
    """Makes every core of a CPU a device, unless the environment says how many there are."""
    flag = "xla_force_host_platform_device_count"
    if "JAX_NUM_CPU_DEVICES" in os.environ or flag in os.environ.get("XLA_FLAGS", ""):
        return
    with contextlib.suppress(RuntimeError):  # where a caller in Python has started JAX, its devices are what there is
        jax.config.update("jax_num_cpu_devices", cores())


def join(distributed: bool, coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Joins the processes that train together; only the first one prints.

    Raises:
        ValueError: options that do not go together, or no cluster where one was to be found.
    """
    of_coordinator = (coordinator, processes, process)
    if not distributed and of_coordinator == (None, None, None):
        return
    if distributed and of_coordinator != (None, None, None):
        raise ValueError(
            "--distributed finds the other processes by itself: leave out --coordinator and what goes with it"
        )
    if not distributed and None in of_coordinator:
        raise ValueError("--coordinator, --processes and --process go together: give all three")
    if processes is not None and not 0 <= (process or 0) < processes:
        raise ValueError(f"--process must be 0 to {processes - 1}, as there are {processes} processes, got {process}")
    try:
        jax.distributed.initialize(coordinator, processes, process, heartbeat_timeout_seconds=SILENCE)
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"the processes did not find one another: {error}") from error
    take_back()  # what XLA tells preemptions by has taken SIGTERM, and a process would not end
    console.quiet = jax.process_index() > 0


def choose_devices(asked: int | None, settings: Settings, outputs: int) -> tuple[Mesh | None, str]:
    """Returns the devices that a training runs on, None for one device, and a line that says which and why.

    Raises:
        ValueError: more devices than there are, or a batch that does not divide by their number.
    """
    there, processes, batch = training_devices.devices_of_a_process(), jax.process_count(), settings.batch
    divide = [n for n in range(1, there + 1) if batch % (n * processes) == 0]
    if asked is not None and not 1 <= asked <= there:
        raise ValueError(f"--devices must be 1 to {there}, which are there, got {asked}")
    if not divide or (asked is not None and asked not in divide):
        among = f"{(asked or 1) * processes} devices"
        raise ValueError(f"--batch {batch} cannot be spread over {among}: it must be a multiple of their number")
    used, why = asked or divide[-1], "as --devices says"
    if asked is None:
        why = "all there are" if used == there else f"a batch of {batch} divides by no more"
        if processes == 1 and jax.default_backend() == "cpu":
            pay = training_devices.cores_that_pay(settings, outputs, divide)
            used, why = pay, why if pay == used else "which is faster at these sizes; --devices says otherwise"
    mesh = training_devices.make_mesh(used) if used * processes > 1 else None
    return mesh, _in_words(used, there, batch, why)


def _in_words(used: int, there: int, batch: int, why: str) -> str:
    first = jax.local_devices()[0]
    kind = "CPU cores" if first.platform == "cpu" else first.device_kind
    processes = jax.process_count()
    of_each = f"{processes} processes, each with " if processes > 1 else ""
    return f"Devices: {of_each}{used} of {there} {kind}, {batch // (used * processes)} sequences on each ({why})"
