"""What methods share: backbones, the one frozen forward, heads. Knows torch and timm, never Avalanche."""
