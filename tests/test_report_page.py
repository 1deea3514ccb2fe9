"""The report page in a real browser: nothing runs over, covers another or is too faint to read."""

import json
import os
import re
import shutil
import subprocess
from html import escape, unescape

import pytest
from made_scores import make_scores

from flowkit.report.figures import evaluate, mistakes
from flowkit.report.html import Extras, page
from flowkit.scores.fusion import Fusion, fuse

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
WIDTHS = (390, 1280, 1920)  # px: a phone, a laptop, a large screen
SCHEMES = {"dark": 0, "light": 1}  # as Chromium numbers them
LETTERS = 60  # of a long name

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason=f"needs one of the browsers {', '.join(BROWSERS)}"),
]

# Collects what is wrong on a page that is shown in a frame of its own: a list of sentences.
MEASURE = """
function rgba(text) {
  const numbers = text.match(/[\\d.]+/g);
  return numbers ? [...numbers.slice(0, 3).map(Number), Number(numbers[3] ?? 1)] : [0, 0, 0, 0];
}
function over(top, opacity, below) {  // the color of paint on a ground
  const alpha = top[3] * opacity;
  return [0, 1, 2].map(k => top[k] * alpha + below[k] * (1 - alpha));
}
function luminance(color) {
  const [r, g, b] = color.slice(0, 3).map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}
function contrast(one, other) {  // WCAG 2
  const [low, high] = [luminance(one), luminance(other)].sort((a, b) => a - b);
  return (high + 0.05) / (low + 0.05);
}
function ground(doc, x, y) {
  let color = [255, 255, 255];
  for (const element of doc.elementsFromPoint(x, y).reverse()) {
    const style = doc.defaultView.getComputedStyle(element);
    const shape = ["rect", "path", "use", "circle"].includes(element.tagName);
    color = shape ? over(rgba(style.fill), Number(style.fillOpacity), color)
      : over(rgba(style.backgroundColor), 1, color);
  }
  return color;
}
function clip(rect, element, win) {  // what its ancestors let show of a rectangle
  let {left, right, top, bottom} = rect;
  for (; element; element = element.parentElement) {
    if (element.tagName === "svg") continue;
    if (win.getComputedStyle(element).overflowX === "visible") continue;
    const box = element.getBoundingClientRect();
    [left, right] = [Math.max(left, box.left), Math.min(right, box.right)];
    [top, bottom] = [Math.max(top, box.top), Math.min(bottom, box.bottom)];
  }
  return {left, right, top, bottom};
}
function measure(frame, width) {
  const doc = frame.contentDocument, win = frame.contentWindow, wrong = [], shown = [];
  doc.querySelectorAll("details").forEach(one => one.open = true);
  frame.style.height = doc.documentElement.scrollHeight + "px";
  if (doc.documentElement.scrollWidth > width)
    wrong.push(`the page is ${doc.documentElement.scrollWidth} px wide`);
  for (const element of doc.querySelectorAll("body *")) {
    const {overflowX, textOverflow} = win.getComputedStyle(element);
    if (overflowX === "visible" || element.scrollWidth <= element.clientWidth) continue;
    if (overflowX !== "hidden") wrong.push(`${element.className} scrolls`);
    else if (textOverflow !== "ellipsis" || !element.title)
      wrong.push(`cut off: ${element.textContent.trim()}`);
  }
  const walker = doc.createTreeWalker(doc.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode, parent = node.parentElement, text = node.data.trim();
    if (!text || ["title", "STYLE"].includes(parent.tagName) || !parent.checkVisibility()) continue;
    const range = doc.createRange();
    range.selectNodeContents(node);
    for (const rect of range.getClientRects()) {
      const box = clip(rect, parent, win);
      if (box.right - box.left < 1 || box.bottom - box.top < 1) continue;
      if (box.left < -0.5 || box.right > width + 0.5) wrong.push(`beyond the page: ${text}`);
      const panel = parent.closest("article, .tile, figure");
      if (panel) {
        const edge = panel.getBoundingClientRect();
        if (box.left < edge.left || box.right > edge.right) wrong.push(`beyond its box: ${text}`);
      }
      const style = win.getComputedStyle(parent);
      const color = rgba(parent.namespaceURI.endsWith("svg") ? style.fill : style.color);
      const [x, y] = [(box.left + box.right) / 2, (box.top + box.bottom) / 2];
      const ratio = contrast(color, ground(doc, x, y));
      if (ratio < 4.5) wrong.push(`contrast ${ratio.toFixed(2)}: ${text}`);
      const quarter = (box.bottom - box.top) / 4;  // lines are taller than their letters
      shown.push({node, text, left: box.left + 0.5, right: box.right - 0.5,
                  top: box.top + quarter, bottom: box.bottom - quarter});
    }
  }
  shown.sort((a, b) => a.top - b.top);
  shown.forEach((one, k) => {
    for (let n = k + 1; n < shown.length && shown[n].top < one.bottom; n++)
      if (shown[n].node !== one.node && shown[n].left < one.right && one.left < shown[n].right)
        wrong.push(`${one.text} and ${shown[n].text} overlap`);
  });
  return {wrong, texts: shown.length, ground: rgba(win.getComputedStyle(doc.body).backgroundColor)};
}
window.onload = () => {
  const found = {};
  for (const frame of document.querySelectorAll("iframe"))
    found[frame.width] = measure(frame, Number(frame.width));
  document.querySelector("pre").textContent = JSON.stringify(found);
};
"""


