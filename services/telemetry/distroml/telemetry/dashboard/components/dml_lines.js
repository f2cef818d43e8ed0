// One line of a worker as plain DOM nodes: thousands of them cost nothing while they stand.

export function lineRow(line, time) {
  const el = document.createElement("div");
  el.className = line.stream === "stderr" ? "ln err" : "ln";
  const cell = (name, text) => {
    const span = document.createElement("span");
    span.className = name;
    span.textContent = text;
    el.append(span);
    return span;
  };
  cell("tm", time(line.at));
  cell("rk", line.rank < 0 ? "–" : "r" + line.rank).style.setProperty("--hue", String((line.rank * 67 + 210) % 360));
  return [el, cell("tx", "")];
}

// The text with each place marked that a regular expression finds.
export function mark(el, text, wanted) {
  let at = 0;
  for (const hit of wanted ? text.matchAll(wanted) : []) {
    if (!hit[0]) break;
    el.append(text.slice(at, hit.index));
    const m = document.createElement("mark");
    m.textContent = hit[0];
    el.append(m);
    at = hit.index + hit[0].length;
  }
  el.append(text.slice(at));
}

export function escaped(text) {
  return text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
}
