"""The limits of the race, a file each: what this machine can do, measured in the same run as ours.

Some do a part of the work (`take`, `memcpy`, `raw_socket`). The others do all of it with nothing between the steps:
they plan and gather with mixserve's own parts in one thread, and hand batches over in the simplest way. They know no
errors, retries or second readers, and so cannot serve a training; they show what these cost in ours.
"""
