"""Rollouts: policies, engines, the chat format, the driver and evaluation."""
