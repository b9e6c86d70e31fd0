"""Where the time of a decode step goes: scripts/profile_step.py."""
