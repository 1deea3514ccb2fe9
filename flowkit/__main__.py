"""``python -m flowkit`` is the command `flowkit`."""

from runpy import run_module

if __name__ == "__main__":
    run_module("flowkit_cli", run_name="__main__")
