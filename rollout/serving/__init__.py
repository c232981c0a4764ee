"""Serving a policy behind the OpenAI API, and recording agents that talk to it."""
