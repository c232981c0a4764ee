"""Training stages and the pure functions they are made of."""
