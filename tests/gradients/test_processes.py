"""Two processes that share one batch: what each calls, jitted or not, is the gradient of the whole."""

import socket
import subprocess
import sys
import textwrap

WORKER = textwrap.dedent("""
    import sys
    import jax
    jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
    import numpy as np
    from jax.sharding import AxisType, NamedSharding, PartitionSpec
    import jaxrnn

    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    steps = NamedSharding(mesh, PartitionSpec(None, "data"))
    net = jaxrnn.Network((jaxrnn.Elman(5, 6),), jaxrnn.Readout(6, 5), jaxrnn.softmax_cross_entropy)
    params = net.init(jax.random.key(0))
    tokens = np.random.default_rng(0).integers(0, 5, (5, 4))
    function = jaxrnn.value_and_grad(net)
    expected = jax.jit(function)(params, tokens[:-1], tokens[1:])

    part = slice(2 * jax.process_index(), 2 * jax.process_index() + 2)
    local = lambda whole: jax.make_array_from_process_local_data(steps, whole[:, part], whole.shape)
    inputs, targets = local(tokens[:-1]), local(tokens[1:])
    everywhere = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
    for call in (function, jax.jit(function), jax.jit(jaxrnn.data_parallel(function, mesh))):
        found = jax.tree.map(lambda leaf: leaf.addressable_data(0), call(everywhere, inputs, targets))
        for mine, whole in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(mine, whole, rtol=1e-5, atol=1e-7)
    print("equal")
""")


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_two_processes_compute_the_gradient_of_the_whole_batch():
    coordinator = f"127.0.0.1:{free_port()}"
    run = [sys.executable, "-c", WORKER, coordinator]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    workers = [subprocess.Popen([*run, str(number)], **pipes) for number in range(2)]
    try:
        ends = [worker.communicate(timeout=120) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert all("equal" in out for out, _ in ends), ends
