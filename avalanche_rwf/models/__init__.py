"""What methods share: backbones, the one frozen forward, prompts, heads. Never Avalanche."""
