"""The command line of flowkit: one file per command."""
