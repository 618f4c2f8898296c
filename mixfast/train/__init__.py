"""python -m mixfast.train: the command line, the report and its plots."""
