"""The report as a browser sees it, and as an attacker would like to."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from palestra.view import write_report
from palestra.view.page import embedded_json

WriteRun = Callable[..., Path]
Browse = Callable[..., Any]

# Each would set an attribute on the page's root if it ran as markup or script.
ATTACK = "document.documentElement.setAttribute('data-pwned', 1)"
HOSTILE = [
    f"</script><script>{ATTACK}</script>",
    f"<!--<script>{ATTACK}</script>",
    f'<img src=x onerror="{ATTACK}">',
    f'"><svg onload="{ATTACK}">',
    f"{{{{script}}}}\u2028\u2029\x00\u202e\ud800{ATTACK}//",
    f"'-({ATTACK})-'",
    "__proto__",
]


def inside(page: str, tag: str) -> list[str]:
    """The texts of all inline elements of this kind."""
    return re.findall(rf"<{tag}[^>]*>(.*?)</{tag}>", page, flags=re.DOTALL)


def pwned(dom: str) -> bool:
    """Whether an attack ran (its text, shown as text, does not count)."""
    return re.search(r"<html[^>]* data-pwned", dom) is not None


def acted(report: Path, javascript: str) -> Path:
    """A copy of the report, without its policy, in which this script runs at the end."""
    page = re.sub(r"<meta http-equiv[^>]*>", "", report.read_text())
    copy = report.with_name("acted.html")
    copy.write_text(page.replace("</body>", f"<script>{javascript}</script></body>"))
    return copy


@pytest.fixture
def hostile_run(write_run: WriteRun, episode: dict[str, Any], rl_row: dict[str, Any]) -> Path:
    """A run in which every string that a model, tool or user can reach is an attack."""
    everything = " ".join(HOSTILE)
    fields = ("task_id", "group", "answer", "reply", "outcome", "stop_reason")
    texts = dict.fromkeys(fields, everything)
    tokens = [[text, "sampled", -0.1, -0.1, 1.0] for text in HOSTILE]
    return write_run(
        metrics=[
            {
                **rl_row,
                "step": step,
                "tool_errors": dict.fromkeys(HOSTILE, 1),
                "masked": dict.fromkeys(HOSTILE, 1),
                everything: 0.5,
            }
            for step in (1, 2)
        ]
        + [{"stage": text, "step": 1, "loss": 0.1} for text in HOSTILE],
        transcripts=[
            {**episode, **texts, "label": text, "stage": text, "tokens": tokens} for text in HOSTILE
        ],
        summary={"env_id": everything, "heldout_after": 0.9, **dict.fromkeys(HOSTILE, everything)},
        config=f"env = {json.dumps(HOSTILE[2])}\n{json.dumps(HOSTILE[0])} = 1\n",
    )


def test_a_hostile_run_does_not_execute(hostile_run: Path, browse: Browse) -> None:
    seen = browse(write_report(hostile_run))
    assert not pwned(seen.dom)
    assert seen.console == []
    shown = seen.dom.split('<script type="application/json"')[0]
    assert '&lt;img src=x onerror="document' in shown  # as text
    assert not re.search(r"<(img|svg onload|iframe|object)", shown)
    assert "<canvas width" in shown
    assert 'class="token' in shown


def test_a_hostile_run_does_not_execute_even_without_the_policy(
    hostile_run: Path, browse: Browse
) -> None:
    seen = browse(acted(write_report(hostile_run), "document.title = 'ran'"))
    assert "<title>ran</title>" in seen.dom
    assert not pwned(seen.dom)


@pytest.mark.parametrize("attack", HOSTILE[:4])
def test_the_policy_stops_markup_that_got_in(
    write_run: WriteRun, browse: Browse, attack: str
) -> None:
    report = write_report(write_run())
    page = report.read_text().replace("<header", f"{attack}--><header", 1)
    report.write_text(page)
    assert not pwned(browse(report).dom)


def test_without_the_policy_such_markup_would_execute(write_run: WriteRun, browse: Browse) -> None:
    report = acted(write_report(write_run()), "0")
    report.write_text(report.read_text().replace("<header", f"{HOSTILE[2]}<header", 1))
    assert pwned(browse(report).dom)


def test_the_page_needs_nothing_but_itself(write_run: WriteRun) -> None:
    page = write_report(write_run()).read_text()
    assert not re.search(
        r"<link|<iframe|<form|@import|url\(|\ssrc=|\shref=|\sstyle=|\son\w+=\"", page
    )
    policy = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert len(policy) == 1
    assert policy[0].startswith("default-src 'none'; ")
    assert "unsafe" not in policy[0]
    data, *scripts = inside(page, "script")
    for text in (*scripts, *inside(page, "style")):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy[0]
    assert json.loads(data)["headline"]["env_id"] == "palestra/Add-v0"
    assert len(scripts) == 2


def test_the_library_keeps_its_licence(write_run: WriteRun) -> None:
    page = write_report(write_run()).read_text()
    assert "Copyright (c) 2022 Leon Sorokin" in page
    assert "The above copyright notice and this permission notice" in page


def test_embedded_json_is_inert_ascii() -> None:
    text = embedded_json({"a": "</script><!--&\u2028\u202e\x00\ud800é"})
    assert not set(text) & set("<>&")
    assert text.isascii()
    assert json.loads(text) == {"a": "</script><!--&\u2028\u202e\x00\ud800é"}


def test_embedded_json_refuses_numbers_that_browsers_cannot_parse() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        embedded_json([float("nan")])


def test_a_run_is_shown(write_run: WriteRun, browse: Browse) -> None:
    seen = browse(write_report(write_run()))
    assert seen.console == []
    assert "<title>palestra/Add-v0, run: palestra report</title>" in seen.dom
    assert "Held-out success rose from 70.0% to 96.0%." in seen.dom
    assert "66.0% to 74.0%" in seen.dom
    assert "2 min 51 s" in seen.dom
    assert "unfinished" not in seen.dom.split("<script")[0]
    for title in ("Held-out success", "Engine–trainer mismatch", "Tool errors", "Entropy"):
        assert f"<h4>{title}</h4>" in seen.dom
    assert "Held-out success, steps 1 to 5. success: 0.9 at first" in seen.dom  # for screen readers
    # Every chart but the empty one (nothing was masked) is drawn.
    assert seen.dom.count("<canvas width") == seen.dom.count('class="chart"') - 1
    assert (
        '<span class="token  special" data-index="1" data-pinned="">&lt;tool_call&gt;</span>'
        in seen.dom
    )
    assert "17+25?↵" in seen.dom
    assert "<dt>log-probability</dt><dd>−0.25<small>p = 0.7788</small></dd>" in seen.dom
    assert "<dt>advantage</dt>" in seen.dom


def test_the_reader_follows_clicks_keys_and_colours(write_run: WriteRun, browse: Browse) -> None:
    report = write_report(write_run())
    seen = browse(
        acted(
            report,
            """
            document.querySelector("[aria-label='Later moment']").click();
            document.querySelectorAll(".token")[1].click();
            const key = new KeyboardEvent("keydown", {key: "ArrowRight", bubbles: true});
            document.querySelector(".tokens").dispatchEvent(key);
            document.querySelector(".tokens").dispatchEvent(key);
            document.querySelector("[value=advantage]").click();
            """,
        )
    )
    assert seen.console == []
    assert '<span class="token p3" data-index="3" data-pinned="">42</span>' in seen.dom
    assert "<dd>sampled · 4</dd>" in seen.dom
    assert "<dd>−2<small>p = 0.1353</small></dd>" in seen.dom
    assert "<dd>+0.75</dd>" in seen.dom
    coloured = browse(acted(report, 'document.querySelector("[value=logprob]").click()')).dom
    assert '<span class="token q1 special" data-index="1"' in coloured
    assert '<span class="token q3" data-index="3"' in coloured


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_nothing_is_wider_than_the_screen(
    hostile_run: Path, browse: Browse, tmp_path: Path, width: int
) -> None:
    copy = acted(
        write_report(hostile_run),
        "const root = document.documentElement;"
        "const tell = () => parent.postMessage([innerWidth, root.scrollWidth], '*');"
        "setTimeout(tell, 500)",
    )
    frame = tmp_path / "frame.html"  # a headless window is at least 500 wide, a frame is not
    frame.write_text(
        f'<iframe src="{copy.as_uri()}" width="{width}" height="800" frameborder="0"></iframe>'
        "<script>onmessage = (event) => document.title = event.data.join(' ')</script>"
    )
    assert f"<title>{width} {width}</title>" in browse(frame, "--hide-scrollbars").dom


def test_an_unfinished_run_with_one_step_is_shown(
    write_run: WriteRun, rl_row: dict[str, Any], browse: Browse
) -> None:
    run = write_run(metrics=[{**rl_row, "step": 1, "heldout": 0.5, "loss": float("nan")}])
    (run / "summary.json").unlink()
    (run / "config.toml").unlink()
    (run / "transcripts.jsonl").unlink()
    seen = browse(write_report(run))
    assert seen.console == []
    assert '<span class="badge">unfinished</span>' in seen.dom
    assert "Held-out success is 50.0% at step 1." in seen.dom
    assert "The RL loss was not a finite number at 1 of 1 steps." in seen.dom
    assert "This run kept no transcripts." in seen.dom


def test_a_run_without_a_step_is_shown(write_run: WriteRun, browse: Browse) -> None:
    seen = browse(write_report(write_run(metrics=[], transcripts=[], summary={}, config="")))
    assert seen.console == []
    assert "No step has been logged yet." in seen.dom
    assert "Held-out success has not been measured yet." in seen.dom


def test_a_report_replaces_the_one_before_and_leaves_nothing_else(write_run: WriteRun) -> None:
    run = write_run()
    before = {path.name for path in run.iterdir()}
    assert write_report(run) == write_report(run) == run / "report.html"
    assert {path.name for path in run.iterdir()} == before | {"report.html"}


def test_a_missing_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no run directory at .*/nowhere: ") as caught:
        write_report(tmp_path / "nowhere")
    assert "\n" not in str(caught.value)


def test_a_directory_without_metrics_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no metrics\.jsonl in ") as caught:
        write_report(tmp_path)
    assert "\n" not in str(caught.value)
