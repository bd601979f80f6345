"""
The catalogue of our own checkers; they come in by the door a stranger's come by.

Each module of qmq.checks has a Factory. Take a module away, and only its check is gone.
"""

from importlib import import_module
from pkgutil import iter_modules

from qmq import checks

for _module in iter_modules(checks.__path__):
    globals()[f"{_module.name}_factory"] = import_module(f"qmq.checks.{_module.name}").Factory()
