"""Detection transfer: torchvision's detectors on a backbone, images with many objects, and average precision."""
