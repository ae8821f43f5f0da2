"""What the timing scripts time: backbones, a plain training loop, synthetic data, memory."""
