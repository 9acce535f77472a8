"""Copy what is sound of a damaged pack into a new one.

Everything in PACK is read and decoded, and what is sound becomes a new pack in the folder OUT; report.csv
there names each damaged record and what is wrong with it.

example:
  facerec-data repair data/faces_emore data/faces_emore_repaired
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from facerec.cli.data_options import add_force, add_index, add_pack, add_workers, workers


def add_options(parser: ArgumentParser) -> None:
    add_pack(parser)
    add_index(parser)
    add_workers(parser)
    add_force(parser)


def run(options: Namespace) -> None:
    from facerec.errors import counted
    from facerec.making.rewriting import repair
    from facerec.packs.pack import find_rec

    built, damaged, unlisted = repair(
        find_rec(options.pack),
        options.out,
        index=options.index,
        force=options.force,
        workers=workers(options),
    )
    print(built)
    print(f"{counted(damaged, 'damaged record')} left out; {options.out / 'report.csv'} names them")
    if unlisted:
        many = counted(unlisted, "record")
        print(f"{many} left out that the index does not list; without an .idx all are found")
