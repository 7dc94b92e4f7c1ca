"""What an agent is made of: client, messages, prompts, tools."""
