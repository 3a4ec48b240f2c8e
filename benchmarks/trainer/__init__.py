"""How long a training loop waits for its data: mixserve beside tf.data service and grain; run by `make bench`."""
