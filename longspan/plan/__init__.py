"""What a step will cost before it runs: operations, bytes, seconds, and the choice made of them. No torch."""
