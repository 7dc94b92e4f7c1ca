"""The parts of an agent: client, messages, prompts and tools."""
