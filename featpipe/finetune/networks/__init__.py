"""Networks that are trained from scratch, and those of timm."""
