"""The sub-commands of `facerec-data`, one module each, found by `facerec.cli.data` without a list.

A module offers ``add(commands)``: it makes its parser with ``commands.add_parser(name, …)`` (help, an example
in the epilog) and sets ``work=`` to a function of the parsed options that returns the exit status. Whatever
the work needs is imported by that function, so that ``--help`` stays quick.
"""

from __future__ import annotations

import argparse
from typing import TypeAlias

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
