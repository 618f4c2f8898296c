"""What a training step costs by part, beside the bare encoder passes that it needs; mixfast.profile is the command."""
