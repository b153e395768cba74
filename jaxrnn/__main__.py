"""`python -m jaxrnn` is the command `jaxrnn`."""

from jaxrnn.cli import main

main()
