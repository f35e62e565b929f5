"""Model, data, inner loop and outer optimizer: torch, and no network."""
