"""The machine of a run: verl on CPUs, GPUs, environment variables, sockets, and the end of child processes."""
