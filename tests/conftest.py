"""Values are frozen in tests; every asynchronous test has a time limit."""

import functools
import os
import unittest

os.environ["QMQ_STRICT"] = "1"

import pytest
from twisted.internet import defer
from twisted.trial._synctest import _logObserver


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


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """
    Begin a trial test without the errors of others.

    A trial test that is skipped leaves trial's log observer on, which then
    gathers what the asynchronous tests after it log on purpose, for the next one to fail with.
    """
    kind = getattr(item, "cls", None)
    if kind is not None and issubclass(kind, unittest.TestCase):
        _logObserver.flushErrors()
