"""What all rules share: blocks, shards, state, rounding, and the ways in which a rule is executed."""
