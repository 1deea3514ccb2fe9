"""`flowkit` as on a machine with a card: the processor computes what `--gpu` asks of Farneback."""

from stand_ins import PretendedFarneback

from flowkit.flow import cuda

if __name__ == "__main__":
    cuda.CudaFarneback = PretendedFarneback  # type: ignore[misc]
    from flowkit_cli.main import main

    main()
