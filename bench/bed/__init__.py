"""What `bench/isolation` is made of: a bed of real processes on loopback."""
