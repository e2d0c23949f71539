"""Networks for super-resolution and restoration, ignorant of training."""
