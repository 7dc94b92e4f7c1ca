"""The machine that a run is on: CPU platform for verl, GPUs, environment variables, sockets, and the death of a parent."""
