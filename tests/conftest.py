"""For all tests."""

from hypothesis import settings

# A slow machine is no bug. What is fast is shown by the benchmarks, which compare.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")
