"""The sub-commands of `python -m mixfast.evaluate`, one per file: options, what is printed, what is written."""
