"""The race: mixserve against its limits on this machine, Arrow Flight, ZeroMQ, tf.data, Reverb and grain; by `make bench`."""
