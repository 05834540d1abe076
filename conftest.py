"""What every test shares: settings that must stand before anything is imported."""

import os

from hypothesis import settings

# A busy machine is no failure: examples are limited in number, never in time.
settings.register_profile("shifter", deadline=None)
settings.load_profile("shifter")

# No test reports to anyone.
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
