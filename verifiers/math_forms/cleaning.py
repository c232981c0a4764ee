"""Rewrite an answer's characters to one spelling: typographic signs, spacing, sizing commands."""

from __future__ import annotations

import re
import unicodedata

_GREEK = {
    "α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "epsilon", "ζ": "zeta",
    "η": "eta", "θ": "theta", "κ": "kappa", "λ": "lambda", "μ": "mu", "ν": "nu", "ξ": "xi",
    "π": "pi", "ρ": "rho", "σ": "sigma", "τ": "tau", "φ": "phi", "ϕ": "phi", "χ": "chi",
    "ψ": "psi", "ω": "omega", "Γ": "Gamma", "Δ": "Delta", "Θ": "Theta", "Λ": "Lambda",
    "Π": "Pi", "Σ": "Sigma", "Φ": "Phi", "Ψ": "Psi", "Ω": "Omega",
}  # fmt: skip
_SIGNS = {
    "−": "-", "–": "-", "—": "-", "‐": "-", "‑": "-", "‒": "-", "×": "\\times ", "÷": "\\div ",
    "·": "\\cdot ", "⋅": "\\cdot ", "∙": "\\cdot ", "∗": "*", "⁄": "/", "∕": "/", "√": "\\sqrt ",
    "∛": "\\sqrt[3]", "∜": "\\sqrt[4]", "∞": "\\infty ", "≤": "\\le ", "≥": "\\ge ",
    "⩽": "\\le ", "⩾": "\\ge ", "≠": "\\ne ", "≈": "\\approx ", "±": "\\pm ", "∓": "\\mp ",
    "∪": "\\cup ", "∩": "\\cap ", "∅": "\\emptyset ", "∈": "\\in ", "∖": "\\setminus ",
    "ℝ": "\\mathbb{R}", "ℤ": "\\mathbb{Z}", "ℕ": "\\mathbb{N}", "ℚ": "\\mathbb{Q}",
    "°": "^\\circ ", "º": "^\\circ ", "∠": "\\angle ", "⟨": "\\langle ", "⟩": "\\rangle ",
    "′": "'", "’": "'", "‘": "'", "“": '"', "”": '"', "≡": "\\equiv ", "…": "\\ldots ",
    "⌊": "\\lfloor ", "⌋": "\\rfloor ", "⌈": "\\lceil ", "⌉": "\\rceil ", "∣": "|", "，": ",",
    "。": ".", "：": ":", "；": ";", "∧": "\\text{ and }", "∨": "\\text{ or }", "µ": "\\mu ",
    "％": "%", "∼": "\\sim ", "→": "\\to ", "⇒": "\\Rightarrow ", "、": ",",
    "½": "\\frac{1}{2}", "⅓": "\\frac{1}{3}", "⅔": "\\frac{2}{3}", "¼": "\\frac{1}{4}",
    "¾": "\\frac{3}{4}", "⅕": "\\frac{1}{5}", "⅖": "\\frac{2}{5}", "⅗": "\\frac{3}{5}",
    "⅘": "\\frac{4}{5}", "⅙": "\\frac{1}{6}", "⅚": "\\frac{5}{6}", "⅛": "\\frac{1}{8}",
    "⅜": "\\frac{3}{8}", "⅝": "\\frac{5}{8}", "⅞": "\\frac{7}{8}",
}  # fmt: skip
_TYPOGRAPHY = str.maketrans(
    {**{sign: f"\\{name} " for sign, name in _GREEK.items()}, **_SIGNS}
)  # fmt: skip
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n")
_LOWERED = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_RAISED_RUN = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+")
_LOWERED_RUN = re.compile("[₀₁₂₃₄₅₆₇₈₉]+")

