"""What old code wants of the standard library and newer Pythons took away; put into images, not imported here."""

import collections
import collections.abc
import fractions
import inspect
import math

for _name in collections.abc.__all__:
    if not hasattr(collections, _name):
        setattr(collections, _name, getattr(collections.abc, _name))
if not hasattr(fractions, "gcd"):
    fractions.gcd = math.gcd  # type: ignore[attr-defined]
if not hasattr(inspect, "getargspec"):
    _ArgSpec = collections.namedtuple("_ArgSpec", "args varargs keywords defaults")
    inspect.getargspec = lambda func: _ArgSpec(*inspect.getfullargspec(func)[:4])  # type: ignore[attr-defined]
