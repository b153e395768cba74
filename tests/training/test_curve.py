"""The learning curve shows its data."""

import numpy as np

from jaxrnn.training.curve import learning_curve


def test_the_history_of_the_flow_is_drawn_beside_the_curve():
    metrics = [{"step": 5, "loss": 1.0}, {"step": 10, "loss": 0.5}]
    history = [{"step": s, "flow": [[0.1 * s, 0.2 * s, 0.3 * s]]} for s in (5, 10)]
    figure = learning_curve(metrics + history, {"uniform": 2.0}, "nats per step")
    assert figure.axes[0].get_ylabel() == "nats per step"
    lines = {line.get_label(): line.get_xydata() for line in figure.axes[0].lines}
    assert np.allclose(lines["training"], [[5, 1.0], [10, 0.5]])
    mesh = figure.axes[1].collections[0].get_array()
    assert np.allclose(mesh, np.log10([[1.5, 3.0], [1.0, 2.0], [0.5, 1.0]]))  # the last step first
    assert len(learning_curve(metrics, {}).axes) == 1
