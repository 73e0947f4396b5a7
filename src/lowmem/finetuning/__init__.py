"""What tasks on instructions, preferences and questions share: examples, prompts, generation, rewards."""
