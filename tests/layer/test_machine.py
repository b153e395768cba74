"""The machine: its caches as the system describes them, and a measured file, which decides where time is cut."""

import json
import subprocess
import warnings

import jax
import jax.numpy as jnp
import pytest
from oracles import relative_error
from problems import Problem
from programs import loops_of

import jaxrnn
from jaxrnn.layer import machine
from jaxrnn.layer.machine import MB, Limits, cache_size, default_limits


@pytest.fixture
def caches(tmp_path, monkeypatch):
    """Returns a function that makes a folder of caches, (level, size, map of the cores that share it) each."""
    monkeypatch.setattr(machine.sys, "platform", "linux")
    monkeypatch.setattr(machine, "cores", lambda: 8)

    def make(*found):
        for number, values in enumerate(found):
            folder = tmp_path / f"index{number}"
            folder.mkdir()
            for name, value in zip(("level", "size", "shared_cpu_map"), values, strict=True):
                (folder / name).write_text(f"{value}\n")
        return tmp_path

    return make


FIRST = (1, "48K", "00000001")
MACHINES = {  # what the system says -> the size of the last cache, and what is believed of it
    "level 3": ([FIRST, (2, "1024K", "1"), (3, "32768K", "0000ffff")], 32 * MB, 32 * MB),
    "no level 3": ([FIRST, (2, "1024K", "00000001")], 8 * MB, 8 * MB),
    "level 2 of four cores": ([FIRST, (2, "12M", "f")], 24 * MB, 24 * MB),
    "level 2 of all cores": ([FIRST, (2, "1024K", "00000000,000000ff")], MB, 4 * MB),
    "a server": ([FIRST, (3, "384M", "ffffffff,ffffffff")], 384 * MB, 64 * MB),
    "nothing": ([], 32 * MB, 32 * MB),
    "zero": ([(3, "0K", "1")], 32 * MB, 32 * MB),
    "nonsense": ([(3, "large", "1"), ("x", "32M", "1"), (2, "2M", "-")], 32 * MB, 32 * MB),
}


