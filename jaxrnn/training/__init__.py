"""Training steps, the loop around them, and the folder of a run."""
