"""``python -m flowkit_cli``, as ``torchrun -m`` starts it."""

from flowkit_cli.main import main

if __name__ == "__main__":
    main()
