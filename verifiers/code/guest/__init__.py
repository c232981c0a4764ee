"""What runs inside the sandboxes of the code verifier: standard library only, nothing of palestra.

The program's sandbox holds `serve`, the tests' sandbox `relay`; `plain` is what crosses between.
"""