@pytest.mark.parametrize(("found", "size", "believed"), MACHINES.values(), ids=MACHINES)
def test_the_caches_of_linux(caches, found, size, believed):
    folder = caches(*found)
    assert cache_size(folder) == size
    assert default_limits("cpu", size) == Limits(believed * 3 // 4, believed // 4, 256)


def test_a_container_without_caches(tmp_path, monkeypatch):
    monkeypatch.setattr(machine.sys, "platform", "linux")
    assert cache_size(tmp_path / "cache") == machine.USUAL_CACHE


@pytest.mark.parametrize(("said", "size"), [({"hw.l2cachesize": "16777216\n"}, 16 * MB), ({}, 32 * MB)])
def test_the_caches_of_a_mac(tmp_path, monkeypatch, said, size):
    def run(command, **options):
        return subprocess.CompletedProcess(command, 0, said.get(command[-1], ""), "")

    monkeypatch.setattr(machine.sys, "platform", "darwin")
    monkeypatch.setattr(machine.subprocess, "run", run)
    assert cache_size(tmp_path / "cache") == size


def test_an_accelerator_is_cut_for_memory_alone():
    one, other = (default_limits("gpu", size) for size in (4 * MB, 64 * MB))
    assert one == other
    assert one.whole_bytes > 64 * MB


def test_several_processes_decide_alike_whatever_their_machines_say(measured):
    measured(Limits(100, 50))
    assert machine._limits_of("cpu", 1) == Limits(100, 50)
    assert machine._limits_of("cpu", 2) == default_limits("cpu", machine.USUAL_CACHE)


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """Returns a function that writes the measured file of this device, of limits or of any text, and its path."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def write(limits):
        path = machine.measured_file()
        path.parent.mkdir(exist_ok=True)
        facts = {"device": machine.device_name()}
        if isinstance(limits, Limits):
            limits = facts | vars(limits) | {"figures": [1.0]}
        path.write_bytes(limits if isinstance(limits, bytes) else json.dumps(limits).encode())
        machine._limits_of.cache_clear()
        return path

    yield write
    machine._limits_of.cache_clear()


@pytest.mark.usefixtures("float64")
def test_a_measured_file_changes_lengths_and_no_gradient(measured):
    problem = Problem(jaxrnn.GRU, T=24, batch=(4,), masked=True, reset=True)
    given = problem.arguments()
    params, inputs = given.params.layers[0], given.inputs

    def found():
        """Computes the lengths and the gradients; the functions are new, or jit would take the programs of before."""
        layer = lambda inputs: jaxrnn.unroll(problem.net.layers[0], params, inputs)[0].sum()
        network = lambda given: jaxrnn.value_and_grad(problem.net)(*given)
        lengths = jaxrnn.plan(problem.net, inputs, compute_dtype=jnp.float64).lengths
        return lengths, loops_of(network, given), jax.jit(network)(given), jax.jit(jax.grad(layer))(inputs)

    usual = found()
    measured(Limits(whole_bytes=100, cache_bytes=2000, rows=16))
    other = found()
    assert (usual[0], other[0]) == ((24,), (4,))
    assert 6 not in usual[1]
    assert 6 in other[1]
    assert relative_error(other[2:], usual[2:]) <= 1e-12


def test_equal_options_compile_once(measured):
    measured(Limits(whole_bytes=100, cache_bytes=2000, rows=16))
    problem = Problem(T=24)
    traced = []

    @jax.jit
    def step(params, inputs, targets):
        traced.append(inputs)
        return jaxrnn.value_and_grad(problem.net)(params, inputs, targets)

    given = problem.arguments()[:3]
    for _ in range(2):
        step(*given)
    assert len(traced) == 1
    assert machine.limits() is machine.limits()


WHOLE = {"whole_bytes": 300, "cache_bytes": 200, "rows": 8}
DAMAGED = {
    "empty": b"",
    "cut": b'{"device": ',
    "not a text": b"\xff\xfe\x00",
    "not an object": [1],
    "deep": b"[" * 100_000,
    "of no device": WHOLE,
    "of another device": WHOLE | {"device": "abacus"},
    "nothing in it": {},
    "a size missing": {"whole_bytes": 300, "cache_bytes": 200},
    "a float": WHOLE | {"rows": 8.0},
    "a bool": WHOLE | {"rows": True},
    "below zero": WHOLE | {"cache_bytes": -1},
    "absurd": WHOLE | {"whole_bytes": 10**30},
    "large": b" " * (machine.LARGEST_FILE + 1),
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_file_that_is_of_no_use_is_ignored_with_one_warning(measured, content):
    if isinstance(content, dict) and content is not WHOLE:
        content = {"device": machine.device_name()} | content
    path = measured(content)
    with pytest.warns(UserWarning, match="is ignored") as told:
        found = [machine.limits() for _ in range(3)]
    assert found == [default_limits("cpu", machine.USUAL_CACHE)] * 3
    assert len(told) == 1
    assert str(path) in str(told[0].message)


@pytest.mark.parametrize("make", ["mkdir", "fifo"])
def test_what_is_no_file_is_ignored(measured, make):
    path = measured(WHOLE)
    path.unlink()
    path.mkdir() if make == "mkdir" else machine.os.mkfifo(path)
    with pytest.warns(UserWarning, match="is ignored"):
        assert machine.limits() == default_limits("cpu", machine.USUAL_CACHE)


def test_without_a_file_nothing_is_said(tmp_path, monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert machine.read_measured(None) is None
        assert machine.read_measured(tmp_path / "none.json") is None


@pytest.mark.parametrize(
    ("platform", "given", "folder"),
    [
        ("linux", {}, ".cache/jaxrnn"),
        ("linux", {"XDG_CACHE_HOME": "relative"}, ".cache/jaxrnn"),
        ("darwin", {}, "Library/Caches/jaxrnn"),
        ("win32", {"LOCALAPPDATA": "/home/local"}, "local/jaxrnn/Cache"),
        ("darwin", {"XDG_CACHE_HOME": "/home/given"}, "given/jaxrnn"),
    ],
)
def test_the_folder_is_where_the_system_keeps_such_files(monkeypatch, platform, given, folder):
    monkeypatch.setattr(machine.sys, "platform", platform)
    monkeypatch.delenv("XDG_CACHE_HOME")
    for name, value in {"HOME": "/home", **given}.items():
        monkeypatch.setenv(name, value)
    assert machine.cache_folder().as_posix() == f"/home/{folder}"


def test_a_processor_is_named(tmp_path, monkeypatch):
    facts = tmp_path / "cpuinfo"
    facts.write_text("processor : 0\nmodel name\t: A Processor (R) @ 2 GHz \nflags : fpu\n")
    monkeypatch.setattr(machine, "PROCESSOR", facts)
    monkeypatch.setattr(machine, "cores", lambda: 2)
    assert machine.device_name() == "A Processor (R) @ 2 GHz, 2 cores, 32 MB of cache"
    assert machine.measured_file().name == "a-processor-r-2-ghz-2-cores-32-mb-of-cache.json"


@pytest.mark.parametrize(
    ("backend", "libc", "size"), [("cpu", "glibc", 2**25), ("cpu", "", 2**60), ("gpu", "glibc", 2**60)]
)
def test_where_memory_is_mapped_anew(monkeypatch, backend, libc, size):
    monkeypatch.setattr(machine.jax, "default_backend", lambda: backend)
    monkeypatch.setattr(machine.platform, "libc_ver", lambda: (libc, ""))
    assert machine.mapped_anew() == size


@pytest.mark.parametrize("name", ["whole_bytes", "cache_bytes", "rows"])
def test_limits_are_ints(name):
    with pytest.raises(ValueError, match=f"{name} must be an int"):
        Limits(**{**WHOLE, name: -1})
