"""The program inside every sandbox, run by the sandbox's own Python, 3.8 or newer.

Only the standard library, and nothing of palestra outside of this folder: `guest_source` bundles
these files into one text.
"""
