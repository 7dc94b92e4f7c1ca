"""What can be known before a long run: checks, doctor, memory plan, the agents' debug mode."""
