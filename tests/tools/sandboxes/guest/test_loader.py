"""The bundle is one text that runs where palestra is not installed, and hides afterwards."""

from __future__ import annotations

import subprocess
import sys

from palestra.tools.sandboxes.guest_sandbox import bundle, guest_source


def run(text: str) -> str:
    # -S: nothing of this environment, palestra least of all, can be imported.
    command = [sys.executable, "-I", "-S", "-c", text]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_a_bundle_defines_main_and_does_not_call_it() -> None:
    assert run(bundle("guest.server") + "print(main.__module__)") == (
        "palestra.tools.sandboxes.guest.server\n"
    )


def test_a_dense_bundle_defines_the_same_after_the_other_modules() -> None:
    code = bundle("guest.server", dense_after=("colorsys",))
    end = "import sys; print(main.__name__, 'colorsys' in sys.modules, 'tarfile' in sys.modules)"
    assert run(code + end) == "main True False\n"
    hidden = "import sys; print([name for name in sys.modules if 'palestra' in name])"
    assert run(code + hidden) == "[]\n"


def test_no_module_of_the_bundle_can_be_seen_afterwards() -> None:
    end = (
        "import sys; print([name for name in sys.modules if 'palestra' in name], sys.meta_path[0])"
    )
    assert run(bundle("guest.server") + end).startswith("[] ")
    assert "guest" not in run(bundle("guest.server") + end)


def test_other_modules_of_the_folder_share_the_guest_s() -> None:
    code = "print(main.__module__, main.__globals__['Guest'].__module__)"
    assert run(bundle("zygote") + code) == (
        "palestra.tools.sandboxes.zygote palestra.tools.sandboxes.guest.server\n"
    )


def test_the_text_fits_into_one_argument() -> None:
    # Linux's MAX_ARG_STRLEN, which has no other sign than "Argument list too long".
    assert len(guest_source().encode()) < 128 * 1024 - 1024
