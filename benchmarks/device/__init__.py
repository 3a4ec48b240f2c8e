"""What needs an accelerator: placement `device`, its bytes beside those of `host`, and batches put on devices."""
