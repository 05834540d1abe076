"""What every test shares: settings that must stand before anything is imported."""

import os

from hypothesis import settings

# A busy machine is no failure: examples are limited in number, never in time. They are the same ones each
# time, so that a change is judged by itself; HYPOTHESIS_PROFILE=search looks for new ones.
settings.register_profile("search", deadline=None)
settings.register_profile("shifter", deadline=None, derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "shifter"))

# No test reports to anyone.
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