_SIZES = re.compile(
    r"\\(?:left|right|bigl|bigr|Bigl|Bigr|biggl|biggr|Biggl|Biggr|big|Big|bigg|Bigg|middle)"
    r"(?![A-Za-z])\s*\.?"
    r"|\\(?:displaystyle|textstyle|scriptstyle|limits|nolimits|rm|bf|it|quad|qquad|hfill|noindent"
    r"|nonumber|small|large|normalsize|phantom\s*\{[^{}]*\}|[hv]space\*?\s*\{[^{}]*\}"
    r"|(?:tag|label|color)\*?\s*\{[^{}]*\})(?![A-Za-z])"
)
_SPACES = re.compile(r"(?<!\\)\\[,;:>! \n]|~")
# 1{,}000 and 1,\!000 and 1\,000: one number.
_GROUPS = re.compile(r"(?<=\d)(?:\{,\}|,\\!|\\!,)\s?(?=\d{3}(?!\d))")
_SPACED_GROUPS = re.compile(
    r"(?<![\d.,])\d{1,3}(?:(?:\\,|\\ |[ \u00a0\u2009\u202f~])\d{3})+(?![\d/])"
)
_SPACE_IN_GROUP = re.compile(r"\\,|\\ |[ \u00a0\u2009\u202f~]")
# A backslash that was escaped once too often.
_DOUBLED = re.compile(r"\\\\(?=[A-Za-z])")
_UNIT_FRACTION = re.compile(
    r"\\[dt]?frac\s*\{\s*\\(?:text|mathrm)\s*\{([A-Za-z^0-9 ]+)\}\s*\}"
    r"\s*\{\s*\\(?:text|mathrm)\s*\{([A-Za-z^0-9 ]+)\}\s*\}"
)
# 6.02 x 10^23
_TIMES = re.compile(r"(?<=\d)\s*[xX]\s*(?=10\s*\^)")
_BOX = re.compile(r"\\f?boxed\s*\{|\\fbox\s*\{")


def clean(text: str) -> str:
    """The same answer in ASCII LaTeX or plain text, without dollars around formulas.

    Linear in the text's length.
    """
    if not text.isascii():
        text = _to_ascii(text)
    text = text.strip()
    if "{,}" in text or "\\!" in text:
        text = _GROUPS.sub(",", text).replace("{,}", ",")
    if "\\" in text or "~" in text:
        text = _UNIT_FRACTION.sub(r"\\text{\1/\2}", text)
        if "\\\\" in text and "\\begin" not in text:
            text = _DOUBLED.sub(r"\\", text)
        text = _SIZES.sub(" ", text)
        text = _SPACED_GROUPS.sub(_joined, text)
        text = _SPACES.sub(" ", text)
        text = re.sub(r"(?<!\\)\\[()]", " ", text)
        text = _without_display(text)
        text = _unboxed(text)
    elif " " in text:
        text = _SPACED_GROUPS.sub(_joined, text)
    text = _without_dollars(text)
    if "**" in text and text.startswith("**"):
        text = text.strip("*")
    text = text.strip()
    text = text if text.endswith("...") else text.rstrip(".,;:?").strip()
    return _TIMES.sub(r"\\times ", text) if "10" in text else text


def _to_ascii(text: str) -> str:
    text = _RAISED_RUN.sub(lambda run: f"^{{{run[0].translate(_RAISED)}}}", text)
    text = _LOWERED_RUN.sub(lambda run: f"_{{{run[0].translate(_LOWERED)}}}", text)
    text = _SPACED_GROUPS.sub(_joined, text).translate(_TYPOGRAPHY)
    text = unicodedata.normalize("NFKC", text)
    if text.isascii():
        return text
    shown = []
    for char in text:
        category = unicodedata.category(char)
        if category == "Nd":
            shown.append(str(unicodedata.decimal(char)))
        elif category not in ("Cf", "Cc") or char in "\n\t":
            shown.append(char)
    return "".join(shown)


def _joined(groups: re.Match[str]) -> str:
    return _SPACE_IN_GROUP.sub("", groups[0])


def _without_display(text: str) -> str:
    r"""Without the brackets of a display, \[ \]; a line break may end in `\\[2pt]`."""
    if "\\[" not in text and "\\]" not in text:
        return text
    return re.sub(r"(?<!\\)\\[\[\]]", " ", text)


def _unboxed(text: str) -> str:
    return _BOX.sub("{", text) if "boxed" in text or "fbox" in text else text


def _without_dollars(text: str) -> str:
    """Dollars around formulas are dropped; one before a number that none closes is money."""
    if "$" not in text:
        return text
    plain = text.replace("$$", " ").replace("\\$", "\\dollar ")
    count = plain.count("$")
    if count % 2 == 0:
        return plain.replace("$", " ")
    return plain.replace("$", "\\dollar ")
