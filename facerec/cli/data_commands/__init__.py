"""The sub-commands of `facerec-data`, found by `facerec.cli.data` without a list."""
