"""`python -m jaxrnn` is the command `jaxrnn`."""

from jaxrnn.training.signals import end_on_signals


def main() -> None:
    """Runs the command, which a signal ends with one line wherever it is; in a training, saved."""
    with end_on_signals():
        from jaxrnn import cli  # takes a while

        cli.main()


if __name__ == "__main__":
    main()
