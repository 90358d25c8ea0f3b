// Draw the charts in the page's colours, and again when these change or the page is printed.
const charts = [...document.querySelectorAll("[data-chart]")];

function colors() {
  const style = getComputedStyle(document.documentElement);
  return { text: style.getPropertyValue("--text").trim(), line: style.getPropertyValue("--line").trim() };
}

// Without a width, charts are as wide as the window has room for.
function draw(width) {
  const { text, line } = colors();
  for (const chart of charts) {
    const { data, layout } = JSON.parse(document.getElementById(chart.dataset.chart).textContent);
    layout.font = { ...layout.font, color: text };
    for (const name of Object.keys(layout)) {
      if (/^[xy]axis/.test(name)) {
        layout[name] = { ...layout[name], gridcolor: line, linecolor: line, zerolinecolor: line, automargin: true };
      }
    }
    for (const note of layout.annotations || []) note.font = { ...note.font, color: text };
    for (const trace of data) if (trace.type === "heatmap") trace.textfont = { color: text };
    if ((width || chart.clientWidth) < 640) {
      stack(layout);
      shorten(data, layout);
    }
    if (width) Object.assign(layout, { width, height: 0.75 * layout.height });
    Plotly.react(chart, data, layout, { responsive: true, displayModeBar: false });
  }
}

// On a phone, long names of classes leave no room for the data; pointing at a mark tells the whole.
const longest = 14; // characters
function shorten(data, layout) {
  for (const name of ["x", "y"]) {
    const axis = layout[`${name}axis`];
    if (!axis || axis.type !== "category") continue;
    const classes = [...new Set(data[0][name])];
    if (classes.length > 40) continue; // which Plotly thins out
    const texts = classes.map((text) => (text.length > longest ? `${text.slice(0, 8)}…${text.slice(-5)}` : text));
    Object.assign(axis, { tickmode: "array", tickvals: classes, ticktext: texts });
  }
}

// On a phone, panels side by side go below each other.
function stack(layout) {
  const axes = Object.keys(layout).filter((name) => name.startsWith("xaxis"));
  if (axes.length < 2) return;
  const height = 1 / axes.length;
  axes.forEach((name, place) => {
    const top = 1 - place * height;
    layout[name].domain = [0, 1];
    if (place < axes.length - 1) delete layout[name].title;
    layout[name.replace("x", "y")].domain = [top - height * 0.7, top];
    const note = (layout.annotations || [])[place];
    if (note) Object.assign(note, { x: 0.5, y: top, yanchor: "bottom" });
  });
  layout.height = 260 * axes.length;
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => draw());
const paper = 660; // pixels: within the margins of A4 and of Letter
addEventListener("beforeprint", () => {
  document.querySelectorAll("details").forEach((fold) => { fold.open = true; });
  draw(paper);
});
addEventListener("afterprint", () => draw());
draw();
