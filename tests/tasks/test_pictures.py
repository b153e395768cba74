"""The pictures show the answers."""

import numpy as np

from jaxrnn.tasks import pictures


def test_the_pictures_of_answers():
    counts = pictures.confusion(np.array([0, 0, 1]), np.array([[2.0, 1.0], [0.0, 1.0], [0.0, 1.0]]))
    assert np.allclose(counts.axes[0].images[0].get_array(), [[0.5, 0.5], [0, 1]])
    points = pictures.answers(np.array([0.0, 1.0]), np.array([0.2, 0.9])).axes[0].lines[1].get_xydata()
    assert np.allclose(points, [[0.0, 0.2], [1.0, 0.9]])
