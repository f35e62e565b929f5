"""``atoll demo``: a swarm of real processes on this machine, and a report on it."""
