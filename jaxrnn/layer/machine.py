"""What the machine says about where time is best cut: the sizes of its caches, or what was measured on it."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import pathlib
import platform
import re
import subprocess
import sys
import warnings

import jax

MB = 2**20
CACHES = pathlib.Path("/sys/devices/system/cpu/cpu0/cache")
PROCESSOR = pathlib.Path("/proc/cpuinfo")
# Where nothing is known of the caches, and the sizes that are believed: a container or a simulator may claim anything,
# and of hundreds of MB that all cores of a server share one process has a part.
USUAL_CACHE, LEAST_CACHE, MOST_CACHE = 32 * MB, 4 * MB, 64 * MB
LARGEST_FILE = 4 * MB  # a measured file has some kB


@dataclasses.dataclass(frozen=True)
class Limits:
    """Says where time is cut: a sequence not at all up to a size, a longer one into segments of another.

    No result depends on it, but for rounding.
    """

    whole_bytes: int  # up to where the steps of a sequence, as the reverse pass sees them, are left in one piece
    cache_bytes: int  # what a segment of a longer one is to occupy
    # Below this many (K B) the weight products of a segment spend more on reading and writing gradients than on
    # arithmetic.
    rows: int = 256

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if type(value) is not int or not 0 <= value <= 2**50:
                raise ValueError(f"{name} must be an int from 0 to 2**50, got {value!r}")

    @property
    def always_cut(self) -> Limits:
        """Returns the same for sequences of which little is kept: short ones are cut as well."""
        return dataclasses.replace(self, whole_bytes=0)

    @property
    def of_a_layer(self) -> Limits:
        """Returns what `unroll` is cut to.

        It keeps what the forward pass leaves of all steps anyway, and who calls it has such arrays in cache too.
        """
        # Loss and gradient through `jaxrnn.interop.flax.RNN`, cut to 4 MB of 32 MB of L3 and to 24 and 8 MB (python
        # scripts/bench_flax.py, T,B,D,H,V = 100,32,64,128,65, batch first): SimpleCell 6.4 and 7.1 ms, 7.6 and 10.7 MB;
        # GRUCell 19.2 and 19.3 ms, 14.4 and 16.9 MB; LSTMCell 24.0 and 21.9 ms, 16.6 and 18.5 MB (a busy machine).
        return Limits(self.cache_bytes // 2, self.cache_bytes // 2, self.rows)


def limits() -> Limits:
    """Returns the limits of the default device: measured by `jaxrnn tune`, or else what its caches suggest."""
    return _limits_of(jax.default_backend(), jax.process_count())


@functools.cache
def _limits_of(backend: str, processes: int) -> Limits:
    """Returns the limits of a kind of device; reads what there is once, so that equal calls are compiled once."""
    if processes > 1:  # which must all compile the same program, on whatever machine each of them runs
        return default_limits(backend, USUAL_CACHE)
    return read_measured(measured_file()) or default_limits(backend, cache_size())


def default_limits(backend: str, cache_bytes: int) -> Limits:
    """Returns limits that nobody has measured on the device itself.

    Args:
        backend: "cpu", or the kind of an accelerator, where no cache of the host counts.
        cache_bytes: what the last cache before memory claims to hold.
    """
    if backend != "cpu":
        # Nothing is measured on any accelerator: cut only where logits and factors of all steps would take memory that
        # parameters and states may need.
        return Limits(256 * MB, 64 * MB)
    # Measured on 2 cores with 1 MB of L2 each and 32 MB of L3, float32. A segment is fastest while what its reverse
    # pass touches stays near (T,B,D,H,V = 128,64,128,512,128, 96 MB as a whole: K = 128, 32, 8 take 88, 74, 61 ms); a
    # sequence that fits in L3 gains nothing from being cut (64,32,65,512,65, 22 MB: K = 64, 16, 4 take 13.6, 14.4,
    # 18.3 ms).
    cache = min(max(cache_bytes, LEAST_CACHE), MOST_CACHE)
    return Limits(whole_bytes=cache * 3 // 4, cache_bytes=cache // 4)


def mapped_anew() -> int:
    """Returns the size of blocks from which on the C library maps memory anew, page by page, at every call.

    XLA asks for all temporary memory of a program in one block. Where it is not known, it is more than any block has.
    """
    glibc = jax.default_backend() == "cpu" and (jax.process_count() > 1 or platform.libc_ver()[0] == "glibc")
    return 32 * MB if glibc else 2**60


def cache_size(folder: pathlib.Path = CACHES) -> int:
    """Returns the bytes of the last cache before memory: level 3, or all of level 2 where there is no other.

    Args:
        folder: where Linux describes the caches of a core.
    """
    sizes = _linux_caches(folder)
    if not sizes and sys.platform == "darwin":
        sizes = {level: size for level in (2, 3) if (size := _as_bytes(_sysctl(f"hw.l{level}cachesize")))}
    return sizes.get(3) or sizes.get(2) or USUAL_CACHE


def _linux_caches(folder: pathlib.Path) -> dict[int, int]:
    """Returns the bytes of the caches of each level; of level 2 those of all cores that this process may use."""
    sizes = {}
    for cache in sorted(folder.glob("index*")):
        try:
            level, size = int((cache / "level").read_text()), _as_bytes((cache / "size").read_text())
            sharing = int((cache / "shared_cpu_map").read_text().replace(",", ""), 16).bit_count()
        except (OSError, ValueError):  # a virtual machine may leave out what it likes
            continue
        sizes[level] = size * (max(1, cores() // max(1, sharing)) if level == 2 else 1)
    return sizes


def _as_bytes(text: str) -> int:
    """Reads "32768K" or "1048576"; 0 of anything else."""
    found = re.fullmatch(r"(\d{1,15})([KMG]?)\s*", text)
    return int(found[1]) * {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}[found[2]] if found else 0


def _sysctl(name: str) -> str:
    """Asks macOS for a value; an empty text where it has none."""
    try:
        return subprocess.run(["/usr/sbin/sysctl", "-n", name], capture_output=True, text=True, timeout=5).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def cores() -> int:
    """Counts the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def device_name() -> str:
    """Names the default device: processor, cores and cache, or the accelerator as it calls itself."""
    if jax.default_backend() != "cpu":
        return jax.devices()[0].device_kind
    return f"{_processor()}, {cores()} cores, {cache_size() / MB:g} MB of cache"


