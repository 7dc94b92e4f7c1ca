"""Checks before a long run: the doctor, the memory plan, parity with the server, and attacks on a reward."""
