"""The command line of flowkit: one file a command."""
