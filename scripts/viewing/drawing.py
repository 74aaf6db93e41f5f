"""A sheet to draw on with a mouse, a pen or a finger: a component of the page's own.

Knows nothing about what becomes of the picture.
"""

from __future__ import annotations

import base64
import binascii
import io
from typing import TYPE_CHECKING

import streamlit as st

if TYPE_CHECKING:
    from PIL.Image import Image

_PREFIX = "data:image/png;base64,"

# Black on white in any theme, as on paper; the pixels are few, for the picture travels.
_HTML = """
<canvas width="224" height="224" aria-label="Sheet to draw on"></canvas>
<button type="button">Clear</button>
"""

_CSS = """
canvas {
    display: block; width: 100%; max-width: 280px; aspect-ratio: 1; box-sizing: border-box;
    background: white; border: 1px solid var(--st-border-color); border-radius: 8px;
    cursor: crosshair; touch-action: none;
}
button {
    margin-top: 8px; padding: 4px 12px; font: inherit; cursor: pointer;
    color: var(--st-text-color); background: transparent;
    border: 1px solid var(--st-border-color); border-radius: 8px;
}
"""

_JS = """
export default function ({ parentElement, setStateValue }) {
    const canvas = parentElement.querySelector("canvas");
    const pen = canvas.getContext("2d");
    // Called again each time that the page is drawn: the sheet stays as it is.
    if (!canvas.dataset.ready) {
        canvas.dataset.ready = "yes";
        clear();
    }

    function clear() {
        pen.fillStyle = "white";
        pen.fillRect(0, 0, canvas.width, canvas.height);
        pen.lineWidth = 24;
        pen.lineCap = pen.lineJoin = "round";
    }

    function draw(event) {
        const place = canvas.getBoundingClientRect();
        const scale = canvas.width / place.width;
        pen.lineTo((event.clientX - place.left) * scale, (event.clientY - place.top) * scale);
        pen.stroke();
    }

    canvas.onpointerdown = (event) => {
        canvas.setPointerCapture(event.pointerId);
        pen.beginPath();
        draw(event);
        draw(event);
        canvas.onpointermove = draw;
    };
    canvas.onpointerup = canvas.onpointercancel = () => {
        canvas.onpointermove = null;
        setStateValue("picture", canvas.toDataURL("image/png"));
    };
    parentElement.querySelector("button").onclick = () => {
        clear();
        setStateValue("picture", null);
    };
}
"""

_sheet = st.components.v2.component("folkmoot_sheet", html=_HTML, css=_CSS, js=_JS)


def sheet(key: str) -> Image | None:
    """Show a sheet; return what is drawn on it, None if nothing is."""
    url = _sheet(key=key, on_picture_change=lambda: None).picture
    return decoded(url) if isinstance(url, str) else None


def decoded(url: str) -> Image | None:
    """Return the picture of a data URL; None if it holds no PNG."""
    from PIL import Image

    try:
        data = base64.b64decode(url.removeprefix(_PREFIX), validate=True)
        picture = Image.open(io.BytesIO(data), formats=["PNG"])
        picture.load()
    except (OSError, ValueError, binascii.Error):
        return None
    return picture
