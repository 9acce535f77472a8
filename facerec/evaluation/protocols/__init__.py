"""The protocols of the papers, one a module."""
