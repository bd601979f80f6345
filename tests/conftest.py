"""Values are frozen in tests; every asynchronous test has a time limit."""

import functools
import os

os.environ["QMQ_STRICT"] = "1"

import pytest
from twisted.internet import defer


@pytest.hookimpl(hookwrapper=True, tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    """Give each test 20 s, or what its mark `limit` says."""
    function = pyfuncitem.obj
    if getattr(function, "hypothesis", None) is None:
        mark = pyfuncitem.get_closest_marker("limit")
        seconds = mark.args[0] if mark else 20

        @functools.wraps(function)
        def limited(*args, **kwargs):
            from twisted.internet import reactor

            return defer.maybeDeferred(function, *args, **kwargs).addTimeout(seconds, reactor)

        pyfuncitem.obj = limited
    yield
    pyfuncitem.obj = function
