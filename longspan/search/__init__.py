"""The search for position settings: strategies that ask, a desk that counts and remembers, no torch."""
