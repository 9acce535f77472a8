"""Entry points: compose the configuration, call what does the work, report errors."""
