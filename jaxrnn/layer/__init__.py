"""One layer over time: forward, backward, and both as a differentiable function."""
