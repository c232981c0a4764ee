"""`State`: what the tools of one episode share."""

from __future__ import annotations

from typing import Any


class State:
    """A bag of attributes that lives for one episode; the model never sees it.

    A tool asks for it with a parameter annotated `State`, or a subclass that declares its fields:

        class Basket(State):
            def __init__(self) -> None:
                self.items: list[str] = []

        @tool
        def put(item: str, basket: Basket) -> None: ...

    Several calls in one reply run concurrently and share the state.
    """

    def __getattr__(self, name: str) -> Any:  # only called for what is not there
        raise AttributeError(
            f"{type(self).__name__} has no {name!r}: set it first, or in the __init__ of a "
            "subclass of State"
        )

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({fields})"
