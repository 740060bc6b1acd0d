"""The training code of the embedded pair. No installed package imports it."""
