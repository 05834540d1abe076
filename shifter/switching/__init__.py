"""Phase 3: engines, the initialiser (module 8) and the switcher (module 9). No torch, no Ray."""
