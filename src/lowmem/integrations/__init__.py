"""The optimizers in other people's trainers: Hugging Face, DeepSpeed, torchtitan."""
