/* What can be measured of a page as it is drawn: run in the page, returns plain data. */
async () => {
  for (const fold of document.querySelectorAll("details")) fold.open = true;
  await new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)));

  /* The part of a box that can be seen: cut by every frame around it that scrolls or hides. */
  const visible = (box, element) => {
    let {left, top, right, bottom} = box;
    for (let at = element; at && at !== document.documentElement; at = at.parentElement) {
      const style = getComputedStyle(at);
      if (style.display === "none" || style.visibility === "hidden" || Number(style.opacity) === 0) return null;
      if (at instanceof SVGElement && at.tagName !== "svg") continue;
      if (style.overflowX === "visible" && style.overflowY === "visible") continue;
      const frame = at.getBoundingClientRect();
      left = Math.max(left, frame.left); right = Math.min(right, frame.right);
      top = Math.max(top, frame.top); bottom = Math.min(bottom, frame.bottom);
    }
    return right - left > 1 && bottom - top > 1 ? {left, top, right, bottom} : null;
  };

  /* What is painted over by a cell that stays while its table scrolls is not seen either. */
  const covered = (box, element) => {
    const cell = element.closest("td, th");
    const first = cell && cell.parentElement.firstElementChild;
    if (!cell || cell === first || getComputedStyle(first).position !== "sticky") return box;
    const edge = first.getBoundingClientRect().right;
    return box.right - Math.max(box.left, edge) > 1 ? {...box, left: Math.max(box.left, edge)} : null;
  };

  const boxes = [], small = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement, text = node.textContent.trim();
    if (!text || ["STYLE", "SCRIPT", "TITLE"].includes(element.tagName.toUpperCase())) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    const rects = [...range.getClientRects()].map(rect => visible(rect, element)).filter(Boolean)
      .map(rect => covered(rect, element)).filter(Boolean);
    if (!rects.length) continue;
    let size = parseFloat(getComputedStyle(element).fontSize);
    if (element instanceof SVGElement) {
      const matrix = element.getScreenCTM();
      size *= Math.hypot(matrix.b, matrix.d);
    }
    if (size < 11.95) small.push({text: text.slice(0, 60), size});
    for (const rect of rects) boxes.push({...rect, text, element, size});
  }

  /* A box of text is as high as its line; letters take the middle of it. */
  const core = box => {
    const slack = Math.max(0, (box.bottom - box.top - box.size * 0.72) / 2);
    return {...box, top: box.top + slack, bottom: box.bottom - slack, left: box.left + 0.5, right: box.right - 0.5};
  };
  const cores = boxes.map(core).sort((a, b) => a.top - b.top);
  const overlaps = [];
  for (let i = 0; i < cores.length && overlaps.length < 20; i++) {
    for (let j = i + 1; j < cores.length && cores[j].top < cores[i].bottom; j++) {
      const a = cores[i], b = cores[j];
      if (a.element === b.element && !(a.element instanceof SVGElement)) continue;
      const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
      const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
      if (wide > 1 && high > 1.5) overlaps.push({a: a.text.slice(0, 60), b: b.text.slice(0, 60), wide, high,
        at: [Math.round(a.left), Math.round(a.top + scrollY)]});
    }
  }

  const root = document.documentElement;
  const wide = [...document.querySelectorAll("body *")]
    .filter(each => each.getBoundingClientRect().right > innerWidth + 1 && visible(each.getBoundingClientRect(), each))
    .slice(0, 5).map(each => `${each.tagName} ${each.className.baseVal ?? each.className}`);
  return {
    width: innerWidth, scrollWidth: Math.max(root.scrollWidth, document.body.scrollWidth), texts: boxes.length,
    small: small.slice(0, 20), overlaps, wide,
  };
}
