"""The options of a run and the named presets."""
