"""The figures of the papers (`facerec-figures`)."""