def _processor() -> str:
    try:
        facts = PROCESSOR.read_text(encoding="utf-8", errors="replace")
    except OSError:
        facts = _sysctl("machdep.cpu.brand_string") if sys.platform == "darwin" else ""
        return facts.strip() or platform.processor() or platform.machine()
    found = re.search(r"^model name\s*:\s*(\S.*?)\s*$", facts, re.MULTILINE)
    return found[1] if found else platform.machine()


def measured_file() -> pathlib.Path | None:
    """Returns where `jaxrnn tune` keeps what it measured on this device; None for a user without a home."""
    name = re.sub(r"[^a-z0-9]+", "-", device_name().lower()).strip("-")
    try:
        return cache_folder() / f"{name[:100]}.json"
    except RuntimeError:
        return None


def cache_folder() -> pathlib.Path:
    """Returns the user's folder for what can be made again: $XDG_CACHE_HOME/jaxrnn, or where the system has it."""
    given = pathlib.Path(os.environ.get("XDG_CACHE_HOME", ""))
    if given.is_absolute():  # by its specification a relative one does not count
        return given / "jaxrnn"
    if sys.platform == "win32" and "LOCALAPPDATA" in os.environ:
        return pathlib.Path(os.environ["LOCALAPPDATA"], "jaxrnn", "Cache")
    return pathlib.Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "jaxrnn"


def read_measured(path: pathlib.Path | None) -> Limits | None:
    """Reads the limits of a measured file; None where there is none, or, with a warning, where it is of no use."""
    try:
        if path is None or not path.exists():
            return None
        if not path.is_file() or path.stat().st_size > LARGEST_FILE:
            raise ValueError("it is not a file that jaxrnn tune wrote")
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict) or found.get("device") != device_name():
            raise ValueError("it does not say that it is of this device")
        return Limits(*(found.get(field.name, -1) for field in dataclasses.fields(Limits)))  # -1 is told as wrong
    except (OSError, ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        warnings.warn(
            f"{str(path)!r} is ignored, and lengths of segments come from the sizes of caches: {reason}. "
            "`jaxrnn tune` writes it anew, `jaxrnn tune --forget` deletes it.",
            stacklevel=2,
        )
        return None
