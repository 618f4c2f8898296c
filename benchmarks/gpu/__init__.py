"""Benchmarks on a GPU: graphs and eager calls, cold and hot L2, with floors measured in the same run."""
