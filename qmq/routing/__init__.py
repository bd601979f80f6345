"""From the primary to the instances: who gets what, and nothing lost on the way."""
