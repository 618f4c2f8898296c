"""The cost of each part of a training step, compared with the bare encoder passes; mixfast.profile is the command."""
