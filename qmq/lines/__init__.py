"""How facts are written down: as lines for people and qmail's analysers, or as JSON. Pure: values in, text out."""
