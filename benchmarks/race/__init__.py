"""The race: mixserve beside raw transports, Arrow Flight, tf.data, Reverb and grain; run by `make bench`."""
