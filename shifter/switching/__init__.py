"""Phase 3: engines, the initialiser (module 8), the switcher (module 9), a simulator. No torch, no Ray."""

from shifter.switching.simulate import simulate as simulate
