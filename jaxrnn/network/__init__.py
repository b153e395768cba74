"""The model: layers, readout, objective, and the two passes through all of them."""
