"""Trains on 1, 2 or 4 virtual devices of one process, and prints as JSON what came of it; a test reads it.

A process of its own, since the number of devices is chosen before JAX starts.
"""

import json
import pathlib
import sys
import tempfile

import jax
import numpy as np

import jaxrnn
from jaxrnn.tasks.base import Sequences
from jaxrnn.training import experiment
from jaxrnn.training.devices import make_mesh
from jaxrnn.training.fit import evaluate, fit
from jaxrnn.training.run_folder import Run
from jaxrnn.training.settings import Settings
from jaxrnn.training.step import adam, average_params, initial_train_state, make_step

STEPS = 40
LSTM, ELMAN = jaxrnn.LSTM(7, 12), jaxrnn.Elman(7, 12)
PROBLEMS = {
    "masks, dropout, noise, an average": ({"recurrent_dropout": 0.2}, LSTM, {"noise": 0.01}),
    "one answer, flow, a regulariser": ({"last_step": True}, ELMAN, {"flow": True, "vanishing": lambda step: 0.1}),
    "a learned state, autodiff": ({"learn_state": True}, ELMAN, {"gradient": "autodiff"}),
}


def batch(step, last_step):
    random = np.random.default_rng(step)
    tokens = random.integers(0, 7, (12, 8))
    mask = np.arange(11)[:, None] < random.integers(4, 12, 8)
    return Sequences(tokens[:-1], tokens[-1] if last_step else tokens[1:], mask, fresh=step % 4 == 0)


def train(network, cell, options, devices):
    """Returns losses, validation losses, flow, and whether state was donated, for one number of devices."""
    mesh = None if devices == 1 else make_mesh(devices)
    net = jaxrnn.Network((cell,), jaxrnn.Readout(12, 7), jaxrnn.softmax_cross_entropy, **network)
    optimizer, seen = average_params(adam(1e-2, STEPS, warmup=5), 0.9), []
    step = make_step(net, optimizer, mesh=mesh, **options)
    batches = lambda i: batch(i, net.last_step)
    outcome = fit(
        initial_train_state(net, optimizer, 8, jax.random.key(1)), step, batches, STEPS, mesh=mesh, every=20,
        log=seen.append, log_every=1, flow_every=STEPS,
        validate=lambda params: evaluate(net, params, [batches(99)], True, mesh),
    )  # fmt: skip
    shards = len(jax.tree.leaves(outcome.train.network_state)[0].addressable_shards)
    step(outcome.train, batches(0))
    return {
        "losses": [row[name] for name in ("loss", "validation_loss") for row in seen if name in row],
        "flow": [row["flow"] for row in seen if "flow" in row],
        "donated": all(leaf.is_deleted() for leaf in jax.tree.leaves(outcome.train)),
        "shards": shards,
    }


def go_on(folder, path):
    """Trains a text on one device, and then as much on 2, going on with 4 and with 1; returns both curves."""
    curves, settings = [], Settings(data=str(path), hidden=16, batch=4, chunk=16, steps=40, warmup=4)
    for name, stops in (("straight", {1: 40}), ("changed", {2: 14, 4: 28, 1: 40})):
        run = Run.create(folder / name, experiment.record(experiment.build(settings)))
        for devices, stop in stops.items():
            now = experiment.reopen(run)._replace(mesh=None if devices == 1 else make_mesh(devices))
            fit_to(now, run, now.state_of(run), stop)
        curves.append([row["loss"] for row in run.metrics() if "loss" in row])
    return curves


def fit_to(now, run, state, steps):
    log = lambda row: run.log({**row, "seconds": 0.0})
    save = lambda state, progress: run.save(state, int(state.step), progress)
    fit(state, now.make_step(), now.task.batch, steps, every=20, log=log, log_every=1, save=save, mesh=now.mesh)


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 4)
    found = {name: [train(*problem, devices) for devices in (1, 4)] for name, problem in PROBLEMS.items()}
    with tempfile.TemporaryDirectory() as folder:
        curves = go_on(pathlib.Path(folder), sys.argv[1])
    print(json.dumps({"problems": found, "curves": curves}))
