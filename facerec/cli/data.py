"""`facerec-data SUBCOMMAND`: look after data sets."""

from __future__ import annotations

import importlib
import pkgutil

from facerec.cli import data_commands
from facerec.cli.options import DATA as program

for module in pkgutil.iter_modules(data_commands.__path__):
    importlib.import_module(f"{data_commands.__name__}.{module.name}")
main, run = program.main, program.run
