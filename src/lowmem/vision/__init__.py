"""What image tasks share: batches, diffusion, reference networks."""
