"""The gradient of a network's loss, and what it can be traded for."""
