"""The sub-commands of `facerec-data`, one module each, found by `facerec.cli.data` without a list.

The module's docstring is the help: a title, a paragraph, and whatever stands below it in ``--help``, an
example at least. ``add_options(parser)`` adds the arguments, ``run(options)`` does the work and returns the
exit status, None for 0. What the work needs is imported there, so that ``--help`` stays quick.
"""