def long(word, number):
    """A name of 60 letters."""
    return f"{word}_{number:03d}_{'a_very_long_name_' * 4}"[: LETTERS - 1] + "z"


def methods(count, *, name, **options):
    made = {
        name(k): make_scores(seed=k, strength=1 + k / 4, about=f"network {k}, " * 5, **options)
        for k in range(count - 1)
    }
    return {**made, name(count): fuse(made, Fusion("average"))}


@pytest.fixture(scope="module")
def text():
    """A page with all that pages can have: long names, several splits, curves, few classes."""
    classes = tuple(long("Class", k) for k in range(101))
    few, some = ("jump", "run"), tuple(f"class {k}" for k in range(12))
    streams = methods(
        8, name=lambda k: long("method", k), classes=classes, per_class=4, split="ucf101-1"
    )
    reports = [
        evaluate(streams),
        evaluate(methods(4, name=str, classes=few, split="hmdb51-1")),
        evaluate(methods(8, name=str, classes=some, per_class=120, split="hmdb51-2")),
    ]
    curve = [(step, 1 / step) for step in range(1, 40)]
    measures = {f"{long('task', k)} loss": curve for k in range(6)} | {"heldout_loss": [(9, 0.2)]}
    missing = {one.video: "no flow record below flow" for one in mistakes(reports[0])[:3]}
    extras = Extras(
        curves={f"runs/{long('run', 0)}": measures, "runs/b": {"accuracy": curve, "loss": curve}},
        missing=missing,
        sources=[f"runs/{name}/scores-test.npz" for name in streams],
    )
    return page(reports, extras)


def look(folder, text, scheme):
    """What is wrong on the page, by width."""
    frames = "".join(
        f'<iframe width="{width}" style="border: 0" srcdoc="{escape(text)}"></iframe>'
        for width in WIDTHS
    )
    file = folder / "frames.html"
    file.write_text(
        f"<!DOCTYPE html><meta charset='utf-8'>{frames}<pre></pre><script>{MEASURE}</script>",
        encoding="utf-8",
    )
    command = [BROWSER, "--headless", "--disable-gpu", f"--user-data-dir={folder / 'user'}"]
    command += ["--no-sandbox"] * (os.geteuid() == 0)
    command += [f"--blink-settings=preferredColorScheme={SCHEMES[scheme]}", "--dump-dom"]
    done = subprocess.run([*command, file], capture_output=True, text=True, timeout=300, check=True)
    [found] = re.findall(r"<pre>(.*?)</pre>", done.stdout, re.DOTALL)
    return json.loads(unescape(found))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_page_is_whole_and_readable_on_every_screen(tmp_path, text, scheme):
    found = look(tmp_path, text, scheme)
    assert sorted(map(int, found)) == sorted(WIDTHS)
    for width, one in found.items():
        assert not one["wrong"], (width, len(one["wrong"]), one["wrong"][:10])
        assert one["texts"] > 1000
        assert (sum(one["ground"][:3]) < 384) == (scheme == "dark")


def test_what_is_wrong_is_found(tmp_path):
    bad = (
        "<body style='margin: 0'><p style='position: absolute; top: 0'>one</p>"
        "<p style='position: absolute; top: 3px'>two</p><p style='width: 2000px'>wide</p>"
        "<p style='color: #999'>faint</p><svg width='100' height='20'>"
        "<rect width='100' height='20' fill='#333'/><text y='15'>dark</text></svg>"
        "<p style='width: 30px; overflow: hidden; white-space: nowrap'>a long name</p>"
    )
    for one in look(tmp_path, bad, "light").values():
        said = " ".join(one["wrong"])
        assert "cut off: a long name" in said
        assert "px wide" in said and "one and two overlap" in said
        assert re.search(r"contrast 2\.\d\d: faint", said)
        assert re.search(r"contrast 1\.\d\d: dark", said)
