"""`flowkit` as on a machine with a GPU: the processor computes what `--gpu` asks of Farneback.

The first argument may name another class of stand_ins than PretendedFarneback.
"""

import sys

import stand_ins

from flowkit.flow.cuda import methods

if __name__ == "__main__":
    name = sys.argv.pop(1) if sys.argv[1].endswith("Farneback") else "PretendedFarneback"
    methods.CudaFarneback = getattr(stand_ins, name)  # type: ignore[misc]
    from flowkit_cli.main import main

    main()
