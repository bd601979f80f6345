"""Conf to services: the only rooms that know all stages, and join them."""
