"""Our own checkers: one module each, found as a stranger's would be."""
