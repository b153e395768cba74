"""Sequences to learn, one kind a file."""
