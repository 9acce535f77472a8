"""Loggers, figures, report.html, the table of a sweep, and the output folder of a command."""
