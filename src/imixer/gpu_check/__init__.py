"""Check, measure and train on a GPU that is at hand for minutes: `python -m imixer.gpu_check`."""
