"""The race: mixserve against raw transports, Arrow Flight, tf.data, Reverb and grain; run by `make bench`."""
