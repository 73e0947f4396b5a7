"""What tasks on pictures share: batches, diffusion, reference networks."""
